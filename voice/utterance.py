"""One utterance, from its first sample to its final.

Audio of one utterance -> ``PartialEvent``s and one ``Conclusion``. It owns the recogniser's stream, what was shown, the final prepared in a
pause, and an explicit state; the audio stays in the pipeline's ``AudioHistory``. Worker thread. Any method may raise what a model raises:
then ``fail`` says what failed and moves the state on, and the utterance goes on with less. The states: ``utterance_state.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from voice.conclusion import Conclusion, UtteranceSummary
from voice.endpointing.endpointer import SpeechEnded
from voice.errors import ErrorCode
from voice.finalization.finalizer import CompletedFinal, Draft, Finalizer, PreparedFinal, Submitted
from voice.level import level_of
from voice.output.events import AnyEvent, PartialEvent
from voice.output.wire import emotion_event, final_event, partial_event
from voice.recognition.recognizer import Recognizer, RecognizerStream, Unanswered
from voice.transcript import SPEAKER_ENDED, Hypothesis, Token, Transcript, within_speech
from voice.utterance_state import AFTER_FAILURE, WHILE_SPEAKING, State
from voice.windowing import AudioHistory


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
        self.heard = self._shown = Hypothesis()
        self._kept: tuple[Token, ...] = ()
        self._preparation: _Preparation | None = None
        self._hypothesis = Hypothesis()
        self._unanswered: Unanswered | None = None
        self._submitted: Submitted | None = None

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
            self._stream = self._recognizer.create_stream(self.audio_start, self.trace_id)
        changed = self._stream.accept(samples, provisional=provisional) or (preview and self._stream.preview())
        return self._show(self._stream) if changed else None

    def poll(self) -> PartialEvent | None:
        """The partial of what a recogniser told by itself, where its text is new."""
        return self._show(self._stream) if self._stream and self.state is State.DECODING and self._stream.poll() else None

    def _show(self, stream: RecognizerStream) -> PartialEvent | None:
        hypothesis = self.heard = _joined(self._kept, stream.hypothesis())
        if not hypothesis.text or hypothesis.text == self._shown.text:
            return None
        event = partial_event(self.trace_id, stream.source, hypothesis, self.start_sample, stream.decoded_until)
        self._shown = hypothesis
        return event

    def can_prepare(self, expected: SpeechEnded) -> bool:
        """Whether a final for this end can be prepared: its audio was decoded, and none was tried in this pause."""
        waits = self.state is State.DECODING and self._stream is not None and self._stream.supports_copy and self._preparation is None
        return waits and expected.audio_end == self.fed_until

    def prepare(self, expected: SpeechEnded) -> None:
        """Compute the final for the case that speech does not resume; the stream stays as it is."""
        self.state, self._preparation = State.PREPARING, _Preparation(expected)
        assert self._stream is not None  # noqa: S101 -- can_prepare
        hypothesis = _joined(self._kept, self._stream.copy().finish() or Hypothesis())
        final = self._finalizer.prepare(self._draft(expected, hypothesis)) if hypothesis.text else None
        self.state, self._preparation = State.DECODING, _Preparation(expected, hypothesis, final)

    def fail(self) -> ErrorCode | None:
        """Move on after an exception in any other method; the error code of what failed, None where nothing is lost by it."""
        before, self.state = self.state, AFTER_FAILURE.get(self.state, self.state)
        if before in (State.RETRYING, State.AWAITING):
            self._hypothesis = self._shown
        if before is State.PREPARING:
            return None
        return "infer_partial_failed" if before in WHILE_SPEAKING else "infer_final_failed"

    def repair(self) -> None:
        """After ``fail``: decode the audio again on a new stream, where the state says so; what was committed stays."""
        if self.state is State.REBUILDING:
            self._rebuild()
            self.state = State.DECODING

    def end(self, ended: SpeechEnded) -> None:
        """The utterance is over: ``feed`` takes the rest of its audio, then ``conclude`` makes its final."""
        self.ended = ended
        self.state = State.RETRYING if self.state is State.BROKEN else State.FINISHING

    def give_up(self, ended: SpeechEnded | None = None) -> None:
        """The utterance is over, and no model is asked any more: ``conclude`` takes what was shown last."""
        self.ended = self.ended or ended
        if self.state is State.AWAITING:
            self._unanswered = Unanswered("RuntimeError: the service ended by a bug before the answer was there")
        self._hypothesis, self.state = self._shown, State.BARE

    def stop_waiting(self, reason: str) -> None:
        """Nobody waits for the recogniser any longer: ``conclude`` takes its answer if it is there, else what was shown last."""
        if self._stream:
            self._stream.give_up(reason)

    def conclude(self) -> Conclusion | None:
        """Make the final; None while the recogniser has not answered yet: call it again later.

        After an exception and ``fail`` it is called again, too, and asks less of the models.
        """
        ended = self.ended
        assert ended is not None  # noqa: S101 -- end() or give_up() came before
        prepared = None
        if self.state in (State.FINISHING, State.RETRYING):
            hypothesis, prepared = self._flushed(ended)
            if hypothesis is None:
                self._await(ended)
            else:
                self._hypothesis, self.state = hypothesis, State.COMPLETING
        if self.state is State.AWAITING and not self._answered():
            return None
        unanswered_samples = self._unanswered_samples(ended)
        self.lost_samples += unanswered_samples
        events: list[AnyEvent] = []
        failures: tuple[tuple[ErrorCode, str], ...] = ()
        if self._hypothesis.text or self._shown.text:
            completed = self._completed(ended, prepared)
            transcript = replace(completed.transcript, endpoint=ended.endpoint, lost_samples=self.lost_samples)
            source = self._stream.source if self._stream else self._recognizer.source
            events.append(final_event(source, transcript, with_speaker=self._finalizer.with_speaker))
            if transcript.emotion:
                events.append(emotion_event(self.trace_id, transcript.emotion))
            failures = completed.failures
        elif self._submitted:
            self._finalizer.cancel(self._submitted)
        if self._unanswered:
            failures += (("engine_unavailable", self._unanswered.reason),)
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
        return Conclusion(events, failures, summary, unanswered_samples)

    def _await(self, ended: SpeechEnded) -> None:
        """Keep what the final needs: the next utterance makes the pipeline forget this one's audio. The labels need no text."""
        self.state = State.AWAITING
        self._history = self._history.extract(self.audio_start, ended.audio_end)
        self._submitted = self._finalizer.submit_early(self._draft(ended, Hypothesis()))

    def _answered(self) -> bool:
        """Whether the recogniser gave a result, or gave up; then the state is ``COMPLETING``."""
        assert self._stream is not None  # noqa: S101 -- it was asked to finish
        result = self._stream.result()
        if result is None:
            return False
        if isinstance(result, Unanswered):
            self._unanswered, so_far = result, self._stream.hypothesis()
            result = so_far if so_far.text else self._shown
        self._hypothesis, self.state = _joined(self._kept, result), State.COMPLETING
        return True

    def _unanswered_samples(self, ended: SpeechEnded) -> int:
        """Speech that no text rests upon, because the recogniser gave up."""
        if self._unanswered is None:
            return 0
        heard_until = self._unanswered.heard_until if self._hypothesis.text else self.start_sample
        return max(ended.end_sample - max(heard_until, self.start_sample), 0)

    def _flushed(self, ended: SpeechEnded) -> tuple[Hypothesis | None, PreparedFinal | None]:
        """The last hypothesis, None where it comes later, and its final where one was prepared for this end."""
        preparation = self._preparation
        if self.state is State.FINISHING and preparation and preparation.hypothesis and preparation.ended.audio_end == ended.audio_end:
            return preparation.hypothesis, preparation.final
        self._cancel_preparation()
        if self.state is State.RETRYING or self._stream is None:
            self.fed_until = max(self.fed_until, ended.audio_end)
            self._rebuild()
        assert self._stream is not None  # noqa: S101 -- rebuilt where there was none
        hypothesis = self._stream.finish()
        return None if hypothesis is None else _joined(self._kept, hypothesis), None

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
            prepared = self._finalizer.prepare(self._draft(ended, self._hypothesis), self._submitted)
        return self._finalizer.complete(prepared)

    def _rebuild(self) -> None:
        """A new stream, fed with the audio again; committed tokens stay, whatever it makes of their audio."""
        self._kept, self._stream = self._shown.committed, None
        stream = self._recognizer.create_stream(self.audio_start, self.trace_id)
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
            text=hypothesis.marked_text,
            level=level_of(speech),
            has_confidence=hypothesis.given_text is None,
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
