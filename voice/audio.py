"""Foundation: audio as values, and the sample clock they live on.

Position in audio is an ``int`` sample index at 16 kHz. Index 0 is the first sample the process captured, the count never
restarts, and spans are half open. No I/O, no state, no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000
SAMPLES_PER_MS = SAMPLE_RATE_HZ // 1000

Samples = NDArray[np.float32]
"""float32, (num_samples,), nominally [-1, 1], 16 kHz mono."""


def ms_to_samples(milliseconds: float) -> int:
    """Length in samples at 16 kHz, rounded to the nearest."""
    return round(milliseconds * SAMPLES_PER_MS)


def samples_to_ms(num_samples: int) -> int:
    """Milliseconds of a sample index or length at 16 kHz, rounded down so that equal samples give equal times."""
    return num_samples // SAMPLES_PER_MS


def rms(samples: Samples) -> float:
    """Root mean square of the samples, 0.0 for none."""
    if samples.size == 0:
        return 0.0
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


@dataclass(frozen=True, slots=True)
class AudioBlock:
    """What an input delivered, as it delivered it."""

    samples: NDArray[np.float32]
    """float32, (num_frames, num_channels), nominally [-1, 1], at ``rate_hz``. The receiver may keep it."""
    rate_hz: int
    """Frames per second of this block."""
    lost_frames: int = 0
    """Frames at ``rate_hz`` that the input lost directly before this block."""
    loss_announced: bool = False
    """The input raised an error when the loss began: it needs no second one."""
    lost_earlier_frames: int = 0
    """Frames that the input lost some seconds before this block, as turned out only now."""

    @property
    def duration_sec(self) -> float:
        """Length of the samples in seconds, what was lost before them not counted."""
        return len(self.samples) / self.rate_hz


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """A piece of the one internal signal: 16 kHz mono."""

    samples: Samples
    start_sample: int
    """Index of the first sample; what was lost before it is already counted in."""
    lost_samples: int = 0
    """Samples lost directly before this chunk: the previous chunk ended at ``start_sample - lost_samples``."""
    loss_announced: bool = False
    """As of the block."""
    non_finite_samples: int = 0
    """Input values that were not finite and became 0."""

    @property
    def end_sample(self) -> int:
        """Index after the last sample."""
        return self.start_sample + len(self.samples)
