"""Hotwords: the list, the automaton, and the search that they steer."""

from __future__ import annotations

import itertools
import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import structlog
from harness import in_time
from hypothesis import example, given
from hypothesis import strategies as st

from voice.errors import ConfigInvalid, describe
from voice.finalization.hotword_repair import HotwordRepair
from voice.hotword_list import HotwordList, parse_lines
from voice.recognition.engine import Vocabulary
from voice.recognition.hotwords import ROOT, HotwordGraph, HotwordGraphs, spell
from voice.recognition.posteriors import TokenPosteriors
from voice.recognition.search import TokenSearch
from voice.transcript import Token

# --- the list -------------------------------------------------------------------------------------------------------


def test_a_line_is_a_word_and_a_weight_if_it_has_one() -> None:
    lines = ["周杰伦 40\n", "", "  # 名字", "张三丰", "windows 11 20", "周杰伦 60", "\t空调\t"]
    assert parse_lines(lines, "x") == (("周杰伦", 60), ("张三丰", 20), ("windows 11", 20), ("空调", 20))


@pytest.mark.parametrize("weight", ["0", "-3", "101"])
def test_a_weight_out_of_range_is_named_with_its_line(weight: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        parse_lines(["空调", f"周杰伦 {weight}"], "hotwords: names.txt")
    assert caught.value.problems == [f"hotwords: names.txt, line 2: weight {weight} is not allowed; allowed: above 0 to 100"]


def test_more_than_a_thousand_words_are_refused() -> None:
    with pytest.raises(ConfigInvalid, match="1001 words; allowed: up to 1000"):
        parse_lines((f"词{number}" for number in range(1001)), "hotwords")


@pytest.mark.parametrize(("content", "problem"), [(None, "cannot be read"), ("词".encode("gb18030"), "is not UTF-8 text")])
def test_a_file_that_is_no_list_is_refused(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigInvalid, match=problem):
        HotwordList(str(path))


def test_a_file_is_read_again_when_it_changed_and_kept_when_it_became_wrong(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("﻿张三\n", encoding="utf-8")  # an editor's byte order mark
    words = HotwordList(str(path))
    first = words.current()
    assert first == (("张三", 20),)
    assert words.current() is first
    path.write_text("张三\n李四 30\n", encoding="utf-8")
    assert words.current() == (("张三", 20), ("李四", 30))
    path.write_text("张三 1000\n", encoding="utf-8")
    assert words.current() == (("张三", 20), ("李四", 30))
    path.unlink()
    assert words.current() == (("张三", 20), ("李四", 30))
    path.write_text("王五\n", encoding="utf-8")
    assert words.current() == (("王五", 20),)


def test_a_replaced_file_of_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    path, other = tmp_path / "words.txt", tmp_path / "other.txt"
    path.write_text("张三\n", encoding="utf-8")
    words = HotwordList(str(path))
    words.current()
    status = path.stat()
    other.write_text("李四\n", encoding="utf-8")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    assert words.current() == (("李四", 20),)


def become_fifo(path: Path) -> None:
    os.mkfifo(path)


def become_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def become_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(5_000_000_000)  # sparse: takes no space on the disk


NO_LISTS = {
    "fifo": (become_fifo, "it is no regular file"),
    "device": (become_device, "it is no regular file"),
    "directory": (Path.mkdir, "it is a directory"),
    "large": (become_large, "is larger than 1,000 kB"),
}


@pytest.mark.parametrize("kind", NO_LISTS)
def test_a_file_that_becomes_something_else_neither_hangs_nor_grows_and_the_words_stay(tmp_path: Path, kind: str) -> None:
    become, problem = NO_LISTS[kind]
    path = tmp_path / "words.txt"
    path.write_text("张三\n", encoding="utf-8")
    words = HotwordList(str(path))
    first = words.current()
    path.unlink()
    become(path)
    tracemalloc.start()
    started = time.monotonic()
    with structlog.testing.capture_logs() as logs:
        assert all(words.current() is first for _ in range(100))
    assert time.monotonic() - started < in_time(0.5)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    (line,) = logs
    assert line["event"] == "hotwords_kept"
    (told,) = line["problems"]
    assert problem in told


@pytest.mark.parametrize("kind", NO_LISTS)
def test_at_the_start_what_is_no_list_is_refused(tmp_path: Path, kind: str) -> None:
    become, problem = NO_LISTS[kind]
    become(tmp_path / "words.txt")
    with pytest.raises(ConfigInvalid, match=problem):
        HotwordList(str(tmp_path / "words.txt"))


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("~nosuchuser/words", "begins with a home directory that is not known"),
        ("x" * 5_000, "is too long for a path"),
        ("a\0b", "holds a character that no path can hold"),
    ],
)
def test_a_setting_that_can_be_no_path_is_refused(setting: str, problem: str) -> None:
    with pytest.raises(ConfigInvalid, match=f"^hotwords: .*{problem}"):
        HotwordList(setting)


def test_a_hundred_thousand_long_wrong_lines_make_one_short_message() -> None:
    with pytest.raises(ConfigInvalid) as caught:
        parse_lines(["打" * 1_000] * 100_000, "hotwords: " + "x" * 1_000)
    problems = caught.value.problems
    assert len(problems) == 21
    assert problems[-1] == "... and 99,980 more"
    assert all(len(problem) <= 300 for problem in problems)
    assert len(describe(caught.value)) == 1_000


# --- spelling -------------------------------------------------------------------------------------------------------

TOKEN_IDS = {token: index for index, token in enumerate(["周", "杰", "伦", "的", "歌", "hel@@", "he@@", "lo", "l@@", "usb", "u", "s", "b"])}


@pytest.mark.parametrize(
    ("word", "tokens"),
    [
        ("周杰伦", "周 杰 伦"),
        ("hello", "hel@@ lo"),
        ("USB", "usb"),
        ("周usb的 Hello", "周 usb 的 hel@@ lo"),
        ("猫", None),
        ("help", None),
        (" ", None),
    ],
)
def test_a_word_is_spelt_in_tokens(word: str, tokens: str | None) -> None:
    expected = None if tokens is None else tuple(TOKEN_IDS[token] for token in tokens.split())
    assert spell(word, TOKEN_IDS) == expected


def test_a_word_is_no_longer_than_a_name_can_be() -> None:
    with pytest.raises(ConfigInvalid, match=r"x, line 2: 65 characters; allowed: up to 64"):
        parse_lines(["打" * 64, "打" * 65], "x")


def test_the_longest_word_that_repeats_itself_is_searched() -> None:
    graph = HotwordGraph([((1,) * 64, 2.0)])
    assert graph.potential(graph.step(ROOT, 1)[0]) > 0


def test_the_graph_is_built_again_only_when_the_words_changed() -> None:
    current: list[tuple[tuple[str, float], ...]] = [(("周杰", 20.0), ("猫", 20.0))]
    graphs = HotwordGraphs(lambda: current[0], list(TOKEN_IDS))
    first = graphs()
    assert not first.is_empty
    assert graphs() is first
    current[0] = ()
    assert graphs().is_empty


def test_words_that_the_model_has_no_tokens_for_are_named() -> None:
    words = (("周杰", 20.0), *[(f"{letter}猫", 20.0) for letter in "一二三四五六七八九十甲乙丙丁戊己庚辛壬癸子"])
    with structlog.testing.capture_logs() as logs:
        HotwordGraphs(lambda: words, list(TOKEN_IDS))()
    (line,) = logs
    assert (line["event"], line["log_level"], line["num_words"]) == ("hotwords_without_tokens", "warning", 21)
    assert line["words"] == [word for word, _ in words[1:21]], "the first twenty"


# --- the automaton --------------------------------------------------------------------------------------------------


def walk(graph: HotwordGraph, token_ids: list[int]) -> list[float]:
    """What every token earned."""
    state, earned = ROOT, []
    for token_id in token_ids:
        state, gain = graph.step(state, token_id)
        earned.append(round(gain, 6))
    return [*earned, round(-graph.unsettled(state), 6)]


@pytest.mark.parametrize(
    ("tokens", "earned"),
    [
        ([1, 2, 3], [2, 2, 2, 0]),  # the word
        ([1, 2, 9], [2, 2, -4, 0]),  # broken: given back
        ([1, 2], [2, 2, -4]),  # broken by the end
        ([1, 1, 2, 3], [2, 0, 2, 2, 0]),  # begun anew
        ([1, 2, 3, 9], [2, 2, 2, 0, 0]),
        ([8, 9, 1], [0, 0, 2, -2]),
        ([4, 5, 9], [2, 2, 0, 0]),  # a word that begins a longer one stays
        ([4, 5, 6, 7], [2, 2, 2, 2, 0]),
        ([4, 5, 6, 9], [2, 2, 2, -2, 0]),
        ([4, 5, 6, 1, 2, 3], [2, 2, 2, 0, 2, 2, 0]),
    ],
)
def test_boosts_are_earned_by_the_token_and_given_back_when_the_match_breaks(tokens: list[int], earned: list[float]) -> None:
    graph = HotwordGraph([((1, 2, 3), 2.0), ((4, 5), 2.0), ((4, 5, 6, 7), 2.0)])
    assert walk(graph, tokens) == earned


def test_a_match_goes_on_in_the_word_that_begins_inside_it() -> None:
    graph = HotwordGraph([((1, 2, 3), 2.0), ((2, 9), 2.0)])
    assert walk(graph, [1, 2, 9]) == [2, 2, 0, 0]  # 4 given back, 4 earned by the other word
    assert graph.potential(graph.step(ROOT, 1)[0]) == pytest.approx(4)


# --- the search -----------------------------------------------------------------------------------------------------

VOCABULARY = Vocabulary(tuple("_一二三四五"), frozenset({0}))


def firings_of(scores: list[list[float]]) -> list[TokenPosteriors]:
    rows = [np.asarray(row, np.float32) for row in scores]
    return [TokenPosteriors(row - np.log(np.exp(row).sum()), number * 960, (number + 1) * 960) for number, row in enumerate(rows)]


def text_of(tokens: list[Token]) -> str:
    return "".join(token.text for token in tokens)


def peak(token_id: int, second: int, gap: float) -> list[float]:
    """A token, and one that is ``gap`` nats less likely."""
    row = [-20.0] * 6
    row[token_id], row[second] = 0.0, -gap
    return row


def test_without_hotwords_each_firing_is_its_likeliest_token_at_once() -> None:
    search = TokenSearch(VOCABULARY, HotwordGraph())
    for firing, expected in zip(firings_of([peak(1, 2, 0.1), peak(0, 2, 0.1), peak(3, 2, 0.1)]), ["一", "", "三"], strict=True):
        assert text_of(search.advance([firing])) == expected
        assert search.preview() == []
    assert search.finish() == []


def test_a_hotword_wins_over_a_likelier_token_and_its_confidence_is_the_decoders() -> None:
    graph = HotwordGraph([((1, 2), 2.0)])
    firings = firings_of([peak(1, 3, 3), peak(3, 2, 3), peak(4, 5, 3)])
    tokens = TokenSearch(VOCABULARY, graph).advance(firings)
    assert text_of(tokens) == "一二四"
    assert [token.confidence for token in tokens] == pytest.approx(
        [float(np.exp(r.log_posteriors[i])) for r, i in zip(firings, (1, 2, 4), strict=True)]
    )
    assert tokens[1].confidence < 0.05
    assert (tokens[1].start_sample, tokens[1].end_sample) == (960, 1920)


def test_an_open_match_is_not_committed_and_does_not_show_before_it_is_complete() -> None:
    search = TokenSearch(VOCABULARY, HotwordGraph([((1, 2, 3), 2.0)]))
    first, second, third, broken = firings_of([peak(4, 1, 2), peak(5, 2, 2), peak(3, 4, 2), peak(4, 3, 30)])
    assert search.advance([first, second]) == []
    assert text_of(search.preview()) == "四五"
    assert text_of(search.preview([third])) == "一二三"
    assert text_of(search.advance([broken])) == "四五四"


def test_what_cannot_be_won_any_more_is_committed_before_the_match_ends() -> None:
    search = TokenSearch(VOCABULARY, HotwordGraph([((1, 2, 3), 2.0)]))
    assert text_of(search.advance(firings_of([peak(4, 1, 7)]))) == "四"  # 7 nats behind; the word is worth 6


def test_a_silent_firing_is_no_token_even_if_a_hotword_would_like_one() -> None:
    search = TokenSearch(VOCABULARY, HotwordGraph([((1, 2), 2.0)]))
    assert text_of(search.advance(firings_of([peak(1, 3, 5), peak(0, 2, 0.5)])) + search.finish()) == "一"


@given(
    st.lists(st.lists(st.floats(-6, 0), min_size=6, max_size=6), min_size=1, max_size=5),
    st.lists(st.tuples(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.sampled_from([0.5, 2.0, 5.0])), max_size=4),
    st.integers(1, 4),
)
@example([[0.0] * 6, [0.0, -2.0, 0.0, 0.0, 0.0, 0.0], *[[0.0] * 6] * 3], [([1, 1, 1], 0.5)], 1)  # a word that begins within itself
@example([[0.0] * 6, [0.0] * 6, [0.0, 0.0, -1.0, 0.0, 0.0, 0.0]], [([2], 5.0), ([3], 5.0), ([2, 3], 0.5)], 1)
def test_the_search_is_exact(scores: list[list[float]], words: list[tuple[list[int], float]], piece: int) -> None:
    """The best of all sequences, however the firings are handed over; what was committed stays."""
    for row in scores:
        row[0] = -9.0  # no silent firing
    firings, graph = firings_of(scores), HotwordGraph(words)

    def score(token_ids: tuple[int, ...]) -> float:
        total, state = 0.0, ROOT
        for firing, token_id in zip(firings, token_ids, strict=True):
            state, gain = graph.step(state, token_id)
            total += float(firing.log_posteriors[token_id]) + gain
        return total - graph.unsettled(state)

    search, found = TokenSearch(VOCABULARY, graph), ""
    for start in range(0, len(firings), piece):
        found += text_of(search.advance(firings[start : start + piece]))
    found += text_of(search.finish())
    best = max(score(ids) for ids in itertools.product(range(1, 6), repeat=len(firings)))
    assert score(tuple(VOCABULARY.tokens.index(character) for character in found)) == pytest.approx(best, abs=1e-4)


def test_a_light_word_takes_nothing_from_a_heavy_one_that_it_begins_with() -> None:
    graph = HotwordGraph([((1, 2), 5.0), ((1, 2, 3), 0.5)])
    assert walk(graph, [1, 2, 3, 4]) == [5, 5, 0, 0, 0]


def test_a_thousand_words_without_a_match_leave_the_likeliest_tokens() -> None:
    generator = np.random.default_rng(0)
    vocabulary = Vocabulary(tuple(map(str, range(400))), frozenset())
    rows = generator.normal(-12, 1, (40, 400))
    likeliest = generator.integers(0, 200, 40)
    rows[np.arange(40), likeliest] = 0
    words = [(generator.integers(200, 400, generator.integers(2, 5)).tolist(), 2.0) for _ in range(1000)]
    search = TokenSearch(vocabulary, HotwordGraph(words))
    tokens = [token for firing in firings_of(rows.tolist()) for token in search.advance([firing])]
    assert [token.text for token in tokens] == [str(index) for index in likeliest], "and each at once"


# --- homophones -----------------------------------------------------------------------------------------------------


def repaired(text: str, *words: str) -> str:
    return HotwordRepair(lambda: tuple(parse_lines(words, "x"))).repair(text)


@pytest.mark.parametrize(
    ("heard", "words", "text"),
    [
        ("我想听周洁伦的歌", ["周杰伦"], "我想听周杰伦的歌"),
        ("我想听周结论的歌", ["周杰伦"], "我想听周杰伦的歌"),  # lun2, a reading of 论
        ("打电话给张为", ["张伟"], "打电话给张为"),  # wei2 is not wei3
        ("打电话给章伟", ["张伟"], "打电话给张伟"),
        ("章伟和张伟", ["张伟", "章伟"], "章伟和张伟"),  # each is a word of the list
        ("去崇庆银行", ["重庆"], "去重庆银行"),  # chong2, a reading of 重
        ("他是谁", ["塔"], "他是谁"),  # one character
        ("打开usb灯", ["优盘"], "打开usb灯"),
        ("", ["张伟"], ""),
    ],
)
def test_a_homophone_becomes_the_hotword(heard: str, words: list[str], text: str) -> None:
    assert repaired(heard, *words) == text


def test_of_several_homophones_the_longest_then_the_heaviest_is_written() -> None:
    assert repaired("找章小明", "张晓铭 30", "张小鸣 40", "张小") == "找张小鸣"


def test_the_words_are_read_again_when_they_changed() -> None:
    words = [parse_lines(["张伟"], "x")]
    repair = HotwordRepair(lambda: words[0])
    assert repair.repair("章伟") == "张伟"
    words[0] = parse_lines(["彰伟"], "x")
    assert repair.repair("章伟") == "彰伟"


@pytest.mark.parametrize("line", ["北京,40", "北京，40", "北京: 40", "北京=40", "北京\t40", "北京;40.5"])
def test_a_weight_behind_a_mark_is_a_mistake_that_is_named(line: str) -> None:
    with pytest.raises(ConfigInvalid, match="use a blank: 北京 40"):
        parse_lines([line], "words.txt")


@pytest.mark.parametrize("line", ["3,14", "12:30", "A=1", "北京 40", "二〇二六"])
def test_other_words_with_marks_are_words(line: str) -> None:
    assert parse_lines([line], "words.txt")
