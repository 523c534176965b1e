"""Any rate and channel count -> the one internal signal.

``AudioBlock`` -> ``AudioChunk`` (float32, 16 kHz mono, finite, running sample index). It owns the sample index, and the filter history of
the current piece of audio without a gap. At a gap (``skip``) or a change of rate the filter is flushed, its output made to fit the index,
and renewed. Worker thread. Raises ``InputUnreadable`` for a channel that the input does not have.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import soxr

from voice.audio import SAMPLE_RATE_HZ, AudioBlock, AudioChunk, Samples
from voice.errors import InputUnreadable

Channel = int | Literal["mix"]

CLIP = np.float32(8.0)
"""Samples beyond this are clipped. It is 18 dB above full scale, more than any recording needs; values such as 3e38 would overflow in the
channels' mean, in the filter and in the voice activity network."""
_NO_SAMPLES: Samples = np.zeros(0, np.float32)


class Resampler:
    """Owner of the sample index."""

    def __init__(self, channel: Channel) -> None:
        """Take ``channel`` of every frame, counted from 0, or the mean of all (``mix``)."""
        self._channel = channel
        self._rate_hz = SAMPLE_RATE_HZ
        self._filter: soxr.ResampleStream | None = None
        self._frames_in = 0  # of the current piece, at its rate
        self._samples_out = 0  # of the current piece, at 16 kHz
        self._piece_start = 0
        self.non_finite_samples = 0
        """Input values so far that were not finite and became 0."""
        self.clipped_samples = 0
        """Input values so far that were beyond ``CLIP`` and were clipped to it."""

    @property
    def next_sample(self) -> int:
        """Index of the next sample that comes out."""
        return self._piece_start + self._samples_out

    @property
    def accepted_until(self) -> int:
        """Index after the last sample that was accepted; the filter may still hold some of them."""
        return self._piece_start + round(self._frames_in * SAMPLE_RATE_HZ / self._rate_hz)

    def accept(self, block: AudioBlock) -> list[AudioChunk]:
        """Convert a block."""
        chunks = []
        if block.rate_hz != self._rate_hz:
            chunks = self.flush()
            self._begin_piece(block.rate_hz)
        mono = self._mono(block)
        self._frames_in += len(mono)
        out = mono if self._filter is None else self._filter.resample_chunk(mono)
        return chunks + self._chunks(out)

    def flush(self) -> list[AudioChunk]:
        """What the filter still holds. The piece then has exactly as many samples as its frames are long."""
        if self._filter is None:
            return []
        out = self._filter.resample_chunk(_NO_SAMPLES, last=True)
        missing = max(self.accepted_until - self.next_sample, 0)
        chunks = self._chunks(np.pad(out, (0, max(0, missing - len(out))))[:missing])
        self._begin_piece(self._rate_hz)
        return chunks

    def skip(self, num_samples: int) -> None:
        """Move the index over audio that is missing; called after ``flush``."""
        self._piece_start += num_samples

    def restart(self, at_sample: int) -> int:
        """Go on at ``at_sample`` without what the filter holds, after an exception; so many samples are missing now."""
        missing = max(at_sample - self.next_sample, 0)
        self._begin_piece(self._rate_hz)
        self.skip(missing)
        return missing

    def _begin_piece(self, rate_hz: int) -> None:
        self._piece_start = self.next_sample
        self._rate_hz, self._frames_in, self._samples_out = rate_hz, 0, 0
        self._filter = None if rate_hz == SAMPLE_RATE_HZ else soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32")

    def _chunks(self, samples: Samples) -> list[AudioChunk]:
        if not len(samples):
            return []
        chunk = AudioChunk(samples, self.next_sample)
        self._samples_out += len(samples)
        return [chunk]

    def _mono(self, block: AudioBlock) -> Samples:
        num_channels = block.samples.shape[1]
        if self._channel == "mix":
            frames = block.samples
        elif self._channel < num_channels:
            frames = block.samples[:, self._channel : self._channel + 1]
        else:
            raise InputUnreadable(f"audio.channel is {self._channel}, but the input has {num_channels} channel(s), counted from 0")
        frames = self._bounded(frames)
        return np.ascontiguousarray(frames[:, 0] if frames.shape[1] == 1 else _mean(frames), dtype=np.float32)

    def _bounded(self, frames: Samples) -> Samples:
        """Finite values within ``CLIP``; what had to be changed is counted."""
        within = np.abs(frames) <= CLIP  # False for NaN too
        outside = frames.size - np.count_nonzero(within)
        if not outside:
            return frames
        finite = np.isfinite(frames)
        non_finite = int(frames.size - np.count_nonzero(finite))
        self.non_finite_samples += non_finite
        self.clipped_samples += int(outside) - non_finite
        return np.where(finite, frames, np.float32(0)).clip(-CLIP, CLIP)


def _mean(frames: Samples) -> Samples:
    """Mean of all channels. ``frames.mean(axis=1)`` gives the same and takes 15 times as long where there are two."""
    mono: Samples = frames[:, 0].copy()
    for channel in range(1, frames.shape[1]):
        mono += frames[:, channel]
    mono /= frames.shape[1]
    return mono
