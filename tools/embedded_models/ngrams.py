"""The language model beside the recognition model: `python ngrams.py`. Writes `recognition/language_model.npz`.

Character trigrams of the training texts, smoothed by interpolated Kneser-Ney with absolute discounting (Chen and Goodman, An Empirical
Study of Smoothing Techniques for Language Modeling, 1999). Trigrams that were seen once are left out: that costs 3 % of the perplexity and
leaves a quarter of them. Words of jieba's dictionary are counted beside the texts, by their frequency: the texts lack most of them.

Clauses of at least four characters that stand in a test sentence of synthesize.py are left out. voice/models/language_model.py says what
the file holds. Runs in the synthesis environment: jieba.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable

import corpus
import numpy as np
from shards import WORKSPACE, read_shard

ORDER = 3
DISCOUNTS = {2: 0.75, 3: 0.8}
SEEN_AT_LEAST = {2: 1, 3: 2}
NUM_COMMANDS, NUM_DIGITS = 20_000, 3_000
WORD_POWER, WORD_SHARE = 0.75, 0.03  # of a word's frequency in the dictionary, its count among the texts
WEIGHT = 0.4  # README.md has what others bring
START = "^"
UNKNOWN_NATS = -20.0  # no text holds such a character


def texts(rng: random.Random) -> list[str]:
    """Everything that is counted, without marks."""
    test = "\n".join(test_texts())
    clauses = []
    for source in ("learners", "reviews", "news"):
        lines = (WORKSPACE / "text" / f"{source}-train.txt").read_text(encoding="utf8").splitlines()
        clauses += [corpus.without_marks(clause) for passage in corpus.passages_of(lines) for clause in passage]
    found = [clause for clause in clauses if len(clause) < 4 or clause not in test]
    for draw, count in ((corpus.command, NUM_COMMANDS), (corpus.digits, NUM_DIGITS)):
        drawn = (corpus.without_marks(draw(rng)) for _ in range(count))
        found += [text for text in drawn if not corpus.is_held_out(text)]
    known = set(corpus.characters())
    for word, frequency in corpus.dictionary():
        if len(word) > 1 and not corpus.is_held_out(word) and known.issuperset(word):
            found += [word] * int(frequency**WORD_POWER * WORD_SHARE + rng.random())
    return found


def test_texts() -> set[str]:
    """What the test sets of synthesize.py say."""
    return {str(entry["text"]) for path in sorted((WORKSPACE / "speech" / "test").glob("*/*.npz")) for entry in read_shard(path)[0]}


def count(found: Iterable[str]) -> dict[int, Counter[str]]:
    """n -> how often each n-gram was seen; START stands before the first character, and is not counted by itself."""
    counts: dict[int, Counter[str]] = {n: Counter() for n in range(1, ORDER + 1)}
    for text in found:
        line = START + text
        for end in range(2, len(line) + 1):
            for n in range(1, min(ORDER, end) + 1):
                counts[n][line[end - n : end]] += 1
    return counts


def continuations(counts: dict[int, Counter[str]]) -> dict[int, Counter[str]]:
    """Kneser and Ney's counts: below the highest order, behind how many different characters an n-gram was seen.

    Behind START nothing can stand: what begins with it keeps its count.
    """
    found = {ORDER: counts[ORDER]}
    for n in range(ORDER - 1, 0, -1):
        found[n] = Counter(gram[1:] for gram in counts[n + 1])
        found[n].update({gram: seen for gram, seen in counts[n].items() if gram.startswith(START)})
    return found


class Smoothed:
    """Interpolated probabilities: what n-grams have of their own, and what contexts leave to the order below."""

    def __init__(self, counts: dict[int, Counter[str]], characters: list[str]) -> None:
        total = counts[1].total() + 0.5 * len(characters)
        self._alone = {character: (counts[1][character] + 0.5) / total for character in characters}
        self.own: dict[str, float] = {}
        self.left: dict[str, float] = {}
        for n in range(2, ORDER + 1):
            totals: Counter[str] = Counter()
            for gram, seen in counts[n].items():
                totals[gram[:-1]] += seen
            kept: defaultdict[str, float] = defaultdict(float)
            for gram, seen in counts[n].items():
                if seen >= SEEN_AT_LEAST[n]:
                    self.own[gram] = (seen - DISCOUNTS[n]) / totals[gram[:-1]]
                    kept[gram[:-1]] += self.own[gram]
            self.left.update({context: 1 - kept[context] for context in totals})

    def probability(self, context: str, character: str) -> float:
        """Of a character behind others."""
        if not context:
            return self._alone[character]
        lower = self.probability(context[1:], character)
        return lower if context not in self.left else self.own.get(context + character, 0.0) + self.left[context] * lower


def automaton(smoothed: Smoothed, characters: list[str]) -> dict[str, np.ndarray]:
    """The arrays that voice/models/language_model.py reads.

    Its states: no context, each character, the start, and each bigram that a kept trigram begins with.
    """
    contexts = ["", *characters, START, *sorted({gram[:-1] for gram in smoothed.own if len(gram) == ORDER})]
    number = {context: state for state, context in enumerate(contexts)}
    followers: defaultdict[str, list[str]] = defaultdict(list)
    followers[""] = characters
    symbol = {character: index for index, character in enumerate(characters)}
    for gram in sorted(smoothed.own):
        followers[gram[:-1]].append(gram[-1])
    arcs = []
    first_arc = [0]
    for context in contexts:
        for character in sorted(followers.get(context, ()), key=symbol.__getitem__):
            following = (context + character)[1 - ORDER :]
            arcs.append((symbol[character], number.get(following, number[character]), smoothed.probability(context, character)))
        first_arc.append(len(arcs))
    symbols, following_states, probabilities = zip(*arcs, strict=True)
    return {
        "symbols": np.array(characters),
        "first_arc": np.array(first_arc, np.int32),
        "arc_symbol": np.array(symbols, np.uint16),
        "arc_next": np.array(following_states, np.int32),
        "arc_score": np.log(np.array(probabilities)).astype(np.float16),
        "lower": np.array([number[context[1:]] for context in contexts], np.int32),
        "back_off": np.array(
            [math.log(smoothed.left[context]) if context in smoothed.left else UNKNOWN_NATS * (not context) for context in contexts],
            np.float16,
        ),
        "start": np.array(number[START]),
        "weight": np.array(WEIGHT),
    }


def main() -> None:
    """Count, smooth, write."""
    path = WORKSPACE / "recognition" / "language_model.npz"
    if path.exists():
        print(f"{path} is there; remove it to make it again")
        return
    found = texts(random.Random(0))
    characters = corpus.characters()
    arrays = automaton(Smoothed(continuations(count(found)), characters), characters)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    sizes = {"characters of text": sum(map(len, found)), "states": len(arrays["lower"]), "n-grams": len(arrays["arc_symbol"])}
    print(json.dumps({**sizes, "bytes": path.stat().st_size}))


if __name__ == "__main__":
    main()
