"""The second pass: a whole utterance decoded once more, with all of it in view.

Samples of one utterance -> tokens. ``SamePass`` takes the streaming model's weights without chunks, ``OfflinePass`` a Paraformer made
for whole utterances (paraformer-zh). No state but the weights. Runs where the finalizer runs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from voice.audio import Samples
from voice.models.funasr_model import FunasrModel
from voice.recognition.hotwords import HotwordGraph
from voice.recognition.search import Reading, TokenSearch, Vocabulary
from voice.recognition.torch_engine import Paraformer, read_whole
from voice.transcript import Token


class SamePass:
    """The streaming model, without chunks."""

    def __init__(self, model: Paraformer, hotwords: Callable[[], HotwordGraph] = HotwordGraph) -> None:
        self._model = model
        self._hotwords = hotwords

    def tokens(self, samples: Samples) -> list[Token]:
        """Tokens of an utterance, timed from its first sample.

        Args:
            samples: float32, (num_samples,), 16 kHz mono.
        """
        search = TokenSearch(self._model.vocabulary, self._hotwords())
        return search.advance(read_whole(self._model, samples, 0, is_final=True)) + search.finish()


class OfflinePass:
    """A model of FunASR's ``Paraformer`` family that hears whole utterances."""

    def __init__(self, model: FunasrModel, hotwords: Callable[[], HotwordGraph] = HotwordGraph) -> None:
        """Take a loaded model over; the hotwords are spelt in its tokens."""
        import torch  # noqa: PLC0415

        self._torch = torch
        self._model = model
        module = model.module
        self.vocabulary = Vocabulary(model.tokens, frozenset((module.sos, module.eos, module.blank_id)))
        self._hotwords = hotwords

    def tokens(self, samples: Samples) -> list[Token]:
        """Tokens of an utterance; their times are those of the whole.

        Args:
            samples: float32, (num_samples,), 16 kHz mono.
        """
        search = TokenSearch(self.vocabulary, self._hotwords())
        rows = self._model.run(lambda: self._log_posteriors(samples))
        return search.advance([Reading(row, 0, len(samples)) for row in rows]) + search.finish()

    def _log_posteriors(self, samples: Samples) -> list[NDArray[np.float32]]:
        """(vocabulary,) of every token."""
        module, device = self._model.module, self._model.device
        waveform = self._torch.from_numpy(np.array(samples, np.float32))[None]
        features, lengths = self._model.frontend(waveform, self._torch.tensor([len(samples)]))
        encoded, lengths = module.encode(features.to(device), lengths.to(device))[:2]
        embeddings, counts = module.calc_predictor(encoded, lengths)[:2]
        counts = counts.round().long()
        if int(counts.max()) < 1:
            return []
        log_posteriors, _ = module.cal_decoder_with_predictor(encoded, lengths, embeddings, counts)[:2]
        return list(log_posteriors[0, : int(counts[0])].float().cpu().numpy())
