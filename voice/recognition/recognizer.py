"""The seam between the modes: weights (``Recognizer``) and one utterance's state (``RecognizerStream``) are two objects."""

from __future__ import annotations

from typing import Protocol

from voice.audio import Samples
from voice.transcript import Hypothesis


class Recognizer(Protocol):
    """Loaded weights; shared by all streams, one stream decoding at a time."""

    @property
    def source(self) -> str:
        """The ``source`` of its events."""

    def create_stream(self, first_sample: int) -> RecognizerStream:
        """State for one utterance whose audio begins at ``first_sample``; dropped after ``finish``."""


class RecognizerStream(Protocol):
    """One utterance. Any exception leaves it unusable: make a new one and feed the audio again."""

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

    def finish(self) -> Hypothesis:
        """Decode all that is left; every token is committed. MUST be the last call."""

    def copy(self) -> RecognizerStream:
        """A stream that goes on by itself from here: what happens to one does not show in the other."""
