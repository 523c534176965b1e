"""PortAudio: one opening of a device, the queue behind its callback, and the thread on which all of PortAudio's calls run.

Frames of a device -> ``AudioBlock`` in a ``BlockQueue``; lost audio is reported to the ``LossLedger``. The callback measures, copies
and enqueues, nothing else. Every other call runs on a ``ControlThread``, because it can hang; a thread that hangs is left behind.
``sounddevice`` is imported there, so that a machine without PortAudio still runs on files. Raises ``AudioDeviceUnavailable``.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as CallTimeout  # the builtin one from Python 3.11 on
from dataclasses import dataclass
from typing import Any

import numpy as np

from voice.audio import AudioBlock
from voice.capture.devices import find_device
from voice.capture.gap_meter import GapMeter
from voice.capture.sound_server import Stream
from voice.errors import AudioDeviceLost, AudioDeviceUnavailable, AudioStalled, ConfigInvalid, InputError, describe
from voice.losses import LossLedger
from voice.process.clock import clock_sec

FIRST_BLOCK_SEC = 5.0
"""An opened device may take this long for its first block: PulseAudio's monitor sources were seen to take up to 2.3 s."""
_OLDEST_FRAME_SEC = 60.0
"""A capture time further back than this is implausible: some drivers report 0 or another clock."""


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
    """Device buffer: a callback that Python runs up to this much late loses nothing."""
    queue_sec: float
    """Bound of the queue between callback and worker."""
    stall_sec: float
    """A device that delivers no frame for this long counts as lost."""
    zeros_sec: float
    """After this much exact silence the device is opened anew, once in each period of silence; 0 never."""
    wait_for_device: bool
    """Whether a microphone that is not there, or goes away, is waited for."""


def result_of(future: Future[Any], timeout_sec: float) -> Any:
    """Result of a call on the control thread.

    Raises:
        AudioDeviceUnavailable: there was none in time; or for whatever PortAudio raised.
        ConfigInvalid: a device index that does not exist.
    """
    try:
        return future.result(timeout_sec)
    except (InputError, ConfigInvalid):
        raise
    except CallTimeout:
        raise AudioDeviceUnavailable(f"PortAudio did not answer within {timeout_sec:g} s") from None
    except Exception as error:
        raise AudioDeviceUnavailable(describe(error)) from error


def close_unwanted(opening: Future[Capture]) -> None:
    """Close what an opening that was given up has opened after all. Control thread, behind it."""
    if opening.exception() is None:
        opening.result().close()


class BlockQueue:
    """Blocks between callback and worker, each with its opening; bounded in seconds."""

    def __init__(self, max_sec: float) -> None:
        self._max_sec = max_sec
        self._blocks: deque[tuple[Capture, AudioBlock]] = deque()
        self._filled = threading.Condition(threading.Lock())
        self._wanted_sec = 0.0
        self.waiting_sec = 0.0

    def has_room(self, duration_sec: float) -> bool:
        """Whether a block of this length fits. Only the callback puts, so it still does when it is put."""
        return self.waiting_sec + duration_sec <= self._max_sec

    def put(self, capture: Capture, block: AudioBlock) -> None:
        """Add the newest block."""
        with self._filled:
            self._blocks.append((capture, block))
            self.waiting_sec += block.duration_sec
            if self.waiting_sec >= self._wanted_sec:
                self._filled.notify()

    def get(self, timeout_sec: float, gather_sec: float = 0.0) -> tuple[Capture, AudioBlock] | None:
        """The oldest block and the opening that captured it; None when there was none in time.

        Args:
            timeout_sec: how long to wait where there is none.
            gather_sec: wait until blocks of this length are there, rather than for one, and give them as one block. A timeout ends the
                wait with what there is.
        """
        with self._filled:
            if not self._blocks and timeout_sec:
                self._wanted_sec = gather_sec
                self._filled.wait_for(lambda: bool(self._blocks) and self.waiting_sec >= gather_sec, timeout_sec)
            if not self._blocks:
                return None
            capture, block = self._blocks.popleft()
            while block.duration_sec < gather_sec and self._blocks and self._continues(capture, block):
                block = block.joined(self._blocks.popleft()[1])
            self.waiting_sec -= block.duration_sec
        return capture, block

    def _continues(self, capture: Capture, block: AudioBlock) -> bool:
        """Whether the next block in the queue is the continuation of this one."""
        next_capture, next_block = self._blocks[0]
        return next_capture is capture and block.is_followed_by(next_block)


class Capture:
    """One opening of a device. Made and closed on the control thread; delivers nothing before ``accept``."""

    def __init__(self, sounddevice: Any, settings: MicrophoneSettings, blocks: BlockQueue, ledger: LossLedger) -> None:
        """Open and start.

        Args:
            sounddevice: the module.
            settings: which device, and how.
            blocks: where its audio goes.
            ledger: where lost audio is reported.
        """
        self._blocks = blocks
        self._ledger = ledger
        self._gap = GapMeter()
        self._accepting = self._announced = self._closing = self._finished = False
        self.delivered = False
        """A block was captured since ``accept``."""
        self.audio_ended_at: float | None = None
        """``clock_sec()`` at the end of the audio captured so far, by this opening or those before it; None before any."""
        self.stream: Stream | None = None
        """Its stream on the sound server, once that is known."""
        self.trusted_until: float | None = None
        """Audio captured after this time (``clock_sec()``) came from another source; None: all of it is trusted."""
        index, device = find_device(sounddevice.query_devices(), sounddevice.default.device[0], settings.device)
        self.name: str = device["name"]
        self.rate_hz = int(device["default_samplerate"])
        self.channels: int = min(settings.channels, device["max_input_channels"])
        self.opened_at = self._last_frame_at = clock_sec()
        self._frames_arrived = threading.Event()
        self._stream = sounddevice.InputStream(
            device=index,
            samplerate=self.rate_hz,
            channels=self.channels,
            dtype="float32",
            blocksize=round(self.rate_hz * settings.block_sec),
            latency=settings.latency_sec,
            callback=self._callback,
            finished_callback=self._finish,
        )
        self._stream.start()

    def await_frames(self) -> None:
        """Wait for the first block.

        Raises:
            AudioStalled: it did not come in time.
        """
        if not self._frames_arrived.wait(FIRST_BLOCK_SEC):
            raise AudioStalled(f"'{self.name}' delivered no audio for {FIRST_BLOCK_SEC:.1f} s after it was opened")

    def accept(self, audio_ended_at: float | None, *, announced: bool) -> None:
        """Deliver blocks from now on.

        Args:
            audio_ended_at: end of the audio that earlier openings captured; what is missing since then is reported as lost with the
                first block. None at the first opening: nothing is missing before it.
            announced: an error event about the missing audio was sent already.
        """
        self.audio_ended_at = audio_ended_at
        self._announced = announced
        self._accepting = True

    def failure(self, stall_sec: float, watching_since: float) -> AudioDeviceLost | None:
        """The reason why no more blocks come, or None.

        Args:
            stall_sec: a device is stalled after this long without a frame.
            watching_since: this process stood still before; silence before this time does not count.
        """
        if self._finished:
            return AudioDeviceLost(f"'{self.name}' stopped delivering audio")
        now = clock_sec()
        silent_sec = now - max(self._last_frame_at, watching_since)
        may_start_until = self.opened_at + (0 if self._frames_arrived.is_set() else FIRST_BLOCK_SEC)
        if now > may_start_until and silent_sec > stall_sec:
            return AudioStalled(f"'{self.name}' delivered no audio for {silent_sec:.1f} s")
        return None

    def retire(self) -> None:
        """Take no more frames."""
        self._closing = True

    def close(self) -> None:
        """Stop the device."""
        self.retire()
        self._stream.close()

    def _callback(self, frames: np.ndarray, num_frames: int, time_info: Any, status: Any) -> None:
        if self._closing:
            return
        now = self._last_frame_at = clock_sec()
        if not self._frames_arrived.is_set():
            self._frames_arrived.set()
        if not self._accepting:
            return
        block_sec = num_frames / self.rate_hz
        if not self.delivered and self.audio_ended_at is not None:
            self._ledger.report(now - block_sec - self.audio_ended_at, "the microphone was opened anew", announced=self._announced)
        lost, late = self._gap.lost_frames(now, num_frames, self.rate_hz, overflowed=bool(status.input_overflow))
        self._ledger.report(lost / self.rate_hz, "audio was lost between device and recogniser")
        self._ledger.report(late / self.rate_hz, "audio was lost between device and recogniser", late=True)
        if self._blocks.has_room(block_sec):
            captured_at = now - _age_sec(time_info, block_sec)
            self._blocks.put(self, AudioBlock(frames.copy(), self.rate_hz, self._ledger.seal(), captured_at))
        else:
            self._ledger.report(block_sec, "recognition is slower than the microphone, its queue is full")
        self.audio_ended_at = now
        self.delivered = True

    def _finish(self) -> None:
        self._finished = not self._closing


def _age_sec(time_info: Any, block_sec: float) -> float:
    """Seconds since the block's first frame: as the driver reports where that is plausible, else the block's length."""
    reported_sec = time_info.currentTime - time_info.inputBufferAdcTime
    return float(reported_sec) if block_sec < reported_sec < _OLDEST_FRAME_SEC else block_sec


class ControlThread:
    """Runs calls one after the other; a daemon, so that a call that hangs does not keep the process from ending."""

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
