"""What was heard, kept for bug reports: an utterance's audio -> a file. Only where the settings name a directory.

Audio only: the events say the rest, and bear the trace id that stands in the file's name. One thread writes, so that a slow disk holds
nobody up. Bounded twice: what waits is dropped beyond a few utterances, and the oldest recordings make room in the directory. The
thread dies with the process.
"""

from __future__ import annotations

import io
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import soundfile
import structlog

from voice.audio import SAMPLE_RATE_HZ, Samples
from voice.errors import ConfigInvalid, describe

_MAX_WAITING = 8
_NAME = re.compile(r"\d{8}T\d{6}\.\d{3}Z-[0-9a-f]{16}\.wav")

log = structlog.get_logger()


class Recorder:
    """Owner of a directory of recordings; other files in it are left alone."""

    def __init__(self, directory: Path, max_bytes: int, now: Callable[[], datetime]) -> None:
        """Take the directory over; it is made where it is not there, for this user alone.

        Args:
            directory: where recordings go.
            max_bytes: so much of them is kept; the oldest go first.
            now: the wall clock, UTC.

        Raises:
            ConfigInvalid: the directory cannot be made, or not written to.
        """
        self._directory = directory
        self._max_bytes = max_bytes
        self._now = now
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigInvalid([f"record.directory: {directory} cannot be made: {describe(error)}"]) from error
        if not os.access(directory, os.W_OK | os.X_OK):
            raise ConfigInvalid([f"record.directory: {directory} cannot be written to"])
        self._waiting: queue.Queue[tuple[str, Samples]] = queue.Queue(_MAX_WAITING)
        self._failures: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._failing = False
        threading.Thread(target=self._run, name="recorder", daemon=True).start()

    def keep(self, trace_id: str, samples: Samples) -> None:
        """Have an utterance written: float32, (num_samples,), 16 kHz mono."""
        try:
            self._waiting.put_nowait((trace_id, samples))
        except queue.Full:
            self._fail("TooSlow: recordings are written more slowly than people speak")

    def take_failures(self) -> list[str]:
        """Why recordings are missing, since the last call: once until one could be written again."""
        return [self._failures.get() for _ in range(self._failures.qsize())]

    def drain(self, timeout_sec: float) -> None:
        """Wait until everything is written, for so long."""
        deadline = time.monotonic() + timeout_sec
        while self._waiting.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)

    def _run(self) -> None:
        while True:
            trace_id, samples = self._waiting.get()
            try:
                self._write(trace_id, samples)
                self._failing = False
            except OSError as error:
                self._fail(describe(error))
            self._waiting.task_done()

    def _write(self, trace_id: str, samples: Samples) -> None:
        """Under its name only when it is whole."""
        stamp = self._now().strftime("%Y%m%dT%H%M%S.%f")[:-3]
        path = self._directory / f"{stamp}Z-{trace_id}.wav"
        part = path.with_suffix(".part")
        wav = io.BytesIO()
        soundfile.write(wav, samples, SAMPLE_RATE_HZ, subtype="FLOAT", format="WAV")  # so that it is heard again as it was
        try:
            with open(part, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(wav.getbuffer())
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        self._make_room()

    def _make_room(self) -> None:
        recordings = sorted(path for path in self._directory.iterdir() if _NAME.fullmatch(path.name))
        sizes = [path.stat().st_size for path in recordings]
        excess = sum(sizes) - self._max_bytes
        for path, size in zip(recordings[:-1], sizes, strict=False):  # the newest stays, however large
            if excess <= 0:
                break
            path.unlink()
            excess -= size

    def _fail(self, reason: str) -> None:
        if not self._failing:
            self._failing = True
            log.warning("recording_failed", directory=str(self._directory), error=reason)
            self._failures.put(reason)
