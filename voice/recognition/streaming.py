"""Streaming mode: one cache per utterance, each chunk commits its tokens, the look-ahead is shown as a provisional tail.

Samples of one utterance -> ``Hypothesis``. A token that may yet turn out to be part of a hotword is provisional too. A stream
holds FunASR's caches, the samples of the unfinished chunk, the search and the committed tokens; nothing is shared between streams.
Worker thread only; any exception leaves the stream unusable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from voice.audio import Samples
from voice.recognition.hotwords import HotwordGraph
from voice.recognition.search import Reading, TokenSearch
from voice.recognition.torch_engine import FRAME_SAMPLES, ChunkPreset, ChunkState, Firing, Paraformer
from voice.transcript import Hypothesis, Token


class StreamingRecognizer:
    """Streaming decoding with the weights of ``model``."""

    source = "funasr.streaming.paraformer-zh"

    def __init__(self, model: Paraformer, preset: ChunkPreset, hotwords: Callable[[], HotwordGraph] = HotwordGraph) -> None:
        self._model = model
        self._preset = preset
        self._hotwords = hotwords

    def create_stream(self, first_sample: int) -> StreamingStream:
        """A stream for an utterance whose audio begins at ``first_sample``."""
        return StreamingStream(self._model, self._preset, TokenSearch(self._model.vocabulary, self._hotwords()), first_sample)


class StreamingStream:
    """One utterance in streaming mode."""

    def __init__(self, model: Paraformer, preset: ChunkPreset, search: TokenSearch, first_sample: int) -> None:
        self._model = model
        self._preset = preset
        self._search = search
        self._first_sample = first_sample
        self._state = model.new_state(preset)
        self._pending = np.zeros(0, np.float32)
        self._committed: list[Token] = []
        self._provisional: list[Token] = []
        self.decoded_until = first_sample

    def accept(self, samples: Samples, *, provisional: bool = True) -> bool:
        """Decode every chunk that is complete with these samples."""
        self._pending = np.concatenate((self._pending, samples))
        stride = self._preset.stride_samples
        decoded = len(self._pending) >= stride
        while len(self._pending) >= stride:
            self._commit(self._pending[:stride], provisional=provisional)
            self._pending = self._pending[stride:]
        return decoded

    def hypothesis(self) -> Hypothesis:
        """Committed tokens, and those the look-ahead suggests."""
        return Hypothesis(tuple(self._committed), tuple(self._provisional))

    def finish(self) -> Hypothesis:
        """Decode the last short chunk, what the frontend still holds, and the residual CIF weight."""
        rest = self._pending
        self.decoded_until += len(rest)
        self._pending, self._provisional = rest[:0], []
        if len(rest) >= FRAME_SAMPLES:
            readings = self._flush(self._model.features(rest, self._state.frontend, is_final=True), self._state)
        else:
            readings = self._flush_short(rest)
        self._committed += self._search.advance(readings) + self._search.finish()
        return Hypothesis(tuple(self._committed))

    def copy(self) -> StreamingStream:
        """A stream that goes on by itself from here."""
        other = StreamingStream(self._model, self._preset, self._search.copy(), self._first_sample)
        other._state, other._pending = self._state.copy(), self._pending
        other._committed, other._provisional = list(self._committed), list(self._provisional)
        other.decoded_until = self.decoded_until
        return other

    def _flush_short(self, rest: Samples) -> list[Reading]:
        """The flush where less than a frame of audio is left.

        FunASR's then never calls its frontend: it loses up to 100 ms and decodes the context alone. The frontend may still hold a
        frame, with which we decode instead. Where that reading lacks a token of FunASR's (the audio was cut inside a
        syllable, which the frame turned into another), FunASR's stands.
        """
        features = self._model.features(rest, self._state.frontend, is_final=True)
        if self._state.num_frames == 0:
            return self._flush(features, self._state) if features.shape[1] else []
        context_only = self._flush(None, self._state.copy())
        if features.shape[1] == 0:
            return context_only
        with_held_frame = self._flush(features, self._state)
        return with_held_frame if self._is_subsequence(context_only, with_held_frame) else context_only

    def _is_subsequence(self, part: list[Reading], whole: list[Reading]) -> bool:
        heard, remaining = ([reading.likeliest_id for reading in readings] for readings in (part, whole))
        following = iter(remaining)
        return all(token_id in following for token_id in heard if token_id not in self._model.vocabulary.silent_ids)

    def _flush(self, features: Any | None, state: ChunkState) -> list[Reading]:
        """Readings of the last chunk: the context the encoder holds, and ``features`` where there are any."""
        model, preset = self._model, self._preset
        chunk = model.encode_tail(state, preset) if features is None else model.encode(features, state, preset)
        rows = range(self._preset.left, len(chunk.weights))
        fired, _ = self._model.integrate(chunk, rows, state.cif, is_final=True)
        return self._model.decode(chunk, fired, state.decoder, self._first_sample)[0]

    def _commit(self, samples: Samples, *, provisional: bool) -> None:
        model, preset, state = self._model, self._preset, self._state
        features = model.features(samples, state.frontend, is_final=False)
        chunk = model.encode(features, state, preset)
        border = preset.left + preset.chunk
        fired, state.cif = model.integrate(chunk, range(preset.left, border), state.cif, is_final=False)
        look_ahead: list[Firing] = []
        if provisional:
            look_ahead, _ = model.integrate(chunk, range(border, len(chunk.weights)), state.cif, is_final=False)
        readings, ahead = model.decode(chunk, fired, state.decoder, self._first_sample, look_ahead)
        self._committed += self._search.advance(readings)
        self._provisional = self._search.preview(ahead)
        self.decoded_until += len(samples)
