"""The checks of ``voice-asr doctor``: what is there -> what that means, and the remedy. No state; what costs time is passed in."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from voice.audio import SAMPLE_RATE_HZ, Samples, rms
from voice.capture.converted_file import PROGRAM, REMEDY
from voice.capture.sources import MicrophoneInfo
from voice.level import decibels, level_of
from voice.prerequisites import PACKAGES

Verdict = Literal["ok", "warning", "failed"]

_SHOWN_PACKAGES = ("funasr", "torch", "onnxruntime", "sounddevice", "silero-vad")
_NEEDED_GB = 5
"""The real models, 2.3 GB, and their conversions."""
_FRAME = SAMPLE_RATE_HZ // 20
_TOO_QUIET_DBFS, _FAINT_DBFS = -45.0, -35.0
_NOISY_FLOOR_DBFS = -45.0
_LEAST_SNR_DB = 10.0
_CLIPPED = 0.01
_SLOW, _TOO_SLOW = 0.5, 0.9
"""Real-time factors: beyond the second speech is lost."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    verdict: Verdict
    text: str
    remedy: str = ""


def check_python() -> Finding:
    """Which Python runs this."""
    where = "in a virtual environment" if sys.prefix != sys.base_prefix else "not in a virtual environment"
    return Finding("Python", "ok", f"{platform.python_version()}, {where} ({sys.prefix})")


def check_packages() -> Finding:
    """Versions of the packages that matter most; that all are there was checked before."""
    return Finding("packages", "ok", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _SHOWN_PACKAGES))


def check_python_path(environment: Mapping[str, str] = os.environ) -> Finding:
    """Whether a folder in PYTHONPATH takes the place of a package: ROS and conda set it for other Pythons."""
    folders = [Path(each).resolve() for each in environment.get("PYTHONPATH", "").split(os.pathsep) if each]
    shadowed = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is not None and any(folder in origin.parents for folder in folders):
            shadowed.append(f"{name} ({origin.parent})")
    if shadowed:
        remedy = "start with an empty one: env -u PYTHONPATH voice-asr ..."
        return Finding("PYTHONPATH", "failed", f"it puts other packages before those installed: {', '.join(shadowed)}", remedy)
    return Finding("PYTHONPATH", "ok", "it shadows nothing" if folders else "not set")


def check_ffmpeg() -> Finding:
    """Whether files beyond libsndfile can be read."""
    program = shutil.which(PROGRAM)
    if program is None:
        return Finding("ffmpeg", "warning", "it is not there: m4a, mp4 and video cannot be read", REMEDY)
    return Finding("ffmpeg", "ok", program)


def check_disk(directory: Path) -> Finding:
    """Room where models are downloaded and converted to."""
    place = next(each for each in (directory, *directory.parents) if each.exists())
    free_gb = shutil.disk_usage(place).free / 1e9
    text = f"{free_gb:.1f} GB free in {place}"
    if free_gb < _NEEDED_GB:
        remedy = f"the real models and their conversions take {_NEEDED_GB} GB: make room, or set XDG_CACHE_HOME and MODELSCOPE_CACHE"
        return Finding("disk", "warning", text, remedy)
    return Finding("disk", "ok", text)


def check_sources(sources: Sequence[MicrophoneInfo] | None) -> Finding:
    """The sound server and its microphones."""
    if sources is None:
        return Finding(
            "sound server", "warning", "none answers", "on a desktop start PulseAudio or PipeWire; without one PortAudio is used"
        )
    microphones = [each for each in sources if not each.is_monitor]
    default = next((each for each in sources if each.is_default), None)
    if default is None:
        return Finding("sound server", "failed", "it has no source", "connect a microphone; `pactl list short sources` must list it")
    text = f"{len(microphones)} {'microphone' if len(microphones) == 1 else 'microphones'}; the default is '{default.description}'"
    if default.is_muted:
        return Finding("sound server", "failed", f"{text}, which is muted", "pactl set-source-mute @DEFAULT_SOURCE@ 0")
    if default.is_monitor:
        remedy = "choose a microphone: pactl set-default-source NAME, or --device (voice-asr devices lists them)"
        return Finding("sound server", "warning", f"{text}, a monitor: it hears what is played", remedy)
    return Finding("sound server", "ok", text)


def judge_microphone(samples: Samples, device: str) -> Finding:  # noqa: PLR0911 -- one for each verdict
    """What a few seconds of a microphone say about it.

    Args:
        samples: in which somebody was asked to speak.
        device: its name.
    """
    name = "microphone"
    if len(samples) == 0:
        return Finding(name, "failed", f"'{device}' delivers nothing", "replug it, or restart the sound server")
    if not samples.any():
        return Finding(
            name, "failed", f"'{device}' delivers exact zeros: it is muted", "pactl set-source-mute @DEFAULT_SOURCE@ 0, or its own switch"
        )
    level = level_of(samples)
    frames = [decibels(rms(samples[start : start + _FRAME])) for start in range(0, max(len(samples) - _FRAME, 1), _FRAME)]
    floor, loud = (float(np.percentile(frames, percent)) for percent in (10, 95))
    text = f"'{device}': peak {level.peak_dbfs:.0f} dBFS, noise floor {floor:.0f} dBFS, speech {loud - floor:.0f} dB above it"
    if level.clipped_ratio > _CLIPPED:
        remedy = "lower its gain: pactl set-source-volume @DEFAULT_SOURCE@ 60%"
        return Finding(name, "warning", f"{text}; {level.clipped_ratio:.0%} is clipped", remedy)
    if level.peak_dbfs < _TOO_QUIET_DBFS:
        remedy = "raise it: pactl set-source-volume @DEFAULT_SOURCE@ 100%, or come nearer; if nobody spoke, speak while it listens"
        return Finding(name, "failed", f"{text}; too quiet", remedy)
    if floor > _NOISY_FLOOR_DBFS and loud - floor < _LEAST_SNR_DB:
        return Finding(name, "warning", f"{text}; noisy", "move it away from fans and loudspeakers, come nearer, or lower its gain")
    if level.peak_dbfs < _FAINT_DBFS:
        return Finding(name, "warning", f"{text}; faint", "raise its gain, or come nearer")
    return Finding(name, "ok", text)


def judge_decoding(name: str, factor: float, *, right: bool) -> Finding:
    """What decoding an example says.

    Args:
        name: mode and engine.
        factor: time over length of the audio.
        right: whether the text was that of the example.
    """
    text = f"{factor:.2f} of real time"
    if not right:
        return Finding(name, "failed", f"{text}, and the text is wrong", "reinstall the package; its models or libraries are damaged")
    if factor > _TOO_SLOW:
        return Finding(name, "failed", f"{text}: audio will be lost", "close other programs, or use a smaller model")
    if factor > _SLOW:
        return Finding(name, "warning", f"{text}: little is left for other programs", "--engine onnx is the fastest on a CPU")
    return Finding(name, "ok", text)
