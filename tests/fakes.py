"""Scripted stand-ins for models, to show what the pipeline does when they hear, miss or fail on command.

``tests/test_pipeline.py`` runs the same contract over them and over the real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from voice.audio import SAMPLE_RATE_HZ, Samples
from voice.models.funasr_model import FunasrModel
from voice.transcript import Hypothesis, Token

SLICE = SAMPLE_RATE_HZ // 2

ACCELERATOR = "cpu:0"
"""To torch it is the CPU, to us another device."""


class LoudnessVad:
    """Loud is speech."""

    window_samples = 512

    def __init__(self) -> None:
        self.resets = 0

    def probability(self, window: Samples) -> float:
        return 1.0 if np.abs(window).max() > 0.01 else 0.0

    def reset(self) -> None:
        self.resets += 1


class CountingRecognizer:
    """Gives a token for every 0.5 s of audio, named after the audio's index: the text shows what was heard, and how often."""

    source = "fake"

    def __init__(self, fail_accept: Callable[[int], bool] = lambda _: False, fail_finish: Callable[[int], bool] = lambda _: False) -> None:
        self.fail_accept, self.fail_finish = fail_accept, fail_finish
        self.accepts = self.finishes = 0
        self.streams: list[CountingStream] = []

    def create_stream(self, first_sample: int) -> CountingStream:
        self.streams.append(CountingStream(self, first_sample))
        return self.streams[-1]


class CountingStream:
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
