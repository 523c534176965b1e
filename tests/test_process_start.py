"""The boundary of the process: descriptors that are closed, full, slow or do not block; signals and parents in its first second."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import FUZZED
from harness import EXAMPLES, REPOSITORY, command, environment, example, final_texts, in_time, of_type, parse_events

pytestmark = pytest.mark.slow

SAMPLES, (TEXT,) = example("air_conditioner")
FULL = float(os.environ.get("FUZZ_SCALE", "1")) > 1


class Pipe:
    """A pipe that a parent gives to the service, read slowly if at all."""

    def __init__(self, *, blocking: bool = True, slow: bool = False, read: bool = True) -> None:
        self.read_end, self.write_end = os.pipe()
        fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, 4_096)
        os.set_blocking(self.write_end, blocking)
        self.received = b""
        self._slow = slow
        self._thread = threading.Thread(target=self._read, daemon=True)
        if read:
            self._thread.start()

    def _read(self) -> None:
        while data := os.read(self.read_end, 300 if self._slow else 65_536):
            self.received += data
            if self._slow:
                time.sleep(0.02)

    def finish(self) -> bytes:
        os.close(self.write_end)
        if self._thread.ident:
            self._thread.join(30)
        os.close(self.read_end)
        return self.received


STDIN = ["null", "closed", "pipe", "nonblocking pipe", "pcm pipe", "slow nonblocking pcm pipe"]
STDOUT = ["pipe", "slow pipe", "nonblocking slow pipe", "closed", "full disk"]
STDERR = ["pipe", "unread pipe", "nonblocking unread pipe", "closed", "full disk", "file"]
COMBINATIONS = [
    (stdin, stdout, stderr)
    for (row, stdout), (column, stderr) in itertools.product(enumerate(STDOUT), enumerate(STDERR))
    for index, stdin in enumerate(STDIN)
    if FULL or index == (row + column) % len(STDIN)
]
"""`make fuzz` tries all 180; `make test` each kind of stdin beside each kind of stdout and of stderr, 30 in all."""


def shell(stdin: str, stdout: str, stderr: str) -> str:
    """What a shell does with descriptors that are closed or full before it becomes the service."""
    redirections = ["0<&-"] * (stdin == "closed")
    for number, kind in ((1, stdout), (2, stderr)):
        redirections += [f"{number}>&-"] * (kind == "closed") + [f"{number}>/dev/full"] * (kind == "full disk")
    return 'exec "$@" ' + " ".join(redirections)


def run(stdin: str, stdout: str, stderr: str, directory: Path, *arguments: str) -> tuple[int, bytes]:
    """Exit code, and what arrived on stdout."""
    out = Pipe(blocking="nonblocking" not in stdout, slow="slow" in stdout)
    err = Pipe(blocking="nonblocking" not in stderr, read="unread" not in stderr)
    into: Any = subprocess.DEVNULL
    if "pipe" in stdin:
        into, hold = os.pipe()
        os.set_blocking(into, "nonblocking" not in stdin)
    feeder = threading.Thread(target=lambda: feed(hold, slow="slow" in stdin), daemon=True)
    with (directory / "log").open("wb") as file:
        process = subprocess.Popen(
            ["/bin/sh", "-c", shell(stdin, stdout, stderr), "sh", *command("streaming", *arguments)],
            stdin=into,
            stdout=out.write_end,
            stderr=file if stderr == "file" else err.write_end,
            env=environment(),
            cwd="/",
        )
        if "pipe" in stdin:
            os.close(into)
        if "pcm" in stdin:
            feeder.start()
        code = process.wait(timeout=180)
    if "pcm" in stdin:
        feeder.join(30)
    elif "pipe" in stdin:
        os.close(hold)
    err.finish()
    return code, out.finish()


def feed(write_end: int, *, slow: bool) -> None:
    """Write the example's samples, and close; a service that leaves early is no failure of ours."""
    data = (SAMPLES * 32_767).astype("<i2").tobytes()
    with contextlib.suppress(BrokenPipeError):
        for start in range(0, len(data), 6_001):
            os.write(write_end, data[start : start + 6_001])
            if slow:
                time.sleep(0.05)
    os.close(write_end)


@pytest.mark.parametrize(("stdin", "stdout", "stderr"), COMBINATIONS)
def test_speech_is_recognised_whatever_the_descriptors_are(stdin: str, stdout: str, stderr: str, tmp_path: Path) -> None:
    FUZZED.count("descriptors")
    source = "-" if "pcm" in stdin else str(EXAMPLES / "air_conditioner.wav")
    code, received = run(stdin, stdout, stderr, tmp_path, "--input", source, "--log-format", "json")
    expected = 5 if stdout in ("closed", "full disk") else 0
    assert code == expected
    assert final_texts(parse_events(received)) == ([] if expected else [TEXT])


def test_a_closed_stdin_is_no_input(tmp_path: Path) -> None:
    code, received = run("closed", "pipe", "pipe", tmp_path, "--input", "-")
    (error,) = parse_events(received)
    assert (code, error["error_code"]) == (4, "input_unreadable")
    assert "stdin is closed" in error["message"]


def test_commands_on_a_pipe_that_does_not_block_are_obeyed() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    arguments = command("streaming", "--input", str(EXAMPLES / "two_utterances.wav"), "--realtime", "--control", "stdin")
    process = subprocess.Popen(arguments, stdin=read_end, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(), cwd="/")
    os.close(read_end)
    assert process.stdout is not None
    first = process.stdout.readline()
    os.write(write_end, b'{"command": "stop"}\n')
    rest = process.stdout.read()
    assert process.wait(timeout=30) == 0
    process.stdout.close()
    os.close(write_end)
    (final,) = of_type(parse_events(first + rest), "final")
    assert final["endpoint"] == "shutdown"


# --- signals ----------------------------------------------------------------------------------------------------------------


def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command("streaming", *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), cwd="/", **options
    )


def has_begun(process: subprocess.Popen[bytes]) -> bool:
    """Whether its first line has run: it catches SIGTERM then."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_at_any_moment_of_the_start_is_exit_0_without_a_traceback(number: signal.Signals) -> None:
    """From the first line on, which the interpreter reaches after some 20 ms; then at 50 ms steps through imports and loading."""
    for at_ms in range(0, 1_500, 150):
        process = start("--input", str(EXAMPLES / "two_utterances.wav"), "--realtime")
        while not has_begun(process):
            time.sleep(0.001)
        time.sleep(at_ms / 1000)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, (at_ms, err.decode())
        assert b"Traceback" not in err, at_ms
        parse_events(out)


@pytest.mark.parametrize("after_sec", [0.02, 0.1, 0.3])
def test_a_signal_while_the_process_ends_changes_nothing(after_sec: float) -> None:
    """The interpreter takes up to 0.6 s to end."""
    process = start("--input", str(EXAMPLES / "air_conditioner.wav"), "--status-events")
    assert process.stdout is not None
    received = b""
    while b'"stopped"' not in received:
        received += process.stdout.readline()
    time.sleep(after_sec)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err.decode()
    parse_events(received + out)


def test_a_closed_terminal_gives_the_final() -> None:
    process = start("--input", str(EXAMPLES / "two_utterances.wav"), "--realtime")
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=60)
    (final,) = of_type(parse_events(first + out), "final")
    assert (process.returncode, final["endpoint"]) == (0, "shutdown")


def test_a_hangup_that_was_ignored_at_the_start_stays_ignored() -> None:
    """As with nohup."""
    process = start(
        *("--input", str(EXAMPLES / "air_conditioner.wav"), "--realtime"), preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert [final["endpoint"] for final in of_type(parse_events(first + out), "final")] == ["silence"]


def test_a_stop_command_is_obeyed_while_models_load() -> None:
    """It was obeyed when they were loaded. Loading takes 60 s here, and says on stderr that it began."""
    slow = "import time\nimport voice.models.weights as weights\nreal = weights.load_models\n"
    slow += "def load(*arguments):\n    print('loading began', file=sys.stderr, flush=True)\n"
    slow += "    for _ in range(600): time.sleep(0.1)\n    return real(*arguments)\n"
    slow += "weights.load_models = load\n"
    arguments = command(
        "streaming", "--input", str(EXAMPLES / "air_conditioner.wav"), "--control", "stdin", "--status-events", planted=slow
    )
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, env=environment(), cwd="/"
    ) as process:
        stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
        assert stdin is not None
        assert stdout is not None
        assert stderr is not None
        assert any(line == b"loading began\n" for line in stderr)
        sent = time.monotonic()
        stdin.write(b'{"command": "stop"}\n')
        events = parse_events(stdout.read())
        assert process.wait(timeout=60) == 0
    assert time.monotonic() - sent < in_time(1)
    assert [event["state"] for event in events] == ["loading", "stopped"]


# --- parents ------------------------------------------------------------------------------------------------------------------


PARENT = """
import os, subprocess, sys, time
process = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
status = f"/proc/{process.pid}/status"
while True:
    caught = next(line for line in open(status) if line.startswith("SigCgt"))
    if int(caught.split()[1], 16) >> 14 & 1:
        break
time.sleep(float(sys.argv[1]))
print(process.pid, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("lives_sec", [0.0, 0.05, 0.15, 0.25, 0.35])
def test_a_parent_that_dies_while_the_service_starts_leaves_no_orphan(lives_sec: float) -> None:
    arguments = command("streaming", "--input", str(EXAMPLES / "two_utterances.wav"), "--realtime")
    parent = subprocess.run(
        [sys.executable, "-c", PARENT, str(lives_sec), *arguments], stdout=subprocess.PIPE, env=environment(), cwd=REPOSITORY, check=True
    )
    service = Path(f"/proc/{int(parent.stdout)}")
    deadline = time.monotonic() + in_time(4)  # a second, once its imports are over
    while service.exists():
        if time.monotonic() > deadline:
            os.kill(int(parent.stdout), signal.SIGKILL)
            raise AssertionError("it goes on without a parent")
        time.sleep(0.02)
