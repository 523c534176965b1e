"""Sentences that nobody spoke, for the decoder alone: it learns the language from far more text than there is speech.

What the encoder and the predictor gave for each syllable of real training speech is kept, and put together to the syllables of a sentence
of the corpora: as if it had been spoken and encoded. Only the decoder learns from it, and a step takes a fifth longer with it.
"""

from __future__ import annotations

import functools
import random
from collections import deque
from dataclasses import dataclass
from typing import Any

import corpus
import torch
from shards import WORKSPACE

KINDS = {"clause": 0.8, "command": 0.07, "digits": 0.03, "words": 0.1}  # share of the sentences
SOURCES = {"learners": 0.2, "reviews": 0.4, "news": 0.4}  # of the clauses
KEPT_OF_A_SYLLABLE = 24
LABEL_SMOOTHING = 0.1
LONGEST_FRAMES = 8  # of one syllable; before the first one there is silence
END = 0
"""Stands for the end of an utterance among the syllables, which begin with 1."""


@dataclass(frozen=True)
class Spoken:
    """One syllable as it was encoded."""

    embedding: torch.Tensor
    """(width,), what the predictor fired."""
    frames: torch.Tensor
    """(frames, width), what the encoder gave since the syllable before."""


class SyllableBank:
    """The latest encodings of each syllable. State: the encodings."""

    def __init__(self) -> None:
        self._kept: dict[int, deque[Spoken]] = {}

    def keep(self, encoded: torch.Tensor, alphas: torch.Tensor, embeddings: torch.Tensor, syllables: list[int]) -> None:
        """What one utterance gave.

        Args:
            encoded: (frames, width).
            alphas: (frames,), the weights of which 1 makes a token.
            embeddings: (tokens + 1, width), the last one for the end.
            syllables: (tokens,).
        """
        sums = alphas.float().cumsum(0)
        owners = (sums - alphas.float() / 2).floor().long().clamp(0, len(syllables))
        parts = encoded.split(torch.bincount(owners, minlength=len(syllables) + 1).tolist())
        for syllable, frames, embedding in zip([*syllables, END], parts, embeddings, strict=False):
            if len(frames):
                spoken = Spoken(embedding.bfloat16().clone(), frames[-LONGEST_FRAMES:].bfloat16().clone())
                self._kept.setdefault(syllable, deque(maxlen=KEPT_OF_A_SYLLABLE)).append(spoken)

    def say(self, syllables: list[int], rng: random.Random) -> list[Spoken] | None:
        """The encodings of a sentence and its end, each syllable's drawn at random; None where one was never heard."""
        try:
            return [rng.choice(self._kept[syllable]) for syllable in (*syllables, END)]
        except KeyError:
            return None


@functools.cache
def passages(source: str) -> list[list[str]]:
    """Runs of clauses of one source's training text, which corpus.py wrote for this environment."""
    return corpus.passages_of((WORKSPACE / "text" / f"{source}-train.txt").read_text(encoding="utf8").splitlines())


def sentence(rng: random.Random) -> str:
    """One that evaluation does not ask for, without marks."""
    draw = {"command": corpus.command, "digits": corpus.digits, "words": corpus.words, "clause": _clause}
    while True:
        text = corpus.without_marks(draw[rng.choices(list(KINDS), weights=list(KINDS.values()))[0]](rng))
        if text and not corpus.is_held_out(text):
            return text


def _clause(rng: random.Random) -> str:
    return corpus.clauses_of(passages(rng.choices(list(SOURCES), weights=list(SOURCES.values()))[0]), rng)


@dataclass(frozen=True)
class SplicedBatch:
    """Sentences as the decoder takes them."""

    memory: torch.Tensor
    """(batch, frames, width)."""
    memory_lengths: torch.Tensor
    embeddings: torch.Tensor
    """(batch, tokens, width), the end included."""
    fired_at: torch.Tensor
    """(batch, tokens), the last frame of each token."""
    tokens: torch.Tensor
    """(batch, tokens), ids, padded with -1."""
    token_counts: torch.Tensor

    def to(self, device: str) -> SplicedBatch:
        """The same, there."""
        return SplicedBatch(**{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})


def splice(sentences: list[tuple[list[int], list[Spoken]]]) -> SplicedBatch:
    """(token ids with that of the end, their encodings) of each sentence -> one batch."""
    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    lengths = [torch.tensor([len(each.frames) for each in spoken]) for _, spoken in sentences]
    return SplicedBatch(
        memory=pad([torch.cat([each.frames for each in spoken]) for _, spoken in sentences]).float(),
        memory_lengths=torch.stack([each.sum() for each in lengths]),
        embeddings=pad([torch.stack([each.embedding for each in spoken]) for _, spoken in sentences]).float(),
        fired_at=pad([each.cumsum(0) - 1 for each in lengths]),
        tokens=pad([torch.tensor(ids) for ids, _ in sentences], padding_value=-1),
        token_counts=torch.tensor([len(ids) for ids, _ in sentences]),
    )


def chunk_mask(batch: SplicedBatch, chunk: int, stride: int, rng: random.Random) -> torch.Tensor:
    """What each token attends to when chunks of `stride` frames, `chunk` with their right context, are decoded one by one.

    Returns:
        (batch, tokens, frames) float32: 1 in the chunk a token fires in, and in the `stride` frames before it that the cache holds.
    """
    offset = rng.randrange(stride)
    first = (batch.fired_at + offset) // stride * stride - offset
    frames = torch.arange(batch.memory.shape[1], device=batch.memory.device)
    low, high = first - stride + (chunk - stride), first + chunk
    return ((frames >= low[:, :, None]) & (frames < high[:, :, None])).float()


def decoder_loss(model: Any, batch: SplicedBatch, mask: torch.Tensor | None) -> tuple[torch.Tensor, float]:
    """Cross entropy of the decoder, from what the predictor fired alone as at inference, and the share of right tokens."""
    hidden, _ = model.decoder(batch.memory, batch.memory_lengths, batch.embeddings, batch.token_counts, mask, return_hidden=True)
    spoken = batch.tokens >= 0
    logits, tokens = model.decoder.output_layer(hidden[spoken]), batch.tokens[spoken]
    loss = torch.nn.functional.cross_entropy(logits, tokens, label_smoothing=LABEL_SMOOTHING)
    return loss, float((logits.detach().argmax(-1) == tokens).float().mean())
