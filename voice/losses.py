"""The only owner of lost audio: counts it, places it on the sample clock, and announces it.

Whoever loses audio reports it: capture from the PortAudio callback (``report``; the number that ``seal`` returns goes into the next block),
the pipeline for what it discards. The pipeline settles what was reported before each block it takes (``settle``) and learns how far the
sample index moves, what belongs to the utterance, and whether a new episode has to be announced. Thread-safe; the lock is held for
microseconds.

::

    callback   report(0.2 s)  block(losses_before=1)  block(1)  report(1 s, late)  block(2)
    pipeline                  settle(1): 0.2 s here   settle(1): nothing           settle(2): 1 s somewhere before
                                                                                   place(): in the next pause the index moves by 1 s
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, replace

from voice.audio import SAMPLE_RATE_HZ, samples_to_ms

_EPISODE_SAMPLES = SAMPLE_RATE_HZ
"""Losses closer together than this are one episode: one error event."""


@dataclass(frozen=True, slots=True)
class _Report:
    lost_samples: int
    cause: str
    announced: bool
    late: bool


@dataclass(frozen=True, slots=True)
class Settled:
    """What was lost before a block. Lengths in samples at 16 kHz."""

    here_samples: int = 0
    """Lost directly before the block: the sample index moves by it now."""
    late_samples: int = 0
    """Lost some seconds ago, as turned out only now: the index moves by it in the next pause (``place``)."""
    announcement: str | None = None
    """Text of the error event that begins an episode; None where nothing new is to be announced."""


class LossLedger:
    """Every loss of one run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reports: deque[_Report] = deque()
        self._num_reports = self._num_sealed = self._num_settled = 0
        self._settled_samples = self._unplaced_samples = 0
        self._episode_end: int | None = None

    @property
    def lost_samples(self) -> int:
        """All that was reported so far, settled or not."""
        with self._lock:
            return self._settled_samples + sum(report.lost_samples for report in self._reports)

    @property
    def unplaced_samples(self) -> int:
        """Late losses by which the sample index has not moved yet."""
        return self._unplaced_samples

    def report(self, lost_sec: float, cause: str, *, announced: bool = False, late: bool = False) -> None:
        """Count audio that is missing before the next block.

        Args:
            lost_sec: its length in seconds; nothing is reported for less than half a sample.
            cause: for the error event, as the end of a sentence.
            announced: an error event about it was sent already.
            late: it was lost some seconds ago, which turned out only now.
        """
        lost_samples = round(lost_sec * SAMPLE_RATE_HZ)
        if lost_samples <= 0:
            return
        with self._lock:
            last = self._reports[-1] if self._reports and self._num_reports > self._num_sealed else None
            if last and (last.cause, last.announced, last.late) == (cause, announced, late):
                self._reports[-1] = replace(last, lost_samples=last.lost_samples + lost_samples)
            else:
                self._reports.append(_Report(lost_samples, cause, announced, late))
                self._num_reports += 1

    def count(self, lost_samples: int) -> None:
        """Count audio that arrived and was not recognised by anybody: the sample index does not move."""
        with self._lock:
            self._settled_samples += lost_samples

    def seal(self) -> int:
        """Number for the block that is captured now (``AudioBlock.losses_before``): what is reported later is missing after it."""
        with self._lock:
            self._num_sealed = self._num_reports
            return self._num_sealed

    def settle(self, num_reports: int | None, now: int) -> Settled | None:
        """Account for what was reported before a block.

        Args:
            num_reports: the block's ``losses_before``; None for everything that was reported.
            now: sample index after the last audio the pipeline has.

        Returns:
            None where nothing was reported.
        """
        before = self._num_settled
        here = late = 0
        announcement = None
        with self._lock:
            while self._reports and (num_reports is None or self._num_settled < num_reports):
                report = self._reports.popleft()
                self._num_settled += 1
                self._settled_samples += report.lost_samples
                if not report.announced:
                    announcement = self._announcement(report, now) or announcement
                if report.late:
                    late += report.lost_samples
                else:
                    here += report.lost_samples
                self._episode_end = now + here
            self._unplaced_samples += late
        return Settled(here, late, announcement) if self._num_settled > before else None

    def place(self) -> int:
        """Samples by which the index moves now, in a pause, for late losses."""
        placed, self._unplaced_samples = self._unplaced_samples, 0
        return placed

    def _announcement(self, report: _Report, at: int) -> str | None:
        if self._episode_end is not None and at - self._episode_end <= _EPISODE_SAMPLES:
            return None
        return f"AudioLost: {samples_to_ms(report.lost_samples)} ms and what may follow: {report.cause}"
