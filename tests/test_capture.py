"""Real capture: PortAudio on the monitor of a PulseAudio null sink, private to the test, into which a file is played."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import ENTRIES, EXAMPLES, REPOSITORY, environment, example, final_texts, in_time, of_type, said, start_service
from virtual_microphone import NEEDS_PULSEAUDIO, VirtualMicrophone

from voice.models import embedded

pytestmark = [pytest.mark.slow, NEEDS_PULSEAUDIO]


def is_listening(event: dict) -> bool:
    return event.get("state") == "listening"


def is_final(event: dict) -> bool:
    return event["type"].endswith("final")


@pytest.mark.parametrize("mode", ENTRIES)
def test_what_is_played_into_the_microphone_comes_out_as_partials_and_a_final(microphone: VirtualMicrophone, mode: str) -> None:
    service = microphone.listen(mode, "--device", "pul")  # a part of the name
    service.wait_for(is_listening)
    microphone.play(EXAMPLES / "air_conditioner.wav")
    final = service.wait_for(is_final)
    service.process.send_signal(signal.SIGTERM)
    events, code = service.finish()
    assert code == 0
    assert said(final) == example("air_conditioner")[1][0]
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
    texts = [said(service.wait_for(is_final)) for _ in range(2)]
    service.process.send_signal(signal.SIGTERM)
    log = stderr.read()
    events, code = service.finish()
    stderr.close()
    assert code == 0
    assert texts == list(example("two_utterances")[1])
    assert of_type(events, "status_event")[-1]["totals"]["lost_ms"] == 0
    assert embedded.EXPECTATION.encode() in log, "whoever speaks to the embedded model is told what to expect"
    assert embedded.REMEDY.encode() in log
    assert of_type(events, "error_event") == []
    assert b"microphone_opened" not in log


def test_a_signal_in_the_middle_of_live_speech_gives_the_final_within_3_seconds(microphone: VirtualMicrophone) -> None:
    service = microphone.listen("streaming")
    service.wait_for(is_listening)
    player = microphone.begin_to_play(EXAMPLES / "temperature.wav")
    partial = service.wait_for(lambda event: event["type"].endswith("partial") and len(event["text"]) >= 5)
    sent = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    events, code = service.finish()
    assert time.monotonic() - sent < in_time(3)
    player.wait(timeout=10)
    (final,) = of_type(events, "final")
    assert code == 0
    assert (final["trace_id"], final["endpoint"]) == (partial["trace_id"], "shutdown")
    assert final["raw_text"].startswith(partial["text"][: partial["stable_chars"]])


def test_while_nobody_speaks_the_main_thread_wakes_five_times_a_second(microphone: VirtualMicrophone) -> None:
    """Once for two blocks of 96 ms. With blocks of 30 ms, each read at once, it was 28 times."""
    service = microphone.listen("streaming")
    service.wait_for(is_listening)
    status = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/status")

    def wake_ups() -> int:
        return int(status.read_text().partition("\nvoluntary_ctxt_switches:")[2].split()[0])

    time.sleep(2)  # what began with listening is over
    before = wake_ups()
    time.sleep(10)
    assert 30 < wake_ups() - before < 100


def test_without_waiting_a_microphone_that_vanishes_ends_the_utterance_and_the_service(microphone: VirtualMicrophone) -> None:
    service = microphone.listen("streaming", "--device", "pulse", "--no-wait-for-device")
    service.wait_for(is_listening)
    player = microphone.begin_to_play(EXAMPLES / "temperature.wav")
    partial = service.wait_for(lambda event: event["type"].endswith("partial") and len(event["text"]) >= 5)
    microphone.unplug()
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
    assert output.startswith('* monitor  "Monitor of Null Output"  48 kHz  2 ch  default, monitor')


def test_final_texts_of_two_modes_agree_on_live_audio(microphone: VirtualMicrophone) -> None:
    """Both entries listen to the same microphone at once."""
    services = [microphone.listen(mode, "--device", "pulse") for mode in ENTRIES]
    for service in services:
        service.wait_for(is_listening)
    microphone.play(EXAMPLES / "air_conditioner.wav")
    for service in services:
        service.wait_for(is_final)
        service.process.send_signal(signal.SIGINT)
    for service in services:
        events, code = service.finish()
        assert (final_texts(events), code) == (list(example("air_conditioner")[1]), 0)
