"""The loop of a run: blocks and commands in the order of their time -> the pipeline -> events.

State: whether audio comes and when it did, whether it is muted, which commands wait for their audio, how often inference failed in a row.
Worker thread. Raises ``OutputGone``, and whatever a model raises more often than ``max_failures`` in a row.

A command takes effect at the sample that was captured when it arrived: audio captured before a mute is recognised, audio captured before an
unmute is not, however much audio waits.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import structlog

from voice.audio import AudioBlock
from voice.capture.source import AudioSource
from voice.capture_times import CaptureTimes, captured_ms
from voice.errors import EXIT_OK, AudioDeviceUnavailable, ErrorCode, InputError, VoiceError, describe, log_fields
from voice.finalization.side_model import SpeakerNames
from voice.level import LevelMonitor, LevelProblem
from voice.output.event_queue import EventSink
from voice.output.events import AnyEvent, ErrorEvent
from voice.output.recorder import Recorder
from voice.output.wire import level_event
from voice.pipeline import Pipeline
from voice.process.control import ControlChannel, PendingCommands, TimedCommand
from voice.process.service_manager import SignOfLife, notify
from voice.process.stop import StopRequest
from voice.transcript import Endpoint
from voice.utterance_log import UtteranceLog

_READ_TIMEOUT_SEC = 0.25
_GATHER_SEC = 0.15
"""While nobody speaks, so much audio may gather before it is looked at: two blocks of the default length, which halves the wake-ups. The
start of speech is noticed up to a block later; no text is, since the first token needs more audio than that."""
_DRAIN_SEC, _LAST_RECORDINGS_SEC = 2.0, 0.5
"""Audio that waits at a stop is decoded for so long; the rest counts as lost, so that the final comes within 3 s."""
_ANSWER_POLL_SEC, _ANSWERS_STOPPED_SEC = 0.02, 2.0
"""While a server's answer is awaited, it is looked for so often; after a stop for so long."""
_LATE_LABELS_SEC, _LATE_LABELS_STOPPED_SEC = 10.0, 0.5
"""At the end of the input, or at a stop, labels that are still being computed are waited for so long."""

log = structlog.get_logger()


class Listening:
    """One source, recognised until its end or a stop."""

    def __init__(
        self,
        source: AudioSource,
        pipeline: Pipeline,
        writer: EventSink,
        stop: StopRequest,
        *,
        status: Callable[..., None],
        max_failures: int,
        control: ControlChannel | None = None,
        recorder: Recorder | None = None,
        monitor: LevelMonitor | None = None,
        speakers: SpeakerNames | None = None,
    ) -> None:
        """Take everything that a run needs: the source is open, the models of the pipeline are loaded.

        ``status`` is called with a state and fields; it writes a status event where these are wanted, or where it answers a command
        (``id``). More than ``max_failures`` failures of inference in a row, without a partial or a final between them, end the run.
        ``recorder`` has the utterances' audio from the pipeline, ``monitor`` gets that of a live device; what they find is reported here.
        """
        self._source = source
        self._pipeline = pipeline
        self._writer = writer
        self._stop = stop
        self._status = status
        self._max_failures = max_failures
        self._speakers = speakers
        keepers: tuple[tuple[ErrorCode, Recorder | SpeakerNames | None], ...] = (("record_failed", recorder), ("speaker_failed", speakers))
        self._keepers = [(code, keeper) for code, keeper in keepers if keeper]
        self._monitor = monitor
        self._times = CaptureTimes()
        self._commands = PendingCommands(control)
        self._started = self._hears = self._away = self._muted = False
        self._is_live = True
        self._failures_in_a_row = 0
        self._utterance_log = UtteranceLog()
        self._sign_of_life = SignOfLife()

    def run(self) -> int:
        """Until the input ends, a stop is requested, or the input fails; the exit code."""
        try:
            code = self._listen()
            self._await_answers()
            self._await_labels()
            self._report_recordings(_LAST_RECORDINGS_SEC)
        except VoiceError:
            raise
        except Exception:
            self._write(self._pipeline.abandon())
            raise
        finally:
            self._pipeline.close()
        return code

    def _listen(self) -> int:
        try:
            if self._source.format is not None:
                self._announce_audio()
            while not self._source.ended and not self._stop.requested:
                self._writer.check_reader()
                self._sign_of_life.give(started=self._started)
                self._take_commands()
                self._advance(self._read())
                self._guarded(self._pipeline.poll)
                self._write(self._pipeline.late_labels())
                self._report_recordings()
            self._drain()
        except InputError as error:
            return self._input_failed(error)
        self._finish("shutdown" if self._stop.requested else "end_of_input")
        return EXIT_OK

    def _input_failed(self, error: InputError) -> int:
        """The input is of no use any more: report it, give the utterance in flight its final."""
        log.error("input_failed", error=describe(error))
        self._write(self._pipeline.report_error(error.error_code, describe(error), recoverable=False))
        self._source.close()
        self._finish("audio_lost" if isinstance(error, AudioDeviceUnavailable) else "end_of_input")
        return error.exit_code

    def _read(self) -> AudioBlock | None:
        """The next block, if there is one; a microphone that may come back is reported lost, and restored."""
        timeout_sec = _ANSWER_POLL_SEC if self._pipeline.awaits_answers else _READ_TIMEOUT_SEC
        if not self._is_live and self._pipeline.is_congested:
            time.sleep(timeout_sec)
            return None
        try:
            block = self._source.read(timeout_sec, _GATHER_SEC if self._pipeline.at_rest else 0.0)
        except AudioDeviceUnavailable as error:
            if not self._source.recovers:
                raise
            log.error("microphone_lost", error=describe(error))
            self._write(self._pipeline.report_error(error.error_code, describe(error), recoverable=True))
            self._finish("audio_lost")
            self._status("audio_lost")
            self._hears, self._away = False, True
            return None
        if not self._hears and self._source.format is not None:
            self._announce_audio()
        return block

    def _announce_audio(self) -> None:
        """Audio comes: the input is open, of a device the first block is there, or the first after a loss."""
        self._hears = True
        if self._away:
            self._away = False
            log.info("microphone_restored", device=self._source.format and self._source.format.device)
            self._status("audio_restored", **self._format_fields)
        if not self._started:
            self._started = True
            notify("READY=1")
            if not self._muted:
                self._status("listening", **self._format_fields)

    @property
    def _format_fields(self) -> dict[str, object]:
        audio = self._source.format
        return {} if audio is None else {"device": audio.device, "rate_hz": audio.rate_hz, "channels": audio.channels}

    def _take_commands(self) -> None:
        for invalid in self._commands.take():
            log.warning("control_invalid", error=describe(invalid))
            self._write(self._pipeline.report_error(invalid.error_code, describe(invalid), recoverable=True))

    def _advance(self, block: AudioBlock | None) -> None:
        """Process a block, and follow each command that arrived before its end at the sample that was captured then."""
        if block is None or block.captured_at is None:
            while command := self._commands.overdue(at_once=block is not None or self._away):
                self._follow(command)
            if block is not None:
                self._process(block)
            return
        end = block.captured_at + block.duration_sec
        while command := self._commands.due(end):
            before, block = block.split(command.arrived_at)
            self._process(before)
            self._follow(command)
        self._process(block)

    def _follow(self, timed: TimedCommand) -> None:
        log.info("command", command=timed.command)
        answer = {} if timed.id is None else {"id": timed.id}
        if timed.command == "name_speaker" and self._speakers and (refused := self._speakers.name(timed.label, timed.name)):
            self._write(self._pipeline.report_error(refused.error_code, describe(refused), recoverable=True))
        elif timed.command == "mute" and not self._muted:
            self._muted = True
            self._finish("muted")
            self._status("muted", **answer)
        elif timed.command == "unmute" and self._muted:
            self._muted = False
            self._status("unmuted", **answer)
            if self._hears:
                self._status("listening", **self._format_fields)
        else:
            if timed.command == "endpoint":
                self._finish("requested")
            if answer or timed.command == "status":
                self._status(self._state, id=timed.id, totals=self._pipeline.totals, **self._format_fields)

    @property
    def _state(self) -> str:
        """As a status event names it."""
        return "muted" if self._muted else "listening" if self._hears else "audio_lost" if self._away else "waiting"

    def _process(self, block: AudioBlock) -> None:
        if self._muted:
            self._guarded(lambda: self._pipeline.skip(block), block)
        else:
            self._guarded(lambda: self._pipeline.process(block, self._source.waiting_sec), block)
            self._utterance_log.note_queue(self._source.waiting_sec)
        self._is_live = block.captured_at is not None
        self._measure(block)

    def _measure(self, block: AudioBlock) -> None:
        """Say how loud a live device is, and what is wrong with that."""
        if self._monitor is None or block.captured_at is None:
            return
        for found in self._monitor.accept(block):
            if isinstance(found, LevelProblem):
                self._write(self._pipeline.report_error(found.code, found.message, recoverable=True))
            else:
                self._write([level_event(self._pipeline.totals.audio_ms, None if self._muted else found)])

    def _finish(self, endpoint: Endpoint) -> None:
        self._guarded(lambda: self._pipeline.finish(endpoint))

    def _drain(self) -> None:
        """Decode what waits while there is time; commands that wait for their audio are followed."""
        self._source.close()
        deadline = time.monotonic() + _DRAIN_SEC
        while (block := self._source.read(0)) is not None:
            if time.monotonic() < deadline:
                self._advance(block)
            elif not self._muted:
                self._pipeline.discard(block)

    def _await_answers(self) -> None:
        """Wait for the finals of a recogniser that answers later: to the end at the end of the input, a moment at a stop."""
        deadline = float("inf")
        while self._pipeline.awaits_answers and time.monotonic() < deadline:
            self._guarded(self._pipeline.poll)
            self._writer.check_reader()
            time.sleep(_ANSWER_POLL_SEC)
            deadline = min(deadline, time.monotonic() + _ANSWERS_STOPPED_SEC) if self._stop.requested else float("inf")
        self._guarded(functools.partial(self._pipeline.stop_waiting, "TimeoutError: there was no answer when the service ended"))

    def _await_labels(self) -> None:
        """Give labels that are late a last chance; those that miss it become errors."""
        deadline = time.monotonic() + _LATE_LABELS_SEC
        while self._pipeline.busy and time.monotonic() < deadline and not self._stop.requested:
            self._write(self._pipeline.late_labels(_READ_TIMEOUT_SEC))
            self._writer.check_reader()
        self._write(self._pipeline.late_labels(_LATE_LABELS_STOPPED_SEC if self._stop.requested else 0.0, last=True))

    def _report_recordings(self, wait_sec: float = 0.0) -> None:
        """Report what could not be written, once until it can be again; what still waits to be written gets so long."""
        for code, keeper in self._keepers:
            keeper.drain(wait_sec)
            for reason in keeper.take_failures():
                self._write(self._pipeline.report_error(code, reason, recoverable=True))

    def _guarded(self, call: Callable[[], list[AnyEvent]], block: AudioBlock | None = None) -> None:
        """Run the pipeline, perhaps on a block; an exception costs neither the process nor the final, unless it keeps coming."""
        in_utterance = self._pipeline.in_utterance
        started, at_ms = time.perf_counter(), 0 if block is None else captured_ms(block)
        while True:
            try:
                events = call()
                break
            except VoiceError:
                raise
            except Exception as error:
                self._failures_in_a_row += 1
                log.error("inference_failed", in_a_row=self._failures_in_a_row, **log_fields(error))
                if self._failures_in_a_row > self._max_failures:
                    raise
                call = functools.partial(self._pipeline.recover, error)
        if block is not None:
            self._times.add(self._pipeline.accepted_ms, at_ms, live=block.captured_at is not None)
        if self._pipeline.found_text and not any(isinstance(event, ErrorEvent) for event in events):
            self._failures_in_a_row = 0
        self._write(events)
        if in_utterance or self._pipeline.in_utterance:
            self._utterance_log.note_computing(time.perf_counter() - started)
        self._utterance_log.finish(self._pipeline.take_summaries())

    def _write(self, events: list[AnyEvent]) -> None:
        for event in events:
            self._writer.write(self._times.stamped(event))
