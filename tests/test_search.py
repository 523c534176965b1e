"""The search over scripted posteriors: which tokens it tries, how many paths it keeps, when it decides, and what a preview leaves alone."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from fakes import bigrams

from voice.models.language_model import LanguageModel
from voice.recognition.engine import Vocabulary
from voice.recognition.hotwords import ROOT, HotwordGraph
from voice.recognition.posteriors import TokenPosteriors
from voice.recognition.search import TokenSearch
from voice.transcript import Token

NUM_TOKENS = 60
VOCABULARY = Vocabulary(("_", *(chr(0x4E00 + token_id) for token_id in range(1, NUM_TOKENS))), frozenset({0}))
BLANK, A, B, C, D, E = range(6)
FRAME = 960
BOOST = 2.0
"""Of each token of a hotword here, in nats."""


def firing(scores: dict[int, float], at: int = 0) -> TokenPosteriors:
    """One firing with these log posteriors, up to a constant; every other token is all but impossible."""
    row = np.full(NUM_TOKENS, -40.0, np.float32)
    row[list(scores)] = list(scores.values())
    return TokenPosteriors(row - np.log(np.exp(row).sum()), at * FRAME, (at + 1) * FRAME)


def ids(tokens: list[Token]) -> list[int]:
    return [VOCABULARY.tokens.index(token.text) for token in tokens]


def search_for(*words: tuple[int, ...]) -> TokenSearch:
    return TokenSearch(VOCABULARY, HotwordGraph([(word, BOOST) for word in words]))


def searched(search: TokenSearch, *firings: TokenPosteriors) -> list[int]:
    """The tokens of all firings, handed over one by one."""
    decided = [token for each in firings for token in search.advance([each])]
    return ids(decided + search.finish())


@pytest.mark.parametrize("words", [(), ((D, E),)], ids=["no hotwords", "a hotword"])
def test_a_token_has_its_firings_times_and_its_posterior(words: tuple[tuple[int, ...], ...]) -> None:
    search = search_for(*words)
    decided = search.advance([firing({A: 0.0, B: -1.0}, at=3), firing({BLANK: 0.0, C: -1.0}, at=4), firing({C: 0.0, A: -2.0}, at=7)])
    assert decided == [
        Token(VOCABULARY.tokens[A], 3 * FRAME, 4 * FRAME, pytest.approx(1 / (1 + np.exp(-1)))),
        Token(VOCABULARY.tokens[C], 7 * FRAME, 8 * FRAME, pytest.approx(1 / (1 + np.exp(-2)))),
    ]


def test_a_posterior_is_never_more_than_one() -> None:
    """Rounding can lift a logarithm above 0."""
    row = np.full(NUM_TOKENS, -np.inf, np.float32)
    row[A] = 1e-6
    (token,) = search_for().advance([TokenPosteriors(row, 0, FRAME)])
    assert token.confidence == 1.0


@pytest.mark.parametrize("num_words", [2, 15])
def test_every_hotword_that_has_begun_may_still_win(num_words: int) -> None:
    """Each word's first token is a little less likely than the one before it; the last word is the one that is completed."""
    firsts, seconds = range(10, 10 + num_words), range(30, 30 + num_words)
    search = search_for(*zip(firsts, seconds, strict=True))
    begun = firing({A: 0.0, **{first: -1.0 - 0.1 * number for number, first in enumerate(firsts)}})
    assert searched(search, begun, firing({seconds[-1]: 0.0, B: -1.0})) == [firsts[-1], seconds[-1]]


@pytest.mark.parametrize(("rank", "found"), [(1, True), (31, True), (32, False)])
def test_of_more_than_32_paths_the_best_are_kept(rank: int, *, found: bool) -> None:
    """Forty hotwords begin with A; their second tokens are the less likely the later they come, and one of the words is completed."""
    words = {place: (A, 9 + place, B if place == rank else C) for place in range(1, 41)}
    search = search_for(*words.values())
    second = firing({D: 0.0, **{token_id: -1.0 - 0.01 * place for place, (_, token_id, _) in words.items()}})
    assert searched(search, firing({A: 0.0}), second, firing({B: 0.0})) == ([A, 9 + rank, B] if found else [A, D, B])


def test_of_more_than_32_paths_those_that_may_earn_most_are_kept() -> None:
    """Forty words of three tokens begin with A; one of five tokens, too, and its second one is less likely than all of theirs."""
    search = search_for(*((A, 9 + place, B) for place in range(1, 41)), (A, 55, C, D, E))
    second = firing({55: -1.5, **{9 + place: -1.0 - 0.01 * place for place in range(1, 41)}, B: 0.0})
    assert searched(search, firing({A: 0.0}), second, *(firing({token_id: 0.0}) for token_id in (C, D, E))) == [A, 55, C, D, E]


@pytest.mark.parametrize(("rank", "found"), [(16, True), (17, False)])
def test_the_sixteen_likeliest_tokens_may_begin_a_hotword(rank: int, *, found: bool) -> None:
    likeliest = range(10, 40)
    search = search_for((likeliest[rank - 1], A))
    begun = firing({token_id: -0.01 * place for place, token_id in enumerate(likeliest)})
    assert searched(search, begun, firing({A: 0.0})) == [likeliest[rank - 1] if found else likeliest[0], A]


def test_a_token_that_continues_a_hotword_is_tried_however_many_are_likelier() -> None:
    search = search_for((A, B))
    following = firing({**{token_id: -0.01 * token_id for token_id in range(10, 40)}, B: -1.0})
    assert searched(search, firing({A: 0.0, C: -1.0}), following) == [A, B]


def test_a_vocabulary_of_fewer_than_sixteen_tokens_is_searched_whole() -> None:
    vocabulary = Vocabulary(tuple("_一二三"), frozenset({0}))
    search = TokenSearch(vocabulary, HotwordGraph([((1, 2), BOOST)]))
    rows = [np.log(np.array(row, np.float32)) for row in ([0.01, 0.2, 0.09, 0.7], [0.01, 0.09, 0.2, 0.7])]
    decided = search.advance([TokenPosteriors(row, 0, FRAME) for row in rows])
    assert [token.text for token in decided + search.finish()] == ["一", "二"]


def test_of_two_ways_into_one_state_the_better_one_stays() -> None:
    """Both A and B may stand before the hotword's first token; the likelier one does, though it was tried first."""
    for likelier, other in ((A, B), (B, A)):
        search = search_for((C, D), (A, E), (B, E))
        firings = firing({likelier: 0.0, other: -0.5}), firing({C: 0.0}), firing({D: 0.0})
        assert searched(search, *firings) == [likelier, C, D]


def test_tokens_are_decided_as_soon_as_no_other_path_can_win_and_in_order() -> None:
    search = search_for((A, B, C))
    assert ids(search.advance([firing({D: 0.0, A: -1.0})])) == []
    assert ids(search.advance([firing({E: 0.0, B: -20.0}, at=1)])) == [D, E]
    assert ids(search.advance([firing({A: 0.0}, at=2)])) == [A]
    assert search.finish() == []


def test_what_all_paths_agree_on_is_decided_before_what_they_differ_on() -> None:
    search = search_for((A, B))
    (first,) = search.advance([firing({C: 0.0}, at=5)])
    assert (first.start_sample, first.end_sample) == (5 * FRAME, 6 * FRAME)
    assert search.advance([firing({D: 0.0, A: -1.0}, at=6)]) == []
    decided = search.advance([firing({B: 0.0, E: -1.0}, at=7)])
    assert ids(decided) == [A, B]
    assert [token.start_sample for token in decided] == [6 * FRAME, 7 * FRAME]


@pytest.mark.parametrize("pieces", [(1, 1, 1, 1), (2, 2), (1, 3), (4,)])
def test_firings_may_be_handed_over_in_any_pieces(pieces: tuple[int, ...]) -> None:
    firings = iter([firing({D: 0.0, A: -1.0}), firing({B: 0.0}), firing({E: 0.0, A: -1.0}), firing({E: 0.0, B: -3.5})])
    search = search_for((A, B))
    decided = [token for count in pieces for token in search.advance([next(firings) for _ in range(count)])]
    assert ids(decided + search.finish()) == [A, B, E, E]


# --- at the end ---------------------------------------------------------------------------------------------------------


def test_a_hotword_that_is_not_complete_earns_nothing_at_the_end() -> None:
    search = search_for((A, B, C))
    assert searched(search, firing({D: 0.0, A: -1.0}), firing({E: 0.0, B: -1.0})) == [D, E]


def test_the_end_decides_everything_once() -> None:
    search = search_for((A, B))
    assert search.advance([firing({D: 0.0, A: -1.0})]) == []
    assert ids(search.finish()) == [D]
    assert search.finish() == []


def test_a_complete_hotword_wins_by_what_it_earned_and_no_more() -> None:
    """Two tokens of 2 nats each: 3.9 nats behind it wins, 4.1 nats behind it does not."""
    for behind, expected in ((3.9, [A, B]), (4.1, [D, B])):
        assert searched(search_for((A, B)), firing({D: 0.0, A: -behind}), firing({B: 0.0})) == expected


def test_scores_are_compared_over_all_open_firings() -> None:
    """The word is 1 nat behind after each of its three firings: 3 in all, and is worth 6."""
    firings = [firing({D: 0.0, token_id: -1.0}) for token_id in (A, B, C)]
    assert searched(search_for((A, B, C)), *firings) == [A, B, C]
    firings = [firing({D: 0.0, token_id: -2.1}) for token_id in (A, B, C)]
    assert searched(search_for((A, B, C)), *firings) == [D, D, D]


# --- previews and copies ------------------------------------------------------------------------------------------------


def test_a_preview_shows_what_is_open_and_what_is_ahead_and_changes_nothing() -> None:
    search = search_for((A, B))
    assert search.advance([firing({D: 0.0, A: -1.0})]) == []
    for _ in range(2):
        assert ids(search.preview()) == [D]
        assert ids(search.preview([firing({B: 0.0})])) == [A, B]
        assert ids(search.preview([firing({C: 0.0})])) == [D, C]
        assert ids(search.preview([firing({BLANK: 0.0})])) == [D]
    assert ids(search.advance([firing({B: 0.0})])) == [A, B]


def test_a_preview_without_hotwords_shows_what_is_ahead_alone() -> None:
    search = search_for()
    assert ids(search.advance([firing({A: 0.0})])) == [A]
    assert ids(search.preview([firing({B: 0.0}), firing({C: 0.0})])) == [B, C]
    assert search.preview() == []


def test_a_copy_goes_on_independently() -> None:
    search = search_for((A, B))
    search.advance([firing({D: 0.0, A: -1.0})])
    copied = search.copy()
    assert ids(copied.advance([firing({C: 0.0})])) == [D, C]
    assert ids(search.advance([firing({B: 0.0})])) == [A, B]
    copied = search.copy()
    search.advance([firing({D: 0.0, A: -1.0})])
    assert copied.finish() == []


# --- with a language model ----------------------------------------------------------------------------------------------

LETTER = {name: VOCABULARY.tokens[token_id] for name, token_id in zip("ABCDE", (A, B, C, D, E), strict=True)}


def speaking(pairs: dict[str, float], *words: tuple[int, ...], alone: float = -4.0, before: str | None = None) -> TokenSearch:
    """A search whose language model knows these pairs of tokens, ``"AB"``; ``"^A"`` for A at the start."""
    known = {(LETTER.get(before, before), LETTER[after]): score for (before, after), score in pairs.items()}
    language = bigrams(VOCABULARY.tokens, known, alone=alone)
    return TokenSearch(
        VOCABULARY,
        HotwordGraph([(word, BOOST) for word in words]),
        language,
        before=None if before is None else [LETTER[letter] for letter in before],
    )


def test_of_two_tokens_that_sound_alike_the_one_that_follows_from_the_token_before_is_chosen() -> None:
    unsure = firing({B: -0.5, C: -1.0})
    assert searched(speaking({}), firing({A: 0.0}), unsure) == [A, B]
    assert searched(speaking({"AC": -1.0}), firing({A: 0.0}), unsure) == [A, C]
    assert searched(speaking({"AC": -1.0}), firing({D: 0.0}), unsure) == [D, B]


def test_a_token_is_chosen_by_the_token_after_it_too() -> None:
    search = speaking({"CD": -1.0})
    assert ids(search.advance([firing({B: -0.5, C: -1.0})])) == [], "the next token may tell"
    assert ids(search.preview()) == [B]
    assert ids(search.preview([firing({D: 0.0})])) == [C, D]
    assert searched(search, firing({D: 0.0})) == [C, D]


@pytest.mark.parametrize(("before", "expected"), [(None, C), ("", B), ("A", B), ("AE", D), ("EA", B)])
def test_what_was_before_the_first_firing_counts_and_so_does_that_nothing_was(before: str | None, expected: int) -> None:
    search = speaking({"^C": -1.0, "ED": -1.0}, before=before)
    assert searched(search, firing({B: -0.5, C: -1.0, D: -1.0})) == [expected]


@pytest.mark.parametrize(("weight", "behind", "found"), [(1.0, 9.9, True), (1.0, 10.1, False), (0.5, 4.9, True), (0.5, 5.1, False)])
def test_a_token_that_is_not_far_behind_is_followed(weight: float, behind: float, *, found: bool) -> None:
    """What comes next would make up for it. How far depends on the weight of the language model: it may be worth so much."""
    language = bigrams(VOCABULARY.tokens, {(LETTER["C"], LETTER["D"]): -0.1}, alone=-30.0, weight=weight)
    search = TokenSearch(VOCABULARY, HotwordGraph(), language)
    assert ids(search.advance([firing({B: 0.0, C: -behind})])) == ([] if found else [B])
    assert searched(search, firing({D: 0.0})) == ([C, D] if found else [D])


def test_the_language_model_changes_no_confidence() -> None:
    (_, second) = (search := speaking({"AC": -0.5})).advance([firing({A: 0.0}), firing({B: -0.5, C: -1.0})]) + search.finish()
    assert second.text == VOCABULARY.tokens[C]
    assert second.confidence == pytest.approx(np.exp(-1.0) / (np.exp(-0.5) + np.exp(-1.0)))


def test_a_hotword_wins_over_the_language_by_its_boost() -> None:
    """It is 3 nats behind for the language and 0.5 for the sound, and earns 4."""
    firings = firing({A: 0.0, D: -0.25}), firing({B: 0.0, E: -0.25})
    known = {"^A": -1.0, "AB": -1.0, "^D": -2.0, "DE": -3.0}
    assert searched(speaking(known), *firings) == [A, B]
    assert searched(speaking(known, (D, E)), *firings) == [D, E]


def test_the_search_finds_the_best_of_all_paths() -> None:
    """Against every sequence of tokens there is; sounds, language and hotwords are drawn at random, none far behind."""
    rng = random.Random(3)
    for _ in range(60):
        pairs = {before + after: rng.uniform(-2.5, -0.2) for before in "^ABC" for after in "ABC" if rng.random() < 0.5}
        word = tuple(rng.choice((A, B, C)) for _ in range(2))
        firings = [firing({token_id: rng.uniform(-0.8, 0.0) for token_id in (A, B, C)}) for _ in range(4)]
        known = {(LETTER.get(before, before), LETTER[after]): score for (before, after), score in pairs.items()}
        language, graph = bigrams(VOCABULARY.tokens, known, alone=-2.0), HotwordGraph([(word, 0.5)])

        def total(path: tuple[int, ...], firings: list[TokenPosteriors], language: LanguageModel, graph: HotwordGraph) -> float:
            context, state, score = language.start, ROOT, 0.0
            for token_id, each in zip(path, firings, strict=True):
                added, following = language.step([context], [token_id])
                state, earned = graph.step(state, token_id)
                context, score = int(following[0]), score + float(each.log_posteriors[token_id]) + earned + float(added[0])
            return score - graph.unsettled(state)

        paths = itertools.product((A, B, C), repeat=4)
        best = max(paths, key=lambda path: total(path, firings, language, graph))
        assert searched(TokenSearch(VOCABULARY, graph, language), *firings) == list(best)


def test_what_a_hotword_may_change_is_not_firm_and_what_the_language_may_change_is() -> None:
    unsure = firing({B: -0.5, C: -1.0})
    search = speaking({"CD": -1.0})
    search.advance([unsure])
    assert (search.num_firm(), ids(search.finish())) == (1, [B])
    search = speaking({"CD": -1.0}, (C, E))
    search.advance([firing({D: 0.0}), unsure])
    assert search.num_firm() == 0
    search = speaking({"CD": -1.0}, (C, E))
    search.advance([firing({B: -0.4, C: -0.5})])
    assert search.num_firm() == 0, "the word's path is ahead as long as it may be completed"
    assert ids(search.finish()) == [B], "and does not count at the end"
    search = search_for()
    search.advance([unsure])
    assert search.num_firm() == 0, "it is decided already"
