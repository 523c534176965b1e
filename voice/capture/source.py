"""The interface of every audio input: ``AudioSource``, and the description of the device behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from voice.audio import AudioBlock


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """What an input captures with."""

    device: str
    """Name for people: of the device, or of the file."""
    rate_hz: int
    """Frames per second, as delivered."""
    channels: int
    """Channels, as delivered."""


class AudioSource(Protocol):
    """An input that is open. Used by one thread.

    A device may be opened several times, when it went away or was replaced. ``read`` delivers blocks in the order in which they were
    captured: what an earlier opening captured, and was not read yet, comes before the error that reports its end and before the
    first block of the next opening.
    """

    @property
    def format(self) -> AudioFormat | None:
        """Format of the current opening. A device has none until its first block was read: only then it is known to deliver.

        So it is None from an ``AudioDeviceUnavailable`` until the device is back and delivers. Blocks of an earlier opening leave it None.
        """

    @property
    def ended(self) -> bool:
        """The input is over: at the end of a file or stream, or after ``close``."""

    @property
    def recovers(self) -> bool:
        """Whether reading may go on after an ``AudioDeviceUnavailable``: the device is looked for."""

    @property
    def waiting_sec(self) -> float:
        """Seconds of audio that wait because the reader is slower than the input; 0 where the input waits instead."""

    def read(self, timeout_sec: float, gather_sec: float = 0.0) -> AudioBlock | None:
        """The next block, or None when there was none within the timeout or the input ended.

        Args:
            timeout_sec: how long a device is waited for.
            gather_sec: the reader is in no hurry: a device from which nothing waits may let it sleep until so much audio does, and give
                it as one block.

        Raises:
            InputError: the input broke. What was read before stays valid. Never raised after ``close``.
        """

    def close(self) -> None:
        """Stop the input; blocks that wait can still be read. Idempotent."""
