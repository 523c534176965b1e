"""Commands of the parent on stdin: one JSON line each -> ``TimedCommand``.

``{"command": "mute"}``, ``unmute``, ``endpoint``, ``status``, ``stop``; with --speakers ``{"command": "name_speaker", "label": "A", "name":
"妈妈"}``. An ``id`` beside it comes back in the answer. A thread reads from
the start of the process; ``stop`` is obeyed there at once, whatever waits before it, the others wait in a bounded queue until the loop
takes them. A line that is no command is handed over as ``ControlInvalid``; of many only the first few, then their number. The end of
stdin is no command.
"""

from __future__ import annotations

import json
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import structlog

from voice.errors import ControlInvalid
from voice.process.clock import clock_sec

Command = Literal["mute", "unmute", "endpoint", "status", "stop", "name_speaker"]
_NAME_SPEAKER = "name_speaker"

MAX_WAITING = 1_000
"""Commands that wait; more than that are dropped and counted."""
_MAX_INVALID = 5
"""Invalid lines that are handed over one by one between two calls of ``take``."""
_READ_BYTES = 65_536
_LONGEST_LINE = 4_096
_SHOWN = 80
_LONGEST_ID = 100
_LONGEST_LABEL = 4
_POLL_SEC = 1.0
_COMMAND_WAITS_SEC = 1.0
"""While no audio comes, a command waits so long for the audio captured before it: longer than any device delivers late."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TimedCommand:
    """A command, and when it came."""

    command: Command
    arrived_at: float
    """``clock_sec()`` when its line was read."""
    id: str | int | None = None
    """What the parent calls it: the answer carries it."""
    label: str = ""
    """``name_speaker``: whose name."""
    name: str | None = None
    """``name_speaker``: the name as it was given; None takes it away."""


@dataclass(frozen=True, slots=True)
class ParsedCommand:
    """What a line says."""

    command: Command
    id: str | int | None = None
    label: str = ""
    name: str | None = None

    def is_repeated_by(self, last: list[TimedCommand]) -> bool:
        """Whether the command that waits last says the same already, and nobody wants an answer of its own."""
        return self.id is None and self.command in ("mute", "unmute") and any(each.command == self.command for each in last)


class ControlChannel:
    """The commands that arrive at a descriptor."""

    def __init__(self, descriptor: int, on_stop: Callable[[], None], *, with_speakers: bool = False) -> None:
        """Read commands from ``descriptor``; ``on_stop`` is called on the reading thread. ``with_speakers`` adds ``name_speaker``."""
        self._with_speakers = with_speakers
        self._descriptor = descriptor
        self._on_stop = on_stop
        self._lock = threading.Lock()
        self._commands: list[TimedCommand] = []
        self._invalid: list[ControlInvalid] = []
        self._num_invalid = self._num_dropped = 0
        threading.Thread(target=self._run, name="control", daemon=True).start()

    def take(self) -> list[TimedCommand | ControlInvalid]:
        """What arrived since the last call."""
        with self._lock:
            taken: list[TimedCommand | ControlInvalid] = [*self._commands, *self._invalid]
            more = self._num_invalid - len(self._invalid)
            if more:
                taken.append(ControlInvalid(f"{more} more lines are no commands"))
            if self._num_dropped:
                taken.append(ControlInvalid(f"{self._num_dropped} commands were dropped: more than {MAX_WAITING} waited"))
            self._commands, self._invalid = [], []
            self._num_invalid = self._num_dropped = 0
        return taken

    def _run(self) -> None:
        rest, skipping = b"", False
        while data := self._read():
            *lines, rest = (rest + data).split(b"\n")
            if skipping and lines:  # the rest of the line that was too long
                del lines[0]
                skipping = False
            for line in lines:
                self._take_line(line)
            if len(rest) > _LONGEST_LINE:
                if not skipping:
                    self._take_line(rest)
                rest, skipping = b"", True
        if rest and not skipping:
            self._take_line(rest)
        log.debug("control_ended")

    def _read(self) -> bytes:
        """The next bytes; nothing at the end. A descriptor that does not block is waited for."""
        while True:
            try:
                return os.read(self._descriptor, _READ_BYTES)
            except BlockingIOError:
                select.select([self._descriptor], [], [], _POLL_SEC)
            except OSError as error:
                log.warning("control_ended", error=str(error))
                return b""

    def _take_line(self, line: bytes) -> None:
        if not line.strip():
            return
        answer = parse_command(line, with_speakers=self._with_speakers)
        if isinstance(answer, ParsedCommand) and answer.command == "stop":
            self._on_stop()
            return
        with self._lock:
            if isinstance(answer, ControlInvalid):
                self._num_invalid += 1
                if len(self._invalid) < _MAX_INVALID:
                    self._invalid.append(answer)
            elif answer.is_repeated_by(self._commands[-1:]):
                pass  # muted twice is muted
            elif len(self._commands) < MAX_WAITING:
                self._commands.append(TimedCommand(answer.command, clock_sec(), answer.id, answer.label, answer.name))
            else:
                self._num_dropped += 1


class PendingCommands:
    """Commands that wait for the audio that was captured before they arrived. Worker thread."""

    def __init__(self, channel: ControlChannel | None) -> None:
        self._channel = channel
        self._commands: deque[TimedCommand] = deque()

    def take(self) -> list[ControlInvalid]:
        """Take what arrived; what is no command is given back. The channel counts what finds no room."""
        if self._channel is None or len(self._commands) >= MAX_WAITING:
            return []
        arrived = self._channel.take()
        self._commands.extend(each for each in arrived if isinstance(each, TimedCommand))
        return [each for each in arrived if isinstance(each, ControlInvalid)]

    def due(self, end: float) -> TimedCommand | None:
        """The next one that arrived while the audio before ``end`` (``clock_sec``) was captured."""
        return self._commands.popleft() if self._commands and self._commands[0].arrived_at <= end else None

    def overdue(self, *, at_once: bool) -> TimedCommand | None:
        """The next one that must not wait for audio any longer; ``at_once``: there is no audio with a time to wait for."""
        waits_too_long = self._commands and clock_sec() - self._commands[0].arrived_at > _COMMAND_WAITS_SEC
        return self._commands.popleft() if waits_too_long or (at_once and self._commands) else None


def parse_command(line: bytes, *, with_speakers: bool = False) -> ParsedCommand | ControlInvalid:
    """The command of a line, or what is wrong with it; ``name_speaker`` is one only ``with_speakers``."""
    shown = line[:_SHOWN].decode("utf-8", errors="replace").strip()
    if len(line) > _LONGEST_LINE:
        return ControlInvalid(f"{shown!r} begins a line of more than {_LONGEST_LINE} bytes")
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return ControlInvalid(f"{shown!r} is not JSON")
    naming = with_speakers and isinstance(content, dict) and content.get("command") == _NAME_SPEAKER
    keys = {"command", "id", "label", "name"} if naming else {"command", "id"}
    command = content.get("command") if isinstance(content, dict) and content.keys() <= keys else None
    commands = [each for each in get_args(Command) if with_speakers or each != _NAME_SPEAKER]
    if command not in commands:
        known = "|".join(commands)
        return ControlInvalid(f'{shown!r} is no command; there are: {{"command": "{known}"}}, with an "id" or without')
    named = content.get("id")
    if not (named is None or (isinstance(named, str | int) and not isinstance(named, bool) and len(str(named)) <= _LONGEST_ID)):
        return ControlInvalid(f"{shown!r} has an id that is no string or number of up to {_LONGEST_ID} characters")
    if naming:
        return _naming(content, named)
    return ParsedCommand(cast("Command", command), named)


def _naming(content: dict[str, Any], named: str | int | None) -> ParsedCommand | ControlInvalid:
    """A command ``name_speaker``. What is wrong with it is said without its words: names are personal."""
    label, name = content.get("label"), content.get("name")
    if not (isinstance(label, str) and 0 < len(label) <= _LONGEST_LABEL) or not ("name" in content and isinstance(name, str | None)):
        return ControlInvalid('name_speaker takes a "label" as finals bear it, and a "name", a string or null')
    return ParsedCommand("name_speaker", named, label, name)
