"""What ``voice-asr listen`` shows: events -> lines that stay, and one line that is rewritten.

The events are those of the contract, as dictionaries. State: what was heard last. Nothing is printed here.
"""

from __future__ import annotations

from rich.cells import cell_len
from rich.text import Text

from voice.commands.formats import Event, local_time, speaker_of
from voice.models import embedded

_METER = 10
_QUIETEST_DBFS = -60.0
_LOUD_DBFS, _TOO_LOUD_DBFS = -12.0, -1.0
_STATES = {
    "starting": "starting",
    "loading": "loading models",
    "ready": "waiting for the microphone",
    "waiting": "waiting for the microphone",
    "listening": "listening",
    "unmuted": "listening",
    "audio_restored": "listening",
    "muted": "muted",
    "audio_lost": "the microphone is gone; it is looked for",
    "stopped": "stopped",
}
_ELLIPSIS = "…"


class Screen:
    """What was heard last. ``live``: a person speaks to it now, so that what to expect of the model is worth a line."""

    def __init__(self, *, live: bool = False) -> None:
        self._live = live
        self._state = "starting"
        self._device = ""
        self._level: float | None = None
        self._stable = self._tail = ""

    def accept(self, event: Event) -> list[Text]:
        """Take an event; the lines that it adds for good."""
        kind = event.get("type")
        if kind == "voice.asr_text.partial":
            text, length = event["text"], event.get("stable_chars", 0)
            self._stable, self._tail = text[:length], text[length:]
        elif kind == "voice.asr_text.final":
            self._stable = self._tail = ""
            return [_final_line(event)]
        elif kind == "core.status_event":
            self._state = event["state"]
            self._device = event.get("device") or self._device
            if self._live and event.get("model") == embedded.NAME:
                return [Text(f"{embedded.EXPECTATION}; {embedded.REMEDY}", style="yellow")]
        elif kind == "core.level_event":
            level = event.get("level")
            self._level = level["peak_dbfs"] if level else None
        elif kind == "core.error_event":
            return [
                Text(
                    f"{local_time(event.get('ts'))}  {event['message'].partition(': ')[2] or event['message']}",
                    style="yellow" if event["recoverable"] else "red",
                )
            ]
        return []

    def line(self, width: int) -> Text:
        """The line that is rewritten: a meter and the text, or the device and what is going on; never wider than ``width`` cells."""
        line = _meter(self._level)
        text = self._stable + self._tail
        if not text:
            state = _STATES.get(self._state, self._state)
            device = f" · {self._device}" if self._device and self._state != "stopped" else ""
            line.append(f" {state}{device}", style="dim")
            line.truncate(width, overflow="ellipsis")
            return line
        room = width - line.cell_len - 1
        hidden = len(text) - _fitting(text, room)
        stable = len(self._stable)
        line.append(" ")
        if hidden:
            line.append(_ELLIPSIS, style="dim")
        line.append(text[hidden : max(stable, hidden)])
        line.append(text[max(stable, hidden) :], style="dim")
        return line


def _fitting(text: str, room: int) -> int:
    """How many characters from the end of a text fit; where not all do, one cell is for the ellipsis."""
    if cell_len(text) <= room:
        return len(text)
    used, number = cell_len(_ELLIPSIS), 0
    for character in reversed(text):
        used += cell_len(character)
        if used > room:
            break
        number += 1
    return number


def _meter(peak_dbfs: float | None) -> Text:
    """A bar from -60 dBFS to full scale."""
    level = _QUIETEST_DBFS if peak_dbfs is None else peak_dbfs
    filled = round(_METER * min(max(1 - level / _QUIETEST_DBFS, 0.0), 1.0))
    style = "red" if level > _TOO_LOUD_DBFS else "yellow" if level > _LOUD_DBFS else "green"
    meter = Text()
    meter.append("▮" * filled, style=style)
    meter.append("▯" * (_METER - filled), style="dim")
    return meter


def _final_line(event: Event) -> Text:
    """Time, speaker, text, emotion, confidence."""
    line = Text(f"{local_time(event.get('ts'))}  ", style="")
    if speaker := speaker_of(event):
        line.append(f"{speaker}  ", style="magenta")
    line.append(event["text"], style="bold")
    emotion = event.get("emotion")
    if emotion:
        line.append(f"  {emotion['label']}", style="cyan")
    if event["confidence"] is not None:
        line.append(f"  {event['confidence']:.2f}", style="dim")
    if event.get("lost_ms"):
        line.append(f"  {event['lost_ms']} ms of it lost", style="yellow")
    return line
