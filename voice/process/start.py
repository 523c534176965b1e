"""The first lines of the process: before anything slow is imported.

The entries call ``begin`` before they import ``voice.cli``, which takes 0.3 s. It opens descriptors that the parent closed, so that no
file of ours becomes stdin, stdout or stderr; it remembers the parent, which may end meanwhile; and it lets a signal end the process by the
documented code until ``StopRequest`` takes over. The interpreter's own start, about 20 ms, lies before it. Imports nothing that costs time.
"""

from __future__ import annotations

import os
import signal
import sys

STDIN, STDOUT, STDERR = 0, 1, 2


class Start:
    """How the process was started."""

    def __init__(self, parent_pid: int, closed: tuple[int, ...]) -> None:
        self.parent_pid = parent_pid
        """Of the process that was our parent at the first line."""
        self.closed = closed
        """Those of the descriptors 0 to 2 that were closed; they are open on the null device now."""


def begin() -> Start:
    """Prepare the process; main thread, once."""
    parent_pid = os.getppid()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's products are small here, and its threads would spin between them
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    return Start(parent_pid, open_closed())


def _leave(number: int, frame: object) -> None:
    """Nothing was opened or written yet: stopped by a signal is exit 0."""
    del number, frame
    os._exit(0)


def open_closed() -> tuple[int, ...]:
    """Open those of the descriptors 0 to 2 that are closed on the null device; which they were."""
    closed = []
    for descriptor in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            closed.append(descriptor)
            os.open(os.devnull, os.O_RDONLY if descriptor == STDIN else os.O_WRONLY)  # takes the lowest free number: this one
            os.set_inheritable(descriptor, True)  # noqa: FBT003 -- the only way to call it
    if sys.stdin is None:
        sys.stdin = open(STDIN, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(STDOUT, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(STDERR, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    return tuple(closed)
