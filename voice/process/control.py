"""Commands of the parent on stdin: one JSON line each -> ``Command``.

``{"command": "mute"}``, ``unmute``, ``endpoint``, ``stop``. A thread reads, whoever runs the pipeline takes. A line that is none of these
is handed over as ``ControlInvalid``; the end of stdin is no command.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from typing import Literal, cast, get_args

import structlog

from voice.errors import ControlInvalid

Command = Literal["mute", "unmute", "endpoint", "stop"]

_LONGEST_LINE = 4_096
_SHOWN = 80

log = structlog.get_logger()


class ControlChannel:
    """The commands that arrive at a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._commands: queue.SimpleQueue[Command | ControlInvalid] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="control", daemon=True).start()

    def take(self) -> list[Command | ControlInvalid]:
        """What arrived since the last call."""
        taken = []
        while not self._commands.empty():  # one taker
            taken.append(self._commands.get())
        return taken

    def _run(self) -> None:
        rest = b""
        while True:
            try:
                data = os.read(self._descriptor, _LONGEST_LINE)
            except OSError as error:
                log.warning("control_ended", error=str(error))
                return
            *lines, rest = (rest + data).split(b"\n")
            if not data or len(rest) > _LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                if line.strip():
                    self._commands.put(parse_command(line))
            if not data:
                log.debug("control_ended")
                return


def parse_command(line: bytes) -> Command | ControlInvalid:
    """The command of a line, or what is wrong with it."""
    shown = line[:_SHOWN].decode("utf-8", errors="replace").strip()
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return ControlInvalid(f"{shown!r} is not JSON")
    command = content.get("command") if isinstance(content, dict) and len(content) == 1 else None
    if command not in get_args(Command):
        return ControlInvalid(f'{shown!r} is no command; there are: {{"command": "{"|".join(get_args(Command))}"}}')
    return cast("Command", command)
