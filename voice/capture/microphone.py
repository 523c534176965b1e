"""The microphone -> ``AudioBlock``, through PortAudio, for as long as the process lives.

The PortAudio callback copies, stamps and enqueues, nothing else. Every other PortAudio call runs on the capture-control thread, because
they can hang; nobody waits for one without a deadline, and a thread that hangs is left behind. A microphone that goes away is said once,
then PortAudio is started anew and the device looked for by its name until it is back; the first block after that carries the gap. Holds
the queue between callback and worker: bounded in seconds, full it drops the newest, and what was lost is carried by the next block
that fits. ``sounddevice`` is imported on the control thread, so that a machine without PortAudio still runs on files.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as CallTimeout  # the builtin one from Python 3.11 on
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog

from voice.audio import AudioBlock
from voice.capture.gap_meter import GapMeter, clock_sec
from voice.errors import AudioDeviceLost, AudioDeviceUnavailable, AudioStalled, ConfigInvalid, InputError, describe

_OPEN_TIMEOUT_SEC = 15.0
_CLOSE_TIMEOUT_SEC = 2.0
_FIRST_BLOCK_SEC = 5.0
"""Grace for the first block: PulseAudio's monitor sources were seen to take up to 2.3 s."""
_ABSENT_SEC = 1.0
"""Between two signs of life of the reading thread, or within a read: then this process was away, not the microphone."""
_FIRST_RETRY_SEC, _LONGEST_RETRY_SEC = 0.25, 1.0
"""A try costs 20 ms of compute; 2 s apart, a monitor source that came back was heard after 4 s, with 1 s after 2.1."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class MicrophoneSettings:
    """How to open and watch the microphone."""

    device: str | int | None
    """Part of a name, an index, or None for the system's default."""
    channels: int
    """Channels wanted; fewer are opened where the device has fewer."""
    block_sec: float
    """Length of one callback."""
    latency_sec: float
    """Device buffer: so long Python may keep the callback waiting without loss."""
    queue_sec: float
    """Bound of the queue between callback and worker."""
    stall_sec: float
    """Without a frame for so long the microphone counts as lost."""
    zeros_sec: float
    """After so much exact silence the device is opened anew, once until it is heard again; 0 never."""
    wait_for_device: bool
    """Whether a microphone that is not there, or goes away, is waited for."""


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
        self._control = _ControlThread()
        self._capture: _Capture | None = None
        self._opening: Future[_Capture] | None = None
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
        return _result(self._control.submit(call), timeout_sec)

    def _open(self, *, anew: bool) -> _Capture:
        """Control thread. PortAudio knows only the devices that were there when it was started."""
        sounddevice = import_sounddevice()
        if anew:
            sounddevice._terminate()  # noqa: SLF001 -- the only way to start PortAudio anew
            sounddevice._initialize()  # noqa: SLF001
        return _Capture(sounddevice, self._settings, self._queue, self._audio_ended_at)

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
            self._capture = _result(self._opening, timeout_sec)
        except AudioDeviceUnavailable as error:
            if not self._opening.done():
                if clock_sec() < self._opening_until:
                    return
                self._control = _ControlThread()  # the old one hangs
                self._opening.add_done_callback(_close_unwanted)
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


def _result(future: Future[Any], timeout_sec: float) -> Any:
    """What a call on the control thread gave; whatever PortAudio raises means that there is no microphone."""
    try:
        return future.result(timeout_sec)
    except (InputError, ConfigInvalid):
        raise
    except CallTimeout:
        raise AudioDeviceUnavailable(f"PortAudio did not answer within {timeout_sec:g} s") from None
    except Exception as error:
        raise AudioDeviceUnavailable(describe(error)) from error


def _close_unwanted(opening: Future[_Capture]) -> None:
    """What was given up opened after all: another capture took its place."""
    if opening.exception() is None:
        opening.result().close()


class BlockQueue:
    """Blocks between callback and worker, bounded in seconds."""

    def __init__(self, max_sec: float) -> None:
        self._max_sec = max_sec
        self._blocks: queue.SimpleQueue[AudioBlock] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self.waiting_sec = 0.0

    def put(self, block: AudioBlock) -> bool:
        """False where there is no room."""
        with self._lock:
            if self.waiting_sec + block.duration_sec > self._max_sec:
                return False
            self.waiting_sec += block.duration_sec
        self._blocks.put(block)
        return True

    def get(self, timeout_sec: float) -> AudioBlock | None:
        """The oldest block; None when there was none in time."""
        try:
            block = self._blocks.get(timeout=timeout_sec) if timeout_sec else self._blocks.get_nowait()
        except queue.Empty:
            return None
        with self._lock:
            self.waiting_sec -= block.duration_sec
        return block


class _Capture:
    """One opening of a device. Made and closed on the control thread."""

    def __init__(self, sounddevice: Any, settings: MicrophoneSettings, blocks: BlockQueue, audio_ended_at: float | None) -> None:
        """Open and start.

        Args:
            sounddevice: the module.
            settings: which device, and how.
            blocks: where its audio goes.
            audio_ended_at: end of the audio before it, on the clock: from there on audio is missing. None at the first.
        """
        self._blocks = blocks
        self._gap = GapMeter()
        self._audio_ended_at = audio_ended_at
        self._closing = False
        self._finished = False
        index, device = find_device(sounddevice.query_devices(), sounddevice.default.device[0], settings.device)
        self.name: str = device["name"]
        self._rate_hz = int(device["default_samplerate"])
        self.last_frame_at = clock_sec()
        self._first_block_until = self.last_frame_at + _FIRST_BLOCK_SEC
        self._channels = min(settings.channels, device["max_input_channels"])
        self._stream = sounddevice.InputStream(
            device=index,
            samplerate=self._rate_hz,
            channels=self._channels,
            dtype="float32",
            blocksize=round(self._rate_hz * settings.block_sec),
            latency=settings.latency_sec,
            callback=self._callback,
            finished_callback=self._finish,
        )
        self._stream.start()
        log.info("microphone_opened", device=self.name, rate_hz=self._rate_hz)

    def failure(self, stall_sec: float, watching_since: float) -> AudioDeviceLost | None:
        """Why nothing more comes, if that is so; a process that was frozen itself has to watch it for as long first."""
        if self._finished:
            return AudioDeviceLost(f"'{self.name}' stopped delivering audio")
        now = clock_sec()
        silent_sec = now - max(self.last_frame_at, watching_since)
        if now > self._first_block_until and silent_sec > stall_sec:
            return AudioStalled(f"'{self.name}' delivered no audio for {silent_sec:.1f} s")
        return None

    def retire(self) -> None:
        """Take no more frames."""
        self._closing = True

    def close(self) -> None:
        """Stop the device."""
        self.retire()
        self._stream.close()

    def last_loss(self) -> AudioBlock | None:
        """After ``close``: an empty block behind what was dropped last, if anything was."""
        dropped = self._gap.take_dropped()
        return AudioBlock(np.zeros((0, self._channels), np.float32), self._rate_hz, dropped) if dropped else None

    def _callback(self, frames: np.ndarray, num_frames: int, time_info: Any, status: Any) -> None:
        del time_info
        if self._closing:
            return
        now = self.last_frame_at = clock_sec()
        lost, earlier = self._gap.lost_frames(now, num_frames, self._rate_hz, overflowed=bool(status.input_overflow))
        announced = self._audio_ended_at is not None
        if self._audio_ended_at is not None:
            lost += max(0, round((now - self._audio_ended_at) * self._rate_hz) - num_frames)
            self._audio_ended_at = None
        if not self._blocks.put(AudioBlock(frames.copy(), self._rate_hz, lost, announced, earlier)):
            self._gap.drop(num_frames + lost + earlier)

    def _finish(self) -> None:
        self._finished = not self._closing


class _ControlThread:
    """Runs calls one after the other; a daemon, so that a call that hangs does not keep the process from leaving."""

    def __init__(self) -> None:
        self._calls: queue.Queue[tuple[Callable[[], Any], Future[Any]]] = queue.Queue()
        threading.Thread(target=self._run, name="capture-control", daemon=True).start()

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Have ``call`` run."""
        future: Future[Any] = Future()
        self._calls.put((call, future))
        return future

    def _run(self) -> None:
        while True:
            call, future = self._calls.get()
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 -- handed to the caller of submit
                future.set_exception(error)


def import_sounddevice() -> Any:
    """The module; it loads PortAudio.

    Raises:
        AudioDeviceUnavailable: the library is not there.
    """
    try:
        import sounddevice  # noqa: PLC0415
    except OSError as error:
        raise AudioDeviceUnavailable(
            f"PortAudio cannot be loaded ({describe(error)}); Debian and Ubuntu: apt-get install libportaudio2"
        ) from error
    return sounddevice


def find_device(devices: Any, default_index: int, wanted: str | int | None) -> tuple[int, dict[str, Any]]:
    """Index and description of the input device that ``wanted`` names.

    Args:
        devices: ``sounddevice.query_devices()``.
        default_index: the system's input device, negative for none.
        wanted: an index, a name or a part of one (the exact name first, then the first that holds it, case ignored), None for
            the default.
    """
    inputs = [(index, dict(device)) for index, device in enumerate(devices) if device["max_input_channels"] > 0]
    names = ", ".join(f"{index} '{device['name']}'" for index, device in inputs) or "none"
    if wanted is None:
        found = [entry for entry in inputs if entry[0] == default_index] or inputs
    elif isinstance(wanted, int):
        found = [entry for entry in inputs if entry[0] == wanted]
        if not found:
            raise ConfigInvalid([f"audio.device: {wanted} is no input device; there are: {names}"])
    else:
        found = [entry for entry in inputs if entry[1]["name"] == wanted]
        found = found or [entry for entry in inputs if wanted.casefold() in entry[1]["name"].casefold()]
    if not found:
        asked = f"no input device is named like '{wanted}'" if wanted is not None else "there is no input device"
        raise AudioDeviceUnavailable(f"{asked}; there are: {names}")
    return found[0]


def list_devices() -> list[str]:
    """A line for each input device, the default marked ``*``."""
    sounddevice = import_sounddevice()
    default = sounddevice.default.device[0]
    return [
        f"{'*' if index == default else ' '} {index:3d}  {device['name']}  "
        f"({device['max_input_channels']} channels, {device['default_samplerate']:.0f} Hz)"
        for index, device in enumerate(sounddevice.query_devices())
        if device["max_input_channels"] > 0
    ]
