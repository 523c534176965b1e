"""Silero VAD: 32 ms windows -> probability of speech. Its weights come inside its wheel, so it works offline.

The network keeps the state of the signal; ``reset`` clears it. The wheel's ``import silero_vad`` would set torch to one thread for
the whole process, so its TorchScript file is loaded without importing the package. Worker thread.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

from voice.audio import SAMPLE_RATE_HZ, Samples
from voice.errors import ModelLoadFailed, describe


class SileroVad:
    """The network with its state."""

    window_samples = 512

    def __init__(self) -> None:
        import torch  # noqa: PLC0415

        self._torch = torch
        spec = importlib.util.find_spec("silero_vad")
        if spec is None or not spec.submodule_search_locations:
            raise ModelLoadFailed("the package silero-vad is not installed; run: pip install -r requirements.txt")
        path = Path(spec.submodule_search_locations[0]) / "data" / "silero_vad.jit"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch.jit announces its retirement; the file has no other form that needs no package
                self._network = torch.jit.load(str(path), map_location="cpu").eval()
        except (RuntimeError, ValueError) as error:
            raise ModelLoadFailed(f"{path} cannot be loaded: {describe(error)}") from error

    def probability(self, window: Samples) -> float:
        """Probability of speech in the next 512 samples.

        On one thread: its operations are too small to share, and on a busy machine sharing costs four times as much.
        """
        num_threads = self._torch.get_num_threads()
        self._torch.set_num_threads(1)
        try:
            with self._torch.inference_mode():
                return float(self._network(self._torch.from_numpy(window), SAMPLE_RATE_HZ))
        finally:
            self._torch.set_num_threads(num_threads)

    def reset(self) -> None:
        """Forget the signal so far."""
        self._network.reset_states()
