"""``voice-asr listen``: see what the service hears, live, from a pipe, or from a recording of events.

Events -> a terminal: finals, errors, and one line with the level and the text so far; plain lines where stdout is no terminal.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from voice.client import ServiceFailed, VoiceService
from voice.commands.export import read_events
from voice.commands.formats import Event, check_event
from voice.commands.screen import Screen
from voice.errors import EXIT_INPUT, EXIT_OK

_LEVEL_MS = "VOICE_ASR__OUTPUT__LEVEL_MS"
_METER_MS = "200"
_OUR_FLAGS = ("-v", "--verbose")


def main(flags: argparse.Namespace) -> int:
    """Show events until they end, or somebody presses Ctrl+C; the exit code."""
    console = _Terminal(highlight=False)
    if flags.source is not None:
        return _show_recorded(console, flags.source)
    os.environ.setdefault(_LEVEL_MS, _METER_MS)
    log = Console(stderr=True, highlight=False)
    arguments = [each for each in flags.given if each not in _OUR_FLAGS]
    if "--mode" in arguments:  # of the command, not of the entries
        place = arguments.index("--mode")
        del arguments[place : place + 2]
    arguments = [each for each in arguments if not each.startswith("--mode=")]
    live = getattr(flags, "audio.input", "mic") == "mic"
    on_log = (lambda line: log.print(Text(line, style="dim"))) if flags.verbose else lambda _: None
    with VoiceService(*arguments, mode=flags.mode, on_log=on_log) as service:
        try:
            _show(console, (event.raw for event in service), live=live)
        except ServiceFailed as failure:
            console.print(Text(str(failure), style="red"), soft_wrap=True)
            return failure.exit_code
        except KeyboardInterrupt:
            service.stop()
            with contextlib.suppress(ServiceFailed):
                _show(console, (event.raw for event in service))
    return EXIT_OK


class _Terminal(Console):
    """rich's own would end the process by itself."""

    def on_broken_pipe(self) -> None:
        """The reader is gone."""
        raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))


def _show_recorded(console: Console, source: str) -> int:
    try:
        events: Iterable[Event] = _piped() if source == "-" else read_events(Path(source))
        with contextlib.suppress(KeyboardInterrupt):
            _show(console, events)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.filename is None:  # stdout
            raise
        sys.stderr.write(f"error: {source}: {error.strerror if isinstance(error, OSError) else error}\n")
        return EXIT_INPUT
    return EXIT_OK


def _piped() -> Iterator[Event]:
    """The events on stdin, as they come; other lines are left out, such as those of a log that was piped, too."""
    for line in sys.stdin.buffer:
        with contextlib.suppress(ValueError, RecursionError):
            yield check_event(json.loads(line))


def _show(console: Console, events: Iterable[Event], *, live: bool = False) -> None:
    screen = Screen(live=live)
    if not console.is_terminal:
        for event in events:
            for line in screen.accept(event):
                console.print(line, soft_wrap=True)
        return
    with Live(screen.line(console.width), console=console, auto_refresh=False, transient=True) as shown:
        for event in events:
            lines = screen.accept(event)
            shown.update(screen.line(console.width), refresh=not lines)
            for line in lines:  # printing shows the line below anew
                shown.console.print(line)
