"""Blocks in, windows out: nothing is lost, doubled or moved, whatever is missing between the blocks."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import structlog

from voice.audio import SAMPLE_RATE_HZ, AudioBlock, AudioChunk
from voice.capture.resample import CLIP, Resampler
from voice.errors import InputUnreadable
from voice.intake import BadSamples, Intake, SignalEnd, Window
from voice.losses import LossLedger, Settled
from voice.windowing import AudioHistory, WindowBuffer

WINDOW = 512
GAP = 12_800
RAMP = (np.arange(40_000) % 1_000 / 2_000).astype(np.float32)


def intake(**options: Any) -> tuple[Intake, LossLedger]:
    ledger = LossLedger()
    return Intake(options.get("channel", "mix"), WINDOW, GAP, ledger), ledger


def block(samples: np.ndarray, ledger: LossLedger, rate_hz: int = SAMPLE_RATE_HZ) -> AudioBlock:
    return AudioBlock(samples[:, np.newaxis] if samples.ndim == 1 else samples, rate_hz, ledger.seal())


def everything(source: Intake, *, quiet: bool = True) -> list[Any]:
    return list(iter(lambda: source.next(quiet=quiet), None))


def signal(items: list[Any]) -> np.ndarray:
    """The samples of windows and rests, each checked to begin where the last one ended."""
    pieces = [item if isinstance(item, Window) else item.rest for item in items if isinstance(item, Window | SignalEnd)]
    assert all(one.end == two.start for one, two in itertools.pairwise(pieces))
    return np.concatenate([piece.samples for piece in pieces])


def test_blocks_of_any_size_become_the_same_windows() -> None:
    draw = random.Random(1)
    source, ledger = intake()
    at = 0
    items = []
    while at < len(RAMP):
        size = draw.randint(0, 1_500)
        source.accept(block(RAMP[at : at + size], ledger))
        items += everything(source)
        at += size
    assert {len(item.samples) for item in items} == {WINDOW}
    source.finish("end_of_input")
    items += everything(source)
    np.testing.assert_array_equal(signal(items), RAMP)
    assert items[-1].endpoint == "end_of_input"
    assert len(items[-1].rest.samples) == len(RAMP) % WINDOW
    assert source.audio_samples == source.end == source.signal_start == len(RAMP)


@pytest.mark.parametrize("missing", [1, 1_600, GAP - 1])
def test_a_short_gap_becomes_zeros_and_is_accounted_before_the_audio_behind_it(missing: int) -> None:
    source, ledger = intake()
    source.accept(block(RAMP[:1_000], ledger))
    ledger.report(missing / SAMPLE_RATE_HZ, "planted")
    source.accept(block(RAMP[1_000:5_000], ledger))
    items = everything(source)
    account = next(index for index, item in enumerate(items) if isinstance(item, Settled))
    assert items[account].here_samples == missing
    assert items[account - 1].end <= 1_000 < items[account + 1].end
    source.finish("shutdown")
    items += everything(source)
    np.testing.assert_array_equal(signal(items), np.concatenate((RAMP[:1_000], np.zeros(missing, np.float32), RAMP[1_000:5_000])))
    assert source.signal_start == 5_000 + missing
    assert sum(isinstance(item, SignalEnd) for item in items) == 1


@pytest.mark.parametrize("missing", [GAP, 10 * GAP])
def test_a_long_gap_ends_the_signal_which_goes_on_behind_it(missing: int) -> None:
    source, ledger = intake()
    source.accept(block(RAMP[:1_000], ledger))
    ledger.report(missing / SAMPLE_RATE_HZ, "planted")
    source.accept(block(RAMP[1_000:5_000], ledger))
    items = everything(source)
    (end,) = (item for item in items if isinstance(item, SignalEnd))
    assert (end.endpoint, end.rest.end) == ("audio_lost", 1_000)
    behind = [item for item in items[items.index(end) + 1 :] if isinstance(item, Window)]
    assert behind[0].start == source.signal_start == 1_000 + missing
    np.testing.assert_array_equal(behind[0].samples, RAMP[1_000 : 1_000 + WINDOW])
    assert source.audio_samples == 5_000 + missing


def test_a_gap_in_resampled_audio_stands_where_it_was() -> None:
    source, ledger = intake()
    source.accept(block(np.ones(48_000, np.float32) / 2, ledger, 48_000))
    ledger.report(0.5, "planted")
    source.accept(block(np.ones(48_000, np.float32) / 2, ledger, 48_000))
    source.finish("end_of_input")
    samples = signal(everything(source))
    assert len(samples) == 40_000
    assert np.abs(samples[16_000:24_000]).max() == 0
    assert np.abs(samples[100:15_900] - 0.5).max() < 0.01
    assert np.abs(samples[24_100:39_900] - 0.5).max() < 0.01


def test_what_the_resampler_holds_back_counts_as_accepted() -> None:
    intake = Intake("mix", 512, 16_000, LossLedger())
    intake.accept(AudioBlock(np.zeros((4_410, 1), np.float32), 44_100))
    while intake.next(quiet=True) is not None:
        pass
    assert intake.accepted_until == 1_600
    assert intake.end < 1_600


def test_a_late_loss_waits_for_a_pause() -> None:
    source, ledger = intake()
    source.accept(block(RAMP[:WINDOW], ledger))
    ledger.report(1, "planted", late=True)
    source.accept(block(RAMP[:WINDOW], ledger))
    items = everything(source, quiet=False)
    assert [item.start for item in items if isinstance(item, Window)] == [0, WINDOW]
    assert [item.late_samples for item in items if isinstance(item, Settled)] == [SAMPLE_RATE_HZ]
    assert source.audio_samples == 2 * WINDOW + SAMPLE_RATE_HZ
    source.accept(block(RAMP[:WINDOW], ledger))
    assert [item.start for item in everything(source, quiet=True) if isinstance(item, Window)] == [2 * WINDOW + SAMPLE_RATE_HZ]
    assert source.audio_samples == 3 * WINDOW + SAMPLE_RATE_HZ


@pytest.mark.parametrize(("endpoint", "counted"), [("shutdown", True), ("end_of_input", True), ("audio_lost", True), ("muted", False)])
def test_what_was_lost_behind_the_last_block_is_accounted_at_the_end(endpoint: Any, counted: bool) -> None:
    """Behind a mute, blocks may wait that were captured before it."""
    source, ledger = intake()
    source.accept(block(RAMP[:1_000], ledger))
    everything(source)
    ledger.report(6, "planted")
    source.finish(endpoint)
    items = everything(source)
    assert [item.here_samples for item in items if isinstance(item, Settled)] == [6 * SAMPLE_RATE_HZ] * counted
    assert isinstance(items[-1], SignalEnd)
    assert source.audio_samples == 1_000 + 6 * SAMPLE_RATE_HZ * counted


def test_time_passes_over_skipped_audio() -> None:
    source, ledger = intake()
    source.accept(block(np.ones(48_000, np.float32), ledger, 48_000))
    source.finish("muted")
    everything(source)
    ledger.report(0.25, "planted")
    source.skip(block(np.ones(48_000, np.float32), ledger, 48_000))
    source.skip(block(np.ones(4_801, np.float32), ledger, 48_000))
    assert [item.here_samples for item in everything(source)] == [4_000]
    assert source.signal_start == source.end == source.audio_samples == 16_000 + 4_000 + 16_000 + 1_600
    source.accept(block(np.zeros(48_000, np.float32), ledger, 48_000))
    windows = everything(source)
    assert windows[0].start == source.signal_start
    assert np.abs(windows[0].samples).max() == 0, "nothing of the skipped audio"


class Failing(Resampler):
    """Fails once, before it takes the block or inside."""

    when = ""

    def accept(self, block: AudioBlock) -> list[AudioChunk]:
        self.fail_at("before")
        return super().accept(block)

    def _mono(self, block: AudioBlock) -> np.ndarray:
        self.fail_at("inside")
        return super()._mono(block)

    def fail_at(self, place: str) -> None:
        if Failing.when == place:
            Failing.when = ""
            raise RuntimeError("planted")


@pytest.mark.parametrize("when", ["before", "inside"])
@pytest.mark.parametrize("rate_hz", [16_000, 48_000])
def test_a_block_that_cannot_be_resampled_is_counted_and_time_passes(when: str, rate_hz: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voice.intake.Resampler", Failing)
    source, ledger = intake()
    assert not source.recover()
    tenth = np.ones(rate_hz // 10, np.float32)
    for index in range(4):
        source.accept(block(tenth, ledger, rate_hz))
        Failing.when = when if index == 2 else ""
        if index == 2:
            with pytest.raises(RuntimeError):
                everything(source)
            assert source.recover()
            assert not source.recover()
            (account, *_) = everything(source)
            assert account.announcement is None, "the exception's error event announces it"
        everything(source)
    source.finish("end_of_input")
    everything(source)
    assert source.audio_samples == source.end == 6_400
    assert 1_600 <= ledger.lost_samples <= 1_600 + 300, "and what the filter held"


EXTREMES = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e19, -1e19]


@pytest.mark.parametrize("value", EXTREMES)
@pytest.mark.parametrize(("rate_hz", "channels"), [(16_000, 1), (44_100, 2)])
def test_values_that_no_recording_holds_are_replaced_counted_and_reported_once(value: float, rate_hz: int, channels: int) -> None:
    source, ledger = intake()
    frames = np.zeros((rate_hz, channels), np.float32)
    frames[1_000:1_003] = value
    source.accept(block(frames, ledger, rate_hz))
    source.accept(block(frames, ledger, rate_hz))
    source.finish("end_of_input")
    items = everything(source)
    (bad,) = (item for item in items if isinstance(item, BadSamples))
    assert bad.message.startswith(f"{'ClippedAudio' if np.isfinite(value) else 'NonFiniteAudio'}: {3 * channels} samples so far")
    samples = signal(items)
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() <= 1.5 * CLIP
    assert (np.abs(samples).max() > 1) == np.isfinite(value)


def test_both_kinds_are_reported_and_samples_a_little_over_full_scale_are_left_alone() -> None:
    source, ledger = intake()
    frames = np.full((16_000, 1), 1.5, np.float32)
    source.accept(block(frames, ledger))
    assert signal(everything(source)).max() == 1.5
    source.accept(block(np.array([float(CLIP), 9.0, np.nan], np.float32), ledger))
    items = everything(source)
    assert [item.message.split(":")[0] for item in items if isinstance(item, BadSamples)] == ["NonFiniteAudio", "ClippedAudio"]
    assert "1 samples" in items[1].message, "the bound itself is legal"


def test_all_replaced_samples_are_logged_where_the_audio_ends_if_there_were_more() -> None:
    source, ledger = intake()
    with structlog.testing.capture_logs() as lines:
        for endpoint, values in (("requested", [np.nan, 9.0, 1.0]), ("audio_lost", [np.nan, np.nan]), ("end_of_input", [1.0])):
            source.accept(block(np.array(values, np.float32), ledger))
            source.accept(block(np.array(values, np.float32), ledger))
            source.finish(endpoint)
        everything(source)
    counts = [(line["event"], line["non_finite"], line["clipped"]) for line in lines]
    assert counts == [("samples_replaced", 2, 2), ("samples_replaced", 6, 2)], "the last audio had none"


def test_a_channel_that_is_not_there_is_refused() -> None:
    source, ledger = intake(channel=2)
    source.accept(block(np.zeros((10, 2), np.float32), ledger))
    with pytest.raises(InputUnreadable, match=r"audio.channel is 2, but the input has 2 channel"):
        everything(source)


# --- the buffers --------------------------------------------------------------------------------------------------------


def test_the_history_gives_any_span_of_what_it_holds() -> None:
    history = AudioHistory()
    for at in range(0, 1_000, 100):
        history.append(at, RAMP[at : at + 100])
    for start, end in ((0, 1_000), (0, 100), (99, 101), (100, 200), (250, 251), (300, 300), (-50, 20), (950, 2_000)):
        np.testing.assert_array_equal(history.slice(start, end), RAMP[max(start, 0) : min(end, 1_000)])
    history.forget_before(299)
    assert history.num_samples == 800
    history.forget_before(300)
    assert history.num_samples == 700
    np.testing.assert_array_equal(history.slice(0, 350), RAMP[300:350])


def test_the_window_buffer_follows_the_chunks_index() -> None:
    buffer = WindowBuffer(4)
    buffer.append(AudioChunk(RAMP[:3], 0))
    assert buffer.take_window() is None
    assert (buffer.start, buffer.end) == (0, 3)
    buffer.append(AudioChunk(RAMP[5:9], 5))
    window = buffer.take_window()
    assert window is not None
    np.testing.assert_array_equal(window, [*RAMP[:3], 0])
    assert (buffer.start, buffer.end) == (4, 9)
    assert len(buffer.take_rest()) == 5
    buffer.move_to(100)
    assert (buffer.start, buffer.end) == (100, 100)
