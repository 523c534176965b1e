"""The one writer that owns the real stdout.

Events -> lines. It holds a private duplicate of file descriptor 1 and the sequence number; descriptor 1 itself points at
stderr from then on, so that a ``print`` in a library, a progress bar or C code lands in the log. Each line is stamped,
written whole and flushed at once. Raises ``OutputGone`` when nobody reads any more. Writer thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
from collections.abc import Callable
from typing import Any

from voice.errors import OutputGone, describe
from voice.output.events import AnyEvent

STDOUT_FILENO = 1


class EventWriter:
    """Owner of a file descriptor to which nothing but events is written."""

    def __init__(self, file_descriptor: int, now_ms: Callable[[], int]) -> None:
        """Write to ``file_descriptor``, which becomes the writer's own, with ``now_ms`` as the wall clock."""
        self._file_descriptor = file_descriptor
        self._now_ms = now_ms
        self._seq = 0

    @property
    def num_lines(self) -> int:
        """Lines written so far: the last ``seq``."""
        return self._seq

    def write(self, event: AnyEvent) -> None:
        """Write one line."""
        self.write_fields(event.model_dump())

    def write_fields(self, fields: dict[str, Any]) -> None:
        """Write an event's fields as one line, stamped.

        Raises:
            OutputGone: it cannot be written.
        """
        data = memoryview(encode({**fields, "ts": self._now_ms(), "seq": self._seq + 1}))
        try:
            while data:
                data = data[os.write(self._file_descriptor, data) :]
        except OSError as error:
            raise OutputGone(f"stdout cannot be written: {describe(error)}") from error
        self._seq += 1

    def check_reader(self) -> None:
        """Notice a reader that left, without writing.

        Raises:
            OutputGone: the other end of the pipe is closed.
        """
        if not hasattr(select, "poll"):
            return  # Windows: only a write tells
        poll = select.poll()
        poll.register(self._file_descriptor, 0)
        if any(flags & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, flags in poll.poll(0)):
            raise OutputGone("stdout cannot be written: its reader is gone")


def encode(fields: dict[str, Any]) -> bytes:
    """An event's fields as a line in UTF-8; half a character becomes ``?``."""
    return (json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(", ", ": ")) + "\n").encode("utf-8", errors="replace")


def take_stdout(now_ms: Callable[[], int]) -> EventWriter:
    """Make stdout the events' own; whatever else writes to descriptor 1 or ``sys.stdout`` reaches stderr.

    Raises:
        OutputGone: the process was started without a stdout.
    """
    if sys.stdout is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
    try:
        own = os.dup(STDOUT_FILENO)
        os.dup2(2, STDOUT_FILENO)
    except OSError as error:
        raise OutputGone(f"stdout is not open: {describe(error)}") from error
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415

        msvcrt.setmode(own, os.O_BINARY)
    # A new object, as the old one remembers what kind of file it was opened on.
    sys.stdout = open(STDOUT_FILENO, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    return EventWriter(own, now_ms)
