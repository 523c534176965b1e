"""Finalization: embeddings of voices by a CAM++ (Wang et al. 2023). An utterance's audio -> (size,). Only with --speakers.

``CamPlusPlus`` runs FunASR's own model on torch, ``OnnxCamPlusPlus`` the graph that ``voice/conversion/speaker.py`` wrote, without torch
and without FunASR. No state but the weights. Runs on the side models' thread. Raises ``ValueError`` for samples that are no audio.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import kaldi_native_fbank  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from voice.audio import SAMPLE_RATE_HZ, Samples
from voice.finalization.speakers import SpeakerModel
from voice.models.converted import OnnxModel
from voice.models.funasr_model import FunasrModel

NUM_MEL_BINS = 80
_LOUDEST = 1e9
"""In full scales. Energies of louder samples may exceed float32, and ``kaldi_native_fbank`` raises or aborts."""
_PIECE_SAMPLES = SAMPLE_RATE_HZ
"""``kaldi_native_fbank`` holds the GIL while it computes: 1 ms for a piece."""


def create_speaker_model(model: FunasrModel | OnnxModel, name: str) -> SpeakerModel:
    """What runs a speaker model that the settings call ``name``: a hub id or a directory."""
    return OnnxCamPlusPlus(model.sessions["speaker"], name) if isinstance(model, OnnxModel) else CamPlusPlus(model, name)


class CamPlusPlus:
    """The loaded model, on torch."""

    def __init__(self, model: FunasrModel, name: str) -> None:
        """Take a loaded model that the settings call ``name``: a hub id or a directory."""
        self._model = model
        self.source = _source(name)

    def embedding(self, samples: Samples) -> NDArray[np.float32]:
        """(size,).

        Args:
            samples: float32, (num_samples,), 16 kHz mono, at least 720: three frames.
        """
        import torch  # noqa: PLC0415 -- where it runs the model, it is there

        _check(samples)
        results, _ = self._model.run(
            lambda: self._model.module.inference(
                [torch.from_numpy(samples)], key=["utterance"], fs=SAMPLE_RATE_HZ, device=self._model.device
            )
        )
        values: NDArray[np.float32] = results[0]["spk_embedding"][0].cpu().numpy()
        return values


class OnnxCamPlusPlus:
    """The converted model, on ONNX Runtime."""

    def __init__(self, session: Any, name: str) -> None:
        """Take over the session of ``speaker.onnx``, of one thread, for a model that the settings call ``name``."""
        self._session = session
        self.source = _source(name)

    def embedding(self, samples: Samples) -> NDArray[np.float32]:
        """(size,).

        Args:
            samples: float32, (num_samples,), 16 kHz mono, at least 720: three frames.
        """
        values: NDArray[np.float32] = self._session.run(["embedding"], {"features": features_of(samples)[None]})[0][0]
        return values


def features_of(samples: Samples) -> NDArray[np.float32]:
    """Log mel energies, (frames, 80), the mean of each bin taken off: what ``CAMPPlus.inference`` makes of samples.

    Raises:
        ValueError: the samples are not finite, or too loud.
    """
    _check(samples)
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = "povey"
    options.mel_opts.num_bins = NUM_MEL_BINS
    options.energy_floor = 1.0
    options.use_energy = False
    bank = kaldi_native_fbank.OnlineFbank(options)
    for first in range(0, len(samples), _PIECE_SAMPLES):
        bank.accept_waveform(SAMPLE_RATE_HZ, samples[first : first + _PIECE_SAMPLES])
    bank.input_finished()
    frames = np.stack([bank.get_frame(index) for index in range(bank.num_frames_ready)])
    normalized: NDArray[np.float32] = frames - frames.mean(axis=0, keepdims=True)
    return normalized


def _check(samples: Samples) -> None:
    if not bool((np.abs(samples) <= _LOUDEST).all()):  # nor is NaN
        raise ValueError("the audio holds samples that are not numbers, or no sound is so loud")


def _source(name: str) -> str:
    """``source`` of the events of a model that the settings call ``name``."""
    return f"funasr.{PurePath(name).name}"
