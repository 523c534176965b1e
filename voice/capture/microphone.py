"""The microphone -> ``AudioBlock``, through PortAudio.

The PortAudio callback copies, stamps and enqueues, nothing else. Every other PortAudio call runs on the capture-control thread, because
they can hang; the caller waits with a deadline. Holds the queue between callback and worker: bounded in seconds, full it drops the
newest, and what was lost is carried by the next block that fits. ``sounddevice`` is imported on that thread, so that a
machine without PortAudio still runs on files.
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
from voice.errors import AudioDeviceLost, AudioDeviceUnavailable, AudioStalled, ConfigInvalid, InputError, describe

_OPEN_TIMEOUT_SEC = 15.0
_CLOSE_TIMEOUT_SEC = 2.0
_FIRST_BLOCK_SEC = 5.0
"""Grace for the first block: PulseAudio's monitor sources were seen to take up to 2.3 s."""
_CLOCK_SLACK_SEC = 0.1
"""Callbacks come in bursts: so much of a difference between the clock and the frames is no loss."""

_DRIFT_WINDOW_SEC = 60.0

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


class Microphone:
    """An open microphone."""

    def __init__(self, settings: MicrophoneSettings) -> None:
        """Open the device.

        Raises:
            AudioDeviceUnavailable: no such device, no PortAudio, or it cannot be opened in time.
            ConfigInvalid: a device index that does not exist.
        """
        self._settings = settings
        self._queue: queue.Queue[AudioBlock] = queue.Queue()
        self._queued_sec = 0.0
        self._lock = threading.Lock()
        self._gap = GapMeter()
        self._control = _ControlThread()
        self._last_frame_at = math.inf
        self._failure: InputError | None = None
        self.ended = False
        self._stream, self._rate_hz, self.name = self._on_control_thread(self._open, _OPEN_TIMEOUT_SEC)
        log.info("microphone_opened", device=self.name, rate_hz=self._rate_hz)

    @property
    def waiting_sec(self) -> float:
        """Seconds of audio in the queue."""
        return self._queued_sec

    def read(self, timeout_sec: float) -> AudioBlock | None:
        """The next block, or None when the device gave none in time."""
        try:
            block = self._queue.get(timeout=0 if self.ended else timeout_sec)
        except queue.Empty:
            if self.ended:
                return None
            silent_sec = time.monotonic() - self._last_frame_at
            if self._failure or silent_sec > self._settings.stall_sec:
                raise self._failure or AudioStalled(f"'{self.name}' delivered no audio for {silent_sec:.1f} s") from None
            return None
        with self._lock:
            self._queued_sec -= block.duration_sec
        return block

    def close(self) -> None:
        """Stop the device. A PortAudio that hangs is left behind on its thread."""
        if self.ended:
            return
        self.ended = True
        try:
            self._on_control_thread(self._stream.close, _CLOSE_TIMEOUT_SEC)
        except AudioDeviceUnavailable as error:
            log.warning("microphone_close_failed", device=self.name, error=describe(error))

    def _on_control_thread(self, call: Callable[[], Any], timeout_sec: float) -> Any:
        try:
            return self._control.submit(call).result(timeout_sec)
        except (InputError, ConfigInvalid):
            raise
        except CallTimeout:
            raise AudioDeviceUnavailable(f"PortAudio did not answer within {timeout_sec:.0f} s") from None
        except Exception as error:  # PortAudioError and what its bindings raise: all mean that there is no microphone
            raise AudioDeviceUnavailable(describe(error)) from error

    def _open(self) -> tuple[Any, int, str]:
        sounddevice = import_sounddevice()
        index, device = find_device(sounddevice.query_devices(), sounddevice.default.device[0], self._settings.device)
        self._rate_hz = int(device["default_samplerate"])
        self.name = device["name"]
        stream = sounddevice.InputStream(
            device=index,
            samplerate=self._rate_hz,
            channels=min(self._settings.channels, device["max_input_channels"]),
            dtype="float32",
            blocksize=round(self._rate_hz * self._settings.block_sec),
            latency=self._settings.latency_sec,
            callback=self._callback,
            finished_callback=self._finished,
        )
        self._last_frame_at = time.monotonic() + _FIRST_BLOCK_SEC
        stream.start()
        return stream, self._rate_hz, device["name"]

    def _callback(self, frames: np.ndarray, num_frames: int, time_info: Any, status: Any) -> None:
        del time_info
        now = self._last_frame_at = time.monotonic()
        lost = self._gap.lost_frames(now, num_frames, self._rate_hz, overflowed=bool(status.input_overflow))
        block = AudioBlock(frames.copy(), self._rate_hz, lost)
        with self._lock:
            if self._queued_sec + block.duration_sec > self._settings.queue_sec:
                self._gap.drop(num_frames + lost)
                return
            self._queued_sec += block.duration_sec
        self._queue.put_nowait(block)

    def _finished(self) -> None:
        if not self.ended:
            self._failure = AudioDeviceLost(f"'{self.name}' stopped delivering audio")


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


class GapMeter:
    """Frames that a device lost, from the clock: PortAudio says that there was an overflow, not how long it was."""

    def __init__(self) -> None:
        self._started_at: float | None = None
        self._frames = 0
        self._dropped = 0
        # The least delay of the last two windows: clocks drift apart, 100 ppm make a second in three hours.
        self._window_end = 0.0
        self._least_delays_sec = (math.inf, math.inf)

    def drop(self, num_frames: int) -> None:
        """Frames that were delivered but found no place; the next block reports them."""
        self._dropped += num_frames

    def lost_frames(self, now: float, num_frames: int, rate_hz: int, *, overflowed: bool) -> int:
        """Frames lost before the ``num_frames`` that are delivered ``now``."""
        if self._started_at is None:
            self._started_at = now - num_frames / rate_hz
        delay_sec = now - self._started_at - (self._frames + num_frames) / rate_hz
        lost = 0
        if overflowed:
            expected_sec = min(*self._least_delays_sec, delay_sec) + _CLOCK_SLACK_SEC
            lost = round(max(delay_sec - expected_sec, num_frames / rate_hz) * rate_hz)
            delay_sec -= lost / rate_hz
        if now >= self._window_end:
            self._window_end = now + _DRIFT_WINDOW_SEC
            self._least_delays_sec = (self._least_delays_sec[1], delay_sec)
        self._least_delays_sec = (self._least_delays_sec[0], min(self._least_delays_sec[1], delay_sec))
        self._frames += num_frames + lost
        lost, self._dropped = lost + self._dropped, 0
        return lost


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
