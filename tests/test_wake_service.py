"""Wake words as a parent sees them: the real entries, models and recordings. Nothing that was not woken comes out anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import ENTRIES, EXAMPLES, REPOSITORY, Result, environment, example, of_type, run_service, start_service

pytestmark = pytest.mark.slow

MODES = pytest.mark.parametrize("mode", ENTRIES)
TWO = str(EXAMPLES / "two_utterances.wav")
WEATHER, ALARM = example("two_utterances")[1]
"""今天北京的天气怎么样, 明天早上七点叫我起床"""
IMPORTED = "import atexit, sys\natexit.register(lambda: sys.stderr.write(f\"IMPORTED {[m for m in sys.modules if 'wake' in m]}\\n\"))"
STRICT = {"VOICE_ASR__WAKE__LISTEN_SEC": "0"}


def heard(result: Result) -> list[tuple[str, str]]:
    """Wake words and finals."""
    events = [event for event in result.events if event["type"] in ("voice.wake", "voice.asr_text.final")]
    return [(event["type"].rpartition(".")[2], event.get("word", event.get("raw_text"))) for event in events]


def last_totals(result: Result) -> dict[str, Any]:
    totals: dict[str, Any] = of_type(result.events, "status_event")[-1]["totals"]
    return totals


@MODES
def test_the_word_lets_its_utterance_pass_and_the_next(mode: str) -> None:
    result = run_service(mode, "--input", TWO, "--wake-word", "今天", "--status-events")
    assert heard(result) == [("wake", "今天"), ("final", WEATHER[2:]), ("final", ALARM)]
    wake, (first, _) = of_type(result.events, "wake")[0], of_type(result.events, "final")
    assert wake["trace_id"] == first["trace_id"]
    assert first["text"] == WEATHER[2:] + "？"
    assert [token["text"] for token in first["tokens"]] == list(WEATHER[2:])
    assert first["start_ms"] - 300 < wake["start_ms"] < wake["end_ms"] <= first["tokens"][0]["start_ms"] + 180
    assert wake["captured_ts"] > 0
    assert first["emotion"] is not None
    assert (last_totals(result)["utterances"], last_totals(result)["unwoken_utterances"]) == (2, 0)


@MODES
def test_what_is_not_woken_comes_out_nowhere(mode: str, tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    options = ("--status-events", "--record", str(recordings), "--log-level", "debug", "--log-format", "json")
    result = run_service(mode, "--input", TWO, "--wake-word", "明天", *options, **STRICT)
    assert heard(result) == [("wake", "明天"), ("final", ALARM[2:])]
    (final,) = of_type(result.events, "final")
    utterance_events = [event for event in result.events if not event["type"].startswith("core.")]
    assert {event["trace_id"] for event in utterance_events} == {final["trace_id"]}
    (recording,) = recordings.iterdir()
    assert final["trace_id"] in recording.name
    assert (last_totals(result)["utterances"], last_totals(result)["unwoken_utterances"]) == (1, 1)
    finished = [line for line in map(json.loads, result.stderr.splitlines()) if line["event"] == "utterance_finished"]
    assert len(finished) == 2  # the canonical lines, which have no text
    assert not any(character in result.stderr for character in WEATHER)


@MODES
def test_without_the_word_there_is_no_event_at_all(mode: str) -> None:
    result = run_service(mode, "--input", TWO, "--wake-word", "你好小美")
    assert (result.events, result.returncode) == ([], 0)


@MODES
def test_an_utterance_that_is_only_the_word_has_a_final_without_text(mode: str) -> None:
    (command,) = example("air_conditioner")[1]
    result = run_service(mode, "--input", str(EXAMPLES / "air_conditioner.wav"), "--wake-word", command)
    assert heard(result) == [("wake", command), ("final", "")]
    (final,) = of_type(result.events, "final")
    assert (final["text"], final["tokens"], final["confidence"]) == ("", [], 0)
    assert of_type(result.events, "partial") == []


def test_a_word_of_other_characters_and_tones_is_heard_by_its_sound() -> None:
    result = run_service("streaming", "--input", TWO, "--wake-word", "槿忝")
    assert heard(result)[0] == ("wake", "槿忝")
    assert "wake_word_in_other_characters" in result.stderr
    strict = run_service("streaming", "--input", TWO, "--wake-word", "槿忝", VOICE_ASR__WAKE__TONES="true")
    assert heard(strict) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("hey siri",), "ConfigInvalid: wake.words: 'hey siri': the model cannot write its Latin letters"),
        (("今天", "今耨"), "ConfigInvalid: wake.words: '今耨': the model knows no character that sounds like 耨"),
    ],
)
def test_a_word_that_the_model_cannot_write_is_one_error_event_and_exit_2(words: tuple[str, ...], message: str) -> None:
    flags = [flag for word in words for flag in ("--wake-word", word)]
    result = run_service("streaming", "--input", TWO, *flags)
    assert result.returncode == 2
    (error,) = result.events
    assert (error["error_code"], error["message"], error["recoverable"]) == ("config_invalid", message, False)


def test_a_word_of_one_syllable_is_refused_at_once() -> None:
    result = run_service("streaming", "--input", TWO, "--wake-word", "小")
    assert (result.returncode, result.events) == (2, [])
    shown = "小".encode("ascii", "backslashreplace").decode()  # stderr is no UTF-8 here
    assert result.stderr == f"error: wake.words: '{shown}' is not allowed; allowed: 2 to 32 Chinese characters or Latin letters\n"


@MODES
def test_without_wake_words_none_of_their_modules_is_imported(mode: str) -> None:
    result = run_service(mode, "--input", TWO, "--status-events", planted=IMPORTED)
    assert "IMPORTED []\n" in result.stderr
    assert "unwoken_utterances" not in last_totals(result)
    woken = run_service(mode, "--input", TWO, "--wake-word", "今天", planted=IMPORTED)
    assert "'voice.wake'" in woken.stderr


def test_a_transcription_of_a_file_is_whole_whatever_the_wake_words() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "voice", "transcribe", TWO, "--embedded", "--no-emotion", "-f", "txt", "-o", "-"],
        cwd=REPOSITORY,
        env=environment(PYTHONIOENCODING="utf-8", VOICE_ASR__WAKE__WORDS='["你好小美"]'),
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert result.stdout == f"{WEATHER}？\n{ALARM}。\n"


def test_the_users_hotword_file_is_still_read_while_the_service_runs(tmp_path: Path) -> None:
    path, log = tmp_path / "words.txt", tmp_path / "log"
    path.write_text("张三\n", encoding="utf-8")
    samples = np.concatenate([example("two_utterances")[0], np.zeros(2 * 16_000, np.float32)])
    pcm = (samples * 32_767).astype("<i2").tobytes()
    with log.open("wb") as stderr:
        flags = ("--input", "-", "--hotwords", str(path), "--wake-word", "今天")
        service = start_service("streaming", *flags, stdin=subprocess.PIPE, stderr=stderr)
    stdin = service.process.stdin
    assert stdin is not None
    for again in (False, True):
        if again:
            path.write_text("李四\n王五\n", encoding="utf-8")
            os.utime(path, ns=(1, 1))
        stdin.write(pcm)
        for _ in (WEATHER, ALARM):
            service.wait_for(lambda event: event["type"].endswith("final"))
    stdin.close()
    service.process.stdin = None
    events, code = service.finish()
    assert (len(of_type(events, "wake")), code) == (2, 0)
    assert log.read_text(encoding="utf-8").count("hotwords_read") == 1


@MODES
def test_the_word_comes_before_the_utterance_ends_where_audio_comes_as_it_is_spoken(mode: str) -> None:
    """Streaming and sliced: the word is committed while the speaker goes on."""
    result = run_service(mode, "--input", TWO, "--realtime", "--wake-word", "今天", "--no-emotion")
    kinds = [event["type"] for event in result.events]
    assert kinds[0] == "voice.wake"
    assert "voice.asr_text.partial" in kinds[1 : kinds.index("voice.asr_text.final")]
    wake, first = result.events[0], of_type(result.events, "final")[0]
    assert wake["captured_ts"] < first["captured_ts"]
    assert wake["ts"] < first["ts"] - 500


def test_a_signal_gives_a_woken_utterance_its_final_and_tells_nothing_of_another() -> None:
    for word, expected in (("今天", 1), ("明天", 0)):
        service = start_service("streaming", "--input", "-", "--wake-word", word, "--status-events", stdin=subprocess.PIPE)
        service.wait_for(lambda event: event.get("state") == "listening")
        stdin = service.process.stdin
        assert stdin is not None
        stdin.write((example("two_utterances")[0][: int(2.4 * 16_000)] * 32_767).astype("<i2").tobytes())
        if expected:
            service.wait_for(lambda event: event["type"].endswith("partial"))
        service.process.terminate()
        events, code = service.finish()
        assert (len(of_type(events, "final")), len(of_type(events, "wake")), code) == (expected, expected, 0)
        assert [event for event in events if not event["type"].startswith("core.")] == [] or expected
