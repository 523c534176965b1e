"""A language model beside a recognition model: how likely a token is after the tokens before it.

``language_model.npz`` -> ``LanguageModel``: n-grams with back-off (Katz 1987), laid out as an automaton. A state stands for the last
tokens as far as the model tells them apart; where a state does not know a token, the state of one token less is asked, at a price.
No state of a stream. Any thread. ``read_language_model`` raises ``ModelLoadFailed`` that names the file, and nothing else, whatever the
file holds.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voice.models.directory import blaming, damaged
from voice.text_file import FileInvalid, read_bytes

FILE = "language_model.npz"
ROOT = 0
"""The state that knows nothing of the tokens before."""
_ARRAYS = {
    "symbols": "U",
    "first_arc": "iu",
    "arc_symbol": "iu",
    "arc_next": "iu",
    "arc_score": "f",
    "lower": "iu",
    "back_off": "f",
    "start": "iu",
    "weight": "f",
}
"""What the file holds, and of which kinds of numpy's dtypes."""
_MAX_FILE_BYTES = 64 * 2**20
"""The embedded model's has 3 MB."""
_MAX_HEADER_BYTES = 10_000
"""Of an array's header."""
_MAX_VALUES = 2**23
"""Of an array. The embedded model has 0.5 M arcs."""
_MAX_SYMBOLS = 2**17
_MAX_SYMBOL_BYTES = 256
"""64 characters."""
_MAX_ORDER = 8
"""A state backs off at most so often until it is at the root: n-grams of one token more."""
_MAX_NATS = 100.0
"""No log probability is lower: float16 holds it, and no sum of them overflows."""
_MAX_WEIGHT = 10.0

Floats = NDArray[np.float32]
States = NDArray[np.int64]
Arrays = Mapping[str, NDArray[np.generic]]


class LanguageModel:
    """N-grams over the tokens of one vocabulary."""

    def __init__(self, arrays: Arrays, tokens: Sequence[str]) -> None:
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
        num_states, num_arcs = len(lower), len(arc_symbol)
        self.weight = float(arrays["weight"])
        self.start = int(arrays["start"])
        _check(len(set(symbols)) == len(symbols), "a symbol stands there twice")
        _check(0 <= self.weight <= _MAX_WEIGHT, f"its weight is not from 0 to {_MAX_WEIGHT:g}")
        _check(len(first_arc) == num_states + 1 > 1, "its states and their arcs are not as many")
        _check(_within(first_arc, num_arcs + 1), "its states share arcs")  # before differences are taken, which would overflow
        num_arcs_of = np.diff(first_arc)
        _check(first_arc[0] == 0 and first_arc[-1] == num_arcs and bool((num_arcs_of >= 0).all()), "its states share arcs")
        states = np.arange(num_states)
        _check(bool(((lower >= 0) & (lower < np.maximum(states, 1))).all()), "a state backs off to itself or a later one")
        _check(_order(lower) <= _MAX_ORDER, f"a state backs off more than {_MAX_ORDER} times")
        _check(0 <= self.start < num_states and _within(arc_next, num_states), "an arc leads nowhere")
        _check(_within(arc_symbol, len(symbols)), "an arc has no symbol")
        self._base = len(symbols) + 1
        """One more than there are symbols: the last one stands for unknown tokens, which no arc has."""
        self._keys: States = np.repeat(states, num_arcs_of) * self._base + arc_symbol
        _check(bool((np.diff(self._keys) > 0).all()), "the arcs of a state are not in order")
        self._next = arc_next
        self._score = _scores(arrays["arc_score"], num_arcs)
        self._lower, self._back_off = lower, _scores(arrays["back_off"], num_states)
        self._symbols = {symbol: number for number, symbol in enumerate(symbols)}
        self._symbol_of = np.array([self._symbol(token) for token in tokens], np.int64)

    def step(self, states: Sequence[int], token_ids: Sequence[int]) -> tuple[Floats, States]:
        """What each token costs in a state, and where it leads.

        Args:
            states: (n,).
            token_ids: (n,), of the recognition model.

        Returns:
            Log probabilities, natural, times ``weight``; and the next states. Both (n,).
        """
        return self._step(np.array(states, np.int64), self._symbol_of[np.asarray(token_ids, np.int64)])

    def after(self, tokens: Sequence[str]) -> int:
        """The state after these tokens, whatever was before them."""
        state = np.full(1, ROOT, np.int64)
        for token in tokens[-_MAX_ORDER:]:
            _, state = self._step(state, np.full(1, self._symbol(token), np.int64))
        return int(state[0])

    def _symbol(self, token: str) -> int:
        return self._symbols.get(token, len(self._symbols))

    def _step(self, asked: States, symbols: States) -> tuple[Floats, States]:
        """The same for symbols; ``asked`` is written to."""
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
            left = left[asked[left] != ROOT]  # a token that the root does not know has paid, and leads to the root
            asked[left] = self._lower[asked[left]]
        return scores * np.float32(self.weight), following


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
        try:
            content = read_bytes(path, _MAX_FILE_BYTES)
        except FileInvalid as error:
            raise damaged(path, str(error)) from error
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _check(sorted(archive.namelist()) == sorted(f"{name}.npy" for name in _ARRAYS), "it does not hold the arrays of one")
            return LanguageModel({name: _array(archive, name, kinds) for name, kinds in _ARRAYS.items()}, tokens)


def _array(archive: zipfile.ZipFile, name: str, kinds: str) -> NDArray[np.generic]:
    """One array, whose header is believed only where it fits: it may ask for any memory."""
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        _check(version == (1, 0), f"{name} is written in another format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(member, max_header_size=_MAX_HEADER_BYTES)
        is_number = name in ("start", "weight")
        _check(dtype.kind in kinds and 0 < dtype.itemsize <= _MAX_SYMBOL_BYTES, f"{name} is of another type")
        _check(len(shape) == (0 if is_number else 1), f"{name} has another shape")
        count, limit = 1 if is_number else shape[0], _MAX_SYMBOLS if name == "symbols" else _MAX_VALUES
        _check(0 <= count <= limit, f"{name} has more than {limit:,} values")
        return np.frombuffer(member.read(count * dtype.itemsize), dtype, count).reshape(shape)


def _check(fits: bool, otherwise: str) -> None:  # noqa: FBT001
    if not fits:
        raise ValueError(otherwise)


def _within(indices: States, end: int) -> bool:
    return bool(((indices >= 0) & (indices < end)).all())


def _order(lower: States) -> int:
    """How often a state backs off at most until it is at the root; one more than _MAX_ORDER where it is more often than that."""
    states, order = lower, 1
    while order <= _MAX_ORDER and states.any():
        states, order = lower[states], order + 1
    return order


def _integers(array: NDArray[np.generic]) -> States:
    _check(array.ndim == 1 and array.dtype.kind in "iu", "an array that counts holds no whole numbers")
    return array.astype(np.int64)


def _scores(array: NDArray[np.generic], length: int) -> Floats:
    _check(array.shape == (length,) and array.dtype.kind == "f", "its scores are not as many as what they belong to")
    scores = array.astype(np.float32)
    _check(bool(((scores <= 0) & (scores >= -_MAX_NATS)).all()), f"a score is not from -{_MAX_NATS:g} to 0")
    return scores
