"""Endpointing: speech probabilities in, decisions out."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voice.audio import SAMPLE_RATE_HZ, ms_to_samples
from voice.endpointing.endpointer import CUT_SEARCH_SAMPLES, Endpointer, EndpointerSettings, SpeechEnded, SpeechStarted, State

WINDOW = 512  # 32 ms, as Silero's
SPEECH, BETWEEN, SILENCE = 0.9, 0.4, 0.1
LOUD, QUIET = 0.1, 0.001
ENDPOINT_SILENCE = ms_to_samples(800)
SPECULATE_AFTER = ms_to_samples(300)
MAX_UTTERANCE = 5 * SAMPLE_RATE_HZ

Decision = SpeechStarted | SpeechEnded


def make(**changes: float) -> Endpointer:
    lengths = {
        "threshold": 0.5,
        "release_threshold": 0.35,
        "min_speech": ms_to_samples(90),
        "endpoint_silence": ENDPOINT_SILENCE,
        "speculate_after": SPECULATE_AFTER,
        "max_utterance": MAX_UTTERANCE,
        "min_rms": 0.0,
    }
    return Endpointer(EndpointerSettings(**{**lengths, **changes}))


class Feed:
    """Steps an endpointer through windows and keeps what it decided, with the sample at which it did."""

    def __init__(self, endpointer: Endpointer, window: int = WINDOW) -> None:
        self.endpointer = endpointer
        self.window = window
        self.now = 0
        self.decisions: list[Decision] = []
        self.decided_at: list[int] = []

    def windows(self, count: int, probability: float, level: float = LOUD) -> Feed:
        for _ in range(count):
            start, self.now = self.now, self.now + self.window
            self.keep(self.endpointer.step(start, self.now, probability, level))
        return self

    def lasting(self, milliseconds: int, probability: float, level: float = LOUD) -> Feed:
        """As many windows as begin within ``milliseconds``."""
        return self.windows(-(-ms_to_samples(milliseconds) // WINDOW), probability, level)

    def end(self, endpoint: str) -> Feed:
        self.keep(self.endpointer.end(self.now, endpoint))
        return self

    def keep(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            self.decisions.append(decision)
            self.decided_at.append(self.now)


def test_an_utterance_starts_at_its_first_speech_window_once_min_speech_is_reached():
    feed = Feed(make()).windows(10, SILENCE).windows(2, SPEECH)  # 64 ms of speech: less than 90
    assert feed.decisions == []
    assert feed.endpointer.state is State.STARTING
    feed.windows(1, SPEECH)
    assert feed.decisions == [SpeechStarted(10 * WINDOW)]
    assert feed.endpointer.state is State.SPEAKING


def test_min_speech_zero_starts_with_the_first_speech_window():
    assert Feed(make(min_speech=0)).windows(1, SPEECH).decisions == [SpeechStarted(0)]


def test_clicks_start_nothing():
    feed = Feed(make())
    for _ in range(20):
        feed.windows(2, SPEECH).windows(1, SILENCE)
    assert feed.decisions == []
    assert feed.endpointer.state is State.QUIET


def test_between_the_thresholds_nothing_changes():
    """Hysteresis: not enough to start, enough to go on."""
    feed = Feed(make()).lasting(2_000, BETWEEN)
    assert feed.endpointer.state is State.QUIET
    feed.windows(5, SPEECH).lasting(2_000, BETWEEN)
    assert feed.endpointer.state is State.SPEAKING
    feed.windows(1, SILENCE).windows(5, BETWEEN)
    assert feed.endpointer.state is State.STOPPING
    assert len(feed.decisions) == 1


@pytest.mark.parametrize(
    ("probability", "state"),
    [(0.5, State.SPEAKING), (0.4999, State.QUIET)],
)
def test_the_threshold_itself_is_speech(probability: float, state: State):
    assert Feed(make(min_speech=0)).windows(1, probability).endpointer.state is state


@pytest.mark.parametrize(("probability", "state"), [(0.35, State.SPEAKING), (0.3499, State.STOPPING)])
def test_the_release_threshold_itself_is_not_silence(probability: float, state: State):
    assert Feed(make()).windows(5, SPEECH).windows(1, probability).endpointer.state is state


def test_silence_of_800_ms_ends_the_utterance_to_the_window():
    """800 ms are exactly 25 windows: 24 do not end it, the 25th does."""
    feed = Feed(make()).windows(10, SPEECH).windows(24, SILENCE)
    assert len(feed.decisions) == 1
    feed.windows(1, SILENCE)
    speech_end = 10 * WINDOW
    assert feed.decisions[1:] == [SpeechEnded(speech_end, speech_end + SPECULATE_AFTER, "silence")]
    assert feed.decided_at[-1] == speech_end + ENDPOINT_SILENCE
    assert feed.endpointer.state is State.QUIET


def test_speech_inside_the_silence_resumes_the_utterance_and_the_silence_counts_anew():
    feed = Feed(make()).windows(10, SPEECH).windows(24, SILENCE).windows(1, SPEECH).windows(24, SILENCE)
    assert len(feed.decisions) == 1
    feed.windows(1, SILENCE)
    speech_end = (10 + 24 + 1) * WINDOW
    assert feed.decisions[1:] == [SpeechEnded(speech_end, speech_end + SPECULATE_AFTER, "silence")]


def test_the_recogniser_never_hears_more_silence_than_there_was():
    """With speculation later than the endpoint, the audio ends at the decision."""
    feed = Feed(make(speculate_after=ms_to_samples(5_000))).windows(10, SPEECH).windows(25, SILENCE)
    assert feed.decisions[-1] == SpeechEnded(10 * WINDOW, 35 * WINDOW, "silence")


def test_two_utterances_are_two_pairs_of_decisions():
    feed = Feed(make()).windows(10, SPEECH).windows(40, SILENCE).windows(10, SPEECH).windows(25, SILENCE)
    assert feed.decisions == [
        SpeechStarted(0),
        SpeechEnded(10 * WINDOW, 10 * WINDOW + SPECULATE_AFTER, "silence"),
        SpeechStarted(50 * WINDOW),
        SpeechEnded(60 * WINDOW, 60 * WINDOW + SPECULATE_AFTER, "silence"),
    ]


def test_decoding_waits_in_trailing_silence_and_goes_on_when_speech_resumes():
    feed = Feed(make()).windows(10, SPEECH)
    far = feed.endpointer.decode_limit
    assert far > feed.now
    feed.windows(20, SILENCE)
    assert feed.endpointer.decode_limit == 10 * WINDOW + SPECULATE_AFTER
    feed.windows(1, SPEECH)
    assert feed.endpointer.decode_limit == far


def test_decoding_waits_near_the_maximum_for_the_place_of_the_cut():
    feed = Feed(make()).windows(10, SILENCE).lasting(4_000, SPEECH)
    assert feed.endpointer.decode_limit == 10 * WINDOW + MAX_UTTERANCE - CUT_SEARCH_SAMPLES
    assert feed.endpointer.decode_limit < feed.now


def test_a_long_utterance_is_cut_in_the_middle_of_its_quietest_late_window_and_goes_on_there():
    feed = Feed(make()).lasting(1_000, SPEECH).windows(1, SPEECH, level=0.0)  # quieter, but not within the last 2 s
    feed.lasting(2_500, SPEECH)
    quietest = feed.now
    feed.windows(1, SPEECH, level=0.05)
    feed.windows(-(-(MAX_UTTERANCE - feed.now) // WINDOW), SPEECH)
    cut = quietest + WINDOW // 2
    assert feed.decisions == [SpeechStarted(0), SpeechEnded(cut, cut, "max_duration"), SpeechStarted(cut, continues=True)]
    assert feed.decided_at[-1] == -(-MAX_UTTERANCE // WINDOW) * WINDOW
    assert feed.endpointer.state is State.SPEAKING


def test_endless_speech_is_cut_again_and_again_without_losing_a_sample():
    feed = Feed(make()).lasting(60_000, SPEECH).end("end_of_input")
    starts = [decision for decision in feed.decisions if isinstance(decision, SpeechStarted)]
    ends = [decision for decision in feed.decisions if isinstance(decision, SpeechEnded)]
    assert len(ends) >= 60 * SAMPLE_RATE_HZ // MAX_UTTERANCE
    assert [end.end_sample for end in ends[:-1]] == [start.start_sample for start in starts[1:]]
    assert all(start.continues for start in starts[1:])
    assert all(end.audio_end == end.end_sample for end in ends)
    assert all(0 < end.end_sample - start.start_sample <= MAX_UTTERANCE for start, end in zip(starts, ends, strict=True))
    assert ends[-1].end_sample == feed.now


def test_a_cut_in_trailing_silence_starts_no_new_utterance():
    """The pause before the maximum is the quietest place, and nothing was said since."""
    feed = Feed(make(endpoint_silence=ms_to_samples(3_000))).lasting(4_500, SPEECH)
    speech_end = feed.now
    feed.lasting(600, SILENCE, level=0.0)
    assert feed.decisions[1:] == [SpeechEnded(speech_end, speech_end + SPECULATE_AFTER, "max_duration")]
    assert feed.endpointer.state is State.QUIET


def test_after_a_cut_in_trailing_silence_the_next_speech_needs_its_full_length():
    feed = Feed(make(endpoint_silence=ms_to_samples(3_000), min_speech=3 * WINDOW)).lasting(4_500, SPEECH)
    while len(feed.decisions) < 2:
        feed.windows(1, SILENCE, level=0.0)
    assert feed.endpointer.state is State.QUIET
    assert feed.endpointer.expected_end(feed.now + ENDPOINT_SILENCE) is None
    start = feed.now
    feed.windows(2, SPEECH)
    assert len(feed.decisions) == 2
    feed.windows(1, SPEECH)
    assert feed.decisions[2:] == [SpeechStarted(start)]


def test_a_cut_before_trailing_silence_goes_on_in_that_silence():
    feed = Feed(make(endpoint_silence=ms_to_samples(1_000))).lasting(4_000, SPEECH)
    quietest = feed.now
    feed.windows(1, SPEECH, level=0.0)
    feed.windows((MAX_UTTERANCE - feed.now) // WINDOW - 10, SPEECH)
    silence_start = feed.now
    feed.windows(11, SILENCE, level=QUIET)
    cut = quietest + WINDOW // 2
    assert feed.decisions[1:] == [SpeechEnded(cut, cut, "max_duration"), SpeechStarted(cut, continues=True)]
    assert feed.endpointer.state is State.STOPPING
    feed.lasting(1_000, SILENCE)
    assert feed.decisions[3:] == [SpeechEnded(silence_start, silence_start + SPECULATE_AFTER, "silence")]


def test_far_speech_starts_nothing_and_is_counted():
    feed = Feed(make(min_rms=0.01)).windows(10, SPEECH, level=QUIET)
    assert feed.decisions == []
    assert feed.endpointer.rejected_samples == 10 * WINDOW


def test_silence_below_min_rms_is_not_counted_as_rejected():
    assert Feed(make(min_rms=0.01)).windows(10, SILENCE, level=QUIET).endpointer.rejected_samples == 0


@pytest.mark.parametrize(("probability", "rejected"), [(BETWEEN, WINDOW), (0.35, WINDOW), (0.3499, 0)])
def test_what_would_not_be_silence_is_rejected_from_the_release_threshold_on(probability: float, rejected: int):
    """A far voice must not keep an utterance from ending, so its windows are silence, not something between."""
    feed = Feed(make(min_rms=0.01)).windows(5, SPEECH).windows(1, probability, level=QUIET)
    assert feed.endpointer.state is State.STOPPING
    assert feed.endpointer.rejected_samples == rejected


def test_far_speech_ends_a_near_utterance():
    feed = Feed(make(min_rms=0.01)).windows(10, SPEECH).windows(25, SPEECH, level=QUIET)
    assert feed.decisions[-1] == SpeechEnded(10 * WINDOW, 10 * WINDOW + SPECULATE_AFTER, "silence")


def test_speech_at_min_rms_is_near_enough():
    feed = Feed(make(min_rms=LOUD)).windows(5, SPEECH)
    assert feed.decisions == [SpeechStarted(0)]
    assert feed.endpointer.rejected_samples == 0


def test_ending_from_outside_while_quiet_decides_nothing():
    assert Feed(make()).windows(5, SILENCE).end("requested").decisions == []


def test_ending_from_outside_while_starting_drops_the_start():
    feed = Feed(make()).windows(2, SPEECH).end("muted")
    assert feed.decisions == []
    assert feed.endpointer.state is State.QUIET


def test_ending_from_outside_while_speaking_ends_there():
    feed = Feed(make()).windows(10, SPEECH).end("requested")
    assert feed.decisions[1:] == [SpeechEnded(feed.now, feed.now, "requested")]
    assert feed.endpointer.state is State.QUIET


@pytest.mark.parametrize("silent_windows", [3, 20])
def test_ending_from_outside_while_stopping_ends_where_speech_did(silent_windows: int):
    feed = Feed(make()).windows(10, SPEECH).windows(silent_windows, SILENCE).end("shutdown")
    audio_end = min(10 * WINDOW + SPECULATE_AFTER, feed.now)
    assert feed.decisions[1:] == [SpeechEnded(10 * WINDOW, audio_end, "shutdown")]
    assert feed.endpointer.state is State.QUIET


def test_reset_forgets_the_utterance_but_not_what_was_rejected():
    feed = Feed(make(min_rms=0.01)).windows(5, SPEECH, level=QUIET).windows(5, SPEECH)
    feed.endpointer.reset()
    assert feed.endpointer.state is State.QUIET
    assert not feed.endpointer.in_utterance
    assert feed.endpointer.rejected_samples == 5 * WINDOW
    feed.windows(5, SPEECH)
    assert feed.decisions == [SpeechStarted(5 * WINDOW), SpeechStarted(10 * WINDOW)]


def test_after_a_reset_the_maximum_counts_from_the_new_start():
    feed = Feed(make()).lasting(4_000, SPEECH)
    feed.endpointer.reset()
    feed.lasting(4_500, SPEECH)
    assert [type(decision) for decision in feed.decisions] == [SpeechStarted, SpeechStarted]


RUNS = st.lists(
    st.tuples(st.integers(1, 80), st.sampled_from([SPEECH, BETWEEN, SILENCE]) | st.floats(0, 1), st.sampled_from([LOUD, QUIET, 0.0])),
    max_size=30,
)


@settings(deadline=None, max_examples=200)
@given(runs=RUNS, min_rms=st.sampled_from([0.0, 0.01]), max_utterance_ms=st.sampled_from([300, 1_000, 5_000, 5_010, 7_777]))
def test_decisions_alternate_and_their_spans_are_ordered_and_apart(
    runs: list[tuple[int, float, float]], min_rms: float, max_utterance_ms: int
):
    feed = Feed(make(min_rms=min_rms, max_utterance=ms_to_samples(max_utterance_ms)))
    for count, probability, level in runs:
        feed.windows(count, probability, level)
    feed.end("end_of_input")
    assert [type(decision) for decision in feed.decisions] == [SpeechStarted, SpeechEnded] * (len(feed.decisions) // 2)
    previous_end = 0
    for started, ended, decided_at in zip(feed.decisions[::2], feed.decisions[1::2], feed.decided_at[1::2], strict=True):
        assert previous_end <= started.start_sample < ended.end_sample <= ended.audio_end <= decided_at
        assert ended.end_sample - started.start_sample <= ms_to_samples(max_utterance_ms) + WINDOW
        if started.continues:
            assert started.start_sample == previous_end
        previous_end = ended.end_sample


@settings(deadline=None, max_examples=200)
@given(runs=RUNS)
def test_nothing_is_decoded_that_the_utterance_turns_out_not_to_hear(runs: list[tuple[int, float, float]]):
    """The decode limit, asked after every window, never passes the ``audio_end`` decided later."""
    feed = Feed(make())
    decoded_until = 0
    for count, probability, level in [*runs, (60, SILENCE, LOUD)]:
        for _ in range(count):
            known = len(feed.decisions)
            feed.windows(1, probability, level)
            for decision in feed.decisions[known:]:
                if isinstance(decision, SpeechEnded):
                    assert decoded_until <= decision.audio_end
                decoded_until = 0
            if feed.endpointer.in_utterance:
                decoded_until = max(decoded_until, min(feed.endpointer.decode_limit, feed.now))
    assert not feed.endpointer.in_utterance


@pytest.mark.parametrize("probability", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("before", [0, 1, 10, 15], ids=["quiet", "starting", "speaking", "stopping"])
def test_a_probability_that_is_not_finite_is_an_error_and_changes_nothing(probability: float, before: int):
    """As a number, NaN would neither start nor end anything: an utterance would never end."""
    feed, undisturbed = (Feed(make()).windows(min(before, 10), SPEECH).windows(max(before - 10, 0), SILENCE) for _ in range(2))
    state = feed.endpointer.state
    with pytest.raises(ValueError, match=str(probability)):
        feed.endpointer.step(feed.now, feed.now + WINDOW, probability, LOUD)
    assert feed.endpointer.state is state
    for each in (feed, undisturbed):
        each.windows(10, SPEECH).windows(30, SILENCE)
    assert feed.decisions == undisturbed.decisions


# --- to the sample ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("min_speech", "windows"), [(3 * WINDOW - 1, 3), (3 * WINDOW, 3), (3 * WINDOW + 1, 4)])
def test_the_length_that_starts_an_utterance_is_exact(min_speech: int, windows: int):
    feed = Feed(make(min_speech=min_speech)).windows(1, SILENCE).windows(windows - 1, SPEECH)
    assert feed.decisions == []
    assert feed.windows(1, SPEECH).decisions == [SpeechStarted(WINDOW)]


@pytest.mark.parametrize(("endpoint_silence", "windows"), [(5 * WINDOW - 1, 5), (5 * WINDOW, 5), (5 * WINDOW + 1, 6)])
def test_the_silence_that_ends_an_utterance_is_exact(endpoint_silence: int, windows: int):
    feed = Feed(make(endpoint_silence=endpoint_silence, speculate_after=WINDOW)).windows(10, SPEECH).windows(windows - 1, SILENCE)
    assert len(feed.decisions) == 1
    assert feed.windows(1, SILENCE).decisions[1:] == [SpeechEnded(10 * WINDOW, 11 * WINDOW, "silence")]


@pytest.mark.parametrize(("max_utterance", "windows"), [(100 * WINDOW - 1, 100), (100 * WINDOW, 100), (100 * WINDOW + 1, 101)])
@pytest.mark.parametrize("start", [0, 7])
def test_the_longest_utterance_is_exact(max_utterance: int, windows: int, start: int):
    feed = Feed(make(max_utterance=max_utterance)).windows(start, SILENCE).windows(windows - 1, SPEECH)
    assert feed.decisions == [SpeechStarted(start * WINDOW)]
    assert [type(decision) for decision in feed.windows(1, SPEECH).decisions[1:]] == [SpeechEnded, SpeechStarted]


@pytest.mark.parametrize(("windows_before_the_end", "found"), [(21, False), (20, True), (1, True)])
def test_a_window_that_begins_2_s_before_the_end_is_the_first_that_may_hold_the_cut(windows_before_the_end: int, found: bool):
    """With windows of 0.1 s, 2 s are 20 of them to the sample."""
    window = SAMPLE_RATE_HZ // 10
    quietest = MAX_UTTERANCE // window - windows_before_the_end
    feed = Feed(make(), window).windows(quietest, SPEECH).windows(1, SPEECH, level=0.01)
    feed.windows(windows_before_the_end - 1, SPEECH)
    ended = feed.decisions[1]
    assert isinstance(ended, SpeechEnded)
    assert (ended.end_sample == quietest * window + window // 2) == found
    if not found:
        assert ended.end_sample == MAX_UTTERANCE - CUT_SEARCH_SAMPLES + window // 2, "of equal levels the first"


def test_the_middle_of_a_window_of_odd_length_is_rounded_down():
    window = 501
    feed = Feed(make(), window).windows(150, SPEECH).windows(1, SPEECH, level=0.01)
    while len(feed.decisions) < 2:
        feed.windows(1, SPEECH)
    assert feed.decisions[1] == SpeechEnded(150 * window + 250, 150 * window + 250, "max_duration")


def test_a_cut_where_the_silence_begins_starts_no_new_utterance():
    """Windows of one sample, so that the middle of a window is its start."""
    feed = Feed(make(min_speech=1, max_utterance=100, endpoint_silence=50, speculate_after=10), window=1)
    feed.windows(80, SPEECH).windows(1, SILENCE, level=0.0).windows(19, SILENCE)
    assert feed.decisions == [SpeechStarted(0), SpeechEnded(80, 90, "max_duration")]
    assert feed.endpointer.state is State.QUIET


def test_a_cut_one_sample_before_the_silence_starts_a_new_utterance():
    feed = Feed(make(min_speech=1, max_utterance=100, endpoint_silence=50, speculate_after=10), window=1)
    feed.windows(79, SPEECH).windows(1, SPEECH, level=0.0).windows(20, SILENCE)
    assert feed.decisions == [SpeechStarted(0), SpeechEnded(79, 79, "max_duration"), SpeechStarted(79, continues=True)]


@pytest.mark.parametrize("forgotten", ["end in silence", "end from outside", "reset", "cut"])
def test_no_cut_falls_before_the_start_of_its_utterance(forgotten: str):
    """An utterance shorter than the stretch that is searched: what lies before it was quieter, and is not its own."""
    feed = Feed(make(min_speech=WINDOW, max_utterance=20 * WINDOW, endpoint_silence=WINDOW))
    feed.windows(5, SPEECH).windows(1, SPEECH, level=0.0)
    if forgotten == "end in silence":
        feed.windows(1, SILENCE, level=0.0)
    elif forgotten == "end from outside":
        feed.end("requested")
    elif forgotten == "reset":
        feed.endpointer.reset()
    else:
        feed.windows(14, SPEECH)
        assert isinstance(feed.decisions[-1], SpeechStarted)
    start = 5 * WINDOW + WINDOW // 2 if forgotten == "cut" else feed.now
    known = len(feed.decisions)
    while not isinstance(feed.decisions[-1], SpeechStarted) or len(feed.decisions) < known + 2:
        feed.windows(1, SPEECH)
    ended = next(decision for decision in feed.decisions[known:] if isinstance(decision, SpeechEnded))
    assert ended.endpoint == "max_duration"
    assert ended.end_sample > start + WINDOW // 2


# --- the expected end -------------------------------------------------------------------------------------------------


def test_no_end_is_expected_before_and_while_somebody_speaks():
    feed = Feed(make())
    for count, probability in ((3, SILENCE), (2, SPEECH), (10, SPEECH)):
        feed.windows(count, probability)
        assert feed.endpointer.expected_end(feed.now + 10 * ENDPOINT_SILENCE) is None


def test_the_end_is_expected_from_the_sample_on_at_which_audio_waits():
    feed = Feed(make()).windows(10, SPEECH).windows(1, SILENCE)
    waits_from = 10 * WINDOW + SPECULATE_AFTER
    assert feed.endpointer.expected_end(waits_from - 1) is None
    expected = SpeechEnded(10 * WINDOW, waits_from, "silence")
    assert feed.endpointer.expected_end(waits_from) == expected
    assert feed.endpointer.expected_end(waits_from + 5_000) == expected
    assert feed.endpointer.decode_limit == waits_from


def test_the_expected_end_is_the_one_decided_when_nobody_speaks_any_more():
    feed = Feed(make()).windows(10, SPEECH).windows(15, SILENCE)
    expected = feed.endpointer.expected_end(feed.now)
    assert expected is not None
    assert feed.windows(10, SILENCE).decisions[1:] == [expected]
    assert feed.endpointer.expected_end(feed.now) is None, "it is over"


def test_no_end_is_expected_after_speech_resumed_or_a_reset():
    feed = Feed(make()).windows(10, SPEECH).windows(15, SILENCE).windows(1, SPEECH)
    assert feed.endpointer.expected_end(feed.now) is None
    feed.windows(15, SILENCE)
    assert feed.endpointer.expected_end(feed.now) == SpeechEnded(26 * WINDOW, 26 * WINDOW + SPECULATE_AFTER, "silence")
    feed.endpointer.reset()
    assert feed.endpointer.expected_end(feed.now) is None


def test_a_reset_endpointer_decides_as_a_fresh_one():
    used = Feed(make()).lasting(3_000, SPEECH).windows(10, SILENCE)
    used.endpointer.reset()
    fresh = Feed(make())
    assert used.endpointer.decode_limit == fresh.endpointer.decode_limit
    used.now, used.decisions = 0, []
    for each in (used, fresh):
        each.windows(10, SPEECH).windows(30, SILENCE).lasting(11_000, SPEECH)
    assert used.decisions == fresh.decisions
