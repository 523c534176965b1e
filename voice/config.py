"""All settings, read once and validated: the only reader of settings files and of the environment.

Command line > ``VOICE_ASR__*`` > ``--config FILE`` > ``config/default.yaml`` -> ``Settings``. config/default.yaml holds every default,
this module holds none. Raises ``ConfigInvalid`` with every problem found, each with its key and what is allowed. No state but
config/default.yaml, which is parsed once in a process. Any thread.
"""

from __future__ import annotations

import copy
import functools
import os
import re
import reprlib
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, SettingsError

from voice.errors import ConfigInvalid, describe
from voice.places import DATA
from voice.text_file import FileInvalid, expand
from voice.yaml_file import MAX_DEPTH, read_mapping

DEFAULT_PATH = DATA / "config" / "default.yaml"
ENV_PREFIX = "VOICE_ASR__"
_HERE = "{here}/"
_SECRET = frozenset({"engine.token"})
"""Settings whose values no message shows."""
_WAKE_WORD = re.compile(r"[' ]*([\u4e00-\u9fffA-Za-z][' ]*){2,32}")
_FRAME_SEC = 0.06
"""Length of one frame of ``chunk_size``."""

Mode = Literal["sliced", "streaming"]
Engine = Literal["silero", "fsmn"]
LOCAL_ENGINES = ("auto", "onnx", "torch")
_SERVER = re.compile(r"wss?://(\[[0-9A-Fa-f:.]+\]|[^\s/@:\[\]]+)(:\d{1,5})?(/[^\s#]*)?")
PathText = Annotated[InstanceOf[str], Field(min_length=1)]
"""A path, or a name that may be one. pydantic's str of a least length is UTF-8; the name of a file need not be."""
Probability = Annotated[float, Field(gt=0, lt=1)]
LookBack = Annotated[int, Field(ge=0, le=50)]
ChunkSize = tuple[
    Annotated[int, Field(ge=0, le=30)],  # left context
    Annotated[int, Field(ge=1, le=60)],  # chunk
    Annotated[int, Field(ge=1, le=30)],  # right look-ahead; without it FunASR's encoder caches nothing
]


class Section(BaseModel):
    """A group of settings; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AudioSettings(Section):
    """``audio``"""

    input: PathText
    device: int | str | None
    channel: Annotated[int, Field(ge=0, le=63)] | Literal["mix"]
    sample_rate: Annotated[int, Field(ge=4_000, le=384_000)]
    realtime: bool
    block_ms: Annotated[int, Field(ge=5, le=200)]
    latency_sec: Annotated[float, Field(ge=0.02, le=5)]
    queue_sec: Annotated[float, Field(ge=1, le=600)]
    stall_ms: Annotated[int, Field(ge=200, le=60_000)]
    zeros_sec: Annotated[float, Field(ge=0, le=86_400)]
    silent_sec: Annotated[float, Field(ge=0, le=86_400)]
    wait_for_device: bool

    @field_validator("device", mode="before")
    @classmethod
    def _index_as_number(cls, value: object) -> object:
        """Take digits as an index: the command line and the environment only have text."""
        return int(value) if isinstance(value, str) and value.isdecimal() else value


class VadSettings(Section):
    """``vad``"""

    engine: Engine
    model: PathText
    threshold: Probability | None
    release_threshold: Probability | None
    fitting_thresholds: dict[Engine, tuple[Probability, Probability]]
    min_speech_ms: Annotated[int, Field(ge=0, le=2_000)]
    pre_roll_ms: Annotated[int, Field(ge=0, le=2_000)]
    min_rms: Annotated[float, Field(ge=0, le=1)]
    near_field: Annotated[float, Field(ge=-90, le=-10)] | Literal["off", "auto"]
    max_utterance_sec: Annotated[float, Field(ge=5, le=300)]

    @field_validator("near_field", mode="before")
    @classmethod
    def _off_without_quotes(cls, value: object) -> object:
        """Take YAML's ``off``, which is false there, as the word."""
        return "off" if value is False else value

    @property
    def thresholds(self) -> tuple[float, float]:
        """Threshold and release threshold; for null the one that fits the engine, the release never above the threshold."""
        threshold, release = self.fitting_thresholds[self.engine]
        threshold = self.threshold if self.threshold is not None else threshold
        return threshold, self.release_threshold if self.release_threshold is not None else min(release, threshold)


def _is_server(value: str) -> bool:
    """Whether a value is the address of a server that a name server and a connection can take."""
    try:
        parts = urlsplit(value)
        host = (parts.hostname or "").encode("idna")
        return bool(_SERVER.fullmatch(value) and host and (parts.port is None or bool(parts.port)))
    except ValueError:  # a port beyond 65535, a label that is empty or too long
        return False


def _engine(value: str) -> str:
    if value not in LOCAL_ENGINES and not _is_server(value):
        allowed = "auto, onnx, torch, or the address of a server, wss://host:10095 (ws:// without TLS)"
        token = "; a token belongs into VOICE_ASR__ENGINE__TOKEN" if "@" in value else ""
        raise PydanticCustomError("engine", "{text}", {"text": f"is not allowed; allowed: {allowed}{token}"})
    return value


class ModelSettings(Section):
    """``model``"""

    name: PathText
    hub: Literal["ms", "hf"]
    engine: Annotated[str, AfterValidator(_engine)]
    device_type: Literal["auto", "cpu", "cuda"]
    num_threads: Annotated[int, Field(ge=1, le=256)] | None
    temperature: Annotated[float, Field(ge=0.1, le=10)]
    max_failures: Annotated[int, Field(ge=0, le=1_000)]


class EngineSettings(Section):
    """``engine``"""

    token: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,4096}$")] | None
    ca: PathText | None
    insecure: bool
    fallback: Literal["off", "local"]
    answer_sec: Annotated[float, Field(ge=0.5, le=120)]
    queue_sec: Annotated[float, Field(ge=5, le=3_600)]
    max_wait_sec: Annotated[float, Field(ge=1, le=3_600)]

    @field_validator("token", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        """Take an empty variable as one that is not set."""
        return value or None


class SlicedSettings(Section):
    """``sliced``"""

    context_sec: Annotated[float, Field(ge=0.6, le=30)]
    edge_ms: Annotated[int, Field(ge=0, le=2_000)]


class StreamingSettings(Section):
    """``streaming``"""

    partial_interval_ms: Annotated[int, Field(ge=0, le=10_000)]
    provisional_max_load_sec: Annotated[float, Field(ge=0, le=600)]
    trained_chunk_sizes: Annotated[tuple[ChunkSize, ...], Field(min_length=1)]
    fitting_look_backs: dict[Literal["without_left_context", "with_left_context"], tuple[LookBack, LookBack]]


class FinalSettings(Section):
    """``final``"""

    second_pass: PathText
    hotword_repair: bool
    punctuation_model: PathText
    itn: bool
    speculate: bool
    speculate_after_ms: Annotated[int, Field(ge=0, le=5_000)]


class EmotionSettings(Section):
    """``emotion``"""

    enabled: bool
    model: PathText
    max_audio_sec: Annotated[float, Field(ge=0.5, le=60)]
    min_audio_ms: Annotated[int, Field(ge=25, le=60_000)]
    min_confidence: Annotated[float, Field(ge=0, le=1)]
    max_wait_ms: Annotated[int, Field(ge=0, le=60_000)]


Cosine = Annotated[float, Field(ge=-1, le=1)]


class SpeakerSettings(Section):
    """``speakers``"""

    enabled: bool
    model: PathText
    min_audio_ms: Annotated[int, Field(ge=100, le=60_000)]
    max_audio_sec: Annotated[float, Field(ge=0.5, le=60)]
    same_threshold: Cosine | None
    new_threshold: Cosine | None
    fitting_thresholds: dict[Literal["embedded", "published"], tuple[Cosine, Cosine]]
    max_speakers: Annotated[int, Field(ge=1, le=1_000)]
    db: PathText | None

    def thresholds(self, *, embedded: bool) -> tuple[float, float]:
        """``same_threshold`` and ``new_threshold``; for null those that fit the model, the second never above the first."""
        same, new = self.fitting_thresholds["embedded" if embedded else "published"]
        same = self.same_threshold if self.same_threshold is not None else same
        return same, self.new_threshold if self.new_threshold is not None else min(new, same)


class RecordSettings(Section):
    """``record``"""

    directory: PathText | None
    max_mb: Annotated[int, Field(ge=1, le=10_000_000)]


class WakeSettings(Section):
    """``wake``"""

    words: Annotated[tuple[str, ...], Field(max_length=10)]
    tones: bool
    listen_sec: Annotated[float, Field(ge=0, le=3_600)]
    weight: Annotated[float, Field(ge=0, le=100)]

    @field_validator("words")
    @classmethod
    def _check_words(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        """Take what can be spoken and is no single syllable; where the locale is no UTF-8, its bytes came as surrogates."""
        words = tuple(_as_utf8(word) for word in words)
        wrong = [word for word in words if not _WAKE_WORD.fullmatch(word)]
        if wrong:
            lines = [f"wake.words: {_show(word)} is not allowed; allowed: 2 to 32 Chinese characters or Latin letters" for word in wrong]
            raise PydanticCustomError("rules", "{text}", {"text": "\n".join(lines)})
        return tuple(dict.fromkeys(words))


class OutputSettings(Section):
    """``output``"""

    status_events: bool
    level_ms: Annotated[int, Field(ge=0, le=60_000)]


class LogSettings(Section):
    """``log``"""

    format: Literal["console", "json"]
    level: Literal["debug", "info", "warning", "error"]


class Settings(Section):
    """All settings. config/default.yaml describes each."""

    chunk_sec: Annotated[float, Field(ge=0.12, le=5)]
    endpoint_silence_ms: Annotated[int, Field(ge=100, le=10_000)]
    chunk_size: ChunkSize
    encoder_chunk_look_back: LookBack | None
    decoder_chunk_look_back: LookBack | None
    model_dir: InstanceOf[str] | None
    embedded: bool
    hotwords: PathText | tuple[str, ...]
    control: Literal["off", "stdin"]
    exit_with_parent: bool | None
    audio: AudioSettings
    vad: VadSettings
    model: ModelSettings
    engine: EngineSettings
    sliced: SlicedSettings
    streaming: StreamingSettings
    final: FinalSettings
    emotion: EmotionSettings
    wake: WakeSettings
    speakers: SpeakerSettings
    output: OutputSettings
    record: RecordSettings
    log: LogSettings

    _given: frozenset[str] = PrivateAttr()

    def __init__(self, given: Collection[str], /, **merged: Any) -> None:
        """Validate the merged layers; ``given`` names the settings that stand in a layer above config/default.yaml."""
        super().__init__(**merged)
        self._given = frozenset(given)

    @property
    def server(self) -> str | None:
        """Address of the server that recognises; None where the process does."""
        return None if self.model.engine in LOCAL_ENGINES else self.model.engine

    @property
    def recognizes_locally(self) -> bool:
        """Whether the recognition model is needed in the process."""
        return self.server is None or self.engine.fallback == "local"

    @property
    def second_pass(self) -> str:
        """``final.second_pass``; for auto ``same`` with the embedded model, whose finals gain much by it, else ``off``."""
        if self.final.second_pass != "auto":  # noqa: S105 -- no password
            return self.final.second_pass
        return "same" if self.embedded and self.server is None else "off"

    @property
    def look_backs(self) -> tuple[int, int]:
        """Encoder and decoder look-back; for null the one that fits ``chunk_size``."""
        fitting = self.streaming.fitting_look_backs
        encoder, decoder = fitting["with_left_context" if self.chunk_size[0] else "without_left_context"]
        return (
            self.encoder_chunk_look_back if self.encoder_chunk_look_back is not None else encoder,
            self.decoder_chunk_look_back if self.decoder_chunk_look_back is not None else decoder,
        )

    @model_validator(mode="after")
    def _check_rules(self) -> Settings:
        """Check the rules over several settings and name all that are broken."""
        left, chunk, right = self.chunk_size
        threshold, release = self.vad.thresholds
        broken = []
        if self.embedded and self.model_dir is not None:
            broken.append("embedded and model_dir exclude each other: one model at a time")
        if self.model.engine == "onnx" and self.model.device_type == "cuda":
            broken.append("model.engine: onnx runs on the CPU; for device_type cuda use torch or auto")
        if self.server is not None and self.final.second_pass not in ("off", "auto"):
            broken.append("final.second_pass: a server gives no confidence to compare with; leave it off, the server has a second pass")
        if self.control == "stdin" and self.audio.input == "-":
            broken.append("control: stdin is the audio input; commands need it for themselves")
        if left and any(self.look_backs):
            broken.append(
                f"chunk_size: {[left, chunk, right]} with look-backs {list(self.look_backs)} feeds the left frames twice; "
                f"use [0, {chunk}, {right}], or set both look-backs to 0"
            )
        if release > threshold:
            broken.append(f"vad.release_threshold: {release} must not be above vad.threshold {threshold}")
        same, new = self.speakers.thresholds(embedded=self.embedded)
        if new > same:
            broken.append(f"speakers.new_threshold: {new} must not be above speakers.same_threshold {same}")
        if self.speakers.db is not None and not self.speakers.enabled:
            broken.append("speakers.db: there are no speakers to keep without speakers.enabled (--speakers)")
        if broken:
            raise PydanticCustomError("rules", "{text}", {"text": "\n".join(broken)})
        return self

    def for_mode(self, mode: Mode) -> Settings:
        """The settings for ``mode``. In streaming mode a ``chunk_sec`` given without a ``chunk_size`` becomes the nearest trained one."""
        if mode == "sliced" or "chunk_sec" not in self._given or "chunk_size" in self._given:
            return self
        nearest = min(self.streaming.trained_chunk_sizes, key=lambda size: abs(size[1] * _FRAME_SEC - self.chunk_sec))
        return self.model_copy(update={"chunk_size": nearest})


class _Variables(Settings, BaseSettings):
    """The names and types that pydantic-settings looks for in the environment; never built."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__")


def load_settings(
    command_line: Mapping[str, Any], config_path: str | Path | None = None, environment: Mapping[str, str] = os.environ
) -> Settings:
    """Merge the layers and validate them.

    Args:
        command_line: nested settings given as flags.
        config_path: the user's settings file.
        environment: variables, of which only ``VOICE_ASR__*`` are read.

    Raises:
        ConfigInvalid: any problem in any layer, all of them listed.
    """
    from_file = _with_folder(_read_layer(config_path), config_path) if config_path is not None else {}
    from_environment, problems = _environment_layer(environment)
    merged = copy.deepcopy(_defaults())
    given: set[str] = set()
    for layer in (from_file, from_environment, command_line):
        _merge(merged, layer)
        given |= layer.keys()
    settings, found = _validate(merged, given)
    if settings is None or problems:
        raise ConfigInvalid([*problems, *found])
    return settings


def _validate(merged: dict[str, Any], given: Collection[str]) -> tuple[Settings | None, list[str]]:
    """The settings, or every problem. Rules are checked with defaults in the place of bad values, so that these do not hide them."""
    try:
        return Settings(given, **merged), []
    except ValidationError as error:
        bad = error.errors()
    repaired = copy.deepcopy(merged)
    for details in bad:
        _reset(repaired, _defaults(), [part for part in details["loc"] if isinstance(part, str)])
    try:
        Settings(given, **repaired)
    except ValidationError as error:
        bad += error.errors()
    found = [problem for details in bad for problem in _describe_problem(details)]
    return None, list(dict.fromkeys(found))  # a union repeats a problem for each of its members


def _reset(settings: dict[str, Any], defaults: dict[str, Any], path: list[str]) -> None:
    """Replace the value at ``path`` by its default, or remove it where there is none."""
    for name in path:
        if name not in defaults:
            settings.pop(name, None)
            return
        if not (isinstance(defaults[name], dict) and isinstance(settings.get(name), dict)):
            settings[name] = defaults[name]
            return
        settings, defaults = settings[name], defaults[name]


@functools.cache
def _defaults() -> dict[str, Any]:
    """config/default.yaml; to be copied before it is changed."""
    return _read_layer(DEFAULT_PATH)


def _read_layer(path: str | Path) -> dict[str, Any]:
    """A settings file.

    Raises:
        ConfigInvalid: it is missing, not YAML, or not a mapping.
    """
    try:
        return read_mapping(expand(path))
    except OSError as error:
        raise ConfigInvalid([f"{path} cannot be read ({error.strerror})"]) from error
    except FileInvalid as error:
        raise ConfigInvalid([f"{path} {error}"]) from error


def _with_folder(value: Any, path: str | Path) -> Any:
    """A layer in which ``{here}/`` at the start of a text is the folder of its file: a bundle of models may stand anywhere."""
    if isinstance(value, dict):
        return {key: _with_folder(each, path) for key, each in value.items()}
    if isinstance(value, str) and value.startswith(_HERE):
        return str(expand(path).absolute().parent / value[len(_HERE) :])
    return value


def _environment_layer(environment: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The settings in the environment, decoded by pydantic-settings, and a problem for each variable that is wrong or unknown."""
    ours = {key: value for key, value in environment.items() if key.upper().startswith(ENV_PREFIX)}
    known = {ENV_PREFIX + "__".join(path).upper() for path in _leaves(Settings)}
    unknown = sorted(key for key in ours if key.upper() not in known)
    problems = [f"{key}: unknown setting (environment)" for key in unknown]
    layer: dict[str, Any] = {}
    for key in sorted(set(ours) - set(unknown)):
        source = EnvSettingsSource(_Variables)
        source.env_vars = {key.lower(): ours[key]}
        try:
            values = source()
        except (SettingsError, RecursionError) as error:  # not JSON where JSON is needed
            problems.append(f"{key}: {_show(ours[key])} is not JSON ({describe(error.__cause__ or error)}) (environment)")
            continue
        if _is_nested_deeper(values, MAX_DEPTH):
            problems.append(f"{key}: is nested deeper than {MAX_DEPTH} levels (environment)")
        else:
            _merge(layer, values)
    return layer, problems


def _is_nested_deeper(value: Any, max_depth: int) -> bool:
    level = [value]
    for _ in range(max_depth):
        level = [child for each in level if isinstance(each, dict | list) for child in (each.values() if isinstance(each, dict) else each)]
    return bool(level)


def _leaves(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    paths = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            paths += _leaves(field.annotation, (*prefix, name))
        else:
            paths.append((*prefix, name))
    return paths


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    """Lay ``above`` over ``below``, mapping by mapping."""
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _merge(below[key], value)
        else:
            below[key] = copy.deepcopy(value)


def _as_utf8(text: str) -> str:
    """A text whose bytes Python read as surrogates, because the locale is no UTF-8; any other as it is."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return text


def _show(value: object) -> str:
    """A value as Python writes it, the middle of a long one left out."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 100
    return short.repr(value)


def _describe_problem(details: ErrorDetails) -> list[str]:
    """``key: what is wrong; allowed: range``, a line for each broken rule."""
    path = [part for part in details["loc"] if isinstance(part, str)]
    field, key = _field(path)
    if details["type"] == "extra_forbidden":
        return [f"{key}: unknown setting"]
    if details["type"] == "rules":
        return details["msg"].split("\n")
    is_secret = key in _SECRET or (details["type"] == "engine" and bool({"@", "?"} & set(str(details["input"]))))
    shown = "the value given" if is_secret else _show(details["input"])
    if details["type"] == "engine":
        return [f"{key}: {shown} {details['msg']}"]
    allowed = _allowed_by(field.annotation, field.metadata) if field else ""
    return [f"{key}: {shown} is not allowed" + (f"; allowed: {allowed}" if allowed else f" ({details['msg']})")]


def _field(path: list[str]) -> tuple[FieldInfo | None, str]:
    """The field at a location in the settings, and its key as a user writes it."""
    model: type[BaseModel] = Settings
    known: list[str] = []
    for name in path:
        field = model.model_fields.get(name)
        known.append(name)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return field, ".".join(known)
        model = field.annotation
    return None, ".".join(known)


_PLAIN_WORDS: dict[Any, str] = {type(None): "null", bool: "true, false", str: "text", ...: "..."}


def _allowed_by(annotation: Any, metadata: list[Any]) -> str:  # noqa: PLR0911 -- one for each kind of type
    """Name what a type with its constraints allows: ``100..10000``, ``silero, fsmn``, ``null``."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        base, *extra = typing.get_args(annotation)
        unpacked = [part for item in extra for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return _allowed_by(base, unpacked)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(filter(None, (_allowed_by(part, metadata) for part in typing.get_args(annotation))))
    if origin is tuple:
        return f"[{', '.join(_allowed_by(part, []) for part in typing.get_args(annotation))}]"
    if origin is Literal:
        return ", ".join(str(value) for value in typing.get_args(annotation))
    if annotation in _PLAIN_WORDS:
        return _PLAIN_WORDS[annotation]
    bounds = {name: getattr(item, name) for item in metadata for name in ("ge", "gt", "le", "lt") if hasattr(item, name)}
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is None:
        return ""
    return f"{low}..{high}" + (" (bounds excluded)" if "gt" in bounds else "")
