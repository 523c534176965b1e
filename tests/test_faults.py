"""The service broken on a timetable, read from outside: the guarantees hold, whatever happens when.

``make test`` stops it at every 500 ms of an utterance, ``make faults`` at every 100 ms (``FAULTS_STEP_MS``).
"""

from __future__ import annotations

import os
import signal
import time

import pytest
from harness import ENTRIES, EXAMPLES, example, final_texts, of_type, run_service, start_service

pytestmark = pytest.mark.slow

STEP_MS = int(os.environ.get("FAULTS_STEP_MS", "500"))
TEXT = example("temperature")[1][0]


@pytest.mark.parametrize("mode", ENTRIES)
@pytest.mark.parametrize("at_ms", range(100, 3_700, STEP_MS))
def test_a_stop_at_any_moment_gives_what_was_said_within_3_seconds(mode: str, at_ms: int) -> None:
    service = start_service(mode, "--input", str(EXAMPLES / "temperature.wav"), "--realtime", "--status-events")
    service.wait_for(lambda event: event.get("state") == "listening")
    time.sleep(at_ms / 1000)
    sent = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    events, code = service.finish()
    assert time.monotonic() - sent < 3
    assert code == 0
    finals = of_type(events, "final")
    assert len(finals) <= 1
    if at_ms > 1_000:  # speech is from 544 to 2560 ms; the first tokens are sure by then
        assert finals
        assert finals[0]["raw_text"][:2] == TEXT[:2]
    if at_ms > 3_000:
        assert finals[0]["raw_text"] == TEXT


PLANT = """
from {module} import {owner}
real, calls = {owner}.{method}, [0]
def failing(self, *arguments, **options):
    calls[0] += 1
    if calls[0] in {when}: raise RuntimeError("planted")
    return real(self, *arguments, **options)
{owner}.{method} = failing
"""
STAGES = {
    "resampling": ("voice.capture.resample", "Resampler", "accept"),
    "voice activity": ("voice.endpointing.silero", "SileroVad", "probability"),
    "endpointing": ("voice.endpointing.endpointer", "Endpointer", "step"),
    "encoder": ("voice.recognition.paraformer", "Paraformer", "encode"),
    "decoder": ("voice.recognition.paraformer", "Paraformer", "decode"),
    "search": ("voice.recognition.search", "TokenSearch", "advance"),
    "finalizer": ("voice.finalization.finalizer", "Finalizer", "begin"),
    "completion": ("voice.finalization.finalizer", "Finalizer", "complete"),
}


@pytest.mark.parametrize("mode", ENTRIES)
@pytest.mark.parametrize("stage", STAGES)
def test_an_exception_in_any_stage_is_said_and_survived(stage: str, mode: str) -> None:
    """It strikes in the middle of the first utterance, or where its first final is made; the second one is whole again."""
    module, owner, method = STAGES[stage]
    when = {"resampling": "(20,)", "voice activity": "(60,)", "endpointing": "(60,)", "search": "(9,)"}.get(stage, "(6,)")
    if method in ("begin", "complete"):
        when = "(1,)"
    result = run_service(
        mode,
        *("--input", str(EXAMPLES / "two_utterances.wav"), "--status-events"),
        planted=PLANT.format(module=module, owner=owner, method=method, when=when),
        VOICE_ASR__FINAL__SPECULATE="false",
    )
    assert result.returncode == 0
    errors = of_type(result.events, "error_event")
    assert errors
    assert {error["recoverable"] for error in errors} == {True}
    assert all("planted" in error["message"] for error in errors)
    finals = of_type(result.events, "final")
    assert finals[-1]["raw_text"] == example("two_utterances")[1][1]
    assert len(finals) in (2, 3)
    totals = of_type(result.events, "status_event")[-1]["totals"]
    assert totals["utterances"] == len(finals)
    assert totals["errors"] == len(errors)


@pytest.mark.parametrize("mode", ENTRIES)
def test_inference_that_fails_for_good_ends_with_70_and_the_words_that_were_shown(mode: str) -> None:
    planted = PLANT.format(module="voice.recognition.paraformer", owner="Paraformer", method="encode", when="range(9, 10**9)")
    result = run_service(mode, "--input", str(EXAMPLES / "two_utterances.wav"), planted=planted, VOICE_ASR__MODEL__MAX_FAILURES="3")
    assert result.returncode == 70
    errors = of_type(result.events, "error_event")
    assert [error["recoverable"] for error in errors] == [True] * (len(errors) - 1) + [False]
    shown = {event["trace_id"] for event in of_type(result.events, "partial")}
    assert shown == {event["trace_id"] for event in of_type(result.events, "final")}
    assert all(final_texts(result.events))
