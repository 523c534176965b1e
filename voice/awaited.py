"""Utterances that ended and whose recogniser, a server, has not answered yet, and the events that wait behind their finals.

Ended ``Utterance``s and later events -> conclusions in the order of the utterances, each with the events that come after it. No event of an
utterance may precede the final of the one before, so what later utterances send waits here; of their partials only the newest. The
recogniser bounds how much audio is awaited, and so how many utterances. Worker thread. Raises what ``Utterance.conclude`` raises: then
``fail``, and ``take`` again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from voice.conclusion import Conclusion
from voice.output.events import AnyEvent, PartialEvent
from voice.utterance import Utterance


@dataclass(frozen=True, slots=True)
class Answered:
    """An utterance whose conclusion is there."""

    trace_id: str
    conclusion: Conclusion
    behind: list[AnyEvent]
    """What may be sent after its final: unless the next final is awaited as well, when these events still wait."""


@dataclass(slots=True)
class _Waiting:
    utterance: Utterance
    behind: list[AnyEvent] = field(default_factory=list)


class Awaited:
    """The queue."""

    def __init__(self) -> None:
        self._queue: deque[_Waiting] = deque()
        self.concluding: Utterance | None = None
        """What ``take`` asked last, while it has not answered: after an exception it struck here."""

    def __bool__(self) -> bool:
        return bool(self._queue)

    @property
    def utterances(self) -> list[Utterance]:
        """All of them, the oldest first."""
        return [waiting.utterance for waiting in self._queue]

    def add(self, utterance: Utterance) -> None:
        """Await the conclusion of one more."""
        self._queue.append(_Waiting(utterance))

    def hold(self, events: Iterable[AnyEvent]) -> bool:
        """Keep events behind the final of the youngest; False where none is awaited."""
        if not self._queue:
            return False
        behind = self._queue[-1].behind
        for event in events:
            if isinstance(event, PartialEvent):
                behind[:] = [other for other in behind if not (isinstance(other, PartialEvent) and other.trace_id == event.trace_id)]
            behind.append(event)
        return True

    def take(self) -> Answered | None:
        """The oldest, if its recogniser answered."""
        if not self._queue:
            return None
        waiting = self._queue[0]
        self.concluding = waiting.utterance
        conclusion = waiting.utterance.conclude()
        self.concluding = None
        if conclusion is None:
            return None
        self._queue.popleft()
        return Answered(waiting.utterance.trace_id, conclusion, waiting.behind)

    def fail(self) -> None:
        """After an exception in ``take``: the next one asks less of the models."""
        if self.concluding:
            self.concluding.fail()
            self.concluding = None
