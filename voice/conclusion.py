"""How an utterance ended: what goes to the reader of stdout, and what goes into the log. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from voice.audio import samples_to_ms
from voice.errors import ErrorCode
from voice.output.events import AnyEvent
from voice.transcript import Endpoint


@dataclass(frozen=True, slots=True)
class UtteranceSummary:
    """An utterance that ended, for the log: no recognised text."""

    trace_id: str
    start_sample: int
    end_sample: int
    endpoint: Endpoint
    num_tokens: int
    confidence: float | None
    lost_samples: int

    @property
    def log_fields(self) -> dict[str, object]:
        """As the canonical log line has them."""
        return {
            "trace_id": self.trace_id,
            "start_ms": samples_to_ms(self.start_sample),
            "end_ms": samples_to_ms(self.end_sample),
            "endpoint": self.endpoint,
            "tokens": self.num_tokens,
            "confidence": None if self.confidence is None else round(self.confidence, 3),
            "lost_ms": samples_to_ms(self.lost_samples),
        }


@dataclass(frozen=True, slots=True)
class Conclusion:
    """How an utterance ended."""

    events: list[AnyEvent]
    """Its final and its emotion; nothing where nothing was recognised."""
    failures: tuple[tuple[ErrorCode, str], ...]
    """Code and message of each part that failed."""
    summary: UtteranceSummary
    unanswered_samples: int = 0
    """Audio that the recogniser gave up: nobody recognised it."""
