"""How soon text comes: the real service at real-time pace, both modes, with and without speculation and emotion, FunASR's loop beside it.

    python bench/latency.py                            # about 10 minutes: the audio is played seven times
    python bench/latency.py --only streaming --json FILE

The service is spawned as a parent spawns it, and fed over stdin: every 30 ms the block that a microphone would have filled by then.
Measured at the parent's end of the pipe:

- *token latency*: arrival of the first partial (or the final) that holds a character at its final place, minus the character's end in
  the audio, known from the synthesizer's durations. Characters that the model gets wrong do not count.
- *final latency*: arrival of the final, minus the writing of the block that completes the endpoint's silence.
- *churn*: characters that a later partial or the final takes back, per final character.
- *emotion*: finals that carry one.

FunASR's loop is `AutoModel.generate` in this process with chunks of 600 ms, the audio at the same pace, one utterance's cache after the
other: it has no endpointing, so it is told where utterances end. A benchmark, not a test: nothing here passes or fails.
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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from voice.audio import SAMPLE_RATE_HZ, Samples  # noqa: E402
from voice.models.loader import load_model  # noqa: E402
from voice.models.store import EMBEDDED  # noqa: E402
from voice.models.torch_setup import limit_spinning, set_num_threads  # noqa: E402

SPEECH = Path(__file__).resolve().parent / "timed_speech"
BLOCK_MS = 30
ENDPOINT_SILENCE_MS = 800
CHUNK_MS, LOOK_BACKS = 600, {"encoder_chunk_look_back": 4, "decoder_chunk_look_back": 1}
PRE_ROLL_MS = 300

WITHOUT_SPECULATION = {"VOICE_ASR__FINAL__SPECULATE": "false"}
WITHOUT_EMOTION = {"VOICE_ASR__EMOTION__ENABLED": "false"}
BARE = {**WITHOUT_EMOTION, "VOICE_ASR__FINAL__PUNCTUATION_MODEL": "off"}
RUNS: dict[str, tuple[str, dict[str, str]]] = {
    "streaming": ("asr_service_streaming.py", {}),
    "streaming, no speculation": ("asr_service_streaming.py", WITHOUT_SPECULATION),
    "streaming, no emotion": ("asr_service_streaming.py", WITHOUT_EMOTION),
    "streaming, text only": ("asr_service_streaming.py", BARE),
    "sliced": ("asr_service.py", {}),
    "sliced, no speculation": ("asr_service.py", WITHOUT_SPECULATION),
}


@dataclass
class Heard:
    """What arrived for one utterance: (seconds on this process' clock, text), partials and last the final."""

    texts: list[tuple[float, str]] = field(default_factory=list)
    final: dict[str, Any] | None = None


@dataclass(frozen=True)
class Spoken:
    """An utterance of the reference."""

    text: str
    end_ms: list[int]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="runs whose name begins so")
    parser.add_argument("--arguments", default="--embedded", help="command line of the service (default: --embedded)")
    parser.add_argument("--model-dir", default=str(EMBEDDED / "asr"), help="recognition model of FunASR's loop")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    samples, rate_hz = soundfile.read(SPEECH.with_suffix(".flac"), dtype="float32")
    assert rate_hz == SAMPLE_RATE_HZ
    spoken = [Spoken(**entry) for entry in json.loads(SPEECH.with_suffix(".json").read_text(encoding="utf-8"))]
    found: dict[str, dict[str, float | None]] = {}
    print(f"{'':28}{'token latency ms':>20}{'final latency ms':>20}")
    print(f"{'':28}{'p50':>10}{'p95':>10}{'p50':>10}{'p95':>10}{'churn':>8}{'right':>8}{'emotion':>9}", flush=True)
    for name, (entry, settings) in RUNS.items():
        if name.startswith(arguments.only or ""):
            heard, blocks_at = run_service(entry, arguments.arguments.split(), settings, samples)
            found[name] = report(name, spoken, heard, blocks_at)
    if "FunASR".startswith(arguments.only or ""):
        heard, blocks_at = run_funasr(arguments.model_dir, spoken, samples)
        found["FunASR"] = report("FunASR's loop", spoken, heard, blocks_at)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


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


def run_service(entry: str, arguments: list[str], settings: dict[str, str], samples: Samples) -> tuple[list[Heard], RealTime]:
    """Everything the service says about the audio."""
    command = [sys.executable, str(REPOSITORY / entry), *arguments, "--input", "-", "--status-events", "--log-level", "warning"]
    process = subprocess.Popen(  # noqa: S603 -- our own entry
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **settings}, bufsize=0
    )
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
                heard.final = event if kind == "final" else None
            elif kind == "core.error_event":
                print(line.decode(), file=sys.stderr)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    if not listening.wait(600):
        raise SystemExit("the service does not listen")
    pace = RealTime(samples)
    for block in pace.blocks():
        process.stdin.write((block * 32_767).astype("<i2").tobytes())
    process.stdin.close()
    process.wait(30)
    reader.join(5)
    return list(utterances.values()), pace


def run_funasr(directory: str, spoken: list[Spoken], samples: Samples) -> tuple[list[Heard], RealTime]:
    """The loop of FunASR's documentation, cut into the reference's utterances."""
    limit_spinning()
    load_model(Path(directory), "ParaformerStreaming", "cpu")  # registers the classes that the directory names
    from funasr.auto.auto_model import AutoModel

    model = AutoModel(model=directory, device="cpu", ncpu=1, disable_update=True, disable_pbar=True)
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


def report(name: str, spoken: list[Spoken], heard: list[Heard], pace: RealTime) -> dict[str, float | None]:
    """Print a run's line; its figures."""
    tokens, finals, taken_back, characters, right, emotions = [], [], 0, 0, 0, 0
    for reference, utterance in zip(spoken, heard, strict=True):
        final = utterance.final
        if final is None:
            raise SystemExit("an utterance has no final")
        text = final["raw_text"]
        characters += len(text)
        emotions += bool(final.get("emotion"))
        for block in difflib.SequenceMatcher(None, reference.text, text, autojunk=False).get_matching_blocks():
            for offset in range(block.size):
                place = block.b + offset
                at = next(at for at, shown in utterance.texts if shown[place : place + 1] == text[place])
                tokens.append(1000 * (at - pace.started) - reference.end_ms[block.a + offset])
                right += 1
        for (_, before), (_, after) in zip(utterance.texts, utterance.texts[1:], strict=False):
            taken_back += len(before) - len(common_prefix(before, after))
        decided = min((final["end_ms"] + ENDPOINT_SILENCE_MS - 1) // BLOCK_MS, len(pace.at) - 1)
        finals.append(1000 * (utterance.texts[-1][0] - pace.at[decided]))
    share = right / sum(len(reference.text) for reference in spoken)
    p50, p95 = np.percentile(tokens, [50, 95])
    final_p50, final_p95 = np.percentile(finals, [50, 95])
    churn, with_emotion = taken_back / characters, emotions / len(spoken)
    line = f"{name:28}{p50:10.0f}{p95:10.0f}{final_p50:10.1f}{final_p95:10.1f}{churn:8.3f}{share:8.1%}{with_emotion:9.0%}"
    print(line, flush=True)
    keys = ("token_p50_ms", "token_p95_ms", "final_p50_ms", "final_p95_ms", "churn", "right", "emotion")
    return dict(zip(keys, map(float, (p50, p95, final_p50, final_p95, churn, share, with_emotion)), strict=True))


def common_prefix(one: str, other: str) -> str:
    """What both texts begin with."""
    return "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


if __name__ == "__main__":
    main()
