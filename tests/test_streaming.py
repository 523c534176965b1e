"""Streaming mode over a scripted engine: what is committed with each chunk, what is shown ahead of it, and what the flush still takes."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from fakes import FIRST, SCRIPTED_TOKENS, ScriptedEngine, ScriptedStream, bigrams, frame, frames, spans

from voice.audio import Samples
from voice.recognition.engine import FRAME_SAMPLES, ChunkPreset, EncodedChunk
from voice.recognition.hotwords import HotwordGraph
from voice.recognition.streaming import StreamingRecognizer, StreamingStream
from voice.transcript import Hypothesis, Token

PRESET = ChunkPreset(0, 2, 1, encoder_look_back=4, decoder_look_back=1)
"""Two frames a chunk, one of look-ahead: after n frames n - 1 are committed and one is provisional."""
OVERLAPPING = ChunkPreset(1, 2, 1, encoder_look_back=0, decoder_look_back=0)
ONE, TWO, THREE, FOUR, FIVE, SIX = range(1, 7)
ONE_TWO_THREE = HotwordGraph([((ONE, TWO, THREE), 2.0)])


def stream_of(
    engine: ScriptedEngine | None = None, preset: ChunkPreset = PRESET, hotwords: HotwordGraph | None = None, first_sample: int = FIRST
) -> StreamingStream:
    graph = hotwords or HotwordGraph()
    return StreamingRecognizer(engine or ScriptedEngine(), preset, lambda: graph).create_stream(first_sample)


def text_of(tokens: tuple[Token, ...]) -> str:
    return "".join(token.text for token in tokens)


def shown(stream: StreamingStream) -> tuple[str, str]:
    """Committed text and provisional text."""
    hypothesis = stream.hypothesis()
    return text_of(hypothesis.committed), text_of(hypothesis.provisional)


def whole(samples: Samples, preset: ChunkPreset = PRESET, hotwords: HotwordGraph | None = None) -> Hypothesis:
    stream = stream_of(preset=preset, hotwords=hotwords)
    stream.accept(samples)
    return stream.finish()


# --- chunk by chunk -----------------------------------------------------------------------------------------------------


def test_a_new_stream_has_decoded_nothing() -> None:
    stream = stream_of()
    assert stream.hypothesis() == Hypothesis()
    assert stream.decoded_until == FIRST


def test_events_name_the_mode() -> None:
    assert StreamingRecognizer(ScriptedEngine(), PRESET).source == "funasr.streaming.paraformer-zh"


@pytest.mark.parametrize("preset", [PRESET, OVERLAPPING], ids=["0-2-1", "1-2-1"])
def test_each_chunk_commits_its_tokens_and_shows_those_of_its_look_ahead(preset: ChunkPreset) -> None:
    stream = stream_of(preset=preset)
    assert stream.accept(frames(ONE, TWO))
    assert shown(stream) == ("一", "二")
    assert stream.accept(frames(THREE, FOUR))
    assert shown(stream) == ("一二三", "四")
    assert spans(stream.hypothesis()) == [("一", 0, 1), ("二", 1, 2), ("三", 2, 3), ("四", 3, 4)]
    assert spans(stream.finish()) == [("一", 0, 1), ("二", 1, 2), ("三", 2, 3), ("四", 3, 4)]


def test_later_context_corrects_the_provisional_tail_and_nothing_else() -> None:
    stream = stream_of()
    stream.accept(frames(ONE, TWO))
    assert shown(stream) == ("一", "二")
    stream.accept(np.concatenate((frame(THREE, before=FIVE), frame(FOUR))))
    assert shown(stream) == ("一五三", "四")


def test_a_chunk_is_decoded_when_its_last_sample_is_there() -> None:
    stream, samples = stream_of(), frames(ONE, TWO, THREE)
    assert not stream.accept(samples[: 2 * FRAME_SAMPLES - 1])
    assert (stream.hypothesis(), stream.decoded_until) == (Hypothesis(), FIRST)
    assert stream.accept(samples[2 * FRAME_SAMPLES - 1 : 2 * FRAME_SAMPLES])
    assert (shown(stream), stream.decoded_until) == (("一", "二"), FIRST + 2 * FRAME_SAMPLES)
    assert not stream.accept(samples[2 * FRAME_SAMPLES :])
    assert (shown(stream), stream.decoded_until) == (("一", "二"), FIRST + 2 * FRAME_SAMPLES)


def test_several_chunks_at_once_are_decoded_at_once() -> None:
    stream = stream_of()
    assert stream.accept(frames(ONE, TWO, THREE, FOUR, FIVE))
    assert (shown(stream), stream.decoded_until) == (("一二三", "四"), FIRST + 4 * FRAME_SAMPLES)


def test_a_provisional_tail_is_shown_unless_it_is_not_wanted_and_then_costs_nothing() -> None:
    engine = ScriptedEngine()
    stream = stream_of(engine)
    stream.accept(frames(ONE, TWO))
    stream.accept(frames(THREE, FOUR), provisional=False)
    assert shown(stream) == ("一二三", "")
    stream.accept(frames(FIVE, 0), provisional=False)
    assert engine.decoded == [(2, 1), (2, 2), (2, 2)], "tokens decoded, and how many of them left a trace"
    assert text_of(stream.finish().committed) == "一二三四五"


def test_chunks_of_silence_call_no_decoder_and_clear_the_tail() -> None:
    engine = ScriptedEngine()
    stream = stream_of(engine)
    stream.accept(frames(0, ONE, 0, 0, 0, 0))
    assert shown(stream) == ("一", "")
    assert engine.decoded == [(1, 0), (1, 1)]


def test_a_token_whose_frames_lie_in_two_chunks_is_one_token() -> None:
    stream = stream_of()
    stream.accept(np.concatenate((frame(ONE, 0.6), frame(TWO, 0.2))))
    assert shown(stream) == ("", "")
    stream.accept(np.concatenate((frame(TWO, 0.2), frame(0))))
    assert spans(stream.hypothesis()) == [("一", 0, 2)]  # the centre of its weight is 1.1 frames in


def test_the_tail_begins_with_the_weight_that_the_committed_frames_left() -> None:
    stream = stream_of()
    stream.accept(np.concatenate((frame(ONE, 0.6), frame(ONE, 0.4))))
    assert shown(stream) == ("", "一")
    stream.accept(frames(0, 0))
    assert shown(stream) == ("一", ""), "what the tail took is still there"


def test_confidence_is_the_decoders_and_depends_on_the_committed_tokens_alone() -> None:
    """The scripted decoder is surer of its first token than of its third."""
    with_tail, without = stream_of(), stream_of()
    for stream, provisional in ((with_tail, True), (without, False)):
        stream.accept(np.concatenate([frame(ONE, second=TWO, gap=1.0)] * 6), provisional=provisional)
    one, two = with_tail.finish(), without.finish()
    assert one == two
    assert all(earlier.confidence > later.confidence for earlier, later in itertools.pairwise(one.tokens))


def test_streams_of_one_recogniser_share_no_state() -> None:
    recognizer = StreamingRecognizer(ScriptedEngine(), PRESET)
    one, two = recognizer.create_stream(FIRST), recognizer.create_stream(0)
    one.accept(frames(ONE, TWO, THREE))
    two.accept(frames(FOUR, FIVE, 6))
    assert [text_of(stream.finish().committed) for stream in (one, two)] == ["一二三", "四五六"]


def test_pieces_of_any_size_give_the_same_hypotheses() -> None:
    draw = random.Random(0)
    scripts = [0, 1, 2, 3, 0, 4, 5, 0, 0, 6, 7, 8, 9]
    samples = np.concatenate([frame(token, draw.choice([0.3, 0.7, 1.0]) if token else 0.0) for token in scripts])

    def run(sizes: list[int]) -> list[Hypothesis]:
        stream, found, at = stream_of(), [], 0
        for size in sizes:
            if stream.accept(samples[at : at + size]):
                found.append(stream.hypothesis())
            at += size
        return [*found, stream.finish()]

    expected = run([2 * FRAME_SAMPLES] * 7)
    assert len(expected[-1].tokens) >= 5
    for _ in range(20):
        assert run([draw.randint(1, 2 * FRAME_SAMPLES) for _ in range(100)]) == expected


class SpyEngine(ScriptedEngine):
    """Notes the type of the samples it is given and the chunk that each call of its decoder attends to."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[np.dtype] = set()
        self.attended: list[int] = []

    def create_stream(self, preset: ChunkPreset | None) -> SpyStream:
        return SpyStream(self, preset)


class SpyStream(ScriptedStream):
    engine: SpyEngine

    def encode(self, samples: Samples) -> EncodedChunk:
        self.engine.dtypes.add(samples.dtype)
        return super().encode(samples)

    def encode_last(self, samples: Samples) -> EncodedChunk | None:
        self.engine.dtypes.add(samples.dtype)
        return super().encode_last(samples)

    def decode(self, chunk: EncodedChunk, embeddings: np.ndarray, *, num_committed: int) -> np.ndarray:
        self.engine.attended.append(chunk.first_frame)
        return super().decode(chunk, embeddings, num_committed=num_committed)


def test_the_engine_is_given_float32_and_its_decoder_the_chunk_that_fired() -> None:
    """Chunks begin with one frame of context, the first of them with a frame before the utterance."""
    engine = SpyEngine()
    stream = stream_of(engine)
    stream.accept(frames(ONE, TWO))
    stream.accept(frames(THREE, FOUR, FIVE))
    stream.finish()
    assert engine.dtypes == {np.dtype(np.float32)}
    assert engine.attended == [-1, 1, 3]


# --- the flush ----------------------------------------------------------------------------------------------------------


def test_the_flush_of_an_empty_stream_has_no_text() -> None:
    stream = stream_of()
    assert stream.finish() == Hypothesis()
    assert stream.decoded_until == FIRST


@pytest.mark.parametrize("preset", [PRESET, OVERLAPPING], ids=["0-2-1", "1-2-1"])
@pytest.mark.parametrize("count", range(1, 7))
def test_the_flush_commits_the_look_ahead_and_what_is_pending(preset: ChunkPreset, count: int) -> None:
    stream = stream_of(preset=preset)
    stream.accept(frames(*range(1, count + 1)))
    final = stream.finish()
    assert spans(final) == [(SCRIPTED_TOKENS[token], token - 1, token) for token in range(1, count + 1)]
    assert final.provisional == ()
    assert stream.decoded_until == FIRST + count * FRAME_SAMPLES


@pytest.mark.parametrize(
    ("pending", "text"), [(1, "一二"), (FRAME_SAMPLES - 1, "一二三"), (FRAME_SAMPLES, "一二三"), (FRAME_SAMPLES + 1, "一二三")]
)
def test_a_frame_that_is_not_complete_is_decoded_too(pending: int, text: str) -> None:
    """The scripted engine finds a token in the fifth sample of a frame at the earliest."""
    stream = stream_of()
    stream.accept(np.concatenate((frames(ONE, TWO), frames(THREE, FOUR)[:pending])))
    assert text_of(stream.finish().committed) == text
    assert stream.decoded_until == FIRST + 2 * FRAME_SAMPLES + pending


@pytest.mark.parametrize(("weight", "text"), [(0.5, "一"), (0.6, "一二")])
def test_a_last_token_that_is_nearly_complete_is_committed(weight: float, text: str) -> None:
    """The scripted model adds 0.45 behind the last frame; a token takes 1."""
    for ahead in ((), (0,), (0, 0)):
        assert text_of(whole(np.concatenate((frame(ONE), frame(TWO, weight), frames(*ahead)))).committed) == text


def test_no_weight_is_added_before_the_end() -> None:
    stream = stream_of()
    stream.accept(np.concatenate((frame(ONE, 0.6), frames(0, 0, 0, 0, 0))))
    assert shown(stream) == ("", "")
    assert text_of(stream.finish().committed) == "一"


HELD = FRAME_SAMPLES // 2


def test_a_held_frame_that_takes_a_token_of_the_context_back_is_not_used() -> None:
    """An utterance cut inside a syllable: the frame that the cut leaves can change the token before it."""
    stream = stream_of()
    stream.accept(np.concatenate((frames(ONE, TWO), frame(THREE, before=FIVE)[:HELD])))
    assert text_of(stream.finish().committed) == "一二"


def test_a_held_frame_that_keeps_the_contexts_tokens_is_used() -> None:
    stream = stream_of()
    stream.accept(np.concatenate((frames(ONE, TWO), frame(THREE)[:HELD])))
    assert text_of(stream.finish().committed) == "一二三"


def test_a_held_frame_that_changes_a_silent_firing_is_used() -> None:
    """The context alone fires a blank: no text is lost with it."""
    stream = stream_of()
    stream.accept(np.concatenate((frame(ONE), frame(0, 1.0), frame(THREE, before=FIVE)[:HELD])))
    assert text_of(stream.finish().committed) == "一五三"


def test_a_held_frame_that_reads_the_contexts_tokens_in_another_order_is_not_used() -> None:
    preset = ChunkPreset(0, 2, 2, encoder_look_back=4, decoder_look_back=1)
    stream = stream_of(preset=preset)
    stream.accept(np.concatenate((frames(ONE, TWO), frame(ONE, before=FIVE)[:HELD])))
    assert text_of(stream.finish().committed) == "一二", "not 一五一"


def test_a_whole_pending_frame_is_used_whatever_it_changes() -> None:
    """As FunASR does where a frame or more is pending."""
    stream = stream_of()
    stream.accept(np.concatenate((frames(ONE, TWO), frame(THREE, before=FIVE))))
    assert text_of(stream.finish().committed) == "一五三"


def test_the_flush_takes_all_that_was_pending() -> None:
    engine = ScriptedEngine()
    stream = stream_of(engine)
    stream.accept(frames(ONE, TWO, THREE))
    final = stream.finish()
    assert stream.hypothesis() == final
    assert stream.decoded_until == FIRST + 3 * FRAME_SAMPLES
    assert not stream.accept(np.zeros(2 * FRAME_SAMPLES - 1, np.float32)), "nothing is pending any more"


# --- hotwords -----------------------------------------------------------------------------------------------------------


LIKE_ONE = frame(FOUR, second=ONE, gap=2.0)
"""``四`` is likeliest where the word would have ``一``."""


def test_a_token_that_may_become_part_of_a_hotword_is_provisional() -> None:
    """The next frames decide."""
    undecided = np.concatenate((LIKE_ONE, frame(0)))
    word, other = frames(TWO, THREE), frames(FIVE, 0)
    for following, committed in ((word, "一二三"), (other, "四五")):
        stream = stream_of(hotwords=ONE_TWO_THREE)
        stream.accept(undecided)
        assert shown(stream) == ("", "四")
        stream.accept(np.concatenate((following, frames(0, 0))))
        assert shown(stream) == (committed, "")


def test_the_flush_decides_what_a_hotword_left_open() -> None:
    for following, text in (((TWO,), "四二"), ((TWO, THREE), "一二三")):
        samples = np.concatenate((LIKE_ONE, frames(*following)))
        assert text_of(whole(samples, hotwords=ONE_TWO_THREE).committed) == text


def test_each_stream_takes_the_hotwords_as_they_are_when_it_begins() -> None:
    graphs = iter([HotwordGraph(), ONE_TWO_THREE])
    recognizer = StreamingRecognizer(ScriptedEngine(), PRESET, lambda: next(graphs))
    found = []
    for _ in range(2):
        stream = recognizer.create_stream(FIRST)
        stream.accept(np.concatenate((LIKE_ONE, frames(TWO, THREE))))
        found.append(text_of(stream.finish().committed))
    assert found == ["四二三", "一二三"]


# --- with a language model ----------------------------------------------------------------------------------------------


def test_a_token_that_the_next_one_may_change_is_provisional() -> None:
    """Whether 一 or 四 was said shows when 六 follows, or the utterance ends."""
    language = bigrams(SCRIPTED_TOKENS, {("一", "六"): -0.5})
    for following, committed in ((SIX, "一六"), (FIVE, "四五")):
        stream = stream_of(ScriptedEngine(language))
        stream.accept(np.concatenate((LIKE_ONE, frame(0))))
        assert shown(stream) == ("", "四")
        stream.accept(frames(following, 0, 0, 0))
        assert shown(stream) == (committed, "")
    stream = stream_of(ScriptedEngine(language))
    stream.accept(LIKE_ONE)
    assert text_of(stream.finish().committed) == "四"


def test_an_utterance_begins_at_the_start_of_a_sentence() -> None:
    stream = stream_of(ScriptedEngine(bigrams(SCRIPTED_TOKENS, {("^", "一"): -0.5})))
    stream.accept(np.concatenate((LIKE_ONE, LIKE_ONE)))
    assert text_of(stream.finish().committed) == "一四"


# --- copies -------------------------------------------------------------------------------------------------------------

SCRIPT = np.concatenate((LIKE_ONE, frame(TWO, 0.7), frame(TWO, 0.3), frame(THREE), frame(5, 0.6), frame(6), frame(7, before=8)))


@pytest.mark.parametrize("cut", range(0, len(SCRIPT) + 1, FRAME_SAMPLES // 2))
def test_a_copy_and_its_original_go_on_independently_from_the_same_state(cut: int) -> None:
    """The original after its copy was finished, and the copy after its original was, are as if the other had not been."""
    expected = whole(SCRIPT, hotwords=ONE_TWO_THREE)
    for finish_copy_first in (True, False):
        stream = stream_of(hotwords=ONE_TWO_THREE)
        stream.accept(SCRIPT[:cut])
        before = stream.hypothesis(), stream.decoded_until
        copied = stream.copy()
        assert (copied.hypothesis(), copied.decoded_until) == before
        first, second = (copied, stream) if finish_copy_first else (stream, copied)
        first.accept(frames(9, 9, 9, 9))
        first.finish()
        assert (second.hypothesis(), second.decoded_until) == before
        second.accept(SCRIPT[cut:])
        assert second.finish() == expected
        assert second.decoded_until == FIRST + len(SCRIPT)


# --- between two chunks -------------------------------------------------------------------------------------------------

LONG = ChunkPreset(0, 4, 1, encoder_look_back=4, decoder_look_back=1)


def previewing(preview_frames: int, engine: ScriptedEngine | None = None, hotwords: HotwordGraph | None = None) -> StreamingStream:
    graph = hotwords or HotwordGraph()
    recognizer = StreamingRecognizer(engine or ScriptedEngine(), LONG, lambda: graph, preview_samples=preview_frames * FRAME_SAMPLES)
    return recognizer.create_stream(FIRST)


def test_audio_of_an_unfinished_chunk_is_shown_as_provisional() -> None:
    stream = previewing(1)
    steps = []
    for token in (1, 2, 3, 4, 5, 6):
        decoded = stream.accept(frames(token)) or stream.preview()
        assert decoded
        steps.append((*shown(stream), (stream.decoded_until - FIRST) // FRAME_SAMPLES))
    assert steps == [("", "一", 1), ("", "一二", 2), ("", "一二三", 3), ("一二三", "四", 4), ("一二三", "四五", 5), ("一二三", "四五六", 6)]


def test_a_preview_waits_for_its_interval_and_rests_on_whole_ones() -> None:
    stream = previewing(2)
    stream.accept(frames(1))
    assert not stream.preview()
    stream.accept(frames(2, 3))
    assert stream.preview()
    assert (shown(stream), stream.decoded_until) == (("", "一二"), FIRST + 2 * FRAME_SAMPLES)
    assert not stream.preview()


def test_without_an_interval_there_is_no_preview() -> None:
    stream = previewing(0)
    stream.accept(frames(1, 2, 3))
    assert not stream.preview()
    assert shown(stream) == ("", "")


def test_a_preview_of_silence_calls_no_decoder() -> None:
    engine = ScriptedEngine()
    stream = previewing(1, engine)
    stream.accept(frames(0))
    stream.preview()
    assert engine.decoded == []


@pytest.mark.parametrize("hotwords", [None, ONE_TWO_THREE], ids=["plain", "hotwords"])
def test_previews_change_nothing_that_is_committed(hotwords: HotwordGraph | None) -> None:
    """At any moment and in any number: the hypotheses at chunks and the flush are those of a stream without them."""
    draw = random.Random(1)
    for _ in range(20):
        plain, stream = previewing(0, hotwords=hotwords), previewing(1, hotwords=hotwords)
        for at in range(0, len(SCRIPT), FRAME_SAMPLES // 2):
            piece = SCRIPT[at : at + FRAME_SAMPLES // 2]
            decoded = [each.accept(piece) for each in (plain, stream)]
            assert decoded[0] == decoded[1]
            if decoded[0]:
                assert stream.hypothesis() == plain.hypothesis()
                assert stream.decoded_until == plain.decoded_until
            if draw.random() < 0.5:
                stream.preview()
            assert stream.hypothesis().committed == plain.hypothesis().committed
        copied = stream.copy()
        assert (copied.hypothesis(), copied.decoded_until) == (stream.hypothesis(), stream.decoded_until)
        assert stream.finish() == copied.finish() == plain.finish()
        assert stream.decoded_until == plain.decoded_until


# --- token times --------------------------------------------------------------------------------------------------------


def test_a_little_weight_in_silence_does_not_move_a_token() -> None:
    """What 8-bit weights, another processor or noise change: a token keeps its place within a frame."""
    draw = random.Random(2)

    def times(noise: float) -> list[tuple[int, int]]:
        silence_ = [frame(TWO, draw.random() * noise) for _ in range(8)]
        after = [frame(TWO, 0.0) for _ in range(4)]
        tokens = whole(np.concatenate([*silence_, frame(TWO, 0.55), frame(TWO, 0.5), *after, frame(THREE, 0.9), frame(0), frame(0)])).tokens
        return [(token.start_sample, token.end_sample) for token in tokens]

    (expected, *_), spread = times(0.0), 0
    for _ in range(30):
        (found, *_) = times(0.03)
        spread = max(spread, *(abs(one - other) for one, other in zip(found, expected, strict=True)))
    assert spread <= FRAME_SAMPLES


def test_spans_of_tokens_do_not_overlap_and_end_with_the_audio() -> None:
    draw = random.Random(3)
    for _ in range(50):
        samples = np.concatenate([frame(draw.randint(0, 9), draw.random()) for _ in range(20)])
        tokens = whole(samples).tokens
        assert all(FIRST <= token.start_sample <= token.end_sample <= FIRST + len(samples) for token in tokens)
        assert all(one.end_sample <= other.start_sample + FRAME_SAMPLES for one, other in itertools.pairwise(tokens))
