"""``voice-asr export``: text, subtitles and tables of what the service wrote to stdout."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from voice.commands.formats import WRITERS, Event, check_event
from voice.commands.results import inputs_below, targets_of, write_all, write_stdout
from voice.errors import EXIT_CONFIG, EXIT_INPUT, EXIT_OK

EXIT_SOME_FAILED = 1
_SUFFIXES = frozenset((".jsonl", ".ndjson"))


def main(flags: argparse.Namespace) -> int:
    """Write the results; the exit code."""
    inputs, problems = inputs_below(flags.paths, _SUFFIXES, recursive=False)
    to_stdout = str(flags.output) == "-"
    if to_stdout and (len(inputs) > 1 or len(flags.formats) > 1):
        sys.stderr.write("error: -o - takes one recording and one format\n")
        return EXIT_CONFIG
    for each, files in zip(inputs, targets_of(inputs, None if to_stdout else flags.output, flags.formats), strict=True):
        try:
            events = read_events(each.path)
            texts = {path: WRITERS[ending](events, emotion=flags.emotion_labels) for ending, path in files.items()}
            if each.path.resolve() in {path.resolve() for path in texts}:
                raise ValueError("the result would replace it; use -o DIR")
            there = [path for path in texts if path.exists() and not (flags.force or to_stdout)]
            if there:
                raise ValueError(f"{there[0]} is there already; --force writes it anew")
            if to_stdout:
                write_stdout(texts.values())
            else:
                write_all(texts)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.filename is None:  # stdout
                raise
            problems.append(f"{each.path}: {error.strerror if isinstance(error, OSError) else error}")
    for problem in problems:
        sys.stderr.write(f"failed: {problem}\n")
    if problems and not inputs:
        return EXIT_INPUT
    return EXIT_SOME_FAILED if problems else EXIT_OK


def read_events(path: Path) -> list[Event]:
    """The events of a recording. A last line that a crash cut off is left out.

    Raises:
        ValueError: a line is no event.
        OSError: it cannot be read.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    events: list[Event] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise ValueError(f"line {number} is no event; record stdout alone, without stderr: > FILE.jsonl") from error
        try:
            events.append(check_event(event))
        except ValueError as error:
            raise ValueError(f"line {number} is {error}") from error
    return events
