"""The user's hotwords: a list in the settings, or a file that may change while the service runs.

One word a line, then a blank and a weight where it shall not be the usual one: ``词 20``, FunASR's form. Empty lines and those that
begin with ``#`` do not count. A ``HotwordList`` holds the words it read last. Worker thread only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import structlog

from voice.errors import ConfigInvalid

DEFAULT_WEIGHT = 20.0
"""FunASR's, of a word without one."""
MAX_WEIGHT = 100.0
MAX_LENGTH = 64
MAX_WORDS = 1_000

log = structlog.get_logger()


class Hotword(NamedTuple):
    """A word that is likelier than the recogniser thinks."""

    text: str
    weight: float


class HotwordList:
    """The words of one setting."""

    def __init__(self, setting: str | tuple[str, ...]) -> None:
        """Read a file, or take a list of lines.

        Raises:
            ConfigInvalid: every line that is wrong, or a file that cannot be read.
        """
        self._path = Path(setting).expanduser() if isinstance(setting, str) else None
        self._stamp = self._stamp_now()
        self._words = _read(self._path) if self._path else parse_lines(setting, "hotwords")

    def current(self) -> tuple[Hotword, ...]:
        """The words as they stand now; the same object as long as nothing changed.

        A file that has become wrong, or is gone, leaves the words as they were, and a line in the log.
        """
        stamp = self._stamp_now()
        if self._path and stamp != self._stamp:
            self._stamp = stamp
            try:
                self._words = _read(self._path)
            except ConfigInvalid as error:
                log.warning("hotwords_kept", num_words=len(self._words), problems=error.problems)
            else:
                log.info("hotwords_read", num_words=len(self._words))
        return self._words

    def _stamp_now(self) -> tuple[int, int, int] | None:
        """What changes with the file."""
        if self._path is None:
            return None
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


def parse_lines(lines: Iterable[str], where: str) -> tuple[Hotword, ...]:
    """Hotwords of lines; of a word that comes twice the last.

    Args:
        lines: with or without their ends.
        where: names them in a problem.

    Raises:
        ConfigInvalid: every line that is wrong.
    """
    words: dict[str, Hotword] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        word, _, last = text.rpartition(" ")
        weight = _weight(last) if word else None
        if weight is None:
            word, weight = text, DEFAULT_WEIGHT
        if len(word) > MAX_LENGTH:
            problems.append(f"{where}, line {number}: {len(word)} characters; allowed: up to {MAX_LENGTH}")
        if not 0 < weight <= MAX_WEIGHT:
            problems.append(f"{where}, line {number}: weight {weight:g} is not allowed; allowed: above 0 to {MAX_WEIGHT:g}")
        words[word.strip()] = Hotword(word.strip(), weight)
    if len(words) > MAX_WORDS:
        problems.append(f"{where}: {len(words)} words; allowed: up to {MAX_WORDS}")
    if problems:
        raise ConfigInvalid(problems)
    return tuple(words.values())


def _weight(text: str) -> float | None:
    """The number it says; None where it says none."""
    try:
        weight = float(text)
    except ValueError:
        return None
    return weight if math.isfinite(weight) else None


def _read(path: Path) -> tuple[Hotword, ...]:
    try:
        return parse_lines(path.read_text(encoding="utf-8-sig").splitlines(), f"hotwords: {path}")
    except OSError as error:
        raise ConfigInvalid([f"hotwords: {path} cannot be read ({error.strerror})"]) from error
    except UnicodeDecodeError as error:
        raise ConfigInvalid([f"hotwords: {path} is not UTF-8 text (byte {error.start})"]) from error
