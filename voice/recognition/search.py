"""The token of each firing, chosen with or without hotwords.

``TokenPosteriors`` -> committed ``Token``. The posteriors of a firing do not depend on the tokens chosen for the others, so nothing is
decoded again for another path, and the search is exact: of two paths in one state of the hotword automaton, the better one stays the
better one. Tokens on which all paths agree that can still win are committed; without hotwords each is the likeliest token, at once. A
token's confidence is its posterior: hotwords change which token is chosen, never its confidence.

A ``TokenSearch`` holds the open paths of one utterance. Worker thread only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from voice.recognition.engine import Vocabulary
from voice.recognition.hotwords import ROOT, HotwordGraph
from voice.recognition.posteriors import TokenPosteriors
from voice.transcript import Token

_NUM_LIKELIEST = 16
"""Tokens that a path may take for each firing; tokens that continue its hotword are tried too."""
_MAX_PATHS = 32
"""Bounds the cost of a search. With a thousand hotwords no search was observed to reach it, so in practice the search is exact."""


@dataclass(frozen=True, slots=True)
class _Path:
    score: float
    """Sum of log posteriors and hotword boosts, in nats, up to a constant that all paths share."""
    state: int
    """Of the hotword automaton."""
    token_ids: tuple[int, ...] = ()
    """One for each open firing."""


@dataclass(slots=True)
class TokenSearch:
    """The search through one utterance."""

    vocabulary: Vocabulary
    hotwords: HotwordGraph
    _paths: list[_Path] = field(default_factory=lambda: [_Path(0.0, ROOT)])
    _open: list[TokenPosteriors] = field(default_factory=list)

    def advance(self, firings: Sequence[TokenPosteriors]) -> list[Token]:
        """Search through the next firings; the tokens that are decided now."""
        decided: list[Token] = []
        for firing in firings:
            best = firing.likeliest_id
            if best in self.vocabulary.silent_ids:
                continue
            self._open.append(firing)
            if self.hotwords.is_empty:
                self._paths = [_Path(0.0, ROOT, (best,))]
            else:
                self._paths = self._pruned(self._extended(firing))
            decided += self._settle()
        return decided

    def preview(self, firings: Sequence[TokenPosteriors] = ()) -> list[Token]:
        """The tokens that are not decided yet, and those of provisional firings, as if the audio ended here.

        The search itself does not change. A hotword that is not complete earns nothing.
        """
        ahead = self.copy()
        decided = ahead.advance(firings)
        return decided + ahead.finish()

    def copy(self) -> TokenSearch:
        """A search that goes on independently from here."""
        return TokenSearch(self.vocabulary, self.hotwords, list(self._paths), list(self._open))

    def finish(self) -> list[Token]:
        """Decide the rest, as the audio ends here."""
        best = max(self._paths, key=self._settled_score)
        self._paths = [best]
        return self._settle()

    def _settled_score(self, path: _Path) -> float:
        """The path's score if the audio ended here."""
        return path.score - self.hotwords.unsettled(path.state)

    def _extended(self, firing: TokenPosteriors) -> list[_Path]:
        """Every path extended by every token worth trying; of those that reach the same state, the best."""
        scores = firing.log_posteriors
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
        """The paths that can still win: those that would beat the best path's settled score if their hotword were completed."""
        certain = max(paths, key=self._settled_score)
        floor = self._settled_score(certain)
        open_paths = [path for path in paths if path is not certain and path.score + self.hotwords.potential(path.state) > floor]
        return [certain, *sorted(open_paths, key=lambda path: -path.score)[: _MAX_PATHS - 1]]

    def _settle(self) -> list[Token]:
        """Decide the first tokens, on which all paths agree, and drop them from the paths."""
        first, *others = self._paths
        agreed = 0
        while agreed < len(first.token_ids) and all(path.token_ids[agreed] == first.token_ids[agreed] for path in others):
            agreed += 1
        if not agreed:
            return []
        decided = [self._token(firing, token_id) for firing, token_id in zip(self._open, first.token_ids[:agreed], strict=False)]
        self._open = self._open[agreed:]
        base = max(path.score for path in self._paths)
        self._paths = [_Path(path.score - base, path.state, path.token_ids[agreed:]) for path in self._paths]
        return decided

    def _token(self, firing: TokenPosteriors, token_id: int) -> Token:
        posterior = math.exp(min(0.0, float(firing.log_posteriors[token_id])))  # rounding can lift a logarithm above 0
        return Token(self.vocabulary.tokens[token_id], firing.start_sample, firing.end_sample, posterior)
