"""The page of ``voice-asr report``: sessions -> HTML with inline SVG, which loads nothing. Pure: no files but its template, no state.

Lengths are in the units of the drawings: a timeline is ``WIDTH`` wide. jinja2 escapes every text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import jinja2

from voice.commands.formats import local_time
from voice.commands.report_data import Bin, Problem, Session, Utterance, histogram, median, times_histogram
from voice.transcript import EmotionName

WIDTH, ROW, GAP = 1_000, 46, 16
"""Of a timeline: its width, the height of a row, and what lies between two rows for the times."""
_CHART_WIDTH, _CHART_HEIGHT = 300, 110
_ROW_LENGTHS_SEC = (15, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 21_600, 86_400)
_MOST_ROWS = 30
_QUIETEST_DBFS = -60.0
_EMOTIONS = frozenset(get_args(EmotionName))


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle of a drawing."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    """Class of its colour."""
    title: str
    """What it says to whoever points at it."""


@dataclass(frozen=True, slots=True)
class Label:
    """A text in a drawing."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """What stands in one SVG."""

    width: float
    height: float
    bars: tuple[Bar, ...] = ()
    lines: tuple[str, ...] = ()
    """Points of polylines."""
    labels: tuple[Label, ...] = ()


def page(title: str, sessions: Sequence[Session]) -> str:
    """The whole page.

    Args:
        title: name of the recording.
        sessions: of it, perhaps none.
    """
    utterances = [each for session in sessions for each in session.utterances]
    confidences = [each.confidence for each in utterances if each.confidence is not None]
    problems = [each for session in sessions for each in session.problems]
    latencies = [each.latency_ms for each in utterances if each.latency_ms is not None]
    partial_latencies = [each for session in sessions for each in session.partial_latencies_ms]
    pauses = [each for session in sessions for each in session.pauses_ms]
    charts = (
        ("confidence of the utterances", chart(histogram(confidences, 0.05, 20), "")),
        ("pauses between utterances", chart(times_histogram(pauses), "ms")),
        ("from the end of speech to the final", chart(times_histogram(latencies), "ms")),
        ("from the audio to its partial", chart(times_histogram(partial_latencies), "ms")),
    )
    drawn = [(session, timeline(session)) for session in sessions]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["clock"] = local_time
    environment.filters["audio_clock"] = audio_clock
    return environment.get_template("report.html.j2").render(
        title=title,
        facts=_facts(sessions, utterances, problems, latencies),
        sessions=drawn,
        charts=[(name, drawing) for name, drawing in charts if drawing.bars],
        emotions=Counter(_emotion(each.emotion) for each in utterances).most_common(),
        problems=problems,
        has_level=any(drawing.lines for _, drawing in drawn),
        has_loss=any(each.lost_ms for each in utterances),
    )


def timeline(session: Session) -> Drawing:
    """Utterances, coloured by emotion, and errors, in rows of equal length; the level as a line."""
    length_ms = max(session.length_ms, 1)
    row_ms = 1_000 * next(
        (each for each in _ROW_LENGTHS_SEC if length_ms <= each * 1_000 * _MOST_ROWS), -(-length_ms // (1_000 * _MOST_ROWS))
    )
    rows = -(-length_ms // row_ms)
    bars: list[Bar] = []
    for each in session.utterances:
        said = f"{audio_clock(each.start_ms)}  {each.text}  {_emotion(each.emotion)}{_sureness(each.confidence)}"
        kind = f"{_emotion(each.emotion)}{' lost' if each.lost_ms else ''}"
        bars += _split(each.start_ms, max(each.end_ms, each.start_ms + 1), row_ms, kind, said)
    for problem in session.problems:
        at = min(problem.at_ms, length_ms - 1)
        kind = "problem" if problem.recoverable else "fatal"
        bars.append(Bar(_x(at % row_ms, row_ms), _y(at // row_ms) - 3, 3, ROW + 6, kind, f"{problem.code}: {problem.message}"))
    labels = tuple(Label(0, _y(row) - 4, audio_clock(row * row_ms)) for row in range(rows))
    return Drawing(WIDTH, rows * (ROW + GAP), tuple(bars), _level_lines(session, row_ms), labels)


def chart(bins: Sequence[Bin], unit: str) -> Drawing:
    """A histogram; nothing where there is nothing to count."""
    most = max((each.count for each in bins), default=0)
    if not most:
        return Drawing(_CHART_WIDTH, 0)
    width = _CHART_WIDTH / len(bins)
    base = _CHART_HEIGHT - 18
    bars = tuple(
        Bar(place * width + 1, base - height, width - 2, height, "bin", f"{_number(each.low)} to {_number(each.high)} {unit}: {each.count}")
        for place, each in enumerate(bins)
        if (height := (base - 14) * each.count / most)
    )
    last = bins[-1]
    labels = (
        Label(0, _CHART_HEIGHT - 4, _number(bins[0].low)),
        Label(_CHART_WIDTH / 2, _CHART_HEIGHT - 4, _number(last.high / 2)),
        Label(_CHART_WIDTH, _CHART_HEIGHT - 4, f"{_number(last.high)} {unit}".strip()),
        Label(0, 10, f"{most}"),
    )
    return Drawing(_CHART_WIDTH, _CHART_HEIGHT, bars, (), labels)


def audio_clock(ms: int) -> str:
    """``1:02:03.4`` of a position in audio."""
    seconds, ms = divmod(ms, 1_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}.{ms // 100}" if hours else f"{minutes}:{seconds:02}.{ms // 100}"


def _facts(
    sessions: Sequence[Session], utterances: Sequence[Utterance], problems: Sequence[Problem], latencies: Sequence[int]
) -> list[tuple[str, str]]:
    """(name, value) of what stands at the top."""
    speech_ms = sum(each.duration_ms for each in utterances)
    latency, confidence = median(latencies), median(each.confidence for each in utterances if each.confidence is not None)
    inputs = sorted({session.input for session in sessions if session.input})
    facts = [
        ("utterances", f"{len(utterances)}"),
        ("audio", audio_clock(sum(session.length_ms for session in sessions))),
        ("speech", audio_clock(speech_ms)),
        ("median confidence", "–" if confidence is None else f"{confidence:.2f}"),
        ("median time to the final", "–" if latency is None else f"{latency:.0f} ms"),
        ("errors", f"{len(problems)}"),
        ("audio lost", f"{sum(session.lost_ms for session in sessions)} ms"),
    ]
    return facts + [("input", ", ".join(inputs))] * bool(inputs) + [("runs", f"{len(sessions)}")] * (len(sessions) > 1)


def _sureness(confidence: float | None) -> str:
    return "" if confidence is None else f"  {confidence:.2f}"


def _emotion(label: str | None) -> str:
    """A class of the page's colours."""
    return label if label is not None and label in _EMOTIONS else "none"


def _split(start_ms: int, end_ms: int, row_ms: int, kind: str, title: str) -> list[Bar]:
    """The bars of a span, one in each row that it touches."""
    bars = []
    for row in range(start_ms // row_ms, (end_ms - 1) // row_ms + 1):
        first, last = max(start_ms, row * row_ms) - row * row_ms, min(end_ms, (row + 1) * row_ms) - row * row_ms
        bars.append(Bar(_x(first, row_ms), _y(row), max(_x(last - first, row_ms), 1), ROW, kind, title))
    return bars


def _level_lines(session: Session, row_ms: int) -> tuple[str, ...]:
    """Polylines of the level: of the level events, else a level line across each utterance."""
    points: list[tuple[int, float | None]] = list(session.levels)
    if not points:
        for each in session.utterances:
            points += [(each.start_ms + 1, each.rms_dbfs), (each.end_ms, each.rms_dbfs), (each.end_ms, None)]
    lines: list[list[str]] = [[]]
    row_before = -1
    for at_ms, level in points:
        row = max(at_ms - 1, 0) // row_ms
        if row != row_before or level is None:
            lines.append([])
        row_before = row
        if level is not None:
            loud = min(max(1 - level / _QUIETEST_DBFS, 0.0), 1.0)
            lines[-1].append(f"{_x(max(at_ms - 1, 0) % row_ms, row_ms):g},{_y(row) + ROW * (1 - loud):.1f}")
    return tuple(" ".join(each) for each in lines if len(each) > 1)


def _x(ms: int, row_ms: int) -> float:
    return round(WIDTH * ms / row_ms, 2)


def _y(row: int) -> int:
    return row * (ROW + GAP) + GAP - 2


def _number(value: float) -> str:
    return f"{value:.4g}"
