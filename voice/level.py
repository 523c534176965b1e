"""How loud audio is, and what a microphone's level gives away: nothing but zeros, or samples at full scale.

Samples -> ``Level``; blocks of a live device -> levels at an interval, and problems that are reported once until they are over. Pure
arithmetic; ``LevelMonitor`` holds what was measured since its last report. Worker thread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voice.audio import AudioBlock, rms
from voice.errors import ErrorCode

FULL_SCALE = 0.999
"""Samples from here on are clipped: the largest of 16 bit is 0.99997."""
QUIETEST_DBFS, LOUDEST_DBFS = -120.0, 60.0
"""What lies beyond is reported as these: silence, and values that no recording holds."""
_LATER_SILENT_SEC = 60.0
"""A device that was heard before: headsets and filters that suppress noise give zeros between sentences, too."""
_CLIPPED_RATIO = 0.01
"""Of the samples of one second; beyond it speech is distorted so that it is recognised worse."""
_UNCLIPPED_SEC = 10.0
_MEASURED_SEC = 1.0


@dataclass(frozen=True, slots=True)
class Level:
    """Of a stretch of audio; full scale is a sample of 1."""

    rms_dbfs: float
    """Root mean square, dB relative to full scale."""
    peak_dbfs: float
    """The largest sample, dB relative to full scale."""
    clipped_ratio: float
    """Share of samples at full scale, 0..1."""


SILENCE = Level(QUIETEST_DBFS, QUIETEST_DBFS, 0.0)


@dataclass(frozen=True, slots=True)
class LevelProblem:
    """Something that a person has to set right."""

    code: ErrorCode
    message: str


def level_of(samples: NDArray[np.float32]) -> Level:
    """The level of samples of any shape; of none it is that of silence."""
    return _Measure.of(samples, 0.0).level


def decibels(amplitude: float) -> float:
    """An amplitude relative to full scale in dB, with one decimal, from ``QUIETEST_DBFS`` to ``LOUDEST_DBFS``."""
    return min(max(round(20 * math.log10(amplitude), 1), QUIETEST_DBFS), LOUDEST_DBFS) if amplitude > 0 else QUIETEST_DBFS


class LevelMonitor:
    """Measures the blocks of a live device as they were captured, before they are resampled."""

    def __init__(self, interval_sec: float, silent_sec: float) -> None:
        """Measure from the first block on.

        Args:
            interval_sec: report a level every so many seconds of audio; 0 never, and problems all the same.
            silent_sec: nothing but zeros for so long at the start is a problem; 0 never. Later it takes longer, twice each time.
        """
        self._interval_sec = interval_sec
        self._patience_sec = silent_sec
        self._reported = _Measure()
        self._second = _Measure()
        self._zeros_sec = self._unclipped_sec = 0.0
        self._silent = self._clipping = False

    def accept(self, block: AudioBlock) -> list[Level | LevelProblem]:
        """What a block gives reason to say."""
        measure = _Measure.of(block.samples, block.duration_sec)
        found: list[Level | LevelProblem] = [*self._silence(measure), *self._clipped(measure)]
        self._reported += measure
        if 0 < self._interval_sec <= self._reported.seconds:
            found.append(self._reported.level)
            self._reported = _Measure()
        return found

    def _silence(self, measure: _Measure) -> list[LevelProblem]:
        if self._patience_sec == 0:
            return []
        if measure.peak > 0:
            self._patience_sec = max(2 * self._patience_sec if self._silent else self._patience_sec, _LATER_SILENT_SEC)
            self._zeros_sec, self._silent = 0.0, False
            return []
        self._zeros_sec += measure.seconds
        if self._silent or self._zeros_sec < self._patience_sec:
            return []
        self._silent = True
        remedy = "it is muted or switched off: unmute it (pactl set-source-mute @DEFAULT_SOURCE@ 0), or choose another (--device)"
        what = f"the microphone has given nothing but zeros for {self._patience_sec:g} s"
        return [LevelProblem("audio_silent", f"AudioSilent: {what}; {remedy}")]

    def _clipped(self, measure: _Measure) -> list[LevelProblem]:
        self._second += measure
        if self._second.seconds < _MEASURED_SEC:
            return []
        second, self._second = self._second, _Measure()
        ratio = second.level.clipped_ratio
        self._unclipped_sec = 0.0 if second.num_clipped else self._unclipped_sec + second.seconds
        if self._clipping:
            self._clipping = self._unclipped_sec < _UNCLIPPED_SEC
        elif ratio > _CLIPPED_RATIO:
            self._clipping = True
            remedy = "lower the microphone's gain (pactl set-source-volume @DEFAULT_SOURCE@ 60%), or move away from it"
            return [LevelProblem("audio_clipping", f"AudioClipping: {ratio:.0%} of the samples of a second are at full scale; {remedy}")]
        return []


@dataclass(frozen=True, slots=True)
class _Measure:
    """Sums over some audio, from which its level follows."""

    seconds: float = 0.0
    num_samples: int = 0
    energy: float = 0.0
    peak: float = 0.0
    num_clipped: int = 0

    @classmethod
    def of(cls, samples: NDArray[np.float32], seconds: float) -> _Measure:
        """Of samples of any shape; a value that is not finite counts as 0."""
        finite = samples if np.isfinite(samples).all() else np.nan_to_num(samples, posinf=0.0, neginf=0.0)
        magnitude = np.abs(finite)
        peak = float(magnitude.max(initial=0.0))
        num_clipped = int(np.count_nonzero(magnitude >= FULL_SCALE)) if peak >= FULL_SCALE else 0
        return cls(seconds, finite.size, rms(finite.reshape(-1)) ** 2 * finite.size, peak, num_clipped)

    def __add__(self, other: _Measure) -> _Measure:
        return _Measure(
            self.seconds + other.seconds,
            self.num_samples + other.num_samples,
            self.energy + other.energy,
            max(self.peak, other.peak),
            self.num_clipped + other.num_clipped,
        )

    @property
    def level(self) -> Level:
        """The level."""
        count = max(self.num_samples, 1)
        return Level(decibels(math.sqrt(self.energy / count)), decibels(self.peak), self.num_clipped / count)
