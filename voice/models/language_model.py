"""A language model beside a recognition model: how likely a token is after the tokens before it.

``language_model.npz`` -> ``LanguageModel``: n-grams with back-off (Katz 1987), laid out as an automaton. A state stands for the last
tokens as far as the model tells them apart; where a state does not know a token, the state of one token less is asked, at a price.
No state of a stream. Any thread. Raises ``ModelLoadFailed`` that names the file, whatever it holds.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voice.models.directory import blaming, damaged

FILE = "language_model.npz"
ROOT = 0
"""The state that knows nothing of the tokens before."""
_MAX_BYTES = 256 * 2**20
"""Of all arrays: the embedded model's have 6 MB."""
_MAX_HEADER = 10_000
"""Of an array in the file, in bytes."""
_MAX_NATS = 100.0
"""No log probability is lower: float16 holds it, and no sum of them overflows."""
_MAX_WEIGHT = 10.0

Floats = NDArray[np.float32]
States = NDArray[np.int64]


class LanguageModel:
    """N-grams over the tokens of one vocabulary."""

    def __init__(self, arrays: dict[str, NDArray[np.generic]], tokens: Sequence[str]) -> None:
        """Take what ``language_model.npz`` holds.

        Args:
            arrays: ``symbols`` (num_symbols,), texts of tokens that differ; ``first_arc`` (num_states + 1,): arcs ``first_arc[s]`` until
                ``first_arc[s + 1]`` leave the state ``s``; of each arc ``arc_symbol`` (index of a symbol, rising within a state),
                ``arc_next`` (the state it leads to) and ``arc_score`` (natural logarithm of the probability); of each state ``lower``
                (the state to ask next, of a smaller number; the root's is itself) and ``back_off`` (what that costs, a natural
                logarithm; the root's is the score of a token that the model does not know); ``start``, the state before the first
                token; and ``weight``, by which scores are multiplied before they are added to log posteriors.
            tokens: of the recognition model, index = id. Tokens that are no symbol are unknown.

        Raises:
            ValueError: the arrays do not fit together.
        """
        symbols = [str(symbol) for symbol in arrays["symbols"].tolist()]
        first_arc, arc_symbol, arc_next, lower = (_integers(arrays[name]) for name in ("first_arc", "arc_symbol", "arc_next", "lower"))
        num_states, num_arcs, base = len(lower), len(arc_symbol), len(symbols) + 1
        self.weight = float(arrays["weight"])
        self.start = int(arrays["start"])
        _check(len(set(symbols)) == len(symbols), "a symbol stands there twice")
        _check(0 <= self.weight <= _MAX_WEIGHT, f"its weight is not from 0 to {_MAX_WEIGHT:g}")
        _check(len(first_arc) == num_states + 1 > 1, "its states and their arcs are not as many")
        num_arcs_of = np.diff(first_arc)
        _check(first_arc[0] == 0 and first_arc[-1] == num_arcs and bool((num_arcs_of >= 0).all()), "its states share arcs")
        states = np.arange(num_states)
        _check(bool(((lower >= 0) & (lower < np.maximum(states, 1))).all()), "a state backs off to itself or a later one")
        _check(0 <= self.start < num_states and bool(((arc_next >= 0) & (arc_next < num_states)).all()), "an arc leads nowhere")
        _check(bool(((arc_symbol >= 0) & (arc_symbol < len(symbols))).all()), "an arc has no symbol")
        self._keys: States = np.repeat(states, num_arcs_of) * base + arc_symbol
        _check(bool((np.diff(self._keys) > 0).all()), "the arcs of a state are not in order")
        self._next = arc_next
        self._score = _scores(arrays["arc_score"], num_arcs)
        self._lower, self._back_off = lower, _scores(arrays["back_off"], num_states)
        self._base = base
        index = {symbol: number for number, symbol in enumerate(symbols)}
        self._symbol_of = np.array([index.get(token, len(symbols)) for token in tokens], np.int64)  # num_symbols for an unknown one
        self._num_tokens = len(tokens)

    def step(self, states: Sequence[int], token_ids: Sequence[int]) -> tuple[Floats, States]:
        """What every token costs in every state, and where it leads.

        Args:
            states: (num_states,).
            token_ids: (num_tokens,), of the recognition model.

        Returns:
            Log probabilities, natural, times ``weight``; and the next states. Both (num_states, num_tokens).
        """
        symbols = np.tile(self._symbol_of[np.asarray(token_ids, np.int64)], len(states))
        asked = np.repeat(np.asarray(states, np.int64), len(token_ids))
        scores, following = np.zeros(len(asked), np.float32), np.full(len(asked), ROOT, np.int64)
        left = np.arange(len(asked))
        while len(left):
            keys = asked[left] * self._base + symbols[left]
            arcs = np.minimum(np.searchsorted(self._keys, keys), max(len(self._keys) - 1, 0))
            known = self._keys[arcs] == keys if len(self._keys) else np.zeros(len(keys), bool)
            found = left[known]
            scores[found] += self._score[arcs[known]]
            following[found] = self._next[arcs[known]]
            left = left[~known]
            scores[left] += self._back_off[asked[left]]
            left = left[asked[left] != ROOT]  # a token that the root does not know has paid and leads to the root
            asked[left] = self._lower[asked[left]]
        shape = (len(states), len(token_ids))
        return (scores * np.float32(self.weight)).reshape(shape), following.reshape(shape)


def read_language_model(directory: Path, tokens: Sequence[str]) -> LanguageModel | None:
    """The language model of a model directory; None where it has none.

    Args:
        directory: the recognition model's.
        tokens: its vocabulary, index = id.

    Raises:
        ModelLoadFailed: the file is damaged or not such a model.
    """
    path = directory / FILE
    if not (path.is_symlink() or path.exists()):
        return None
    with blaming(path, "is not a language model"):
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > _MAX_BYTES:
                raise damaged(path, f"holds more than {_MAX_BYTES // 2**20} MB")
        with np.load(path, allow_pickle=False, max_header_size=_MAX_HEADER) as archive:
            return LanguageModel({name: archive[name] for name in archive.files}, tokens)


def _check(fits: bool, otherwise: str) -> None:  # noqa: FBT001
    if not fits:
        raise ValueError(otherwise)


def _integers(array: NDArray[np.generic]) -> NDArray[np.int64]:
    _check(array.ndim == 1 and array.dtype.kind in "iu" and array.dtype != np.uint64, "an array that counts holds no whole numbers")
    return array.astype(np.int64)


def _scores(array: NDArray[np.generic], length: int) -> Floats:
    _check(array.shape == (length,) and array.dtype.kind == "f", "its scores are not as many as what they belong to")
    scores = array.astype(np.float32)
    _check(bool(((scores <= 0) & (scores >= -_MAX_NATS)).all()), f"a score is not from -{_MAX_NATS:g} to 0")
    return scores
