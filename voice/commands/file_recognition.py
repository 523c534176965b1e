"""A recording -> its events, with models that are loaded once for many recordings.

``Settings`` and models -> for each path the lines that the service would write of it, partials left out. State: the models. One thread.
``FileRecognizer`` raises ``ModelLoadFailed``; what is wrong with a recording is in its result.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from voice.audio import AudioBlock
from voice.build import build_pipeline
from voice.capture.source import AudioFormat, AudioSource
from voice.commands.formats import Event
from voice.config import Mode, Settings
from voice.errors import EXIT_OK, ErrorCode, InputError, describe
from voice.hotword_list import HotwordList
from voice.inputs import open_source
from voice.listening import Listening
from voice.losses import LossLedger
from voice.models.weights import load_models, locate_models
from voice.output.events import AnyEvent, PartialEvent
from voice.output.writer import encode
from voice.process.stop import StopRequest

_REPORT_SEC = 2.0
"""Audio between two reports of how far a recording has come."""


@dataclass(frozen=True, slots=True)
class Recognized:
    """What came of a recording."""

    events: list[Event]
    audio_sec: float
    problem: str | None
    """Why it could not be read, not to its end, or why a server did not recognise all of it; then the events are those of the rest."""
    server_gone: bool = False
    """A server that was waited for in vain recognised nothing of it: the next recording would wait as long."""


class FileRecognizer:
    """The models of a run, and recordings one after the other."""

    def __init__(self, settings: Settings, mode: Mode) -> None:
        """Load the models.

        Args:
            settings: of all recordings; ``audio.input`` does not count, and wake words do not: who has a file transcribed wants all of it.
            mode: how audio is cut for the recogniser.

        Raises:
            ModelLoadFailed: a model is missing or cannot be used.
        """
        self._settings = settings.for_mode(mode).model_copy(update={"wake": settings.wake.model_copy(update={"words": ()})})
        self._mode: Mode = mode
        self._models = load_models(locate_models(self._settings), self._settings)

    def recognize(self, path: Path, on_progress: Callable[[float], None]) -> Recognized:
        """Recognise one recording; ``on_progress`` is told, now and then, how many seconds of it were read."""
        audio = self._settings.audio.model_copy(update={"input": str(path), "realtime": False})
        settings = self._settings.model_copy(update={"audio": audio})
        ledger, lines = LossLedger(), _Lines()
        try:
            source = _Watched(open_source(settings, ledger), on_progress)
        except InputError as error:
            return Recognized([], 0.0, str(error))
        try:
            built = build_pipeline(settings, self._mode, self._models, ledger=ledger, hotwords=HotwordList(settings.hotwords))
            for problem in built.problems:
                self._report(lines, built.pipeline.report_error, problem.error_code, describe(problem))
            listening = Listening(
                source,
                built.pipeline,
                lines,
                StopRequest(),
                status=lambda *_, **__: None,
                max_failures=settings.model.max_failures,
            )
            code = listening.run()
        finally:
            source.close()
        is_whole = code == EXIT_OK and (settings.server is None or not built.pipeline.totals.lost_ms)
        failure = None if is_whole else lines.last_problem
        return Recognized(lines.events, source.position_sec, failure, server_gone=failure is not None and lines.server_gone)

    @staticmethod
    def _report(lines: _Lines, report: Callable[..., list[AnyEvent]], code: ErrorCode, message: str) -> None:
        for event in report(code, message, recoverable=True):
            lines.write(event)


class _Lines:
    """Takes the place of stdout: keeps events as they would have been written."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def write(self, event: AnyEvent) -> None:
        """Keep an event, unless a later one of the same utterance replaces it."""
        if not isinstance(event, PartialEvent):
            self.events.append(json.loads(encode(event).line(time.time_ns() // 1_000_000, len(self.events) + 1)))

    def check_reader(self) -> None:
        """Nobody reads, nobody leaves."""

    @property
    def server_gone(self) -> bool:
        """Whether the server gave nothing at all."""
        kinds = {event["type"] for event in self.events}
        return "voice.asr_text.final" not in kinds and any(event.get("error_code") == "engine_unavailable" for event in self.events)

    @property
    def last_problem(self) -> str:
        """The message of the last error, without its type."""
        messages = [event["message"] for event in self.events if event["type"] == "core.error_event"]
        return str(messages[-1]).partition(": ")[2] if messages else "it could not be read to its end"


class _Watched:
    """A source, and how far it was read."""

    recovers = False

    def __init__(self, source: AudioSource, on_progress: Callable[[float], None]) -> None:
        self._source = source
        self._on_progress = on_progress
        self._reported_sec = 0.0
        self.position_sec = 0.0

    @property
    def format(self) -> AudioFormat | None:
        return self._source.format

    @property
    def ended(self) -> bool:
        return self._source.ended

    @property
    def waiting_sec(self) -> float:
        return self._source.waiting_sec

    def read(self, timeout_sec: float, gather_sec: float = 0.0) -> AudioBlock | None:
        block = self._source.read(timeout_sec, gather_sec)
        if block is not None:
            self.position_sec += block.duration_sec
            if self.position_sec - self._reported_sec >= _REPORT_SEC:
                self._reported_sec = self.position_sec
                self._on_progress(self.position_sec)
        return block

    def close(self) -> None:
        self._source.close()
