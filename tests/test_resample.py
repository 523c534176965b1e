"""Capture: any rate and any channels become the one signal, and every sample has its index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voice.audio import SAMPLE_RATE_HZ, AudioBlock, AudioChunk, ms_to_samples
from voice.capture.resample import Channel, Resampler
from voice.errors import InputUnreadable

RATES_HZ = [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000]
NOISE = np.random.default_rng(7).uniform(-0.5, 0.5, 96_000).astype(np.float32)


def block(mono: np.ndarray, rate_hz: int) -> AudioBlock:
    return AudioBlock(mono[:, np.newaxis], rate_hz)


def after_gap(resampler: Resampler, block: AudioBlock, lost_frames: int) -> list[AudioChunk]:
    chunks = resampler.flush()
    resampler.skip(round(lost_frames * SAMPLE_RATE_HZ / block.rate_hz))
    return chunks + resampler.accept(block)


def resample(blocks: Sequence[AudioBlock], channel: Channel = "mix") -> list[AudioChunk]:
    resampler = Resampler(channel)
    return [chunk for each in blocks for chunk in resampler.accept(each)] + resampler.flush()


def joined(chunks: Sequence[AudioChunk]) -> np.ndarray:
    return np.concatenate([chunk.samples for chunk in chunks]) if chunks else np.zeros(0, np.float32)


def assert_contiguous(chunks: Sequence[AudioChunk]) -> None:
    """Each chunk begins where the last one ended."""
    position = 0
    for chunk in chunks:
        assert chunk.start_sample == position
        position = chunk.end_sample


@settings(deadline=None, max_examples=60)
@given(rate_hz=st.sampled_from(RATES_HZ), sizes=st.lists(st.integers(0, 5_000), max_size=20))
def test_the_output_does_not_depend_on_the_sizes_of_the_blocks(rate_hz: int, sizes: list[int]):
    whole = NOISE[:20_000]
    blocks = [block(piece, rate_hz) for piece in np.split(whole, np.minimum(np.cumsum(sizes, dtype=int), len(whole)))]
    chunks = resample(blocks)
    assert_contiguous(chunks)
    np.testing.assert_array_equal(joined(chunks), joined(resample([block(whole, rate_hz)])))


@settings(deadline=None, max_examples=100)
@given(rate_hz=st.sampled_from(RATES_HZ), num_frames=st.integers(0, 20_000))
def test_after_the_flush_there_are_as_many_samples_as_the_frames_are_long(rate_hz: int, num_frames: int):
    samples = joined(resample([block(NOISE[:num_frames], rate_hz)]))
    assert len(samples) == round(num_frames * SAMPLE_RATE_HZ / rate_hz)
    assert samples.dtype == np.float32


def test_audio_at_16_khz_passes_unchanged_and_at_once():
    resampler = Resampler("mix")
    (chunk,) = resampler.accept(block(NOISE, SAMPLE_RATE_HZ))
    np.testing.assert_array_equal(chunk.samples, NOISE)
    assert resampler.flush() == []


@pytest.mark.parametrize("rate_hz", [16_000, 44_100, 48_000])
def test_at_a_gap_the_filter_is_flushed_and_the_index_advances_by_what_was_lost(rate_hz: int):
    resampler = Resampler("mix")
    lost_frames = rate_hz // 2  # 0.5 s
    before = resampler.accept(block(NOISE[: rate_hz // 10], rate_hz))
    *flushed, after = after_gap(resampler, block(NOISE[: rate_hz // 10], rate_hz), lost_frames)
    assert sum(len(chunk.samples) for chunk in before + flushed) == ms_to_samples(100)
    assert_contiguous([*before, *flushed])
    assert after.start_sample == ms_to_samples(600)
    resampler.flush()
    assert resampler.next_sample == resampler.accepted_until == ms_to_samples(700)


@settings(deadline=None, max_examples=50)
@given(
    rate_hz=st.sampled_from([16_000, 44_100, 48_000]),
    pieces=st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 50_000)), min_size=1, max_size=8),
)
def test_over_any_gaps_the_index_stays_within_a_sample_per_gap_of_the_clock(rate_hz: int, pieces: list[tuple[int, int]]):
    resampler = Resampler("mix")
    for frames, lost in pieces:
        after_gap(resampler, block(NOISE[:frames], rate_hz), lost)
    resampler.flush()
    total_frames = sum(frames + lost for frames, lost in pieces)
    assert abs(resampler.next_sample - total_frames * SAMPLE_RATE_HZ / rate_hz) <= len(pieces)


def test_audio_after_a_gap_does_not_ring_from_the_audio_before_it():
    rate_hz, resampler = 48_000, Resampler("mix")
    resampler.accept(block(NOISE[: rate_hz // 10], rate_hz))
    chunks = after_gap(resampler, block(np.zeros(rate_hz // 10, np.float32), rate_hz), rate_hz) + resampler.flush()
    behind = [chunk for chunk in chunks if chunk.start_sample >= ms_to_samples(1_100)]
    assert len(joined(behind)) == ms_to_samples(100)
    assert not joined(behind).any()


def test_a_change_of_rate_midway_keeps_the_clock():
    """A microphone replugged with another rate: a second at each of three."""
    blocks = [block(NOISE[:rate_hz], rate_hz) for rate_hz in (48_000, 16_000, 44_100)]
    chunks = resample(blocks)
    assert_contiguous(chunks)
    assert chunks[-1].end_sample == 3 * SAMPLE_RATE_HZ
    middle = joined(chunks)[SAMPLE_RATE_HZ : 2 * SAMPLE_RATE_HZ]
    np.testing.assert_array_equal(middle, NOISE[:SAMPLE_RATE_HZ])


STEREO = np.stack([np.full(160, 0.5, np.float32), np.full(160, -0.25, np.float32)], axis=1)


@pytest.mark.parametrize(("channel", "value"), [("mix", 0.125), (0, 0.5), (1, -0.25)])
def test_mix_is_the_mean_of_all_channels_and_a_number_is_one_of_them(channel: Channel, value: float):
    samples = joined(resample([AudioBlock(STEREO, SAMPLE_RATE_HZ)], channel))
    np.testing.assert_array_equal(samples, np.full(160, value, np.float32))


def test_a_channel_the_input_lacks_is_named_with_how_many_there_are():
    with pytest.raises(InputUnreadable, match=r"audio\.channel is 2, but the input has 2 channel"):
        Resampler(2).accept(AudioBlock(STEREO, SAMPLE_RATE_HZ))


@pytest.mark.parametrize("rate_hz", [16_000, 48_000])
def test_values_that_are_not_finite_become_zero_and_are_counted(rate_hz: int):
    dirty = np.zeros(4_800, np.float32)
    dirty[[100, 200, 300]] = [np.nan, np.inf, -np.inf]
    resampler = Resampler("mix")
    chunks = [*resampler.accept(block(dirty, rate_hz)), *resampler.accept(block(NOISE[:4_800], rate_hz)), *resampler.flush()]
    assert (resampler.non_finite_samples, resampler.clipped_samples) == (3, 0)
    clean = resample([block(np.zeros(4_800, np.float32), rate_hz), block(NOISE[:4_800], rate_hz)])
    np.testing.assert_array_equal(joined(chunks), joined(clean))


def test_a_bad_value_in_a_channel_that_is_not_taken_does_not_count():
    dirty = STEREO.copy()
    dirty[5, 1] = np.nan
    resampler = Resampler(0)
    resampler.accept(AudioBlock(dirty, SAMPLE_RATE_HZ))
    assert resampler.non_finite_samples == 0


@pytest.mark.parametrize("frequency_hz", [200, 1_000, 3_000])
def test_a_sine_keeps_its_frequency_and_level_from_44_1_khz(frequency_hz: int):
    rate_hz, amplitude = 44_100, 0.5
    time_sec = np.arange(2 * rate_hz) / rate_hz  # 2 s
    samples = joined(resample([block((amplitude * np.sin(2 * np.pi * frequency_hz * time_sec)).astype(np.float32), rate_hz)]))
    inner = samples[SAMPLE_RATE_HZ // 2 : 3 * SAMPLE_RATE_HZ // 2]  # 1 s away from the edges: bins of 1 Hz
    spectrum = np.abs(np.fft.rfft(inner)) * 2 / len(inner)
    assert np.argmax(spectrum) == frequency_hz
    assert spectrum[frequency_hz] == pytest.approx(amplitude, rel=1e-3)
    assert np.delete(spectrum, frequency_hz).max() < 1e-3


def test_the_output_is_not_shifted_against_the_input():
    """A click at 0.5 s comes out at 0.5 s: times of tokens rest on it."""
    click = np.zeros(48_000, np.float32)
    click[24_000] = 1.0
    assert np.argmax(np.abs(joined(resample([block(click, 48_000)])))) == SAMPLE_RATE_HZ // 2


def test_what_would_alias_is_removed():
    time_sec = np.arange(48_000) / 48_000
    samples = joined(resample([block(np.sin(2 * np.pi * 12_000 * time_sec).astype(np.float32), 48_000)]))
    assert np.abs(samples[1_600:-1_600]).max() < 1e-3
