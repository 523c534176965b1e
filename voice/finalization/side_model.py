"""Finalization: models that label a final beside its text, and the one thread that runs them.

A side model (emotion, speaker) takes the audio of an utterance and gives a label or None. It may cost as much as recognition, so it
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
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from voice.audio import Samples
from voice.errors import ControlInvalid, ErrorCode
from voice.transcript import Emotion, Speaker, Transcript

_MAX_UNFINISHED = 4
"""Utterances for each model: the one in work, and a few that wait because speech came faster than the model is."""

_NICENESS = 10
"""Above the process's own, on Linux's scale from -20 to 19: where recognition wants the same processor, it gets ten times as much of it."""

Label = Emotion | Speaker
"""What a side model says about an utterance."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class VoicePrint:
    """The embedding of an utterance's voice. It is personal: no text form, so that it cannot end up in a log."""

    values: NDArray[np.float32]
    """(size,)"""


Finding = Emotion | VoicePrint
"""What a side model makes of an utterance by itself; ``settle`` turns it into a label."""


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

    def label(self, audio: Samples, end_sample: int) -> Finding | None:
        """What the model makes of an utterance; None where it is not sure enough.

        Args:
            audio: float32, (num_samples,), [-1, 1], 16 kHz mono; accepted by ``accepts``; not kept after return.
            end_sample: sample index where ``audio`` ends.
        """

    def settle(self, finding: Any) -> Label | None:
        """The label, on the pipeline's thread, in the order of the finals: here it may depend on the finals before. None as for ``label``.

        Args:
            finding: of ``label``, whose utterance has a final: a final that is cancelled is never settled.
        """

    def attach(self, transcript: Transcript, label: Any) -> Transcript:
        """The transcript with the field of this model filled, by a label of ``settle``."""


class SpeakerNames(Protocol):
    """What the loop has to do with speakers; all calls on its thread."""

    def name(self, label: str, name: str | None) -> ControlInvalid | None:
        """Give a speaker a name, or take it away; later finals bear it. What is wrong with it, where it cannot be given."""

    def drain(self, timeout_sec: float) -> None:
        """Save what has to be; at the end (``timeout_sec`` above 0) all that is new."""

    def take_failures(self) -> list[str]:
        """Why speakers are not saved, since the last call."""


class TooManyUtterances(Exception):
    """A side model is slower than the speech."""


@dataclass(frozen=True, slots=True)
class _Work:
    model: SideModel
    audio: Samples
    end_sample: int
    future: Future[Finding | None]


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

    def submit(self, model: SideModel, audio: Samples, end_sample: int) -> Future[Finding | None]:
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
