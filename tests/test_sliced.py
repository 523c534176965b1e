"""Sliced mode over a scripted engine: which tokens of a window are new, which wait for the next one, and what the end still takes."""

from __future__ import annotations

import random

import numpy as np
import pytest
from fakes import FIRST, SCRIPTED_TOKENS, ScriptedEngine, bigrams, frame, frames, spans

from voice.audio import Samples
from voice.recognition.engine import FRAME_SAMPLES, ChunkPreset
from voice.recognition.hotwords import HotwordGraph
from voice.recognition.sliced import SlicedRecognizer, SlicedStream
from voice.transcript import Hypothesis, Token

SLICE, CONTEXT, EDGE = 4, 8, 1
"""In frames: a window is twelve frames, and tokens in its last one wait."""
ONE, TWO, THREE, FOUR, FIVE, SIX, SEVEN, EIGHT, NINE, AB, CD = range(1, 12)
ONE_TWO_THREE = HotwordGraph([((ONE, TWO, THREE), 2.0)])


class SpyEngine(ScriptedEngine):
    """Notes the length of every window, in samples, and their type."""

    def __init__(self) -> None:
        super().__init__()
        self.windows: list[int] = []
        self.dtypes: set[np.dtype] = set()

    def create_stream(self, preset: ChunkPreset | None) -> object:
        stream = super().create_stream(preset)
        engine = self

        class Spy:
            decode = stream.decode

            def encode_last(self, samples: Samples) -> object:
                engine.windows.append(len(samples))
                engine.dtypes.add(samples.dtype)
                return stream.encode_last(samples)

        return Spy()


def recognizer_of(
    engine: ScriptedEngine | None = None, hotwords: HotwordGraph | None = None, *, context: int = CONTEXT, edge: int = EDGE
) -> SlicedRecognizer:
    graph = hotwords or HotwordGraph()
    return SlicedRecognizer(
        engine or ScriptedEngine(),
        slice_samples=SLICE * FRAME_SAMPLES,
        context_samples=context * FRAME_SAMPLES,
        edge_samples=edge * FRAME_SAMPLES,
        hotwords=lambda: graph,
    )


def stream_of(engine: ScriptedEngine | None = None, hotwords: HotwordGraph | None = None, **lengths: int) -> SlicedStream:
    return recognizer_of(engine, hotwords, **lengths).create_stream(FIRST)


def text_of(tokens: tuple[Token, ...]) -> str:
    return "".join(token.text for token in tokens)


def shown(stream: SlicedStream) -> str:
    hypothesis = stream.hypothesis()
    assert hypothesis.provisional == ()
    return text_of(hypothesis.committed)


def whole(samples: Samples, hotwords: HotwordGraph | None = None) -> Hypothesis:
    stream = stream_of(hotwords=hotwords)
    stream.accept(samples)
    return stream.finish()


# --- slice by slice -----------------------------------------------------------------------------------------------------


def test_a_new_stream_has_decoded_nothing() -> None:
    stream = stream_of()
    assert stream.hypothesis() == Hypothesis()
    assert stream.decoded_until == FIRST
    assert stream.finish() == Hypothesis()


def test_events_name_the_mode() -> None:
    assert recognizer_of().source == "funasr.paraformer-zh-streaming"


def test_a_slice_is_decoded_when_its_last_sample_is_there() -> None:
    stream, samples = stream_of(), frames(ONE, TWO, 0, 0, THREE)
    assert not stream.accept(samples[: SLICE * FRAME_SAMPLES - 1])
    assert (shown(stream), stream.decoded_until) == ("", FIRST)
    assert stream.accept(samples[SLICE * FRAME_SAMPLES - 1 : SLICE * FRAME_SAMPLES])
    assert (shown(stream), stream.decoded_until) == ("一二", FIRST + SLICE * FRAME_SAMPLES)
    assert not stream.accept(samples[SLICE * FRAME_SAMPLES :])
    assert (shown(stream), stream.decoded_until) == ("一二", FIRST + SLICE * FRAME_SAMPLES)


def test_several_slices_at_once_are_decoded_one_by_one() -> None:
    engine = SpyEngine()
    stream = stream_of(engine)
    assert stream.accept(frames(*[ONE, 0, TWO, 0] * 5, THREE))
    assert engine.windows == [count * FRAME_SAMPLES for count in (4, 8, 12, 12, 12)], "never more than the context and a slice"
    assert engine.dtypes == {np.dtype(np.float32)}
    assert stream.decoded_until == FIRST + 20 * FRAME_SAMPLES
    assert shown(stream) == "一二" * 5


def test_a_token_in_the_edge_waits_for_the_next_slice() -> None:
    """Its right context is missing, and with it the token may become another one."""
    stream = stream_of()
    stream.accept(frames(ONE, 0, TWO, THREE))
    assert shown(stream) == "一二"
    stream.accept(np.concatenate((frame(FOUR, before=FIVE), frames(0, 0, 0))))
    assert shown(stream) == "一二五四"


def test_a_token_that_waits_keeps_those_behind_it_waiting() -> None:
    stream = stream_of(edge=2)
    stream.accept(np.concatenate((frame(ONE), frame(TWO, 0.5), frame(TWO, 0.5), frame(THREE))))
    assert shown(stream) == "一"
    assert text_of(stream.finish().committed) == "一二三"


def test_the_edge_is_exact() -> None:
    for edge, text in ((0, "一二三四"), (1, "一二三"), (2, "一二"), (4, "")):
        stream = stream_of(edge=edge)
        stream.accept(frames(ONE, TWO, THREE, FOUR))
        assert shown(stream) == text


@pytest.mark.parametrize("copied", [False, True])
def test_a_token_of_the_utterances_start_that_context_corrects_is_not_doubled(*, copied: bool) -> None:
    """No token was cut there, so it is the same one, read otherwise: it stays as it was committed."""
    stream = stream_of(edge=0)
    stream.accept(frames(0, 0, ONE, TWO))
    assert shown(stream) == "一二"
    stream = stream.copy() if copied else stream
    stream._window = frames(0, 0, ONE, FIVE)  # as a decoder with more context reads it
    stream.accept(frames(THREE, 0, 0, 0))
    assert shown(stream) == "一二三"


def test_tokens_that_two_windows_hold_are_committed_once_and_keep_their_times() -> None:
    tokens = [ONE, TWO, 0, THREE, 0, FOUR, FIVE, 0, SIX, 0, SEVEN, EIGHT, 0, 0, NINE, 0]
    stream = stream_of()
    stream.accept(frames(*tokens))
    places = [at for at, token in enumerate(tokens) if token]
    ends = [0, *(at + 1 for at in places)]
    starts = [int(max(end, at - 1.5)) for end, at in zip(ends, places, strict=False)]
    expected = [(SCRIPTED_TOKENS[tokens[at]], start, at + 1) for start, at in zip(starts, places, strict=True)]
    assert spans(stream.finish()) == expected


def test_a_committed_token_never_changes_and_its_correction_is_not_appended() -> None:
    """The second window reads ``五`` where the first one read ``二``."""
    stream = stream_of(context=12, edge=0)
    stream.accept(frames(*[0] * 10, ONE, TWO))
    committed = stream.hypothesis().committed
    stream.accept(np.concatenate((frame(THREE, before=FIVE), frames(0, 0, 0))))
    assert stream.hypothesis().committed[:2] == committed
    assert shown(stream) == "一二三"


def test_the_same_token_again_is_not_taken_for_the_one_before() -> None:
    stream = stream_of()
    stream.accept(frames(*[ONE, 0, 0] * 12))
    assert text_of(stream.finish().committed) == "一" * 12


def test_a_window_knows_nothing_of_the_slices_before_its_context() -> None:
    """No model state: the scripted decoder would be less sure of later tokens."""
    stream = stream_of(context=0)
    stream.accept(np.concatenate([np.concatenate((frame(ONE, second=TWO, gap=1.0), frames(0, 0, 0)))] * 3))
    assert len({token.confidence for token in stream.finish().tokens}) == 1


def test_no_weight_is_added_before_the_end() -> None:
    stream = stream_of()
    stream.accept(np.concatenate((frame(ONE, 0.6), frames(0, 0, 0), frames(0, 0, 0, 0))))
    assert shown(stream) == ""
    assert text_of(stream.finish().committed) == "一"


def test_pieces_of_any_size_give_the_same_hypotheses() -> None:
    draw = random.Random(0)
    samples = frames(*[draw.choice([0, 0, *range(1, 10)]) for _ in range(30)])

    def run(sizes: list[int]) -> list[Hypothesis]:
        stream, found, at = stream_of(), [], 0
        for size in sizes:
            if stream.accept(samples[at : at + size], provisional=draw.random() < 0.5):
                found.append(stream.hypothesis())
            at += size
        return [*found, stream.finish()]

    expected = run([SLICE * FRAME_SAMPLES] * 8)
    for _ in range(20):
        assert run([draw.randint(1, SLICE * FRAME_SAMPLES) for _ in range(100)]) == expected


def test_streams_of_one_recogniser_share_no_state() -> None:
    recognizer = recognizer_of()
    one, two = recognizer.create_stream(FIRST), recognizer.create_stream(0)
    one.accept(frames(ONE, TWO, 0, THREE))
    two.accept(frames(FOUR, FIVE, 0, SIX))
    assert [text_of(stream.finish().committed) for stream in (one, two)] == ["一二三", "四五六"]


# --- at the start of a window -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames_before", "text"), [(0, "一二"), (1, "一二"), (2, "一一二")])
def test_a_token_that_ended_up_to_two_frames_before_the_window_may_be_read_again_in_it(frames_before: int, text: str) -> None:
    """The first window's last frame is blank in it, and ``一`` in the second window, which begins there."""
    stream = stream_of(context=1, edge=0)
    first_slice = [0, 0, 0, 0]
    first_slice[2 - frames_before] = ONE
    stream.accept(np.concatenate((frames(*first_slice[:3]), frame(0, 1.0))))
    assert shown(stream) == "一"
    stream.accept(np.concatenate((frame(0, before=ONE), frames(0, TWO, 0))))
    assert shown(stream) == text


@pytest.mark.parametrize(("frames_from_start", "text"), [(8, "一二"), (9, "一八九一二")])
def test_tokens_made_up_within_eight_frames_of_the_windows_start_are_not_taken_for_new_ones(frames_from_start: int, text: str) -> None:
    """The last window begins at frame 4, in the middle of a firing, and reads ``八九一二`` where the one before it read ``一``.

    ``八`` and ``九`` end 2 and ``frames_from_start`` frames behind its start.
    """
    blank = {"second": 0, "gap": 0.1}
    samples = np.concatenate(
        (
            frames(0, 0, 0),
            frame(0, 0.4),
            frame(EIGHT, 0.6, **blank),
            frame(EIGHT, 0.4, **blank),
            frames(*[0] * (frames_from_start - 4)),
            frame(NINE, 0.6, **blank),
            frame(NINE, 0.4, second=ONE, gap=0.1),
            frame(ONE, 0.6),
            frame(ONE, 0.4),
        )
    )
    before = 20 * FRAME_SAMPLES
    stream = stream_of(context=16)
    stream.accept(np.concatenate((samples, np.zeros(before - len(samples), np.float32))))
    assert shown(stream) == "一"
    stream.accept(frames(TWO, 0, 0, 0))
    assert shown(stream) == text


# --- the end ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(10))
def test_the_end_commits_the_edge_and_what_is_pending(count: int) -> None:
    stream = stream_of()
    stream.accept(frames(*range(1, count + 1)))
    final = stream.finish()
    assert spans(final) == [(SCRIPTED_TOKENS[token], token - 1, token) for token in range(1, count + 1)]
    assert stream.decoded_until == FIRST + count * FRAME_SAMPLES


@pytest.mark.parametrize(("weight", "text"), [(0.5, "一"), (0.6, "一二")])
def test_a_last_token_that_is_nearly_complete_is_committed(weight: float, text: str) -> None:
    """The scripted model adds 0.45 behind the last frame; a token takes 1."""
    assert text_of(whole(np.concatenate((frame(ONE), frame(TWO, weight)))).committed) == text


def test_the_end_takes_all_that_was_pending_once() -> None:
    engine = SpyEngine()
    stream = stream_of(engine)
    stream.accept(frames(ONE, TWO, 0, 0, THREE))
    assert text_of(stream.finish().committed) == "一二三"
    assert not stream.accept(np.zeros(SLICE * FRAME_SAMPLES - 1, np.float32)), "nothing is pending any more"
    assert engine.windows == [4 * FRAME_SAMPLES, 5 * FRAME_SAMPLES]


# --- Latin words --------------------------------------------------------------------------------------------------------


def test_a_latin_word_is_shown_when_the_next_token_closes_it() -> None:
    stream = stream_of()
    stream.accept(frames(ONE, AB, 0, 0))
    assert shown(stream) == "一"
    stream.accept(frames(CD, 0, 0, 0))
    assert shown(stream) == "一"
    stream.accept(frames(TWO, 0, 0, 0))
    assert stream.hypothesis().text == "一abcd二"


def test_a_latin_word_at_the_end_is_in_the_final() -> None:
    assert whole(frames(ONE, AB, CD, 0)).text == "一abcd"
    assert whole(frames(AB, CD)).text == "abcd"


# --- hotwords -----------------------------------------------------------------------------------------------------------

LIKE_ONE = frame(FOUR, second=ONE, gap=2.0)
"""``四`` is likeliest where the word would have ``一``."""


def test_a_token_that_may_become_part_of_a_hotword_waits_for_one_slice_and_no_longer() -> None:
    stream = stream_of(hotwords=ONE_TWO_THREE)
    stream.accept(np.concatenate((frame(FIVE), LIKE_ONE, frames(0, 0))))
    assert shown(stream) == "五"
    stream.accept(frames(0, 0, 0, 0))
    assert shown(stream) == "五四"


def test_a_hotword_is_committed_when_the_next_slice_completes_it() -> None:
    stream = stream_of(hotwords=ONE_TWO_THREE)
    stream.accept(np.concatenate((frame(FIVE), LIKE_ONE, frames(0, 0))))
    stream.accept(frames(TWO, THREE, 0, 0))
    assert shown(stream) == "五一二三"


def test_tokens_wait_again_in_a_later_slice() -> None:
    stream = stream_of(hotwords=ONE_TWO_THREE)
    for _ in range(2):
        before = shown(stream)
        stream.accept(np.concatenate((LIKE_ONE, frames(0, 0, 0))))
        assert shown(stream) == before, "it waits"
        stream.accept(frames(0, 0, 0, 0))
        assert shown(stream) == before + "四"


def test_the_end_waits_for_nothing() -> None:
    assert text_of(whole(LIKE_ONE, ONE_TWO_THREE).committed) == "四"
    assert text_of(whole(np.concatenate((LIKE_ONE, frames(TWO, THREE))), ONE_TWO_THREE).committed) == "一二三"


def test_each_stream_takes_the_hotwords_as_they_are_when_it_begins() -> None:
    graphs = iter([HotwordGraph(), ONE_TWO_THREE])
    lengths = {"slice_samples": SLICE * FRAME_SAMPLES, "context_samples": CONTEXT * FRAME_SAMPLES, "edge_samples": EDGE * FRAME_SAMPLES}
    recognizer = SlicedRecognizer(ScriptedEngine(), **lengths, hotwords=lambda: next(graphs))
    found = []
    for _ in range(2):
        stream = recognizer.create_stream(FIRST)
        stream.accept(np.concatenate((LIKE_ONE, frames(TWO, THREE, 0, 0))))
        found.append(text_of(stream.finish().committed))
    assert found == ["四二三", "一二三"]


# --- with a language model ----------------------------------------------------------------------------------------------


def speaking(**pairs: float) -> ScriptedEngine:
    """An engine whose language model knows these pairs of tokens, ``S`` for the start before the second."""
    return ScriptedEngine(bigrams(SCRIPTED_TOKENS, {(pair[0].replace("S", "^"), pair[1]): score for pair, score in pairs.items()}))


def test_a_token_is_chosen_by_those_around_it_in_the_window() -> None:
    for pairs in ({"五一": -0.5}, {"一六": -0.5}):
        stream = stream_of(speaking(**pairs))
        stream.accept(np.concatenate((frame(FIVE), LIKE_ONE, frame(SIX), frame(0))))
        assert shown(stream) == "五一六"


def test_no_token_waits_for_what_the_language_model_may_still_say() -> None:
    stream = stream_of(speaking(一六=-0.5))
    stream.accept(np.concatenate((frame(FIVE), LIKE_ONE, frames(0, 0))))
    assert shown(stream) == "五四"
    stream.accept(frames(SIX, 0, 0, 0))
    assert shown(stream) == "五四六", "a committed token never changes"


def test_a_token_that_a_hotword_may_change_waits_with_a_language_model_too() -> None:
    stream = stream_of(speaking(五四=-0.5), ONE_TWO_THREE)
    stream.accept(np.concatenate((frame(FIVE), LIKE_ONE, frames(0, 0))))
    assert shown(stream) == "五"
    stream.accept(frames(TWO, THREE, 0, 0))
    assert shown(stream) == "五一二三"


@pytest.mark.parametrize(
    ("before", "expected"),
    [((), "一"), ((0, 0, 0, 0), "四"), ((0, FIVE, 0, 0), "五一"), ((0, FIVE, SIX, 0), "五六四")],
    ids=["the start of the utterance", "amid it, nothing said before", "amid it, behind a word", "amid it, behind another word"],
)
def test_a_window_begins_behind_the_tokens_that_were_committed_before_it(before: tuple[int, ...], expected: str) -> None:
    """The language model expects 一 at the start of an utterance and behind 五. No window reaches into the one before it."""
    stream = stream_of(speaking(S一=-0.5, 五一=-0.5), context=0)
    stream.accept(frames(*before))
    stream.accept(np.concatenate((LIKE_ONE, frames(0, 0, 0))))
    assert shown(stream) == expected


# --- copies -------------------------------------------------------------------------------------------------------------

SCRIPT = np.concatenate((frame(FIVE), LIKE_ONE, frames(0, 0, 0, 0, 0, SIX), frame(SEVEN, before=EIGHT), LIKE_ONE, frames(0, TWO, THREE)))


@pytest.mark.parametrize("cut", range(0, len(SCRIPT) + 1, FRAME_SAMPLES // 2))
def test_a_copy_and_its_original_go_on_independently_from_the_same_state(cut: int) -> None:
    """The original after its copy was finished, and the copy after its original was, are as if the other had not been."""

    def run(stream: SlicedStream) -> list[Hypothesis]:
        found = []
        for at in range(cut, len(SCRIPT), FRAME_SAMPLES):
            stream.accept(SCRIPT[at : at + FRAME_SAMPLES])
            found.append(stream.hypothesis())
        return [*found, stream.finish()]

    undisturbed = stream_of(hotwords=ONE_TWO_THREE)
    undisturbed.accept(SCRIPT[:cut])
    expected = run(undisturbed)
    for finish_copy_first in (True, False):
        stream = stream_of(hotwords=ONE_TWO_THREE)
        stream.accept(SCRIPT[:cut])
        before = stream.hypothesis(), stream.decoded_until
        copied = stream.copy()
        assert (copied.hypothesis(), copied.decoded_until) == before
        first, second = (copied, stream) if finish_copy_first else (stream, copied)
        first.accept(frames(NINE, NINE, NINE, NINE))
        first.finish()
        assert (second.hypothesis(), second.decoded_until) == before
        assert run(second) == expected
        assert second.decoded_until == FIRST + len(SCRIPT)


def test_a_copy_knows_that_tokens_have_waited() -> None:
    stream = stream_of(hotwords=ONE_TWO_THREE)
    stream.accept(np.concatenate((LIKE_ONE, frames(0, 0, 0))))
    copied = stream.copy()
    for each in (copied, stream):
        each.accept(frames(0, 0, 0, 0))
        assert shown(each) == "四", "and so they wait no longer"
