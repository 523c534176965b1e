"""Where an utterance starts and where it ends: decisions only.

Speech probability of each window -> ``SpeechStarted`` / ``SpeechEnded``. Pure: numbers and sample indices in, decisions out; no
audio, no clock, no model. The state is this object's, ``reset`` at a gap in the audio. Worker thread.

::

            p >= threshold          min_speech reached
      QUIET ------------> STARTING -------------------> SPEAKING <------- p >= threshold -------+
        ^                    |                             |                                    |
        |   p < release      |                             | p < release                        |
        +--------------------+                             v                                    |
        |                                               STOPPING -------------------------------+
        +---- trailing silence >= endpoint_silence --------+

      SPEAKING or STOPPING for max_utterance: cut at the quietest window of the last 2 s and go on in SPEAKING
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from voice.audio import SAMPLE_RATE_HZ, Samples
from voice.transcript import Endpoint

CUT_SEARCH_SAMPLES = 2 * SAMPLE_RATE_HZ
"""An utterance that reaches the maximum is cut inside so much of its end."""


class VoiceActivity(Protocol):
    """A voice activity model with state: windows of one continuous signal, in order."""

    @property
    def window_samples(self) -> int:
        """Samples of one window."""

    def probability(self, window: Samples) -> float:
        """Probability of speech in the next window, 0..1."""

    def reset(self) -> None:
        """Forget the signal so far. MUST be called at every gap."""


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """An utterance begins."""

    start_sample: int
    """First sample of the first speech window; pre-roll not included."""
    continues: bool = False
    """It goes on directly where the last one was cut: there is no pre-roll."""


@dataclass(frozen=True, slots=True)
class SpeechEnded:
    """The utterance is over."""

    end_sample: int
    """After the last speech window, or the cut."""
    audio_end: int
    """The recogniser hears the audio before this sample: some trailing silence, but nothing of the next utterance."""
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class EndpointerSettings:
    """Lengths in samples at 16 kHz."""

    threshold: float
    """Probability from which a window is speech."""
    release_threshold: float
    """Probability below which a window is silence; between the two nothing changes."""
    min_speech: int
    """Speech needed to start an utterance."""
    endpoint_silence: int
    """Silence that ends it."""
    speculate_after: int
    """Silence after which audio waits undecoded until speech resumes or the utterance ends."""
    max_utterance: int
    """Length at which it is cut."""
    min_rms: float
    """Quieter windows are silence whatever the model says: speech from far away."""


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
        """Speech that ``min_rms`` turned into silence, since the process started."""
        self.reset()

    def reset(self) -> None:
        """Back to QUIET, without a decision about an utterance in progress: see ``end``."""
        self.state = State.QUIET
        self._start = 0
        self._silence_start = 0
        self._recent: deque[tuple[int, int, float]] = deque()

    @property
    def in_utterance(self) -> bool:
        """Between SpeechStarted and SpeechEnded."""
        return self.state in (State.SPEAKING, State.STOPPING)

    @property
    def decode_limit(self) -> int:
        """Audio from this sample on must wait: it may be trailing silence, or belong to the next utterance."""
        limit = self._start + max(self._settings.max_utterance - CUT_SEARCH_SAMPLES, 0)
        if self.state is State.STOPPING:
            limit = min(limit, self._silence_start + self._settings.speculate_after)
        return limit

    def expected_end(self, now: int) -> SpeechEnded | None:
        """The end of the utterance, should nobody speak any more; None before so much silence that audio waits for it."""
        if self.state is not State.STOPPING or now < self._silence_start + self._settings.speculate_after:
            return None
        return self._ended_in_silence(now, "silence")

    def end(self, now: int, endpoint: Endpoint) -> list[SpeechEnded]:
        """End whatever is going on at sample ``now``, for a reason from outside."""
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
            start: its first sample.
            end: after its last.
            probability: of speech, 0..1.
            level: its root mean square, full scale 1.
        """
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
            self._recent.clear()
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
        """End the utterance at the middle of its quietest late window and begin the next one there."""
        quietest = min(self._recent, key=lambda window: window[2])
        cut = (quietest[0] + quietest[1]) // 2
        self._start = cut
        if self.state is State.STOPPING and self._silence_start <= cut:
            # Nothing but silence follows the cut: there is no next utterance yet.
            self.state = State.QUIET
            return [self._ended_in_silence(now, "max_duration")]
        return [SpeechEnded(cut, cut, "max_duration"), SpeechStarted(cut, continues=True)]
