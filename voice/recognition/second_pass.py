"""The second pass with the weights of the first: the whole utterance is decoded once more, as one chunk.

Samples of one utterance -> tokens. No state but the weights. Worker thread. Raises what the engine raises.
"""

from __future__ import annotations

from collections.abc import Callable

from voice.audio import Samples
from voice.recognition.engine import Engine
from voice.recognition.hotwords import HotwordGraph
from voice.recognition.posteriors import decode_whole
from voice.recognition.search import TokenSearch
from voice.transcript import Token


class SamePass:
    """The streaming model, without chunks."""

    def __init__(self, engine: Engine, hotwords: Callable[[], HotwordGraph] = HotwordGraph) -> None:
        self._engine = engine
        self._hotwords = hotwords

    def tokens(self, samples: Samples) -> list[Token]:
        """Tokens of an utterance, with times counted from its first sample.

        Args:
            samples: float32, (num_samples,), 16 kHz mono.
        """
        search = TokenSearch(self._engine.vocabulary, self._hotwords(), self._engine.language)
        return search.advance(decode_whole(self._engine, samples, 0, is_final=True)) + search.finish()
