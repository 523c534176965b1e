"""One run of the service: what is opened and loaded in which order, what is closed at the end, and the exit code.

Main thread. ``run_service`` never raises: every failure becomes an exit code, a log line and, where somebody reads stdout, an event.
"""

from __future__ import annotations

import os
import time

import structlog

from voice import __version__
from voice.build import Built, build_pipeline
from voice.capture.source import AudioSource
from voice.config import Mode, Settings
from voice.errors import EXIT_BUG, EXIT_INPUT, EXIT_OK, EXIT_OUTPUT, ErrorCode, OutputGone, VoiceError, describe, log_fields
from voice.hotword_list import HotwordList
from voice.inputs import STDIN_FILENO, open_recorder, open_source
from voice.level import LevelMonitor
from voice.listening import Listening
from voice.losses import LossLedger
from voice.models import embedded
from voice.models.torch_setup import limit_spinning
from voice.models.weights import load_models, locate_models
from voice.output.event_queue import EventQueue
from voice.output.events import SCHEMA_VERSION, AnyEvent, ErrorEvent, StatusEvent, Totals
from voice.output.recorder import Recorder
from voice.output.wire import new_trace_id
from voice.output.writer import STDOUT_FILENO, take_stdout
from voice.pipeline import Pipeline
from voice.process.control import ControlChannel
from voice.process.parent import stdin_is_pipe, watch_parent
from voice.process.service_manager import notify
from voice.process.start import Start
from voice.process.stderr_pump import end_pump, pump_stderr
from voice.process.stop import Interrupted, StopRequest

_LAST_LOG_LINES_SEC = 0.5
_LAST_RECORDINGS_SEC = 0.5

log = structlog.get_logger()


class Daemon:
    """What a run opens, loads and closes."""

    def __init__(
        self, settings: Settings, mode: Mode, writer: EventQueue, stop: StopRequest, control: ControlChannel | None, *, stdin_closed: bool
    ) -> None:
        self._settings = settings
        self._mode: Mode = mode
        self._writer = writer
        self._stop = stop
        self._control = control
        self._stdin_closed = stdin_closed
        self._pipeline: Pipeline | None = None

    @property
    def computing(self) -> bool:
        """Whether a model is still at work for nobody: the interpreter must not end around it, nor wait for a name server."""
        return self._pipeline is not None and (self._pipeline.busy or self._settings.server is not None)

    def run(self) -> int:
        """Load, listen until the end, leave in order; the exit code."""
        self._status("loading")
        settings, ledger = self._settings, LossLedger()
        recorder = open_recorder(settings)
        source: AudioSource | None = None
        try:
            with self._stop.interrupting():
                hotwords = HotwordList(settings.hotwords)
                if settings.audio.input == "mic":
                    places = locate_models(settings)  # may download and convert for minutes, before the microphone is opened
                    source = open_source(settings, ledger, stdin_closed=self._stdin_closed)  # speech while models load waits in its queue
                else:
                    source = open_source(settings, ledger, stdin_closed=self._stdin_closed)  # a missing file is reported before a download
                    places = locate_models(settings)
                models = load_models(places, settings)
                keep = recorder.keep if recorder else None
                built = build_pipeline(settings, self._mode, models, ledger=ledger, hotwords=hotwords, keep=keep)
            self._pipeline = built.pipeline
            if models.name == embedded.NAME and settings.audio.input == "mic":
                log.warning("embedded_model", expect=embedded.EXPECTATION, remedy=embedded.REMEDY)
            for problem in built.problems:
                log.error("model_problem", error=describe(problem))
                self._write(built.pipeline.report_error(problem.error_code, describe(problem), recoverable=True))
            self._status("ready", version=__version__, schema_version=SCHEMA_VERSION, model=models.name)
            return self._listen(source, built, recorder)
        except Interrupted:
            log.info("stopped_while_loading")
            self._status("stopped", totals=Totals())
            return EXIT_OK
        finally:
            if source is not None:
                source.close()
            if recorder:
                recorder.drain(_LAST_RECORDINGS_SEC)

    def _listen(self, source: AudioSource, built: Built, recorder: Recorder | None) -> int:
        loop = Listening(
            source,
            built.pipeline,
            self._writer,
            self._stop,
            status=self._status,
            max_failures=self._settings.model.max_failures,
            monitor=LevelMonitor(self._level_sec, self._settings.audio.silent_sec),
            control=self._control,
            recorder=recorder,
            speakers=built.speakers,
        )
        code = loop.run()
        notify("STOPPING=1")
        totals = built.pipeline.totals
        self._status("stopped", totals=totals)
        log.info("service_stopped", exit_code=code, lines=self._writer.num_lines, **totals.model_dump())
        return code

    @property
    def _level_sec(self) -> float:
        """Between two level events; 0: none are wanted."""
        return self._settings.output.level_ms / 1000 if self._settings.output.status_events else 0.0

    def _write(self, events: list[AnyEvent]) -> None:
        for event in events:
            self._writer.write(event)

    def _status(self, state: str, **fields: object) -> None:
        if self._settings.output.status_events or "id" in fields:  # an answer is always wanted
            self._writer.write(StatusEvent.model_validate({"trace_id": new_trace_id(), "state": state, **fields}))


def run_service(settings: Settings, mode: Mode, start: Start) -> int:
    """Run the service in this process: takes stdout, stderr and the signals over. Returns the exit code; never raises."""
    try:
        writer = take_stdout(lambda: time.time_ns() // 1_000_000, was_closed=STDOUT_FILENO in start.closed)
    except OutputGone as error:
        log.error("output_gone", error=describe(error))
        return error.exit_code
    pump = pump_stderr(STDOUT_FILENO)
    stop = StopRequest()
    stop.install()
    control = ControlChannel(STDIN_FILENO, stop.request, with_speakers=settings.speakers.enabled) if settings.control == "stdin" else None
    queue = EventQueue(writer, lambda: stop.requested)
    limit_spinning()
    if settings.exit_with_parent or (settings.exit_with_parent is None and settings.audio.input != "-" and stdin_is_pipe()):
        watch_parent(_leave_orphaned, start.parent_pid)
    daemon = Daemon(settings, mode, queue, stop, control=control, stdin_closed=STDIN_FILENO in start.closed)
    try:
        code = _exit_code(daemon, queue)
        queue.close(patient=code in (EXIT_OK, EXIT_INPUT))  # a stop ends its patience
    except OutputGone as error:
        log.error("output_gone", error=describe(error), lines=queue.num_lines)
        code = error.exit_code
    end_pump(pump, _LAST_LOG_LINES_SEC)
    stop.end()
    if daemon.computing:  # at its end the interpreter would cut the thread off within torch, and that may abort
        os._exit(code)
    return code


def _leave_orphaned() -> None:
    """At once: whoever would have read a final is gone."""
    log.error("parent_gone", exit_code=EXIT_OUTPUT)
    os._exit(EXIT_OUTPUT)


def _exit_code(daemon: Daemon, writer: EventQueue) -> int:
    """What went wrong is reported in the log and, if somebody reads, in an event."""
    try:
        return daemon.run()
    except OutputGone:
        raise
    except VoiceError as error:
        log.error("service_failed", error=describe(error), exit_code=error.exit_code)
        return _report(writer, error.error_code, error, error.exit_code)
    except Exception as error:  # noqa: BLE001 -- a bug has an exit code, too
        log.error("service_crashed", exit_code=EXIT_BUG, **log_fields(error))
        return _report(writer, "runtime_error", error, EXIT_BUG)


def _report(writer: EventQueue, code: ErrorCode, error: Exception, exit_code: int) -> int:
    """Tell the reader of stdout why the service leaves."""
    writer.write(ErrorEvent(trace_id=new_trace_id(), error_code=code, message=describe(error), recoverable=False))
    return exit_code
