"""How loud audio is, and what a microphone's level gives away."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from voice.audio import AudioBlock
from voice.level import QUIETEST_DBFS, SILENCE, Level, LevelMonitor, LevelProblem, decibels, level_of

RATE_HZ = 48_000


def tone(amplitude: float, seconds: float = 1.0, rate_hz: int = RATE_HZ) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def test_the_level_of_a_tone() -> None:
    assert level_of(tone(0.5)) == Level(pytest.approx(-9.0, abs=0.05), pytest.approx(-6.0, abs=0.05), 0.0)


def test_silence_and_nothing_have_the_least_level() -> None:
    assert level_of(np.zeros(100, np.float32)) == level_of(np.zeros(0, np.float32)) == SILENCE
    assert SILENCE.rms_dbfs == SILENCE.peak_dbfs == QUIETEST_DBFS
    assert decibels(1e-30) == QUIETEST_DBFS
    assert decibels(1.0) == 0.0


def test_what_was_cut_off_at_full_scale_is_counted() -> None:
    clipped = np.clip(tone(2.0), -32_768 / 32_768, 32_767 / 32_768)
    assert level_of(clipped).clipped_ratio == pytest.approx(2 / 3, abs=0.01), "a sine of twice full scale is beyond it for two thirds"
    assert level_of(tone(0.99)).clipped_ratio == 0


def blocks(*pieces: np.ndarray, block_sec: float = 0.096, channels: int = 1) -> list[AudioBlock]:
    samples = np.concatenate(pieces)
    size = round(block_sec * RATE_HZ)
    return [
        AudioBlock(np.repeat(samples[start : start + size, None], channels, 1), RATE_HZ, captured_at=start / RATE_HZ)
        for start in range(0, len(samples), size)
    ]


def heard(monitor: LevelMonitor, *pieces: np.ndarray, channels: int = 1) -> list[Level | LevelProblem]:
    return [found for block in blocks(*pieces, channels=channels) for found in monitor.accept(block)]


def codes(found: list[Level | LevelProblem]) -> list[str]:
    return [each.code for each in found if isinstance(each, LevelProblem)]


@pytest.mark.parametrize("channels", [1, 2])
def test_a_level_each_interval(channels: int) -> None:
    found = heard(LevelMonitor(0.5, 5.0), tone(0.5, 1.0), tone(0.05, 1.1), channels=channels)
    assert all(isinstance(each, Level) for each in found)
    assert len(found) == 3  # blocks of 96 ms: after 576, 1,152 and 1,728 ms
    assert found[0].rms_dbfs == pytest.approx(-9.0, abs=0.1)
    assert found[-1].rms_dbfs == pytest.approx(-29.0, abs=0.1)


def test_no_interval_is_no_level_and_problems_all_the_same() -> None:
    found = heard(LevelMonitor(0.0, 5.0), np.zeros(RATE_HZ * 6, np.float32))
    assert codes(found) == ["audio_silent"]
    assert len(found) == 1


def zeros(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE_HZ), np.float32)


def test_zeros_from_the_start_are_reported_once() -> None:
    assert codes(heard(LevelMonitor(0.0, 5.0), zeros(12))) == ["audio_silent"]
    assert codes(heard(LevelMonitor(0.0, 5.0), zeros(4))) == []
    assert codes(heard(LevelMonitor(0.0, 0.0), zeros(12))) == [], "switched off"


def test_a_device_that_was_heard_gets_a_minute_and_twice_as_long_each_time() -> None:
    monitor, sound = LevelMonitor(0.0, 5.0), tone(1e-4, 0.1)
    assert codes(heard(monitor, sound, zeros(59))) == []
    assert codes(heard(monitor, sound, zeros(62))) == ["audio_silent"]
    assert codes(heard(monitor, sound, zeros(118))) == []
    assert codes(heard(monitor, sound, zeros(122))) == ["audio_silent"]


def test_clipping_is_reported_once_and_again_after_ten_clean_seconds() -> None:
    monitor = LevelMonitor(0.0, 5.0)
    loud, clean = np.clip(tone(1.2, 3.0), -1, 1), tone(0.5, 5.0)
    assert codes(heard(monitor, loud, clean, loud)) == ["audio_clipping"]
    assert codes(heard(monitor, clean, clean, clean, loud)) == ["audio_clipping"]


def test_a_single_click_is_no_clipping() -> None:
    click = tone(0.2, 2.0)
    click[1_000:1_010] = 1.0
    assert codes(heard(LevelMonitor(0.0, 5.0), click)) == []


@given(
    hypothesis_numpy.arrays(np.float32, st.tuples(st.integers(0, 300), st.integers(1, 3)), elements=st.floats(width=32, allow_nan=True)),
)
def test_any_samples_have_a_level(samples: np.ndarray) -> None:
    monitor = LevelMonitor(1e-9, 5.0)
    with np.errstate(over="ignore"):
        found = monitor.accept(AudioBlock(samples, RATE_HZ, captured_at=0.0))
    for each in found:
        if isinstance(each, Level):
            assert all(math.isfinite(value) for value in (each.rms_dbfs, each.peak_dbfs, each.clipped_ratio))
            assert 0 <= each.clipped_ratio <= 1
            assert each.rms_dbfs <= each.peak_dbfs + 0.1
