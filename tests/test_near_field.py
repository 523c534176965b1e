"""The near-field gate: windows and decisions in, decisions out; then in the pipeline, and in the service."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fakes import CountingRecognizer, LoudnessVad, silence
from harness import EXAMPLES, check_guarantees, example, final_texts, of_type, run_service
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pipeline import SETTINGS

from voice.audio import SAMPLE_RATE_HZ, AudioBlock, Samples
from voice.config import load_settings
from voice.endpointing.detector import SpeechDetector
from voice.endpointing.directness import MIN_SAMPLES, NAMES, WEIGHTS, NoiseFloor, band_powers, directness, features
from voice.endpointing.endpointer import (
    NearFieldLimits,
    NearFieldMeasures,
    SpeechEnded,
    SpeechRejected,
    SpeechStarted,
)
from voice.endpointing.near_field import FixedLevel, LearntLevel, NearFieldGate
from voice.endpointing.silero import SileroVad
from voice.errors import ConfigInvalid
from voice.finalization.finalizer import Finalizer
from voice.losses import LossLedger
from voice.pipeline import Pipeline

MS = SAMPLE_RATE_HZ // 1000
WINDOW = 512
ENDPOINTER = replace(SETTINGS.endpointer, max_utterance=5 * SAMPLE_RATE_HZ)
NEAR, FAR = 0.2, 0.05
"""Amplitudes that the scripted directness takes as near and far; -17 and -29 dBFS as square waves are 3 dB louder than sines."""
ANYTHING = NearFieldMeasures(-20.0, -60.0, 1.0)


def by_amplitude(samples: Samples, level: float, noise: np.ndarray) -> float:
    """Loud is direct."""
    return 5.0 if level > 0.01 else -5.0


def tone(seconds: float, amplitude: float = NEAR) -> Samples:
    return np.tile(np.array([amplitude, -amplitude], np.float32), round(seconds * SAMPLE_RATE_HZ) // 2)


class Feed:
    """A detector with a gate, driven window by window."""

    def __init__(self, gate: NearFieldGate) -> None:
        self.gate = gate
        self.detector = SpeechDetector(LoudnessVad(), ENDPOINTER, gate)
        self.now = 0
        self.decisions: list[Any] = []
        self.decided_at: list[int] = []

    def windows(self, count: int, amplitude: float) -> Feed:
        for _ in range(count):
            self.keep(self.detector.accept(self.now, tone(WINDOW / SAMPLE_RATE_HZ, amplitude), np.zeros(0, np.float32)))
            self.now += WINDOW
        return self

    def end(self) -> Feed:
        self.keep(self.detector.end(self.now, "end_of_input"))
        return self

    def keep(self, decisions: Iterable[Any]) -> None:
        for decision in decisions:
            self.decisions.append(decision)
            self.decided_at.append(self.now + WINDOW)

    @property
    def kinds(self) -> list[str]:
        return [type(decision).__name__.removeprefix("Speech") for decision in self.decisions]


def gate(level_dbfs: float = -90.0, directness_of: Callable[..., float] = by_amplitude) -> NearFieldGate:
    return NearFieldGate(FixedLevel(level_dbfs), directness_of)


# --- the gate -----------------------------------------------------------------------------------------------------------


def test_near_speech_passes_after_half_a_second_with_its_true_start() -> None:
    feed = Feed(gate()).windows(10, 0.0).windows(40, NEAR).windows(30, 0.0)
    assert feed.kinds == ["Started", "Ended"]
    started, ended = feed.decisions
    assert (started.start_sample, started.continues) == (10 * WINDOW, False)
    assert feed.decided_at[0] - 10 * WINDOW == 16 * WINDOW  # the first whole window from 0.5 s on
    assert (ended.end_sample, ended.endpoint) == (50 * WINDOW, "silence")
    assert feed.gate.rejected_samples == 0


def test_far_speech_is_rejected_and_counted() -> None:
    feed = Feed(gate()).windows(10, 0.0).windows(40, FAR).windows(30, 0.0)
    (rejected,) = feed.decisions
    assert isinstance(rejected, SpeechRejected)
    assert (rejected.start_sample, rejected.end_sample) == (10 * WINDOW, 50 * WINDOW)
    assert rejected.measures == NearFieldMeasures(level_dbfs=-26.0, noise_dbfs=-120.0, directness=-5.0)
    assert rejected.limits == NearFieldLimits(-90.0, -0.5)  # the best verdict was not the first, whose limit is higher
    assert feed.gate.rejected_samples == feed.detector.rejected_samples == 40 * WINDOW


def test_the_noise_is_that_of_the_windows_without_speech() -> None:
    given_noise: list[float] = []

    def noted(samples: Samples, level: float, noise: np.ndarray) -> float:
        given_noise.append(float(noise[-1]))
        return -5.0

    feed = Feed(gate(directness_of=noted)).windows(20, 0.005).windows(40, NEAR).windows(30, 0.005)
    assert feed.decisions[0].measures.noise_dbfs == -46.0
    assert given_noise == [pytest.approx(0.005**2)] * len(given_noise)


@pytest.mark.parametrize(("amplitude", "kinds"), [(NEAR, ["Started", "Ended"]), (FAR, ["Rejected"])])
def test_short_speech_gets_its_verdict_at_its_end(amplitude: float, kinds: list[str]) -> None:
    feed = Feed(gate()).windows(10, 0.0).windows(5, amplitude).windows(25, 0.0)
    assert feed.kinds == kinds
    assert set(feed.decided_at) == {40 * WINDOW}


def test_speech_with_pauses_gets_its_verdict_after_a_second() -> None:
    feed = Feed(gate())
    for _ in range(6):
        feed.windows(3, NEAR).windows(4, 0.0)
    assert feed.decided_at == [32 * WINDOW]
    assert feed.decisions == [SpeechStarted(0)]


def test_pauses_do_not_count_into_the_level() -> None:
    feed = Feed(gate()).windows(5, FAR).windows(20, 0.0).windows(5, FAR).windows(25, 0.0)
    assert feed.decisions[0].measures.level_dbfs == -26.0
    assert feed.gate.rejected_samples == 10 * WINDOW


@pytest.mark.parametrize(("dbfs", "kinds"), [(-14.0, ["Started"]), (-13.9, [])])
def test_a_number_is_the_level_below_which_speech_is_rejected(dbfs: float, kinds: list[str]) -> None:
    assert Feed(gate(dbfs)).windows(20, NEAR).kinds == kinds  # a square wave of 0.2 is -14.0 dBFS


def test_the_end_of_the_signal_brings_the_verdict() -> None:
    assert Feed(gate()).windows(5, NEAR).end().decisions == [SpeechStarted(0), SpeechEnded(5 * WINDOW, 5 * WINDOW, "end_of_input")]
    feed = Feed(gate()).windows(5, FAR).end()
    assert (feed.kinds, feed.decisions[0].end_sample, feed.gate.rejected_samples) == (["Rejected"], 5 * WINDOW, 5 * WINDOW)
    assert feed.windows(20, NEAR).kinds == ["Rejected", "Started"]
    assert feed.end().kinds == ["Rejected", "Started", "Ended"]


def test_a_click_is_neither_speech_nor_rejected() -> None:
    feed = Feed(gate()).windows(10, 0.0).windows(2, FAR).windows(30, 0.0).end()
    assert (feed.decisions, feed.gate.rejected_samples, feed.gate.held_from) == ([], 0, None)


def test_a_near_voice_over_a_far_one_is_heard_within_the_time_of_a_verdict() -> None:
    feed = Feed(gate()).windows(60, FAR).windows(40, NEAR)
    rejected, started = feed.decisions
    near_at = 60 * WINDOW
    assert isinstance(rejected, SpeechRejected)
    assert (rejected.start_sample, rejected.end_sample) == (0, started.start_sample)
    assert started.start_sample == near_at
    assert feed.decided_at[1] <= near_at + 500 * MS
    assert feed.gate.rejected_samples == started.start_sample
    assert feed.windows(30, 0.0).kinds == ["Rejected", "Started", "Ended"]


def test_an_utterance_that_began_late_is_cut_at_its_own_length() -> None:
    feed = Feed(gate()).windows(120, FAR).windows(170, NEAR)
    started, ended, continued = feed.decisions[1:]
    assert (ended.endpoint, continued) == ("max_duration", SpeechStarted(ended.end_sample, continues=True))
    assert feed.decided_at[2] - started.start_sample == pytest.approx(5 * SAMPLE_RATE_HZ, abs=WINDOW)


def test_speech_that_turns_out_near_without_a_step_in_its_level_is_recognised_from_its_start() -> None:
    answers = itertools.chain([-5.0, -5.0], itertools.repeat(5.0))
    feed = Feed(gate(directness_of=lambda *_: next(answers))).windows(10, 0.0).windows(60, NEAR)
    assert feed.decisions == [SpeechStarted(10 * WINDOW)]
    assert feed.gate.rejected_samples == 0


def constant(value: float) -> Callable[..., float]:
    return lambda *_: value


@pytest.mark.parametrize(("value", "decided_after"), [(0.5, 16), (0.49, 24), (-0.5, 24)], ids=["clear", "less clear", "at the limit"])
def test_what_is_less_clear_is_accepted_at_the_second_verdict(value: float, decided_after: int) -> None:
    feed = Feed(gate(directness_of=constant(value))).windows(40, NEAR)
    assert feed.decisions == [SpeechStarted(0)]
    assert feed.decided_at == [decided_after * WINDOW]


def test_what_is_below_the_limit_is_never_accepted() -> None:
    feed = Feed(gate(directness_of=constant(-0.51))).windows(140, NEAR).windows(30, 0.0)
    assert feed.kinds == ["Rejected"]


@pytest.mark.parametrize(("value", "kinds"), [(-0.5, ["Started", "Ended"]), (-0.51, ["Rejected"])])
@pytest.mark.parametrize("windows", [5, 17, 20])
def test_speech_too_short_for_a_second_verdict_gets_it_at_its_end(windows: int, value: float, kinds: list[str]) -> None:
    feed = Feed(gate(directness_of=constant(value))).windows(10, 0.0).windows(windows, NEAR).windows(30, 0.0)
    assert feed.kinds == kinds
    assert feed.decisions[0].start_sample == 10 * WINDOW
    assert feed.gate.rejected_samples == (0 if kinds[0] == "Started" else windows * WINDOW)


def test_the_last_second_of_speech_is_what_is_judged_again() -> None:
    judged: list[int] = []

    def noted(samples: Samples, *_: Any) -> float:
        judged.append(len(samples))
        return -9.0

    Feed(gate(directness_of=noted)).windows(60, NEAR)
    assert judged == [windows * WINDOW for windows in (16, 24, 32, 32, 32, 32)]


def test_it_reaches_back_three_seconds_at_most() -> None:
    answers = itertools.chain([-5.0] * 16, itertools.repeat(5.0))
    feed = Feed(gate(directness_of=lambda *_: next(answers))).windows(150, NEAR)
    rejected, started = feed.decisions
    assert feed.decided_at[1] - started.start_sample == 3 * SAMPLE_RATE_HZ
    assert rejected.end_sample == started.start_sample


def test_a_cut_of_rejected_speech_is_reported_and_the_rest_stays_rejected() -> None:
    feed = Feed(gate()).windows(400, FAR).windows(30, 0.0)
    assert set(feed.kinds) == {"Rejected"}
    assert len(feed.kinds) > 2
    spans = [(decision.start_sample, decision.end_sample) for decision in feed.decisions]
    assert [start for start, _ in spans[1:]] == [end for _, end in spans[:-1]]
    assert (spans[0][0], spans[-1][1]) == (0, 400 * WINDOW)
    assert feed.gate.rejected_samples == 400 * WINDOW


def test_a_cut_of_near_speech_needs_no_new_verdict() -> None:
    feed = Feed(gate()).windows(160, NEAR).windows(60, FAR)
    assert feed.kinds == ["Started", "Ended", "Started"]
    assert feed.decisions[2].continues


def test_the_next_stretch_after_a_rejected_one_is_judged_anew() -> None:
    feed = Feed(gate()).windows(20, FAR).windows(30, 0.0).windows(20, NEAR)
    assert feed.kinds == ["Rejected", "Started"]
    assert feed.decisions[1] == SpeechStarted(50 * WINDOW)


def test_the_event_has_what_came_nearest_to_the_limits() -> None:
    answers = iter([-5.0, -2.0, -4.0, *itertools.repeat(-6.0, 50)])
    feed = Feed(gate(directness_of=lambda *_: next(answers))).windows(100, NEAR).windows(30, 0.0)
    assert feed.decisions[0].measures.directness == -2.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_directness_that_is_no_number_rejects_nothing(value: float) -> None:
    assert Feed(gate(directness_of=lambda *_: value)).windows(20, NEAR).kinds == ["Started"]


def test_held_audio_is_bounded() -> None:
    feed = Feed(gate()).windows(20, 0.0)
    assert feed.gate.held_from is None
    assert feed.windows(10, FAR).gate.held_from == 20 * WINDOW
    feed.windows(110, FAR)
    assert feed.gate.held_from == feed.now - 3 * SAMPLE_RATE_HZ
    assert sum(len(window.samples) for window in feed.gate._held) <= 1.5 * SAMPLE_RATE_HZ + WINDOW
    assert feed.windows(30, 0.0).gate.held_from is None


@given(st.lists(st.tuples(st.sampled_from([0.0, FAR, NEAR]), st.integers(1, 60)), max_size=20))
@settings(deadline=None)
def test_all_speech_is_either_in_an_utterance_or_rejected_once(runs: list[tuple[float, int]]) -> None:
    plain = SpeechDetector(LoudnessVad(), ENDPOINTER)
    feed, found, now = Feed(gate()), [], 0
    for amplitude, count in runs:
        feed.windows(count, amplitude)
        for _ in range(count):
            found += plain.accept(now, tone(WINDOW / SAMPLE_RATE_HZ, amplitude), np.zeros(0, np.float32))
            now += WINDOW
    feed.end()
    found += plain.end(now, "end_of_input")
    at, open_since = 0, None
    for decision in feed.decisions:
        if isinstance(decision, SpeechStarted):
            assert open_since is None
            assert decision.start_sample >= at
            open_since = at = decision.start_sample
        elif isinstance(decision, SpeechEnded):
            assert open_since is not None
            assert decision.end_sample > open_since
            open_since, at = None, decision.end_sample
        else:
            assert open_since is None
            assert at <= decision.start_sample < decision.end_sample
            at = decision.end_sample
    assert open_since is None
    if not any(amplitude == FAR for amplitude, _ in runs):
        assert feed.decisions == found


# --- what it learns -----------------------------------------------------------------------------------------------------


def of_level(dbfs: float) -> NearFieldMeasures:
    return NearFieldMeasures(dbfs, -60.0, 3.0)


def test_a_number_learns_nothing() -> None:
    reference = FixedLevel(-40.0)
    reference.learn(of_level(-10.0))
    assert reference.limits(-20.0) == reference.limits(-80.0) == NearFieldLimits(-40.0, -0.5)


def test_quieter_speech_than_usual_must_be_more_direct() -> None:
    reference = LearntLevel()
    least = reference.limits(-50.0)
    assert least == NearFieldLimits(-120.0, -0.5)
    reference.learn(of_level(-30.0))
    assert reference.limits(-20.0) == reference.limits(-30.0) == least
    assert [reference.limits(dbfs).directness for dbfs in (-36.0, -38.0, -42.0, -48.0, -60.0)] == [-0.5, 0.5, 2.5, 5.5, 5.5]


def test_the_usual_level_follows_louder_speech_fast_and_quieter_speech_slowly() -> None:
    reference = LearntLevel()
    reference.learn(of_level(-30.0))
    reference.learn(of_level(-20.0))
    assert reference.limits(-33.0).directness == 0.5  # 8 dB below -25
    reference.learn(of_level(-35.0))
    assert reference.limits(-34.0).directness == 0.5  # 8 dB below -26


def test_the_gate_teaches_what_it_accepted_and_nothing_else() -> None:
    taught: list[NearFieldMeasures] = []

    class Pupil(FixedLevel):
        def learn(self, measures: NearFieldMeasures) -> None:
            taught.append(measures)

    Feed(NearFieldGate(Pupil(-90.0), by_amplitude)).windows(20, FAR).windows(30, 0.0).windows(60, NEAR).windows(30, 0.0)
    assert [measures.level_dbfs for measures in taught] == [-14.0]


# --- directness ---------------------------------------------------------------------------------------------------------


def reverberant(samples: Samples, seconds: float = 0.5) -> Samples:
    """As across a room: reflections that die away within so many seconds (60 dB), and hardly any direct sound."""
    times = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    response = np.random.default_rng(0).normal(size=len(times)) * 10 ** (-3 * times / seconds)
    size = len(samples) + len(response)
    far = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)[: len(samples)]
    return (far * np.sqrt(np.square(samples).mean() / np.square(far).mean())).astype(np.float32)


def with_noise(samples: Samples, dbfs: float = -60.0) -> Samples:
    draw = np.random.default_rng(1)
    padded = np.concatenate((silence(1), samples, silence(1)))
    return (padded + draw.normal(0, 10 ** (dbfs / 20), len(padded))).astype(np.float32)


def directness_at_start(samples: Samples) -> float:
    found: list[float] = []

    def noted(*arguments: Any) -> float:
        found.append(directness(*arguments))
        return found[-1]

    detector = SpeechDetector(SileroVad(), ENDPOINTER, NearFieldGate(FixedLevel(-90.0), noted))
    for start in range(0, len(samples) - WINDOW, WINDOW):
        detector.accept(start, samples[start : start + WINDOW], np.zeros(0, np.float32))
    return found[0]


@pytest.mark.parametrize("name", ["air_conditioner", "temperature", "two_utterances"])
def test_reflections_make_speech_less_direct(name: str) -> None:
    samples, _ = example(name)
    near, far = directness_at_start(with_noise(samples)), directness_at_start(with_noise(reverberant(samples)))
    assert near > 0.5
    assert far < -1


def test_there_is_a_weight_for_each_feature_and_a_feature_for_each_name() -> None:
    draw = np.random.default_rng(0)
    found = features(draw.normal(0, 0.1, 8_000).astype(np.float32), 0.01, np.full(6, 1e-6))
    assert found.shape == WEIGHTS.shape == (len(NAMES),)
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize(("floor", "expected"), [(0.0, 30.0), (1e-4, 20.0), (1.0, 0.0)])
def test_speech_over_noise_is_bounded(floor: float, expected: float) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 8_000).astype(np.float32)
    assert features(samples, 0.01, np.full(6, floor))[NAMES.index("snr")] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("num_samples", [MIN_SAMPLES, 8_000, 16_385])
@pytest.mark.parametrize("amplitude", [0.0, 1e-30, 1e-6, 1.0, 8.0, 3e38])
@pytest.mark.parametrize("kind", ["constant", "alternating", "noise", "impulse"])
@pytest.mark.parametrize("floor", [0.0, 1e-6, 64.0])
def test_any_samples_give_a_finite_directness(num_samples: int, amplitude: float, kind: str, floor: float) -> None:
    samples = {
        "constant": lambda: np.ones(num_samples),
        "alternating": lambda: np.resize([1.0, -1.0], num_samples),
        "noise": lambda: np.random.default_rng(0).uniform(-1, 1, num_samples),
        "impulse": lambda: np.eye(1, num_samples, num_samples // 2)[0],
    }[kind]() * amplitude
    found = directness(samples.astype(np.float32), float(np.square(samples).mean()), np.full(6, floor))
    assert np.isfinite(found)


def test_the_directness_does_not_depend_on_the_level_of_a_recording() -> None:
    samples = with_noise(example("temperature")[0])[SAMPLE_RATE_HZ + 8_000 : 3 * SAMPLE_RATE_HZ]
    floor = band_powers(with_noise(np.zeros(0, np.float32)))
    level = float(np.square(samples).mean())
    louder = directness(4 * samples, 16 * level, 16 * floor)
    assert louder == pytest.approx(directness(samples, level, floor), abs=0.02)


def test_the_noise_floor_follows_what_is_quieter_fast_and_what_is_louder_slowly() -> None:
    floor = NoiseFloor()
    assert floor.rms == 0.0
    assert floor.powers.shape == (6,)
    loud, quiet = tone(WINDOW / SAMPLE_RATE_HZ, 0.1), tone(WINDOW / SAMPLE_RATE_HZ, 0.01)
    floor.accept(loud)
    assert floor.rms == pytest.approx(0.1)
    for _ in range(10):
        floor.accept(quiet)
    assert 0.01 < floor.rms < 0.03
    before = floor.rms
    floor.accept(loud)
    assert before < floor.rms < 0.04


# --- in the pipeline ----------------------------------------------------------------------------------------------------


def pipeline(gate_: NearFieldGate | None, recognizer: Any = None, vad: Any = None, *, speech_events: bool = True) -> Pipeline:
    numbers = itertools.count(1)
    return Pipeline(
        replace(SETTINGS, endpointer=ENDPOINTER, speech_events=speech_events),
        vad or LoudnessVad(),
        recognizer or CountingRecognizer(),
        Finalizer(),
        ledger=LossLedger(),
        new_trace_id=lambda: f"{next(numbers):016x}",
        near_field=gate_,
    )


def block(samples: Samples, losses_before: int = 0) -> AudioBlock:
    return AudioBlock(samples[:, np.newaxis], SAMPLE_RATE_HZ, losses_before=losses_before)


def run(made: Pipeline, samples: Samples, sizes: Iterable[int] | None = None) -> list[dict[str, Any]]:
    events, at, each = [], 0, iter(sizes or itertools.repeat(1_600))
    while at < len(samples):
        size = next(each)
        events += made.process(block(samples[at : at + size]))
        at += size
    dumped = [event.model_dump() for event in [*events, *made.finish("end_of_input")]]
    check_guarantees(dumped)
    return dumped


def without_ids(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in event.items() if key != "trace_id"} for event in events]


def test_accepted_speech_is_decoded_whole_and_rejected_speech_not_at_all() -> None:
    recognizer = CountingRecognizer()
    made = pipeline(gate(), recognizer)
    audio = (silence(1.024), tone(2.048, FAR), silence(1.024), tone(2.048), silence(1.024))
    events = run(made, np.concatenate(audio))
    (stream,) = recognizer.streams
    assert stream.first_sample == (1_024 + 2_048 + 1_024 - 300) * MS
    (final,) = of_type(events, "final")
    assert (final["start_ms"], final["end_ms"]) == (4_096, 6_144)
    assert [event["type"] for event in events[:2]] == ["voice.speech.rejected", "voice.speech.started"]
    assert (events[0]["start_ms"], events[0]["end_ms"]) == (1_024, 3_072)
    totals = made.totals
    assert (totals.rejected_ms, totals.utterances, totals.empty_utterances, totals.errors) == (2_048, 1, 0, 0)


def test_near_speech_gives_the_same_utterances_as_without_a_gate() -> None:
    audio = np.concatenate((silence(1), tone(0.13), silence(1), tone(0.3), silence(1), tone(7), silence(1), tone(0.2)))
    plain, gated = CountingRecognizer(), CountingRecognizer()
    expected, events = run(pipeline(None, plain), audio), run(pipeline(gate(), gated), audio)
    assert without_ids(of_type(events, "final")) == without_ids(of_type(expected, "final"))
    assert [(each.first_sample, len(each.audio)) for each in gated.streams] == [
        (each.first_sample, len(each.audio)) for each in plain.streams
    ]


def test_the_audio_of_a_near_voice_over_a_far_one_is_there_and_memory_is_bounded() -> None:
    recognizer = CountingRecognizer()
    made = pipeline(gate(), recognizer)
    events, longest = [], 0
    for samples in (silence(1), *itertools.repeat(tone(0.1, FAR), 200)):
        events += made.process(block(samples))
        longest = max(longest, made._history.num_samples)
    assert longest < 5 * SAMPLE_RATE_HZ
    assert recognizer.streams == []
    events += [*made.process(block(tone(2))), *made.finish("end_of_input")]
    (stream,) = recognizer.streams
    (started,) = of_type([event.model_dump() for event in events], "speech.started")
    assert 20_400 <= started["start_ms"] <= 21_000
    assert stream.first_sample == pytest.approx((started["start_ms"] - 300) * MS, abs=WINDOW)
    assert stream.first_sample + len(stream.audio) == 23 * SAMPLE_RATE_HZ


class LongWindows(LoudnessVad):
    """As fsmn-vad has them."""

    window_samples = 960


def test_windows_of_another_length_give_the_same_speech() -> None:
    made = pipeline(gate(), vad=LongWindows())
    events = run(made, np.concatenate((silence(1.02), tone(2.04, FAR), silence(1.02), tone(2.04), silence(1.02))))
    (rejected,), (final,) = of_type(events, "rejected"), of_type(events, "final")
    assert (rejected["start_ms"], rejected["end_ms"]) == (1_020, 3_060)
    assert (final["start_ms"], final["end_ms"]) == (4_080, 6_120)
    assert made.totals.rejected_ms == 2_040


def test_without_speech_events_rejected_speech_is_counted_and_not_reported() -> None:
    made = pipeline(gate(), speech_events=False)
    assert run(made, np.concatenate((silence(1), tone(1.024, FAR), silence(1)))) == []
    assert made.totals.rejected_ms == pytest.approx(1_024, abs=32)


def test_a_loss_while_speech_waits_for_its_verdict_is_in_its_final() -> None:
    made = pipeline(gate())
    events = made.process(block(np.concatenate((silence(1), tone(0.2)))))
    made._ledger.report(0.1, "planted")
    events += made.process(block(np.concatenate((tone(1), silence(1), tone(1))), made._ledger.seal()))
    events += made.finish("end_of_input")
    finals = of_type([event.model_dump() for event in events], "final")
    assert [final["lost_ms"] for final in finals] == [100, 0]
    assert made.totals.lost_ms == 100


def test_a_loss_in_rejected_speech_is_in_no_final() -> None:
    made = pipeline(gate())
    events = made.process(block(np.concatenate((silence(1), tone(0.2, FAR)))))
    made._ledger.report(0.1, "planted")
    events += made.process(block(np.concatenate((tone(1, FAR), silence(1), tone(1))), made._ledger.seal()))
    events += made.finish("end_of_input")
    (final,) = of_type([event.model_dump() for event in events], "final")
    assert (final["lost_ms"], made.totals.lost_ms) == (0, 100)


@pytest.mark.parametrize("name", ["auto", -45.0])
def test_events_do_not_depend_on_block_sizes(name: str | float) -> None:
    """The master property, with the real voice activity model and the real measures on near and far speech."""
    near, _ = example("temperature")
    far, _ = example("air_conditioner")
    samples = with_noise(np.concatenate((near, silence(1), 0.3 * reverberant(far), silence(1), near)))
    vad = SileroVad()

    def events(sizes: Iterable[int] | None = None) -> list[dict[str, Any]]:
        vad.reset()
        reference = LearntLevel() if name == "auto" else FixedLevel(float(name))
        return run(pipeline(NearFieldGate(reference), vad=vad), samples, sizes)

    expected = events()
    assert len(of_type(expected, "final")) == 2
    assert len(of_type(expected, "rejected")) == 1

    @settings(max_examples=6, deadline=None, derandomize=True)
    @given(st.integers(1, 30_000), st.integers(0, 2**32 - 1))
    def same(largest: int, seed: int) -> None:
        draw = random.Random(seed)
        assert events(draw.randint(max(1, largest // 50), largest) for _ in itertools.count()) == expected

    same()


# --- settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "expected"),
    [("off", "off"), (False, "off"), ("auto", "auto"), ("-38", -38.0), (-38, -38.0), (-38.5, -38.5), ("-90", -90.0), (-10, -10.0)],
)
def test_the_setting_takes_off_auto_or_a_level(given_: object, expected: object) -> None:
    assert load_settings({"vad": {"near_field": given_}}).vad.near_field == expected


@pytest.mark.parametrize("wrong", [True, "on", "", "nan", float("nan"), "-inf", -90.1, -9, 0, 0.01, 3e38, None, [], "-3" * 999])
def test_anything_else_is_one_clear_problem(wrong: object) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        load_settings({"vad": {"near_field": wrong}})
    (problem,) = caught.value.problems
    assert problem.startswith("vad.near_field: ")
    assert problem.endswith("is not allowed; allowed: -90..-10 or off, auto")


def test_off_needs_no_quotes_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("vad: {near_field: off}\n", encoding="utf-8")
    assert load_settings({}, tmp_path / "settings.yaml", {}).vad.near_field == "off"
    assert load_settings({}, None, {"VOICE_ASR__VAD__NEAR_FIELD": "-35"}).vad.near_field == -35.0
    assert load_settings({}, None, {}).vad.near_field == "off"


# --- the service --------------------------------------------------------------------------------------------------------

TELLS = """import atexit
names = ("voice.endpointing.near_field", "voice.endpointing.directness")
atexit.register(lambda: sys.stderr.write(f"GATE {[name for name in names if name in sys.modules]}\\n"))"""


def test_off_means_off() -> None:
    result = run_service("streaming", "--input", str(EXAMPLES / "temperature.wav"), "--status-events", planted=TELLS)
    assert result.returncode == 0
    assert "GATE []" in result.stderr
    assert of_type(result.events, "rejected") == []


@pytest.mark.parametrize("mode", ["streaming", "sliced"])
def test_the_service_rejects_far_speech_and_recognises_near_speech(tmp_path: Path, mode: str) -> None:
    near, (text,) = example("temperature")
    far, _ = example("air_conditioner")
    samples = with_noise(np.concatenate((0.5 * reverberant(far), silence(1), near, silence(1), 0.5 * reverberant(far))))
    soundfile.write(tmp_path / "room.wav", samples, SAMPLE_RATE_HZ)
    result = run_service(
        mode, "--input", str(tmp_path / "room.wav"), "--near-field", "auto", "--status-events", "--no-emotion", planted=TELLS
    )
    assert result.returncode == 0
    assert "voice.endpointing.near_field" in result.stderr
    assert final_texts(result.events) == [text]
    rejected = of_type(result.events, "rejected")
    assert len(rejected) == 2
    assert all(event["directness"] < event["min_directness"] for event in rejected)
    assert result.events[-1]["totals"]["rejected_ms"] > 1_000


@pytest.mark.parametrize("wrong", ["on", "-5", "nan", "1" * 5_000])
def test_a_wrong_level_is_exit_2_and_one_line(wrong: str) -> None:
    result = run_service("streaming", "--input", str(EXAMPLES / "temperature.wav"), f"--near-field={wrong}")
    assert (result.returncode, result.events) == (2, [])
    (line,) = [line for line in result.stderr.splitlines() if "near_field" in line]
    assert "allowed: -90..-10 or off, auto" in line


def test_a_level_may_follow_its_flag_as_a_word_of_its_own() -> None:
    result = run_service("streaming", "--input", str(EXAMPLES / "temperature.wav"), "--near-field", "-10", "--status-events")
    assert result.returncode == 0
    assert final_texts(result.events) == []
    (rejected,) = of_type(result.events, "rejected")
    assert rejected["level_dbfs"] < rejected["min_level_dbfs"] == -10.0
