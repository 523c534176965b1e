"""Finalization: the speaker of an utterance as a side model. An utterance's audio -> ``VoicePrint`` -> ``Speaker``. Only with --speakers.

``SpeakerLabeller.label`` runs the model on the side models' thread and decides nothing. ``settle`` decides, on the worker thread and in
the order of the finals, so that labels depend neither on how fast a model is nor on finals that were prepared and cancelled. State: the
known speakers (``SpeakerRegistry``), and what of them is not saved yet. Raises ``ValueError`` for an embedding that is not
finite.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from voice.audio import Samples
from voice.errors import ControlInvalid, ErrorCode, describe
from voice.finalization.side_model import VoicePrint
from voice.finalization.speaker_registry import MAX_NAME_CHARACTERS, MatchSettings, SpeakerRegistry, UnknownSpeaker, clean_name
from voice.finalization.speaker_store import SpeakerStore
from voice.transcript import Speaker, Transcript

_MOVES_UNSAVED = 20
"""Utterances that may move centroids before these are written again; what they moved is saved at the end, too."""

log = structlog.get_logger()


class SpeakerModel(Protocol):
    """Makes embeddings."""

    @property
    def source(self) -> str:
        """The ``source`` of its events."""

    def embedding(self, samples: Samples) -> NDArray[np.float32]:
        """(size,) of an utterance; the direction tells the voice.

        Args:
            samples: float32, (num_samples,), [-1, 1], 16 kHz mono, at least 400.
        """


@dataclass(frozen=True, slots=True)
class SpeakerSettings:
    """Lengths in samples at 16 kHz."""

    min_samples: int
    """Shorter utterances get no label: they hold too little of a voice."""
    max_samples: int
    """Of longer utterances the last ``max_samples`` are used: the cost grows with the length, what is learnt of the voice does not."""


class SpeakerLabeller:
    """The side model that fills ``Transcript.speaker``."""

    name = "speaker"
    failure: ErrorCode = "speaker_failed"

    def __init__(self, model: SpeakerModel, registry: SpeakerRegistry, settings: SpeakerSettings) -> None:
        self._model = model
        self._registry = registry
        self._settings = settings

    def accepts(self, num_samples: int) -> bool:
        """Whether an utterance of this length is long enough."""
        return num_samples >= self._settings.min_samples

    def label(self, audio: Samples, end_sample: int) -> VoicePrint:
        """The embedding of the utterance's end."""
        del end_sample
        return VoicePrint(self._model.embedding(audio[-self._settings.max_samples :]))

    def settle(self, finding: VoicePrint) -> Speaker | None:
        """The speaker; a voice that is new is opened. ``ValueError`` for an embedding that is not finite, which changes nothing."""
        match = self._registry.assign(finding.values)
        return None if match is None else Speaker(self._model.source, match.label, match.name, match.confidence)

    def attach(self, transcript: Transcript, label: Speaker) -> Transcript:
        """The transcript with its speaker."""
        return replace(transcript, speaker=label)


class SpeakerBook:
    """What the loop has to do with speakers: names, and what is kept between runs."""

    def __init__(self, registry: SpeakerRegistry | None, store: SpeakerStore | None = None) -> None:
        """Keep the registry's speakers in ``store``; without one nothing is written. No registry: the model is missing."""
        self._registry = registry or SpeakerRegistry(MatchSettings(same_threshold=1, new_threshold=-1, max_speakers=0))
        self._store = store
        self._saved = self._tried = (self._registry.num_changes, self._registry.num_moves)
        self._failures: list[str] = []

    def name(self, label: str, name: str | None) -> ControlInvalid | None:
        """Give a speaker a name, or take it away; later finals bear it.

        Returns:
            What is wrong: nobody has this label, or the name is empty or too long. Neither is quoted: names are personal.
        """
        cleaned = None if name is None else clean_name(name)
        if name is not None and cleaned is None:
            return ControlInvalid(f"name_speaker: a name has 1 to {MAX_NAME_CHARACTERS} characters that can be shown")
        try:
            self._registry.rename(label, cleaned)
        except UnknownSpeaker as error:
            return ControlInvalid(f"name_speaker: {error}")
        return None

    def drain(self, timeout_sec: float) -> None:
        """Save what is new: speakers and names at once, moved centroids every now and then, and at the end (``timeout_sec`` above 0)."""
        now = (self._registry.num_changes, self._registry.num_moves)
        is_due = now[0] != self._tried[0] or now[1] - self._tried[1] >= _MOVES_UNSAVED or (timeout_sec > 0 and now != self._saved)
        if self._store is None or not is_due:
            return
        self._tried = now
        try:
            self._store.save(self._registry.speakers)
            self._saved = now
        except OSError as error:
            log.warning("speakers_not_saved", error=describe(error))
            self._failures.append(f"speakers could not be saved: {describe(error)}")

    def take_failures(self) -> list[str]:
        """Why speakers are not saved, since the last call."""
        failures, self._failures = self._failures, []
        return failures
