"""Keeps a stderr that nobody reads, or that has no room, from stopping the process.

A parent that spawns the service and never reads its stderr fills that pipe within minutes; whoever writes to it then waits for ever: the
log, a library's ``print``, C code. On a full disk such a ``print`` raises. So descriptor 2 becomes a pipe of our own, unless it is a
terminal. One thread always reads it, a second writes what there is room for; lines beyond the bound are dropped, and their number is
written when there is room again. A crash in C code reaches the real stderr directly (``faulthandler``).
"""

from __future__ import annotations

import enum
import errno
import faulthandler
import os
import select
import sys
import threading
import time
from collections import deque

MAX_WAITING_BYTES = 2**20
_CHUNK_BYTES = 65_536
_WAIT_SEC = 0.1
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class StderrPump:
    """From our own pipe to the descriptor that was stderr."""

    def __init__(self, source: int, target: int, descriptors: tuple[int, ...] = (), max_waiting_bytes: int = MAX_WAITING_BYTES) -> None:
        """Hand on what is written to ``descriptors`` and arrives at ``source`` to ``target``; both are the pump's from now on."""
        self._source = source
        self.target = target
        self.descriptors = descriptors
        self._max_waiting_bytes = max_waiting_bytes
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = self._dropped_lines = 0
        self._in_line = self._dropping = False
        self._ended = self._writing = self._gone = False
        self._changed = threading.Condition()
        for work in (self._take, self._hand_on):
            threading.Thread(target=work, name=f"stderr-{work.__name__.strip('_')}", daemon=True).start()

    def drain(self, timeout_sec: float) -> None:
        """Wait until everything that arrived was handed on; after a while, until nobody will."""
        deadline = time.monotonic() + timeout_sec
        with self._changed:
            while not self._gone and (not self._ended or self._waiting or self._writing) and time.monotonic() < deadline:
                self._changed.wait(_WAIT_SEC)

    def _take(self) -> None:
        """Never waits for a reader: whoever writes to stderr never does."""
        while data := os.read(self._source, _CHUNK_BYTES):
            with self._changed:
                for line in data.splitlines(keepends=True):
                    self._add(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _add(self, piece: bytes) -> None:
        """Keep a line, or a part of one that did not come at once; of a line that was cut the rest is dropped too."""
        if not (self._in_line and self._dropping):
            self._dropping = self._waiting_bytes + len(piece) > self._max_waiting_bytes
            self._dropped_lines += self._dropping
        if not self._dropping:
            self._waiting.append(piece)
            self._waiting_bytes += len(piece)
        self._in_line = not piece.endswith(b"\n")

    def _hand_on(self) -> None:
        full = False
        while not self._gone:
            with self._changed:
                while not self._waiting and (full or not self._dropped_lines):
                    self._changed.wait()
                pieces, dropped = b"".join(self._waiting), self._dropped_lines
                self._waiting.clear()
                self._waiting_bytes, self._dropped_lines, self._writing = 0, 0, True
            if dropped:
                end = b"" if pieces.endswith(b"\n") or not pieces else b"\n"
                pieces += end + b"stderr was not read: %d log lines were dropped here\n" % dropped
            outcome = _write(self.target, pieces)
            full = outcome is _Outcome.FULL
            with self._changed:
                if full:  # the next lines are tried again
                    self._dropped_lines += dropped + pieces.count(b"\n") - bool(dropped)
                self._writing, self._gone = False, outcome is _Outcome.GONE  # then what arrives is still taken, and dropped
                self._changed.notify_all()


def pump_stderr(*others: int) -> StderrPump | None:
    """Put a pump between this process' stderr and whoever reads it, where that could stall; None where it could not.

    Args:
        others: descriptors that point at stderr too, and shall go on to.
    """
    if sys.platform == "win32" or os.isatty(2):
        return None
    target = os.dup(2)
    faulthandler.enable(target)  # a crash in C code leaves no time for the pump
    source, sink = os.pipe()
    descriptors = (2, *others)
    for descriptor in descriptors:
        os.dup2(sink, descriptor)
    os.close(sink)
    return StderrPump(source, target, descriptors)


def end_pump(pump: StderrPump | None, timeout_sec: float) -> None:
    """Hand on the last lines before the process ends; what comes after them goes straight to the reader again."""
    if pump is None:
        return
    sys.stderr.flush()
    for descriptor in pump.descriptors:  # with all of them gone the pump sees the end
        os.dup2(pump.target, descriptor)
    pump.drain(timeout_sec)


class _Outcome(enum.Enum):
    WRITTEN = enum.auto()
    FULL = enum.auto()
    """There is no room now: a full disk."""
    GONE = enum.auto()
    """Nobody is there any more."""


def _write(descriptor: int, data: bytes) -> _Outcome:
    """Write all of it; a descriptor that a parent made non-blocking is waited for."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [], 1.0)
        except OSError as error:
            return _Outcome.FULL if error.errno in _FULL else _Outcome.GONE
    return _Outcome.WRITTEN
