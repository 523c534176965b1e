"""The emotion model beside the pipeline: an utterance's audio -> a future emotion.

Emotion models cost as much as recognition; on the pipeline's thread they would hold up the next words. One thread, started at the
first utterance, takes utterances in their order. What waits is bounded; above the bound an utterance is refused. The thread dies
with the process: who leaves while it is ``busy`` must not wait for it.
"""

from __future__ import annotations

import math
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from voice.audio import Samples
from voice.transcript import Emotion, EmotionName

_MAX_UNFINISHED = 4
"""Utterances: the one that is heard, and a few that wait because speech came faster than the model is."""


class EmotionModel(Protocol):
    """Tells the emotion of an utterance."""

    @property
    def source(self) -> str:
        """The ``source`` of its events."""

    def scores(self, samples: Samples) -> dict[EmotionName, float]:
        """Score of every emotion, summing to 1."""


@dataclass(frozen=True, slots=True)
class EmotionSettings:
    """Lengths in samples at 16 kHz."""

    min_samples: int
    """Shorter utterances have no emotion: there is too little to hear it in."""
    max_samples: int
    """Only so much of the utterance's end is listened to: the cost grows with the square of the length."""
    min_confidence: float
    """Below it there is no emotion rather than a guess."""


class TooManyUtterances(Exception):
    """The model is slower than the speech."""


@dataclass(frozen=True, slots=True)
class _Work:
    audio: Samples
    end_sample: int
    future: Future[Emotion | None]


class EmotionThread:
    """Runs one model on one thread."""

    def __init__(self, model: EmotionModel, settings: EmotionSettings) -> None:
        self._model = model
        self._settings = settings
        self._work: queue.SimpleQueue[_Work] = queue.SimpleQueue()
        self._unfinished: list[Future[Emotion | None]] = []
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether something is being heard or waits for it. Caller's thread."""
        self._unfinished = [future for future in self._unfinished if not future.done()]
        return bool(self._unfinished)

    def submit(self, audio: Samples, end_sample: int) -> Future[Emotion | None] | None:
        """Have an utterance heard; None where it is too short. The answer is None where the model is not sure enough.

        Args:
            audio: float32, (num_samples,), 16 kHz mono; ends at ``end_sample``.
            end_sample: where the utterance ends.

        Raises:
            TooManyUtterances: as many wait already as may.
        """
        audio = audio[-self._settings.max_samples :]
        if len(audio) < self._settings.min_samples:
            return None
        if self.busy and len(self._unfinished) >= _MAX_UNFINISHED:
            raise TooManyUtterances(f"{len(self._unfinished)} utterances wait for the emotion model already")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="emotion", daemon=True)
            self._thread.start()
        work = _Work(audio, end_sample, Future())
        self._unfinished.append(work.future)
        self._work.put(work)
        return work.future

    def _run(self) -> None:
        """Worker: whatever an utterance does to the model, the next one is heard."""
        while True:
            work = self._work.get()
            if not work.future.set_running_or_notify_cancel():
                continue
            try:
                emotion = self._emotion(work)
            except Exception as error:  # noqa: BLE001 -- it reaches whoever asks for the answer
                work.future.set_exception(error)
            else:
                work.future.set_result(emotion)

    def _emotion(self, work: _Work) -> Emotion | None:
        scores = self._model.scores(work.audio)
        if not all(math.isfinite(score) for score in scores.values()):
            raise ValueError("the emotion model answered with scores that are no numbers")
        label = max(scores, key=scores.__getitem__)
        if scores[label] < self._settings.min_confidence:
            return None
        start_sample = work.end_sample - len(work.audio)
        return Emotion(self._model.source, label, scores[label], scores, start_sample, work.end_sample)
