"""Recognition by a server beside recognition in the process: how much later its finals come, and how many daemons one server bears.

    python bench/remote.py                           # beside a server of the tests with the embedded models: 15 minutes
    python bench/remote.py --server ws://host:10095  # beside a server that runs already, such as FunASR's own
    python bench/remote.py --latency-only            # or --load-only; --daemons 1,2,4; --utterances 200

Every daemon is the real service, fed over stdin at real-time pace, 30 ms at a time: the examples in turn, with pauses, so that it is known
what should be recognised. *latency* is ``ts - captured_ts`` of a final, less the ``endpoint_silence_ms`` that ends an utterance. Local and
remote daemons run side by side in one run, so that whatever else the machine does meets both. *wrong* are characters of the finals that are
not as they should be, *lost* is ``lost_ms`` of the totals. The server's share of a processor is measured where this script starts the
server. A benchmark, not a test: nothing here passes or fails. Prints tables.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
from results import REPOSITORY, machine, now, process_sec

EXAMPLES = REPOSITORY / "examples"
ENDPOINT_SILENCE_MS = 800
PAUSE_SEC = 1.4
BYTES_PER_SEC = 32_000
BLOCK_BYTES = 30 * BYTES_PER_SEC // 1000
LOAD_UTTERANCES = 15
SERVER = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
from runtime_server import RuntimeServer, embedded
import threading
server = RuntimeServer({kind!r}, embedded())
print(server.url, flush=True)
threading.Event().wait()
"""


@dataclass
class Heard:
    """What came of one daemon."""

    latencies_ms: list[int] = field(default_factory=list)
    wrong: int = 0
    characters: int = 0
    lost_ms: int = 0
    errors: int = 0


def script(num_utterances: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Speech (float32, 16 kHz), and the text of each utterance."""
    rng = np.random.default_rng(seed)
    names = sorted(path.stem for path in EXAMPLES.glob("*.wav"))
    pieces: list[np.ndarray] = [np.zeros(8_000, np.float32)]
    texts: list[str] = []
    while len(texts) < num_utterances:
        name = names[rng.integers(len(names))]
        samples, _ = soundfile.read(EXAMPLES / f"{name}.wav", dtype="float32")
        texts += (EXAMPLES / f"{name}.txt").read_text(encoding="utf-8").split()
        pieces += [samples, np.zeros(round((PAUSE_SEC + rng.uniform(0, 0.5)) * 16_000), np.float32)]
    return np.concatenate(pieces), texts


class Daemon:
    """One service on a file."""

    def __init__(self, directory: Path, num_utterances: int, seed: int, url: str | None) -> None:
        samples, self.texts = script(num_utterances, seed)
        remote = ["--engine", url] if url else []
        self.is_remote = url is not None
        self._output = (directory / f"{seed}.jsonl").open("w+b")
        entry = str(REPOSITORY / "asr_service_streaming.py")
        self.process = subprocess.Popen(  # noqa: S603 -- our own entry
            [sys.executable, entry, "--embedded", "--status-events", "--input", "-", *remote],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.DEVNULL,
        )
        threading.Thread(target=self._feed, args=((samples * 32_767).astype("<i2").tobytes(),)).start()

    def _feed(self, pcm: bytes) -> None:
        """The blocks that a microphone would have filled by now."""
        stdin = self.process.stdin
        assert stdin is not None
        time.sleep(2)  # until the models are loaded
        started = time.monotonic()
        with stdin:
            for position in range(0, len(pcm), BLOCK_BYTES):
                time.sleep(max(0.0, started + position / BYTES_PER_SEC - time.monotonic()))
                stdin.write(pcm[position : position + BLOCK_BYTES])
                stdin.flush()

    def finish(self) -> Heard:
        """What it heard, once it is done."""
        self.process.wait()
        self._output.seek(0)
        events = [json.loads(line) for line in self._output]
        self._output.close()
        heard = Heard()
        finals = [event for event in events if event["type"] == "voice.asr_text.final"]
        heard.latencies_ms = [event["ts"] - event["captured_ts"] - ENDPOINT_SILENCE_MS for event in finals]
        expected, recognised = "".join(self.texts), "".join(event["raw_text"] for event in finals)
        same = sum(block.size for block in difflib.SequenceMatcher(None, expected, recognised, autojunk=False).get_matching_blocks())
        heard.characters, heard.wrong = len(expected), max(len(expected), len(recognised)) - same
        heard.errors = sum(event["type"] == "core.error_event" for event in events)
        heard.lost_ms = sum(event["totals"]["lost_ms"] for event in events if event.get("state") == "stopped")
        return heard


def together(all_heard: Sequence[Heard]) -> str:
    """A row's figures."""
    latencies = np.array([each for heard in all_heard for each in heard.latencies_ms] or [0])
    p50, p95, worst = np.percentile(latencies, [50, 95, 100])
    wrong, characters = sum(heard.wrong for heard in all_heard), sum(heard.characters for heard in all_heard)
    lost_sec = sum(heard.lost_ms for heard in all_heard) / 1000
    errors = sum(heard.errors for heard in all_heard)
    return f"{len(latencies)} | {p50:.0f} | {p95:.0f} | {worst:.0f} | {100 * wrong / max(characters, 1):.1f} % | {lost_sec:.1f} | {errors}"


def run(url: str, num_local: int, num_remote: int, num_utterances: int) -> tuple[list[Heard], list[Heard]]:
    """Daemons side by side: what the local ones heard, and the remote ones."""
    with tempfile.TemporaryDirectory() as directory:
        daemons = []
        for seed in range(num_local + num_remote):
            daemons.append(Daemon(Path(directory), num_utterances, seed, None if seed < num_local else url))
            time.sleep(0.3)  # nobody starts all daemons of a house in the same moment
        heard = [(daemon.is_remote, daemon.finish()) for daemon in daemons]
    return [each for is_remote, each in heard if not is_remote], [each for is_remote, each in heard if is_remote]


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", help="address of a server that runs already")
    parser.add_argument("--kind", choices=["cpp", "python"], default="cpp", help="which of FunASR's servers ours is like")
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--daemons", default="1,2,4,8,16", help="numbers of daemons, for the load")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--latency-only", action="store_true")
    only.add_argument("--load-only", action="store_true")
    options = parser.parse_args()
    server = None
    url = options.server
    if url is None:
        code = SERVER.format(tests=str(REPOSITORY / "tests"), root=str(REPOSITORY), kind=options.kind)
        server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)  # noqa: S603 -- our own server
        assert server.stdout is not None
        url = server.stdout.readline().strip()
    sys.stdout.write(f"{now()}, {machine()}, load {os.getloadavg()[0]:.1f}, server {options.server or options.kind}\n\n")
    columns = "finals | latency p50 ms | p95 | worst | wrong | lost s | errors"
    try:
        if not options.load_only:
            local, remote = run(url, 2, 2, options.utterances // 2)
            sys.stdout.write(
                f"| | {columns} |\n|---{'|---' * 7}|\n| in the process | {together(local)} |\n| by the server | {together(remote)} |\n\n"
            )
        if not options.latency_only:
            sys.stdout.write(f"| daemons | {columns} | server, share of a processor |\n|---{'|---' * 8}|\n")
            for number in map(int, options.daemons.split(",")):
                before, started = process_sec(server.pid) if server else 0.0, time.monotonic()
                _, remote = run(url, 0, number, LOAD_UTTERANCES)
                share = (process_sec(server.pid) - before) / (time.monotonic() - started) if server else float("nan")
                sys.stdout.write(f"| {number} | {together(remote)} | {100 * share:.0f} % |\n")
                sys.stdout.flush()
    finally:
        if server is not None:
            server.kill()
            server.wait()


if __name__ == "__main__":
    main()
