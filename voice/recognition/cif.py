"""Continuous integrate-and-fire (CIF, Dong and Xu 2020): where tokens fire, and the embedding of each.

Alphas and hidden frames of an ``EncodedChunk`` -> a ``Firing`` for each token, and the ``CifState`` to go on from. Pure functions on numpy
arrays.

The float32 operations and their order are those of FunASR's ``CifPredictorV2.forward_chunk``: results are equal, not close (a test compares
them). FunASR's own function is not used because it does not return the frames at which tokens fire.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voice.recognition.engine import CifSettings, EncodedChunk

_FRAMES_BEFORE = 2.0
_FRAMES_AFTER = 1.0
"""From the centre of a token's weight to where it begins and ends: the weight lies at the end of a syllable of about 180 ms. The centre is
hardly moved by a little weight in silence, which a threshold on single frames turned into shifts of up to 0.6 s."""


@dataclass(frozen=True, slots=True)
class CifState:
    """The token that is being integrated at the end of a chunk."""

    weight: np.float32
    """Accumulated so far, below the threshold."""
    hidden: NDArray[np.float32]
    """(width,), the frames accumulated so far: their mean, weighted with their alphas."""
    moment: float = 0.0
    """Sum of the frames' centres, weighted with what each gave to ``weight``; in frames."""
    end_frame: float = 0.0
    """Of the token before."""


@dataclass(frozen=True, slots=True)
class Firing:
    """One token before it is decoded."""

    embedding: NDArray[np.float32]
    """(width,), sum of hidden frames weighted with their alphas."""
    start_frame: float
    """Not before the end of the token before, and not after the centre of this one's weight."""
    end_frame: float
    """Not after the frame at which the token fired."""


def initial_state(settings: CifSettings) -> CifState:
    """State before the first frame of an utterance."""
    return CifState(np.float32(0), np.zeros(settings.width, np.float32))


def integrate(chunk: EncodedChunk, rows: range, state: CifState, settings: CifSettings, *, is_final: bool) -> tuple[list[Firing], CifState]:
    """Integrate some of a chunk's frames.

    Args:
        chunk: the encoder's output.
        rows: which of its frames.
        state: from the frames before them.
        settings: the model's.
        is_final: add the tail weight after the last frame.

    Returns:
        The tokens that fired, and the state after the last frame.
    """
    fired: list[Firing] = []
    weight, moment, end = state.weight, state.moment, state.end_frame
    frames = state.weight * state.hidden
    steps: list[tuple[Any, Any, float | None]] = [(chunk.alphas[row], chunk.hidden[row], chunk.first_frame + row + 0.5) for row in rows]
    if is_final:
        steps.append((settings.tail_weight, np.zeros(settings.width, np.float32), None))
    for alpha, hidden, middle in steps:
        if alpha + weight < settings.threshold:
            weight = weight + alpha
            frames = frames + alpha * hidden
            moment += 0.0 if middle is None else float(alpha) * middle
        else:
            part = settings.threshold - weight
            frames = frames + part * hidden
            # The tail weight lies nowhere: it adds to a token, and not to its place.
            centre = moment / float(weight) if middle is None else (moment + float(part) * middle) / float(settings.threshold)
            last = middle or chunk.first_frame + rows.stop - 0.5
            start, end = max(centre - _FRAMES_BEFORE, min(end, centre)), min(centre + _FRAMES_AFTER, last + 0.5)
            fired.append(Firing(frames, start, end))
            weight = weight + alpha - settings.threshold
            frames = weight * hidden
            moment = 0.0 if middle is None else float(weight) * middle
    mean = frames / weight if weight > 0 else frames
    return fired, CifState(weight, mean, moment, end)
