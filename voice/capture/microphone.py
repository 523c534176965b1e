"""The microphone -> ``AudioBlock``, through PortAudio, for as long as the process lives: the policy of a device that comes and goes.

One state, owned by the reading thread::

    OPENING   -> CAPTURING   opened
              -> SEARCHING   it failed: raised by the first read
    CAPTURING -> REOPENING   nothing but zeros
              -> SEARCHING   stalled, ended, or moved to another source: raised
    REOPENING -> CAPTURING   delivers again
              -> SEARCHING   the one silent try failed: raised
    SEARCHING -> CAPTURING   delivers again
    any       -> CLOSED      close()

Each loss is raised once, then the device is looked for until it is back: with the first block of an opening which, where a sound server
is known, is on the source that was chosen first. Lost audio is reported to the ``LossLedger``: by the callback (``portaudio``), for the
time away by the next opening, or by ``close``. All PortAudio calls run on a control thread with a deadline (``opener``).
"""

from __future__ import annotations

import enum
import math

import structlog

from voice.audio import AudioBlock
from voice.capture.opener import Opener
from voice.capture.portaudio import BlockQueue, Capture, MicrophoneSettings
from voice.capture.sound_server import Source, Stream
from voice.capture.source import AudioFormat
from voice.errors import AudioDeviceLost, AudioDeviceUnavailable, ConfigInvalid, describe
from voice.losses import LossLedger
from voice.process.clock import clock_sec

_ABSENT_SEC = 1.0
"""When this much time passed between two reads, or within one, this process stood still, not the microphone."""

log = structlog.get_logger()


class State(enum.Enum):
    """What the microphone is doing."""

    OPENING = enum.auto()
    """The first opening, in the constructor."""
    CAPTURING = enum.auto()
    """The device is open and its blocks are delivered."""
    REOPENING = enum.auto()
    """The device delivered only zeros: one silent try to open it anew."""
    SEARCHING = enum.auto()
    """A loss was raised, or is raised by the next read; the device is looked for."""
    CLOSED = enum.auto()
    """``close`` was called; blocks that wait can be read."""


class Microphone:
    """A microphone that may come and go. Used by one thread."""

    def __init__(self, settings: MicrophoneSettings, ledger: LossLedger) -> None:
        """Open the device.

        Args:
            settings: which device, and how to watch it.
            ledger: where lost audio is reported.

        Raises:
            AudioDeviceUnavailable: no PortAudio; or, unless it is waited for, no such device, or it cannot be opened in time.
            ConfigInvalid: a device index that does not exist.
        """
        self._settings = settings
        self._ledger = ledger
        self._state = State.OPENING
        self._queue = BlockQueue(settings.queue_sec)
        self._zeros = ZerosWatch(settings.zeros_sec)
        self._opener = Opener(settings, self._queue, ledger)
        self._capture: Capture | None = None  # set while CAPTURING
        self._format: AudioFormat | None = None
        self._failure: AudioDeviceUnavailable | None = None  # raised by the next read that finds no block
        self._audio_ended_at: float | None = None
        self._read_at = self._watching_since = -math.inf
        try:
            self._accept(self._opener.open())
        except (AudioDeviceUnavailable, ConfigInvalid) as error:
            if isinstance(error, ConfigInvalid) or not settings.wait_for_device:
                self._opener.close(None)
                raise
            self._state, self._failure = State.SEARCHING, error

    @property
    def format(self) -> AudioFormat | None:
        """Format of the current opening; None until its first block was read."""
        return self._format

    @property
    def ended(self) -> bool:
        """Whether it was closed."""
        return self._state is State.CLOSED

    @property
    def recovers(self) -> bool:
        """Whether reading may go on after an ``AudioDeviceUnavailable``."""
        return self._settings.wait_for_device

    @property
    def waiting_sec(self) -> float:
        """Seconds of audio in the queue."""
        return self._queue.waiting_sec

    def read(self, timeout_sec: float, gather_sec: float = 0.0) -> AudioBlock | None:
        """The next block, or None when there was none in time. Where none waits, it sleeps until ``gather_sec`` of audio do.

        Raises:
            AudioDeviceUnavailable: the device is not there, or went away; each loss is raised once, behind the blocks before it.
        """
        block = self._next_block(timeout_sec if self._state is State.CAPTURING else 0, gather_sec)
        if block is not None or self._state is State.CLOSED:
            return block
        if self._capture is not None:
            self._failure = self._capture.failure(self._settings.stall_sec, self._watching_since)
            if self._failure:
                self._abandon(self._capture, State.SEARCHING)
        elif self._failure is None:
            self._search(timeout_sec)
        if self._failure:
            failure, self._failure = self._failure, None
            raise failure
        return None

    def close(self) -> None:
        """Stop the device. A PortAudio that hangs is left behind on its thread. Blocks that wait can still be read."""
        if self._state is State.CLOSED:
            return
        announced = self._state is State.SEARCHING and self._failure is None
        self._state = State.CLOSED
        now, ended_at, delivers = clock_sec(), self._audio_ended_at, False
        self._opener.close(self._capture)
        if self._capture is not None:
            ended_at, delivers = self._capture.audio_ended_at, self._capture.delivered
        if ended_at is not None and not delivers:
            self._ledger.report(now - ended_at, "the microphone was away", announced=announced)

    def _next_block(self, timeout_sec: float, gather_sec: float) -> AudioBlock | None:
        """The oldest block in the queue that may be delivered."""
        while True:
            self._notice_absence()
            captured = self._queue.get(timeout_sec, gather_sec)
            self._notice_absence()
            self._watch_source()
            if captured is None:
                return None
            timeout_sec = 0
            capture, block = captured
            if capture.trusted_until is not None:
                block, untrusted = block.split(capture.trusted_until)
                self._ledger.report(untrusted.duration_sec, "the microphone was moved", announced=True)
            if len(block.samples):
                if capture is self._capture and self._state is State.CAPTURING:
                    self._note(capture, block)
                return block

    def _note(self, capture: Capture, block: AudioBlock) -> None:
        """Take the format and the zeros of a block of the current opening."""
        if self._format is None:
            stream = self._stream_of(capture)
            self._format = AudioFormat(stream.source.description if stream else capture.name, capture.rate_hz, capture.channels)
        if self._zeros.is_stuck(block):
            log.warning(
                "microphone_delivers_zeros", device=capture.name, seconds=round(self._settings.zeros_sec), action="opened anew, once"
            )
            self._abandon(capture, State.REOPENING)

    def _notice_absence(self) -> None:
        """After this process stood still, blocks that waited in the device arrive first: that silence is not the microphone's."""
        now, before = clock_sec(), self._read_at
        self._read_at = now
        if now - before > _ABSENT_SEC:
            self._watching_since = now

    def _watch_source(self) -> None:
        """Give the device up when the sound server moved our stream; blocks captured since it was last seen in place are not trusted."""
        capture = self._capture if self._state is State.CAPTURING else None
        stream = self._stream_of(capture) if capture else None
        if capture is None or stream is None:
            return
        if self._opener.home is None and self._settings.device is not None:
            self._opener.home = stream.source
        chosen = self._opener.home or stream.source
        now_on = stream.moved_to or stream.source
        if now_on.name == chosen.name:
            return
        capture.trusted_until = stream.verified_at if stream.source.name == chosen.name else capture.opened_at
        self._failure = AudioDeviceLost(f"'{capture.name}' was moved {_from_to(chosen, now_on)} by the sound server")
        self._abandon(capture, State.SEARCHING)

    def _stream_of(self, capture: Capture) -> Stream | None:
        """Its stream on the sound server; None where there is none, or not yet."""
        if capture.stream is None:
            capture.stream = self._opener.sound_server.newest_stream(capture.opened_at)
        return capture.stream

    def _abandon(self, capture: Capture, state: State) -> None:
        """Stop using the device; it is opened anew."""
        self._opener.abandon(capture)
        self._capture, self._state, self._format = None, state, None
        self._audio_ended_at = capture.audio_ended_at

    def _search(self, timeout_sec: float) -> None:
        """Go on opening the device anew for this long. A failed try is an event only in REOPENING: in SEARCHING the loss was raised."""
        try:
            capture = self._opener.open_anew(timeout_sec)
            if capture is not None:
                self._accept(capture)
        except (AudioDeviceUnavailable, ConfigInvalid) as error:
            log.debug("microphone_not_back", error=describe(error))
            if self._state is State.REOPENING:
                self._failure = AudioDeviceLost(f"the microphone delivered only zeros and could not be opened again: {describe(error)}")
            self._state = State.SEARCHING

    def _accept(self, capture: Capture) -> None:
        """Deliver the blocks of this opening from now on."""
        capture.accept(self._audio_ended_at, announced=self._state is State.SEARCHING)
        self._capture, self._state = capture, State.CAPTURING
        source = capture.stream.source.description if capture.stream else None
        log.info("microphone_opened", device=capture.name, rate_hz=capture.rate_hz, source=source)


class ZerosWatch:
    """Finds a device that delivers nothing but zeros. They are legal, from a muted microphone, but some drivers that hang do the same."""

    def __init__(self, limit_sec: float) -> None:
        """Set the limit.

        Args:
            limit_sec: silence before the device counts as stuck; 0 never.
        """
        self._limit_sec = limit_sec
        self._silent_sec = 0.0

    def is_stuck(self, block: AudioBlock) -> bool:
        """Whether this block completes the limit; True once in each period of silence."""
        if block.samples.any():
            self._silent_sec = 0.0
            return False
        before, self._silent_sec = self._silent_sec, self._silent_sec + block.duration_sec
        return before < self._limit_sec <= self._silent_sec


def _from_to(old: Source, new: Source) -> str:
    if old.description == new.description:
        return f"from '{old.name}' to '{new.name}'"
    return f"from '{old.description}' to '{new.description}'"
