"""Finals that come later than their endpoints: the order of events, and what waits behind them. The server is scripted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fakes import LoudnessVad, silence, speech
from harness import check_guarantees
from test_pipeline import SETTINGS, trace_ids

from voice.audio import AudioBlock, Samples
from voice.awaited import Awaited
from voice.finalization.finalizer import Finalizer
from voice.losses import LossLedger
from voice.output.wire import partial_event
from voice.pipeline import Pipeline
from voice.recognition.recognizer import Unanswered
from voice.transcript import REMOTE_SOURCE, Hypothesis


class Server:
    """A recogniser whose streams say what a test tells them, when it tells them."""

    source = REMOTE_SOURCE
    is_congested = False

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.problems: list[str] = []
        self.closed = 0

    def create_stream(self, first_sample: int, trace_id: str = "") -> Stream:
        self.streams.append(Stream(first_sample, trace_id))
        return self.streams[-1]

    def take_problems(self) -> list[str]:
        problems, self.problems = self.problems, []
        return problems

    def close(self) -> None:
        self.closed += 1


class Stream:
    source = REMOTE_SOURCE
    supports_copy = False

    def __init__(self, first_sample: int, trace_id: str) -> None:
        self.first_sample, self.trace_id = first_sample, trace_id
        self.decoded_until = first_sample
        self.text, self.shown = "", ""
        self.answer: Hypothesis | Unanswered | Exception | None = None
        self.finished = 0
        self.given_up: list[str] = []

    def accept(self, samples: Samples, *, provisional: bool = True) -> bool:
        return self.poll()

    def preview(self) -> bool:
        return False

    def poll(self) -> bool:
        changed, self.shown = self.text != self.shown, self.text
        return changed

    def hypothesis(self) -> Hypothesis:
        return Hypothesis(given_text=self.text)

    def finish(self) -> None:
        self.finished += 1

    def result(self) -> Hypothesis | Unanswered | None:
        if isinstance(self.answer, Exception):
            error, self.answer = self.answer, None
            raise error
        return self.answer

    def give_up(self, reason: str) -> None:
        self.given_up.append(reason)
        self.answer = self.answer or Unanswered(reason)

    def copy(self) -> Any:
        raise AssertionError("supports_copy is False")


class Run:
    """A pipeline on such a server, and all of its events."""

    def __init__(self, **options: Any) -> None:
        self.server = Server()
        self.ledger = LossLedger()
        self.kept: list[str] = []
        self.pipeline = Pipeline(
            SETTINGS,
            LoudnessVad(),
            self.server,
            options.get("finalizer", Finalizer()),
            ledger=self.ledger,
            new_trace_id=trace_ids(),
            keep=lambda trace_id, _: self.kept.append(trace_id),
        )
        self.events: list[dict[str, Any]] = []

    def hear(self, *parts: Samples) -> list[dict[str, Any]]:
        return self._add(self.pipeline.process(AudioBlock(np.concatenate(parts)[:, np.newaxis], 16_000)))

    def poll(self) -> list[dict[str, Any]]:
        return self._add(self.pipeline.poll())

    def _add(self, events: list[Any]) -> list[dict[str, Any]]:
        dumped = [event.model_dump() for event in events]
        self.events += dumped
        return dumped

    def utterance(self) -> list[dict[str, Any]]:
        return self.hear(speech(1.0), silence(1.2))


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].rpartition(".")[2] for event in events]


def test_a_final_comes_when_the_server_answers() -> None:
    run = Run()
    assert kinds(run.utterance()) == ["started", "ended"]
    assert run.pipeline.awaits_answers
    assert not run.pipeline.at_rest
    assert not run.pipeline.in_utterance
    assert run.poll() == []
    run.server.streams[0].answer = Hypothesis(given_text="今天，好。")
    (final,) = run.poll()
    assert (final["text"], final["raw_text"], final["confidence"], final["tokens"]) == ("今天，好。", "今天好", None, [])
    assert (final["source"], final["endpoint"]) == (REMOTE_SOURCE, "silence")
    assert (final["start_ms"], final["end_ms"]) == (0, 1_024)
    assert final["level"]["rms_dbfs"] > -20
    assert not run.pipeline.awaits_answers
    assert run.pipeline.totals.utterances == 1
    (summary,) = run.pipeline.take_summaries()
    assert summary.log_fields["confidence"] is None
    assert run.kept == [final["trace_id"]]


def test_what_a_server_says_by_itself_is_shown_while_nothing_is_heard() -> None:
    run = Run()
    run.hear(speech(1.0))
    assert run.poll() == []
    run.server.streams[0].text = "今天"
    (partial,) = run.poll()
    assert (partial["text"], partial["stable_chars"], partial["confidence"]) == ("今天", 0, None)
    assert run.poll() == []


def test_events_of_the_next_utterance_wait_behind_the_final() -> None:
    run = Run()
    run.utterance()
    run.hear(speech(1.0))
    second = run.server.streams[1]
    for second.text in ("明", "明天", "明天见"):
        assert run.poll() == []
    run.hear(silence(1.2))
    run.server.streams[0].answer = Hypothesis(given_text="今天")
    events = run.poll()
    assert kinds(events) == ["final", "started", "partial", "ended"], "only the newest partial"
    assert events[2]["text"] == "明天见"
    second.answer = Hypothesis(given_text="明天见。")
    assert kinds(run.poll()) == ["final"]
    check_guarantees(run.events)


def test_nobody_labels_an_utterance_in_which_nothing_was_recognised() -> None:
    cancelled: list[Any] = []

    class Spy(Finalizer):
        def cancel(self, prepared: Any) -> None:
            cancelled.append(prepared)

    run = Run(finalizer=Spy())
    run.utterance()
    run.server.streams[0].answer = Hypothesis(given_text="")
    run.poll()
    assert len(cancelled) == 1


def test_partials_of_each_utterance_wait_for_themselves() -> None:
    run = Run()
    run.utterance()
    awaited = Awaited()
    awaited.add(Any)  # type: ignore[arg-type]
    first, second = (partial_event(f"{index:016x}", REMOTE_SOURCE, Hypothesis(given_text="好"), 0, 1) for index in range(2))
    awaited.hold([first, second, first])
    assert awaited._queue[0].behind == [second, first]


def test_answers_come_in_the_order_of_the_utterances() -> None:
    run = Run()
    for _ in range(3):
        run.utterance()
    one, two, three = run.server.streams
    three.answer = Hypothesis(given_text="三")
    two.answer = Hypothesis(given_text="二")
    assert run.poll() == []
    one.answer = Hypothesis(given_text="")
    assert kinds(run.poll()) == ["started", "ended", "final", "started", "ended", "final"], "nothing was recognised in the first"
    assert [event["text"] for event in run.events if event["type"].endswith("final")] == ["二", "三"]
    assert (run.pipeline.totals.utterances, run.pipeline.totals.empty_utterances) == (2, 1)
    check_guarantees(run.events)


def test_errors_of_the_server_wait_for_nobody() -> None:
    run = Run()
    run.utterance()
    run.server.problems = ["EngineUnavailable: gone"]
    (error,) = run.poll()
    assert (error["error_code"], error["message"], error["recoverable"]) == ("engine_unavailable", "EngineUnavailable: gone", True)
    assert error["trace_id"] != run.events[0]["trace_id"], "that would mean that the utterance was given up"
    assert run.pipeline.totals.errors == 1
    assert run.poll() == []


def test_an_utterance_that_is_given_up_without_text_is_a_loss_and_no_final() -> None:
    run = Run()
    run.utterance()
    run.server.streams[0].answer = Unanswered("EngineUnavailable: too late")
    (error,) = run.poll()
    assert (error["error_code"], error["message"]) == ("engine_unavailable", "EngineUnavailable: too late")
    assert error["trace_id"] == run.events[0]["trace_id"]
    assert run.pipeline.totals.model_dump() | {"audio_ms": 0} == {
        "utterances": 0,
        "empty_utterances": 0,
        "audio_ms": 0,
        "lost_ms": 1_024,
        "rejected_ms": 0,
        "errors": 1,
    }
    assert run.pipeline.totals.audio_ms == 2_200, "the sample index does not move"


@pytest.mark.parametrize(("text", "heard_until"), [("", 100_000), ("今天", 0)])
def test_what_is_lost_is_speech_and_all_of_it_where_there_is_no_text(text: str, heard_until: int) -> None:
    run = Run()
    run.hear(silence(1.0))
    run.utterance()
    run.server.streams[0].text = text
    run.server.streams[0].answer = Unanswered("EngineUnavailable: too late", heard_until)
    run.poll()
    (started,), (ended,) = ([event for event in run.events if event["type"].endswith(kind)] for kind in ("started", "ended"))
    assert run.pipeline.totals.lost_ms == ended["end_ms"] - started["start_ms"]


def test_an_answer_that_is_not_there_yet_is_no_failure() -> None:
    run = Run()
    run.utterance()
    run.poll()
    assert run.pipeline._awaited.concluding is None, "an exception elsewhere would be taken for one of this utterance"


def test_an_utterance_that_is_given_up_has_its_partial_as_its_final() -> None:
    run = Run()
    run.hear(speech(1.0))
    stream = run.server.streams[0]
    stream.text = "今"
    run.poll()
    run.hear(silence(1.2))
    stream.text = "今天"  # came after the end, and was not shown
    stream.answer = Unanswered("EngineUnavailable: too late", heard_until=9_600)
    final, error = run.poll()
    assert (final["text"], final["lost_ms"]) == ("今天", 1_024 - 600)
    assert error["trace_id"] == final["trace_id"]
    assert run.pipeline.totals.lost_ms == 424
    check_guarantees(run.events)


def test_at_the_end_of_the_service_nobody_waits() -> None:
    run = Run()
    run.utterance()
    run.utterance()
    run.server.streams[1].answer = Hypothesis(given_text="二")
    run._add(run.pipeline.stop_waiting("TimeoutError: the end"))
    assert [stream.given_up for stream in run.server.streams] == [["TimeoutError: the end"], ["TimeoutError: the end"]]
    assert kinds(run.events) == ["started", "ended", "error_event", "started", "ended", "final"], "an answer that is there is taken"
    run.pipeline.close()
    assert run.server.closed == 1


def test_a_bug_that_ends_the_process_gives_each_utterance_what_it_showed() -> None:
    run = Run()
    run.hear(speech(1.0))
    run.server.streams[0].text = "今天"
    run.hear(speech(0.1), silence(1.2))
    run.hear(speech(1.0))
    run.server.streams[1].text = "明天"
    run.poll()
    run._add(run.pipeline.abandon())
    finals = [event for event in run.events if event["type"].endswith("final")]
    assert [final["text"] for final in finals] == ["今天", "明天"]
    (error,) = [event for event in run.events if event["type"] == "core.error_event"]
    assert (error["error_code"], error["trace_id"]) == ("engine_unavailable", finals[0]["trace_id"])
    assert run.pipeline.totals.lost_ms > 500, "nobody answered for the first"
    check_guarantees(run.events)


def test_an_exception_of_a_reserve_costs_text_and_neither_order_nor_service() -> None:
    run = Run()
    run.hear(speech(1.0))
    stream = run.server.streams[0]
    stream.text = "今天"
    run.hear(speech(0.1), silence(1.2))
    run.utterance()
    run.server.streams[1].answer = Hypothesis(given_text="二")
    stream.answer = RuntimeError("planted")
    with pytest.raises(RuntimeError, match="planted") as caught:
        run.poll()
    run._add(run.pipeline.recover(caught.value))
    run.poll()
    finals = [event for event in run.events if event["type"].endswith("final")]
    assert [final["text"] for final in finals] == ["今天", "二"]
    assert [event["error_code"] for event in run.events if event["type"] == "core.error_event"] == ["infer_final_failed"]
    check_guarantees(run.events)


def test_audio_that_is_awaited_stays_while_the_history_forgets() -> None:
    """The labels and the level of a final need it."""
    drafts: list[int] = []

    class Spy(Finalizer):
        def prepare(self, draft: Any, submitted: Any = None) -> Any:
            drafts.append(len(draft.audio))
            assert submitted is not None, "the side models had the audio at the endpoint"
            return super().prepare(draft, submitted)

    run = Run(finalizer=Spy())
    run.utterance()
    for _ in range(3):
        run.hear(silence(5.0))
    run.utterance()
    run.server.streams[0].answer = Hypothesis(given_text="今天")
    final, *_ = run.poll()
    assert drafts == [1_024 * 16]
    assert final["level"]["rms_dbfs"] > -20
