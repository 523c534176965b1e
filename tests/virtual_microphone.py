"""A microphone that tests can speak into, take away and bring back: the monitor of a PulseAudio null sink, private to the test."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from harness import STARTED, RunningService, start_service

NEEDS_PULSEAUDIO = pytest.mark.skipif(
    not (shutil.which("pulseaudio") and shutil.which("paplay") and list(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so"))),
    reason="needs pulseaudio, pulseaudio-utils and libasound2-plugins (make test installs them on Debian)",
)
DESCRIPTION = "Monitor of Null Output"
"""What the server calls the microphone."""


def _sink(name: str, *properties: str) -> tuple[str, ...]:
    return ("module-null-sink", f"sink_name={name}", "rate=48000", "channels=2", *properties)


@dataclass
class VirtualMicrophone:
    """A PulseAudio server whose default source is the monitor of a null sink.

    As desktops do, it moves streams whose source vanishes to another source, if there is one (``module-rescue-streams``).
    """

    directory: Path
    sink: str = "speaker"
    """Where ``play`` speaks."""
    _server: subprocess.Popen[bytes] | None = field(default=None)
    _players: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def variables(self) -> dict[str, str]:
        directory = str(self.directory)
        server = {"PULSE_SERVER": f"unix:{directory}/native", "HOME": directory, "XDG_RUNTIME_DIR": directory}
        return {**server, "VOICE_ASR__AUDIO__SILENT_SEC": "0"}  # nobody speaks into it for long

    def start(self) -> None:
        """Start the server, with the microphone; returns when it is there."""
        socket = self.directory / "native"
        socket.unlink(missing_ok=True)
        self._server = subprocess.Popen(
            [
                *("pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--log-level=error"),
                *("-L", f"module-native-protocol-unix socket={socket} auth-anonymous=1"),
                *("-L", "module-rescue-streams"),
                *("-L", " ".join(_sink("speaker"))),
            ],
            env={**os.environ, **self.variables},
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 10
        while not socket.exists() or "speaker.monitor" not in self.control("list", "short", "sources"):
            assert self._server.poll() is None, "pulseaudio did not start"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.control("set-default-source", "speaker.monitor")

    def stop(self) -> None:
        """End the server, and who still plays."""
        while self._players:
            player = self._players.pop()
            player.terminate()
            player.wait(timeout=10)
        if self._server:
            self.thaw()
            self._server.terminate()
            self._server.wait(timeout=10)
            self._server = None

    def unplug(self) -> None:
        """Take the microphone away; the server stays."""
        modules = self.control("list", "short", "modules").splitlines()
        (index,) = (module.split()[0] for module in modules if "sink_name=speaker" in module)
        self.control("unload-module", index)

    def plug_in(self) -> None:
        """Bring it back."""
        self.control("load-module", *_sink("speaker"))
        self.control("set-default-source", "speaker.monitor")

    def plug_in_another(self) -> None:
        """A second microphone: "Monitor of Webcam" of the sink ``webcam``."""
        self.control("load-module", *_sink("webcam", "sink_properties=device.description=Webcam"))

    def freeze(self) -> None:
        """The server hangs until ``thaw``."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """The server goes on."""
        assert self._server is not None
        self._server.send_signal(signal.SIGCONT)

    def control(self, *arguments: str) -> str:
        return subprocess.run(
            ["pactl", *arguments], env={**os.environ, **self.variables}, check=True, capture_output=True, text=True, timeout=10
        ).stdout

    def play(self, path: Path) -> None:
        """Speak a file into the microphone; returns when it was heard.

        It falls into the windows at a chance moment: tests that compare whole texts play what the small model hears rightly at each.
        In 120 plays of ``air_conditioner.wav`` the least confidence of a token was 0.96; of 285 of ``temperature.wav``, with its number,
        2 were wrong.
        """
        subprocess.run(["paplay", f"--device={self.sink}", str(path)], env={**os.environ, **self.variables}, check=True, timeout=60)

    def begin_to_play(self, path: Path, sink: str | None = None) -> subprocess.Popen[bytes]:
        """Speak a file while the test goes on."""
        player = subprocess.Popen(
            ["paplay", f"--device={sink or self.sink}", str(path)], env={**os.environ, **self.variables}, stderr=subprocess.DEVNULL
        )
        self._players.append(player)
        return player

    def listen(self, mode: str, *arguments: str) -> RunningService:
        """The service on this microphone."""
        return start_service(mode, "--input", "mic", "--status-events", *arguments, **self.variables)

    def begin_tone(self, hz: int, sink: str | None = None) -> None:
        """Two minutes of a tone."""
        path = self.directory / f"{hz}.wav"
        if not path.exists():
            soundfile.write(path, 0.3 * np.sin(2 * np.pi * hz * np.arange(120 * 16_000) / 16_000), 16_000)
        self.begin_to_play(path, sink)

    def capture(self, *, variables: dict[str, str] | None = None, **settings: Any) -> RunningService:
        """``microphone_driver.py`` on this microphone: ``Microphone`` alone, without recognition."""
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "microphone_driver.py"), json.dumps(settings)],
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, **self.variables, **(variables or {})},
        )
        STARTED.append(RunningService(process))
        return STARTED[-1]


def stop_capture(capturing: RunningService) -> dict[str, Any]:
    """What the driver says at its end."""
    capturing.process.send_signal(signal.SIGTERM)
    rest, _ = capturing.process.communicate(timeout=30)
    assert capturing.process.returncode == 0
    last: dict[str, Any] = json.loads(rest.splitlines()[-1])
    return last
