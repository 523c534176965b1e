"""FunASR's fsmn-vad: 60 ms windows -> probability of speech.

Only its network is used; the decisions of ``FsmnVADStreaming`` are not, because its end silence is set by a schedule of its own
(2 s for short speech) and its options are shared between streams. The frontend and the network keep state in caches that are
this object's; ``reset`` renews them. Worker thread.
"""

from __future__ import annotations

from typing import Any

from voice.audio import Samples
from voice.models.funasr_model import FunasrModel


class FsmnVad:
    """The network with its caches."""

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

    def probability(self, window: Samples) -> float:
        """Mean probability of speech over the 10 ms frames that these samples complete (about 45 ms of lag)."""
        with self._torch.inference_mode():
            waveform = self._torch.from_numpy(window)[None]
            lengths = self._torch.tensor([waveform.shape[1]])
            frames, _ = self._model.frontend(waveform, lengths, cache=self._frontend_cache, is_final=False)
            if frames.ndim == 3 and frames.shape[1]:
                scores = self._model.module.encoder(frames.to(self._model.device), cache=self._network_cache)
                silence = scores[0, :, self._silence_ids].sum(dim=-1)
                self._probability = float(1 - silence.mean())
        return self._probability
