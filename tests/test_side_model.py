"""Side models: several of them label the same finals, on one thread, and each fails for itself alone."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from voice.audio import SAMPLE_RATE_HZ, Samples
from voice.errors import ErrorCode
from voice.finalization.finalizer import CompletedFinal, Draft, Finalizer, LateLabel, PendingLabel
from voice.finalization.side_model import Label, SideThread, TooManyUtterances
from voice.transcript import Emotion, Transcript

DEADLINE_SEC = 30


@dataclass(frozen=True, slots=True)
class LabelledTranscript(Transcript):
    """Takes the same kind of label from a second side model."""

    speaker: Emotion | None = None  # type: ignore[assignment]


def some_label(source: str, end_sample: int) -> Emotion:
    return Emotion(source, "happy", 0.75, {"happy": 0.75}, 0, end_sample)


class Scripted:
    """A side model that fills one field; it waits until it may answer, and raises an answer that is an exception."""

    def __init__(self, name: str, failure: ErrorCode, answers: Callable[[int], Exception | None] = lambda _: None) -> None:
        self.name, self.failure = name, failure
        self.field = name
        self.answers = answers
        self.calls: list[tuple[str, int]] = []
        self.threads: set[str] = set()
        self.began, self.may_answer = threading.Event(), threading.Event()
        self.may_answer.set()

    def accepts(self, num_samples: int) -> bool:
        return num_samples >= 100

    def label(self, audio: Samples, end_sample: int) -> Emotion | None:
        self.threads.add(threading.current_thread().name)
        self.calls.append((self.name, end_sample))
        self.began.set()
        assert self.may_answer.wait(DEADLINE_SEC)
        error = self.answers(len(self.calls))
        if error:
            raise error
        return some_label(self.name, end_sample)

    def settle(self, finding: Emotion) -> Emotion:
        return finding

    def attach(self, transcript: Transcript, label: Label) -> Transcript:
        return replace(transcript, **{self.field: label})


def two_models() -> tuple[Scripted, Scripted]:
    return Scripted("emotion", "emotion_failed"), Scripted("speaker", "runtime_error")


def draft(index: int = 1, num_samples: int = SAMPLE_RATE_HZ) -> Draft:
    transcript = LabelledTranscript(f"{index:016x}", (), 0, index * SAMPLE_RATE_HZ, "silence", raw_text="打开", text="打开")
    samples = np.zeros(num_samples, np.float32)
    return Draft(transcript, samples, samples)


def labels_of(final: CompletedFinal) -> tuple[Emotion | None, Emotion | None]:
    assert isinstance(final.transcript, LabelledTranscript)
    return final.transcript.emotion, final.transcript.speaker


def test_two_models_fill_their_own_fields_on_one_thread_in_the_order_of_the_work():
    emotion, speaker = two_models()
    emotion.calls = speaker.calls
    finalizer = Finalizer(side_models=[emotion, speaker])
    assert not finalizer.busy
    prepared = [finalizer.prepare(draft(index)) for index in (1, 2, 3)]
    for index, each in enumerate(prepared, 1):
        end_sample = index * SAMPLE_RATE_HZ
        assert labels_of(finalizer.complete(each)) == (some_label("emotion", end_sample), some_label("speaker", end_sample))
    assert emotion.threads == speaker.threads == {"side models"}
    assert emotion.calls == [(name, index * SAMPLE_RATE_HZ) for index in (1, 2, 3) for name in ("emotion", "speaker")]
    assert not finalizer.busy
    assert finalizer.take_late() == []


@pytest.mark.parametrize("failing", [0, 1])
def test_a_model_that_fails_costs_its_own_label_only(failing: int):
    models = two_models()
    models[failing].answers = lambda _: ValueError("planted")
    finalizer = Finalizer(side_models=models)
    final = finalizer.complete(finalizer.prepare(draft()))
    assert final.failures == ((models[failing].failure, "ValueError: planted"),)
    assert [label is None for label in labels_of(final)] == [failing == 0, failing == 1]


def test_a_model_that_fails_labels_the_next_utterance_again():
    emotion = Scripted("emotion", "emotion_failed", lambda call: ValueError("planted") if call == 1 else None)
    finalizer = Finalizer(side_models=[emotion])
    finals = [finalizer.complete(finalizer.prepare(draft(index))) for index in (1, 2)]
    assert [bool(final.failures) for final in finals] == [True, False]
    assert labels_of(finals[1])[0] is not None


def test_a_label_that_is_ready_is_in_the_final_and_the_other_one_follows():
    emotion, speaker = two_models()
    speaker.may_answer.clear()
    finalizer = Finalizer(side_models=[emotion, speaker], max_wait_sec=0.01)
    prepared = finalizer.prepare(draft())
    assert speaker.began.wait(DEADLINE_SEC), "so the emotion is there"
    final = finalizer.complete(prepared)
    assert labels_of(final) == (some_label("emotion", SAMPLE_RATE_HZ), None)
    assert final.failures == ()
    assert finalizer.busy
    assert finalizer.take_late() == []
    speaker.may_answer.set()
    assert finalizer.take_late(DEADLINE_SEC) == [LateLabel(draft().transcript.trace_id, some_label("speaker", SAMPLE_RATE_HZ))]
    assert finalizer.take_late() == []
    assert not finalizer.busy


def test_late_labels_of_both_models_come_in_the_order_of_their_finals():
    emotion, speaker = two_models()
    emotion.may_answer.clear()
    speaker.answers = lambda call: ValueError("planted") if call == 2 else None
    finalizer = Finalizer(side_models=[emotion, speaker], max_wait_sec=0.0)
    for index in (1, 2):
        assert labels_of(finalizer.complete(finalizer.prepare(draft(index)))) == (None, None)
    emotion.may_answer.set()
    one, two = (f"{index:016x}" for index in (1, 2))
    assert finalizer.take_late(DEADLINE_SEC) == [
        LateLabel(one, some_label("emotion", SAMPLE_RATE_HZ)),
        LateLabel(one, some_label("speaker", SAMPLE_RATE_HZ)),
        LateLabel(two, some_label("emotion", 2 * SAMPLE_RATE_HZ)),
        LateLabel(two, None, ("runtime_error", "ValueError: planted")),
    ]


def test_what_is_given_up_is_a_failure_of_each_model_and_stays_given_up():
    emotion, speaker = two_models()
    emotion.may_answer.clear()
    finalizer = Finalizer(side_models=[emotion, speaker], max_wait_sec=0.0)
    finalizer.complete(finalizer.prepare(draft()))
    assert emotion.began.wait(DEADLINE_SEC)
    reason = "TimeoutError: it was not ready when the service ended"
    assert finalizer.give_up_late() == [
        LateLabel(draft().transcript.trace_id, None, ("emotion_failed", reason)),
        LateLabel(draft().transcript.trace_id, None, ("runtime_error", reason)),
    ]
    emotion.may_answer.set()
    assert labels_of(finalizer.complete(finalizer.prepare(draft(2)))) == (None, None)
    assert [late.trace_id for late in finalizer.take_late(DEADLINE_SEC)] == [f"{2:016x}"] * 2
    assert [end_sample for _, end_sample in speaker.calls] == [2 * SAMPLE_RATE_HZ], "what had not started was taken back"
    assert finalizer.give_up_late() == []


def test_the_wait_for_late_labels_is_bounded():
    emotion, speaker = two_models()
    emotion.may_answer.clear()
    finalizer = Finalizer(side_models=[emotion, speaker], max_wait_sec=0.0)
    finalizer.complete(finalizer.prepare(draft()))
    assert finalizer.take_late(0.05) == []
    emotion.may_answer.set()
    assert len(finalizer.take_late(DEADLINE_SEC)) == 2


class ReadyAtTheSecondLook(Future):  # type: ignore[type-arg]
    """Becomes ready between two questions whether it is."""

    looks = 0

    def done(self) -> bool:
        self.looks += 1
        if self.looks == 2:
            self.set_result(some_label("emotion", 1))
        return super().done()


def test_a_label_that_becomes_ready_while_the_late_ones_are_taken_is_not_lost():
    emotion, _ = two_models()
    finalizer = Finalizer(side_models=[emotion])
    finalizer._late = [PendingLabel("1" * 16, emotion, ReadyAtTheSecondLook())]
    taken = finalizer.take_late() + finalizer.take_late()
    assert taken == [LateLabel("1" * 16, some_label("emotion", 1))]


def test_a_cancelled_final_costs_the_models_nothing_that_had_not_started():
    emotion, speaker = two_models()
    emotion.may_answer.clear()
    finalizer = Finalizer(side_models=[emotion, speaker])
    cancelled, wanted = finalizer.prepare(draft(1)), finalizer.prepare(draft(2))
    assert emotion.began.wait(DEADLINE_SEC)
    finalizer.cancel(cancelled)
    emotion.may_answer.set()
    assert None not in labels_of(finalizer.complete(wanted))
    assert [end_sample for _, end_sample in speaker.calls] == [2 * SAMPLE_RATE_HZ]
    assert finalizer.take_late() == []


def test_a_model_asks_for_its_own_length():
    emotion, speaker = two_models()
    speaker.accepts = lambda num_samples: num_samples >= 1_000  # type: ignore[method-assign]
    finalizer = Finalizer(side_models=[emotion, speaker])
    final = finalizer.complete(finalizer.prepare(draft(num_samples=999)))
    assert [label is None for label in labels_of(final)] == [False, True]
    assert final.failures == ()
    assert finalizer.prepare(draft(num_samples=99)).labels == ()


def test_a_slow_model_that_refuses_work_leaves_room_for_the_other_one():
    emotion, speaker = two_models()
    emotion.may_answer.clear()
    speaker.accepts = lambda num_samples: num_samples >= 1_000  # type: ignore[method-assign]
    finalizer = Finalizer(side_models=[emotion, speaker])
    for index in (1, 2, 3, 4):
        assert finalizer.prepare(draft(index, num_samples=500)).failures == ()
    refused = finalizer.prepare(draft(5))
    assert refused.failures == (("emotion_failed", "TooManyUtterances: 4 utterances wait for the emotion model already"),)
    emotion.may_answer.set()
    assert labels_of(finalizer.complete(refused)) == (None, some_label("speaker", 5 * SAMPLE_RATE_HZ))


def test_finalizers_that_share_their_models_share_a_thread_and_its_bound():
    emotion, _ = two_models()
    emotion.may_answer.clear()
    thread = SideThread()
    one, other = Finalizer(side_models=[emotion], side_thread=thread), Finalizer(side_models=[emotion], side_thread=thread)
    prepared = [one.prepare(draft(index)) for index in (1, 2, 3, 4)]
    assert one.busy
    assert other.busy
    with pytest.raises(TooManyUtterances):
        thread.submit(emotion, draft().audio, 0)
    assert [code for code, _ in other.prepare(draft()).failures] == ["emotion_failed"]
    emotion.may_answer.set()
    assert all(labels_of(one.complete(each))[0] for each in prepared)
    assert labels_of(other.complete(other.prepare(draft())))[0]


def test_work_that_was_cancelled_does_not_count_against_the_bound():
    emotion, _ = two_models()
    emotion.may_answer.clear()
    finalizer = Finalizer(side_models=[emotion])
    finalizer.prepare(draft())
    assert emotion.began.wait(DEADLINE_SEC)
    for _ in range(20):
        prepared = finalizer.prepare(draft())
        assert prepared.failures == ()
        finalizer.cancel(prepared)
    emotion.may_answer.set()


def test_the_thread_does_not_keep_a_process_that_ends():
    emotion, _ = two_models()
    finalizer = Finalizer(side_models=[emotion])
    finalizer.complete(finalizer.prepare(draft()))
    assert {thread.daemon for thread in threading.enumerate() if thread.name == "side models"} == {True}


def niceness_of_this_thread() -> int:
    """What Linux's scheduler uses: field 19 of the thread's line; the second one, its name in parentheses, may hold spaces."""
    line = Path(f"/proc/self/task/{threading.get_native_id()}/stat").read_text(encoding="utf-8")
    return int(line.rpartition(")")[2].split()[19 - 3])


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
def test_side_models_give_way_to_the_thread_of_the_words():
    seen: list[int] = []
    emotion, _ = two_models()
    emotion.answers = lambda _: seen.append(niceness_of_this_thread())
    before = niceness_of_this_thread()
    finalizer = Finalizer(side_models=[emotion])
    for index in (1, 2):
        assert labels_of(finalizer.complete(finalizer.prepare(draft(index))))[0] is not None
    assert seen == [min(before + 10, 19)] * 2
    assert niceness_of_this_thread() == before


def test_a_system_that_refuses_priorities_costs_no_label(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "setpriority", refuse)
    emotion, _ = two_models()
    finalizer = Finalizer(side_models=[emotion])
    assert labels_of(finalizer.complete(finalizer.prepare(draft())))[0] is not None
