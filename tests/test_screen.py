"""What voice-asr listen shows."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from harness import EXAMPLES, REPOSITORY, environment, in_time
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from voice.commands.screen import Screen
from voice.models import embedded

SPAN = {"start_ms": 0, "end_ms": 900, "tokens": []}


def partial(text: str, stable: int) -> dict[str, Any]:
    return {"type": "voice.asr_text.partial", "trace_id": "a", "text": text, "stable_chars": stable}


def final(text: str = "好。", **more: Any) -> dict[str, Any]:
    return {
        "type": "voice.asr_text.final",
        "ts": 0,
        "trace_id": "a",
        "text": text,
        "confidence": 0.987,
        "emotion": None,
        "lost_ms": 0,
        **SPAN,
        **more,
    }


def status(state: str, **more: Any) -> dict[str, Any]:
    return {"type": "core.status_event", "state": state, **more}


def level(peak_dbfs: float) -> dict[str, Any]:
    return {"type": "core.level_event", "level": {"peak_dbfs": peak_dbfs}, "muted": False}


def styles(line: Any) -> dict[str, str]:
    """The parts of a line by their style."""
    return {str(span.style): line.plain[span.start : span.end] for span in line.spans}


def test_the_states_are_said_in_words_with_the_device() -> None:
    screen = Screen()
    assert screen.line(80).plain == "▯▯▯▯▯▯▯▯▯▯ starting"
    screen.accept(status("listening", device="Jabra Speak 510"))
    assert screen.line(80).plain.endswith(" listening · Jabra Speak 510")
    screen.accept(status("muted"))
    assert screen.line(80).plain.endswith(" muted · Jabra Speak 510")
    screen.accept(status("audio_lost"))
    assert "gone" in screen.line(80).plain


@pytest.mark.parametrize(("live", "model", "shown"), [(True, "embedded", 1), (True, "paraformer-zh-streaming", 0), (False, "embedded", 0)])
def test_who_speaks_to_the_embedded_model_reads_what_to_expect(live: bool, model: str, shown: int) -> None:
    screen = Screen(live=live)
    states = (status("loading"), status("ready", model=model), status("listening", device="Mic"))
    lines = [line for state in states for line in screen.accept(state)]
    assert [line.plain for line in lines] == [f"{embedded.EXPECTATION}; {embedded.REMEDY}"] * shown


def test_a_long_name_leaves_room_for_the_state() -> None:
    screen = Screen()
    screen.accept(status("listening", device="/a/folder/with/a/long/name/and/another/one/in/it/recording_of_today.wav"))
    assert " listening · /a/folder" in screen.line(40).plain


@pytest.mark.parametrize(
    ("peak_dbfs", "filled", "style"), [(-120, 0, "green"), (-30, 5, "green"), (-6, 9, "yellow"), (0, 10, "red"), (3, 10, "red")]
)
def test_the_meter(peak_dbfs: float, filled: int, style: str) -> None:
    screen = Screen()
    screen.accept(level(peak_dbfs))
    line = screen.line(80)
    assert line.plain.count("▮") == filled
    assert str(line.style) == "", "the text behind it has no colour of its own"
    assert styles(line).get(style, "").count("▮") == filled
    screen.accept({"type": "core.level_event", "level": None, "muted": True})
    assert "▮" not in screen.line(80).plain


def test_the_stable_text_is_plain_and_the_tail_dim() -> None:
    screen = Screen()
    screen.accept(partial("打开卧室的空", 4))
    line = screen.line(80)
    assert line.plain.endswith(" 打开卧室的空")
    assert styles(line)["dim"].endswith("的空")


def test_a_long_text_shows_its_end_and_the_width_of_chinese_characters_counts() -> None:
    screen = Screen()
    screen.accept(partial("一二三四五六七八九十" * 5, 0))
    line = screen.line(40)
    assert cell_len(line.plain) <= 40
    assert line.plain.endswith("八九十")
    assert "…" in line.plain


def test_a_final_begins_with_its_speaker() -> None:
    (named,) = Screen().accept(final(speaker={"label": "A", "name": "妈妈", "confidence": 0.9}))
    (unnamed,) = Screen().accept(final(speaker={"label": "B", "name": None, "confidence": 0.9}))
    assert "妈妈  " in named.plain
    assert "A  " not in named.plain
    assert "B  " in unnamed.plain


def test_a_final_stays_with_emotion_and_confidence() -> None:
    screen = Screen()
    screen.accept(partial("好", 1))
    (line,) = screen.accept(final(emotion={"label": "happy", "confidence": 0.9}, lost_ms=30))
    assert line.plain[8:] == "  好。  happy  0.99  30 ms of it lost"
    assert screen.line(80).plain.endswith("starting"), "the text so far is gone"


def test_what_a_server_recognised_has_no_confidence() -> None:
    (line,) = Screen().accept(final(confidence=None))
    assert line.plain[8:] == "  好。"


def test_an_error_is_said_in_words() -> None:
    error = {"type": "core.error_event", "ts": 0, "message": "AudioSilent: the microphone is muted", "recoverable": True}
    (line,) = Screen().accept(error)
    assert line.plain.endswith("  the microphone is muted")
    assert str(line.style) == "yellow"


@given(
    st.lists(st.one_of(st.builds(partial, st.text(max_size=60), st.integers(0, 70)), st.builds(level, st.floats(-200, 50)))),
    st.integers(12, 100),
)
def test_the_line_is_never_wider_than_the_terminal(events: list[dict[str, Any]], width: int) -> None:
    screen = Screen()
    for event in events:
        screen.accept(event)
        assert cell_len(screen.line(width).plain) <= width


# --- the command --------------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    path = tmp_path / "out.jsonl"
    path.write_text(
        "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in (partial("你", 1), final("你好。"), final("再见。"))),
        encoding="utf-8",
    )
    return path


def listen(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "voice", "listen", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, env=environment(PYTHONIOENCODING="utf-8"), input=stdin, capture_output=True, check=False)


def test_a_recording_is_shown_in_plain_lines_where_there_is_no_terminal(recorded: Path) -> None:
    result = listen(recorded)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.decode().splitlines()
    assert [line[10:] for line in lines] == ["你好。  0.99", "再见。  0.99"]
    assert b"\x1b" not in result.stdout


def test_a_pipe_is_shown_too_and_other_lines_in_it_are_left_out(recorded: Path) -> None:
    result = listen("-", stdin=b"2026 [info] log\n" + recorded.read_bytes() + b"[1]\n")
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) == 2


def test_a_recording_that_is_missing_is_said() -> None:
    result = listen("/nonexistent.jsonl")
    assert (result.returncode, result.stderr) == (4, b"error: /nonexistent.jsonl: No such file or directory\n")


def test_a_recording_that_is_none_is_said_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text('{"type": "voice.asr_text.final", "text": 7}\n')
    result = listen(path)
    assert (result.returncode, b"line 1 is an event voice.asr_text.final without a right trace_id" in result.stderr) == (4, True)
    assert len(result.stderr.splitlines()) == 1


def in_terminal(*arguments: str, until: bytes) -> bytes:
    """What a terminal of 60 columns gets."""
    leader, follower = pty.openpty()
    variables = environment(TERM="xterm-256color", COLUMNS="60", LINES="20", PYTHONIOENCODING="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "voice", "listen", *arguments],
        cwd=REPOSITORY,
        env=variables,
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    shown, deadline = b"", time.monotonic() + in_time(30)
    try:
        while until not in shown and time.monotonic() < deadline:
            if select.select([leader], [], [], 0.2)[0]:
                try:
                    shown += os.read(leader, 65_536)
                except OSError:
                    break
    finally:
        process.terminate()
        process.wait(in_time(10))
        os.close(leader)
    return shown


@pytest.mark.slow
def test_a_terminal_sees_the_text_grow_then_the_final(tmp_path: Path) -> None:
    shown = in_terminal("--embedded", "--input", str(EXAMPLES / "two_utterances.wav"), "--realtime", until="起床。".encode()).decode(
        errors="replace"
    )
    assert "今天北京的天气怎么样？" in shown
    assert shown.index("今天北京") < shown.index("今天北京的天气怎么样？")
    assert "listening" in shown
    assert embedded.EXPECTATION not in shown, "nobody speaks to it"
    assert "\x1b[2K" in shown, "the line is rewritten"


@pytest.mark.slow
def test_a_service_that_cannot_start_is_said_with_its_exit_code() -> None:
    result = listen("--embedded", "--model-dir", "x")
    assert result.returncode == 2
    assert b"exclude each other" in result.stdout
