"""What recognition costs: FunASR's loop, our two engines and FunASR's ONNX relatives side by side, on the same weights and audio.

    python bench/speed.py                              # everything: 15 minutes; figures go to .cache/bench/results
    python bench/speed.py --only side-by-side          # or embedded, busy, hour
    python bench/speed.py --quick --results DIR        # a look at everything: 4 minutes
    python bench/report.py                             # RESULTS.md of what is there

- *side by side*: every contender in a process of its own (contender.py), one thread each, full size with random weights. They take turns
  at one utterance of 18 s, so that a noisy machine is noisy for all of them; the others wait meanwhile.
- *embedded*: the same with the model that ships with the repository.
- *busy*: the same utterance while another process keeps one core busy, and without it, in turns.
- *an hour*: an hour of speech through our ONNX engine as fast as it goes, in utterances of 15 s.

A benchmark, not a test: nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from contender import PEERS, SAMPLE_RATE_HZ
from full_size import CONVERSIONS, EMBEDDED, RECOGNITION, ensure_built, ensure_converted, ensure_exported
from results import PEERS_PYTHON, REPOSITORY, RESULTS, WORKSPACE, Part, busy_sec, require_peers, spread

AUDIO = WORKSPACE / "examples.npy"
LOGS = WORKSPACE / "logs"
UTTERANCE_SEC = 18
SIDE_BY_SIDE = (
    "funasr", "torch", "onnx", "onnx previews", "funasr-onnx", "funasr-onnx left context", "sherpa-onnx", "torch sliced", "onnx sliced",
)  # fmt: skip
BUSY = (("torch", 1), ("torch", 2), ("onnx", 1))
HOUR_UTTERANCE_SEC = 15
UTTERANCES_PER_MINUTE = 60 // HOUR_UTTERANCE_SEC


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--quick", action="store_true", help="few turns, and four minutes instead of an hour")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the figures go (default: %(default)s)")
    arguments = parser.parse_args()
    require_peers()
    ensure_built()
    ensure_converted([RECOGNITION, EMBEDDED / "asr"])
    LOGS.mkdir(parents=True, exist_ok=True)
    pieces = [soundfile.read(path, dtype="float32")[0] for path in sorted((REPOSITORY / "examples").glob("*.wav"))]
    np.save(AUDIO, np.concatenate(pieces))
    for name, measure in PARTS.items():
        if arguments.only in (None, name):
            print(f"\n{name}", flush=True)
            part = Part(name, quick=arguments.quick)
            part.save(arguments.results, measure(quick=arguments.quick))


def side_by_side(*, quick: bool) -> dict[str, Any]:
    """All contenders at full size."""
    return take_turns(RECOGNITION, SIDE_BY_SIDE, rounds=2 if quick else 12)


def embedded(*, quick: bool) -> dict[str, Any]:
    """All contenders with the embedded model."""
    return take_turns(EMBEDDED / "asr", SIDE_BY_SIDE, rounds=2 if quick else 12)


def take_turns(model: Path, names: Sequence[str], rounds: int) -> dict[str, Any]:
    """Rounds in which each contender recognises the same utterance; an uncounted one comes first."""
    export = ensure_exported(model)
    figures: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        running = {}
        for name in names:
            contender = stack.enter_context(Contender(name, model, export, num_threads=1))
            figures[name] = {"loaded": contender.loaded, "runs": []}
            running[name] = contender
        for turn in range(rounds + 1):
            for name, contender in running.items():
                run = contender.recognize(0, UTTERANCE_SEC)
                if turn:
                    figures[name]["runs"].append(run)
    for name, contender in running.items():
        if contender.error is not None:
            figures[name] = {"error": contender.error}
            print(f"{name:26}{contender.error}")
        else:
            _print(name, [run["sec"] for run in figures[name]["runs"]])
    return {"rounds": rounds, "seconds": UTTERANCE_SEC, "contenders": figures}


def busy(*, quick: bool) -> dict[str, Any]:
    """Ours without and with a neighbour that keeps one core busy, in turns."""
    rounds = 2 if quick else 10
    figures: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for name, num_threads in BUSY:
            contender = stack.enter_context(Contender(name, RECOGNITION, WORKSPACE, num_threads))
            contender.require()
            contender.recognize(0, UTTERANCE_SEC)
            figures[f"{name}, {num_threads} thread{'s' * (num_threads > 1)}"] = {"contender": contender, "idle": [], "busy": []}
        for _ in range(rounds):
            for entry in figures.values():
                entry["idle"].append(entry["contender"].recognize(0, UTTERANCE_SEC))
                with neighbour():
                    entry["busy"].append(entry["contender"].recognize(0, UTTERANCE_SEC))
    for name, entry in figures.items():
        del entry["contender"]
        for state in ("idle", "busy"):
            _print(f"{name}, {state}", [run["sec"] for run in entry[state]])
    return {"rounds": rounds, "seconds": UTTERANCE_SEC, "contenders": figures}


def an_hour(*, quick: bool) -> dict[str, Any]:
    """Utterance after utterance, each with audio that begins elsewhere in the examples."""
    minutes = 4 if quick else 60
    runs = []
    with Contender("onnx", RECOGNITION, WORKSPACE, 1) as contender:
        contender.require()
        contender.recognize(0, HOUR_UTTERANCE_SEC)
        for index in range(minutes * UTTERANCES_PER_MINUTE):
            run = contender.recognize(index * HOUR_UTTERANCE_SEC, HOUR_UTTERANCE_SEC)
            runs.append({key: value for key, value in run.items() if key != "pieces_sec"})
    _print("onnx", [run["sec"] * UTTERANCE_SEC / HOUR_UTTERANCE_SEC for run in runs])
    print(f"resident {runs[0]['resident_mb']:.0f} MB at the start, {runs[-1]['resident_mb']:.0f} MB at the end")
    return {"minutes": minutes, "seconds": HOUR_UTTERANCE_SEC, "runs": runs}


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "side-by-side": side_by_side,
    "embedded": embedded,
    "busy": busy,
    "hour": an_hour,
}


class Contender:
    """A process of contender.py."""

    def __init__(self, name: str, model: Path, export: Path, num_threads: int) -> None:
        """Start it, and wait until it has loaded."""
        self.error: str | None = None
        """Why it recognises no more."""
        self._log = LOGS / f"{name.replace(' ', '-')}-{num_threads}.log"
        python = PEERS_PYTHON if name in PEERS else sys.executable
        options = {"--model-dir": model, "--export": export, "--audio": AUDIO, "--threads": num_threads}
        command = [python, Path(__file__).with_name("contender.py"), name, *(word for option in options.items() for word in option)]
        environment = {**os.environ, "XDG_CACHE_HOME": str(CONVERSIONS), "ORT_DISABLE_TELEMETRY": "1"}
        with self._log.open("w") as log:
            self._process = subprocess.Popen(  # noqa: S603 -- our own
                list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        self.loaded = self._answer()

    def __enter__(self) -> Contender:
        """It runs already."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def require(self) -> None:
        """End the benchmark if it could not load: a peer may be missing, one of ours may not."""
        if self.error is not None:
            sys.exit(f"{self._log.stem}: {self.error}")

    def recognize(self, start_sec: int, length_sec: int) -> dict[str, Any]:
        """What ``contender.measure`` measured, and the time that other processes computed meanwhile; nothing after an error."""
        if self.error is not None:
            return {}
        assert self._process.stdin is not None
        before = busy_sec()
        self._process.stdin.write(f"{start_sec * SAMPLE_RATE_HZ} {(start_sec + length_sec) * SAMPLE_RATE_HZ}\n")
        self._process.stdin.flush()
        run = self._answer()
        return {**run, "others_sec": max(0.0, busy_sec() - before - run["cpu_sec"])} if run else {}

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._last_words()}
        self.error = answer.get("error")
        return {} if self.error else answer

    def _last_words(self) -> str:
        """What a process that is gone had written last."""
        code = self._process.wait()
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return f"ended with code {code}: {' '.join(lines[-3:])}"


@contextlib.contextmanager
def neighbour() -> Iterator[None]:
    """A process that keeps one core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _print(name: str, seconds: Sequence[float]) -> None:
    low, middle, high = (1000 * each / UTTERANCE_SEC * 0.6 for each in spread(seconds))
    print(f"{name:26}{middle:8.1f} ms per 600 ms ({low:.1f} to {high:.1f})", flush=True)


if __name__ == "__main__":
    main()
