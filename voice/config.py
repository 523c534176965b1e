"""All settings, read once and validated: the only reader of settings files and of the environment.

Command line > ``VOICE_ASR__*`` > ``--config FILE`` > ``config/default.yaml`` -> ``Settings``. The defaults stand in that file and
nowhere else. Raises ``ConfigInvalid`` with every problem found, each with its key and what is allowed. No state.
"""

from __future__ import annotations

import copy
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from voice.errors import ConfigInvalid, describe

DEFAULT_PATH = Path(__file__).resolve().parent.parent / "config" / "default.yaml"
ENV_PREFIX = "VOICE_ASR__"
TRAINED_CHUNK_SIZES = ((0, 10, 5), (0, 8, 4))
"""The chunk pairs the real model was trained with (its encoder's chunk_size [12, 15] and stride [8, 10])."""
DEFAULT_CHUNK_SEC = 0.6
_FRAME_SEC = 0.06

Mode = Literal["sliced", "streaming"]


class Section(BaseModel):
    """A group of settings; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AudioSettings(Section):
    """``audio``"""

    input: Annotated[str, Field(min_length=1)]
    device: int | str | None
    channel: Annotated[int, Field(ge=0, le=63)] | Literal["mix"]
    sample_rate: Annotated[int, Field(ge=4_000, le=384_000)]
    realtime: bool
    block_ms: Annotated[int, Field(ge=5, le=200)]
    latency_sec: Annotated[float, Field(ge=0.02, le=5)]
    queue_sec: Annotated[float, Field(ge=1, le=600)]
    stall_ms: Annotated[int, Field(ge=200, le=60_000)]
    zeros_sec: Annotated[float, Field(ge=0, le=86_400)]
    wait_for_device: bool

    @field_validator("device", mode="before")
    @classmethod
    def _index_as_number(cls, value: object) -> object:
        """A device of digits is an index, from the command line and the environment too."""
        return int(value) if isinstance(value, str) and value.isdecimal() else value


class VadSettings(Section):
    """``vad``"""

    engine: Literal["silero", "fsmn"]
    model: Annotated[str, Field(min_length=1)]
    threshold: Annotated[float, Field(gt=0, lt=1)] | None
    release_threshold: Annotated[float, Field(gt=0, lt=1)] | None
    min_speech_ms: Annotated[int, Field(ge=0, le=2_000)]
    pre_roll_ms: Annotated[int, Field(ge=0, le=2_000)]
    min_rms: Annotated[float, Field(ge=0, le=1)]
    max_utterance_sec: Annotated[float, Field(ge=5, le=300)]

    @property
    def thresholds(self) -> tuple[float, float]:
        """Threshold and release threshold; where one is null, what fits the engine."""
        threshold, release = (0.5, 0.35) if self.engine == "silero" else (0.8, 0.5)
        threshold = self.threshold if self.threshold is not None else threshold
        return threshold, self.release_threshold if self.release_threshold is not None else min(release, threshold)


class ModelSettings(Section):
    """``model``"""

    name: Annotated[str, Field(min_length=1)]
    hub: Literal["ms", "hf"]
    device_type: Literal["auto", "cpu", "cuda"]
    num_threads: Annotated[int, Field(ge=1, le=256)] | None
    temperature: Annotated[float, Field(ge=0.1, le=10)]
    max_failures: Annotated[int, Field(ge=0, le=1_000)]


class SlicedSettings(Section):
    """``sliced``"""

    context_sec: Annotated[float, Field(ge=0.6, le=30)]
    edge_ms: Annotated[int, Field(ge=0, le=2_000)]


class StreamingSettings(Section):
    """``streaming``"""

    provisional_max_load_sec: Annotated[float, Field(ge=0, le=600)]


class FinalSettings(Section):
    """``final``"""

    second_pass: Annotated[str, Field(min_length=1)]
    hotword_repair: bool
    punctuation_model: Annotated[str, Field(min_length=1)]
    itn: bool
    speculate: bool
    speculate_after_ms: Annotated[int, Field(ge=0, le=5_000)]


class EmotionSettings(Section):
    """``emotion``"""

    enabled: bool
    model: Annotated[str, Field(min_length=1)]
    max_audio_sec: Annotated[float, Field(ge=0.5, le=60)]
    min_audio_ms: Annotated[int, Field(ge=25, le=60_000)]
    min_confidence: Annotated[float, Field(ge=0, le=1)]
    max_wait_ms: Annotated[int, Field(ge=0, le=60_000)]


class RecordSettings(Section):
    """``record``"""

    directory: Annotated[str, Field(min_length=1)] | None
    max_mb: Annotated[int, Field(ge=1, le=10_000_000)]


class OutputSettings(Section):
    """``output``"""

    status_events: bool


class LogSettings(Section):
    """``log``"""

    format: Literal["console", "json"]
    level: Literal["debug", "info", "warning", "error"]


class Settings(BaseSettings):
    """All of them. What each means stands beside it in config/default.yaml."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter="__")

    chunk_sec: Annotated[float, Field(ge=0.12, le=5)]
    endpoint_silence_ms: Annotated[int, Field(ge=100, le=10_000)]
    chunk_size: tuple[
        Annotated[int, Field(ge=0, le=30)],  # left context
        Annotated[int, Field(ge=1, le=60)],  # chunk
        Annotated[int, Field(ge=1, le=30)],  # right look-ahead; without it FunASR's encoder caches nothing
    ]
    encoder_chunk_look_back: Annotated[int, Field(ge=0, le=50)] | None
    decoder_chunk_look_back: Annotated[int, Field(ge=0, le=50)] | None
    model_dir: str | None
    embedded: bool
    hotwords: Annotated[str, Field(min_length=1)] | tuple[str, ...]
    control: Literal["off", "stdin"]
    exit_with_parent: bool | None
    audio: AudioSettings
    vad: VadSettings
    model: ModelSettings
    sliced: SlicedSettings
    streaming: StreamingSettings
    final: FinalSettings
    emotion: EmotionSettings
    output: OutputSettings
    record: RecordSettings
    log: LogSettings

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what ``load_settings`` gathered: the layers, highest first, as one mapping."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)

    @property
    def look_backs(self) -> tuple[int, int]:
        """Encoder and decoder look-back; where one is null, what fits ``chunk_size``."""
        encoder, decoder = (4, 1) if self.chunk_size[0] == 0 else (0, 0)
        return (
            self.encoder_chunk_look_back if self.encoder_chunk_look_back is not None else encoder,
            self.decoder_chunk_look_back if self.decoder_chunk_look_back is not None else decoder,
        )

    @model_validator(mode="after")
    def _check_rules(self) -> Settings:
        """Rules over several settings; all that are broken are named."""
        left, chunk, right = self.chunk_size
        threshold, release = self.vad.thresholds
        broken = []
        if self.embedded and self.model_dir is not None:
            broken.append("embedded and model_dir exclude each other: one model at a time")
        if self.control == "stdin" and self.audio.input == "-":
            broken.append("control: stdin is the audio input; commands need it for themselves")
        if left and any(self.look_backs):
            broken.append(
                f"chunk_size: {[left, chunk, right]} with look-backs {list(self.look_backs)} feeds the left frames twice; "
                f"use [0, {chunk}, {right}], or set both look-backs to 0"
            )
        if release > threshold:
            broken.append(f"vad.release_threshold: {release} must not be above vad.threshold {threshold}")
        if broken:
            raise PydanticCustomError("rules", "{text}", {"text": "\n".join(broken)})
        return self

    def for_mode(self, mode: Mode) -> Settings:
        """What ``mode`` runs with: in streaming mode a ``chunk_sec`` of one's own becomes the nearest trained ``chunk_size``."""
        left, chunk, right = self.chunk_size
        if mode == "sliced" or self.chunk_sec == DEFAULT_CHUNK_SEC or (left, chunk, right) != TRAINED_CHUNK_SIZES[0]:
            return self
        nearest = min(TRAINED_CHUNK_SIZES, key=lambda size: abs(size[1] * _FRAME_SEC - self.chunk_sec))
        return self.model_copy(update={"chunk_size": nearest})


def load_settings(
    command_line: Mapping[str, Any], config_path: Path | None = None, environment: Mapping[str, str] = os.environ
) -> Settings:
    """Gather the layers and validate them.

    Args:
        command_line: nested settings given as flags.
        config_path: the user's settings file.
        environment: variables, of which ``VOICE_ASR__*`` are ours.

    Raises:
        ConfigInvalid: any problem in any layer, all of them listed.
    """
    layers = [read_yaml(DEFAULT_PATH)]
    if config_path is not None:
        layers.append(read_yaml(config_path))
    from_environment, problems = _environment_layer(environment)
    layers += [from_environment, dict(command_line)]
    merged: dict[str, Any] = {}
    for layer in layers:
        _merge(merged, layer)
    settings, found = _validate(merged)
    if settings is None or problems:
        raise ConfigInvalid([*problems, *found])
    return settings


def _validate(merged: dict[str, Any]) -> tuple[Settings | None, list[str]]:
    """The settings, or every problem: a bad value gives way to its default, so that it does not hide the broken rules."""
    try:
        return Settings(**merged), []
    except ValidationError as error:
        found = [problem for details in error.errors() for problem in _describe_problem(details)]
        repaired, defaults = copy.deepcopy(merged), read_yaml(DEFAULT_PATH)
        for details in error.errors():
            _reset(repaired, defaults, [part for part in details["loc"] if isinstance(part, str)])
    try:
        Settings(**repaired)
    except ValidationError as error:
        found += [problem for details in error.errors() for problem in _describe_problem(details)]
    return None, list(dict.fromkeys(found))  # a union says the same once for each member


def _reset(settings: dict[str, Any], defaults: dict[str, Any], path: list[str]) -> None:
    """Give the value at ``path`` its default back, or remove it where there is none."""
    for name in path:
        if name not in defaults:
            settings.pop(name, None)
            return
        if not (isinstance(defaults[name], dict) and isinstance(settings.get(name), dict)):
            settings[name] = defaults[name]
            return
        settings, defaults = settings[name], defaults[name]


def read_yaml(path: Path) -> dict[str, Any]:
    """A settings file.

    Raises:
        ConfigInvalid: it is missing, no YAML, or no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigInvalid([f"{path}: cannot be read ({error.strerror})"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigInvalid([f"{path}: not YAML ({describe(error)})"]) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigInvalid([f"{path}: holds {type(content).__name__}, not settings"])
    strange = [key for key in content if not isinstance(key, str)]
    if strange:
        raise ConfigInvalid([f"{path}: {key!r} is no name of a setting" for key in strange])
    return content


def _environment_layer(environment: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The settings in the environment, decoded by pydantic-settings, and a problem for each variable it knows no setting for."""
    ours = {key: value for key, value in environment.items() if key.upper().startswith(ENV_PREFIX)}
    known = {ENV_PREFIX + "__".join(path).upper() for path in _leaves(Settings)}
    unknown = sorted(key for key in ours if key.upper() not in known)
    problems = [f"{key}: unknown setting (environment)" for key in unknown]
    layer: dict[str, Any] = {}
    for key in sorted(set(ours) - set(unknown)):
        source = EnvSettingsSource(Settings)
        source.env_vars = {key.lower(): ours[key]}
        try:
            _merge(layer, source())
        except SettingsError as error:  # no JSON where JSON is needed
            problems.append(f"{key}: {ours[key]!r} is not JSON ({describe(error.__cause__ or error)}) (environment)")
    return layer, problems


def _leaves(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    paths = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            paths += _leaves(field.annotation, (*prefix, name))
        else:
            paths.append((*prefix, name))
    return paths


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _merge(below[key], value)
        else:
            below[key] = dict(value) if isinstance(value, dict) else value


def _describe_problem(details: ErrorDetails) -> list[str]:
    """``key: what is wrong; allowed: range``, a line for each broken rule."""
    path = [part for part in details["loc"] if isinstance(part, str)]
    field, key = _field(path)
    if details["type"] == "extra_forbidden":
        return [f"{key}: unknown setting"]
    if details["type"] == "rules":
        return details["msg"].split("\n")
    allowed = _allowed_by(field.annotation, field.metadata) if field else ""
    return [f"{key}: {details['input']!r} is not allowed" + (f"; allowed: {allowed}" if allowed else f" ({details['msg']})")]


def _field(path: list[str]) -> tuple[FieldInfo | None, str]:
    """The field that a location points into, and its key as a user writes it."""
    model: type[BaseModel] = Settings
    known: list[str] = []
    for name in path:
        field = model.model_fields.get(name)
        known.append(name)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return field, ".".join(known)
        model = field.annotation
    return None, ".".join(known)


_PLAIN_WORDS: dict[Any, str] = {type(None): "null", bool: "true, false", str: "text"}


def _allowed_by(annotation: Any, metadata: list[Any]) -> str:  # noqa: PLR0911 -- one for each kind of type
    """A type with its constraints in words: ``100..10000``, ``silero, fsmn``, ``null``."""
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
