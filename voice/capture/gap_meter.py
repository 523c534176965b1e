"""How much a device lost, told by the clock: blocks' times of arrival -> frames that are missing before them.

PortAudio says that there was an overflow, not how long it was; sound servers drop what they cannot hold without a word; and a machine
that slept has a gap that nobody reports. In all of them the clock runs ahead of the frames, and stays ahead. A callback that is only
late catches up. Runs in the PortAudio callback.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass

_CLOCK_SLACK_SEC = 0.1
"""Callbacks come in bursts: so much of a difference between the clock and the frames is no loss."""
_DRIFT_WINDOW_SEC = 60.0
_AHEAD_SEC = 0.5
_MOST_HELD_SEC = 60.0
"""No device and no sound server holds more for a process that does not read: PulseAudio was seen to hold 12 s."""
_SETTLED_SEC = 2.0
"""A clock that runs ahead by more than the one for longer than the other tells of a loss that nobody reported: late frames come sooner."""


def clock_sec() -> float:
    """Seconds on a clock that never goes back and runs on while the machine sleeps."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        return time.clock_gettime(time.CLOCK_MONOTONIC)  # Python's own stops in its sleep there
    return time.monotonic()


@dataclass(slots=True)
class _Ahead:
    """A time in which the clock was ahead of the frames, by much the same all along."""

    since: float
    first_sec: float
    least_sec: float
    heard_sec: float = 0.0
    """Audio that was delivered meanwhile."""


class GapMeter:
    """One opening of a device."""

    def __init__(self) -> None:
        self._started_at: float | None = None
        self._frames = 0
        self._dropped = 0
        # The least delay of the last two windows: clocks drift apart, 100 ppm make a second in three hours.
        self._window_end = 0.0
        self._least_delays_sec = (math.inf, math.inf)
        self._ahead: _Ahead | None = None

    def drop(self, num_frames: int) -> None:
        """Frames that were delivered but found no place; the next block reports them."""
        self._dropped += num_frames

    def take_dropped(self) -> int:
        """What no block has reported."""
        dropped, self._dropped = self._dropped, 0
        return dropped

    def lost_frames(self, now: float, num_frames: int, rate_hz: int, *, overflowed: bool) -> tuple[int, int]:
        """Frames lost directly before the ``num_frames`` that are delivered ``now``, and some ``_SETTLED_SEC`` before them."""
        if self._started_at is None:
            self._started_at = now - num_frames / rate_hz
        delay_sec = now - self._started_at - (self._frames + num_frames) / rate_hz
        usual_sec = min(*self._least_delays_sec, delay_sec)
        ahead_sec = delay_sec - usual_sec
        lost = earlier = 0
        if overflowed:
            lost = round(max(ahead_sec - _CLOCK_SLACK_SEC, num_frames / rate_hz) * rate_hz)
        elif ahead_sec > _MOST_HELD_SEC:  # the machine slept: what comes now does not belong to what was said before
            lost = round((ahead_sec - _CLOCK_SLACK_SEC) * rate_hz)
        else:
            earlier = round(self._unreported_sec(now, ahead_sec, num_frames / rate_hz) * rate_hz)
        if lost or earlier:
            delay_sec -= (lost + earlier) / rate_hz
            self._ahead = None
        if now >= self._window_end:
            self._window_end = now + _DRIFT_WINDOW_SEC
            self._least_delays_sec = (self._least_delays_sec[1], delay_sec)
        self._least_delays_sec = (self._least_delays_sec[0], min(self._least_delays_sec[1], delay_sec))
        self._frames += num_frames + lost + earlier
        return lost + self.take_dropped(), earlier

    def _unreported_sec(self, now: float, ahead_sec: float, heard_sec: float) -> float:
        """What was lost, once the clock has been ahead for a while and what waited somewhere is not what comes now; else 0."""
        if ahead_sec < _AHEAD_SEC:
            self._ahead = None
            return 0.0
        ahead = self._ahead
        if ahead is None or ahead_sec < ahead.first_sec - _CLOCK_SLACK_SEC:  # frames that waited still come in
            self._ahead = _Ahead(now, ahead_sec, ahead_sec)
            return 0.0
        ahead.least_sec = min(ahead.least_sec, ahead_sec)
        ahead.heard_sec += heard_sec
        settled = min(now - ahead.since, ahead.heard_sec) > _SETTLED_SEC
        return ahead.least_sec - _CLOCK_SLACK_SEC if settled else 0.0
