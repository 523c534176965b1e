"""An audio file -> ``AudioBlock``, as fast as it is read or at real-time pace.

Stage: capture. Any format libsndfile reads (wav, flac, ogg, mp3, ...), any channel count, 1 to 768 kHz.
State: the open file and the position in it. A file is never dropped from: at real-time pace, too, it waits for the reader.
Thread: worker. Raises: ``InputUnreadable``.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

from voice.audio import AudioBlock
from voice.capture.source import AudioFormat
from voice.capture.streamed_file import open_sound
from voice.errors import InputUnreadable, describe
from voice.text_file import FileInvalid, expand

_BLOCK_SEC = 0.1
_MIN_RATE_HZ, _MAX_RATE_HZ = 1_000, 768_000
"""Below, a block has too few frames and holds no speech; above, a header is more likely damaged than true."""


class UnknownFormat(InputUnreadable):
    """A file that can be read, but not as audio by libsndfile."""


class WavFile:
    """An open file."""

    recovers = False

    def __init__(self, path: Path, *, pace: Callable[[float], float] | None = None) -> None:
        """Open a file.

        Args:
            path: the file; ``~`` and ``~user`` at its start are expanded.
            pace: for real time: waits until so many seconds after the first call, and returns how many seconds late it is.
                None reads as fast as the reader asks.

        Raises:
            InputUnreadable: it is missing, no regular file, may not be read, or is no audio.
        """
        self._pace = pace
        self._position_sec = 0.0
        self.waiting_sec = 0.0
        self.ended = False
        self._path = _audio_file(path)
        try:
            self._file = open_sound(self._path)
        except (RuntimeError, OSError) as error:  # LibsndfileError is a RuntimeError
            raise UnknownFormat(f"{path}: not readable as audio ({describe(error)})") from error
        try:
            self._check_header()
        except InputUnreadable:
            self._file.close()
            raise
        self.format = AudioFormat(str(self._path), self._file.samplerate, self._file.channels)

    def read(self, timeout_sec: float, gather_sec: float = 0.0) -> AudioBlock | None:
        """The next 0.1 s; None at the end."""
        del timeout_sec, gather_sec  # a file answers at once, at real-time pace within one block
        if self.ended:
            return None
        try:
            frames = self._file.read(round(self._file.samplerate * _BLOCK_SEC), dtype="float32", always_2d=True)
        except (RuntimeError, OSError) as error:
            self.ended = True
            raise InputUnreadable(f"{self._path}: damaged after {self._position_sec:.1f} s ({describe(error)})") from error
        if len(frames) == 0:
            self.ended = True
            return None
        block = AudioBlock(frames, self._file.samplerate)
        self._position_sec += block.duration_sec
        if self._pace is not None:
            self.waiting_sec = self._pace(self._position_sec)
        return block

    def close(self) -> None:
        """Close the file."""
        self.ended = True
        self._file.close()

    def _check_header(self) -> None:
        """Refuse a file without samples and a sample rate that cannot be true."""
        if self._file.frames == 0:
            raise InputUnreadable(f"{self._path}: the file has 0 samples")
        if not _MIN_RATE_HZ <= self._file.samplerate <= _MAX_RATE_HZ:
            allowed = f"{_MIN_RATE_HZ}..{_MAX_RATE_HZ} Hz"
            raise InputUnreadable(f"{self._path}: the file's sample rate is {self._file.samplerate} Hz; allowed: {allowed}")


def _audio_file(path: Path) -> Path:
    """``path`` with ``~`` expanded, where it is a regular file that may be read, is not empty, and should have a header.

    Anything else is refused before it is opened: opening a FIFO would wait for its writer.
    """
    try:
        path = expand(path)
        status = path.stat()
        if stat.S_ISFIFO(status.st_mode):
            raise InputUnreadable(f"{path}: a FIFO, not a file; to read raw s16le PCM from it use --input - < {path}")
        if not stat.S_ISREG(status.st_mode):
            raise InputUnreadable(f"{path}: not a file")
        path.open("rb").close()  # libsndfile says "System error" only
    except FileNotFoundError as error:
        raise InputUnreadable(f"{path}: no such file") from error
    except OSError as error:
        raise InputUnreadable(f"{path}: cannot be opened ({error.strerror})") from error
    except FileInvalid as error:
        raise InputUnreadable(f"{path} {error}") from error
    if status.st_size == 0:
        raise InputUnreadable(f"{path}: the file is empty")
    if path.suffix.lower() == ".raw":  # soundfile asks for its sample rate
        raise InputUnreadable(f"{path}: a .raw file has no header; to read it as raw s16le mono PCM use --input - < {path}")
    return path
