"""Features beside those of FunASR's ``WavFrontendOnline``, for audio cut in any way; damaged am.mvn files and settings."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import EMBEDDED_ASR, example

from voice.models.funasr_model import FunasrModel
from voice.recognition.features import FeatureSettings, FeatureStream, read_mvn

MVN = EMBEDDED_ASR / "am.mvn"
SECOND = 16_000
STRIDE = 9_600
FILTERBANK, FRAME = 160, 960
"""Samples from one to the next."""
NOTHING = np.zeros(0, np.float32)
PLAIN = FeatureSettings(80, 25, 10, "hamming", 7, 6, *read_mvn(MVN))


@pytest.fixture(scope="module")
def frontend(funasr_model: FunasrModel) -> Any:
    return funasr_model.frontend


def noise(num_samples: int, loudness: float = 0.1) -> np.ndarray:
    return (np.random.default_rng(7).standard_normal(num_samples) * loudness).astype(np.float32)


def tone(num_samples: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 / SECOND * np.arange(num_samples))).astype(np.float32)


TOLERANCE = 5e-4
"""Where torchaudio can be loaded, FunASR's filterbanks are torchaudio's: up to 3e-4 from kaldi-native-fbank's."""
SIGNALS = {
    "speech": example("two_utterances")[0][: 4 * SECOND],
    "silence": np.zeros(SECOND, np.float32),
    "noise": noise(SECOND),
    "faint noise": np.round(noise(SECOND, 1.5)) / np.float32(32_768),
    "tone": tone(SECOND),
    "square, clipped": np.sign(tone(SECOND)),
}


def cut(samples: np.ndarray, lengths: Sequence[int]) -> Iterator[tuple[np.ndarray, bool]]:
    """Pieces of these lengths, the last of which is final and takes the rest."""
    ends = np.minimum(np.cumsum(lengths), len(samples)).tolist()
    for start, end in zip([0, *ends], [*ends, len(samples)], strict=True):
        yield samples[start:end], False
    yield NOTHING, True


def last_piece_final(pieces: Iterator[tuple[np.ndarray, bool]]) -> Iterator[tuple[np.ndarray, bool]]:
    """The same without the empty piece at the end."""
    *before, (last, _), _ = pieces
    yield from before
    yield last, True


def check_equal(frontend: Any, pieces: Iterator[tuple[np.ndarray, bool]], settings: FeatureSettings = PLAIN) -> int:
    """Compare every call; the number of frames."""
    import torch

    stream, cache, num_frames = FeatureStream(settings), {}, 0
    for piece, is_final in pieces:
        frames = stream.accept(piece, is_final=is_final)
        waveform = torch.from_numpy(piece.copy())[None]
        expected, _ = frontend(waveform, torch.tensor([len(piece)]), cache=cache, is_final=is_final)
        expected = expected[0].numpy() if expected.ndim == 3 else np.zeros((0, settings.width), np.float32)
        assert (frames.dtype, frames.shape) == (np.float32, expected.shape)
        np.testing.assert_allclose(frames, expected, rtol=0, atol=TOLERANCE)
        num_frames += len(frames)
    return num_frames


# --- beside FunASR ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("longest", [2_000, 20_000])
def test_frames_are_funasrs_however_the_audio_is_cut(frontend: Any, name: str, longest: int) -> None:
    rng = random.Random(f"{name} {longest}")
    for _ in range(3):
        lengths = [rng.choice((0, 1, rng.randrange(FILTERBANK), rng.randrange(longest))) for _ in range(40)]
        samples = SIGNALS[name]
        expected = -(-((len(samples) - 400) // FILTERBANK + 1) // 6)
        assert check_equal(frontend, cut(samples, lengths)) == expected
        assert check_equal(frontend, last_piece_final(cut(samples, lengths))) == expected


@pytest.mark.parametrize("num_strides", [0, 1, 2])
def test_strides_with_any_rest(frontend: Any, num_strides: int) -> None:
    for rest in [*range(0, 2 * FRAME, 60), 1, 159, 161, 239, 241, 399, 400, 401, 559, 959, 961, 1_119, 1_359, 1_919]:
        samples = SIGNALS["speech"][SECOND // 2 :][: num_strides * STRIDE + rest]
        for whole in (cut(samples, [STRIDE] * num_strides), last_piece_final(cut(samples, [STRIDE] * num_strides))):
            check_equal(frontend, whole)


def test_the_first_frame_comes_with_its_fourth_filterbank(frontend: Any) -> None:
    samples = SIGNALS["noise"]
    stream = FeatureStream(PLAIN)
    assert len(stream.accept(samples[: 3 * FILTERBANK + 399], is_final=False)) == 0
    assert len(stream.accept(samples[3 * FILTERBANK + 399 :][:1], is_final=False)) == 1
    for num_samples in (0, 1, 399, 400, 879, 880, 959, 960, 1_360):
        check_equal(frontend, cut(samples[:num_samples], []))
        check_equal(frontend, last_piece_final(cut(samples[:num_samples], [])))


def test_a_sample_at_a_time(frontend: Any) -> None:
    check_equal(frontend, cut(SIGNALS["speech"][SECOND:][: 2 * FRAME], [1] * (2 * FRAME)))


def test_long_audio_in_one_piece_is_that_in_strides(frontend: Any) -> None:
    samples = np.concatenate((example("two_utterances")[0], example("temperature")[0]))
    check_equal(frontend, iter([(samples, True)]))
    whole = FeatureStream(PLAIN).accept(samples, is_final=True)
    stream = FeatureStream(PLAIN)
    parts = [stream.accept(piece, is_final=is_final) for piece, is_final in cut(samples, [STRIDE] * (len(samples) // STRIDE))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_other_settings(frontend: Any) -> None:
    """fsmn-vad's stacking, and one in which a frame's middle is not in its middle."""
    for num_bins, length, shift, window, m, n in ((80, 25, 10, "hamming", 5, 1), (40, 20, 8, "povey", 4, 3), (23, 32, 11, "hanning", 9, 2)):
        other = type(frontend)(n_mels=num_bins, frame_length=length, frame_shift=shift, window=window, lfr_m=m, lfr_n=n, dither=0.0)
        width = num_bins * m
        settings = FeatureSettings(num_bins, length, shift, window, m, n, np.zeros(width, np.float32), np.ones(width, np.float32))
        for rest in range(0, 1_500, 100):
            check_equal(other, cut(SIGNALS["speech"][: SECOND + rest], [1_000, 0, 5_000, 300, 7, 4_000]), settings)


# --- state --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [0, 100, 500, 879, 5_000, 9_600])
def test_a_copy_and_its_original_go_on_independently(num_samples: int) -> None:
    samples, other = SIGNALS["speech"], SIGNALS["noise"]
    stream = FeatureStream(PLAIN)
    stream.accept(samples[:num_samples], is_final=False)
    copied, untouched = stream.copy(), stream.copy()
    stream.accept(other[:3_000], is_final=False)
    stream.accept(other[3_000:], is_final=True)
    for piece, is_final in ((samples[num_samples:][:7_777], False), (samples[:1_000], True)):
        np.testing.assert_array_equal(copied.accept(piece, is_final=is_final), untouched.accept(piece, is_final=is_final))


def test_nothing_of_what_goes_in_or_comes_out_is_kept() -> None:
    samples = SIGNALS["speech"]
    stream, expected = FeatureStream(PLAIN), FeatureStream(PLAIN)
    for start in range(0, SECOND, 300):
        buffer = samples[start : start + 300].copy()
        frames = stream.accept(buffer, is_final=False)
        np.testing.assert_array_equal(frames, expected.accept(samples[start : start + 300], is_final=False))
        np.testing.assert_array_equal(buffer, samples[start : start + 300])
        buffer[:] = frames[:] = 7


def test_little_is_held() -> None:
    stream = FeatureStream(PLAIN)
    for length in (9_600, 60 * SECOND, 1, 0, 1_000):
        stream.accept(noise(length), is_final=False)
        held = [array if array.base is None else array.base for array in (stream._samples, stream._filterbanks)]
        assert (len(held[0]) < 400, len(held[1]) < 7) == (True, True)


# --- samples that are no samples ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e30, 1.1e10])
def test_a_sample_that_is_not_a_number_or_huge_spoils_its_own_frames_only(wrong: float) -> None:
    samples = SIGNALS["speech"][:SECOND].copy()
    expected = FeatureStream(PLAIN).accept(samples, is_final=True)
    samples[5_000] = wrong  # filterbanks 29 to 31: frame 5 has 27 to 33
    for lengths in ([], [4_990, 5, 5, 1, 100]):
        stream = FeatureStream(PLAIN)
        frames = np.concatenate([stream.accept(piece, is_final=is_final) for piece, is_final in cut(samples, lengths)])
        is_wrong = np.isnan(frames).any(axis=1)
        assert np.flatnonzero(is_wrong).tolist() == [5]
        np.testing.assert_array_equal(frames[~is_wrong], expected[~is_wrong])


def test_the_loudest_samples_that_are_computed_give_numbers() -> None:
    for loud in (np.full(SECOND, 1e10, np.float32), np.sign(tone(SECOND)) * np.float32(1e10), noise(SECOND, 1e9)):
        assert np.isfinite(FeatureStream(PLAIN).accept(loud, is_final=True)).all()


# --- am.mvn and settings ------------------------------------------------------------------------------------------------


def test_the_normalisation_is_what_funasr_reads(frontend: Any) -> None:
    np.testing.assert_array_equal(np.stack(read_mvn(MVN)), frontend.cmvn.numpy())


def edited(old: str, new: str, count: int = 1) -> str:
    text = MVN.read_text()
    assert old in text
    return text.replace(old, new, count)


FIRST = MVN.read_text().split("[ ")[2].split()[0]
"""The first mean, as it stands there."""
DAMAGED: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "holds 0 vectors <AddShift>, not one"),
    "binary": (b"\x80\x02\xff" * 100, "is not UTF-8 text"),
    "cut in the first vector": (MVN.read_text()[:1_000], "holds 0 vectors <AddShift>, not one"),
    "cut in the second vector": (MVN.read_text()[: MVN.read_text().index("<Rescale>") + 1_000], "holds 0 vectors <Rescale>, not one"),
    "no second vector": (edited("<Rescale>", "<Recsale>"), "holds 0 vectors <Rescale>, not one"),
    "two vectors": (MVN.read_text() * 2, "holds 2 vectors <AddShift>, not one"),
    "a word": (edited(FIRST, "seven"), "holds something in <AddShift> that is no number"),
    "NaN": (edited(FIRST, "nan"), "holds something in <AddShift> that is no number"),
    "infinite": (edited(FIRST, "1e39"), "holds something in <AddShift> that is no number"),
    "one is missing": (edited(FIRST, ""), "holds 559 means and 560 variances"),
    "no number": ("<AddShift> 0 0\n<LearnRateCoef> 0 [ ]\n<Rescale> 0 0\n<LearnRateCoef> 0 [ ]\n", "holds 0 means and 0 variances"),
    "huge": (MVN.read_text() + " " * 2**20, "is larger than"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_mvn_is_refused_in_a_line_that_names_it(tmp_path: Path, name: str) -> None:
    content, says = DAMAGED[name]
    path = tmp_path / "am.mvn"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"am\.mvn") as caught:
        read_mvn(path)
    assert str(caught.value).startswith(f"{path} {says}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_mvn_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_mvn(tmp_path / "am.mvn")
    with pytest.raises(ValueError, match="is a directory"):
        read_mvn(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"frame_shift_ms": 0},
        {"frame_shift_ms": -10},
        {"frame_shift_ms": 26},
        {"frame_length_ms": 1_000_000},
        {"window": "hammnig"},
        {"lfr_n": 0},
        {"lfr_n": 7},
        {"lfr_m": 6},
        {"num_mel_bins": 79},
        {"num_mel_bins": 2, "shift": np.zeros(14, np.float32), "scale": np.ones(14, np.float32)},
        {"num_mel_bins": 500, "shift": np.zeros(3_500, np.float32), "scale": np.ones(3_500, np.float32)},
        {"shift": np.zeros(559, np.float32)},
        {"scale": np.zeros((1, 560), np.float32)},
    ],
    ids="-".join,
)
def test_settings_with_which_nothing_can_be_computed_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        replace(PLAIN, **wrong)
    assert len(str(caught.value).splitlines()) == 1
