"""(Settings, Models) -> Pipeline. The only place that knows which class serves which setting.

Weights are shared by all pipelines; whatever holds the state of a stream is made here, for one pipeline. Called on the thread that will
run the models. Raises ``ModelLoadFailed`` for weights that the service cannot use; an optional model that cannot be used becomes a problem
instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import structlog

from voice.audio import SAMPLE_RATE_HZ, Samples, ms_to_samples
from voice.config import Mode, Settings
from voice.endpointing.endpointer import EndpointerSettings, VoiceActivity
from voice.endpointing.fsmn import FsmnVad
from voice.endpointing.silero import SileroVad
from voice.errors import ErrorCode, ModelLoadFailed
from voice.finalization.emotion import EmotionLabeller, EmotionSettings, create_emotion_model
from voice.finalization.finalizer import Finalizer, SecondPass, TextStep
from voice.finalization.hotword_repair import HotwordRepair
from voice.finalization.number_format import NumberFormat
from voice.finalization.punctuation import CtTransformer, OnnxPunctuation, create_punctuator
from voice.finalization.side_model import SideModel
from voice.hotword_list import HotwordList
from voice.losses import LossLedger
from voice.models.converted import OnnxModel
from voice.models.directory import blaming
from voice.models.funasr_model import AcceleratorOutOfMemory, FunasrModel
from voice.models.weights import Models, is_same_weights, optional
from voice.options import near_field_gate, remote_recognizer, wake_gate, with_wake_words
from voice.output.wire import new_trace_id
from voice.pipeline import Pipeline, PipelineSettings
from voice.places import EMBEDDED
from voice.recognition.engine import ChunkPreset, Engine
from voice.recognition.hotwords import HotwordGraphs
from voice.recognition.offline_pass import OfflinePass
from voice.recognition.onnx_engine import OnnxEngine
from voice.recognition.recognizer import Recognizer
from voice.recognition.second_pass import SamePass
from voice.recognition.sliced import SlicedRecognizer
from voice.recognition.streaming import StreamingRecognizer
from voice.recognition.torch_engine import TorchEngine
from voice.transcript import has_marks

if TYPE_CHECKING:
    from voice.finalization.speakers import SpeakerBook, SpeakerLabeller

log = structlog.get_logger()

_Part = TypeVar("_Part")
_Model = TypeVar("_Model", bound=FunasrModel | OnnxModel)


@dataclass(frozen=True, slots=True)
class Built:
    """One pipeline, and what its owner has to know of it."""

    pipeline: Pipeline
    problems: tuple[ModelLoadFailed, ...]
    """Optional models that could not be found, loaded or used; the pipeline runs without them."""
    speakers: SpeakerBook | None = None
    """None where the settings want none."""


def build_pipeline(
    settings: Settings,
    mode: Mode,
    models: Models,
    *,
    ledger: LossLedger,
    hotwords: HotwordList,
    keep: Callable[[str, Samples], None] | None = None,
) -> Built:
    """Put the stages of one pipeline together, decode silence once, and connect to the server where one recognises.

    Args:
        settings: of this pipeline; those of the models are read where they are loaded.
        mode: how audio is cut for the recogniser.
        models: the weights, which other pipelines on this thread may use, too.
        ledger: owns the losses of the pipeline's input.
        hotwords: of the recogniser, the second pass and the repair.
        keep: receives the trace id and the audio of each utterance.

    Raises:
        ModelLoadFailed: recognition or voice activity cannot work with its weights.
        ConfigInvalid: the model cannot write a wake word, the server's certificates cannot be read, or the directory of the known speakers
            cannot be used.
    """
    problems = list(models.problems)
    loaded = models.recognition
    engine = None if loaded is None else _usable(loaded, lambda model: create_engine(model, settings.model.temperature))
    gate = wake_gate(settings, keep) if settings.wake.words else None
    preferred = with_wake_words(settings, hotwords, engine.vocabulary.tokens if engine else None) if gate else hotwords.current
    vad: VoiceActivity = SileroVad() if models.vad is None else _usable(models.vad, _warm_fsmn)
    punctuator = _optional(models.punctuation, create_punctuator, problems)
    emotion = _optional(models.emotion, lambda loaded: _emotion_labeller(loaded, settings), problems)
    labeller, speakers = _speakers(models, settings, problems) if settings.speakers.enabled else (None, None)
    side_models: list[SideModel] = [each for each in (labeller, emotion) if each]
    second_pass: SecondPass | None
    if engine is not None and is_same_weights(settings):
        second_pass = SamePass(engine, HotwordGraphs(preferred, engine.vocabulary.tokens))
    else:
        second_pass = _optional(models.second_pass, lambda loaded: OfflinePass(loaded, HotwordGraphs(preferred, loaded.tokens)), problems)
    local = None
    if engine is not None and loaded is not None:
        local = build_recognizer(settings, mode, engine, HotwordGraphs(preferred, engine.vocabulary.tokens))
        _usable(loaded, lambda _: _warm_up(local))
    recognizer = remote_recognizer(settings, hotwords, local) or local
    assert recognizer is not None  # noqa: S101 -- models are loaded unless a server recognises
    steps = _text_steps(settings, hotwords, punctuator)
    finalizer = Finalizer(
        steps,
        side_models,
        second_pass,
        max_wait_sec=_max_wait_sec(settings),
        with_speaker=settings.speakers.enabled,
        wants_labels=gate.wants_labels if gate else None,
    )
    pipeline = Pipeline(
        _pipeline_settings(settings),
        vad,
        recognizer,
        finalizer,
        ledger=ledger,
        new_trace_id=new_trace_id,
        keep=gate.keep if gate else keep,
        gate=gate,
        near_field=near_field_gate(settings),
    )
    log.info(
        "pipeline_built",
        recognition=None if loaded is None else str(loaded.directory),
        mode=mode,
        engine="remote" if settings.server else "onnx" if isinstance(loaded, OnnxModel) else "torch",
        device=None if loaded is None else loaded.device,
        vad=settings.vad.engine,
        near_field=settings.vad.near_field,
        punctuation=punctuator is not None,
        emotion=emotion is not None,
    )
    return Built(pipeline, tuple(problems), speakers)


def create_engine(model: FunasrModel | OnnxModel, temperature: float) -> Engine:
    """The engine that runs a recognition model.

    Raises:
        ModelLoadFailed: its decoder is not causal.
        ValueError: am.mvn is damaged.
    """
    return OnnxEngine(model, temperature) if isinstance(model, OnnxModel) else TorchEngine(model, temperature)


def _usable(model: _Model, use: Callable[[_Model], _Part]) -> _Part:
    """What ``use`` makes of a model.

    Raises:
        ModelLoadFailed: it fails; config.yaml then describes a module that could be built, but not one that works here.
    """
    with blaming(model.directory / "config.yaml", "describes a model that cannot be used"):
        return use(model)


def _optional(model: _Model | None, use: Callable[[_Model], _Part], problems: list[ModelLoadFailed]) -> _Part | None:
    """What ``use`` makes of a model; None where there is no model, or where it fails, which joins ``problems``."""
    return None if model is None else optional(lambda: _usable(model, use), problems)


def _emotion_labeller(model: FunasrModel | OnnxModel, settings: Settings) -> EmotionLabeller:
    name = str(model.directory) if settings.embedded else settings.emotion.model
    return EmotionLabeller(create_emotion_model(model, name), _emotion_settings(settings))


def _speakers(models: Models, settings: Settings, problems: list[ModelLoadFailed]) -> tuple[SpeakerLabeller | None, SpeakerBook]:
    """What labels speakers, None where the model cannot be used, and what names and keeps them.

    Raises:
        ConfigInvalid: the directory of the known speakers cannot be used.
    """
    from voice.finalization import speakers_setup  # noqa: PLC0415 -- only where the settings want speakers

    embedded = settings.embedded and models.speaker is not None and models.speaker.directory == EMBEDDED / "speaker"
    name = str(models.speaker.directory) if embedded and models.speaker else settings.speakers.model
    model = _optional(models.speaker, lambda loaded: speakers_setup.probed_model(loaded, name), problems)
    return (
        (None, speakers_setup.no_speakers()) if model is None else speakers_setup.open_speakers(model, settings.speakers, embedded=embedded)
    )


def _text_steps(
    settings: Settings, hotwords: HotwordList, punctuator: CtTransformer | OnnxPunctuation | None
) -> list[tuple[ErrorCode, TextStep]]:
    """What makes the reported text of the recognised one, in this order: letters, punctuation, numbers."""
    steps: list[tuple[ErrorCode, TextStep]] = []
    if settings.final.hotword_repair:
        repair = HotwordRepair(hotwords.current)
        repair.repair("", ended=True)  # read its words before anyone speaks
        steps.append(("hotword_repair_failed", repair.repair))
    if punctuator is not None:
        punctuate: TextStep = punctuator.punctuate
        steps.append(("punctuation_failed", punctuate if settings.server is None else _unless_marked(punctuate)))
    if settings.final.itn:
        numbers = NumberFormat()
        steps.append(("number_format_failed", numbers.normalize))
    return steps


def _unless_marked(punctuate: TextStep) -> TextStep:
    """Punctuation for texts that have none: a server may have added its own."""

    def step(text: str, *, ended: bool) -> str:
        return text if has_marks(text) else punctuate(text, ended=ended)

    return step


def _warm_fsmn(model: FunasrModel) -> FsmnVad:
    """FunASR's voice activity model after its first call, as ``SileroVad`` is when it is made."""
    vad = FsmnVad(model)
    vad.probability(np.zeros(vad.window_samples, np.float32))
    vad.reset()
    return vad


def _warm_up(recognizer: Recognizer) -> None:
    """Pay the first call's costs (kernel selection, memory) before anybody speaks."""
    try:
        _decode_silence(recognizer)
    except AcceleratorOutOfMemory:
        _decode_silence(recognizer)  # on the CPU


def _decode_silence(recognizer: Recognizer) -> None:
    stream = recognizer.create_stream(0)
    stream.accept(np.zeros(2 * SAMPLE_RATE_HZ, np.float32))
    stream.finish()


def build_recognizer(settings: Settings, mode: Mode, engine: Engine, hotwords: HotwordGraphs) -> Recognizer:
    """The recogniser of ``mode`` as the settings want it."""
    if mode == "streaming":
        preset = ChunkPreset(*settings.chunk_size, *settings.look_backs)
        interval_ms = 0 if _reads_unpaced(settings) else settings.streaming.partial_interval_ms
        return StreamingRecognizer(engine, preset, hotwords, preview_samples=ms_to_samples(interval_ms))
    return SlicedRecognizer(
        engine,
        slice_samples=round(settings.chunk_sec * SAMPLE_RATE_HZ),
        context_samples=round(settings.sliced.context_sec * SAMPLE_RATE_HZ),
        edge_samples=ms_to_samples(settings.sliced.edge_ms),
        hotwords=hotwords,
    )


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
        preview_max_load_sec=settings.streaming.partial_interval_ms / 2 / 1000,
        speculate=settings.final.speculate and not _reads_unpaced(settings),
        speech_events=settings.output.status_events,
    )


def _emotion_settings(settings: Settings) -> EmotionSettings:
    return EmotionSettings(
        min_samples=ms_to_samples(settings.emotion.min_audio_ms),
        max_samples=round(settings.emotion.max_audio_sec * SAMPLE_RATE_HZ),
        min_confidence=settings.emotion.min_confidence,
    )


def _max_wait_sec(settings: Settings) -> float | None:
    """How long a final waits for its labels; None, until they are ready, for a file that is read as fast as possible."""
    return None if _reads_unpaced(settings) else settings.emotion.max_wait_ms / 1000


def _reads_unpaced(settings: Settings) -> bool:
    """Whether the input is a file that is read as fast as possible: nobody waits for a final in its pauses."""
    return settings.audio.input not in ("mic", "-") and not settings.audio.realtime
