"""Firings of the CIF -> posteriors over the vocabulary, with the times of each token.

The engine's decoder runs here and nowhere else. No state. Worker thread only. Raises ``NonFiniteOutput`` where the decoder's
output is not a distribution, and what the engine raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voice.audio import Samples
from voice.recognition.cif import Firing, initial_state, integrate
from voice.recognition.engine import FRAME_SAMPLES, EncodedChunk, Engine, EngineStream, NonFiniteOutput


@dataclass(frozen=True, slots=True)
class TokenPosteriors:
    """The decoder's output for one firing."""

    log_posteriors: NDArray[np.float32]
    """(vocabulary,), natural logarithms; a token may be at minus infinity."""
    start_sample: int
    end_sample: int

    def __post_init__(self) -> None:
        if not np.isfinite(self.log_posteriors.max()):  # the maximum of a row that holds a NaN is NaN
            raise NonFiniteOutput("the decoder's posteriors")

    @property
    def likeliest_id(self) -> int:
        """The token of the highest posterior."""
        return int(self.log_posteriors.argmax())


def decode_firings(
    stream: EngineStream, chunk: EncodedChunk, fired: Sequence[Firing], first_sample: int, look_ahead: Sequence[Firing] = ()
) -> tuple[list[TokenPosteriors], list[TokenPosteriors]]:
    """Decode the tokens that fired, and in the same pass those that fired in the look-ahead.

    A second pass for the look-ahead alone would read all of the decoder's weights again (54 M in the full-size model), which costs 17 %
    of a chunk (bench/README.md). As in FunASR the decoder is not called when nothing fired.

    Args:
        stream: the utterance.
        chunk: the frames that the decoder attends to.
        fired: tokens that are committed.
        first_sample: sample index of the utterance's frame 0.
        look_ahead: tokens that are provisional; they leave no trace in ``stream``.

    Returns:
        The posteriors of ``fired``, and those of ``look_ahead``.
    """
    firings = [*fired, *look_ahead]
    if not firings:
        return [], []
    log_posteriors = stream.decode(chunk, np.stack([firing.embedding for firing in firings]), num_committed=len(fired))
    posteriors = [
        TokenPosteriors(
            row,
            first_sample + round(max(firing.start_frame, 0) * FRAME_SAMPLES),
            first_sample + round(max(firing.end_frame, 1) * FRAME_SAMPLES),
        )
        for firing, row in zip(firings, log_posteriors, strict=True)
    ]
    return posteriors[: len(fired)], posteriors[len(fired) :]


def decode_whole(engine: Engine, samples: Samples, first_sample: int, *, is_final: bool) -> list[TokenPosteriors]:
    """Decode samples as one chunk with full attention and no history.

    Args:
        engine: the model.
        samples: float32, (num_samples,), 16 kHz mono.
        first_sample: sample index of the first of them.
        is_final: the utterance ends with them: a last token that is nearly complete fires too.
    """
    stream = engine.create_stream(None)
    chunk = stream.encode_last(samples)
    if chunk is None:
        return []
    fired, _ = integrate(chunk, range(len(chunk.alphas)), initial_state(engine.cif), engine.cif, is_final=is_final)
    return decode_firings(stream, chunk, fired, first_sample)[0]
