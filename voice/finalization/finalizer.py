"""What happens to an utterance between its last token and its final.

``Draft`` -> ``Begun`` -> ``Finalized``. Each part is optional and may fail without costing the final. What is begun may be work for
nothing: the speaker may go on. The text is made at once, on the caller's thread; the emotion on its own (``emotion_thread.py``), and
where it is not ready in time it follows its final. Holds the emotions that are late.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotReady  # Python 3.10: not yet the builtin
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from voice.audio import Samples
from voice.errors import ErrorCode, describe
from voice.finalization.emotion_thread import EmotionThread
from voice.transcript import Emotion, Token, Transcript, join_tokens, mean_confidence

log = structlog.get_logger()


class TextStep(Protocol):
    """One step on the way from what was recognised to what is shown."""

    def __call__(self, text: str, *, ended: bool) -> str:
        """The text, changed; ``ended`` says whether the speaker ended there, not only the audio."""


class SecondPass(Protocol):
    """Decodes an utterance once more, with all of it in view."""

    def tokens(self, samples: Samples) -> list[Token]:
        """Its tokens."""


@dataclass(frozen=True, slots=True)
class Draft:
    """An utterance that was recognised."""

    transcript: Transcript
    audio: Samples
    """float32, 16 kHz mono: the speech from ``start_sample`` to ``end_sample``."""
    heard: Samples
    """What the recogniser heard: the same with the audio before and behind it."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A final whose text is made and whose emotion is under way."""

    transcript: Transcript
    failures: tuple[tuple[ErrorCode, str], ...] = ()
    """Code and message of each part that failed."""
    emotion: Future[Emotion | None] | None = None
    """None where there is to be none."""


@dataclass(frozen=True, slots=True)
class Finalized:
    """What a final says, and what could not be had for it."""

    transcript: Transcript
    failures: tuple[tuple[ErrorCode, str], ...] = ()
    """Code and message of each part that failed."""


@dataclass(frozen=True, slots=True)
class LateEmotion:
    """What became of an emotion that its final did not wait for."""

    trace_id: str
    emotion: Emotion | None
    """None where it was too uncertain, or failed."""
    failure: tuple[ErrorCode, str] | None = None


class Finalizer:
    """Makes finals of drafts."""

    def __init__(
        self,
        text_steps: Sequence[tuple[ErrorCode, TextStep]] = (),
        emotion: EmotionThread | None = None,
        second_pass: SecondPass | None = None,
        *,
        max_wait_sec: float | None = None,
    ) -> None:
        """Take the parts.

        Args:
            text_steps: in their order, each with the code of its failure; they work on the text of the second pass, if it wins.
            emotion: hears the emotions.
            second_pass: decodes once more.
            max_wait_sec: how long a final waits for its emotion; None: until it is there.
        """
        self._text_steps = text_steps
        self._emotion = emotion
        self._second_pass = second_pass
        self._max_wait_sec = max_wait_sec
        self._late: list[tuple[str, Future[Emotion | None]]] = []

    def begin(self, draft: Draft) -> Begun:
        """Start on the emotion and make the text; parts that fail are named, not raised."""
        transcript = draft.transcript
        failures: list[tuple[ErrorCode, str]] = []
        emotion = None
        if self._emotion:
            with self._guarded("emotion_failed", transcript.trace_id, failures):
                emotion = self._emotion.submit(draft.audio, transcript.end_sample)
        with self._guarded("second_pass_failed", transcript.trace_id, failures):
            transcript = self._with_second_pass(transcript, draft.heard)
        for failure, step in self._text_steps:
            with self._guarded(failure, transcript.trace_id, failures):
                transcript = replace(transcript, text=step(transcript.text, ended=transcript.ended_by_speaker))
        return Begun(transcript, tuple(failures), emotion)

    def drop(self, begun: Begun) -> None:
        """The speaker goes on: nobody waits for this any more."""
        if begun.emotion:
            begun.emotion.cancel()

    def complete(self, begun: Begun) -> Finalized:
        """With its emotion, if that is ready in time; else ``take_late`` has it later."""
        trace_id, future = begun.transcript.trace_id, begun.emotion
        if future is None:
            return Finalized(begun.transcript, begun.failures)
        try:
            future.exception(self._max_wait_sec)
        except NotReady:
            self._late.append((trace_id, future))
            return Finalized(begun.transcript, begun.failures)
        heard = self._outcome(trace_id, future)
        return Finalized(replace(begun.transcript, emotion=heard.emotion), begun.failures + ((heard.failure,) if heard.failure else ()))

    def take_late(self, wait_sec: float = 0.0) -> list[LateEmotion]:
        """The late emotions that are there by now, in the order of their finals, after waiting so long for all of them."""
        deadline = time.monotonic() + wait_sec
        for _, future in self._late:
            with contextlib.suppress(NotReady):
                future.exception(max(deadline - time.monotonic(), 0.0))
        done = [(trace_id, future) for trace_id, future in self._late if future.done()]
        self._late = [(trace_id, future) for trace_id, future in self._late if not future.done()]
        return [self._outcome(trace_id, future) for trace_id, future in done]

    def give_up_late(self) -> list[LateEmotion]:
        """The late emotions that are still not there, as failures: the service ends."""
        given_up, self._late = self._late, []
        for _, future in given_up:
            future.cancel()
        failure: tuple[ErrorCode, str] = ("emotion_failed", "TimeoutError: it was not ready when the service ended")
        return [LateEmotion(trace_id, None, failure) for trace_id, _ in given_up]

    def _outcome(self, trace_id: str, future: Future[Emotion | None]) -> LateEmotion:
        """Of an emotion that is there."""
        error = future.exception()
        if error is None:
            return LateEmotion(trace_id, future.result())
        log.warning("emotion_failed", trace_id=trace_id, exc_info=error)
        return LateEmotion(trace_id, None, ("emotion_failed", describe(error)))

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
