"""Notices that the parent process is gone, so that nobody is left behind holding the microphone.

The parent's pid is read in the first line of the process (``start.py``) and compared every 250 ms: a pipe tells only when something is
written or read, and Linux's ``PR_SET_PDEATHSIG`` fires when the *thread* that spawned us ends. One thread; no other state.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from collections.abc import Callable

CHECK_SEC = 0.25


def stdin_is_pipe() -> bool:
    """Whether a program, not a person, started us: its end of stdin is a pipe or a socket."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def watch_parent(gone: Callable[[], None], parent_pid: int) -> None:
    """Call ``gone`` on a thread of its own as soon as the process ``parent_pid``, our parent at the start, has ended."""
    wait = _wait_on_windows(parent_pid) if sys.platform == "win32" else _wait(parent_pid)

    def run() -> None:
        wait()
        gone()

    threading.Thread(target=run, name="parent-watch", daemon=True).start()


def _wait(parent: int) -> Callable[[], None]:
    """Orphans get another parent."""

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(CHECK_SEC)

    return wait


def _wait_on_windows(parent: int) -> Callable[[], None]:
    """Orphans keep the dead parent's pid there: its handle tells. A parent that cannot be opened is waited for in vain."""
    import ctypes  # noqa: PLC0415

    synchronize, infinite = 0x0010_0000, 0xFFFF_FFFF
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined, unused-ignore]
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = kernel.OpenProcess(synchronize, 0, parent)

    def wait() -> None:
        if not handle:
            threading.Event().wait()
        kernel.WaitForSingleObject(ctypes.c_void_p(handle), infinite)

    return wait
