"""torch and FunASR prepared for this process: light imports, the device, threads.

``import funasr`` imports all of its 200 modules: 6 s, in which it holds the GIL so that an audio callback starves. ``prepare_imports``
registers an empty parent package, so that only the modules that a model needs are imported (0.5 s). A torchaudio that cannot load (its
PyPI wheel beside a CPU torch raises OSError) would end that import: it is tried once and hidden if it is broken, and FunASR then uses
``kaldi-native-fbank``. No state beyond ``sys.modules``, the environment and torch's own settings.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import os
import subprocess
import sys
import types
from typing import Any, Literal

import structlog

from voice.errors import ModelLoadFailed, describe

DeviceType = Literal["auto", "cpu", "cuda"]

log = structlog.get_logger()


@functools.cache
def prepare_imports() -> None:
    """Make ``funasr.*`` importable without FunASR's import of everything, and a broken torchaudio invisible.

    Raises:
        ModelLoadFailed: FunASR is not installed, or cannot be imported.
    """
    try:
        importlib.import_module("torchaudio")
    except Exception as error:  # noqa: BLE001 -- a wheel linked against a missing library raises OSError, others other types
        sys.modules["torchaudio"] = None  # type: ignore[assignment]  # the documented way to make an import fail
        log.info("torchaudio_hidden", reason=describe(error)[:160], instead="kaldi-native-fbank")
    if "funasr" not in sys.modules:
        spec = importlib.util.find_spec("funasr")
        if spec is None or spec.submodule_search_locations is None:
            raise ModelLoadFailed("the package funasr is not installed; run: pip install -r requirements.txt")
        package = types.ModuleType("funasr")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules["funasr"] = package
    _import_audio_loading()


def _import_audio_loading() -> None:
    """Import ``funasr.utils.load_utils``, which all models import, without its search for ffmpeg.

    At its import it runs ``ffmpeg -version``, which fails where a directory of PATH may not be read, and prints four lines where there
    is no ffmpeg. Nothing in FunASR uses the answer, so it is given here and no process is started.
    """
    real = subprocess.check_output

    def answer(command: Any, *args: Any, **kwargs: Any) -> Any:
        return b"ffmpeg version" if command == ["ffmpeg", "-version"] else real(command, *args, **kwargs)

    subprocess.check_output = answer  # type: ignore[assignment]  # an overloaded function
    try:
        importlib.import_module("funasr.utils.load_utils")
    except ImportError as error:
        raise ModelLoadFailed(f"FunASR cannot be imported ({describe(error)}); run: pip install -r requirements.txt") from error
    finally:
        subprocess.check_output = real


def resolve_device(device_type: DeviceType) -> str:
    """``cpu`` or ``cuda``; ``auto`` takes CUDA where there is a device.

    Raises:
        ModelLoadFailed: CUDA was asked for by name and there is none.
    """
    import torch  # noqa: PLC0415

    available = torch.cuda.is_available()
    if device_type == "cuda" and not available:
        raise ModelLoadFailed("device_type is cuda, but torch sees no CUDA device; use --device-type cpu")
    return "cuda" if device_type != "cpu" and available else "cpu"


def has_nvidia_gpu() -> bool:
    """Whether a driver of NVIDIA's is there and sees a device: then torch is asked, whose import takes a second, whether it can use it."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):
        return False


def limit_spinning() -> None:
    """Keep torch's idle threads from spinning for long; called before torch is imported, the user's own choice wins.

    libgomp lets a thread that waits spin for milliseconds. With another busy process on a machine of two cores, that starves the
    thread it waits for: a chunk then took 10 to 100 times as long. Spinning 10,000 rounds costs 3 % where the machine is idle
    (bench/README.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def set_num_threads(num_threads: int) -> None:
    """Set the threads of one torch operation. Called after all loading: libraries that are imported change the number."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(num_threads)
