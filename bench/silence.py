"""What listening costs while nobody speaks: the real service on a real PulseAudio microphone.

    python bench/silence.py                            # 3 minutes
    python bench/silence.py --noise rain.ogg           # a recording without speech, instead of low white noise
    VOICE_ASR__AUDIO__BLOCK_MS=30 python bench/silence.py

The service listens to the monitor of a null sink of a private PulseAudio server: first to digital silence, then to noise. Once it is
ready and has settled, it is measured for ``--seconds``. ``audio.zeros_sec`` is 0: else the service would open a device anew, once, that
delivers nothing but zeros for a minute, as no microphone does.

- *% of a core*: user and system time of all threads of the process (``/proc/PID/stat``), per second.
- *busiest thread*: the share of that which the main thread, and the busiest other one, used.
- *wake-ups*: voluntary context switches of all threads, per second.

It needs Linux and what the tests of the microphone need (``make setup-dev``, pulseaudio). A benchmark, not a test: nothing here passes
or fails.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from harness import RunningService, start_service  # noqa: E402
from virtual_microphone import VirtualMicrophone  # noqa: E402

WHITE_NOISE_DBFS = -55
SETTLE_SEC = 5
ALIVE = {"VOICE_ASR__AUDIO__ZEROS_SEC": "0"}
TICKS_PER_SEC = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Spent:
    """What a process has used since its start."""

    at_sec: float
    process_sec: float
    threads_sec: dict[int, float]
    """Of each thread that lives."""
    wake_ups: dict[int, int]
    """Of each thread that lives."""


def spent(pid: int) -> Spent:
    """What a process has used so far."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    threads_sec, wake_ups = {}, {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        threads_sec[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
        wake_ups[int(task.name)] = int((task / "status").read_text().partition("voluntary_ctxt_switches:")[2].split()[0])
    return Spent(time.monotonic(), (int(user) + int(system)) / TICKS_PER_SEC, threads_sec, wake_ups)


def report(name: str, pid: int, before: Spent, after: Spent) -> None:
    """Print what was used between two moments."""
    seconds = after.at_sec - before.at_sec
    threads = {thread: used - before.threads_sec.get(thread, 0.0) for thread, used in after.threads_sec.items()}
    main = threads.pop(pid)
    share, main_share, other_share = (used / seconds for used in (after.process_sec - before.process_sec, main, max(threads.values())))
    wake_ups = sum(count - before.wake_ups.get(thread, 0) for thread, count in after.wake_ups.items()) / seconds
    print(f"{name:20}{share:12.2%}{main_share:14.2%}{other_share:16.2%}{wake_ups:12.0f}", flush=True)


def noise_file(directory: Path, recording: Path | None, seconds: float) -> Path:
    """A file of noise that lasts so long: the recording over and over, or white noise."""
    if recording is None:
        rate_hz = 48_000
        samples = np.random.default_rng(0).normal(0, 10 ** (WHITE_NOISE_DBFS / 20), rate_hz)
    else:
        samples, rate_hz = soundfile.read(recording, always_2d=True)
        samples = samples[:, 0]
    path = directory / "noise.wav"
    soundfile.write(path, np.resize(samples, round(seconds * rate_hz)), rate_hz)
    return path


def measure(service: RunningService, seconds: float, name: str) -> None:
    """Measure for so long, once the start of the sound is over."""
    time.sleep(SETTLE_SEC)
    before = spent(service.process.pid)
    time.sleep(seconds)
    report(name, service.process.pid, before, spent(service.process.pid))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=("streaming", "sliced"), default="streaming")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each measurement (default: 60)")
    parser.add_argument("--noise", type=Path, help=f"a recording without speech (default: white noise of {WHITE_NOISE_DBFS} dBFS)")
    arguments = parser.parse_args()
    settings = {key: value for key, value in os.environ.items() if key.startswith("VOICE_ASR__")}
    with tempfile.TemporaryDirectory() as directory:
        noise = noise_file(Path(directory), arguments.noise, arguments.seconds + 3 * SETTLE_SEC)
        microphone = VirtualMicrophone(Path(directory))
        microphone.start()
        service = start_service(arguments.mode, "--input", "mic", "--status-events", **{**ALIVE, **microphone.variables, **settings})
        try:
            service.wait_for(lambda event: event.get("state") == "listening", 600)
            print(f"{'':20}{'% of a core':>12}{'main thread':>14}{'busiest other':>16}{'wake-ups/s':>12}")
            measure(service, arguments.seconds, "silence")
            microphone.begin_to_play(noise)
            measure(service, arguments.seconds, "noise")
            service.process.terminate()
            events, _ = service.finish()
            totals = events[-1]["totals"]
            print(f"utterances: {totals['utterances'] + totals['empty_utterances']}, audio lost: {totals['lost_ms']} ms")
        finally:
            service.end()
            microphone.stop()


if __name__ == "__main__":
    main()
