"""What hotwords bring and what they cost: made-up names that the model never heard, and sentences without any.

    python bench/hotwords.py                           # about 5 minutes
    python bench/hotwords.py --weights 10 20 40

Each utterance of `names.ogg` is decoded alone, in both modes, with a list of 1,000 hotwords: the 60 names that are spoken, and others
that are not. Printed for each weight:

- *recall*: names that stand in the text, of those spoken; *repaired*: the same after the repair of homophones (`final.hotword_repair`).
- *gained*: the share of the names missing without hotwords that are there with them, repair included.
- *control*: characters wrong in the sentences without a name (substitutions, deletions, insertions per reference character), and how
  many of those sentences read differently than without hotwords, repair included.
- *cost*: time of the streaming mode with 1,000 hotwords over that without, in turns in one process.

A benchmark, not a test: nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import difflib
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from voice.audio import SAMPLE_RATE_HZ, Samples  # noqa: E402
from voice.build import build_recognizer  # noqa: E402
from voice.config import Mode, load_settings  # noqa: E402
from voice.finalization.hotword_repair import HotwordRepair  # noqa: E402
from voice.models.loader import load_model  # noqa: E402
from voice.models.torch_setup import limit_spinning, set_num_threads  # noqa: E402
from voice.places import EMBEDDED  # noqa: E402
from voice.recognition.hotwords import HotwordGraphs  # noqa: E402
from voice.recognition.recognizer import Recognizer  # noqa: E402
from voice.recognition.torch_engine import TorchEngine  # noqa: E402

SPEECH = Path(__file__).resolve().parent / "names"
SURNAMES = "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗"
NUM_HOTWORDS = 1_000
FEED_SAMPLES = 512  # what the pipeline feeds: one VAD window
COST_TURNS = 7

Words = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Spoken:
    """An utterance of the reference."""

    text: str
    name: str | None
    samples: Samples


@dataclass(frozen=True)
class Read:
    """What was made of all utterances."""

    texts: list[str]
    repaired: list[str]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-dir", type=Path, default=EMBEDDED / "asr", help="recognition model")
    parser.add_argument("--weights", type=float, nargs="+", default=[10, 20, 40], help="weights to try")
    arguments = parser.parse_args()
    limit_spinning()
    model = TorchEngine(load_model(arguments.model_dir, "ParaformerStreaming", "cpu"))
    set_num_threads(1)
    spoken = read_speech()
    names = [utterance.name for utterance in spoken if utterance.name]
    words = hotwords(names, model.vocabulary.tokens)
    print(f"{len(names)} names, {len(spoken) - len(names)} sentences without, {len(words)} hotwords\n")
    print(f"{'':22}{'recall':>8}{'repaired':>10}{'gained':>8}{'control':>10}{'changed':>9}")
    modes: tuple[Mode, ...] = ("streaming", "sliced")
    for mode in modes:
        without = read(build(mode, model, ()), spoken, ())
        line(f"{mode}, none", spoken, without, without)
        for weight in arguments.weights:
            weighted = tuple((word, weight) for word in words)
            line(f"{mode}, weight {weight:g}", spoken, read(build(mode, model, weighted), spoken, weighted), without)
    weighted = tuple((word, 20.0) for word in words)
    audio = np.concatenate([utterance.samples for utterance in spoken])[: 60 * SAMPLE_RATE_HZ]
    extra = cost(build("streaming", model, ()), build("streaming", model, weighted), audio)
    print(f"\ncost of {len(words)} hotwords, streaming: {extra:+.1%}")


def read_speech() -> list[Spoken]:
    """The utterances, each with its own audio."""
    samples, rate_hz = soundfile.read(SPEECH.with_suffix(".ogg"), dtype="float32")
    assert rate_hz == SAMPLE_RATE_HZ
    index = json.loads(SPEECH.with_suffix(".json").read_text(encoding="utf-8"))
    return [Spoken(entry["text"], entry["name"], samples[entry["start"] : entry["end"]]) for entry in index]


def hotwords(names: list[str], tokens: list[str]) -> list[str]:
    """The names that are spoken, filled up with names of the same kind that are not."""
    rng = random.Random("others")  # noqa: S311 -- no secret
    characters = [token for token in tokens if len(token) == 1 and "\u4e00" <= token <= "\u9fff"]
    surnames = sorted(set(SURNAMES) & set(characters))
    words = dict.fromkeys(names)
    while len(words) < NUM_HOTWORDS:
        words.setdefault(rng.choice(surnames) + rng.choice(characters) + rng.choice(characters))
    return list(words)


def build(mode: Mode, model: TorchEngine, words: Words) -> Recognizer:
    """A recogniser as the service builds it."""
    return build_recognizer(load_settings({}, environment={}), mode, model, HotwordGraphs(lambda: words, model.vocabulary.tokens))


def decode(recognizer: Recognizer, samples: Samples) -> str:
    """One utterance as the pipeline feeds it."""
    stream = recognizer.create_stream(0)
    for start in range(0, len(samples), FEED_SAMPLES):
        if stream.accept(samples[start : start + FEED_SAMPLES]):
            stream.hypothesis()
    return stream.finish().text


def read(recognizer: Recognizer, spoken: list[Spoken], words: Words) -> Read:
    """Every utterance, before and after the repair of homophones."""
    repair = HotwordRepair(lambda: words)
    texts = [decode(recognizer, utterance.samples) for utterance in spoken]
    return Read(texts, [repair.repair(text) for text in texts])


def line(title: str, spoken: list[Spoken], found: Read, without: Read) -> None:
    """Print one row of the table."""
    named = [index for index, utterance in enumerate(spoken) if utterance.name]
    controls = [index for index, utterance in enumerate(spoken) if not utterance.name]

    def there(texts: list[str]) -> float:
        return sum(str(spoken[index].name) in texts[index] for index in named) / len(named)

    wrong = sum(errors(spoken[index].text, found.repaired[index]) for index in controls) / sum(len(spoken[i].text) for i in controls)
    changed = sum(found.repaired[index] != without.texts[index] for index in controls)
    missing = 1 - there(without.texts)
    gained = f"{(there(found.repaired) - there(without.texts)) / missing:8.0%}" if found is not without else f"{'':8}"
    print(f"{title:22}{there(found.texts):8.1%}{there(found.repaired):10.1%}{gained}{wrong:10.2%}{changed:9}", flush=True)


def errors(reference: str, text: str) -> int:
    """Substitutions, deletions and insertions, by the longest matching blocks."""
    matcher = difflib.SequenceMatcher(None, reference, text, autojunk=False)
    return sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in matcher.get_opcodes() if tag != "equal")


def cost(plain: Recognizer, with_hotwords: Recognizer, audio: Samples) -> float:
    """How much longer decoding takes, as a share: the median over turns."""

    def seconds(work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    ratios = [seconds(lambda: decode(with_hotwords, audio)) / seconds(lambda: decode(plain, audio)) for _ in range(COST_TURNS + 1)]
    return statistics.median(ratios[1:]) - 1


if __name__ == "__main__":
    main()
