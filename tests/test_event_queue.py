"""The queue between the worker and its reader: a reader that stalls costs partials at most, one that leaves is noticed."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from harness import (
    EXAMPLES,
    RunningService,
    command,
    environment,
    example,
    final_texts,
    in_time,
    of_type,
    parse_events,
    resident_bytes,
    start_service,
)

from voice.errors import OutputGone
from voice.output.event_queue import EventQueue
from voice.output.events import ErrorEvent, PartialEvent
from voice.output.writer import EventWriter

IDS = [f"{number:016x}" for number in range(100)]


def partial(text: str, trace_id: str = IDS[0]) -> PartialEvent:
    return PartialEvent(trace_id=trace_id, source="fake", text=text, confidence=0.5, start_ms=0, end_ms=0, stable_chars=0, raw_text=text)


def error(message: str) -> ErrorEvent:
    return ErrorEvent(trace_id=IDS[0], error_code="runtime_error", message=message, recoverable=True)


class Stalled:
    """A pipe of 4 KB that nobody reads until told."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, 4_096)
        self.lines: list[dict[str, Any]] = []
        self.num_lines_when_full = 0
        self._received = b""
        self._pace = (0.0, 0.0, 0)
        self._reader = threading.Thread(target=self._read, daemon=True)

    def queue(self, **options: Any) -> EventQueue:
        self._queue = EventQueue(EventWriter(self.write_end, lambda: 1), **options)
        return self._queue

    def fill(self, queue: EventQueue) -> int:
        """Write until the thread waits in the pipe; how many events that took."""
        for number in range(100):
            queue.write(error(f"filling {number} {'x' * 200}"))
        return 100

    def read(self) -> None:
        """Read everything, on a thread."""
        self._reader.start()

    def read_a_byte_now_and_then(self, for_sec: float) -> None:
        """Read so slowly that no room for a line comes up, then everything."""
        self._slowly(for_sec=for_sec, every_sec=0.1, num_bytes=1)

    def read_page_after_page(self, every_sec: float) -> None:
        """Each time read all that a pipe of 4 KB holds."""
        self._slowly(for_sec=2, every_sec=every_sec, num_bytes=4_096)

    def wait_until_full(self) -> None:
        """Until the pipe holds all that it can; it then has seen ``num_lines_when_full`` whole lines."""
        waiting = -1
        while waiting != (waiting := int.from_bytes(fcntl.ioctl(self.read_end, termios.FIONREAD, bytes(4)), "little")):
            time.sleep(0.2)
        self.num_lines_when_full = self._queue._writer.num_lines

    def finish(self) -> list[dict[str, Any]]:
        os.close(self.write_end)
        self._reader.join(10)
        assert not self._reader.is_alive()
        self.lines = [json.loads(line) for line in self._received.splitlines(keepends=True) if line.endswith(b"\n")]
        assert [line["seq"] for line in self.lines] == list(range(1, len(self.lines) + 1))
        return self.lines

    def _slowly(self, *, for_sec: float, every_sec: float, num_bytes: int) -> None:
        self._pace = (time.monotonic() + for_sec, every_sec, num_bytes)
        self._reader.start()

    def _read(self) -> None:
        until, every_sec, num_bytes = self._pace
        while data := os.read(self.read_end, num_bytes if time.monotonic() < until else 65_536):
            self._received += data
            if time.monotonic() < until:
                time.sleep(every_sec)
        os.close(self.read_end)


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
    queue.close()
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
    queue.close()
    messages = [line["message"] for line in stalled.finish() if "message" in line]
    assert messages[100:] == [f"kept {number}" for number in range(1_000)]
    assert "a partial that is in the way" not in [line.get("text") for line in stalled.lines]


def test_a_full_queue_is_given_up_only_after_a_stop_and_nobody_waits_for_a_partial(stalled: Stalled) -> None:
    stop = threading.Event()
    queue = stalled.queue(max_queued_bytes=1_000, stop_requested=stop.is_set, stalled_sec=0.5)
    caught: list[OutputGone] = []
    done = threading.Event()

    def fill() -> None:
        try:
            stalled.fill(queue)
        except OutputGone as error:
            caught.append(error)
        done.set()

    threading.Thread(target=fill, daemon=True).start()
    assert not done.wait(1), "without a stop it waits"
    stopped = time.monotonic()
    stop.set()
    assert done.wait(in_time(2))
    assert time.monotonic() - stopped >= 0.35, "the reader gets its time from the stop on"
    assert re.fullmatch(r"stdout was not read for 0.5 s; \d+ events were not delivered", str(caught[0]))
    queue.write(partial("x" * 1_000))
    assert queue._queued_bytes <= 1_000


def test_a_full_queue_after_a_stop_waits_for_a_reader_that_takes_bytes(stalled: Stalled) -> None:
    queue = stalled.queue(max_queued_bytes=1_000, stop_requested=lambda: True, stalled_sec=0.5)
    stalled.read_a_byte_now_and_then(for_sec=1.5)
    stalled.fill(queue)
    queue.close()
    assert len(stalled.finish()) == 100


def test_a_stalled_reader_gets_its_time_and_what_is_left_is_counted(stalled: Stalled) -> None:
    queue = stalled.queue(stalled_sec=0.5)
    stalled.fill(queue)
    stalled.wait_until_full()
    started = time.monotonic()
    with pytest.raises(OutputGone, match=r"stdout was not read for 0.5 s; (\d+) events were not delivered") as caught:
        queue.close()
    assert 0.5 <= time.monotonic() - started < in_time(1)
    undelivered = int(re.findall(r"(\d+) events", str(caught.value))[0])
    stalled.read()
    assert len(stalled.finish()) >= 100 - undelivered
    assert undelivered == 100 - stalled.num_lines_when_full


def test_a_reader_that_takes_a_byte_now_and_then_is_not_given_up(stalled: Stalled) -> None:
    """The pipe has no room for a single line all the while: only the bytes that wait in it show that it is read."""
    queue = stalled.queue(stalled_sec=0.5)
    stalled.fill(queue)
    stalled.read_a_byte_now_and_then(for_sec=1.5)
    queue.close()
    assert len(stalled.finish()) == 100


def test_a_reader_of_one_line_larger_than_the_pipe_is_not_given_up_while_it_reads(stalled: Stalled) -> None:
    """A reader that takes what there is at once finds the pipe full again each time: it looks as if nothing was taken."""
    queue = stalled.queue(stalled_sec=0.5)
    queue.write(error("x" * 20 * 4_096))
    stalled.read_page_after_page(every_sec=0.1)
    queue.close()
    (line,) = stalled.finish()
    assert line["message"] == "x" * 20 * 4_096


def test_a_reader_behind_a_socket_that_takes_some_bytes_is_not_given_up() -> None:
    """Node.js gives its children socket pairs for stdout. A socket takes no more before most of what waits in it was read."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        queue = EventQueue(EventWriter(ours.fileno(), lambda: 1), stalled_sec=0.5)
        for number in range(300):
            queue.write(error(f"{number} {'x' * 4_000}"))
        received = b""

        def read() -> None:
            nonlocal received
            until = time.monotonic() + 1.5
            while received.count(b"\n") != 300:
                received += theirs.recv(4_096)
                if time.monotonic() < until:
                    time.sleep(0.2)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        queue.close()
        reader.join(10)
        assert [json.loads(line)["seq"] for line in received.splitlines()] == list(range(1, 301))


def test_a_patient_close_waits_for_a_reader_that_stalls_and_comes_back(stalled: Stalled) -> None:
    queue = stalled.queue(stalled_sec=0.2)
    stalled.fill(queue)
    threading.Timer(1, stalled.read).start()
    queue.close(patient=True)
    assert len(stalled.finish()) == 100


def test_a_stop_ends_the_patience_of_a_close(stalled: Stalled) -> None:
    stop = threading.Event()
    queue = stalled.queue(stop_requested=stop.is_set, stalled_sec=0.5)
    stalled.fill(queue)
    threading.Timer(1, stop.set).start()
    started = time.monotonic()
    with pytest.raises(OutputGone, match="stdout was not read for"):
        queue.close(patient=True)
    assert 1.35 <= time.monotonic() - started < 1 + in_time(1)


def test_a_patient_close_notices_a_reader_that_leaves(stalled: Stalled) -> None:
    queue = stalled.queue()
    stalled.fill(queue)
    threading.Timer(0.3, os.close, [stalled.read_end]).start()
    with pytest.raises(OutputGone, match="BrokenPipeError"):
        queue.close(patient=True)


@pytest.mark.parametrize("blocking", [True, False])
def test_waiting_for_the_reader_costs_no_computing(stalled: Stalled, blocking: bool) -> None:
    os.set_blocking(stalled.write_end, blocking)
    queue = stalled.queue(stalled_sec=1)
    stalled.fill(queue)
    before = time.process_time()
    with pytest.raises(OutputGone):
        queue.close()
    assert time.process_time() - before < 0.3


@pytest.mark.parametrize("size", [200, 20_000])
def test_a_pipe_that_does_not_block_is_waited_for_like_any_other(stalled: Stalled, size: int) -> None:
    """A parent may have made its end so, and the flag belongs to both."""
    os.set_blocking(stalled.write_end, False)
    queue = stalled.queue()
    for number in range(50):
        queue.write(error(f"{number} {'x' * size}"))
    threading.Timer(0.3, stalled.read).start()
    queue.close(patient=True)
    assert [line["message"].split()[0] for line in stalled.finish()] == [str(number) for number in range(50)]


@pytest.mark.parametrize(
    "notice", [lambda queue: queue.check_reader(), lambda queue: queue.write(error("late")), lambda queue: queue.close()]
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


def wait_for_log(service: RunningService, word: str) -> None:
    """Read the log until a line holds ``word``."""
    assert service.process.stderr is not None
    assert any(word.encode() in line for line in service.process.stderr)


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
    assert final_texts(events) == list(example("two_utterances")[1]) * 9


@pytest.mark.slow
def test_a_reader_slower_than_a_file_gets_every_event_and_exit_0() -> None:
    """As in ``--input FILE | while read -r line; do ...; done``: the file has ended long before the reader has."""
    service = start_service("streaming", "--input", str(EXAMPLES / "two_utterances.wav"), stderr=subprocess.PIPE)
    stdout = service.process.stdout
    assert stdout is not None
    fcntl.fcntl(stdout.fileno(), fcntl.F_SETPIPE_SZ, 4_096)
    wait_for_log(service, "service_stopped")
    with pytest.raises(subprocess.TimeoutExpired):
        service.process.wait(timeout=5)  # longer than a stop would wait
    events, code = service.finish()
    assert code == 0
    assert final_texts(events) == list(example("two_utterances")[1])


@pytest.mark.slow
def test_a_stop_at_the_end_of_a_file_gives_up_a_reader_that_stalls() -> None:
    service = start_service("streaming", "--input", str(EXAMPLES / "two_utterances.wav"), stderr=subprocess.PIPE)
    assert service.process.stdout is not None
    fcntl.fcntl(service.process.stdout.fileno(), fcntl.F_SETPIPE_SZ, 4_096)
    wait_for_log(service, "service_stopped")
    sent = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(timeout=20) == 5
    assert 2.8 <= time.monotonic() - sent < in_time(6)


@pytest.mark.slow
def test_a_stdout_that_does_not_block_gives_every_event_to_a_slow_reader() -> None:
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4_096)
    os.set_blocking(write_end, False)
    arguments = command("streaming", "--input", str(EXAMPLES / "two_utterances.wav"))
    with subprocess.Popen(arguments, stdout=write_end, stderr=subprocess.PIPE, env=environment()) as process:
        os.close(write_end)
        with os.fdopen(read_end, "rb") as stdout:
            assert process.stderr is not None
            for line in process.stderr:
                if b"service_stopped" in line:
                    break
            events = parse_events(stdout.read())
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert final_texts(events) == list(example("two_utterances")[1])


@pytest.mark.slow
def test_a_reader_that_stalls_for_good_cannot_hold_a_stop_up() -> None:
    service = start_service("streaming", "--input", "-", stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    stdin, stdout = service.process.stdin, service.process.stdout
    assert stdin is not None
    assert stdout is not None
    fcntl.fcntl(stdout.fileno(), fcntl.F_SETPIPE_SZ, 8_192)  # the second page takes a line only
    for _ in range(4):
        stdin.write(pcm())
    sent = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(timeout=20) == 5
    assert 2.8 <= time.monotonic() - sent < in_time(6)
    assert service.process.stderr is not None
    log = service.process.stderr.read().decode()
    assert "events were not delivered" in log
    assert "Traceback" not in log
    whole = stdout.read().rpartition(b"\n")[0] + b"\n"
    assert of_type([json.loads(line) for line in whole.splitlines()], "final")
    stdin.close()
    stdout.close()
    service.process.stderr.close()
