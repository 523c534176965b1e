"""What several test files need: the examples, the service as a parent process sees it, and the schema every line must meet."""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import soundfile

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLES = REPOSITORY / "examples"
EMBEDDED_ASR = REPOSITORY / "models" / "embedded" / "asr"
ENTRIES = {"sliced": "asr_service.py", "streaming": "asr_service_streaming.py"}

Event = dict[str, Any]

_SLACK = float(os.environ.get("TESTS_SLACK", "3"))


def in_time(guaranteed_sec: float) -> float:
    """The limit of a guarantee on time: three times of it beside whatever else the machine does; `make faults` sets the factor to 1."""
    return guaranteed_sec * _SLACK


@functools.cache
def example(name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Samples (float32, 16 kHz mono) and the text of each utterance."""
    samples, rate_hz = soundfile.read(EXAMPLES / f"{name}.wav", dtype="float32")
    assert rate_hz == 16_000
    return samples, tuple((EXAMPLES / f"{name}.txt").read_text(encoding="utf-8").split())


def example_names() -> list[str]:
    return sorted(path.stem for path in EXAMPLES.glob("*.wav"))


@functools.cache
def _validator() -> jsonschema.Draft202012Validator:
    schema = json.loads((REPOSITORY / "config" / "events.schema.json").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema)


def parse_events(stdout: bytes | str) -> list[Event]:
    """Every line as an event; fails on a byte that is not part of a valid one, on a gap in seq, on a broken guarantee."""
    text = stdout.decode("utf-8") if isinstance(stdout, bytes) else stdout
    assert text == "" or text.endswith("\n"), "the last line is not whole"
    events = [json.loads(line) for line in text.splitlines()]
    for event in events:
        _validator().validate(event)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    check_guarantees(events)
    return events


def check_guarantees(events: list[Event]) -> None:
    """Guarantees 2, 3 and 4 of the contract, as a reader sees them."""
    finals = of_type(events, "final")
    final_ids = [event["trace_id"] for event in finals]
    assert len(final_ids) == len(set(final_ids)), "an utterance has two finals"
    woken = [event["trace_id"] for event in of_type(events, "voice.wake")]
    assert len(woken) == len(set(woken)), "an utterance is woken twice"
    open_id: str | None = None
    done: set[str] = set()
    stable: dict[str, str] = {}
    for event in events:
        kind, trace_id = event["type"], event["trace_id"]
        if kind == "voice.wake":
            assert trace_id not in done, "a wake word after the final of its utterance"
            assert open_id in (None, trace_id), "an utterance is woken before the final of the last one"
            open_id = trace_id
        elif kind == "voice.asr_text.partial":
            assert trace_id not in done, "a partial after its final"
            assert open_id in (None, trace_id), "an utterance began before the final of the last one"
            open_id = trace_id
            assert event["raw_text"].startswith(stable.get(trace_id, "")), "a stable character changed"
            assert event["stable_chars"] <= len(event["raw_text"])
            stable[trace_id] = event["raw_text"][: event["stable_chars"]]
        elif kind == "voice.asr_text.final":
            assert open_id in (None, trace_id)
            assert event["raw_text"].startswith(stable.get(trace_id, "")), "the final takes a stable character back"
            assert all(token["start_ms"] <= token["end_ms"] for token in event["tokens"])
            done.add(trace_id)
            open_id = None
        elif kind in ("voice.asr_text.emotion", "voice.asr_text.speaker"):
            assert trace_id in done, "a label before its final"
    assert open_id is None, "an utterance with a partial has no final"


def resident_bytes(pid: int) -> int:
    """Memory of a process, as Linux counts it."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def of_type(events: list[Event], kind: str) -> list[Event]:
    """Events whose type ends in ``kind``."""
    return [event for event in events if event["type"].endswith(kind)]


def final_texts(events: list[Event]) -> list[str]:
    """The texts of the finals, without marks."""
    return [said(event) for event in of_type(events, "final")]


def said(final: Event) -> str:
    """The text of a final, without marks. ``raw_text`` is what the first pass read, which depends on the moment."""
    return re.sub("[，。？、]", "", final["text"])


@dataclass
class Result:
    """A run of the service that ended."""

    events: list[Event]
    returncode: int
    stderr: str


def environment(**extra: str) -> dict[str, str]:
    """A parent's environment without our settings, and with a locale that is no UTF-8: the contract does not depend on it."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("VOICE_ASR__")}
    settled = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONWARNINGS": "default", "XDG_CACHE_HOME": str(cache_directory())}
    return {**inherited, **settled, **extra}


@functools.cache
def cache_directory() -> Path:
    """Where services of this test run keep converted models; one for all of them, gone when the tests end."""
    directory = Path(tempfile.mkdtemp(prefix="voice-asr-tests-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def command(mode: str, *arguments: str, embedded: bool = True, planted: str = "") -> list[str]:
    """The entry's command line; with ``planted``, statements that run before it."""
    start = [str(REPOSITORY / ENTRIES[mode])]
    if planted:
        before = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\nfrom voice.process.start import begin\nstart = begin()"
        behind = f"from voice.prerequisites import run\nsys.exit(run({mode!r}, start))"
        start = ["-c", f"{before}\n{planted}\n{behind}"]
    return [sys.executable, *start, *(["--embedded"] if embedded else []), *arguments]


def run_service(
    mode: str,
    *arguments: str,
    stdin: bytes | None = None,
    embedded: bool = True,
    planted: str = "",
    timeout_sec: float = 120,
    **extra: str,
) -> Result:
    """Run an entry to its end, as a parent would."""
    process = subprocess.run(
        command(mode, *arguments, embedded=embedded, planted=planted),
        input=stdin if stdin is not None else b"",
        capture_output=True,
        timeout=timeout_sec,
        check=False,
        cwd="/",
        env=environment(**extra),
    )
    stderr = process.stderr.decode("utf-8", errors="replace")
    assert planted or "Traceback" not in stderr, stderr
    return Result(parse_events(process.stdout), process.returncode, stderr)


@dataclass
class RunningService:
    """An entry that is running; its stdout is read line by line. What a test that fails leaves running is ended behind it."""

    process: subprocess.Popen[bytes]
    _received: bytes = b""
    _read: int = 0
    """So much of what was received has been looked at."""

    def wait_for(self, wanted: Callable[[Event], bool], timeout_sec: float = 60) -> Event:
        """The next event that is wanted; fails at the deadline or the end of stdout."""
        deadline = time.monotonic() + timeout_sec
        while (line := self._next_line(deadline)) is not None:
            event: Event = json.loads(line)
            if wanted(event):
                return event
        raise AssertionError(f"not seen within {timeout_sec} s; so far: {self._received.decode()}")

    def finish(self, timeout_sec: float = 30) -> tuple[list[Event], int]:
        """Read to the end; all events and the exit code."""
        rest, _ = self.process.communicate(timeout=timeout_sec)
        return parse_events(self._received + rest), self.process.returncode

    def end(self) -> None:
        """Kill it if it runs and close what is open of its pipes."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def _next_line(self, deadline: float) -> bytes | None:
        stdout = self.process.stdout
        assert stdout is not None
        while (end := self._received.find(b"\n", self._read)) < 0:
            ready, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(stdout.fileno(), 65_536) if ready else b""
            if not data:
                return None
            self._received += data
        line, self._read = self._received[self._read : end], end + 1
        return line


STARTED: list[RunningService] = []
"""Those of the test that runs."""


def start_service(
    mode: str, *arguments: str, stdin: int | None = subprocess.DEVNULL, stderr: Any = None, planted: str = "", **extra: str
) -> RunningService:
    process = subprocess.Popen(
        command(mode, *arguments, planted=planted),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
        bufsize=0,
        env=environment(**extra),
        cwd="/",
    )
    STARTED.append(RunningService(process))
    return STARTED[-1]
