"""``voice-asr devices``: the microphones, by the names that people see in their sound settings."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from rich.cells import cell_len

from voice.capture.sources import MicrophoneInfo, handle_of, list_inputs, list_sources
from voice.cli import NO_DEVICES
from voice.errors import EXIT_INPUT, EXIT_OK, AudioDeviceUnavailable, describe


def main(flags: argparse.Namespace) -> int:
    """Print them; the exit code."""
    try:
        microphones = find_microphones()
    except AudioDeviceUnavailable as error:
        return _fail(describe(error))
    if not microphones:
        return _fail(NO_DEVICES)
    if flags.json:
        print(json.dumps([as_json(each, microphones) for each in microphones], ensure_ascii=False, indent=1))  # noqa: T201
    else:
        print(table(microphones))  # noqa: T201
    return EXIT_OK


def find_microphones() -> list[MicrophoneInfo]:
    """The sources of the sound server, or PortAudio's inputs where there is none.

    Raises:
        AudioDeviceUnavailable: there is neither a sound server nor PortAudio.
    """
    sources = list_sources()
    if sources:
        return sources
    from voice.capture.portaudio import import_sounddevice  # noqa: PLC0415 -- a machine with a sound server may do without

    sounddevice = import_sounddevice()
    return list_inputs(sounddevice.query_devices(), sounddevice.default.device[0])


def as_json(microphone: MicrophoneInfo, all_of_them: list[MicrophoneInfo]) -> dict[str, object]:
    """Its description with the part of its name that ``--device`` takes."""
    return {"device": _handle(microphone, all_of_them), **dataclasses.asdict(microphone)}


def table(microphones: list[MicrophoneInfo]) -> str:
    """A line each: ``* jabra  "Jabra Speak 510"  48 kHz  1 ch  default``."""
    rows = [
        (
            f"{'*' if each.is_default else ' '} {_handle(each, microphones)}",
            f'"{each.description}"',
            f"{each.rate_hz / 1000:g} kHz",
            f"{each.channels} ch",
            ", ".join(word for word, holds in _words(each) if holds),
        )
        for each in microphones
    ]
    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def _words(microphone: MicrophoneInfo) -> tuple[tuple[str, bool], ...]:
    return (
        ("default", microphone.is_default),
        ("muted", microphone.is_muted),
        ("monitor: what is played, not what is said", microphone.is_monitor),
    )


def _handle(microphone: MicrophoneInfo, all_of_them: list[MicrophoneInfo]) -> str:
    return handle_of(microphone, all_of_them) if microphone.index is None else str(microphone.index)


def _fail(reason: str) -> int:
    sys.stderr.write(f"error: {reason}\n")
    return EXIT_INPUT
