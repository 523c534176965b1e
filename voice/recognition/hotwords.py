"""Hotwords as an automaton over the model's tokens.

Words -> ``HotwordGraph``, an Aho-Corasick automaton: every state stands for the longest beginning of a hotword that the tokens so
far end with. A token that goes on in a word earns its boost at once; a match that breaks gives it back, a word that was
completed keeps it. The searches of many utterances share a graph.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import structlog

from voice.transcript import CONTINUES

_NATS_PER_WEIGHT = 0.15
"""Log posterior that one unit of weight is worth for each token of the word: 20 lets a token be e^3 times less likely than another.
bench/README.md has what others bring."""
_NUM_NAMED = 20
"""Words without tokens that the log names."""
ROOT = 0

log = structlog.get_logger()


@dataclass(slots=True)
class _State:
    next: dict[int, int] = field(default_factory=dict)
    fail: int = ROOT
    value: float = 0.0
    """Boost earned on the way here, from the first token of the match."""
    keep: float = 0.0
    """What of it stays when the match breaks here: that of words completed on the way."""


class HotwordGraph:
    """The automaton. State ``ROOT`` stands for no match."""

    def __init__(self, words: Iterable[tuple[Sequence[int], float]] = ()) -> None:
        """Take words as token ids (at least one), each with its boost in nats per token; a word may come twice."""
        self._states = [_State()]
        complete: set[int] = set()
        for token_ids, boost in words:
            state = ROOT
            for depth, token_id in enumerate(token_ids, 1):
                state = self._states[state].next.setdefault(token_id, len(self._states))
                if state == len(self._states):
                    self._states.append(_State())
                self._states[state].value = max(self._states[state].value, depth * boost)
            complete.add(state)
        self._link(complete)
        self._leads: dict[tuple[int, int], float] = {}

    @property
    def is_empty(self) -> bool:
        """Whether there is no word."""
        return len(self._states) == 1

    def step(self, state: int, token_id: int) -> tuple[int, float]:
        """The state after a token, and what is earned (or given back) by going there, in nats."""
        node = self._states[state]
        following = node.next.get(token_id)
        if following is not None:
            return following, self._states[following].value - node.value
        broken = node.keep - node.value
        while state != ROOT:
            state = self._states[state].fail
            following = self._states[state].next.get(token_id)
            if following is not None:
                return following, broken + self._states[following].value
        return ROOT, broken

    def continuations(self, state: int) -> Mapping[int, int]:
        """Token id -> state, of the tokens that go on in the match; nothing for the root, where every word would."""
        return MappingProxyType({}) if state == ROOT else MappingProxyType(self._states[state].next)

    def unsettled(self, state: int) -> float:
        """What would be given back, were the match to break here, in nats."""
        node = self._states[state]
        return node.value - node.keep

    def potential(self, state: int) -> float:
        """The most that going on from here may earn over going on from the root with the same tokens, in nats."""
        return self._lead(state, ROOT)

    def _lead(self, state: int, behind: int) -> float:
        """The same over going on from ``behind``, a match of fewer of the last tokens: they meet after as many as a word has."""
        if state == behind:
            return 0.0
        lead = self._leads.get((state, behind))
        if lead is None:
            lead = self.unsettled(behind) - self.unsettled(state)  # both break
            for token_id in self._ways_on(state):
                (ahead, earned), (follower, earned_behind) = self.step(state, token_id), self.step(behind, token_id)
                lead = max(lead, earned - earned_behind + self._lead(ahead, follower))
            self._leads[state, behind] = lead
        return lead

    def _ways_on(self, state: int) -> set[int]:
        """The tokens that go on in this match or in one that began inside it."""
        token_ids: set[int] = set()
        while state != ROOT:
            token_ids |= self._states[state].next.keys()
            state = self._states[state].fail
        return token_ids

    def _link(self, complete: set[int]) -> None:
        """Fail links and what is kept, breadth first."""
        queue: deque[int] = deque([ROOT])
        while queue:
            state = queue.popleft()
            node = self._states[state]
            for token_id, child_index in node.next.items():
                child = self._states[child_index]
                fallback = node.fail
                while fallback != ROOT and token_id not in self._states[fallback].next:
                    fallback = self._states[fallback].fail
                child.fail = self._states[fallback].next.get(token_id, ROOT) if state != ROOT else ROOT
                behind = self._states[child.fail]
                child.value = max(child.value, node.keep + behind.value)  # a longer word takes nothing back from shorter ones
                child.keep = child.value if child_index in complete else node.keep + behind.keep
                queue.append(child_index)


class HotwordGraphs:
    """The graph of the words as they stand at the start of an utterance; built again only when they changed."""

    def __init__(self, words: Callable[[], tuple[tuple[str, float], ...]], tokens: Sequence[str]) -> None:
        """Take a source of words with their weights, which gives the same object until they change, and the vocabulary."""
        self._words = words
        self._token_ids = {token: index for index, token in enumerate(tokens)}
        self._current: tuple[tuple[str, float], ...] = ()
        self._graph = HotwordGraph()

    def __call__(self) -> HotwordGraph:
        """The graph for the next utterance."""
        words = self._words()
        if words is not self._current:
            spelt = [(spell(word, self._token_ids), weight) for word, weight in words]
            self._graph = HotwordGraph((ids, weight * _NATS_PER_WEIGHT) for ids, weight in spelt if ids is not None)
            self._current = words
            unknown = [word for (word, _), (ids, _) in zip(words, spelt, strict=True) if ids is None]
            if unknown:
                reason = "they hold characters that the model does not know"
                log.warning("hotwords_without_tokens", num_words=len(unknown), words=unknown[:_NUM_NAMED], reason=reason)
        return self._graph


def spell(word: str, token_ids: Mapping[str, int]) -> tuple[int, ...] | None:
    """A word in the model's tokens: Chinese by the character, Latin by the longest pieces; None where a character has no token.

    Args:
        word: as a user writes it; blanks separate Latin words.
        token_ids: the vocabulary; pieces that go on end in ``@@``.
    """
    ids: list[int] = []
    for part in _parts(word):
        if part in token_ids:
            ids.append(token_ids[part])
            continue
        pieces = _pieces(part, token_ids) if part.isascii() else None
        if pieces is None:
            return None
        ids += pieces
    return tuple(ids) or None


def _parts(word: str) -> list[str]:
    """Runs of ASCII characters in lower case, other characters one by one."""
    parts: list[str] = []
    for run in word.lower().split():
        start = 0
        for end, character in enumerate(run):
            if not character.isascii():
                parts += [run[start:end], character] if end > start else [character]
                start = end + 1
        parts += [run[start:]] if start < len(run) else []
    return parts


def _pieces(word: str, token_ids: Mapping[str, int]) -> list[int] | None:
    """The longest pieces from the left, all but the last ending in ``@@``."""
    ids: list[int] = []
    while word not in token_ids:
        length = next((n for n in range(len(word) - 1, 0, -1) if word[:n] + CONTINUES in token_ids), 0)
        if length == 0:
            return None
        ids.append(token_ids[word[:length] + CONTINUES])
        word = word[length:]
    return [*ids, token_ids[word]]
