"""The queue between the worker and the thread that writes stdout, so that a slow reader does not stop recognition.

Stage: output. Event -> line, in order.
State: the encoded events that wait, bounded in bytes. A newer partial replaces a queued one of its utterance. At the bound queued
partials are dropped; when only events that must not be lost are left, ``write`` waits for the reader. The microphone's queue then
overflows, and that loss is counted.
Thread: ``write``, ``check_reader`` and ``close`` on the worker thread; a daemon thread writes, so a reader that never reads again cannot
keep the process alive.
Raises: ``OutputGone``.

A reader is given up when it has taken no byte for ``stalled_sec``, and only when the service has to leave: after a stop was requested, or
in a ``close`` that is not patient. A reader that is slow, but takes bytes, gets everything.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from voice.errors import OutputGone
from voice.output.events import AnyEvent, PartialEvent
from voice.output.writer import EncodedEvent, EventWriter, encode

MAX_QUEUED_BYTES = 4 * 2**20
"""Bytes of encoded lines."""
STALLED_SEC = 3.0
_WAIT_SEC = 0.1


class EventSink(Protocol):
    """Where events go."""

    def write(self, event: AnyEvent) -> None:
        """Take an event; raises ``OutputGone`` where nobody will have it."""

    def check_reader(self) -> None:
        """Raises ``OutputGone`` when the reader has left."""


@dataclass(slots=True)
class _Queued:
    """An event that waits."""

    encoded: EncodedEvent
    utterance: str | None
    """Trace id of a partial's utterance; None for an event that must not be lost."""


class EventQueue:
    """The queue and its thread."""

    def __init__(
        self,
        writer: EventWriter,
        stop_requested: Callable[[], bool] = lambda: False,
        *,
        stalled_sec: float = STALLED_SEC,
        max_queued_bytes: int = MAX_QUEUED_BYTES,
    ) -> None:
        """Start the thread.

        Args:
            writer: where events go; the queue is its only user from now on.
            stop_requested: whether the service was asked to stop; called on the worker thread while it waits for the reader.
            stalled_sec: a reader that takes no byte for this many seconds is given up, where the service has to leave.
            max_queued_bytes: the bound.
        """
        self._writer = writer
        self._stop_requested = stop_requested
        self._stalled_sec = stalled_sec
        self._max_queued_bytes = max_queued_bytes
        self._queue: deque[_Queued] = deque()
        self._queued_bytes = 0
        self._writing = False
        self._failure: OutputGone | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="writer", daemon=True).start()

    @property
    def num_lines(self) -> int:
        """Lines written so far: the last ``seq``."""
        return self._writer.num_lines

    def write(self, event: AnyEvent) -> None:
        """Queue an event; returns at once while there is room.

        Raises:
            OutputGone: the reader left, or a full queue was given up after a stop.
        """
        queued = _Queued(encode(event), event.trace_id if isinstance(event, PartialEvent) else None)
        with self._changed:
            if queued.utterance and self._replace(queued):
                return
            stall = _Stall(self._writer)
            while not self._failure and self._queue and self._queued_bytes + queued.encoded.size_bytes > self._max_queued_bytes:
                if self._drop_partials():
                    continue
                if queued.utterance:
                    return  # the next partial, or the final, repeats its text
                self._wait(stall, patient=True, num_undelivered=len(self._queue) + self._writing + 1)
            self._check()
            self._queue.append(queued)
            self._queued_bytes += queued.encoded.size_bytes
            self._changed.notify_all()

    def check_reader(self) -> None:
        """Notice a reader that left, without writing.

        Raises:
            OutputGone: the other end of the pipe is closed, or a write failed.
        """
        self._check()
        self._writer.check_reader()

    def close(self, *, patient: bool = False) -> None:
        """Wait until everything is written.

        Args:
            patient: wait as long as the reader lives, until a stop is requested. Otherwise, and after a stop, a reader that takes no
                byte for ``stalled_sec`` is given up.

        Raises:
            OutputGone: it could not be written, or the reader was given up.
        """
        with self._changed:
            stall = _Stall(self._writer)
            while not self._failure and (self._queue or self._writing):
                self._wait(stall, patient=patient, num_undelivered=len(self._queue) + self._writing)
            self._check()

    def _check(self) -> None:
        if self._failure:
            raise self._failure

    def _wait(self, stall: _Stall, *, patient: bool, num_undelivered: int) -> None:
        """Wait a moment for the reader, or give it up."""
        if patient and not self._stop_requested():
            stall.restart()
        elif stall.seconds() > self._stalled_sec:
            raise OutputGone(f"stdout was not read for {self._stalled_sec:g} s; {num_undelivered} events were not delivered")
        self._changed.wait(_WAIT_SEC)

    def _replace(self, newer: _Queued) -> bool:
        """Replace a queued partial by a newer one of its utterance; False where there is none."""
        for queued in self._queue:
            if queued.utterance == newer.utterance:
                self._queued_bytes += newer.encoded.size_bytes - queued.encoded.size_bytes
                queued.encoded = newer.encoded
                return True
        return False

    def _drop_partials(self) -> bool:
        """Drop the queued partials; False where there were none."""
        kept = deque(queued for queued in self._queue if queued.utterance is None)
        dropped = len(kept) < len(self._queue)
        self._queue, self._queued_bytes = kept, sum(queued.encoded.size_bytes for queued in kept)
        return dropped

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    self._changed.wait()
                queued = self._queue.popleft()
                self._queued_bytes -= queued.encoded.size_bytes
                self._writing = True
            try:
                self._writer.write_encoded(queued.encoded)
            except OutputGone as error:
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._writing = False
                self._changed.notify_all()


class _Stall:
    """Measures for how many seconds the reader has taken no byte, from its construction on."""

    def __init__(self, writer: EventWriter) -> None:
        self._writer = writer
        self.restart()

    def restart(self) -> None:
        self._progress, self._since = self._writer.progress(), time.monotonic()

    def seconds(self) -> float:
        if self._writer.progress() != self._progress:
            self.restart()
        return time.monotonic() - self._since
