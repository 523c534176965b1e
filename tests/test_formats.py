"""Events to text, subtitles and tables."""

from __future__ import annotations

import csv
import io
import itertools
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from voice.commands.formats import (
    MAX_LINE_CHARACTERS,
    WRITERS,
    Event,
    check_event,
    cues,
    cues_of,
    finals_of,
    json_lines,
    plain_text,
    subrip,
    table,
    web_vtt,
)


def final(text: str, *, raw: str | None = None, start_ms: int = 1_000, per_token_ms: int = 200, **more: Any) -> Event:
    """A final whose tokens, one for each character that is spoken, follow each other without a pause."""
    raw = "".join(each for each in text if each.isalnum()) if raw is None else raw
    tokens = [
        {"text": each, "start_ms": start_ms + place * per_token_ms, "end_ms": start_ms + (place + 1) * per_token_ms, "confidence": 0.9}
        for place, each in enumerate(raw)
    ]
    event = {
        "type": "voice.asr_text.final",
        "ts": 1,
        "trace_id": more.pop("trace_id", "0" * 16),
        "text": text,
        "confidence": 0.9,
        "start_ms": start_ms,
        "end_ms": start_ms + per_token_ms * len(raw),
        "endpoint": "silence",
        "raw_text": raw,
        "tokens": tokens,
        "emotion": None,
        "lost_ms": 0,
    }
    return {**event, **more}


def test_what_a_server_recognised_has_no_confidence_and_perhaps_no_tokens() -> None:
    event = check_event(final("今天。", confidence=None, tokens=[], end_ms=1_400))
    (row,) = csv.DictReader(io.StringIO(table([event])))
    assert (row["text"], row["confidence"]) == ("今天。", "")
    (cue,) = cues(event)
    assert (cue.text, cue.start_ms, cue.end_ms) == ("今天", event["start_ms"], event["end_ms"])


def texts(event: Event) -> list[str]:
    return [cue.text for cue in cues(event)]


def test_a_short_sentence_is_one_subtitle_with_the_times_of_its_tokens() -> None:
    (cue,) = cues(final("今天天气怎么样？"))
    assert (cue.start_ms, cue.end_ms, cue.text) == (1_000, 2_400, "今天天气怎么样？")


def test_sentences_are_apart_and_clauses_share_a_line_while_they_fit() -> None:
    assert texts(final("早上好。今天是星期一，天气晴，适合出门。")) == ["早上好", "今天是星期一，天气晴，适合出门"]


def test_a_clause_that_does_not_fit_begins_a_line_of_its_own() -> None:
    one, two = "我们昨天下午三点钟在公司开会", "讨论了明年的计划和预算"
    assert texts(final(f"{one}，{two}。")) == [one, two]


def test_a_long_clause_is_cut_into_about_equal_parts() -> None:
    found = texts(final("一" * 50))
    assert "".join(found) == "一" * 50
    assert [len(each) for each in found] == [17, 17, 16]


def test_words_in_letters_are_not_cut() -> None:
    text = "我在用bluetooth和internationalization这个单词做测试看看"
    found = texts(final(text))
    assert "".join(found) == text
    assert any("internationalization" in each for each in found)
    assert any("bluetooth" in each for each in found)


def test_a_cut_is_timed_by_the_tokens_on_both_sides() -> None:
    first, second = cues(final("一" * 16 + "，" + "二" * 16 + "。"))
    assert (first.start_ms, first.end_ms) == (1_000, 1_000 + 16 * 200)
    assert (second.start_ms, second.end_ms) == (1_000 + 16 * 200, 1_000 + 32 * 200)


def test_numbers_that_were_rewritten_lie_between_their_neighbours() -> None:
    event = final("温度调到26度，谢谢。", raw="温度调到二十六度谢谢")
    (cue,) = cues(event)
    assert (cue.start_ms, cue.end_ms) == (1_000, 3_000)
    event = final("26。谢谢。", raw="二十六谢谢")
    one, two = cues(event)
    assert (one.start_ms, one.end_ms, two.start_ms) == (1_000, 1_600, 1_600)


def test_pieces_of_latin_words_find_their_characters() -> None:
    event = final("打开bluetooth。", raw="")
    event["tokens"] = [
        {"text": text, "start_ms": start, "end_ms": start + 100, "confidence": 1.0}
        for text, start in (("打", 1_000), ("开", 1_100), ("blue@@", 1_500), ("tooth", 1_600))
    ]
    (cue,) = cues(event)
    assert (cue.start_ms, cue.end_ms) == (1_000, 1_700)


def test_a_final_without_tokens_or_text_spoils_nothing() -> None:
    assert cues(final("", raw="")) == []
    (cue,) = cues(final("你好", raw="", start_ms=5, end_ms=900))
    assert (cue.start_ms, cue.end_ms) == (5, 900)


def test_subtitles_never_overlap_and_last_at_least_half_a_second_where_there_is_room() -> None:
    events = [final("好。", start_ms=0, per_token_ms=50, trace_id="a"), final("对。", start_ms=100, per_token_ms=50, trace_id="b")]
    first, second = cues_of(events)
    assert (first.start_ms, first.end_ms) == (0, 100)
    assert (second.start_ms, second.end_ms) == (100, 600)


def test_subrip_as_players_read_it() -> None:
    assert subrip([final("你好。", start_ms=3_723_004)]) == "1\n01:02:03,004 --> 01:02:03,504\n你好\n"


def test_web_vtt_escapes_what_it_reads_as_markup() -> None:
    assert web_vtt([final("a<b & c", raw="abc")]) == "WEBVTT\n\n00:00:01.000 --> 00:00:01.600\na&lt;b &amp; c\n"


def test_nothing_recognised_is_an_empty_text_and_a_header() -> None:
    assert plain_text([]) == ""
    assert subrip([]) == ""
    assert web_vtt([]) == "WEBVTT\n"
    assert table([]).count("\n") == 1


def test_the_speaker_comes_from_the_final_or_from_its_event_and_the_name_before_the_label() -> None:
    late = {"type": "voice.asr_text.speaker", "trace_id": "b", "label": "B", "name": None, "confidence": 0.7}
    events = [
        final("好。", trace_id="a", speaker={"label": "A", "name": "妈妈", "confidence": 0.9}),
        final("好。", trace_id="b", speaker=None),
        late,
        final("好。", trace_id="c", speaker=None),
    ]
    assert plain_text(events) == "妈妈: 好。\nB: 好。\n好。\n"
    assert [cue.text for cue in cues_of(events)] == ["妈妈: 好", "B: 好", "好"]
    assert [row["speaker"] for row in csv.DictReader(io.StringIO(table(events)))] == ["妈妈", "B", ""]
    assert "speaker" not in table([final("好。")]), "without --speakers the table is as it was"


def test_the_emotion_comes_from_the_final_or_from_its_event() -> None:
    late = {"type": "voice.asr_text.emotion", "trace_id": "b", "label": "sad", "confidence": 0.7, "scores": {}}
    events = [
        final("好。", trace_id="a", emotion={"label": "happy", "confidence": 0.9}),
        final("好。", trace_id="b", start_ms=9_000),
        late,
        {"type": "core.error_event", "trace_id": "c"},
    ]
    assert [each["emotion"]["label"] for each in finals_of(events)] == ["happy", "sad"]
    assert plain_text(events, emotion=True) == "[happy] 好。\n[sad] 好。\n"
    assert [cue.text for cue in cues_of(events, emotion=True)] == ["[happy] 好", "[sad] 好"]
    assert [row["emotion"] for row in csv.DictReader(io.StringIO(table(events)))] == ["happy", "sad"]


def test_a_table_quotes_what_would_break_it() -> None:
    (row,) = csv.DictReader(io.StringIO(table([final('他说"好，好"。')])))
    assert row["text"] == '他说"好，好"。'


def test_json_lines_are_the_events() -> None:
    events = [final("好。"), {"type": "core.error_event", "trace_id": "c"}]
    assert [json.loads(line) for line in json_lines(events).splitlines()] == events


@given(st.text(max_size=80), st.text(max_size=60), st.integers(0, 10**7))
def test_any_text_becomes_subtitles_in_order(text: str, raw: str, start_ms: int) -> None:
    events = [final(text, raw=raw, start_ms=start_ms, trace_id=str(number)) for number in range(2)]
    found = cues_of(events[:1])
    assert all(earlier.end_ms <= later.start_ms or later.start_ms <= earlier.start_ms for earlier, later in itertools.pairwise(found))
    assert all(cue.start_ms < cue.end_ms for cue in found)
    assert all(
        len(cue.text) <= MAX_LINE_CHARACTERS or not any("\u4e00" <= each <= "\u9fff" for each in cue.text[MAX_LINE_CHARACTERS:])
        for cue in found
    )
    for write in WRITERS.values():
        write(events, emotion=True).encode("utf-8", "replace")


def test_a_table_has_no_nul() -> None:
    """Python 3.10 cannot write it."""
    assert "\0" not in table([final("好\0。", raw="好")])
