"""Finalization: which known voice an embedding is of, and when it is a new one. Pure decisions: no model, no file, no clock, no thread.

Embedding of an utterance -> ``Match``. State: the known speakers, each with its label, its name and its centroid. ``SpeakerRegistry`` is
the only owner. Embeddings have to come in the order of the finals: the first voice is A, the next new one B, and so on. Raises
``ValueError`` for an embedding without a direction, and ``UnknownSpeaker`` for a label that nobody has.

An utterance is compared with a speaker by the mean cosine of it and the utterances of that speaker (average linkage). That is its product
with the mean of their directions, which is why a centroid keeps its length: the fewer utterances it rests upon, the longer it is.

::

    largest mean cosine                -1 ...... new_threshold ........ same_threshold ...... 1
    the utterance is of                   a new speaker         nobody            that speaker

Between the thresholds nothing is said, and no centroid moves: a wrong label is worse than none, and a second label for a known voice
stays wrong for the life of the process.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

MAX_NAME_CHARACTERS = 64
LABEL = re.compile(r"[A-Z]{1,4}")
_REMEMBERED = 50
"""Utterances that a centroid is the mean of, about: later ones count more than the first, because a voice changes over the day."""
_SHORTEST = 1e-3
"""Of a centroid: shorter ones tell nothing."""
_STEEPNESS = 12.0
"""Of the logistic curve that makes a confidence of a cosine, 1 / cosine. On development speakers the curve that fits best has 34
(bench/README.md); they were recorded in one session each, so others are less alike, and a confidence should not promise too much."""


class UnknownSpeaker(ValueError):
    """No speaker has this label."""


@dataclass(frozen=True, slots=True)
class MatchSettings:
    """Thresholds are mean cosines."""

    same_threshold: float
    """From here on an utterance is of the known speaker that it is nearest to."""
    new_threshold: float
    """Below it is of a new one; not above ``same_threshold``."""
    max_speakers: int
    """No more are opened: then an utterance of a new voice has no label."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class KnownSpeaker:
    """One voice. It is personal: no text form, so that it cannot end up in a log."""

    label: str
    name: str | None
    centroid: NDArray[np.float64]
    """(size,), length 1 at most: the mean of the directions of its utterances."""
    num_utterances: int


@dataclass(frozen=True, slots=True)
class Match:
    """Whose utterance it is."""

    label: str
    name: str | None
    confidence: float
    """0..1, from the mean cosine; 0.5 half-way between the thresholds."""


class SpeakerRegistry:
    """The known speakers."""

    def __init__(self, settings: MatchSettings, speakers: Sequence[KnownSpeaker] = ()) -> None:
        """Begin with ``speakers`` of earlier runs; their embeddings are of the same model."""
        self._settings = settings
        self._speakers = list(speakers)
        self.num_changes = 0
        """Since the start: speakers that were opened or renamed."""
        self.num_moves = 0
        """Since the start: utterances that moved a centroid."""

    @property
    def speakers(self) -> tuple[KnownSpeaker, ...]:
        """All of them, in the order in which they were opened."""
        return tuple(self._speakers)

    def assign(self, embedding: NDArray[np.float32]) -> Match | None:
        """Match an utterance, or open a new speaker; None where neither is sure enough, or no more speakers may be opened.

        Args:
            embedding: (size,), finite, of any length but 0.

        Raises:
            ValueError: it has no direction, or another size than the known ones; nothing has changed then.
        """
        direction = unit(embedding)
        if not self._speakers:
            return self._open(direction, 1.0)
        cosines = np.array([float(speaker.centroid @ direction) for speaker in self._speakers])
        best = int(cosines.argmax())
        sureness = self._sureness(float(cosines[best]))
        if cosines[best] >= self._settings.same_threshold:
            self._speakers[best] = _moved(self._speakers[best], direction)
            self.num_moves += 1
            return Match(self._speakers[best].label, self._speakers[best].name, sureness)
        if cosines[best] < self._settings.new_threshold:
            return self._open(direction, 1 - sureness)
        return None

    def rename(self, label: str, name: str | None) -> None:
        """Give a speaker a name, or take it away.

        Raises:
            UnknownSpeaker: nobody has this label.
        """
        for place, speaker in enumerate(self._speakers):
            if speaker.label == label:
                self._speakers[place] = replace(speaker, name=name)
                self.num_changes += 1
                return
        raise UnknownSpeaker("no speaker has this label")

    def _open(self, direction: NDArray[np.float64], confidence: float) -> Match | None:
        if len(self._speakers) >= self._settings.max_speakers:
            return None
        taken = {speaker.label for speaker in self._speakers}
        label = next(label for label in map(label_of, range(len(taken) + 1)) if label not in taken)
        self._speakers.append(KnownSpeaker(label, None, direction, 1))
        self.num_changes += 1
        return Match(label, None, confidence)

    def _sureness(self, cosine: float) -> float:
        middle = (self._settings.same_threshold + self._settings.new_threshold) / 2
        return 1 / (1 + math.exp(-_STEEPNESS * (cosine - middle)))


def unit(embedding: NDArray[np.float32]) -> NDArray[np.float64]:
    """The direction of an embedding, length 1.

    Raises:
        ValueError: it has none.
    """
    wide = np.asarray(embedding, np.float64)
    length = float(np.sqrt(wide @ wide)) if wide.ndim == 1 and len(wide) else 0.0
    if not (math.isfinite(length) and length > 0):
        raise ValueError("the embedding has no direction: it is empty, zero, or not finite")
    return wide / length


def label_of(index: int) -> str:
    """``A`` for 0, ``Z`` for 25, ``AA`` for 26."""
    letters = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        letters = chr(ord("A") + letter) + letters
    return letters


def clean_name(text: str) -> str | None:
    """A name that can be shown anywhere: composed (NFC), no control, formatting or surrogate characters, one space between words.

    None where nothing is left, or more than ``MAX_NAME_CHARACTERS``.
    """
    spaced = " ".join("".join(" " if each.isspace() else each for each in text).split())
    shown = "".join(each for each in spaced if each.isprintable())
    name = " ".join(unicodedata.normalize("NFC", shown).split())
    return name if 0 < len(name) <= MAX_NAME_CHARACTERS else None


def _moved(speaker: KnownSpeaker, direction: NDArray[np.float64]) -> KnownSpeaker:
    """The speaker with one more utterance."""
    centroid = speaker.centroid + (direction - speaker.centroid) / min(speaker.num_utterances + 1, _REMEMBERED)
    if float(centroid @ centroid) < _SHORTEST**2:  # of opposite directions, which match only for a threshold of 0 or less
        centroid = speaker.centroid
    return replace(speaker, centroid=centroid, num_utterances=speaker.num_utterances + 1)
