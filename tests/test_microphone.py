"""Capture: which microphone is meant, and how much of its audio was lost. Real capture is tested on a virtual device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voice.capture.devices import find_device
from voice.capture.gap_meter import GapMeter
from voice.capture.microphone import Microphone
from voice.capture.portaudio import MicrophoneSettings
from voice.errors import EXIT_CONFIG, EXIT_INPUT, AudioDeviceUnavailable, ConfigInvalid

# --- which one ------------------------------------------------------------------------------------------------------


def device(name: str, inputs: int = 1) -> dict[str, Any]:
    return {"name": name, "max_input_channels": inputs, "max_output_channels": 2, "default_samplerate": 48_000.0}


DEVICES = [
    device("HDMI", inputs=0),
    device("USB Mic Array", inputs=6),
    device("Built-in Microphone", inputs=2),
    device("USB Mic"),
    device("USB Speaker", inputs=0),
]
DEFAULT = 2


def found(wanted: str | int | None, default: int = DEFAULT) -> int:
    index, description = find_device(DEVICES, default, wanted)
    assert description == DEVICES[index]
    return index


def test_without_a_wish_it_is_the_systems_default():
    assert found(None) == DEFAULT


@pytest.mark.parametrize("default", [-1, 0, 99])
def test_without_a_default_that_can_record_it_is_the_first_that_can(default: int):
    assert found(None, default) == 1


@pytest.mark.parametrize("index", [1, 2, 3])
def test_an_index_is_that_device(index: int):
    assert found(index) == index


def test_the_exact_name_comes_before_a_longer_one_that_holds_it():
    assert found("USB Mic") == 3


@pytest.mark.parametrize(("part", "index"), [("built-in", 2), ("MICROPHONE", 2), ("array", 1), ("usb", 1)])
def test_a_part_of_a_name_finds_the_first_device_with_it_whatever_the_case(part: str, index: int):
    assert found(part) == index


@pytest.mark.parametrize("name", ["Webcam", "HDMI", "USB Speaker"])
def test_an_unknown_name_or_one_that_cannot_record_lists_those_that_can(name: str):
    with pytest.raises(AudioDeviceUnavailable) as caught:
        found(name)
    message = str(caught.value)
    assert f"'{name}'" in message
    assert message.endswith("there are: 1 'USB Mic Array', 2 'Built-in Microphone', 3 'USB Mic'")
    assert caught.value.exit_code == EXIT_INPUT


@pytest.mark.parametrize("index", [0, 99, -1])
def test_an_index_that_is_no_input_device_is_a_problem_of_the_settings(index: int):
    with pytest.raises(ConfigInvalid) as caught:
        found(index)
    (problem,) = caught.value.problems
    assert problem.startswith(f"audio.device: {index} ")
    assert "2 'Built-in Microphone'" in problem
    assert caught.value.exit_code == EXIT_CONFIG


@pytest.mark.parametrize("wanted", [None, "USB"])
@pytest.mark.parametrize("devices", [[], [device("HDMI", inputs=0)]])
def test_without_any_input_device_there_is_no_microphone(devices: list[dict[str, Any]], wanted: str | None):
    with pytest.raises(AudioDeviceUnavailable, match="there are: none"):
        find_device(devices, -1, wanted)


# --- how much was lost ----------------------------------------------------------------------------------------------

RATE_HZ = 48_000
BLOCK_FRAMES = RATE_HZ * 30 // 1000  # 30 ms
SLACK_FRAMES = RATE_HZ // 10  # the clock's, 100 ms


class Device:
    """Delivers blocks to a meter; its clock is exact unless told otherwise."""

    def __init__(self, start: float = 1_000.0) -> None:
        self.meter = GapMeter()
        self.now = start

    def block(self, *, lost_frames: int = 0, late_sec: float = 0.0, overflowed: bool = False, seconds_per_second: float = 1.0) -> int:
        """One block after ``lost_frames`` that never came, whose callback runs ``late_sec`` after it was full."""
        self.now += (lost_frames + BLOCK_FRAMES) / RATE_HZ * seconds_per_second
        here, self.earlier = self.meter.lost_frames(self.now + late_sec, BLOCK_FRAMES, RATE_HZ, overflowed=overflowed)
        return here + self.earlier

    def blocks(self, count: int) -> list[int]:
        return [self.block() for _ in range(count)]


@given(st.lists(st.floats(0, 5), max_size=50))
def test_without_an_overflow_nothing_is_lost_however_late_the_callbacks_are(lateness_sec: list[float]):
    device = Device()
    assert [device.block(late_sec=late_sec) for late_sec in lateness_sec] == [0] * len(lateness_sec)


@given(st.lists(st.lists(st.floats(0, 30), max_size=60), max_size=5))
def test_callbacks_that_catch_up_again_and_again_lost_nothing(late_sec: list[list[float]]):
    device = Device()
    lost = [[device.block(late_sec=late) for late in (*burst, 0.0)] for burst in late_sec]
    assert not any(map(sum, lost))


def test_a_backlog_that_is_worked_off_slowly_is_no_loss():
    device = Device()
    device.blocks(100)
    assert [device.block(late_sec=8 - 0.005 * block) for block in range(1_600)] == [0] * 1_600


@pytest.mark.parametrize("lost_sec", [1, 3, 59, 30_000])
def test_a_loss_that_nobody_reports_is_told_by_a_clock_that_stays_ahead(lost_sec: float):
    """A sound server that holds only so much, a machine that slept."""
    device = Device()
    device.blocks(100)
    lost = [device.block(lost_frames=round(lost_sec * RATE_HZ)), *device.blocks(1_000)]
    assert sum(lost) == pytest.approx(lost_sec * RATE_HZ - SLACK_FRAMES, abs=1)
    (told_at,) = (place for place, frames in enumerate(lost) if frames)
    assert told_at < 100, "within 3 s"
    assert (told_at == 0) == (lost_sec > 60), "after a long sleep at once"


def test_a_loss_that_turns_out_late_is_not_told_of_the_block_that_tells_it():
    device = Device()
    device.blocks(100)
    device.block(lost_frames=RATE_HZ)
    while not device.block():
        assert device.earlier == 0
    assert device.earlier == RATE_HZ - SLACK_FRAMES


@pytest.mark.parametrize("lost_sec", [0.2, 0.5, 3, 60])
def test_what_an_overflow_lost_is_measured_by_the_clock(lost_sec: float):
    device = Device()
    device.blocks(100)
    lost = device.block(lost_frames=round(lost_sec * RATE_HZ), overflowed=True)
    assert lost == pytest.approx(lost_sec * RATE_HZ - SLACK_FRAMES, abs=1)


@pytest.mark.parametrize("lost_frames", [0, 1, BLOCK_FRAMES // 2, BLOCK_FRAMES])
def test_an_overflow_lost_a_block_at_least(lost_frames: int):
    device = Device()
    device.blocks(10)
    assert device.block(lost_frames=lost_frames, overflowed=True) == BLOCK_FRAMES


def test_an_overflow_in_the_first_block_counts_a_block():
    assert Device().block(overflowed=True) == BLOCK_FRAMES


def test_what_was_counted_is_not_counted_again():
    device = Device()
    device.blocks(10)
    device.block(lost_frames=RATE_HZ, overflowed=True)
    assert device.blocks(10) == [0] * 10
    second = device.block(lost_frames=RATE_HZ, overflowed=True)
    assert second == pytest.approx(RATE_HZ, abs=1)


def test_over_many_overflows_the_sum_stays_within_the_slack_of_what_was_lost():
    device = Device()
    device.blocks(10)
    total = 0
    for _ in range(50):
        total += device.block(lost_frames=RATE_HZ // 2, overflowed=True)
        device.blocks(5)
    assert 0 <= 50 * (RATE_HZ // 2) - total <= SLACK_FRAMES + 50


def test_a_first_callback_that_came_late_does_not_hide_a_loss():
    """The clock is set by the first block; later ones that come on time move it back."""
    device = Device()
    device.block(late_sec=0.4)
    device.blocks(10)
    assert device.block(lost_frames=RATE_HZ, overflowed=True) == pytest.approx(RATE_HZ - SLACK_FRAMES, abs=1)


def test_a_device_whose_clock_is_slow_has_lost_nothing_by_that():
    """Crystals are off by up to 100 ppm: in three hours a second, which must not show as lost when an overflow comes at last."""
    device = Device()
    for _ in range(3 * 3_600 * 1000 // 30):  # 3 h of 30 ms blocks
        device.block(seconds_per_second=1.0001)
    lost = device.block(lost_frames=RATE_HZ // 2, overflowed=True)
    assert lost == pytest.approx(RATE_HZ // 2, abs=2 * SLACK_FRAMES)


def test_frames_that_found_no_place_are_carried_by_the_next_block_once():
    device = Device()
    device.blocks(3)
    device.meter.drop(BLOCK_FRAMES)
    device.meter.drop(2 * BLOCK_FRAMES)
    assert device.block() == 3 * BLOCK_FRAMES
    assert device.block() == 0


def test_frames_that_found_no_place_add_to_what_the_device_lost():
    device = Device()
    device.blocks(3)
    device.meter.drop(BLOCK_FRAMES)
    assert device.block(lost_frames=RATE_HZ, overflowed=True) == pytest.approx(RATE_HZ - SLACK_FRAMES + BLOCK_FRAMES, abs=1)
    assert device.block() == 0


# --- the queue --------------------------------------------------------------------------------------------------------


class PortAudio:
    """Stands in for the library where a device would have to outrun us on command."""

    class _Default:
        device = (0, 0)

    default = _Default()

    def query_devices(self) -> list[dict[str, Any]]:
        return [device("Mic")]

    def InputStream(self, **options: Any) -> PortAudio:  # noqa: N802
        self.callback = options["callback"]
        return self

    def start(self) -> None:
        """Nothing to start."""

    def close(self) -> None:
        """Nothing to close."""

    def deliver(self, seconds: float) -> None:
        frames = round(48_000 * seconds)
        self.callback(np.ones((frames, 1), np.float32), frames, None, SimpleNamespace(input_overflow=False))


def test_what_found_no_room_at_last_is_reported_after_the_stop(monkeypatch: pytest.MonkeyPatch):
    library = PortAudio()
    monkeypatch.setattr("voice.capture.microphone.import_sounddevice", lambda: library)
    settings = MicrophoneSettings(None, 1, 0.5, 0.2, queue_sec=1.0, stall_sec=1.0, zeros_sec=0, wait_for_device=True)
    microphone = Microphone(settings)
    for _ in range(5):
        library.deliver(0.5)
    assert microphone.waiting_sec == 1.0
    microphone.close()
    blocks = [microphone.read(0) for _ in range(4)]
    assert [block and (len(block.samples), block.lost_frames) for block in blocks] == [(24_000, 0), (24_000, 0), (0, 72_000), None]
