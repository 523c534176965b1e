"""Wake words: how often one is heard in speech without it, and how often one that was spoken is missed.

`python bench/wake_words.py --speech DIR` reads recordings of people from DIR (index.tsv: file, set, speaker, label, seconds) and the
words that wake_speech.py made. All are recognised by the embedded models, in one stream with 1.2 s of silence behind each recording, with
the words among the hotwords; then each final is compared with each word as the gate of the service does it, with tones forgiven or not and
with fillers before the word or not. A recording whose label begins with the word counts as one that was spoken, any other as speech without
it. What was recognised is kept in .cache/wake, so that a second run with the same words, weight, mode and sets only compares.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
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
from voice.output.events import AnyEvent, FinalEvent  # noqa: E402
from voice.wake_bias import spellings  # noqa: E402
from voice.wake_words import FILLERS, Match, WakeWords  # noqa: E402

SPOKEN = REPOSITORY / ".cache" / "wake"
PAUSE_SEC = 1.2
SETS = "aishell,words:4,students:2"


@dataclass(frozen=True)
class Clip:
    """A recording, and what is said in it."""

    group: str
    path: Path
    label: str


@dataclass(frozen=True)
class Heard:
    """What was recognised in it."""

    clip: Clip
    seconds: float
    texts: list[str]
    """``raw_text`` of each final."""


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
    heard = recognized(clips, words, options.weight, options.mode)
    print(f"mode {options.mode}, weight {options.weight:g}\n")
    print("| word | tones | fillers | group | spoken | missed | hours without it | heard by mistake |\n|---|---|---|---|---|---|---|---|")
    for word in words:
        for tones, fillers in ((False, True), (True, True), (False, False)):
            print_rows(word, heard, tones=tones, fillers=fillers, show=options.show)


def recognized(clips: list[Clip], words: list[str], weight: float, mode: Mode) -> list[Heard]:
    """What is recognised in the recordings; kept, because it takes minutes."""
    name = hashlib.sha256(repr((clips, words, weight, mode)).encode()).hexdigest()[:16]
    kept = SPOKEN / f"recognized-{name}.json"
    if not kept.is_file():
        recognizer = Recognizer(words, weight, mode)
        found = [recognizer.recognize(clip) for clip in tqdm(clips, unit="clip", mininterval=10)]
        SPOKEN.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    answers = json.loads(kept.read_text(encoding="utf-8"))
    return [Heard(clip, seconds, texts) for clip, (seconds, texts) in zip(clips, answers, strict=True)]


class Recognizer:
    """The pipeline of the service, without a gate, labels and punctuation."""

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

    def recognize(self, clip: Clip) -> tuple[float, list[str]]:
        """Its seconds, and its finals."""
        samples = read(clip.path)
        audio = np.concatenate([samples, np.zeros(int(PAUSE_SEC * SAMPLE_RATE_HZ), np.float32)])
        events: list[AnyEvent] = []
        for start in range(0, len(audio), SAMPLE_RATE_HZ // 10):
            events += self._pipeline.process(AudioBlock(audio[start : start + SAMPLE_RATE_HZ // 10, None], SAMPLE_RATE_HZ))
        events += self._pipeline.finish("end_of_input")
        return len(samples) / SAMPLE_RATE_HZ, [event.raw_text for event in events if isinstance(event, FinalEvent)]


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


def print_rows(word: str, heard: list[Heard], *, tones: bool, fillers: bool, show: bool) -> None:
    """A row for each group of recordings, and one for all."""
    words = WakeWords([word], tones=tones, fillers=FILLERS if fillers else ())
    said = WakeWords([word], tones=False)
    counts: dict[str, list[float]] = {}
    for each in heard:
        is_spoken = begins(said, each.clip.label)
        woken = sum(begins(words, text) for text in each.texts)
        for group in (each.clip.group, "all"):
            row = counts.setdefault(group, [0, 0, 0.0, 0])
            row[0] += is_spoken
            row[1] += is_spoken and not woken
            row[2] += 0 if is_spoken else each.seconds
            row[3] += 0 if is_spoken else woken
        if show and not tones and fillers and is_spoken != bool(woken):
            what = "missed" if is_spoken else "by mistake"
            print(f"{word} {what}: {each.clip.group} {each.clip.path.name} {each.clip.label}: {each.texts}", file=sys.stderr)
    for group, (num_spoken, missed, seconds, mistakes) in counts.items():
        hours = f"{seconds / 3600:.2f} | {mistakes:.0f}" if seconds else " | "
        missed_of = f"{num_spoken:.0f} | {missed:.0f}" if num_spoken else " | "
        options = f"{'must fit' if tones else 'forgiven'} | {'allowed' if fillers else 'none'}"
        print(f"| {word} | {options} | {group} | {missed_of} | {hours} |")


def begins(words: WakeWords, text: str) -> bool:
    """Whether a whole text begins with a word."""
    return isinstance(words.look(text, ended=True), Match)


if __name__ == "__main__":
    main()
