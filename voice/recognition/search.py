"""Which token each firing of the CIF becomes, with hotwords and without.

``Reading`` (a posterior for every token) -> committed tokens. The decoder reads every firing by itself, whatever its neighbours
became, so nothing has to be decoded again for another path, and the search over paths is exact: of two paths in one state of the
hotword automaton the better one stays better. What all paths that may still win agree upon is committed; without hotwords that
is the likeliest token, at once. Confidences are the decoder's own: hotwords choose, they do not make anything surer.

A ``TokenSearch`` holds the open paths of one utterance. Worker thread only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from voice.recognition.hotwords import ROOT, HotwordGraph
from voice.transcript import Token

_NUM_LIKELIEST = 16
"""Tokens of a reading that a path may take; those that go on in a match are tried too."""
_MAX_PATHS = 32
"""A bound that no exact search over a thousand words has been seen to reach."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The model's tokens; index = id."""

    tokens: tuple[str, ...]
    silent_ids: frozenset[int]
    """Begin, end and blank: a firing read so is no token."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the decoder made of one firing."""

    log_posteriors: NDArray[np.float32]
    """(vocabulary,), natural logarithms."""
    start_sample: int
    end_sample: int

    @property
    def likeliest_id(self) -> int:
        """The token it is by itself."""
        return int(self.log_posteriors.argmax())


@dataclass(frozen=True, slots=True)
class _Path:
    score: float
    """Log posteriors, and what the hotwords earned, since the paths parted."""
    state: int
    token_ids: tuple[int, ...] = ()
    """Of the open readings."""


@dataclass(slots=True)
class TokenSearch:
    """The search through one utterance."""

    vocabulary: Vocabulary
    hotwords: HotwordGraph
    _paths: list[_Path] = field(default_factory=lambda: [_Path(0.0, ROOT)])
    _open: list[Reading] = field(default_factory=list)

    def advance(self, readings: Sequence[Reading]) -> list[Token]:
        """Take the next readings; the tokens that are decided now."""
        decided: list[Token] = []
        for reading in readings:
            best = reading.likeliest_id
            if best in self.vocabulary.silent_ids:
                continue
            self._open.append(reading)
            if self.hotwords.is_empty:
                self._paths = [_Path(0.0, ROOT, (best,))]
            else:
                self._paths = self._pruned(self._extended(reading))
            decided += self._settle()
        return decided

    def preview(self, readings: Sequence[Reading] = ()) -> list[Token]:
        """The tokens that are not decided yet, and those of readings that may still change. Takes nothing.

        What they would be, were the audio to end here: the half of a hotword does not show.
        """
        ahead = self.copy()
        decided = ahead.advance(readings)
        return decided + ahead.finish()

    def copy(self) -> TokenSearch:
        """A search that goes on by itself from here."""
        return TokenSearch(self.vocabulary, self.hotwords, list(self._paths), list(self._open))

    def finish(self) -> list[Token]:
        """Decide the rest."""
        best = max(self._paths, key=self._settled_score)
        self._paths = [best]
        return self._settle()

    def _settled_score(self, path: _Path) -> float:
        return path.score - self.hotwords.unsettled(path.state)

    def _extended(self, reading: Reading) -> list[_Path]:
        """Every path by every token worth trying; of those that meet in a state the best."""
        scores = reading.log_posteriors
        count = min(_NUM_LIKELIEST, len(scores))
        likeliest = np.argpartition(scores, -count)[-count:].tolist()
        best: dict[int, _Path] = {}
        for path in self._paths:
            for token_id in {*likeliest, *self.hotwords.continuations(path.state)} - self.vocabulary.silent_ids:
                state, earned = self.hotwords.step(path.state, token_id)
                score = path.score + float(scores[token_id]) + earned
                if state not in best or score > best[state].score:
                    best[state] = _Path(score, state, (*path.token_ids, token_id))
        return list(best.values())

    def _pruned(self, paths: list[_Path]) -> list[_Path]:
        """The paths that may still win: those whose hotword, were it completed, would beat what the best has for certain."""
        certain = max(paths, key=self._settled_score)
        floor = self._settled_score(certain)
        open_paths = [path for path in paths if path is not certain and path.score + self.hotwords.potential(path.state) > floor]
        return [certain, *sorted(open_paths, key=lambda path: -path.score)[: _MAX_PATHS - 1]]

    def _settle(self) -> list[Token]:
        """Take what all paths agree upon out of them."""
        first, *others = self._paths
        agreed = 0
        while agreed < len(first.token_ids) and all(path.token_ids[agreed] == first.token_ids[agreed] for path in others):
            agreed += 1
        if not agreed:
            return []
        decided = [self._token(reading, token_id) for reading, token_id in zip(self._open, first.token_ids[:agreed], strict=False)]
        self._open = self._open[agreed:]
        base = max(path.score for path in self._paths)
        self._paths = [_Path(path.score - base, path.state, path.token_ids[agreed:]) for path in self._paths]
        return decided

    def _token(self, reading: Reading, token_id: int) -> Token:
        posterior = math.exp(min(0.0, float(reading.log_posteriors[token_id])))
        return Token(self.vocabulary.tokens[token_id], reading.start_sample, reading.end_sample, posterior)
