"""Whether a text begins with a wake word; and how the decoder is made to prefer the words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st

from voice.errors import ConfigInvalid
from voice.hotword_list import Hotword, HotwordList
from voice.wake_bias import WithWakeWords, spellings
from voice.wake_words import Match, NoMatch, WakeWords

ABSENT, UNDECIDED = NoMatch.ABSENT, NoMatch.UNDECIDED
WORDS = WakeWords(["小智小智", "你好小美"], tones=False)


def word_in(words: WakeWords, text: str) -> str | None:
    found = words.look(text, ended=True)
    return found.word if isinstance(found, Match) else None


def rest(words: WakeWords, text: str) -> str:
    found = words.look(text, ended=True)
    assert isinstance(found, Match)
    return text[words.cut(text, found.end_unit) :]


# --- what counts as the word ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("小智小智", "小智小智"),
        ("小智小智打开灯", "小智小智"),
        ("小志小治打开灯", "小智小智"),  # the same sound
        ("小之小纸打开灯", "小智小智"),  # other tones
        ("晓智校址", "小智小智"),
        ("你好，小美！", "你好小美"),
        ("小智小", None),
        ("小智打开灯", None),
        ("打开小智小智", None),
        ("小市小市", None),
        ("以小智小智", "小智小智"),
        ("小小智小智", "小智小智"),
        ("3小智小智", "小智小智"),
        ("以以小智小智", None),
        ("", None),
        ("。", None),
    ],
)
def test_a_word_is_found_by_its_sound_at_the_beginning(text: str, found: str | None) -> None:
    assert word_in(WORDS, text) == found


def test_with_tones_a_syllable_of_another_tone_is_another_word() -> None:
    words = WakeWords(["小智小智"], tones=True)
    assert word_in(words, "小志小治打开灯") == "小智小智"
    assert word_in(words, "小纸小纸打开灯") is None


def test_a_character_with_several_readings_has_each_of_them() -> None:
    """Those of the word all count, of the text the usual one, and a character is like itself."""
    assert word_in(WakeWords(["音乐"], tones=True), "阴月") == "音乐"
    assert word_in(WakeWords(["音乐"], tones=True), "音乐") == "音乐"
    assert word_in(WakeWords(["语音"], tones=False), "语言") is None
    assert word_in(WakeWords(["说着"], tones=False), "说桌") == "说着"
    assert word_in(WakeWords(["说桌"], tones=False), "说着") is None


@pytest.mark.parametrize("word", ["小美", "小小美"])
def test_before_a_short_word_nothing_may_stand(word: str) -> None:
    words = WakeWords([word], tones=False)
    assert word_in(words, "以" + word) is None
    assert words.look("以", ended=False) is ABSENT


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("小智小智打开灯", "打开灯"),
        ("小智小智，打开灯。", "打开灯。"),
        ("小智，小智。打开灯", "打开灯"),
        ("小智小智。", ""),
        ("小智小智", ""),
        ("嗯小智小智打开灯", "打开灯"),
        ("那个，小智小智打开灯", "打开灯"),
        ("嗯啊小智小智打开灯", "打开灯"),
    ],
)
def test_the_word_its_marks_and_the_fillers_before_it_are_cut_away(text: str, left: str) -> None:
    assert rest(WORDS, text) == left


def test_three_fillers_are_speech() -> None:
    assert word_in(WORDS, "嗯嗯嗯小智小智") is None


def test_the_place_of_the_word_is_without_the_fillers() -> None:
    found = WORDS.look("那个，小智小智打开", ended=True)
    assert isinstance(found, Match)
    assert (found.first_unit, found.end_unit) == (2, 6)
    assert WORDS.span("那个，小智小智打开", found) == (3, 7)


def test_of_two_words_the_longer_one_counts() -> None:
    words = WakeWords(["小智", "小智小智"], tones=False)
    assert rest(words, "小智小智打开灯") == "打开灯"
    assert rest(words, "小智打开灯") == "打开灯"
    assert words.look("小智", ended=False) is UNDECIDED
    assert isinstance(words.look("小智打", ended=False), Match)


@pytest.mark.parametrize(
    ("text", "left"), [("hey Siri 打开", "打开"), ("Hey siri", ""), ("嗯 hey siri打开", "打开"), ("HEY SIRI open it", "open it")]
)
def test_latin_words_are_compared_by_their_letters(text: str, left: str) -> None:
    assert rest(WakeWords(["hey siri"], tones=False), text) == left


def test_a_latin_word_ends_where_its_letters_end() -> None:
    words = WakeWords(["hi"], tones=False)
    assert word_in(words, "history") is None
    assert words.look("hi", ended=False) is UNDECIDED
    assert isinstance(words.look("hi 打", ended=False), Match)


# --- while the text grows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [("", UNDECIDED), ("小", UNDECIDED), ("小智小", UNDECIDED), ("小区", ABSENT), ("打", UNDECIDED), ("打开", ABSENT), ("打小", UNDECIDED),
     ("打小区", ABSENT), ("嗯", UNDECIDED), ("那", UNDECIDED), ("那里", ABSENT), ("嗯嗯", UNDECIDED), ("嗯嗯嗯", ABSENT),
     ("嗯小区", ABSENT), ("你", UNDECIDED), ("9", UNDECIDED), ("9度", ABSENT)],
)  # fmt: skip
def test_the_beginning_of_a_word_is_undecided(text: str, answer: NoMatch) -> None:
    assert WORDS.look(text, ended=False) is answer


LETTERS = "小智好你美嗯那个志9a bx'，。"
SOME = WakeWords(["小智小智", "小智", "你好小美", "a b小", "ab"], tones=False)


@given(st.text(LETTERS, max_size=12), st.integers(0, 12))
@example("小智小智", 2)
@example("嗯那个小智", 2)
@example("abx小", 2)
def test_what_is_decided_on_a_beginning_holds_for_the_whole(text: str, length: int) -> None:
    before, after = SOME.look(text[:length], ended=False), SOME.look(text, ended=True)
    if before is not UNDECIDED:
        assert before == after
    if isinstance(before, Match):
        begun = text[:length]
        assert SOME.span(text, before) == SOME.span(begun, before)
        assert SOME.cut(text, before.end_unit) >= SOME.span(text, before)[1]


@given(st.text(max_size=40))
def test_no_text_is_too_strange(text: str) -> None:
    for ended in (False, True):
        found = SOME.look(text, ended=ended)
        if isinstance(found, Match):
            start, end = SOME.span(text, found)
            assert 0 <= start < end <= SOME.cut(text, found.end_unit) <= len(text)


def test_a_huge_text_costs_no_more_than_its_length() -> None:
    assert WORDS.look("打" * 100_000, ended=False) is ABSENT
    assert WORDS.look("小智" * 100_000, ended=True) == Match("小智小智", 0, 4)


# --- the decoder's hotwords -----------------------------------------------------------------------------------------------


def written(word: str, vocabulary: str, *, tones: bool = False) -> list[str]:
    return [hotword.text for hotword in spellings([word], list(vocabulary), tones=tones, weight=20)]


def test_a_word_that_the_model_can_write_is_one_hotword() -> None:
    assert spellings(["小美"], list("小美梅大"), tones=False, weight=30) == [Hotword("小美", 30)]


def test_a_character_that_the_model_lacks_is_written_by_those_that_sound_like_it_the_same_tone_first() -> None:
    with structlog.testing.capture_logs() as logs:
        assert written("小智", "小纸大志") == ["小志", "小纸"]
    assert [entry["event"] for entry in logs] == ["wake_word_in_other_characters"]
    assert written("小智", "小纸大志", tones=True) == ["小志"]
    assert written("小智", "小识志") == ["小志"]  # 识 may be read as 志, and usually is not: the gate would not take it


def test_the_number_of_spellings_is_bounded() -> None:
    alike = "志治制置致纸止指只值职直执之支"
    assert len(written("智智智", alike)) == 64
    assert len(written("智智智智智智智智智智", alike)) == 1


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("小娅", "wake.words: '小娅': the model knows no character that sounds like 娅"),
        ("hey小", "wake.words: 'hey小': the model cannot write its Latin letters"),
    ],
)
def test_a_word_that_the_model_cannot_write_at_all_is_refused(word: str, problem: str) -> None:
    with pytest.raises(ConfigInvalid) as refused:
        written(word, "小志美")
    assert refused.value.problems == [problem]


def test_a_latin_word_is_written_in_the_pieces_that_the_model_has() -> None:
    assert [hotword.text for hotword in spellings(["hey 小"], ["he@@", "y", "小"], tones=False, weight=1)] == ["hey 小"]


def test_the_users_words_stay_live_and_have_their_own_weights(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("张三\n小美 40\n", encoding="utf-8")
    words = WithWakeWords(HotwordList(str(path)).current, [Hotword("小美", 20), Hotword("小志", 20)])
    first = words.current()
    assert first == (("张三", 20), ("小美", 40), ("小志", 20))
    assert words.current() is first
    path.write_text("李四\n", encoding="utf-8")
    os.utime(path, ns=(1, 1))
    assert words.current() == (("李四", 20), ("小美", 20), ("小志", 20))
