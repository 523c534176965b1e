"""Finalization: homophones of hotwords. Recognised text -> the same text with hotwords in the user's own characters.

Chinese characters that are pronounced exactly like a hotword of the same length, tones included, become that hotword. The hotwords
are in a trie by syllable, so the cost does not grow with their number. The text keeps its length, so each token keeps its time.
State: the trie of the current hotwords, renewed when they change. Worker thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from voice.pinyin import syllables

_SHORTEST = 2
"""Characters. Shorter words have too many homophones."""
_MOST_READINGS = 64
"""Readings of one hotword that are put into the trie; each character with several readings multiplies them."""


@dataclass(slots=True)
class _Node:
    next: dict[str, _Node] = field(default_factory=dict)
    words: dict[str, float] = field(default_factory=dict)
    """Hotwords that are pronounced as the syllables on the path to this node, with their weights."""


class HotwordRepair:
    """Repairs the hotwords of one source."""

    def __init__(self, words: Callable[[], tuple[tuple[str, float], ...]]) -> None:
        """Take a source of hotwords with their weights; it must return the same object until they change."""
        self._words = words
        self._current: tuple[tuple[str, float], ...] = ()
        self._root = _Node()

    def repair(self, text: str, *, ended: bool = True) -> str:
        """The repaired text, of the same length.

        Works from left to right. Where several hotwords fit, it takes the one already written there, else the longest, else the one
        with the largest weight.
        """
        del ended  # hotwords are repaired alike wherever the text ends
        words = self._words()
        if words is not self._current:
            self._root = _trie(words)
            self._current = words
        if not self._root.next:
            return text
        position, repaired = 0, []
        while position < len(text):
            word = self._word_at(text, position) or text[position]
            repaired.append(word)
            position += len(word)
        return "".join(repaired)

    def _word_at(self, text: str, position: int) -> str | None:
        found: list[tuple[bool, int, float, str]] = []
        for length, node in self._walk(text, position):
            written = text[position : position + length]
            found += [(word == written, length, weight, word) for word, weight in node.words.items()]
        return max(found)[3] if found else None

    def _walk(self, text: str, position: int) -> Iterator[tuple[int, _Node]]:
        """The nodes with hotwords that match the characters from ``position`` on, each with the number of characters."""
        nodes = [self._root]
        for length, character in enumerate(itertools.islice(text, position, None), 1):
            nodes = [node.next[syllable] for node in nodes for syllable in syllables(character) if syllable in node.next]
            if not nodes:
                return
            yield from ((length, node) for node in nodes if node.words)


def _trie(words: tuple[tuple[str, float], ...]) -> _Node:
    root = _Node()
    for word, weight in words:
        readings = _readings(word)
        for reading in readings:
            node = root
            for syllable in reading:
                node = node.next.setdefault(syllable, _Node())
            node.words[word] = weight
    return root


def _readings(word: str) -> list[tuple[str, ...]]:
    """The readings of a word, as syllables; none where it is too short or has a character that is not Chinese."""
    each = [syllables(character) for character in word]
    if len(word) < _SHORTEST or not all(each):
        return []
    return list(itertools.islice(itertools.product(*each), _MOST_READINGS))
