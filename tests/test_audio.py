"""Foundation: lengths and positions on the one sample clock."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voice.audio import SAMPLE_RATE_HZ, SAMPLES_PER_MS, AudioBlock, AudioChunk, ms_to_samples, rms, samples_to_ms


@given(st.integers(min_value=0, max_value=10**10))
def test_whole_milliseconds_survive_the_way_to_samples_and_back(milliseconds: int):
    assert samples_to_ms(ms_to_samples(milliseconds)) == milliseconds


@pytest.mark.parametrize(("milliseconds", "num_samples"), [(0, 0), (1, 16), (800, 12_800), (0.03, 0), (0.04, 1), (62.5, 1000)])
def test_milliseconds_round_to_the_nearest_sample(milliseconds: float, num_samples: int):
    assert ms_to_samples(milliseconds) == num_samples


@given(st.integers(min_value=0, max_value=10**12))
def test_samples_round_down_to_milliseconds(num_samples: int):
    milliseconds = samples_to_ms(num_samples)
    assert isinstance(milliseconds, int)
    assert milliseconds * SAMPLES_PER_MS <= num_samples < (milliseconds + 1) * SAMPLES_PER_MS


def test_rms_of_no_samples_is_zero():
    assert rms(np.zeros(0, np.float32)) == 0.0


def test_rms_of_a_constant_is_its_size():
    assert rms(np.full(512, -0.25, np.float32)) == pytest.approx(0.25)


def test_rms_of_a_sine_is_its_amplitude_over_root_two():
    sine = 0.5 * np.sin(2 * np.pi * 100 * np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ)  # 1 s
    assert rms(sine.astype(np.float32)) == pytest.approx(0.5 / np.sqrt(2), rel=1e-5)


def test_rms_does_not_vanish_where_float32_squares_would():
    """Squares of 1e-30 are below the smallest float32."""
    assert rms(np.full(16, 1e-30, np.float32)) == pytest.approx(1e-30, rel=1e-5)


def test_block_duration_counts_frames_not_channels():
    block = AudioBlock(np.zeros((4_410, 2), np.float32), 44_100)
    assert block.duration_sec == pytest.approx(0.1)


def test_chunk_ends_after_its_last_sample():
    assert AudioChunk(np.zeros(160, np.float32), start_sample=SAMPLE_RATE_HZ).end_sample == SAMPLE_RATE_HZ + 160


@pytest.mark.parametrize(("at_sec", "frames"), [(9.0, 0), (10.0, 0), (10.25, 4_000), (11.0, 16_000), (12.0, 16_000)])
def test_a_block_is_split_at_the_moment_of_capture(at_sec: float, frames: int):
    samples = np.arange(16_000, dtype=np.float32)[:, np.newaxis]
    before, behind = AudioBlock(samples, 16_000, losses_before=3, captured_at=10.0).split(at_sec)
    np.testing.assert_array_equal(np.concatenate((before.samples, behind.samples)), samples)
    assert len(before.samples) == frames
    assert (before.captured_at, behind.captured_at) == (10.0, 10.0 + frames / 16_000)
    assert before.losses_before == behind.losses_before == 3


def test_a_block_without_a_time_of_capture_is_split_at_its_start():
    before, behind = AudioBlock(np.ones((10, 1), np.float32), 16_000).split(5.0)
    assert (len(before.samples), len(behind.samples)) == (0, 10)


def test_blocks_that_follow_each_other_become_one_and_can_be_split_again():
    samples = np.arange(10, dtype=np.float32)[:, np.newaxis]
    before, behind = AudioBlock(samples, 16_000, losses_before=3, captured_at=10.0).split(10.0 + 4 / 16_000)
    assert before.is_followed_by(behind)
    joined = before.joined(behind)
    np.testing.assert_array_equal(joined.samples, samples)
    assert (joined.rate_hz, joined.losses_before, joined.captured_at) == (16_000, 3, 10.0)


@pytest.mark.parametrize("later", [AudioBlock(np.ones((1, 1), np.float32), 8_000), AudioBlock(np.ones((1, 1), np.float32), 16_000, 1)])
def test_a_block_of_another_rate_or_behind_a_loss_follows_none(later: AudioBlock):
    assert not AudioBlock(np.ones((1, 1), np.float32), 16_000).is_followed_by(later)
