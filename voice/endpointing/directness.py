"""Endpointing: how direct the sound of some speech is (float32, 16 kHz mono) -> one number, and the noise that it is judged against.

A voice near the microphone arrives as direct sound; of one across the room mostly reflections arrive. That can be measured without
knowing the room. Each closing of the vocal folds is a sharp pulse in what linear prediction leaves of direct speech; reflections blur it
(kurtosis of the residual: Gillespie, Malvar, Florencio, ICASSP 2001). The envelope of high bands falls between two pulses, and the level of
a band falls after a sound; reflections fill both. ``features`` computes these measures. ``directness`` weighs them as a logistic regression
does: above 0 direct sound is likelier; it is the natural logarithm of the odds. The weights are those that ``bench/near_field.py --fit``
found in simulated rooms.

Pure functions; ``NoiseFloor`` holds the noise. Any thread. Raises nothing: silence and samples of any size give finite numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from voice.audio import SAMPLE_RATE_HZ, Samples

Floats = NDArray[np.float64]

MIN_SAMPLES = 2_048
"""Less audio than this has no directness: 128 ms."""
_FRAME, _HOP = 512, 256
_ORDER, _LOWER_ORDER = 24, 16
"""Of linear prediction; the lower one leaves more of the formants."""
_PREEMPHASIS = 0.97
_QUIET_FRAMES = 10**-1.5
"""Frames whose energy is below this share of the loudest one's are not speech."""
_ENVELOPE_BANDS_HZ = ((800, 2_000), (2_000, 4_500), (4_000, 7_500))
_BANDS_HZ = ((150, 500), (500, 1_000), (1_000, 2_000), (2_000, 4_000), (4_000, 7_600))
_STEP, _SPAN = 128, 256
"""Hop and length of the short-time spectra, 8 and 16 ms."""
_TINY = 1e-20
_FALLS, _RISES = 0.3, 0.05
"""Share of the difference by which the noise floor follows each window of 32 ms."""

_WINDOW = np.hanning(_FRAME)
_SHORT_WINDOW = np.hanning(_SPAN)
_SHORT_HZ = np.fft.rfftfreq(_SPAN, 1 / SAMPLE_RATE_HZ)
_IN_BAND = np.array([(low <= _SHORT_HZ) & (high > _SHORT_HZ) for low, high in _BANDS_HZ], np.float64).T
_LONG_HZ = np.fft.rfftfreq(_FRAME, 1 / SAMPLE_RATE_HZ)
_EDGE = _FRAME * 3 // 16
"""Samples at both ends of a frame whose envelope is not used: the window is too small there."""

NAMES = (
    *("k24_mean", "k24_p75", "k24_p25", "l24", "k16_mean", "k16_median"),
    *(f"{what}_{band}" for band in range(3) for what in ("peaky", "hollow")),
    *(f"{what}_{band}" for band in range(5) for what in ("std", "fall", "rise", "long_fall", "long_rise", "skew", "change")),
    *("tilt_10", "tilt_21", "tilt_31", "tilt_41", "snr"),
)
"""Of the features, in their order."""
# fmt: off
WEIGHTS = np.array([
    3.902, 3.577, 8.673, 47.29, 2.449, 4.334,  # residual, in the order of NAMES
    3.438, 3.878, 7.21, -13.73, 13.46, -19.91,  # envelope of three bands
    -0.02195, -0.05014, -0.09451, -0.1068, 0.05024, 0.2537, -0.4688,  # band 0
    0.03128, -0.158, -0.00896, 0.01922, 0.04172, -0.007684, -0.4669,  # band 1
    -0.006241, -0.02328, -0.1242, 0.02044, 0.007808, 0.2323, -0.2967,  # band 2
    -0.08746, 0.0602, -0.1052, -0.008742, -0.004554, 0.03976, -0.4473,  # band 3
    -0.08695, 0.1364, -0.07014, 0.04653, -0.02618, -0.007777, -0.1158,  # band 4
    0.009416, 0.002316, 0.01563, 0.02951, 0.1044,  # tilt, speech over noise
])
# fmt: on
BIAS = -13.22


def band_powers(samples: Samples) -> Floats:
    """Mean power of some audio in each of five bands and, last, in all of it; (6,), of at least 256 samples."""
    return np.append(_short_time(samples).mean(axis=0), np.square(samples, dtype=np.float64).mean())


def features(samples: Samples, level: float, noise: Floats) -> Floats:
    """The measures of a stretch of speech.

    Args:
        samples: float32, (num_samples,), at least ``MIN_SAMPLES``, [-8, 8], 16 kHz mono: from the first speech on, pauses included.
        level: mean power of its speech.
        noise: ``band_powers`` of the noise.

    Returns:
        (len(NAMES),), finite.
    """
    frames = sliding_window_view(samples, _FRAME)[::_HOP].astype(np.float64)
    energies = np.square(frames).mean(axis=1)
    frames = frames[energies >= energies.max() * _QUIET_FRAMES]
    return np.concatenate((_residual_measures(frames), _envelope_measures(frames), _band_measures(_short_time(samples), level, noise)))


def directness(samples: Samples, level: float, noise: Floats) -> float:
    """How direct speech is: the natural logarithm of the odds that it is, from ``features``, whose arguments these are."""
    return float(features(samples, level, noise) @ WEIGHTS) + BIAS


class NoiseFloor:
    """The noise while nobody speaks: it follows what is quieter at once and what is louder slowly."""

    def __init__(self) -> None:
        self._powers: Floats | None = None

    @property
    def powers(self) -> Floats:
        """As ``band_powers``; zeros before the first window."""
        return np.zeros(len(_BANDS_HZ) + 1) if self._powers is None else self._powers

    @property
    def rms(self) -> float:
        """Root mean square of the noise."""
        return float(np.sqrt(self.powers[-1]))

    def accept(self, window: Samples) -> None:
        """Take a window in which nobody speaks."""
        now = band_powers(window)
        if self._powers is None:
            self._powers = now
        else:
            self._powers = self._powers + (now - self._powers) * np.where(now < self._powers, _FALLS, _RISES)


def _residual_measures(frames: Floats) -> Floats:
    """How peaky the residual of linear prediction is, frame by frame, in six statistics."""
    emphasised = frames.copy()
    emphasised[:, 1:] -= _PREEMPHASIS * frames[:, :-1]
    size = 2 * _FRAME
    power = np.square(np.abs(np.fft.rfft(emphasised * _WINDOW, size)))
    correlation = np.fft.irfft(power, size)[:, : _ORDER + 1]
    spectrum = np.fft.rfft(emphasised, size)
    low, high = _predictors(correlation)
    k16, _ = _peakiness(np.fft.irfft(spectrum * np.fft.rfft(low, size), size)[:, _LOWER_ORDER:_FRAME])
    k24, l24 = _peakiness(np.fft.irfft(spectrum * np.fft.rfft(high, size), size)[:, _ORDER:_FRAME])
    return np.array([k24.mean(), *np.percentile(k24, (75, 25)), l24.mean(), k16.mean(), np.median(k16)])


def _predictors(correlation: Floats) -> tuple[Floats, Floats]:
    """Prediction error filters of the lower and the full order, (num_frames, order + 1), by Levinson's recursion."""
    correlation[:, 0] = correlation[:, 0] * (1 + 1e-4) + 1e-12
    filters = np.zeros_like(correlation)
    filters[:, 0] = 1
    error = correlation[:, 0].copy()
    lower = filters
    for order in range(1, _ORDER + 1):
        reflection = -(filters[:, :order] * correlation[:, order:0:-1]).sum(axis=1) / error
        filters[:, 1 : order + 1] += reflection[:, np.newaxis] * filters[:, :order][:, ::-1].copy()
        error *= 1 - np.square(reflection)
        if order == _LOWER_ORDER:
            lower = filters[:, : order + 1].copy()
    return lower, filters


def _peakiness(residual: Floats) -> tuple[Floats, Floats]:
    """Logarithm of the kurtosis of each row, and its mean magnitude relative to its root mean square, negative."""
    squares = np.square(residual)
    power = squares.mean(axis=1) + _TINY
    kurtosis = np.square(squares).mean(axis=1) / np.square(power)
    return np.log(kurtosis + _TINY), -np.abs(residual).mean(axis=1) / np.sqrt(power)


def _envelope_measures(frames: Floats) -> Floats:
    """How far the envelope of high bands falls between the pulses of the voice: two statistics of each band."""
    spectrum = np.fft.rfft(frames * _WINDOW)
    measures = []
    for low, high in _ENVELOPE_BANDS_HZ:
        analytic = np.zeros((len(frames), _FRAME), np.complex128)
        analytic[:, : _FRAME // 2 + 1] = spectrum * np.where((low <= _LONG_HZ) & (high > _LONG_HZ), 2.0, 0.0)
        envelope = np.abs(np.fft.ifft(analytic))[:, _EDGE:-_EDGE] / _WINDOW[_EDGE:-_EDGE]
        squares = np.square(envelope)
        power = squares.mean(axis=1) + _TINY
        measures.append(np.log(np.square(squares).mean(axis=1) / np.square(power) + _TINY).mean())
        measures.append((np.log(envelope + 1e-9).mean(axis=1) - np.log(power) / 2).mean())
    return np.array(measures)


def _band_measures(powers: Floats, level: float, noise: Floats) -> Floats:
    """How the level of each band rises and falls, seven statistics of each; spectral tilt; speech over noise in dB."""
    noise_bands = noise[:-1]
    loud = np.maximum(powers, np.maximum(powers.max(axis=0) * 1e-4, 2 * noise_bands))
    levels = 10 * np.log10(loud + _TINY)
    steps, short, long = (levels[lag:] - levels[:-lag] for lag in (1, 3, 6))
    statistics = np.array(
        [
            levels.std(axis=0),
            np.percentile(short, 10, axis=0),
            np.percentile(short, 90, axis=0),
            np.percentile(long, 5, axis=0),
            np.percentile(long, 95, axis=0),
            (steps**3).mean(axis=0) / (np.square(steps).mean(axis=0) + 1e-9) ** 1.5,
            np.abs(steps).mean(axis=0),
        ]
    )
    mean = powers.mean(axis=0)
    tilt = 10 * np.log10(np.maximum(mean - noise_bands, mean * 0.01) + _TINY)
    snr = 10 * np.log10(level / (noise[-1] + 1e-12) + 1e-9)
    return np.concatenate((statistics.T.ravel(), [tilt[1] - tilt[0], *(tilt[2:] - tilt[1]), min(max(snr, 0.0), 30.0)]))


def _short_time(samples: Samples) -> Floats:
    """Power in five bands every 8 ms, (num_frames, 5)."""
    spans = sliding_window_view(samples, _SPAN)[::_STEP]
    powers: Floats = np.square(np.abs(np.fft.rfft(spans * _SHORT_WINDOW))) @ _IN_BAND
    return powers
