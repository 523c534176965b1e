"""A microphone that tests can speak into, take away and bring back: the monitor of a PulseAudio null sink, private to the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from harness import RunningService, start_service

NEEDS_PULSEAUDIO = pytest.mark.skipif(
    not (shutil.which("pulseaudio") and shutil.which("paplay") and list(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so"))),
    reason="needs pulseaudio, pulseaudio-utils and libasound2-plugins (make test installs them on Debian)",
)
_SINK = ("module-null-sink", "sink_name=speaker", "rate=48000", "channels=2")


@dataclass
class VirtualMicrophone:
    """A PulseAudio server whose default source is the monitor of a null sink."""

    directory: Path
    sink: str = "speaker"
    """Where ``play`` speaks."""
    _server: subprocess.Popen[bytes] | None = field(default=None)
    _players: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def variables(self) -> dict[str, str]:
        directory = str(self.directory)
        return {"PULSE_SERVER": f"unix:{directory}/native", "HOME": directory, "XDG_RUNTIME_DIR": directory}

    def start(self) -> None:
        """Start the server, with the microphone; returns when it is there."""
        socket = self.directory / "native"
        socket.unlink(missing_ok=True)
        self._server = subprocess.Popen(
            [
                *("pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--log-level=error"),
                *("-L", f"module-native-protocol-unix socket={socket} auth-anonymous=1"),
                *("-L", " ".join(_SINK)),
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
            self._server.terminate()
            self._server.wait(timeout=10)
            self._server = None

    def unplug(self) -> None:
        """Take the microphone away; the server stays."""
        self.control("unload-module", "module-null-sink")

    def plug_in(self) -> None:
        """Bring it back."""
        self.control("load-module", *_SINK)
        self.control("set-default-source", "speaker.monitor")

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

    def begin_to_play(self, path: Path) -> subprocess.Popen[bytes]:
        """Speak a file while the test goes on."""
        player = subprocess.Popen(
            ["paplay", f"--device={self.sink}", str(path)], env={**os.environ, **self.variables}, stderr=subprocess.DEVNULL
        )
        self._players.append(player)
        return player

    def listen(self, mode: str, *arguments: str) -> RunningService:
        """The service on this microphone."""
        return start_service(mode, "--input", "mic", "--status-events", *arguments, **self.variables)
