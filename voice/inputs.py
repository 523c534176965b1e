"""Settings -> what a run reads from and records to: the audio source, the recorder.

No state. Raises ``InputError`` where the input cannot be opened and ``ConfigInvalid`` where a setting names what cannot be.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from voice.capture.converted_file import ConvertedFile
from voice.capture.microphone import Microphone
from voice.capture.pcm_stream import PcmStream
from voice.capture.portaudio import MicrophoneSettings
from voice.capture.source import AudioSource
from voice.capture.wav_file import UnknownFormat, WavFile
from voice.config import Settings
from voice.errors import InputUnreadable
from voice.losses import LossLedger
from voice.output.recorder import Recorder
from voice.text_file import expand

STDIN_FILENO = 0


def open_source(settings: Settings, ledger: LossLedger, *, stdin_closed: bool = False) -> AudioSource:
    """The input that the settings name, open.

    Args:
        settings: of the audio.
        ledger: where lost audio is reported.
        stdin_closed: the process was started without a stdin; descriptor 0 is the null device now.

    Raises:
        InputError: it cannot be opened.
        ConfigInvalid: a device index that does not exist.
    """
    audio = settings.audio
    if audio.input == "-":
        if stdin_closed:
            raise InputUnreadable("stdin is closed; pipe raw s16le mono PCM into it, or use --input FILE")
        return PcmStream(STDIN_FILENO, audio.sample_rate)
    if audio.input != "mic":
        return _open_file(Path(audio.input), settings)
    return Microphone(
        MicrophoneSettings(
            device=audio.device,
            channels=2 if audio.channel == "mix" else audio.channel + 1,
            block_sec=audio.block_ms / 1000,
            latency_sec=audio.latency_sec,
            queue_sec=audio.queue_sec,
            stall_sec=audio.stall_ms / 1000,
            zeros_sec=audio.zeros_sec,
            wait_for_device=audio.wait_for_device,
        ),
        ledger,
    )


def _open_file(path: Path, settings: Settings) -> AudioSource:
    """A file by libsndfile, or by ffmpeg what that does not know."""
    pace = _real_time_pace() if settings.audio.realtime else None
    try:
        return WavFile(path, pace=pace)
    except UnknownFormat:
        return ConvertedFile(expand(path), settings.audio.channel, pace=pace)


def open_recorder(settings: Settings) -> Recorder | None:
    """Where the settings want utterances recorded.

    Raises:
        ConfigInvalid: the directory cannot be made, or not written to.
    """
    if settings.record.directory is None:
        return None
    return Recorder(Path(settings.record.directory), settings.record.max_mb * 2**20, lambda: datetime.now(timezone.utc))


def _real_time_pace() -> Callable[[float], float]:
    """Sleeps until a position is due; returns by how many seconds the caller is late."""
    started: list[float] = []

    def pace(position_sec: float) -> float:
        if not started:
            started.append(time.monotonic())
        ahead_sec = position_sec - (time.monotonic() - started[0])
        if ahead_sec > 0:
            time.sleep(ahead_sec)
        return max(-ahead_sec, 0.0)

    return pace
