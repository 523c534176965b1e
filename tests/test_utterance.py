"""One utterance: whatever fails while it lasts, it ends in one final, with the best text that could be had."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import SLICE, CountingRecognizer, speech

from voice.audio import SAMPLE_RATE_HZ, Samples
from voice.endpointing.endpointer import SpeechEnded
from voice.finalization.finalizer import CompletedFinal, Draft, Finalizer, PreparedFinal, Submitted
from voice.output.events import FinalEvent, PartialEvent
from voice.output.wire import emotion_event
from voice.recognition.recognizer import LocalRecognizer, LocalStream
from voice.transcript import Emotion, Hypothesis, Token
from voice.utterance import State, Utterance, UtteranceSummary
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

    def prepare(self, draft: Draft, submitted: Submitted | None = None) -> PreparedFinal:
        if "prepare" in self.failing:
            raise RuntimeError("planted")
        self.drafts.append(draft)
        return super().prepare(draft, submitted)

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


def utterance(recognizer: Any = None, finalizer: Finalizer | None = None) -> Utterance:
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
    assert one.feed(AUDIO_START + 2 * SLICE, provisional=False) is None, "what was provisional is committed, and the text is the same"


def test_a_new_utterance_has_lost_nothing_and_has_not_ended() -> None:
    one = utterance()
    assert (one.lost_samples, one.ended, one.state) == (0, None, State.DECODING)
    one.end(ENDED)
    assert one.conclude().summary.lost_samples == 0


class Scripted(LocalRecognizer):
    """A recogniser whose streams give these hypotheses: the first while speaking, the second at the end; one pair a stream."""

    source = "scripted"

    def __init__(self, *streams: tuple[Hypothesis, Hypothesis]) -> None:
        self.remaining = list(streams)
        self.fails = False

    def create_stream(self, first_sample: int, trace_id: str = "") -> Any:
        return ScriptedStream(self, *self.remaining.pop(0))


class ScriptedStream(LocalStream):
    source = "scripted"
    decoded_until = AUDIO_END

    def __init__(self, owner: Scripted, speaking: Hypothesis, ended: Hypothesis) -> None:
        self.owner, self.speaking, self.ended = owner, speaking, ended

    def accept(self, samples: Samples, *, provisional: bool = True) -> bool:
        if self.owner.fails:
            self.owner.fails = False
            raise RuntimeError("planted")
        return True

    def hypothesis(self) -> Hypothesis:
        return self.speaking

    def finish(self) -> Hypothesis:
        return self.ended

    def copy(self) -> ScriptedStream:
        return self


def tokens(text: str, first_slice: int = 0) -> tuple[Token, ...]:
    starts = range(AUDIO_START + first_slice * SLICE, AUDIO_END + 20 * SLICE, SLICE)
    return tuple(Token(character, start, start + SLICE, 0.9) for character, start in zip(text, starts, strict=False))


def test_a_partial_that_the_end_takes_back_has_a_final_all_the_same() -> None:
    """All of it was provisional; a reader who saw a partial waits for its final."""
    one = utterance(Scripted((Hypothesis((), tokens("啊")), Hypothesis())))
    event = one.feed(ENDED.audio_end)
    assert event is not None
    assert event.text == "啊"
    one.end(ENDED)
    (event,) = one.conclude().events
    assert isinstance(event, FinalEvent)
    assert (event.raw_text, event.tokens) == ("", [])


def test_text_that_only_the_end_brings_has_a_final() -> None:
    one = utterance(Scripted((Hypothesis(), Hypothesis(tokens("好")))))
    assert one.feed(ENDED.audio_end) is None
    one.end(ENDED)
    assert final(one).raw_text == "好"


def test_the_emotion_of_a_final_follows_it() -> None:
    emotion = Emotion("funasr.planted", "happy", 0.9, {"happy": 0.9, "sad": 0.1}, START, ENDED.end_sample)

    class Feeling(SpyFinalizer):
        def complete(self, prepared: PreparedFinal) -> CompletedFinal:
            completed = super().complete(prepared)
            return replace(completed, transcript=replace(completed.transcript, emotion=emotion))

    one = utterance(finalizer=Feeling())
    decoded(one)
    one.end(ENDED)
    first, second = one.conclude().events
    assert isinstance(first, FinalEvent)
    assert first.emotion is not None
    assert first.emotion.label == "happy"
    assert second == emotion_event("0" * 16, emotion)


@pytest.mark.parametrize(("start", "end", "ends_at"), [(-10, -1, -1), (-10, 0, 0), (-10, 5, 0), (0, 5, 5), (3, 5, 5)])
def test_a_token_that_the_flush_fires_across_the_end_of_the_speech_ends_with_it(start: int, end: int, ends_at: int) -> None:
    """In ms from the end of the speech; one that lies behind it altogether keeps its times."""
    at = ENDED.end_sample
    hypothesis = Hypothesis((Token("好", at + start * 16, at + end * 16, 0.9),))
    finalizer = SpyFinalizer()
    one = utterance(Scripted((hypothesis, hypothesis)), finalizer)
    one.end(ENDED)
    final(one)
    (token,) = finalizer.drafts[0].transcript.tokens
    assert (token.start_sample, token.end_sample) == (at + start * 16, at + ends_at * 16)


def test_the_log_line_of_an_utterance_has_three_digits_of_its_confidence_and_nothing_that_was_said() -> None:
    summary = UtteranceSummary("0" * 16, 16_000, 32_000, "silence", 7, 0.123456, 1_600)
    assert summary.log_fields == {
        "trace_id": "0" * 16,
        "start_ms": 1_000,
        "end_ms": 2_000,
        "endpoint": "silence",
        "tokens": 7,
        "confidence": 0.123,
        "lost_ms": 100,
    }


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

    def otherwise(first_sample: int, trace_id: str) -> Any:
        stream = real(first_sample, trace_id)
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


def rebuilt(speaking: Hypothesis, ended: Hypothesis | None = None) -> tuple[Utterance, PartialEvent | None]:
    """An utterance with ``打开`` committed and ``客`` provisional when its stream failed; the new stream gives these hypotheses."""
    recognizer = Scripted((Hypothesis(tokens("打开"), tokens("客", 2)), Hypothesis()), (speaking, ended or Hypothesis()))
    one = utterance(recognizer)
    one.feed(AUDIO_START + 2 * SLICE)
    recognizer.fails = True
    with pytest.raises(RuntimeError):
        one.feed(AUDIO_START + 3 * SLICE)
    one.fail()
    one.repair()
    return one, one.feed(AUDIO_START + 4 * SLICE)


def test_after_a_rebuild_partials_keep_what_was_committed_and_go_on_behind_it() -> None:
    """The new stream reads the same audio as other tokens, and has committed less of it."""
    _, event = rebuilt(Hypothesis(tokens("大"), tokens("看厅", 1)))
    assert event is not None
    assert (event.text, event.stable_chars) == ("打开厅", 2)
    _, event = rebuilt(Hypothesis(tokens("大看厅"), tokens("的", 3)))
    assert event is not None
    assert (event.text, event.stable_chars) == ("打开厅的", 3)


def test_after_a_rebuild_that_brings_nothing_new_the_committed_text_is_shown() -> None:
    _, event = rebuilt(Hypothesis())
    assert event is not None
    assert event.text == "打开"


def test_after_a_rebuild_a_prepared_final_keeps_what_was_committed() -> None:
    one, _ = rebuilt(Hypothesis(tokens("大看厅")), Hypothesis(tokens("大看厅的灯")))
    one.feed(ENDED.audio_end)
    one.prepare(ENDED)
    one.end(ENDED)
    assert final(one).raw_text == "打开厅的灯"


def test_a_flush_that_fails_is_tried_once_on_a_new_stream() -> None:
    recognizer = CountingRecognizer(fail_finish=lambda _: True)
    one = utterance(recognizer)
    shown = decoded(one)
    one.feed(ENDED.audio_end, provisional=False)
    one.end(ENDED)
    codes = []
    for _ in range(2):
        with pytest.raises(RuntimeError):
            one.conclude()
        codes.append(one.fail())
    assert codes == ["infer_final_failed"] * 2
    (event,) = one.conclude().events
    assert isinstance(event, FinalEvent)
    assert (recognizer.finishes, len(recognizer.streams)) == (2, 2)
    assert event.raw_text.startswith(shown[:3])


def test_the_least_that_can_be_asked_may_fail_and_be_asked_again() -> None:
    """Nothing is left to give up: the state stays."""
    one = utterance()
    decoded(one)
    one.give_up(ENDED)
    for _ in range(3):
        assert one.fail() == "infer_final_failed"
        assert one.state is State.MINIMAL
    (event,) = one.conclude().events
    assert isinstance(event, FinalEvent)
    assert len(event.raw_text) == 4


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
        def create_stream(self, first_sample: int, trace_id: str = "") -> Any:
            stream = super().create_stream(first_sample, trace_id)
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
        def create_stream(self, first_sample: int, trace_id: str = "") -> Any:
            stream = super().create_stream(first_sample, trace_id)
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
