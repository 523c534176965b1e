"""FunASR's streaming Paraformer, one operation at a time.

Samples -> features -> encoder frames -> CIF -> posteriors of every token, with times. The operations are FunASR's own
modules (``WavFrontendOnline``, ``encoder.forward_chunk``, ``decoder.forward_chunk``), called as
``ParaformerStreaming.generate_chunk`` calls them; only the CIF loop is ours, because FunASR's returns no firing positions.
Weights are shared; all state is in the ``ChunkState`` or the features' cache that the caller owns. Worker thread only.

A chunk, preset ``[left, chunk, right]``, in frames of 60 ms::

          left    chunk (committed)      right (look-ahead)
        |-------|----------------------|-----------|
                ^ first frame not yet committed    ^ frontier: all audio seen so far
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voice.audio import Samples
from voice.errors import ModelLoadFailed
from voice.models.funasr_model import FunasrModel
from voice.recognition.search import Reading, Vocabulary

FRAME_SAMPLES = 960
"""One low-frame-rate feature frame: six frame shifts of 10 ms."""

_LITTLE_WEIGHT = 0.05
"""A token's time begins where its CIF weight passes this, and ends with the last frame that gives more: silence leaks a little."""


@dataclass(frozen=True, slots=True)
class ChunkPreset:
    """FunASR's ``chunk_size`` with its look-backs. Counts of 60 ms frames, but for the two look-backs: counts of chunks."""

    left: int
    chunk: int
    right: int
    encoder_look_back: int
    decoder_look_back: int

    @property
    def stride_samples(self) -> int:
        """Audio per chunk."""
        return self.chunk * FRAME_SAMPLES

    @property
    def context(self) -> int:
        """Frames of a chunk that stand before its new ones."""
        return self.left + self.right


@dataclass(frozen=True, slots=True)
class CifState:
    """What the integrate-and-fire neuron holds between chunks."""

    weight: np.float32
    """Accumulated, below the threshold."""
    hidden: NDArray[np.float32]
    """(width,), weighted mean of the frames the weight came from."""
    onset_frame: int | None = None
    """Where the token that is being integrated started."""
    end_frame: int = 0
    """After the last frame that gave it more than a little weight."""


@dataclass(frozen=True, slots=True)
class Firing:
    """One token before it was read."""

    embedding: NDArray[np.float32]
    """(width,)"""
    start_frame: int
    end_frame: int
    """After the frame in which it fired; fired by the tail weight, after the last frame that mattered to it."""


@dataclass(slots=True)
class ChunkState:
    """One utterance's caches; the dicts are FunASR's and its modules write into them."""

    encoder: dict[str, Any]
    decoder: dict[str, Any]
    cif: CifState
    device: str
    """Where the caches are."""
    num_frames: int = 0
    """Feature frames seen: the frontier."""
    frontend: dict[str, Any] = field(default_factory=dict)

    def copy(self) -> ChunkState:
        """State that goes on by itself."""
        return replace(self, encoder=copy_cache(self.encoder), decoder=copy_cache(self.decoder), frontend=copy_cache(self.frontend))

    def move_to(self, device: str) -> None:
        """Go on where the model is now."""
        self.encoder, self.decoder = (copy_cache(cache, device) for cache in (self.encoder, self.decoder))
        self.device = device


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """The encoder's view of one chunk."""

    output: Any
    """torch float32, (1, num_frames, width), left and right context included."""
    weights: NDArray[np.float32]
    """(num_frames,), CIF alphas, not masked."""
    hidden: NDArray[np.float32]
    """(num_frames, width), ``output`` as an array."""
    first_frame: int
    """Frame index in the utterance of row 0; negative in the zero frames before the first."""


class Paraformer:
    """The loaded model."""

    def __init__(self, model: FunasrModel, temperature: float = 1.0) -> None:
        """Take a loaded ``ParaformerStreaming`` over; it is accelerated in place.

        Args:
            model: the model.
            temperature: divides the logits: above 1 posteriors are less sure; which token is likeliest stays.

        Raises:
            ModelLoadFailed: its decoder is not causal.
        """
        import torch  # noqa: PLC0415

        from voice.recognition.acceleration import accelerate  # noqa: PLC0415 -- it imports torch

        self._torch = torch
        self._model = model
        self._module = model.module
        accelerate(model.module, pack=model.is_large and model.device == "cpu")
        self._temperature = temperature
        self._threshold = np.float32(self._module.predictor.threshold)
        self._tail_weight = np.float32(self._module.predictor.tail_threshold)
        self._width: int = self._module.encoder.output_size()
        self.vocabulary = Vocabulary(model.tokens, frozenset((self._module.sos, self._module.eos, self._module.blank_id)))
        if any(layer.self_attn.pad_fn.padding[1] for layer in self._module.decoder.decoders):
            raise ModelLoadFailed(f"{model.directory}: the decoder looks ahead (decoder_conf.sanm_shfit), which streaming cannot")

    @property
    def device(self) -> str:
        """Where it runs."""
        return self._model.device

    def new_state(self, preset: ChunkPreset) -> ChunkState:
        """Caches of an utterance that has no audio yet, as ``ParaformerStreaming.init_cache`` makes them."""
        chunk_size = [preset.left, preset.chunk, preset.right]
        encoder = {
            "start_idx": 0,
            "chunk_size": chunk_size,
            "encoder_chunk_look_back": preset.encoder_look_back,
            "opt": None,
            "feats": self._torch.zeros((1, preset.context, self._model.frontend.output_size())),
            "tail_chunk": False,
        }
        decoder = {"decode_fsmn": None, "decoder_chunk_look_back": preset.decoder_look_back, "opt": None, "chunk_size": chunk_size}
        return ChunkState(encoder, decoder, CifState(np.float32(0), np.zeros(self._width, np.float32)), self.device)

    def features(self, samples: Samples, cache: dict[str, Any], *, is_final: bool) -> Any:
        """Return torch float32, (1, num_frames, 560); the frontend holds back up to 100 ms in ``cache`` unless final."""
        waveform = self._torch.from_numpy(np.array(samples, np.float32))[None]
        frames, _ = self._model.frontend(waveform, self._torch.tensor([waveform.shape[1]]), cache=cache, is_final=is_final)
        if frames.ndim != 3:
            frames = frames.new_zeros((1, 0, self._model.frontend.output_size()))
        return frames

    def encode_tail(self, state: ChunkState, preset: ChunkPreset) -> EncodedChunk:
        """Run the encoder over the context it holds alone: FunASR's last chunk when no audio is left for a frame."""
        context = state.encoder["feats"].clone()  # forward_chunk scales it in place
        state.encoder.update(tail_chunk=True, feats=context)
        state.num_frames -= context.shape[1]
        return self.encode(context, state, preset)

    def encode(self, features: Any, state: ChunkState, preset: ChunkPreset) -> EncodedChunk:
        """Run the encoder over the context it holds and ``features``, which it overwrites.

        Raises:
            AcceleratorOutOfMemory: the utterance has to be begun anew.
        """
        if state.device != self.device:
            state.move_to(self.device)
        with self._model.computing():
            features = features.to(self.device)
            lengths = self._torch.tensor([features.shape[1]])
            first_frame = state.num_frames - (0 if state.encoder["tail_chunk"] else preset.context)
            output, _, _ = self._module.encoder.forward_chunk(features, lengths, cache=state.encoder)
            state.num_frames += features.shape[1]
            # The predictor's own layers, as CifPredictorV2.forward_chunk applies them before it integrates.
            predictor = self._module.predictor
            conv = self._torch.relu(predictor.cif_conv1d(predictor.pad(output.transpose(1, 2)))).transpose(1, 2)
            weights = self._torch.sigmoid(predictor.cif_output(conv))
            weights = self._torch.relu(weights * predictor.smooth_factor - predictor.noise_threshold)
            return EncodedChunk(output, weights[0, :, 0].cpu().numpy(), output[0].cpu().numpy(), first_frame)

    def integrate(self, chunk: EncodedChunk, rows: range, cif: CifState, *, is_final: bool) -> tuple[list[Firing], CifState]:
        """Integrate and fire over ``rows`` of the chunk; ``is_final`` adds FunASR's tail weight, which lets the last token go.

        The same float32 operations in the same order as ``CifPredictorV2.forward_chunk`` (equal, not close: a test says so).
        """
        fired: list[Firing] = []
        weight, onset, end = cif.weight, cif.onset_frame, cif.end_frame
        frames = cif.weight * cif.hidden
        steps: list[tuple[Any, Any, int | None]] = [(chunk.weights[row], chunk.hidden[row], chunk.first_frame + row) for row in rows]
        if is_final:
            steps.append((self._tail_weight, np.zeros(self._width, np.float32), None))
        for alpha, hidden, frame in steps:
            if frame is not None and alpha > _LITTLE_WEIGHT:
                end = frame + 1
            if alpha + weight < self._threshold:
                weight = weight + alpha
                frames = frames + alpha * hidden
            else:
                frames = frames + (self._threshold - weight) * hidden
                fired.append(Firing(frames, end - 1 if onset is None else onset, end))
                weight = weight + alpha - self._threshold
                frames, onset = weight * hidden, None
            if onset is None and weight > _LITTLE_WEIGHT and frame is not None:
                onset = frame
        mean = frames / weight if weight > 0 else frames
        return fired, CifState(weight, mean, onset, end)

    def decode(
        self, chunk: EncodedChunk, fired: list[Firing], cache: dict[str, Any], first_sample: int, look_ahead: Sequence[Firing] = ()
    ) -> tuple[list[Reading], list[Reading]]:
        """Read the fired tokens, and in the same pass those that fired in the look-ahead.

        As FunASR does: no call when nothing fired. The decoder is causal, so what follows does not change the fired tokens, and the
        cache is left as if only they had been decoded: the second pass over 54 M decoder weights that a tail of its own would need
        costs 17 % of a chunk (bench/README.md).

        Args:
            chunk: the encoder frames that the decoder attends to.
            fired: from ``integrate``, to be committed.
            cache: ``ChunkState.decoder``; written into.
            first_sample: sample index of the utterance's frame 0.
            look_ahead: from ``integrate`` over the right context.

        Returns:
            The readings of ``fired``, and those of ``look_ahead``.

        Raises:
            AcceleratorOutOfMemory: the utterance has to be begun anew.
        """
        firings = [*fired, *look_ahead]
        if not firings:
            return [], []
        if not fired:
            cache = copy_cache(cache)
        with self._model.computing():
            embeddings = self._torch.from_numpy(np.stack([firing.embedding for firing in firings]))[None].to(self.device)
            logits = self._module.decoder.forward_chunk(chunk.output, embeddings, cache)
            log_posteriors = self._torch.log_softmax(logits[0] / self._temperature, dim=-1).cpu().numpy()
        if look_ahead:
            cache["decode_fsmn"] = [layer if layer is None else layer[:, :, : -len(look_ahead)] for layer in cache["decode_fsmn"]]
        readings = [
            Reading(row, first_sample + max(firing.start_frame, 0) * FRAME_SAMPLES, first_sample + max(firing.end_frame, 1) * FRAME_SAMPLES)
            for firing, row in zip(firings, log_posteriors, strict=True)
        ]
        return readings[: len(fired)], readings[len(fired) :]


def read_whole(model: Paraformer, samples: Samples, first_sample: int, *, is_final: bool) -> list[Reading]:
    """Readings of samples decoded as one chunk with full attention and no history; ``is_final`` lets the last token go."""
    features = model.features(samples, {}, is_final=True)
    if features.shape[1] == 0:
        return []
    preset = ChunkPreset(0, features.shape[1], 0, encoder_look_back=0, decoder_look_back=0)
    state = model.new_state(preset)
    chunk = model.encode(features, state, preset)
    fired, _ = model.integrate(chunk, range(len(chunk.weights)), state.cif, is_final=is_final)
    return model.decode(chunk, fired, state.decoder, first_sample)[0]


def copy_cache(cache: Any, device: str | None = None) -> Any:
    """An independent cache that shares the tensors, or has them on ``device``: FunASR replaces tensors and mutates only the containers."""
    if isinstance(cache, dict):
        return {key: copy_cache(value, device) for key, value in cache.items()}
    if isinstance(cache, list):
        return [copy_cache(value, device) for value in cache]
    return cache.to(device) if device and hasattr(cache, "to") else cache
