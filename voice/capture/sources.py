"""The microphones as people know them: by the names of the sound server's sources, or of PortAudio's input devices.

Descriptions -> ``MicrophoneInfo``; a part of a name -> the one that is meant; all of them -> a table. Pure: nobody is asked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class MicrophoneInfo:
    """A microphone that can be named."""

    name: str
    """As the sound server or PortAudio calls it."""
    description: str
    """For people."""
    rate_hz: int
    channels: int
    is_default: bool
    is_monitor: bool = False
    """What is played, not what is said."""
    is_muted: bool = False
    index: int | None = None
    """PortAudio's; None of a source."""


def list_inputs(devices: Any, default_index: int) -> list[MicrophoneInfo]:
    """PortAudio's input devices; arguments as of ``voice.capture.devices.find_device``."""
    return [
        MicrophoneInfo(
            device["name"],
            device["name"],
            int(device["default_samplerate"]),
            device["max_input_channels"],
            index == default_index,
            index=index,
        )
        for index, device in enumerate(devices)
        if device["max_input_channels"] > 0
    ]


def find_source(sources: Sequence[MicrophoneInfo], wanted: str) -> MicrophoneInfo | None:
    """The source that a name, or a part of one, means: an exact name first, then a part, case ignored; microphones before monitors."""
    part = wanted.casefold()
    for matches in (
        [each for each in sources if wanted in (each.name, each.description)],
        [each for each in sources if part in each.description.casefold() or part in each.name.casefold()],
    ):
        if matches:
            return min(matches, key=lambda each: (each.is_monitor, not each.is_default))
    return None


def handle_of(microphone: MicrophoneInfo, all_of_them: Sequence[MicrophoneInfo]) -> str:
    """What ``--device`` takes for it alone: PortAudio's index, a word of its description where one will do, else its whole name."""
    if microphone.index is not None:
        return str(microphone.index)
    names = [f"{each.name} {each.description}".casefold() for each in all_of_them if each is not microphone]
    words = (word.strip("()[],.:;").casefold() for word in microphone.description.split())
    alone = (word for word in words if len(word) > 2 and not word.isdecimal() and not any(word in name for name in names))
    return next(alone, microphone.name)


def table_of(microphones: Sequence[MicrophoneInfo]) -> str:
    """A line each: ``* jabra  "Jabra Speak 510"  48 kHz  1 ch  default``."""
    from rich.cells import cell_len  # noqa: PLC0415 -- the service shows no table

    rows = []
    for each in microphones:
        words = {"default": each.is_default, "muted": each.is_muted, "monitor: what is played, not what is said": each.is_monitor}
        said = ", ".join(word for word, holds in words.items() if holds)
        handle = f"{'*' if each.is_default else ' '} {handle_of(each, microphones)}"
        rows.append((handle, f'"{each.description}"', f"{each.rate_hz / 1000:g} kHz", f"{each.channels} ch", said))
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)
