"""Settings -> a pipeline with its models loaded. The only place that knows which class serves which setting.

Called on the thread that will run the models. Raises ``ModelLoadFailed``; an optional model that cannot be had is returned as a
problem instead.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import structlog

from voice.audio import SAMPLE_RATE_HZ, Samples, ms_to_samples
from voice.config import Mode, Settings
from voice.endpointing.endpointer import EndpointerSettings, VoiceActivity
from voice.endpointing.fsmn import FsmnVad
from voice.endpointing.silero import SileroVad
from voice.errors import ErrorCode, ModelLoadFailed
from voice.finalization.emotion import Emotion2vec
from voice.finalization.emotion_thread import EmotionSettings, EmotionThread
from voice.finalization.finalizer import Finalizer, SecondPass, TextStep
from voice.finalization.hotword_repair import HotwordRepair
from voice.finalization.number_format import NumberFormat
from voice.finalization.punctuation import CtTransformer
from voice.hotword_list import HotwordList
from voice.models.funasr_model import AcceleratorOutOfMemory, FunasrModel
from voice.models.loader import load_model
from voice.models.store import EMBEDDED, resolve_model
from voice.models.torch_setup import resolve_device, set_num_threads
from voice.pipeline import Pipeline, PipelineSettings
from voice.recognition.hotwords import HotwordGraphs
from voice.recognition.recognizer import Recognizer
from voice.recognition.second_pass import OfflinePass, SamePass
from voice.recognition.sliced import SlicedRecognizer
from voice.recognition.streaming import StreamingRecognizer
from voice.recognition.torch_engine import ChunkPreset, Paraformer

log = structlog.get_logger()

_Part = TypeVar("_Part")


@dataclass(frozen=True, slots=True)
class Service:
    """What ``build_service`` made."""

    pipeline: Pipeline
    model_name: str
    problems: tuple[ModelLoadFailed, ...]
    """Optional models that could not be loaded; the service runs without them."""
    emotion: EmotionThread | None


@dataclass(frozen=True, slots=True)
class ModelDirectories:
    """Where the models are, after ``locate_models`` has downloaded what was missing."""

    recognition: Path
    vad: Path | None
    """None for Silero, which is a package."""
    second_pass: Path | None
    """None where there is to be none, or the streaming model's weights serve."""
    punctuation: Path | None
    """None where there is to be none, or none could be had."""
    emotion: Path | None
    """Likewise."""
    problems: tuple[ModelLoadFailed, ...]
    """Why an optional one could not be had."""


def locate_models(settings: Settings) -> ModelDirectories:
    """Find every model, or download it: what may take minutes happens before a microphone is open.

    Raises:
        ModelLoadFailed: recognition or voice activity cannot be had.
    """
    hub = settings.model.hub
    recognition = _locate_recognition(settings)
    vad = resolve_model(settings.vad.model, hub) if settings.vad.engine == "fsmn" else None
    problems: list[ModelLoadFailed] = []
    second_pass = _optional(lambda: _locate_second_pass(settings), problems)
    punctuation = _optional(lambda: _locate_punctuation(settings), problems)
    emotion = _optional(lambda: _locate_emotion(settings), problems)
    return ModelDirectories(recognition, vad, second_pass, punctuation, emotion, tuple(problems))


def build_service(
    settings: Settings, mode: Mode, directories: ModelDirectories, keep: Callable[[str, Samples], None] | None = None
) -> Service:
    """Load every model and put the stages together; ``keep`` is given the trace id and the audio of each utterance.

    Raises:
        ConfigInvalid: the hotwords are wrong.
        ModelLoadFailed: recognition or voice activity cannot be had.
    """
    hotwords = HotwordList(settings.hotwords)
    device = resolve_device(settings.model.device_type)
    loaded = load_model(directories.recognition, "ParaformerStreaming", device)
    model = Paraformer(loaded, settings.model.temperature)
    vad = SileroVad() if directories.vad is None else FsmnVad(load_model(directories.vad, "FsmnVADStreaming", "cpu"))
    problems = list(directories.problems)
    punctuator = _optional(lambda: _load_punctuation(directories, device), problems)
    emotion = _optional(lambda: _load_emotion(directories, settings, device), problems)
    graphs = HotwordGraphs(hotwords.current, loaded.tokens)
    second_pass = _optional(lambda: _load_second_pass(directories, settings, model, hotwords), problems)
    set_num_threads(settings.model.num_threads or _fitting_num_threads(loaded))
    recognizer = build_recognizer(settings, mode, model, graphs)
    warm_up(recognizer, vad)
    emotion_thread = EmotionThread(emotion, _emotion_settings(settings)) if emotion else None
    steps = _text_steps(settings, hotwords, punctuator)
    finalizer = Finalizer(steps, emotion_thread, second_pass, max_wait_sec=_max_wait_sec(settings))
    pipeline = Pipeline(_pipeline_settings(settings), vad, recognizer, finalizer, new_trace_id, keep=keep)
    name = str(settings.model_dir or ("embedded" if settings.embedded else settings.model.name))
    log.info(
        "models_loaded",
        recognition=str(directories.recognition),
        mode=mode,
        device=loaded.device,
        vad=settings.vad.engine,
        punctuation=punctuator is not None,
        emotion=emotion is not None,
    )
    return Service(pipeline, name, tuple(problems), emotion_thread)


def _optional(get: Callable[[], _Part | None], problems: list[ModelLoadFailed]) -> _Part | None:
    """What ``get`` gives; where it cannot be had, None and one more problem."""
    try:
        return get()
    except ModelLoadFailed as error:
        problems.append(error)
        return None


def _load_second_pass(directories: ModelDirectories, settings: Settings, model: Paraformer, hotwords: HotwordList) -> SecondPass | None:
    name = settings.final.second_pass
    if name == "same" or (name != "off" and _embedded_instead_of(name, settings)):
        return SamePass(model, HotwordGraphs(hotwords.current, model.vocabulary.tokens))
    if directories.second_pass is None:
        return None
    loaded = load_model(directories.second_pass, ("Paraformer", "BiCifParaformer", "SeacoParaformer"), model.device)
    return OfflinePass(loaded, HotwordGraphs(hotwords.current, loaded.tokens))


def _load_punctuation(directories: ModelDirectories, device: str) -> CtTransformer | None:
    if directories.punctuation is None:
        return None
    return CtTransformer(load_model(directories.punctuation, "CTTransformer", device))


def _load_emotion(directories: ModelDirectories, settings: Settings, device: str) -> Emotion2vec | None:
    if directories.emotion is None:
        return None
    name = str(directories.emotion) if settings.embedded else settings.emotion.model
    return Emotion2vec(load_model(directories.emotion, "Emotion2vec", device), name)


def _text_steps(settings: Settings, hotwords: HotwordList, punctuator: CtTransformer | None) -> list[tuple[ErrorCode, TextStep]]:
    """What makes the shown text of the recognised one: letters first, then marks, then numbers."""
    steps: list[tuple[ErrorCode, TextStep]] = []
    if settings.final.hotword_repair:
        repair = HotwordRepair(hotwords.current)
        repair.repair("", ended=True)  # read its words before anybody speaks
        steps.append(("hotword_repair_failed", repair.repair))
    if punctuator is not None:
        steps.append(("punctuation_failed", punctuator.punctuate))
    if settings.final.itn:
        numbers = NumberFormat()
        steps.append(("number_format_failed", numbers.normalize))
    return steps


def _fitting_num_threads(model: FunasrModel) -> int:
    """Two for a large model; a small one gains nothing by a second thread and loses much by it on a busy machine."""
    return min(2, os.cpu_count() or 1) if model.is_large else 1


def new_trace_id() -> str:
    """16 hex digits."""
    return secrets.token_hex(8)


def warm_up(recognizer: Recognizer, vad: VoiceActivity) -> None:
    """Pay the first call's costs (kernel selection, memory) before anybody speaks."""
    vad.probability(np.zeros(vad.window_samples, np.float32))
    vad.reset()
    try:
        _decode_silence(recognizer)
    except AcceleratorOutOfMemory:
        _decode_silence(recognizer)  # on the CPU


def _decode_silence(recognizer: Recognizer) -> None:
    stream = recognizer.create_stream(0)
    stream.accept(np.zeros(2 * SAMPLE_RATE_HZ, np.float32))
    stream.finish()


def _locate_recognition(settings: Settings) -> Path:
    if settings.embedded:
        return resolve_model(str(EMBEDDED / "asr"), settings.model.hub)
    if settings.model_dir is not None:
        return resolve_model(str(Path(settings.model_dir).expanduser().absolute()), settings.model.hub)
    return resolve_model(settings.model.name, settings.model.hub)


def build_recognizer(settings: Settings, mode: Mode, model: Paraformer, hotwords: HotwordGraphs) -> Recognizer:
    """The recogniser of ``mode`` as the settings want it."""
    if mode == "streaming":
        return StreamingRecognizer(model, ChunkPreset(*settings.chunk_size, *settings.look_backs), hotwords)
    return SlicedRecognizer(
        model,
        slice_samples=round(settings.chunk_sec * SAMPLE_RATE_HZ),
        context_samples=round(settings.sliced.context_sec * SAMPLE_RATE_HZ),
        edge_samples=ms_to_samples(settings.sliced.edge_ms),
        hotwords=hotwords,
    )


def _locate_second_pass(settings: Settings) -> Path | None:
    name = settings.final.second_pass
    if name in ("off", "same") or _embedded_instead_of(name, settings):
        return None
    return resolve_model(name, settings.model.hub)


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
    """Whether the model that ships stands in for ``name``: with ``embedded`` nothing is downloaded, directories are taken."""
    return settings.embedded and not Path(name).expanduser().is_dir()


def _pipeline_settings(settings: Settings) -> PipelineSettings:
    threshold, release_threshold = settings.vad.thresholds
    return PipelineSettings(
        endpointer=EndpointerSettings(
            threshold=threshold,
            release_threshold=release_threshold,
            min_speech=ms_to_samples(settings.vad.min_speech_ms),
            endpoint_silence=ms_to_samples(settings.endpoint_silence_ms),
            speculate_after=ms_to_samples(settings.final.speculate_after_ms),
            max_utterance=round(settings.vad.max_utterance_sec * SAMPLE_RATE_HZ),
            min_rms=settings.vad.min_rms,
        ),
        channel=settings.audio.channel,
        pre_roll=ms_to_samples(settings.vad.pre_roll_ms),
        provisional_max_load_sec=settings.streaming.provisional_max_load_sec,
        speculate=settings.final.speculate,
        speech_events=settings.output.status_events,
    )


def _emotion_settings(settings: Settings) -> EmotionSettings:
    return EmotionSettings(
        min_samples=ms_to_samples(settings.emotion.min_audio_ms),
        max_samples=round(settings.emotion.max_audio_sec * SAMPLE_RATE_HZ),
        min_confidence=settings.emotion.min_confidence,
    )


def _max_wait_sec(settings: Settings) -> float | None:
    """How long a final waits for its emotion: a file that is read as fast as it goes waits with it."""
    if settings.audio.input not in ("mic", "-") and not settings.audio.realtime:
        return None
    return settings.emotion.max_wait_ms / 1000
