"""One utterance, from its first sample to its final.

Audio of one utterance -> ``PartialEvent``s and one ``Conclusion``. It owns the recogniser's stream, what was shown, the final prepared in a
pause, and an explicit state; the audio stays in the pipeline's ``AudioHistory``. Worker thread. Any method may raise what a model raises:
then ``fail`` says what failed and moves the state on, and the utterance goes on with less.

::

                +--- speech resumes ----+
                v                       |
    start -> DECODING -- pause --> PREPARING          the state that ``fail`` leads to
                | ^                                   PREPARING  -> DECODING    nothing is lost: the end is computed at the end
                | +-- REBUILDING                      DECODING   -> REBUILDING  a new stream decodes the audio again
                |     BROKEN                          REBUILDING -> BROKEN      the audio waits for the end
              end                                     FINISHING  -> RETRYING    a new stream decodes the audio again
                v                                     RETRYING   -> COMPLETING  of what was shown last
            FINISHING (RETRYING) -> COMPLETING        COMPLETING -> BARE        the text as it was recognised
                                        v             BARE       -> MINIMAL     the text shown last, without tokens
                                    CONCLUDED
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from voice.audio import samples_to_ms
from voice.endpointing.endpointer import SpeechEnded
from voice.errors import ErrorCode
from voice.finalization.finalizer import CompletedFinal, Draft, Finalizer, PreparedFinal
from voice.level import level_of
from voice.output.events import AnyEvent, PartialEvent
from voice.output.wire import emotion_event, final_event, partial_event
from voice.recognition.recognizer import Recognizer, RecognizerStream
from voice.transcript import SPEAKER_ENDED, Endpoint, Hypothesis, Token, Transcript, within_speech
from voice.windowing import AudioHistory


class State(enum.Enum):
    """What is being done with the utterance."""

    DECODING = enum.auto()
    PREPARING = enum.auto()
    REBUILDING = enum.auto()
    BROKEN = enum.auto()
    FINISHING = enum.auto()
    RETRYING = enum.auto()
    COMPLETING = enum.auto()
    BARE = enum.auto()
    MINIMAL = enum.auto()
    CONCLUDED = enum.auto()


_AFTER_FAILURE = {
    State.PREPARING: State.DECODING,
    State.DECODING: State.REBUILDING,
    State.REBUILDING: State.BROKEN,
    State.FINISHING: State.RETRYING,
    State.RETRYING: State.COMPLETING,
    State.COMPLETING: State.BARE,
    State.BARE: State.MINIMAL,
}
_WHILE_SPEAKING = (State.DECODING, State.PREPARING, State.REBUILDING, State.BROKEN)


@dataclass(frozen=True, slots=True)
class UtteranceSummary:
    """An utterance that ended, for the log: no recognised text."""

    trace_id: str
    start_sample: int
    end_sample: int
    endpoint: Endpoint
    num_tokens: int
    confidence: float
    lost_samples: int

    @property
    def log_fields(self) -> dict[str, object]:
        """As the canonical log line has them."""
        return {
            "trace_id": self.trace_id,
            "start_ms": samples_to_ms(self.start_sample),
            "end_ms": samples_to_ms(self.end_sample),
            "endpoint": self.endpoint,
            "tokens": self.num_tokens,
            "confidence": round(self.confidence, 3),
            "lost_ms": samples_to_ms(self.lost_samples),
        }


@dataclass(frozen=True, slots=True)
class Conclusion:
    """How an utterance ended."""

    events: list[AnyEvent]
    """Its final and its emotion; nothing where nothing was recognised."""
    failures: tuple[tuple[ErrorCode, str], ...]
    """Code and message of each optional part that failed."""
    summary: UtteranceSummary


@dataclass(frozen=True, slots=True)
class _Preparation:
    """The final for the case that nobody speaks any more."""

    ended: SpeechEnded
    hypothesis: Hypothesis | None = None
    """None while it is being computed, and where that failed."""
    final: PreparedFinal | None = None
    """None where there is no text."""


class Utterance:
    """The utterance in flight."""

    def __init__(
        self, trace_id: str, *, start_sample: int, audio_start: int, history: AudioHistory, recognizer: Recognizer, finalizer: Finalizer
    ) -> None:
        """Begin an utterance.

        Args:
            trace_id: of all its events.
            start_sample: first speech sample as decided.
            audio_start: first sample that the recogniser decodes: with pre-roll.
            history: holds its audio from ``audio_start`` on.
            recognizer: makes its stream.
            finalizer: completes its final.
        """
        self.trace_id = trace_id
        self.start_sample = start_sample
        self.audio_start = self.fed_until = audio_start
        self.lost_samples = 0
        self.state = State.DECODING
        self.ended: SpeechEnded | None = None
        self._history = history
        self._recognizer = recognizer
        self._finalizer = finalizer
        self._stream: RecognizerStream | None = None
        self._shown = Hypothesis()
        self._kept: tuple[Token, ...] = ()
        self._preparation: _Preparation | None = None
        self._hypothesis = Hypothesis()

    def feed(self, until: int, *, provisional: bool = True, preview: bool = False) -> PartialEvent | None:
        """Decode the audio before sample ``until``; the partial where its text is new.

        Args:
            until: sample index.
            provisional: whether there is time for a provisional tail behind what is committed.
            preview: whether there is time to show audio that is not decoded for good yet.
        """
        samples = self._history.slice(self.fed_until, until)
        self.fed_until = until
        self._cancel_preparation()
        if self.state is State.BROKEN:
            return None
        if self._stream is None:
            self._stream = self._recognizer.create_stream(self.audio_start)
        if not (self._stream.accept(samples, provisional=provisional) or (preview and self._stream.preview())):
            return None
        hypothesis = _joined(self._kept, self._stream.hypothesis())
        if not hypothesis.text or hypothesis.text == self._shown.text:
            return None
        event = partial_event(self.trace_id, self._recognizer.source, hypothesis, self.start_sample, self._stream.decoded_until)
        self._shown = hypothesis
        return event

    def can_prepare(self, expected: SpeechEnded) -> bool:
        """Whether a final for this end can be prepared: its audio was decoded, and none was tried in this pause."""
        waits = self.state is State.DECODING and self._stream is not None and self._preparation is None
        return waits and expected.audio_end == self.fed_until

    def prepare(self, expected: SpeechEnded) -> None:
        """Compute the final for the case that speech does not resume; the stream stays as it is."""
        self.state, self._preparation = State.PREPARING, _Preparation(expected)
        assert self._stream is not None  # noqa: S101 -- can_prepare
        hypothesis = _joined(self._kept, self._stream.copy().finish())
        final = self._finalizer.prepare(self._draft(expected, hypothesis)) if hypothesis.text else None
        self.state, self._preparation = State.DECODING, _Preparation(expected, hypothesis, final)

    def fail(self) -> ErrorCode | None:
        """Move on after an exception in any other method; the error code of what failed, None where nothing is lost by it."""
        before, self.state = self.state, _AFTER_FAILURE.get(self.state, self.state)
        if before is State.RETRYING:
            self._hypothesis = self._shown
        if before is State.PREPARING:
            return None
        return "infer_partial_failed" if before in _WHILE_SPEAKING else "infer_final_failed"

    def repair(self) -> None:
        """After ``fail``: decode the audio again on a new stream, where the state says so; what was committed stays."""
        if self.state is State.REBUILDING:
            self._rebuild()
            self.state = State.DECODING

    def end(self, ended: SpeechEnded) -> None:
        """The utterance is over: ``feed`` takes the rest of its audio, then ``conclude`` makes its final."""
        self.ended = ended
        self.state = State.RETRYING if self.state is State.BROKEN else State.FINISHING

    def give_up(self, ended: SpeechEnded) -> None:
        """The utterance is over, and no model is asked any more: ``conclude`` takes what was shown last."""
        self.ended = self.ended or ended
        self._hypothesis, self.state = self._shown, State.BARE

    def conclude(self) -> Conclusion:
        """Make the final. After an exception and ``fail`` it is called again, and asks less of the models."""
        ended = self.ended
        assert ended is not None  # noqa: S101 -- end() or give_up() came before
        prepared = None
        if self.state in (State.FINISHING, State.RETRYING):
            self._hypothesis, prepared = self._flushed(ended)
            self.state = State.COMPLETING
        events: list[AnyEvent] = []
        failures: tuple[tuple[ErrorCode, str], ...] = ()
        if self._hypothesis.text or self._shown.text:
            completed = self._completed(ended, prepared)
            transcript = replace(completed.transcript, endpoint=ended.endpoint, lost_samples=self.lost_samples)
            events.append(final_event(self._recognizer.source, transcript, with_speaker=self._finalizer.with_speaker))
            if transcript.emotion:
                events.append(emotion_event(self.trace_id, transcript.emotion))
            failures = completed.failures
        self.state = State.CONCLUDED
        summary = UtteranceSummary(
            self.trace_id,
            self.start_sample,
            ended.end_sample,
            ended.endpoint,
            len(self._hypothesis.tokens),
            self._hypothesis.confidence,
            self.lost_samples,
        )
        return Conclusion(events, failures, summary)

    def _flushed(self, ended: SpeechEnded) -> tuple[Hypothesis, PreparedFinal | None]:
        """The last hypothesis, and its final where one was prepared for this end."""
        preparation = self._preparation
        if self.state is State.FINISHING and preparation and preparation.hypothesis and preparation.ended.audio_end == ended.audio_end:
            return preparation.hypothesis, preparation.final
        self._cancel_preparation()
        if self.state is State.RETRYING or self._stream is None:
            self.fed_until = max(self.fed_until, ended.audio_end)
            self._rebuild()
        assert self._stream is not None  # noqa: S101 -- rebuilt where there was none
        return _joined(self._kept, self._stream.finish()), None

    def _completed(self, ended: SpeechEnded, prepared: PreparedFinal | None) -> CompletedFinal:
        """What was prepared, if it fits this end, or computed now; after failures with less of it."""
        if self.state is State.MINIMAL:
            text = self._shown.text
            return CompletedFinal(replace(self._draft(ended, Hypothesis()).transcript, raw_text=text, text=text))
        if self.state is State.BARE:
            return CompletedFinal(self._draft(ended, self._hypothesis).transcript)
        if prepared is None or prepared.transcript.ended_by_speaker != (ended.endpoint in SPEAKER_ENDED):
            if prepared:
                self._finalizer.cancel(prepared)
            prepared = self._finalizer.prepare(self._draft(ended, self._hypothesis))
        return self._finalizer.complete(prepared)

    def _rebuild(self) -> None:
        """A new stream, fed with the audio again; committed tokens stay, whatever it makes of their audio."""
        self._kept, self._stream = self._shown.committed, None
        stream = self._recognizer.create_stream(self.audio_start)
        stream.accept(self._history.slice(self.audio_start, self.fed_until))
        self._stream = stream

    def _cancel_preparation(self) -> None:
        if self._preparation and self._preparation.final:
            self._finalizer.cancel(self._preparation.final)
        self._preparation = None

    def _draft(self, ended: SpeechEnded, hypothesis: Hypothesis) -> Draft:
        text = hypothesis.text
        speech = self._history.slice(self.start_sample, ended.end_sample)
        transcript = Transcript(
            self.trace_id,
            within_speech(hypothesis.tokens, ended.end_sample),
            self.start_sample,
            ended.end_sample,
            ended.endpoint,
            raw_text=text,
            text=text,
            level=level_of(speech),
        )
        return Draft(transcript, speech, self._history.slice(self.audio_start, ended.audio_end))


def _joined(kept: tuple[Token, ...], hypothesis: Hypothesis) -> Hypothesis:
    """The tokens committed before a rebuild, and the later tokens of the new stream."""
    if not kept:
        return hypothesis
    end = kept[-1].end_sample
    return Hypothesis(
        kept + tuple(token for token in hypothesis.committed if token.end_sample > end),
        tuple(token for token in hypothesis.provisional if token.end_sample > end),
    )
