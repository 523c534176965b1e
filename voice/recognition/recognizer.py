"""The seam between the modes: weights (``Recognizer``) and one utterance's state (``RecognizerStream``) are two objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from voice.audio import Samples
from voice.transcript import Hypothesis


@dataclass(frozen=True, slots=True)
class Unanswered:
    """In the place of a result: an utterance that the recogniser gave up."""

    reason: str
    """In one line: ``Type: text``."""
    heard_until: int = 0
    """Sample index before which the text so far rests on the audio; 0 where nothing is known of that."""


class Recognizer(Protocol):
    """Loaded weights, shared by all streams, one stream decoding at a time; or a server that has them."""

    @property
    def source(self) -> str:
        """The ``source`` of its events."""

    @property
    def is_congested(self) -> bool:
        """Whether so much audio of ended utterances waits for results that more would soon make it give up the oldest."""

    def create_stream(self, first_sample: int, trace_id: str = "") -> RecognizerStream:
        """State for one utterance whose audio begins at ``first_sample``; dropped after its result."""

    def take_problems(self) -> list[str]:
        """What went wrong outside of any utterance since the last call, in one line each: ``Type: text``."""

    def close(self) -> None:
        """Let go of what is outside of the process. MUST be the last call."""


class LocalRecognizer:
    """What all recognisers share whose results are there at once: nothing waits, nothing is outside of the process."""

    is_congested = False

    def take_problems(self) -> list[str]:
        """None: whatever goes wrong is raised."""
        return []

    def close(self) -> None:
        """Nothing is held."""


class RecognizerStream(Protocol):
    """One utterance. Any exception leaves it unusable: make a new one and feed the audio again."""

    @property
    def source(self) -> str:
        """The ``source`` of its events."""

    @property
    def supports_copy(self) -> bool:
        """Whether ``copy`` may be called: without it no final can be prepared before its endpoint."""

    @property
    def decoded_until(self) -> int:
        """Sample index after the last audio that ``hypothesis`` rests on."""

    def accept(self, samples: Samples, *, provisional: bool = True) -> bool:
        """Take the next samples, in pieces of any size; True when something was decoded.

        The samples are not kept after their chunk is decoded. The result does not depend on the sizes of the pieces, nor its
        committed part on ``provisional``: False leaves out the provisional tail and its cost.
        """

    def preview(self) -> bool:
        """Decode audio that is too short to be decoded for good as part of the hypothesis's provisional tail; True when it was.

        Nothing else depends on it. It is left out where there is no time for it.
        """

    def hypothesis(self) -> Hypothesis:
        """What is known so far. MUST keep every committed token of an earlier call."""

    def poll(self) -> bool:
        """Take what arrived by itself; True when the hypothesis changed. False where everything is decoded in ``accept``."""

    def finish(self) -> Hypothesis | None:
        """Decode all that is left; every token is committed. No audio may follow. None where the result comes later: see ``result``."""

    def result(self) -> Hypothesis | Unanswered | None:
        """After ``finish`` gave None: the result, or None while it is not there yet."""

    def give_up(self, reason: str) -> None:
        """After ``finish`` gave None: nobody waits any longer; ``result`` is ``Unanswered`` unless it is there."""

    def copy(self) -> RecognizerStream:
        """A stream that goes on by itself from here: what happens to one does not show in the other."""


class LocalStream:
    """What all streams share that decode in the process."""

    supports_copy = True

    def poll(self) -> bool:
        """Everything is decoded in ``accept``."""
        return False

    def result(self) -> None:
        """Never asked: ``finish`` gives it."""

    def give_up(self, reason: str) -> None:
        """Never asked: ``finish`` gives the result."""
