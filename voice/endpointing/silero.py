"""Endpointing: Silero VAD, 32 ms windows (float32, 16 kHz mono) -> probability of speech.

The network is the ONNX file inside the package silero-vad, so it works offline; the package itself is not imported, because its
import sets torch to one thread for the whole process. The recurrent state and the 64 samples before the window belong to this
object; ``reset`` clears both. Worker thread, and no other: the onnxruntime session has no threads of its own, because the
operations are too small to share.

Raises ``ModelLoadFailed`` when it is made and ``VadFailed`` for a window.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np

from voice.audio import SAMPLE_RATE_HZ, Samples
from voice.endpointing.endpointer import VadFailed
from voice.errors import ModelLoadFailed, describe

_CONTEXT_SAMPLES = 64
"""The network's input begins with this many samples of the window before (silero_vad/utils_vad.py, OnnxWrapper)."""
_MAX_ENERGY = 1e35
"""Sum of squares of one input. The network squares sums of 256 samples; above about 1e36 that exceeds the range of float32.
onnxruntime then turns NaN into 0 within the network, and the answer would be silence whatever the signal is."""
_REMEDY = "run: pip install --force-reinstall silero-vad onnxruntime"


class SileroVad:
    """The network with its state for one continuous signal."""

    window_samples = 512

    def __init__(self) -> None:
        """Load the network and run it once.

        Raises:
            ModelLoadFailed: a package is missing, or the file is missing or damaged.
        """
        spec = importlib.util.find_spec("silero_vad")
        if spec is None or not spec.submodule_search_locations:
            raise ModelLoadFailed("the package silero-vad is not installed; run: pip install -r requirements.txt")
        try:
            import onnxruntime  # noqa: PLC0415
            from onnxruntime.capi import onnxruntime_pybind11_state as native  # noqa: PLC0415
        except ImportError as error:
            reason = "the package onnxruntime cannot be imported; run: pip install -r requirements.txt"
            raise ModelLoadFailed(f"{reason} ({describe(error)})") from error
        self._errors: tuple[type[Exception], ...] = tuple(
            each for each in vars(native).values() if isinstance(each, type) and issubclass(each, Exception)
        )  # they have no base class of their own
        load_errors: tuple[type[Exception], ...] = (OSError, ValueError, VadFailed, *self._errors)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = Path(spec.submodule_search_locations[0]) / "data" / "silero_vad.onnx"
        try:
            network = path.read_bytes()
            self._session: Any = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
            self.reset()
            self.probability(np.zeros(self.window_samples, np.float32))
        except load_errors as error:
            raise ModelLoadFailed(f"{path} cannot be loaded; {_REMEDY} ({describe(error)})") from error
        self.reset()

    def reset(self) -> None:
        """Forget the signal so far."""
        self._state = np.zeros((2, 1, 128), np.float32)
        self._context = np.zeros(_CONTEXT_SAMPLES, np.float32)

    def probability(self, window: Samples) -> float:
        """Probability of speech, 0..1, in the next window.

        Args:
            window: float32, (512,), [-1, 1], 16 kHz mono; not kept after return.

        Raises:
            VadFailed: a sample or the answer is not finite, or the samples are too large. The signal so far is forgotten.
        """
        samples = np.concatenate((self._context, window))
        try:
            output, self._state = self._session.run(
                ["output", "stateN"], {"input": samples[None], "state": self._state, "sr": np.array(SAMPLE_RATE_HZ, np.int64)}
            )
        except self._errors as error:
            self.reset()
            raise VadFailed(f"Silero failed and was reset ({describe(error)})") from error
        self._context = samples[-_CONTEXT_SAMPLES:]
        with np.errstate(over="ignore", invalid="ignore"):
            in_range = bool(samples @ samples < _MAX_ENERGY)
        probability = float(output.item())
        if not (in_range and math.isfinite(probability) and np.isfinite(self._state).all()):
            self.reset()
            raise VadFailed("Silero was reset: a sample, the state or the answer was not finite, or samples were too large")
        return probability
