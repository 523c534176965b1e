"""The messages of FunASR's runtime servers: what is sent, and what an answer means. Pure: no socket, no clock, no thread.

Two servers speak nearly the same protocol: the C++ one of FunASR's docker images and FunASR's Python script. ``Session`` is one utterance
on a connection: messages in, ``Transcription`` out. A server has voice activity detection of its own, so an utterance of ours may come
in several corrected pieces, each behind the increments that it replaces::

    increments   今天 天气 | 怎么样  ->  piece  今天天气怎么样？  ->  increments  明天  ->  piece  明天呢？  ->  end

``docs/remote.md`` shows a whole conversation. The end of an utterance is an acknowledgement (``is_end``, Python), or ``is_final`` in a
message of the C++ server. The Python server sets ``is_final`` in each corrected piece, which is not the end. Raises ``ServerNonsense``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from voice.audio import SAMPLE_RATE_HZ

BYTES_PER_SEC = 2 * SAMPLE_RATE_HZ
FRAME_BYTES = 60 * SAMPLE_RATE_HZ // 1000 * 2
"""Of one frame of s16le audio: 60 ms. The Python server decodes every tenth frame, whatever its length is."""
MAX_MESSAGE_BYTES = 1 << 20
"""Of one message; a longer one closes the connection."""
MAX_TEXT = 10_000
"""Characters of one utterance: 300 s of fast speech have 2,500."""
MAX_MESSAGES = 20_000
"""In one utterance: the C++ server sends at most one for each 50 ms."""
_MAX_DEPTH_ERRORS = (ValueError, RecursionError)
_FIRST_BYTES_OF_FILES = frozenset(b"RI\xffOf\x1a")
_WRONG_FORMAT = "ERROR. "
_CHUNK_SIZE, _CHUNK_INTERVAL = [5, 10, 5], 10


class ServerNonsense(Exception):
    """A message that no FunASR server sends; its text names what is wrong and quotes nothing."""


@dataclass(frozen=True, slots=True)
class TimedText:
    """A corrected piece."""

    text: str
    times: tuple[tuple[int, int], ...] = ()
    """Begin and end of each character or word, ms from the start of the utterance's audio; nothing where the server gives none."""


@dataclass(frozen=True, slots=True)
class Transcription:
    """What a server has said of an utterance so far."""

    pieces: tuple[TimedText, ...] = ()
    """Corrected by the server's second pass, with punctuation."""
    increments: str = ""
    """Recognised since the last piece; the next one replaces it."""

    @property
    def text(self) -> str:
        """All of it, as FunASR's client shows it."""
        return "".join(piece.text for piece in self.pieces) + self.increments

    @property
    def times(self) -> tuple[tuple[int, int], ...]:
        """Of all characters or words; nothing unless each piece has them and nothing stands behind the pieces."""
        if self.increments.strip() or not all(piece.times or not piece.text for piece in self.pieces):
            return ()
        return tuple(time for piece in self.pieces for time in piece.times)


NOTHING = Transcription()
"""Before the server has said anything."""


def start_message(name: str, hotwords: str) -> str:
    """The message before an utterance's audio."""
    return _dumped(
        {
            "mode": "2pass",
            "chunk_size": _CHUNK_SIZE,
            "chunk_interval": _CHUNK_INTERVAL,
            "wav_name": name,
            "wav_format": "pcm",
            "audio_fs": SAMPLE_RATE_HZ,
            "is_speaking": True,
            "hotwords": hotwords,
            "itn": False,
        }
    )


END_MESSAGE = json.dumps({"is_speaking": False, "is_end": True})
"""The message behind an utterance's audio. The C++ server ignores ``is_end``."""


def as_pcm(frame: bytes) -> bytes:
    """A frame of s16le audio that nobody takes for the start of a file.

    FunASR's Python server looks for the first bytes of WAV, MP3, Ogg, FLAC, MP4 and Matroska in each frame, and decodes what it takes for
    one as such: a quiet frame that began with FF FF 00 00, the samples -1 and 0, was an MP3 to it, and the utterance was lost. Where the
    first byte is that of such a mark, the sample's lowest bit is changed, 1/32768 of full scale: in 10 of the 250 frames of the examples.
    """
    changed = bytearray(frame)
    if frame[:1] and frame[0] in _FIRST_BYTES_OF_FILES:
        changed[0] ^= 1
    if frame[4:5] == b"f":  # ftyp
        changed[4] ^= 1
    return bytes(changed)


def hotword_text(words: Iterable[tuple[str, float]]) -> str:
    """Hotwords as the C++ server reads them: a text that holds a JSON object of word and whole weight; empty where there are none."""
    weights = {word: max(round(weight), 1) for word, weight in words}
    return _dumped(weights) if weights else ""


class Session:
    """One utterance on one connection."""

    def __init__(self, name: str) -> None:
        """Begin; the server repeats ``name`` in each answer, so that a late answer is not taken for one of the next utterance."""
        self._name = name
        self._num_messages = 0
        self._may_end_with_a_piece = False
        self.transcription = Transcription()
        self.ended = False
        """Whether the server said that nothing follows."""
        self.failed = False
        """Whether the server said that something went wrong while it recognised this utterance. What it said is not kept: it may quote."""

    @property
    def may_be_over(self) -> bool:
        """Whether the last piece may have been the end: old Python servers send no acknowledgement."""
        return self._may_end_with_a_piece

    def take(self, message: str | bytes) -> bool:
        """Take a message; True where the text changed.

        Raises:
            ServerNonsense: it is none of FunASR's.
        """
        self._num_messages += 1
        if self._num_messages > MAX_MESSAGES:
            raise ServerNonsense(f"more than {MAX_MESSAGES:,} messages for one utterance")
        content = _parsed(message)
        if content.get("wav_name", self._name) != self._name:
            return False
        text, mode, is_final = content.get("text", ""), content.get("mode", ""), content.get("is_final") is True
        if not isinstance(text, str) or not isinstance(mode, str):
            raise ServerNonsense("its text or mode is no text")
        if text.startswith(_WRONG_FORMAT):
            raise ServerNonsense("the server does not take this audio")
        if content.get("is_end") is True:
            self.ended, self.failed = True, bool(content.get("error"))
            return False
        before, text = self.transcription, _printable(text)
        if mode.endswith("offline"):
            self.transcription = Transcription((*before.pieces, TimedText(text, _times(content.get("timestamp"), len(text)))))
        elif mode.endswith("online"):
            self.transcription = Transcription(before.pieces, before.increments + text)
        if len(self.transcription.text) > MAX_TEXT or len(self.transcription.pieces) > MAX_TEXT:
            raise ServerNonsense(f"more than {MAX_TEXT:,} characters for one utterance")
        is_of_cpp = "slice_type" in content or not mode
        self.ended = is_final and is_of_cpp
        self._may_end_with_a_piece = is_final and mode.endswith("offline") and "spk_name" not in content
        return self.transcription.text != before.text


def _parsed(message: str | bytes) -> dict[str, Any]:
    if isinstance(message, bytes):
        raise ServerNonsense("a binary message")
    try:
        content = json.loads(message)
    except _MAX_DEPTH_ERRORS as error:
        raise ServerNonsense("a message that is not JSON") from error
    if not isinstance(content, dict):
        raise ServerNonsense("a message that is no JSON object")
    return content


def _printable(text: str) -> str:
    """Without line breaks, other control characters, and halves of surrogate pairs, which no line of UTF-8 can hold."""
    return "".join(character if character.isprintable() else " " * character.isspace() for character in text)


def _times(stamps: object, most: int) -> tuple[tuple[int, int], ...]:
    """Times that count from the start of the utterance's audio; nothing where there are more than ``most``.

    Those of the C++ server do, a text that holds a list of [begin, end]. Those of the Python server, a list, count from a start of its own
    that it does not tell: they are left out. So is a list that is not one of times in their order.
    """
    if not isinstance(stamps, str):
        return ()
    try:
        pairs = json.loads(stamps)
    except _MAX_DEPTH_ERRORS:
        return ()
    if not isinstance(pairs, list) or len(pairs) > most:
        return ()
    times: list[tuple[int, int]] = []
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(each) is int for each in pair)):
            return ()
        begin, end = pair
        if not (times[-1][0] if times else 0) <= begin <= end:
            return ()
        times.append((begin, end))
    return tuple(times)


def _dumped(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False)
