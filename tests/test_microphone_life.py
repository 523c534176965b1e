"""A microphone that comes and goes: each loss is reported once, the device is looked for until it is back, all that is lost is counted.

First the whole service as a parent reads it, then the microphone alone in a process of its own (``microphone_driver.py``).
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from harness import EXAMPLES, Event, RunningService, example, in_time, of_type, said, start_service
from virtual_microphone import DESCRIPTION, NEEDS_PULSEAUDIO, VirtualMicrophone, stop_capture

from voice.errors import EXIT_INPUT

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
    assert said(final) == TEXT
    return final


def said_in_time(service: RunningService, limit_sec: float = LOST_SEC) -> Event:
    """The error event of a loss that happens now."""
    lost = time.monotonic()
    error = service.wait_for(is_error)
    assert time.monotonic() - lost < limit_sec
    return error


def back_in_time(service: RunningService) -> Event:
    """It captures again; the device is back now."""
    back = time.monotonic()
    restored = service.wait_for(state("audio_restored"))
    assert time.monotonic() - back < BACK_SEC
    return restored


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
    """As after a suspend: the clock ran on. PulseAudio holds 12 to 22 s for a process that does not read, and drops the rest unsaid."""
    service = microphone.listen("streaming", "--device", "pulse")
    loading, listening = service.wait_for(state("loading")), service.wait_for(state("listening"))
    speak(microphone, service)
    os.kill(service.process.pid, signal.SIGSTOP)
    microphone.play(EXAMPLES / "air_conditioner.wav")
    time.sleep(30)
    os.kill(service.process.pid, signal.SIGCONT)
    assert said(service.wait_for(is_final)) == TEXT
    assert said_in_time(service, in_time(4))["error_code"] == "audio_overrun"
    speak(microphone, service)
    events, totals = stop(service)
    assert len(of_type(events, "error_event")) == 1
    assert 5_000 < totals["lost_ms"] < 25_000
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
    service.wait_for(is_error)
    speak(microphone, service)
    service.wait_for(is_error)
    assert service.process.stderr is not None
    service.process.send_signal(signal.SIGTERM)
    log = service.process.stderr.read().decode()
    events, code = service.finish()
    service.process.stderr.close()
    assert code == 0
    assert log.count("microphone_delivers_zeros") == 2, "one before the speech and one behind it"
    errors = of_type(events, "error_event")
    assert [(error["error_code"], error["recoverable"]) for error in errors] == [("audio_overrun", True)] * 2, "opening anew loses audio"


def test_a_stop_is_obeyed_while_the_microphone_is_away_and_the_time_away_is_counted(microphone: VirtualMicrophone) -> None:
    service = microphone.listen("streaming", "--device", "pulse")
    service.wait_for(state("listening"))
    microphone.unplug()
    unplugged = time.monotonic()
    service.wait_for(is_error)
    time.sleep(4)
    sent = time.monotonic()
    events, totals = stop(service)
    assert time.monotonic() - sent < in_time(3)
    assert totals["lost_ms"] == pytest.approx(1000 * (sent - unplugged), abs=in_time(0.5) * 1000)
    assert len(of_type(events, "error_event")) == 1


def test_a_named_microphone_whose_stream_the_server_moves_is_lost_and_the_other_is_not_recognised(microphone: VirtualMicrophone) -> None:
    microphone.plug_in_another()
    service = microphone.listen("streaming", "--device", "pulse")
    assert service.wait_for(state("listening"))["device"] == DESCRIPTION
    speak(microphone, service)
    microphone.unplug()
    error = said_in_time(service)
    assert error["error_code"] == "audio_device_lost"
    assert f"moved from '{DESCRIPTION}' to 'Monitor of Webcam' by the sound server" in error["message"]
    microphone.sink = "webcam"
    microphone.play(EXAMPLES / "air_conditioner.wav")
    microphone.sink = "speaker"
    microphone.plug_in()
    assert back_in_time(service)["device"] == DESCRIPTION
    speak(microphone, service)
    events, _ = stop(service)
    assert len(of_type(events, "final")) == 2
    assert len(of_type(events, "error_event")) == 1


def test_without_a_name_the_other_microphone_is_taken_and_named(microphone: VirtualMicrophone) -> None:
    microphone.plug_in_another()
    service = microphone.listen("streaming")
    listening = service.wait_for(state("listening"))
    assert (listening["device"], listening["channels"]) == (DESCRIPTION, 2)
    speak(microphone, service)
    microphone.unplug()
    assert said_in_time(service)["error_code"] == "audio_device_lost"
    assert back_in_time(service)["device"] == "Monitor of Webcam"
    microphone.sink = "webcam"
    speak(microphone, service)
    stop(service)


# --- the microphone alone, without recognition ------------------------------------------------------------------------

SPEAKER_HZ, WEBCAM_HZ = 1000, 2000


def has(key: str, value: Any = None) -> Any:
    return lambda line: key in line and value in (None, line[key])


def capture(microphone: VirtualMicrophone, **settings: Any) -> RunningService:
    """Both microphones, a tone in each; returns when the first is captured."""
    microphone.plug_in_another()
    microphone.begin_tone(SPEAKER_HZ, "speaker")
    microphone.begin_tone(WEBCAM_HZ, "webcam")
    capturing = microphone.capture(**settings)
    assert capturing.wait_for(has("format"))["format"]["device"] == DESCRIPTION
    capturing.wait_for(has("tone_hz", SPEAKER_HZ))
    return capturing


def lost_in_time(capturing: RunningService) -> dict[str, Any]:
    lost = time.monotonic()
    error = capturing.wait_for(has("error"))
    assert time.monotonic() - lost < LOST_SEC
    return error


def restored_in_time(capturing: RunningService) -> str:
    """Name of what it captures again."""
    back = time.monotonic()
    device: str = capturing.wait_for(has("format"))["format"]["device"]
    assert time.monotonic() - back < BACK_SEC
    return device


def test_a_stream_that_the_server_moves_is_lost_and_comes_back_on_its_first_source(microphone: VirtualMicrophone) -> None:
    capturing = capture(microphone)
    microphone.unplug()
    unplugged = time.monotonic()
    error = lost_in_time(capturing)
    assert error["error"] == "audio_device_lost"
    assert error["message"] == f"'pulse' was moved from '{DESCRIPTION}' to 'Monitor of Webcam' by the sound server"
    time.sleep(2)
    microphone.plug_in()
    assert restored_in_time(capturing) == DESCRIPTION
    away_sec = time.monotonic() - unplugged
    microphone.begin_tone(SPEAKER_HZ, "speaker")
    capturing.wait_for(has("tone_hz", SPEAKER_HZ))
    last = stop_capture(capturing)
    assert last["tones_sec"].get(str(WEBCAM_HZ), 0.0) < in_time(0.1), "only what arrived before the server reported the move"
    assert last["lost_sec"] == pytest.approx(away_sec, abs=in_time(0.3))


def test_a_stream_that_somebody_moves_by_hand_is_taken_back(microphone: VirtualMicrophone) -> None:
    capturing = capture(microphone)
    (stream,) = microphone.control("list", "short", "source-outputs").splitlines()
    microphone.control("move-source-output", stream.split()[0], "webcam.monitor")
    assert "moved" in lost_in_time(capturing)["message"]
    assert restored_in_time(capturing) == DESCRIPTION
    stop_capture(capturing)


def test_without_a_name_capture_goes_on_with_the_default_of_the_server(microphone: VirtualMicrophone) -> None:
    capturing = capture(microphone, device=None)
    microphone.unplug()
    lost_in_time(capturing)
    assert restored_in_time(capturing) == "Monitor of Webcam"
    capturing.wait_for(has("tone_hz", WEBCAM_HZ))
    stop_capture(capturing)


def test_a_source_that_the_user_pinned_stays_pinned(microphone: VirtualMicrophone) -> None:
    microphone.plug_in_another()
    capturing = microphone.capture(device=None, variables={"PULSE_SOURCE": "webcam.monitor"})
    assert capturing.wait_for(has("format"))["format"]["device"] == "Monitor of Webcam"
    (stream,) = microphone.control("list", "short", "source-outputs").splitlines()
    microphone.control("move-source-output", stream.split()[0], "speaker.monitor")
    lost_in_time(capturing)
    assert restored_in_time(capturing) == "Monitor of Webcam"
    stop_capture(capturing)


def test_where_a_lost_microphone_is_not_waited_for_a_moved_stream_is_the_end(microphone: VirtualMicrophone) -> None:
    capturing = capture(microphone, wait_for_device=False)
    microphone.unplug()
    lost_in_time(capturing)
    assert capturing.process.wait(30) == EXIT_INPUT


def test_ten_moves_leak_neither_threads_nor_descriptors(microphone: VirtualMicrophone) -> None:
    capturing = capture(microphone)
    after: list[tuple[int, int]] = []
    for _ in range(10):
        microphone.unplug()
        lost_in_time(capturing)
        microphone.plug_in()
        assert restored_in_time(capturing) == DESCRIPTION
        after.append(resources(capturing.process.pid))
    assert after[-1] == after[0]
    stop_capture(capturing)


def test_a_server_that_dies_is_watched_again_when_it_is_back(microphone: VirtualMicrophone) -> None:
    capturing = capture(microphone)
    for _ in range(2):
        microphone.stop()
        lost_in_time(capturing)
        microphone.start()
        microphone.plug_in_another()
        assert restored_in_time(capturing) == DESCRIPTION
        microphone.unplug()
        assert "moved" in lost_in_time(capturing)["message"]
        microphone.plug_in()
        assert restored_in_time(capturing) == DESCRIPTION
    stop_capture(capturing)


def test_a_server_that_hangs_is_a_stall_and_costs_a_stop_no_more_than_its_deadline(microphone: VirtualMicrophone) -> None:
    capturing = capture(microphone)
    microphone.freeze()
    assert lost_in_time(capturing)["error"] == "audio_stalled"
    microphone.thaw()
    assert restored_in_time(capturing) == DESCRIPTION
    microphone.freeze()
    sent = time.monotonic()
    stop_capture(capturing)
    assert time.monotonic() - sent < in_time(4)


def test_drops_of_a_full_queue_and_the_time_away_are_counted_together(microphone: VirtualMicrophone) -> None:
    """What was captured and what was lost make up the time since the start."""
    capturing = capture(microphone, queue_sec=1.0)
    os.kill(capturing.process.pid, signal.SIGUSR1)  # it reads no more
    capturing.wait_for(has("reads", False))
    time.sleep(3)
    microphone.stop()
    time.sleep(1)
    os.kill(capturing.process.pid, signal.SIGUSR1)
    lost_in_time(capturing)
    last = stop_capture(capturing)
    assert last["captured_sec"] + last["lost_sec"] == pytest.approx(last["run_sec"], abs=in_time(0.5))
    assert last["lost_sec"] > 2.5
    assert 2.5 < last["oldest_sec"] < 4 + in_time(1), "blocks carry the time of their capture, not of their reading"
