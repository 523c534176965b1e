"""Sliced mode: no model state between slices, only left-context audio and the committed tokens.

Samples of one utterance -> ``Hypothesis`` without a provisional part. Every slice a window (context + slice) is decoded as one
chunk with fresh caches; what stands behind the committed tokens is appended. Nothing is ever taken back, and the cost of
a slice is bounded by the window::

      committed 打 开 客 厅
      window  [    开 客 厅 的 灯 ]      的 is appended, 灯 stands in the edge: it waits for the next slice or the flush
              |--- context ---|- slice -|
                                    |edge

Worker thread only; any exception leaves the stream unusable.
"""

from __future__ import annotations

import itertools

import numpy as np

from voice.audio import Samples
from voice.recognition.alignment import continuation
from voice.recognition.paraformer import FRAME_SAMPLES, ChunkPreset, Paraformer
from voice.transcript import CONTINUES, Hypothesis, Token

_TIME_SLACK_SAMPLES = 2 * FRAME_SAMPLES
"""A committed token may end so much before the window and still be heard in it: CIF times move a frame or two with context."""
_CUT_SAMPLES = 8 * FRAME_SAMPLES
"""So long the decoder may mishear what stands at the window's start, for lack of left context."""


class SlicedRecognizer:
    """Sliced decoding with the weights of ``model``."""

    source = "funasr.paraformer-zh-streaming"

    def __init__(self, model: Paraformer, *, slice_samples: int, context_samples: int, edge_samples: int) -> None:
        self._model = model
        self._slice_samples = slice_samples
        self._context_samples = context_samples
        self._edge_samples = edge_samples

    def create_stream(self, first_sample: int) -> SlicedStream:
        """A stream for an utterance whose audio begins at ``first_sample``."""
        return SlicedStream(self._model, self._slice_samples, self._context_samples, self._edge_samples, first_sample)


class SlicedStream:
    """One utterance in sliced mode."""

    def __init__(self, model: Paraformer, slice_samples: int, context_samples: int, edge_samples: int, first_sample: int) -> None:
        self._model = model
        self._slice_samples = slice_samples
        self._context_samples = context_samples
        self._edge_samples = edge_samples
        self._window = np.zeros(0, np.float32)
        self._pending = np.zeros(0, np.float32)
        self._committed: list[Token] = []
        self.decoded_until = first_sample

    def accept(self, samples: Samples, *, provisional: bool = True) -> bool:
        """Decode every slice that is complete with these samples."""
        del provisional  # there is no such part in this mode
        self._pending = np.concatenate((self._pending, samples))
        decoded = len(self._pending) >= self._slice_samples
        while len(self._pending) >= self._slice_samples:
            self._decode(self._pending[: self._slice_samples], is_final=False)
            self._pending = self._pending[self._slice_samples :]
        return decoded

    def hypothesis(self) -> Hypothesis:
        """The committed tokens, without a trailing Latin word that the next slice may continue."""
        shown = list(self._committed)
        while shown and (CONTINUES in shown[-1].text or shown[-1].text.isascii()):
            shown.pop()
        return Hypothesis(tuple(shown))

    def finish(self) -> Hypothesis:
        """Decode the rest; nothing is held back at the edge."""
        self._decode(self._pending, is_final=True)
        self._pending = self._pending[:0]
        return Hypothesis(tuple(self._committed))

    def _decode(self, samples: Samples, *, is_final: bool) -> None:
        self._window = np.concatenate((self._window[max(0, len(self._window) - self._context_samples) :], samples))
        self.decoded_until += len(samples)
        tokens = self._decode_window(is_final=is_final)
        begin = self.decoded_until - len(self._window)
        heard = itertools.takewhile(lambda token: token.end_sample > begin - _TIME_SLACK_SAMPLES, reversed(self._committed))
        edge = self.decoded_until if is_final else self.decoded_until - self._edge_samples
        new = tokens[continuation(list(heard)[::-1], tokens, begin + _CUT_SAMPLES) :]
        self._committed += new if is_final else itertools.takewhile(lambda token: token.end_sample <= edge, new)

    def _decode_window(self, *, is_final: bool) -> list[Token]:
        """All tokens of the window, decoded as one chunk with full attention and no history."""
        features = self._model.features(self._window, {}, is_final=True)
        if features.shape[1] == 0:
            return []
        preset = ChunkPreset(0, features.shape[1], 0, encoder_look_back=0, decoder_look_back=0)
        state = self._model.new_state(preset)
        chunk = self._model.encode(features, state, preset)
        fired, _ = self._model.integrate(chunk, range(len(chunk.weights)), state.cif, is_final=is_final)
        return self._model.decode(chunk, fired, state.decoder, self.decoded_until - len(self._window))[0]
