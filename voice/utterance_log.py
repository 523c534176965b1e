"""The one canonical log line of each utterance: no recognised text. State: what the utterance in flight cost so far. Worker thread."""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from voice.audio import SAMPLE_RATE_HZ
from voice.conclusion import UtteranceSummary

log = structlog.get_logger()


class UtteranceLog:
    """Gathers what an utterance cost, and logs it."""

    def __init__(self) -> None:
        self._compute_sec = self._queue_peak_sec = 0.0

    def note_queue(self, waiting_sec: float) -> None:
        """So much audio waits now."""
        self._queue_peak_sec = max(self._queue_peak_sec, waiting_sec)

    def note_computing(self, sec: float) -> None:
        """The pipeline worked so long for the utterance."""
        self._compute_sec += sec

    def finish(self, summaries: Iterable[UtteranceSummary]) -> None:
        """Log utterances that ended."""
        for summary in summaries:
            self._finish(summary)

    def _finish(self, summary: UtteranceSummary) -> None:
        audio_sec = max(summary.end_sample - summary.start_sample, 1) / SAMPLE_RATE_HZ
        log.info(
            "utterance_finished",
            **summary.log_fields,
            compute_ms=round(self._compute_sec * 1000),
            real_time_factor=round(self._compute_sec / audio_sec, 3),
            queue_peak_sec=round(self._queue_peak_sec, 2),
        )
        self._compute_sec = self._queue_peak_sec = 0.0
