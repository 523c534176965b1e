"""Finalization: emotion as a side model. An utterance's audio -> ``Emotion``, by an Emotion2vec (Ma et al. 2023).

``Emotion2vec`` runs FunASR's own model on torch, ``OnnxEmotion`` the graph that ``voice/conversion/emotion.py`` wrote, without torch and
without FunASR. Both map labels by name: models print ``生气/angry``, bare names, and ``<unk>``; ``unuse*`` is dropped, as FunASR does; a
label that a model lacks scores 0. ``EmotionLabeller`` decides which audio the model gets and whether its answer is sure enough. No state
but the weights. Runs on the side models' thread. Raises ``ModelLoadFailed`` when it is made, ``ValueError`` for an answer that is not
finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, Protocol, get_args

import numpy as np

from voice.audio import SAMPLE_RATE_HZ, Samples
from voice.errors import ErrorCode, ModelLoadFailed
from voice.models.converted import OnnxModel
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


def create_emotion_model(model: FunasrModel | OnnxModel, name: str) -> EmotionModel:
    """What runs an emotion model that the settings call ``name``: a hub id or a directory.

    Raises:
        ModelLoadFailed: a label is no emotion of ours.
    """
    return OnnxEmotion(model.sessions["emotion"], model.tokens, name) if isinstance(model, OnnxModel) else Emotion2vec(model, name)


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

    def settle(self, finding: Emotion) -> Emotion:
        """The emotion as it was found: it depends on no other final."""
        return finding

    def attach(self, transcript: Transcript, label: Emotion) -> Transcript:
        """The transcript with its emotion."""
        return replace(transcript, emotion=label)


class Emotion2vec:
    """The loaded model, on torch."""

    def __init__(self, model: FunasrModel, name: str) -> None:
        """Take a loaded model that the settings call ``name``: a hub id or a directory."""
        self._model = model
        self._labels = _Labels(model.tokens, str(model.directory))
        self.source = _source(name)

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
        return self._labels.by_name(results[0]["scores"])


class OnnxEmotion:
    """The converted model, on ONNX Runtime."""

    def __init__(self, session: Any, labels: Sequence[str], name: str) -> None:
        """Take over the session.

        Args:
            session: of ``emotion.onnx``. One thread: the side models' low priority is that of the thread that calls, not of others that
                a session starts.
            labels: lines of tokens.txt, index = column of the logits.
            name: what the settings call the model: a hub id or a directory.

        Raises:
            ModelLoadFailed: a label is no emotion of ours, or the labels are not as many as the graph's.
        """
        num_outputs = session.get_outputs()[0].shape[-1]
        if num_outputs != len(labels):
            raise ModelLoadFailed(f"{name} has {len(labels)} labels, but its graph has {num_outputs}")
        self._session = session
        self._labels = _Labels(labels, name)
        self.source = _source(name)

    def scores(self, samples: Samples) -> dict[EmotionName, float]:
        """Score of every emotion; they sum to 1.

        Args:
            samples: float32, (num_samples,), 16 kHz mono, at least as many as the first frame takes (400 for published models).
        """
        ((logits,),) = self._session.run(["logits"], {"samples": samples[None]})
        used = logits[self._labels.used]
        exponentials = np.exp(used - used.max())
        return self._labels.by_name((exponentials / exponentials.sum()).tolist())


class _Labels:
    """What a model's outputs mean."""

    def __init__(self, labels: Sequence[str], model: str) -> None:
        """Read the labels.

        Args:
            labels: of all outputs.
            model: its name for messages.

        Raises:
            ModelLoadFailed: a label is no emotion of ours, or there is none.
        """
        self.used = [index for index, label in enumerate(labels) if not label.startswith("unuse")]
        """Indices of the outputs that count."""
        names = {index: name_of(labels[index]) for index in self.used}
        unknown = [labels[index] for index, name in names.items() if name is None]
        if unknown or not names:
            raise ModelLoadFailed(f"{model} has labels that are no emotion of ours: {', '.join(unknown) or 'none at all'}")
        self._names = [name for name in names.values() if name is not None]

    def by_name(self, scores: Sequence[float]) -> dict[EmotionName, float]:
        """Of every emotion, from the scores of the outputs that count."""
        named: dict[EmotionName, float] = dict.fromkeys(EMOTION_NAMES, 0.0)
        for name, score in zip(self._names, scores, strict=True):
            named[name] += score
        return named


def _source(name: str) -> str:
    """``source`` of the events of a model that the settings call ``name``."""
    return f"funasr.{PurePath(name).name}"


def name_of(label: str) -> EmotionName | None:
    """Our name of a model's label; None for a label that is none of the nine."""
    bare = label.rpartition("/")[2].strip().lower()
    bare = _SYNONYMS.get(bare, bare)
    return bare if bare in EMOTION_NAMES else None
