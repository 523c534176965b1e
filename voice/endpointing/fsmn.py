"""Endpointing: FunASR's fsmn-vad, 60 ms windows (float32, 16 kHz mono) -> probability of speech.

Only the network is used. The decisions of ``FsmnVADStreaming`` are not: its end silence follows a schedule of its own (2 s for
short speech), and its options are shared between streams. The frontend and the network keep their state in caches that belong to
this object; ``reset`` renews them. Worker thread; torch's number of threads is left as it is.

Raises ``VadFailed`` for a window.
"""

from __future__ import annotations

import math
from typing import Any

from voice.audio import NO_SAMPLES, Samples
from voice.endpointing.endpointer import VadFailed
from voice.errors import describe
from voice.models.funasr_model import FunasrModel


class FsmnVad:
    """The network with its caches for one continuous signal."""

    window_samples = 960

    def __init__(self, model: FunasrModel) -> None:
        import torch  # noqa: PLC0415

        self._torch = torch
        self._model = model
        self._silence_ids: list[int] = list(model.module.vad_opts.sil_pdf_ids)
        self.reset()

    def reset(self) -> None:
        """Forget the signal so far."""
        self._frontend_cache: dict[str, Any] = {}
        self._network_cache: dict[str, Any] = {}
        self._probability = 0.0

    def probability(self, window: Samples, following: Samples = NO_SAMPLES) -> float:
        """Mean probability of speech, 0..1, over the 10 ms frames that the next window completes (about 45 ms late).

        Args:
            window: float32, (960,), [-1, 1], 16 kHz mono; not kept after return.
            following: not used: the network takes one window at a time.

        Raises:
            VadFailed: the frontend or the network failed, or the answer is not finite. The signal so far is forgotten.
        """
        del following
        try:
            probability = self._answer(window)
        except RuntimeError as error:  # torch's, and the frontend's where a sample or an energy is not finite
            self.reset()
            raise VadFailed(f"fsmn-vad failed and was reset ({describe(error)})") from error
        if not math.isfinite(probability):
            self.reset()
            raise VadFailed("fsmn-vad was reset: its answer was not finite")
        self._probability = probability
        return probability

    def _answer(self, window: Samples) -> float:
        """The network's answer; that of the window before where this one completes no frame."""
        with self._torch.inference_mode():
            waveform = self._torch.from_numpy(window)[None]
            lengths = self._torch.tensor([waveform.shape[1]])
            frames, _ = self._model.frontend(waveform, lengths, cache=self._frontend_cache, is_final=False)
            if frames.ndim != 3 or not frames.shape[1]:
                return self._probability
            scores = self._model.module.encoder(frames.to(self._model.device), cache=self._network_cache)
            silence = scores[0, :, self._silence_ids].sum(dim=-1)
            return float(1 - silence.mean())
