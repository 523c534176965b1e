"""A day of speech and silence through the real pipeline, in virtual time: `python tests/soak/day.py [--hours 24] [--plot FILE]`.

The script is drawn from a seed: the examples' commands, one after the other, with 1.2 to 20 s of silence between them, in blocks of 30 ms
at 48 kHz as a microphone delivers them. Of every ten minutes the first are heard by the real models (Silero, recognition, punctuation,
emotion, hotwords), the rest by stand-ins that cost next to nothing, so that a day takes minutes and the pipeline's own state is what ages.
Checked as it goes: every utterance that was spoken has one final, nothing was lost, guarantees 2 to 4 of the contract. Memory, threads
and descriptors are sampled every ten minutes of the day; after the first ten minutes resident memory may move by 2 %.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soxr

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from fakes import CountingRecognizer, LoudnessVad  # noqa: E402
from harness import example, example_names, resident_bytes  # noqa: E402

from voice.audio import SAMPLE_RATE_HZ, AudioBlock  # noqa: E402
from voice.build import build_pipeline  # noqa: E402
from voice.config import load_settings  # noqa: E402
from voice.hotword_list import HotwordList  # noqa: E402
from voice.losses import LossLedger  # noqa: E402
from voice.models.torch_setup import limit_spinning  # noqa: E402
from voice.models.weights import load_models, locate_models  # noqa: E402
from voice.output.events import AnyEvent, FinalEvent, PartialEvent  # noqa: E402
from voice.output.writer import EventWriter  # noqa: E402

INPUT_RATE_HZ = 48_000
BLOCK_FRAMES = 1_440
SAMPLE_EVERY_SEC = 600
PAUSES_SEC = (1.2, 20.0)


@dataclass
class Findings:
    """What a day showed."""

    spoken: int = 0
    finals: int = 0
    lost_ms: int = 0
    errors: int = 0
    resident_mb: list[tuple[float, float]] = field(default_factory=list)
    """(hours of the day, MB)."""
    threads: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    @property
    def drift(self) -> float:
        """The most that resident memory moved after the first ten minutes, as a share."""
        settled = [megabytes for hours, megabytes in self.resident_mb if hours * 3_600 >= SAMPLE_EVERY_SEC]
        return max(abs(megabytes / settled[0] - 1) for megabytes in settled)


class Switching:
    """Two of a kind; each utterance, or each window, is given to one of them."""

    def __init__(self, real: Any, cheap: Any) -> None:
        self.real, self.cheap = real, cheap
        self.use_real = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real if self.use_real else self.cheap, name)


def main() -> None:
    """Run a day, print what it showed, fail where it is not what it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--real-share", type=float, default=0.05, help="share of the time that the real models hear")
    parser.add_argument("--plot", type=Path, help="PNG of resident memory")
    arguments = parser.parse_args()
    started = time.monotonic()
    findings = live(arguments.hours, arguments.real_share, progress=True)
    minutes = (time.monotonic() - started) / 60
    print(
        f"{arguments.hours:g} h of audio in {minutes:.1f} min: {findings.spoken} utterances spoken, {findings.finals} finals, "
        f"{findings.lost_ms} ms lost, {findings.errors} errors; resident memory {findings.resident_mb[-1][1]:.0f} MB, "
        f"moved by {findings.drift:.2%} after the first ten minutes; threads {findings.threads[-1]}, descriptors {findings.descriptors[-1]}"
    )
    if arguments.plot:
        plot(findings, arguments.plot)
    assert findings.finals == findings.spoken
    assert findings.lost_ms == findings.errors == 0
    assert findings.drift <= max(0.02, 8 / findings.resident_mb[-1][1])  # the heap breathes by some MB whatever the service has
    assert len(set(findings.threads[1:])) == 1
    assert len(set(findings.descriptors[1:])) == 1


def live(hours: float, real_share: float, *, progress: bool = False) -> Findings:
    """So many hours of the day."""
    limit_spinning()
    settings = load_settings({"embedded": True, "hotwords": ["周杰伦 20", "空气净化器"]}, environment={})
    models = load_models(locate_models(settings), settings)
    built = build_pipeline(settings, "streaming", models, ledger=LossLedger(), hotwords=HotwordList(settings.hotwords))
    pipeline = built.pipeline
    pipeline._detector._vad = vad = Switching(pipeline._detector._vad, LoudnessVad())  # type: ignore[assignment]
    pipeline._recognizer = recognizer = Switching(pipeline._recognizer, CountingRecognizer())  # type: ignore[assignment]
    pipeline._finalizer = finalizer = Switching(pipeline._finalizer, type(pipeline._finalizer)())  # type: ignore[assignment]
    findings, check = Findings(), Guarantees()
    writer = EventWriter(os.open(os.devnull, os.O_WRONLY), lambda: 0)
    next_sample = 0.0
    for at_sec, block, spoken in microphone(hours * 3_600):
        findings.spoken += spoken
        if not pipeline.in_utterance:
            for switch in (vad, recognizer, finalizer):
                switch.use_real = at_sec % SAMPLE_EVERY_SEC < real_share * SAMPLE_EVERY_SEC
            recognizer.cheap.streams.clear()
        for event in [*pipeline.process(block), *pipeline.late_labels()]:
            check(event)
            writer.write(event)
        pipeline.take_summaries()
        if at_sec >= next_sample:
            next_sample += SAMPLE_EVERY_SEC
            sample(findings, at_sec)
            if progress:
                print(f"{at_sec / 3_600:5.2f} h  {findings.resident_mb[-1][1]:.1f} MB", file=sys.stderr, flush=True)
    for event in [*pipeline.finish("end_of_input"), *pipeline.late_labels(10, last=True)]:
        check(event)
    sample(findings, hours * 3_600)
    findings.finals, findings.lost_ms, findings.errors = check.finals, pipeline.totals.lost_ms, pipeline.totals.errors
    assert pipeline.totals.utterances == findings.finals
    return findings


def microphone(seconds: float) -> Iterator[tuple[float, AudioBlock, int]]:
    """Second of the day, block, and whether the last word of an utterance lies in it (1 or 0)."""
    rng = random.Random("a day")
    clips = [soxr.resample(example(name)[0], SAMPLE_RATE_HZ, INPUT_RATE_HZ).astype(np.float32) for name in example_names()]
    counts = [len(example(name)[1]) for name in example_names()]
    waiting, at, ends = np.zeros(INPUT_RATE_HZ, np.float32), 0, 0
    while at < seconds * INPUT_RATE_HZ:
        while len(waiting) < BLOCK_FRAMES:
            if at > (seconds - 60) * INPUT_RATE_HZ:
                waiting = np.concatenate((waiting, np.zeros(INPUT_RATE_HZ, np.float32)))  # the day ends in silence
                continue
            chosen = rng.randrange(len(clips))
            ends += counts[chosen]
            waiting = np.concatenate((waiting, clips[chosen], np.zeros(round(rng.uniform(*PAUSES_SEC) * INPUT_RATE_HZ), np.float32)))
        block, waiting = waiting[:BLOCK_FRAMES], waiting[BLOCK_FRAMES:]
        yield at / INPUT_RATE_HZ, AudioBlock(block[:, np.newaxis], INPUT_RATE_HZ), ends
        at, ends = at + BLOCK_FRAMES, 0


class Guarantees:
    """The contract, checked as events pass, with a memory of the utterance in flight only."""

    def __init__(self) -> None:
        self.finals = 0
        self._open: str | None = None
        self._stable = ""

    def __call__(self, event: AnyEvent) -> None:
        """Look at the next event."""
        if isinstance(event, PartialEvent):
            assert self._open in (None, event.trace_id), "an utterance began before the final of the last one"
            assert event.text.startswith(self._stable if self._open else ""), "a stable character changed"
            self._open, self._stable = event.trace_id, event.text[: event.stable_chars]
        elif isinstance(event, FinalEvent):
            assert self._open in (None, event.trace_id)
            assert event.raw_text.startswith(self._stable), "the final takes a stable character back"
            self.finals += 1
            self._open, self._stable = None, ""


def sample(findings: Findings, at_sec: float) -> None:
    """Look at the process."""
    gc.collect()
    with_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if with_trim:
        with_trim(0)  # what the allocator keeps for later is no leak
    pid = Path("/proc/self").resolve().name
    findings.resident_mb.append((at_sec / 3_600, resident_bytes(int(pid)) / 2**20))
    findings.threads.append(threading.active_count())
    findings.descriptors.append(len(list(Path("/proc/self/fd").iterdir())))


def plot(findings: Findings, path: Path) -> None:
    """Resident memory over the day."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    hours, megabytes = zip(*findings.resident_mb, strict=True)
    figure, axes = pyplot.subplots(figsize=(8, 3), layout="constrained")
    axes.plot(hours, megabytes)
    axes.set(xlabel="hours of audio", ylabel="resident memory, MB", ylim=(0, 1.2 * max(megabytes)))
    axes.grid(alpha=0.3)
    axes.set_title(f"{findings.spoken} utterances, moved by {findings.drift:.2%} after the first ten minutes")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
