"""The engine on ONNX Runtime: a converted ``ParaformerStreaming``, without torch and without FunASR.

Samples -> features -> encoder frames -> log posteriors. ``OnnxEngine`` holds the two graphs that ``voice.conversion.paraformer`` wrote,
``OnnxStream`` the arrays that they hand on from chunk to chunk. No array is written after it was made, so streams share them.
Worker thread only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voice.audio import Samples
from voice.models.converted import OnnxModel
from voice.recognition.engine import ChunkPreset, CifSettings, EncodedChunk, NonFiniteOutput, Vocabulary
from voice.recognition.features import FeatureSettings, FeatureStream, read_mvn

_FIRST_POSITIONS = 1024
_LONGEST_PERIOD = 10_000.0

Array = NDArray[np.float32]


class OnnxEngine:
    """The converted model."""

    def __init__(self, model: OnnxModel, temperature: float = 1.0) -> None:
        """Take over a converted model.

        Args:
            model: its graphs, vocabulary and settings.
            temperature: divides the logits. Above 1 it lowers confidences; the likeliest token stays the same.

        Raises:
            ValueError: am.mvn is damaged or does not fit.
        """
        settings = model.settings
        self.vocabulary = Vocabulary(model.tokens, frozenset(settings["silent_ids"]))
        self.language = model.language
        self.cif = CifSettings(np.float32(settings["threshold"]), np.float32(settings["tail_weight"]), settings["width"])
        shift, scale = read_mvn(model.description.files["cmvn_file"])
        self._features = FeatureSettings(**settings["features"], shift=shift, scale=scale)
        self._encoder, self._decoder = (_Step(model.sessions[name]) for name in ("encoder", "decoder"))
        self._scale = np.array(1 / temperature, np.float32)
        self._positions = Positions(self._features.width)

    def create_stream(self, preset: ChunkPreset | None) -> OnnxStream:
        """The state of an utterance that has no audio yet."""
        return OnnxStream(self, preset)

    def encode(self, frames: Array, caches: Sequence[Array]) -> tuple[Array, Array, list[Array]]:
        """Hidden frames (1, t, width), alphas (1, t), and the keys and values of all frames, past ones first."""
        (hidden, alphas), caches = self._encoder.run([frames], caches)
        return hidden, alphas, caches

    def decode(
        self, hidden: Array, embeddings: Array, tokens: Sequence[Array], memory: Sequence[Array]
    ) -> tuple[Array, list[Array], list[Array]]:
        """Log posteriors (1, n, vocabulary), and both kinds of caches with what is new at their ends."""
        (log_posteriors,), caches = self._decoder.run([hidden, embeddings, self._scale], (*tokens, *memory))
        return log_posteriors, caches[: len(tokens)], caches[len(tokens) :]

    def embed(self, features: Array, first_position: int) -> Array:
        """Features with their positions, (num_frames, input_size), as FunASR's encoder embeds them."""
        frames: Array = features * np.float32(self.cif.width**0.5)
        return frames + self._positions.rows(first_position, first_position + len(features))

    def initial_caches(self) -> tuple[tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]]:
        """Before the first chunk: of the encoder, and of the decoder those of tokens and those of frames."""
        decoder = self._decoder.initial_caches
        return tuple(self._encoder.initial_caches.values()), _of("tokens", decoder), _of("keys", decoder) + _of("values", decoder)

    @property
    def num_features(self) -> int:
        """Width of a feature frame."""
        return self._features.width

    def feature_stream(self) -> FeatureStream:
        """The feature extraction of one utterance."""
        return FeatureStream(self._features)


class _Step:
    """A graph that hands on caches: the output ``next_NAME`` is the input ``NAME`` of the next call."""

    def __init__(self, session: Any) -> None:
        self._session = session
        outputs = [output.name for output in session.get_outputs()]
        inputs = session.get_inputs()
        cached = sorted((value for value in inputs if f"next_{value.name}" in outputs), key=lambda value: _order(value.name))
        self.initial_caches = {
            value.name: np.zeros([0 if isinstance(size, str) else size for size in value.shape], np.float32) for value in cached
        }
        """By name, in the order in which ``run`` takes and returns them."""
        values = [value.name for value in inputs if value.name not in self.initial_caches]
        results = [name for name in outputs if not name.startswith("next_")]
        self._num_results = len(results)
        self._inputs = [*values, *self.initial_caches]
        self._outputs = [*results, *(f"next_{name}" for name in self.initial_caches)]

    def run(self, values: Sequence[Array], caches: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """What the graph computes, and the caches with what is new at their ends."""
        outputs = self._session.run(self._outputs, dict(zip(self._inputs, (*values, *caches), strict=True)))
        return outputs[: self._num_results], outputs[self._num_results :]


def _order(name: str) -> tuple[bool, str]:
    """Caches of tokens before those of frames."""
    return not name.startswith("tokens"), name


def _of(kind: str, caches: dict[str, Array]) -> tuple[Array, ...]:
    return tuple(cache for name, cache in caches.items() if name.startswith(kind))


class Positions:
    """Sinusoidal encodings of positions from 1 (Vaswani et al. 2017), sines before cosines, as FunASR lays them out."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._table = np.zeros((0, width), np.float32)

    def rows(self, start: int, end: int) -> Array:
        """(end - start, width), of the positions ``start + 1`` to ``end``."""
        if end > len(self._table):
            half = self._width // 2
            rate = np.float32(np.log(np.float32(_LONGEST_PERIOD)) / np.float32(self._width / 2 - 1))
            timescales = np.exp(np.arange(half, dtype=np.float32) * -rate)
            positions = np.arange(1, max(_FIRST_POSITIONS, 2 * end) + 1, dtype=np.float32)
            angles = positions[:, None] * timescales
            self._table = np.concatenate((np.sin(angles), np.cos(angles)), axis=1)
        rows: Array = self._table[start:end]
        return rows


@dataclass(frozen=True, slots=True)
class _State:
    """What an utterance's next chunk depends on."""

    context: Array
    """(num_frames, input_size), the frames kept as context, with their positions."""
    encoder: tuple[Array, ...]
    """Keys and values of each layer, (1, past, width)."""
    tokens: tuple[Array, ...]
    """Of each decoder layer the last inputs of its convolution, (1, kernel - 1, width)."""
    memory: tuple[Array, ...]
    """Keys and values of each decoder layer, (1, past, width)."""
    num_frames: int = 0
    """Encoded so far."""


class OnnxStream:
    """One utterance."""

    def __init__(self, engine: OnnxEngine, preset: ChunkPreset | None) -> None:
        self._engine = engine
        self._preset = preset or ChunkPreset(0, 1, 0, encoder_look_back=0, decoder_look_back=0)
        self._takes_all = preset is None
        self._features = engine.feature_stream()
        self._state = _State(np.zeros((self._preset.context, engine.num_features), np.float32), *engine.initial_caches())

    def encode(self, samples: Samples) -> EncodedChunk:
        """Encode the next chunk."""
        if self._takes_all:
            raise ValueError("a stream without a preset takes all audio in encode_last")
        return self._encode_new(self._features.accept(samples, is_final=False))

    def encode_last(self, samples: Samples) -> EncodedChunk | None:
        """Encode the last chunk, and what the feature extraction holds back: up to 100 ms."""
        features = self._features.accept(samples, is_final=True)
        return self._encode_new(features) if len(features) else None

    def encode_context(self) -> EncodedChunk | None:
        """Encode the context alone."""
        return None if self._takes_all or self._state.num_frames == 0 else self._encode(self._state.context)

    def decode(self, chunk: EncodedChunk, embeddings: Array, *, num_committed: int) -> Array:
        """Decode tokens in one pass; only the committed ones enter the state."""
        log_posteriors, tokens, memory = self._engine.decode(chunk.hidden[None], embeddings[None], self._state.tokens, self._state.memory)
        if num_committed:
            num_provisional = len(embeddings) - num_committed
            num_kept = self._preset.decoder_look_back * self._preset.chunk
            self._state = replace(
                self._state,
                tokens=tuple(_last(now, past.shape[1], num_provisional) for past, now in zip(self._state.tokens, tokens, strict=True)),
                memory=tuple(_last(now, num_kept) for now in memory) if num_kept > 0 else self._state.memory,
            )
        rows: Array = log_posteriors[0]
        return rows

    def copy(self) -> OnnxStream:
        """A stream that goes on independently from the same state."""
        other = OnnxStream(self._engine, None if self._takes_all else self._preset)
        other._features, other._state = self._features.copy(), self._state
        return other

    def _encode_new(self, features: Array) -> EncodedChunk:
        if not np.isfinite(features).all():  # in int8 they would become finite numbers of no meaning
            raise NonFiniteOutput("the features of the audio")
        frames = np.concatenate((self._state.context, self._engine.embed(features, self._state.num_frames)))
        chunk = self._encode(frames)
        context = frames[len(frames) - self._preset.context :]
        self._state = replace(self._state, context=context, num_frames=self._state.num_frames + len(features))
        return chunk

    def _encode(self, frames: Array) -> EncodedChunk:
        """Encode frames, of which the first are context, and keep their keys and values but for the look-ahead's."""
        hidden, alphas, caches = self._engine.encode(frames[None], self._state.encoder)
        look_back = self._preset.encoder_look_back
        if look_back:
            # FunASR's encoder keeps all of the first chunk, whatever the look-back is.
            is_first = self._state.encoder[0].shape[1] == 0
            longest = None if look_back < 0 or is_first else look_back * self._preset.chunk
            self._state = replace(self._state, encoder=tuple(_last(cache, longest, self._preset.right) for cache in caches))
        return EncodedChunk(alphas[0], hidden[0], self._state.num_frames - self._preset.context)


def _last(cache: Array, longest: int | None, num_left_out: int = 0) -> Array:
    """The last rows (1, <= longest, width) of a cache, without the last ``num_left_out``."""
    end = cache.shape[1] - num_left_out
    rows: Array = cache[:, 0 if longest is None else max(0, end - longest) : end]
    return rows
