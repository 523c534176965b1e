"""When audio was captured: a position on the audio clock -> the wall clock; an event -> the same with ``captured_ts``.

Stage: around the pipeline, which has no clock. State: where the last blocks end, and when that was. Worker thread; the loop owns it.
"""

from __future__ import annotations

import bisect
from collections import deque
from dataclasses import dataclass

from voice.audio import AudioBlock
from voice.output.events import AnyEvent, FinalEvent, PartialEvent, WakeEvent
from voice.process.clock import clock_sec, wall_clock_ms

_REMEMBERED = 1_000
"""Blocks. An event is about audio that ended seconds ago at most; this is more than a minute of the default length."""


def captured_ms(block: AudioBlock) -> int:
    """When the last sample of a block was captured, or read, on the wall clock, ms since the epoch. A file's block was read just now."""
    if block.captured_at is not None:
        return wall_clock_ms(block.captured_at + block.duration_sec)
    return wall_clock_ms(clock_sec() if block.read_at is None else block.read_at)


@dataclass(frozen=True, slots=True)
class _Captured:
    end_ms: int
    """On the audio clock."""
    at_ms: int
    """On the wall clock."""
    live: bool
    """Whether its samples came one after the other, the last of them at ``at_ms``, or all of them then."""


class CaptureTimes:
    """Of the last blocks."""

    def __init__(self) -> None:
        self._blocks: deque[_Captured] = deque(maxlen=_REMEMBERED)

    def add(self, end_ms: int, at_ms: int, *, live: bool) -> None:
        """Remember a block.

        Args:
            end_ms: where it ends on the audio clock.
            at_ms: when its last sample was captured; of a file or a stream, when it was read. Wall clock, ms since the epoch.
            live: whether a device captured it.
        """
        self._blocks.append(_Captured(end_ms, at_ms, live))

    def at(self, position_ms: int) -> int:
        """When the sample at a position of the audio clock was captured: wall clock, ms since the epoch; 0 before the first block."""
        if not self._blocks:
            return 0
        place = bisect.bisect_left(self._blocks, position_ms, key=lambda block: block.end_ms)
        block = self._blocks[min(place, len(self._blocks) - 1)]
        return max(block.at_ms - max(block.end_ms - position_ms, 0), 0) if block.live else block.at_ms

    def stamped(self, event: AnyEvent) -> AnyEvent:
        """The event; a partial, a final or a wake word with the time of its last sample."""
        if isinstance(event, PartialEvent | FinalEvent | WakeEvent):
            return event.model_copy(update={"captured_ts": self.at(event.end_ms)})
        return event
