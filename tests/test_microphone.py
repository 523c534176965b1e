"""Capture: which microphone is meant, and how much of its audio was lost. Real capture is tested on a virtual device."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import structlog
from harness import in_time
from hypothesis import given
from hypothesis import strategies as st

from voice.audio import AudioBlock
from voice.capture import sound_server
from voice.capture.devices import find_device
from voice.capture.gap_meter import GapMeter
from voice.capture.microphone import Microphone, State
from voice.capture.portaudio import MicrophoneSettings
from voice.capture.sound_server import SoundServer, Source
from voice.capture.source import AudioFormat
from voice.capture.sources import MicrophoneInfo
from voice.errors import EXIT_CONFIG, EXIT_INPUT, AudioDeviceLost, AudioDeviceUnavailable, AudioStalled, ConfigInvalid
from voice.losses import LossLedger
from voice.process.clock import clock_sec

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
        here, self.late_frames = self.meter.lost_frames(self.now + late_sec, BLOCK_FRAMES, RATE_HZ, overflowed=overflowed)
        return here + self.late_frames

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
def test_a_loss_that_nobody_reports_is_found_by_a_clock_that_stays_ahead(lost_sec: float):
    """A sound server that holds only so much, a machine that slept."""
    device = Device()
    device.blocks(100)
    lost = [device.block(lost_frames=round(lost_sec * RATE_HZ)), *device.blocks(1_000)]
    assert sum(lost) == pytest.approx(lost_sec * RATE_HZ - SLACK_FRAMES, abs=1)
    (told_at,) = (place for place, frames in enumerate(lost) if frames)
    assert told_at < 100, "within 3 s"
    assert (told_at == 0) == (lost_sec > 60), "after a long sleep at once"


def test_a_loss_that_turns_out_late_is_not_reported_as_lost_before_the_block_that_shows_it():
    device = Device()
    device.blocks(100)
    device.block(lost_frames=RATE_HZ)
    while not device.block():
        assert device.late_frames == 0
    assert device.late_frames == RATE_HZ - SLACK_FRAMES


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


@pytest.mark.parametrize("block_ms", [10, 30, 96, 200])
def test_without_a_loss_by_the_clock_an_overflow_of_a_long_block_counts_as_one_of_30_ms(block_ms: int):
    meter, num_frames = GapMeter(), RATE_HZ * block_ms // 1000
    times = [1_000 + index * block_ms / 1000 for index in range(20)]
    assert [meter.lost_frames(at, num_frames, RATE_HZ, overflowed=False) for at in times] == [(0, 0)] * 20
    lost = meter.lost_frames(times[-1] + block_ms / 1000, num_frames, RATE_HZ, overflowed=True)
    assert lost == (min(num_frames, BLOCK_FRAMES), 0)


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


# --- the microphone, on a scripted PortAudio ------------------------------------------------------------------------------


class PortAudio:
    """Stands in for ``sounddevice``: a device that comes, goes and delivers on command."""

    class _Default:
        device = (0, 0)

    default = _Default()

    def __init__(self) -> None:
        self.present = True
        self.delivers_at_once = True
        """Each opening delivers a block of ones when it starts, as a real device does soon after."""
        self.may_open = threading.Event()
        self.may_open.set()
        self.close_sec = 0.0
        """How long it takes to close a device."""
        self.streams: list[Stream] = []

    @property
    def open_streams(self) -> list[Stream]:
        return [stream for stream in self.streams if stream.open]

    def query_devices(self) -> list[dict[str, Any]]:
        self.may_open.wait()
        return [device("Mic")] if self.present else []

    def InputStream(self, **options: Any) -> Stream:  # noqa: N802
        self.streams.append(Stream(self, **options))
        return self.streams[-1]

    def _terminate(self) -> None:
        pass

    def _initialize(self) -> None:
        pass


class Stream:
    def __init__(self, library: PortAudio, **options: Any) -> None:
        self.library, self.options, self.open = library, options, True

    def start(self) -> None:
        if self.library.delivers_at_once:
            self.deliver(0.01)

    def close(self) -> None:
        time.sleep(self.library.close_sec)
        self.open = False
        self.options["finished_callback"]()

    def deliver(self, seconds: float, *, value: float = 1.0, overflow: bool = False, age_sec: float = 0.0) -> None:
        """A block from the device; ``age_sec``: since its first frame, as the driver reports."""
        frames = round(RATE_HZ * seconds)
        self.options["callback"](
            np.full((frames, 1), value, np.float32),
            frames,
            SimpleNamespace(currentTime=50.0, inputBufferAdcTime=50.0 - age_sec),
            SimpleNamespace(input_overflow=overflow),
        )


class ScriptedServer:
    """Stands in for ``SoundServer``: our next stream is on ``source``; None: it is on no server."""

    def __init__(self) -> None:
        self.source: Source | None = None
        self.stream: sound_server.Stream | None = None
        self.pinned: list[Source] = []
        self.missing: set[str] = set()
        self.closed = False

    def newest_stream(self, since: float) -> sound_server.Stream | None:
        if self.stream is None and self.source is not None:
            self.stream = sound_server.Stream(clock_sec(), self.source, 1, clock_sec())
        return self.stream if self.stream and self.stream.seen_at > since else None

    def wait_for_stream(self, since: float, timeout_sec: float) -> sound_server.Stream | None:
        self.stream = None  # a new one was opened
        return self.newest_stream(since)

    def sources(self, timeout_sec: float) -> list[MicrophoneInfo]:
        there = [each for each in (USB, BUILT_IN) if each.name not in self.missing]
        return [MicrophoneInfo(each.name, each.description, RATE_HZ, 1, is_default=False) for each in there]

    def lacks(self, source: Source, timeout_sec: float) -> bool:
        return source.name in self.missing

    def pin(self, source: Source, *, asked_for: bool = False) -> None:
        self.pinned.append(source)

    def close(self) -> None:
        self.closed = True


@dataclass
class Scene:
    """A microphone on a scripted library and sound server."""

    library: PortAudio
    server: ScriptedServer
    ledger: LossLedger
    microphone: Microphone | None = None

    def open(self, **settings: Any) -> Microphone:
        self.microphone = Microphone(replace(SETTINGS, **settings), self.ledger)
        return self.microphone

    @property
    def stream(self) -> Stream:
        return self.library.streams[-1]

    def read_until(self, wanted: Callable[[AudioBlock | None], bool], limit_sec: float = 10.0) -> AudioBlock | None:
        """Read until a block, or None, is wanted; what is raised on the way is raised."""
        assert self.microphone is not None
        deadline = time.monotonic() + limit_sec
        while time.monotonic() < deadline:
            if wanted(block := self.microphone.read(0.02)):
                return block
        raise AssertionError("not read in time")

    def until(self, condition: Callable[[], bool], limit_sec: float = 10.0) -> None:
        """Read on until something holds."""
        self.read_until(lambda _: condition(), limit_sec)

    def loss(self, kind: type[AudioDeviceUnavailable] = AudioDeviceUnavailable) -> AudioDeviceUnavailable:
        """What the next loss raises."""
        with pytest.raises(kind) as caught:
            self.read_until(lambda _: False)
        return caught.value

    def back(self) -> AudioBlock:
        """The first block of the next opening, which delivers as soon as it is open."""
        assert self.microphone is not None
        before = len(self.library.streams)
        self.until(lambda: len(self.library.streams) > before and self.microphone._state is State.CAPTURING)
        self.microphone._capture._stream.deliver(0.03)
        block = self.read_until(lambda block: block is not None)
        assert block is not None
        return block


SETTINGS = MicrophoneSettings(None, 1, 0.03, 0.2, queue_sec=1.0, stall_sec=0.2, zeros_sec=0, wait_for_device=True)
USB, BUILT_IN = Source("alsa_input.usb", "Jabra Speak 510"), Source("alsa_input.pci", "Built-in Audio")


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    library, server = PortAudio(), ScriptedServer()
    monkeypatch.setattr("voice.capture.opener.import_sounddevice", lambda: library)
    monkeypatch.setattr("voice.capture.opener.SoundServer", lambda: server)
    monkeypatch.setattr("voice.capture.portaudio.FIRST_BLOCK_SEC", 0.3)
    scene = Scene(library, server, LossLedger())
    yield scene
    library.may_open.set()
    if scene.microphone:
        scene.microphone.close()


def lost_sec(ledger: LossLedger) -> float:
    return ledger.lost_samples / 16_000


# Lost audio


def test_what_an_overflow_lost_is_missing_before_the_block_that_reports_it(scene: Scene):
    microphone = scene.open()
    scene.stream.deliver(0.03)
    scene.stream.deliver(0.03, overflow=True)
    first, second = microphone.read(0), microphone.read(0)
    assert first is not None
    assert second is not None
    assert scene.ledger.settle(first.losses_before, 0) is None
    settled = scene.ledger.settle(second.losses_before, 480)
    assert settled.here_samples == 480
    assert settled.announcement is not None


def test_a_full_queue_reports_the_length_of_each_block_that_found_no_room(scene: Scene):
    microphone = scene.open()
    for _ in range(5):
        scene.stream.deliver(0.5)
    assert microphone.waiting_sec == 1.0
    assert lost_sec(scene.ledger) == pytest.approx(1.5)
    assert len(scene.ledger._reports) == 1, "a worker that stands still for days costs no memory"
    assert [block and block.losses_before for block in (microphone.read(0), microphone.read(0))] == [0, 0]
    scene.stream.deliver(0.5)
    block = microphone.read(0)
    assert block is not None
    assert scene.ledger.settle(block.losses_before, 0).here_samples == 24_000


def test_what_was_lost_before_a_block_without_room_is_reported_too(scene: Scene):
    scene.open()
    scene.stream.deliver(0.5)
    scene.stream.deliver(0.5)
    scene.stream.deliver(0.5, overflow=True)
    assert lost_sec(scene.ledger) == pytest.approx(0.53), "the least an overflow loses, and the block"


# Blocks that gather


@pytest.mark.parametrize("block_sec", [0.03, 0.096, 0.2])
def test_a_reader_in_no_hurry_sleeps_until_enough_audio_waits_and_then_reads_it_as_one_block(scene: Scene, block_sec: float):
    microphone = scene.open()
    while microphone.read(0) is not None:
        pass
    read: list[AudioBlock | None] = []
    reader = threading.Thread(target=lambda: read.append(microphone.read(30, 0.15)))
    reader.start()
    num_blocks = math.ceil(0.15 / block_sec)
    for _ in range(num_blocks - 1):
        scene.stream.deliver(block_sec)
        reader.join(0.05)
        assert reader.is_alive()
    scene.stream.deliver(block_sec)
    reader.join(10)
    assert [block and block.duration_sec for block in read] == [pytest.approx(num_blocks * block_sec)]
    assert microphone.waiting_sec == pytest.approx(0)


def test_what_waits_is_joined_no_further_than_the_reader_asked_for_and_not_over_a_loss(scene: Scene):
    microphone = scene.open()
    while microphone.read(0) is not None:
        pass
    for index in range(6):
        scene.stream.deliver(0.1, value=float(index), overflow=index == 3)
    blocks = [microphone.read(0.01, 0.15) for _ in range(5)]
    assert [block and list(np.unique(block.samples)) for block in blocks] == [[0, 1], [2], [3, 4], [5], None]
    assert [block.losses_before for block in blocks if block] == [0, 0, 1, 1]
    assert blocks[2].captured_at < blocks[3].captured_at


def test_a_reader_in_a_hurry_is_given_block_by_block(scene: Scene):
    microphone = scene.open()
    while microphone.read(0) is not None:
        pass
    for _ in range(3):
        scene.stream.deliver(0.1)
    assert [block and block.duration_sec for block in (microphone.read(0), microphone.read(1), microphone.read(1))] == [0.1] * 3


def test_a_block_is_read_within_the_timeout_though_no_other_follows(scene: Scene):
    microphone = scene.open()
    while microphone.read(0) is not None:
        pass
    deliver = threading.Timer(0.05, lambda: scene.stream.deliver(0.03))
    deliver.start()
    assert microphone.read(0.15, 10.0) is not None
    assert microphone.read(0.02, 10.0) is None
    deliver.join()


def test_a_microphone_that_is_lost_while_its_reader_is_in_no_hurry_is_reported_as_soon(scene: Scene):
    microphone = scene.open()
    while microphone.read(0) is not None:
        pass
    scene.stream.close()
    with pytest.raises(AudioDeviceLost):
        microphone.read(0.05, 10.0)


def test_drops_survive_a_device_that_goes_away_and_a_stop(scene: Scene):
    microphone = scene.open()
    for _ in range(4):
        scene.stream.deliver(0.5)
    scene.library.present = False
    scene.loss(AudioStalled)
    microphone.close()
    assert lost_sec(scene.ledger) >= 1.0 + 0.2, "what found no room, and the time since"


def test_the_time_away_is_lost_before_the_first_block_that_comes_back(scene: Scene):
    microphone = scene.open()
    scene.stream.deliver(0.03)
    before = microphone.read(0)
    scene.loss(AudioStalled)
    after = scene.back()
    assert before is not None
    assert before.captured_at is not None
    assert after.captured_at is not None
    settled = scene.ledger.settle(after.losses_before, 480)
    away_sec = after.captured_at - before.captured_at - 0.03
    assert settled.here_samples / 16_000 == pytest.approx(away_sec, abs=0.02)
    assert away_sec > 0.1
    assert settled.announcement is None, "the loss of the device was an error event"


def test_a_stop_while_the_microphone_is_away_counts_the_time_since_the_last_frame(scene: Scene):
    microphone = scene.open()
    scene.stream.deliver(0.03)
    delivered = time.monotonic()
    scene.library.present = False
    scene.loss(AudioStalled)
    scene.until(lambda: time.monotonic() - delivered > 0.5)
    microphone.close()
    assert lost_sec(scene.ledger) == pytest.approx(time.monotonic() - delivered, abs=0.1)
    assert scene.ledger.settle(None, 0).announcement is None


def test_a_stop_before_the_first_block_after_a_loss_counts_the_time_away(scene: Scene):
    microphone = scene.open()
    scene.stream.deliver(0.03)
    delivered = time.monotonic()
    scene.loss(AudioStalled)
    scene.until(lambda: len(scene.library.streams) == 2 and microphone._state is State.CAPTURING)
    microphone.close()
    assert lost_sec(scene.ledger) == pytest.approx(time.monotonic() - delivered, abs=0.1)


def test_before_the_first_audio_nothing_is_lost(scene: Scene):
    scene.library.present = False
    microphone = scene.open()
    scene.loss()
    scene.library.present = True
    block = scene.back()
    microphone.close()
    assert (block.losses_before, lost_sec(scene.ledger)) == (0, 0.0)


def test_a_stop_while_it_captures_loses_nothing(scene: Scene):
    microphone = scene.open()
    scene.stream.deliver(0.03)
    time.sleep(0.05)
    microphone.close()
    assert lost_sec(scene.ledger) == 0.0


@pytest.mark.parametrize(
    ("reported_sec", "age_sec"),
    [(0.05, 0.05), (11.0, 11.0), (0.01, 0.03), (0.0, 0.03), (-0.4, 0.03), (1e9, 0.03), (float("nan"), 0.03)],
)
def test_a_block_carries_the_time_of_its_first_frame(scene: Scene, reported_sec: float, age_sec: float):
    """As the driver says where that is plausible; else its length before it arrived."""
    microphone = scene.open()
    before = clock_sec()
    scene.stream.deliver(0.03, age_sec=reported_sec)
    after = clock_sec()
    block = microphone.read(0)
    assert block is not None
    assert block.captured_at is not None
    assert before - 0.001 <= block.captured_at + age_sec <= after + 0.001


# Silence


def test_after_long_zeros_the_device_is_opened_anew_once_without_an_event(scene: Scene):
    scene.open(zeros_sec=0.1)
    for _ in range(4):
        scene.stream.deliver(0.03, value=0.0)
    scene.until(lambda: len(scene.library.streams) == 2 and scene.microphone._state is State.CAPTURING)
    for _ in range(10):
        scene.stream.deliver(0.03, value=0.0)
    scene.until(lambda: scene.microphone.waiting_sec < 0.001)
    assert [stream.open for stream in scene.library.streams] == [False, True]


@pytest.mark.parametrize("waits", [True, False])
def test_zeros_and_then_no_device_is_a_loss_like_any_other(scene: Scene, waits: bool):
    microphone = scene.open(zeros_sec=0.1, wait_for_device=waits)
    for _ in range(4):
        scene.stream.deliver(0.03, value=0.0)
    scene.library.present = False
    error = scene.loss(AudioDeviceLost)
    assert (error.error_code, error.exit_code) == ("audio_device_lost", EXIT_INPUT)
    assert "only zeros" in str(error)
    assert "there is no input device" in str(error)
    assert microphone.recovers == waits
    for _ in range(20):
        assert microphone.read(0.02) is None, "raised once"
    scene.library.present = True
    assert scene.back().losses_before > 0


# The end


def test_after_a_stop_the_failure_of_the_first_opening_is_not_raised(scene: Scene):
    scene.library.present = False
    microphone = scene.open()
    microphone.close()
    assert microphone.read(0) is None
    assert microphone.ended
    assert scene.server.closed


def test_after_a_stop_what_waits_is_read_and_no_loss_is_raised(scene: Scene):
    scene.server.source = USB
    microphone = scene.open()
    scene.stream.deliver(0.03)
    scene.stream.deliver(0.03)
    assert scene.server.stream is not None
    scene.server.stream.verified_at = clock_sec()
    scene.server.stream.moved_to = BUILT_IN
    assert microphone.read(0) is not None
    microphone.close()
    assert microphone.read(0) is not None
    assert [microphone.read(0) for _ in range(3)] == [None] * 3


def test_an_opening_in_flight_at_a_stop_is_closed_when_it_is_done(scene: Scene):
    microphone = scene.open()
    scene.stream.deliver(0.03)
    scene.loss(AudioStalled)
    scene.library.may_open.clear()
    microphone.read(0.02)
    microphone.close()
    scene.library.may_open.set()
    deadline = time.monotonic() + 5
    while len(scene.library.streams) < 2 or scene.library.open_streams:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert microphone.waiting_sec == 0, "it delivered nothing"


def test_a_lost_device_is_closed_before_a_stop_returns(scene: Scene):
    """The interpreter may end then, which threads of PortAudio do not survive."""
    microphone = scene.open(wait_for_device=False)
    scene.library.close_sec = 0.3
    scene.loss(AudioStalled)
    assert scene.library.open_streams, "it is being closed"
    microphone.close()
    assert not scene.library.open_streams


def test_a_lost_device_that_cannot_be_closed_is_left_behind(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("voice.capture.opener._CLOSE_TIMEOUT_SEC", 0.1)
    microphone = scene.open(wait_for_device=False)
    scene.library.close_sec = 1.0
    scene.loss(AudioStalled)
    microphone.close()
    assert scene.library.open_streams


def test_an_opening_that_hangs_is_left_behind_and_closed_if_it_ends(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("voice.capture.opener._OPEN_TIMEOUT_SEC", 0.2)
    scene.library.may_open.clear()
    scene.open()
    assert "did not answer" in str(scene.loss())
    scene.library.may_open.set()
    scene.back()
    scene.until(lambda: len(scene.library.open_streams) == 1)


def test_without_waiting_a_device_that_is_not_there_ends_the_start(scene: Scene):
    scene.library.present = False
    with pytest.raises(AudioDeviceUnavailable):
        scene.open(wait_for_device=False)
    assert scene.server.closed


# What it is


def test_the_format_is_known_with_the_first_block_of_each_opening(scene: Scene):
    microphone = scene.open()
    assert microphone.format is None
    scene.stream.deliver(0.03)
    assert microphone.format is None
    microphone.read(0)
    assert microphone.format == AudioFormat("Mic", RATE_HZ, 1)
    scene.loss(AudioStalled)
    assert microphone.format is None
    scene.until(lambda: len(scene.library.streams) == 2 and microphone._state is State.CAPTURING)
    assert microphone.format is None
    scene.stream.deliver(0.03)
    microphone.read(0)
    assert microphone.format == AudioFormat("Mic", RATE_HZ, 1)


def test_blocks_of_an_earlier_opening_come_first_and_tell_nothing_of_the_next(scene: Scene):
    """Zeros end an opening while blocks of it still wait."""
    microphone = scene.open(zeros_sec=0.03)
    for value in (1.0, 0.0, 0.25, 0.25):
        scene.stream.deliver(0.03, value=value)
    microphone.read(0)
    microphone.read(0)
    assert microphone.format is None, "given up"
    for _ in range(2):
        block = microphone.read(0)
        assert block is not None
        assert block.samples[0, 0] == 0.25
        assert microphone.format is None
    assert scene.back().samples[0, 0] == 1.0
    assert microphone.format is not None


def test_an_opening_that_was_given_up_delivers_no_more(scene: Scene):
    microphone = scene.open()
    old = scene.stream
    scene.loss(AudioStalled)
    old.deliver(0.03)
    assert microphone.waiting_sec == 0


def test_an_opening_that_never_delivers_is_not_back(scene: Scene):
    microphone = scene.open()
    scene.stream.deliver(0.03)
    microphone.read(0)
    scene.library.delivers_at_once = False
    scene.loss(AudioStalled)
    scene.until(lambda: len(scene.library.streams) >= 4)
    assert microphone.format is None
    scene.library.delivers_at_once = True
    scene.back()
    scene.until(lambda: len(scene.library.open_streams) == 1)


# The source that a sound server gives us


def test_the_format_names_the_source_where_a_sound_server_is_known(scene: Scene):
    scene.server.source = USB
    microphone = scene.open()
    scene.stream.deliver(0.03)
    microphone.read(0)
    assert microphone.format == AudioFormat("Jabra Speak 510", RATE_HZ, 1)


def moved(scene: Scene, **settings: Any) -> tuple[Microphone, AudioDeviceUnavailable, list[AudioBlock]]:
    """Four blocks; after the second the server moves the stream. What is raised, and what is read before."""
    scene.server.source = USB
    microphone = scene.open(**settings)
    scene.stream.deliver(0.03)
    assert microphone.read(0) is not None
    for _ in range(2):
        scene.stream.deliver(0.03)
    assert scene.server.stream is not None
    scene.server.stream.verified_at = clock_sec()
    time.sleep(0.1)
    for _ in range(2):
        scene.stream.deliver(0.03)
    scene.server.stream.moved_to = BUILT_IN
    read: list[AudioBlock] = []
    with pytest.raises(AudioDeviceLost) as caught:
        read.extend(iter(lambda: microphone.read(0), None))
    return microphone, caught.value, read


def test_a_stream_that_was_moved_is_lost_and_what_the_other_source_captured_is_not_delivered(scene: Scene):
    _, error, read = moved(scene)
    assert str(error) == "'Mic' was moved from 'Jabra Speak 510' to 'Built-in Audio' by the sound server"
    assert error.error_code == "audio_device_lost"
    assert len(read) == 2, "captured before the last check that saw the right source"
    assert lost_sec(scene.ledger) == pytest.approx(0.06)


def test_two_sources_of_one_description_are_named_by_their_names(scene: Scene):
    scene.server.source = USB
    microphone = scene.open()
    assert scene.server.stream is not None
    scene.server.stream.moved_to = replace(USB, name="alsa_input.usb.2")
    with pytest.raises(AudioDeviceLost, match=r"from 'alsa_input.usb' to 'alsa_input.usb.2'"):
        microphone.read(0)


def test_a_named_device_is_back_only_on_the_source_that_was_chosen_first(scene: Scene):
    microphone, _, _ = moved(scene, device="Mic")
    scene.server.missing = {USB.name}
    deadline = time.monotonic() + 0.5
    scene.until(lambda: time.monotonic() > deadline)
    assert len(scene.library.streams) == 1, "the server lacks the source: nothing is opened"
    scene.server.missing.clear()
    scene.server.source = BUILT_IN  # the server falls back to it all the same
    scene.until(lambda: len(scene.library.streams) == 3)
    assert microphone.format is None
    assert scene.server.pinned[0] == USB
    scene.server.source = USB
    scene.back()
    assert microphone.format == AudioFormat("Jabra Speak 510", RATE_HZ, 1)
    scene.until(lambda: len(scene.library.open_streams) == 1)


def test_without_a_name_the_servers_default_is_taken_and_named(scene: Scene):
    microphone, _, _ = moved(scene)
    scene.server.source = BUILT_IN
    scene.back()
    assert scene.server.pinned == []
    assert microphone.format == AudioFormat("Built-in Audio", RATE_HZ, 1)


def test_a_stream_that_the_server_shows_late_is_watched_from_then_on(scene: Scene):
    """PipeWire's ALSA plugin connects in the background."""
    microphone = scene.open()
    scene.stream.deliver(0.03)
    scene.server.source = USB
    microphone.read(0)
    assert microphone.format == AudioFormat("Jabra Speak 510", RATE_HZ, 1)
    assert scene.server.stream is not None
    scene.server.stream.moved_to = BUILT_IN
    scene.loss(AudioDeviceLost)


def test_without_the_package_or_its_library_there_is_no_watching_and_one_debug_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pulsectl", None)
    with structlog.testing.capture_logs() as lines:
        server = SoundServer()
        assert server.wait_for_stream(0.0, 5.0) is None
        assert not server.lacks(USB, 5.0)
        server.close()
    assert [(line["event"], line["log_level"]) for line in lines] == [("sound_server_not_watched", "debug")]


class HangingPulse:
    """A sound server that was stopped in the debugger."""

    released = threading.Event()

    def __init__(self, name: str, *, connect: bool) -> None:
        pass

    def connect(self) -> None:
        self.released.wait()
        raise LookupError

    def close(self) -> None:
        pass


def test_a_sound_server_that_hangs_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch):
    pulsectl = SimpleNamespace(Pulse=HangingPulse, PulseError=LookupError, PulseDisconnected=LookupError, PulseLoopStop=LookupError)
    pulsectl.PulseSourceInfo = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "pulsectl", pulsectl)
    monkeypatch.setitem(sys.modules, "pulsectl._pulsectl", SimpleNamespace(LibPulse=SimpleNamespace(CallError=LookupError)))
    server = SoundServer()
    started = time.monotonic()
    assert server.wait_for_stream(0.0, 0.1) is None
    assert not server.lacks(USB, 0.1)
    server.close()
    assert time.monotonic() - started < in_time(1)
    HangingPulse.released.set()


def test_a_pin_lasts_until_the_close_and_spares_the_users_choice(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pulsectl", None)
    monkeypatch.delenv("PULSE_SOURCE", raising=False)
    server = SoundServer()
    server.pin(USB)
    server.pin(BUILT_IN)
    assert os.environ["PULSE_SOURCE"] == BUILT_IN.name
    server.close()
    assert "PULSE_SOURCE" not in os.environ
    monkeypatch.setenv("PULSE_SOURCE", "mine")
    server = SoundServer()
    server.pin(USB)
    server.close()
    assert os.environ["PULSE_SOURCE"] == "mine"
