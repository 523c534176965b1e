"""The second pass with a FunASR model made for whole utterances (``paraformer-zh``: ``Paraformer`` and its subclasses), on torch.

Samples of one utterance -> tokens. No state but the weights. Worker thread. Raises ``NonFiniteOutput`` where the
model's output is not a number.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from voice.audio import Samples
from voice.models.funasr_model import FunasrModel
from voice.recognition.engine import NonFiniteOutput, Vocabulary
from voice.recognition.hotwords import HotwordGraph
from voice.recognition.posteriors import TokenPosteriors
from voice.recognition.search import TokenSearch
from voice.transcript import Token


class OfflinePass:
    """A model of FunASR's ``Paraformer`` family that decodes whole utterances."""

    def __init__(self, model: FunasrModel, hotwords: Callable[[], HotwordGraph] = HotwordGraph) -> None:
        """Take over a loaded model; the hotwords are spelt in its tokens."""
        import torch  # noqa: PLC0415

        self._torch = torch
        self._model = model
        module = model.module
        self.vocabulary = Vocabulary(model.tokens, frozenset((module.sos, module.eos, module.blank_id)))
        self._hotwords = hotwords

    def tokens(self, samples: Samples) -> list[Token]:
        """Tokens of an utterance. Each has the times of the whole utterance: the model gives none.

        Args:
            samples: float32, (num_samples,), 16 kHz mono.
        """
        search = TokenSearch(self.vocabulary, self._hotwords(), self._model.language)
        rows = self._model.run(lambda: self._log_posteriors(samples))
        return search.advance([TokenPosteriors(row, 0, len(samples)) for row in rows]) + search.finish()

    def _log_posteriors(self, samples: Samples) -> list[NDArray[np.float32]]:
        """(vocabulary,) of every token."""
        module, device = self._model.module, self._model.device
        waveform = self._torch.from_numpy(np.array(samples, np.float32))[None]
        features, lengths = self._model.frontend(waveform, self._torch.tensor([len(samples)]))
        encoded, lengths = module.encode(features.to(device), lengths.to(device))[:2]
        if not self._torch.isfinite(encoded).all():
            raise NonFiniteOutput("the encoder's frames")
        embeddings, counts = module.calc_predictor(encoded, lengths)[:2]
        if not self._torch.isfinite(counts).all():
            raise NonFiniteOutput("the predictor's weights")
        counts = counts.round().long()
        if int(counts.max()) < 1:
            return []
        log_posteriors, _ = module.cal_decoder_with_predictor(encoded, lengths, embeddings, counts)[:2]
        return list(log_posteriors[0, : int(counts[0])].float().cpu().numpy())
