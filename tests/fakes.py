"""Scripted stand-ins for models, to show what the pipeline does when they hear, miss or fail on command.

``tests/test_pipeline.py`` runs the same contract over them and over the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voice.audio import SAMPLE_RATE_HZ, Samples
from voice.models.funasr_model import FunasrModel
from voice.models.language_model import LanguageModel
from voice.recognition.engine import FRAME_SAMPLES, ChunkPreset, CifSettings, EncodedChunk, Vocabulary
from voice.recognition.recognizer import LocalRecognizer, LocalStream
from voice.transcript import Hypothesis, Token

SLICE = SAMPLE_RATE_HZ // 2

ACCELERATOR = "cpu:0"
"""To torch it is the CPU, to us another device."""


class LoudnessVad:
    """Loud is speech."""

    window_samples = 512

    def __init__(self) -> None:
        self.resets = 0

    def probability(self, window: Samples, following: Samples) -> float:
        return 1.0 if np.abs(window).max() > 0.01 else 0.0

    def reset(self) -> None:
        self.resets += 1


class CountingRecognizer(LocalRecognizer):
    """Gives a token for every 0.5 s of audio, named after the audio's index: the text shows what was heard, and how often."""

    source = "fake"

    def __init__(self, fail_accept: Callable[[int], bool] = lambda _: False, fail_finish: Callable[[int], bool] = lambda _: False) -> None:
        self.fail_accept, self.fail_finish = fail_accept, fail_finish
        self.accepts = self.finishes = self.previews = 0
        self.streams: list[CountingStream] = []

    def create_stream(self, first_sample: int, trace_id: str = "") -> CountingStream:
        self.streams.append(CountingStream(self, first_sample))
        return self.streams[-1]


class CountingStream(LocalStream):
    source = "fake"

    def __init__(self, owner: CountingRecognizer, first_sample: int) -> None:
        self.owner = owner
        self.first_sample = self.decoded_until = first_sample
        self.audio: Samples = np.zeros(0, np.float32)
        self.tokens: tuple[Token, ...] = ()
        self.show_tail = self.has_tail = True

    def accept(self, samples: Samples, *, provisional: bool = True) -> bool:
        self.show_tail = provisional and self.has_tail
        self.owner.accepts += 1
        if self.owner.fail_accept(self.owner.accepts):
            raise RuntimeError("planted in accept")
        self.audio = np.concatenate((self.audio, samples))
        before = self.tokens
        self._tokenize(len(self.audio) // SLICE)
        return self.tokens != before

    def preview(self) -> bool:
        self.owner.previews += 1
        return False

    def hypothesis(self) -> Hypothesis:
        tail = (self._token(len(self.tokens)),) if self.show_tail else ()
        return Hypothesis(self.tokens, tail)

    def finish(self) -> Hypothesis:
        self.owner.finishes += 1
        if self.owner.fail_finish(self.owner.finishes):
            raise RuntimeError("planted in finish")
        self._tokenize(-(-len(self.audio) // SLICE))
        self.decoded_until = self.first_sample + len(self.audio)
        return Hypothesis(self.tokens)

    def copy(self) -> CountingStream:
        other = CountingStream(self.owner, self.first_sample)
        other.audio, other.tokens, other.decoded_until = self.audio, self.tokens, self.decoded_until
        other.show_tail, other.has_tail = self.show_tail, self.has_tail
        return other

    def _tokenize(self, count: int) -> None:
        self.tokens = tuple(self._token(index) for index in range(count))
        self.decoded_until = self.first_sample + count * SLICE

    def _token(self, index: int) -> Token:
        start = self.first_sample + index * SLICE
        return Token(chr(0x4E00 + start // SLICE % 20_000), start, start + SLICE, 0.5 + (index % 5) / 10)


def speech(seconds: float) -> Samples:
    return (0.2 * np.sin(np.arange(round(seconds * SAMPLE_RATE_HZ)) / 5)).astype(np.float32)


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * SAMPLE_RATE_HZ), np.float32)


def failing_on_the_accelerator(model: FunasrModel, method: Callable[..., Any], first: int = 1) -> Callable[..., Any]:
    """``method`` of a model; from its ``first`` call on the accelerator on, it finds no memory there."""
    calls = 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += model.device == ACCELERATOR
        if calls >= first and model.device == ACCELERATOR:
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return method(*arguments, **options)

    return call


SCRIPTED_TOKENS = (*"_一二三四五六七八九", "ab@@", "cd")


FIRST = 50 * FRAME_SAMPLES
"""Where the utterances of the tests over ``ScriptedEngine`` begin."""


def spans(hypothesis: Hypothesis) -> list[tuple[str, int, int]]:
    """Tokens with the frames at which they begin and end, from the utterance's first on."""
    return [
        (token.text, (token.start_sample - FIRST) // FRAME_SAMPLES, (token.end_sample - FIRST) // FRAME_SAMPLES)
        for token in hypothesis.tokens
    ]


def frame(token: int = 0, alpha: float | None = None, *, second: int = 0, gap: float = 20.0, before: int = 0) -> Samples:
    """960 samples that tell ``ScriptedEngine`` what this frame is.

    Args:
        token: its likeliest token; 0 is blank.
        alpha: its CIF weight; a whole token's where there is one, else none.
        second: the second likeliest token.
        gap: so many nats less likely.
        before: the likeliest token of the frame before it, once this one is in view: what later context changes.
    """
    samples = np.zeros(FRAME_SAMPLES, np.float32)
    samples[:5] = (float(token > 0) if alpha is None else alpha), token, second, gap, before
    return samples


def frames(*tokens: int) -> Samples:
    """A frame for each token; 0 for a frame without one."""
    return np.concatenate([frame(token) for token in tokens]) if tokens else np.zeros(0, np.float32)


def bigrams(tokens: Sequence[str], pairs: Mapping[tuple[str, str], float], *, alone: float = -4.0, weight: float = 1.0) -> LanguageModel:
    """A language model that knows pairs of tokens; ``^`` stands for the utterance's start.

    Args:
        tokens: of the recognition model.
        pairs: (token before, token) -> log probability.
        alone: that of every token behind any other.
        weight: of the language model.
    """
    contexts = ["", *tokens, "^"]
    known = {
        context: sorted((tokens.index(token), score) for (before, token), score in pairs.items() if before == context)
        for context in contexts
    }
    known[""] = [(index, alone) for index in range(len(tokens))]
    arcs = [arc for context in contexts for arc in known[context]]
    return LanguageModel(
        {
            "symbols": np.array(tokens),
            "first_arc": np.cumsum([0, *(len(known[context]) for context in contexts)]),
            "arc_symbol": np.array([index for index, _ in arcs]),
            "arc_next": np.array([1 + index for index, _ in arcs]),
            "arc_score": np.array([score for _, score in arcs], np.float32),
            "lower": np.zeros(len(contexts), np.int64),
            "back_off": np.array([-50.0, *(0.0 for _ in contexts[1:])], np.float32),
            "start": np.array(len(contexts) - 1),
            "weight": np.array(weight),
        },
        tokens,
    )


class ScriptedEngine:
    """An engine that reads alphas and posteriors off audio made by ``frame``. Every call of its decoder is counted."""

    vocabulary = Vocabulary(SCRIPTED_TOKENS, frozenset({0}))
    cif = CifSettings(np.float32(1.0), np.float32(0.45), len(SCRIPTED_TOKENS))

    def __init__(self, language: LanguageModel | None = None) -> None:
        self.language = language
        self.decoded: list[tuple[int, int]] = []
        """(tokens, of which committed) of every call."""

    def create_stream(self, preset: ChunkPreset | None) -> ScriptedStream:
        return ScriptedStream(self, preset)


@dataclass(slots=True)
class ScriptedStream:
    """As the real one it keeps the last frames as context, and what its decoder returns depends on the tokens committed before."""

    engine: ScriptedEngine
    preset: ChunkPreset | None
    context: Samples | None = None
    num_frames: int = 0
    history: int = 0

    def encode(self, samples: Samples) -> EncodedChunk:
        if self.preset is None:
            raise ValueError("a stream without a preset takes all audio in encode_last")
        assert len(samples) == self.preset.stride_samples
        return self._encoded(samples)

    def encode_last(self, samples: Samples) -> EncodedChunk | None:
        if len(samples) == 0:
            return None
        return self._encoded(np.pad(samples, (0, -len(samples) % FRAME_SAMPLES)))

    def encode_context(self) -> EncodedChunk | None:
        return None if self.num_frames == 0 else self._encoded(np.zeros(0, np.float32))

    def decode(self, chunk: EncodedChunk, embeddings: np.ndarray, *, num_committed: int) -> np.ndarray:
        self.engine.decoded.append((len(embeddings), num_committed))
        first, self.history = self.history, self.history + num_committed
        rows = embeddings * (1 - 0.001 * (first + np.arange(len(embeddings))))[:, np.newaxis]
        return (rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))).astype(np.float32)

    def copy(self) -> ScriptedStream:
        return ScriptedStream(self.engine, self.preset, self.context, self.num_frames, self.history)

    def _encoded(self, samples: Samples) -> EncodedChunk:
        num_context = self.preset.context if self.preset else 0
        context = np.zeros(num_context * FRAME_SAMPLES, np.float32) if self.context is None else self.context
        seen = np.concatenate((context, samples))
        script = seen.reshape(-1, FRAME_SAMPLES)[:, :5]
        hidden = np.full((len(script), len(SCRIPTED_TOKENS)), -30.0, np.float32)
        for row, (_, token, second, gap, _) in enumerate(script):
            changed = int(script[row + 1, 4]) if row + 1 < len(script) else 0
            hidden[row, int(second)] = -gap
            hidden[row, changed or int(token)] = 0.0
        chunk = EncodedChunk(script[:, 0].copy(), hidden, self.num_frames - num_context)
        self.context = seen[len(seen) - num_context * FRAME_SAMPLES :]
        self.num_frames += len(samples) // FRAME_SAMPLES
        return chunk
