"""Measures lost audio by the clock: arrival time and length of each block -> frames that are missing before it.

PortAudio reports that an overflow happened, not how long it was. Sound servers drop what they cannot hold without a report, and no
report comes for the time in which the machine slept. In each of these cases the clock has advanced further than the delivered frames,
and the difference stays. When a callback was only late, the difference disappears with the next blocks.

State: delivered frames, start time and least delay of one opening of a device. Runs in the PortAudio callback; raises nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_CLOCK_SLACK_SEC = 0.1
"""Blocks arrive in bursts: a difference between clock and frames below this is no loss."""
_LEAST_LOST_SEC = 0.03
"""An overflow lost so much, or the block if that is shorter, where the clock shows no loss. What it lost does not grow with the block."""
_DRIFT_WINDOW_SEC = 60.0
"""The least delay is taken over one to two of these, because the clocks of device and machine drift apart."""
_EXCESS_SEC = 0.5
_SETTLED_SEC = 2.0
"""When the clock stays more than ``_EXCESS_SEC`` ahead of the delivered frames for ``_SETTLED_SEC``, the difference is audio that was
lost: frames that are only late would have arrived by then."""
_MOST_HELD_SEC = 60.0
"""An excess above this is a loss at once. No device and no sound server holds so much audio for a process that does not read it:
PulseAudio was seen to hold 22 s, the more the longer the blocks are."""


@dataclass(slots=True)
class _Excess:
    """A time during which the clock has been ahead of the delivered frames by a nearly constant length. All in seconds."""

    since: float
    first_sec: float
    """Excess at ``since``."""
    least_sec: float
    """Least excess since then."""
    delivered_sec: float = 0.0
    """Length of the audio that arrived since then."""


class GapMeter:
    """Meter for one opening of a device."""

    def __init__(self) -> None:
        self._started_at: float | None = None
        self._frames = 0
        # The least delay in the last two windows. Clocks drift apart: 100 ppm make 1 s in three hours.
        self._window_end = 0.0
        self._least_delays_sec = (math.inf, math.inf)
        self._excess: _Excess | None = None

    def lost_frames(self, now: float, num_frames: int, rate_hz: int, *, overflowed: bool) -> tuple[int, int]:
        """Account for a block.

        Args:
            now: time of its arrival, in seconds.
            num_frames: its length.
            rate_hz: frames per second.
            overflowed: PortAudio reported that input was discarded before it.

        Returns:
            Frames that were lost directly before the block, and frames that were lost about ``_SETTLED_SEC`` before it, which turns
            out only now. At most one of them is not 0.
        """
        if self._started_at is None:
            self._started_at = now - num_frames / rate_hz
        delay_sec = now - self._started_at - (self._frames + num_frames) / rate_hz
        usual_sec = min(*self._least_delays_sec, delay_sec)
        excess_sec = delay_sec - usual_sec
        lost = late = 0
        if overflowed:
            lost = round(max(excess_sec - _CLOCK_SLACK_SEC, min(num_frames / rate_hz, _LEAST_LOST_SEC)) * rate_hz)
        elif excess_sec > _MOST_HELD_SEC:  # the machine slept
            lost = round((excess_sec - _CLOCK_SLACK_SEC) * rate_hz)
        else:
            late = round(self._unreported_sec(now, excess_sec, num_frames / rate_hz) * rate_hz)
        if lost or late:
            delay_sec -= (lost + late) / rate_hz
            self._excess = None
        if now >= self._window_end:
            self._window_end = now + _DRIFT_WINDOW_SEC
            self._least_delays_sec = (self._least_delays_sec[1], delay_sec)
        self._least_delays_sec = (self._least_delays_sec[0], min(self._least_delays_sec[1], delay_sec))
        self._frames += num_frames + lost + late
        return lost, late

    def _unreported_sec(self, now: float, excess_sec: float, delivered_sec: float) -> float:
        """Length of a loss that nobody reported, once the excess has lasted for ``_SETTLED_SEC``; else 0.

        It must last both by the clock and in delivered audio: after a long pause of this process, blocks that waited in a sound
        server arrive at first.
        """
        if excess_sec < _EXCESS_SEC:
            self._excess = None
            return 0.0
        excess = self._excess
        if excess is None or excess_sec < excess.first_sec - _CLOCK_SLACK_SEC:  # it shrinks: frames that were late are arriving
            self._excess = _Excess(now, excess_sec, excess_sec)
            return 0.0
        excess.least_sec = min(excess.least_sec, excess_sec)
        excess.delivered_sec += delivered_sec
        settled = min(now - excess.since, excess.delivered_sec) > _SETTLED_SEC
        return excess.least_sec - _CLOCK_SLACK_SEC if settled else 0.0
