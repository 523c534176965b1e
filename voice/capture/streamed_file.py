"""Opens audio files, also those whose writer could not go back to fill in their length: they last until the end of the file.

Stage: capture. Path -> open ``SoundFile``. Programs that encode into a pipe leave the number of samples of a FLAC unknown
(RFC 9639, 8.2: 0), and the sizes of a WAV 0 or 0xFFFFFFFF. libsndfile itself reads 0xFFFFFFFF as "to the end".
Thread: worker. Raises: ``RuntimeError`` where libsndfile refuses the file, ``OSError``.
"""

from __future__ import annotations

import io
import os
import struct
import sys
from pathlib import Path
from typing import Any

import soundfile

_UNKNOWN = 2**63 - 1
"""libsndfile's SF_COUNT_MAX, the length of a file that does not say it."""
_MAX_CHUNKS = 1_000
"""Of a WAV: a real one has a dozen."""


class _SoundFile(soundfile.SoundFile):
    """A ``SoundFile`` that is not sought in where its length is unknown: libsndfile cannot seek to the end of such a FLAC.

    soundfile seeks after each read of a file that is seekable, and so would lose the last block.
    """

    def __init__(self, file: Any) -> None:
        self._opened = file
        super().__init__(file)

    def seekable(self) -> bool:
        return bool(super().seekable()) and self.frames < _UNKNOWN

    def close(self) -> None:
        super().close()
        if isinstance(self._opened, io.FileIO):
            self._opened.close()


class _ToTheEnd(io.FileIO):
    """A WAV file in which the size of the audio reads as 0xFFFFFFFF."""

    def __init__(self, path: Path, size_at: int) -> None:
        super().__init__(path)
        self._size_at = size_at

    def readinto(self, buffer: Any) -> int:
        start = self.tell()
        count = super().readinto(buffer) or 0
        view = memoryview(buffer).cast("B")
        for at in range(max(self._size_at, start), min(self._size_at + 4, start + count)):
            view[at - start] = 0xFF
        return count


def open_sound(path: Path) -> soundfile.SoundFile:
    """Open an audio file of any format that libsndfile reads."""
    name = path if sys.platform == "win32" else os.fsencode(path)  # as bytes, since the name need not be UTF-8; Windows needs it as text
    file = _SoundFile(name)
    if file.frames or (size_at := _unfilled_size(path)) is None:
        return file
    file.close()
    return _SoundFile(_ToTheEnd(path, size_at))


def _unfilled_size(path: Path) -> int | None:
    """Where in a WAV file the size of the audio stands, if it is 0 and what follows is audio.

    A WAV file without audio is told by what follows: nothing, or chunks up to the end of the file.
    """
    found = None
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(12)
        if not (start.startswith(b"RIFF") and start.endswith(b"WAVE")):
            return None
        at = len(start)
        for _ in range(_MAX_CHUNKS):
            if at >= length:
                break
            file.seek(at)
            header = file.read(8)
            if len(header) < 8 or not (header[:4].isascii() and header[:4].decode().isprintable()):
                return found
            name, size = struct.unpack("<4sI", header)
            if name == b"data" and size == 0 and found is None:
                found = at + 4
            at += len(header) + size + size % 2
    return found if at > length + 1 else None  # a last chunk may lack its padding
