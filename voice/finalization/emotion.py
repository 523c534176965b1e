"""FunASR's Emotion2vec: an utterance's audio -> the emotion heard in it.

Labels are mapped by name: models print ``生气/angry``, bare names, and ``<unk>``; ``unuse*`` is dropped (FunASR already leaves it
out); a label that a model lacks scores 0. No state but the weights. Runs where the finalizer runs.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import get_args

from voice.audio import SAMPLE_RATE_HZ, Samples
from voice.errors import ModelLoadFailed
from voice.models.funasr_model import FunasrModel
from voice.transcript import EmotionName

EMOTION_NAMES: tuple[EmotionName, ...] = get_args(EmotionName)
_SYNONYMS: dict[str, EmotionName] = {"<unk>": "unknown", "fear": "fearful", "disgust": "disgusted", "surprise": "surprised"}


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
        """Score of every emotion, summing to 1.

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
    """Our name of a model's label, None for a label that is none of the nine."""
    bare = label.rpartition("/")[2].strip().lower()
    bare = _SYNONYMS.get(bare, bare)
    return bare if bare in EMOTION_NAMES else None
