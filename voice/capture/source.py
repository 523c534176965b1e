"""What every input looks like to the daemon."""

from __future__ import annotations

from typing import Protocol

from voice.audio import AudioBlock


class AudioSource(Protocol):
    """An input that is open. Used by one thread."""

    @property
    def ended(self) -> bool:
        """Everything was read: ``read`` gives no more blocks."""

    @property
    def recovers(self) -> bool:
        """Whether reading may go on after an ``AudioDeviceUnavailable``: the device is looked for."""

    @property
    def waiting_sec(self) -> float:
        """Seconds of audio that wait because the reader is slower than the input; 0 where the input waits instead."""

    def read(self, timeout_sec: float) -> AudioBlock | None:
        """The next block, or None when there was none within the timeout or the input ended.

        Raises:
            InputError: the input broke. What was read before stays valid.
        """

    def close(self) -> None:
        """Stop the input; blocks that wait can still be read. Idempotent."""
