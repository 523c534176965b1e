"""The pipeline and the loop with a gate: scripted models, real gate. What passes does not depend on the sizes of the blocks."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
from fakes import CountingRecognizer, CountingStream, LoudnessVad, silence, speech
from harness import of_type
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_listening import Script
from test_pipeline import AT_THE_END, SETTINGS, block, build, guarded, run, trace_ids

from voice.audio import Samples, ms_to_samples
from voice.finalization.finalizer import Finalizer
from voice.listening import Listening
from voice.losses import LossLedger
from voice.output.events import AnyEvent, EmotionEvent, WakeEvent
from voice.pipeline import Pipeline, PipelineSettings
from voice.process.stop import StopRequest
from voice.transcript import Emotion, Hypothesis, Token, Transcript
from voice.wake import WakeGate
from voice.wake_words import WakeWords

WORD = "小智小智"


class TextRecognizer(CountingRecognizer):
    """Recognises these texts, one an utterance: a character for every 0.5 s of audio."""

    def __init__(self, *texts: str, **fails: Any) -> None:
        super().__init__(**fails)
        self.texts = texts
        self.starts: list[int] = []

    def create_stream(self, first_sample: int, trace_id: str = "") -> TextStream:
        if first_sample not in self.starts:  # a stream that is rebuilt is of the same utterance
            self.starts.append(first_sample)
        stream = TextStream(self, first_sample)
        self.streams.append(stream)
        return stream


class TextStream(CountingStream):
    owner: TextRecognizer

    def copy(self) -> TextStream:
        other = TextStream(self.owner, self.first_sample)
        other.audio, other.tokens, other.decoded_until = self.audio, self.tokens, self.decoded_until
        other.show_tail, other.has_tail = self.show_tail, self.has_tail
        return other

    @property
    def _text(self) -> str:
        return self.owner.texts[self.owner.starts.index(self.first_sample)]

    def hypothesis(self) -> Hypothesis:
        return super().hypothesis() if len(self.tokens) < len(self._text) else Hypothesis(self.tokens)

    def _tokenize(self, count: int) -> None:
        super()._tokenize(min(count, len(self._text)))

    def _token(self, index: int) -> Token:
        token = super()._token(index)
        return Token(self._text[index], token.start_sample, token.end_sample, token.confidence)


class CountingLabeller:
    """A side model that counts what it hears."""

    name, failure = "emotion", "emotion_failed"

    def __init__(self) -> None:
        self.heard: list[int] = []

    def accepts(self, num_samples: int) -> bool:
        return True

    def label(self, audio: Samples, end_sample: int) -> Emotion:
        self.heard.append(end_sample)
        scores: Any = {"happy": 1.0}
        return Emotion("e", "happy", 1.0, scores, 0, end_sample)

    def attach(self, transcript: Transcript, label: Any) -> Transcript:
        return transcript


def spoken(*seconds: float, pause_sec: float = 1.5) -> np.ndarray:
    return np.concatenate([part for each in seconds for part in (silence(pause_sec), speech(each))] + [silence(1.5)])


def gated(
    *texts: str, listen_sec: float = 8, keep: Any = None, labeller: Any = None, pipeline_settings: PipelineSettings = SETTINGS, **fails: Any
) -> tuple[Pipeline, WakeGate]:
    gate = WakeGate(WakeWords([WORD], tones=False), round(listen_sec * 1000), keep)
    finalizer = Finalizer((), [labeller] if labeller else [], wants_labels=gate.wants_labels)
    pipeline = Pipeline(
        pipeline_settings,
        LoudnessVad(),
        TextRecognizer(*texts, **fails),
        finalizer,
        ledger=LossLedger(),
        new_trace_id=trace_ids(),
        keep=gate.keep if keep else None,
        gate=gate,
    )
    return pipeline, gate


def told(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Wake words and finals."""
    return [(event["type"], event.get("word", event.get("raw_text"))) for event in events if event["type"].endswith(("wake", "final"))]


TEXTS = ("打开客厅的灯", WORD + "打开灯", "现在几点了", WORD, "关上窗户")
AUDIO = spoken(3, 3.5, 2.5, 2, 2)


@pytest.mark.parametrize("pipeline_settings", [SETTINGS, AT_THE_END])
def test_what_follows_the_word_passes_and_is_counted_apart(pipeline_settings: PipelineSettings) -> None:
    pipeline, _ = gated(*TEXTS, listen_sec=1, pipeline_settings=pipeline_settings)
    events = run(pipeline, AUDIO)
    assert told(events) == [("voice.wake", WORD), ("voice.asr_text.final", "打开灯"), ("voice.wake", WORD), ("voice.asr_text.final", "")]
    totals = pipeline.totals
    assert (totals.utterances, totals.unwoken_utterances, totals.empty_utterances) == (2, 3, 0)
    assert totals.model_dump()["unwoken_utterances"] == 3


def test_for_a_while_after_a_final_everything_passes() -> None:
    pipeline, _ = gated(*TEXTS)
    assert [text for kind, text in told(run(pipeline, AUDIO)) if kind.endswith("final")] == ["打开灯", "现在几点了", "", "关上窗户"]


def test_without_a_gate_the_totals_have_no_such_key() -> None:
    pipeline = build()
    run(pipeline, spoken(1))
    assert "unwoken_utterances" not in pipeline.totals.model_dump()


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(200, 100_000), min_size=1, max_size=20), st.sampled_from([1, 8]), st.booleans())
def test_blocks_of_any_sizes_let_the_same_pass(sizes: list[int], listen_sec: int, prepares: bool) -> None:
    chosen = SETTINGS if prepares else AT_THE_END
    labellers = [CountingLabeller(), CountingLabeller()]
    kept: list[list[str]] = [[], []]
    results = []
    for labeller, trace_ids_, blocks in zip(labellers, kept, (None, itertools.cycle(sizes)), strict=True):
        keep = functools.partial(lambda ids, trace_id, _: ids.append(trace_id), trace_ids_)
        pipeline, _ = gated(*TEXTS, listen_sec=listen_sec, keep=keep, labeller=labeller, pipeline_settings=chosen)
        events = run(pipeline, AUDIO, blocks)
        wanted = [event for event in events if not event["type"].endswith(("partial", "started", "ended"))]
        results.append((wanted, pipeline.totals, labeller.heard))
    assert results[0] == results[1]
    assert kept[0] == kept[1] == [event["trace_id"] for event in of_type(results[0][0], "final")]


@pytest.mark.parametrize(("listen_sec", "num_finals"), [(1, 2), (8, 4)])
@pytest.mark.parametrize("size", [1_600, len(AUDIO)])
def test_the_side_models_hear_only_what_passes(size: int, listen_sec: int, num_finals: int) -> None:
    labeller = CountingLabeller()
    pipeline, _ = gated(*TEXTS, listen_sec=listen_sec, labeller=labeller, pipeline_settings=AT_THE_END)
    finals = of_type(run(pipeline, AUDIO, itertools.repeat(size)), "final")
    assert len(finals) == num_finals
    assert [ms_to_samples(final["end_ms"]) for final in finals] == labeller.heard


def test_an_emotion_of_what_did_not_pass_is_dropped() -> None:
    gate = WakeGate(WakeWords([WORD], tones=False), 8_000)
    event = EmotionEvent(trace_id="0" * 16, source="e", label="happy", confidence=1.0, scores={"happy": 1.0}, start_ms=0, end_ms=1)
    assert gate.admit([event]) == []


def test_the_word_is_told_before_the_utterance_ends() -> None:
    pipeline, _ = gated(WORD + "打开灯")
    events: list[AnyEvent] = []
    audio = np.concatenate([silence(1), speech(3)])
    for start in range(0, len(audio), 1_600):
        events += pipeline.process(block(audio[start : start + 1_600]))
    kinds = [event.type for event in events]
    assert kinds[:3] == ["voice.speech.started", "voice.wake", "voice.asr_text.partial"]
    wake = events[1]
    assert isinstance(wake, WakeEvent)
    assert (wake.start_ms, wake.end_ms) == (692, 2_692)  # four tokens of 0.5 s; 992 ms is the first window of speech, 300 ms the pre-roll
    assert pipeline.in_utterance


def test_time_that_passes_while_the_service_is_muted_does_not_close_the_gate() -> None:
    def last_texts(*, muted: bool) -> list[str]:
        pipeline, _ = gated(WORD + "打开灯", "现在几点了")
        events = pipeline.process(block(np.concatenate([silence(1), speech(3.5), silence(1)])))
        events += pipeline.finish("muted")
        events += pipeline.skip(block(silence(20))) if muted else pipeline.process(block(silence(20)))
        events += pipeline.process(block(np.concatenate([speech(2), silence(1)]))) + pipeline.finish("end_of_input")
        return [text for kind, text in told([event.model_dump() for event in events]) if kind.endswith("final")]

    assert last_texts(muted=True) == ["打开灯", "现在几点了"]
    assert last_texts(muted=False) == ["打开灯"]


def test_a_service_that_ends_by_a_bug_gives_a_woken_utterance_its_final_and_no_other() -> None:
    for text, expected in ((WORD + "打开", ["打"]), ("打开客厅的灯", [])):
        pipeline, _ = gated(text)
        events = pipeline.process(block(np.concatenate([silence(1), speech(1.9)])))
        events += pipeline.abandon()
        assert [last for kind, last in told([event.model_dump() for event in events]) if kind.endswith("final")] == expected


@pytest.mark.parametrize("what", ["fail_accept", "fail_finish"])
def test_a_model_that_fails_now_and_then_costs_no_final_and_its_words_stay_secret(what: str) -> None:
    pipeline, _ = gated(*TEXTS, listen_sec=1, **{what: lambda call: call % 5 == 1})
    events = run(pipeline, AUDIO)
    assert [kind for kind, _ in told(events)].count("voice.asr_text.final") == 2
    spoken_ids = {event["trace_id"] for event in of_type(events, "final")}
    for error in of_type(events, "error_event"):
        assert error["message"] == "RuntimeError" or error["trace_id"] in spoken_ids


class Sink:
    """Keeps events."""

    def __init__(self) -> None:
        self.events: list[AnyEvent] = []

    def write(self, event: AnyEvent) -> None:
        self.events.append(event)

    def check_reader(self) -> None:
        pass


def test_failures_between_utterances_that_do_not_pass_do_not_add_up() -> None:
    """The run ends after 5 failures in a row without text between them; text that is withheld is text."""
    texts = ["打开客厅的灯"] * 12
    failing = itertools.count(0)
    pipeline, gate = gated(*texts, fail_accept=lambda _: next(failing) % 40 == 39)
    sink = Sink()
    audio = spoken(*[3.0] * 12)
    listening = Listening(Script(audio), pipeline, sink, StopRequest(), status=lambda *_, **__: None, max_failures=2)
    assert listening.run() == 0
    assert gate.num_withheld == 12
    failures = [event for event in sink.events if event.type == "core.error_event"]
    assert len(failures) > 2
    assert len(failures) == len(sink.events)


def test_a_gate_changes_nothing_of_what_it_lets_pass() -> None:
    """Everything is let through: the same events as without a gate, the recogniser's texts aside."""

    def events_of(gate: WakeGate | None) -> list[dict[str, Any]]:
        if gate:
            gate._open_until_ms = 10**9
        pipeline = Pipeline(
            SETTINGS,
            LoudnessVad(),
            TextRecognizer(*TEXTS[:1], *TEXTS[2:3]),
            Finalizer(),
            ledger=LossLedger(),
            new_trace_id=trace_ids(),
            gate=gate,
        )
        return run(pipeline, spoken(3, 2.5))

    open_wide = WakeGate(WakeWords(["不说"], tones=False), 10**9)
    assert events_of(open_wide) == events_of(None)


def test_guarded_runs_do_not_lose_what_was_admitted_before_a_failure() -> None:
    pipeline, _ = gated(WORD + "打开灯", fail_finish=lambda call: call == 1)
    audio = block(np.concatenate([silence(1), speech(3.5), silence(2)]))
    events = guarded(pipeline, functools.partial(pipeline.process, audio))
    assert [kind for kind, _ in told([event.model_dump() for event in events])] == ["voice.wake", "voice.asr_text.final"]
