"""An audio file -> ``AudioBlock``, as fast as it is read or at real-time pace.

Any format libsndfile reads (wav, flac, ogg, mp3, ...), any rate, any channel count. Holds the open file. Never drops: in
real time, too, it waits for the reader. Worker thread.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import soundfile

from voice.audio import AudioBlock
from voice.errors import InputUnreadable, describe

_BLOCK_SEC = 0.1


class WavFile:
    """An open file."""

    recovers = False

    def __init__(self, path: Path, *, pace: Callable[[float], float] | None = None) -> None:
        """Open ``path``.

        Args:
            path: the file.
            pace: for real time: waits until so many seconds after the first call, and returns how many seconds late it is.
                None reads as fast as the reader asks.
        """
        self._path = path
        self._pace = pace
        self._position_sec = 0.0
        self.waiting_sec = 0.0
        self.ended = False
        if not path.exists():
            raise InputUnreadable(f"{path}: no such file")
        if not path.is_file():
            raise InputUnreadable(f"{path}: not a file")
        if path.stat().st_size == 0:
            raise InputUnreadable(f"{path}: the file is empty")
        try:
            self._file = soundfile.SoundFile(path)
        except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
            raise InputUnreadable(f"{path}: not readable as audio ({describe(error)})") from error
        if self._file.frames == 0:
            self._file.close()
            raise InputUnreadable(f"{path}: the file has 0 samples")

    def read(self, timeout_sec: float) -> AudioBlock | None:
        """The next 0.1 s; None at the end."""
        del timeout_sec  # a file answers at once, at real-time pace within one block
        if self.ended:
            return None
        try:
            frames = self._file.read(round(self._file.samplerate * _BLOCK_SEC), dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
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
