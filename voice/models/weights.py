"""Settings -> the loaded weights of one run, shared by all pipelines.

``locate_models`` finds or downloads, ``load_models`` reads; the two are apart because the first may take minutes, and a microphone is
opened between them. No stage is known here: what a stage makes of its weights is in ``voice.build``. Models hold no state of a stream.
Called on the thread that will run the models. Raises ``ModelLoadFailed``; an optional model that cannot be had becomes a problem instead.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from voice.config import Settings
from voice.errors import ModelLoadFailed
from voice.models import embedded
from voice.models.converted import OnnxModel, convert, discard, find_conversion, load_converted
from voice.models.directory import describe_model
from voice.models.funasr_model import FunasrModel
from voice.models.loader import load_model
from voice.models.store import names_path, resolve_directory, resolve_model
from voice.models.torch_setup import has_nvidia_gpu, resolve_device, set_num_threads
from voice.places import EMBEDDED

RECOGNITION = "ParaformerStreaming"
_VAD = "FsmnVADStreaming"
_SECOND_PASS = ("Paraformer", "BiCifParaformer", "SeacoParaformer")
PUNCTUATION = "CTTransformer"
EMOTION = "Emotion2vec"
SPEAKER = "CAMPPlus"

_Part = TypeVar("_Part")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model is."""

    directory: Path
    """FunASR's: config.yaml, weights, vocabulary."""
    graphs: Path | None = None
    """What it was converted to; None where torch runs it."""
    problem: ModelLoadFailed | None = None
    """Why it was not converted, where the settings want it to be."""


@dataclass(frozen=True, slots=True)
class ModelPlaces:
    """Where the models are, after ``locate_models`` has downloaded and converted what was missing."""

    recognition: Place | None
    """None where a server recognises, and nothing has to take over."""
    vad: Place | None
    """None for Silero, whose weights are in its package."""
    second_pass: Place | None
    """None where the settings want none, the streaming model serves, or none could be had."""
    punctuation: Place | None
    """None where the settings want none, or none could be had."""
    emotion: Place | None
    """None where the settings want none, or none could be had."""
    problems: tuple[ModelLoadFailed, ...]
    """Why an optional one could not be had."""
    speaker: Place | None = None
    """None where the settings want none, or none could be had."""


@dataclass(frozen=True, slots=True)
class Models:
    """The loaded weights. Pipelines on one thread share them; each makes the objects that hold its streams' state itself."""

    recognition: FunasrModel | OnnxModel | None
    """None where a server recognises, and nothing has to take over."""
    vad: FunasrModel | None
    """None for Silero, whose weights are in its package."""
    second_pass: FunasrModel | None
    """None where the settings want none, the streaming model serves, or none could be loaded."""
    punctuation: FunasrModel | OnnxModel | None
    """None where the settings want none, or none could be loaded."""
    emotion: FunasrModel | OnnxModel | None
    """None where the settings want none, or none could be loaded."""
    name: str
    """The recognition model as the settings name it: a directory, ``embedded``, a hub id, or the address of a server."""
    problems: tuple[ModelLoadFailed, ...]
    """Optional models that could not be found or loaded, and those that torch runs because they could not be converted."""
    speaker: FunasrModel | OnnxModel | None = None
    """None where the settings want none, or none could be loaded."""


def wanted_models(settings: Settings) -> list[tuple[str, str]]:
    """(what for, name) of the models that are found or downloaded for these settings; those that ship with the service are left out."""
    final, emotion = settings.final, settings.emotion
    wanted = [
        ("recognition", None if settings.embedded or not settings.recognizes_locally else settings.model_dir or settings.model.name),
        ("voice activity", settings.vad.model if settings.vad.engine == "fsmn" else None),
        ("second pass", None if is_same_weights(settings) else settings.second_pass),
        ("punctuation", final.punctuation_model),
        ("emotion", emotion.model if emotion.enabled else None),
        ("speaker", settings.speakers.model if settings.speakers.enabled else None),
    ]
    shipped = ("punctuation", "emotion", "speaker")
    return [
        (use, name) for use, name in wanted if name not in (None, "off") and not (use in shipped and _embedded_instead_of(name, settings))
    ]


def locate_models(settings: Settings) -> ModelPlaces:
    """Find every model, or download it; find what it was converted to, or convert it.

    The recognition model's directory is checked first: a wrong one is reported before any hub is asked for an optional model.

    Raises:
        ModelLoadFailed: recognition or voice activity cannot be had, or recognition cannot be converted though the settings ask for it.
    """
    hub = settings.model.hub
    recognition = _locate_recognition(settings) if settings.recognizes_locally else None
    if recognition is not None:
        describe_model(recognition, RECOGNITION)
    vad = resolve_model(settings.vad.model, hub) if settings.vad.engine == "fsmn" else None
    if vad is not None:
        describe_model(vad, _VAD)
    problems: list[ModelLoadFailed] = []
    second_pass = optional(lambda: _locate_second_pass(settings), problems)
    punctuation = optional(lambda: _locate_punctuation(settings), problems)
    emotion = optional(lambda: _locate_emotion(settings), problems)
    speaker = optional(lambda: _locate_speaker(settings), problems)

    def place(directory: Path | None, model_class: str) -> Place | None:
        return None if directory is None else _place(directory, model_class, settings)

    placed = place(recognition, RECOGNITION)
    if placed and placed.problem and settings.model.engine == "onnx":
        raise placed.problem
    return ModelPlaces(
        recognition=placed,
        vad=None if vad is None else Place(vad),
        second_pass=None if second_pass is None else Place(second_pass),
        punctuation=place(punctuation, PUNCTUATION),
        emotion=place(emotion, EMOTION),
        problems=tuple(problems),
        speaker=place(speaker, SPEAKER),
    )


def load_models(places: ModelPlaces, settings: Settings) -> Models:
    """Load every model that was located. Where torch runs one, torch's threads are set last: loading changes them.

    Raises:
        ModelLoadFailed: recognition or voice activity cannot be loaded.
    """
    problems = list(places.problems)
    num_threads = settings.model.num_threads

    def load(place: Place, model_class: str | tuple[str, ...]) -> FunasrModel | OnnxModel:
        found: list[ModelLoadFailed] = [place.problem] if place.problem else []
        if place.graphs is not None:
            graphs, threads = place.graphs, 1 if model_class in (EMOTION, SPEAKER) else num_threads or 1
            converted = optional(lambda: load_converted(graphs, place.directory, threads), found)
            if converted is not None:
                return converted
            discard(graphs)
        model = on_torch(place, model_class)  # where torch cannot load it either, that is what is wrong with it
        problems.extend(found)
        return model

    def on_torch(place: Place, model_class: str | tuple[str, ...], device: str | None = None) -> FunasrModel:
        return load_model(place.directory, model_class, device or resolve_device(settings.model.device_type))

    recognition = None if places.recognition is None else load(places.recognition, RECOGNITION)
    vad = None if places.vad is None else on_torch(places.vad, _VAD, "cpu")
    punctuation = _if_placed(places.punctuation, lambda place: load(place, PUNCTUATION), problems)
    emotion = _if_placed(places.emotion, lambda place: load(place, EMOTION), problems)
    speaker = _if_placed(places.speaker, lambda place: load(place, SPEAKER), problems)
    second_pass = _if_placed(places.second_pass, lambda place: on_torch(place, _SECOND_PASS), problems)
    on_torch_now = [model for model in (recognition, vad, punctuation, emotion, speaker, second_pass) if isinstance(model, FunasrModel)]
    if on_torch_now:
        set_num_threads(num_threads or _fitting_num_threads(on_torch_now))
    name = settings.server or str(settings.model_dir or (embedded.NAME if settings.embedded else settings.model.name))
    return Models(recognition, vad, second_pass, punctuation, emotion, name, tuple(problems), speaker)


@functools.cache
def _sees_cuda() -> bool:
    """Whether torch can use a GPU. It is only asked, and imported, where a driver sees one."""
    return has_nvidia_gpu() and resolve_device("auto") == "cuda"


def runs_on_onnx(settings: Settings) -> bool:
    """Whether models run on ONNX Runtime where they can be converted: on a CPU, unless the settings want torch."""
    if settings.model.engine in ("onnx", "torch"):
        return settings.model.engine == "onnx"
    if settings.model.device_type == "auto":
        return not _sees_cuda()
    return settings.model.device_type == "cpu"


def _place(directory: Path, model_class: str, settings: Settings) -> Place:
    """A model and its graphs, converted now where it was not; without graphs where the settings or another process are against it."""
    if not runs_on_onnx(settings):
        return Place(directory)
    try:
        description = describe_model(directory, model_class)
        return Place(directory, find_conversion(directory, description) or convert(directory, description, settings.log.format))
    except ModelLoadFailed as error:
        return Place(directory, problem=error)


def _if_placed(place: Place | None, load: Callable[[Place], _Part], problems: list[ModelLoadFailed]) -> _Part | None:
    return None if place is None else optional(lambda: load(place), problems)


def optional(get: Callable[[], _Part | None], problems: list[ModelLoadFailed]) -> _Part | None:
    """What ``get`` returns; if it raises ``ModelLoadFailed``, None, and the failure joins ``problems``."""
    try:
        return get()
    except ModelLoadFailed as error:
        problems.append(error)
        return None


def is_same_weights(settings: Settings) -> bool:
    """Whether the second pass decodes with the streaming model's weights; with ``embedded`` it does instead of any model of a hub."""
    name = settings.second_pass
    return name == "same" or (name != "off" and _embedded_instead_of(name, settings))


def _fitting_num_threads(models: list[FunasrModel]) -> int:
    """Two where a large model runs on torch. A small one gains nothing by a second thread, and loses much by it on a busy machine."""
    return min(2, os.cpu_count() or 1) if any(model.is_large for model in models) else 1


def _locate_recognition(settings: Settings) -> Path:
    if settings.embedded:
        return EMBEDDED / "asr"
    if settings.model_dir is not None:
        return resolve_directory(settings.model_dir)
    return resolve_model(settings.model.name, settings.model.hub)


def _locate_second_pass(settings: Settings) -> Path | None:
    name = settings.second_pass
    return None if name == "off" or is_same_weights(settings) else resolve_model(name, settings.model.hub)


def _locate_punctuation(settings: Settings) -> Path | None:
    name = settings.final.punctuation_model
    if name == "off":
        return None
    return EMBEDDED / "punctuation" if _embedded_instead_of(name, settings) else resolve_model(name, settings.model.hub)


def _locate_emotion(settings: Settings) -> Path | None:
    name = settings.emotion.model
    if not settings.emotion.enabled:
        return None
    return EMBEDDED / "emotion" if _embedded_instead_of(name, settings) else resolve_model(name, settings.model.hub)


def _locate_speaker(settings: Settings) -> Path | None:
    name = settings.speakers.model
    if not settings.speakers.enabled:
        return None
    return EMBEDDED / "speaker" if _embedded_instead_of(name, settings) else resolve_model(name, settings.model.hub)


def _embedded_instead_of(name: str, settings: Settings) -> bool:
    """Whether a model that ships with the repository replaces ``name``: with ``embedded`` nothing is downloaded; directories are used."""
    return settings.embedded and not names_path(name)
