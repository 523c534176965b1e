"""Finalization: what --speakers switches on, put together. A loaded model and settings -> ``SpeakerLabeller`` and ``SpeakerBook``.

Nothing else of the service imports the modules about speakers, and this one is imported only where the settings want them. No state.
Worker thread. Raises ``ConfigInvalid`` for a directory of speakers that cannot be used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from voice.audio import SAMPLE_RATE_HZ, ms_to_samples
from voice.config import SpeakerSettings as Settings
from voice.finalization.speaker_embedding import create_speaker_model
from voice.finalization.speaker_registry import MatchSettings, SpeakerRegistry
from voice.finalization.speaker_store import SpeakerStore
from voice.finalization.speakers import SpeakerBook, SpeakerLabeller, SpeakerModel, SpeakerSettings
from voice.models.converted import OnnxModel
from voice.models.directory import describe_model, sha256_of
from voice.models.funasr_model import FunasrModel
from voice.models.weights import SPEAKER


@dataclass(frozen=True, slots=True)
class ProbedModel:
    """A speaker model after its first call."""

    model: SpeakerModel
    digest: str
    """SHA-256 of its weights: embeddings of two models cannot be compared."""
    size: int
    """Of its embeddings."""


def probed_model(loaded: FunasrModel | OnnxModel, name: str) -> ProbedModel:
    """The model that the settings call ``name``, asked for the embedding of a second of silence.

    Raises:
        ModelLoadFailed: its weights cannot be read.
    """
    model = create_speaker_model(loaded, name)
    size = len(model.embedding(np.zeros(SAMPLE_RATE_HZ, np.float32)))
    return ProbedModel(model, sha256_of(describe_model(loaded.directory, SPEAKER).files["init_param"]), size)


def no_speakers() -> SpeakerBook:
    """For a run whose speaker model cannot be used: a name finds nobody."""
    return SpeakerBook(None)


def open_speakers(probed: ProbedModel, settings: Settings, *, embedded: bool) -> tuple[SpeakerLabeller, SpeakerBook]:
    """Begin with the speakers of earlier runs, where the settings name their directory, else with none.

    Args:
        probed: the model.
        settings: ``speakers``.
        embedded: whether it is the model that ships with the service, which has thresholds of its own.

    Raises:
        ConfigInvalid: the directory cannot be used, or what it holds is damaged.
    """
    same, new = settings.thresholds(embedded=embedded)
    store = None if settings.db is None else SpeakerStore(settings.db, probed.digest, probed.size)
    registry = SpeakerRegistry(MatchSettings(same, new, settings.max_speakers), store.load() if store else ())
    lengths = SpeakerSettings(ms_to_samples(settings.min_audio_ms), round(settings.max_audio_sec * SAMPLE_RATE_HZ))
    return SpeakerLabeller(probed.model, registry, lengths), SpeakerBook(registry, store)
