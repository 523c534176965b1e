"""Whether a text begins with a wake word: text -> ``Match``, or why there is none.

Chinese characters are compared by their sound, because a recogniser writes a name with any characters that sound like it: by the usual
reading of the text's character, and each reading of the word's (the rare ones are too many: 言 may be read as 音). Latin words are compared
letter by letter, case ignored. Fillers may stand before the word, and one stray syllable before a long one. No state but the words. Any
thread. Raises nothing.
"""

from __future__ import annotations

import enum
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from voice.pinyin import syllables

FILLERS: tuple[str, ...] = ("嗯", "啊", "哎", "唉", "诶", "呃", "哦", "喂", "那个", "这个", "就是")
"""What may stand before a wake word: people hesitate, and call. Their characters are compared, not their sound."""
_MOST_FILLERS = 2
_LONG = 4
"""Units. Before a word of so many, any one other unit may stand: recognisers write a breath as a syllable (bench/README.md)."""
_UNIT = re.compile(r"[A-Za-z']+|\d+|[^\W\d_]")
"""A Latin word, a number, or one other letter; what stands between them is skipped."""


class NoMatch(enum.Enum):
    """Why a text has no match."""

    UNDECIDED = enum.auto()
    """It is the beginning of a wake word, and may go on: with no letter, with fillers alone, too."""
    ABSENT = enum.auto()
    """It begins with something else, whatever follows."""


@dataclass(frozen=True, slots=True)
class Match:
    """A wake word at the beginning of a text. A unit is a Chinese character, a Latin word or a number."""

    word: str
    """As the settings have it."""
    first_unit: int
    """Units before it: fillers."""
    end_unit: int
    """Units up to its end."""


@dataclass(frozen=True, slots=True)
class _Unit:
    text: str
    sounds: tuple[str, ...]
    """The usual one first."""
    start: int
    end: int

    @property
    def is_latin(self) -> bool:
        return self.text[0].isascii()


class WakeWords:
    """The wake words of a run."""

    def __init__(self, words: Sequence[str], *, tones: bool, fillers: Sequence[str] = FILLERS) -> None:
        """Take the words.

        Args:
            words: Chinese characters, Latin letters and blanks, at least one letter each.
            tones: whether a syllable must have the tone of the word's, too.
            fillers: what may stand before a word.
        """
        self._tones = tones
        self._words = [(word, self._units(word)) for word in words]
        self._fillers = [list(filler) for filler in fillers]
        longest = max((len(units) for _, units in self._words), default=0)
        self._most_units = longest + _MOST_FILLERS * max(map(len, fillers), default=0) + 1
        """So many units of a text decide."""

    def look(self, text: str, *, ended: bool) -> Match | NoMatch:
        """Whether a text begins with one of the words; of several the longest.

        Args:
            text: what was recognised, with or without marks.
            ended: whether this is the whole text. Else more may follow, and the answer holds for each text that begins with this one.
        """
        units = self._units(text, self._most_units)
        if not ended and units and units[-1].is_latin and units[-1].end == len(text):
            units.pop()  # the word, or the number, may go on
        found: list[Match] = []
        undecided = False
        starts, can_be_filler = self._starts(units)
        for word, wanted in self._words:
            for start in starts | {1} if units and len(wanted) >= _LONG else starts:
                same = _same_beginning(wanted, units[start:])
                if same == len(wanted):
                    found.append(Match(word, start, start + same))
                else:
                    undecided |= same == len(units) - start
        if not ended and (undecided or can_be_filler):
            return NoMatch.UNDECIDED
        return max(found, key=lambda match: match.end_unit, default=NoMatch.ABSENT)

    def num_units(self, text: str) -> int:
        """Units of a text."""
        return sum(1 for _ in _UNIT.finditer(text))

    def span(self, text: str, match: Match) -> tuple[int, int]:
        """The code points of a text that a match takes: the index of the word's first one, and the one after its last."""
        units = self._units(text, match.end_unit)
        return units[match.first_unit].start, units[-1].end

    def cut(self, text: str, num_units: int) -> int:
        """The index of the first code point that is left when so many units, and the marks and blanks behind them, are taken away."""
        units = self._units(text, num_units + 1)
        return units[num_units].start if num_units < len(units) else len(text)

    def _units(self, text: str, most: int | None = None) -> list[_Unit]:
        """The first units of a text."""
        return [_Unit(found[0], self._sounds(found[0]), *found.span()) for found in itertools.islice(_UNIT.finditer(text), most)]

    def _sounds(self, unit: str) -> tuple[str, ...]:
        return sounds(unit, tones=self._tones) or (unit.lower(),)

    def _starts(self, units: Sequence[_Unit]) -> tuple[set[int], bool]:
        """Where a word may begin: at once, or behind fillers; and whether the text ends within what may become a filler."""
        texts = [unit.text for unit in units]
        starts, newest, open_ended = {0}, {0}, False
        for _ in range(_MOST_FILLERS):
            behind = set()
            for start in newest:
                for filler in self._fillers:
                    here = texts[start : start + len(filler)]
                    if here == filler:
                        behind.add(start + len(filler))
                    else:
                        open_ended |= here == filler[: len(here)]
            newest = behind
            starts |= behind
        return starts, open_ended


def sounds(unit: str, *, tones: bool) -> tuple[str, ...]:
    """How a character may sound, the usual reading first; nothing of what is no Chinese character."""
    readings = syllables(unit) if len(unit) == 1 else ()
    return readings if tones else tuple(reading.rstrip("12345") for reading in readings)


def _same_beginning(wanted: Sequence[_Unit], units: Sequence[_Unit]) -> int:
    """How many units at the beginning of both sound alike."""
    same = 0
    for one, other in zip(wanted, units, strict=False):
        if other.sounds[0] not in one.sounds:
            break
        same += 1
    return same
