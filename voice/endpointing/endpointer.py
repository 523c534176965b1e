"""Endpointing: decides where an utterance starts and where it ends.

Speech probability of each window -> ``SpeechStarted`` / ``SpeechEnded``. Pure: numbers and sample indices in, decisions out; no
audio, no clock, no model. The endpointer owns its state; the caller resets it at a gap in the audio. Worker thread. ``step`` raises
``ValueError`` for a probability that is not finite: every comparison with NaN is false, so it would keep the state for ever.

::

            p >= threshold          min_speech reached
      QUIET ------------> STARTING -------------------> SPEAKING <------- p >= threshold -------+
        ^                    |                             |                                    |
        |   p < release      |                             | p < release                        |
        +--------------------+                             v                                    |
        |                                               STOPPING -------------------------------+
        +---- trailing silence >= endpoint_silence --------+

      SPEAKING or STOPPING for max_utterance: cut at the quietest window of the last 2 s; the next utterance starts at the cut
"""

from __future__ import annotations

import enum
import math
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from voice.audio import SAMPLE_RATE_HZ, Samples
from voice.transcript import Endpoint

CUT_SEARCH_SAMPLES = 2 * SAMPLE_RATE_HZ
"""An utterance that reaches its maximum length is cut within this many samples before its end."""


class VadFailed(RuntimeError):
    """The voice activity model could not answer; it has reset itself, so the next window starts a new signal."""


class VoiceActivity(Protocol):
    """A voice activity model with state: windows of one continuous signal, in order."""

    @property
    def window_samples(self) -> int:
        """Samples of one window."""

    def probability(self, window: Samples, following: Samples) -> float:
        """Probability of speech, 0..1, in the next window.

        Args:
            window: one window.
            following: the windows behind it that are known already, perhaps none, in one piece. They MUST be asked about next, each in its
                turn, unless ``reset`` is called before. A model may compute their answers now: one call is cheaper than several. No answer
                depends on them.

        Raises:
            VadFailed: the model could not answer.
        """

    def reset(self) -> None:
        """Forget the signal so far. MUST be called at every gap."""


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """An utterance starts."""

    start_sample: int
    """First sample of the first speech window; pre-roll not included."""
    continues: bool = False
    """Whether it starts where the utterance before it was cut; then it has no pre-roll."""


@dataclass(frozen=True, slots=True)
class SpeechEnded:
    """The utterance is over."""

    end_sample: int
    """Index after the last speech window, or of the cut."""
    audio_end: int
    """The recogniser decodes the audio before this sample: it includes some trailing silence and nothing of the next utterance."""
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class NearFieldMeasures:
    """What was measured of some speech to judge whether somebody near spoke it."""

    level_dbfs: float
    """Root mean square of the windows with speech, dB relative to full scale; pauses are not counted."""
    noise_dbfs: float
    """Root mean square of the noise before it, tracked while nobody spoke."""
    directness: float
    """How direct its sound is: above 0 rather direct, below 0 rather reflected by the room; natural logarithm of the odds."""


@dataclass(frozen=True, slots=True)
class NearFieldLimits:
    """What speech must reach to be near; both."""

    level_dbfs: float
    directness: float


@dataclass(frozen=True, slots=True)
class SpeechRejected:
    """Speech was not near: it is not recognised."""

    start_sample: int
    """First sample of the first speech window."""
    end_sample: int
    """Index after its last speech window, or where a near voice began."""
    measures: NearFieldMeasures
    """Of the part that came nearest to the limits."""
    limits: NearFieldLimits
    """Those that it did not reach."""


@dataclass(frozen=True, slots=True)
class EndpointerSettings:
    """Lengths in samples at 16 kHz."""

    threshold: float
    """A window of this probability or more is speech."""
    release_threshold: float
    """A window of less than this probability is silence. Between the two thresholds the state does not change."""
    min_speech: int
    """Length of speech that starts an utterance."""
    endpoint_silence: int
    """Length of silence that ends it."""
    speculate_after: int
    """Length of silence after which audio is not decoded until speech resumes or the utterance ends."""
    max_utterance: int
    """Length at which it is cut."""
    min_rms: float
    """Root mean square, full scale 1. A quieter window is silence whatever its probability: that speech is far away."""


class State(enum.Enum):
    """Where the state machine stands."""

    QUIET = enum.auto()
    STARTING = enum.auto()
    SPEAKING = enum.auto()
    STOPPING = enum.auto()


class Endpointer:
    """The state machine."""

    def __init__(self, settings: EndpointerSettings) -> None:
        self._settings = settings
        self.rejected_samples = 0
        """Samples of speech that ``min_rms`` turned into silence, since the process started."""
        self.reset()

    def reset(self) -> None:
        """Return to QUIET without a decision about an utterance in progress; ``end`` makes one."""
        self.state = State.QUIET
        self._start = 0
        self._silence_start = 0
        self._recent: deque[tuple[int, int, float]] = deque()  # start, end and level of each window of the last 2 s in utterances

    @property
    def in_utterance(self) -> bool:
        """Whether SpeechStarted was decided and its SpeechEnded was not."""
        return self.state in (State.SPEAKING, State.STOPPING)

    @property
    def decode_limit(self) -> int:
        """Audio from this sample on is not decoded yet: it may be trailing silence, or belong to the next utterance."""
        limit = self._start + self._settings.max_utterance - CUT_SEARCH_SAMPLES
        if self.state is State.STOPPING:
            limit = min(limit, self._silence_start + self._settings.speculate_after)
        return limit

    def move_start(self, sample: int) -> None:
        """Let the utterance in progress start at ``sample``: what came before it was not near."""
        self._start = sample

    def expected_end(self, now: int) -> SpeechEnded | None:
        """The end of the utterance if nobody speaks any more; None before ``speculate_after`` samples of silence."""
        if self.state is not State.STOPPING or now < self._silence_start + self._settings.speculate_after:
            return None
        return self._ended_in_silence(now, "silence")

    def end(self, now: int, endpoint: Endpoint) -> list[SpeechEnded]:
        """End the utterance in progress, if there is one, at sample ``now`` for a reason from outside."""
        ended = []
        if self.state is State.SPEAKING:
            ended = [SpeechEnded(now, now, endpoint)]
        elif self.state is State.STOPPING:
            ended = [self._ended_in_silence(now, endpoint)]
        self.reset()
        return ended

    def step(self, start: int, end: int, probability: float, level: float) -> list[SpeechStarted | SpeechEnded]:
        """Take one window.

        Args:
            start: sample index of its first sample.
            end: sample index after its last.
            probability: of speech, 0..1.
            level: its root mean square, full scale 1.

        Raises:
            ValueError: ``probability`` is not finite. The state is as before.
        """
        if not math.isfinite(probability):
            raise ValueError(f"the speech probability of a window is {probability}")
        settings = self._settings
        if level < settings.min_rms and probability >= settings.release_threshold:
            self.rejected_samples += end - start
            probability = 0.0
        speech, silence = probability >= settings.threshold, probability < settings.release_threshold
        if self.state is State.QUIET and speech:
            self.state, self._start = State.STARTING, start
        elif self.state is State.STARTING and silence:
            self.state = State.QUIET
        elif self.state is State.SPEAKING and silence:
            self.state, self._silence_start = State.STOPPING, start
        elif self.state is State.STOPPING and speech:
            self.state = State.SPEAKING
        return self._decide(start, end, level)

    def _decide(self, start: int, end: int, level: float) -> list[SpeechStarted | SpeechEnded]:
        settings = self._settings
        if self.state is State.STARTING and end - self._start >= settings.min_speech:
            self.state = State.SPEAKING
            return [SpeechStarted(self._start)]
        if not self.in_utterance:
            return []
        self._recent.append((start, end, level))
        while self._recent[0][0] < end - CUT_SEARCH_SAMPLES:
            self._recent.popleft()
        if self.state is State.STOPPING and end - self._silence_start >= settings.endpoint_silence:
            self.state = State.QUIET
            return [self._ended_in_silence(end, "silence")]
        if end - self._start >= settings.max_utterance:
            return self._cut(end)
        return []

    def _ended_in_silence(self, now: int, endpoint: Endpoint) -> SpeechEnded:
        audio_end = min(self._silence_start + self._settings.speculate_after, now)
        return SpeechEnded(self._silence_start, audio_end, endpoint)

    def _cut(self, now: int) -> list[SpeechStarted | SpeechEnded]:
        """End the utterance in the middle of the quietest of its last windows, and start the next one there."""
        quietest = min((window for window in self._recent if window[0] >= self._start), key=lambda window: window[2])
        cut = (quietest[0] + quietest[1]) // 2
        self._start = cut
        if self.state is State.STOPPING and self._silence_start <= cut:
            # Only silence follows the cut, so no next utterance has started.
            self.state = State.QUIET
            return [self._ended_in_silence(now, "max_duration")]
        return [SpeechEnded(cut, cut, "max_duration"), SpeechStarted(cut, continues=True)]
