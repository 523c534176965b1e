"""The ledger: what was lost is counted once, stands where it was, and is announced once an episode."""

from __future__ import annotations

import threading

import pytest

from voice.audio import SAMPLE_RATE_HZ
from voice.losses import LossLedger, Settled

SEC = SAMPLE_RATE_HZ


def test_without_a_report_there_is_nothing_to_settle() -> None:
    ledger = LossLedger()
    assert ledger.settle(ledger.seal(), 0) is None
    assert ledger.settle(None, 0) is None
    assert (ledger.lost_samples, ledger.unplaced_samples, ledger.place()) == (0, 0, 0)


def test_a_loss_stands_before_the_block_that_was_sealed_after_it() -> None:
    ledger = LossLedger()
    first = ledger.seal()
    ledger.report(0.5, "planted")
    second = ledger.seal()
    assert ledger.settle(first, 0) is None
    settled = ledger.settle(second, SEC)
    assert settled == Settled(SEC // 2, 0, "AudioLost: 500 ms and what may follow: planted")
    assert ledger.settle(second, SEC) is None, "settled once"
    assert ledger.settle(None, SEC) is None


def test_losses_before_several_blocks_are_told_apart() -> None:
    ledger = LossLedger()
    seals = []
    for lost_sec in (1, 2, 3):
        ledger.report(lost_sec, "planted")
        seals.append(ledger.seal())
    assert [(settled := ledger.settle(seal, 0)) and settled.here_samples for seal in seals] == [SEC, 2 * SEC, 3 * SEC]


def test_everything_that_was_reported_can_be_settled_at_once() -> None:
    ledger = LossLedger()
    ledger.report(1, "one")
    ledger.seal()
    ledger.report(2, "two")
    settled = ledger.settle(None, 0)
    assert settled is not None
    assert (settled.here_samples, settled.announcement) == (3 * SEC, "AudioLost: 1000 ms and what may follow: one")


def test_what_is_not_settled_yet_counts_as_lost_already() -> None:
    ledger = LossLedger()
    ledger.report(1, "planted")
    assert ledger.lost_samples == SEC
    ledger.settle(None, 0)
    assert ledger.lost_samples == SEC
    ledger.report(0.25, "planted", late=True)
    assert ledger.lost_samples == SEC + SEC // 4
    ledger.settle(None, 0)
    ledger.place()
    assert ledger.lost_samples == SEC + SEC // 4


@pytest.mark.parametrize("lost_sec", [0, -1, 0.4 / SEC])
def test_less_than_half_a_sample_is_no_loss(lost_sec: float) -> None:
    ledger = LossLedger()
    ledger.report(lost_sec, "planted")
    assert ledger.seal() == 0
    assert ledger.settle(None, 0) is None


def test_a_late_loss_moves_the_index_when_it_is_placed_and_only_once() -> None:
    ledger = LossLedger()
    ledger.report(2, "planted", late=True)
    settled = ledger.settle(ledger.seal(), 0)
    assert settled is not None
    assert (settled.here_samples, settled.late_samples) == (0, 2 * SEC)
    assert ledger.unplaced_samples == 2 * SEC
    assert ledger.place() == 2 * SEC
    assert (ledger.place(), ledger.unplaced_samples) == (0, 0)


def announced(ledger: LossLedger, now: int, lost_sec: float = 0.1, **options: bool) -> bool:
    ledger.report(lost_sec, "planted", **options)
    settled = ledger.settle(ledger.seal(), now)
    assert settled is not None
    return settled.announcement is not None


def test_losses_up_to_a_second_apart_are_one_episode() -> None:
    ledger = LossLedger()
    assert announced(ledger, 0)
    end = SEC // 10
    assert not announced(ledger, end + SEC)
    assert announced(ledger, 2 * end + 2 * SEC + 1)


def test_a_late_loss_begins_an_episode_where_it_was_noticed() -> None:
    ledger = LossLedger()
    assert announced(ledger, 0, lost_sec=2, late=True)
    assert not announced(ledger, SEC)
    assert announced(ledger, 3 * SEC, lost_sec=2, late=True)
    assert announced(ledger, 4 * SEC + 1), "its length moves nothing here"


def test_several_losses_before_one_block_are_added_up_by_kind() -> None:
    ledger = LossLedger()
    for lost_sec, cause, late in ((1, "one", False), (2, "two", True), (4, "three", False), (8, "four", True)):
        ledger.report(lost_sec, cause, late=late)
    settled = ledger.settle(ledger.seal(), 0)
    assert settled == Settled(5 * SEC, 10 * SEC, "AudioLost: 1000 ms and what may follow: one")
    assert ledger.unplaced_samples == 10 * SEC


def test_an_announced_loss_needs_no_second_announcement_and_belongs_to_the_episode() -> None:
    ledger = LossLedger()
    assert not announced(ledger, 0, announced=True)
    assert not announced(ledger, SEC // 2)
    assert announced(ledger, 5 * SEC)


def test_after_a_late_loss_of_many_seconds_the_next_loss_is_announced() -> None:
    ledger = LossLedger()
    assert announced(ledger, 10 * SEC, 60.0, late=True)
    assert announced(ledger, 12 * SEC)


def test_the_announcement_is_that_of_the_first_loss_that_begins_an_episode() -> None:
    ledger = LossLedger()
    ledger.report(1, "first")
    ledger.report(1, "second")
    settled = ledger.settle(None, 0)
    assert settled is not None
    assert settled.announcement is not None
    assert settled.announcement.endswith("first")


def test_drops_without_a_block_between_them_are_one_report_and_those_around_a_block_are_two() -> None:
    """A queue that stays full for a minute drops thousands of blocks."""
    ledger = LossLedger()
    for _ in range(2_000):
        ledger.report(0.03, "full")
    assert ledger.seal() == 1
    ledger.report(0.03, "full")
    ledger.report(0.03, "other")
    ledger.report(0.03, "other", late=True)
    ledger.report(0.03, "other", announced=True)
    assert ledger.seal() == 5
    settled = ledger.settle(1, 0)
    assert settled is not None
    assert settled.here_samples == 60 * SEC
    assert ledger.lost_samples == round(60.12 * SEC)


def test_reports_from_another_thread_are_all_counted() -> None:
    ledger = LossLedger()

    def report() -> None:
        for _ in range(5_000):
            ledger.report(1 / SEC, "planted")
            ledger.seal()

    threads = [threading.Thread(target=report) for _ in range(3)]
    settled = 0
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        found = ledger.settle(None, 0)
        settled += found.here_samples if found else 0
    found = ledger.settle(None, 0)
    settled += found.here_samples if found else 0
    assert settled == ledger.lost_samples == 15_000
