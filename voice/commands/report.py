"""``voice-asr report``: one HTML page about what the service wrote to stdout. It holds the recognised text, and loads nothing."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from voice.commands.export import read_events
from voice.commands.report_data import sessions_of
from voice.commands.report_page import page
from voice.commands.results import write_all, write_stdout
from voice.errors import EXIT_CONFIG, EXIT_INPUT, EXIT_OK, EXIT_OUTPUT


def main(flags: argparse.Namespace) -> int:
    """Write the page; the exit code."""
    recording: Path = flags.recording
    try:
        events = read_events(recording)
    except (OSError, ValueError) as error:
        return _refuse(f"{recording}: {error.strerror if isinstance(error, OSError) else error}", EXIT_INPUT)
    target: Path = flags.output or recording.with_suffix(".html")
    to_stdout = str(target) == "-"
    if target.exists() and not to_stdout:
        if target.resolve() == recording.resolve():
            return _refuse(f"{target}: the page would replace the recording; use -o FILE.html", EXIT_CONFIG)
        if not flags.force:
            return _refuse(f"{target} is there already; --force writes it anew", EXIT_CONFIG)
    html = page(recording.name, sessions_of(events))
    if to_stdout:
        write_stdout([html])
        return EXIT_OK
    try:
        write_all({target: html})
    except OSError as error:
        return _refuse(f"{target}: {error.strerror}", EXIT_OUTPUT)
    sys.stderr.write(f"{target}\n")
    return EXIT_OK


def _refuse(problem: str, exit_code: int) -> int:
    sys.stderr.write(f"error: {problem}\n")
    return exit_code
