"""Settings -> the loaded weights of one run, shared by all pipelines.

``locate_models`` finds or downloads, ``load_models`` reads; the two are apart because the first may take minutes, and a microphone is
opened between them. No stage is known here: what a stage makes of its weights is in ``voice.build``. Models hold no state of a stream.
Called on the thread that will run the models. Raises ``ModelLoadFailed``; an optional model that cannot be had becomes a problem instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from voice.config import Settings
from voice.errors import ModelLoadFailed
from voice.models.directory import describe_model
from voice.models.funasr_model import FunasrModel
from voice.models.loader import load_model
from voice.models.store import EMBEDDED, names_path, resolve_directory, resolve_model
from voice.models.torch_setup import resolve_device, set_num_threads

_RECOGNITION = "ParaformerStreaming"
_VAD = "FsmnVADStreaming"
_SECOND_PASS = ("Paraformer", "BiCifParaformer", "SeacoParaformer")
_PUNCTUATION = "CTTransformer"
_EMOTION = "Emotion2vec"

_Part = TypeVar("_Part")


@dataclass(frozen=True, slots=True)
class ModelDirectories:
    """Where the models are, after ``locate_models`` has downloaded what was missing."""

    recognition: Path
    vad: Path | None
    """None for Silero, whose weights are in its package."""
    second_pass: Path | None
    """None where the settings want none, the streaming model serves, or none could be had."""
    punctuation: Path | None
    """None where the settings want none, or none could be had."""
    emotion: Path | None
    """None where the settings want none, or none could be had."""
    problems: tuple[ModelLoadFailed, ...]
    """Why an optional one could not be had."""


@dataclass(frozen=True, slots=True)
class Models:
    """The loaded weights. Pipelines on one thread share them; each makes the objects that hold its streams' state itself."""

    recognition: FunasrModel
    vad: FunasrModel | None
    """None for Silero, whose weights are in its package."""
    second_pass: FunasrModel | None
    """None where the settings want none, the streaming model serves, or none could be loaded."""
    punctuation: FunasrModel | None
    """None where the settings want none, or none could be loaded."""
    emotion: FunasrModel | None
    """None where the settings want none, or none could be loaded."""
    name: str
    """The recognition model as the settings name it: a directory, ``embedded``, or a hub id."""
    problems: tuple[ModelLoadFailed, ...]
    """Optional models that could not be found or loaded; the service runs without them."""


def locate_models(settings: Settings) -> ModelDirectories:
    """Find every model, or download it.

    The recognition model's directory is checked first: a wrong one is reported before any hub is asked for an optional model.

    Raises:
        ModelLoadFailed: recognition or voice activity cannot be had.
    """
    hub = settings.model.hub
    recognition = _locate_recognition(settings)
    describe_model(recognition, _RECOGNITION)
    vad = resolve_model(settings.vad.model, hub) if settings.vad.engine == "fsmn" else None
    if vad is not None:
        describe_model(vad, _VAD)
    problems: list[ModelLoadFailed] = []
    second_pass = optional(lambda: _locate_second_pass(settings), problems)
    punctuation = optional(lambda: _locate_punctuation(settings), problems)
    emotion = optional(lambda: _locate_emotion(settings), problems)
    return ModelDirectories(recognition, vad, second_pass, punctuation, emotion, tuple(problems))


def load_models(directories: ModelDirectories, settings: Settings) -> Models:
    """Load every model that was located, then set torch's threads, which loading changes.

    Raises:
        ModelLoadFailed: recognition or voice activity cannot be loaded.
    """
    device = resolve_device(settings.model.device_type)
    recognition = load_model(directories.recognition, _RECOGNITION, device)
    vad = None if directories.vad is None else load_model(directories.vad, _VAD, "cpu")
    problems = list(directories.problems)

    def load_optional(directory: Path | None, model_class: str | tuple[str, ...]) -> FunasrModel | None:
        return None if directory is None else optional(lambda: load_model(directory, model_class, device), problems)

    punctuation = load_optional(directories.punctuation, _PUNCTUATION)
    emotion = load_optional(directories.emotion, _EMOTION)
    second_pass = load_optional(directories.second_pass, _SECOND_PASS)
    set_num_threads(settings.model.num_threads or _fitting_num_threads(recognition))
    name = str(settings.model_dir or ("embedded" if settings.embedded else settings.model.name))
    return Models(recognition, vad, second_pass, punctuation, emotion, name, tuple(problems))


def optional(get: Callable[[], _Part | None], problems: list[ModelLoadFailed]) -> _Part | None:
    """What ``get`` returns; if it raises ``ModelLoadFailed``, None, and the failure joins ``problems``."""
    try:
        return get()
    except ModelLoadFailed as error:
        problems.append(error)
        return None


def is_same_weights(settings: Settings) -> bool:
    """Whether the second pass decodes with the streaming model's weights; with ``embedded`` it does instead of any model of a hub."""
    name = settings.final.second_pass
    return name == "same" or (name != "off" and _embedded_instead_of(name, settings))


def _fitting_num_threads(model: FunasrModel) -> int:
    """Two for a large model. A small one gains nothing by a second thread, and loses much by it on a busy machine."""
    return min(2, os.cpu_count() or 1) if model.is_large else 1


def _locate_recognition(settings: Settings) -> Path:
    if settings.embedded:
        return EMBEDDED / "asr"
    if settings.model_dir is not None:
        return resolve_directory(settings.model_dir)
    return resolve_model(settings.model.name, settings.model.hub)


def _locate_second_pass(settings: Settings) -> Path | None:
    name = settings.final.second_pass
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


def _embedded_instead_of(name: str, settings: Settings) -> bool:
    """Whether a model that ships with the repository replaces ``name``: with ``embedded`` nothing is downloaded; directories are used."""
    return settings.embedded and not names_path(name)
