"""Foundation: recognised text as values, and how a model's tokens become text.

Values only: nothing here holds state. ``join_tokens`` follows FunASR's ``sentence_postprocess``
(funasr/utils/postprocess_utils.py) over a whole utterance, with three deliberate differences: it keeps a
trailing ``xx@@`` piece that FunASR drops, keeps such a piece before a Chinese character in its place, and drops ``<blank>``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from voice.level import SILENCE, Level

Endpoint = Literal["silence", "max_duration", "requested", "muted", "end_of_input", "shutdown", "audio_lost"]
EmotionName = Literal["angry", "disgusted", "fearful", "happy", "neutral", "other", "sad", "surprised", "unknown"]

REMOTE_SOURCE = "funasr.remote"
"""The ``source`` of what a server recognised: it gives no confidence."""
SPEAKER_ENDED: frozenset[Endpoint] = frozenset({"silence", "end_of_input"})
"""Endpoints at which the speaker had finished; at the others the audio was cut."""
SPECIAL_TOKENS = frozenset({"<blank>", "<s>", "</s>", "<unk>", "<OOV>"})
CONTINUES = "@@"
_TRAILING_LATIN = re.compile(r"[A-Za-z']+$")
_MARKS = re.compile(r"[，。？！、；：…]|(?<![0-9])[,.?!;:]|[,.?!;:](?![0-9])")


@dataclass(frozen=True, slots=True)
class Token:
    """One unit of the model's vocabulary, with where it stands in the audio and how sure the decoder was."""

    text: str
    """As in the vocabulary; a piece of a word that goes on in the next token ends in ``@@``."""
    start_sample: int
    end_sample: int
    confidence: float | None
    """Posterior of this token, 0..1; None where the recogniser gives none."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What a recogniser thinks so far: ``committed`` tokens that never change, then ``provisional`` ones that may."""

    committed: tuple[Token, ...] = ()
    provisional: tuple[Token, ...] = ()
    given_text: str | None = None
    """The text, where the recogniser gives a text and perhaps times, not tokens; None where the tokens are the text."""

    @property
    def tokens(self) -> tuple[Token, ...]:
        """All of them, in order."""
        return self.committed + self.provisional

    @property
    def text(self) -> str:
        """Text of all tokens, or the given one without its marks."""
        return join_tokens(token.text for token in self.tokens) if self.given_text is None else without_marks(self.given_text)

    @property
    def marked_text(self) -> str:
        """The text with the punctuation that the recogniser gave, if it gave any."""
        return self.text if self.given_text is None else self.given_text

    @property
    def confidence(self) -> float | None:
        """Mean posterior of all tokens, 0..1; None where the recogniser gives none."""
        return mean_confidence(self.tokens) if self.given_text is None else None

    @property
    def stable_chars(self) -> int:
        """So many leading code points of ``text`` that no later hypothesis of the utterance changes; of a given text none is known."""
        if self.given_text is not None:
            return 0
        return len(stable_text(join_tokens(token.text for token in self.committed)))


@dataclass(frozen=True, slots=True)
class Emotion:
    """What the emotion model made of one utterance."""

    source: str
    label: EmotionName
    confidence: float
    """Score of ``label``, 0..1."""
    scores: dict[EmotionName, float]
    """All nine labels; they sum to 1."""
    start_sample: int
    end_sample: int


@dataclass(frozen=True, slots=True)
class Speaker:
    """Who spoke an utterance."""

    source: str
    label: str
    """``A``, ``B``, ... ``Z``, ``AA``: one for each voice, the same for the life of the process."""
    name: str | None
    """What the user calls this voice."""
    confidence: float
    """0..1."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """A finished utterance. It changes no more."""

    trace_id: str
    tokens: tuple[Token, ...]
    start_sample: int
    """First speech sample as decided, without pre-roll."""
    end_sample: int
    """After the last speech sample as decided, without trailing silence."""
    endpoint: Endpoint
    lost_samples: int = 0
    raw_text: str = ""
    """Recognised text before punctuation and repairs."""
    text: str = ""
    """What is shown."""
    level: Level = SILENCE
    """Of the speech."""
    emotion: Emotion | None = field(default=None)
    speaker: Speaker | None = None
    second_tokens: tuple[Token, ...] | None = None
    """Of the second pass, where ``text`` rests upon it."""
    has_confidence: bool = True
    """Whether the recogniser says how sure it is."""

    @property
    def ended_by_speaker(self) -> bool:
        """Whether the speaker had finished."""
        return self.endpoint in SPEAKER_ENDED

    @property
    def confidence(self) -> float | None:
        """Mean posterior of the tokens that ``text`` rests upon, 0..1; None where the recogniser gives none."""
        return mean_confidence(self.tokens if self.second_tokens is None else self.second_tokens) if self.has_confidence else None


def within_speech(tokens: tuple[Token, ...], speech_end: int) -> tuple[Token, ...]:
    """Tokens that end with the speech at the latest: the flush can fire the last one in the silence behind it."""
    return tuple(replace(token, end_sample=speech_end) if token.start_sample < speech_end < token.end_sample else token for token in tokens)


def mean_confidence(tokens: Sequence[Token]) -> float:
    """Mean posterior, 0.0 where there is no token (no text, no certainty)."""
    return sum(token.confidence or 0.0 for token in tokens) / len(tokens) if tokens else 0.0


def join_tokens(tokens: Iterable[str]) -> str:
    """Text of a whole utterance's tokens.

    Chinese stands without spaces, Latin words are separated by one, ``xx@@`` pieces join with what follows, and a run of
    single letters becomes an upper-case abbreviation (``u s b`` -> ``USB``).
    """
    words = list(_words(token for token in tokens if token not in SPECIAL_TOKENS))
    text: list[str] = []
    index = 0
    while index < len(words):
        end = index
        while end < len(words) and _is_letter(words[end]):
            end += 1
        if end - index >= 2:
            word, index = "".join(words[index:end]).upper(), end
        else:
            word, index = words[index], index + 1
        if text and _is_latin(word) and _is_latin(text[-1]):
            text.append(" ")
        text.append(word)
    return "".join(text)


def without_marks(text: str) -> str:
    """A text without its punctuation; marks between two digits are part of a number (26.5, 3:30) and stay."""
    return _MARKS.sub("", text).strip()


def has_marks(text: str) -> bool:
    """Whether there is punctuation in a text."""
    return _MARKS.search(text) is not None


def stable_text(committed_text: str) -> str:
    """The part of committed text that later tokens cannot change: all but a trailing run of Latin letters.

    The run may still grow (``hel@@`` ``lo``) or turn into an abbreviation (``u`` ``s`` ``b``).
    """
    return _TRAILING_LATIN.sub("", committed_text)


def _words(tokens: Iterable[str]) -> Iterator[str]:
    pieces = ""
    for token in tokens:
        if CONTINUES in token:
            pieces += token.replace(CONTINUES, "")
        elif _is_latin(token):
            yield pieces + token
            pieces = ""
        else:
            if pieces:
                yield pieces
            pieces = ""
            yield token
    if pieces:
        yield pieces


def _is_letter(word: str) -> bool:
    return len(word) == 1 and word.isascii() and word.isalpha()


def _is_latin(word: str) -> bool:
    return all((char.isascii() and char.isalpha()) or char == "'" for char in word)
