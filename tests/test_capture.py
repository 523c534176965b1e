"""Real capture: PortAudio on the monitor of a PulseAudio null sink, private to the test, into which a file is played."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import ENTRIES, EXAMPLES, REPOSITORY, RunningService, environment, example, final_texts, of_type, start_service

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (
            shutil.which("pulseaudio")
            and shutil.which("paplay")
            and list(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so"))
        ),
        reason="needs pulseaudio, pulseaudio-utils and libasound2-plugins (make test installs them on Debian)",
    ),
]


@dataclass
class VirtualMicrophone:
    """A PulseAudio server whose default source is the monitor of a null sink."""

    server: str
    directory: Path

    @property
    def variables(self) -> dict[str, str]:
        return {"PULSE_SERVER": self.server, "HOME": str(self.directory), "XDG_RUNTIME_DIR": str(self.directory)}

    def control(self, *arguments: str) -> str:
        return subprocess.run(
            ["pactl", *arguments], env={**os.environ, **self.variables}, check=True, capture_output=True, text=True, timeout=10
        ).stdout

    def play(self, path: Path) -> None:
        """Speak a file into the microphone; returns when it was heard."""
        subprocess.run(["paplay", "--device=speaker", str(path)], env={**os.environ, **self.variables}, check=True, timeout=60)


@pytest.fixture
def microphone(tmp_path: Path) -> Iterator[VirtualMicrophone]:
    server = f"unix:{tmp_path}/native"
    virtual = VirtualMicrophone(server, tmp_path)
    process = subprocess.Popen(
        [
            *("pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--log-level=error"),
            *("-L", f"module-native-protocol-unix socket={tmp_path}/native auth-anonymous=1"),
            *("-L", "module-null-sink sink_name=speaker rate=48000 channels=2"),
        ],
        env={**os.environ, **virtual.variables},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while not (tmp_path / "native").exists() or "speaker.monitor" not in virtual.control("list", "short", "sources"):
            assert process.poll() is None, "pulseaudio did not start"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        virtual.control("set-default-source", "speaker.monitor")
        yield virtual
    finally:
        process.terminate()
        process.wait(timeout=10)


def listen(microphone: VirtualMicrophone, mode: str, *arguments: str) -> RunningService:
    return start_service(mode, "--input", "mic", "--status-events", *arguments, **microphone.variables)


def is_listening(event: dict) -> bool:
    return event.get("state") == "listening"


def is_final(event: dict) -> bool:
    return event["type"].endswith("final")


@pytest.mark.parametrize("mode", ENTRIES)
def test_what_is_played_into_the_microphone_comes_out_as_partials_and_a_final(microphone: VirtualMicrophone, mode: str) -> None:
    service = listen(microphone, mode, "--device", "pul")  # a part of the name
    service.wait_for(is_listening)
    microphone.play(EXAMPLES / "temperature.wav")
    final = service.wait_for(is_final)
    service.process.send_signal(signal.SIGTERM)
    events, code = service.finish()
    assert code == 0
    assert final["raw_text"] == example("temperature")[1][0]
    assert final["endpoint"] == "silence"
    partials = [event for event in of_type(events, "partial") if event["trace_id"] == final["trace_id"]]
    assert len(partials) >= 2
    stopped = of_type(events, "status_event")[-1]
    assert stopped["totals"]["lost_ms"] == 0


def test_nothing_overflows_while_models_load_and_the_first_words_are_recognised(microphone: VirtualMicrophone) -> None:
    """Speech that begins as soon as the microphone is open, before the models are there."""
    service = start_service(
        "streaming", "--input", "mic", "--status-events", "--device", "pulse", stderr=subprocess.PIPE, **microphone.variables
    )
    stderr = service.process.stderr
    assert stderr is not None
    while b"microphone_opened" not in stderr.readline():
        pass
    microphone.play(EXAMPLES / "two_utterances.wav")
    texts = [service.wait_for(is_final)["raw_text"] for _ in range(2)]
    service.process.send_signal(signal.SIGTERM)
    log = stderr.read()
    events, code = service.finish()
    stderr.close()
    assert code == 0
    assert texts == list(example("two_utterances")[1])
    assert of_type(events, "status_event")[-1]["totals"]["lost_ms"] == 0
    assert of_type(events, "error_event") == []
    assert b"microphone_opened" not in log


def test_a_signal_in_the_middle_of_live_speech_gives_the_final_within_3_seconds(microphone: VirtualMicrophone) -> None:
    service = listen(microphone, "streaming")
    service.wait_for(is_listening)
    player = subprocess.Popen(["paplay", "--device=speaker", str(EXAMPLES / "temperature.wav")], env={**os.environ, **microphone.variables})
    partial = service.wait_for(lambda event: event["type"].endswith("partial") and len(event["text"]) >= 5)
    sent = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    events, code = service.finish()
    assert time.monotonic() - sent < 3
    player.wait(timeout=10)
    (final,) = of_type(events, "final")
    assert code == 0
    assert (final["trace_id"], final["endpoint"]) == (partial["trace_id"], "shutdown")
    assert final["raw_text"].startswith(partial["text"][: partial["stable_chars"]])


def test_a_microphone_that_vanishes_ends_the_utterance_with_its_final_and_an_error(microphone: VirtualMicrophone) -> None:
    service = listen(microphone, "streaming", "--device", "pulse")
    service.wait_for(is_listening)
    player = subprocess.Popen(["paplay", "--device=speaker", str(EXAMPLES / "temperature.wav")], env={**os.environ, **microphone.variables})
    partial = service.wait_for(lambda event: event["type"].endswith("partial") and len(event["text"]) >= 5)
    microphone.control("unload-module", "module-null-sink")
    events, code = service.finish()
    player.wait(timeout=10)
    (final,) = of_type(events, "final")
    (error,) = of_type(events, "error_event")
    assert code == 4
    assert (final["trace_id"], final["endpoint"]) == (partial["trace_id"], "audio_lost")
    assert error["error_code"] in ("audio_stalled", "audio_device_lost")  # PortAudio notices, or frames just stop
    assert (error["recoverable"], error["trace_id"]) == (False, final["trace_id"])


def test_list_devices_names_the_microphone(microphone: VirtualMicrophone) -> None:
    output = subprocess.run(
        [sys.executable, str(REPOSITORY / ENTRIES["sliced"]), "--list-devices"],
        env=environment(**microphone.variables),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert any("pulse" in line and "Hz" in line for line in output.splitlines())


def test_final_texts_of_two_modes_agree_on_live_audio(microphone: VirtualMicrophone) -> None:
    """Both entries listen to the same microphone at once."""
    services = [listen(microphone, mode, "--device", "pulse") for mode in ENTRIES]
    for service in services:
        service.wait_for(is_listening)
    microphone.play(EXAMPLES / "air_conditioner.wav")
    for service in services:
        service.wait_for(is_final)
        service.process.send_signal(signal.SIGINT)
    for service in services:
        events, code = service.finish()
        assert (final_texts(events), code) == (list(example("air_conditioner")[1]), 0)
