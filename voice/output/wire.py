"""What the pipeline knows -> events of the contract.

Stage: output. Hypothesis, Transcript, Emotion, Speaker, Level -> event. No state, any thread. Trace ids are random.
Raises: ``pydantic.ValidationError`` for a value that the contract does not allow, such as a confidence that is no number.
"""

from __future__ import annotations

import secrets
from typing import Any

from voice.audio import samples_to_ms
from voice.level import Level
from voice.output.events import (
    AudioLevel,
    EmotionEvent,
    EmotionSummary,
    FinalEvent,
    LevelEvent,
    PartialEvent,
    SpeakerEvent,
    SpeakerSummary,
    TokenTime,
)
from voice.transcript import CONTINUES, Emotion, Hypothesis, Speaker, Transcript


def partial_event(trace_id: str, source: str, hypothesis: Hypothesis, start_sample: int, end_sample: int) -> PartialEvent:
    """The wire form of a hypothesis."""
    return PartialEvent(
        trace_id=trace_id,
        source=source,
        text=hypothesis.text,
        confidence=_if_given(hypothesis.confidence),
        start_ms=samples_to_ms(start_sample),
        end_ms=samples_to_ms(end_sample),
        stable_chars=hypothesis.stable_chars,
        raw_text=hypothesis.text,
    )


def final_event(source: str, transcript: Transcript, *, with_speaker: bool = False) -> FinalEvent:
    """The wire form of a transcript; the key ``speaker`` stands in it only ``with_speaker``."""
    emotion = transcript.emotion
    switched_on: dict[str, Any] = {"speaker": _speaker_summary(transcript.speaker)} if with_speaker else {}
    return FinalEvent(
        trace_id=transcript.trace_id,
        source=source,
        text=transcript.text,
        confidence=_if_given(transcript.confidence),
        start_ms=samples_to_ms(transcript.start_sample),
        end_ms=samples_to_ms(transcript.end_sample),
        endpoint=transcript.endpoint,
        raw_text=transcript.raw_text,
        tokens=[
            TokenTime(
                text=token.text.replace(CONTINUES, ""),
                start_ms=samples_to_ms(token.start_sample),
                end_ms=samples_to_ms(token.end_sample),
                confidence=_if_given(token.confidence),
            )
            for token in transcript.tokens
        ],
        emotion=EmotionSummary(label=emotion.label, confidence=_rounded(emotion.confidence)) if emotion else None,
        lost_ms=samples_to_ms(transcript.lost_samples),
        level=audio_level(transcript.level),
        **switched_on,
    )


def _speaker_summary(speaker: Speaker | None) -> SpeakerSummary | None:
    if speaker is None:
        return None
    return SpeakerSummary(label=speaker.label, name=speaker.name, confidence=_rounded(speaker.confidence))


def audio_level(level: Level) -> AudioLevel:
    """The wire form of a level."""
    return AudioLevel(rms_dbfs=level.rms_dbfs, peak_dbfs=level.peak_dbfs, clipped_ratio=round(level.clipped_ratio, 4))


def new_trace_id() -> str:
    """16 hex digits."""
    return secrets.token_hex(8)


def level_event(end_ms: int, level: Level | None) -> LevelEvent:
    """The wire form of the microphone's level; None while muted."""
    return LevelEvent(trace_id=new_trace_id(), end_ms=end_ms, muted=level is None, level=None if level is None else audio_level(level))


def label_event(trace_id: str, label: Emotion | Speaker) -> EmotionEvent | SpeakerEvent:
    """The wire form of a label that has an event of its own."""
    if isinstance(label, Emotion):
        return emotion_event(trace_id, label)
    confidence = _rounded(label.confidence)
    return SpeakerEvent(trace_id=trace_id, source=label.source, label=label.label, name=label.name, confidence=confidence)


def emotion_event(trace_id: str, emotion: Emotion) -> EmotionEvent:
    """The wire form of an emotion."""
    return EmotionEvent(
        trace_id=trace_id,
        source=emotion.source,
        label=emotion.label,
        confidence=_rounded(emotion.confidence),
        scores={label: _rounded(score) for label, score in emotion.scores.items()},
        start_ms=samples_to_ms(emotion.start_sample),
        end_ms=samples_to_ms(emotion.end_sample),
    )


def _if_given(probability: float | None) -> float | None:
    return None if probability is None else _rounded(probability)


def _rounded(probability: float) -> float:
    return round(min(max(probability, 0.0), 1.0), 4)
