"""Homophones of hotwords: recognised text -> the same text with the hotwords written as the user writes them.

A stretch of Chinese characters that sounds exactly like a hotword of the same length, tones included, becomes that hotword. The
hotwords stand in a trie by their syllables, so the cost does not grow with their number. Letters stand one for one, so tokens keep
their times. Holds the trie of the words it saw last. Runs where the finalizer runs.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

_SHORTEST = 2
"""Shorter words have too many homophones."""
_MOST_READINGS = 64


@dataclass(slots=True)
class _Node:
    next: dict[str, _Node] = field(default_factory=dict)
    words: dict[str, float] = field(default_factory=dict)
    """Hotwords that sound like the way here, with their weights."""


class HotwordRepair:
    """The words of one source."""

    def __init__(self, words: Callable[[], tuple[tuple[str, float], ...]]) -> None:
        """Take a source of words with their weights, which gives the same object until they change."""
        self._words = words
        self._current: tuple[tuple[str, float], ...] = ()
        self._root = _Node()

    def repair(self, text: str, *, ended: bool = True) -> str:
        """Text of the same length, from the left: of several words the one that stands there, then the longest, then the heaviest."""
        del ended  # it makes no difference
        words = self._words()
        if words is not self._current:
            self._root = _trie(words)
            self._current = words
        position, repaired = 0, []
        while position < len(text):
            word = self._word_at(text, position) or text[position]
            repaired.append(word)
            position += len(word)
        return "".join(repaired)

    def _word_at(self, text: str, position: int) -> str | None:
        found: list[tuple[bool, int, float, str]] = []
        for length, node in self._walk(text, position):
            heard = text[position : position + length]
            found += [(word == heard, length, weight, word) for word, weight in node.words.items()]
        return max(found)[3] if found else None

    def _walk(self, text: str, position: int) -> Iterator[tuple[int, _Node]]:
        """The nodes that the characters from ``position`` on may sound like, each with the number of characters."""
        nodes = [self._root]
        for length, character in enumerate(itertools.islice(text, position, None), 1):
            nodes = [node.next[syllable] for node in nodes for syllable in _syllables(character) if syllable in node.next]
            if not nodes:
                return
            yield from ((length, node) for node in nodes if node.words)


def _trie(words: tuple[tuple[str, float], ...]) -> _Node:
    root = _Node()
    for word, weight in words:
        readings = _readings(word)
        for syllables in readings:
            node = root
            for syllable in syllables:
                node = node.next.setdefault(syllable, _Node())
            node.words[word] = weight
    return root


def _readings(word: str) -> list[tuple[str, ...]]:
    """The ways to read a word; none where it is too short or not all Chinese."""
    each = [_syllables(character) for character in word]
    if len(word) < _SHORTEST or not all(each):
        return []
    return list(itertools.islice(itertools.product(*each), _MOST_READINGS))


@functools.lru_cache(maxsize=8_192)
def _syllables(character: str) -> tuple[str, ...]:
    """The syllables a character may be, with their tones; none for what is not Chinese."""
    from pypinyin import Style, pinyin  # noqa: PLC0415 -- 0.5 s, only where there are hotwords

    if not "\u4e00" <= character <= "\u9fff":
        return ()
    (readings,) = pinyin(character, style=Style.TONE3, heteronym=True, neutral_tone_with_five=True)
    return tuple(readings)
