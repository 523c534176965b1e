"""Opens and closes the device on the control thread, with deadlines, and tries again with pauses.

``MicrophoneSettings`` -> ``Capture``. A call that hangs is left behind with its thread; what it opens after all is closed. State: the try
in flight, the pause before the next, and the source to come back to. Used by the reading thread; raises ``AudioDeviceUnavailable``.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import Any

import structlog

from voice.capture.portaudio import BlockQueue, Capture, ControlThread, MicrophoneSettings, close_unwanted, import_sounddevice, result_of
from voice.capture.sound_server import SoundServer, Source
from voice.capture.sources import find_source
from voice.errors import AudioDeviceUnavailable, describe
from voice.losses import LossLedger
from voice.process.clock import clock_sec

_OPEN_TIMEOUT_SEC = 15.0
_CLOSE_TIMEOUT_SEC = 2.0
_SERVER_TIMEOUT_SEC = 1.0
"""A sound server that does not answer for this long is taken for none until it does."""
_SERVER_DEVICE = "pulse"
"""PortAudio's way to the sound server; the source is chosen by ``SoundServer.pin``."""
_FIRST_PAUSE_SEC, _LONGEST_PAUSE_SEC = 0.25, 1.0
"""Pause between two tries. A try costs 20 ms of compute; with pauses of 2 s a monitor source that came back was read after 4 s, with 1 s
after 2.1 s."""

log = structlog.get_logger()


class Opener:
    """The way to the device of one microphone."""

    def __init__(self, settings: MicrophoneSettings, blocks: BlockQueue, ledger: LossLedger) -> None:
        """Load PortAudio.

        Args:
            settings: which device, and how.
            blocks: where its audio goes.
            ledger: where lost audio is reported.

        Raises:
            AudioDeviceUnavailable: there is no PortAudio.
        """
        self._settings = settings
        self._blocks = blocks
        self._ledger = ledger
        self._control = ControlThread()
        self._opening: Future[Capture] | None = None
        self._abandoned: Future[None] | None = None
        """The closing of the device that was abandoned last."""
        self._opening_until = self._next_try_at = 0.0
        self._pause_sec = _FIRST_PAUSE_SEC
        self.home: Source | None = None
        """The source on which alone a device counts as back; None: any."""
        result_of(self._control.submit(import_sounddevice), _OPEN_TIMEOUT_SEC)
        self.sound_server = SoundServer()

    def open(self) -> Capture:
        """Open the device for the first time.

        Raises:
            AudioDeviceUnavailable: no such device, or it cannot be opened in time.
            ConfigInvalid: a device index that does not exist.
        """
        opening = self._control.submit(self._open)
        wait([opening], _OPEN_TIMEOUT_SEC)
        return self._result(opening)

    def open_anew(self, timeout_sec: float) -> Capture | None:
        """Go on looking for the device for this long; None: not opened yet.

        Raises:
            AudioDeviceUnavailable: a try failed; the next call goes on after a pause.
            ConfigInvalid: the device index does not exist now.
        """
        now = clock_sec()
        if self._opening is None:
            if now < self._next_try_at:
                time.sleep(min(timeout_sec, self._next_try_at - now))
                return None
            self._opening = self._control.submit(self._open_anew)
            self._opening_until = now + _OPEN_TIMEOUT_SEC
        opening = self._opening
        wait([opening], timeout_sec)
        if not opening.done() and clock_sec() < self._opening_until:
            return None
        self._opening = None
        self._next_try_at = clock_sec() + self._pause_sec
        self._pause_sec = min(2 * self._pause_sec, _LONGEST_PAUSE_SEC)
        return self._result(opening)

    def abandon(self, capture: Capture) -> None:
        """Close a device that is of no use any more; the next try is made at once, after it on the same thread."""
        capture.retire()
        self._abandoned = self._control.submit(capture.close)
        self._pause_sec, self._next_try_at = _FIRST_PAUSE_SEC, clock_sec()

    def close(self, capture: Capture | None) -> None:
        """Close the device, if it is open, and end a search. One that was abandoned just before is closed, too, when this returns.

        The process would else end with a segmentation fault: PortAudio's threads do not survive the interpreter.
        """
        if self._opening is not None:
            opening = self._opening
            self._control.submit(lambda: close_unwanted(opening))
        if capture is not None:
            capture.retire()
            try:
                result_of(self._control.submit(capture.close), _CLOSE_TIMEOUT_SEC)
            except AudioDeviceUnavailable as error:
                log.warning("microphone_close_failed", device=capture.name, error=describe(error))
        elif self._abandoned is not None:
            wait([self._abandoned], _CLOSE_TIMEOUT_SEC)
        self.sound_server.close()

    def _result(self, opening: Future[Capture]) -> Capture:
        """What a try opened. One that hangs is given up with its thread."""
        if not opening.done():
            self._control.submit(lambda: close_unwanted(opening))
            self._control = ControlThread()
            raise AudioDeviceUnavailable(f"PortAudio did not answer within {_OPEN_TIMEOUT_SEC:g} s")
        capture: Capture = result_of(opening, 0)
        return capture

    def _open(self) -> Capture:
        """Open the device. Control thread."""
        sounddevice = import_sounddevice()
        capture = Capture(sounddevice, self._on_source(sounddevice.query_devices()), self._blocks, self._ledger)
        capture.stream = self.sound_server.wait_for_stream(capture.opened_at, _SERVER_TIMEOUT_SEC)
        return capture

    def _on_source(self, devices: Any) -> MicrophoneSettings:
        """The settings, with the way to the sound server in the place of the name of one of its sources.

        A raw device beside a sound server would be refused, or take it from all others.

        Raises:
            AudioDeviceUnavailable: neither the server nor PortAudio has such a name.
        """
        wanted = self._settings.device
        names = [device["name"] for device in devices if device["max_input_channels"] > 0]
        if not isinstance(wanted, str) or wanted in names:
            return self._settings
        sources = self.sound_server.sources(_SERVER_TIMEOUT_SEC) or []
        source = find_source(sources, wanted)
        if source is not None:
            self.sound_server.pin(Source(source.name, source.description), asked_for=True)
            return replace(self._settings, device=_SERVER_DEVICE if _SERVER_DEVICE in names else None)
        if sources and not any(wanted.casefold() in name.casefold() for name in names):
            there = ", ".join(f"'{each.description}'" for each in sources)
            raise AudioDeviceUnavailable(f"no microphone is named like '{wanted}'; there are: {there}")
        return self._settings

    def _open_anew(self) -> Capture:
        """Open the device as it is found now, until it delivers, on its home source. Control thread."""
        home = self.home
        if home is not None:
            if self.sound_server.lacks(home, _SERVER_TIMEOUT_SEC):
                raise AudioDeviceUnavailable(f"the sound server has no '{home.description}' now")
            self.sound_server.pin(home)
        sounddevice = import_sounddevice()
        sounddevice._terminate()  # noqa: SLF001 -- PortAudio knows only the devices that were there when it was started
        sounddevice._initialize()  # noqa: SLF001
        capture = self._open()
        try:
            capture.await_frames()
            stream = capture.stream = capture.stream or self.sound_server.newest_stream(capture.opened_at)
            if home is not None and stream is not None and stream.source.name != home.name:
                raise AudioDeviceUnavailable(f"'{capture.name}' opened on '{stream.source.description}', not on '{home.description}'")
        except AudioDeviceUnavailable:
            capture.close()
            raise
        return capture
