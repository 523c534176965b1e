"""Whether a converted model computes what torch computes, on the example recordings.

Module and graphs -> nothing, or ``Unconvertible`` with what differs. No state.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from voice.audio import Samples
from voice.conversion.layers import Unconvertible
from voice.finalization.emotion import create_emotion_model
from voice.finalization.punctuation import create_punctuator
from voice.finalization.speaker_embedding import create_speaker_model
from voice.finalization.speaker_registry import unit
from voice.models.converted import load_converted
from voice.models.funasr_model import FunasrModel
from voice.places import EXAMPLES
from voice.recognition.engine import ChunkPreset, Engine
from voice.recognition.onnx_engine import OnnxEngine
from voice.recognition.streaming import StreamingRecognizer
from voice.recognition.torch_engine import TorchEngine
from voice.transcript import Token

_PRESET = ChunkPreset(0, 10, 5, encoder_look_back=4, decoder_look_back=1)
_SURE = 0.7
"""A token that torch gives this confidence or more must be the same: between two that are about as likely, rounding decides."""
_MAX_CONFIDENCE_DIFFERENCE = 0.05
"""Mean over the tokens of both."""
_MAX_LENGTH_DIFFERENCE = 0.05
"""Numbers of tokens, relative."""
_MAX_MARKS_CHANGED = 0.02
"""Punctuation marks that differ, for each word."""
_MAX_SCORE_DIFFERENCE = 0.1
_MAX_MEAN_SCORE_DIFFERENCE = 0.03
_MIN_COSINE = 0.999
"""Of two embeddings of the same audio."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two decodings of the same audio relate."""

    num_tokens: int
    num_other: int
    num_sure_changed: int
    """Tokens of the first with a confidence of at least ``_SURE`` that the second does not have there."""
    confidence_difference: float
    """Mean over the tokens that both have."""


def check_recognition(model: FunasrModel, graphs: Path) -> None:
    """Decode the example recordings with torch and with the graphs.

    Raises:
        Unconvertible: a token that torch is sure of is another, their numbers differ by more than 5 %, or confidences by more than 0.05.
    """
    converted = OnnxEngine(load_converted(graphs, model.directory, num_threads=1, with_language=False))
    reference = TorchEngine(model)
    recordings = _recordings()
    agreement = compare(*([_tokens(engine, each) for each in recordings] for engine in (reference, converted)))
    too_many = abs(agreement.num_tokens - agreement.num_other) > _MAX_LENGTH_DIFFERENCE * max(agreement.num_tokens, 20)
    if too_many or agreement.num_sure_changed or not agreement.confidence_difference <= _MAX_CONFIDENCE_DIFFERENCE:
        raise Unconvertible(f"the graphs do not compute what torch computes: {agreement}")


def check_punctuation(model: FunasrModel, graphs: Path) -> None:
    """Punctuate the texts of the example recordings, all of them as one text too, with torch and with the graph.

    Raises:
        Unconvertible: more than one mark in fifty differs.
    """
    converted = create_punctuator(load_converted(graphs, model.directory, num_threads=1))
    reference = create_punctuator(model)
    texts = [path.read_text(encoding="utf-8") for path in sorted(EXAMPLES.glob("*.txt"))]
    texts = [re.sub(r"[^\w\s]", "", line) for text in texts for line in text.splitlines() if line.strip()]
    texts.append("".join(texts))
    pairs = [[punctuator.punctuate(text, ended=True) for punctuator in (reference, converted)] for text in texts]
    num_words = sum(map(len, texts))
    num_changed = sum(
        max(i2 - i1, j2 - j1)
        for one, two in pairs
        for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, one, two, autojunk=False).get_opcodes()
        if tag != "equal"
    )
    if num_changed > num_words * _MAX_MARKS_CHANGED:
        raise Unconvertible(f"the graph does not compute what torch computes: {num_changed} marks differ in {num_words} words")


def check_emotion(model: FunasrModel, graphs: Path) -> None:
    """Score the example recordings with torch and with the graph.

    Raises:
        Unconvertible: a score differs by more than 0.1, or by more than 0.03 on the mean.
    """
    name = str(model.directory)
    both = [create_emotion_model(each, name) for each in (model, load_converted(graphs, model.directory, num_threads=1))]
    scores = [[list(each.scores(samples).values()) for samples in _recordings()] for each in both]
    differences = np.abs(np.array(scores[0]) - np.array(scores[1]))
    if not (differences.max() <= _MAX_SCORE_DIFFERENCE and differences.mean() <= _MAX_MEAN_SCORE_DIFFERENCE):
        found = f"scores differ by up to {differences.max():.3f}, by {differences.mean():.3f} on the mean"
        raise Unconvertible(f"the graph does not compute what torch computes: {found}")


def check_speaker(model: FunasrModel, graphs: Path) -> None:
    """Embed the example recordings with torch and with the graph.

    Raises:
        Unconvertible: the cosine of the two embeddings of one is below 0.999.
    """
    name = str(model.directory)
    both = [create_speaker_model(each, name) for each in (model, load_converted(graphs, model.directory, num_threads=1))]
    cosines = [float(np.dot(*(unit(each.embedding(samples)) for each in both))) for samples in _recordings()]
    if not min(cosines) >= _MIN_COSINE:
        raise Unconvertible(f"the graph does not compute what torch computes: cosines down to {min(cosines):.4f}")


def _recordings() -> list[Samples]:
    recordings = [soundfile.read(path, dtype="float32")[0] for path in sorted(EXAMPLES.glob("*.wav"))]
    if not recordings:
        raise Unconvertible("the example recordings are missing, which it has to be compared on")
    return recordings


def compare(reference: list[list[Token]], other: list[list[Token]]) -> Agreement:
    """Compare decodings of the same recordings."""
    sure_changed, differences = 0, []
    for ours, theirs in zip(reference, other, strict=True):
        matcher = difflib.SequenceMatcher(None, [token.text for token in ours], [token.text for token in theirs], autojunk=False)
        same = {block.a + index: block.b + index for block in matcher.get_matching_blocks() for index in range(block.size)}
        sure_changed += sum((token.confidence or 0.0) >= _SURE and index not in same for index, token in enumerate(ours))
        differences += [abs((ours[a].confidence or 0.0) - (theirs[b].confidence or 0.0)) for a, b in same.items()]
    num_tokens, num_other = (sum(map(len, decodings)) for decodings in (reference, other))
    return Agreement(num_tokens, num_other, sure_changed, float(np.mean(differences)) if differences else 0.0)


def _tokens(engine: Engine, samples: Samples) -> list[Token]:
    stream = StreamingRecognizer(engine, _PRESET).create_stream(0)
    stream.accept(samples, provisional=False)
    return list(stream.finish().committed)
