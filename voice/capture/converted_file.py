"""A file that libsndfile cannot read (m4a, mp4, video, ...) -> ``AudioBlock``, by way of ffmpeg.

Stage: capture. State: ffmpeg's process and a temporary file for what it says. Worker thread. Raises: ``InputUnreadable``.

ffmpeg reads that one file and nothing from the network, mixes the channels and gives 16 kHz.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from voice.audio import SAMPLE_RATE_HZ, AudioBlock
from voice.capture.resample import Channel
from voice.capture.source import AudioFormat
from voice.errors import InputUnreadable, describe

PROGRAM = "ffmpeg"
REMEDY = "ffmpeg reads many more formats: install it (apt-get install ffmpeg, brew install ffmpeg, winget install ffmpeg)"
_BLOCK_BYTES = SAMPLE_RATE_HZ // 10 * 2
_END_SEC = 5.0
_MOST_WORDS = 300


class ConvertedFile:
    """A file that ffmpeg is reading."""

    recovers = False

    def __init__(self, path: Path, channel: Channel, *, pace: Callable[[float], float] | None = None) -> None:
        """Start ffmpeg.

        Args:
            path: a regular file that can be opened.
            channel: of the file, or the mean of all.
            pace: as of ``WavFile``.

        Raises:
            InputUnreadable: ffmpeg is not installed, or does not start.
        """
        program = shutil.which(PROGRAM)
        if program is None:
            raise InputUnreadable(f"{path}: not readable as audio: damaged, or in a format that libsndfile does not know; {REMEDY}")
        self.ended = False
        self.format = AudioFormat(str(path), SAMPLE_RATE_HZ, 1)
        self._path = path
        self._pace = pace
        self._position_sec = self.waiting_sec = 0.0
        self._said = tempfile.TemporaryFile()  # a pipe that nobody reads would stop ffmpeg  # noqa: SIM115
        chosen = ["-ac", "1"] if channel == "mix" else ["-af", f"pan=mono|c0=c{channel}"]
        command = [program, "-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe", "-i", f"file:{path}", "-vn", "-sn", "-dn"]
        command += [*chosen, "-ar", str(SAMPLE_RATE_HZ), "-f", "s16le", "pipe:1"]
        try:
            self._process = subprocess.Popen(  # noqa: S603 -- the program is looked up, the path is an argument of its own
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._said,
                start_new_session=True,  # Ctrl+C in our terminal is for us; when we are gone it cannot write, and ends
            )
        except OSError as error:
            self._said.close()
            raise InputUnreadable(f"{path}: ffmpeg does not start ({describe(error)})") from error

    def read(self, timeout_sec: float, gather_sec: float = 0.0) -> AudioBlock | None:
        """The next 0.1 s; None at the end."""
        del timeout_sec, gather_sec
        if self.ended:
            return None
        assert self._process.stdout is not None  # noqa: S101 -- it was asked for
        data = self._process.stdout.read(_BLOCK_BYTES)
        if len(data) >= 2:
            samples = np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / np.float32(32768)
            block = AudioBlock(samples[:, np.newaxis], SAMPLE_RATE_HZ)
            self._position_sec += block.duration_sec
            if self._pace is not None:
                self.waiting_sec = self._pace(self._position_sec)
            return block
        self.ended = True
        code = self._process.wait()
        if code or not self._position_sec:
            raise InputUnreadable(f"{self._path}: ffmpeg cannot read it ({self._words() or f'exit code {code}'})")
        return None

    def close(self) -> None:
        """End ffmpeg."""
        self.ended = True
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(_END_SEC)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._said.close()

    def _words(self) -> str:
        """The last line that ffmpeg wrote, without the path, which the message has already."""
        self._said.seek(0)
        lines = self._said.read().decode("utf-8", "replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        return " ".join(last.replace(f"file:{self._path}", "the file").split())[:_MOST_WORDS]
