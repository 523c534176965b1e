"""The engine on ONNX Runtime beside the one on torch: the same frames, weights and posteriors from the same audio."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import PRESETS, TRAINED
from harness import example

from voice.recognition.engine import ChunkPreset, EncodedChunk, NonFiniteOutput
from voice.recognition.onnx_engine import OnnxEngine, Positions
from voice.recognition.second_pass import SamePass
from voice.recognition.sliced import SlicedRecognizer
from voice.recognition.streaming import StreamingRecognizer
from voice.recognition.torch_engine import TorchEngine

STRIDE = TRAINED.stride_samples
UNUSUAL = {
    "unlimited look-back": ChunkPreset(0, 10, 5, encoder_look_back=-1, decoder_look_back=1),
    "no look-back": ChunkPreset(0, 10, 5, encoder_look_back=0, decoder_look_back=0),
    "short look-back": ChunkPreset(0, 5, 2, encoder_look_back=1, decoder_look_back=2),
}


def assert_equal(one: EncodedChunk, two: EncodedChunk) -> None:
    assert one.first_frame == two.first_frame
    np.testing.assert_allclose(one.alphas, two.alphas, atol=1e-3)
    np.testing.assert_allclose(one.hidden, two.hidden, atol=1e-3)


@pytest.mark.parametrize("preset", [*PRESETS.values(), *UNUSUAL.values()], ids=[*PRESETS, *UNUSUAL])
@pytest.mark.parametrize("rest", [0, 500, 5_000])
def test_both_engines_compute_the_same(engine: TorchEngine, onnx_engine: OnnxEngine, preset: ChunkPreset, rest: int) -> None:
    samples = np.tile(example("temperature")[0], 3)
    both = [each.create_stream(preset) for each in (engine, onnx_engine)]
    rng = np.random.default_rng(0)
    for index in range(7):
        audio = samples[index * preset.stride_samples : (index + 1) * preset.stride_samples]
        one, two = (stream.encode(audio) for stream in both)
        assert_equal(one, two)
        rows = one.hidden[sorted(rng.choice(len(one.hidden), 3, replace=False))]
        num_committed = index % 4
        found = [stream.decode(chunk, rows, num_committed=num_committed) for stream, chunk in zip(both, (one, two), strict=True)]
        np.testing.assert_allclose(found[1], found[0], atol=1e-3)
    copies = [stream.copy() for stream in both]
    contexts = [stream.encode_context() for stream in copies]
    assert_equal(*contexts)
    lasts = [stream.encode_last(samples[-rest:] if rest else samples[:0]) for stream in both]
    assert (lasts[0] is None) == (lasts[1] is None)
    if lasts[0] is not None:
        assert_equal(*lasts)


def test_all_audio_as_one_chunk_is_the_same(engine: TorchEngine, onnx_engine: OnnxEngine) -> None:
    samples = example("air_conditioner")[0]
    chunks = [each.create_stream(None).encode_last(samples) for each in (engine, onnx_engine)]
    assert_equal(*chunks)


@pytest.mark.parametrize("name", ["air_conditioner", "temperature", "two_utterances"])
def test_both_engines_recognise_the_same_tokens(engine: TorchEngine, onnx_engine: OnnxEngine, name: str) -> None:
    samples = example(name)[0]

    def tokens(each: Any) -> list[Any]:
        streaming = StreamingRecognizer(each, TRAINED).create_stream(0)
        sliced = SlicedRecognizer(each, slice_samples=9_600, context_samples=57_600, edge_samples=5_760).create_stream(0)
        for stream in (streaming, sliced):
            stream.accept(samples)
        return [*streaming.finish().committed, *sliced.finish().committed, *SamePass(each).tokens(samples)]

    one, two = tokens(engine), tokens(onnx_engine)
    assert one
    assert [token.text for token in one] == [token.text for token in two]
    for field in ("start_sample", "end_sample"):  # a sample apart where torchaudio computes the features of one of them
        np.testing.assert_allclose([getattr(token, field) for token in two], [getattr(token, field) for token in one], rtol=0, atol=2)
    np.testing.assert_allclose([token.confidence for token in two], [token.confidence for token in one], atol=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_audio_that_is_no_number_is_a_failure_and_not_silence(onnx_engine: OnnxEngine, value: float) -> None:
    samples = example("temperature")[0][:STRIDE].copy()
    samples[4_000] = value
    with pytest.raises(NonFiniteOutput, match="features"):
        onnx_engine.create_stream(TRAINED).encode(samples)


def test_the_temperature_lowers_confidences(converted_embedded: Any) -> None:
    samples = example("temperature")[0]

    def confidences(temperature: float) -> list[float]:
        stream = StreamingRecognizer(OnnxEngine(converted_embedded, temperature), TRAINED).create_stream(0)
        stream.accept(samples)
        return [token.confidence for token in stream.finish().committed]

    plain, warm = confidences(1.0), confidences(3.0)
    assert len(plain) == len(warm)
    assert all(one > two for one, two in zip(plain, warm, strict=True))


def test_positions_go_on_beyond_the_first_table() -> None:
    positions, whole = Positions(8), Positions(8)
    np.testing.assert_array_equal(positions.rows(0, 10), whole.rows(0, 5_000)[:10])
    np.testing.assert_allclose(positions.rows(4_990, 5_000), whole.rows(4_990, 5_000))
    np.testing.assert_allclose(
        positions.rows(0, 1)[0],
        np.r_[np.sin([1, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3), 1e-4]), np.cos([1, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3), 1e-4])],
        atol=1e-6,
    )
