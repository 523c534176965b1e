"""Keeps a stderr that nobody reads from freezing the process.

A parent that spawns the service and never reads its stderr fills that pipe within minutes; whoever writes to it then waits for ever:
the log, a library's ``print``, C code. So descriptor 2, where it is a pipe or a socket, becomes a pipe of our own. One thread always
reads it, a second hands on what there is room for; lines beyond the bound are dropped, and how many is said when somebody reads
again. Terminals and files are left alone: they do not stall, and a crash in C code reaches them unbuffered.
"""

from __future__ import annotations

import faulthandler
import os
import stat
import sys
import threading
import time
from collections import deque

MAX_WAITING_BYTES = 2**20
_CHUNK_BYTES = 65_536
_WAIT_SEC = 0.1


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
        while not self._gone:
            with self._changed:
                while not self._waiting and not self._dropped_lines:
                    self._changed.wait()
                pieces, dropped = b"".join(self._waiting), self._dropped_lines
                self._waiting.clear()
                self._waiting_bytes, self._dropped_lines, self._writing = 0, 0, True
            if dropped:
                end = b"" if pieces.endswith(b"\n") or not pieces else b"\n"
                pieces += end + b"stderr was not read: %d log lines were dropped here\n" % dropped
            gone = not _written(self.target, pieces)  # then what arrives is still taken, and dropped
            with self._changed:
                self._writing, self._gone = False, gone
                self._changed.notify_all()


def pump_stderr(*others: int) -> StderrPump | None:
    """Put a pump between this process' stderr and whoever reads it, where that could stall; None where it could not.

    Args:
        others: descriptors that point at stderr too, and shall go on to.
    """
    try:
        mode = os.fstat(2).st_mode
    except OSError:
        return None
    if sys.platform == "win32" or not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
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


def _written(descriptor: int, data: bytes) -> bool:
    """Write all of it; False when nobody is there any more."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError:
        return False
    return True
