"""The engine on torch: FunASR's ``ParaformerStreaming``, one operation at a time.

Samples -> features -> encoder frames -> log posteriors. The operations are FunASR's own modules (``WavFrontendOnline``,
``encoder.forward_chunk``, the predictor's layers, ``decoder.forward_chunk``), called as ``ParaformerStreaming.generate_chunk`` calls them.
``TorchEngine`` holds the weights, ``TorchStream`` FunASR's caches of one utterance. Worker thread only.

Raises ``AcceleratorOutOfMemory`` where an accelerator runs out of memory; the model is on the CPU then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voice.audio import Samples
from voice.errors import ModelLoadFailed
from voice.models.funasr_model import FunasrModel
from voice.recognition.engine import ChunkPreset, CifSettings, EncodedChunk, Vocabulary


@dataclass(slots=True)
class _Caches:
    """What FunASR's encoder and decoder keep of an utterance; their modules write into the dicts."""

    encoder: dict[str, Any]
    decoder: dict[str, Any]
    device: str
    """Where their tensors are."""

    def copy(self) -> _Caches:
        return replace(self, encoder=_copy_cache(self.encoder), decoder=_copy_cache(self.decoder))

    def move_to(self, device: str) -> None:
        self.encoder, self.decoder = (_copy_cache(cache, device) for cache in (self.encoder, self.decoder))
        self.device = device


class TorchEngine:
    """The loaded model."""

    def __init__(self, model: FunasrModel, temperature: float = 1.0) -> None:
        """Take over a loaded ``ParaformerStreaming``; it is accelerated in place.

        Args:
            model: the model.
            temperature: divides the logits. Above 1 it lowers confidences; the likeliest token stays the same.

        Raises:
            ModelLoadFailed: its decoder is not causal.
        """
        from voice.recognition.acceleration import accelerate  # noqa: PLC0415 -- it imports torch

        module = model.module
        accelerate(module, pack=model.is_large and model.device == "cpu")
        self._model = model
        self._temperature = temperature
        self.vocabulary = Vocabulary(model.tokens, frozenset((module.sos, module.eos, module.blank_id)))
        self.language = model.language
        predictor = module.predictor
        self.cif = CifSettings(np.float32(predictor.threshold), np.float32(predictor.tail_threshold), module.encoder.output_size())
        if any(layer.self_attn.pad_fn.padding[1] for layer in module.decoder.decoders):
            raise ModelLoadFailed(f"{model.directory}: the decoder looks ahead (decoder_conf.sanm_shfit), which streaming cannot")

    @property
    def device(self) -> str:
        """Where it runs now."""
        return self._model.device

    def create_stream(self, preset: ChunkPreset | None) -> TorchStream:
        """The state of an utterance that has no audio yet."""
        return TorchStream(self._model, self._temperature, preset)


class TorchStream:
    """One utterance: the caches of FunASR's frontend, encoder and decoder."""

    def __init__(self, model: FunasrModel, temperature: float, preset: ChunkPreset | None) -> None:
        import torch  # noqa: PLC0415

        self._torch = torch
        self._model = model
        self._module = model.module
        self._temperature = temperature
        self._caches = None if preset is None else self._new_caches(preset)
        self._frontend: dict[str, Any] = {}
        self._num_frames = 0
        """Encoded so far."""

    def encode(self, samples: Samples) -> EncodedChunk:
        """Encode the next chunk."""
        if self._caches is None:
            raise ValueError("a stream without a preset takes all audio in encode_last")
        return self._encode_new(self._features(samples, is_final=False), self._caches)

    def encode_last(self, samples: Samples) -> EncodedChunk | None:
        """Encode the last chunk, and what FunASR's frontend holds back: up to 100 ms."""
        features = self._features(samples, is_final=True)
        num_new = features.shape[1]
        if num_new == 0:
            return None
        if self._caches is None:
            self._caches = self._new_caches(ChunkPreset(0, num_new, 0, encoder_look_back=0, decoder_look_back=0))
        return self._encode_new(features, self._caches)

    def encode_context(self) -> EncodedChunk | None:
        """Encode the context alone: FunASR's last chunk where no audio is left for a frame."""
        if self._caches is None or self._num_frames == 0:
            return None
        context = self._caches.encoder["feats"].clone()  # forward_chunk scales it in place
        self._caches.encoder.update(tail_chunk=True, feats=context)
        return self._forward(context, self._caches)

    def decode(self, chunk: EncodedChunk, embeddings: NDArray[np.float32], *, num_committed: int) -> NDArray[np.float32]:
        """Decode tokens in one pass; the provisional ones are taken out of the cache again."""
        if self._caches is None:
            raise ValueError("decode before encode")
        cache = self._caches.decoder if num_committed else _copy_cache(self._caches.decoder)
        device = self._model.device
        with self._model.computing():
            hidden, rows = (self._torch.from_numpy(array)[None].to(device) for array in (chunk.hidden, embeddings))
            logits = self._module.decoder.forward_chunk(hidden, rows, cache)
            log_posteriors: NDArray[np.float32] = self._torch.log_softmax(logits[0] / self._temperature, dim=-1).cpu().numpy()
        num_provisional = len(embeddings) - num_committed
        if num_provisional:
            cache["decode_fsmn"] = [layer if layer is None else layer[:, :, :-num_provisional] for layer in cache["decode_fsmn"]]
        return log_posteriors

    def copy(self) -> TorchStream:
        """A stream that goes on independently from the same state."""
        other = TorchStream(self._model, self._temperature, None)
        other._caches = None if self._caches is None else self._caches.copy()
        other._frontend = _copy_cache(self._frontend)
        other._num_frames = self._num_frames
        return other

    def _new_caches(self, preset: ChunkPreset) -> _Caches:
        """As ``ParaformerStreaming.init_cache`` makes them."""
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
        return _Caches(encoder, decoder, self._model.device)

    def _features(self, samples: Samples, *, is_final: bool) -> Any:
        """A torch tensor: float32, (1, num_frames, 560)."""
        waveform = self._torch.from_numpy(np.array(samples, np.float32))[None]
        frames, _ = self._model.frontend(waveform, self._torch.tensor([waveform.shape[1]]), cache=self._frontend, is_final=is_final)
        return frames if frames.ndim == 3 else frames.new_zeros((1, 0, self._model.frontend.output_size()))

    def _encode_new(self, features: Any, caches: _Caches) -> EncodedChunk:
        num_new = features.shape[1]
        chunk = self._forward(features, caches)
        self._num_frames += num_new
        return chunk

    def _forward(self, features: Any, caches: _Caches) -> EncodedChunk:
        """Run the encoder and the predictor's layers over the context and ``features``, which the encoder overwrites."""
        if caches.device != self._model.device:
            caches.move_to(self._model.device)
        first_frame = self._num_frames - caches.encoder["feats"].shape[1]
        predictor = self._module.predictor
        with self._model.computing():
            features = features.to(self._model.device)
            output, _, _ = self._module.encoder.forward_chunk(features, self._torch.tensor([features.shape[1]]), cache=caches.encoder)
            # The predictor's own layers, as CifPredictorV2.forward_chunk applies them before it integrates.
            conv = self._torch.relu(predictor.cif_conv1d(predictor.pad(output.transpose(1, 2)))).transpose(1, 2)
            alphas = self._torch.sigmoid(predictor.cif_output(conv))
            alphas = self._torch.relu(alphas * predictor.smooth_factor - predictor.noise_threshold)
            arrays = alphas[0, :, 0].cpu().numpy(), output[0].cpu().numpy()
        return EncodedChunk(*arrays, first_frame)


def _copy_cache(cache: Any, device: str | None = None) -> Any:
    """An independent cache that shares the tensors, or has them on ``device``: FunASR replaces tensors and changes only the containers."""
    if isinstance(cache, dict):
        return {key: _copy_cache(value, device) for key, value in cache.items()}
    if isinstance(cache, list):
        return [_copy_cache(value, device) for value in cache]
    return cache.to(device) if device and hasattr(cache, "to") else cache
