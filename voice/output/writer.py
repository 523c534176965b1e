"""The one writer that owns the real stdout.

Stage: output. Event -> one line of JSON on a private duplicate of file descriptor 1. Descriptor 1 itself points at stderr from then
on, so that a ``print`` in a library, a progress bar or C code lands in the log.
State: the descriptor, the sequence number, the bytes written. ``ts`` and ``seq`` are stamped when the line is written.
Thread: the writer thread; ``check_reader`` and ``progress`` are called on the worker thread.
Raises: ``OutputGone`` when the reader left or stdout cannot be written.

A full pipe is waited for with ``poll``, so a descriptor that a parent made non-blocking works like any other.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass

from voice.errors import OutputGone, describe
from voice.output.events import AnyEvent

STDOUT_FILENO = 1
_TS, _SEQ = b'"ts": ', b'"seq": '


@dataclass(frozen=True, slots=True)
class EncodedEvent:
    """One event as a line of JSON in UTF-8, cut where the writer inserts ``ts`` and ``seq``."""

    before_ts: bytes
    before_seq: bytes
    rest: bytes

    @property
    def size_bytes(self) -> int:
        """Length of the line without the two stamps."""
        return len(self.before_ts) + len(self.before_seq) + len(self.rest)

    def line(self, ts_ms: int, seq: int) -> bytes:
        """The whole line with its stamps."""
        return b"%b%d%b%d%b" % (self.before_ts, ts_ms, self.before_seq, seq, self.rest)


def encode(event: AnyEvent) -> EncodedEvent:
    """Encode an event, the only place that does. A lone surrogate (half a character) becomes ``?``.

    The keys ``"ts": `` and ``"seq": `` are found by search: inside a JSON string a quote is escaped, so neither can stand in a text.
    """
    fields = {**event.model_dump(), "ts": 0, "seq": 0}
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(", ", ": ")) + "\n"
    before_ts, _, after_ts = text.encode("utf-8", errors="replace").partition(_TS + b"0")
    before_seq, _, rest = after_ts.partition(_SEQ + b"0")
    return EncodedEvent(before_ts + _TS, before_seq + _SEQ, rest)


class EventWriter:
    """Owner of a file descriptor to which nothing but events is written."""

    def __init__(self, file_descriptor: int, now_ms: Callable[[], int]) -> None:
        """Write to ``file_descriptor``, which becomes the writer's own, with ``now_ms`` as the wall clock.

        Raises:
            OutputGone: the descriptor is not open.
        """
        try:
            mode = os.fstat(file_descriptor).st_mode
        except OSError as error:
            raise OutputGone(f"stdout is not open: {describe(error)}") from error
        self._file_descriptor = file_descriptor
        self._now_ms = now_ms
        self._is_pipe = stat.S_ISFIFO(mode)
        # poll(2) promises room for PIPE_BUF bytes; a larger write could block, and then nobody sees how much the reader takes.
        # A file never blocks: there a line is written at once, so that lines of two processes do not mix.
        self._piece_bytes = None if stat.S_ISREG(mode) else getattr(select, "PIPE_BUF", None)
        self._seq = 0
        self._written_bytes = 0

    @property
    def num_lines(self) -> int:
        """Lines written so far: the last ``seq``."""
        return self._seq

    def progress(self) -> tuple[int, int]:
        """Bytes written so far, and bytes that wait in the pipe or socket. They change whenever the reader takes some."""
        return self._written_bytes, self._unread_bytes()

    def write(self, event: AnyEvent) -> None:
        """Write one line, as ``write_encoded`` does."""
        self.write_encoded(encode(event))

    def write_encoded(self, event: EncodedEvent) -> None:
        """Write one line, stamped; wait for the reader while the pipe is full.

        Raises:
            OutputGone: it cannot be written.
        """
        data = memoryview(event.line(self._now_ms(), self._seq + 1))
        while data:
            self._poll(select.POLLOUT, timeout_ms=None)  # until a write will not block, or will fail as the reader left
            try:
                num_bytes = os.write(self._file_descriptor, data[: self._piece_bytes])
            except BlockingIOError:
                continue  # another process filled the pipe first
            except OSError as error:
                raise OutputGone(f"stdout cannot be written: {describe(error)}") from error
            data = data[num_bytes:]
            self._written_bytes += num_bytes
        self._seq += 1

    def check_reader(self) -> None:
        """Notice a reader that left, without writing.

        Raises:
            OutputGone: the other end of the pipe is closed.
        """
        if self._poll(0, timeout_ms=0):  # without being asked poll(2) reports POLLERR, POLLHUP and POLLNVAL only
            raise OutputGone("stdout cannot be written: its reader is gone")

    def _poll(self, events: int, timeout_ms: int | None) -> int:
        """The flags of poll(2); none on Windows, where a write blocks until there is room."""
        if not hasattr(select, "poll"):
            return 0
        poll = select.poll()
        poll.register(self._file_descriptor, events)
        return sum(flags for _, flags in poll.poll(timeout_ms))

    def _unread_bytes(self) -> int:
        """Bytes that the kernel holds for the reader; 0 where it does not tell."""
        if sys.platform == "win32":
            return 0
        import fcntl  # noqa: PLC0415
        import termios  # noqa: PLC0415

        request = termios.FIONREAD if self._is_pipe else termios.TIOCOUTQ
        try:
            return int.from_bytes(fcntl.ioctl(self._file_descriptor, request, bytes(4)), sys.byteorder)
        except OSError:
            return 0


def take_stdout(now_ms: Callable[[], int], *, was_closed: bool = False) -> EventWriter:
    """Make stdout the events' own; whatever else writes to descriptor 1 or ``sys.stdout`` reaches stderr.

    Args:
        now_ms: the wall clock.
        was_closed: the process was started without a stdout; descriptor 1 is the null device now.

    Raises:
        OutputGone: the process was started without a stdout.
    """
    if was_closed:
        raise OutputGone("stdout is not open")
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
