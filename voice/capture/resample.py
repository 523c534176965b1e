"""Any rate and channel count -> the one internal signal.

``AudioBlock`` -> ``AudioChunk`` (float32, 16 kHz mono, running sample index). It holds the filter history of the current piece of
audio without a gap, and the index; at a gap or a change of rate the filter is flushed, its output made to fit the index, and
renewed. Runs on the worker thread. Raises ``InputUnreadable``.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import soxr

from voice.audio import SAMPLE_RATE_HZ, AudioBlock, AudioChunk, Samples
from voice.errors import InputUnreadable

Channel = int | Literal["mix"]

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

    def accept(self, block: AudioBlock) -> list[AudioChunk]:
        """Convert a block. The first chunk after a loss carries it; samples that were not finite become 0 and are counted."""
        chunks = []
        if block.lost_frames or block.rate_hz != self._rate_hz:
            chunks = self.flush()
            lost = round(block.lost_frames * SAMPLE_RATE_HZ / block.rate_hz)
            self._begin_piece(block.rate_hz, lost)
        else:
            lost = 0
        mono, non_finite = self._mono(block)
        self._frames_in += len(mono)
        out = mono if self._filter is None else self._filter.resample_chunk(mono)
        if len(out) or lost or non_finite:
            chunks.append(self._chunk(out, lost, non_finite, loss_announced=block.loss_announced))
        return chunks

    def flush(self) -> list[AudioChunk]:
        """What the filter still holds. The piece then has exactly as many samples as its frames are long."""
        if self._filter is None:
            return []
        out = self._filter.resample_chunk(_NO_SAMPLES, last=True)
        missing = round(self._frames_in * SAMPLE_RATE_HZ / self._rate_hz) - self._samples_out
        out = np.pad(out, (0, max(0, missing - len(out))))[:missing]
        chunks = [self._chunk(out, 0, 0)] if missing > 0 else []
        self._begin_piece(self._rate_hz, 0)
        return chunks

    def _begin_piece(self, rate_hz: int, lost_samples: int) -> None:
        self._piece_start += self._samples_out + lost_samples
        self._rate_hz, self._frames_in, self._samples_out = rate_hz, 0, 0
        self._filter = None if rate_hz == SAMPLE_RATE_HZ else soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32")

    def _chunk(self, samples: Samples, lost: int, non_finite: int, *, loss_announced: bool = False) -> AudioChunk:
        chunk = AudioChunk(samples, self._piece_start + self._samples_out, lost, loss_announced, non_finite)
        self._samples_out += len(samples)
        return chunk

    def _mono(self, block: AudioBlock) -> tuple[Samples, int]:
        num_channels = block.samples.shape[1]
        if self._channel == "mix":
            frames = block.samples
        elif self._channel < num_channels:
            frames = block.samples[:, self._channel : self._channel + 1]
        else:
            raise InputUnreadable(f"audio.channel is {self._channel}, but the input has {num_channels} channel(s), counted from 0")
        finite = np.isfinite(frames)
        non_finite = int(frames.size - np.count_nonzero(finite))
        if non_finite:
            frames = np.where(finite, frames, np.float32(0))
        mono = frames[:, 0] if frames.shape[1] == 1 else frames.mean(axis=1, dtype=np.float32)
        return np.ascontiguousarray(mono, dtype=np.float32), non_finite
