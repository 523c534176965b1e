"""Utterances as audio files, for bug reports. Only where the settings name a directory.

Stage: output. Trace id and samples of an utterance -> a file. The events say the rest and bear the trace id in the file's name.
State: the utterances that wait to be written, bounded: beyond a few they are dropped. The directory is bounded in bytes: the oldest
recordings are deleted.
Thread: ``keep``, ``take_failures`` and ``drain`` on the worker thread; a daemon thread writes, so that a slow disk delays nobody.
Raises: ``ConfigInvalid`` at the start only. Later failures are returned by ``take_failures``.
"""

from __future__ import annotations

import io
import os
import queue
import re
import stat
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import soundfile
import structlog

from voice.audio import SAMPLE_RATE_HZ, Samples
from voice.errors import ConfigInvalid, describe
from voice.text_file import FileInvalid, expand

_MAX_WAITING = 8
_NAME = re.compile(r"\d{8}T\d{6}\.\d{3}Z-[0-9a-f]{16}\.wav")

log = structlog.get_logger()


class Recorder:
    """Owner of the recordings in a directory. Other files, and directories or links that bear such a name, are left alone."""

    def __init__(self, directory: Path, max_bytes: int, now: Callable[[], datetime]) -> None:
        """Make the directory where it is not there, for this user alone, and start the thread.

        Args:
            directory: where recordings go; ``~`` and ``~user`` at its start are expanded.
            max_bytes: bound of their sizes together; the oldest are deleted first.
            now: the wall clock, UTC.

        Raises:
            ConfigInvalid: the directory cannot be made, or not written to.
        """
        self._max_bytes = max_bytes
        self._now = now
        try:
            self._directory = expand(directory).absolute()
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigInvalid([f"record.directory: {directory} cannot be made: {error.strerror}"]) from error
        except FileInvalid as error:
            raise ConfigInvalid([f"record.directory: {directory} {error}"]) from error
        if not os.access(self._directory, os.W_OK | os.X_OK):
            raise ConfigInvalid([f"record.directory: {directory} cannot be written to"])
        self._waiting: queue.Queue[tuple[str, Samples]] = queue.Queue(_MAX_WAITING)
        self._failures: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._failing = False
        threading.Thread(target=self._run, name="recorder", daemon=True).start()

    def keep(self, trace_id: str, samples: Samples) -> None:
        """Queue an utterance to be written: float32, (num_samples,), 16 kHz mono."""
        try:
            self._waiting.put_nowait((trace_id, samples))
        except queue.Full:
            self._fail("TooSlow: recordings are written more slowly than people speak")

    def take_failures(self) -> list[str]:
        """Why recordings are missing, since the last call. A failure is reported once until a recording succeeds again."""
        return [self._failures.get() for _ in range(self._failures.qsize())]

    def drain(self, timeout_sec: float) -> None:
        """Wait until everything is written, at most this long."""
        deadline = time.monotonic() + timeout_sec
        while self._waiting.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)

    def _run(self) -> None:
        while True:
            trace_id, samples = self._waiting.get()
            try:
                self._write(trace_id, samples)
                self._make_room()
                self._failing = False
            except (OSError, RuntimeError) as error:  # soundfile.LibsndfileError is a RuntimeError
                self._fail(describe(error))
            self._waiting.task_done()

    def _write(self, trace_id: str, samples: Samples) -> None:
        """Write a recording; the file gets its name when it is complete."""
        stamp = self._now().strftime("%Y%m%dT%H%M%S.%f")[:-3]
        path = self._directory / f"{stamp}Z-{trace_id}.wav"
        part = path.with_suffix(".part")
        wav = io.BytesIO()
        soundfile.write(wav, samples, SAMPLE_RATE_HZ, subtype="FLOAT", format="WAV")  # float keeps each sample exactly
        try:
            with open(part, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(wav.getbuffer())
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise

    def _make_room(self) -> None:
        """Delete the oldest recordings until the rest fit; the newest stays, however large.

        Raises:
            OSError: too much is left, because a recording cannot be deleted.
        """
        recordings = self._recordings()
        excess = sum(size for _, size in recordings) - self._max_bytes
        failure: OSError | None = None
        for path, size in recordings[:-1]:
            if excess <= 0:
                return
            try:
                path.unlink(missing_ok=True)
                excess -= size
            except OSError as error:
                failure = error
        if failure and excess > 0:
            raise failure

    def _recordings(self) -> list[tuple[Path, int]]:
        """Our regular files with their sizes in bytes, the oldest first; a file that vanishes meanwhile is left out."""
        found = []
        for path in sorted(self._directory.iterdir()):
            if not _NAME.fullmatch(path.name):
                continue
            try:
                status = path.lstat()
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                found.append((path, status.st_size))
        return found

    def _fail(self, reason: str) -> None:
        if not self._failing:
            self._failing = True
            log.warning("recording_failed", directory=str(self._directory), error=reason)
            self._failures.put(reason)
