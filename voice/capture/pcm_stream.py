"""Raw PCM on a descriptor (signed 16 bit little-endian mono) -> ``AudioBlock``.

Stage: capture. State: the bytes of a sample that is not whole yet, and a queue of blocks.
Thread: a daemon thread reads the descriptor, so that the worker can answer signals while the pipe is silent; ``read`` and ``close`` are
called on the worker thread. The reading thread waits while the worker is behind, and then so does the program that writes the pipe:
nothing is dropped.
Raises: ``InputUnreadable``, also for a stream that begins with the header of an audio file.
"""

from __future__ import annotations

import os
import queue
import select
import threading

import numpy as np
import structlog

from voice.audio import AudioBlock
from voice.capture.container import MAX_HEADER_BYTES, container_of, is_undecided
from voice.capture.source import AudioFormat
from voice.errors import InputUnreadable, describe
from voice.process.clock import clock_sec

_BLOCK_SEC = 0.1
_QUEUED_BLOCKS = 20
_CLOSE_SEC = 0.5

log = structlog.get_logger()


class PcmStream:
    """A stream of samples that is being read."""

    recovers = False

    waiting_sec = 0.0

    def __init__(self, file_descriptor: int, rate_hz: int) -> None:
        self.ended = False
        self.format = AudioFormat("stdin", rate_hz, 1)
        self._rate_hz = rate_hz
        self._file_descriptor = file_descriptor
        self._closing = threading.Event()
        self._blocks: queue.Queue[AudioBlock | InputUnreadable | None] = queue.Queue()
        self._places = threading.Semaphore(_QUEUED_BLOCKS)
        if os.isatty(file_descriptor):
            raise InputUnreadable("stdin is a terminal, not a stream of s16le PCM samples")
        self._thread = threading.Thread(target=self._run, name="pcm-reader", daemon=True)
        self._thread.start()

    def read(self, timeout_sec: float, gather_sec: float = 0.0) -> AudioBlock | None:
        """The next block of up to 0.1 s; None when none came in time or the stream ended."""
        del gather_sec
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
        """Stop reading; blocks that were read can still be taken. The thread is a daemon: a silent pipe does not delay the exit."""
        self._closing.set()
        self._thread.join(_CLOSE_SEC)  # it may hold a block
        self.ended = True

    def _run(self) -> None:
        last: InputUnreadable | None = None
        try:
            self._read_blocks()
        except InputUnreadable as error:
            last = error
        except OSError as error:
            last = InputUnreadable(f"stdin cannot be read: {describe(error)}")
        self._put(last)

    def _read_blocks(self) -> None:
        """Read until the end of the stream or ``close``."""
        num_bytes = 2 * round(self._rate_hz * _BLOCK_SEC)
        data = self._read_start()
        while data:
            whole = len(data) // 2 * 2
            if whole:
                self._put(AudioBlock(_decode(data[:whole]), self._rate_hz, read_at=clock_sec()))
            if self._closing.is_set():
                return
            odd = data[whole:]
            more = self._read_bytes(num_bytes - len(odd))
            if odd and not more:
                log.warning("odd_pcm_byte_ignored", hint="the stream ended inside a 16 bit sample")
            data = odd + more if more else b""

    def _read_start(self) -> bytes:
        """The first bytes, as many as it takes to see that they are no header of an audio file."""
        start = b""
        while more := self._read_bytes(MAX_HEADER_BYTES):
            start += more
            if container := container_of(start):
                convert = f"ffmpeg -loglevel error -i FILE -f s16le -ac 1 -ar {self._rate_hz} - | ... --input -"
                raise InputUnreadable(
                    f"stdin holds a {container} file, not raw s16le PCM samples; use --input FILE, or convert it: {convert}"
                )
            if not is_undecided(start):
                break
        return start

    def _read_bytes(self, max_bytes: int) -> bytes:
        """Read what there is, at least one byte; none at the end. A descriptor that does not block is waited for."""
        while True:
            try:
                return os.read(self._file_descriptor, max_bytes)
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._file_descriptor, select.POLLIN)
                poll.poll()

    def _put(self, item: AudioBlock | InputUnreadable | None) -> None:
        """Queue a block; wait for a free place, except while the stream is being closed."""
        while not self._places.acquire(timeout=_CLOSE_SEC / 10) and not self._closing.is_set():
            pass
        self._blocks.put(item)


def _decode(data: bytes) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return (np.frombuffer(data, "<i2").astype(np.float32) / 32768.0)[:, np.newaxis]
