"""Features of an utterance as it arrives: what FunASR's ``WavFrontendOnline`` computes, without torch.

Samples -> frames of 60 ms, the encoder's input. ``FeatureStream`` holds the samples and filterbanks of one utterance that frames to come
still need; another utterance takes another stream. Any thread, one at a time. Raises ``ValueError`` for settings or an am.mvn that are of
no use; samples that are not numbers give features that are not numbers.

::

    samples       |<- 25 ms ->|          filterbank i covers the samples [160 i, 160 i + 400)
                     |<- 25 ms ->|
    filterbanks   0 1 2 3 4 5 6 7 8 9    one every 10 ms: the logarithms of 80 mel bins
                  *     |     *          frame j is seven of them side by side, 6 j in the middle:
    frames      [ 0 . . 3 ]                3 before it and 3 after it; what lies before the first
                        [ 3 . . 6 . . 9 ]  filterbank repeats the first, after the last the last

The filterbanks are those of ``kaldi_native_fbank`` with the options of ``funasr/utils/fbank.py``. Frames are equal to FunASR's, not close,
where FunASR uses the same library; where it finds a torchaudio that loads, they agree within rounding.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path

import kaldi_native_fbank  # type: ignore[import-untyped]
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from voice.audio import SAMPLE_RATE_HZ, SAMPLES_PER_MS, Samples
from voice.text_file import FileInvalid, read_text

_FULL_SCALE = np.float32(32_768)
"""FunASR trains on samples of this range."""
_LOUDEST = 1e10
"""In full scales. Beyond it a filterbank's energy may exceed float32, and ``kaldi_native_fbank`` raises or aborts."""
_PIECE_SAMPLES = SAMPLE_RATE_HZ
"""``kaldi_native_fbank`` holds the GIL while it computes: 1 ms for a piece, 45 ms for 30 s in one."""
_MAX_FRAME_LENGTH_MS = 1_000
_MAX_MVN_BYTES = 2**20
"""A real am.mvn has 11 kB."""
_MVN_VECTOR = r"<{}>\s+\d+\s+\d+\s+<LearnRateCoef>\s+\S+\s+\[([^\]<]*)\]"
"""How Kaldi writes a layer that adds or multiplies: ``<AddShift> 560 560 <LearnRateCoef> 0 [ numbers ]``."""


@dataclass(frozen=True, slots=True)
class FeatureSettings:
    """What the encoder was trained on: config.yaml's ``frontend_conf`` and am.mvn."""

    num_mel_bins: int
    """FunASR's ``n_mels``."""
    frame_length_ms: int
    """Of the samples that a filterbank covers."""
    frame_shift_ms: int
    """From one filterbank to the next."""
    window: str
    """Kaldi's name: hamming, hanning, povey, rectangular, blackman."""
    lfr_m: int
    """Filterbanks in a frame (LFR: low frame rate)."""
    lfr_n: int
    """Filterbanks from one frame to the next."""
    shift: NDArray[np.float32]
    """(num_mel_bins * lfr_m,), added to a frame."""
    scale: NDArray[np.float32]
    """(num_mel_bins * lfr_m,), multiplied with the sum."""

    def __post_init__(self) -> None:
        """Check that features can be computed.

        Raises:
            ValueError: they cannot.
        """
        if not 1 <= self.frame_shift_ms <= self.frame_length_ms <= _MAX_FRAME_LENGTH_MS:
            raise ValueError(f"frame_shift must be at least 1 and at most frame_length, which must be at most {_MAX_FRAME_LENGTH_MS}")
        if not 1 <= self.lfr_n < self.lfr_m:  # FunASR repeats filterbanks where they are equal, and none is trained so
            raise ValueError("lfr_n must be at least 1 and below lfr_m")
        if not self.shift.shape == self.scale.shape == (self.width,):
            raise ValueError(f"am.mvn must hold {self.width} means and variances, not {self.shift.size} and {self.scale.size}")
        self.create_extractor()  # it knows the windows and how many bins there can be

    @property
    def width(self) -> int:
        """Of a frame."""
        return self.num_mel_bins * self.lfr_m

    def create_extractor(self) -> kaldi_native_fbank.OnlineFbank:
        """What computes filterbanks from samples in the range of int16. It takes 0.1 ms to make."""
        options = kaldi_native_fbank.FbankOptions()
        options.frame_opts.samp_freq = SAMPLE_RATE_HZ
        options.frame_opts.frame_length_ms = self.frame_length_ms
        options.frame_opts.frame_shift_ms = self.frame_shift_ms
        options.frame_opts.window_type = self.window
        options.frame_opts.dither = 0
        options.mel_opts.num_bins = self.num_mel_bins
        return kaldi_native_fbank.OnlineFbank(options)


def read_mvn(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Read the normalisation of a FunASR model, a Kaldi network in text form: a frame's features are ``(frame + shift) * scale``.

    Args:
        path: am.mvn.

    Returns:
        shift and scale, float32, of the same length: the negative means, and 1 / standard deviations.

    Raises:
        ValueError: it is damaged; one line that names it.
        OSError: it is missing or cannot be read.
    """
    try:
        text = read_text(path, _MAX_MVN_BYTES)
    except FileInvalid as error:
        raise ValueError(f"{path} {error}") from error
    vectors = []
    for layer in ("AddShift", "Rescale"):
        found = re.findall(_MVN_VECTOR.format(layer), text)
        if len(found) != 1:
            raise ValueError(f"{path} holds {len(found)} vectors <{layer}>, not one")
        try:
            vectors.append(_finite(found[0].split()))
        except ValueError as error:
            raise ValueError(f"{path} holds something in <{layer}> that is no number") from error
    shift, scale = vectors
    if not len(shift) == len(scale) > 0:
        raise ValueError(f"{path} holds {len(shift)} means and {len(scale)} variances")
    return shift, scale


def _finite(numbers: list[str]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        vector = np.array([float(number) for number in numbers]).astype(np.float32)
    if not np.isfinite(vector).all():
        raise ValueError("NaN or infinite")
    return vector


class FeatureStream:
    """One utterance. Its arrays are replaced, never written to, so that copies share them."""

    def __init__(self, settings: FeatureSettings) -> None:
        self._settings = settings
        self._samples: Samples = np.zeros(0, np.float32)
        """From the start of the next filterbank on: less than ``frame_length_ms``."""
        self._filterbanks = np.zeros((0, settings.num_mel_bins), np.float32)
        """The last ones: those that frames to come need, less than ``lfr_m``."""
        self._num_filterbanks = 0
        """Computed so far."""
        self._num_frames = 0
        """Returned so far."""

    def accept(self, samples: Samples, *, is_final: bool) -> NDArray[np.float32]:
        """Compute the frames that these samples complete.

        Args:
            samples: float32, (num_samples,), [-1, 1], 16 kHz mono; any number of them. Not kept after return: what later frames need is
                copied.
            is_final: the utterance ends with them: also return the frames whose middle filterbank is there and whose last ones are not.
                Samples that fill no filterbank are dropped. MUST be the last call.

        Returns:
            float32, (num_frames, width), the caller's own. A filterbank is NaN where one of its samples is NaN, or beyond 1e10.
        """
        settings = self._settings
        added = self._take_filterbanks(samples)
        if not (len(added) or is_final):
            return np.zeros((0, settings.width), np.float32)
        before = (settings.lfr_m - 1) // 2
        after = settings.lfr_m - 1 - before
        first = self._num_filterbanks - len(self._filterbanks)
        filterbanks = np.concatenate((self._filterbanks, added))
        self._num_filterbanks += len(added)
        num_middles = self._num_filterbanks if is_final else max(0, self._num_filterbanks - after)
        num_frames = -(-num_middles // settings.lfr_n)
        middles = settings.lfr_n * np.arange(self._num_frames, num_frames)
        members = np.clip(middles[:, None] + np.arange(-before, after + 1), 0, self._num_filterbanks - 1)
        frames: NDArray[np.float32] = filterbanks[members - first].reshape(len(middles), settings.width)
        self._num_frames = num_frames
        self._filterbanks = filterbanks[max(0, settings.lfr_n * num_frames - before) - first :].copy()
        with np.errstate(over="ignore"):
            frames += settings.shift
            frames *= settings.scale
        return frames

    def copy(self) -> FeatureStream:
        """A stream that goes on independently from the same state. Cheap: arrays are shared, not copied."""
        return copy.copy(self)

    def _take_filterbanks(self, samples: Samples) -> NDArray[np.float32]:
        """The filterbanks that these samples complete: (number, num_mel_bins)."""
        length, shift = (ms * SAMPLES_PER_MS for ms in (self._settings.frame_length_ms, self._settings.frame_shift_ms))
        samples = np.concatenate((self._samples, samples))
        number = max(0, (len(samples) - length) // shift + 1)
        self._samples = samples[number * shift :].copy()
        return _filterbanks(samples[: (number - 1) * shift + length], self._settings) if number else self._filterbanks[:0]


def _filterbanks(samples: Samples, settings: FeatureSettings) -> NDArray[np.float32]:
    """The filterbanks of samples that end with the last one's last."""
    length, shift = (ms * SAMPLES_PER_MS for ms in (settings.frame_length_ms, settings.frame_shift_ms))
    is_sane = np.abs(samples) <= _LOUDEST  # not of NaN
    scaled = np.where(is_sane, samples, np.float32(0)) * _FULL_SCALE
    extractor = settings.create_extractor()
    for start in range(0, len(scaled), _PIECE_SAMPLES):
        extractor.accept_waveform(SAMPLE_RATE_HZ, scaled[start : start + _PIECE_SAMPLES].tolist())  # a list is taken faster than an array
    filterbanks: NDArray[np.float32] = np.stack([extractor.get_frame(index) for index in range(extractor.num_frames_ready)])
    if not is_sane.all():
        filterbanks[~sliding_window_view(is_sane, length)[::shift].all(axis=1)] = np.nan
    return filterbanks
