"""Foundation: paths that a user gives, and text files of a user or a model directory, read without trust.

Path as it was written -> ``Path``; ``Path`` -> text. Bounded in size, regular files only: a FIFO, a device or a directory in the place
of a file is refused at once. No state, any thread. Raises ``FileInvalid`` and ``OSError``.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
"""Not blocking, so that a FIFO without a writer cannot hold the opener; Windows has none of these but ``O_BINARY``."""


class FileInvalid(ValueError):
    """A path or the content behind it cannot be used. The text is a predicate in one line: ``is not a regular file``."""


def expand(path: str | Path) -> Path:
    """A path as a user writes it, ``~`` replaced by the home directory. Whether it exists is not checked.

    Raises:
        FileInvalid: no file can ever have this path: it holds a NUL, is too long, or its home directory is not known.
    """
    try:
        expanded = Path(path).expanduser()
        _probe(expanded)
    except RuntimeError as error:
        raise FileInvalid("begins with a home directory that is not known; write the whole path") from error
    except FileInvalid:
        raise
    except ValueError as error:  # NUL, or a character that the file system's encoding lacks
        raise FileInvalid("holds a character that no path can hold") from error
    return expanded


def _probe(path: Path) -> None:
    """Ask the system whether it takes the path at all; ``ValueError`` where it does not."""
    try:
        path.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise FileInvalid("is too long for a path") from error


def read_text(path: Path, max_bytes: int) -> str:
    """The text of a regular file in UTF-8; a byte order mark at its start is dropped.

    Args:
        path: of the file; links are followed.
        max_bytes: a larger file is refused. No more than one byte above it is ever read.

    Raises:
        FileInvalid: it is not a regular file, too large, or not UTF-8.
        OSError: it is missing or cannot be read.
    """
    data = read_bytes(path, max_bytes)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileInvalid(f"is not UTF-8 text (byte {error.start}); save it as UTF-8 (of GBK: iconv -f GBK -t UTF-8)") from error


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file.

    Args:
        path: of the file; links are followed.
        max_bytes: a larger file is refused. No more than one byte above it is ever read.

    Raises:
        FileInvalid: it is not a regular file, or too large.
        OSError: it is missing or cannot be read.
    """
    _check_kind(path.stat())  # before it is opened: to open a device may change it
    with open(path, "rb", opener=lambda name, _: os.open(name, _OPEN_FLAGS)) as file:
        _check_kind(os.fstat(file.fileno()))  # another file may have taken its place since
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise FileInvalid(f"is larger than {max_bytes // 1_000:,} kB")
    return data


def _check_kind(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise FileInvalid(f"cannot be read ({'it is a directory' if stat.S_ISDIR(status.st_mode) else 'it is no regular file'})")
