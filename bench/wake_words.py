"""Wake words: how often one is heard in speech without it, and how often one that was spoken is missed.

`python bench/wake_words.py --speech DIR` reads recordings of people from DIR (index.tsv: file, set, speaker, label, seconds) and the
words that wake_speech.py made. All are recognised by the embedded models, in one stream with 1.2 s of silence behind each recording, with
the words among the hotwords; then the gate of the service decides, with and without tones. A recording whose label begins with the word
counts as one that was spoken, any other as speech without it.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import soundfile
from tqdm import tqdm

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from voice.audio import SAMPLE_RATE_HZ, AudioBlock  # noqa: E402
from voice.build import build_pipeline  # noqa: E402
from voice.config import Mode, load_settings  # noqa: E402
from voice.hotword_list import HotwordList  # noqa: E402
from voice.losses import LossLedger  # noqa: E402
from voice.models.weights import load_models, locate_models  # noqa: E402
from voice.output.events import AnyEvent, FinalEvent, WakeEvent  # noqa: E402
from voice.wake import WakeGate  # noqa: E402
from voice.wake_bias import spellings  # noqa: E402
from voice.wake_words import Match, WakeWords  # noqa: E402

SPOKEN = REPOSITORY / ".cache" / "wake"
PAUSE_SEC = 1.2
SETS = "aishell,words:4,students:2"


@dataclass(frozen=True)
class Clip:
    """A recording, and what is said in it."""

    group: str
    path: Path
    label: str


def main() -> None:
    """Recognise everything and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, metavar="DIR", help="recordings of people; without it only the examples")
    parser.add_argument("--sets", default=SETS, help="of DIR; with :4 every fourth recording of it (default: %(default)s)")
    parser.add_argument("--words", default="小智小智,你好小美,语音", help="(default: %(default)s)")
    parser.add_argument("--weight", type=float, default=20, help="of the words among the hotwords; 0 adds none (default: 20)")
    parser.add_argument("--mode", choices=get_args(Mode), default="streaming")
    parser.add_argument("--show", action="store_true", help="also what was recognised in false accepts and misses")
    options = parser.parse_args()
    words = options.words.split(",")
    clips = [*examples(), *(recordings(options.speech, options.sets.split(",")) if options.speech else []), *spoken(words)]
    recognizer = Recognizer(words, options.weight, options.mode)
    heard = [(clip, *recognizer.recognize(clip)) for clip in tqdm(clips, unit="clip", disable=None)]
    print(f"mode {options.mode}, weight {options.weight:g}\n")
    print("| word | tones | group | spoken | missed | hours without it | heard by mistake |\n|---|---|---|---|---|---|---|")
    for word in words:
        for tones in (False, True):
            print_rows(word, heard, tones=tones, show=options.show)


class Recognizer:
    """The pipeline of the service, without a gate and without labels: its events go through several gates later."""

    def __init__(self, words: list[str], weight: float, mode: Mode) -> None:
        settings = load_settings(
            {"embedded": True, "audio": {"input": "file"}, "emotion": {"enabled": False}, "final": {"punctuation_model": "off"}},
            environment={},
        )
        models = load_models(locate_models(settings), settings)
        vocabulary = models.recognition.tokens
        spelt = spellings(words, vocabulary, tones=False, weight=weight)
        lines = tuple(f"{word.text} {word.weight:g}" for word in spelt) if weight else ()
        built = build_pipeline(settings, mode, models, ledger=LossLedger(), hotwords=HotwordList(lines))
        self._pipeline = built.pipeline

    def recognize(self, clip: Clip) -> tuple[float, list[AnyEvent]]:
        """Its seconds, and its events."""
        samples = read(clip.path)
        audio = np.concatenate([samples, np.zeros(int(PAUSE_SEC * SAMPLE_RATE_HZ), np.float32)])
        events: list[AnyEvent] = []
        for start in range(0, len(audio), SAMPLE_RATE_HZ // 10):
            events += self._pipeline.process(AudioBlock(audio[start : start + SAMPLE_RATE_HZ // 10, None], SAMPLE_RATE_HZ))
        return len(samples) / SAMPLE_RATE_HZ, events + self._pipeline.finish("end_of_input")


def read(path: Path) -> np.ndarray:
    """float32, 16 kHz, one channel."""
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == SAMPLE_RATE_HZ, path
    return samples if samples.ndim == 1 else samples.mean(axis=1)


def examples() -> Iterator[Clip]:
    """The recordings of the repository."""
    for path in sorted((REPOSITORY / "examples").glob("*.wav")):
        yield Clip("examples", path, path.with_suffix(".txt").read_text(encoding="utf-8").split()[0])


def recordings(folder: Path, sets: list[str]) -> Iterator[Clip]:
    """Those of people."""
    with (folder / "index.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for each in sets:
        name, _, step = each.partition(":")
        for row in [row for row in rows if row["set"] == name][:: int(step or 1)]:
            yield Clip(name, folder / row["file"], row["label"])


def spoken(words: list[str]) -> Iterator[Clip]:
    """The words that were synthesized."""
    for word in words:
        index = SPOKEN / word / "index.json"
        for row in json.loads(index.read_text(encoding="utf-8")) if index.is_file() else []:
            kind = "with a command" if row["command"] else "alone"
            yield Clip(f"{row['file'].partition('-')[0]}, {kind}", index.parent / row["file"], word + row["command"])


def print_rows(word: str, heard: list[tuple[Clip, float, list[AnyEvent]]], *, tones: bool, show: bool) -> None:
    """A row for each group of recordings, and one for all."""
    words = WakeWords([word], tones=tones)
    gate = WakeGate(words, 0)
    counts: dict[str, list[float]] = {}
    for clip, seconds, events in heard:
        is_spoken = isinstance(WakeWords([word], tones=False).look(clip.label, ended=True), Match)
        woken = any(isinstance(event, WakeEvent) for event in gate.admit(events))
        for group in (clip.group, "all"):
            row = counts.setdefault(group, [0, 0, 0.0, 0])
            row[0] += is_spoken
            row[1] += is_spoken and not woken
            row[2] += 0 if is_spoken else seconds
            row[3] += woken and not is_spoken
        if show and not tones and is_spoken != woken:
            texts = " / ".join(event.raw_text for event in events if isinstance(event, FinalEvent))
            print(
                f"    {word} {'missed' if is_spoken else 'by mistake'}: {clip.group} {clip.path.name} {clip.label}: {texts}",
                file=sys.stderr,
            )
    for group, (num_spoken, missed, seconds, mistakes) in counts.items():
        hours = f"{seconds / 3600:.2f} | {mistakes:.0f}" if seconds else " | "
        missed_of = f"{num_spoken:.0f} | {missed:.0f}" if num_spoken else " | "
        print(f"| {word} | {'must fit' if tones else 'forgiven'} | {group} | {missed_of} | {hours} |")


if __name__ == "__main__":
    main()
