"""Run the service from a Python program: one file, the standard library alone; it may be copied into a program of its own.

    from voice.client import Final, VoiceService

    with VoiceService("--embedded", on_error=print) as service:
        service.wait_listening(30)
        for event in service:
            match event:
                case Final(text=text):
                    print(text)

The service is a child process. A service that crashes, or is killed, is started again, after 1 s, then 2 s, up to 30 s; what it was saying
is then ``Abandoned``, and a mute is said again. Wrong settings and models (exit codes 2 and 3) are not tried again: ``ServiceFailed``.
``AsyncVoiceService`` is the same for asyncio.

Threads: one reads the events, one drains the log; methods may be called from any thread. The iterator is for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

FIRST_PAUSE_SEC, LONGEST_PAUSE_SEC = 1.0, 30.0
"""Between the end of a service and the start of the next."""
STEADY_SEC = 60.0
"""A service that lived so long is started again after the first pause."""
NEVER_AGAIN = (2, 3)
"""Exit codes after which another start would end alike: wrong settings, a model that cannot be loaded."""
_ENDED_WELL = 0
_QUEUED_EVENTS = 1_000
_LOG_LINES = 50
_LAST_LOG_SEC = 2.0


@dataclass(frozen=True)
class Event:
    """One line of the service's stdout."""

    raw: dict[str, Any] = field(repr=False)
    """All keys, also those that this file does not know (docs/events.md)."""
    trace_id: str = ""
    ts: int = 0


@dataclass(frozen=True)
class Partial(Event):
    """Text of an utterance that is still being spoken; each one replaces the one before."""

    text: str = ""
    confidence: float | None = 0.0
    """None where a server recognised: it gives none."""
    stable_chars: int = 0
    start_ms: int = 0
    end_ms: int = 0
    captured_ts: int = 0
    """When the last sample of it was captured; ``ts - captured_ts`` is the latency in ms."""


@dataclass(frozen=True)
class Final(Event):
    """Text of a finished utterance."""

    text: str = ""
    raw_text: str = ""
    confidence: float | None = 0.0
    """None where a server recognised: it gives none."""
    start_ms: int = 0
    end_ms: int = 0
    endpoint: str = ""
    lost_ms: int = 0
    tokens: list[dict[str, Any]] = field(default_factory=list, repr=False)
    level: dict[str, float] | None = None
    emotion: dict[str, Any] | None = None
    speaker: dict[str, Any] | None = None
    """With ``--speakers``: ``label``, ``name``, ``confidence``."""
    captured_ts: int = 0
    """When the last sample of speech was captured."""


@dataclass(frozen=True)
class Emotion(Event):
    """Emotion of a finished utterance."""

    label: str = ""
    confidence: float = 0.0
    scores: dict[str, float] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Speaker(Event):
    """Speaker of a finished utterance whose final did not wait for it."""

    label: str = ""
    name: str | None = None
    confidence: float = 0.0


@dataclass(frozen=True)
class Error(Event):
    """Something went wrong; where it is recoverable, the service goes on."""

    error_code: str = ""
    message: str = ""
    recoverable: bool = True


@dataclass(frozen=True)
class Status(Event):
    """Life of the service: loading, ready, listening, muted, unmuted, audio_lost, audio_restored, stopped."""

    state: str = ""
    device: str | None = None
    totals: dict[str, int] | None = None
    id: str | int | None = None


@dataclass(frozen=True)
class Level(Event):
    """How loud the microphone is; ``level`` is None while muted."""

    level: dict[str, float] | None = None
    muted: bool = False


@dataclass(frozen=True)
class SpeechStarted(Event):
    """Somebody began to speak."""

    start_ms: int = 0


@dataclass(frozen=True)
class SpeechEnded(Event):
    """Somebody stopped speaking."""

    end_ms: int = 0
    endpoint: str = ""


@dataclass(frozen=True)
class Wake(Event):
    """A wake word was spoken (``--wake-word``); a final with the same trace id follows, without text where nothing else was said."""

    word: str = ""
    start_ms: int = 0
    end_ms: int = 0
    captured_ts: int = 0
    """When its last sample was captured."""


@dataclass(frozen=True)
class SpeechRejected(Event):
    """Somebody spoke who is not near the microphone: it is not recognised."""

    start_ms: int = 0
    end_ms: int = 0
    level_dbfs: float = 0.0
    noise_dbfs: float = 0.0
    directness: float = 0.0
    min_level_dbfs: float = 0.0
    min_directness: float = 0.0


@dataclass(frozen=True)
class Abandoned(Event):
    """The service ended in the middle of an utterance: its final will not come. ``text`` was shown last."""

    text: str = ""


_CLASSES: dict[str, type[Event]] = {
    "voice.asr_text.partial": Partial,
    "voice.asr_text.final": Final,
    "voice.asr_text.emotion": Emotion,
    "voice.asr_text.speaker": Speaker,
    "core.error_event": Error,
    "core.status_event": Status,
    "core.level_event": Level,
    "voice.speech.started": SpeechStarted,
    "voice.speech.ended": SpeechEnded,
    "voice.wake": Wake,
    "voice.speech.rejected": SpeechRejected,
}


class ServiceFailed(RuntimeError):
    """The service ended, and another start would end alike."""

    def __init__(self, exit_code: int, reason: str) -> None:
        super().__init__(f"the service ended with exit code {exit_code}: {reason}")
        self.exit_code = exit_code


def parse_event(line: bytes | str) -> Event | None:
    """A line of stdout; None for what is no event."""
    try:
        raw = json.loads(line)
    except ValueError:
        return None
    if not isinstance(raw, dict):
        return None
    kind = _CLASSES.get(str(raw.get("type")), Event)
    known = {each.name for each in fields(kind)} - {"raw"}
    return kind(raw=raw, **{key: value for key, value in raw.items() if key in known})


class VoiceService:
    """A service that runs while the ``with`` block does."""

    def __init__(
        self,
        *flags: str,
        mode: Literal["streaming", "sliced"] = "streaming",
        command: Sequence[str] | None = None,
        on_error: Callable[[Error], object] | None = None,
        on_log: Callable[[str], object] | None = None,
        restart: bool = True,
    ) -> None:
        """Describe the service; ``start``, or entering the ``with`` block, starts it.

        Args:
            flags: of the service: ``--embedded``, ``--device``, ``jabra``, ... It also gets ``--control stdin --status-events``.
            mode: how audio is cut for the recogniser.
            command: what starts the service, instead of this checkout, this package, or ``voice-asr`` on the path.
            on_error: told each error event, on the reading thread; they are among the events, too. If it raises, the service is given up.
            on_log: told each line of the log; otherwise the last 50 are kept for ``ServiceFailed``.
            restart: start a service again that crashed.
        """
        self._command = [*(command or default_command(mode)), "--control", "stdin", "--status-events", *flags]
        self._on_error = on_error
        self._on_log = on_log
        self._restart = restart
        self._events: queue.Queue[Event | ServiceFailed | None] = queue.Queue(_QUEUED_EVENTS)
        self._changed = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._drainer = threading.Thread()
        self._open: dict[str, str] = {}
        self._state = "stopped"
        self._muted = self._stopping = self._ended = False
        self._failure: ServiceFailed | None = None
        self._answers: dict[str | int, Status | None] = {}
        """Of commands that somebody waits for; None until the answer is there."""
        self._ids = itertools.count(1)
        self._wake = threading.Event()
        self.starts = 0
        """How often the service was started."""

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> VoiceService:
        """Start the service.

        Raises:
            OSError: the command cannot be run.
        """
        self._launch()
        self._thread = threading.Thread(target=self._supervise, name="voice-service", daemon=True)
        self._thread.start()
        return self

    def stop(self, timeout_sec: float = 10.0) -> None:
        """End the service in order: the utterance in flight gets its final, which can still be read. Idempotent."""
        self._stopping = True
        self._wake.set()
        self._send({"command": "stop"})
        process, thread = self._process, self._thread
        if process is None or thread is None:
            return
        deadline = time.monotonic() + timeout_sec
        while thread.is_alive() and time.monotonic() < deadline:
            self._make_room()
            thread.join(0.05)
        process = self._process or process  # it may have been started again meanwhile
        for end in (process.terminate, process.kill):
            if process.poll() is None:
                end()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(2)

    def __enter__(self) -> VoiceService:
        """Start."""
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop."""
        self.stop()

    @property
    def state(self) -> str:
        """What the service said last of its life: loading, ready, listening, muted, audio_lost; stopped while there is none."""
        return self._state

    @property
    def pid(self) -> int | None:
        """Of the process, while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def wait_listening(self, timeout_sec: float | None = None) -> None:
        """Wait until the microphone is heard, or the file is open; a service that was, and has ended in order, is not waited for.

        Raises:
            TimeoutError: it took longer.
            ServiceFailed: the service ended for good.
        """
        with self._changed:
            heard = self._changed.wait_for(lambda: self._ended or self._state in ("listening", "muted", "unmuted"), timeout_sec)
        if self._failure:
            raise self._failure
        if not heard:
            raise TimeoutError(f"the service is not listening after {timeout_sec} s: its state is {self._state}")

    # --- commands -----------------------------------------------------------------------------------------------------

    def mute(self) -> None:
        """Recognise nothing from now on; a service that is started again stays mute."""
        self._muted = True
        self._send({"command": "mute"})

    def unmute(self) -> None:
        """Recognise again."""
        self._muted = False
        self._send({"command": "unmute"})

    def endpoint(self) -> None:
        """End the utterance in flight now."""
        self._send({"command": "endpoint"})

    def name_speaker(self, label: str, name: str | None) -> None:
        """With ``--speakers``: what the speaker of a label is called in later finals; None takes the name away."""
        self._send({"command": "name_speaker", "label": label, "name": name})

    def status(self, timeout_sec: float = 5.0) -> Status:
        """Ask the service what it is doing.

        Raises:
            TimeoutError: it did not answer: it loads, or hangs.
        """
        name = next(self._ids)
        self._answers[name] = None
        self._send({"command": "status", "id": name})
        with self._changed:
            self._changed.wait_for(lambda: self._answers[name], timeout_sec)
            answer = self._answers.pop(name)
        if answer is None:
            raise TimeoutError(f"the service did not answer within {timeout_sec} s")
        return answer

    def _send(self, command: dict[str, Any]) -> None:
        """Write a command; a service that is gone is told when it is back."""
        process = self._process
        if process is None or process.stdin is None:
            return
        with contextlib.suppress(OSError, ValueError):
            process.stdin.write(json.dumps(command).encode() + b"\n")
            process.stdin.flush()

    # --- events -------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Event]:
        """The events, until the input ends or the service is stopped.

        Raises:
            ServiceFailed: the service ended for good.
        """
        while True:
            event = self._events.get()
            if event is None:
                self._events.put(None)  # whoever iterates again ends, too
                return
            if isinstance(event, ServiceFailed):
                self._events.put(None)
                raise event
            yield event

    def _make_room(self) -> None:
        """Drop the oldest events that nobody reads any more, so that the reading thread can end."""
        with contextlib.suppress(queue.Empty):
            while self._events.full():
                self._events.get_nowait()

    def _supervise(self) -> None:
        """Hand on the events of one process after the other; whatever happens, the iteration ends with the last of them."""
        failure: ServiceFailed | None = None
        try:
            failure = self._run_processes()
        except Exception as error:  # of a callback of the program, or of an operating system that starts no process
            failure = ServiceFailed(self._exit_code, repr(error))
            raise
        finally:
            with self._changed:
                self._ended, self._failure = True, failure
            self._set_state("stopped")
            self._events.put(failure)

    def _run_processes(self) -> ServiceFailed | None:
        """What ended the last process, where that was not in order."""
        pause_sec = FIRST_PAUSE_SEC
        while True:
            started = time.monotonic()
            code = self._read_until_end()
            if time.monotonic() - started > STEADY_SEC:
                pause_sec = FIRST_PAUSE_SEC
            for trace_id, text in self._open.items():
                self._events.put(Abandoned({}, trace_id, text=text))
            self._open.clear()
            if self._stopping or code == _ENDED_WELL or code in NEVER_AGAIN or not self._restart:
                break
            if self._wake.wait(pause_sec):
                break
            pause_sec = min(2 * pause_sec, LONGEST_PAUSE_SEC)
            self._launch()
        self._drainer.join(_LAST_LOG_SEC)  # its last lines say why; another process that holds the pipe is not waited for
        return None if code == _ENDED_WELL or self._stopping else ServiceFailed(code, self._reason())

    def _launch(self) -> None:
        self._last_error, self._exit_code = "", -1
        flags = getattr(subprocess, "CREATE_NO_WINDOW", 0)  # Windows: no console window of its own
        self._process = subprocess.Popen(  # noqa: S603 -- what the program gave
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, creationflags=flags
        )
        self.starts += 1
        self._set_state("loading")
        self._drainer = threading.Thread(target=self._drain, args=(self._process,), name="voice-log", daemon=True)
        self._drainer.start()
        if self._muted:
            self._send({"command": "mute"})
        if self._stopping:
            self._send({"command": "stop"})

    def _read_until_end(self) -> int:
        """Hand on the events of one process; its exit code."""
        process = self._process
        assert process is not None  # noqa: S101 -- _launch made it
        assert process.stdout is not None  # noqa: S101 -- it was asked for
        try:
            for line in process.stdout:
                event = parse_event(line)
                if event is not None:
                    self._note(event)
                    self._events.put(event)
            self._exit_code = process.wait()
        finally:  # a service whose reader is gone ends
            with contextlib.suppress(OSError):
                if process.stdin:
                    process.stdin.close()
            process.stdout.close()
        self._set_state("stopped")
        return self._exit_code

    def _note(self, event: Event) -> None:
        if isinstance(event, Partial):
            self._open[event.trace_id] = event.text
        elif isinstance(event, Wake):
            self._open.setdefault(event.trace_id, "")
        elif isinstance(event, Final):
            self._open.pop(event.trace_id, None)
        elif isinstance(event, Error):
            self._last_error = event.message
            if self._on_error is not None:
                self._on_error(event)
        elif isinstance(event, Status):
            if event.id in self._answers:
                self._answers[event.id] = event
            self._set_state(event.state)

    def _set_state(self, state: str) -> None:
        with self._changed:
            self._state = state
            self._changed.notify_all()

    def _drain(self, process: subprocess.Popen[bytes]) -> None:
        """Read the log, so that it never fills its pipe."""
        assert process.stderr is not None  # noqa: S101 -- it was asked for
        with process.stderr:
            for line in process.stderr:
                text = line.decode("utf-8", "replace").rstrip()
                self._log.append(text)
                if self._on_log is not None:
                    self._on_log(text)

    def _reason(self) -> str:
        return self._last_error or next((line for line in reversed(self._log) if line), "it said nothing")


class AsyncVoiceService:
    """``VoiceService`` for asyncio: ``async with``, ``async for``; the commands do not wait."""

    def __init__(self, *flags: str, **options: Any) -> None:
        """Take what ``VoiceService`` takes."""
        self._service = VoiceService(*flags, **options)
        self._events: asyncio.Queue[Event | ServiceFailed | None] = asyncio.Queue(_QUEUED_EVENTS)
        self.mute, self.unmute, self.endpoint = self._service.mute, self._service.unmute, self._service.endpoint
        self.name_speaker = self._service.name_speaker

    async def __aenter__(self) -> AsyncVoiceService:
        """Start."""
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._service.start)
        threading.Thread(target=self._pump, args=(loop,), name="voice-async", daemon=True).start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop."""
        await self.stop()

    async def stop(self, timeout_sec: float = 10.0) -> None:
        """As ``VoiceService.stop``."""
        await asyncio.to_thread(self._service.stop, timeout_sec)

    async def wait_listening(self, timeout_sec: float | None = None) -> None:
        """As ``VoiceService.wait_listening``."""
        await asyncio.to_thread(self._service.wait_listening, timeout_sec)

    async def status(self, timeout_sec: float = 5.0) -> Status:
        """As ``VoiceService.status``."""
        return await asyncio.to_thread(self._service.status, timeout_sec)

    @property
    def state(self) -> str:
        """As ``VoiceService.state``."""
        return self._service.state

    async def __aiter__(self) -> AsyncIterator[Event]:
        """As iterating over ``VoiceService``."""
        while (event := await self._events.get()) is not None:
            if isinstance(event, ServiceFailed):
                raise event
            yield event

    def _pump(self, loop: asyncio.AbstractEventLoop) -> None:
        def hand_on(event: Event | ServiceFailed | None) -> None:
            asyncio.run_coroutine_threadsafe(self._events.put(event), loop).result()  # waits for a reader that is behind

        last: ServiceFailed | None = None
        with contextlib.suppress(RuntimeError):  # the loop was closed
            try:
                for event in self._service:
                    hand_on(event)
            except ServiceFailed as failure:
                last = failure
            hand_on(last)


def default_command(mode: str = "streaming") -> list[str]:
    """What starts the service: the checkout or the package that this file belongs to, else ``voice-asr`` on the path.

    Raises:
        FileNotFoundError: none of them is there.
    """
    here = Path(__file__).resolve().parent
    if (here / "flags.py").is_file() and (here / "process").is_dir():
        entry = here.parent / ("asr_service_streaming.py" if mode == "streaming" else "asr_service.py")
        return [sys.executable, str(entry)] if entry.is_file() else [sys.executable, "-m", "voice", "run", "--mode", mode]
    program = shutil.which("voice-asr", path=os.environ.get("PATH"))
    if program is None:
        raise FileNotFoundError("voice-asr is not on the path: install the package, or give its command")
    return [program, "run", "--mode", mode]
