"""What the page of ``voice-asr report`` shows: recorded events -> sessions, utterances, problems, histograms. Pure: no files, no state.

A session is one run of the service: in a recording that several runs wrote to, ``seq`` begins anew with each.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from voice.commands.formats import KNOWN, Event, finals_of, speaker_of, spoken_places

SHADES = (0.9, 0.75, 0.6, 0.4)
"""A token whose confidence is below the first has shade 1, below the second shade 2, and so on."""
_STEPS_MS = (5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
_BINS = 20


@dataclass(frozen=True, slots=True)
class Run:
    """A piece of text of one confidence."""

    text: str
    shade: int
    """0 (sure) to ``len(SHADES)``."""
    confidence: float | None
    """Of its least certain token; None where it has none, such as a mark."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """A final."""

    trace_id: str
    ts: int | None
    """Wall clock of its line, ms since the epoch."""
    start_ms: int
    end_ms: int
    text: str
    runs: tuple[Run, ...]
    confidence: float | None
    """None where a server recognised."""
    emotion: str | None
    speaker: str
    """Name or label; empty where there is none."""
    rms_dbfs: float | None
    lost_ms: int
    latency_ms: int | None
    """From its last speech sample to its line; None where silence did not end it, or the recording is older than ``captured_ts``."""

    @property
    def duration_ms(self) -> int:
        """Length of the speech."""
        return max(self.end_ms - self.start_ms, 0)


@dataclass(frozen=True, slots=True)
class Problem:
    """An error event."""

    ts: int | None
    at_ms: int
    """On the audio clock, as far as it was known: the end of the last audio that an event before it spoke of."""
    code: str
    message: str
    recoverable: bool


@dataclass(frozen=True, slots=True)
class Session:
    """One run of the service."""

    began_ts: int | None
    input: str | None
    """Name of the microphone, or of the file."""
    utterances: tuple[Utterance, ...]
    problems: tuple[Problem, ...]
    levels: tuple[tuple[int, float | None], ...]
    """(end_ms, peak in dBFS) of the level events; None while muted, and where the microphone was lost."""
    partial_latencies_ms: tuple[int, ...]
    length_ms: int
    """Of the audio, as far as events spoke of it."""
    lost_ms: int
    """Of all audio, where the session says its totals; else of the utterances."""

    @property
    def pauses_ms(self) -> list[int]:
        """Between each utterance and the next."""
        return [max(later.start_ms - before.end_ms, 0) for before, later in itertools.pairwise(self.utterances)]


@dataclass(frozen=True, slots=True)
class Bin:
    """One bar of a histogram: values from ``low`` to below ``high``; the last one also holds all above."""

    low: float
    high: float
    count: int


def sessions_of(events: Sequence[Event]) -> list[Session]:
    """The sessions of a recording, each of which has at least one event."""
    groups: list[list[Event]] = []
    last_seq = 0
    for event in events:
        seq = event.get("seq") or last_seq + 1
        if not groups or seq <= last_seq:
            groups.append([])
        groups[-1].append(event)
        last_seq = seq
    return [_session(group) for group in groups]


def histogram(values: Iterable[float], step: float, bins: int) -> list[Bin]:
    """How many values lie in each of ``bins`` steps from 0; the last bin also holds all above."""
    counts = [0] * bins
    for value in values:
        counts[min(max(int(value / step + 1e-9), 0), bins - 1)] += 1
    return [Bin(place * step, (place + 1) * step, count) for place, count in enumerate(counts)]


def times_histogram(values_ms: Sequence[int]) -> list[Bin]:
    """A histogram of lengths of time whose bins are wide enough for 95 of 100 values."""
    if not values_ms:
        return []
    most = sorted(values_ms)[int(0.95 * (len(values_ms) - 1))]
    step = next((step for step in _STEPS_MS if most < step * _BINS), _STEPS_MS[-1])
    return histogram(values_ms, step, min(most // step + 2, _BINS))


def median(values: Iterable[float]) -> float | None:
    """The median; None of nothing."""
    listed = list(values)
    return statistics.median(listed) if listed else None


def runs_of(final: Event) -> tuple[Run, ...]:
    """The text of a final in pieces of one shade; what no token stands for joins the piece before it."""
    runs: list[Run] = []
    places = spoken_places(final["text"], final)
    for place, character in enumerate(final["text"]):
        spoken = places.get(place)
        confidence = spoken.token.get("confidence") if spoken else None
        shade = sum(confidence < limit for limit in SHADES) if confidence is not None else runs[-1].shade if runs else 0
        if runs and runs[-1].shade == shade:
            known = [each for each in (runs[-1].confidence, confidence) if each is not None]
            runs[-1] = Run(runs[-1].text + character, shade, min(known, default=None))
        else:
            runs.append(Run(character, shade, confidence))
    return tuple(runs)


def _session(events: Sequence[Event]) -> Session:
    problems, levels, reached = [], [], 0
    for event in events:
        if event["type"] in KNOWN:
            reached = max(reached, event.get("end_ms") or 0)
        if event["type"] == "core.error_event":
            code, message = event.get("error_code") or "", event["message"]
            problems.append(Problem(event.get("ts"), reached, code, message, event["recoverable"]))
        elif event["type"] == "core.level_event":
            level = event.get("level")
            levels.append((reached, level["peak_dbfs"] if level else None))
        elif event.get("state") == "audio_lost":
            levels.append((reached, None))
    utterances = sorted(map(_utterance, finals_of(events)), key=lambda each: each.start_ms)
    totals = next((event["totals"] for event in reversed(events) if event["type"] == "core.status_event" and event.get("totals")), None)
    partials = (event for event in events if event["type"] == "voice.asr_text.partial")
    return Session(
        began_ts=next((event["captured_ts"] - event["end_ms"] for event in events if _tells_the_time(event)), _first_ts(events)),
        input=next((event["device"] for event in events if event["type"] == "core.status_event" and event.get("device")), None),
        utterances=tuple(utterances),
        problems=tuple(problems),
        levels=tuple(levels),
        partial_latencies_ms=tuple(each for each in map(_latency_ms, partials) if each is not None),
        length_ms=max(reached, totals["audio_ms"] if totals else 0),
        lost_ms=totals["lost_ms"] if totals else sum(each.lost_ms for each in utterances),
    )


def _tells_the_time(event: Event) -> bool:
    """Whether it says when its audio was captured."""
    return event["type"] in KNOWN and bool(event.get("captured_ts")) and event.get("end_ms") is not None


def _first_ts(events: Sequence[Event]) -> int | None:
    return next((event["ts"] for event in events if event.get("ts")), None)


def _utterance(final: Event) -> Utterance:
    start_ms = max(final["start_ms"], 0)
    return Utterance(
        trace_id=final["trace_id"],
        ts=final.get("ts"),
        start_ms=start_ms,
        end_ms=max(final["end_ms"], start_ms),
        text=final["text"],
        runs=runs_of(final),
        confidence=final["confidence"],
        emotion=(final.get("emotion") or {}).get("label"),
        speaker=speaker_of(final),
        rms_dbfs=(final.get("level") or {}).get("rms_dbfs"),
        lost_ms=final.get("lost_ms") or 0,
        latency_ms=_latency_ms(final) if final.get("endpoint") == "silence" else None,
    )


def _latency_ms(event: Event) -> int | None:
    """From the capture of the last sample to the line; None where either is not told."""
    return max(event["ts"] - event["captured_ts"], 0) if event.get("ts") and event.get("captured_ts") else None
