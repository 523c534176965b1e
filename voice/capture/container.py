"""Recognises audio files by their first bytes, so that a file piped into stdin is not taken for raw PCM.

Stage: capture. First bytes of a stream -> name of the container, or None for raw samples. No state, no I/O.
Sources: RIFF/WAVE and RF64 (EBU Tech 3306), FLAC (RFC 9639, 6), Ogg (RFC 3533, 6), ID3v2.4 structure (3.1), MPEG audio frame header
(ISO/IEC 11172-3, 2.4.1.3).
"""

from __future__ import annotations

_ANY = None
_MAGIC: tuple[tuple[str, tuple[int | None, ...]], ...] = (
    ("WAV (RIFF)", (*b"RIFF", *[_ANY] * 4, *b"WAVE")),
    ("WAV (RIFX)", (*b"RIFX", *[_ANY] * 4, *b"WAVE")),
    ("WAV (RF64)", (*b"RF64", *[_ANY] * 4, *b"WAVE")),
    ("FLAC", (*b"fLaC",)),
    ("Ogg", (*b"OggS", 0)),  # the version
    ("MP3 (ID3)", (*b"ID3", 2, 0)),
    ("MP3 (ID3)", (*b"ID3", 3, 0)),
    ("MP3 (ID3)", (*b"ID3", 4, 0)),
)
_KBPS_MPEG_1 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBPS_MPEG_2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
"""By the version bits of the header: MPEG 1, 2, 2.5."""
MAX_HEADER_BYTES = 1_445
"""After so many bytes ``container_of`` has decided: the longest MP3 frame (320 kbit/s at 32 kHz) and the next frame's header."""


def container_of(start: bytes) -> str | None:
    """Name of the container whose header ``start`` begins with."""
    for name, magic in _MAGIC:
        if len(start) >= len(magic) and _agrees(start, magic):
            return name
    length = _mp3_frame_bytes(start)
    return "MP3" if length and _mp3_frame_bytes(start[length:]) and _same_stream(start, start[length:]) else None


def is_undecided(start: bytes) -> bool:
    """Whether more bytes may turn ``start`` into the header of a container."""
    if any(len(start) < len(magic) and _agrees(start, magic) for _, magic in _MAGIC):
        return True
    if len(start) < 4:
        return _agrees(start, (0xFF,)) and (len(start) < 2 or _is_layer_3(start[1]))
    length = _mp3_frame_bytes(start)
    return length > 0 and len(start) < length + 4


def _agrees(start: bytes, magic: tuple[int | None, ...]) -> bool:
    return all(wanted in (_ANY, byte) for byte, wanted in zip(start, magic, strict=False))


def _is_layer_3(second_byte: int) -> bool:
    """The last three bits of the sync word, a version that exists, and layer III."""
    return second_byte & 0xE6 == 0xE2 and second_byte & 0x18 != 0x08


def _mp3_frame_bytes(header: bytes) -> int:
    """Length of the MP3 frame that begins with ``header``; 0 where none begins there.

    Two bytes of sync are likely in raw PCM (0xFBFF is the sample -1025), so a stream counts as MP3 only where a second frame follows.
    """
    if len(header) < 4 or header[0] != 0xFF or not _is_layer_3(header[1]):
        return 0
    version, kbps_index, rate_index = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if kbps_index in (0, 15) or rate_index == 3:
        return 0
    kbps = (_KBPS_MPEG_1 if version == 3 else _KBPS_MPEG_2)[kbps_index - 1]
    padding = header[2] >> 1 & 1
    return (144 if version == 3 else 72) * kbps * 1_000 // _RATES_HZ[version][rate_index] + padding


def _same_stream(first: bytes, second: bytes) -> bool:
    """Whether version, layer and sample rate agree, which a stream never changes."""
    return first[1] == second[1] and first[2] & 0x0C == second[2] & 0x0C
