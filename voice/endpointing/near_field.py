"""Endpointing: whether speech comes from somebody near the microphone, decided before it is recognised.

Windows of the signal (float32, 16 kHz mono) and the endpointer's decisions on them -> the decisions that hold: ``SpeechStarted`` and
``SpeechEnded`` of near speech, ``SpeechRejected`` of the rest. Pure arithmetic on the windows: no clock, no model. The gate holds the noise
floor, up to a second of speech that it judges, and, by its ``Reference``, what it learned of accepted speech; ``end`` ends the stretch in
progress and keeps the rest. Worker thread. Raises nothing: a measure that is not finite accepts, so that no failure here costs speech.

::

            SpeechStarted              enough speech, near
      IDLE ---------------> JUDGING ------------------------> ACCEPTED ----+
        ^                      |                                  ^        |
        |                      | enough speech, not near          |        |
        |                      v                                  |        |
        |                  REJECTED ------------------------------+        |
        |                      |       near speech in it                   |
        +----- SpeechEnded ----+-------------- SpeechEnded ----------------+

The first verdict asks for more than the later ones, which rest on more speech. Speech that ends before its second verdict gets it at its
end. A cut at the maximum length ends a stretch and keeps its verdict.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from voice.audio import Samples, ms_to_samples, rms
from voice.endpointing.directness import MIN_SAMPLES, Floats, NoiseFloor, directness
from voice.endpointing.endpointer import NearFieldLimits, NearFieldMeasures, SpeechEnded, SpeechRejected, SpeechStarted, State
from voice.level import QUIETEST_DBFS, decibels

JUDGED = ms_to_samples(500)
"""Speech, pauses not counted, after which there is a verdict. Of less it is less certain; more delays the first partial."""
JUDGED_AT_MOST = ms_to_samples(1_000)
"""Audio, pauses counted, after which there is one all the same."""
JUDGED_AGAIN = ms_to_samples(250)
"""Rejected speech is judged again after so much more speech: somebody near may have begun to speak, or the first verdict was wrong."""
JUDGED_LONGER = ms_to_samples(1_000)
"""So much of the last speech is judged then. Of twice the speech a verdict is wrong less often."""
HELD = ms_to_samples(1_500)
"""Audio of a stretch, pauses counted, that is kept for that."""
DECAY = ms_to_samples(128)
"""Audio after the last speech that is measured with it: how a sound dies away says much about the room."""
REACHES_BACK = ms_to_samples(3_000)
"""Speech that is accepted late without a step in its level was near before, too: so much of it is recognised."""
NEW_VOICE_DB = 4.0
"""Speech that is so much louder than the rejected speech before it is another voice."""

MIN_DIRECTNESS = -0.5
"""Speech that is less direct is rejected, however loud it is."""
FIRST_MORE = 1.0
"""By so much more direct must speech be for the first verdict while it goes on: more of it will be judged soon, and better."""
MOST_DIRECTNESS = 99.0
"""A measure that is not finite counts as this."""
ALLOWED_DB = 6.0
"""Speech may be so much quieter than usual."""
PER_DB = 0.5
"""By so much more direct must it be for each dB beyond that."""
MOST_MISSING_DB = 12.0
"""More than this is not held against it: somebody may speak softly after a shout."""
RISES, FALLS = 0.5, 0.1
"""Share of the difference by which the usual level follows speech that was accepted."""

Decision = SpeechStarted | SpeechEnded | SpeechRejected
DirectnessOf = Callable[[Samples, float, Floats], float]


class Reference(Protocol):
    """Where the limits come from."""

    def limits(self, level_dbfs: float) -> NearFieldLimits:
        """Those that hold now for speech of this level."""

    def learn(self, measures: NearFieldMeasures) -> None:
        """Take what was measured of speech that was accepted."""


class FixedLevel:
    """A level that somebody set; it learns nothing."""

    def __init__(self, level_dbfs: float) -> None:
        self._limits = NearFieldLimits(level_dbfs, MIN_DIRECTNESS)

    def limits(self, level_dbfs: float) -> NearFieldLimits:
        """The same for all speech."""
        del level_dbfs
        return self._limits

    def learn(self, measures: NearFieldMeasures) -> None:
        """Nothing is learned."""


class LearntLevel:
    """Learns how loud near speech usually is: what is much quieter must be more direct than the rest."""

    def __init__(self) -> None:
        self._usual_dbfs: float | None = None

    def limits(self, level_dbfs: float) -> NearFieldLimits:
        """No least level, and a directness that rises with what is missing to the usual level."""
        missing = 0.0 if self._usual_dbfs is None else min(max(self._usual_dbfs - ALLOWED_DB - level_dbfs, 0.0), MOST_MISSING_DB)
        return NearFieldLimits(QUIETEST_DBFS, round(MIN_DIRECTNESS + PER_DB * missing, 2))

    def learn(self, measures: NearFieldMeasures) -> None:
        """Follow louder speech fast and quieter speech slowly."""
        if self._usual_dbfs is None:
            self._usual_dbfs = measures.level_dbfs
        else:
            difference = measures.level_dbfs - self._usual_dbfs
            self._usual_dbfs += difference * (RISES if difference > 0 else FALLS)


@dataclass(frozen=True, slots=True)
class _Held:
    """A window of a stretch that is judged."""

    start: int
    samples: Samples
    is_speech: bool


class _Phase(enum.Enum):
    """Where the gate stands."""

    IDLE = enum.auto()
    JUDGING = enum.auto()
    ACCEPTED = enum.auto()
    REJECTED = enum.auto()


class NearFieldGate:
    """Lets near speech pass."""

    def __init__(self, reference: Reference, directness_of: DirectnessOf = directness) -> None:
        self._reference = reference
        self._directness_of = directness_of
        self._floor = NoiseFloor()
        self.rejected_samples = 0
        """Speech in the stretches that were rejected, since the process started."""
        self._phase = _Phase.IDLE
        self._before = _Phase.IDLE  # where it stood when the last stretch ended: a stretch that continues it goes on there
        self._held: deque[_Held] = deque()
        self._start = 0
        self._now = 0
        self._speech = 0  # in the stretch
        self._judged_at = 0  # so much speech was in it at the last verdict
        self._judged_again = False
        self._best: tuple[NearFieldMeasures, NearFieldLimits] | None = None  # of the verdicts on the stretch, the one nearest to its limits

    @property
    def held_from(self) -> int | None:
        """Audio from this sample on may belong to an utterance that is decided late; None where nothing is held back."""
        if self._phase is _Phase.JUDGING:
            return self._start
        return max(self._start, self._now - REACHES_BACK) if self._phase is _Phase.REJECTED else None

    def step(self, start: int, window: Samples, state: State, decisions: list[SpeechStarted | SpeechEnded]) -> list[Decision]:
        """The decisions that hold after a window; see ``Gate``."""
        self._now = start + len(window)
        if state is not State.QUIET and self._phase is not _Phase.ACCEPTED:
            self._hold(_Held(start, window, state in (State.STARTING, State.SPEAKING)))
        results = [result for decision in decisions for result in self._follow(decision)]
        if self._phase is _Phase.JUDGING:
            if self._speech >= JUDGED or self._now - self._start >= JUDGED_AT_MOST:
                results += self._judge(FIRST_MORE)
        elif self._phase is _Phase.REJECTED and self._speech >= self._judged_at + JUDGED_AGAIN:
            results += self._judge_again()
        if state is State.QUIET:
            self._forget_stretch()
            self._floor.accept(window)
        return results

    def end(self, decisions: list[SpeechEnded]) -> list[Decision]:
        """The decisions that hold at the end of the signal; see ``Gate``."""
        results = [result for decision in decisions for result in self._follow(decision)]
        self._phase = self._before = _Phase.IDLE
        self._forget_stretch()
        return results

    def _hold(self, window: _Held) -> None:
        self._held.append(window)
        self._speech += len(window.samples) * window.is_speech
        while self._held[0].start < self._now - HELD:
            self._held.popleft()

    def _forget_stretch(self) -> None:
        self._held.clear()
        self._speech = self._judged_at = 0
        self._judged_again = False
        self._best = None

    def _follow(self, decision: SpeechStarted | SpeechEnded) -> list[Decision]:
        if isinstance(decision, SpeechStarted):
            self._start = decision.start_sample
            self._phase = self._before if decision.continues else _Phase.JUDGING
            return [decision] if self._phase is _Phase.ACCEPTED else []
        results: list[Decision] = []
        if self._phase is _Phase.JUDGING:
            results = self._judge(0.0)
        elif self._phase is _Phase.REJECTED and not self._judged_again and decision.endpoint != "max_duration":
            results = self._judge_again()
        if self._phase is _Phase.ACCEPTED:
            results.append(decision)
        elif self._phase is _Phase.REJECTED:
            results.append(self._rejected(decision.end_sample))
        self._before, self._phase = self._phase, _Phase.IDLE
        return results

    def _judge(self, more: float) -> list[Decision]:
        """The first verdict on a stretch, for which it must be so much more direct than the limit."""
        if self._is_near(self._held, more):
            return [self._accept(self._start)]
        self._phase = _Phase.REJECTED
        return []

    def _judge_again(self) -> list[Decision]:
        """A verdict on the last speech of a rejected stretch."""
        assert self._best is not None  # noqa: S101 -- the first verdict set it
        self._judged_again = True
        rejected_dbfs, speech = self._best[0].level_dbfs, 0
        last = len(self._held)
        while last and speech < JUDGED_LONGER:
            last -= 1
            speech += len(self._held[last].samples) * self._held[last].is_speech
        held = list(self._held)[last:]
        if not self._is_near(held):
            return []
        assert self._best is not None  # noqa: S101 -- as above
        start = max(self._start, self._now - REACHES_BACK)
        if self._best[0].level_dbfs >= rejected_dbfs + NEW_VOICE_DB:
            loud = next(window.start for window in held if window.is_speech and _dbfs(window) >= rejected_dbfs + NEW_VOICE_DB)
            start = max(loud, self._start)
        results: list[Decision] = []
        if start > self._start:
            self._speech -= sum(len(window.samples) for window in self._held if window.is_speech and window.start >= start)
            results.append(self._rejected(start))
        return [*results, self._accept(start)]

    def _accept(self, start: int) -> SpeechStarted:
        assert self._best is not None  # noqa: S101 -- a verdict set it
        self._reference.learn(self._best[0])
        self._start, self._phase = start, _Phase.ACCEPTED
        self._forget_stretch()
        return SpeechStarted(start)

    def _rejected(self, end: int) -> SpeechRejected:
        """Count a rejected stretch that ends here; after a cut the next one goes on with the verdict."""
        assert self._best is not None  # noqa: S101 -- a verdict set it
        measures, limits = self._best
        self.rejected_samples += self._speech
        self._speech = self._judged_at = 0
        return SpeechRejected(self._start, end, measures, limits)

    def _is_near(self, held: Sequence[_Held], more: float = 0.0) -> bool:
        """The verdict on these windows, noted where none on the stretch came nearer to its limits."""
        self._judged_at = self._speech
        measures = self._measures(held)
        limits = self._reference.limits(measures.level_dbfs)
        limits = replace(limits, directness=limits.directness + more)
        margin = _margin(measures, limits)
        if self._best is None or margin > _margin(*self._best):
            self._best = measures, limits
        return margin >= 0

    def _measures(self, held: Sequence[_Held]) -> NearFieldMeasures:
        speech = [window for window in held if window.is_speech]
        if not speech:
            return NearFieldMeasures(QUIETEST_DBFS, decibels(self._floor.rms), 0.0)
        level = rms(np.concatenate([window.samples for window in speech]))
        until = speech[-1].start + len(speech[-1].samples) + DECAY
        samples = np.concatenate([window.samples for window in held if window.start < until])
        found = self._directness_of(samples, level**2, self._floor.powers) if len(samples) >= MIN_SAMPLES else 0.0
        return NearFieldMeasures(decibels(level), decibels(self._floor.rms), round(found, 2) if math.isfinite(found) else MOST_DIRECTNESS)


def _margin(measures: NearFieldMeasures, limits: NearFieldLimits) -> float:
    """How far speech is above both limits, one dB counting as much as one of directness; below 0 it is rejected."""
    return min(measures.level_dbfs - limits.level_dbfs, measures.directness - limits.directness)


def _dbfs(window: _Held) -> float:
    return decibels(rms(window.samples))
