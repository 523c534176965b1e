"""The parent process: its commands on stdin, and its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from harness import EXAMPLES, RunningService, command, environment, example, final_texts, in_time, of_type, run_service, said, start_service

from voice.errors import ControlInvalid
from voice.process.clock import clock_sec
from voice.process.control import MAX_WAITING, ControlChannel, ParsedCommand, TimedCommand, parse_command


@pytest.mark.parametrize("name", ["mute", "unmute", "endpoint", "status", "stop"])
def test_a_command_is_a_json_object(name: str) -> None:
    assert parse_command(b'{"command": "%s"}' % name.encode()) == ParsedCommand(name)


@pytest.mark.parametrize("named", ["a", "", 7, -1, "好" * 100])
def test_a_command_may_have_an_id(named: str | int) -> None:
    assert parse_command(json.dumps({"command": "status", "id": named}).encode()) == ParsedCommand("status", named)


@pytest.mark.parametrize("named", [1.5, True, [], {}, "x" * 101, 10**101])
def test_an_id_is_a_short_string_or_number(named: object) -> None:
    answer = parse_command(json.dumps({"command": "status", "id": named}).encode())
    assert isinstance(answer, ControlInvalid)
    assert "id" in str(answer)


@pytest.mark.parametrize(
    "line",
    [
        b"mute",
        b'"mute"',
        b"[]",
        b"{}",
        b'{"command": "dance"}',
        b'{"command": ["mute"]}',
        b'{"command": "mute", "x": 1}',
        b"\xff",
        b"[" * 9_999,
    ],
)
def test_anything_else_is_not_and_the_answer_shows_it(line: bytes) -> None:
    answer = parse_command(line)
    assert isinstance(answer, ControlInvalid)
    assert len(str(answer)) < 400


class Channel:
    """A control channel on a pipe."""

    def __init__(self, *, blocking: bool = True) -> None:
        read_end, self.write_end = os.pipe()
        os.set_blocking(read_end, blocking)
        self.stopped_at: list[float] = []
        self.channel = ControlChannel(read_end, lambda: self.stopped_at.append(time.monotonic()))

    def write(self, *pieces: bytes) -> None:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[os.write(self.write_end, view) :]

    def take(self, at_least: int) -> list[Any]:
        """Names of commands, and what was invalid."""
        taken: list[Any] = []
        deadline = time.monotonic() + 10
        while len(taken) < at_least and time.monotonic() < deadline:
            taken += [answer.command if isinstance(answer, TimedCommand) else answer for answer in self.channel.take()]
            time.sleep(0.01)
        return taken

    def wait_for_stop(self) -> float:
        deadline = time.monotonic() + 10
        while not self.stopped_at:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return self.stopped_at[0]


@pytest.mark.parametrize("blocking", [True, False])
def test_lines_arrive_whole_in_whatever_pieces_and_the_last_one_needs_no_end(blocking: bool) -> None:
    channel = Channel(blocking=blocking)
    for piece in (b'{"comm', b'and": "mute"}\r\n\n  \n{"command": "unmute"}\n{"command"', b': "endpoint"}'):
        channel.write(piece)
        time.sleep(0.02)
    os.close(channel.write_end)
    assert channel.take(3) == ["mute", "unmute", "endpoint"]


def test_a_repeated_mute_is_left_out_unless_it_wants_an_answer() -> None:
    channel = Channel()
    channel.write(b'{"command": "mute"}\n{"command": "mute"}\n{"command": "mute", "id": 1}\n{"command": "status"}\n{"command": "status"}\n')
    os.close(channel.write_end)
    assert channel.take(4) == ["mute", "mute", "status", "status"]


def test_a_command_carries_the_time_at_which_it_arrived() -> None:
    channel = Channel()
    before = clock_sec()
    channel.write(b'{"command": "mute"}\n')
    deadline = time.monotonic() + 10
    while not (taken := channel.channel.take()) and time.monotonic() < deadline:
        time.sleep(0.001)
    (command,) = taken
    assert isinstance(command, TimedCommand)
    assert before <= command.arrived_at <= clock_sec()


def test_a_stop_is_obeyed_at_once_whatever_waits_before_it() -> None:
    """It took 293 s behind 200,000 commands."""
    channel = Channel()
    written_at = time.monotonic()
    channel.write(b'{"command": "mute"}\n{"command": "endpoint"}\n' * 100_000 + b'{"command": "stop"}\n')
    assert channel.wait_for_stop() - written_at < in_time(3)
    *commands, dropped = channel.take(MAX_WAITING + 1)
    assert len(commands) == MAX_WAITING
    assert str(dropped) == f"{200_000 - MAX_WAITING} commands were dropped: more than {MAX_WAITING} waited"
    assert channel.channel.take() == []


def test_a_line_without_an_end_is_one_invalid_line() -> None:
    """100 MB without a newline were 12,800 error events."""
    channel = Channel()
    channel.write(*[b"x" * 1_000_000] * 10, b'\n{"command": "mute"}\n')
    taken = sorted(map(str, channel.take(2)))
    assert len(taken) == 2
    assert taken[0].endswith("x' begins a line of more than 4096 bytes")
    assert taken[1] == "mute"


def test_of_many_invalid_lines_the_first_are_shown_and_the_others_counted() -> None:
    channel = Channel()
    channel.write(b"nonsense\n" * 1_000, b'{"command": "stop"}\n')
    channel.wait_for_stop()
    taken = channel.take(6)
    assert len(taken) == 6
    assert all(isinstance(answer, ControlInvalid) for answer in taken)
    assert [str(answer) for answer in taken[4:]] == ["'nonsense' is not JSON", "995 more lines are no commands"]
    assert channel.channel.take() == []


def test_a_state_that_is_asked_for_twice_is_asked_for_once() -> None:
    channel = Channel()
    names = ["mute", "mute", "unmute", "unmute", "endpoint", "endpoint", "mute"]
    channel.write(*[json.dumps({"command": name}).encode() + b"\n" for name in [*names, "stop"]])
    channel.wait_for_stop()
    assert channel.take(5) == ["mute", "unmute", "endpoint", "endpoint", "mute"]


# --- the service --------------------------------------------------------------------------------------------------------


def listen(path: Path, mode: str = "streaming") -> RunningService:
    return start_service(mode, "--input", str(path), "--realtime", "--control", "stdin", "--status-events", stdin=subprocess.PIPE)


def send(service: RunningService, name: str) -> None:
    assert service.process.stdin is not None
    service.process.stdin.write(json.dumps({"command": name}).encode() + b"\n")


def is_partial(event: dict[str, Any]) -> bool:
    return bool(event["type"].endswith("partial"))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["streaming", "sliced"])
def test_mute_ends_the_utterance_hears_nothing_and_loses_nothing(mode: str, tmp_path: Path) -> None:
    samples, (_, second_text) = example("two_utterances")
    path = tmp_path / "long_pause.wav"
    soundfile.write(path, np.insert(samples, 54_400, np.zeros(4 * 16_000)), 16_000)
    service = listen(path, mode)
    first = service.wait_for(is_partial)
    send(service, "mute")
    final = service.wait_for(lambda event: event["type"].endswith("final"))
    assert (final["trace_id"], final["endpoint"]) == (first["trace_id"], "muted")
    service.wait_for(lambda event: event.get("state") == "muted")
    time.sleep(3.4 - first["end_ms"] / 1000)  # in the pause of 5.3 s
    send(service, "unmute")
    service.wait_for(lambda event: event.get("state") == "listening")
    events, code = service.finish()
    assert code == 0
    finals = of_type(events, "final")
    assert [said(event) for event in finals[1:]] == [second_text]
    assert finals[1]["start_ms"] == pytest.approx(8_736, abs=100), "time goes on while muted"
    assert of_type(events, "status_event")[-1]["totals"]["lost_ms"] == 0
    assert of_type(events, "error_event") == []


@pytest.mark.slow
def test_endpoint_gives_the_final_now_and_the_rest_is_an_utterance_of_its_own() -> None:
    service = listen(EXAMPLES / "temperature.wav")
    service.wait_for(lambda event: is_partial(event) and len(event["text"]) >= 5)
    send(service, "endpoint")
    first = service.wait_for(lambda event: event["type"].endswith("final"))
    assert first["endpoint"] == "requested"
    events, code = service.finish()
    assert code == 0
    first_text, *rest = final_texts(events)
    (text,) = example("temperature")[1]
    assert text.startswith(first_text[:4])
    assert text[-1] in rest[-1][-2:], "it goes on within a syllable, which may cost others"
    assert of_type(events, "status_event")[-1]["totals"]["lost_ms"] == 0


@pytest.mark.slow
def test_stop_is_a_graceful_stop() -> None:
    service = listen(EXAMPLES / "temperature.wav")
    partial = service.wait_for(is_partial)
    send(service, "stop")
    sent_ms = time.time() * 1000
    events, code = service.finish()
    assert events[-1]["ts"] - sent_ms < in_time(3) * 1000
    (final,) = of_type(events, "final")
    assert (code, final["endpoint"], final["trace_id"]) == (0, "shutdown", partial["trace_id"])


@pytest.mark.slow
def test_a_line_that_is_no_command_is_an_error_event_and_the_end_of_stdin_is_nothing() -> None:
    service = listen(EXAMPLES / "temperature.wav")
    service.wait_for(lambda event: event.get("state") == "listening")
    assert service.process.stdin is not None
    service.process.stdin.write(b"louder!\n")
    service.process.stdin.close()
    service.process.stdin = None
    events, code = service.finish()
    assert code == 0
    (error,) = of_type(events, "error_event")
    assert (error["error_code"], error["recoverable"]) == ("control_invalid", True)
    assert error["message"].startswith("ControlInvalid: 'louder!' is not JSON")
    assert final_texts(events) == list(example("temperature")[1])


def test_stdin_cannot_be_both_audio_and_commands() -> None:
    result = run_service("streaming", "--input", "-", "--control", "stdin")
    assert result.returncode == 2
    assert "control: stdin is the audio input" in result.stderr


ORPHAN_MAKER = """
import subprocess, sys, time
process = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=open({stdout!r}, "w"))
print(process.pid, flush=True)
time.sleep(100)
"""


def is_running(pid: int) -> bool:
    """Not ended, and no zombie that nobody waits for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("leaves", [True, False])
def test_an_orphan_leaves_within_a_second_unless_told_otherwise(leaves: bool, tmp_path: Path) -> None:
    flag = [] if leaves else ["--no-exit-with-parent"]
    output = tmp_path / "events.jsonl"
    service = command("streaming", "--input", str(EXAMPLES / "two_utterances.wav"), "--realtime", "--status-events", *flag)
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN_MAKER.format(stdout=str(output)), *service], stdout=subprocess.PIPE, env=environment()
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    try:
        deadline = time.monotonic() + 60
        while '"listening"' not in output.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        parent.kill()
        parent.wait(10)
        deadline = time.monotonic() + in_time(1)
        while is_running(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert is_running(pid) == (not leaves)
    finally:
        parent.stdout.close()
        if is_running(pid):
            os.kill(pid, signal.SIGTERM)
