"""The whole way from a block of audio to events: synchronous, no threads, no clock, no device.

``AudioBlock`` -> events. It owns what belongs to no single stage: the audio that may still be needed, the utterance in flight, the
totals. Everything is driven by windows of the one internal signal, so the events do not depend on the sizes of the blocks.

An exception in ``process`` or ``finish`` (a model failed) loses nothing: the caller passes it to ``recover``, which says so in an
error event, rebuilds the stream from the audio held, and goes on where the exception struck. Worker thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import structlog

from voice.audio import SAMPLE_RATE_HZ, AudioBlock, AudioChunk, Samples, rms, samples_to_ms
from voice.capture.resample import Channel, Resampler
from voice.endpointing.endpointer import Endpointer, EndpointerSettings, SpeechEnded, SpeechStarted, State, VoiceActivity
from voice.errors import ErrorCode, describe
from voice.finalization.finalizer import Begun, Draft, Finalized, Finalizer
from voice.output.events import (
    AnyEvent,
    ErrorEvent,
    SpeechEndedEvent,
    SpeechStartedEvent,
    Totals,
    emotion_event,
    final_event,
    partial_event,
)
from voice.recognition.recognizer import Recognizer, RecognizerStream
from voice.transcript import SPEAKER_ENDED, Endpoint, Hypothesis, Token, Transcript

log = structlog.get_logger()

_LOSS_EPISODE_SAMPLES = SAMPLE_RATE_HZ
"""Losses closer together than this are one episode: one error event."""
_LATE_SAMPLES = 2 * SAMPLE_RATE_HZ
"""A loss that turns out late is about so old: an utterance that began since has not lost it."""


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """Lengths in samples at 16 kHz."""

    endpointer: EndpointerSettings
    channel: Channel
    pre_roll: int
    """Audio before the decided start that the recogniser hears too, so that first syllables are not cut."""
    provisional_max_load_sec: float
    """With more audio waiting than this, the provisional tail is skipped."""
    speculate: bool
    """Whether the final is made as soon as audio waits for the end, and thrown away should speech resume."""
    speech_events: bool
    """Whether ``voice.speech.started`` and ``.ended`` are wanted."""


@dataclass(frozen=True, slots=True)
class UtteranceSummary:
    """An utterance that ended, for the log: nothing of what was said."""

    trace_id: str
    start_sample: int
    end_sample: int
    endpoint: Endpoint
    num_tokens: int
    confidence: float
    lost_samples: int


@dataclass(slots=True)
class _Speculation:
    """A final for the case that nobody speaks any more."""

    ended: SpeechEnded
    hypothesis: Hypothesis | None = None
    """None while it is being made, and if that failed."""
    begun: Begun | None = None
    """None where there is no text."""


@dataclass(slots=True)
class _Utterance:
    """The utterance in flight."""

    trace_id: str
    start: int
    fed_until: int
    """Its audio before this sample was given to the stream."""
    audio_start: int
    stream: RecognizerStream | None
    """None after a failure that the rebuilt stream repeated: the final is tried once more."""
    shown: Hypothesis = field(default_factory=Hypothesis)
    """The last hypothesis that was sent, or that survived a failure."""
    kept: tuple[Token, ...] = ()
    """Committed before the stream was rebuilt; they stay, whatever the new stream makes of their audio."""
    lost: int = 0
    speculation: _Speculation | None = None
    """Made once in each pause; speech that resumes drops it."""
    ended: SpeechEnded | None = None
    """Set while it is being finished."""
    final_failed: bool = False
    finalizing: bool = False
    """Its final is being made; still set when that failed."""


class Pipeline:
    """The stages in a row."""

    def __init__(
        self,
        settings: PipelineSettings,
        vad: VoiceActivity,
        recognizer: Recognizer,
        finalizer: Finalizer,
        new_trace_id: Callable[[], str],
        *,
        keep: Callable[[str, Samples], None] | None = None,
    ) -> None:
        """Put stages together; ``keep`` is given the trace id of each utterance that ended and the audio that was decoded."""
        self._settings = settings
        self._vad = vad
        self._recognizer = recognizer
        self._finalizer = finalizer
        self._new_trace_id = new_trace_id
        self._keep = keep
        self._resampler = Resampler(settings.channel)
        self._endpointer = Endpointer(settings.endpointer)
        self._history = _AudioHistory()
        self._unwindowed: deque[AudioChunk] = deque()
        self._window = np.zeros(0, np.float32)
        self._decisions: deque[SpeechStarted | SpeechEnded] = deque()
        self._now = 0  # after the last sample that was windowed
        self._signal_start = 0  # after the last gap
        self._ending: Endpoint | None = None  # the input is over: what is queued comes first
        self._utterance: _Utterance | None = None
        self._last_fed = 0
        self._last_loss: int | None = None
        self._unplaced = 0  # lost some time ago, and not in the index yet
        self._load_sec = 0.0
        self._events: list[AnyEvent] = []
        self._summaries: list[UtteranceSummary] = []
        self._utterances = self._empty_utterances = self._lost = self._non_finite = self._errors = 0

    @property
    def totals(self) -> Totals:
        """Counters since the start."""
        return Totals(
            utterances=self._utterances,
            empty_utterances=self._empty_utterances,
            audio_ms=samples_to_ms(self._now + len(self._window) + self._unplaced),
            lost_ms=samples_to_ms(self._lost + self._unplaced),
            rejected_ms=samples_to_ms(self._endpointer.rejected_samples),
            errors=self._errors,
        )

    @property
    def _current_trace_id(self) -> str | None:
        return self._utterance.trace_id if self._utterance else None

    @property
    def in_utterance(self) -> bool:
        """Whether somebody is speaking."""
        return self._utterance is not None

    def process(self, block: AudioBlock, load_sec: float = 0.0) -> list[AnyEvent]:
        """Take a block, with so many seconds of audio waiting behind it."""
        self._load_sec = load_sec
        self._unwindowed.extend(self._resampler.accept(self._placed(block)))
        self._run()
        return self._take_events()

    def discard(self, block: AudioBlock) -> None:
        """Count a block as lost: there is no time left to decode it."""
        lost = round((len(block.samples) + block.lost_frames + block.lost_earlier_frames) * SAMPLE_RATE_HZ / block.rate_hz)
        self._count_loss(lost, "audio that waited at the stop was discarded")

    def skip(self, block: AudioBlock) -> None:
        """Let time pass over a block that is not to be heard, after ``finish``; nothing is lost by that."""
        for chunk in self._resampler.accept(replace(block, lost_frames=block.lost_frames + block.lost_earlier_frames)):
            self._now += chunk.lost_samples + len(chunk.samples)
        self._signal_start = self._now

    def finish(self, endpoint: Endpoint) -> list[AnyEvent]:
        """End the utterance in flight, with everything the stages still hold; audio may follow."""
        self._unwindowed.extend(self._resampler.flush())
        self._ending = endpoint
        self._run()
        return self._take_events()

    def recover(self, error: Exception) -> list[AnyEvent]:
        """Go on after an exception in ``process``, ``finish`` or an earlier ``recover``."""
        utterance = self._utterance
        if utterance is None:
            self._error("runtime_error", describe(error))
        elif utterance.ended is None and utterance.speculation and utterance.speculation.hypothesis is None:
            log.warning("speculation_failed", trace_id=utterance.trace_id, error=describe(error))  # the end will try for itself
        elif utterance.ended is None:
            self._error("infer_partial_failed", describe(error), utterance.trace_id)
            if utterance.stream is not None:
                utterance.stream = None
                utterance.stream = self._rebuilt(utterance)
        else:
            self._error("infer_final_failed", describe(error), utterance.trace_id)
            if utterance.final_failed:
                self._conclude(utterance, utterance.ended, utterance.shown)
            else:
                utterance.final_failed = True
                utterance.stream = None
                self._finish_utterance(utterance, utterance.ended)
        self._run()
        return self._take_events()

    def abandon(self) -> list[AnyEvent]:
        """Give the utterance in flight what was shown last as its final, without asking the recogniser: the process ends in a bug."""
        if self._utterance:
            self._utterance.finalizing = True  # the bare text: the finalizer may be what broke
            ended = self._utterance.ended or SpeechEnded(self._now, self._now, "shutdown")
            self._conclude(self._utterance, ended, self._utterance.shown)
        return self._take_events()

    def late_emotions(self, wait_sec: float = 0.0, *, last: bool = False) -> list[AnyEvent]:
        """Events of emotions that their finals did not wait for, after waiting so long; ``last`` gives up those still not there."""
        for late in self._finalizer.take_late(wait_sec) + (self._finalizer.give_up_late() if last else []):
            if late.emotion:
                self._events.append(emotion_event(late.trace_id, late.emotion))
            if late.failure:
                self._error(*late.failure, late.trace_id)
        return self._take_events()

    def report_error(self, code: ErrorCode, message: str, *, recoverable: bool) -> list[AnyEvent]:
        """Events for a failure outside, tied to the utterance in flight where there is one."""
        self._error(code, message, self._current_trace_id, recoverable=recoverable)
        return self._take_events()

    def take_summaries(self) -> list[UtteranceSummary]:
        """Utterances that ended since the last call."""
        summaries, self._summaries = self._summaries, []
        return summaries

    def _placed(self, block: AudioBlock) -> AudioBlock:
        """Say a loss that turned out late, and put it into the next pause: where it was is not known, here it was not."""
        earlier = round(block.lost_earlier_frames * SAMPLE_RATE_HZ / block.rate_hz)
        if earlier:
            self._say_loss(earlier, "some seconds ago audio was lost between device and recogniser")
            if self._utterance and self._now - self._utterance.start > _LATE_SAMPLES:
                self._utterance.lost += earlier
            self._unplaced += earlier
        if not self._unplaced or self._utterance or self._endpointer.state is not State.QUIET:
            return block
        frames, self._unplaced = round(self._unplaced * block.rate_hz / SAMPLE_RATE_HZ), 0
        return replace(block, lost_frames=block.lost_frames + frames, loss_announced=True)

    def _take_events(self) -> list[AnyEvent]:
        events, self._events = self._events, []
        return events

    def _run(self) -> None:
        while self._step():
            pass

    def _step(self) -> bool:
        """Do the next thing; False when nothing is left to do.

        What is taken leaves its queue before a model sees it, so after an exception ``_run`` goes on and repeats nothing.
        """
        utterance, size = self._utterance, self._vad.window_samples
        if self._decisions:
            self._follow(self._decisions.popleft())
        elif utterance and utterance.fed_until < min(self._endpointer.decode_limit, self._now):
            self._feed(utterance, min(self._endpointer.decode_limit, self._now))
        elif utterance and (expected := self._speculative_end(utterance)):
            self._speculate(utterance, expected)
        elif len(self._window) >= size:
            window, self._window = self._window[:size], self._window[size:]
            self._take_window(window)
        elif self._unwindowed:
            self._take_chunk(self._unwindowed.popleft())
        elif self._ending:
            endpoint, self._ending = self._ending, None
            self._end_audio(endpoint)
        else:
            return False
        return True

    def _take_chunk(self, chunk: AudioChunk) -> None:
        samples = chunk.samples
        if chunk.non_finite_samples:
            if not self._non_finite:
                self._error("input_unreadable", f"NonFiniteAudio: {chunk.non_finite_samples} samples were not finite and became 0")
            self._non_finite += chunk.non_finite_samples
        if chunk.lost_samples:
            reason = None if chunk.loss_announced else "audio was lost between device and recogniser"
            self._count_loss(chunk.lost_samples, reason)
            if chunk.lost_samples < self._settings.endpointer.endpoint_silence:
                samples = np.concatenate((np.zeros(chunk.lost_samples, np.float32), samples))
            else:
                self._end_audio("audio_lost", gap=chunk.lost_samples)
        self._window = np.concatenate((self._window, samples))

    def _take_window(self, window: Samples) -> None:
        start, self._now = self._now, self._now + len(window)
        self._history.append(start, window)
        probability = self._vad.probability(window)
        self._decisions.extend(self._endpointer.step(start, self._now, probability, rms(window)))
        if self._utterance is None and self._endpointer.state is State.QUIET:
            self._history.forget_before(self._now - self._settings.pre_roll - self._settings.endpointer.min_speech)

    def _follow(self, decision: SpeechStarted | SpeechEnded) -> None:
        if isinstance(decision, SpeechStarted):
            self._begin_utterance(decision)
        elif self._utterance:
            self._finish_utterance(self._utterance, decision)

    def _begin_utterance(self, started: SpeechStarted) -> None:
        pre_roll = 0 if started.continues else self._settings.pre_roll
        audio_start = max(started.start_sample - pre_roll, self._last_fed, self._signal_start)
        self._history.forget_before(audio_start)
        trace_id = self._new_trace_id()
        self._utterance = _Utterance(trace_id, started.start_sample, audio_start, audio_start, None)
        if self._settings.speech_events:
            self._events.append(SpeechStartedEvent(trace_id=trace_id, start_ms=samples_to_ms(started.start_sample)))
        self._utterance.stream = self._recognizer.create_stream(audio_start)

    def _feed(self, utterance: _Utterance, until: int) -> None:
        """Give the stream the audio before ``until`` and show what is new."""
        samples = self._history.slice(utterance.fed_until, until)
        utterance.fed_until = until
        if utterance.speculation:
            if utterance.speculation.begun:
                self._finalizer.drop(utterance.speculation.begun)
            utterance.speculation = None
        provisional = self._load_sec <= self._settings.provisional_max_load_sec
        if utterance.stream is None or not utterance.stream.accept(samples, provisional=provisional):
            return
        hypothesis = _joined(utterance.kept, utterance.stream.hypothesis())
        text = hypothesis.text
        if text and text != utterance.shown.text:
            event = partial_event(utterance.trace_id, self._recognizer.source, hypothesis, utterance.start, utterance.stream.decoded_until)
            self._events.append(event)
            utterance.shown = hypothesis

    def _speculative_end(self, utterance: _Utterance) -> SpeechEnded | None:
        """The end to make a final for, if there is one, nothing was made for it yet, and its audio was decoded."""
        if not self._settings.speculate or utterance.speculation or utterance.stream is None:
            return None
        expected = self._endpointer.expected_end(self._now)
        return expected if expected and expected.audio_end == utterance.fed_until else None

    def _speculate(self, utterance: _Utterance, expected: SpeechEnded) -> None:
        """Make the final of an utterance that may go on; its stream stays as it is."""
        assert utterance.stream is not None  # noqa: S101 -- _speculative_end saw to it
        speculation = utterance.speculation = _Speculation(expected)
        hypothesis = _joined(utterance.kept, utterance.stream.copy().finish())
        if hypothesis.text:
            speculation.begun = self._finalizer.begin(self._draft(utterance, expected, hypothesis))
        speculation.hypothesis = hypothesis

    def _end_audio(self, endpoint: Endpoint, gap: int = 0) -> None:
        """The signal ends here, to go on after ``gap`` samples: end the utterance with the part of a window that is left."""
        if len(self._window):
            self._history.append(self._now, self._window)
            self._now += len(self._window)
            self._window = self._window[:0]
        self._decisions.extend(self._endpointer.end(self._now, endpoint))
        self._vad.reset()
        self._now += gap
        self._signal_start = self._now

    def _finish_utterance(self, utterance: _Utterance, ended: SpeechEnded) -> None:
        utterance.ended = ended
        if utterance.fed_until < ended.audio_end:
            self._feed(utterance, ended.audio_end)
        speculation = utterance.speculation
        if speculation and speculation.hypothesis and speculation.ended.audio_end == ended.audio_end:
            self._conclude(utterance, ended, speculation.hypothesis, speculation.begun)
            return
        if utterance.stream is None:
            utterance.stream = self._rebuilt(utterance)
        self._conclude(utterance, ended, _joined(utterance.kept, utterance.stream.finish()))

    def _conclude(self, utterance: _Utterance, ended: SpeechEnded, hypothesis: Hypothesis, begun: Begun | None = None) -> None:
        """Turn the last hypothesis into a final, or take the one that was made of it before."""
        shows = bool(hypothesis.text or utterance.shown.text)
        finalized = self._finalized(utterance, ended, hypothesis, begun) if shows else None
        self._utterance = None
        self._last_fed = utterance.fed_until
        if self._keep:
            self._keep(utterance.trace_id, self._history.slice(utterance.audio_start, ended.audio_end))
        if self._settings.speech_events:
            end_ms = samples_to_ms(ended.end_sample)
            self._events.append(SpeechEndedEvent(trace_id=utterance.trace_id, end_ms=end_ms, endpoint=ended.endpoint))
        self._summaries.append(
            UtteranceSummary(
                utterance.trace_id,
                utterance.start,
                ended.end_sample,
                ended.endpoint,
                len(hypothesis.tokens),
                hypothesis.confidence,
                utterance.lost,
            )
        )
        if finalized is None:
            self._empty_utterances += 1
            return
        self._utterances += 1
        transcript = replace(finalized.transcript, endpoint=ended.endpoint, lost_samples=utterance.lost)
        self._emit_final(replace(finalized, transcript=transcript))

    def _finalized(self, utterance: _Utterance, ended: SpeechEnded, hypothesis: Hypothesis, begun: Begun | None) -> Finalized:
        """What was begun before, if it fits this end, or made now; after a failure the bare text."""
        if utterance.finalizing:
            return Finalized(self._draft(utterance, ended, hypothesis).transcript)
        utterance.finalizing = True
        if begun is None or begun.transcript.ended_by_speaker != (ended.endpoint in SPEAKER_ENDED):
            if begun:
                self._finalizer.drop(begun)
            begun = self._finalizer.begin(self._draft(utterance, ended, hypothesis))
        return self._finalizer.complete(begun)

    def _draft(self, utterance: _Utterance, ended: SpeechEnded, hypothesis: Hypothesis) -> Draft:
        text = hypothesis.text
        transcript = Transcript(
            utterance.trace_id,
            _within_speech(hypothesis.tokens, ended.end_sample),
            utterance.start,
            ended.end_sample,
            ended.endpoint,
            utterance.lost,
            raw_text=text,
            text=text,
        )
        speech = self._history.slice(utterance.start, ended.end_sample)
        return Draft(transcript, speech, self._history.slice(utterance.audio_start, ended.audio_end))

    def _emit_final(self, finalized: Finalized) -> None:
        transcript = finalized.transcript
        self._events.append(final_event(self._recognizer.source, transcript))
        if transcript.emotion:
            self._events.append(emotion_event(transcript.trace_id, transcript.emotion))
        for code, message in finalized.failures:
            self._error(code, message, transcript.trace_id)

    def _rebuilt(self, utterance: _Utterance) -> RecognizerStream:
        """A new stream, fed with the audio again; what was committed stays."""
        utterance.kept = utterance.shown.committed
        stream = self._recognizer.create_stream(utterance.audio_start)
        stream.accept(self._history.slice(utterance.audio_start, utterance.fed_until))
        return stream

    def _count_loss(self, lost: int, reason: str | None) -> None:
        """Count it and say so, unless it is said (no reason), or belongs to an episode that is."""
        self._lost += lost
        if self._utterance:
            self._utterance.lost += lost
        self._say_loss(lost, reason)

    def _say_loss(self, lost: int, reason: str | None) -> None:
        """Once an episode."""
        at = self._now + len(self._window)
        if reason and (self._last_loss is None or at - self._last_loss > _LOSS_EPISODE_SAMPLES):
            message = f"AudioLost: {samples_to_ms(lost)} ms and what may follow: {reason}"
            self._error("audio_overrun", message, self._current_trace_id)
        self._last_loss = at + lost

    def _error(self, code: ErrorCode, message: str, trace_id: str | None = None, *, recoverable: bool = True) -> None:
        self._errors += 1
        event = ErrorEvent(trace_id=trace_id or self._new_trace_id(), error_code=code, message=message, recoverable=recoverable)
        self._events.append(event)


class _AudioHistory:
    """The audio that may still be needed, in pieces. Bounded by the utterance's maximum length."""

    def __init__(self) -> None:
        self._pieces: deque[tuple[int, Samples]] = deque()

    def append(self, start: int, samples: Samples) -> None:
        """Add the piece that begins at ``start``."""
        self._pieces.append((start, samples))

    def slice(self, start: int, end: int) -> Samples:
        """Samples from ``start`` to before ``end``, a copy."""
        parts = [piece[max(start - at, 0) : max(end - at, 0)] for at, piece in self._pieces if at < end and at + len(piece) > start]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def forget_before(self, sample: int) -> None:
        """Drop whole pieces that end before ``sample``."""
        while self._pieces and self._pieces[0][0] + len(self._pieces[0][1]) <= sample:
            self._pieces.popleft()


def _joined(kept: tuple[Token, ...], hypothesis: Hypothesis) -> Hypothesis:
    """What was committed before a rebuild, and the later tokens of the new stream."""
    if not kept:
        return hypothesis
    end = kept[-1].end_sample
    return Hypothesis(
        kept + tuple(token for token in hypothesis.committed if token.end_sample > end),
        tuple(token for token in hypothesis.provisional if token.end_sample > end),
    )


def _within_speech(tokens: tuple[Token, ...], speech_end: int) -> tuple[Token, ...]:
    """Tokens that end with the speech at the latest: the flush can fire the last one in the silence behind it."""
    return tuple(replace(token, end_sample=speech_end) if token.start_sample < speech_end < token.end_sample else token for token in tokens)
