"""The microphone -> ``AudioBlock``, through PortAudio, for as long as the process lives.

The PortAudio callback copies, stamps and enqueues, nothing else. Every other PortAudio call runs on the capture-control thread, because
they can hang; nobody waits for one without a deadline, and a thread that hangs is left behind. A microphone that goes away is said once,
then PortAudio is started anew and the device looked for by its name until it is back; the first block after that carries the gap. Holds
the queue between callback and worker: bounded in seconds, full it drops the newest, and what was lost is carried by the next block
that fits. ``sounddevice`` is imported on the control thread, so that a machine without PortAudio still runs on files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import structlog

from voice.audio import AudioBlock
from voice.capture.gap_meter import clock_sec
from voice.capture.portaudio import BlockQueue, Capture, ControlThread, MicrophoneSettings, close_unwanted, import_sounddevice, result_of
from voice.errors import AudioDeviceUnavailable, ConfigInvalid, describe

_OPEN_TIMEOUT_SEC = 15.0
_CLOSE_TIMEOUT_SEC = 2.0
_ABSENT_SEC = 1.0
"""Between two signs of life of the reading thread, or within a read: then this process was away, not the microphone."""
_FIRST_RETRY_SEC, _LONGEST_RETRY_SEC = 0.25, 1.0
"""A try costs 20 ms of compute; 2 s apart, a monitor source that came back was heard after 4 s, with 1 s after 2.1."""

log = structlog.get_logger()


class Microphone:
    """A microphone that may come and go. Used by one thread."""

    def __init__(self, settings: MicrophoneSettings) -> None:
        """Open the device.

        Raises:
            AudioDeviceUnavailable: no PortAudio; or, unless it is waited for, no such device, or it cannot be opened in time.
            ConfigInvalid: a device index that does not exist.
        """
        self._settings = settings
        self._queue = BlockQueue(settings.queue_sec)
        self._control = ControlThread()
        self._capture: Capture | None = None
        self._opening: Future[Capture] | None = None
        self._opening_until = self._next_try_at = 0.0
        self._retry_sec = _FIRST_RETRY_SEC
        self._audio_ended_at: float | None = None
        self._zeros_sec = 0.0
        self._awake_at = self._watching_since = -math.inf
        self._failure: AudioDeviceUnavailable | None = None
        self._last_loss: AudioBlock | None = None
        self.ended = False
        self._call(import_sounddevice, _OPEN_TIMEOUT_SEC)
        try:
            self._capture = self._call(lambda: self._open(anew=False), _OPEN_TIMEOUT_SEC)
        except AudioDeviceUnavailable as error:
            if not settings.wait_for_device:
                raise
            self._failure = error

    @property
    def recovers(self) -> bool:
        """Whether reading may go on after an ``AudioDeviceUnavailable``."""
        return self._settings.wait_for_device

    @property
    def waiting_sec(self) -> float:
        """Seconds of audio in the queue."""
        return self._queue.waiting_sec

    def read(self, timeout_sec: float) -> AudioBlock | None:
        """The next block, or None when there was none in time.

        Raises:
            AudioDeviceUnavailable: the device is not there, or went away; said once until it is back.
        """
        if self._failure:
            failure, self._failure = self._failure, None
            raise failure
        self._notice_absence()
        block = self._queue.get(0 if self.ended or self._capture is None else timeout_sec)
        self._notice_absence()
        if block is not None:
            self._watch_for_zeros(block)
            return block
        if self.ended:
            block, self._last_loss = self._last_loss, None
            return block
        if self._capture is None:
            self._reopen(timeout_sec)
        elif lost := self._capture.failure(self._settings.stall_sec, self._watching_since):
            self._abandon()
            raise lost
        return None

    def close(self) -> None:
        """Stop the device. A PortAudio that hangs is left behind on its thread. What waits can be read, and what found no room at last."""
        if self.ended:
            return
        self.ended = True
        if self._capture is None:
            return
        try:
            self._call(self._capture.close, _CLOSE_TIMEOUT_SEC)
        except AudioDeviceUnavailable as error:
            log.warning("microphone_close_failed", device=self._capture.name, error=describe(error))
        self._last_loss = self._capture.last_loss()

    def _call(self, call: Callable[[], Any], timeout_sec: float) -> Any:
        """Have it done on the control thread."""
        return result_of(self._control.submit(call), timeout_sec)

    def _open(self, *, anew: bool) -> Capture:
        """Control thread. PortAudio knows only the devices that were there when it was started."""
        sounddevice = import_sounddevice()
        if anew:
            sounddevice._terminate()  # noqa: SLF001 -- the only way to start PortAudio anew
            sounddevice._initialize()  # noqa: SLF001
        return Capture(sounddevice, self._settings, self._queue, self._audio_ended_at)

    def _notice_absence(self) -> None:
        """A process that was frozen does not take that for the microphone's silence: what waits in the device comes first."""
        now, before = clock_sec(), self._awake_at
        self._awake_at = now
        if now - before > _ABSENT_SEC:
            self._watching_since = now

    def _abandon(self) -> None:
        """The device is of no use any more; begin to look for it."""
        capture, self._capture = self._capture, None
        if capture:
            capture.retire()
            self._audio_ended_at = capture.last_frame_at
            self._control.submit(capture.close)  # before the next opening, on the same thread
        self._retry_sec, self._next_try_at = _FIRST_RETRY_SEC, clock_sec()
        self._zeros_sec = 0.0

    def _reopen(self, timeout_sec: float) -> None:
        """Go on with the search, for so long."""
        now = clock_sec()
        if self._opening is None:
            if now < self._next_try_at:
                time.sleep(min(timeout_sec, self._next_try_at - now))
                return
            self._opening = self._control.submit(lambda: self._open(anew=True))
            self._opening_until = now + _OPEN_TIMEOUT_SEC
        try:
            self._capture = result_of(self._opening, timeout_sec)
        except AudioDeviceUnavailable as error:
            if not self._opening.done():
                if clock_sec() < self._opening_until:
                    return
                self._control = ControlThread()  # the old one hangs
                self._opening.add_done_callback(close_unwanted)
            log.debug("microphone_not_back", error=describe(error), again_in_sec=self._retry_sec)
        except ConfigInvalid as error:  # an index that is not there for now
            log.debug("microphone_not_back", error=describe(error), again_in_sec=self._retry_sec)
        self._opening = None
        self._next_try_at = clock_sec() + self._retry_sec
        self._retry_sec = min(2 * self._retry_sec, _LONGEST_RETRY_SEC)

    def _watch_for_zeros(self, block: AudioBlock) -> None:
        """Exact silence is legal, a muted microphone; but some drivers fall into it for good. So open once more in each episode."""
        if block.samples.any():
            self._zeros_sec = 0.0
            return
        before, self._zeros_sec = self._zeros_sec, self._zeros_sec + block.duration_sec
        limit = self._settings.zeros_sec
        if limit and before < limit <= self._zeros_sec and self._capture:
            log.warning("microphone_delivers_zeros", device=self._capture.name, seconds=round(limit), action="opened anew, once")
            self._abandon()
            self._zeros_sec = 2 * limit  # the episode goes on
