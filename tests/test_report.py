"""Recorded events -> the page of ``voice-asr report``."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from harness import EXAMPLES, REPOSITORY, environment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_formats import final

from voice.commands.formats import check_event, local_time
from voice.commands.report_data import Bin, Run, histogram, median, runs_of, sessions_of, times_histogram
from voice.commands.report_page import ROW, WIDTH, audio_clock, chart, page, timeline

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")


def error(message: str = "AudioLost: 30 ms", **more: Any) -> dict[str, Any]:
    return {"type": "core.error_event", "ts": 5, "error_code": "audio_overrun", "message": message, "recoverable": True, **more}


def level(end_ms: int, peak_dbfs: float | None) -> dict[str, Any]:
    return {"type": "core.level_event", "end_ms": end_ms, "level": None if peak_dbfs is None else {"peak_dbfs": peak_dbfs}}


def partial(ts: int, captured_ts: int) -> dict[str, Any]:
    return {"type": "voice.asr_text.partial", "ts": ts, "captured_ts": captured_ts, "text": "好", "stable_chars": 0, "end_ms": 1}


def test_a_final_becomes_what_the_page_says_of_it() -> None:
    event = final(
        "你好。",
        ts=10_000,
        captured_ts=9_200,
        endpoint="silence",
        level={"rms_dbfs": -27.5},
        lost_ms=30,
        emotion={"label": "happy", "confidence": 0.9},
    )
    (session,) = sessions_of([event])
    (said,) = session.utterances
    assert (said.text, said.emotion, said.rms_dbfs, said.lost_ms, said.latency_ms) == ("你好。", "happy", -27.5, 30, 800)
    assert (said.start_ms, said.end_ms, said.duration_ms, session.length_ms) == (1_000, 1_400, 400, 1_400)


def test_a_recording_of_an_older_version_has_no_latency_and_no_level() -> None:
    (session,) = sessions_of([final("你好。")])
    assert (session.utterances[0].latency_ms, session.utterances[0].rms_dbfs) == (None, None)


def test_only_silence_has_a_time_to_the_final() -> None:
    (session,) = sessions_of([final("好", ts=10_000, captured_ts=9_200, endpoint="shutdown")])
    assert session.utterances[0].latency_ms is None


def test_the_totals_of_a_session_say_what_was_lost() -> None:
    stopped = {"type": "core.status_event", "state": "stopped", "totals": {"audio_ms": 60_000, "lost_ms": 4_461}}
    (session,) = sessions_of([final("好", lost_ms=30), check_event(stopped)])
    assert (session.lost_ms, session.length_ms) == (4_461, 60_000)
    (session,) = sessions_of([final("好", lost_ms=30)])
    assert session.lost_ms == 30


def test_events_of_later_versions_are_passed_over() -> None:
    later = [{"type": "core.later_event", "end_ms": value} for value in ("x", 1.5, 2**52, None, [])]
    (session,) = sessions_of([final("好"), *map(check_event, later)])
    assert session.length_ms == 1_200


@pytest.mark.parametrize("key", ["end_ms", "captured_ts"])
@pytest.mark.parametrize("value", ["x", 1.5, [], True, 2**54])
def test_a_known_event_with_a_wrong_time_is_none(key: str, value: Any) -> None:
    for event in (error(), level(1_000, -20.0), partial(1, 1), final("好"), {"type": "core.status_event", "state": "ready"}):
        with pytest.raises(ValueError, match=key):
            check_event({**event, key: value})


def test_a_session_began_with_its_audio() -> None:
    (session,) = sessions_of([{"type": "core.status_event", "state": "loading", "ts": 1}, final("好", captured_ts=91_200, ts=92_000)])
    assert session.began_ts == 90_000


def test_a_late_emotion_belongs_to_its_final() -> None:
    late = {"type": "voice.asr_text.emotion", "trace_id": "0" * 16, "label": "sad", "confidence": 0.8, "ts": 3}
    (session,) = sessions_of([final("你好。"), late])
    assert session.utterances[0].emotion == "sad"


def test_runs_of_the_service_in_one_recording_are_told_apart_by_seq() -> None:
    events = [final("一", seq=1, trace_id="a"), final("二", seq=2, trace_id="b"), final("三", seq=1, trace_id="c", ts=77)]
    first, second = sessions_of(events)
    assert len(sessions_of([final("一", seq=5, trace_id="a"), final("二", seq=5, trace_id="b")])) == 2
    assert ["".join(each.text for each in session.utterances) for session in (first, second)] == ["一二", "三"]
    assert second.began_ts == 77
    assert sessions_of([]) == []


def test_an_error_stands_where_the_audio_was() -> None:
    (session,) = sessions_of([level(3_000, -20.0), error(), level(4_000, None)])
    assert [(each.at_ms, each.code) for each in session.problems] == [(3_000, "audio_overrun")]
    assert session.levels == ((3_000, -20.0), (4_000, None))
    (session,) = sessions_of([level(3_000, -20.0), {"type": "core.status_event", "state": "audio_lost"}, level(2_000, -20.0)])
    assert session.levels == ((3_000, -20.0), (3_000, None), (3_000, -20.0))
    assert session.length_ms == 3_000


def test_an_error_at_the_end_stands_in_the_last_row() -> None:
    (session,) = sessions_of([level(15_000, -20.0), error(), error(recoverable=False)])
    drawing = timeline(session)
    assert [bar.kind for bar in drawing.bars] == ["problem", "fatal"]
    assert all(bar.y < ROW for bar in drawing.bars)


def test_pauses_lie_between_utterances() -> None:
    events = [final("你好", trace_id="a"), final("再见", trace_id="b", start_ms=3_000), final("走", trace_id="c", start_ms=3_300)]
    (session,) = sessions_of(events)
    assert session.pauses_ms == [1_600, 0]


def test_partials_have_latencies() -> None:
    (session,) = sessions_of([partial(1_000, 940), partial(0, 0), partial(2_000, 2_001)])
    assert session.partial_latencies_ms == (60, 0)


def test_uncertain_tokens_are_shaded_and_marks_go_with_what_is_before_them() -> None:
    event = final("你好吗？", raw="你好吗")
    for token, confidence in zip(event["tokens"], (0.95, 0.5, 0.55), strict=True):
        token["confidence"] = confidence
    assert runs_of(event) == (Run("你", 0, 0.95), Run("好吗？", 3, 0.5))
    for token in event["tokens"]:
        del token["confidence"]
    assert runs_of(event) == (Run("你好吗？", 0, None),)


@pytest.mark.parametrize(
    ("confidence", "shade"), [(1.0, 0), (0.9, 0), (0.89, 1), (0.75, 1), (0.74, 2), (0.6, 2), (0.4, 3), (0.39, 4), (0.0, 4)]
)
def test_shades(confidence: float, shade: int) -> None:
    event = final("好")
    event["tokens"][0]["confidence"] = confidence
    assert [run.shade for run in runs_of(event)] == [shade]


def test_a_histogram_counts_every_value_once() -> None:
    assert histogram([0, 0.05, 0.1, 0.95, 1.0, 7], 0.1, 10)[:2] == [Bin(0, 0.1, 2), Bin(0.1, 0.2, 1)]
    assert histogram([0, 0.05, 0.1, 0.95, 1.0, 7], 0.1, 10)[-1].count == 3
    assert histogram([0.3], 0.1, 10)[3].count == 1, "0.3 / 0.1 is a little below 3"


def test_the_bins_of_times_are_wide_enough_for_most_of_them() -> None:
    bins = times_histogram([800, 810, 820, 830, 900] * 10 + [60_000])
    assert sum(each.count for each in bins) == 51
    assert bins[-1].count <= 1
    assert bins[-1].low > 800
    assert len(bins) <= 20
    assert times_histogram([]) == []
    assert sum(each.count for each in times_histogram([0])) == 1


def test_medians() -> None:
    assert (median([]), median([3, 1, 2])) == (None, 2)


def test_a_timeline_has_rows_and_an_utterance_across_two_of_them_two_bars() -> None:
    event = final("一二三四", start_ms=14_000, per_token_ms=500)
    (session,) = sessions_of([event, level(29_000, -30.0)])
    drawing = timeline(session)
    bars = [bar for bar in drawing.bars if bar.kind == "none"]
    assert len(bars) == 2
    assert len(drawing.labels) == 2
    assert bars[0].x + bars[0].width == pytest.approx(WIDTH)
    assert bars[1].x == 0
    assert bars[0].width == pytest.approx(bars[1].width)
    assert [label.text for label in drawing.labels] == ["0:00.0", "0:15.0"]


def test_without_level_events_each_utterance_has_its_own_line() -> None:
    events = [final("你好", level={"rms_dbfs": -30.0}), final("再见", trace_id="b", start_ms=9_000, level={"rms_dbfs": -60.0})]
    (session,) = sessions_of(events)
    assert len(timeline(session).lines) == 2


def test_the_level_is_a_line_that_a_mute_interrupts() -> None:
    events = [level(1_000, -60.0), level(2_000, 0.0), level(3_000, None), level(4_000, -30.0), level(5_000, -30.0)]
    (session,) = sessions_of(events)
    lines = timeline(session).lines
    assert len(lines) == 2
    heights = [float(point.split(",")[1]) for point in lines[0].split()]
    assert heights[0] - heights[1] == ROW


def test_a_day_has_no_more_rows_than_a_page_can_show() -> None:
    (session,) = sessions_of([final("好", start_ms=24 * 3_600_000), final("好", trace_id="b", start_ms=2**53 - 10_000)])
    assert len(timeline(session).labels) <= 31


def test_an_empty_chart_has_nothing() -> None:
    assert chart([], "ms").bars == ()
    assert chart(histogram([], 1, 3), "ms").bars == ()


def test_clocks() -> None:
    assert audio_clock(61_250) == "1:01.2"
    assert audio_clock(3_600_000) == "1:00:00.0"
    assert local_time(None) == ""
    assert local_time(2**53) == ""
    assert re.fullmatch(r"\d\d\d\d-\d\d-\d\d \d\d:\d\d:\d\d", local_time(1_795_615_768_432, date=True))


def body(text: str) -> str:
    return text[text.index("<body>") :]


def test_what_a_server_recognised_has_no_confidence_on_the_page() -> None:
    tokens = [{"text": "好", "start_ms": 0, "end_ms": 60, "confidence": None}]
    events = [final("好。", confidence=None, tokens=tokens), final("你好。", confidence=None, tokens=[], trace_id="b")]
    sessions = sessions_of(events)
    assert [each.confidence for each in sessions[0].utterances] == [None, None]
    text = body(page("talk.jsonl", sessions))
    assert "你好。" in text
    assert "None" not in text
    assert "你好。" in body(page("talk.jsonl", sessions_of([*events, final("你好。", trace_id="c")])))


def test_the_page_says_what_was_said_and_loads_nothing() -> None:
    text = page("talk.jsonl", sessions_of([final("你好吗？", emotion={"label": "happy", "confidence": 0.9}), error()]))
    assert "你好吗？" in body(text)
    assert "audio_overrun" in body(text)
    assert "AudioLost: 30 ms" in body(text)
    assert 'class="happy"' in body(text)
    assert "prefers-color-scheme: dark" in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert not re.search(r"(src|href)\s*=|url\(|@import|<script", text)


def test_texts_and_names_are_escaped() -> None:
    evil = '<script>alert("你")</script>'
    text = page(
        evil, sessions_of([final(evil, trace_id='"><b>', emotion={"label": '"><i>', "confidence": 1}), error(evil, error_code=evil)])
    )
    assert "<script>" not in text
    assert "<b>" not in text
    assert '"><i>' not in text
    assert html.escape("<script>") in text


def test_nothing_recorded() -> None:
    assert "Nothing was recorded." in page("empty.jsonl", [])


def test_every_drawing_is_well_formed() -> None:
    text = page(
        "talk.jsonl",
        sessions_of([final("你好吗？"), final("再见。", trace_id="b", start_ms=9_000), level(20_000, -20.0), error("a & b < c")]),
    )
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) >= 2
    for drawing in drawings:
        ElementTree.fromstring(drawing)


KINDS = ("voice.asr_text.final", "voice.asr_text.partial", "core.level_event", "core.error_event", "core.status_event")
KEYS = [
    "ts", "seq", "trace_id", "text", "confidence", "emotion", "start_ms", "end_ms", "level", "lost_ms", "captured_ts", "tokens",
    "message", "recoverable", "error_code", "state", "device", "stable_chars",
]  # fmt: skip
NUMBERS = st.one_of(st.integers(), st.floats(), st.none(), st.booleans(), st.text(max_size=3))
PARTS = st.dictionaries(st.sampled_from(["label", "confidence", "peak_dbfs", "rms_dbfs"]), NUMBERS)
STRANGE = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS)}, optional={key: st.one_of(NUMBERS, PARTS, st.just([])) for key in KEYS}
)  # fmt: skip


@given(st.lists(STRANGE, max_size=6), st.integers(), st.floats())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_whatever_passes_as_an_event_can_be_shown(strange: list[dict[str, Any]], start_ms: int, confidence: float) -> None:
    events = []
    for event in [*strange, {**final("好"), "start_ms": start_ms, "confidence": confidence, "end_ms": start_ms}]:
        try:
            events.append(check_event(json.loads(json.dumps(event))))
        except ValueError:
            continue
    text = page("strange.jsonl", sessions_of(events))
    assert "nan" not in body(text).lower()


def report(*arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "voice", "report", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, encoding="utf-8", check=False, **more)


def recording(tmp_path: Path, *events: dict[str, Any]) -> Path:
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events), encoding="utf-8")
    return path


def test_the_command_writes_a_page_once(tmp_path: Path) -> None:
    path = recording(tmp_path, final("你好。"))
    assert report(path).returncode == 0
    page_path = tmp_path / "talk.html"
    assert "你好。" in page_path.read_text(encoding="utf-8")
    again = report(path)
    assert (again.returncode, again.stderr) == (2, f"error: {page_path} is there already; --force writes it anew\n")
    path.write_text("", encoding="utf-8")
    assert report(path, "--force").returncode == 0
    assert "Nothing was recorded." in page_path.read_text(encoding="utf-8")
    assert "Nothing was recorded." in report(path, "-o", "-").stdout


def test_what_the_command_refuses(tmp_path: Path) -> None:
    path = recording(tmp_path, {"type": "voice.asr_text.final", "text": 3})
    result = report(path)
    assert (result.returncode, result.stderr) == (4, f"error: {path}: line 1 is an event voice.asr_text.final without a right trace_id\n")
    result = report(tmp_path / "none.jsonl")
    assert (result.returncode, result.stderr) == (4, f"error: {tmp_path / 'none.jsonl'}: No such file or directory\n")
    good = recording(tmp_path, final("好"))
    result = report(good, "-o", good)
    assert (result.returncode, result.stderr) == (2, f"error: {good}: the page would replace the recording; use -o FILE.html\n")
    (tmp_path / "link").symlink_to(good)
    assert report(good, "-o", tmp_path / "link", "--force").stderr.endswith("use -o FILE.html\n")
    os.mkfifo(tmp_path / "fifo")
    result = report(good, "-o", tmp_path / "fifo", "--force")
    assert (result.returncode, result.stderr) == (5, f"error: {tmp_path / 'fifo'}: it is there and no file\n")
    (tmp_path / "dangling").symlink_to(tmp_path / "page.html")
    assert report(good, "-o", tmp_path / "dangling").returncode == 0
    assert (tmp_path / "page.html").is_file()
    assert (tmp_path / "dangling").is_symlink()
    for odd in (".", "/", ""):
        result = report(odd)
        assert (result.returncode, result.stderr.count("\n")) == (4, 1)
    deep = tmp_path / "deep.jsonl"
    deep.write_text("[" * 100_000 + "\n{}\n")
    assert report(deep).stderr == f"error: {deep}: line 1 is no event; record stdout alone, without stderr: > FILE.jsonl\n"
    result = report(good, "-o", "/proc/page.html")
    assert (result.returncode, result.stderr.count("\n")) == (5, 1)
    assert result.stderr.startswith("error: /proc/page.html: ")


MEASURE = """<script>
addEventListener("load", () => {
  const texts = [...document.querySelectorAll("td.text, dd, svg text")].map((each) => each.getBoundingClientRect());
  document.body.innerHTML = JSON.stringify({
    wide: document.documentElement.scrollWidth, inner: innerWidth, texts: texts.length,
    flat: texts.filter((each) => each.height < 5).length,
    bars: document.querySelectorAll("rect").length,
    seen: [...document.querySelectorAll("rect")].filter((each) => each.getBoundingClientRect().width > 0).length,
    colour: getComputedStyle(document.querySelector("rect.happy, rect.neutral, rect.other, rect.none")).fill,
  });
});
</script>"""


def browser(*arguments: str) -> str:
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
    result = subprocess.run([str(CHROMIUM), *flags, *arguments], capture_output=True, encoding="utf-8", check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


@NEEDS_CHROMIUM
@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1_280])
def test_a_browser_shows_the_page_of_a_real_recording(tmp_path: Path, width: int) -> None:
    command = [sys.executable, "asr_service_streaming.py", "--embedded", "--status-events", "--input", str(EXAMPLES / "two_utterances.wav")]
    service = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, check=True)
    path = tmp_path / "talk.jsonl"
    path.write_bytes(service.stdout)
    assert report(path).returncode == 0
    text = (tmp_path / "talk.html").read_text(encoding="utf-8")
    assert "今天北京的天气怎么样？" in text.replace("</span>", "").replace("\n", "") or "今天北京" in re.sub("<[^>]*>", "", text)
    measured_path = tmp_path / "measured.html"
    measured_path.write_text(re.sub("<meta http-equiv[^>]*>", "", text).replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")
    dom = browser(f"--window-size={width},800", "--dump-dom", measured_path.as_uri())
    measured = json.loads(html.unescape(dom[dom.index("<body>") + len("<body>") : dom.index("</body>")]))
    assert measured["wide"] <= measured["inner"], "nothing sticks out"
    assert measured["texts"] > 8
    assert measured["flat"] == 0
    assert measured["bars"] == measured["seen"] >= 2
    assert measured["colour"] not in ("rgb(0, 0, 0)", "none"), "utterances have the colour of their emotion"
