"""When a final is prepared before its endpoint: only where there is time for what may turn out to be in vain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fakes import CountingRecognizer, silence, speech
from harness import of_type
from test_pipeline import SETTINGS, block, build, dumped

from voice.build import _pipeline_settings
from voice.config import load_settings

PAUSES = np.concatenate([*[np.concatenate((speech(1), silence(0.5))) for _ in range(5)], silence(1)])
"""One utterance with five pauses; only after the last one speech does not resume."""


@pytest.mark.parametrize(("load_sec", "flushes"), [(0.0, 5), (20.0, 1)])
def test_while_audio_waits_a_final_is_made_at_its_endpoint_alone(load_sec: float, flushes: int) -> None:
    recognizer = CountingRecognizer()
    pipeline = build(recognizer, settings_=replace(SETTINGS, provisional_max_load_sec=1.0))
    events = []
    for start in range(0, len(PAUSES), 1_600):
        events += pipeline.process(block(PAUSES[start : start + 1_600]), load_sec)
    (final,) = of_type(dumped(events), "final")
    assert final["endpoint"] == "silence"
    assert recognizer.finishes == flushes


@pytest.mark.parametrize(
    ("audio", "speculates"),
    [
        ({"input": "mic"}, True),
        ({"input": "-"}, True),
        ({"input": "speech.wav", "realtime": True}, True),
        ({"input": "speech.wav"}, False),
    ],
)
def test_a_file_that_is_read_as_fast_as_possible_prepares_nothing(audio: dict[str, object], speculates: bool) -> None:
    """Nobody waits for a final in its pauses."""
    assert _pipeline_settings(load_settings({"audio": audio}, environment={})).speculate is speculates
    assert not _pipeline_settings(load_settings({"audio": audio, "final": {"speculate": False}}, environment={})).speculate
