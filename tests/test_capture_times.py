"""From the audio clock to the wall clock."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from voice.audio import SAMPLE_RATE_HZ, AudioBlock
from voice.capture_times import CaptureTimes, captured_ms
from voice.output.events import ErrorEvent
from voice.process.clock import clock_sec


def test_in_live_audio_samples_were_captured_one_after_the_other() -> None:
    times = CaptureTimes()
    times.add(100, 5_100, live=True)
    times.add(200, 5_203, live=True)  # the device's clock runs a little slow
    assert [times.at(position) for position in (1, 40, 100, 101, 150, 200)] == [5_001, 5_040, 5_100, 5_104, 5_153, 5_203]


def test_a_file_is_read_a_block_at_once() -> None:
    times = CaptureTimes()
    times.add(100, 5_000, live=False)
    times.add(200, 5_003, live=False)
    assert [times.at(position) for position in (1, 100, 101, 200)] == [5_000, 5_000, 5_003, 5_003]


def test_a_gap_took_its_time() -> None:
    times = CaptureTimes()
    times.add(100, 5_100, live=True)
    times.add(3_200, 8_200, live=True)  # 3,000 ms were lost before it
    assert [times.at(position) for position in (100, 1_600, 3_101)] == [5_100, 6_600, 8_101]


def test_a_position_beyond_the_last_block_is_its_end_and_one_before_all_is_known_from_the_oldest() -> None:
    times = CaptureTimes()
    assert times.at(50) == 0
    times.add(100, 5_000, live=True)
    assert (times.at(101), times.at(100_000)) == (5_000, 5_000)
    for block in range(2, 3_000):
        times.add(100 * block, 5_000 + 100 * (block - 1), live=True)
    assert times.at(100) == 5_000
    assert times.at(0) == 4_900


def test_more_than_a_minute_is_remembered() -> None:
    times = CaptureTimes()
    for block in range(1, 701):
        times.add(100 * block, 100 * block + 10 * (block % 7), live=True)
    assert times.at(100 * 50) == 100 * 50 + 10 * (50 % 7)


def test_a_time_before_1970_cannot_be() -> None:
    times = CaptureTimes()
    times.add(10_000, 20, live=True)
    assert times.at(1) == 0


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=1), st.integers(0, 30_000))
def test_it_is_never_later_than_the_last_block(blocks: list[tuple[int, int]], position: int) -> None:
    times = CaptureTimes()
    ends = list(itertools.accumulate(length for length, _ in blocks))
    clock = list(itertools.accumulate((spent for _, spent in blocks), initial=100_000))[1:]
    for end, at in zip(ends, clock, strict=True):
        times.add(end, at, live=True)
    assert times.at(position) <= clock[-1]


def test_the_end_of_a_block_on_the_wall_clock() -> None:
    now = time.time() * 1000
    half = AudioBlock(np.zeros((SAMPLE_RATE_HZ // 2, 1), np.float32), SAMPLE_RATE_HZ)
    assert 0 <= captured_ms(half) - now + 1 < 200
    assert abs(captured_ms(replace(half, captured_at=clock_sec() - 60)) - (now - 60_000 + 500)) < 200
    assert abs(captured_ms(replace(half, read_at=clock_sec() - 60)) - (now - 60_000)) < 200


def test_other_events_stay_what_they_are() -> None:
    event = ErrorEvent(trace_id="0" * 16, error_code="runtime_error", message="x", recoverable=True)
    assert CaptureTimes().stamped(event) is event
