"""Finalization: an utterance between its last token and its final.

``Draft`` -> ``PreparedFinal`` -> ``CompletedFinal``. Every part is optional and may fail without costing the final. A final is
prepared as soon as the speaker pauses; when speech resumes it is cancelled. ``prepare`` makes the text at once, on the caller's
thread, and submits the audio to the side models, which have a thread of their own (``side_model.py``). ``complete`` adds the labels
that are ready in time; ``take_late`` gives the others when they are ready, as ``LateLabel``.

State: the labels whose finals did not wait for them. Labels are settled in the order of their finals (``SideModel.settle``), however late
they are: the one thread of the side models is done with an earlier utterance before a later one.
Worker thread. Raises nothing but bugs: the failure of a part is a value.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from voice.audio import Samples
from voice.errors import ErrorCode, describe, log_fields
from voice.finalization.side_model import Finding, Label, SideModel, SideThread
from voice.transcript import Token, Transcript, join_tokens, mean_confidence

log = structlog.get_logger()

Failure = tuple[ErrorCode, str]
"""Code and message of a part that failed."""


class TextStep(Protocol):
    """One step from recognised text to shown text."""

    def __call__(self, text: str, *, ended: bool) -> str:
        """The changed text; ``ended`` is False where the audio was cut before the speaker had finished."""


class SecondPass(Protocol):
    """Decodes an utterance again, with all of its audio at once."""

    def tokens(self, samples: Samples) -> list[Token]:
        """Its tokens."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A recognised utterance."""

    transcript: Transcript
    audio: Samples
    """float32, 16 kHz mono: the speech from ``start_sample`` to ``end_sample``."""
    decoded_audio: Samples
    """float32, 16 kHz mono: the audio that the recogniser decoded, with pre-roll and trailing silence."""


@dataclass(frozen=True, slots=True)
class PendingLabel:
    """A label that a side model is making."""

    trace_id: str
    model: SideModel
    future: Future[Finding | None]


@dataclass(frozen=True, slots=True)
class Submitted:
    """An utterance whose audio the side models have."""

    failures: tuple[Failure, ...] = ()
    """Of each side model that did not take it."""
    labels: tuple[PendingLabel, ...] = ()
    """One for each that did."""


@dataclass(frozen=True, slots=True)
class PreparedFinal:
    """A final with its text; its labels may still be in work."""

    transcript: Transcript
    failures: tuple[Failure, ...] = ()
    """Of each part that failed."""
    labels: tuple[PendingLabel, ...] = ()
    """One for each side model that took the utterance."""


@dataclass(frozen=True, slots=True)
class CompletedFinal:
    """A final as it is sent."""

    transcript: Transcript
    failures: tuple[Failure, ...] = ()
    """Of each part that failed."""


@dataclass(frozen=True, slots=True)
class LateLabel:
    """The outcome of a label that its final did not wait for."""

    trace_id: str
    label: Label | None
    """None where the model was not sure enough, or failed."""
    failure: Failure | None = None


class Finalizer:
    """Makes finals of drafts."""

    def __init__(
        self,
        text_steps: Sequence[tuple[ErrorCode, TextStep]] = (),
        side_models: Sequence[SideModel] = (),
        second_pass: SecondPass | None = None,
        *,
        max_wait_sec: float | None = None,
        side_thread: SideThread | None = None,
        wants_labels: Callable[[Transcript], bool] | None = None,
        with_speaker: bool = False,
    ) -> None:
        """Take the parts.

        Args:
            text_steps: in their order, each with the code of its failure; where the second pass wins, they change its text.
            side_models: what labels the finals.
            second_pass: decodes again.
            max_wait_sec: how long a final waits for its labels; None: until they are ready.
            side_thread: runs the side models. Pipelines that share models share it; None: a thread for this finalizer alone.
            wants_labels: whether the side models are to hear an utterance; None: each.
            with_speaker: whether the settings want finals to name their speaker.
        """
        self.with_speaker = with_speaker
        self._text_steps = text_steps
        self._side_models = side_models
        self._second_pass = second_pass
        self._max_wait_sec = max_wait_sec
        self._side_thread = side_thread or SideThread()
        self._wants_labels = wants_labels
        self._late: list[PendingLabel] = []
        self._outcomes: list[LateLabel] = []

    @property
    def busy(self) -> bool:
        """Whether a side model is still at work."""
        return self._side_thread.busy

    def submit_early(self, draft: Draft) -> Submitted | None:
        """Submit the audio before the text is there; None where the text decides whether the side models are to hear it."""
        return self._submit(draft) if self._wants_labels is None else None

    def _submit(self, draft: Draft) -> Submitted:
        transcript = draft.transcript
        failures: list[Failure] = []
        labels: list[PendingLabel] = []
        for model in self._side_models if self._wants_labels is None or self._wants_labels(transcript) else ():
            with self._guarded(model.failure, transcript.trace_id, failures):
                if model.accepts(len(draft.audio)):
                    future = self._side_thread.submit(model, draft.audio, transcript.end_sample)
                    labels.append(PendingLabel(transcript.trace_id, model, future))
        return Submitted(tuple(failures), tuple(labels))

    def prepare(self, draft: Draft, submitted: Submitted | None = None) -> PreparedFinal:
        """Make the text, and submit the audio unless that was done. Parts that fail are listed, not raised."""
        transcript = draft.transcript
        submitted = submitted or self._submit(draft)
        failures = list(submitted.failures)
        with self._guarded("second_pass_failed", transcript.trace_id, failures):
            transcript = self._with_second_pass(transcript, draft.decoded_audio)
        for failure, step in self._text_steps:
            with self._guarded(failure, transcript.trace_id, failures):
                transcript = replace(transcript, text=step(transcript.text, ended=transcript.ended_by_speaker))
        return PreparedFinal(transcript, tuple(failures), submitted.labels)

    def cancel(self, prepared: PreparedFinal | Submitted) -> None:
        """Speech resumed, or nothing was recognised, so this final will not be sent: labels that are not in work yet are not made."""
        for pending in prepared.labels:
            pending.future.cancel()

    def complete(self, prepared: PreparedFinal) -> CompletedFinal:
        """The final with the labels that are ready within ``max_wait_sec``; ``take_late`` gives the others later."""
        transcript, failures = prepared.transcript, list(prepared.failures)
        wait([pending.future for pending in prepared.labels], self._max_wait_sec)
        ready = [pending for pending in prepared.labels if pending.future.done()]
        self._settle_late()  # of earlier finals
        for pending in prepared.labels:
            if pending not in ready:
                self._late.append(pending)
                continue
            outcome = _outcome(pending)
            if outcome.label is not None:
                transcript = pending.model.attach(transcript, outcome.label)
            if outcome.failure is not None:
                failures.append(outcome.failure)
        return CompletedFinal(transcript, tuple(failures))

    def take_late(self, wait_sec: float = 0.0) -> list[LateLabel]:
        """The late labels that are ready, in the order of their finals, after waiting at most ``wait_sec`` for all of them."""
        wait([pending.future for pending in self._late], wait_sec)
        self._settle_late()
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _settle_late(self) -> None:
        ready = [pending for pending in self._late if pending.future.done()]
        self._late = [pending for pending in self._late if pending not in ready]
        self._outcomes += [_outcome(pending) for pending in ready]

    def give_up_late(self) -> list[LateLabel]:
        """The late labels that are still not ready, as failures, because the service ends."""
        given_up, self._late = self._late, []
        for pending in given_up:
            pending.future.cancel()
        reason = "TimeoutError: it was not ready when the service ended"
        return [LateLabel(pending.trace_id, None, (pending.model.failure, reason)) for pending in given_up]

    @staticmethod
    @contextlib.contextmanager
    def _guarded(failure: ErrorCode, trace_id: str, failures: list[Failure]) -> Iterator[None]:
        """An optional part may fail in any way without costing the final."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- whatever a part raises, the final goes without it
            log.warning(failure, trace_id=trace_id, **log_fields(error))
            failures.append((failure, describe(error)))

    def _with_second_pass(self, transcript: Transcript, decoded_audio: Samples) -> Transcript:
        """The transcript with the second pass's text, where that is more confident."""
        if self._second_pass is None:
            return transcript
        tokens = tuple(self._second_pass.tokens(decoded_audio))
        if transcript.confidence is None or mean_confidence(tokens) <= transcript.confidence:
            return transcript
        return replace(transcript, second_tokens=tokens, text=join_tokens(token.text for token in tokens))


def _outcome(pending: PendingLabel) -> LateLabel:
    """The outcome of a label whose future is done, settled."""
    try:
        finding = pending.future.result()
        return LateLabel(pending.trace_id, None if finding is None else pending.model.settle(finding))
    except Exception as caught:  # noqa: BLE001 -- whatever a model raised, the final goes without its label
        error = caught
    log.warning(pending.model.failure, trace_id=pending.trace_id, **log_fields(error))
    return LateLabel(pending.trace_id, None, (pending.model.failure, describe(error)))
