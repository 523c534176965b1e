"""The whole way, synchronous: blocks in, events out. With the real models where words matter, with scripted ones where faults do."""

from __future__ import annotations

import functools
import itertools
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import structlog
from conftest import TRAINED
from fakes import CountingRecognizer, LoudnessVad, silence, speech
from harness import check_guarantees, example, example_names, of_type
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voice.audio import SAMPLE_RATE_HZ, AudioBlock, Samples
from voice.endpointing.endpointer import EndpointerSettings, VadFailed
from voice.endpointing.silero import SileroVad
from voice.errors import InputUnreadable, describe
from voice.finalization.emotion import EMOTION_NAMES, EmotionLabeller, EmotionSettings
from voice.finalization.finalizer import Draft, Finalizer, LateLabel, PreparedFinal, Submitted
from voice.losses import LossLedger
from voice.pipeline import Pipeline, PipelineSettings
from voice.recognition.second_pass import SamePass
from voice.recognition.sliced import SlicedRecognizer
from voice.recognition.streaming import StreamingRecognizer
from voice.transcript import EmotionName, Endpoint

MS = SAMPLE_RATE_HZ // 1000
ENDPOINTER = EndpointerSettings(
    threshold=0.5,
    release_threshold=0.35,
    min_speech=90 * MS,
    endpoint_silence=800 * MS,
    speculate_after=300 * MS,
    max_utterance=30 * SAMPLE_RATE_HZ,
    min_rms=0.0,
)
SETTINGS = PipelineSettings(
    endpointer=ENDPOINTER,
    channel="mix",
    pre_roll=300 * MS,
    provisional_max_load_sec=1.0,
    preview_max_load_sec=0.1,
    speculate=True,
    speech_events=True,
)


AT_THE_END = replace(SETTINGS, speculate=False)


def trace_ids() -> Any:
    numbers = itertools.count(1)
    return lambda: f"{next(numbers):016x}"


def build(
    recognizer: Any = None, vad: Any = None, finalizer: Any = None, settings_: PipelineSettings = SETTINGS, keep: Any = None
) -> Pipeline:
    return Pipeline(
        settings_,
        vad or LoudnessVad(),
        recognizer or CountingRecognizer(),
        finalizer or Finalizer(),
        ledger=LossLedger(),
        new_trace_id=trace_ids(),
        keep=keep,
    )


def run(pipeline: Pipeline, samples: np.ndarray, sizes: Any = None, rate_hz: int = SAMPLE_RATE_HZ) -> list[dict]:
    """Events of the samples fed in blocks of these sizes, as a daemon would: exceptions go to ``recover``."""
    events, at = [], 0
    sizes = iter(sizes or itertools.repeat(1_600))
    while at < len(samples):
        size = next(sizes)
        events += guarded(pipeline, functools.partial(pipeline.process, block(samples[at : at + size], rate_hz)))
        at += size
    events += guarded(pipeline, lambda: pipeline.finish("end_of_input"))
    return dumped(events)


def guarded(pipeline: Pipeline, call: Any) -> list[Any]:
    for _ in range(10):
        try:
            return call()
        except RuntimeError as error:
            call = functools.partial(pipeline.recover, error)
    raise AssertionError("the pipeline does not get over a failure")


def block(samples: np.ndarray, rate_hz: int = SAMPLE_RATE_HZ) -> AudioBlock:
    return AudioBlock(samples[:, np.newaxis] if samples.ndim == 1 else samples, rate_hz)


def after_loss(pipeline: Pipeline, samples: np.ndarray, lost_samples: int, *, late: bool = False) -> AudioBlock:
    """A block before which so much audio is missing, or some seconds before which it was lost."""
    pipeline._ledger.report(lost_samples / SAMPLE_RATE_HZ, "planted", late=late)
    return replace(block(samples), losses_before=pipeline._ledger.seal())


def dumped(events: list[Any]) -> list[dict]:
    result = [event.model_dump() for event in events]
    check_guarantees(result)
    return result


def texts(events: list[dict]) -> list[str]:
    return [event["text"] for event in of_type(events, "final")]


# --- the real models --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def silero() -> SileroVad:
    return SileroVad()


def real(paraformer: Any, vad: Any, mode: str, settings_: PipelineSettings = SETTINGS) -> Pipeline:
    vad.reset()
    recognizer = (
        StreamingRecognizer(paraformer, TRAINED)
        if mode == "streaming"
        else SlicedRecognizer(paraformer, slice_samples=9_600, context_samples=57_600, edge_samples=5_760)
    )
    return build(recognizer, vad, Finalizer(second_pass=SamePass(paraformer)), settings_=settings_)


@pytest.mark.parametrize("mode", ["streaming", "sliced"])
@pytest.mark.parametrize("name", example_names())
def test_examples_are_recognised_exactly(paraformer: Any, silero: SileroVad, mode: str, name: str) -> None:
    samples, expected = example(name)
    events = run(real(paraformer, silero, mode), samples)
    assert texts(events) == list(expected)
    finals = of_type(events, "final")
    assert all(event["endpoint"] == "silence" and event["lost_ms"] == 0 and 0.5 < event["confidence"] < 1 for event in finals)
    assert len(of_type(events, "partial")) >= 2 * len(expected)


@pytest.mark.parametrize(("name", "tries"), [("air_conditioner", 4), pytest.param("two_utterances", 20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", ["streaming", "sliced"])
def test_events_do_not_depend_on_block_sizes(paraformer: Any, silero: SileroVad, mode: str, name: str, tries: int) -> None:
    """The master property, provisional tails included, as load is 0."""
    samples, expected = example(name)
    reference = run(real(paraformer, silero, mode), samples)
    assert len(of_type(reference, "final")) == len(expected)

    @settings(max_examples=tries, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(st.integers(1, 30_000), st.integers(0, 2**32 - 1))
    def same(largest: int, seed: int) -> None:
        draw = random.Random(seed)
        sizes = (draw.randint(max(1, largest // 50), largest) for _ in itertools.count())
        assert run(real(paraformer, silero, mode), samples, sizes) == reference

    same()


def test_events_do_not_depend_on_block_sizes_at_another_rate(paraformer: Any, silero: SileroVad) -> None:
    import soxr

    samples = soxr.resample(example("temperature")[0], 16_000, 44_100).astype(np.float32)
    reference = run(real(paraformer, silero, "streaming"), samples, rate_hz=44_100)
    assert texts(reference) == list(example("temperature")[1])
    draw = random.Random(1)
    assert run(real(paraformer, silero, "streaming"), samples, (draw.randint(1, 9_999) for _ in itertools.count()), 44_100) == reference


def test_a_cut_anywhere_in_an_utterance_still_gives_one_final(paraformer: Any, silero: SileroVad) -> None:
    samples, (text,) = example("temperature")
    for cut in range(10_000, 45_000, 3_100):
        events = run(real(paraformer, silero, "streaming"), samples[:cut])
        assert [event["endpoint"] for event in of_type(events, "final")] in ([], ["end_of_input"])
        if cut > 20_000:
            assert texts(events)[0][:2] == text[:2]


# --- endpointing and what the recogniser hears --------------------------------------------------------------------------


def heard(recognizer: CountingRecognizer) -> list[tuple[int, int]]:
    return [(stream.first_sample, stream.first_sample + len(stream.audio)) for stream in recognizer.streams]


def test_the_recogniser_hears_pre_roll_and_a_little_trailing_silence_and_nothing_else() -> None:
    recognizer = CountingRecognizer()
    run(build(recognizer), np.concatenate((silence(2.016), speech(1.6), silence(2))))
    start, end = 63 * 512, 113 * 512  # the windows around the speech
    assert heard(recognizer) == [(start - 300 * MS, end + 300 * MS)]


def test_speech_from_the_first_sample_on_is_heard_from_there() -> None:
    recognizer = CountingRecognizer()
    run(build(recognizer), np.concatenate((speech(1), silence(1.5))))
    assert recognizer.streams[0].first_sample == 0


def test_no_audio_is_heard_in_two_utterances_however_long_the_pre_roll_is() -> None:
    """0.3 s of the pause belong to the first utterance, and pre-roll would take 0.7 of its 0.9 s."""
    recognizer = CountingRecognizer()
    run(build(recognizer, settings_=replace(SETTINGS, pre_roll=700 * MS)), spoken(900))
    one, two = heard(recognizer)
    assert one[1] == two[0]


def test_quiet_audio_costs_no_recognition() -> None:
    recognizer = CountingRecognizer()
    events = run(build(recognizer), silence(60))
    assert events == []
    assert recognizer.streams == []
    assert recognizer.accepts == 0


@pytest.mark.parametrize("pause_ms", [100, 400, 700])
def test_speech_that_resumes_in_time_is_one_utterance_and_nothing_is_lost(pause_ms: int) -> None:
    recognizer = CountingRecognizer()
    audio = np.concatenate((silence(1), speech(1.2), silence(pause_ms / 1000), speech(1.2), silence(1.5)))
    events = run(build(recognizer), audio)
    assert len(of_type(events, "final")) == 1
    (stream,) = recognizer.streams
    np.testing.assert_array_equal(stream.audio, audio[stream.first_sample : stream.first_sample + len(stream.audio)])


class RememberedVad:
    """What Silero said about this audio, window by window: the same every time, at no cost."""

    window_samples = 512

    def __init__(self, silero: SileroVad, samples: np.ndarray) -> None:
        silero.reset()
        ends = range(512, len(samples) + 1, 512)
        self.said = [silero.probability(samples[end - 512 : end]) for end in ends]
        self.at = 0

    def probability(self, window: Samples, following: Samples) -> float:
        self.at += 1
        return self.said[self.at - 1]

    def reset(self) -> None:
        self.at = 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["shutdown", "audio_lost"])
@pytest.mark.parametrize("mode", ["streaming", "sliced"])
@pytest.mark.parametrize("name", ["temperature", "air_conditioner"])
def test_no_stop_and_no_lost_microphone_costs_a_word_that_was_spoken(
    paraformer: Any, silero: SileroVad, name: str, mode: str, how: Endpoint
) -> None:
    """Tail loss 0 at every 10 ms: each token of the uncut reference that ends 100 ms or more before the cut is in the final."""
    samples, _ = example(name)
    vad = RememberedVad(silero, samples)
    (reference,) = of_type(run(real(paraformer, vad, mode), samples), "final")
    spoken = reference["tokens"]
    cuts = missed = 0
    for cut_ms in range(spoken[1]["end_ms"] + 100, spoken[-1]["end_ms"] + 400, 10):
        pipeline = real(paraformer, vad, mode)
        events = pipeline.process(block(samples[: cut_ms * MS]))
        if how == "shutdown":
            events += pipeline.finish("shutdown")
        else:
            events += pipeline.process(after_loss(pipeline, silence(0.1), 2 * SAMPLE_RATE_HZ))
        finals = of_type(dumped(events), "final")
        text = iter("".join(final["raw_text"] for final in finals))
        missed += not all(token["text"] in text for token in spoken if token["end_ms"] <= cut_ms - 100)
        assert [final["endpoint"] for final in finals] == [how]
        cuts += 1
    assert cuts >= 100
    assert missed == 0


def test_an_utterance_of_maximum_length_is_cut_and_goes_on_without_losing_or_repeating_a_sample() -> None:
    recognizer = CountingRecognizer()
    audio = np.concatenate((silence(1), speech(70), silence(1.5)))
    audio[28 * SAMPLE_RATE_HZ :][: 3 * SAMPLE_RATE_HZ] *= np.linspace(1, 0.3, 3 * SAMPLE_RATE_HZ, dtype=np.float32)  # quietest late
    events = run(build(recognizer), audio)
    assert [event["endpoint"] for event in of_type(events, "final")] == ["max_duration", "max_duration", "silence"]
    spans = heard(recognizer)
    assert all(one[1] == two[0] for one, two in itertools.pairwise(spans))
    joined = np.concatenate([stream.audio for stream in recognizer.streams])
    np.testing.assert_array_equal(joined, audio[spans[0][0] : spans[-1][1]])
    assert all(event["end_ms"] - event["start_ms"] <= 30_100 for event in of_type(events, "final"))


def test_utterances_without_text_send_nothing_and_are_counted() -> None:
    class Deaf(CountingRecognizer):
        def create_stream(self, first_sample: int, trace_id: str = "") -> Any:
            stream = super().create_stream(first_sample, trace_id)
            stream._token = lambda index: None
            stream._tokenize = lambda count: None
            stream.has_tail = False
            stream.copy = lambda: stream
            return stream

    pipeline = build(Deaf())
    events = run(pipeline, np.concatenate((silence(1), speech(1), silence(1), speech(1), silence(1))))
    assert [event["type"] for event in events] == ["voice.speech.started", "voice.speech.ended"] * 2
    assert pipeline.totals.empty_utterances == 2
    assert pipeline.totals.utterances == 0


def test_the_provisional_tail_is_skipped_under_load() -> None:
    audio = np.concatenate((silence(1), speech(2)))
    idle, busy = build(), build()
    tails = []
    for pipeline, load_sec in ((idle, 0.0), (busy, 5.0)):
        events = dumped([*pipeline.process(block(audio), load_sec), *pipeline.finish("shutdown")])
        tails.append([len(event["text"]) - event["stable_chars"] for event in of_type(events, "partial")])
    assert set(tails[0]) == {1}
    assert set(tails[1]) == {0}


def test_as_much_load_as_is_allowed_is_no_load() -> None:
    audio = np.concatenate((silence(1), speech(2)))
    for load_sec, tail in ((1.0, 1), (1.01, 0)):
        partials = of_type(dumped([*(pipeline := build()).process(block(audio), load_sec), *pipeline.finish("shutdown")]), "partial")
        assert {len(event["text"]) - event["stable_chars"] for event in partials} == {tail}


def test_without_a_word_about_load_there_is_none() -> None:
    pipeline = build(settings_=replace(SETTINGS, provisional_max_load_sec=0.0))
    events = pipeline.process(block(np.concatenate((silence(1), speech(2)))))
    partials = of_type(dumped([*events, *pipeline.finish("shutdown")]), "partial")
    assert {len(event["text"]) - event["stable_chars"] for event in partials} == {1}


def previews(load_sec: float) -> int:
    pipeline = build(recognizer := CountingRecognizer())
    pipeline.process(block(np.concatenate((silence(1), speech(2)))), load_sec)
    before = recognizer.previews
    pipeline.finish("shutdown")
    assert recognizer.previews == before, "the end needs its final, not a preview"
    return before


def test_an_unfinished_chunk_is_shown_while_no_audio_waits() -> None:
    assert previews(0.1) > 10
    assert previews(0.11) == 0


class StickyVad(LoudnessVad):
    """Once it has heard speech it hears nothing else: a memory of the signal that only a reset clears."""

    def __init__(self) -> None:
        super().__init__()
        self.sticks = False

    def probability(self, window: Samples, following: Samples) -> float:
        self.sticks = self.sticks or super().probability(window, following) > 0
        return float(self.sticks)

    def reset(self) -> None:
        super().reset()
        self.sticks = False


class ForewarnedVad(LoudnessVad):
    """Each window that was announced as following must come next, unless the signal ends; fails now and then, as a bug would."""

    def __init__(self) -> None:
        super().__init__()
        self.expected = np.zeros(0, np.float32)
        self.windows = self.announced = 0

    def probability(self, window: Samples, following: Samples) -> float:
        self.windows += 1
        assert len(following) % len(window) == 0
        if len(self.expected):
            np.testing.assert_array_equal(np.concatenate((window, following))[: len(self.expected)], self.expected)
            self.announced += 1
        self.expected = following.copy()
        if self.windows % 17 == 0:
            raise RuntimeError("planted")
        return super().probability(window, following)

    def reset(self) -> None:
        super().reset()
        self.expected = np.zeros(0, np.float32)


@given(st.lists(st.tuples(st.integers(1, 9_000), st.sampled_from(["block", "block", "block", "gap", "long gap", "end"])), max_size=30))
@settings(deadline=None)
def test_windows_come_as_they_were_announced_to_the_voice_activity_model(steps: list[tuple[int, str]]) -> None:
    vad = ForewarnedVad()
    pipeline = build(CountingRecognizer(lambda call: call % 5 == 4), vad)
    samples = np.random.default_rng(0).uniform(-1, 1, 9_000).astype(np.float32)
    for num_samples, what in steps:
        if what == "end":
            guarded(pipeline, lambda: pipeline.finish("requested"))
        lost = {"gap": 2_000, "long gap": 40_000}.get(what, 0)
        piece = after_loss(pipeline, samples[:num_samples], lost) if lost else block(samples[:num_samples])
        guarded(pipeline, functools.partial(pipeline.process, piece))
    guarded(pipeline, lambda: pipeline.finish("end_of_input"))
    assert not len(vad.expected)


def test_all_windows_of_a_block_are_known_at_its_first() -> None:
    vad = ForewarnedVad()
    build(vad=vad).process(block(silence(0.5)))
    assert (vad.windows, vad.announced) == (15, 14)


@pytest.mark.parametrize("how", ["gap", "requested"])
def test_the_voice_activity_model_remembers_nothing_of_a_signal_that_ended(how: str) -> None:
    pipeline = build(vad=StickyVad())
    events = pipeline.process(block(np.concatenate((silence(1), speech(1)))))
    assert pipeline.in_utterance
    if how == "gap":
        events += pipeline.process(after_loss(pipeline, silence(1), 5 * SAMPLE_RATE_HZ))
    else:
        events += pipeline.finish("requested")
    events += pipeline.process(block(silence(1)))
    assert not pipeline.in_utterance
    assert [event["endpoint"] for event in of_type(dumped(events), "final")] == ["audio_lost" if how == "gap" else "requested"]


def test_time_passes_over_skipped_audio_and_nothing_of_it_is_heard() -> None:
    recognizer = CountingRecognizer()
    pipeline = build(recognizer)
    events = [*pipeline.process(block(silence(1))), *pipeline.finish("muted")]
    events += pipeline.skip(block(speech(2)))
    events += pipeline.skip(after_loss(pipeline, speech(1), 500 * MS))
    assert (pipeline.totals.audio_ms, pipeline.totals.lost_ms) == (4_500, 500)
    events += pipeline.process(block(speech(1)))
    events = dumped([*events, *pipeline.finish("end_of_input")])
    (final,) = of_type(events, "final")
    (error,) = of_type(events, "error_event")
    assert (final["start_ms"], final["end_ms"], final["lost_ms"]) == (4_500, 5_500, 0)
    assert heard(recognizer) == [(4_500 * MS, 5_500 * MS)]
    assert error["error_code"] == "audio_overrun"


def test_each_utterance_that_ended_is_kept_as_it_was_decoded() -> None:
    kept: list[tuple[str, Samples]] = []
    recognizer = CountingRecognizer()
    events = run(build(recognizer, keep=lambda trace_id, samples: kept.append((trace_id, samples))), spoken(900))
    assert [trace_id for trace_id, _ in kept] == [event["trace_id"] for event in of_type(events, "final")]
    assert len(kept) == 2
    for (_, samples), stream in zip(kept, recognizer.streams, strict=True):
        np.testing.assert_array_equal(samples, stream.audio)


def test_each_utterance_that_ended_has_a_summary_once() -> None:
    pipeline = build()
    finals = of_type(run(pipeline, spoken(900)), "final")
    summaries = pipeline.take_summaries()
    assert [summary.trace_id for summary in summaries] == [final["trace_id"] for final in finals]
    assert [summary.num_tokens for summary in summaries] == [len(final["tokens"]) for final in finals]
    assert [summary.lost_samples for summary in summaries] == [0, 0]
    assert pipeline.take_summaries() == []


def test_the_totals_count_every_utterance_error_and_sample() -> None:
    settings_ = replace(SETTINGS, endpointer=replace(ENDPOINTER, min_rms=0.05))
    pipeline = build(CountingRecognizer(fail_accept=lambda call: call in (2, 40)), settings_=settings_)
    assert not pipeline.in_utterance
    far = 0.2 * speech(0.512)  # 16 windows
    audio = (silence(1.024), speech(1.024), silence(1.024), speech(1.024), silence(1.024), far, silence(0.512))
    events = run(pipeline, np.concatenate(audio))
    totals = pipeline.totals
    assert (totals.utterances, totals.empty_utterances, totals.errors) == (2, 0, len(of_type(events, "error_event"))) == (2, 0, 2)
    assert (totals.audio_ms, totals.lost_ms, totals.rejected_ms) == (6_144, 0, 512)


# --- speculation ------------------------------------------------------------------------------------------------------


class SpyFinalizer(Finalizer):
    """Sets an end mark, and counts."""

    def __init__(self) -> None:
        super().__init__([("punctuation_failed", lambda text, *, ended: text + ("。" if ended else ""))])
        self.drafts: list[Draft] = []

    def prepare(self, draft: Draft, submitted: Submitted | None = None) -> PreparedFinal:
        self.drafts.append(draft)
        return super().prepare(draft, submitted)


def spoken(*pauses_ms: int) -> np.ndarray:
    """Speech of 1.2 s, again after each pause, and the silence that ends it."""
    pieces = [silence(1), speech(1.2)]
    for pause_ms in pauses_ms:
        pieces += [silence(pause_ms / 1000), speech(1.2)]
    return np.concatenate([*pieces, silence(1.5)])


@pytest.mark.parametrize("pauses_ms", [(), (100,), (400,), (700,), (310, 320, 500), (900,), (400, 900, 400)])
def test_events_are_the_same_with_speculation_and_without(pauses_ms: tuple[int, ...]) -> None:
    audio = spoken(*pauses_ms)
    assert run(build(finalizer=SpyFinalizer()), audio) == run(build(finalizer=SpyFinalizer(), settings_=AT_THE_END), audio)


@pytest.mark.parametrize("mode", ["streaming", "sliced"])
def test_real_events_are_the_same_with_speculation_and_without(paraformer: Any, silero: SileroVad, mode: str) -> None:
    audio = np.concatenate([example(name)[0] for name in example_names()])
    assert run(real(paraformer, silero, mode), audio) == run(real(paraformer, silero, mode, AT_THE_END), audio)


@pytest.mark.parametrize(("pauses_ms", "drafts"), [((), 1), ((100,), 1), ((400,), 2), ((400, 100, 700), 3)])
def test_a_final_is_made_once_in_each_pause_and_not_again_at_the_end(pauses_ms: tuple[int, ...], drafts: int) -> None:
    finalizer = SpyFinalizer()
    pipeline = build(finalizer=finalizer)
    audio = spoken(*pauses_ms)
    made_at = []
    for at in range(0, len(audio), 160):
        before = len(finalizer.drafts)
        events = pipeline.process(block(audio[at : at + 160]))
        made_at += [at] * (len(finalizer.drafts) - before)
        if any(event.type.endswith("final") for event in events):
            break
    assert len(finalizer.drafts) == drafts
    assert at - made_at[-1] == pytest.approx(500 * MS, abs=512), "300 ms after the last speech, 500 ms before the endpoint"


@pytest.mark.parametrize(("endpoint", "mark"), [("end_of_input", "。"), ("shutdown", ""), ("audio_lost", "")])
def test_what_ends_a_pause_decides_about_the_end_mark(endpoint: Endpoint, mark: str) -> None:
    pipeline = build(finalizer=SpyFinalizer())
    pipeline.process(block(np.concatenate((silence(1), speech(1.2), silence(0.5)))))
    (final,) = of_type(dumped(pipeline.finish(endpoint)), "final")
    assert final["text"] == final["raw_text"] + mark
    assert final["endpoint"] == endpoint


def test_audio_lost_in_a_pause_is_in_the_final() -> None:
    pipeline = build()
    events = pipeline.process(block(np.concatenate((silence(1), speech(1.2), silence(0.5)))))
    events += pipeline.process(after_loss(pipeline, silence(1), 1_600))
    (final,) = of_type(dumped(events), "final")
    assert final["lost_ms"] == 100


@pytest.mark.parametrize("failing", [lambda call: call == 1, lambda call: call in (1, 2)])
def test_a_speculation_that_fails_costs_nothing_and_shows_nowhere(failing: Callable[[int], bool]) -> None:
    events = run(build(CountingRecognizer(fail_finish=failing)), spoken(400))
    assert events == run(build(), spoken(400))


def test_what_a_speculation_that_fails_says_is_not_logged() -> None:
    with structlog.testing.capture_logs() as logs:
        run(build(CountingRecognizer(fail_finish=lambda call: call == 1)), spoken(400))
    (line,) = (line for line in logs if line["event"] == "speculation_failed")
    assert line["error"] == "RuntimeError"
    assert "planted" not in str(line)


# --- loss -------------------------------------------------------------------------------------------------------------


def test_a_short_gap_is_filled_with_silence_counted_and_said() -> None:
    recognizer = CountingRecognizer()
    pipeline = build(recognizer)
    before, after = np.concatenate((silence(1), speech(1))), np.concatenate((speech(1), silence(2)))
    events = [*pipeline.process(block(before)), *pipeline.process(after_loss(pipeline, after, 400 * MS)), *pipeline.finish("end_of_input")]
    events = dumped(events)
    (final,) = of_type(events, "final")
    (error,) = of_type(events, "error_event")
    assert (final["lost_ms"], final["endpoint"]) == (400, "silence")
    assert (error["error_code"], error["recoverable"], error["trace_id"]) == ("audio_overrun", True, final["trace_id"])
    (stream,) = recognizer.streams
    joined = np.concatenate((before, silence(0.4), after))
    np.testing.assert_array_equal(stream.audio, joined[stream.first_sample : stream.first_sample + len(stream.audio)])
    assert pipeline.totals.lost_ms == 400


def test_a_long_gap_ends_the_utterance_and_the_index_goes_on_behind_it() -> None:
    recognizer = CountingRecognizer()
    pipeline = build(recognizer)
    before = after = np.concatenate((silence(1), speech(1)))
    events = [*pipeline.process(block(before)), *pipeline.process(after_loss(pipeline, after, 5_000 * MS)), *pipeline.finish("shutdown")]
    one, two = of_type(dumped(events), "final")
    assert (one["endpoint"], one["lost_ms"], one["end_ms"]) == ("audio_lost", 5_000, 2_000)
    assert (two["endpoint"], two["lost_ms"]) == ("shutdown", 0)
    assert 7_950 <= two["start_ms"] <= 8_010
    assert recognizer.streams[0].first_sample + len(recognizer.streams[0].audio) == 2_000 * MS


@pytest.mark.parametrize(("spoken_before_sec", "lost_ms"), [(3, 5_000), (1, 0)])
def test_a_loss_that_turns_out_late_cuts_no_utterance_and_moves_the_index_in_the_next_pause(spoken_before_sec: int, lost_ms: int) -> None:
    """It was some two seconds ago: an utterance that began since has not lost it."""
    recognizer = CountingRecognizer()
    pipeline = build(recognizer)
    before, after = np.concatenate((silence(1), speech(spoken_before_sec))), speech(2)
    first_end_ms = 1_000 * (1 + spoken_before_sec + 2)
    events = pipeline.process(block(before))
    events += pipeline.process(after_loss(pipeline, after, 5_000 * MS, late=True))
    assert pipeline.totals.lost_ms == 5_000
    assert pipeline.totals.audio_ms == first_end_ms + 5_000
    for piece in (silence(2), silence(0.5), speech(1), silence(2)):
        events += pipeline.process(block(piece))
    events = dumped([*events, *pipeline.finish("end_of_input")])
    one, two = of_type(events, "final")
    (error,) = of_type(events, "error_event")
    assert (error["error_code"], error["recoverable"], error["trace_id"]) == ("audio_overrun", True, one["trace_id"])
    assert (one["endpoint"], one["lost_ms"]) == ("silence", lost_ms)
    assert one["end_ms"] == pytest.approx(first_end_ms, abs=32)
    assert (two["endpoint"], two["lost_ms"]) == ("silence", 0)
    assert two["start_ms"] == pytest.approx(first_end_ms + 2_500 + 5_000, abs=32)
    assert len(recognizer.streams[0].audio) == pytest.approx((spoken_before_sec + 2.6) * 16_000, abs=1_000)
    assert pipeline.totals.lost_ms == 5_000


class SmallVad(LoudnessVad):
    """Windows of 20 ms: 2 s are 100 of them to the sample."""

    window_samples = 320


@pytest.mark.parametrize(("windows", "lost_samples"), [(100, 0), (101, 5_000 * MS)])
def test_a_late_loss_is_that_of_an_utterance_that_began_more_than_two_seconds_ago(windows: int, lost_samples: int) -> None:
    pipeline = build(vad=SmallVad())
    pipeline.process(block(np.concatenate((silence(1), speech(windows * 0.02)))))
    pipeline.process(after_loss(pipeline, silence(2), 5_000 * MS, late=True))
    (summary,) = pipeline.take_summaries()
    assert summary.lost_samples == lost_samples


def test_a_late_loss_is_not_placed_where_somebody_may_have_begun_to_speak() -> None:
    """Less than 90 ms of speech is no utterance yet, and a gap there would cost its first syllable."""
    recognizer = CountingRecognizer()
    pipeline = build(recognizer)
    events = pipeline.process(block(np.concatenate((silence(1.024), speech(0.064)))))
    assert not pipeline.in_utterance
    events += pipeline.process(after_loss(pipeline, np.concatenate((speech(1), silence(1))), 5_000 * MS, late=True))
    (final,) = of_type(dumped(events), "final")
    assert (final["start_ms"], final["endpoint"]) == (1_024, "silence")
    assert len(recognizer.streams[0].audio) == pytest.approx((0.3 + 1.064 + 0.3) * SAMPLE_RATE_HZ, abs=512)


def test_losses_within_an_utterance_are_added_up() -> None:
    pipeline = build()
    pipeline.process(block(np.concatenate((silence(1), speech(1)))))
    for lost_ms in (100, 200):
        pipeline.process(after_loss(pipeline, speech(0.5), lost_ms * MS))
    (final,) = of_type(dumped([*pipeline.finish("end_of_input")]), "final")
    assert final["lost_ms"] == 300


def test_no_pre_roll_reaches_behind_a_gap() -> None:
    recognizer = CountingRecognizer()
    pipeline = build(recognizer)
    pipeline.process(block(np.concatenate((silence(1), speech(1)))))
    pipeline.process(after_loss(pipeline, speech(1), 5_000 * MS))
    pipeline.finish("end_of_input")
    assert [stream.first_sample for stream in recognizer.streams][1] == 7_000 * MS


def test_losses_close_together_are_one_episode() -> None:
    pipeline = build()
    events = pipeline.process(block(silence(1)))
    for _ in range(5):
        events += pipeline.process(after_loss(pipeline, silence(0.5), 100 * MS))
    events += pipeline.process(block(silence(5)))
    events += pipeline.process(after_loss(pipeline, silence(0.5), 100 * MS))
    assert len(of_type(dumped(events), "error_event")) == 2
    assert pipeline.totals.lost_ms == 600


def test_audio_discarded_at_the_stop_is_counted_and_said() -> None:
    pipeline = build()
    events = pipeline.process(block(np.concatenate((silence(1), speech(1)))))
    pipeline.discard(block(speech(1)))
    events = dumped([*events, *pipeline.finish("shutdown")])
    assert of_type(events, "final")[0]["lost_ms"] == 1_000
    (error,) = of_type(events, "error_event")
    assert error["error_code"] == "audio_overrun"
    assert error["message"] == "AudioLost: 1000 ms and what may follow: audio that waited at the stop was discarded"


def test_values_that_are_not_finite_become_silence_and_are_said_once() -> None:
    recognizer = CountingRecognizer()
    audio = np.concatenate((silence(1), speech(1), silence(1)))
    audio[20_000:20_100] = np.nan
    audio[25_000] = np.inf
    events = run(build(recognizer), audio)
    (error,) = of_type(events, "error_event")
    assert (error["error_code"], error["recoverable"]) == ("input_unreadable", True)
    assert len(of_type(events, "final")) == 1
    assert np.isfinite(recognizer.streams[0].audio).all()


# --- failures ---------------------------------------------------------------------------------------------------------

UTTERANCE = np.concatenate((silence(1), speech(4), silence(1.5)))


def undisturbed() -> str:
    return texts(run(build(), UTTERANCE))[0]


@pytest.mark.parametrize("failing_accept", [1, 5, 30, 60])
def test_a_failure_while_decoding_costs_an_error_event_and_not_a_token(failing_accept: int) -> None:
    recognizer = CountingRecognizer(fail_accept=lambda call: call == failing_accept)
    events = run(build(recognizer), UTTERANCE)
    (error,) = of_type(events, "error_event")
    (final,) = of_type(events, "final")
    assert (error["error_code"], error["recoverable"], error["trace_id"]) == ("infer_partial_failed", True, final["trace_id"])
    assert error["message"] == "RuntimeError: planted in accept"
    assert final["text"] == undisturbed()
    assert len(recognizer.streams) == 2


def test_a_failure_while_the_input_ends_costs_no_final() -> None:
    """A block so large that everything is decoded inside ``finish``, with a failure at every call of the recogniser there."""
    import soxr

    audio = soxr.resample(np.concatenate((silence(1), speech(2))), 16_000, 48_000).astype(np.float32)
    undisturbed_ = CountingRecognizer()
    expected = texts(run(build(undisturbed_), audio, [len(audio)], 48_000))
    assert len(expected) == 1
    for failing in range(1, undisturbed_.accepts + 1):
        events = run(build(CountingRecognizer(fail_accept=lambda call, at=failing: call == at)), audio, [len(audio)], 48_000)
        assert texts(events) == expected, failing
        assert len(of_type(events, "error_event")) == 1


def test_a_failing_flush_is_tried_once_more_on_a_rebuilt_stream() -> None:
    events = run(build(CountingRecognizer(fail_finish=lambda call: call == 1), settings_=AT_THE_END), UTTERANCE)
    assert [event["error_code"] for event in of_type(events, "error_event")] == ["infer_final_failed"]
    assert texts(events) == [undisturbed()]


def test_a_flush_that_keeps_failing_leaves_the_last_partial_as_the_final() -> None:
    events = run(build(CountingRecognizer(fail_finish=lambda _: True)), UTTERANCE)
    assert [event["error_code"] for event in of_type(events, "error_event")] == ["infer_final_failed"] * 2, (
        "the speculation's failure is nobody's concern"
    )
    assert texts(events) == [of_type(events, "partial")[-1]["text"]]


def test_a_model_that_is_broken_for_good_ends_each_utterance_and_the_next_one_is_tried_afresh() -> None:
    recognizer = CountingRecognizer(fail_accept=lambda call: call >= 60)
    pipeline = build(recognizer)
    events = run(pipeline, np.concatenate((UTTERANCE, UTTERANCE)))
    first, *_ = of_type(events, "final")
    assert first["text"] == of_type(events, "partial")[-1]["text"]
    assert undisturbed().startswith(first["raw_text"][:-1])
    codes = [event["error_code"] for event in of_type(events, "error_event")]
    assert codes.count("infer_final_failed") == 2  # once for each utterance: its stream was broken before its end
    assert pipeline.totals.empty_utterances == 1  # the second had no partial


def test_an_abandoned_utterance_gets_its_last_partial_as_final() -> None:
    recognizer = CountingRecognizer(fail_finish=lambda _: True)
    pipeline = build(recognizer)
    events = pipeline.process(block(UTTERANCE[: 4 * SAMPLE_RATE_HZ]))
    events = dumped([*events, *pipeline.abandon(), *pipeline.abandon()])
    (final,) = of_type(events, "final")
    assert (final["text"], final["endpoint"]) == (of_type(events, "partial")[-1]["text"], "shutdown")
    assert recognizer.finishes == 0


def test_a_failure_at_the_cut_of_a_long_utterance_does_not_lose_the_next_one() -> None:
    recognizer = CountingRecognizer(fail_finish=lambda call: call == 1)
    events = run(build(recognizer), np.concatenate((silence(1), speech(33), silence(1.5))))
    assert [event["endpoint"] for event in of_type(events, "final")] == ["max_duration", "silence"]


def test_a_failure_in_a_block_does_not_lose_the_rest_of_it() -> None:
    audio = np.concatenate((UTTERANCE, UTTERANCE))
    events = run(build(CountingRecognizer(fail_accept=lambda call: call == 10)), audio, [len(audio)])
    assert texts(events) == texts(run(build(), audio))


def test_the_finalizer_gets_the_speech_and_only_the_speech() -> None:
    drafts: list[Draft] = []

    class Spy(Finalizer):
        def prepare(self, draft: Draft, submitted: Submitted | None = None) -> PreparedFinal:
            drafts.append(draft)
            return super().prepare(draft, submitted)

    run(build(finalizer=Spy()), np.concatenate((silence(1.024), speech(2.048), silence(1.5))))
    (draft,) = drafts
    assert (draft.transcript.start_sample, draft.transcript.end_sample) == (32 * 512, 96 * 512)
    assert len(draft.audio) == 64 * 512
    assert np.abs(draft.audio).max() > 0.1


@pytest.mark.parametrize("method", ["prepare", "complete"])
def test_a_finalizer_that_fails_leaves_the_bare_text(method: str) -> None:
    """Its parts are guarded; this is a bug in the finalizer itself."""

    class Broken(Finalizer):
        def fail(self, *_: Any) -> Any:
            raise RuntimeError("planted")

    setattr(Broken, method, Broken.fail)
    events = run(build(finalizer=Broken(), settings_=AT_THE_END), np.concatenate((UTTERANCE, UTTERANCE)))
    assert texts(events) == texts(run(build(), np.concatenate((UTTERANCE, UTTERANCE))))
    assert [event["error_code"] for event in of_type(events, "error_event")] == ["infer_final_failed"] * 2


def test_a_part_of_the_final_that_fails_is_an_error_of_its_utterance() -> None:
    def failing(text: str, *, ended: bool) -> str:
        raise RuntimeError("planted")

    events = run(build(finalizer=Finalizer([("punctuation_failed", failing)])), UTTERANCE)
    (final,) = of_type(events, "final")
    (error,) = of_type(events, "error_event")
    assert (error["error_code"], error["message"], error["recoverable"]) == ("punctuation_failed", "RuntimeError: planted", True)
    assert error["trace_id"] == final["trace_id"]


class FailingVad(LoudnessVad):
    """Fails at some windows, counted from 1: with the failure it announces, or as a bug would."""

    def __init__(self, error: Exception, *failing: int) -> None:
        super().__init__()
        self.error, self.failing, self.windows = error, failing, 0

    def probability(self, window: Samples, following: Samples) -> float:
        self.windows += 1
        if self.windows in self.failing:
            raise self.error
        return super().probability(window, following)


@pytest.mark.parametrize("error", [VadFailed("planted"), RuntimeError("planted")], ids=["announced", "a bug"])
def test_a_window_that_the_voice_activity_model_cannot_answer_costs_an_error_event_and_no_word(error: Exception) -> None:
    pipeline = build(vad=FailingVad(error, 60))
    events = guarded(pipeline, lambda: pipeline.process(block(np.concatenate((UTTERANCE, silence(1))))))
    events = dumped(events)
    (told,) = of_type(events, "error_event")
    (final,) = of_type(events, "final")
    assert (told["error_code"], told["message"], told["recoverable"]) == ("vad_failed", f"{type(error).__name__}: planted", True)
    assert told["trace_id"] == final["trace_id"]
    assert final["text"] == undisturbed()


def test_a_block_that_cannot_be_resampled_is_an_error_and_counted_as_lost() -> None:
    pipeline = build(settings_=replace(SETTINGS, channel=1))
    stereo = np.repeat(silence(1)[:, np.newaxis], 2, axis=1)
    pipeline.process(block(stereo))
    with pytest.raises(InputUnreadable) as caught:
        pipeline.process(block(silence(0.5)))
    (told,) = of_type(dumped(pipeline.recover(caught.value)), "error_event")
    assert (told["error_code"], told["message"], told["recoverable"]) == ("runtime_error", describe(caught.value), True)
    assert pipeline.process(block(stereo)) == []
    assert (pipeline.totals.audio_ms, pipeline.totals.lost_ms, pipeline.totals.errors) == (2_500, 500, 1)


def test_a_failure_while_nobody_speaks_is_an_error_of_its_own() -> None:
    def failing(trace_id: str, samples: Samples) -> None:
        raise RuntimeError("planted")

    events = run(build(keep=failing), UTTERANCE)
    (final,) = of_type(events, "final")
    (told,) = of_type(events, "error_event")
    assert (told["error_code"], told["message"], told["recoverable"]) == ("runtime_error", "RuntimeError: planted", True)
    assert told["trace_id"] != final["trace_id"]


@pytest.mark.parametrize("recoverable", [True, False])
def test_an_error_from_outside_belongs_to_the_utterance_in_flight_where_there_is_one(recoverable: bool) -> None:
    pipeline = build()
    events = pipeline.report_error("audio_device_lost", "AudioDeviceLost: planted", recoverable=recoverable)
    events += pipeline.process(block(np.concatenate((silence(1), speech(1)))))
    events += pipeline.report_error("audio_device_lost", "AudioDeviceLost: again", recoverable=recoverable)
    events = dumped([*events, *pipeline.finish("audio_lost")])
    (final,) = of_type(events, "final")
    before, within = of_type(events, "error_event")
    for told, message in ((before, "AudioDeviceLost: planted"), (within, "AudioDeviceLost: again")):
        assert (told["error_code"], told["message"], told["recoverable"]) == ("audio_device_lost", message, recoverable)
    assert within["trace_id"] == final["trace_id"] != before["trace_id"]


def test_late_labels_are_not_waited_for_unless_it_is_said() -> None:
    class Spy(Finalizer):
        waits: tuple[float, ...] = ()

        def take_late(self, wait_sec: float = 0.0) -> list[LateLabel]:
            self.waits += (wait_sec,)
            return super().take_late(wait_sec)

    finalizer = Spy()
    pipeline = build(finalizer=finalizer)
    pipeline.late_labels()
    pipeline.late_labels(0.25)
    assert finalizer.waits == (0.0, 0.25)


class WaitingEmotion:
    """Answers when it may; an answer that is an exception is raised."""

    source = "funasr.waiting"

    def __init__(self, answer: dict[EmotionName, float] | Exception) -> None:
        self.answer = answer
        self.may_answer = threading.Event()

    def scores(self, samples: Samples) -> dict[EmotionName, float]:
        assert self.may_answer.wait(30)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize("fails", [False, True])
def test_an_emotion_that_is_late_follows_its_final(fails: bool) -> None:
    scores = {**dict.fromkeys(EMOTION_NAMES, 0.0), "sad": 1.0}
    model = WaitingEmotion(RuntimeError("planted") if fails else scores)
    labeller = EmotionLabeller(model, EmotionSettings(8_000, 240_000, 0.0))
    pipeline = build(finalizer=Finalizer(side_models=[labeller], max_wait_sec=0.01))
    events = dumped(pipeline.process(block(np.concatenate((UTTERANCE, silence(1))))))
    (final,) = of_type(events, "final")
    assert final["emotion"] is None
    assert of_type(events, "emotion") == of_type(events, "error_event") == []
    assert pipeline.late_labels() == []
    model.may_answer.set()
    (late,) = (event.model_dump() for event in pipeline.late_labels(30))
    assert late["type"] == ("core.error_event" if fails else "voice.asr_text.emotion")
    assert late["trace_id"] == final["trace_id"]
    if fails:
        assert (late["error_code"], late["message"]) == ("emotion_failed", "RuntimeError: planted")
    else:
        assert (late["start_ms"], late["end_ms"]) == (final["start_ms"], final["end_ms"])
    assert pipeline.late_labels(0, last=True) == []


def test_an_emotion_that_misses_the_end_is_an_error() -> None:
    model = WaitingEmotion({})
    labeller = EmotionLabeller(model, EmotionSettings(8_000, 240_000, 0.0))
    pipeline = build(finalizer=Finalizer(side_models=[labeller], max_wait_sec=0.0))
    (final,) = of_type(dumped(pipeline.process(block(np.concatenate((UTTERANCE, silence(1)))))), "final")
    (error,) = (event.model_dump() for event in pipeline.late_labels(0.01, last=True))
    assert (error["trace_id"], error["error_code"]) == (final["trace_id"], "emotion_failed")
    assert "when the service ended" in error["message"]
    model.may_answer.set()
    assert pipeline.late_labels(0.1) == [], "what was given up stays given up"


def test_memory_of_past_audio_is_bounded() -> None:
    pipeline = build()
    for _ in range(50):
        pipeline.process(block(silence(10)))
    assert pipeline._history.num_samples < SAMPLE_RATE_HZ
    pipeline.process(block(speech(120)))
    assert pipeline._history.num_samples < 33 * SAMPLE_RATE_HZ
