"""The queue between the worker and its reader: a reader that stalls costs partials at most, one that leaves is noticed."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from harness import example, in_time, of_type, resident_bytes, start_service

from voice.errors import OutputGone
from voice.output.event_queue import EventQueue
from voice.output.events import ErrorEvent, PartialEvent
from voice.output.writer import EventWriter

IDS = [f"{number:016x}" for number in range(100)]


def partial(text: str, trace_id: str = IDS[0]) -> PartialEvent:
    return PartialEvent(trace_id=trace_id, source="fake", text=text, confidence=0.5, start_ms=0, end_ms=0, stable_chars=0)


def error(message: str) -> ErrorEvent:
    return ErrorEvent(trace_id=IDS[0], error_code="runtime_error", message=message, recoverable=True)


class Stalled:
    """A pipe of 4 KB that nobody reads until told."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, 4_096)
        self.lines: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)

    def queue(self, **options: Any) -> EventQueue:
        return EventQueue(EventWriter(self.write_end, lambda: 1), **options)

    def fill(self, queue: EventQueue) -> int:
        """Write until the thread waits in the pipe; how many events that took."""
        for number in range(100):
            queue.write(error(f"filling {number} {'x' * 200}"))
        return 100

    def read(self) -> None:
        self._reader.start()

    def finish(self) -> list[dict[str, Any]]:
        os.close(self.write_end)
        self._reader.join(10)
        assert [line["seq"] for line in self.lines] == list(range(1, len(self.lines) + 1))
        return self.lines

    def _read(self) -> None:
        with os.fdopen(self.read_end, encoding="utf-8") as file:
            self.lines += [json.loads(line) for line in file]


@pytest.fixture
def stalled() -> Iterator[Stalled]:
    return Stalled()


def test_a_newer_partial_takes_the_place_of_the_queued_one_of_its_utterance(stalled: Stalled) -> None:
    queue = stalled.queue()
    before = stalled.fill(queue)
    for number in range(1_000):
        queue.write(partial(f"打开{number}"))
    queue.write(partial("另一句", IDS[1]))
    stalled.read()
    queue.close(10)
    assert [line["text"] for line in stalled.finish()[before:]] == ["打开999", "另一句"]


def test_at_the_bound_partials_go_first_and_the_rest_waits_for_the_reader(stalled: Stalled) -> None:
    queue = stalled.queue(max_queued_bytes=40_000)
    stalled.fill(queue)
    queue.write(partial("a partial that is in the way"))
    done = threading.Event()

    def write() -> None:
        for number in range(1_000):
            queue.write(error(f"kept {number}"))
            queue.write(partial("another", IDS[1]))
        done.set()

    threading.Thread(target=write, daemon=True).start()
    assert not done.wait(0.5), "a full queue waits"
    assert queue._queued_bytes <= 40_000
    stalled.read()
    assert done.wait(20)
    queue.close(10)
    messages = [line["message"] for line in stalled.finish() if "message" in line]
    assert messages[100:] == [f"kept {number}" for number in range(1_000)]
    assert "a partial that is in the way" not in [line.get("text") for line in stalled.lines]


def test_a_full_queue_can_be_given_up_and_nobody_waits_for_a_partial(stalled: Stalled) -> None:
    queue = stalled.queue(max_queued_bytes=1_000, gives_up=lambda: True)
    with pytest.raises(OutputGone, match=r"stdout was not read; \d+ events were not delivered"):
        stalled.fill(queue)
    queue.write(partial("x" * 1_000))
    assert queue._queued_bytes <= 1_000


def test_at_the_end_a_stalled_reader_gets_its_time_and_what_is_left_is_counted(stalled: Stalled) -> None:
    queue = stalled.queue()
    stalled.fill(queue)
    started = time.monotonic()
    with pytest.raises(OutputGone, match=r"stdout was not read for 0.5 s; (\d+) events were not delivered"):
        queue.close(0.5)
    assert 0.5 <= time.monotonic() - started < in_time(1)


@pytest.mark.parametrize(
    "notice", [lambda queue: queue.check_reader(), lambda queue: queue.write(error("late")), lambda queue: queue.close(5)]
)
def test_a_reader_that_leaves_a_stalled_pipe_is_noticed(stalled: Stalled, notice: Callable[[EventQueue], None]) -> None:
    queue = stalled.queue()
    stalled.fill(queue)
    os.close(stalled.read_end)
    deadline = time.monotonic() + 5
    while queue._failure is None and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(OutputGone, match="BrokenPipeError"):
        notice(queue)


# --- the service --------------------------------------------------------------------------------------------------------


def pcm(seconds_of_silence: float = 1.0) -> bytes:
    return (np.concatenate((example("two_utterances")[0], np.zeros(round(seconds_of_silence * 16_000)))) * 32_767).astype("<i2").tobytes()


@pytest.mark.slow
def test_speech_goes_on_while_the_reader_stalls_and_every_final_arrives_afterwards() -> None:
    service = start_service("streaming", "--input", "-", "--status-events", stdin=subprocess.PIPE)
    stdin, stdout = service.process.stdin, service.process.stdout
    assert stdin is not None
    assert stdout is not None
    fcntl.fcntl(stdout.fileno(), fcntl.F_SETPIPE_SZ, 4_096)
    service.wait_for(lambda event: event.get("state") == "listening")
    stdin.write(pcm())
    service.wait_for(lambda event: event["type"].endswith("emotion"))
    before = resident_bytes(service.process.pid)
    for _ in range(8):
        stdin.write(pcm())  # returns when the service has taken it: a service that waits for its reader would not
    grown = resident_bytes(service.process.pid) - before
    assert grown < 50 * 2**20
    stdin.close()
    service.process.stdin = None
    events, code = service.finish()
    assert code == 0
    assert [event["raw_text"] for event in of_type(events, "final")] == list(example("two_utterances")[1]) * 9


@pytest.mark.slow
def test_a_reader_that_stalls_for_good_cannot_hold_a_stop_up() -> None:
    service = start_service("streaming", "--input", "-", stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    stdin, stdout = service.process.stdin, service.process.stdout
    assert stdin is not None
    assert stdout is not None
    fcntl.fcntl(stdout.fileno(), fcntl.F_SETPIPE_SZ, 4_096)
    for _ in range(4):
        stdin.write(pcm())
    sent = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(timeout=20) == 5
    assert 3 <= time.monotonic() - sent < in_time(6)
    assert service.process.stderr is not None
    log = service.process.stderr.read().decode()
    assert "events were not delivered" in log
    assert "Traceback" not in log
    whole = stdout.read().rpartition(b"\n")[0] + b"\n"
    assert of_type([json.loads(line) for line in whole.splitlines()], "final")
    stdin.close()
    stdout.close()
    service.process.stderr.close()
