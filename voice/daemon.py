"""The process around the pipeline: the only place for signals, the clock, the input's life, and exit codes.

One worker, the main thread, reads blocks from the source, runs the pipeline and writes its events. Policy (go on, finish, leave)
is decided here and nowhere else. It holds the source, the pipeline, the writer and the stop request.
"""

from __future__ import annotations

import functools
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType

import structlog

from voice import __version__
from voice.audio import AudioBlock, samples_to_ms
from voice.build import Service, build_service, locate_models, new_trace_id
from voice.capture.microphone import Microphone
from voice.capture.pcm_stream import PcmStream
from voice.capture.portaudio import MicrophoneSettings
from voice.capture.source import AudioSource
from voice.capture.wav_file import WavFile
from voice.config import Mode, Settings
from voice.errors import (
    EXIT_BUG,
    EXIT_OK,
    EXIT_OUTPUT,
    AudioDeviceUnavailable,
    ControlInvalid,
    ErrorCode,
    InputError,
    OutputGone,
    VoiceError,
    describe,
)
from voice.finalization.emotion_thread import EmotionThread
from voice.models.torch_setup import limit_spinning
from voice.output.event_queue import EventQueue
from voice.output.events import SCHEMA_VERSION, AnyEvent, ErrorEvent, FinalEvent, PartialEvent, StatusEvent, Totals
from voice.output.recorder import Recorder
from voice.output.writer import STDOUT_FILENO, take_stdout
from voice.pipeline import UtteranceSummary
from voice.process.control import ControlChannel
from voice.process.parent import stdin_is_pipe, watch_parent
from voice.process.service_manager import notify
from voice.process.stderr_pump import end_pump, pump_stderr
from voice.transcript import Endpoint

_READ_TIMEOUT_SEC = 0.25
_DRAIN_SEC = 2.0
"""Audio that waits at a stop is decoded for so long; the rest counts as lost, so that the final comes within 3 s."""
STDIN_FILENO = 0
_STALLED_READER_SEC = 3.0
"""At the end a reader that does not read gets so long."""
_LAST_LOG_LINES_SEC = 0.5
_LAST_RECORDINGS_SEC = 0.5
_LATE_EMOTIONS_SEC, _LATE_EMOTIONS_STOPPED_SEC = 10.0, 0.5
"""At the end of the input, or at a stop, emotions that are still being heard are waited for so long."""

log = structlog.get_logger()


class StopRequest:
    """SIGINT and SIGTERM: the first asks to stop, the second leaves at once. So does the command ``stop`` once."""

    def __init__(self) -> None:
        self.requested = False
        self._requested_at = math.inf
        self.interrupts = False
        """While set, the first signal raises ``Interrupted`` instead of waiting to be noticed."""

    def is_overdue(self) -> bool:
        """Whether the stop was requested so long ago that a stalled reader is given up."""
        return time.monotonic() - self._requested_at > _STALLED_READER_SEC

    def install(self) -> None:
        """Take the signals over; main thread only."""
        for name in ("SIGINT", "SIGTERM", "SIGBREAK"):  # the last is Windows' CTRL_BREAK
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._handle)

    def request(self) -> None:
        """Ask to stop, from wherever."""
        self.requested, self._requested_at = True, time.monotonic()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.requested:
            os._exit(128 + number)
        self.request()
        if self.interrupts:
            raise Interrupted


class Interrupted(BaseException):
    """A stop was requested while models were loading; no Exception, which libraries swallow while they probe each other."""


class Daemon:
    """One run of the service."""

    def __init__(self, settings: Settings, mode: Mode, writer: EventQueue, stop: StopRequest) -> None:
        self._settings = settings
        self._mode: Mode = mode
        self._writer = writer
        self._stop = stop
        self._failures_in_a_row = 0
        self._compute_sec = 0.0
        self._queue_peak_sec = 0.0
        self._emotion: EmotionThread | None = None
        self._control = ControlChannel(STDIN_FILENO) if settings.control == "stdin" else None
        self._muted = self._away = False
        self._recorder: Recorder | None = None
        self._watchdog_told_at = 0.0

    @property
    def computing(self) -> bool:
        """Whether a model is still at work for nobody: the interpreter must not end around it."""
        return self._emotion is not None and self._emotion.busy

    def run(self) -> int:
        """Load, listen until the end, leave in order; the exit code."""
        source: AudioSource | None = None
        try:
            self._status("loading")
            self._recorder = open_recorder(self._settings)
            self._stop.interrupts = True
            if self._settings.audio.input == "mic":
                directories = locate_models(self._settings)
                source = open_source(self._settings)  # before models are loaded: what is said meanwhile waits in its queue
            else:
                source = open_source(self._settings)  # a file that is not there is said before anything is downloaded
                directories = locate_models(self._settings)
            service = build_service(self._settings, self._mode, directories, self._recorder.keep if self._recorder else None)
            self._stop.interrupts = False
            self._emotion = service.emotion
            if self._stop.requested:
                raise Interrupted
            return self._serve(source, service)
        except Interrupted:
            log.info("stopped_while_loading")
            self._status("stopped", totals=Totals())
            return EXIT_OK
        finally:
            self._stop.interrupts = False
            if source is not None:
                source.close()
            if self._recorder:
                self._recorder.drain(_LAST_RECORDINGS_SEC)

    def _serve(self, source: AudioSource, service: Service) -> int:
        for problem in service.problems:
            log.error("optional_model_missing", error=describe(problem))
            self._write(service.pipeline.report_error(problem.error_code, describe(problem), recoverable=True))
        self._status("ready", version=__version__, schema_version=SCHEMA_VERSION, model=service.model_name)
        self._status("listening")
        notify("READY=1")
        try:
            code = self._listen(source, service)
            self._await_emotions(service)
            self._tell_of_recordings(service, _LAST_RECORDINGS_SEC)
        except VoiceError:
            raise
        except Exception:
            self._write(service.pipeline.abandon())
            raise
        notify("STOPPING=1")
        totals = service.pipeline.totals
        self._status("stopped", totals=totals)
        log.info("service_stopped", exit_code=code, lines=self._writer.num_lines, **totals.model_dump())
        return code

    def _listen(self, source: AudioSource, service: Service) -> int:
        """Until the input ends, a stop is requested, or the input fails; the exit code."""
        try:
            while not source.ended and not self._stop.requested:
                self._writer.check_reader()
                self._tell_watchdog()
                self._obey(service)
                block = self._read(source, service)
                if block is not None:
                    self._process(source, service, block)
                self._write(service.pipeline.late_emotions())
                self._tell_of_recordings(service)
        except InputError as error:
            log.error("input_failed", error=describe(error))
            self._write(service.pipeline.report_error(error.error_code, describe(error), recoverable=False))
            endpoint: Endpoint = "audio_lost" if isinstance(error, AudioDeviceUnavailable) else "end_of_input"
            self._guarded(service, lambda: service.pipeline.finish(endpoint))
            return error.exit_code
        self._drain(source, service)
        return EXIT_OK

    def _tell_of_recordings(self, service: Service, wait_sec: float = 0.0) -> None:
        """That they are missing, once until one could be written again; what still waits to be written gets so long."""
        if self._recorder is None:
            return
        self._recorder.drain(wait_sec)
        for reason in self._recorder.take_failures():
            self._write(service.pipeline.report_error("record_failed", reason, recoverable=True))

    def _tell_watchdog(self) -> None:
        """That this thread goes round, once a second."""
        now = time.monotonic()
        if now - self._watchdog_told_at > 1:
            self._watchdog_told_at = now
            notify("WATCHDOG=1")

    def _read(self, source: AudioSource, service: Service) -> AudioBlock | None:
        """The next block, if there is one; a microphone that may come back is said to be away, and back."""
        try:
            block = source.read(_READ_TIMEOUT_SEC)
        except AudioDeviceUnavailable as error:
            if not source.recovers:
                raise
            log.error("microphone_lost", error=describe(error))
            self._write(service.pipeline.report_error(error.error_code, describe(error), recoverable=True))
            self._guarded(service, lambda: service.pipeline.finish("audio_lost"))
            self._status("audio_lost")
            self._away = True
            return None
        if self._away and block is not None:
            self._away = False
            log.info("microphone_restored", lost_ms=round(1000 * block.lost_frames / block.rate_hz))
            self._status("audio_restored")
        return block

    def _obey(self, service: Service) -> None:
        """Follow the commands that arrived."""
        for command in self._control.take() if self._control else ():
            if isinstance(command, ControlInvalid):
                log.warning("control_invalid", error=describe(command))
                self._write(service.pipeline.report_error(command.error_code, describe(command), recoverable=True))
                continue
            log.info("command", command=command)
            if command == "stop":
                self._stop.request()
            elif command == "endpoint":
                self._guarded(service, lambda: service.pipeline.finish("requested"))
            elif self._muted != (command == "mute"):
                self._muted = command == "mute"
                if self._muted:
                    self._guarded(service, lambda: service.pipeline.finish("muted"))
                self._status("muted" if self._muted else "listening")

    def _drain(self, source: AudioSource, service: Service) -> None:
        """Finish: what waits is decoded while there is time, the utterance in flight gets its final."""
        source.close()
        deadline = time.monotonic() + _DRAIN_SEC
        while (block := source.read(0)) is not None:
            if time.monotonic() < deadline:
                self._process(source, service, block)
            else:
                service.pipeline.discard(block)
        endpoint: Endpoint = "shutdown" if self._stop.requested else "end_of_input"
        self._guarded(service, lambda: service.pipeline.finish(endpoint))

    def _await_emotions(self, service: Service) -> None:
        """Give emotions that are late a last chance; those that miss it become errors."""
        deadline = time.monotonic() + _LATE_EMOTIONS_SEC
        while self.computing and time.monotonic() < deadline and not self._stop.requested:
            self._write(service.pipeline.late_emotions(_READ_TIMEOUT_SEC))
            self._writer.check_reader()
        self._write(service.pipeline.late_emotions(_LATE_EMOTIONS_STOPPED_SEC if self._stop.requested else 0.0, last=True))

    def _process(self, source: AudioSource, service: Service, block: AudioBlock) -> None:
        if self._muted:
            service.pipeline.skip(block)
            return
        self._guarded(service, lambda: service.pipeline.process(block, source.waiting_sec))
        self._queue_peak_sec = max(self._queue_peak_sec, source.waiting_sec)

    def _guarded(self, service: Service, call: Callable[[], list[AnyEvent]]) -> None:
        """Run the pipeline; an exception costs neither the process nor the final, unless it keeps coming."""
        in_utterance = service.pipeline.in_utterance
        started = time.perf_counter()
        while True:
            try:
                events = call()
                break
            except VoiceError:
                raise
            except Exception as error:
                self._failures_in_a_row += 1
                log.exception("inference_failed", in_a_row=self._failures_in_a_row)
                if self._failures_in_a_row > self._settings.model.max_failures:
                    raise
                call = functools.partial(service.pipeline.recover, error)
        if any(isinstance(event, PartialEvent | FinalEvent) for event in events) and not any(
            isinstance(event, ErrorEvent) for event in events
        ):
            self._failures_in_a_row = 0
        self._write(events)
        if in_utterance or service.pipeline.in_utterance:
            self._compute_sec += time.perf_counter() - started
        for summary in service.pipeline.take_summaries():
            self._log_utterance(summary)

    def _log_utterance(self, summary: UtteranceSummary) -> None:
        """The one canonical line of an utterance; nothing of what was said."""
        audio_sec = max(summary.end_sample - summary.start_sample, 1) / 16_000
        log.info(
            "utterance_finished",
            trace_id=summary.trace_id,
            start_ms=samples_to_ms(summary.start_sample),
            end_ms=samples_to_ms(summary.end_sample),
            endpoint=summary.endpoint,
            tokens=summary.num_tokens,
            confidence=round(summary.confidence, 3),
            compute_ms=round(self._compute_sec * 1000),
            real_time_factor=round(self._compute_sec / audio_sec, 3),
            queue_peak_sec=round(self._queue_peak_sec, 2),
            lost_ms=samples_to_ms(summary.lost_samples),
        )
        self._compute_sec = self._queue_peak_sec = 0.0

    def _write(self, events: list[AnyEvent]) -> None:
        for event in events:
            self._writer.write(event)

    def _status(self, state: str, **fields: object) -> None:
        if self._settings.output.status_events:
            self._writer.write(StatusEvent.model_validate({"trace_id": new_trace_id(), "state": state, **fields}))


def run_service(settings: Settings, mode: Mode) -> int:
    """Run the service in this process: takes stdout, stderr and the signals over. Returns the exit code; never raises."""
    try:
        writer = take_stdout(lambda: time.time_ns() // 1_000_000)
    except OutputGone as error:
        log.error("output_gone", error=describe(error))
        return error.exit_code
    pump = pump_stderr(STDOUT_FILENO)
    stop = StopRequest()
    queue = EventQueue(writer, stop.is_overdue)
    daemon = Daemon(settings, mode, queue, stop)
    limit_spinning()
    stop.install()
    if settings.exit_with_parent or (settings.exit_with_parent is None and settings.audio.input != "-" and stdin_is_pipe()):
        watch_parent(_leave_orphaned)
    try:
        code = _exit_code(daemon, queue)
        queue.close(_STALLED_READER_SEC)
    except OutputGone as error:
        log.error("output_gone", error=describe(error), lines=queue.num_lines)
        code = error.exit_code
    end_pump(pump, _LAST_LOG_LINES_SEC)
    if daemon.computing:  # at its end the interpreter would cut the thread off within torch, and that may abort
        os._exit(code)
    return code


def _leave_orphaned() -> None:
    """At once: whoever would have read a final is gone."""
    log.error("parent_gone", exit_code=EXIT_OUTPUT)
    os._exit(EXIT_OUTPUT)


def _exit_code(daemon: Daemon, writer: EventQueue) -> int:
    """What went wrong is said in the log and, if somebody reads, in an event."""
    try:
        return daemon.run()
    except OutputGone:
        raise
    except VoiceError as error:
        log.error("service_failed", error=describe(error), exit_code=error.exit_code)
        return _report(writer, error.error_code, error, error.exit_code)
    except Exception as error:
        log.exception("service_crashed", exit_code=EXIT_BUG)
        return _report(writer, "runtime_error", error, EXIT_BUG)


def _report(writer: EventQueue, code: ErrorCode, error: Exception, exit_code: int) -> int:
    """Tell the reader of stdout why the service leaves."""
    writer.write(ErrorEvent(trace_id=new_trace_id(), error_code=code, message=describe(error), recoverable=False))
    return exit_code


def open_source(settings: Settings) -> AudioSource:
    """The input that the settings name, open.

    Raises:
        InputError: it cannot be opened.
        ConfigInvalid: a device index that does not exist.
    """
    audio = settings.audio
    if audio.input == "-":
        return PcmStream(sys.stdin.fileno(), audio.sample_rate)
    if audio.input != "mic":
        return WavFile(Path(audio.input).expanduser(), pace=_real_time_pace() if audio.realtime else None)
    return Microphone(
        MicrophoneSettings(
            device=audio.device,
            channels=2 if audio.channel == "mix" else audio.channel + 1,
            block_sec=audio.block_ms / 1000,
            latency_sec=audio.latency_sec,
            queue_sec=audio.queue_sec,
            stall_sec=audio.stall_ms / 1000,
            zeros_sec=audio.zeros_sec,
            wait_for_device=audio.wait_for_device,
        )
    )


def open_recorder(settings: Settings) -> Recorder | None:
    """Where the settings want utterances kept.

    Raises:
        ConfigInvalid: the directory cannot be made, or not written to.
    """
    if settings.record.directory is None:
        return None
    directory = Path(settings.record.directory).expanduser().absolute()
    return Recorder(directory, settings.record.max_mb * 2**20, lambda: datetime.now(timezone.utc))


def _real_time_pace() -> Callable[[float], float]:
    """Sleeps until a position is due; returns by how many seconds the caller is late."""
    started: list[float] = []

    def pace(position_sec: float) -> float:
        if not started:
            started.append(time.monotonic())
        ahead_sec = position_sec - (time.monotonic() - started[0])
        if ahead_sec > 0:
            time.sleep(ahead_sec)
        return max(-ahead_sec, 0.0)

    return pace
