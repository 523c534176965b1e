"""Where the tokens of an overlapping window go on after those that are already committed.

Pure: token lists in, a position out. Text decides, time breaks ties (``一一一``) and forbids matches that are far apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from voice.audio import SAMPLE_RATE_HZ
from voice.transcript import Token

_GAP_COST = 0.8
_CUT_COST = 0.3
"""A gap at the window's start: a token the cut made unrecognisable, or made up."""
_SUBSTITUTION_COST = 0.7
_COST_PER_SEC = 1.5
"""Different tokens 0.6 s apart, and equal ones 1.1 s apart, cost as much as two gaps: they are two tokens, not one decoded twice."""


def continuation(committed: Sequence[Token], window: Sequence[Token], cut_until: int) -> int:
    """Index into ``window`` of the first token after the audio that ``committed`` covers.

    Edit distance in which gaps near the window's start are cheap, every committed token is accounted for, and the window's end is
    free: the cheapest end is the position; of equal ones the first, so that nothing is dropped.

    Args:
        committed: the tokens whose audio the window overlaps, oldest first.
        window: the tokens of the window, with times on the same clock.
        cut_until: tokens that end before this sample index are unreliable: they stand at the window's start.
    """

    def gap(token: Token) -> float:
        return _CUT_COST if token.end_sample <= cut_until else _GAP_COST

    previous = list(itertools.accumulate((gap(token) for token in window), initial=0.0))
    for old in committed:
        current = [previous[0] + gap(old)]
        for column, new in enumerate(window, 1):
            pair = _COST_PER_SEC * _distance_samples(old, new) / SAMPLE_RATE_HZ
            if old.text != new.text:
                pair += _SUBSTITUTION_COST
            current.append(min(previous[column - 1] + pair, previous[column] + gap(old), current[-1] + gap(new)))
        previous = current
    return min(range(len(previous)), key=previous.__getitem__)


def _distance_samples(one: Token, other: Token) -> int:
    """Between the starts or between the ends, whichever is less.

    A token beside a pause may get some of the pause in one window and not in the other: then one of the two moves and the other does not.
    """
    return min(abs(one.start_sample - other.start_sample), abs(one.end_sample - other.end_sample))
