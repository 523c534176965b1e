"""The internal signal cut into windows of equal length, and the audio that may still be needed.

``AudioChunk`` -> windows for the voice activity model. ``WindowBuffer`` holds the samples of the unfinished window, ``AudioHistory`` past
windows; positions come from the chunks' own sample index. Worker thread. Raises nothing.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from voice.audio import AudioChunk, Samples


class WindowBuffer:
    """Samples that do not fill a window yet."""

    def __init__(self, window_samples: int) -> None:
        self._size = window_samples
        self._samples: Samples = np.zeros(0, np.float32)
        self.start = 0
        """Index of the first sample of the next window."""

    @property
    def end(self) -> int:
        """Index after the last sample in the buffer."""
        return self.start + len(self._samples)

    @property
    def whole_windows(self) -> Samples:
        """The windows that ``take_window`` will give now, in one piece."""
        return self._samples[: len(self._samples) // self._size * self._size]

    def append(self, chunk: AudioChunk) -> None:
        """Add a chunk. What is missing between it and the audio before becomes zeros."""
        missing = chunk.start_sample - self.end
        zeros = (np.zeros(missing, np.float32),) if missing else ()
        self._samples = np.concatenate((self._samples, *zeros, chunk.samples))

    def take_window(self) -> Samples | None:
        """The next whole window, if there is one."""
        return self._take(self._size) if len(self._samples) >= self._size else None

    def take_rest(self) -> Samples:
        """All samples; fewer than a window where ``take_window`` gives none."""
        return self._take(len(self._samples))

    def move_to(self, sample: int) -> None:
        """Go on at ``sample``, which lies after a gap; the buffer is empty."""
        self._samples, self.start = self._samples[:0], sample

    def _take(self, num_samples: int) -> Samples:
        taken, self._samples = self._samples[:num_samples], self._samples[num_samples:]
        self.start += num_samples
        return taken


class AudioHistory:
    """Past audio, in pieces. Its owner bounds it with ``forget_before``."""

    def __init__(self) -> None:
        self._pieces: deque[tuple[int, Samples]] = deque()

    def append(self, start: int, samples: Samples) -> None:
        """Add the piece that begins at sample ``start``."""
        self._pieces.append((start, samples))

    def slice(self, start: int, end: int) -> Samples:
        """Samples from ``start`` to before ``end``, a copy; audio that is missing between pieces is left out."""
        parts = [piece[max(start - at, 0) : max(end - at, 0)] for at, piece in self._pieces if at < end and at + len(piece) > start]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def extract(self, start: int, end: int) -> AudioHistory:
        """The audio from ``start`` to before ``end``, as a history of its own."""
        extracted = AudioHistory()
        for at, piece in self._pieces:
            part = piece[max(start - at, 0) : max(end - at, 0)]
            if len(part):
                extracted.append(max(start, at), part.copy())
        return extracted

    def forget_before(self, sample: int) -> None:
        """Drop whole pieces that end before ``sample``."""
        while self._pieces and self._pieces[0][0] + len(self._pieces[0][1]) <= sample:
            self._pieces.popleft()

    @property
    def num_samples(self) -> int:
        """Samples held."""
        return sum(len(samples) for _, samples in self._pieces)
