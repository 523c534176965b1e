"""The microphones as people know them: the sources of PulseAudio or PipeWire by their names, else the input devices of PortAudio.

Sound server, PortAudio -> ``Microphone`` descriptions; a part of a name -> one of them. A server that hangs, or none, is no error: then
there are no sources. No state, any thread.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TIMEOUT_SEC = 1.0
_MONITOR_OF_NOTHING = 0xFFFF_FFFF


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


def list_sources(timeout_sec: float = TIMEOUT_SEC) -> list[MicrophoneInfo] | None:
    """The sources of the sound server, microphones first; None where no server answers in time."""
    if not sys.platform.startswith("linux"):
        return None
    answers: queue.SimpleQueue[list[MicrophoneInfo] | None] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(_ask()), name="sources", daemon=True).start()  # its calls may hang
    try:
        return answers.get(timeout=timeout_sec)
    except queue.Empty:
        return None


def _ask() -> list[MicrophoneInfo] | None:
    try:
        import pulsectl  # noqa: PLC0415 -- it loads libpulse, which other machines lack
    except (ImportError, OSError, AttributeError):
        return None
    found: list[MicrophoneInfo] = []
    try:
        with contextlib.closing(pulsectl.Pulse("voice-asr-devices", connect=False)) as pulse:
            pulse.connect()
            default = pulse.server_info().default_source_name
            for source in pulse.source_list():
                spec = source.sample_spec
                is_monitor = source.monitor_of_sink != _MONITOR_OF_NOTHING
                shown = source.description or source.name
                found.append(
                    MicrophoneInfo(source.name, shown, spec.rate, spec.channels, source.name == default, is_monitor, bool(source.mute))
                )
    except Exception:  # noqa: BLE001 -- pulsectl's errors share no class; whatever it is, there is no server to ask
        return None
    return sorted(found, key=lambda each: each.is_monitor)


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
    """A short part of its name that ``--device`` takes for it alone: a word of its description where one will do."""
    words = [word.strip("()[],.:;").casefold() for word in microphone.description.split()]
    for word in words:
        if len(word) > 2 and find_source(all_of_them, word) is microphone and not word.isdecimal():
            others = [each for each in all_of_them if each is not microphone and word in f"{each.name} {each.description}".casefold()]
            if not others:
                return word
    return microphone.name
