"""Recorded events -> text, subtitles, a table. Pure: no files, no state.

The events are those of the published contract (docs/events.md), as dictionaries: one line of JSON each.
"""

from __future__ import annotations

import bisect
import csv
import difflib
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

Event = dict[str, Any]

MAX_LINE_CHARACTERS = 20
"""Of a subtitle: what is read at a glance, and fits a phone held upright."""
_FINAL, _EMOTION, _SPEAKER = "voice.asr_text.final", "voice.asr_text.emotion", "voice.asr_text.speaker"
_SENTENCE_ENDS = "。？！?!…"
_CLAUSE_ENDS = "，、；：,;:"
_DROPPED_AT_END = "，、。；：,;:"
"""A subtitle ends without them; what asks or calls keeps its mark."""
_CLAUSE = re.compile(rf".*?[{_SENTENCE_ENDS}{_CLAUSE_ENDS}]+|.+$", re.DOTALL)
_WORD = re.compile(r"[A-Za-z0-9'.%:]+|\s+|.", re.DOTALL)
_SHORTEST_CUE_MS = 500
_SPAN: dict[str, Any] = {"start_ms": int, "end_ms": int}
_LABEL: dict[str, Any] = {"label": str, "confidence": int | float}
_WHO: dict[str, Any] = {"label": str, "name": (None, str)}
_NEEDED: dict[str, dict[str, Any]] = {
    "voice.asr_text.partial": {"text": str, "stable_chars": int},
    _FINAL: {
        "trace_id": str,
        "text": str,
        "confidence": (None, int | float),
        "emotion": (None, _LABEL),
        **_SPAN,
        "tokens": [{"text": str, "confidence": (None, int | float), **_SPAN}],
        "level": (None, {"rms_dbfs": int | float}),
        "endpoint": (None, str),
        "lost_ms": (None, int),
        "speaker": (None, _WHO),
    },
    _EMOTION: {"trace_id": str, **_LABEL},
    _SPEAKER: {"trace_id": str, **_WHO},
    "voice.speech.ended": {},
    "core.error_event": {"message": str, "recoverable": bool, "error_code": (None, str)},
    "core.status_event": {"state": str, "device": (None, str), "totals": (None, {"audio_ms": int, "lost_ms": int})},
    "core.level_event": {"level": (None, {"peak_dbfs": int | float})},
}
"""What is read of each kind of event, here, on the screen and in the report: types, [of elements], (alternatives)."""
KNOWN = frozenset(_NEEDED)
"""Kinds of events whose keys were checked."""
_ALWAYS = {"ts": (None, int), "seq": (None, int)}
_OF_KNOWN = {"end_ms": (None, int), "captured_ts": (None, int)}
"""Where a known event has them; what a later version means by them in its own events is not known."""
_LARGEST = 2**53
"""Of numbers: larger ones are not exact as floating point, and no time that can be shown."""
_COLUMNS = ("start_ms", "end_ms", "text", "confidence", "emotion", "endpoint", "trace_id")


@dataclass(frozen=True, slots=True)
class Cue:
    """One subtitle."""

    start_ms: int
    end_ms: int
    text: str


def check_event(event: object) -> Event:
    """An event that the other functions can work with; keys beyond those are not looked at.

    Raises:
        ValueError: it is none.
    """
    if not (isinstance(event, dict) and isinstance(event.get("type"), str)):
        raise ValueError("no event of this service")  # noqa: TRY004 -- of a file, not of a caller
    own = _NEEDED.get(event["type"])
    needed = [*_ALWAYS.items()] if own is None else [*_ALWAYS.items(), *own.items(), *_OF_KNOWN.items()]
    wrong = [key for key, kind in needed if not _fits(event.get(key), kind)]
    if wrong:
        raise ValueError(f"an event {event['type']} without a right {wrong[0]}")
    return event


def _fits(value: object, needed: Any) -> bool:
    """Whether a value has what ``_NEEDED`` says of it."""
    if isinstance(needed, dict):
        return isinstance(value, dict) and all(_fits(value.get(key), kind) for key, kind in needed.items())
    if isinstance(needed, list):
        return isinstance(value, list) and all(_fits(each, needed[0]) for each in value)
    if isinstance(needed, tuple):
        return any(_fits(value, kind) for kind in needed)
    if isinstance(value, bool):
        return needed is bool
    if isinstance(value, int | float) and not abs(value) <= _LARGEST:  # nor is NaN
        return False
    return value is None if needed is None else isinstance(value, needed)


def local_time(ts_ms: int | None, *, date: bool = False) -> str:
    """``23:59:59`` of ms since the epoch, with the date on demand; nothing of None, and of what no calendar holds."""
    try:
        moment = datetime.fromtimestamp((ts_ms or 0) / 1000).astimezone()
    except (ValueError, OverflowError, OSError):
        return ""
    return "" if ts_ms is None else moment.strftime("%Y-%m-%d %H:%M:%S" if date else "%H:%M:%S")


def finals_of(events: Iterable[Event]) -> list[Event]:
    """The finals in their order, each with its emotion and its speaker, also where these came in events of their own."""
    finals: dict[str, Event] = {}
    for event in events:
        if event.get("type") == _FINAL:
            finals[event["trace_id"]] = event
        elif event.get("type") == _EMOTION and (final := finals.get(event["trace_id"])) and not final.get("emotion"):
            finals[event["trace_id"]] = {**final, "emotion": {"label": event["label"], "confidence": event["confidence"]}}
        elif event.get("type") == _SPEAKER and (final := finals.get(event["trace_id"])) and not final.get("speaker"):
            finals[event["trace_id"]] = {**final, "speaker": {"label": event["label"], "name": event.get("name")}}
    return list(finals.values())


def speaker_of(final: Event) -> str:
    """The speaker's name, or else the label; nothing where there is none."""
    speaker = final.get("speaker") or {}
    return speaker.get("name") or speaker.get("label") or ""


def plain_text(events: Sequence[Event], *, emotion: bool = False) -> str:
    """A line for each final."""
    return "".join(f"{_prefix(final, emotion=emotion)}{final['text']}\n" for final in finals_of(events))


def subrip(events: Sequence[Event], *, emotion: bool = False) -> str:
    """SubRip: .srt."""
    blocks = (
        f"{number}\n{_clock(cue.start_ms, ',')} --> {_clock(cue.end_ms, ',')}\n{cue.text}\n"
        for number, cue in enumerate(cues_of(events, emotion=emotion), 1)
    )
    return "\n".join(blocks)


def web_vtt(events: Sequence[Event], *, emotion: bool = False) -> str:
    """WebVTT: .vtt."""
    blocks = (
        f"{_clock(cue.start_ms, '.')} --> {_clock(cue.end_ms, '.')}\n{_escaped(cue.text)}\n" for cue in cues_of(events, emotion=emotion)
    )
    return "\n".join(("WEBVTT\n", *blocks))


def table(events: Sequence[Event], *, emotion: bool = False) -> str:
    """Comma separated values, a row for each final. The emotion has a column of its own, and so has the speaker where finals name one."""
    del emotion
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    finals = finals_of(events)
    columns = (*_COLUMNS, "speaker") if any("speaker" in final for final in finals) else _COLUMNS
    writer.writerow(columns)
    for final in finals:
        row = {**final, "emotion": (final.get("emotion") or {}).get("label", ""), "speaker": speaker_of(final)}
        cells = ["" if row.get(column) is None else str(row[column]) for column in columns]
        writer.writerow([cell.replace("\0", "\ufffd") for cell in cells])  # Python 3.10 writes no NUL
    return text.getvalue()


def json_lines(events: Sequence[Event], *, emotion: bool = False) -> str:
    """The events themselves."""
    del emotion
    return "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events)


WRITERS: dict[str, Callable[..., str]] = {
    "txt": plain_text, "srt": subrip, "vtt": web_vtt, "jsonl": json_lines, "csv": table
}  # fmt: skip
"""By the ending of their files."""


def cues_of(events: Sequence[Event], *, emotion: bool = False) -> list[Cue]:
    """The subtitles of all finals, none before the end of the one before."""
    found = [cue for final in finals_of(events) for cue in cues(final, emotion=emotion)]
    ends = [later.start_ms for later in found[1:]]
    return [
        Cue(cue.start_ms, max(min(max(cue.end_ms, cue.start_ms + _SHORTEST_CUE_MS), end), cue.start_ms + 1), cue.text)
        for cue, end in itertools.zip_longest(found, ends, fillvalue=2**62)
        if isinstance(cue, Cue)
    ]


def cues(final: Event, *, emotion: bool = False) -> list[Cue]:
    """A final as subtitles: cut at marks, and between words where a clause is too long, by the times of the tokens.

    Args:
        final: the event.
        emotion: begin the first one with the emotion, ``[happy]``.
    """
    text: str = final["text"]
    spans = _character_times(text, final)
    found, position = [], 0
    for piece in _pieces(text):
        first, position = position, position + len(piece)
        words = [spans[place] for place in range(first, position) if text[place].isalnum()]
        shown = piece.strip().rstrip(_DROPPED_AT_END)
        if shown and words:
            found.append(Cue(words[0][0], max(words[-1][1], words[0][0] + 1), shown))
    if found and (prefix := _prefix(final, emotion=emotion)):
        found[0] = Cue(found[0].start_ms, found[0].end_ms, prefix + found[0].text)
    return found


def _prefix(final: Event, *, emotion: bool) -> str:
    """Speaker and, on demand, emotion: ``妈妈: [happy] ``."""
    label = (final.get("emotion") or {}).get("label")
    speaker = speaker_of(final)
    return (f"{speaker}: " if speaker else "") + (f"[{label}] " if emotion and label else "")


def _pieces(text: str) -> list[str]:
    """``text`` in parts of at most ``MAX_LINE_CHARACTERS``: whole clauses, as many as fit, none across the end of a sentence."""
    pieces: list[str] = []
    open_length = 0
    for clause in _CLAUSE.findall(text):
        length = len(clause.strip().rstrip(_DROPPED_AT_END))
        if pieces and open_length and open_length + length <= MAX_LINE_CHARACTERS:
            pieces[-1] += clause
        else:
            parts = _shares(clause, -(-length // MAX_LINE_CHARACTERS)) if length > MAX_LINE_CHARACTERS else [clause]
            pieces += parts
        open_length = 0 if clause.rstrip()[-1:] in _SENTENCE_ENDS else len(pieces[-1])
    return pieces


def _shares(clause: str, number: int) -> list[str]:
    """A clause without marks in about equal parts, cut between words; a word that is too long for a line keeps its own."""
    aim = -(-len(clause) // number)
    parts = [""]
    for word in _WORD.findall(clause):
        if parts[-1] and len((parts[-1] + word).rstrip(_DROPPED_AT_END)) > min(max(aim, 1), MAX_LINE_CHARACTERS):
            parts.append("")
        parts[-1] += word
    return parts


@dataclass(frozen=True, slots=True)
class Spoken:
    """Of which token a character of the text is."""

    token: Event
    share: int
    """Which of the characters of the token it is, from 0."""
    shares: int
    """How many the token has."""


def spoken_places(text: str, final: Event) -> dict[int, Spoken]:
    """Place in ``text`` -> the token behind it; marks, numbers in digits and repaired characters have none."""
    spoken: list[tuple[str, Spoken]] = []
    for token in final.get("tokens") or ():
        characters = [each for each in token["text"].replace("@@", "") if each.isalnum()]
        spoken += [(each.lower()[:1], Spoken(token, place, len(characters))) for place, each in enumerate(characters)]
    folded = "".join(each.lower() if len(each.lower()) == 1 else each for each in text)
    matcher = difflib.SequenceMatcher(None, folded, "".join(each for each, _ in spoken), autojunk=False)
    blocks = matcher.get_matching_blocks()
    return {block.a + place: spoken[block.b + place][1] for block in blocks for place in range(block.size)}


def _character_times(text: str, final: Event) -> list[tuple[int, int]]:
    """(start, end) in ms of every character of ``text``; what no token stands for lies between its neighbours."""
    known = {}
    for place, spoken in spoken_places(text, final).items():
        first, length = spoken.token["start_ms"], spoken.token["end_ms"] - spoken.token["start_ms"]
        known[place] = (first + length * spoken.share // spoken.shares, first + length * (spoken.share + 1) // spoken.shares)
    places = sorted(known)
    spans = []
    for place in range(len(text)):
        at = bisect.bisect_left(places, place)
        start = known[places[at - 1]][1] if at else final["start_ms"]
        end = known[places[at]][0] if at < len(places) else final["end_ms"]
        spans.append(known.get(place, (start, max(start, end))))
    return spans


def _clock(ms: int, point: str) -> str:
    """``01:02:03,456``."""
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{ms:03}"


def _escaped(text: str) -> str:
    """As WebVTT wants text."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
