"""The token of each firing, chosen with or without hotwords and a language model.

``TokenPosteriors`` -> committed ``Token``. The posteriors of a firing do not depend on the tokens chosen for the others, so nothing is
decoded again for another path, and of two paths in one state, of the hotword automaton and of the language model, the better one stays
the better one. With hotwords alone the search is exact; with a language model paths that are far behind, or too many, are dropped. Tokens
on which all paths agree that can still win are committed; without hotwords and language model each is the likeliest token, at once. A
token's confidence is its posterior: hotwords and language change which token is chosen, never its confidence.

A ``TokenSearch`` holds the open paths of one utterance. Worker thread only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from voice.models.language_model import ROOT as NO_CONTEXT
from voice.models.language_model import LanguageModel
from voice.recognition.engine import Vocabulary
from voice.recognition.hotwords import ROOT, HotwordGraph
from voice.recognition.posteriors import TokenPosteriors
from voice.transcript import Token

_NUM_LIKELIEST = 16
"""Tokens that a path may take for each firing; tokens that continue its hotword are tried too."""
_MAX_PATHS = 32
"""Bounds the cost of a search. With a thousand hotwords and no language model no search was observed to reach it."""
_LANGUAGE_MARGIN = 10.0
"""So many nats of the language model, times its weight, a path may be behind the best one and still be followed: the tokens after it may
make up for it. tools/embedded_models/README.md has what other margins bring."""


@dataclass(frozen=True, slots=True)
class _Path:
    score: float
    """Sum of log posteriors, hotword boosts and what the language model adds, in nats, up to a constant that all paths share."""
    state: int
    """Of the hotword automaton."""
    context: int
    """State of the language model."""
    token_ids: tuple[int, ...] = ()
    """One for each open firing."""


class TokenSearch:
    """The search through one utterance."""

    def __init__(
        self, vocabulary: Vocabulary, hotwords: HotwordGraph, language: LanguageModel | None = None, *, before: Sequence[str] | None = None
    ) -> None:
        """Begin.

        Args:
            vocabulary: the tokens that the posteriors are of.
            hotwords: of this utterance.
            language: of the same tokens; None for none.
            before: the tokens before the first firing, as far as they are known; None where it is the utterance's first.
        """
        self._vocabulary, self._hotwords, self._language = vocabulary, hotwords, language
        self._paths = [_Path(0.0, ROOT, _context(language, before))]
        self._open: list[TokenPosteriors] = []

    def advance(self, firings: Sequence[TokenPosteriors]) -> list[Token]:
        """Search through the next firings; the tokens that are decided now."""
        decided: list[Token] = []
        for firing in firings:
            best = firing.likeliest_id
            if best in self._vocabulary.silent_ids:
                continue
            self._open.append(firing)
            if self._hotwords.is_empty and self._language is None:
                self._paths = [_Path(0.0, ROOT, NO_CONTEXT, (best,))]
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
        other = TokenSearch(self._vocabulary, self._hotwords, self._language)
        other._paths, other._open = list(self._paths), list(self._open)
        return other

    def num_firm(self) -> int:
        """How many of the open tokens no hotword can change any more: all paths that one may still make win have them in common.

        What the language model may still change is not counted as open.
        """
        best = max(self._paths, key=self._settled_score)
        floor = self._settled_score(best)
        return _num_agreed([best, *(path for path in self._paths if self._promise(path) > floor)])

    def finish(self) -> list[Token]:
        """Decide the rest, as the audio ends here."""
        best = max(self._paths, key=self._settled_score)
        self._paths = [best]
        return self._settle()

    def _settled_score(self, path: _Path) -> float:
        """The path's score if the audio ended here."""
        return path.score - self._hotwords.unsettled(path.state)

    def _promise(self, path: _Path) -> float:
        """The path's score if its hotword were completed."""
        return path.score + self._hotwords.potential(path.state)

    def _extended(self, firing: TokenPosteriors) -> list[_Path]:
        """Every path extended by every token worth trying; of those that reach the same state, the best."""
        scores = firing.log_posteriors
        count = min(_NUM_LIKELIEST, len(scores))
        likeliest = np.argpartition(scores, -count)[-count:].tolist()
        tried = [{*likeliest, *self._hotwords.continuations(path.state)} - self._vocabulary.silent_ids for path in self._paths]
        following = iter(self._continued(tried))
        best: dict[tuple[int, int], _Path] = {}
        for path, token_ids in zip(self._paths, tried, strict=True):
            for token_id in token_ids:
                state, earned = self._hotwords.step(path.state, token_id)
                context, added = next(following)
                score = path.score + float(scores[token_id]) + earned + added
                if (state, context) not in best or score > best[state, context].score:
                    best[state, context] = _Path(score, state, context, (*path.token_ids, token_id))
        return list(best.values())

    def _continued(self, tried: list[set[int]]) -> Iterable[tuple[int, float]]:
        """For each path and each of its tokens, in order: the next state of the language model, and what it adds, in nats."""
        if self._language is None:
            return itertools.repeat((NO_CONTEXT, 0.0))
        contexts = [path.context for path, token_ids in zip(self._paths, tried, strict=True) for _ in token_ids]
        added, following = self._language.step(contexts, list(itertools.chain(*tried)))
        return zip(following.tolist(), added.tolist(), strict=True)

    def _pruned(self, paths: list[_Path]) -> list[_Path]:
        """The paths that can still win: those that would beat the best path's settled score if their hotword were completed.

        With a language model also those that are not far behind.
        """
        certain = max(paths, key=self._settled_score)
        floor = self._settled_score(certain) - (_LANGUAGE_MARGIN * self._language.weight if self._language else 0.0)
        open_paths = [path for path in paths if path is not certain and self._promise(path) > floor]
        return [certain, *sorted(open_paths, key=lambda path: -self._promise(path))[: _MAX_PATHS - 1]]

    def _settle(self) -> list[Token]:
        """Decide the first tokens, on which all paths agree, and drop them from the paths."""
        first = self._paths[0]
        agreed = _num_agreed(self._paths)
        if not agreed:
            return []
        decided = [self._token(firing, token_id) for firing, token_id in zip(self._open, first.token_ids[:agreed], strict=False)]
        self._open = self._open[agreed:]
        base = max(path.score for path in self._paths)
        self._paths = [_Path(path.score - base, path.state, path.context, path.token_ids[agreed:]) for path in self._paths]
        return decided

    def _token(self, firing: TokenPosteriors, token_id: int) -> Token:
        posterior = math.exp(min(0.0, float(firing.log_posteriors[token_id])))  # rounding can lift a logarithm above 0
        return Token(self._vocabulary.tokens[token_id], firing.start_sample, firing.end_sample, posterior)


def _num_agreed(paths: Sequence[_Path]) -> int:
    """How many tokens all paths begin with."""
    first, *others = (path.token_ids for path in paths)
    return next((place for place, token_id in enumerate(first) if any(other[place] != token_id for other in others)), len(first))


def _context(language: LanguageModel | None, before: Sequence[str] | None) -> int:
    """State of the language model before the first firing."""
    if language is None:
        return NO_CONTEXT
    return language.start if before is None else language.after(before)
