"""A stderr that nobody reads: lines are dropped and counted, nobody who writes there ever waits."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import threading
import time

import pytest
from harness import EXAMPLES, REPOSITORY, command, environment, example, final_texts, in_time, of_type, parse_events

from voice.process.stderr_pump import StderrPump


class Plumbing:
    """A pump between two pipes."""

    def __init__(self, max_waiting_bytes: int = 2**20) -> None:
        source, self.sink = os.pipe()
        self.reader, target = os.pipe()
        fcntl.fcntl(target, fcntl.F_SETPIPE_SZ, 4_096)
        self.pump = StderrPump(source, target, max_waiting_bytes=max_waiting_bytes)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.sink, view) :]

    def finish(self) -> bytes:
        os.close(self.sink)
        received: list[bytes] = []

        def read() -> None:
            while data := os.read(self.reader, 65_536):
                received.append(data)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        self.pump.drain(10)
        os.close(self.pump.target)
        thread.join(10)
        return b"".join(received)


def test_what_is_read_arrives_unchanged() -> None:
    plumbing = Plumbing()
    data = b"".join(b"line %d \xe6\x89\x93\n" % number for number in range(5_000)) + b"no end"
    plumbing.write(data)
    assert plumbing.finish() == data


def test_beyond_the_bound_whole_lines_are_dropped_and_counted() -> None:
    plumbing = Plumbing(max_waiting_bytes=20_000)
    started = time.monotonic()
    for number in range(10_000):
        plumbing.write(b"line %d %s\n" % (number, b"x" * 50))
    assert time.monotonic() - started < 10, "nobody waits"
    time.sleep(0.2)
    received = plumbing.finish()
    kept = re.findall(rb"^line (\d+) x{50}$", received, re.MULTILINE)
    dropped = sum(map(int, re.findall(rb"^stderr was not read: (\d+) log lines were dropped here$", received, re.MULTILINE)))
    assert dropped > 9_000
    assert len(kept) + dropped == 10_000
    assert len(received.splitlines()) == len(kept) + received.count(b"dropped here"), "no line is cut"


def test_a_line_that_comes_in_pieces_is_one_line() -> None:
    plumbing = Plumbing(max_waiting_bytes=100)
    for piece in (b"a" * 60, b"b" * 60, b"c\n", b"next\n"):
        plumbing.write(piece)
        time.sleep(0.05)
    assert plumbing.finish().endswith(b"next\n")


def test_a_reader_that_left_costs_nothing() -> None:
    plumbing = Plumbing()
    os.close(plumbing.reader)
    for _ in range(100):
        plumbing.write(b"x" * 10_000 + b"\n")
    os.close(plumbing.sink)
    started = time.monotonic()
    plumbing.pump.drain(10)
    assert time.monotonic() - started < in_time(1)


@pytest.mark.slow
def test_a_service_whose_log_nobody_reads_goes_on_and_ends() -> None:
    """Every way to stderr is flooded: the log, print, C code by the descriptor."""
    flood = """
import os, sys, structlog
from voice.finalization.punctuation import CtTransformer
real = CtTransformer.punctuate
def noisy(self, text, *, ended):
    for _ in range(2000):
        structlog.get_logger().warning("noise", text="x" * 100)
        print("y" * 100)
        os.write(2, b"z" * 100 + b"\\n")
    return real(self, text, ended=ended)
CtTransformer.punctuate = noisy
"""
    arguments = command("streaming", "--input", str(EXAMPLES / "two_utterances.wav"), planted=flood)
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), cwd="/")
    assert process.stdout is not None
    assert process.stderr is not None
    events = parse_events(process.stdout.read())
    assert process.wait(timeout=10) == 0
    assert final_texts(events) == list(example("two_utterances")[1])
    assert of_type(events, "error_event") == []
    process.stdout.close()
    process.stderr.close()


def test_a_crash_in_c_code_still_reaches_the_reader() -> None:
    program = "from voice.process.stderr_pump import pump_stderr; import ctypes; pump_stderr(); ctypes.string_at(0)"
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, stderr=subprocess.PIPE, check=False, timeout=60)
    assert result.returncode < 0
    assert b"Fatal Python error: Segmentation fault" in result.stderr


def test_the_last_lines_arrive_before_the_process_ends() -> None:
    program = (
        "from voice.process.stderr_pump import pump_stderr, end_pump; import sys\n"
        "pump = pump_stderr(); print('one', file=sys.stderr); end_pump(pump, 5); print('two', file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, stderr=subprocess.PIPE, check=True, timeout=60)
    assert result.stderr == b"one\ntwo\n"
