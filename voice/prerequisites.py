"""The first step of both entries: Python and the packages are checked before anything imports them.

Mode -> exit code of the run. No state, main thread. What is missing is one line on stderr and exit code 2. This file is also parsed by
Pythons that are too old to run the service, so it uses no recent syntax and imports the rest inside ``run``.
"""

import importlib.util
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from voice.config import Mode
    from voice.process.start import Start

OLDEST_PYTHON = (3, 10)
NEWEST_PYTHON = (3, 13)
PACKAGES = (
    "torch",
    "funasr",
    "kaldi_native_fbank",
    "onnxruntime",
    "onnx",
    "silero_vad",
    "numpy",
    "sounddevice",
    "soundfile",
    "soxr",
    "structlog",
    "pydantic",
    "pydantic_settings",
    "yaml",
    "pypinyin",
    "wetext",
    "websockets",
)
"""The modules of requirements.txt that the service needs; torchaudio is not needed on a CPU, setuptools from Python 3.12 on by FunASR."""
TERMINAL_PACKAGES = ("rich", "shtab", "jinja2")
"""Those that ``voice-asr`` needs on top."""
EXIT_CONFIG = 2
"""As in ``voice.errors``, which an old Python cannot import."""


def run(mode: "Mode", start: "Start") -> int:
    """Run the service in ``mode``; its exit code, or 2 where Python or a package does not fit."""
    problem = missing()
    if problem:
        return _refuse(problem)
    try:
        from voice.cli import main  # noqa: PLC0415 -- it imports the packages
    except (ImportError, OSError) as error:  # OSError where a shared library of a package is missing
        reason = " ".join(str(error).split())[:300]
        if os.environ.get("PYTHONPATH"):  # ROS and conda set it for other Pythons
            return _refuse(f"a package cannot be imported ({reason}); PYTHONPATH is set: try without it, env -u PYTHONPATH ...")
        return _refuse(f"a package is damaged ({reason}): `make demo` installs all in .venv, start with .venv/bin/python")
    return main(mode, start)


def missing(packages: "tuple[str, ...]" = PACKAGES) -> "str | None":
    """What keeps the service, or what needs more packages, from running here, and the remedy; None where nothing does."""
    python = sys.version_info[:2]
    if not OLDEST_PYTHON <= python <= NEWEST_PYTHON:
        needed = f"{_text(OLDEST_PYTHON)} to {_text(NEWEST_PYTHON)} is needed"
        return f"Python {_text(python)} does not fit, {needed}: `make demo` sets up one in .venv"
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    if absent:
        return f"packages are missing ({', '.join(absent)}): `make demo` installs them in .venv, start with .venv/bin/python"
    return None


def _text(version: "tuple[int, int]") -> str:
    return ".".join(map(str, version))


def _refuse(reason: str) -> int:
    sys.stderr.write(f"error: {reason}\n")
    return EXIT_CONFIG
