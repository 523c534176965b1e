"""PortAudio: one opening of a device, the queue behind its callback, and the thread on which all of PortAudio's calls run.

The callback copies, stamps and enqueues, nothing else. Every other call runs on a ``ControlThread``, because it can hang; a thread that
hangs is left behind. ``sounddevice`` is imported there, so that a machine without PortAudio still runs on files.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as CallTimeout  # the builtin one from Python 3.11 on
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog

from voice.audio import AudioBlock
from voice.capture.devices import find_device
from voice.capture.gap_meter import GapMeter, clock_sec
from voice.errors import AudioDeviceLost, AudioDeviceUnavailable, AudioStalled, ConfigInvalid, InputError, describe

_FIRST_BLOCK_SEC = 5.0
"""Grace for the first block: PulseAudio's monitor sources were seen to take up to 2.3 s."""

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


def result_of(future: Future[Any], timeout_sec: float) -> Any:
    """What a call on the control thread gave; whatever PortAudio raises means that there is no microphone."""
    try:
        return future.result(timeout_sec)
    except (InputError, ConfigInvalid):
        raise
    except CallTimeout:
        raise AudioDeviceUnavailable(f"PortAudio did not answer within {timeout_sec:g} s") from None
    except Exception as error:
        raise AudioDeviceUnavailable(describe(error)) from error


def close_unwanted(opening: Future[Capture]) -> None:
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


class Capture:
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


class ControlThread:
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
