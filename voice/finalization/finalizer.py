"""What happens to an utterance between its last token and its final.

``Draft`` -> ``Finalized``. Each part is optional and may fail without costing the final. A collaborator with ``submit()`` and
``poll()``: this one works at once, on the caller's thread. It holds what was finalized and not yet polled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from voice.audio import Samples
from voice.errors import ErrorCode, describe
from voice.transcript import Emotion, EmotionName, Transcript

log = structlog.get_logger()


class EmotionModel(Protocol):
    """Tells the emotion of an utterance."""

    @property
    def source(self) -> str:
        """The ``source`` of its events."""

    def scores(self, samples: Samples) -> dict[EmotionName, float]:
        """Score of every emotion, summing to 1."""


@dataclass(frozen=True, slots=True)
class FinalizerSettings:
    """Lengths in samples at 16 kHz."""

    emotion_min_samples: int
    """Shorter utterances have no emotion: there is too little to hear it in."""
    emotion_max_samples: int
    """Only so much of the utterance's end is listened to: the cost grows with the square of the length."""
    emotion_min_confidence: float
    """Below it there is no emotion rather than a guess."""


@dataclass(frozen=True, slots=True)
class Draft:
    """An utterance that was recognised."""

    transcript: Transcript
    audio: Samples
    """float32, 16 kHz mono: the speech from ``start_sample`` to ``end_sample``."""


@dataclass(frozen=True, slots=True)
class Finalized:
    """What a final says, and what could not be had for it."""

    transcript: Transcript
    failures: tuple[tuple[ErrorCode, str], ...] = ()
    """Code and message of each part that failed."""


class InlineFinalizer:
    """Finalizes within ``submit``."""

    def __init__(self, settings: FinalizerSettings, emotion: EmotionModel | None) -> None:
        self._settings = settings
        self._emotion = emotion
        self._done: list[Finalized] = []

    def submit(self, draft: Draft) -> None:
        """Finalize a draft."""
        failures: list[tuple[ErrorCode, str]] = []
        emotion = None
        try:
            emotion = self._hear_emotion(draft)
        except Exception as error:  # an optional part may fail in any way without costing the final
            log.warning("emotion_failed", trace_id=draft.transcript.trace_id, exc_info=True)
            failures.append(("emotion_failed", describe(error)))
        self._done.append(Finalized(replace(draft.transcript, emotion=emotion), tuple(failures)))

    def poll(self) -> list[Finalized]:
        """What is done, in the order of ``submit``; each is given once."""
        done, self._done = self._done, []
        return done

    def _hear_emotion(self, draft: Draft) -> Emotion | None:
        settings = self._settings
        audio = draft.audio[-settings.emotion_max_samples :]
        if self._emotion is None or len(audio) < settings.emotion_min_samples:
            return None
        scores = self._emotion.scores(audio)
        if not all(math.isfinite(score) for score in scores.values()):
            raise ValueError("the emotion model answered with scores that are no numbers")
        label = max(scores, key=scores.__getitem__)
        if scores[label] < settings.emotion_min_confidence:
            return None
        end = draft.transcript.end_sample
        return Emotion(self._emotion.source, label, scores[label], scores, end - len(audio), end)
