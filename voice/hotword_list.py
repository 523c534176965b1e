"""The user's hotwords: a list in the settings, or a file that may change while the service runs.

Setting -> ``Hotword`` tuples. One word a line; a blank and a weight may follow it: ``词 20``, FunASR's format. Empty lines and lines that
begin with ``#`` are skipped. A ``HotwordList`` holds the words it read last. Worker thread only. Raises ``ConfigInvalid``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import structlog

from voice.errors import ConfigInvalid
from voice.text_file import FileInvalid, expand, read_text

DEFAULT_WEIGHT = 20.0
"""Of a word without a weight; FunASR's."""
MAX_WEIGHT = 100.0
MAX_LENGTH = 64
MAX_WORDS = 1_000
MAX_FILE_BYTES = 1_000_000
"""Four times what the longest list of the longest Chinese words takes."""

_WEIGHT_BEHIND_A_MARK = re.compile(r"([^,，:：;；=|\t]*[\u4e00-\u9fff])\s*[,，:：;；=|\t]\s*(\d+(?:\.\d+)?)")

log = structlog.get_logger()


class Hotword(NamedTuple):
    """A word that the recogniser prefers over others."""

    text: str
    weight: float


class HotwordList:
    """The words of one setting."""

    def __init__(self, setting: str | tuple[str, ...]) -> None:
        """Read a file, or parse a list of lines.

        Raises:
            ConfigInvalid: lines are wrong, or the file cannot be read.
        """
        self._path = _expand(setting) if isinstance(setting, str) else None
        self._stamp = self._stamp_now()
        self._words = _read(self._path) if self._path else parse_lines(setting, "hotwords")

    def current(self) -> tuple[Hotword, ...]:
        """The words as they are now; the same object as long as the file did not change.

        A file that changed is read again. If it is gone, wrong or no regular file, the words stay as they were. Each change logs one
        line.
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
        """Time, size and inode of the file; None where there is none."""
        if self._path is None:
            return None
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


def parse_lines(lines: Iterable[str], where: str) -> tuple[Hotword, ...]:
    """Parse lines; where a word comes twice, its last line counts.

    Args:
        lines: with or without their ends.
        where: where the lines come from, for messages.

    Raises:
        ConfigInvalid: lines are wrong, or there are too many words.
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
        elif mistaken := _WEIGHT_BEHIND_A_MARK.fullmatch(text):
            problems.append(f"{where}, line {number}: {text!r} has a weight behind a mark; use a blank: {mistaken[1]} {mistaken[2]}")
        if not 0 < weight <= MAX_WEIGHT:
            problems.append(f"{where}, line {number}: weight {weight:g} is not allowed; allowed: above 0 to {MAX_WEIGHT:g}")
        words[word.strip()] = Hotword(word.strip(), weight)
    if len(words) > MAX_WORDS:
        problems.append(f"{where}: {len(words)} words; allowed: up to {MAX_WORDS}")
    if problems:
        raise ConfigInvalid(problems)
    return tuple(words.values())


def _weight(text: str) -> float | None:
    """The finite number in ``text``; None where there is none."""
    try:
        weight = float(text)
    except ValueError:
        return None
    return weight if math.isfinite(weight) else None


def _expand(setting: str) -> Path:
    try:
        return expand(setting)
    except FileInvalid as error:
        raise ConfigInvalid([f"hotwords: {setting} {error}"]) from error


def _read(path: Path) -> tuple[Hotword, ...]:
    try:
        return parse_lines(read_text(path, MAX_FILE_BYTES).splitlines(), f"hotwords: {path}")
    except OSError as error:
        raise ConfigInvalid([f"hotwords: {path} cannot be read ({error.strerror})"]) from error
    except FileInvalid as error:
        raise ConfigInvalid([f"hotwords: {path} {error}"]) from error
