"""Voice activity and endpointing as one step: windows of the signal -> where speech starts and ends.

It owns the voice activity model's stream, the endpointer and, where there is one, the gate that lets only near speech pass. A window at
which the model gives no number counts as silence; the first of a series is reported (``take_failure``). After any other exception
``recover`` renews the model's state. Worker thread.
"""

from __future__ import annotations

from typing import Protocol

import structlog

from voice.audio import Samples, rms
from voice.endpointing.endpointer import (
    Endpointer,
    EndpointerSettings,
    SpeechEnded,
    SpeechRejected,
    SpeechStarted,
    State,
    VadFailed,
    VoiceActivity,
)
from voice.errors import describe
from voice.transcript import Endpoint

log = structlog.get_logger()

Decision = SpeechStarted | SpeechEnded | SpeechRejected


class Gate(Protocol):
    """Decides which of the speech that was found is recognised."""

    @property
    def rejected_samples(self) -> int:
        """Speech that was not, since the process started."""

    @property
    def held_from(self) -> int | None:
        """Audio from this sample on may belong to an utterance that is decided late; None where nothing is held back."""

    def step(self, start: int, window: Samples, state: State, decisions: list[SpeechStarted | SpeechEnded]) -> list[Decision]:
        """The decisions that hold after a window.

        Args:
            start: sample index of its first sample.
            window: float32, (num_samples,), 16 kHz mono; may be kept.
            state: of the endpointer after it.
            decisions: of the endpointer at it.
        """

    def end(self, decisions: list[SpeechEnded]) -> list[Decision]:
        """The decisions that hold at the end of the signal."""


class SpeechDetector:
    """A voice activity model and the decisions on its answers."""

    def __init__(self, vad: VoiceActivity, settings: EndpointerSettings, gate: Gate | None = None) -> None:
        self._vad = vad
        self._endpointer = Endpointer(settings)
        self._gate = gate
        self._accepting = False
        self._fails = False
        self._failure: str | None = None

    @property
    def is_quiet(self) -> bool:
        """Whether nobody speaks, nor may have begun to."""
        return self._endpointer.state is State.QUIET

    @property
    def decode_limit(self) -> int:
        """Audio from this sample on must wait: it may be trailing silence, or belong to the next utterance."""
        return self._endpointer.decode_limit

    @property
    def rejected_samples(self) -> int:
        """Speech so far that was quieter than ``min_rms``, or that the gate rejected."""
        return self._endpointer.rejected_samples + (self._gate.rejected_samples if self._gate else 0)

    @property
    def held_from(self) -> int | None:
        """Audio from this sample on may belong to an utterance that is decided late; None where no gate holds speech back."""
        return self._gate.held_from if self._gate else None

    def expected_end(self, now: int) -> SpeechEnded | None:
        """The end of the utterance in flight, should speech not resume; None before so much silence that audio waits for it."""
        return self._endpointer.expected_end(now)

    def accept(self, start: int, window: Samples, following: Samples) -> list[Decision]:
        """Take the window that begins at sample ``start``; ``following`` are the next ones, as far as they are known."""
        self._accepting = True
        found = self._endpointer.step(start, start + len(window), self._probability(window, following), rms(window))
        decisions: list[Decision] = [*found] if self._gate is None else self._gated(self._gate, start, window, found)
        self._accepting = False
        return decisions

    def end(self, at: int, endpoint: Endpoint) -> list[Decision]:
        """The signal ends at sample ``at``: so does the utterance in flight. ``reset`` follows."""
        ended = self._endpointer.end(at, endpoint)
        return [*ended] if self._gate is None else self._gate.end(ended)

    def reset(self) -> None:
        """Forget the signal so far: the next window does not follow it."""
        self._vad.reset()

    def recover(self) -> bool:
        """After an exception: whether it struck here. The model then goes on without a memory of the signal."""
        struck, self._accepting = self._accepting, False
        if struck:
            self._vad.reset()
        return struck

    def take_failure(self) -> str | None:
        """What the first window of a series without an answer is to be reported with."""
        failure, self._failure = self._failure, None
        return failure

    def _gated(self, gate: Gate, start: int, window: Samples, found: list[SpeechStarted | SpeechEnded]) -> list[Decision]:
        decisions = gate.step(start, window, self._endpointer.state, found)
        for decision in decisions:
            if isinstance(decision, SpeechStarted):
                self._endpointer.move_start(decision.start_sample)
        return decisions

    def _probability(self, window: Samples, following: Samples) -> float:
        try:
            probability = self._vad.probability(window, following)
        except VadFailed as error:  # it has reset itself
            if not self._fails:
                self._failure = describe(error)
                log.warning("vad_failed", error=self._failure)
            self._fails = True
            return 0.0
        self._fails = False
        return probability
