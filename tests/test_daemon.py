"""Policy of the process when a model keeps failing, shown by running the real daemon around a scripted recogniser."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest
from fakes import CountingRecognizer, LoudnessVad, silence, speech
from harness import check_guarantees, of_type
from test_pipeline import SETTINGS, trace_ids

from voice.audio import AudioBlock
from voice.build import Service
from voice.config import load_settings
from voice.daemon import Daemon, StopRequest
from voice.errors import InputUnreadable
from voice.finalization.finalizer import Finalizer
from voice.output.event_queue import EventQueue
from voice.output.writer import EventWriter
from voice.pipeline import Pipeline

TENTH = 1_600


class Script:
    """An input that gives these samples, then ends, or fails."""

    waiting_sec = 0.0

    def __init__(self, samples, failure: Exception | None = None) -> None:
        self._blocks = [AudioBlock(samples[at : at + TENTH, None], 16_000) for at in range(0, len(samples), TENTH)]
        self._failure = failure
        self.ended = False

    recovers = False

    def read(self, timeout_sec: float) -> AudioBlock | None:
        if self._blocks:
            return self._blocks.pop(0)
        self.ended = True
        if self._failure:
            failure, self._failure = self._failure, None
            raise failure
        return None

    def close(self) -> None:
        self.ended = True


def serve(source: Script, recognizer: CountingRecognizer, expect: type[Exception] | None = None) -> tuple[list[dict], int | None]:
    """Events and exit code of a run; they go through a real pipe."""
    pipeline = Pipeline(SETTINGS, LoudnessVad(), recognizer, Finalizer(), trace_ids())
    read_end, write_end = os.pipe()
    daemon = Daemon(load_settings({}, environment={}), "streaming", EventQueue(EventWriter(write_end, lambda: 0)), StopRequest())
    code = None
    try:
        if expect:
            with pytest.raises(expect):
                daemon._serve(source, Service(pipeline, "scripted", (), None))
        else:
            code = daemon._serve(source, Service(pipeline, "scripted", (), None))
    finally:
        daemon._writer.close(5)
        os.close(write_end)
    with os.fdopen(read_end, encoding="utf-8") as lines:
        events = [json.loads(line) for line in lines]
    check_guarantees(events)
    return events, code


def talk(utterances: int):
    import numpy as np

    return np.concatenate([np.concatenate((silence(1), speech(3), silence(1.5))) for _ in range(utterances)])


def failing_from(first: int) -> Callable[[int], bool]:
    return lambda call: call >= first


def test_a_model_that_fails_now_and_then_stops_nobody() -> None:
    events, code = serve(Script(talk(6)), CountingRecognizer(fail_accept=lambda call: call % 50 == 10))
    assert code == 0
    assert len(of_type(events, "final")) == 6
    assert len(of_type(events, "error_event")) > 5


def test_a_model_that_fails_for_good_ends_the_process_and_the_utterance_keeps_what_was_shown() -> None:
    events, _ = serve(Script(talk(6)), CountingRecognizer(fail_accept=failing_from(60)), expect=RuntimeError)
    partial_ids = {event["trace_id"] for event in of_type(events, "partial")}
    assert partial_ids == {event["trace_id"] for event in of_type(events, "final")}
    assert 4 <= len(of_type(events, "error_event")) <= 6


def test_an_input_that_breaks_gives_the_final_then_leaves_with_4() -> None:
    samples = talk(1)[: 3 * 16_000]
    events, code = serve(Script(samples, InputUnreadable("broken")), CountingRecognizer())
    assert code == 4
    (final,), (error,) = of_type(events, "final"), of_type(events, "error_event")
    assert (final["endpoint"], error["error_code"], error["recoverable"]) == ("end_of_input", "input_unreadable", False)
    assert error["trace_id"] == final["trace_id"]


def test_an_input_that_breaks_while_the_model_fails_for_good_still_gives_the_final() -> None:
    samples = talk(1)[: 3 * 16_000]
    recognizer = CountingRecognizer(fail_finish=lambda _: True)
    events, code = serve(Script(samples, InputUnreadable("broken")), recognizer)
    assert code == 4
    assert len(of_type(events, "final")) == 1
