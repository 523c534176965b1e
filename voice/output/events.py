"""The events on stdout: the contract that other programs build on.

Stage: output. Values of the contract; ``voice.output.wire`` makes them of ours. No state, any thread.
Raises: ``pydantic.ValidationError`` for a value that the contract does not allow, such as a confidence that is no number.

One pydantic model per event; the order of the fields is the order of the keys. ``ts`` and ``seq`` are stamped by the writer when the line
is written, ``captured_ts`` by the loop that reads the audio. ``config/events.schema.json`` is generated from these models (``python -m
voice.output.events``), and a test keeps it current. The models accept no unknown key, so that a misspelt one fails here. The schema
allows unknown keys, so that a reader who validates lines goes on working when a key is added. A change here goes into the schema,
CHANGELOG.md, the documentation and the tests in one commit.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    model_serializer,
    model_validator,
)

from voice.errors import ErrorCode
from voice.level import LOUDEST_DBFS, QUIETEST_DBFS
from voice.places import DATA
from voice.transcript import REMOTE_SOURCE, EmotionName, Endpoint

SCHEMA_VERSION = "1"
SCHEMA_PATH = DATA / "config" / "events.schema.json"


def _encodable(value: object) -> object:
    """A text with what UTF-8 cannot encode escaped: the name of a file may hold any bytes, a line may not."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else value


Given = Annotated[str, BeforeValidator(_encodable)]
"""Text from outside, which may name a file."""
TraceId = Annotated[str, Field(pattern="^[0-9a-f]{16}$", description="One per utterance; an error that belongs to none gets its own.")]
Ts = Annotated[int, Field(ge=0, description="Wall clock when the line was written, ms since the epoch.")]
Seq = Annotated[int, Field(ge=0, description="Lines of this process, from 1, without a gap.")]
Probability = Annotated[float, Field(ge=0, le=1)]
CapturedTs = Annotated[
    int,
    Field(ge=0, description="Wall clock when the sample at end_ms was captured, of a file or stdin when it was read; ms since the epoch."),
]
AudioMs = Annotated[int, Field(ge=0, description="ms on the audio clock: 0 is the first sample the process captured.")]


def _as_readers_see_it(json_schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Allow keys that may be added later, and require none that a setting has to switch on."""
    json_schema.pop("additionalProperties")
    if issubclass(model, Switchable):
        json_schema["required"] = [key for key in json_schema["required"] if key not in model.switched_on]
    if issubclass(model, RecognizedText):
        remote, local = ({"properties": _confidences(kind, model)} for kind in ("null", "number"))
        json_schema["if"] = {"properties": {"source": {"const": REMOTE_SOURCE}}}
        json_schema |= {"then": remote, "else": local}


def _confidences(kind: str, model: type[BaseModel]) -> dict[str, Any]:
    """The type of each confidence of an event, as keywords of JSON Schema."""
    confidence = {"confidence": {"type": kind}}
    tokens = {"tokens": {"items": {"properties": confidence}}} if "tokens" in model.model_fields else {}
    return {**confidence, **tokens}


class Event(BaseModel):
    """What all lines share."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_serialization_defaults_required=True, json_schema_extra=_as_readers_see_it
    )


class Switchable(Event):
    """An event with keys that stand in it only where the setting they come of is on, and they were given."""

    switched_on: ClassVar[frozenset[str]] = frozenset()
    """Those keys."""

    @model_serializer(mode="wrap")
    def _leave_out(self, serialize: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]  # noqa: ANN202 -- a type would replace the schema
        content = serialize(self)
        return {key: value for key, value in content.items() if key not in self.switched_on or key in self.model_fields_set}


class TokenTime(Event):
    """One token of ``raw_text``."""

    text: str
    start_ms: AudioMs
    end_ms: AudioMs
    confidence: Annotated[Probability | None, Field(description="Posterior of this token; null where source is funasr.remote.")]


class EmotionSummary(Event):
    """The emotion as the final carries it."""

    label: EmotionName
    confidence: Probability


class SpeakerSummary(Event):
    """The speaker as the final carries it."""

    label: Annotated[str, Field(pattern="^[A-Z]+$", description="One for each voice, the same for the life of the process.")]
    name: Annotated[str | None, Field(description="As given with the command name_speaker.")]
    confidence: Probability


class RecognizedText(Event):
    """What partials and finals share: a server gives no confidence, and none is made up."""

    @model_validator(mode="after")
    def _check_confidence(self) -> RecognizedText:
        fields = dict(self)
        confidences = [fields["confidence"], *(token.confidence for token in fields.get("tokens", ()))]
        is_remote = fields["source"] == REMOTE_SOURCE
        if any((confidence is None) != is_remote for confidence in confidences):
            raise ValueError(f"confidence is null where source is {REMOTE_SOURCE}, and a number elsewhere")
        return self


class PartialEvent(RecognizedText):
    """Text of an utterance that is still being spoken."""

    type: Literal["voice.asr_text.partial"] = "voice.asr_text.partial"
    ts: Ts = 0
    trace_id: TraceId
    source: str
    text: Annotated[str, Field(min_length=1, description="What to show.")]
    confidence: Annotated[
        Probability | None, Field(description="Mean posterior of the tokens of raw_text; null where source is funasr.remote.")
    ]
    seq: Seq = 0
    start_ms: Annotated[AudioMs, Field(description="First speech sample of the utterance.")]
    end_ms: Annotated[AudioMs, Field(description="The audio decoded so far.")]
    stable_chars: Annotated[
        int, Field(ge=0, description="Leading code points of raw_text that begin raw_text of each later partial and of the final, too.")
    ]
    raw_text: Annotated[str, Field(min_length=1, description="Recognised text before punctuation and repairs; equal to text in partials.")]
    captured_ts: CapturedTs = 0


class AudioLevel(Event):
    """How loud a stretch of audio is; full scale is the largest sample there can be."""

    rms_dbfs: Annotated[
        float, Field(ge=QUIETEST_DBFS, le=LOUDEST_DBFS, description="Root mean square in dB relative to full scale; silence is -120.")
    ]
    peak_dbfs: Annotated[float, Field(ge=QUIETEST_DBFS, le=LOUDEST_DBFS, description="Largest sample in dB relative to full scale.")]
    clipped_ratio: Annotated[Probability, Field(description="Share of samples at full scale: above 0.01 speech is distorted.")]


class FinalEvent(RecognizedText, Switchable):
    """Text of a finished utterance. Only its emotion, its speaker and errors may follow."""

    switched_on = frozenset({"speaker"})
    type: Literal["voice.asr_text.final"] = "voice.asr_text.final"
    ts: Ts = 0
    trace_id: TraceId
    source: str
    text: Annotated[str, Field(description="What to show: raw_text with punctuation and, where configured, numbers, repairs, second pass.")]
    confidence: Annotated[
        Probability | None, Field(description="Mean posterior of the tokens; 0 where there is none; null where source is funasr.remote.")
    ]
    seq: Seq = 0
    start_ms: Annotated[AudioMs, Field(description="First speech sample as decided, without pre-roll.")]
    end_ms: Annotated[AudioMs, Field(description="After the last speech sample as decided, without trailing silence.")]
    endpoint: Annotated[Endpoint, Field(description="Why the utterance ended.")]
    raw_text: Annotated[str, Field(description="Recognised text before punctuation and repairs.")]
    tokens: Annotated[list[TokenTime], Field(description="Tokens of raw_text with times and posteriors.")]
    emotion: Annotated[EmotionSummary | None, Field(description="null: off, too short, too uncertain, failed, or not ready in time.")]
    lost_ms: Annotated[int, Field(ge=0, description="Audio lost inside this utterance; 0 means nothing was lost.")]
    level: Annotated[AudioLevel, Field(description="Of the speech.")]
    captured_ts: CapturedTs = 0
    speaker: Annotated[
        SpeakerSummary | None, Field(description="Only with --speakers. null: too short, too uncertain, failed, or not ready in time.")
    ] = None


class EmotionEvent(Event):
    """Emotion of a finished utterance, after its final."""

    type: Literal["voice.asr_text.emotion"] = "voice.asr_text.emotion"
    ts: Ts = 0
    trace_id: TraceId
    source: Given
    seq: Seq = 0
    label: EmotionName
    confidence: Annotated[Probability, Field(description="Score of label.")]
    scores: Annotated[dict[EmotionName, Probability], Field(description="All nine labels; a label the model lacks scores 0.")]
    start_ms: AudioMs
    end_ms: AudioMs


class SpeakerEvent(Event):
    """Speaker of a finished utterance whose final did not wait for it (only with --speakers)."""

    type: Literal["voice.asr_text.speaker"] = "voice.asr_text.speaker"
    ts: Ts = 0
    trace_id: TraceId
    source: Given
    seq: Seq = 0
    label: Annotated[str, Field(pattern="^[A-Z]+$", description="One for each voice, the same for the life of the process.")]
    name: Annotated[str | None, Field(description="As given with the command name_speaker.")]
    confidence: Probability


class ErrorEvent(Event):
    """Something went wrong."""

    type: Literal["core.error_event"] = "core.error_event"
    ts: Ts = 0
    trace_id: TraceId
    source: Literal["voice.asr"] = "voice.asr"
    error_code: ErrorCode
    message: Annotated[Given, Field(description="'Type: text'; never a traceback.")]
    seq: Seq = 0
    recoverable: Annotated[bool, Field(description="true: the service goes on.")]


class Totals(Switchable):
    """Counters of the process."""

    utterances: Annotated[int, Field(ge=0, description="Utterances with text.")] = 0
    empty_utterances: Annotated[int, Field(ge=0, description="Utterances in which nothing was recognised: no event was sent.")] = 0
    audio_ms: Annotated[int, Field(ge=0)] = 0
    lost_ms: Annotated[int, Field(ge=0)] = 0
    rejected_ms: Annotated[
        int, Field(ge=0, description="Speech that was not recognised: quieter than vad.min_rms, or not near (vad.near_field).")
    ] = 0
    errors: Annotated[int, Field(ge=0)] = 0
    unwoken_utterances: Annotated[
        int, Field(ge=0, description="Utterances with text that no wake word let through; only with wake words.")
    ] = 0

    switched_on: ClassVar[frozenset[str]] = frozenset({"unwoken_utterances"})


class StatusEvent(Event):
    """Life cycle of the process (only with --status-events)."""

    type: Literal["core.status_event"] = "core.status_event"
    ts: Ts = 0
    trace_id: TraceId
    source: Literal["voice.asr"] = "voice.asr"
    state: Literal["loading", "ready", "listening", "waiting", "audio_lost", "audio_restored", "muted", "unmuted", "stopped"]
    seq: Seq = 0
    version: Annotated[str | None, Field(description="Of the service; in ready.")] = None
    schema_version: Annotated[str | None, Field(description="Of these events; in ready.")] = None
    model: Annotated[Given | None, Field(description="Name of the recognition model; in ready.")] = None
    totals: Annotated[Totals | None, Field(description="In stopped, and in the answer to a command.")] = None
    device: Annotated[Given | None, Field(description="Name of the microphone; in listening and audio_restored.")] = None
    rate_hz: Annotated[int | None, Field(gt=0, description="Sample rate of the input; in listening and audio_restored.")] = None
    channels: Annotated[int | None, Field(gt=0, description="Channels of the input; in listening and audio_restored.")] = None
    id: Annotated[str | int | None, Field(description="Of the command that this answers.")] = None


class LevelEvent(Event):
    """How loud the microphone is (only with --status-events): a meter, and a sign of life."""

    type: Literal["core.level_event"] = "core.level_event"
    ts: Ts = 0
    trace_id: TraceId
    source: Literal["voice.asr"] = "voice.asr"
    seq: Seq = 0
    end_ms: Annotated[AudioMs, Field(description="The audio until here was measured, from the level event before on.")]
    muted: Annotated[bool, Field(description="true: the audio is not recognised, by command; then no level is told.")]
    level: Annotated[AudioLevel | None, Field(description="null while muted.")]


class SpeechStartedEvent(Event):
    """An utterance began (only with --status-events)."""

    type: Literal["voice.speech.started"] = "voice.speech.started"
    ts: Ts = 0
    trace_id: TraceId
    source: Literal["voice.asr"] = "voice.asr"
    seq: Seq = 0
    start_ms: AudioMs


class SpeechEndedEvent(Event):
    """An utterance ended (only with --status-events); its final follows where it has text."""

    type: Literal["voice.speech.ended"] = "voice.speech.ended"
    ts: Ts = 0
    trace_id: TraceId
    source: Literal["voice.asr"] = "voice.asr"
    seq: Seq = 0
    end_ms: AudioMs
    endpoint: Endpoint


class WakeEvent(Event):
    """A wake word was spoken (only with wake words); the final of its utterance follows, without the word."""

    type: Literal["voice.wake"] = "voice.wake"
    ts: Ts = 0
    trace_id: TraceId
    source: Literal["voice.asr"] = "voice.asr"
    seq: Seq = 0
    word: Annotated[str, Field(min_length=1, description="As the settings have it.")]
    start_ms: Annotated[AudioMs, Field(description="Of the word; both are the start of the utterance where no times are known.")]
    end_ms: AudioMs
    captured_ts: CapturedTs = 0


class SpeechRejectedEvent(Event):
    """Speech was not near, so it is not recognised (only with --status-events and vad.near_field)."""

    type: Literal["voice.speech.rejected"] = "voice.speech.rejected"
    ts: Ts = 0
    trace_id: TraceId
    source: Literal["voice.asr"] = "voice.asr"
    seq: Seq = 0
    start_ms: AudioMs
    end_ms: Annotated[AudioMs, Field(description="After its last speech, or where near speech began.")]
    level_dbfs: Annotated[float, Field(description="Root mean square of the speech, pauses not counted, in dB relative to full scale.")]
    noise_dbfs: Annotated[float, Field(description="Root mean square of the noise before it, in dB relative to full scale.")]
    directness: Annotated[
        float, Field(description="Above 0 its sound is rather direct, below 0 rather reflected by the room; natural logarithm of the odds.")
    ]
    min_level_dbfs: Annotated[float, Field(description="Speech with a smaller level_dbfs is rejected.")]
    min_directness: Annotated[float, Field(description="Speech with a smaller directness is rejected.")]


AnyEvent = (
    PartialEvent
    | FinalEvent
    | EmotionEvent
    | SpeakerEvent
    | ErrorEvent
    | StatusEvent
    | LevelEvent
    | SpeechStartedEvent
    | SpeechEndedEvent
    | SpeechRejectedEvent
    | WakeEvent
)


def schema() -> dict[str, Any]:
    """JSON Schema of one line of stdout."""
    adapter: TypeAdapter[AnyEvent] = TypeAdapter(Annotated[AnyEvent, Field(discriminator="type")])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "One line of the voice ASR service's stdout",
        "version": SCHEMA_VERSION,
        **adapter.json_schema(mode="serialization"),
    }


def schema_text() -> str:
    """The content of ``config/events.schema.json``."""
    return json.dumps(schema(), ensure_ascii=False, indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA_PATH.write_text(schema_text(), encoding="utf-8")
    sys.stderr.write(f"{SCHEMA_PATH} written\n")
