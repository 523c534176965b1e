"""One utterance: whatever fails while it lasts, it ends in one final, with the best text that could be had."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import SLICE, CountingRecognizer, speech

from voice.audio import SAMPLE_RATE_HZ
from voice.endpointing.endpointer import SpeechEnded
from voice.finalization.finalizer import CompletedFinal, Draft, Finalizer, PreparedFinal
from voice.output.events import FinalEvent
from voice.utterance import State, Utterance
from voice.windowing import AudioHistory

START, AUDIO_START, AUDIO_END = 20_000, 16_000, 16_000 + 7 * SLICE + 100
ENDED = SpeechEnded(AUDIO_END - 50, AUDIO_END, "silence")


class SpyFinalizer(Finalizer):
    """Sets an end mark where the speaker ended; fails on command."""

    def __init__(self, *failing: str) -> None:
        super().__init__([("punctuation_failed", lambda text, *, ended: text + ("。" if ended else ""))])
        self.failing = failing
        self.drafts: list[Draft] = []
        self.cancelled: list[PreparedFinal] = []

    def prepare(self, draft: Draft) -> PreparedFinal:
        if "prepare" in self.failing:
            raise RuntimeError("planted")
        self.drafts.append(draft)
        return super().prepare(draft)

    def cancel(self, prepared: PreparedFinal) -> None:
        self.cancelled.append(prepared)
        super().cancel(prepared)

    def complete(self, prepared: PreparedFinal) -> CompletedFinal:
        if "complete" in self.failing:
            raise RuntimeError("planted")
        return super().complete(prepared)


def history() -> AudioHistory:
    audio = AudioHistory()
    audio.append(0, speech((AUDIO_END + 20_000) / SAMPLE_RATE_HZ))
    return audio


def utterance(recognizer: CountingRecognizer | None = None, finalizer: Finalizer | None = None) -> Utterance:
    return Utterance(
        "0" * 16,
        start_sample=START,
        audio_start=AUDIO_START,
        history=history(),
        recognizer=recognizer or CountingRecognizer(),
        finalizer=finalizer or SpyFinalizer(),
    )


def decoded(one: Utterance) -> str:
    """The text shown when three slices are decoded."""
    event = one.feed(AUDIO_START + 3 * SLICE)
    assert event is not None
    return event.text


def final(one: Utterance) -> FinalEvent:
    """Its final, after however many failures; each is one more call."""
    for _ in range(6):
        try:
            if one.state is State.FINISHING and one.fed_until < ENDED.audio_end:
                one.feed(ENDED.audio_end)
            (event,) = one.conclude().events
        except (RuntimeError, ValueError):
            one.fail()
            one.repair()
        else:
            assert isinstance(event, FinalEvent)
            assert one.state is State.CONCLUDED
            return event
    raise AssertionError("no final")


def expected_text() -> str:
    one = utterance()
    decoded(one)
    one.end(ENDED)
    return final(one).raw_text


def test_a_partial_says_what_is_new_and_nothing_when_nothing_is() -> None:
    one = utterance()
    event = one.feed(AUDIO_START + SLICE)
    assert event is not None
    assert (event.start_ms, event.end_ms, event.stable_chars, len(event.text)) == (START // 16, (AUDIO_START + SLICE) // 16, 1, 2)
    assert one.feed(AUDIO_START + SLICE + 10) is None
    assert one.fed_until == AUDIO_START + SLICE + 10


def test_the_final_of_an_undisturbed_utterance() -> None:
    finalizer = SpyFinalizer()
    one = utterance(finalizer=finalizer)
    decoded(one)
    one.lost_samples = 320
    one.end(ENDED)
    assert one.state is State.FINISHING
    event = final(one)
    assert (event.start_ms, event.end_ms, event.endpoint, event.lost_ms) == (START // 16, ENDED.end_sample // 16, "silence", 20)
    assert event.text == event.raw_text + "。"
    assert len(event.raw_text) == len(event.tokens) == 8
    assert event.tokens[-1].end_ms == ENDED.end_sample // 16, "the last token ends with the speech"
    (draft,) = finalizer.drafts
    assert len(draft.audio) == ENDED.end_sample - START
    assert len(draft.decoded_audio) == ENDED.audio_end - AUDIO_START


def test_an_utterance_that_was_never_fed_is_decoded_at_its_end() -> None:
    one = utterance()
    one.end(ENDED)
    assert final(one).raw_text == expected_text()


# --- the final that is prepared in a pause --------------------------------------------------------------------------------


def prepared(finalizer: SpyFinalizer, recognizer: CountingRecognizer | None = None) -> Utterance:
    one = utterance(recognizer, finalizer)
    assert not one.can_prepare(ENDED), "nothing was decoded yet"
    one.feed(ENDED.audio_end - 1)
    assert not one.can_prepare(ENDED), "not all of its audio was decoded"
    one.feed(ENDED.audio_end)
    assert one.can_prepare(ENDED)
    one.prepare(ENDED)
    assert not one.can_prepare(ENDED), "once in a pause"
    return one


def test_a_prepared_final_is_taken_at_its_end() -> None:
    finalizer, recognizer = SpyFinalizer(), CountingRecognizer()
    one = prepared(finalizer, recognizer)
    one.end(ENDED)
    assert final(one).raw_text == expected_text()
    assert (len(finalizer.drafts), recognizer.finishes, finalizer.cancelled) == (1, 1, [])


def test_a_prepared_final_is_dropped_when_speech_resumes() -> None:
    finalizer, recognizer = SpyFinalizer(), CountingRecognizer()
    one = prepared(finalizer, recognizer)
    later = replace(ENDED, audio_end=ENDED.audio_end + SLICE)
    one.feed(later.audio_end)
    assert len(finalizer.cancelled) == 1
    assert one.can_prepare(later)
    one.end(later)
    assert len(final(one).raw_text) == 9
    assert recognizer.finishes == 2


def test_a_prepared_final_of_another_end_is_dropped() -> None:
    finalizer, recognizer = SpyFinalizer(), CountingRecognizer()
    one = prepared(finalizer, recognizer)
    one.end(replace(ENDED, audio_end=ENDED.audio_end - 10))
    final(one)
    assert (len(finalizer.cancelled), recognizer.finishes, len(finalizer.drafts)) == (1, 2, 2)


def test_an_end_that_is_not_the_speakers_keeps_the_prepared_text_and_drops_its_end_mark() -> None:
    finalizer, recognizer = SpyFinalizer(), CountingRecognizer()
    one = prepared(finalizer, recognizer)
    one.end(replace(ENDED, endpoint="shutdown"))
    event = final(one)
    assert (event.text, event.endpoint) == (event.raw_text, "shutdown")
    assert (len(finalizer.cancelled), recognizer.finishes) == (1, 1)


def test_audio_lost_after_the_final_was_prepared_is_in_it() -> None:
    one = prepared(SpyFinalizer())
    one.lost_samples = 1_600
    one.end(ENDED)
    assert final(one).lost_ms == 100


def test_a_preparation_that_fails_costs_nothing_and_is_not_tried_again_in_this_pause() -> None:
    finalizer = SpyFinalizer("prepare")
    one = utterance(finalizer=finalizer)
    one.feed(ENDED.audio_end)
    with pytest.raises(RuntimeError):
        one.prepare(ENDED)
    assert one.fail() is None
    assert one.state is State.DECODING
    assert not one.can_prepare(ENDED)
    finalizer.failing = ()
    one.end(ENDED)
    assert final(one).raw_text == expected_text()


# --- failures -------------------------------------------------------------------------------------------------------------


def test_a_failure_while_decoding_costs_a_new_stream_and_no_token() -> None:
    recognizer = CountingRecognizer(fail_accept=lambda call: call == 2)
    one = utterance(recognizer)
    shown = decoded(one)
    with pytest.raises(RuntimeError):
        one.feed(AUDIO_START + 5 * SLICE)
    assert one.fail() == "infer_partial_failed"
    assert one.state is State.REBUILDING
    one.repair()
    assert one.state is State.DECODING
    event = one.feed(AUDIO_START + 6 * SLICE)
    assert event is not None
    assert event.text.startswith(shown[:3])
    one.end(ENDED)
    assert final(one).raw_text == expected_text()
    assert len(recognizer.streams) == 2


def test_committed_tokens_survive_a_rebuilt_stream_that_reads_their_audio_otherwise() -> None:
    """And are not there twice."""
    recognizer = CountingRecognizer(fail_accept=lambda call: call == 2)
    one = utterance(recognizer)
    shown = decoded(one)
    with pytest.raises(RuntimeError):
        one.feed(AUDIO_START + 4 * SLICE)
    one.fail()
    real = recognizer.create_stream

    def otherwise(first_sample: int) -> Any:
        stream = real(first_sample)
        token = stream._token
        stream._token = lambda index: replace(token(index), text="别") if index < 3 else token(index)
        return stream

    recognizer.create_stream = otherwise  # type: ignore[method-assign]
    one.repair()
    one.end(ENDED)
    event = final(one)
    assert event.raw_text == expected_text()
    assert event.raw_text[:3] == shown[:3]
    assert "别" not in event.raw_text


def test_a_stream_that_cannot_be_rebuilt_waits_for_the_end() -> None:
    calls = {2, 3}
    recognizer = CountingRecognizer(fail_accept=lambda call: call in calls)
    one = utterance(recognizer)
    decoded(one)
    with pytest.raises(RuntimeError):
        one.feed(AUDIO_START + 4 * SLICE)
    one.fail()
    with pytest.raises(RuntimeError):
        one.repair()
    assert one.fail() == "infer_partial_failed"
    assert one.state is State.BROKEN
    one.repair()
    assert one.feed(AUDIO_START + 6 * SLICE) is None
    assert not one.can_prepare(replace(ENDED, audio_end=AUDIO_START + 6 * SLICE))
    one.end(ENDED)
    assert one.state is State.RETRYING
    assert final(one).raw_text == expected_text()
    assert recognizer.accepts == 4


@pytest.mark.parametrize(
    ("finishes", "failing", "text", "tokens"),
    [
        ((1,), (), "expected", 8),
        ((1, 2), (), "shown", 4),
        ((), ("prepare",), "expected", 8),
        ((), ("complete",), "expected", 8),
        ((1, 2), ("prepare",), "shown", 4),
        ((1, 2), ("complete",), "shown", 4),
    ],
)
def test_each_failure_at_the_end_leaves_the_next_best_text(finishes: tuple[int, ...], failing: Any, text: str, tokens: int) -> None:
    one = utterance(CountingRecognizer(fail_finish=lambda call: call in finishes), SpyFinalizer(*failing))
    one.feed(AUDIO_START + 2 * SLICE)
    shown = decoded(one)
    one.feed(ENDED.audio_end - 3 * SLICE)
    one.end(replace(ENDED, audio_end=ENDED.audio_end - 3 * SLICE) if text == "shown" else ENDED)
    event = final(one)
    assert event.raw_text == (expected_text() if text == "expected" else event.raw_text)
    assert event.raw_text.startswith(shown[:3])
    assert event.text == event.raw_text + ("" if failing else "。")
    if text == "shown":
        assert len(event.tokens) >= tokens


def test_a_final_whose_event_cannot_be_made_of_its_tokens_keeps_the_text() -> None:
    """An utterance stays in flight until its final event stands."""

    class Nonsense(CountingRecognizer):
        def create_stream(self, first_sample: int) -> Any:
            stream = super().create_stream(first_sample)
            finish = stream.finish
            stream.finish = lambda: replace(  # type: ignore[method-assign]
                hypothesis := finish(), committed=tuple(replace(token, confidence=float("nan")) for token in hypothesis.committed)
            )
            return stream

    one = utterance(Nonsense())
    shown = decoded(one)
    one.end(ENDED)
    codes = []
    for _ in range(3):
        try:
            (event,) = one.conclude().events
            break
        except ValueError:
            codes.append(one.fail())
            one.repair()
    assert codes == ["infer_final_failed"] * 2
    assert isinstance(event, FinalEvent)
    assert (event.text, event.raw_text, event.tokens, event.confidence) == (shown, shown, [], 0.0)


def test_giving_up_asks_no_model() -> None:
    recognizer, finalizer = CountingRecognizer(), SpyFinalizer("prepare", "complete")
    one = utterance(recognizer, finalizer)
    shown = decoded(one)
    accepts = recognizer.accepts
    one.give_up(replace(ENDED, endpoint="shutdown"))
    (event,) = one.conclude().events
    assert isinstance(event, FinalEvent)
    assert (event.text, event.endpoint) == (shown, "shutdown")
    assert (recognizer.accepts, recognizer.finishes) == (accepts, 0)


def test_giving_up_an_utterance_that_ended_keeps_its_end() -> None:
    one = utterance()
    decoded(one)
    one.end(ENDED)
    one.give_up(replace(ENDED, endpoint="shutdown"))
    assert final(one).endpoint == "silence"


def test_an_utterance_without_text_has_no_final_and_a_summary() -> None:
    class Deaf(CountingRecognizer):
        def create_stream(self, first_sample: int) -> Any:
            stream = super().create_stream(first_sample)
            stream._tokenize = lambda count: None
            stream.has_tail = False
            stream.copy = lambda: stream
            return stream

    finalizer = SpyFinalizer()
    one = utterance(Deaf(), finalizer)
    assert one.feed(ENDED.audio_end) is None
    one.prepare(ENDED)
    one.end(ENDED)
    conclusion = one.conclude()
    assert (conclusion.events, finalizer.drafts) == ([], [])
    assert conclusion.summary.log_fields == {
        "trace_id": "0" * 16,
        "start_ms": START // 16,
        "end_ms": ENDED.end_sample // 16,
        "endpoint": "silence",
        "tokens": 0,
        "confidence": 0.0,
        "lost_ms": 0,
    }


def test_audio_of_the_rebuilt_stream_is_the_utterances_from_its_first_sample() -> None:
    recognizer = CountingRecognizer(fail_accept=lambda call: call == 2)
    one = utterance(recognizer)
    decoded(one)
    with pytest.raises(RuntimeError):
        one.feed(AUDIO_START + 5 * SLICE)
    one.fail()
    one.repair()
    expected = history().slice(AUDIO_START, AUDIO_START + 5 * SLICE)
    np.testing.assert_array_equal(recognizer.streams[1].audio, expected)
    assert recognizer.streams[1].first_sample == AUDIO_START
