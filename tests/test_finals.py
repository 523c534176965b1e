"""Finals as a parent reads them: whole after a pause, without the part that fails, in time although the emotion is not."""

from __future__ import annotations

import difflib
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from harness import ENTRIES, EXAMPLES, Event, example, final_texts, in_time, of_type, run_service, start_service

pytestmark = pytest.mark.slow

MODES = pytest.mark.parametrize("mode", ENTRIES)
SPEECH_MS = {"air_conditioner": (544, 1792), "temperature": (544, 2560)}
SLOW_EMOTION = """
import time
from voice.finalization.emotion import OnnxEmotion
heard = OnnxEmotion.scores
def scores(self, samples):
    time.sleep({seconds})
    return heard(self, samples)
OnnxEmotion.scores = scores
"""


def with_pause(pause_ms: int, path: Path) -> Path:
    """Two commands with so much digital silence between the speech of the one and the other."""
    (first, _), (second, _) = example("air_conditioner"), example("temperature")
    pieces = [
        first[: SPEECH_MS["air_conditioner"][1] * 16],
        np.zeros(pause_ms * 16),
        second[SPEECH_MS["temperature"][0] * 16 :],
        np.zeros(24_000),
    ]
    soundfile.write(path, np.concatenate(pieces).astype(np.float32), 16_000)
    return path


def unstamped(events: list[Event]) -> list[Event]:
    """Without what differs from run to run: one more partial is replaced by the next before it is written, or one less."""
    kept = [event for event in events if event["type"] != "voice.asr_text.partial"]
    return [{key: value for key, value in event.items() if key not in ("ts", "trace_id", "seq", "captured_ts")} for event in kept]


@MODES
@pytest.mark.parametrize("pause_ms", [100, 400, 770])
def test_speech_that_resumes_goes_on_in_its_utterance(mode: str, pause_ms: int, tmp_path: Path) -> None:
    """770 ms is the longest pause below 800 in Silero's windows of 32 ms."""
    wav = str(with_pause(pause_ms, tmp_path / "paused.wav"))
    result = run_service(mode, "--input", wav)
    (final,) = of_type(result.events, "final")
    (first,), (second,) = example("air_conditioner")[1], example("temperature")[1]
    assert final["raw_text"].startswith(first)
    assert difflib.SequenceMatcher(None, final["raw_text"], first + second).ratio() > 0.9
    assert final["tokens"][len(first + second) - 3]["start_ms"] > SPEECH_MS["air_conditioner"][1] + pause_ms
    shown = [event["text"] for event in of_type(result.events, "partial")]
    assert not any(set(text) & set("，。？、") for text in shown), "nothing of the final that was thrown away shows"
    without = run_service(mode, "--input", wav, VOICE_ASR__FINAL__SPECULATE="false")
    assert unstamped(result.events) == unstamped(without.events)


@MODES
def test_a_pause_of_the_endpoint_s_length_makes_two_utterances(mode: str, tmp_path: Path) -> None:
    result = run_service(mode, "--input", str(with_pause(830, tmp_path / "paused.wav")))
    first, second = final_texts(result.events)
    assert first.startswith(example("air_conditioner")[1][0]), "the cut to digital silence may sound like one more"
    assert second == example("temperature")[1][0]


FAILING = {
    "second_pass_failed": "voice.recognition.second_pass:SamePass.tokens",
    "hotword_repair_failed": "voice.finalization.hotword_repair:HotwordRepair.repair",
    "punctuation_failed": "voice.finalization.punctuation:OnnxPunctuation.punctuate",
    "number_format_failed": "voice.finalization.number_format:NumberFormat.normalize",
    "emotion_failed": "voice.finalization.emotion:OnnxEmotion.scores",
}


@pytest.mark.parametrize("code", FAILING)
def test_each_part_may_fail_alone(code: str) -> None:
    module, _, method = FAILING[code].partition(":")
    owner, _, name = method.partition(".")
    planted = f"""
from {module} import {owner}
def fail(self, given, **options):
    if len(given): raise RuntimeError("planted")
{owner}.{name} = fail
"""
    arguments = ("--input", str(EXAMPLES / "temperature.wav"), "--second-pass", "same", "--itn")
    result = run_service("streaming", *arguments, planted=planted)
    assert result.returncode == 0
    (final,), (error,) = of_type(result.events, "final"), of_type(result.events, "error_event")
    assert (error["error_code"], error["message"], error["recoverable"]) == (code, "RuntimeError: planted", True)
    assert error["trace_id"] == final["trace_id"]
    assert [final["raw_text"]] == list(example("temperature")[1])
    assert ("。" in final["text"]) == (code != "punctuation_failed")
    assert ("26" in final["text"]) == (code != "number_format_failed")
    assert (final["emotion"] is None) == (code == "emotion_failed")


def test_a_final_does_not_wait_for_a_slow_emotion_which_follows_it() -> None:
    planted = SLOW_EMOTION.format(seconds=4)
    service = start_service("streaming", "--input", "-", stdin=subprocess.PIPE, planted=planted)
    assert service.process.stdin is not None
    pcm = np.concatenate((example("temperature")[0], np.zeros(16_000))) * 32_767
    service.process.stdin.write(pcm.astype("<i2").tobytes())
    final = service.wait_for(lambda event: event["type"].endswith("final"))
    assert final["emotion"] is None
    assert final["text"].endswith("。")
    emotion = service.wait_for(lambda event: event["type"].endswith("emotion"))  # stdin is open and silent
    assert emotion["trace_id"] == final["trace_id"]
    assert (emotion["start_ms"], emotion["end_ms"]) == (final["start_ms"], final["end_ms"])
    assert emotion["ts"] - final["ts"] > 500
    _, code = service.finish()
    assert code == 0


def test_at_the_end_of_the_input_late_emotions_are_waited_for() -> None:
    planted = SLOW_EMOTION.format(seconds=3)
    pcm = (example("two_utterances")[0] * 32_767).astype("<i2").tobytes()
    result = run_service("streaming", "--input", "-", stdin=pcm, planted=planted)
    finals, emotions = of_type(result.events, "final"), of_type(result.events, "emotion")
    assert [event["emotion"] for event in finals] == [None, None]
    assert [event["trace_id"] for event in emotions] == [event["trace_id"] for event in finals]
    assert result.returncode == 0


def test_a_file_that_is_read_as_fast_as_it_goes_waits_for_its_emotions() -> None:
    result = run_service("streaming", "--input", str(EXAMPLES / "temperature.wav"), planted=SLOW_EMOTION.format(seconds=1))
    (final,) = of_type(result.events, "final")
    assert final["emotion"] is not None


def test_a_stop_does_not_wait_for_an_emotion_that_takes_long() -> None:
    planted = SLOW_EMOTION.format(seconds=60)
    service = start_service("streaming", "--input", str(EXAMPLES / "temperature.wav"), "--realtime", planted=planted)
    service.wait_for(lambda event: event["type"].endswith("partial"))
    time.sleep(1)
    service.process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    events, code = service.finish()
    assert time.monotonic() - sent < in_time(3)
    assert code == 0
    (final,), (error,) = of_type(events, "final"), of_type(events, "error_event")
    assert final["text"]
    assert (error["error_code"], error["trace_id"]) == ("emotion_failed", final["trace_id"])
