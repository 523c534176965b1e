"""How soon text comes: the real service at real-time pace, on both engines, with and without previews, and FunASR's loop beside it.

    python bench/latency.py                            # 30 minutes: the audio is played 16 times; figures go to .cache/bench/results
    python bench/latency.py --models embedded          # or full-size; --engine torch or onnx
    python bench/latency.py --only "onnx, no"          # runs whose name begins so
    python bench/latency.py --quick --results DIR      # the first 17 s of the audio: 7 minutes
    python bench/report.py                             # RESULTS.md of what is there

The service is spawned as a parent spawns it, and fed over stdin: every 30 ms the block that a microphone would have filled by then.
Measured at the parent's end of the pipe:

- *token latency*: arrival of the first partial (or the final) that holds a character at its final place, minus the character's end in
  the audio, known from the synthesizer's durations. Characters that the model gets wrong do not count.
- *partial latency*: arrival of a partial, minus the writing of the block that holds the last sample it rests on.
- *final latency*: arrival of the final, minus the writing of the block that completes the endpoint's silence.
- *churn*: characters that a later partial or the final takes back, per final character.
- *emotion*: finals that carry one.
- *% of a core*, *resident*: what the whole service used while it listened, and held at the end.

At full size recognition, punctuation (ct-punc-c) and emotion (emotion2vec_plus_base) have random weights: their texts mean nothing, so
token latency, churn and what is right are not measured. FunASR's loop is ``AutoModel.generate`` in this process with chunks of 600 ms, the
audio at the same pace, one utterance's cache after the other: it has no endpointing, so it is told where utterances end. A benchmark, not a
test: nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
from full_size import CONVERSIONS, EMBEDDED, EMOTION, PUNCTUATION, RECOGNITION, ensure_built, ensure_converted
from results import REPOSITORY, RESULTS, Part, busy_sec, load, memory_mb, now, process_sec, spread

sys.path.insert(0, str(REPOSITORY))

from voice.audio import SAMPLE_RATE_HZ, Samples
from voice.models.loader import load_model
from voice.models.torch_setup import limit_spinning, set_num_threads

SPEECH = Path(__file__).resolve().parent / "timed_speech"
BLOCK_MS = 30
ENDPOINT_SILENCE_MS = 800
CHUNK_MS, LOOK_BACKS = 600, {"encoder_chunk_look_back": 4, "decoder_chunk_look_back": 1}
PRE_ROLL_MS = 300
QUICK_UTTERANCES = 5
FUNASR = "FunASR's loop, text only"

Size = Literal["embedded", "full-size"]
Settings = dict[str, str]

STREAMING, SLICED = "asr_service_streaming.py", "asr_service.py"
ONNX, TORCH = ({"VOICE_ASR__MODEL__ENGINE": engine} for engine in ("onnx", "torch"))
PREVIEWS, CHUNKS_ONLY = ({"VOICE_ASR__STREAMING__PARTIAL_INTERVAL_MS": interval} for interval in ("200", "0"))
NO_SPECULATION = {"VOICE_ASR__FINAL__SPECULATE": "false"}
NO_EMOTION = {"VOICE_ASR__EMOTION__ENABLED": "false"}
TEXT_ONLY = {**NO_EMOTION, "VOICE_ASR__FINAL__PUNCTUATION_MODEL": "off"}
FULL_SIZE = {"VOICE_ASR__FINAL__PUNCTUATION_MODEL": str(PUNCTUATION), "VOICE_ASR__EMOTION__MODEL": str(EMOTION)}


@dataclass(frozen=True)
class Run:
    """One way to run the service."""

    name: str
    settings: Settings
    entry: str = STREAMING


RUNS: dict[Size, tuple[Run, ...]] = {
    "embedded": (
        Run("onnx, previews every 200 ms", {**ONNX, **PREVIEWS}),
        Run("onnx, partials at chunk ends", {**ONNX, **CHUNKS_ONLY}),
        Run("torch, previews every 200 ms", {**TORCH, **PREVIEWS}),
        Run("torch, partials at chunk ends", {**TORCH, **CHUNKS_ONLY}),
        Run("onnx, no speculation", {**ONNX, **PREVIEWS, **NO_SPECULATION}),
        Run("onnx, text only", {**ONNX, **PREVIEWS, **TEXT_ONLY}),
        Run("onnx, sliced", {**ONNX}, SLICED),
        Run("torch, sliced", {**TORCH}, SLICED),
        Run(FUNASR, {}),
    ),
    "full-size": (
        Run("onnx, previews every 200 ms", {**FULL_SIZE, **ONNX, **PREVIEWS}),
        Run("onnx, partials at chunk ends", {**FULL_SIZE, **ONNX, **CHUNKS_ONLY}),
        Run("onnx, no emotion", {**FULL_SIZE, **ONNX, **PREVIEWS, **NO_EMOTION}),
        Run("onnx, text only", {**FULL_SIZE, **ONNX, **PREVIEWS, **TEXT_ONLY}),
        Run("torch, previews every 200 ms", {**FULL_SIZE, **TORCH, **PREVIEWS}),
        Run("torch, partials at chunk ends", {**FULL_SIZE, **TORCH, **CHUNKS_ONLY}),
        Run("torch, text only", {**FULL_SIZE, **TORCH, **PREVIEWS, **TEXT_ONLY}),
    ),
}
"""The first is what the service does by default on a CPU."""


@dataclass
class Heard:
    """What arrived for one utterance: (seconds on this process' clock, text), partials and last the final."""

    texts: list[tuple[float, str]] = field(default_factory=list)
    partials: list[tuple[float, int]] = field(default_factory=list)
    """(seconds on this process' clock, ms of audio that it rests on)."""
    final: dict[str, Any] | None = None


@dataclass(frozen=True)
class Spoken:
    """An utterance of the reference."""

    text: str
    end_ms: list[int]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", choices=RUNS, help="size of the models (default: both)")
    parser.add_argument("--engine", choices=("onnx", "torch"), help="only runs on this engine (default: both, and FunASR's loop)")
    parser.add_argument("--only", default="", help="only runs whose name begins so")
    parser.add_argument("--quick", action="store_true", help="only the first utterances")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the figures go (default: %(default)s)")
    arguments = parser.parse_args()
    samples, rate_hz = soundfile.read(SPEECH.with_suffix(".flac"), dtype="float32")
    assert rate_hz == SAMPLE_RATE_HZ
    spoken = [Spoken(**entry) for entry in json.loads(SPEECH.with_suffix(".json").read_text(encoding="utf-8"))]
    if arguments.quick:
        spoken = spoken[:QUICK_UTTERANCES]
        samples = samples[: (spoken[-1].end_ms[-1] + 2 * ENDPOINT_SILENCE_MS) * SAMPLE_RATE_HZ // 1000]
    for size, runs in RUNS.items():
        chosen = [run for run in runs if run.name.startswith(arguments.only) and run.name.startswith(arguments.engine or "")]
        if arguments.models in (None, size) and chosen:
            measure(size, chosen, spoken, samples, arguments)


def measure(size: Size, runs: Sequence[Run], spoken: list[Spoken], samples: Samples, arguments: argparse.Namespace) -> None:
    """Play the audio to each; figures of runs that were left out stay what they were."""
    if size == "full-size":
        ensure_built()
        ensure_converted([RECOGNITION, PUNCTUATION, EMOTION])
    print(f"\n{size:28}{'token':>14}{'partial':>16}{'final':>16}{'churn':>8}{'right':>8}{'emotion':>9}{'core':>7}{'MB':>8}", flush=True)
    part = Part(f"latency-{size}", quick=arguments.quick)
    earlier = load(arguments.results, f"latency-{size}")
    figures: dict[str, Any] = earlier["figures"] if earlier else {}
    model = ["--embedded"] if size == "embedded" else ["--model-dir", str(RECOGNITION)]
    for run in runs:
        others = Others()
        if run.name == FUNASR:
            heard, pace, used = *run_funasr(EMBEDDED / "asr", spoken, samples), {}
        else:
            heard, pace, used = run_service([run.entry, *model], run.settings, samples)
        figures[run.name] = {**latencies(heard, pace), **(correctness(spoken, heard, pace) if size == "embedded" else {}), **used}
        figures[run.name] |= {"date": now(), "others": others.share(used.get("sec", 0.0))}
        print_line(run.name, figures[run.name])
    part.save(arguments.results, figures)


class RealTime:
    """Hands out blocks when a microphone would; remembers when."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self.started = time.monotonic()
        self.at: list[float] = []
        """When each block was given, seconds on this process' clock."""

    def blocks(self) -> Iterator[Samples]:
        """Each block of 30 ms, once its last sample would have been captured."""
        size = BLOCK_MS * SAMPLE_RATE_HZ // 1000
        for index in range(len(self._samples) // size):
            time.sleep(max(0.0, self.started + (index + 1) * BLOCK_MS / 1000 - time.monotonic()))
            self.at.append(time.monotonic())
            yield self._samples[index * size : (index + 1) * size]

    def written(self, ms: int) -> float:
        """When the block was given that completes so much audio."""
        return self.at[min((ms - 1) // BLOCK_MS, len(self.at) - 1)]


class Others:
    """How much of the machine other processes than this one and the service use."""

    def __init__(self) -> None:
        self._started, self._busy, self._own = time.monotonic(), busy_sec(), time.process_time()

    def share(self, service_sec: float) -> float:
        """Of all cores, since this object was made."""
        others = busy_sec() - self._busy - service_sec - (time.process_time() - self._own)
        return max(0.0, others / (time.monotonic() - self._started) / (os.cpu_count() or 1))


def run_service(command: list[str], settings: Settings, samples: Samples) -> tuple[list[Heard], RealTime, dict[str, float]]:
    """Everything the service says about the audio, and what it used."""
    entry, *arguments = command
    command = [sys.executable, str(REPOSITORY / entry), *arguments, "--input", "-", "--status-events", "--log-level", "warning"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(CONVERSIONS), **settings}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0)  # noqa: S603 -- our own
    assert process.stdin is not None
    assert process.stdout is not None
    utterances: dict[str, Heard] = {}
    listening = threading.Event()

    def read() -> None:
        for line in iter(process.stdout.readline, b""):  # type: ignore[union-attr]
            at, event = time.monotonic(), json.loads(line)
            if event.get("state") == "listening":
                listening.set()
            kind = event["type"].removeprefix("voice.asr_text.")
            if kind in ("partial", "final"):
                heard = utterances.setdefault(event["trace_id"], Heard())
                heard.texts.append((at, event["raw_text"] if kind == "final" else event["text"]))
                if kind == "final":
                    heard.final = event
                else:
                    heard.partials.append((at, event["end_ms"]))
            elif event["type"] == "core.error_event":
                print(line.decode(), file=sys.stderr)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    if not listening.wait(600):
        raise SystemExit("the service does not listen")
    pace = RealTime(samples)
    before = process_sec(process.pid)
    for block in pace.blocks():
        process.stdin.write((block * 32_767).astype("<i2").tobytes())
    spent = process_sec(process.pid)
    used = {"core": (spent - before) / (time.monotonic() - pace.started), "sec": spent, **memory_mb(process.pid)}
    process.stdin.close()
    process.wait(30)
    reader.join(5)
    return list(utterances.values()), pace, used


def run_funasr(directory: Path, spoken: list[Spoken], samples: Samples) -> tuple[list[Heard], RealTime]:
    """The loop of FunASR's documentation, cut into the reference's utterances."""
    limit_spinning()
    load_model(directory, "ParaformerStreaming", "cpu")  # registers the classes that the directory names
    from funasr.auto.auto_model import AutoModel

    model = AutoModel(model=str(directory), device="cpu", ncpu=1, disable_update=True, disable_pbar=True)
    set_num_threads(1)
    pace = RealTime(samples)
    received = np.zeros(0, np.float32)
    blocks = pace.blocks()
    utterances = []
    previous_end = 0
    for reference in spoken:
        start = max(previous_end, (reference.end_ms[0] - PRE_ROLL_MS - 250) * 16)
        end = (reference.end_ms[-1] + ENDPOINT_SILENCE_MS) * 16
        previous_end = end
        heard, text, cache = Heard(), "", {}  # type: ignore[var-annotated]
        for at in range(start, end, CHUNK_MS * 16):
            until = min(at + CHUNK_MS * 16, end)
            while len(received) < until:
                received = np.concatenate((received, next(blocks)))
            options = {"chunk_size": [0, 10, 5], **LOOK_BACKS, "is_final": until == end}
            text += model.generate(input=received[at:until], cache=cache, **options)[0]["text"].replace(" ", "")
            if text and (not heard.texts or heard.texts[-1][1] != text or until == end):
                heard.texts.append((time.monotonic(), text))
        heard.final = {"raw_text": text, "end_ms": reference.end_ms[-1], "endpoint": "silence"}
        utterances.append(heard)
    return utterances, pace


def latencies(heard: list[Heard], pace: RealTime) -> dict[str, Any]:
    """Of partials and finals, ms, and the share of finals with an emotion."""
    partials, finals, emotions = [], [], 0
    for utterance in heard:
        if utterance.final is None:
            raise SystemExit("an utterance has no final")
        partials += [1000 * (at - pace.written(end_ms)) for at, end_ms in utterance.partials]
        finals.append(1000 * (utterance.texts[-1][0] - pace.written(utterance.final["end_ms"] + ENDPOINT_SILENCE_MS)))
        emotions += bool(utterance.final.get("emotion"))
    return {"partials_ms": partials, "finals_ms": finals, "emotion": emotions / len(heard)}


def correctness(spoken: list[Spoken], heard: list[Heard], pace: RealTime) -> dict[str, Any]:
    """Token latencies in ms, and the shares of characters that were taken back and that are right."""
    tokens, taken_back, characters = [], 0, 0
    for reference, utterance in zip(spoken, heard, strict=True):
        assert utterance.final is not None
        text = utterance.final["raw_text"]
        characters += len(text)
        for block in difflib.SequenceMatcher(None, reference.text, text, autojunk=False).get_matching_blocks():
            for offset in range(block.size):
                place = block.b + offset
                at = next(at for at, shown in utterance.texts if shown[place : place + 1] == text[place])
                tokens.append(1000 * (at - pace.started) - reference.end_ms[block.a + offset])
        for (_, before), (_, after) in zip(utterance.texts, utterance.texts[1:], strict=False):
            taken_back += len(before) - len(common_prefix(before, after))
    right = len(tokens) / sum(len(reference.text) for reference in spoken)
    return {"tokens_ms": tokens, "churn": taken_back / characters, "right": right}


def print_line(name: str, figures: dict[str, Any]) -> None:
    """One run: medians and 95th percentiles."""
    line = f"{name:32}"
    for key, width in (("tokens_ms", 5), ("partials_ms", 8), ("finals_ms", 8)):
        values = figures.get(key)
        line += " " * (2 * width) if not values else "{1:{0}.0f}{2:{0}.0f}".format(width, *spread(values)[1:])
    for key, width, form in (
        ("churn", 8, ".3f"),
        ("right", 8, ".1%"),
        ("emotion", 9, ".0%"),
        ("core", 7, ".0%"),
        ("resident_mb", 8, ".0f"),
    ):
        line += f"{figures[key]:{width}{form}}" if key in figures else " " * width
    print(line, flush=True)


def common_prefix(one: str, other: str) -> str:
    """What both texts begin with."""
    return "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


if __name__ == "__main__":
    main()
