"""What happens to an utterance between its last token and its final.

``Draft`` -> ``Finalized``. Each part is optional and may fail without costing the final. What is submitted may be work for nothing:
the speaker may go on. This finalizer works at once, on the caller's thread, and holds nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from voice.audio import Samples
from voice.errors import ErrorCode, describe
from voice.transcript import Emotion, EmotionName, Token, Transcript, join_tokens, mean_confidence

log = structlog.get_logger()


class TextStep(Protocol):
    """One step on the way from what was recognised to what is shown."""

    def __call__(self, text: str, *, ended: bool) -> str:
        """The text, changed; ``ended`` says whether the speaker ended there, not only the audio."""


class SecondPass(Protocol):
    """Decodes an utterance once more, with all of it in view."""

    def tokens(self, samples: Samples) -> list[Token]:
        """Its tokens."""


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
    heard: Samples
    """What the recogniser heard: the same with the audio before and behind it."""


@dataclass(frozen=True, slots=True)
class Finalized:
    """What a final says, and what could not be had for it."""

    transcript: Transcript
    failures: tuple[tuple[ErrorCode, str], ...] = ()
    """Code and message of each part that failed."""


class InlineFinalizer:
    """Finalizes within ``finalize``."""

    def __init__(
        self,
        settings: FinalizerSettings,
        text_steps: Sequence[tuple[ErrorCode, TextStep]],
        emotion: EmotionModel | None,
        second_pass: SecondPass | None = None,
    ) -> None:
        """Take the steps in their order, each with the code of its failure; they work on the text of the second pass, if it wins."""
        self._second_pass = second_pass
        self._settings = settings
        self._text_steps = text_steps
        self._emotion = emotion

    def finalize(self, draft: Draft) -> Finalized:
        """Everything a final carries."""
        transcript = draft.transcript
        failures: list[tuple[ErrorCode, str]] = []
        with self._guarded("second_pass_failed", transcript.trace_id, failures):
            transcript = self._with_second_pass(transcript, draft.heard)
        for failure, step in self._text_steps:
            with self._guarded(failure, transcript.trace_id, failures):
                transcript = replace(transcript, text=step(transcript.text, ended=transcript.ended_by_speaker))
        with self._guarded("emotion_failed", transcript.trace_id, failures):
            transcript = self._with_emotion(transcript, draft.audio)
        return Finalized(transcript, tuple(failures))

    @staticmethod
    @contextlib.contextmanager
    def _guarded(failure: ErrorCode, trace_id: str, failures: list[tuple[ErrorCode, str]]) -> Iterator[None]:
        """An optional part may fail in any way without costing the final."""
        try:
            yield
        except Exception as error:
            log.warning(failure, trace_id=trace_id, exc_info=True)
            failures.append((failure, describe(error)))

    def _with_second_pass(self, transcript: Transcript, heard: Samples) -> Transcript:
        if self._second_pass is None:
            return transcript
        tokens = tuple(self._second_pass.tokens(heard))
        if mean_confidence(tokens) <= transcript.confidence:
            return transcript
        return replace(transcript, second_tokens=tokens, text=join_tokens(token.text for token in tokens))

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
