"""Output: the contract that strangers build on."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from voice.audio import SAMPLE_RATE_HZ, ms_to_samples
from voice.finalization.emotion import EMOTION_NAMES
from voice.level import Level
from voice.output.events import (
    SCHEMA_PATH,
    SCHEMA_VERSION,
    AnyEvent,
    AudioLevel,
    ErrorEvent,
    FinalEvent,
    PartialEvent,
    SpeechEndedEvent,
    SpeechRejectedEvent,
    SpeechStartedEvent,
    StatusEvent,
    TokenTime,
    Totals,
    WakeEvent,
    schema,
    schema_text,
)
from voice.output.wire import emotion_event, final_event, label_event, level_event, partial_event
from voice.transcript import Emotion, Hypothesis, Speaker, Token, Transcript

TRACE_ID = "0123456789abcdef"
SOURCE = "funasr.streaming.paraformer-zh"
TOKENS = (
    Token("打", ms_to_samples(1_000), ms_to_samples(1_240), 0.5),
    Token("开", ms_to_samples(1_240), ms_to_samples(1_480), 0.75),
    Token("wi@@", ms_to_samples(1_480), ms_to_samples(1_600), 1.0),
    Token("fi", ms_to_samples(1_600), ms_to_samples(1_720), 1.0),
)
EMOTION = Emotion(
    "funasr.emotion2vec_plus_base",
    "happy",
    0.876_543_21,
    {**dict.fromkeys(EMOTION_NAMES, 0.0), "happy": 0.876_543_21, "neutral": 0.123_456_79},
    ms_to_samples(1_000),
    ms_to_samples(1_720),
)


def transcript(emotion: Emotion | None = None, **changes: Any) -> Transcript:
    fields = {"raw_text": "打开wifi", "text": "打开wifi。", "lost_samples": ms_to_samples(30), "emotion": emotion, "level": LEVEL}
    return Transcript(TRACE_ID, TOKENS, ms_to_samples(1_000), ms_to_samples(1_720), "silence", **{**fields, **changes})


LEVEL = Level(-27.5, -6.2, 0.001_234)
PARTIAL = partial_event(TRACE_ID, SOURCE, Hypothesis(TOKENS[:1], TOKENS[1:2]), ms_to_samples(1_000), ms_to_samples(1_600))
FINAL = final_event(SOURCE, transcript())
SPEAKER = Speaker("funasr.campplus", "A", "妈妈", 0.912_34)

EXAMPLES: dict[str, AnyEvent] = {
    "partial": PARTIAL,
    "final": FINAL,
    "final with emotion": final_event(SOURCE, transcript(EMOTION)),
    "final without tokens": final_event(SOURCE, Transcript(TRACE_ID, (), 0, SAMPLE_RATE_HZ, "audio_lost")),
    "final with speaker": final_event(SOURCE, transcript(speaker=SPEAKER), with_speaker=True),
    "final of nobody": final_event(SOURCE, transcript(), with_speaker=True),
    "emotion": emotion_event(TRACE_ID, EMOTION),
    "speaker": label_event(TRACE_ID, SPEAKER),
    "error": ErrorEvent(trace_id=TRACE_ID, error_code="audio_overrun", message="AudioLost: 30 ms", recoverable=True),
    "status": StatusEvent(trace_id=TRACE_ID, state="ready", version="1.0", schema_version="1", model="paraformer-zh-streaming"),
    "status with totals": StatusEvent(trace_id=TRACE_ID, state="stopped", totals=Totals(utterances=3, audio_ms=5_000)),
    "status with device": StatusEvent(trace_id=TRACE_ID, state="listening", device="USB Microphone", rate_hz=48_000, channels=2),
    "status as an answer": StatusEvent(trace_id=TRACE_ID, state="listening", id="7"),
    "level": level_event(5_000, LEVEL),
    "level while muted": level_event(5_000, None),
    "speech started": SpeechStartedEvent(trace_id=TRACE_ID, start_ms=1_000),
    "wake": WakeEvent(trace_id=TRACE_ID, word="小智小智", start_ms=1_000, end_ms=1_600),
    "speech ended": SpeechEndedEvent(trace_id=TRACE_ID, end_ms=1_720, endpoint="silence"),
    "speech rejected": SpeechRejectedEvent(
        trace_id=TRACE_ID,
        start_ms=1_000,
        end_ms=1_720,
        level_dbfs=-28.0,
        noise_dbfs=-60.0,
        directness=-3.0,
        min_level_dbfs=-120.0,
        min_directness=-0.5,
    ),
}
VALIDATOR = Draft202012Validator(schema())


def line(event: AnyEvent) -> dict[str, Any]:
    """The event as a reader of stdout sees it."""
    return json.loads(json.dumps(event.model_dump()))


def test_the_schema_in_the_repository_is_current():
    """Change an event, then run ``make schema``."""
    assert SCHEMA_PATH.read_text(encoding="utf-8") == schema_text()


def test_the_schema_is_a_schema():
    Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_event_fits_the_schema(name: str):
    assert list(VALIDATOR.iter_errors(line(EXAMPLES[name]))) == []


def test_there_is_an_example_of_every_event_in_the_schema():
    assert {example.type for example in EXAMPLES.values()} == set(schema()["discriminator"]["mapping"])


def test_the_schema_promises_every_key_that_a_line_has():
    """A reader that generates its types from the schema may rely on all of them but those that a setting switches on."""
    lines = {name: line(example) for name, example in EXAMPLES.items()}
    without = {
        (name, missing): {key: lines[name][key] for key in lines[name] if key != missing}
        for name in lines
        for missing in lines[name]
        if missing not in getattr(EXAMPLES[name], "switched_on", ())
    }
    assert [name_and_key for name_and_key, shortened in without.items() if VALIDATOR.is_valid(shortened)] == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("partial", {"confidence": 1.5}),
        ("partial", {"confidence": None}),
        ("partial", {"source": "funasr.remote"}),
        ("final", {"confidence": None}),
        ("final", {"source": "funasr.remote"}),
        ("final", {"source": "funasr.remote", "confidence": None}),
        ("final", {"tokens": [{"text": "打", "start_ms": 0, "end_ms": 60, "confidence": None}]}),
        ("partial", {"text": ""}),
        ("partial", {"trace_id": "0123456789ABCDEF"}),
        ("partial", {"trace_id": "123"}),
        ("partial", {"start_ms": -1}),
        ("partial", {"raw_text": ""}),
        ("partial", {"raw_text": None}),
        ("final", {"endpoint": "tired"}),
        ("final", {"tokens": [{"text": "打"}]}),
        ("final", {"emotion": {"label": "bored", "confidence": 0.5}}),
        ("final", {"type": "voice.asr_text.partial"}),
        ("emotion", {"scores": {"angry": 2}}),
        ("error", {"error_code": "misfortune"}),
        ("error", {"recoverable": "yes"}),
        ("status", {"state": "sleeping"}),
        ("status", {"device": 3}),
        ("status", {"rate_hz": 0}),
        ("status", {"channels": 0}),
    ],
)
def test_a_wrong_line_does_not_fit_the_schema(name: str, change: dict[str, Any]):
    assert not VALIDATOR.is_valid({**line(EXAMPLES[name]), **change})


def test_the_withheld_utterances_are_counted_only_where_there_are_wake_words() -> None:
    assert "unwoken_utterances" not in Totals(utterances=1).model_dump()
    assert Totals(utterances=1, unwoken_utterances=0).model_dump()["unwoken_utterances"] == 0
    with pytest.raises(ValidationError):
        Totals(unwoken_utterances=-1)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_key_that_a_later_version_adds_fits_the_schema_and_none_of_the_models(name: str) -> None:
    """A reader that validates lines goes on working; a misspelt key of ours fails at once."""
    added = {**line(EXAMPLES[name]), "key_of_tomorrow": {"any": ["thing"]}}
    assert VALIDATOR.is_valid(added)
    with pytest.raises(ValidationError):
        type(EXAMPLES[name]).model_validate(added)


def test_a_key_that_a_later_version_adds_to_a_token_the_emotion_or_the_totals_fits_the_schema() -> None:
    final, stopped = line(EXAMPLES["final with emotion"]), line(EXAMPLES["status with totals"])
    for part in (final["tokens"][0], final["emotion"], stopped["totals"]):
        part["key_of_tomorrow"] = 1
    assert VALIDATOR.is_valid(final)
    assert VALIDATOR.is_valid(stopped)


def test_the_scores_of_an_emotion_have_no_other_labels() -> None:
    event = line(EXAMPLES["emotion"])
    assert not VALIDATOR.is_valid({**event, "scores": {**event["scores"], "bored": 0.1}})


def test_every_status_has_the_keys_of_all_states_null_where_they_do_not_apply() -> None:
    keys = [
        "type",
        "ts",
        "trace_id",
        "source",
        "state",
        "seq",
        "version",
        "schema_version",
        "model",
        "totals",
        "device",
        "rate_hz",
        "channels",
        "id",
    ]
    assert list(line(StatusEvent(trace_id=TRACE_ID, state="muted"))) == keys
    assert [line(StatusEvent(trace_id=TRACE_ID, state="muted"))[key] for key in keys[6:]] == [None] * 8
    listening = line(EXAMPLES["status with device"])
    assert (listening["device"], listening["rate_hz"], listening["channels"]) == ("USB Microphone", 48_000, 2)


def test_keys_that_were_added_keep_the_schema_version() -> None:
    assert SCHEMA_VERSION == schema()["version"] == "1"


def test_the_failure_of_voice_activity_detection_has_a_code() -> None:
    error = ErrorEvent(trace_id=TRACE_ID, error_code="vad_failed", message="FloatingPointError: nan", recoverable=True)
    assert VALIDATOR.is_valid(line(error))


def remote(**changes: Any) -> FinalEvent:
    tokens = [TokenTime(text="打", start_ms=0, end_ms=60, confidence=None)]
    return FinalEvent(**{**dict(EXAMPLES["final"]), "source": "funasr.remote", "confidence": None, "tokens": tokens, **changes})


def test_what_a_server_recognised_has_no_confidence() -> None:
    event = line(remote())
    assert (event["confidence"], event["tokens"][0]["confidence"]) == (None, None)
    assert VALIDATOR.is_valid(event)
    assert VALIDATOR.is_valid(line(remote(tokens=[])))
    assert VALIDATOR.is_valid({**line(EXAMPLES["partial"]), "source": "funasr.remote", "confidence": None})


@pytest.mark.parametrize(
    "changes",
    [
        {"source": SOURCE},
        {"confidence": 0.5},
        {"tokens": [TokenTime(text="打", start_ms=0, end_ms=60, confidence=0.5)]},
        {"source": SOURCE, "confidence": 0.5},
    ],
)
def test_a_confidence_is_missing_where_there_is_none_and_nowhere_else(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"funasr\.remote"):
        remote(**changes)


@pytest.mark.parametrize("field", ["stable_chars", "confidence"])
def test_what_refers_to_a_text_says_to_which(field: str) -> None:
    assert "raw_text" in PartialEvent.model_fields[field].description


TEXT_KEYS = ["type", "ts", "trace_id", "source", "text", "confidence"]


@pytest.mark.parametrize(
    ("name", "inherited", "added"),
    [
        ("partial", TEXT_KEYS, ["seq", "start_ms", "end_ms", "stable_chars", "raw_text", "captured_ts"]),
        (
            "final",
            TEXT_KEYS,
            ["seq", "start_ms", "end_ms", "endpoint", "raw_text", "tokens", "emotion", "lost_ms", "level", "captured_ts"],
        ),
        ("emotion", ["type", "ts", "trace_id", "source"], ["seq", "label", "confidence", "scores", "start_ms", "end_ms"]),
        ("error", ["type", "ts", "trace_id", "source", "error_code", "message"], ["seq", "recoverable"]),
    ],
)
def test_a_line_begins_with_the_inherited_keys_in_their_order(name: str, inherited: list[str], added: list[str]):
    keys = list(line(EXAMPLES[name]))
    assert keys[: len(inherited)] == inherited
    assert set(keys[len(inherited) :]) == set(added)


@pytest.mark.parametrize(
    ("name", "event_type"),
    [
        ("partial", "voice.asr_text.partial"),
        ("final", "voice.asr_text.final"),
        ("emotion", "voice.asr_text.emotion"),
        ("error", "core.error_event"),
        ("status", "core.status_event"),
        ("level", "core.level_event"),
        ("speech started", "voice.speech.started"),
        ("speech ended", "voice.speech.ended"),
    ],
)
def test_the_types_are_the_ones_readers_know(name: str, event_type: str):
    assert line(EXAMPLES[name])["type"] == event_type


def test_a_partial_says_what_is_thought_so_far_and_what_of_it_stays():
    expected = PartialEvent(
        trace_id=TRACE_ID, source=SOURCE, text="打开", confidence=0.625, start_ms=1_000, end_ms=1_600, stable_chars=1, raw_text="打开"
    )
    assert expected == PARTIAL


def test_a_final_says_what_was_heard_and_when():
    expected = FinalEvent(
        trace_id=TRACE_ID,
        source=SOURCE,
        text="打开wifi。",
        confidence=0.8125,
        start_ms=1_000,
        end_ms=1_720,
        endpoint="silence",
        raw_text="打开wifi",
        tokens=[
            TokenTime(text="打", start_ms=1_000, end_ms=1_240, confidence=0.5),
            TokenTime(text="开", start_ms=1_240, end_ms=1_480, confidence=0.75),
            TokenTime(text="wi", start_ms=1_480, end_ms=1_600, confidence=1.0),
            TokenTime(text="fi", start_ms=1_600, end_ms=1_720, confidence=1.0),
        ],
        emotion=None,
        lost_ms=30,
        level=AudioLevel(rms_dbfs=-27.5, peak_dbfs=-6.2, clipped_ratio=0.0012),
    )
    assert expected == FINAL


def test_the_emotion_of_a_final_is_null_where_there_is_none():
    assert line(FINAL)["emotion"] is None


def test_the_emotion_of_a_final_is_its_label_and_confidence():
    assert line(EXAMPLES["final with emotion"])["emotion"] == {"label": "happy", "confidence": 0.8765}


def test_a_final_has_a_speaker_only_where_the_setting_is_on():
    assert "speaker" not in line(EXAMPLES["final"])
    assert line(EXAMPLES["final of nobody"])["speaker"] is None
    assert line(EXAMPLES["final with speaker"])["speaker"] == {"label": "A", "name": "妈妈", "confidence": 0.9123}
    assert list(VALIDATOR.iter_errors({**line(FINAL), "speaker": {"label": "a", "name": None, "confidence": 1}}))


def test_a_late_speaker_has_an_event_of_its_own():
    event = line(EXAMPLES["speaker"])
    assert (event["trace_id"], event["label"], event["name"], event["confidence"]) == (TRACE_ID, "A", "妈妈", 0.9123)
    assert label_event(TRACE_ID, EMOTION) == emotion_event(TRACE_ID, EMOTION)


def test_the_emotion_event_has_all_nine_labels():
    event = line(EXAMPLES["emotion"])
    assert (event["label"], event["confidence"], event["source"]) == ("happy", 0.8765, "funasr.emotion2vec_plus_base")
    assert event["scores"] == {**dict.fromkeys(EMOTION_NAMES, 0.0), "happy": 0.8765, "neutral": 0.1235}
    assert (event["start_ms"], event["end_ms"]) == (1_000, 1_720)
    assert set(EMOTION_NAMES) == {"angry", "disgusted", "fearful", "happy", "neutral", "other", "sad", "surprised", "unknown"}


@pytest.mark.parametrize(("posterior", "shown"), [(0.123_456, 0.1235), (1.000_000_1, 1.0), (-1e-9, 0.0), (1 / 3, 0.3333)])
def test_confidences_are_rounded_to_four_places_and_stay_in_their_range(posterior: float, shown: float):
    """float32 softmax sums to a hair more than 1."""
    token = Token("打", 0, 960, posterior)
    event = final_event(SOURCE, Transcript(TRACE_ID, (token,), 0, 960, "silence"))
    assert (event.confidence, event.tokens[0].confidence) == (shown, shown)


@pytest.mark.parametrize("confidence", [math.nan, math.inf, -math.inf])
def test_a_confidence_that_is_no_number_cannot_be_made(confidence: float):
    with pytest.raises(ValidationError):
        PartialEvent(
            trace_id=TRACE_ID, source=SOURCE, text="打", confidence=confidence, start_ms=0, end_ms=60, stable_chars=0, raw_text="打"
        )


def test_a_token_without_a_posterior_does_not_become_an_event():
    hypothesis = Hypothesis((Token("打", 0, 960, math.nan),))
    with pytest.raises(ValidationError):
        partial_event(TRACE_ID, SOURCE, hypothesis, 0, 960)


def test_what_names_a_file_is_escaped_where_it_is_not_utf_8() -> None:
    name = os.fsdecode(b"\xbf\xcd \xe5\xae\xa2")
    shown = r"\udcbf\udccd 客"
    status = StatusEvent(trace_id=TRACE_ID, state="ready", model=name, device=name)
    error = ErrorEvent(trace_id=TRACE_ID, error_code="input_unreadable", message=f"InputUnreadable: {name}", recoverable=False)
    emotion = Emotion(f"funasr.{name}", "happy", 1.0, dict.fromkeys(EMOTION_NAMES, 0.0), 0, 1)
    assert (status.model, status.device) == (shown, shown)
    assert error.message == f"InputUnreadable: {shown}"
    assert emotion_event(TRACE_ID, emotion).source == f"funasr.{shown}"
    for event in (status, error):
        event.model_dump_json().encode()


def test_an_event_changes_no_more():
    with pytest.raises(ValidationError):
        FINAL.text = "other"
