"""The request to stop: from a signal, from the parent's command, from anywhere.

The first signal asks to stop, the second leaves at once. Signal handlers run on the main thread; ``request`` may be called from any thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))
"""SIGHUP comes when the terminal is closed, SIGBREAK is Windows' CTRL_BREAK."""


class Interrupted(BaseException):
    """A stop was requested while models were loading; no Exception, which libraries swallow while they probe each other."""


class StopRequest:
    """Whether the service is to stop."""

    def __init__(self) -> None:
        self.requested = False
        self._interrupts = False
        self._woken = False

    def install(self) -> None:
        """Take the signals over; main thread only. A signal that was ignored at the start stays ignored, as ``nohup`` wants it."""
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    def end(self) -> None:
        """The run is over: a signal from now on changes neither the exit code nor the end. Main thread only.

        The interpreter takes up to 0.6 s to end, and gives handlers of ours back to the system: a signal would kill it.
        """
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def request(self) -> None:
        """Ask to stop, on any thread; inside ``interrupting`` the main thread is interrupted at once."""
        self.requested = True
        if self._interrupts:
            self._woken = True
            if sys.platform == "win32":
                import _thread  # noqa: PLC0415

                _thread.interrupt_main(signal.SIGTERM)
            else:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Inside, a stop raises ``Interrupted`` on the main thread; one that was requested before does so on entry."""
        self._interrupts = True
        try:
            if self.requested:
                raise Interrupted
            yield
            self._interrupts = False
            if self.requested:
                raise Interrupted
        finally:
            self._interrupts = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        woken, self._woken = self._woken, False
        if self.requested and not woken:
            os._exit(128 + number)
        self.requested = True
        if self._interrupts:
            raise Interrupted
