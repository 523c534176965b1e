"""Finalization: models that label a final beside its text, and the one thread that runs them.

A side model (emotion today) takes the audio of an utterance and gives a label or None. It may cost as much as recognition, so it
does not run on the pipeline's thread, where it would delay the next words. ``SideThread`` runs all side models of a pipeline in the
order in which work was submitted. It bounds the work that waits and refuses work above that bound. Its thread starts with the
first work and is a daemon thread: a process that ends while it is ``busy`` must not wait for it. Where the system has priorities of
threads (Linux), it has a lower one than recognition.

``submit`` and ``busy`` belong to the pipeline's thread. ``submit`` raises ``TooManyUtterances``; a failure of a model is the
exception of its future.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from voice.audio import Samples
from voice.errors import ErrorCode
from voice.transcript import Emotion, Transcript

_MAX_UNFINISHED = 4
"""Utterances for each model: the one in work, and a few that wait because speech came faster than the model is."""

_NICENESS = 10
"""Above the process's own, on Linux's scale from -20 to 19: where recognition wants the same processor, it gets ten times as much of it."""

Label = Emotion
"""What a side model says about an utterance; a union as soon as there is a second kind."""


class SideModel(Protocol):
    """Labels utterances. All calls of ``label`` come from one thread, one after the other."""

    @property
    def name(self) -> str:
        """One word for messages: ``emotion``."""

    @property
    def failure(self) -> ErrorCode:
        """The code of an error event that says that a label could not be made."""

    def accepts(self, num_samples: int) -> bool:
        """Whether an utterance of this length is long enough for a label."""

    def label(self, audio: Samples, end_sample: int) -> Label | None:
        """The label of an utterance; None where the model is not sure enough.

        Args:
            audio: float32, (num_samples,), [-1, 1], 16 kHz mono; accepted by ``accepts``; not kept after return.
            end_sample: sample index where ``audio`` ends.
        """

    def attach(self, transcript: Transcript, label: Label) -> Transcript:
        """The transcript with the field of this model filled."""


class TooManyUtterances(Exception):
    """A side model is slower than the speech."""


@dataclass(frozen=True, slots=True)
class _Work:
    model: SideModel
    audio: Samples
    end_sample: int
    future: Future[Label | None]


class SideThread:
    """Runs side models on one thread, in the order of their work."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_Work] = queue.SimpleQueue()
        self._unfinished: list[_Work] = []
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether a model is at work, or work waits."""
        self._unfinished = [work for work in self._unfinished if not work.future.done()]
        return bool(self._unfinished)

    def submit(self, model: SideModel, audio: Samples, end_sample: int) -> Future[Label | None]:
        """Have an utterance labelled; ``cancel`` of the future takes back work that has not started.

        Args:
            model: what labels it.
            audio: as for ``SideModel.label``.
            end_sample: as for ``SideModel.label``.

        Raises:
            TooManyUtterances: the model has as much unfinished work as it may have.
        """
        unfinished = sum(work.model is model for work in self._unfinished) if self.busy else 0
        if unfinished >= _MAX_UNFINISHED:
            raise TooManyUtterances(f"{unfinished} utterances wait for the {model.name} model already")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="side models", daemon=True)
            self._thread.start()
        work = _Work(model, audio, end_sample, Future())
        self._unfinished.append(work)
        self._queue.put(work)
        return work.future

    def _run(self) -> None:
        """The thread: a failure ends one piece of work and nothing else."""
        _lower_priority()
        while True:
            work = self._queue.get()
            if not work.future.set_running_or_notify_cancel():
                continue
            try:
                label = work.model.label(work.audio, work.end_sample)
            except Exception as error:  # noqa: BLE001 -- the finalizer, which asks for the answer, reports it
                work.future.set_exception(error)
            else:
                work.future.set_result(label)


def _lower_priority() -> None:
    """Give way to recognition. Threads that a library starts for this one inherit it; those of a pool that it has already do not."""
    if sys.platform == "linux":  # elsewhere a priority is that of a process, and a thread's number may be that of another process
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)
