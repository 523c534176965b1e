"""Sliced mode: where a window's tokens go on after the committed ones."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voice.audio import ms_to_samples
from voice.recognition.alignment import continuation
from voice.transcript import Token

TOKEN_MS = 240  # as fast as Mandarin is spoken


def tokens_at(text: str, *ends_ms: int) -> list[Token]:
    return [
        Token(character, ms_to_samples(max(end - TOKEN_MS, 0)), ms_to_samples(end), 0.9)
        for character, end in zip(text, ends_ms, strict=True)
    ]


def spoken(text: str, from_ms: int = 0) -> list[Token]:
    """``text`` at an even pace, its first token ending one token after ``from_ms``."""
    return tokens_at(text, *(from_ms + TOKEN_MS * (index + 1) for index in range(len(text))))


def appended(committed: Sequence[Token], window: Sequence[Token], cut_until: int = 0) -> str:
    return "".join(token.text for token in window[continuation(committed, window, cut_until) :])


def test_tokens_behind_the_committed_ones_are_new():
    assert appended(spoken("打开客厅"), spoken("打开客厅的灯")) == "的灯"


def test_a_window_that_says_nothing_new_adds_nothing():
    assert continuation(spoken("打开"), spoken("打开"), 0) == 2


def test_without_committed_tokens_the_whole_window_is_new():
    assert continuation([], spoken("打开"), 0) == 0


def test_an_empty_window_adds_nothing():
    assert continuation(spoken("打开"), [], 0) == 0
    assert continuation([], [], 0) == 0


@pytest.mark.parametrize("num_committed", [1, 2, 3])
@pytest.mark.parametrize("num_window", [3, 4, 5])
def test_of_repeated_characters_time_says_which_is_which(num_committed: int, num_window: int):
    """``一一一``: the text alone would fit anywhere."""
    committed, window = spoken("一" * num_committed), spoken("一" * num_window)
    assert continuation(committed, window, 0) == num_committed


@pytest.mark.parametrize("num_before", [1, 2])
def test_of_repeated_characters_a_later_window_hears_the_later_ones(num_before: int):
    """The window begins behind the first ones and hears one that is new; by text alone it would be taken for an old one."""
    committed, window = spoken("一" * 4), spoken("一" * (5 - num_before), from_ms=num_before * TOKEN_MS)
    assert continuation(committed, window, 0) == len(window) - 1


def test_a_repeated_character_spoken_later_is_not_swallowed():
    """Two tokens, one committed: the second, half a second on, is new though it reads the same."""
    assert continuation(tokens_at("一", 240), tokens_at("一一", 240, 240 + 600), 0) == 1


def test_the_same_character_far_away_in_time_is_another_token():
    committed, window = tokens_at("一", 240), tokens_at("一", 240 + 1600)
    assert continuation(committed, window, 0) == 0


def test_a_committed_last_token_heard_differently_is_not_repeated():
    """Later context changes 风 to 灯; what is committed stays, and the corrected token is not appended behind it."""
    assert appended(spoken("客厅的风"), spoken("客厅的灯打开")) == "打开"


def test_a_substitution_in_the_middle_does_not_shift_the_end():
    assert appended(spoken("打开客厅"), spoken("打看客厅的灯")) == "的灯"


def test_small_shifts_of_the_peaks_do_not_matter():
    committed = tokens_at("打开客厅", 240, 480, 720, 960)
    window = tokens_at("打开客厅的灯", 300, 420, 780, 900, 1200, 1440)
    assert appended(committed, window) == "的灯"


@pytest.mark.parametrize("pause_ms", [0, 300, 600, 900])
def test_a_last_token_that_a_later_window_lengthens_by_a_pause_is_not_doubled(pause_ms: int):
    """床 lasts until the end of the pause once there is one."""
    committed = spoken("叫我起床")
    longer = Token("床", committed[-1].start_sample, committed[-1].end_sample + ms_to_samples(pause_ms), 0.9)
    behind = spoken("打开", from_ms=4 * TOKEN_MS + pause_ms)
    assert appended(committed, [*committed[:-1], longer, *behind]) == "打开"
    assert appended(committed, [*committed[:-1], longer]) == ""


def test_a_first_token_that_a_later_window_lengthens_by_the_pause_before_it_is_not_doubled():
    committed = tokens_at("我打开", 240, 1_200, 1_440)
    window = [committed[0], Token("打", ms_to_samples(260), ms_to_samples(1_200), 0.9), *tokens_at("开客", 1_440, 1_680)]
    assert appended(committed, window) == "客"


def test_a_token_misheard_at_the_cut_start_costs_little():
    """The window begins inside 打: the decoder made up 大 and 啊 there. What is new begins behind 厅 all the same."""
    committed = spoken("打开客厅")
    window = tokens_at("啊大开客厅的灯", 120, 200, 480, 720, 960, 1200, 1440)
    assert appended(committed, window, cut_until=ms_to_samples(240)) == "的灯"


def test_tokens_made_up_at_the_cut_start_are_not_taken_for_the_committed_one():
    """Were they as dear as others, 啊 would pass for 开, and 开 would be said twice."""
    committed = tokens_at("开", 480)
    window = tokens_at("啊大开客", 120, 200, 480, 720)
    assert appended(committed, window, cut_until=ms_to_samples(240)) == "客"


def test_tokens_cut_off_at_the_windows_start_are_not_missed():
    committed = spoken("我要打开客厅")
    window = spoken("打开客厅的灯", from_ms=2 * TOKEN_MS)
    assert appended(committed, window, cut_until=ms_to_samples(3 * TOKEN_MS)) == "的灯"


@given(st.text(alphabet="一二三打开", min_size=1, max_size=12), st.data())
def test_a_window_heard_alike_goes_on_exactly_behind_the_committed_tokens(text: str, data: st.DataObject):
    split = data.draw(st.integers(min_value=0, max_value=len(text)))
    whole = spoken(text)
    assert continuation(whole[:split], whole, 0) == split
