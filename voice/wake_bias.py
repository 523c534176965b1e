"""Wake words among the hotwords: words and the vocabulary -> hotwords that the decoder prefers.

A character that the model cannot write is replaced by characters of its vocabulary that sound like it: the gate compares sounds. State: the
user's words seen last. Worker thread. Raises ``ConfigInvalid`` for a word that the model can write in no way.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import structlog

from voice.errors import ConfigInvalid
from voice.hotword_list import Hotword
from voice.pinyin import syllables
from voice.recognition.hotwords import spell
from voice.wake_words import sounds

_MOST_SPELLINGS = 64
"""Of one word."""

log = structlog.get_logger()


class WithWakeWords:
    """The user's hotwords as they are now, and the wake words behind them."""

    def __init__(self, words: Callable[[], tuple[Hotword, ...]], wake_words: Sequence[Hotword]) -> None:
        """Take a source of the user's words, which gives the same object until they change."""
        self._words = words
        self._wake_words = tuple(wake_words)
        self._users: tuple[Hotword, ...] | None = None
        self._all: tuple[Hotword, ...] = ()

    def current(self) -> tuple[Hotword, ...]:
        """All of them; the same object until the user's change. A word that the user lists has the user's weight."""
        users = self._words()
        if users is not self._users:
            listed = {word.text for word in users}
            self._users, self._all = users, users + tuple(word for word in self._wake_words if word.text not in listed)
        return self._all


def spellings(words: Sequence[str], vocabulary: Sequence[str], *, tones: bool, weight: float) -> list[Hotword]:
    """The words as the model can write them; a log line names characters that it writes by others of the same sound.

    Args:
        words: the wake words.
        vocabulary: the model's tokens.
        tones: whether the tone belongs to the sound.
        weight: of each spelling.

    Raises:
        ConfigInvalid: of a character the vocabulary has neither itself nor one that sounds like it, or not the letters of a Latin word.
    """
    token_ids = {token: index for index, token in enumerate(vocabulary)}
    found: list[Hotword] = []
    problems = []
    for word in words:
        choices = [_choices(character, token_ids, tones=tones) for character in word]
        lacking = [character for character, each in zip(word, choices, strict=True) if not each]
        written = [] if lacking else [Hotword(text, weight) for text in _products(choices)]
        if lacking:
            problems.append(f"wake.words: {word!r}: the model knows no character that sounds like {''.join(dict.fromkeys(lacking))}")
        elif not any(spell(hotword.text, token_ids) for hotword in written):
            problems.append(f"wake.words: {word!r}: the model cannot write its Latin letters")
        elif all(hotword.text != word for hotword in written):
            log.info("wake_word_in_other_characters", word=word, spellings=[hotword.text for hotword in written[:5]])
        found += written
    if problems:
        raise ConfigInvalid(problems)
    return found


def _choices(character: str, token_ids: dict[str, int], *, tones: bool) -> list[str]:
    """The character, where the model can write it, or those that sound like it, the closest first; none where there are none."""
    wanted = sounds(character, tones=tones)
    if character in token_ids or not wanted:  # Latin letters and blanks are looked up by the word
        return [character]
    alike = [token for token in token_ids if set(sounds(token, tones=tones)[:1]) & set(wanted)]
    return sorted(alike, key=lambda token: _distance(syllables(character)[0], syllables(token)[0]))


def _distance(one: str, other: str) -> int:
    """How far apart the usual readings of two characters are: 0 with the same tone, 1 with another, 2 where they sound otherwise."""
    return 0 if one == other else 1 if one[:-1] == other[:-1] else 2


def _products(choices: Sequence[Sequence[str]]) -> list[str]:
    """Each character with the first of its choices, as many of each as make no more than the most spellings together."""
    open_places = sum(len(each) > 1 for each in choices)
    most = int(_MOST_SPELLINGS ** (1 / open_places) + 1e-9) if open_places else 1
    return ["".join(each) for each in itertools.product(*(choice[: max(most, 1)] for choice in choices))]
