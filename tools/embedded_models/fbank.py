"""Log mel filterbank features as FunASR's WavFrontend makes them (kaldi's fbank, dither 0), many frames at a time.

Fast enough to be made anew for every augmentation; tests/test_embedded_models.py compares it with kaldi-native-fbank.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

SAMPLE_RATE_HZ = 16_000
NUM_BINS = 80
WINDOW, SHIFT, FFT_SIZE = 400, 160, 512
STACK, SKIP = 7, 6  # low frame rate: 7 frames beside each other, every 6th is kept: one step a 60 ms
_LOWEST_HZ, _WARPED_BELOW_HZ, _NYQUIST_HZ = 20.0, 6000.0, 8000.0


def fbank(samples: np.ndarray, warp: float = 1.0) -> np.ndarray:
    """Filterbank energies.

    Args:
        samples: (n,) float32 in the range of int16, 16 kHz, n >= 400.
        warp: factor of every frequency below 6 kHz: 1.1 sounds like a vocal tract shorter by a tenth and a voice higher by a tenth.

    Returns:
        (frames, 80) float32, natural logarithms; frames = 1 + (n - 400) // 160.
    """
    frames = torch.from_numpy(samples).unfold(0, WINDOW, SHIFT)
    frames = frames - frames.mean(1, keepdim=True)
    previous = torch.cat([frames[:, :1], frames[:, :-1]], 1)
    frames = (frames - 0.97 * previous) * torch.hamming_window(WINDOW, periodic=False)
    power = torch.fft.rfft(frames, FFT_SIZE).abs().square()
    energies = power @ mel_weights(round(warp, 3))
    return energies.clamp_min(torch.finfo(torch.float32).eps).log().numpy()


def low_frame_rate(frames: np.ndarray) -> np.ndarray:
    """(frames, 80) -> (ceil(frames / 6), 560), the edges repeated as FunASR repeats them."""
    count = -(-len(frames) // SKIP)
    before = (STACK - 1) // 2
    positions = np.arange(count)[:, None] * SKIP + np.arange(STACK)[None, :] - before
    return frames[positions.clip(0, len(frames) - 1)].reshape(count, -1)


@functools.cache
def mel_weights(warp: float) -> torch.Tensor:
    """(257, 80) triangles, equal on the mel scale 1127 ln(1 + f / 700), over warped frequencies."""
    hz = torch.arange(FFT_SIZE // 2 + 1) * (SAMPLE_RATE_HZ / FFT_SIZE)
    knee = _WARPED_BELOW_HZ * warp
    above = knee + (hz - _WARPED_BELOW_HZ) * (_NYQUIST_HZ - knee) / (_NYQUIST_HZ - _WARPED_BELOW_HZ)
    mel = _mel(torch.where(hz <= _WARPED_BELOW_HZ, hz * warp, above))
    edges = torch.linspace(_mel(torch.tensor(_LOWEST_HZ)).item(), _mel(torch.tensor(_NYQUIST_HZ)).item(), NUM_BINS + 2)
    rising = (mel[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mel[:, None]) / (edges[2:] - edges[1:-1])
    weights = torch.minimum(rising, falling).clamp_min(0)
    weights[-1] = 0  # kaldi leaves the Nyquist bin out
    return weights.float()


def _mel(hz: torch.Tensor) -> torch.Tensor:
    return 1127.0 * torch.log1p(hz / 700.0)
