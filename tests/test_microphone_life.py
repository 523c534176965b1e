"""A microphone that comes and goes, as a parent reads it: said once, looked for, back, and nothing of what was recognised lost."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from harness import EXAMPLES, Event, RunningService, example, in_time, of_type, start_service
from virtual_microphone import NEEDS_PULSEAUDIO, VirtualMicrophone

pytestmark = [pytest.mark.slow, NEEDS_PULSEAUDIO]

LOST_SEC, BACK_SEC = in_time(2), in_time(3)
"""What README.md promises: the error event after the loss, capture after the device is back."""
TEXT = example("air_conditioner")[1][0]


def state(name: str) -> Any:
    return lambda event: event.get("state") == name


def is_error(event: Event) -> bool:
    return bool(event["type"] == "core.error_event")


def is_final(event: Event) -> bool:
    return bool(event["type"].endswith("final"))


def speak(microphone: VirtualMicrophone, service: RunningService) -> Event:
    """The final of a command that is spoken now."""
    microphone.play(EXAMPLES / "air_conditioner.wav")
    final = service.wait_for(is_final)
    assert final["raw_text"] == TEXT
    return final


def said_in_time(service: RunningService, limit_sec: float = LOST_SEC) -> Event:
    """The error event of a loss that happens now."""
    lost = time.monotonic()
    error = service.wait_for(is_error)
    assert time.monotonic() - lost < limit_sec
    return error


def back_in_time(service: RunningService) -> None:
    """It captures again; the device is back now."""
    back = time.monotonic()
    service.wait_for(state("audio_restored"))
    assert time.monotonic() - back < BACK_SEC


def stop(service: RunningService) -> tuple[list[Event], Event]:
    service.process.send_signal(signal.SIGTERM)
    events, code = service.finish()
    assert code == 0
    return events, of_type(events, "status_event")[-1]["totals"]


def resources(pid: int) -> tuple[int, int]:
    """Threads and descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/task").iterdir())), len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_a_microphone_that_vanishes_in_mid_speech_is_said_and_taken_up_again_when_it_is_back(microphone: VirtualMicrophone) -> None:
    service = microphone.listen("streaming", "--device", "pulse")
    service.wait_for(state("listening"))
    player = microphone.begin_to_play(EXAMPLES / "temperature.wav")
    partial = service.wait_for(lambda event: event["type"].endswith("partial") and len(event["text"]) >= 5)
    microphone.unplug()
    unplugged = time.monotonic()
    error = said_in_time(service)
    assert error["error_code"] in ("audio_stalled", "audio_device_lost")
    assert (error["recoverable"], error["trace_id"]) == (True, partial["trace_id"])
    assert "'pulse'" in error["message"]
    final = service.wait_for(is_final)
    assert (final["trace_id"], final["endpoint"]) == (partial["trace_id"], "audio_lost")
    assert final["raw_text"].startswith(partial["text"][: partial["stable_chars"]])
    player.wait(10)
    time.sleep(2)
    microphone.plug_in()
    back_in_time(service)
    away_ms = 1000 * (time.monotonic() - unplugged)
    later = speak(microphone, service)
    assert later["start_ms"] > final["end_ms"] + 2_000, "time goes on while it is away"
    events, totals = stop(service)
    assert len(of_type(events, "error_event")) == 1
    assert [event["state"] for event in of_type(events, "status_event")[2:]] == ["listening", "audio_lost", "audio_restored", "stopped"]
    assert totals["lost_ms"] == pytest.approx(away_ms, abs=in_time(1) * 1000)


def test_ten_times_in_a_row_and_nothing_leaks(microphone: VirtualMicrophone) -> None:
    service = microphone.listen("streaming", "--device", "pulse")
    service.wait_for(state("listening"))
    speak(microphone, service)
    after: list[tuple[int, int]] = []
    for _ in range(10):
        microphone.unplug()
        service.wait_for(is_error, timeout_sec=LOST_SEC)
        microphone.plug_in()
        service.wait_for(state("audio_restored"), timeout_sec=BACK_SEC)
        after.append(resources(service.process.pid))
    speak(microphone, service)
    assert after[-1] == after[0]
    events, _ = stop(service)
    assert len(of_type(events, "error_event")) == 10
    assert len(of_type(events, "final")) == 2


def test_the_sound_server_may_die_and_come_back(microphone: VirtualMicrophone) -> None:
    service = microphone.listen("sliced", "--device", "pulse")
    service.wait_for(state("listening"))
    microphone.stop()
    said_in_time(service)
    microphone.start()
    back_in_time(service)
    speak(microphone, service)
    stop(service)


def test_started_without_a_microphone_it_says_so_once_and_waits(tmp_path: Path) -> None:
    microphone = VirtualMicrophone(tmp_path)
    service = microphone.listen("streaming", "--device", "pulse")
    error = service.wait_for(is_error)
    assert (error["error_code"], error["recoverable"]) == ("audio_device_unavailable", True)
    time.sleep(3)
    microphone.start()
    try:
        back_in_time(service)
        speak(microphone, service)
        events, totals = stop(service)
    finally:
        microphone.stop()
    assert len(of_type(events, "error_event")) == 1
    assert totals["lost_ms"] == 0, "nothing was captured before, so nothing was lost"


def test_a_suspended_source_is_stalled_and_comes_back(microphone: VirtualMicrophone) -> None:
    service = microphone.listen("streaming", "--device", "pulse")
    service.wait_for(state("listening"))
    speak(microphone, service)
    microphone.control("suspend-sink", "speaker", "1")
    error = said_in_time(service)
    assert error["error_code"] == "audio_stalled"
    microphone.control("suspend-sink", "speaker", "0")
    back_in_time(service)
    speak(microphone, service)
    stop(service)


def test_a_process_that_was_frozen_hears_what_waited_and_counts_the_rest(microphone: VirtualMicrophone) -> None:
    """As after a suspend: the clock ran on. PulseAudio holds about 12 s for a process that does not read, and drops the rest unsaid."""
    service = microphone.listen("streaming", "--device", "pulse")
    loading, listening = service.wait_for(state("loading")), service.wait_for(state("listening"))
    speak(microphone, service)
    os.kill(service.process.pid, signal.SIGSTOP)
    microphone.play(EXAMPLES / "air_conditioner.wav")
    time.sleep(20)
    os.kill(service.process.pid, signal.SIGCONT)
    assert service.wait_for(is_final)["raw_text"] == TEXT
    assert said_in_time(service, in_time(4))["error_code"] == "audio_overrun"
    speak(microphone, service)
    events, totals = stop(service)
    assert len(of_type(events, "error_event")) == 1
    assert 5_000 < totals["lost_ms"] < 20_000
    heard_for_ms = [events[-1]["ts"] - event["ts"] for event in (listening, loading)]
    assert heard_for_ms[0] - 1_000 < totals["audio_ms"] < heard_for_ms[1] + 1_000, "what was heard and what was lost"


def test_exact_silence_is_legal_and_opens_the_device_anew_once(microphone: VirtualMicrophone) -> None:
    """A null sink into which nobody plays delivers zeros."""
    service = start_service(
        "streaming",
        *("--input", "mic", "--status-events", "--device", "pulse"),
        stderr=subprocess.PIPE,
        VOICE_ASR__AUDIO__ZEROS_SEC="1",
        **microphone.variables,
    )
    service.wait_for(state("listening"))
    time.sleep(5)
    speak(microphone, service)
    time.sleep(3)
    assert service.process.stderr is not None
    service.process.send_signal(signal.SIGTERM)
    log = service.process.stderr.read().decode()
    events, code = service.finish()
    service.process.stderr.close()
    assert code == 0
    assert of_type(events, "error_event") == []
    assert log.count("microphone_delivers_zeros") == 2, "one before the speech and one behind it"


def test_a_stop_is_obeyed_while_the_microphone_is_away(microphone: VirtualMicrophone) -> None:
    service = microphone.listen("streaming", "--device", "pulse")
    service.wait_for(state("listening"))
    microphone.unplug()
    service.wait_for(is_error)
    sent = time.monotonic()
    _, _ = stop(service)
    assert time.monotonic() - sent < in_time(3)


def test_a_stream_that_is_moved_to_another_source_goes_on_there(microphone: VirtualMicrophone) -> None:
    """As when somebody picks another microphone in the desktop's settings. A monitor source takes up to 2 s to wake up."""
    microphone.control("load-module", "module-null-sink", "sink_name=other", "rate=48000", "channels=2")
    arguments = ("--input", "mic", "--status-events", "--device", "pulse")
    service = start_service("streaming", *arguments, VOICE_ASR__AUDIO__STALL_MS="5000", **microphone.variables)
    service.wait_for(state("listening"))
    speak(microphone, service)
    (stream,) = microphone.control("list", "short", "source-outputs").splitlines()
    microphone.control("move-source-output", stream.split()[0], "other.monitor")
    time.sleep(2.5)
    microphone.sink = "other"
    speak(microphone, service)
    microphone.control("unload-module", microphone.control("list", "short", "modules").splitlines()[-1].split()[0])
    microphone.sink = "speaker"  # PulseAudio moves the stream back itself; where it did not, the device would be opened anew
    time.sleep(3)
    speak(microphone, service)
    events, _ = stop(service)
    assert len(of_type(events, "final")) == 3
