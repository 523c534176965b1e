"""One utterance between the worker and the connection's thread.

Worker: ``send``, ``end``, ``give_up``, and reads ``news``. Loop thread: everything else. Audio in, ``News`` out, which is replaced and
never changed, so that no lock is needed. State: its audio, which is kept until its answer is there, and how much of it was sent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from websockets.asyncio.client import ClientConnection

from voice.recognition.remote.protocol import BYTES_PER_SEC, END_MESSAGE, FRAME_BYTES, NOTHING, Transcription, as_pcm

MAX_ATTEMPTS = 5
"""An utterance at which the server broke so often is given up: it may be what breaks the server."""


@dataclass(frozen=True, slots=True)
class News:
    """What is known of an utterance."""

    transcription: Transcription = NOTHING
    sent_bytes: int = 0
    """So much of its audio had been sent when the last text came."""
    heard_bytes: int = 0
    """So much of it a server that recognises at the pace of speech has heard by then: the text rests on that at least."""
    is_over: bool = False
    """Whether nothing follows."""
    given_up: str = ""
    """Why the server is not asked any longer, ``Type: text``; only where it is over."""


class RemoteUtterance:
    """One utterance: handles for the worker, state for the connection."""

    def __init__(self, name: str, hotwords: str, call: Callable[..., object]) -> None:
        self.name = name
        self.hotwords = hotwords
        self.news = News()
        self._call = call
        self._audio = bytearray()  # from here on the loop's
        self._changed = asyncio.Event()
        self._ended_at: float | None = None
        self._sent_bytes = self._attempts = 0
        self._begun_at = self._progress_at = 0.0
        self._end_sent_at: float | None = None

    def send(self, audio: bytes) -> None:
        """Worker: more of its audio, s16le."""
        self._call(self._append, audio)

    def end(self) -> None:
        """Worker: that was all of it."""
        self._call(self._end)

    def give_up(self, reason: str) -> None:
        """Worker: its answer is not wanted any more; what was said stays."""
        self._call(self.conclude, reason)

    def _append(self, audio: bytes) -> None:
        if len(self._audio) - self._sent_bytes < FRAME_BYTES:
            self._progress_at = time.monotonic()
        self._audio += audio
        self._changed.set()

    def _end(self) -> None:
        self._ended_at = time.monotonic()
        self._changed.set()

    def conclude(self, given_up: str = "") -> None:
        """Loop: nothing follows."""
        if not self.news.is_over:
            self.news = replace(self.news, is_over=True, given_up=given_up)
            self._changed.set()

    def waits_since(self, last_answer_at: float) -> float:
        """Loop: for how many seconds it waits since its end, or since the last answer to another one; 0 before its end."""
        return 0.0 if self._ended_at is None else time.monotonic() - max(self._ended_at, last_answer_at)

    @property
    def stuck_sec(self) -> float:
        """Loop: for how many seconds the server has not taken audio that is there; 0 where all of it was sent."""
        return 0.0 if len(self._audio) - self._sent_bytes < FRAME_BYTES else time.monotonic() - self._progress_at

    @property
    def duration_sec(self) -> float:
        """Loop: length of its audio."""
        return len(self._audio) / BYTES_PER_SEC

    async def send_all(self, socket: ClientConnection) -> None:
        """Loop: send its audio from the start, and the end as soon as it is there."""
        self._sent_bytes, self._end_sent_at = 0, None
        self._begun_at = self._progress_at = time.monotonic()
        while not self.news.is_over:
            self._changed.clear()
            if len(self._audio) - self._sent_bytes >= FRAME_BYTES or (self._ended_at is not None and len(self._audio) > self._sent_bytes):
                frame = bytes(self._audio[self._sent_bytes : self._sent_bytes + FRAME_BYTES])
                await socket.send(as_pcm(frame))
                self._sent_bytes += len(frame)
                self._progress_at = time.monotonic()
            elif self._ended_at is not None:
                await socket.send(END_MESSAGE)
                self._end_sent_at = time.monotonic()
                return
            else:
                await self._changed.wait()

    @property
    def attempts(self) -> int:
        """Loop: how often it was sent."""
        return self._attempts

    def begin(self) -> bool:
        """Loop: it is sent, perhaps again; False where it was sent too often."""
        self._attempts += 1
        return self._attempts <= MAX_ATTEMPTS

    def hear(self, transcription: Transcription, *, all_of_it: bool = False) -> None:
        """Loop: the server said this. While an utterance is sent again, what was heard of it before stays until there is more."""
        if not self.news.is_over and (all_of_it or self._attempts <= 1 or len(transcription.text) >= len(self.news.transcription.text)):
            at_pace = int((time.monotonic() - self._begun_at) * BYTES_PER_SEC)
            self.news = News(transcription, self._sent_bytes, self._sent_bytes if all_of_it else min(self._sent_bytes, at_pace))

    @property
    def end_sent_at(self) -> float | None:
        """Loop: when its end was sent; None before."""
        return self._end_sent_at
