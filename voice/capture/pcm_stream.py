"""Raw PCM on a pipe -> ``AudioBlock``: signed 16 bit little-endian mono.

A thread of its own reads the pipe, so that the worker can answer signals; it stops reading while the worker is behind (nothing is ever
dropped, the writer of the pipe waits). Holds an odd byte until its other half comes.
"""

from __future__ import annotations

import os
import queue
import threading

import numpy as np
import structlog

from voice.audio import AudioBlock
from voice.errors import InputUnreadable, describe

_BLOCK_SEC = 0.1
_QUEUED_BLOCKS = 20
_CLOSE_SEC = 0.5

log = structlog.get_logger()


class PcmStream:
    """A pipe that is being read."""

    recovers = False

    waiting_sec = 0.0

    def __init__(self, file_descriptor: int, rate_hz: int) -> None:
        self.ended = False
        self._rate_hz = rate_hz
        self._file_descriptor = file_descriptor
        self._closing = threading.Event()
        self._blocks: queue.Queue[AudioBlock | InputUnreadable | None] = queue.Queue()
        self._places = threading.Semaphore(_QUEUED_BLOCKS)
        if os.isatty(file_descriptor):
            raise InputUnreadable("stdin is a terminal, not a stream of s16le PCM samples")
        self._thread = threading.Thread(target=self._read_pipe, name="pcm-reader", daemon=True)
        self._thread.start()

    def read(self, timeout_sec: float) -> AudioBlock | None:
        """The next block of up to 0.1 s; None when none came in time or the pipe was closed."""
        try:
            item = self._blocks.get(timeout=timeout_sec) if timeout_sec > 0 else self._blocks.get_nowait()
        except queue.Empty:
            return None
        self._places.release()
        if isinstance(item, AudioBlock):
            return item
        self.ended = True
        if item is not None:
            raise item
        return None

    def close(self) -> None:
        """Read no more; what was read waits for ``read``. The thread is a daemon: a silent pipe holds nobody up."""
        self._closing.set()
        self._thread.join(_CLOSE_SEC)  # for the block it may hold
        self.ended = True

    def _read_pipe(self) -> None:
        num_bytes = 2 * round(self._rate_hz * _BLOCK_SEC)
        odd = b""
        last: InputUnreadable | None = None
        try:
            while data := os.read(self._file_descriptor, num_bytes - len(odd)):
                data = odd + data
                whole = len(data) // 2 * 2
                odd = data[whole:]
                if whole:
                    self._put(AudioBlock(_decode(data[:whole]), self._rate_hz))
                if self._closing.is_set():
                    return
        except OSError as error:
            last = InputUnreadable(f"stdin cannot be read: {describe(error)}")
        if odd:
            log.warning("odd_pcm_byte_ignored", hint="the stream ended inside a 16 bit sample")
        self._put(last)

    def _put(self, item: AudioBlock | InputUnreadable | None) -> None:
        """Wait for a free place; what was read when the stream is closed goes in all the same."""
        while not self._places.acquire(timeout=_CLOSE_SEC / 10) and not self._closing.is_set():
            pass
        self._blocks.put(item)


def _decode(data: bytes) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return (np.frombuffer(data, "<i2").astype(np.float32) / 32768.0)[:, np.newaxis]
