"""Finalization: the known speakers in a directory, from one run to the next. Only where the settings name one.

Speakers <-> ``speakers.json``. Voices are personal: the directory is for its user alone (0700), and so are its files (0600). A file is
written beside the old one and takes its place when it is whole. ``lock`` is held until the process ends, so that two processes never
write over each other's speakers (not on Windows). State: the lock. Worker thread. Raises ``ConfigInvalid`` when it is opened, whatever
the directory holds; ``save`` raises ``OSError``.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Sequence
from typing import Any

import numpy as np

from voice.errors import ConfigInvalid
from voice.finalization.speaker_registry import LABEL, KnownSpeaker, clean_name
from voice.text_file import FileInvalid, expand, read_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
_NAME, _LOCK = "speakers.json", "lock"
_MAX_BYTES = 16_000_000
"""1,000 speakers with 512 numbers of 20 characters take 11 MB."""
MAX_SPEAKERS = 1_000
_MAX_SIZE = 4_096
"""Of an embedding."""
_MAX_UTTERANCES = 10**9
_LONGEST = 1.001
"""Of a mean of vectors of length 1, with what rounding adds."""


class SpeakerStore:
    """Owner of the directory while it is open."""

    def __init__(self, directory: str, model: str, size: int) -> None:
        """Take the directory; it is made where it is not there.

        Args:
            directory: as the user wrote it; ``~`` at its start is expanded.
            model: what tells the model from others: embeddings of two models cannot be compared.
            size: of the model's embeddings.

        Raises:
            ConfigInvalid: it cannot be made or written to, others may read it, or another process uses it.
        """
        self._shown = directory
        self._model = model
        self._size = size
        try:
            self._directory = expand(directory).absolute()
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = self._directory.stat().st_mode
            if os.name != "nt" and stat.S_IMODE(mode) & 0o077:
                raise self._wrong("can be read by others; voices are personal: chmod 700 it, or name a new directory")
            self._lock = os.open(self._directory / _LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
            if fcntl is not None:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._wrong("is in use by another process") from error
        except OSError as error:
            raise self._wrong(f"cannot be used: {error.strerror}") from error
        except FileInvalid as error:
            raise self._wrong(str(error)) from error

    def load(self) -> tuple[KnownSpeaker, ...]:
        """The speakers of earlier runs; none where there was none.

        Raises:
            ConfigInvalid: the file is damaged, or of another model.
        """
        path = self._directory / _NAME
        try:
            if not os.path.lexists(path):
                return ()
            return self._speakers(json.loads(read_text(path, _MAX_BYTES)))
        except OSError as error:
            raise self._wrong(f"holds a {_NAME} that cannot be read: {error.strerror}") from error
        except RecursionError as error:
            raise self._damaged("it is nested too deeply") from error
        except ValueError as error:  # FileInvalid, and whatever json raises
            raise self._damaged("it is not JSON" if isinstance(error, json.JSONDecodeError) else f"it {error}") from error

    def save(self, speakers: Sequence[KnownSpeaker]) -> None:
        """Write all speakers.

        Raises:
            OSError: the file cannot be written; the old one is as it was.
        """
        listed = [
            {
                "label": speaker.label,
                "name": speaker.name,
                "utterances": speaker.num_utterances,
                "embedding": [round(float(value), 7) for value in speaker.centroid],
            }
            for speaker in speakers
        ]
        content = json.dumps({"format": FORMAT, "model": self._model, "speakers": listed}, ensure_ascii=False)
        part = self._directory / f"{_NAME}.part"
        part.unlink(missing_ok=True)  # of a process that was killed; whatever it is, it is not followed
        try:
            with open(part, "x", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._directory / _NAME)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise

    def close(self) -> None:
        """Let another process have the directory."""
        os.close(self._lock)

    def _speakers(self, content: Any) -> tuple[KnownSpeaker, ...]:
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise self._damaged("it is of another format")
        if content.get("model") != self._model:
            raise self._wrong("holds speakers of another model, whose voices cannot be compared; name another directory, or remove it")
        listed = content.get("speakers")
        if not isinstance(listed, list) or len(listed) > MAX_SPEAKERS:
            raise self._damaged(f"it holds no list of at most {MAX_SPEAKERS:,} speakers")
        speakers = tuple(self._speaker(each, place) for place, each in enumerate(listed, 1))
        if len({speaker.label for speaker in speakers}) < len(speakers):
            raise self._damaged("it holds a label twice")
        return speakers

    def _speaker(self, entry: Any, place: int) -> KnownSpeaker:
        wrong = self._damaged(f"speaker {place} is none that was saved")
        if not isinstance(entry, dict):
            raise wrong
        label, name, utterances, values = (entry.get(key) for key in ("label", "name", "utterances", "embedding"))
        if not (isinstance(label, str) and LABEL.fullmatch(label)):
            raise wrong
        if not (name is None or (isinstance(name, str) and clean_name(name) == name)):
            raise wrong
        if not (isinstance(utterances, int) and not isinstance(utterances, bool) and 1 <= utterances <= _MAX_UTTERANCES):
            raise wrong
        if not (isinstance(values, list) and len(values) == self._size <= _MAX_SIZE and all(map(_is_component, values))):
            raise wrong
        centroid = np.array(values, np.float64)
        if not 0 < float(centroid @ centroid) <= _LONGEST**2:
            raise wrong
        return KnownSpeaker(label, name, centroid, utterances)

    def _damaged(self, what: str) -> ConfigInvalid:
        return self._wrong(f"holds a damaged {_NAME}: {what}; remove the file, or name another directory")

    def _wrong(self, what: str) -> ConfigInvalid:
        return ConfigInvalid([f"speakers.db: {self._shown} {what}"])


def _is_component(value: object) -> bool:
    """Whether it can be a component of a vector of length 1 at most."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LONGEST  # nor is NaN
