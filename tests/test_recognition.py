"""Recognition on the real embedded model: equal to FunASR where FunASR is right, better where it loses words."""

from __future__ import annotations

import difflib
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import PRESETS, TRAINED
from harness import EMBEDDED_ASR, example, example_names

from voice.audio import ms_to_samples
from voice.recognition.cif import initial_state, integrate
from voice.recognition.engine import FRAME_SAMPLES, ChunkPreset
from voice.recognition.sliced import SlicedRecognizer
from voice.recognition.streaming import StreamingRecognizer
from voice.recognition.torch_engine import TorchEngine
from voice.transcript import Hypothesis, join_tokens

STRIDE = TRAINED.stride_samples
TWENTY_MS = 320


@pytest.fixture(scope="module")
def greedy(funasr_model: Any) -> TorchEngine:
    """The embedded model without its language model, which FunASR does not read."""
    return TorchEngine(replace(funasr_model, language=None))


@pytest.fixture(scope="session")
def auto_model(funasr_model: Any) -> Any:
    """FunASR's own top-level API on the same weights."""
    from funasr.auto.auto_model import AutoModel

    model = AutoModel(model=str(EMBEDDED_ASR), disable_update=True, disable_pbar=True, ncpu=1, device="cpu")
    model.kwargs["frontend"].dither = 0.0
    return model


def generate(auto_model: Any, samples: np.ndarray, cache: dict, preset: ChunkPreset, *, is_final: bool) -> str:
    result = auto_model.generate(
        input=samples,
        cache=cache,
        is_final=is_final,
        chunk_size=[preset.left, preset.chunk, preset.right],
        encoder_chunk_look_back=preset.encoder_look_back,
        decoder_chunk_look_back=preset.decoder_look_back,
    )
    return result[0]["text"]


def text_of(tokens: Any) -> str:
    return join_tokens(token.text for token in tokens)


def is_subsequence(part: str, whole: str) -> bool:
    remaining = iter(whole)
    return all(char in remaining for char in part)


@pytest.mark.parametrize("name", example_names())
@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_greedy_tokens_equal_funasrs_chunk_by_chunk(greedy: TorchEngine, auto_model: Any, name: str, preset: ChunkPreset) -> None:
    samples, _ = example(name)
    stream, cache = StreamingRecognizer(greedy, preset).create_stream(0), {}
    ours, theirs, seen = [], [], 0
    last = (len(samples) // preset.stride_samples - 1) * preset.stride_samples
    samples = samples[: last + preset.stride_samples // 2]  # not less than a frame, where FunASR's flush is defective
    for start in range(0, last, preset.stride_samples):
        piece = samples[start : start + preset.stride_samples]
        stream.accept(piece)
        committed = stream.hypothesis().committed
        ours.append(text_of(committed[seen:]))
        seen = len(committed)
        theirs.append(generate(auto_model, piece, cache, preset, is_final=False))
    stream.accept(samples[last:])
    ours.append(text_of(stream.finish().committed[seen:]))
    theirs.append(generate(auto_model, samples[last:], cache, preset, is_final=True))
    assert ours == theirs
    assert any(ours)


def test_cif_fires_and_embeds_exactly_as_funasrs_predictor(engine: TorchEngine, funasr_model: Any) -> None:
    import torch

    samples, _ = example("temperature")
    stream, state = engine.create_stream(TRAINED), initial_state(engine.cif)
    cache: dict[str, Any] = {
        "chunk_size": [0, 10, 5],
        "cif_hidden": torch.zeros(1, 1, funasr_model.module.encoder.output_size()),
        "cif_alphas": torch.zeros(1, 1),
    }
    fired_in_all = 0
    for index in range(len(samples) // STRIDE):
        is_final = index == len(samples) // STRIDE - 1
        piece = samples[index * STRIDE : (index + 1) * STRIDE]
        chunk = stream.encode_last(piece) if is_final else stream.encode(piece)
        rows = range(len(chunk.alphas)) if is_final else range(10)
        fired, state = integrate(chunk, rows, state, engine.cif, is_final=is_final)
        with torch.inference_mode():
            hidden = torch.from_numpy(chunk.hidden)[None]
            embeddings, count, _, _ = funasr_model.module.predictor.forward_chunk(hidden, cache, is_final=is_final)
        assert len(fired) == int(count)
        for firing, theirs in zip(fired, embeddings[0], strict=False):
            np.testing.assert_array_equal(firing.embedding, theirs.numpy())
        assert state.weight == cache["cif_alphas"].item()
        fired_in_all += len(fired)
    assert fired_in_all >= 10


def test_token_times_rise_and_lie_in_the_speech(engine: TorchEngine) -> None:
    samples, _ = example("temperature")
    first = 160_000
    stream = StreamingRecognizer(engine, TRAINED).create_stream(first)
    stream.accept(samples)
    tokens = stream.finish().committed
    starts = [token.start_sample for token in tokens]
    assert starts == sorted(starts)
    assert all(first <= token.start_sample < token.end_sample <= first + len(samples) for token in tokens)
    # Speech stands from 0.54 to 2.56 s in this file; CIF times are good to a frame or two.
    assert first + 0.35 * 16_000 <= starts[0] <= first + 0.75 * 16_000
    assert first + 2.1 * 16_000 <= starts[-1] <= first + 2.6 * 16_000


def test_confidence_is_a_posterior_and_falls_with_noise(engine: TorchEngine) -> None:
    samples, _ = example("temperature")
    noise = np.random.default_rng(0).normal(0, 0.15, len(samples)).astype(np.float32)
    clean, noisy = (decode(engine, audio) for audio in (samples, samples + noise))
    assert all(0 < token.confidence < 1 for token in clean.tokens)
    assert len({token.confidence for token in clean.tokens}) == len(clean.tokens)
    assert noisy.confidence < clean.confidence - 0.05


def test_temperature_changes_how_sure_it_is_and_not_what_it_reads(engine: TorchEngine, funasr_model: Any) -> None:
    samples, _ = example("temperature")
    plain, less, more = (decode(model, samples) for model in (engine, TorchEngine(funasr_model, 2.0), TorchEngine(funasr_model, 0.5)))
    assert less.text == plain.text == more.text
    for low, middle, high in zip(less.tokens, plain.tokens, more.tokens, strict=True):
        assert low.confidence < middle.confidence < high.confidence


def decode(engine: TorchEngine, samples: np.ndarray, preset: ChunkPreset = TRAINED) -> Hypothesis:
    stream = StreamingRecognizer(engine, preset).create_stream(0)
    stream.accept(samples)
    return stream.finish()


@pytest.mark.parametrize("mode", ["streaming", "sliced"])
def test_pieces_of_any_size_give_the_same_hypotheses(engine: TorchEngine, mode: str) -> None:
    samples, _ = example("temperature")
    recognizer = recognizer_of(engine, mode)

    def run(sizes: list[int]) -> tuple[list[Hypothesis], Hypothesis]:
        stream, shown, at = recognizer.create_stream(0), [], 0
        for size in sizes:
            if stream.accept(samples[at : at + size]):
                shown.append(stream.hypothesis())
            at += size
        stream.accept(samples[at:])
        return shown, stream.finish()

    draw = random.Random(0)
    even = run([512] * (len(samples) // 512))
    uneven = run([draw.randint(1, 2_000) for _ in range(30)] + [512] * 20)
    assert even[1] == uneven[1]
    assert set(uneven[0]) <= set(even[0]) | {even[1]}


def recognizer_of(engine: TorchEngine, mode: str) -> Any:
    if mode == "streaming":
        return StreamingRecognizer(engine, TRAINED)
    return SlicedRecognizer(engine, slice_samples=9_600, context_samples=57_600, edge_samples=5_760)


@pytest.mark.parametrize("mode", ["streaming", "sliced"])
def test_streams_share_no_state(engine: TorchEngine, mode: str) -> None:
    recognizer = recognizer_of(engine, mode)
    one, two = (example(name)[0] for name in ("temperature", "air_conditioner"))
    alone = []
    for samples in (one, two):
        stream = recognizer.create_stream(0)
        stream.accept(samples)
        alone.append(stream.finish())
    first, second = recognizer.create_stream(0), recognizer.create_stream(0)
    for start in range(0, max(len(one), len(two)), 3_200):
        for stream, samples in ((first, one), (second, two)):
            stream.accept(samples[start : start + 3_200])
            stream.hypothesis()
    assert [first.finish(), second.finish()] == alone


@pytest.mark.parametrize("mode", ["streaming", "sliced"])
@pytest.mark.parametrize("name", ["temperature", "air_conditioner"])
def test_committed_text_never_changes(engine: TorchEngine, mode: str, name: str) -> None:
    samples, texts = example(name)
    samples = samples[: np.flatnonzero(np.abs(samples) > 0.02)[-1] + 4_800]  # as an endpoint leaves it
    stream = recognizer_of(engine, mode).create_stream(0)
    stable, provisional_seen = "", False
    for start in range(0, len(samples), 4_800):
        stream.accept(samples[start : start + 4_800])
        hypothesis = stream.hypothesis()
        assert hypothesis.text.startswith(stable)
        stable = hypothesis.text[: hypothesis.stable_chars]
        provisional_seen |= bool(hypothesis.provisional)
    final = stream.finish()
    assert final.text.startswith(stable)
    assert difflib.SequenceMatcher(None, final.text, "".join(texts)).ratio() > 0.85, "exact through the service, which begins elsewhere"
    assert provisional_seen == (mode == "streaming")


def test_the_provisional_tail_changes_nothing_that_is_committed(engine: TorchEngine) -> None:
    samples, _ = example("two_utterances")
    streams = [StreamingRecognizer(engine, TRAINED).create_stream(0) for _ in range(2)]
    for start in range(0, len(samples), STRIDE):
        for stream, provisional in zip(streams, (True, False), strict=True):
            stream.accept(samples[start : start + STRIDE], provisional=provisional)
    one, two = (stream.finish() for stream in streams)
    assert [(t.text, t.start_sample, t.end_sample) for t in one.tokens] == [(t.text, t.start_sample, t.end_sample) for t in two.tokens]
    assert [t.confidence for t in one.tokens] == pytest.approx([t.confidence for t in two.tokens], abs=1e-5)


@pytest.mark.parametrize("mode", ["streaming", "sliced"])
def test_an_empty_stream_and_a_very_short_one_finish_without_text(engine: TorchEngine, mode: str) -> None:
    for length in (0, 1, 399, 959, 961, 1_500):
        stream = recognizer_of(engine, mode).create_stream(0)
        stream.accept(np.zeros(length, np.float32))
        assert stream.finish().text == "", length


@pytest.mark.parametrize(("first", "second", "pause_ms"), [(0, 2, 150), (0, 2, 200), (1, 0, 450), (1, 0, 500)])
def test_sliced_mode_does_not_double_the_last_character_before_a_pause(engine: TorchEngine, first: int, second: int, pause_ms: int) -> None:
    """The window that committed the character had nothing behind it; the later one has the pause, which must not make it another token."""
    (one, texts), (two, more) = example("air_conditioner"), example("two_utterances")
    spoken = [(without_silence(samples), text) for samples, text in zip((one, *np.array_split(two, 2)), texts + more, strict=True)]
    (before, text), (behind, rest) = spoken[first], spoken[second]
    start, pause, end = (np.zeros(ms_to_samples(ms), np.float32) for ms in (300, pause_ms, 500))
    stream = recognizer_of(engine, "sliced").create_stream(0)
    stream.accept(np.concatenate((start, before, pause, behind, end)))
    assert stream.finish().text.startswith(text + rest[:4])


def without_silence(samples: np.ndarray) -> np.ndarray:
    """From 50 ms before the first loud sample to 50 ms behind the last one."""
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    return samples[loud[0] - 800 : loud[-1] + 800]


@pytest.mark.slow
def test_the_flush_holds_every_token_of_funasrs_at_every_cut(greedy: TorchEngine, auto_model: Any) -> None:
    """One utterance cut at every 20 ms across two chunks: equal where 960 samples remain, nothing less where fewer do."""
    samples, _ = example("temperature")
    compared = {"equal": 0, "at_least": 0}
    for cut in range(2 * STRIDE, 4 * STRIDE, TWENTY_MS):
        ours = text_of(decode(greedy, samples[:cut]).committed)
        theirs = generate(auto_model, samples[:cut], {}, TRAINED, is_final=True)
        if cut % STRIDE >= FRAME_SAMPLES:
            assert ours == theirs, cut
            compared["equal"] += 1
        else:
            assert is_subsequence(theirs, ours), (cut, theirs, ours)
            compared["at_least"] += 1
    assert compared == {"equal": 54, "at_least": 6}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["temperature", "air_conditioner"])
@pytest.mark.parametrize("mode", ["streaming", "sliced"])
def test_no_cut_loses_a_token_that_ended_before_it(greedy: TorchEngine, mode: str, name: str) -> None:
    """Tail loss 0: every token of the uncut reference that ends 100 ms or more before the cut is there.

    Without the language model, which may read a cut word as another one.
    """
    samples, _ = example(name)
    recognizer = recognizer_of(greedy, mode)
    reference = decode(greedy, samples).committed
    cuts = missed = 0
    for cut in range(STRIDE, min(len(samples), 5 * STRIDE), TWENTY_MS):
        needed = text_of(token for token in reference if token.end_sample <= cut - 1_600)
        stream = recognizer.create_stream(0)
        stream.accept(samples[:cut])
        missed += not is_subsequence(needed, stream.finish().text)
        cuts += 1
    assert cuts >= 100
    assert missed == 0
