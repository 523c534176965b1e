"""Pictures of the commands for the documentation: each command runs in a terminal, and its screen is written to docs/pictures as SVG.

``make test`` installs what this needs. The commands run in a clone of their own, because the pictures show its path::

    git clone . /home/user/voice-asr && make -C /home/user/voice-asr setup
    .venv/bin/python tools/terminal_pictures.py /home/user/voice-asr          # all, or those whose names follow
    .venv/bin/python tools/terminal_pictures.py /home/user/voice-asr page     # the page of the report, report.png: it needs Chromium

Bytes of a pseudo terminal -> cells (pyte) -> SVG. The text stays text. Every wide character has a position of its own, and every other
run of characters its width, so cells line up whatever fonts a browser has. ``Console.export_svg`` of rich does not do that: it gives a
run of Chinese characters half its width.
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np
import pyte
import soundfile
from pyte.screens import Char
from rich.cells import cell_len

if TYPE_CHECKING:
    from virtual_microphone import VirtualMicrophone

REPOSITORY = Path(__file__).resolve().parent.parent
PICTURES_DIRECTORY = REPOSITORY / "docs" / "pictures"
DEADLINE_SEC = 180.0
SETTLED_SEC = 0.05
"""A screen that nothing was written to for so long is no half of a change."""
PROMPT = b"\x1b[32m$\x1b[0m "

# --- the terminal -------------------------------------------------------------------------------------------------------

_NORMAL, _DIM, _BLINK, _NO_BLINK = 22, 2, 5, 25
_COLOUR = (38, 48)
_COLOUR_LENGTH = {5: 1, 2: 3}
"""Numbers that follow: an index, or red, green and blue."""


class Terminal(pyte.Screen):
    """What a terminal shows. pyte knows no dim text; ``blink`` stands for it here, since no command blinks."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__(columns, rows)
        self._stream = pyte.ByteStream(self)

    def feed(self, data: bytes) -> None:
        """Take what the terminal gets."""
        self._stream.feed(data)

    def draw(self, data: str) -> None:
        """Write text. A wide character that does not fit into the last cell goes to the next line, which pyte leaves out."""
        for character in data:
            if self.cursor.x == self.columns - 1 and cell_len(character) == 2:
                super().draw(" ")
            super().draw(character)

    def select_graphic_rendition(self, *attributes: int, **options: Any) -> None:
        """Colours and the like, with dim among them."""
        taken: list[int] = []
        given = iter(attributes)
        for each in given:
            if each in _COLOUR:
                kind = next(given, 0)
                taken += [each, kind, *itertools.islice(given, _COLOUR_LENGTH.get(kind, 0))]
            else:
                taken += {_DIM: (_BLINK,), _NORMAL: (_NORMAL, _NO_BLINK)}.get(each, (each,))
        super().select_graphic_rendition(*taken, **options)

    @property
    def written(self) -> list[str]:
        """The text, without blank lines at its end."""
        rows = [row.rstrip() for row in self.display]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    @property
    def text(self) -> str:
        """All of it; a line that is wider than the terminal stays cut."""
        return "\n".join(self.written)

    def cells(self, row: int) -> list[tuple[int, Char]]:
        """The characters of a row with their columns; the second cell of a wide character is left out."""
        line = self.buffer[row]
        return [(column, line[column]) for column in range(self.columns) if line[column].data]


# --- the picture --------------------------------------------------------------------------------------------------------

_FONT_PX, _WIDE_FONT_PX, _CELL_PX, _LINE_PX = 14, 16, 8.4, 19.0
_MARGIN_PX, _BAR_PX = 12.0, 26.0
_FONTS = "ui-monospace,'Cascadia Mono',Menlo,Consolas,'DejaVu Sans Mono','PingFang SC','Microsoft YaHei','Noto Sans CJK SC',monospace"
_BACKGROUND, _FOREGROUND = "#1e1e1e", "#d6d6d6"
_NAMES = "black red green brown blue magenta cyan white".split()
_HUES = dict(zip(_NAMES, "#4a4a4a #f47067 #6bc46d #e0b050 #6cb6ff #dcbdfb #56d4dd #d6d6d6".split(), strict=True))
_BRIGHT = dict(zip(_NAMES, "#8a8a8a #ff938a #8ddb8c #f0cf73 #96d0ff #eedcff #8ae6ee #ffffff".split(), strict=True))
_COLOURS = {**_HUES, **{f"bright{name}": colour for name, colour in _BRIGHT.items()}}
"""pyte calls yellow brown; other colours are hexadecimal there."""
_SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img">
<title>{title}</title>
<style>text{{font:{font}px {fonts};white-space:pre}}
.w{{font-size:{wide_font}px}}.b{{font-weight:bold}}.d{{fill-opacity:.6}}.u{{text-decoration:underline}}</style>
<rect width="{width:g}" height="{height:g}" rx="8" fill="{background}"/>
<g fill="#5a5a5a"><circle cx="18" cy="15" r="5"/><circle cx="36" cy="15" r="5"/><circle cx="54" cy="15" r="5"/></g>
<g transform="translate({margin:g},{bar:g})" fill="{foreground}">
{parts}
</g>
</svg>
"""


@dataclass(frozen=True, slots=True)
class _Style:
    fill: str
    background: str
    classes: tuple[str, ...]
    """b bold, d dim, u underlined."""


def svg_of(terminal: Terminal, title: str) -> str:
    """The screen as SVG, without the blank lines at its end."""
    rows = len(terminal.written)
    parts = [part for row in range(rows) for part in _row(terminal, row)]
    return _SVG.format(
        width=terminal.columns * _CELL_PX + 2 * _MARGIN_PX,
        height=rows * _LINE_PX + _BAR_PX + _MARGIN_PX,
        title=escape(title),
        font=_FONT_PX,
        wide_font=_WIDE_FONT_PX,
        fonts=_FONTS,
        foreground=_FOREGROUND,
        background=_BACKGROUND,
        margin=_MARGIN_PX,
        bar=_BAR_PX,
        parts="\n".join(parts),
    )


def picture_of(data: bytes, columns: int, rows: int, title: str = "") -> str:
    """What a terminal of that size shows after these bytes, as SVG."""
    terminal = Terminal(columns, rows)
    terminal.feed(data)
    return svg_of(terminal, title)


def _row(terminal: Terminal, row: int) -> Iterator[str]:
    """Neighbours of the same style and kind are one element."""
    for (style, kind), group in itertools.groupby(terminal.cells(row), lambda cell: (_style_of(cell[1]), _kind_of(cell[1].data))):
        run = list(group)
        column, text = run[0][0], "".join(character.data for _, character in run)
        cells = len(run) * (2 if kind == "wide" else 1)
        if style.background != _BACKGROUND:
            place = f'x="{column * _CELL_PX:g}" y="{row * _LINE_PX:g}" width="{cells * _CELL_PX:g}" height="{_LINE_PX:g}"'
            yield f'<rect {place} fill="{style.background}"/>'
        if kind != "plain":
            yield _text(column, row, text, style, kind)
            continue
        for words in re.finditer(r"\S+(?: \S+)*", text):  # wider gaps belong to tables
            yield _text(column + words.start(), row, words.group(), style, kind)


def _text(column: int, row: int, text: str, style: _Style, kind: str) -> str:
    x, y = column * _CELL_PX, row * _LINE_PX + 0.74 * _LINE_PX
    if kind == "wide":  # in the middle of its two cells
        places = " ".join(f"{x + index * 2 * _CELL_PX + (2 * _CELL_PX - _WIDE_FONT_PX) / 2:g}" for index in range(len(text)))
        where = f'x="{places}"'
    else:
        where = f'x="{x:g}" textLength="{len(text) * _CELL_PX:g}"'
        if kind == "symbols":  # they may come from a font of other widths, and bars have no gaps
            where += ' lengthAdjust="spacingAndGlyphs"'
    classes = " ".join(["w", *style.classes] if kind == "wide" else style.classes)
    look = f' class="{classes}"' if classes else ""
    look += f' fill="{style.fill}"' if style.fill != _FOREGROUND else ""
    return f'<text {where} y="{y:g}"{look}>{escape(text)}</text>'


def _style_of(character: Char) -> _Style:
    fill, background = _colour(character.fg, _FOREGROUND), _colour(character.bg, _BACKGROUND)
    if character.reverse:
        fill, background = background, fill
    marks = {"b": character.bold, "d": character.blink, "u": character.underscore}
    return _Style(fill, background, tuple(name for name, holds in marks.items() if holds))


def _colour(name: str, default: str) -> str:
    return default if name == "default" else _COLOURS.get(name) or f"#{name}"


def _kind_of(text: str) -> str:
    if cell_len(text) == 2:
        return "wide"
    return "plain" if text.isascii() else "symbols"


# --- what is shown ------------------------------------------------------------------------------------------------------

_FINAL = re.compile(r"\d\d:\d\d:\d\d  ")
_PERCENT = re.compile(r"(\d+) %")
_STABLE, _TAIL, _LOUD = 4, 2, 4


@dataclass(frozen=True, slots=True)
class Picture:
    """A command and the moment at which its screen is taken."""

    name: str
    command: str
    when: Callable[[Terminal], bool] | None = None
    """True of the screen that is wanted; without it the picture is taken when the command has ended."""
    columns: int = 100
    rows: int = 40
    speak_at: str = ""
    """Words on the screen at which somebody begins to speak."""
    spoken: tuple[str, ...] = ()
    """What is said: recordings of examples/."""


def finals(number: int) -> Callable[[Terminal], bool]:
    """So many finals are on the screen, and nothing is being said."""
    return lambda terminal: _count_finals(terminal) >= number and "listening" in terminal.written[-1]


def amid_an_utterance(number: int) -> Callable[[Terminal], bool]:
    """So many finals, and below them a meter and a text whose begin is stable and whose tail is dim."""

    def shown(terminal: Terminal) -> bool:
        line = [character for _, character in terminal.cells(terminal.cursor.y)]
        wide = [character for character in line if _kind_of(character.data) == "wide"]
        tail = sum(character.blink for character in wide)
        loud = sum(character.data == "▮" for character in line) >= _LOUD
        return _count_finals(terminal) >= number and loud and tail >= _TAIL and len(wide) - tail >= _STABLE

    return shown


def _count_finals(terminal: Terminal) -> int:
    return sum(bool(_FINAL.match(line)) for line in terminal.written)


def half_done(terminal: Terminal) -> bool:
    """A bar of progress is in its middle."""
    return any(40 <= int(percent) <= 75 for percent in _PERCENT.findall(terminal.text))


def says(words: str) -> Callable[[Terminal], bool]:
    """These words are on the screen."""
    return lambda terminal: words in terminal.text


LISTEN = "voice-asr listen --embedded"
TALKS = "voice-asr transcribe --embedded talks/ -f srt -o texts/ --speed"
QUESTIONS, TEMPERATURE, AIR_CONDITIONER = "two_utterances", "temperature", "air_conditioner"
PICTURES = (
    Picture("listen", LISTEN, amid_an_utterance(2), 72, 40, "listening", (QUESTIONS, TEMPERATURE)),
    Picture("listen-finals", LISTEN, finals(4), 72, 40, "listening", (QUESTIONS, TEMPERATURE, AIR_CONDITIONER)),
    Picture("transcribe", TALKS, half_done, 98),
    Picture("transcribe-end", f"{TALKS} && head -n 7 texts/monday.srt", None, 98),
    Picture("export", "voice-asr export asr_output.jsonl -f srt -o -", None, 84),
    Picture("report", "voice-asr report asr_output.jsonl --force", None, 84),
    Picture("devices", "voice-asr devices", None, 96),
    Picture("models", "voice-asr models list", None, 112),
    Picture("doctor", "voice-asr doctor", None, 132, 40, "speak for", (QUESTIONS,)),
    Picture("help", "voice-asr --help", None, 100, 60),
    Picture("misspelt-flag", "voice-asr listen --embeded", None, 96),
    Picture("run", "voice-asr run --embedded", says("utterance_finished"), 128, 60, "pipeline_built", (AIR_CONDITIONER,)),
)

PAGE = "page"
_PAGE_SIZE = "1060,1180"
_READ_ALOUD_SEC = 60

# --- the commands -------------------------------------------------------------------------------------------------------

_TALKS = {"monday": 9, "tuesday": 7, "wednesday": 11, "thursday": 8}
"""Recordings to transcribe: how often each says all examples."""
_RATE_HZ = 16_000
_NOISE = 0.0005
"""Of the room, RMS: a microphone is never quite silent."""
_CALLED = "Virtual Microphone"
_NOT_INHERITED = ("VOICE_ASR__", "XDG_", "PYTHON", "HF_", "MODELSCOPE_", "PULSE_", "LC_")


def main() -> int:
    """Take the pictures; 1 where one could not be taken."""
    parser = argparse.ArgumentParser(description="Take the pictures of the documentation.")
    parser.add_argument("checkout", type=Path, help="a clone with its .venv, at a path that may be seen")
    parser.add_argument("names", nargs="*", choices=[*(each.name for each in PICTURES), PAGE, []], metavar="NAME", help="default: all")
    arguments = parser.parse_args()
    checkout = arguments.checkout.resolve()
    failed = False
    with _room(checkout) as room:
        for picture in PICTURES:
            if arguments.names and picture.name not in arguments.names:
                continue
            try:
                svg = room.take(picture)
            except NotShown as error:
                failed = True
                print(f"{picture.name}: {error}")
                continue
            target = PICTURES_DIRECTORY / f"{picture.name}.svg"
            target.write_text(svg, encoding="utf-8")
            print(f"{target.relative_to(REPOSITORY)}: {len(svg.encode()) / 1000:.1f} kB")
        if PAGE in arguments.names:
            room.photograph_report(PICTURES_DIRECTORY / "report.png")
    return int(failed)


class NotShown(Exception):
    """A command never showed what its picture needs."""


@contextmanager
def _room(checkout: Path) -> Iterator[Room]:
    """A microphone, the command ``voice-asr``, and recordings to work on."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from virtual_microphone import VirtualMicrophone

    directory = Path(tempfile.mkdtemp(prefix="pictures-"))
    microphone = VirtualMicrophone(directory)
    try:
        microphone.start()
        _connect(microphone)
        room = Room(checkout, microphone)
        room.prepare()
        yield room
    finally:
        microphone.stop()
        shutil.rmtree(directory)


def _connect(microphone: VirtualMicrophone) -> None:
    """A microphone that is no monitor, beside the monitor of loudspeakers, as a desktop has them."""
    microphone.unplug()
    sink = "sink_properties=device.description=Speakers"
    microphone.control("load-module", "module-null-sink", f"sink_name={microphone.sink}", "rate=48000", "channels=2", sink)
    properties = f"source_properties='device.description=\"{_CALLED}\"'"
    microphone.control("load-module", "module-remap-source", "source_name=microphone", "master=speaker.monitor", "channels=1", properties)
    microphone.control("set-default-source", "microphone")


class Room:
    """Where somebody sits before a terminal and speaks."""

    def __init__(self, checkout: Path, microphone: VirtualMicrophone) -> None:
        self._checkout = checkout
        self._microphone = microphone
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
        self._environment = {
            **inherited,
            "PATH": f"{microphone.directory}:{os.environ['PATH']}",
            "HOME": str(checkout.parent),
            "LC_ALL": "C.UTF-8",
            "TERM": "xterm-256color",
            "PULSE_SERVER": microphone.variables["PULSE_SERVER"],
        }

    def prepare(self) -> None:
        """What the commands need: their name, a room's noise, recordings, and recorded events."""
        command = self._microphone.directory / "voice-asr"
        start = "from voice.commands.main import main; raise SystemExit(main())"
        command.write_text(f"#!/bin/sh\nexec {self._checkout}/.venv/bin/python -c '{start}' \"$@\"\n", encoding="utf-8")
        command.chmod(0o755)
        noise = np.random.default_rng(0).normal(0, _NOISE, int(DEADLINE_SEC) * _RATE_HZ)
        soundfile.write(self._microphone.directory / "noise.wav", noise, _RATE_HZ)
        everything = np.concatenate([soundfile.read(path)[0] for path in self._recordings()])
        (self._checkout / "talks").mkdir(exist_ok=True)
        for name, times in _TALKS.items():
            soundfile.write(self._checkout / "talks" / f"{name}.wav", np.tile(everything, times), _RATE_HZ)
        recorded = "voice-asr run --embedded --input examples/two_utterances.wav > asr_output.jsonl"
        subprocess.run(["sh", "-c", recorded], cwd=self._checkout, env=self._environment, check=True, stderr=subprocess.DEVNULL)

    def _recordings(self) -> list[Path]:
        return sorted((self._checkout / "examples").glob("*.wav"))

    def take(self, picture: Picture) -> str:
        """Run a command until its screen shows what is wanted; that screen as SVG.

        Raises:
            NotShown: it never did, or the command's first line is gone.
        """
        shutil.rmtree(self._checkout / "texts", ignore_errors=True)
        terminal = Terminal(picture.columns, picture.rows)
        terminal.feed(PROMPT + f"{picture.command}\r\n".encode())
        leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", picture.rows, picture.columns, 0, 0))
        noise = self._microphone.begin_to_play(self._microphone.directory / "noise.wav")
        process = subprocess.Popen(
            ["sh", "-c", picture.command],
            cwd=self._checkout,
            env=self._environment,
            stdin=follower,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
        )
        os.close(follower)
        try:
            self._watch(picture, terminal, leader)
        finally:
            _end(process)
            noise.terminate()
            noise.wait()
            os.close(leader)
        if terminal.written[0] != f"$ {picture.command}":
            raise NotShown(f"it needs more than {picture.rows} rows")
        return svg_of(terminal, picture.command)

    def _watch(self, picture: Picture, terminal: Terminal, leader: int) -> None:
        deadline = time.monotonic() + DEADLINE_SEC
        speaking = not picture.speak_at
        while time.monotonic() < deadline:
            if not speaking and picture.speak_at in terminal.text:
                speaking = True
                self._speak(picture.spoken)
            if not select.select([leader], [], [], SETTLED_SEC)[0]:
                if picture.when and picture.when(terminal):
                    return
                continue
            try:
                data = os.read(leader, 4_096)
            except OSError:  # Linux says so when the last one closed the other side
                data = b""
            if not data:
                if picture.when:
                    raise NotShown(f"it ended too early; the screen:\n{terminal.text}")
                terminal.feed(PROMPT)
                return
            terminal.feed(data)
        raise NotShown(f"not seen in time; the screen:\n{terminal.text}")

    def photograph_report(self, target: Path) -> None:
        """Listen to a minute of sentences, and show the page about it in a browser."""
        with (self._checkout / "minute.jsonl").open("wb") as events:
            service = subprocess.Popen(
                ["voice-asr", "run", "--embedded", "--status-events"],
                cwd=self._checkout,
                env=self._environment,
                stdout=events,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(5)
            aloud = self._microphone.begin_to_play(REPOSITORY / "bench" / "timed_speech.flac")
            time.sleep(_READ_ALOUD_SEC)
            aloud.terminate()
            time.sleep(2)
            service.terminate()
            service.wait(20)
        html = self._microphone.directory / "minute.html"
        subprocess.run(["voice-asr", "report", "minute.jsonl", "-o", html], cwd=self._checkout, env=self._environment, check=True)
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={_PAGE_SIZE}")
        subprocess.run(["chromium", *flags, f"--screenshot={target}", html.as_uri()], check=True, stderr=subprocess.DEVNULL)

    def _speak(self, names: tuple[str, ...]) -> None:
        """Say some recordings, one after the other, while the terminal is watched."""
        said = np.concatenate([soundfile.read(self._checkout / "examples" / f"{name}.wav")[0] for name in names])
        path = self._microphone.directory / "said.wav"
        soundfile.write(path, said, _RATE_HZ)
        self._microphone.begin_to_play(path)


def _end(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl+C does, then by force."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
