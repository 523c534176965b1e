"""Foundation: audio as values, and the sample clock they live on.

Position in audio is an ``int`` sample index at 16 kHz. Index 0 is the first sample the process captured, the count never
restarts, and spans are half open. No I/O, no state, no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000
SAMPLES_PER_MS = SAMPLE_RATE_HZ // 1000

Samples = NDArray[np.float32]
"""float32, (num_samples,), nominally [-1, 1], 16 kHz mono."""
NO_SAMPLES: Samples = np.zeros(0, np.float32)


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
    squares = np.square(samples, dtype=np.float64)  # the square of 3e38 is beyond float32
    return math.sqrt(squares.sum() / samples.size)  # no vdot: BLAS wakes threads for more than 10,000 samples, which takes milliseconds


@dataclass(frozen=True, slots=True)
class AudioBlock:
    """What an input delivered, as it delivered it."""

    samples: NDArray[np.float32]
    """float32, (num_frames, num_channels), nominally [-1, 1], at ``rate_hz``. The receiver may keep it."""
    rate_hz: int
    """Frames per second of this block."""
    losses_before: int = 0
    """Number of losses that were reported to the ledger before this block was captured: their audio is missing before it."""
    captured_at: float | None = None
    """``clock_sec()`` at the first frame; None where the input is no live device."""
    read_at: float | None = None
    """``clock_sec()`` when a block of a stream was read, which may then wait; None of a live device, and of a file, read on demand."""

    @property
    def duration_sec(self) -> float:
        """Length of the samples in seconds."""
        return len(self.samples) / self.rate_hz

    def is_followed_by(self, later: AudioBlock) -> bool:
        """Whether a block that was captured next continues this one: nothing was lost between them."""
        return (self.rate_hz, self.losses_before) == (later.rate_hz, later.losses_before)

    def joined(self, later: AudioBlock) -> AudioBlock:
        """This block and the one that follows it as one; captured at this one's time."""
        return replace(self, samples=np.concatenate((self.samples, later.samples)))

    def split(self, at_sec: float) -> tuple[AudioBlock, AudioBlock]:
        """The part captured before ``at_sec`` on the capture clock, and the rest; either may be empty."""
        if self.captured_at is None:
            return replace(self, samples=self.samples[:0]), self
        frames = min(max(round((at_sec - self.captured_at) * self.rate_hz), 0), len(self.samples))
        rest_at = self.captured_at + frames / self.rate_hz
        return replace(self, samples=self.samples[:frames]), replace(self, samples=self.samples[frames:], captured_at=rest_at)


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """A piece of the one internal signal: 16 kHz mono. Audio is missing where it starts after the end of the chunk before it."""

    samples: Samples
    start_sample: int
    """Index of the first sample."""

    @property
    def end_sample(self) -> int:
        """Index after the last sample."""
        return self.start_sample + len(self.samples)
