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

_LITTLE_WEIGHT = 0.05
"""Frames below this weight do not count for a token's times: silence has small weights too."""


@dataclass(frozen=True, slots=True)
class CifState:
    """The token that is being integrated at the end of a chunk."""

    weight: np.float32
    """Accumulated so far, below the threshold."""
    hidden: NDArray[np.float32]
    """(width,), the frames accumulated so far: their mean, weighted with their alphas."""
    onset_frame: int | None = None
    """First frame of the token; None where no frame has given it more than a little weight."""
    end_frame: int = 0
    """After the last frame that had more than a little weight, whichever token it went to."""


@dataclass(frozen=True, slots=True)
class Firing:
    """One token before it is decoded."""

    embedding: NDArray[np.float32]
    """(width,), sum of hidden frames weighted with their alphas."""
    start_frame: int
    end_frame: int
    """After the frame at which the token fired; where the tail weight made it fire, after the last frame with more than a little weight."""


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
    weight, onset, end = state.weight, state.onset_frame, state.end_frame
    frames = state.weight * state.hidden
    steps: list[tuple[Any, Any, int | None]] = [(chunk.alphas[row], chunk.hidden[row], chunk.first_frame + row) for row in rows]
    if is_final:
        steps.append((settings.tail_weight, np.zeros(settings.width, np.float32), None))
    for alpha, hidden, frame in steps:
        if frame is not None and alpha > _LITTLE_WEIGHT:
            end = frame + 1
        if alpha + weight < settings.threshold:
            weight = weight + alpha
            frames = frames + alpha * hidden
        else:
            frames = frames + (settings.threshold - weight) * hidden
            fired.append(Firing(frames, end - 1 if onset is None else onset, end))
            weight = weight + alpha - settings.threshold
            frames, onset = weight * hidden, None
        if onset is None and weight > _LITTLE_WEIGHT and frame is not None:
            onset = frame
    mean = frames / weight if weight > 0 else frames
    return fired, CifState(weight, mean, onset, end)
