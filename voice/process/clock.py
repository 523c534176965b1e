"""The clock of one run: seconds since some fixed moment, for lengths of time and for the times at which audio was captured.

No state; any thread.
"""

from __future__ import annotations

import sys
import time


def clock_sec() -> float:
    """Seconds on a clock that never goes back and runs on while the machine sleeps."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        return time.clock_gettime(time.CLOCK_MONOTONIC)  # time.monotonic() stops there while the machine sleeps
    return time.monotonic()


def wall_clock_ms(at_sec: float) -> int:
    """A moment of ``clock_sec`` on the wall clock, as it is set now: ms since the epoch."""
    return int((time.time() - clock_sec() + at_sec) * 1000)
