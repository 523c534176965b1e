"""The stages in a row: synchronous, no threads, no clock, no device.

``AudioBlock`` -> events. It owns what belongs to no single stage: the order of steps, the audio that may still be needed, the utterance in
flight, the counters. Everything is driven by windows of the one internal signal, so the events do not depend on the sizes of the blocks.

An exception in ``process`` or ``finish`` (a model failed) loses nothing: the caller passes it to ``recover``, which reports it in an error
event, repairs what failed, and goes on where the exception struck. Worker thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from voice.audio import SAMPLE_RATE_HZ, AudioBlock, Samples, samples_to_ms
from voice.awaited import Awaited
from voice.capture.resample import Channel
from voice.conclusion import Conclusion, UtteranceSummary
from voice.endpointing.detector import Decision, SpeechDetector
from voice.endpointing.detector import Gate as NearFieldGate
from voice.endpointing.endpointer import EndpointerSettings, SpeechEnded, SpeechRejected, SpeechStarted, VoiceActivity
from voice.errors import ErrorCode, describe, log_fields
from voice.finalization.finalizer import Finalizer
from voice.intake import BadSamples, Intake, SignalEnd, Window
from voice.losses import LossLedger, Settled
from voice.output.events import (
    AnyEvent,
    ErrorEvent,
    FinalEvent,
    PartialEvent,
    SpeechEndedEvent,
    SpeechRejectedEvent,
    SpeechStartedEvent,
    Totals,
)
from voice.output.wire import label_event
from voice.recognition.recognizer import Recognizer
from voice.transcript import Endpoint, Hypothesis
from voice.utterance import Utterance
from voice.utterance_state import State
from voice.windowing import AudioHistory

log = structlog.get_logger()

_LATE_SAMPLES = 2 * SAMPLE_RATE_HZ
"""A loss that turns out late is about so old: an utterance that began since has not lost it."""


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """Lengths in samples at 16 kHz."""

    endpointer: EndpointerSettings
    channel: Channel
    pre_roll: int
    """Audio before the decided start that is decoded too, so that first syllables are not cut."""
    provisional_max_load_sec: float
    """While more audio than this waits, partials have no provisional tail and no final is prepared before its endpoint."""
    preview_max_load_sec: float
    """While more audio than this waits, nothing is shown of a chunk before it is complete."""
    speculate: bool
    """Whether the final is prepared as soon as audio waits for the end, and dropped should speech resume."""
    speech_events: bool
    """Whether ``voice.speech.started`` and ``.ended`` are wanted."""


class Gate(Protocol):
    """What withholds events (``voice.wake``)."""

    num_withheld: int
    """Utterances with text that did not pass."""

    def admit(self, events: list[AnyEvent], heard: tuple[str, Hypothesis] | None = None) -> list[AnyEvent]:
        """The events that may pass; ``heard`` is of the utterance in flight: its trace id, and what its recogniser thinks now."""

    def pass_over(self, start_ms: int, end_ms: int) -> None:
        """Take note of audio that was not to be recognised."""


class Pipeline:
    """The stages in a row."""

    def __init__(
        self,
        settings: PipelineSettings,
        vad: VoiceActivity,
        recognizer: Recognizer,
        finalizer: Finalizer,
        *,
        ledger: LossLedger,
        new_trace_id: Callable[[], str],
        keep: Callable[[str, Samples], None] | None = None,
        near_field: NearFieldGate | None = None,
        gate: Gate | None = None,
    ) -> None:
        """Put stages together.

        Args:
            settings: of the stages that are made here.
            vad: the voice activity model of this signal.
            recognizer: makes the stream of each utterance.
            finalizer: completes the finals.
            ledger: owns the losses of the signal.
            new_trace_id: one for each call.
            keep: is given the trace id of each utterance that ended and the audio that was decoded.
            near_field: lets near speech pass only; None lets all pass.
            gate: lets events pass; None lets all pass.
        """
        self._settings = settings
        self._recognizer = recognizer
        self._finalizer = finalizer
        self._ledger = ledger
        self._new_trace_id = new_trace_id
        self._keep = keep
        self._gate = gate
        self._intake = Intake(settings.channel, vad.window_samples, settings.endpointer.endpoint_silence, ledger)
        self._detector = SpeechDetector(vad, settings.endpointer, near_field)
        self._history = AudioHistory()
        self._decisions: deque[Decision] = deque()
        self._utterance: Utterance | None = None
        self._awaited = Awaited()
        self._last_fed = 0
        self._signal_start = 0  # of the signal of the last window
        self._lost_early = 0  # in speech that near_field holds back
        self._load_sec = 0.0
        self._events: list[AnyEvent] = []
        self._admitted: list[AnyEvent] = []
        self.found_text = self._found_text = False
        """Whether the last call brought a partial or a final, also one that the gate withheld."""
        self._summaries: list[UtteranceSummary] = []
        self._utterances = self._empty_utterances = self._errors = 0

    @property
    def totals(self) -> Totals:
        """Counters since the start."""
        withheld = self._gate.num_withheld if self._gate else 0
        return Totals(
            utterances=self._utterances - withheld,
            empty_utterances=self._empty_utterances,
            audio_ms=samples_to_ms(self._intake.audio_samples),
            lost_ms=samples_to_ms(self._ledger.lost_samples),
            rejected_ms=samples_to_ms(self._detector.rejected_samples),
            errors=self._errors,
            **({"unwoken_utterances": withheld} if self._gate else {}),
        )

    @property
    def accepted_ms(self) -> int:
        """Where the last block ends on the audio clock."""
        return samples_to_ms(self._intake.accepted_until)

    @property
    def in_utterance(self) -> bool:
        """Whether somebody is speaking."""
        return self._utterance is not None

    @property
    def at_rest(self) -> bool:
        """Whether nobody speaks, nor may have begun to, and no side model is at work: nothing hurries but the start of speech."""
        return self._utterance is None and self._detector.is_quiet and not self._finalizer.busy and not self._awaited

    @property
    def awaits_answers(self) -> bool:
        """Whether an utterance ended and its recogniser has not answered yet."""
        return bool(self._awaited)

    @property
    def is_congested(self) -> bool:
        """Whether so much audio awaits answers that an input which can wait should."""
        return self._recognizer.is_congested

    @property
    def busy(self) -> bool:
        """Whether a side model is still at work."""
        return self._finalizer.busy

    def process(self, block: AudioBlock, load_sec: float = 0.0) -> list[AnyEvent]:
        """Take a block, with so many seconds of audio waiting behind it."""
        self._load_sec = load_sec
        self._intake.accept(block)
        return self._run()

    def discard(self, block: AudioBlock) -> None:
        """Count a block as lost: there is no time left to decode it. ``finish`` announces it."""
        self._ledger.report(block.duration_sec, "audio that waited at the stop was discarded")

    def skip(self, block: AudioBlock) -> list[AnyEvent]:
        """Let time pass over a block that is not to be recognised, after ``finish``; nothing is lost by that."""
        start_ms = self.accepted_ms
        self._intake.skip(block)
        if self._gate:
            self._gate.pass_over(start_ms, self.accepted_ms)
        return self._run()

    def finish(self, endpoint: Endpoint) -> list[AnyEvent]:
        """End the utterance in flight, with everything the stages still hold; audio may follow."""
        self._intake.finish(endpoint)
        return self._run()

    def recover(self, error: Exception) -> list[AnyEvent]:
        """Go on after an exception in ``process``, ``finish`` or an earlier ``recover``."""
        utterance = self._utterance
        if self._awaited.concluding:
            trace_id = self._awaited.concluding.trace_id
            self._awaited.fail()
            self._error("infer_final_failed", describe(error), trace_id)
            self._take_answers()
        elif self._intake.recover():
            self._error("runtime_error", describe(error))
        elif self._detector.recover():
            self._error("vad_failed", describe(error))
        elif utterance is None:
            self._error("runtime_error", describe(error))
        else:
            code = utterance.fail()
            if code:
                self._error(code, describe(error))
            else:
                log.warning("speculation_failed", trace_id=utterance.trace_id, **log_fields(error))
            utterance.repair()
            if utterance.ended:
                self._conclude(utterance)
        return self._run()

    def abandon(self) -> list[AnyEvent]:
        """Give the utterance in flight what was shown last as its final, without asking any model: the process ends in a bug."""
        if self._utterance:
            self._utterance.give_up(SpeechEnded(self._intake.end, self._intake.end, "shutdown"))
            self._conclude(self._utterance)
        for utterance in self._awaited.utterances:
            utterance.give_up()
        self._take_answers()
        return self._take_events()

    def poll(self) -> list[AnyEvent]:
        """What a recogniser that answers later has told since the last call."""
        for problem in self._recognizer.take_problems():
            self._error("engine_unavailable", problem, self._new_trace_id())
        if self._utterance and (partial := self._utterance.poll()):
            self._emit(partial)
        self._take_answers()
        return self._take_events()

    def stop_waiting(self, reason: str) -> list[AnyEvent]:
        """Give finals to the utterances that still have no answer, because the service ends."""
        for utterance in self._awaited.utterances:
            utterance.stop_waiting(reason)
        return self.poll()

    def close(self) -> None:
        """Let go of what the recogniser holds outside of the process."""
        self._recognizer.close()

    def late_labels(self, wait_sec: float = 0.0, *, last: bool = False) -> list[AnyEvent]:
        """Events of labels that their finals did not wait for, after waiting so long; ``last`` gives up those still not there."""
        for late in self._finalizer.take_late(wait_sec) + (self._finalizer.give_up_late() if last else []):
            if late.label:
                self._events.append(label_event(late.trace_id, late.label))
            if late.failure:
                self._error(*late.failure, late.trace_id)
        return self._take_events()

    def report_error(self, code: ErrorCode, message: str, *, recoverable: bool) -> list[AnyEvent]:
        """Events for a failure outside, tied to the utterance in flight where there is one."""
        self._error(code, message, recoverable=recoverable)
        return self._take_events()

    def take_summaries(self) -> list[UtteranceSummary]:
        """Utterances that ended since the last call."""
        summaries, self._summaries = self._summaries, []
        return summaries

    def _take_events(self) -> list[AnyEvent]:
        self._admit()
        events, self._admitted = self._admitted, []
        self.found_text, self._found_text = self._found_text, False
        return events

    def _admit(self) -> None:
        """Pass events through the gate, before anything depends on whether it is open now."""
        events, self._events = self._events, []
        self._found_text |= any(isinstance(event, PartialEvent | FinalEvent) for event in events)
        if self._gate:
            events = self._gate.admit(events, (self._utterance.trace_id, self._utterance.heard) if self._utterance else None)
        self._admitted += events

    def _run(self) -> list[AnyEvent]:
        while self._step():
            self._admit()
        return self._take_events()

    def _step(self) -> bool:
        """Do the next thing; False when nothing is left to do.

        What is taken leaves its queue before a model sees it, so after an exception ``_run`` goes on and repeats nothing.
        """
        utterance, limit = self._utterance, min(self._detector.decode_limit, self._intake.end)
        if self._decisions:
            self._follow(self._decisions.popleft())
        elif utterance and utterance.fed_until < limit:
            self._feed(utterance, limit)
        elif utterance and (expected := self._end_to_prepare(utterance)):
            utterance.prepare(expected)
        elif item := self._intake.next(quiet=utterance is None and self._detector.is_quiet):
            self._take(item)
        else:
            return False
        return True

    def _take(self, item: Window | SignalEnd | Settled | BadSamples) -> None:
        if isinstance(item, Window):
            self._take_window(item)
        elif isinstance(item, SignalEnd):
            self._history.append(item.rest.start, item.rest.samples)
            self._decisions.extend(self._detector.end(item.rest.end, item.endpoint))
            self._detector.reset()
        elif isinstance(item, BadSamples):
            self._error("input_unreadable", item.message)
        else:
            self._account(item)

    def _account(self, lost: Settled) -> None:
        """Count a loss in the utterance it struck, and announce it where the ledger says so."""
        if lost.announcement:
            self._error("audio_overrun", lost.announcement)
        if self._utterance:
            began_before = self._intake.end - self._utterance.start_sample > _LATE_SAMPLES
            self._utterance.lost_samples += lost.here_samples + (lost.late_samples if began_before else 0)
        elif self._detector.held_from is not None:
            self._lost_early += lost.here_samples

    def _take_window(self, window: Window) -> None:
        self._signal_start = self._intake.signal_start
        self._history.append(window.start, window.samples)
        self._decisions.extend(self._detector.accept(window.start, window.samples, window.following))
        if failure := self._detector.take_failure():
            self._error("vad_failed", failure)
        if self._utterance is None and not self._decisions:
            if self._detector.is_quiet:
                self._history.forget_before(window.end - self._settings.pre_roll - self._settings.endpointer.min_speech)
            elif (held_from := self._detector.held_from) is not None:
                self._history.forget_before(held_from - self._settings.pre_roll)

    def _follow(self, decision: Decision) -> None:
        if isinstance(decision, SpeechStarted):
            self._begin_utterance(decision)
        elif isinstance(decision, SpeechRejected):
            self._report_rejected(decision)
        elif self._utterance:
            self._utterance.end(decision)
            self._conclude(self._utterance)

    def _begin_utterance(self, started: SpeechStarted) -> None:
        pre_roll = 0 if started.continues else self._settings.pre_roll
        audio_start = max(started.start_sample - pre_roll, self._last_fed, self._signal_start)
        self._history.forget_before(audio_start)
        trace_id = self._new_trace_id()
        if self._settings.speech_events:
            self._emit(SpeechStartedEvent(trace_id=trace_id, start_ms=samples_to_ms(started.start_sample)))
        self._utterance = Utterance(
            trace_id,
            start_sample=started.start_sample,
            audio_start=audio_start,
            history=self._history,
            recognizer=self._recognizer,
            finalizer=self._finalizer,
        )
        self._utterance.lost_samples, self._lost_early = self._lost_early, 0

    def _report_rejected(self, rejected: SpeechRejected) -> None:
        self._lost_early = 0
        if self._settings.speech_events:
            event = SpeechRejectedEvent(
                trace_id=self._new_trace_id(),
                start_ms=samples_to_ms(rejected.start_sample),
                end_ms=samples_to_ms(rejected.end_sample),
                level_dbfs=rejected.measures.level_dbfs,
                noise_dbfs=rejected.measures.noise_dbfs,
                directness=rejected.measures.directness,
                min_level_dbfs=rejected.limits.level_dbfs,
                min_directness=rejected.limits.directness,
            )
            self._emit(event)

    @property
    def _keeps_up(self) -> bool:
        """Whether so little audio waits that there is time for what may turn out to be in vain."""
        return self._load_sec <= self._settings.provisional_max_load_sec

    def _feed(self, utterance: Utterance, until: int) -> None:
        """Decode the audio before ``until`` and show what is new."""
        preview = utterance.ended is None and self._load_sec <= self._settings.preview_max_load_sec
        partial = utterance.feed(until, provisional=self._keeps_up, preview=preview)
        if partial:
            self._emit(partial)

    def _end_to_prepare(self, utterance: Utterance) -> SpeechEnded | None:
        """The end to prepare a final for, if there is one and there is time for it."""
        expected = self._detector.expected_end(self._intake.end) if self._settings.speculate and self._keeps_up else None
        return expected if expected and utterance.can_prepare(expected) else None

    def _conclude(self, utterance: Utterance) -> None:
        """Emit the final of an utterance that ended, or await it; the utterance stays in flight until its events stand."""
        ended = utterance.ended
        assert ended is not None  # noqa: S101 -- the callers ended it
        if utterance.state is State.FINISHING and utterance.fed_until < ended.audio_end:
            self._feed(utterance, ended.audio_end)
        conclusion = utterance.conclude()
        self._utterance, self._last_fed = None, utterance.fed_until
        if self._settings.speech_events:
            event = SpeechEndedEvent(trace_id=utterance.trace_id, end_ms=samples_to_ms(ended.end_sample), endpoint=ended.endpoint)
            self._emit(event)
        if conclusion:
            self._emit(*self._account_for(utterance.trace_id, conclusion))
        else:
            self._awaited.add(utterance)
        if self._keep:
            self._keep(utterance.trace_id, self._history.slice(utterance.audio_start, ended.audio_end))

    def _take_answers(self) -> None:
        """Emit the finals that were awaited, in the order of their utterances, and what had to wait behind each."""
        while taken := self._awaited.take():
            self._events += self._account_for(taken.trace_id, taken.conclusion) + taken.behind

    def _account_for(self, trace_id: str, conclusion: Conclusion) -> list[AnyEvent]:
        """Count an utterance; all its last events."""
        self._ledger.count(conclusion.unanswered_samples)
        self._summaries.append(conclusion.summary)
        self._utterances += bool(conclusion.events)
        self._empty_utterances += not conclusion.events and not conclusion.unanswered_samples
        return conclusion.events + [self._error_event(code, message, trace_id) for code, message in conclusion.failures]

    def _emit(self, *events: AnyEvent) -> None:
        """Emit events of an utterance, unless the final of an earlier one is awaited: then they wait behind it."""
        if not self._awaited.hold(events):
            self._events += events

    def _error(self, code: ErrorCode, message: str, trace_id: str | None = None, *, recoverable: bool = True) -> None:
        """Emit an error event, of the utterance in flight where no other is named."""
        in_flight = self._utterance if not self._awaited else None  # what was sent of it may wait behind an awaited final
        trace_id = trace_id or (in_flight.trace_id if in_flight else self._new_trace_id())
        self._events.append(self._error_event(code, message, trace_id, recoverable=recoverable))

    def _error_event(self, code: ErrorCode, message: str, trace_id: str, *, recoverable: bool = True) -> ErrorEvent:
        self._errors += 1
        return ErrorEvent(trace_id=trace_id, error_code=code, message=message, recoverable=recoverable)
