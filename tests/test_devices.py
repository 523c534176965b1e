"""The microphones as people know them, and the service on one that was named by a part of that."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from harness import EXAMPLES, REPOSITORY, environment, final_texts, in_time, of_type, start_service
from virtual_microphone import NEEDS_PULSEAUDIO, VirtualMicrophone

from voice.capture.sound_server import SoundServer
from voice.capture.sources import MicrophoneInfo, find_source, handle_of, list_inputs, table_of

JABRA = MicrophoneInfo("alsa_input.usb-0b0e_Jabra_SPEAK_510", "Jabra Speak 510 Mono", 48_000, 1, is_default=True)
BUILT_IN = MicrophoneInfo("alsa_input.pci-0000_00_1f.3", "Built-in Audio Analog Stereo", 44_100, 2, is_default=False)
MONITOR = MicrophoneInfo("alsa_output.usb-0b0e_Jabra.monitor", "Monitor of Jabra Speak 510", 48_000, 2, is_default=False, is_monitor=True)
ALL = [JABRA, BUILT_IN, MONITOR]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("jabra", JABRA),
        ("JABRA speak", JABRA),
        ("built-in", BUILT_IN),
        ("pci-0000", BUILT_IN),
        ("Monitor of Jabra Speak 510", MONITOR),
        ("monitor", MONITOR),
        (JABRA.name, JABRA),
        ("webcam", None),
    ],
)
def test_any_part_of_either_name_finds_it_and_microphones_come_before_monitors(wanted: str, found: MicrophoneInfo | None) -> None:
    assert find_source(ALL, wanted) is found


def test_of_several_the_default_is_meant() -> None:
    other = MicrophoneInfo("second", "Jabra Speak 510 Mono", 48_000, 1, is_default=False)
    assert find_source([other, JABRA], "speak") is JABRA


def test_a_handle_is_a_word_that_means_it_alone() -> None:
    assert handle_of(BUILT_IN, ALL) == "built-in"
    assert handle_of(MONITOR, ALL) == "monitor"
    assert handle_of(JABRA, ALL) == "mono"
    assert handle_of(JABRA, [JABRA, BUILT_IN]) == "jabra"
    twin = MicrophoneInfo("second", "Jabra Speak 510 Mono", 48_000, 1, is_default=False)
    assert handle_of(twin, [*ALL, twin]) == "second"
    assert all(find_source(ALL, handle_of(each, ALL)) is each for each in ALL)


def test_the_table_is_aligned_and_says_what_is_special() -> None:
    muted = MicrophoneInfo("m", "会议麦克风", 16_000, 1, is_default=False, is_muted=True)
    lines = table_of([JABRA, muted, MONITOR]).splitlines()
    assert lines[0].startswith("* mono")
    assert '"Jabra Speak 510 Mono"' in lines[0]
    assert lines[0].endswith("48 kHz  1 ch  default")
    assert lines[1].endswith("16 kHz  1 ch  muted")
    assert lines[2].endswith("monitor: what is played, not what is said")


def test_portaudios_inputs_where_there_is_no_server() -> None:
    devices = [
        {"name": "HDMI", "max_input_channels": 0, "default_samplerate": 48_000.0},
        {"name": "USB", "max_input_channels": 2, "default_samplerate": 44_100.0},
    ]
    assert list_inputs(devices, 1) == [MicrophoneInfo("USB", "USB", 44_100, 2, is_default=True, index=1)]


# --- on a real server ---------------------------------------------------------------------------------------------------


def devices(microphone: VirtualMicrophone, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "voice", "devices", *flags],
        cwd=REPOSITORY,
        env=environment(PYTHONIOENCODING="utf-8", **microphone.variables),
        capture_output=True,
        text=True,
        check=False,
    )


@NEEDS_PULSEAUDIO
@pytest.mark.slow
def test_a_server_that_hangs_has_no_sources_and_costs_one_thread(microphone: VirtualMicrophone, monkeypatch: pytest.MonkeyPatch) -> None:
    """A microphone that is looked for by its name asks every second."""
    for name, value in microphone.variables.items():
        monkeypatch.setenv(name, value)
    server = SoundServer()
    found = server.sources(in_time(5))
    assert found is not None
    assert [each.description for each in found] == ["Monitor of Null Output"]
    microphone.freeze()
    threads = threading.active_count()
    assert [server.sources(0.2) for _ in range(5)] == [None] * 5
    assert threading.active_count() <= threads
    microphone.thaw()
    assert server.sources(in_time(5)) == found
    server.close()


@NEEDS_PULSEAUDIO
@pytest.mark.slow
def test_the_sources_of_the_server_are_listed(microphone: VirtualMicrophone) -> None:
    microphone.plug_in_another()
    microphone.control(
        "load-module", "module-null-sink", "sink_name=headset", "rate=16000", "channels=1", "sink_properties=device.description=Headset"
    )
    result = devices(microphone)
    assert result.returncode == 0, result.stderr
    assert "* null" in result.stdout
    assert '"Monitor of Webcam"' in result.stdout
    listed = {each["description"]: each for each in json.loads(devices(microphone, "--json").stdout)}
    assert listed["Monitor of Null Output"]["is_default"]
    formats = {each["name"]: (each["rate_hz"], each["channels"]) for each in listed.values()}
    assert formats == {"speaker.monitor": (48_000, 2), "webcam.monitor": (48_000, 2), "headset.monitor": (16_000, 1)}
    assert listed["Monitor of Webcam"] == {
        "device": "webcam", "name": "webcam.monitor", "description": "Monitor of Webcam", "rate_hz": 48_000, "channels": 2,
        "is_default": False, "is_monitor": True, "is_muted": False, "index": None,
    }  # fmt: skip


@NEEDS_PULSEAUDIO
@pytest.mark.slow
def test_a_microphone_named_by_a_part_of_its_name_is_the_one_that_is_heard(microphone: VirtualMicrophone) -> None:
    microphone.plug_in_another()
    service = microphone.listen("streaming", "--device", "WEBcam")
    listening = service.wait_for(lambda event: event.get("state") == "listening")
    assert listening["device"] == "Monitor of Webcam"
    microphone.sink = "webcam"
    microphone.play(EXAMPLES / "air_conditioner.wav")
    service.wait_for(lambda event: event["type"].endswith("final"))
    service.process.terminate()
    events, code = service.finish()
    assert (code, final_texts(events)) == (0, ["打开卧室的空调"])
    assert all(event["level"] for event in of_type(events, "final"))


@NEEDS_PULSEAUDIO
@pytest.mark.slow
def test_a_microphone_that_is_muted_is_reported_and_clipping_too(microphone: VirtualMicrophone, tmp_path: Path) -> None:
    variables = {**microphone.variables, "VOICE_ASR__AUDIO__SILENT_SEC": "2"}
    service = start_service("streaming", "--input", "mic", "--status-events", **variables)
    silent = service.wait_for(lambda event: event["type"] == "core.error_event")
    assert (silent["error_code"], silent["recoverable"]) == ("audio_silent", True)
    level = service.wait_for(lambda event: event["type"] == "core.level_event")
    assert level["level"] == {"rms_dbfs": -120.0, "peak_dbfs": -120.0, "clipped_ratio": 0.0}
    samples, rate_hz = soundfile.read(EXAMPLES / "two_utterances.wav")
    soundfile.write(tmp_path / "loud.wav", np.clip(8 * samples, -1, 1), rate_hz)
    microphone.begin_to_play(tmp_path / "loud.wav")
    clipping = service.wait_for(lambda event: event["type"] == "core.error_event")
    assert clipping["error_code"] == "audio_clipping"
    service.process.terminate()
    events, code = service.finish()
    assert code == 0
    assert max(event["level"]["clipped_ratio"] for event in of_type(events, "level_event")) > 0.01


@NEEDS_PULSEAUDIO
@pytest.mark.slow
def test_a_name_that_nothing_has_is_said_with_the_names_there_are(microphone: VirtualMicrophone) -> None:
    service = microphone.listen("streaming", "--device", "jabra", "--no-wait-for-device")
    events, code = service.finish()
    (error,) = of_type(events, "error_event")
    assert code == 4
    assert "no microphone is named like 'jabra'; there are: 'Monitor of Null Output'" in error["message"]
