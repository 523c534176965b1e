"""The service broken on a timetable, read from outside: the guarantees hold, whatever happens when.

``make test`` stops it at every 500 ms of an utterance and lets readers stall for seconds; ``make faults`` stops it at every 100 ms
(``FAULTS_STEP_MS``), the reader stalls for a minute and nobody reads ten minutes of debug log (``FAULTS_LONG``).
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from harness import (
    ENTRIES,
    EXAMPLES,
    RunningService,
    command,
    environment,
    example,
    example_names,
    final_texts,
    in_time,
    of_type,
    parse_events,
    resident_bytes,
    run_service,
    said,
    start_service,
)
from virtual_microphone import NEEDS_PULSEAUDIO, VirtualMicrophone

pytestmark = pytest.mark.slow

STEP_MS = int(os.environ.get("FAULTS_STEP_MS", "500"))
LONG = bool(os.environ.get("FAULTS_LONG"))
TEXT = example("temperature")[1][0]


@pytest.mark.parametrize("mode", ENTRIES)
@pytest.mark.parametrize("at_ms", range(100, 3_700, STEP_MS))
def test_a_stop_at_any_moment_gives_what_was_said_within_3_seconds(mode: str, at_ms: int) -> None:
    service = start_service(mode, "--input", str(EXAMPLES / "temperature.wav"), "--realtime", "--status-events")
    service.wait_for(lambda event: event.get("state") == "listening")
    time.sleep(at_ms / 1000)
    sent_ms = time.time() * 1000
    service.process.send_signal(signal.SIGTERM)
    events, code = service.finish()
    assert events[-1]["ts"] - sent_ms < in_time(3) * 1000
    assert code == 0
    finals = of_type(events, "final")
    assert len(finals) <= 1
    if at_ms > 1_000:  # speech is from 544 to 2560 ms; the first tokens are sure by then
        assert finals
        assert finals[0]["raw_text"][:2] == TEXT[:2]
    if at_ms > 3_000:
        assert said(finals[0]) == TEXT


PLANT = """
from {module} import {owner}
real, calls = {owner}.{method}, [0]
def failing(self, *arguments, **options):
    calls[0] += 1
    if calls[0] in {when}: raise RuntimeError("planted")
    return real(self, *arguments, **options)
{owner}.{method} = failing
"""
STAGES = {
    "resampling": ("voice.capture.resample", "Resampler", "accept"),
    "voice activity": ("voice.endpointing.silero", "SileroVad", "probability"),
    "endpointing": ("voice.endpointing.endpointer", "Endpointer", "step"),
    "encoder": ("voice.recognition.onnx_engine", "OnnxStream", "_encode"),
    "decoder": ("voice.recognition.onnx_engine", "OnnxStream", "decode"),
    "search": ("voice.recognition.search", "TokenSearch", "advance"),
    "finalizer": ("voice.finalization.finalizer", "Finalizer", "prepare"),
    "completion": ("voice.finalization.finalizer", "Finalizer", "complete"),
}


@pytest.mark.parametrize("mode", ENTRIES)
@pytest.mark.parametrize("stage", STAGES)
def test_an_exception_in_any_stage_is_said_and_survived(stage: str, mode: str) -> None:
    """It strikes in the middle of the first utterance, or where its first final is made; the second one is whole again."""
    module, owner, method = STAGES[stage]
    when = {"resampling": "(20,)", "voice activity": "(60,)", "endpointing": "(60,)", "search": "(9,)"}.get(stage, "(6,)")
    if method in ("prepare", "complete"):
        when = "(1,)"
    result = run_service(
        mode,
        *("--input", str(EXAMPLES / "two_utterances.wav"), "--status-events"),
        planted=PLANT.format(module=module, owner=owner, method=method, when=when),
        VOICE_ASR__FINAL__SPECULATE="false",
    )
    assert result.returncode == 0
    errors = of_type(result.events, "error_event")
    assert errors
    assert {error["recoverable"] for error in errors} == {True}
    assert all("planted" in error["message"] for error in errors)
    assert "planted" not in result.stderr, "an exception may quote what was recognised"
    finals = of_type(result.events, "final")
    assert said(finals[-1]) == example("two_utterances")[1][1]
    assert len(finals) in (2, 3)
    totals = of_type(result.events, "status_event")[-1]["totals"]
    assert totals["utterances"] == len(finals)
    assert totals["errors"] == len(errors)


@pytest.mark.parametrize("mode", ENTRIES)
def test_inference_that_fails_for_good_ends_with_70_and_the_words_that_were_shown(mode: str) -> None:
    planted = PLANT.format(module="voice.recognition.onnx_engine", owner="OnnxStream", method="_encode", when="range(9, 10**9)")
    result = run_service(mode, "--input", str(EXAMPLES / "two_utterances.wav"), planted=planted, VOICE_ASR__MODEL__MAX_FAILURES="3")
    assert result.returncode == 70
    errors = of_type(result.events, "error_event")
    assert [error["recoverable"] for error in errors] == [True] * (len(errors) - 1) + [False]
    assert {error["message"] for error in errors} == {"RuntimeError: planted"}
    assert "service_crashed" in result.stderr
    assert "planted" not in result.stderr, "an exception may quote what was recognised"
    shown = {event["trace_id"] for event in of_type(result.events, "partial")}
    assert shown == {event["trace_id"] for event in of_type(result.events, "final")}
    assert all(final_texts(result.events))


# --- overload -----------------------------------------------------------------------------------------------------------

SLOW = """
import os, time
from voice.recognition.onnx_engine import OnnxStream
real = OnnxStream._encode
def slow(self, *arguments):
    if os.path.exists({flag!r}): time.sleep(1.5)
    return real(self, *arguments)
OnnxStream._encode = slow
"""
"""While a file is there, each 0.6 s of audio takes 1.5 s."""


@NEEDS_PULSEAUDIO
@pytest.mark.parametrize("mode", ENTRIES)
def test_a_recogniser_slower_than_speech_drops_the_newest_and_counts_it(mode: str, microphone: VirtualMicrophone, tmp_path: Path) -> None:
    """With a queue of 1 s. When it is fast again nothing of it is left."""
    slow = tmp_path / "slow"
    service = start_service(
        mode,
        *("--input", "mic", "--status-events"),
        planted=SLOW.format(flag=str(slow)),
        VOICE_ASR__AUDIO__QUEUE_SEC="1",
        **microphone.variables,
    )
    service.wait_for(lambda event: event.get("state") == "listening")
    slow.touch()
    microphone.play(EXAMPLES / "two_utterances.wav")
    time.sleep(4)
    slow.unlink()
    time.sleep(3)
    microphone.play(EXAMPLES / "air_conditioner.wav")
    service.wait_for(lambda event: event["type"].endswith(".final") and said(event) == example("air_conditioner")[1][0])
    service.process.send_signal(signal.SIGTERM)
    events, code = service.finish()
    assert code == 0
    errors = of_type(events, "error_event")
    assert {(error["error_code"], error["recoverable"]) for error in errors} == {("audio_overrun", True)}
    finals = of_type(events, "final")
    lost = [final["lost_ms"] for final in finals]
    assert len(errors) <= 3, "once an episode, not for each of the hundred blocks"
    assert lost[0] > 0
    assert finals[0]["raw_text"]
    assert lost[-1] == 0
    assert sum(lost) <= of_type(events, "status_event")[-1]["totals"]["lost_ms"]


@pytest.mark.parametrize("way", ["file", "stdin"])
def test_a_file_and_stdin_are_slowed_never_dropped(way: str, tmp_path: Path) -> None:
    samples, texts = example("two_utterances")
    slow = tmp_path / "slow"
    slow.touch()
    pcm = (samples * 32_767).astype("<i2").tobytes()
    arguments, stdin = (("--input", str(EXAMPLES / "two_utterances.wav")), None) if way == "file" else (("--input", "-"), pcm)
    planted = SLOW.format(flag=str(slow))
    result = run_service("streaming", *arguments, stdin=stdin, planted=planted, VOICE_ASR__AUDIO__QUEUE_SEC="1")
    assert final_texts(result.events) == list(texts)
    assert [final["lost_ms"] for final in of_type(result.events, "final")] == [0, 0]
    assert of_type(result.events, "error_event") == []


# --- readers ------------------------------------------------------------------------------------------------------------


def commands(directory: Path, seconds: float) -> tuple[Path, list[str]]:
    """A file of at least so many seconds of commands with pauses between them, and what they say."""
    pieces, texts = [], []
    pause = np.zeros(24_000, np.float32)
    while sum(map(len, pieces)) < seconds * 16_000:
        samples, said = example(example_names()[len(pieces) // 2 % len(example_names())])
        pieces += [samples, pause]
        texts += said
    path = directory / "commands.wav"
    soundfile.write(path, np.concatenate(pieces), 16_000)
    return path, texts


def narrow(service: RunningService) -> int:
    """Make the pipe that the service writes to hold 4 KB; its descriptor."""
    assert service.process.stdout is not None
    fcntl.fcntl(service.process.stdout.fileno(), fcntl.F_SETPIPE_SZ, 4_096)
    return service.process.stdout.fileno()


@pytest.mark.parametrize("bytes_per_sec", [0, 1])
def test_a_reader_that_stalls_while_speech_goes_on_gets_every_final_afterwards(bytes_per_sec: int, tmp_path: Path) -> None:
    """At the pace of speech, for 15 s, or a minute."""
    stalled_sec = 60 if LONG else 15
    path, texts = commands(tmp_path, stalled_sec + 10)  # it speaks for longer than the reader stalls
    service = start_service("streaming", "--input", str(path), "--realtime", "--status-events")
    service.wait_for(lambda event: event["type"].endswith("final"))
    before, fileno = resident_bytes(service.process.pid), narrow(service)
    until, received = time.monotonic() + stalled_sec, b""
    while time.monotonic() < until:
        time.sleep(1)
        if bytes_per_sec and select.select([fileno], [], [], 0)[0]:
            received += os.read(fileno, bytes_per_sec)
    assert resident_bytes(service.process.pid) - before < 50 * 2**20
    service._received += received
    events, code = service.finish(timeout_sec=60)
    assert code == 0
    assert final_texts(events) == texts
    assert of_type(events, "error_event") == []


@NEEDS_PULSEAUDIO
def test_a_service_that_is_frozen_while_its_reader_stalls_loses_nothing(microphone: VirtualMicrophone) -> None:
    service = microphone.listen("streaming", "--device", "pulse")
    service.wait_for(lambda event: event.get("state") == "listening")
    narrow(service)
    for _ in range(2):
        microphone.play(EXAMPLES / "air_conditioner.wav")
        time.sleep(1.5)
        os.kill(service.process.pid, signal.SIGSTOP)
        time.sleep(3)
        os.kill(service.process.pid, signal.SIGCONT)
        time.sleep(3)
    microphone.play(EXAMPLES / "air_conditioner.wav")
    time.sleep(1.5)
    service.process.send_signal(signal.SIGTERM)
    events, code = service.finish()
    assert code == 0
    assert final_texts(events) == list(example("air_conditioner")[1]) * 3
    assert of_type(events, "status_event")[-1]["totals"]["lost_ms"] == 0, "the sound server kept the 3 s"
    assert of_type(events, "error_event") == []


CHATTY = """
import structlog
from voice.endpointing.silero import SileroVad
real = SileroVad.probability
def chatty(self, *windows):
    for _ in range(10):
        structlog.get_logger().debug("window", text="x" * 200)
    return real(self, *windows)
SileroVad.probability = chatty
"""


def test_a_debug_log_that_nobody_reads_does_not_hold_up_a_word(tmp_path: Path) -> None:
    """60 KB of log a second at the pace of speech, for 20 s, or ten minutes; a pipe holds 64 KB."""
    seconds = 600 if LONG else 20
    path, texts = commands(tmp_path, seconds)
    arguments = ("--input", str(path), "--realtime", "--log-level", "debug")
    process = subprocess.Popen(
        command("streaming", *arguments, planted=CHATTY), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), cwd="/"
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        events = parse_events(process.stdout.read())
        assert process.wait(timeout=30) == 0
    assert final_texts(events) == texts
    finals = of_type(events, "final")
    late_ms = [final["ts"] - final["end_ms"] for final in finals]
    assert max(late_ms) - min(late_ms) < in_time(1) * 1000, "none came later behind its speech than the others"
