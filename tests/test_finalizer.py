"""Finalization: what a final carries besides its text may fail without costing it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import structlog

from voice.audio import SAMPLE_RATE_HZ, Samples, ms_to_samples
from voice.errors import ErrorCode
from voice.finalization.emotion import EMOTION_NAMES, EmotionLabeller, EmotionSettings, name_of
from voice.finalization.finalizer import CompletedFinal, Draft, Finalizer, TextStep
from voice.transcript import Emotion, EmotionName, Endpoint, Transcript

SETTINGS = EmotionSettings(min_samples=ms_to_samples(500), max_samples=15 * SAMPLE_RATE_HZ, min_confidence=0.4)
START = 3 * SAMPLE_RATE_HZ
HAPPY: dict[EmotionName, float] = {**dict.fromkeys(EMOTION_NAMES, 0.0), "happy": 0.75, "neutral": 0.25}


class ScriptedEmotion:
    """Answers with the given scores, or raises them, one after the other; keeps what it was given."""

    source = "funasr.scripted"

    def __init__(self, *answers: dict[EmotionName, float] | Exception) -> None:
        self._answers = list(answers)
        self.given: list[Samples] = []

    def scores(self, samples: Samples) -> dict[EmotionName, float]:
        self.given.append(samples)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def draft(num_samples: int, trace_id: str = "0123456789abcdef") -> Draft:
    transcript = Transcript(trace_id, (), START, START + num_samples, "silence", raw_text="打开", text="打开")
    samples = np.arange(num_samples, dtype=np.float32) / num_samples
    return Draft(transcript, samples, samples)


def finalize(model: ScriptedEmotion | None, *drafts: Draft) -> list[CompletedFinal]:
    finalizer = Finalizer(side_models=[EmotionLabeller(model, SETTINGS)] if model else [])
    return [finalizer.complete(finalizer.prepare(each)) for each in drafts]


def test_the_emotion_is_attached_with_the_span_it_was_made_of():
    given = draft(2 * SAMPLE_RATE_HZ)
    (finalized,) = finalize(ScriptedEmotion(HAPPY), given)
    emotion = Emotion("funasr.scripted", "happy", 0.75, HAPPY, START, START + 2 * SAMPLE_RATE_HZ)
    assert finalized.transcript.emotion == emotion
    assert finalized.failures == ()
    assert (finalized.transcript.text, finalized.transcript.trace_id) == ("打开", given.transcript.trace_id)


def test_without_a_model_there_is_no_emotion_and_no_failure():
    given = draft(2 * SAMPLE_RATE_HZ)
    assert finalize(None, given) == [CompletedFinal(given.transcript)]


@pytest.mark.parametrize(("num_samples", "calls"), [(ms_to_samples(500) - 1, 0), (ms_to_samples(500), 1), (0, 0)])
def test_a_short_utterance_has_no_emotion_and_the_model_is_not_asked(num_samples: int, calls: int):
    model = ScriptedEmotion(HAPPY)
    (finalized,) = finalize(model, draft(num_samples))
    assert len(model.given) == calls
    assert (finalized.transcript.emotion is not None) == bool(calls)
    assert finalized.failures == ()


@pytest.mark.parametrize(("score", "label"), [(0.399, None), (0.4, "sad")])
def test_an_uncertain_emotion_is_none_rather_than_a_guess(score: float, label: EmotionName | None):
    scores = {**dict.fromkeys(EMOTION_NAMES, (1 - score) / 8), "sad": score}
    (finalized,) = finalize(ScriptedEmotion(scores), draft(SAMPLE_RATE_HZ))
    emotion = finalized.transcript.emotion
    assert (emotion and emotion.label) == label
    assert finalized.failures == ()


def test_only_the_end_of_a_long_utterance_is_labelled():
    model = ScriptedEmotion(HAPPY)
    long = draft(20 * SAMPLE_RATE_HZ)
    (finalized,) = finalize(model, long)
    (given,) = model.given
    np.testing.assert_array_equal(given, long.audio[5 * SAMPLE_RATE_HZ :])
    emotion = finalized.transcript.emotion
    assert emotion is not None
    assert (emotion.start_sample, emotion.end_sample) == (START + 5 * SAMPLE_RATE_HZ, START + 20 * SAMPLE_RATE_HZ)


def test_a_model_that_fails_costs_nothing_but_a_failure():
    given = draft(SAMPLE_RATE_HZ)
    model = ScriptedEmotion(RuntimeError("out of\n memory"), HAPPY)
    failed, next_one = finalize(model, given, draft(SAMPLE_RATE_HZ, trace_id="fedcba9876543210"))
    assert failed == CompletedFinal(given.transcript, (("emotion_failed", "RuntimeError: out of memory"),))
    assert next_one.transcript.emotion is not None
    assert next_one.failures == ()


def test_what_a_model_that_fails_says_is_not_logged():
    with structlog.testing.capture_logs() as logs:
        finalize(ScriptedEmotion(RuntimeError("words")), draft(SAMPLE_RATE_HZ))
    (line,) = logs
    assert (line["event"], line["error"]) == ("emotion_failed", "RuntimeError")
    assert line["places"]
    assert "words" not in str(line)


@pytest.mark.parametrize("answer", [{}, dict.fromkeys(EMOTION_NAMES, math.nan)], ids=["no scores", "not a number"])
def test_an_answer_that_is_none_is_a_failure_and_not_an_emotion(answer: dict[EmotionName, float]):
    """A final with NaN in it could not be written at all."""
    given = draft(SAMPLE_RATE_HZ)
    (finalized,) = finalize(ScriptedEmotion(answer), given)
    assert finalized.transcript == given.transcript
    assert [code for code, _ in finalized.failures] == ["emotion_failed"]


class HeldEmotion(ScriptedEmotion):
    """Begins its first answer, and gives it when it may."""

    def __init__(self, *answers: dict[EmotionName, float] | Exception) -> None:
        super().__init__(*answers)
        self.began, self.may_answer = threading.Event(), threading.Event()

    def scores(self, samples: Samples) -> dict[EmotionName, float]:
        self.began.set()
        assert self.may_answer.wait(30)
        return super().scores(samples)


def test_the_text_does_not_wait_for_the_emotion_and_the_final_only_so_long():
    model = HeldEmotion(HAPPY)
    finalizer = Finalizer([("punctuation_failed", marked)], [EmotionLabeller(model, SETTINGS)], max_wait_sec=0.01)
    prepared = finalizer.prepare(draft(SAMPLE_RATE_HZ))
    assert prepared.transcript.text == "打开。"
    assert finalizer.complete(prepared) == CompletedFinal(prepared.transcript)
    assert finalizer.take_late() == []
    model.may_answer.set()
    (late,) = finalizer.take_late(30)
    assert late.trace_id == prepared.transcript.trace_id
    assert late.label is not None
    assert late.failure is None
    assert finalizer.take_late() == []


def test_what_is_cancelled_before_its_turn_is_not_labelled():
    model = HeldEmotion(HAPPY, HAPPY)
    finalizer = Finalizer(side_models=[EmotionLabeller(model, SETTINGS)])
    first, cancelled, last = (finalizer.prepare(draft(seconds * SAMPLE_RATE_HZ)) for seconds in (1, 2, 3))
    assert model.began.wait(30)
    finalizer.cancel(cancelled)
    model.may_answer.set()
    assert [finalizer.complete(prepared).transcript.emotion is not None for prepared in (first, last)] == [True, True]
    assert [len(samples) // SAMPLE_RATE_HZ for samples in model.given] == [1, 3]


def test_what_waits_for_a_slow_model_is_bounded():
    model = HeldEmotion(*[HAPPY] * 5)
    finalizer = Finalizer(side_models=[EmotionLabeller(model, SETTINGS)])
    prepared = [finalizer.prepare(draft(SAMPLE_RATE_HZ)) for _ in range(5)]
    assert [bool(each.labels) for each in prepared] == [True] * 4 + [False]
    ((code, message),) = prepared[-1].failures
    assert code == "emotion_failed"
    assert message == "TooManyUtterances: 4 utterances wait for the emotion model already"
    assert finalizer.busy
    model.may_answer.set()
    assert all(finalizer.complete(each).transcript.emotion for each in prepared[:4])
    assert not finalizer.busy
    assert finalizer.prepare(draft(SAMPLE_RATE_HZ)).labels, "there is room again"


def marked(text: str, *, ended: bool) -> str:
    return text + ("。" if ended else "")


def renamed(text: str, *, ended: bool) -> str:
    del ended
    return text.replace("打", "大")


def broken(text: str, *, ended: bool) -> str:
    raise ValueError("no")


def shouted(text: str, *, ended: bool) -> str:
    del ended
    return text + "！"


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [("silence", "打开。"), ("end_of_input", "打开。"), ("max_duration", "打开"), ("audio_lost", "打开"), ("shutdown", "打开")],
)
def test_an_end_mark_stands_only_where_the_speaker_ended(endpoint: Endpoint, text: str):
    given = draft(SAMPLE_RATE_HZ)
    finalizer = Finalizer([("punctuation_failed", marked)])
    finalized = finalizer.prepare(replace(given, transcript=replace(given.transcript, endpoint=endpoint)))
    assert (finalized.transcript.text, finalized.transcript.raw_text) == (text, "打开")


def test_a_step_that_fails_costs_its_own_change_only():
    given = draft(SAMPLE_RATE_HZ)
    steps: list[tuple[ErrorCode, TextStep]] = [
        ("hotword_repair_failed", renamed),
        ("punctuation_failed", broken),
        ("number_format_failed", shouted),
    ]
    finalizer = Finalizer(steps, [EmotionLabeller(ScriptedEmotion(HAPPY), SETTINGS)])
    finalized = finalizer.complete(finalizer.prepare(given))
    assert (finalized.transcript.text, finalized.transcript.raw_text) == ("大开！", "打开")
    assert finalized.transcript.emotion is not None
    assert finalized.failures == (("punctuation_failed", "ValueError: no"),)


def test_what_a_step_that_fails_quotes_of_the_text_is_not_logged():
    def quotes(text: str, *, ended: bool) -> str:
        return str(int(text))

    with structlog.testing.capture_logs() as logs:
        prepared = Finalizer([("number_format_failed", quotes)]).prepare(draft(SAMPLE_RATE_HZ))
    assert "打开" in prepared.failures[0][1], "the event goes where the text goes"
    (line,) = logs
    assert (line["event"], line["error"]) == ("number_format_failed", "ValueError")
    assert line["places"][-1].endswith(" quotes")
    assert "打开" not in str(line)


CHINESE = {
    "生气": "angry",
    "厌恶": "disgusted",
    "恐惧": "fearful",
    "开心": "happy",
    "中立": "neutral",
    "其他": "other",
    "难过": "sad",
    "吃惊": "surprised",
}


@pytest.mark.parametrize(("chinese", "name"), CHINESE.items())
@pytest.mark.parametrize("form", ["{0}/{1}".format, "{0}/ {1} ".format, lambda _, name: name, lambda _, name: name.upper()])
def test_a_label_is_known_bilingual_bare_and_in_any_case(chinese: str, name: str, form: Callable[[str, str], str]):
    assert name_of(form(chinese, name)) == name


@pytest.mark.parametrize(
    ("label", "name"),
    [("<unk>", "unknown"), ("未知/<unk>", "unknown"), ("unknown", "unknown"), ("fear", "fearful"), ("disgust", "disgusted")],
)
def test_other_spellings_are_known(label: str, name: str):
    assert name_of(label) == name


@pytest.mark.parametrize("label", ["unuse_0", "生气", "", "/", "angry/生气", "bored"])
def test_a_label_that_is_none_of_the_nine_is_none(label: str):
    assert name_of(label) is None
