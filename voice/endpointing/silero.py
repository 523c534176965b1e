"""Endpointing: Silero VAD, 32 ms windows (float32, 16 kHz mono) -> probability of speech.

The network is an ONNX file inside the package silero-vad, so it works offline; the package itself is not imported, because its
import sets torch to one thread for the whole process. This file takes several windows in one call: after a pause of 0.1 s a call costs
0.42 ms with one window and 0.52 ms with three. Its answers are bit by bit those of one call for each window.

The recurrent state, the 64 samples before the next window and the answers given ahead belong to this object; ``reset`` clears them. Worker
thread, and no other: the onnxruntime session has no threads of its own, because the operations are too small to share.

Raises ``ModelLoadFailed`` when it is made and ``VadFailed`` for a window.
"""

from __future__ import annotations

import importlib.util
import math
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from voice.audio import NO_SAMPLES, Samples
from voice.endpointing.endpointer import VadFailed
from voice.errors import ModelLoadFailed, describe
from voice.models.onnx_session import open_session, session_errors

_CONTEXT_SAMPLES = 64
"""The network's input begins with this many samples of the window before (silero_vad/utils_vad.py, OnnxWrapper)."""
_MAX_WINDOWS = 8
"""Windows of one call at most: more than the longest block of a microphone has, 200 ms."""
_MAX_ENERGY = 1e35
"""Sum of squares of the input. The network squares sums of 256 samples; above about 1e36 that exceeds the range of float32.
onnxruntime then turns NaN into 0 within the network, and the answer would be silence whatever the signal is."""
_FILE = "silero_vad_16k_sequence.onnx"
_REMEDY = "run: pip install --force-reinstall 'silero-vad>=6.2.2' onnxruntime"


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
        self._errors = session_errors()
        path = Path(spec.submodule_search_locations[0]) / "data" / _FILE
        self._input = np.zeros((_MAX_WINDOWS, _CONTEXT_SAMPLES + self.window_samples), np.float32)
        refused: tuple[type[Exception], ...] = (ModelLoadFailed, VadFailed)
        try:
            self._session: Any = open_session(path)
            self.reset()
            self.probability(np.zeros(self.window_samples, np.float32))
        except refused as error:
            raise ModelLoadFailed(f"{path} cannot be loaded; {_REMEDY} ({describe(error)})") from error
        self.reset()

    def reset(self) -> None:
        """Forget the signal so far."""
        self._hidden, self._cell = np.zeros((1, 1, 128), np.float32), np.zeros((1, 1, 128), np.float32)
        self._context = np.zeros(_CONTEXT_SAMPLES, np.float32)
        self._answers: deque[float] = deque()

    def probability(self, window: Samples, following: Samples = NO_SAMPLES) -> float:
        """Probability of speech, 0..1, in the next window.

        Args:
            window: float32, (512,), [-1, 1], 16 kHz mono; not kept after return.
            following: float32, (n * 512,): the windows that will be asked about next, as far as they are known; not kept after return.

        Raises:
            VadFailed: a sample or the answer is not finite, or the samples are too large. The signal so far is forgotten.
        """
        if not self._answers:
            try:
                self._answers.extend(self._ask(window, following))
            except VadFailed:
                if len(following):  # a later window may be the cause
                    return self.probability(window)
                self.reset()
                raise
        return self._answers.popleft()

    def _ask(self, window: Samples, following: Samples) -> list[float]:
        """The answers for a window and, as far as one call goes, those that follow it. State changes only where there are answers.

        Raises:
            VadFailed: there are none.
        """
        size = self.window_samples
        if len(window) != size:
            raise VadFailed(f"Silero takes windows of {size} samples, not {len(window)}")
        num_windows = min(1 + len(following) // size, _MAX_WINDOWS)
        samples = self._input[:num_windows]
        samples[0, _CONTEXT_SAMPLES:] = window
        samples[1:, _CONTEXT_SAMPLES:] = following[: (num_windows - 1) * size].reshape(-1, size)
        samples[0, :_CONTEXT_SAMPLES] = self._context
        samples[1:, :_CONTEXT_SAMPLES] = samples[:-1, size:]
        try:
            output, hidden, cell = self._session.run(["speech_probs", "hn", "cn"], {"input": samples, "h": self._hidden, "c": self._cell})
        except self._errors as error:
            raise VadFailed(f"Silero failed and was reset ({describe(error)})") from error
        answers: list[float] = output.tolist()
        finite = math.isfinite(np.vdot(hidden, hidden) + np.vdot(cell, cell) + sum(answers))  # vdot never warns
        if not (finite and np.vdot(samples, samples) < _MAX_ENERGY):
            raise VadFailed("Silero was reset: a sample, the state or the answer was not finite, or samples were too large")
        self._hidden, self._cell, self._context = hidden, cell, samples[-1, size:].copy()
        return answers
