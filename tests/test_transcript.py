"""Foundation: tokens become text as FunASR joins them, and the stable part of a text stays."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voice.models.torch_setup import prepare_imports
from voice.transcript import Hypothesis, Token, Transcript, join_tokens, mean_confidence

CHINESE = st.sampled_from("你好打开客厅的灯")
DIGITS = st.sampled_from("0123789")
LETTERS = st.sampled_from("abusBU")
WORDS = st.sampled_from(["hello", "wifi", "ok", "TV", "don't"])
PIECES = st.sampled_from(["he@@", "llo@@", "x@@", "app@@"])
SPECIAL = st.sampled_from(["<s>", "</s>", "<unk>", "<OOV>"])

BROKEN_WORD = st.builds(lambda pieces, rest: [*pieces, rest], st.lists(PIECES, min_size=1, max_size=3), LETTERS | WORDS)
TOKEN_GROUPS = st.lists(st.builds(lambda token: [token], CHINESE | DIGITS | LETTERS | WORDS | SPECIAL) | BROKEN_WORD, max_size=12)
TOKEN_LISTS = TOKEN_GROUPS.map(lambda groups: [token for group in groups for token in group])
ANY_TOKENS = st.lists(CHINESE | DIGITS | LETTERS | WORDS | PIECES | SPECIAL | st.just("<blank>"), max_size=8)


def funasr_text(tokens: list[str]) -> str:
    prepare_imports()
    from funasr.utils.postprocess_utils import sentence_postprocess

    return sentence_postprocess(tokens)[0]


def token(text: str, confidence: float = 1.0) -> Token:
    return Token(text, 0, 960, confidence)


def hypothesis_of(committed: list[str], provisional: list[str] = ()) -> Hypothesis:
    return Hypothesis(tuple(map(token, committed)), tuple(map(token, provisional)))


@settings(deadline=None, max_examples=500)
@given(TOKEN_LISTS)
def test_text_equals_funasr_where_pieces_are_completed(tokens: list[str]):
    assert join_tokens(tokens) == funasr_text(tokens)


def test_a_trailing_piece_is_kept_where_funasr_drops_it():
    assert join_tokens(["你", "好", "he@@"]) == "你好he"
    assert funasr_text(["你", "好", "he@@"]) == "你好"


def test_blank_is_dropped_where_funasr_prints_it():
    assert join_tokens(["你", "<blank>", "好"]) == "你好"
    assert "<blank>" in funasr_text(["你", "<blank>", "好"])


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ([], ""),
        (["<s>", "<blank>", "</s>", "<unk>"], ""),
        (["打", "开", "灯"], "打开灯"),
        (["hello", "world"], "hello world"),
        (["he@@", "llo", "world"], "hello world"),
        (["u", "s", "b"], "USB"),
        (["打", "开", "u", "s", "b", "口"], "打开USB口"),
        (["a", "hello"], "a hello"),
        (["u", "s", "b", "hello"], "USB hello"),
        (["u", "<unk>", "s"], "US"),
        (["2", "0", "度"], "20度"),
        (["he@@", "你"], "he你"),
    ],
)
def test_chinese_stands_close_words_apart_letters_as_abbreviation(tokens: list[str], text: str):
    assert join_tokens(tokens) == text


@settings(deadline=None, max_examples=500)
@given(ANY_TOKENS, ANY_TOKENS, ANY_TOKENS)
def test_stable_characters_never_change_when_tokens_follow(committed: list[str], later: list[str], provisional: list[str]):
    before = hypothesis_of(committed, provisional)
    after = hypothesis_of(committed + later)
    stable = before.stable_chars
    assert 0 <= stable <= len(before.text)
    assert after.text[:stable] == before.text[:stable]
    assert after.stable_chars >= stable


@pytest.mark.parametrize(
    ("committed", "stable"),
    [
        (["打", "开"], "打开"),
        (["打", "开", "w"], "打开"),
        (["打", "开", "wi@@"], "打开"),
        (["hello", "world"], "hello "),
        (["u", "s", "b", "口"], "USB口"),
        (["2", "0"], "20"),
        ([], ""),
    ],
)
def test_all_but_a_trailing_latin_run_is_stable(committed: list[str], stable: str):
    hypothesis = hypothesis_of(committed)
    assert hypothesis.text[: hypothesis.stable_chars] == stable
    assert hypothesis.stable_chars == len(stable)


def test_provisional_text_is_shown_after_the_committed_and_is_not_stable():
    hypothesis = hypothesis_of(["打", "开"], ["客", "厅"])
    assert hypothesis.text == "打开客厅"
    assert hypothesis.stable_chars == len("打开")
    assert [each.text for each in hypothesis.tokens] == ["打", "开", "客", "厅"]


def test_confidence_is_the_mean_posterior_of_committed_and_provisional_tokens():
    hypothesis = Hypothesis((token("打", 0.5), token("开", 1.0)), (token("灯", 0.0),))
    assert hypothesis.confidence == pytest.approx(0.5)
    assert mean_confidence(hypothesis.committed) == pytest.approx(0.75)
    transcript = Transcript("0" * 16, hypothesis.committed, 0, 960, "silence")
    assert transcript.confidence == pytest.approx(0.75)


def test_the_empty_hypothesis_has_no_text_and_no_certainty():
    empty = Hypothesis()
    assert (empty.text, empty.confidence, empty.stable_chars, empty.tokens) == ("", 0.0, 0, ())
