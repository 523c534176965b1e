"""The seam between decoding and the acoustic model: what the modes need of a model, whatever library runs it.

Samples -> ``EncodedChunk`` (CIF weights and hidden frames) -> log posteriors of every token, all of them numpy arrays. An ``Engine`` holds
the weights, which all utterances share; an ``EngineStream`` holds one utterance's caches, which only the engine understands. Worker
thread only. Raises ``NonFiniteOutput`` where a model's output is not a number.

A chunk of the preset ``[left, chunk, right]``, in frames of 60 ms::

          left    chunk (committed)      right (look-ahead)
        |-------|----------------------|-----------|
                ^ first frame not yet committed    ^ end of the audio received so far
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from voice.audio import Samples
from voice.models.language_model import LanguageModel

FRAME_SAMPLES = 960
"""Samples of one encoder frame: six feature frames, 10 ms apart, stacked."""


class NonFiniteOutput(RuntimeError):
    """The model returned NaN or an infinite value: damaged weights, overflow, or a faulty device."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the recogniser answered with values that are no numbers (NaN or infinite): {what}")


@dataclass(frozen=True, slots=True)
class ChunkPreset:
    """FunASR's ``chunk_size`` and its two look-backs: the first three count frames of 60 ms, the look-backs count chunks."""

    left: int
    chunk: int
    right: int
    encoder_look_back: int
    decoder_look_back: int

    @property
    def stride_samples(self) -> int:
        """Samples that each chunk adds."""
        return self.chunk * FRAME_SAMPLES

    @property
    def context(self) -> int:
        """Frames that the encoder keeps of earlier audio and puts before a chunk's new frames."""
        return self.left + self.right


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The model's tokens; index = id."""

    tokens: tuple[str, ...]
    silent_ids: frozenset[int]
    """Blank, begin and end of sentence: a firing whose likeliest token is one of them is dropped."""


@dataclass(frozen=True, slots=True)
class CifSettings:
    """What the model was trained with for continuous integrate-and-fire (Dong and Xu 2020)."""

    threshold: np.float32
    """Accumulated weight at which a token fires."""
    tail_weight: np.float32
    """Added once after the last frame, so that a last token that is nearly complete fires."""
    width: int
    """Of a hidden frame."""


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """The encoder's output for one chunk; the arrays are never written to."""

    alphas: NDArray[np.float32]
    """(num_frames,), CIF weights >= 0 of all frames, left and right context included."""
    hidden: NDArray[np.float32]
    """(num_frames, width), the frames that the decoder attends to."""
    first_frame: int
    """Index of row 0, counted from the utterance's start; negative for the zero frames before it."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.alphas).all() and np.isfinite(self.hidden).all()):
            raise NonFiniteOutput("the encoder's frames")


class Engine(Protocol):
    """Loaded weights. Shared by all streams, of which one computes at a time."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens that the posteriors are of."""

    @property
    def language(self) -> LanguageModel | None:
        """The language model of these tokens; None where there is none."""

    @property
    def cif(self) -> CifSettings:
        """What its predictor was trained with."""

    def create_stream(self, preset: ChunkPreset | None) -> EngineStream:
        """The state of an utterance that has no audio yet.

        Args:
            preset: how the audio is cut into chunks; None for audio that is encoded as one chunk with full attention, by a single
                call of ``EngineStream.encode_last``.
        """


class EngineStream(Protocol):
    """One utterance's state inside the engine. After an exception it is unusable: create another one and encode the audio again."""

    def encode(self, samples: Samples) -> EncodedChunk:
        """Encode the next chunk.

        Args:
            samples: float32, (``ChunkPreset.stride_samples``,), 16 kHz mono; not kept after return, but for the last 100 ms at most.

        Returns:
            The frames kept as context, then ``ChunkPreset.chunk`` new ones.

        Raises:
            NonFiniteOutput: the encoder or its predictor returned NaN or an infinite value.
        """

    def encode_last(self, samples: Samples) -> EncodedChunk | None:
        """Encode the last chunk, and the samples that were held back until now because they did not fill a frame.

        Args:
            samples: float32, (num_samples,), 16 kHz mono; any number of them.

        Returns:
            The frames kept as context, then the new ones; None where there is no new one.

        Raises:
            NonFiniteOutput: the encoder or its predictor returned NaN or an infinite value.
        """

    def encode_context(self) -> EncodedChunk | None:
        """Encode the frames kept as context alone, as the last chunk. MUST be the last call that encodes.

        Returns:
            These frames; None before any audio was encoded.

        Raises:
            NonFiniteOutput: the encoder or its predictor returned NaN or an infinite value.
        """

    def decode(self, chunk: EncodedChunk, embeddings: NDArray[np.float32], *, num_committed: int) -> NDArray[np.float32]:
        """Decode tokens in one pass. The decoder is causal: a token's posteriors do not depend on the tokens after it.

        Args:
            chunk: the frames that the decoder attends to.
            embeddings: (num_tokens, width), one row for each token that fired; at least one.
            num_committed: only so many of them, from the first, leave a trace in the state. The others are provisional.

        Returns:
            (num_tokens, vocabulary), natural logarithms. A single token may be at minus infinity.
        """

    def copy(self) -> EngineStream:
        """A stream that goes on independently from the same state. Cheap: arrays are shared, not copied."""
