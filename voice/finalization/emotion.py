"""Finalization: emotion as a side model. An utterance's audio -> ``Emotion``, by FunASR's Emotion2vec.

``Emotion2vec`` maps labels by name: models print ``生气/angry``, bare names, and ``<unk>``; ``unuse*`` is dropped (FunASR already
leaves it out); a label that a model lacks scores 0. ``EmotionLabeller`` decides which audio the model gets and whether its answer is
sure enough. No state but the weights. Runs on the side models' thread. Raises ``ModelLoadFailed`` when it is made, ``ValueError`` for
an answer that is not finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Protocol, get_args

from voice.audio import SAMPLE_RATE_HZ, Samples
from voice.errors import ErrorCode, ModelLoadFailed
from voice.models.funasr_model import FunasrModel
from voice.transcript import Emotion, EmotionName, Transcript

EMOTION_NAMES: tuple[EmotionName, ...] = get_args(EmotionName)
_SYNONYMS: dict[str, EmotionName] = {"<unk>": "unknown", "fear": "fearful", "disgust": "disgusted", "surprise": "surprised"}


class EmotionModel(Protocol):
    """Scores the emotions of an utterance."""

    @property
    def source(self) -> str:
        """The ``source`` of its events."""

    def scores(self, samples: Samples) -> dict[EmotionName, float]:
        """Score of every emotion; they sum to 1."""


@dataclass(frozen=True, slots=True)
class EmotionSettings:
    """Lengths in samples at 16 kHz."""

    min_samples: int
    """Shorter utterances get no emotion: they hold too little of it."""
    max_samples: int
    """Longer utterances are labelled by their last ``max_samples``: the cost grows with the square of the length."""
    min_confidence: float
    """Score of the best label, 0..1, below which there is no emotion rather than a guess."""


class EmotionLabeller:
    """The side model that fills ``Transcript.emotion``."""

    name = "emotion"
    failure: ErrorCode = "emotion_failed"

    def __init__(self, model: EmotionModel, settings: EmotionSettings) -> None:
        self._model = model
        self._settings = settings

    def accepts(self, num_samples: int) -> bool:
        """Whether an utterance of this length is long enough."""
        return min(num_samples, self._settings.max_samples) >= self._settings.min_samples

    def label(self, audio: Samples, end_sample: int) -> Emotion | None:
        """The emotion of the utterance's end; None where the best score is below ``min_confidence``."""
        audio = audio[-self._settings.max_samples :]
        scores = self._model.scores(audio)
        if not all(math.isfinite(score) for score in scores.values()):
            raise ValueError("the emotion model answered with scores that are no numbers")
        best = max(scores, key=scores.__getitem__)
        if scores[best] < self._settings.min_confidence:
            return None
        return Emotion(self._model.source, best, scores[best], scores, end_sample - len(audio), end_sample)

    def attach(self, transcript: Transcript, label: Emotion) -> Transcript:
        """The transcript with its emotion."""
        return replace(transcript, emotion=label)


class Emotion2vec:
    """The loaded model."""

    def __init__(self, model: FunasrModel, name: str) -> None:
        """Take a loaded model that the settings call ``name``: a hub id or a directory."""
        self._model = model
        self.source = f"funasr.{PurePath(name).name}"
        labels = [label for label in model.tokens if not label.startswith("unuse")]
        self._names = [name_of(label) for label in labels]
        unknown = [label for label, name in zip(labels, self._names, strict=True) if name is None]
        if unknown or not labels:
            raise ModelLoadFailed(f"{model.directory} has labels that are no emotion of ours: {', '.join(unknown) or 'none at all'}")

    def scores(self, samples: Samples) -> dict[EmotionName, float]:
        """Score of every emotion; they sum to 1.

        Args:
            samples: float32, (num_samples,), 16 kHz mono, at least 400.
        """
        import torch  # noqa: PLC0415

        results, _ = self._model.run(
            lambda: self._model.module.inference(
                [torch.from_numpy(samples)],
                key=["utterance"],
                tokenizer=self._model.tokenizer,
                fs=SAMPLE_RATE_HZ,
                device=self._model.device,
                extract_embedding=False,
            )
        )
        scores = dict.fromkeys(EMOTION_NAMES, 0.0)
        for name, score in zip(self._names, results[0]["scores"], strict=True):
            assert name is not None  # noqa: S101 -- the constructor refused such a model
            scores[name] += score
        return scores


def name_of(label: str) -> EmotionName | None:
    """Our name of a model's label; None for a label that is none of the nine."""
    bare = label.rpartition("/")[2].strip().lower()
    bare = _SYNONYMS.get(bare, bare)
    return bare if bare in EMOTION_NAMES else None
