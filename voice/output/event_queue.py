"""Between the worker and a reader that may be slow: events wait here, not the worker.

Bounded in bytes. A newer partial takes the place of a queued one of its utterance; at the bound queued partials are dropped; when only
what must not be lost is left, ``write`` waits for the reader, the microphone's queue then overflows, and that loss is counted. One
thread writes. It dies with the process: a reader that never reads again does not hold it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from voice.errors import OutputGone
from voice.output.events import AnyEvent, PartialEvent
from voice.output.writer import EventWriter, encode

MAX_QUEUED_BYTES = 4 * 2**20
"""Of lines; in memory their fields take more."""
_WAIT_SEC = 0.1


@dataclass(slots=True)
class _Queued:
    """A line to be."""

    fields: dict[str, Any]
    size: int
    utterance: str | None
    """Trace id of a partial's utterance; None for what must not be lost."""


class EventQueue:
    """The queue and its thread."""

    def __init__(self, writer: EventWriter, gives_up: Callable[[], bool] = lambda: False, max_queued_bytes: int = MAX_QUEUED_BYTES) -> None:
        """Write to ``writer``, which is this queue's from now on; a full queue waits for the reader until ``gives_up()``."""
        self._writer = writer
        self._gives_up = gives_up
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
        """Have a line written; returns at once while there is room.

        Raises:
            OutputGone: nobody reads any more, or a full queue was given up.
        """
        fields = event.model_dump()
        queued = _Queued(fields, len(encode(fields)), event.trace_id if isinstance(event, PartialEvent) else None)
        with self._changed:
            if queued.utterance and self._replace(queued):
                return
            while not self._failure and self._queue and self._queued_bytes + queued.size > self._max_queued_bytes:
                if self._drop_partials():
                    continue
                if queued.utterance:
                    return  # the next partial, or the final, says what this one says
                if self._gives_up():
                    raise OutputGone(f"stdout was not read; {len(self._queue) + 1} events were not delivered")
                self._changed.wait(_WAIT_SEC)
            self._check()
            self._queue.append(queued)
            self._queued_bytes += queued.size
            self._changed.notify_all()

    def check_reader(self) -> None:
        """Notice a reader that left, without writing.

        Raises:
            OutputGone: the other end of the pipe is closed, or a write failed.
        """
        self._check()
        self._writer.check_reader()

    def close(self, timeout_sec: float) -> None:
        """Wait until everything is written.

        Raises:
            OutputGone: it could not be written, or not in time.
        """
        deadline = time.monotonic() + timeout_sec
        with self._changed:
            while not self._failure and (self._queue or self._writing) and time.monotonic() < deadline:
                self._changed.wait(_WAIT_SEC)
            self._check()
            undelivered = len(self._queue) + self._writing
        if undelivered:
            raise OutputGone(f"stdout was not read for {timeout_sec:g} s; {undelivered} events were not delivered")

    def _check(self) -> None:
        if self._failure:
            raise self._failure

    def _replace(self, newer: _Queued) -> bool:
        """Put a partial in the place of a queued one of its utterance."""
        for queued in self._queue:
            if queued.utterance == newer.utterance:
                self._queued_bytes += newer.size - queued.size
                queued.fields, queued.size = newer.fields, newer.size
                return True
        return False

    def _drop_partials(self) -> bool:
        """Make room; False where there was nothing to drop."""
        kept = deque(queued for queued in self._queue if queued.utterance is None)
        dropped = len(kept) < len(self._queue)
        self._queue, self._queued_bytes = kept, sum(queued.size for queued in kept)
        return dropped

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    self._changed.wait()
                queued = self._queue.popleft()
                self._queued_bytes -= queued.size
                self._writing = True
            try:
                self._writer.write_fields(queued.fields)
            except OutputGone as error:
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._writing = False
                self._changed.notify_all()
