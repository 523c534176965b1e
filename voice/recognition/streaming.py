"""Streaming mode: each chunk commits its tokens, and the tokens in its look-ahead are shown as a provisional tail.

Samples of one utterance -> ``Hypothesis``. Between two chunks the audio so far is decoded on a copy of the engine's state, and all of its
tokens are provisional: they are shown up to a chunk earlier, and nothing depends on them. A token that the next ones may still change,
with hotwords or a language model, is provisional too. A stream holds the engine's state, the samples of the unfinished chunk, the CIF's
state, the search and the committed tokens; streams share only the weights. Worker thread only; any exception leaves the stream unusable.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from voice.audio import Samples
from voice.recognition.cif import Firing, initial_state, integrate
from voice.recognition.engine import FRAME_SAMPLES, ChunkPreset, EncodedChunk, Engine, EngineStream
from voice.recognition.hotwords import HotwordGraph
from voice.recognition.posteriors import TokenPosteriors, decode_firings
from voice.recognition.recognizer import LocalRecognizer, LocalStream
from voice.recognition.search import TokenSearch
from voice.transcript import Hypothesis, Token

_SOURCE = "funasr.streaming.paraformer-zh"


class StreamingRecognizer(LocalRecognizer):
    """Streaming decoding with the weights of ``engine``."""

    source = _SOURCE

    def __init__(
        self, engine: Engine, preset: ChunkPreset, hotwords: Callable[[], HotwordGraph] = HotwordGraph, *, preview_samples: int = 0
    ) -> None:
        """Serve streams.

        Args:
            engine: the weights.
            preset: how audio is cut into chunks.
            hotwords: the current ones.
            preview_samples: after so many samples of an unfinished chunk, and each time after as many more, its audio is decoded as a
                provisional tail; 0 for never.
        """
        self._engine = engine
        self._preset = preset
        self._hotwords = hotwords
        self._preview_samples = preview_samples

    def create_stream(self, first_sample: int, trace_id: str = "") -> StreamingStream:  # noqa: ARG002 -- a server wants to know it
        """A stream for an utterance whose audio begins at ``first_sample``."""
        search = TokenSearch(self._engine.vocabulary, self._hotwords(), self._engine.language)
        return StreamingStream(self._engine, self._preset, search, first_sample, self._preview_samples)


class StreamingStream(LocalStream):
    """One utterance in streaming mode."""

    source = _SOURCE

    def __init__(self, engine: Engine, preset: ChunkPreset, search: TokenSearch, first_sample: int, preview_samples: int = 0) -> None:
        self._engine = engine
        self._preset = preset
        self._search = search
        self._first_sample = first_sample
        self._stream = engine.create_stream(preset)
        self._cif = initial_state(engine.cif)
        self._pending = np.zeros(0, np.float32)
        self._committed: list[Token] = []
        self._provisional: list[Token] = []
        self._preview_samples = preview_samples
        self._decoded = first_sample
        """Sample index after the last complete chunk."""
        self._previewed = 0
        """Samples of the unfinished chunk that the provisional tail rests on."""

    @property
    def decoded_until(self) -> int:
        """Sample index after the last audio that ``hypothesis`` rests on."""
        return self._decoded + self._previewed

    def accept(self, samples: Samples, *, provisional: bool = True) -> bool:
        """Decode every chunk that is complete with these samples."""
        self._pending = np.concatenate((self._pending, samples))
        stride = self._preset.stride_samples
        decoded = len(self._pending) >= stride
        while len(self._pending) >= stride:
            self._decode_chunk(self._pending[:stride], provisional=provisional)
            self._pending = self._pending[stride:]
        return decoded

    def preview(self) -> bool:
        """Decode the audio of the unfinished chunk as a provisional tail, up to the last multiple of the preview's length."""
        length = len(self._pending) // self._preview_samples * self._preview_samples if self._preview_samples else 0
        if length <= self._previewed:
            return False
        self._previewed = length
        chunk = self._stream.copy().encode_last(self._pending[:length])
        if chunk is None:
            return False
        fired, _ = integrate(chunk, range(self._preset.left, len(chunk.alphas)), self._cif, self._engine.cif, is_final=False)
        _, ahead = decode_firings(self._stream, chunk, [], self._first_sample, fired)
        self._provisional = self._search.preview(ahead)
        return True

    def hypothesis(self) -> Hypothesis:
        """The committed tokens, and the provisional ones from the look-ahead."""
        return Hypothesis(tuple(self._committed), tuple(self._provisional))

    def finish(self) -> Hypothesis:
        """Decode the last short chunk, the samples that the engine held back, and the residual CIF weight."""
        rest = self._pending
        self._decoded += len(rest)
        self._pending, self._provisional, self._previewed = rest[:0], [], 0
        is_short = len(rest) < FRAME_SAMPLES
        posteriors = self._flush_short(rest) if is_short else self._flush(self._stream.encode_last(rest), self._stream)
        self._committed += self._search.advance(posteriors) + self._search.finish()
        return Hypothesis(tuple(self._committed))

    def copy(self) -> StreamingStream:
        """A stream that goes on independently from here."""
        other = StreamingStream(self._engine, self._preset, self._search.copy(), self._first_sample, self._preview_samples)
        other._stream, other._cif, other._pending = self._stream.copy(), self._cif, self._pending
        other._committed, other._provisional = list(self._committed), list(self._provisional)
        other._decoded, other._previewed = self._decoded, self._previewed
        return other

    def _flush_short(self, rest: Samples) -> list[TokenPosteriors]:
        """The flush where less than one frame of audio is pending.

        FunASR then never calls its frontend: it loses up to 100 ms of audio and decodes the context alone. The audio that the engine
        held back may still make a frame, and with that frame we decode instead. If the result then lacks a token that the context
        alone gives (where the audio was cut inside a syllable, the extra frame can change a token), the context's result is used.
        """
        copied = self._stream.copy()
        context_only = self._flush(copied.encode_context(), copied)
        chunk = self._stream.encode_last(rest)
        if chunk is None:
            return context_only
        with_held_frame = self._flush(chunk, self._stream)
        return with_held_frame if self._is_subsequence(context_only, with_held_frame) else context_only

    def _is_subsequence(self, part: list[TokenPosteriors], whole: list[TokenPosteriors]) -> bool:
        """Whether the likeliest tokens of ``part`` stand in ``whole`` in the same order."""
        wanted, remaining = ([token.likeliest_id for token in tokens] for tokens in (part, whole))
        following = iter(remaining)
        return all(token_id in following for token_id in wanted if token_id not in self._engine.vocabulary.silent_ids)

    def _flush(self, chunk: EncodedChunk | None, stream: EngineStream) -> list[TokenPosteriors]:
        """Posteriors of the last chunk, whose look-ahead is committed too."""
        if chunk is None:
            return []
        rows = range(self._preset.left, len(chunk.alphas))
        fired, _ = integrate(chunk, rows, self._cif, self._engine.cif, is_final=True)
        return decode_firings(stream, chunk, fired, self._first_sample)[0]

    def _decode_chunk(self, samples: Samples, *, provisional: bool) -> None:
        preset, settings = self._preset, self._engine.cif
        chunk = self._stream.encode(samples)
        border = preset.left + preset.chunk
        fired, self._cif = integrate(chunk, range(preset.left, border), self._cif, settings, is_final=False)
        look_ahead: list[Firing] = []
        if provisional:
            look_ahead, _ = integrate(chunk, range(border, len(chunk.alphas)), self._cif, settings, is_final=False)
        committed, ahead = decode_firings(self._stream, chunk, fired, self._first_sample, look_ahead)
        self._committed += self._search.advance(committed)
        self._provisional = self._search.preview(ahead)
        self._decoded, self._previewed = self._decoded + len(samples), 0
