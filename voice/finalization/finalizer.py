"""What happens to an utterance between its last token and its final.

``Draft`` -> ``Finalized``. Each part is optional and may fail without costing the final. A collaborator with ``submit()`` and
``poll()``: this one works at once, on the caller's thread. It holds what was finalized and not yet polled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from voice.audio import Samples
from voice.errors import ErrorCode, describe
from voice.transcript import Emotion, EmotionName, Transcript

log = structlog.get_logger()


_Part = Callable[[Transcript, Samples], Transcript]


class Punctuator(Protocol):
    """Sets marks."""

    def punctuate(self, text: str, *, ended: bool) -> str:
        """The text with marks; without an end mark unless the speaker ended there."""


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

    def __init__(self, settings: FinalizerSettings, punctuator: Punctuator | None, emotion: EmotionModel | None) -> None:
        self._settings = settings
        self._punctuator = punctuator
        self._emotion = emotion
        self._done: list[Finalized] = []

    def submit(self, draft: Draft) -> None:
        """Finalize a draft."""
        transcript = draft.transcript
        failures: list[tuple[ErrorCode, str]] = []
        parts: tuple[tuple[ErrorCode, _Part], ...] = (("punctuation_failed", self._with_marks), ("emotion_failed", self._with_emotion))
        for failure, part in parts:
            try:
                transcript = part(transcript, draft.audio)
            except Exception as error:  # an optional part may fail in any way without costing the final
                log.warning(failure, trace_id=transcript.trace_id, exc_info=True)
                failures.append((failure, describe(error)))
        self._done.append(Finalized(transcript, tuple(failures)))

    def poll(self) -> list[Finalized]:
        """What is done, in the order of ``submit``; each is given once."""
        done, self._done = self._done, []
        return done

    def _with_marks(self, transcript: Transcript, _: Samples) -> Transcript:
        if self._punctuator is None:
            return transcript
        ended = transcript.endpoint in ("silence", "end_of_input")
        return replace(transcript, text=self._punctuator.punctuate(transcript.raw_text, ended=ended))

    def _with_emotion(self, transcript: Transcript, audio: Samples) -> Transcript:
        settings = self._settings
        audio = audio[-settings.emotion_max_samples :]
        if self._emotion is None or len(audio) < settings.emotion_min_samples:
            return transcript
        scores = self._emotion.scores(audio)
        if not all(math.isfinite(score) for score in scores.values()):
            raise ValueError("the emotion model answered with scores that are no numbers")
        label = max(scores, key=scores.__getitem__)
        if scores[label] < settings.emotion_min_confidence:
            return transcript
        end = transcript.end_sample
        return replace(transcript, emotion=Emotion(self._emotion.source, label, scores[label], scores, end - len(audio), end))
