"""The gate of the wake words: lists of events in, lists of events out."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from harness import check_guarantees, of_type
from hypothesis import given, settings
from hypothesis import strategies as st

from voice.audio import SAMPLE_RATE_HZ, Samples, ms_to_samples
from voice.finalization.emotion import EMOTION_NAMES
from voice.level import SILENCE
from voice.output.events import (
    AnyEvent,
    ErrorEvent,
    FinalEvent,
    PartialEvent,
    SpeakerEvent,
    SpeechEndedEvent,
    SpeechStartedEvent,
    StatusEvent,
    TokenTime,
    WakeEvent,
)
from voice.output.wire import audio_level, emotion_event
from voice.transcript import Emotion, Endpoint, Hypothesis, Token, Transcript
from voice.wake import WakeGate
from voice.wake_words import WakeWords

WORD = "小智小智"
A, B, C = (f"{number:016x}" for number in (1, 2, 3))
CHARACTER_MS = 200
LISTEN_MS = 8_000


def gate(*words: str, **options: Any) -> WakeGate:
    return WakeGate(WakeWords(words or (WORD,), tones=False), LISTEN_MS, **options)


def partial(trace_id: str, text: str, stable: int, start_ms: int = 1_000) -> PartialEvent:
    return PartialEvent(
        trace_id=trace_id,
        source="s",
        text=text,
        raw_text=text,
        confidence=0.5,
        start_ms=start_ms,
        end_ms=start_ms + 500,
        stable_chars=stable,
    )


def tokens(text: str, start_ms: int = 1_000, confidence: float = 0.5) -> list[TokenTime]:
    starts = itertools.count(start_ms, CHARACTER_MS)
    return [
        TokenTime(text=each, start_ms=at, end_ms=at + CHARACTER_MS, confidence=confidence) for each, at in zip(text, starts, strict=False)
    ]


def final(
    trace_id: str, raw_text: str, start_ms: int = 1_000, *, text: str | None = None, endpoint: Endpoint = "silence", **changes: Any
) -> FinalEvent:
    content = {
        "trace_id": trace_id,
        "source": "s",
        "text": raw_text if text is None else text,
        "raw_text": raw_text,
        "tokens": tokens(raw_text, start_ms),
        "confidence": 0.5,
        "start_ms": start_ms,
        "end_ms": start_ms + len(raw_text) * CHARACTER_MS,
        "endpoint": endpoint,
        "emotion": None,
        "lost_ms": 0,
        "level": audio_level(SILENCE),
    }
    return FinalEvent(**{**content, **changes})


def speaker(trace_id: str) -> AnyEvent:
    return SpeakerEvent(trace_id=trace_id, source="s", label="A", name=None, confidence=0.9)


def emotion(trace_id: str) -> AnyEvent:
    return emotion_event(trace_id, Emotion("e", "happy", 1.0, {**dict.fromkeys(EMOTION_NAMES, 0.0), "happy": 1.0}, 0, 16))


def error(trace_id: str, code: Any = "punctuation_failed") -> ErrorEvent:
    return ErrorEvent(trace_id=trace_id, error_code=code, message="KeyError: '打开'", recoverable=True)


def started(trace_id: str, start_ms: int = 1_000) -> SpeechStartedEvent:
    return SpeechStartedEvent(trace_id=trace_id, start_ms=start_ms)


def ended(trace_id: str) -> SpeechEndedEvent:
    return SpeechEndedEvent(trace_id=trace_id, end_ms=2_000, endpoint="silence")


def seen(events: list[AnyEvent]) -> list[str]:
    """Kind and text of each event, in short."""
    names = {WakeEvent: "wake", PartialEvent: "partial", FinalEvent: "final"}
    return [
        f"{names[type(event)]} {getattr(event, 'word', None) or getattr(event, 'text', '')}"
        if type(event) in names
        else type(event).__name__
        for event in events
    ]


def hypothesis(text: str, num_committed: int) -> Hypothesis:
    each = [Token(token.text, ms_to_samples(token.start_ms), ms_to_samples(token.end_ms), 0.5) for token in tokens(text)]
    return Hypothesis(tuple(each[:num_committed]), tuple(each[num_committed:]))


# --- closed ---------------------------------------------------------------------------------------------------------------


def test_nothing_of_an_utterance_without_the_word_passes_and_it_is_counted() -> None:
    closed = gate()
    events = [started(A), partial(A, "打", 0), partial(A, "打开灯", 2), ended(A), final(A, "打开灯"), emotion(A), speaker(A)]
    assert closed.admit(events) == []
    assert closed.num_withheld == 1


def test_an_utterance_that_begins_with_the_word_passes_without_it() -> None:
    events = [started(A), partial(A, "小志小智打开", 5), ended(A), final(A, "小志小智打开灯", text="小志小智，打开灯。"), emotion(A)]
    events.append(speaker(A))
    opened = gate()
    passed = [each for event in events for each in opened.admit([event])]
    expected = ["SpeechStartedEvent", f"wake {WORD}", "partial 打开", "SpeechEndedEvent", "final 打开灯。", "EmotionEvent", "SpeakerEvent"]
    assert seen(passed) == expected
    assert passed[2] == partial(A, "打开", 1)
    last = passed[4]
    assert isinstance(last, FinalEvent)
    assert (last.raw_text, last.tokens) == ("打开灯", tokens("小志小智打开灯")[4:])
    assert opened.num_withheld == 0


def test_a_word_that_is_not_committed_yet_wakes_nobody() -> None:
    closed = gate()
    assert closed.admit([started(A), partial(A, "小智小智打", 3)]) == []
    assert closed.admit([partial(A, "小区门", 1), partial(A, "小区门口", 3), final(A, "小区门口")]) == []
    assert closed.num_withheld == 1


def test_what_is_committed_without_a_new_partial_wakes_too() -> None:
    opened = gate()
    assert opened.admit([partial(A, WORD, 2)], (A, hypothesis(WORD, 2))) == []
    assert seen(opened.admit([], (A, hypothesis(WORD, 4)))) == [f"wake {WORD}"]
    assert opened.admit([], (A, hypothesis(WORD, 4))) == []
    assert seen(opened.admit([final(A, WORD)])) == ["final "]


@pytest.mark.parametrize("heard", [None, (B, hypothesis(WORD, 4)), (A, hypothesis("小智小区", 4)), (A, hypothesis(WORD, 2))])
def test_what_is_heard_of_another_text_or_utterance_decides_nothing(heard: Any) -> None:
    closed = gate()
    closed.admit([partial(A, WORD, 2)])
    assert closed.admit([], heard) == []


def test_the_final_decides_where_no_partial_did() -> None:
    assert seen(gate().admit([started(A), ended(A), final(A, WORD + "打开灯")])) == [
        "SpeechStartedEvent",
        f"wake {WORD}",
        "SpeechEndedEvent",
        "final 打开灯",
    ]


@pytest.mark.parametrize("confidence", [0.5, 0.98])  # of the tokens, and of a second pass
def test_the_word_alone_is_followed_by_a_final_without_text(confidence: float) -> None:
    wake, last = gate().admit([final(A, WORD, text="小智小智。", confidence=confidence)])
    assert isinstance(wake, WakeEvent)
    assert isinstance(last, FinalEvent)
    assert (last.text, last.raw_text, last.tokens, last.confidence) == ("", "", [], 0.0)


def test_a_partial_without_text_is_none() -> None:
    assert seen(gate().admit([partial(A, WORD, 4)])) == [f"wake {WORD}"]


def test_a_status_and_an_error_that_belong_to_no_utterance_pass() -> None:
    events: list[AnyEvent] = [StatusEvent(trace_id=B, state="listening"), error(C, "audio_overrun")]
    assert gate().admit(events) == events


# --- open -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("after_ms", "passes"), [(0, True), (LISTEN_MS, True), (LISTEN_MS + 1, False)])
def test_for_a_while_after_a_final_no_word_is_needed(after_ms: int, passes: bool) -> None:
    opened = gate()
    opened.admit([final(A, WORD)])
    start_ms = 1_000 + 4 * CHARACTER_MS + after_ms
    events = [started(B, start_ms), partial(B, "打开", 2, start_ms), ended(B), final(B, "打开灯", start_ms), emotion(B)]
    assert opened.admit(events) == (events if passes else [])


def test_each_final_that_passes_keeps_the_gate_open_and_one_that_does_not_does_not() -> None:
    opened = gate()
    start_ms = 1_000
    opened.admit([final(A, WORD, start_ms)])
    for trace_id in (B, C):
        start_ms += LISTEN_MS
        assert len(opened.admit([final(trace_id, "打开灯", start_ms)])) == 1
    for number in (4, 5):
        start_ms += LISTEN_MS + 2_000
        assert opened.admit([final(f"{number:016x}", "打开灯", start_ms)]) == []


def test_while_it_is_open_the_word_is_told_and_cut_away_all_the_same() -> None:
    opened = gate()
    opened.admit([final(A, WORD)])
    passed = opened.admit([started(B, 3_000), partial(B, WORD + "打", 4, 3_000), final(B, WORD + "打开灯", 3_000)])
    assert seen(passed) == ["SpeechStartedEvent", f"wake {WORD}", "final 打开灯"]


def test_while_it_is_open_text_that_is_no_word_is_shown_at_once_as_provisional() -> None:
    opened = gate()
    opened.admit([final(A, WORD)])
    assert opened.admit([partial(B, "打开", 0, 3_000)]) == [partial(B, "打开", 0, 3_000)]
    assert opened.admit([partial(B, "小区门", 1, 3_000)]) == [partial(B, "小区门", 0, 3_000)]
    assert seen(opened.admit([partial(B, "小智小智开", 4, 3_000)])) == [f"wake {WORD}", "partial 开"]
    assert seen(opened.admit([final(B, "小智小智开灯", 3_000)])) == ["final 开灯"]


def test_while_it_is_open_what_may_become_the_word_waits() -> None:
    opened = gate()
    opened.admit([final(A, WORD)])
    assert opened.admit([partial(B, "小智", 1, 3_000)]) == []
    assert opened.admit([partial(B, "小智能", 3, 3_000)]) == [partial(B, "小智能", 3, 3_000)]
    assert opened.admit([final(B, "小智能", 3_000)]) == [final(B, "小智能", 3_000)]


def test_an_utterance_that_begins_while_it_is_open_passes_whenever_it_ends() -> None:
    opened = gate()
    opened.admit([final(A, WORD)])
    begins = 1_000 + 4 * CHARACTER_MS + LISTEN_MS
    assert len(opened.admit([started(B, begins)])) == 1
    assert len(opened.admit([final(B, "打" * 140, begins)])) == 1


def test_an_utterance_that_is_cut_goes_on_in_the_next_one_even_where_each_needs_the_word() -> None:
    strict = WakeGate(WakeWords([WORD], tones=False), 0)
    first = final(A, WORD + "打" * 146, endpoint="max_duration")
    assert len(strict.admit([first])) == 2
    assert len(strict.admit([final(B, "打开灯", first.end_ms)])) == 1
    assert strict.admit([final(C, "打开灯", 40_000)]) == []


def test_audio_that_passes_while_the_service_is_muted_does_not_count() -> None:
    opened = gate()
    opened.admit([final(A, WORD)])
    opened.pass_over(2_000, 62_000)
    assert len(opened.admit([final(B, "打开灯", 62_000 + LISTEN_MS - 300)])) == 1
    opened.pass_over(200_000, 900_000)
    assert opened.admit([final(C, "打开灯", 200_001)]) == []


# --- what the events hold -------------------------------------------------------------------------------------------------


def test_the_times_of_the_word_are_those_of_its_tokens() -> None:
    (wake, _) = gate().admit([final(A, "嗯" + WORD + "打开")])
    assert isinstance(wake, WakeEvent)
    assert (wake.trace_id, wake.start_ms, wake.end_ms) == (A, 1_000 + CHARACTER_MS, 1_000 + 5 * CHARACTER_MS)
    (early, _) = gate().admit([partial(A, "嗯" + WORD + "打开", 5)], (A, hypothesis("嗯" + WORD + "打开", 6)))
    assert early == wake


def test_without_tokens_both_times_are_the_start_of_the_utterance() -> None:
    wake, last = gate().admit([final(A, WORD + "打开", tokens=[], confidence=0.75)])
    assert isinstance(wake, WakeEvent)
    assert isinstance(last, FinalEvent)
    assert (wake.start_ms, wake.end_ms) == (1_000, 1_000)
    assert (last.raw_text, last.tokens, last.confidence) == ("打开", [], 0.75)
    (early,) = gate().admit([partial(A, WORD, 4)])
    assert isinstance(early, WakeEvent)
    assert (early.start_ms, early.end_ms) == (1_000, 1_000)


def test_the_confidence_is_that_of_the_tokens_that_are_left() -> None:
    each = [*tokens(WORD, confidence=0.4), *tokens("打开灯", 1_800, confidence=0.9)]
    mean = round((4 * 0.4 + 3 * 0.9) / 7, 4)
    (_, last) = gate().admit([final(A, WORD + "打开灯", tokens=each, confidence=mean)])
    assert isinstance(last, FinalEvent)
    assert last.confidence == pytest.approx(0.9)
    (_, second) = gate().admit([final(A, WORD + "打开灯", tokens=each, confidence=0.97, text=WORD + "打开等")])
    assert isinstance(second, FinalEvent)
    assert (second.text, second.confidence) == ("打开等", 0.97)


@pytest.mark.parametrize(
    ("raw_text", "text", "left"),
    [
        ("小智小智二十六度", "小智小智，26度。", "26度。"),
        ("小智小智打开灯", "小子小子，打开灯。", "打开灯。"),  # as many characters, of another sound
        ("小智小智二十六度", "小子小子，26度。", "二十六度"),  # nothing fits: what was recognised
        ("嗯小智小智打开灯", "小智小智，打开灯。", "打开灯。"),
    ],
)
def test_the_word_is_cut_from_the_text_that_is_shown(raw_text: str, text: str, left: str) -> None:
    (_, last) = gate().admit([final(A, raw_text, text=text)])
    assert isinstance(last, FinalEvent)
    assert last.text == left


def test_pieces_and_blanks_of_latin_words_are_counted() -> None:
    each = [
        TokenTime(text=text, start_ms=at, end_ms=at + 9, confidence=0.5) for at, text in enumerate(["he", "y", "<unk>", "siri", "打", "开"])
    ]
    wake, last = gate("hey siri").admit([final(A, "hey siri打开", tokens=each)])
    assert isinstance(wake, WakeEvent)
    assert isinstance(last, FinalEvent)
    assert (wake.start_ms, wake.end_ms) == (0, 12)
    assert (last.raw_text, last.tokens) == ("打开", each[4:])


def test_a_final_that_fell_back_to_less_than_the_word_has_no_text() -> None:
    opened = gate()
    opened.admit([partial(A, WORD + "打", 4)])
    (last,) = opened.admit([final(A, "")])
    assert isinstance(last, FinalEvent)
    assert last.raw_text == last.text == ""


# --- errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["infer_partial_failed", "infer_final_failed", "punctuation_failed", "hotword_repair_failed"])
def test_what_a_failed_part_says_of_an_utterance_that_does_not_pass_is_its_type_alone(code: Any) -> None:
    closed = gate()
    events = closed.admit([started(A), error(A, code), final(A, "打开灯"), error(A, code)])
    assert [event.message for event in events if isinstance(event, ErrorEvent)] == ["KeyError", "KeyError"]


def test_what_a_failed_part_says_of_an_utterance_that_passes_is_told() -> None:
    opened = gate()
    events = opened.admit([final(A, WORD + "打开灯"), error(A), started(B, 3_000), error(B, "infer_partial_failed")])
    events += opened.admit([partial(C, WORD, 4, 90_000), error(C, "infer_partial_failed")])
    assert [event.message for event in events if isinstance(event, ErrorEvent)] == ["KeyError: '打开'"] * 3


def test_losses_and_devices_are_told_whole_whoever_speaks() -> None:
    assert gate().admit([started(A), error(A, "audio_device_lost")])[-1] == error(A, "audio_device_lost")


# --- labels and recordings ------------------------------------------------------------------------------------------------


def draft(trace_id: str, raw_text: str, start_ms: int = 1_000) -> Transcript:
    return Transcript(trace_id, (), ms_to_samples(start_ms), ms_to_samples(start_ms + 900), "silence", raw_text=raw_text, text=raw_text)


def test_labels_are_wanted_of_what_will_pass() -> None:
    opened = gate()
    assert not opened.wants_labels(draft(A, "打开灯"))
    assert opened.wants_labels(draft(A, WORD + "打开灯"))
    opened.admit([partial(A, WORD, 4)])
    assert opened.wants_labels(draft(A, ""))
    assert not opened.wants_labels(draft(B, ""))
    opened.admit([final(A, WORD)])
    assert opened.wants_labels(draft(B, "打开灯", 3_000))
    assert not opened.wants_labels(draft(B, "打开灯", 30_000))


def test_what_passed_is_recorded_and_nothing_else_is_kept_for_long() -> None:
    recorded: list[tuple[str, int]] = []

    def keep(trace_id: str, samples: Samples) -> None:
        recorded.append((trace_id, len(samples)))

    opened = gate(keep=keep)
    for number, text in enumerate(["打开灯", None, WORD, None, "打开灯"], 1):
        trace_id, start_ms = f"{number:016x}", number * 3_000
        opened.keep(trace_id, np.zeros(number, np.float32))
        opened.admit([final(trace_id, text, start_ms)] if text else [])
    assert recorded == [(f"{3:016x}", 3), (f"{5:016x}", 5)]
    assert not opened._recordings
    for number in range(100):  # noise without text
        opened.keep(f"{number:016x}", np.zeros(1, np.float32))
    assert len(opened._recordings) == 8


def test_without_a_recorder_nothing_is_kept() -> None:
    opened = gate()
    opened.keep(A, np.zeros(SAMPLE_RATE_HZ, np.float32))
    assert not opened._recordings


# --- the guarantees -------------------------------------------------------------------------------------------------------


@st.composite
def utterances(draw: Any) -> list[tuple[str, int, list[AnyEvent]]]:
    """(text, start, events) of some utterances, as a pipeline makes them: what is committed stays."""
    found = []
    start_ms = 0
    for number in range(1, draw(st.integers(1, 5)) + 1):
        start_ms += draw(st.sampled_from([1_000, 5_000, 30_000]))
        text = draw(st.sampled_from(["", WORD, "小智", "小智小", "嗯"])) + draw(st.text("小智打开灯", max_size=4))
        trace_id = f"{number:016x}"
        events: list[AnyEvent] = [started(trace_id, start_ms)]
        stable = 0
        for _ in range(draw(st.integers(0, 4))):
            stable = draw(st.integers(stable, len(text)))
            shown = text[:stable] + draw(st.text("小智打开灯", max_size=4))
            if shown and text:
                events.append(partial(trace_id, shown, stable, start_ms))
        events.append(ended(trace_id))
        if text:
            events += [final(trace_id, text, start_ms), emotion(trace_id)]
        found.append((text, start_ms, events))
        start_ms += len(text) * CHARACTER_MS + 800
    return found


@settings(max_examples=400)
@given(utterances(), st.data())
def test_what_passes_keeps_the_guarantees_and_what_does_not_leaves_no_trace(spoken: list[Any], data: Any) -> None:
    opened, words = gate(), WakeWords([WORD], tones=False)
    passed: list[AnyEvent] = []
    queue = [event for _, _, events in spoken for event in events]
    while queue:
        size = data.draw(st.integers(1, len(queue)))
        passed += opened.admit(queue[:size])
        queue = queue[size:]
    dumped = [event.model_dump() for event in passed]
    check_guarantees(dumped)
    open_until_ms, expected = -1, []
    for text, start_ms, events in spoken:
        trace_id = events[0].trace_id
        of_utterance = [event for event in dumped if event["trace_id"] == trace_id]
        start = next((start for start in (0, 1) if text[start:].startswith(WORD)), None)
        woken = start is not None
        if woken or (text and start_ms <= open_until_ms):
            open_until_ms = start_ms + len(text) * CHARACTER_MS + LISTEN_MS
            expected.append(text[start + len(WORD) :] if start is not None else text)
            kinds = [event["type"] for event in of_utterance if not event["type"].endswith("partial")]
            expected_kinds = ["voice.speech.started", "voice.speech.ended", "voice.asr_text.final", "voice.asr_text.emotion"]
            assert [kind for kind in kinds if kind != "voice.wake"] == expected_kinds
            assert kinds.count("voice.wake") == woken
            assert not woken or kinds.index("voice.wake") < kinds.index("voice.asr_text.final")
        elif start_ms > open_until_ms:
            assert of_utterance == []
        assert words.look(text, ended=True) is not None
    assert [event["raw_text"] for event in of_type(dumped, "final")] == expected
    assert opened.num_withheld == sum(bool(text) for text, _, _ in spoken) - len(expected)
