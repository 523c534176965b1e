"""A process that captures from a microphone and prints what it reads, a JSON line each; tests of capture on a virtual device run it.

Its argument is a JSON object: settings that differ from ``DEFAULTS``. It prints ``{"format": ...}`` with the first block of each opening,
``{"tone_hz": ...}`` whenever the loudest frequency of the blocks changes (0: silence), and ``{"error": code, "message": ...}``. SIGUSR1
stops it reading, ``{"reads": false}``, and has it go on. SIGTERM ends it, with what it captured and lost in a last line. Where a lost
microphone is not waited for it ends with the error's exit code.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import structlog

from voice.audio import AudioBlock
from voice.capture.microphone import Microphone
from voice.capture.portaudio import MicrophoneSettings
from voice.capture.source import AudioFormat
from voice.errors import AudioDeviceUnavailable
from voice.losses import LossLedger
from voice.process.clock import clock_sec

DEFAULTS = MicrophoneSettings(
    device="pulse", channels=2, block_sec=0.03, latency_sec=0.2, queue_sec=30, stall_sec=1.0, zeros_sec=0, wait_for_device=True
)
_SILENCE = 1e-3


def tone_hz(block: AudioBlock) -> int:
    """The loudest frequency, to the nearest 100 Hz; 0 for silence."""
    samples = block.samples[:, 0]
    if np.abs(samples).max() < _SILENCE:
        return 0
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return round(float(spectrum.argmax()) * block.rate_hz / len(samples) / 100) * 100


class Driver:
    def __init__(self) -> None:
        self.stopped, self.reads = False, True
        self._last: dict[str, object] = {}
        self._format: AudioFormat | None = None
        self._tones_sec: collections.Counter[int] = collections.Counter()
        self._first_at = 0.0
        self._oldest_sec = 0.0

    def run(self, settings: MicrophoneSettings) -> int:
        ledger = LossLedger()
        microphone = Microphone(settings, ledger)
        while not self.stopped:
            if not self.reads:
                self.say(reads=False)
                time.sleep(0.01)
                continue
            try:
                self.take(microphone.read(0.25), microphone.format)
            except AudioDeviceUnavailable as error:
                self.say(error=error.error_code, message=str(error))
                if not microphone.recovers:
                    microphone.close()  # as the service does: PortAudio's threads do not survive the interpreter
                    return error.exit_code
                self._format = None
        stopped_at = clock_sec()
        microphone.close()
        while (block := microphone.read(0)) is not None:
            self.take(block, microphone.format)
        self.say(
            captured_sec=self._tones_sec.total(),
            lost_sec=ledger.lost_samples / 16_000,
            run_sec=stopped_at - self._first_at,
            tones_sec=self._tones_sec,
            oldest_sec=self._oldest_sec,
        )
        return 0

    def take(self, block: AudioBlock | None, audio_format: AudioFormat | None) -> None:
        if block is None:
            return
        assert block.captured_at is not None
        if audio_format is not None and self._format is None:
            self._format = audio_format
            self.say(format=dataclasses.asdict(audio_format))
        self._first_at = self._first_at or block.captured_at
        self._oldest_sec = max(self._oldest_sec, clock_sec() - block.captured_at)
        self._tones_sec[tone_hz(block)] += block.duration_sec
        self.say(tone_hz=tone_hz(block))

    def say(self, **line: object) -> None:
        """Print it where it is not what was printed last."""
        if line != self._last:
            print(json.dumps(line), flush=True)
            self._last = line

    def stop(self, *_: object) -> None:
        self.stopped = True

    def toggle(self, *_: object) -> None:
        self.reads = not self.reads


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    driver = Driver()
    signal.signal(signal.SIGTERM, driver.stop)
    signal.signal(signal.SIGUSR1, driver.toggle)
    sys.exit(driver.run(dataclasses.replace(DEFAULTS, **json.loads(sys.argv[1]))))
