"""The contract of an engine, over the scripted one and the real one; and an engine whose output is not a number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import TRAINED
from fakes import ScriptedEngine, frames
from harness import example, of_type
from test_pipeline import real, run, texts
from test_second_pass import write_offline_directory

from voice.endpointing.silero import SileroVad
from voice.finalization.finalizer import Draft, Finalizer
from voice.models.funasr_model import FunasrModel
from voice.models.loader import load_model
from voice.recognition.cif import initial_state, integrate
from voice.recognition.engine import FRAME_SAMPLES, ChunkPreset, EncodedChunk, Engine, NonFiniteOutput
from voice.recognition.offline_pass import OfflinePass
from voice.recognition.posteriors import TokenPosteriors
from voice.recognition.second_pass import SamePass
from voice.recognition.sliced import SlicedRecognizer
from voice.recognition.streaming import StreamingRecognizer
from voice.transcript import Transcript

OVERLAPPING = ChunkPreset(5, 10, 5, encoder_look_back=0, decoder_look_back=0)
STRIDE = TRAINED.stride_samples

# --- the contract -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["scripted", "torch", "onnx"])
def any_engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "scripted":
        return ScriptedEngine()
    return request.getfixturevalue("engine" if request.param == "torch" else "onnx_engine")


@pytest.fixture
def audio(any_engine: Engine) -> np.ndarray:
    """Five chunks and 1.5 frames that hold some tokens."""
    length = 5 * STRIDE + 3 * FRAME_SAMPLES // 2
    if isinstance(any_engine, ScriptedEngine):
        return frames(*[0, 1, 2, 0, 3, 4, 0, 5] * 7)[:length]
    return example("temperature")[0][:length]


def strides(samples: np.ndarray) -> list[np.ndarray]:
    return [samples[at : at + STRIDE] for at in range(0, 5 * STRIDE, STRIDE)]


def embeddings_of(engine: Engine, chunk: EncodedChunk) -> np.ndarray:
    fired, _ = integrate(chunk, range(len(chunk.alphas)), initial_state(engine.cif), engine.cif, is_final=True)
    return np.stack([firing.embedding for firing in fired])


@pytest.mark.parametrize("preset", [TRAINED, OVERLAPPING], ids=["0-10-5", "5-10-5"])
def test_a_chunk_holds_the_context_and_its_own_frames(any_engine: Engine, audio: np.ndarray, preset: ChunkPreset) -> None:
    stream = any_engine.create_stream(preset)
    for index, samples in enumerate(strides(audio)):
        chunk = stream.encode(samples)
        assert chunk.first_frame == index * preset.chunk - preset.context
        assert chunk.alphas.shape == (preset.context + preset.chunk,)
        assert chunk.hidden.shape == (preset.context + preset.chunk, any_engine.cif.width)
        assert chunk.alphas.dtype == chunk.hidden.dtype == np.float32
        assert chunk.alphas.min() >= 0
    last = stream.encode_last(audio[5 * STRIDE :])
    assert last is not None
    assert last.first_frame == 5 * preset.chunk - preset.context
    assert len(last.alphas) in (preset.context + 1, preset.context + 2)


def test_the_context_alone_makes_a_last_chunk(any_engine: Engine, audio: np.ndarray) -> None:
    stream = any_engine.create_stream(TRAINED)
    stream.encode(audio[:STRIDE])
    chunk = stream.encode_context()
    assert chunk is not None
    assert (len(chunk.alphas), chunk.first_frame) == (5, 5)


def test_without_audio_there_is_no_chunk(any_engine: Engine) -> None:
    nothing = np.zeros(0, np.float32)
    assert any_engine.create_stream(TRAINED).encode_context() is None
    assert any_engine.create_stream(TRAINED).encode_last(nothing) is None
    assert any_engine.create_stream(None).encode_last(nothing) is None


def test_without_a_preset_all_audio_is_one_chunk(any_engine: Engine, audio: np.ndarray) -> None:
    chunk = any_engine.create_stream(None).encode_last(audio)
    assert chunk is not None
    assert chunk.first_frame == 0
    assert len(chunk.alphas) in (51, 52)
    with pytest.raises(ValueError, match="without a preset"):
        any_engine.create_stream(None).encode(audio[:STRIDE])


def test_posteriors_are_a_distribution_over_the_vocabulary(any_engine: Engine, audio: np.ndarray) -> None:
    stream = any_engine.create_stream(None)
    chunk = stream.encode_last(audio)
    embeddings = embeddings_of(any_engine, chunk)
    log_posteriors = stream.decode(chunk, embeddings, num_committed=len(embeddings))
    assert log_posteriors.shape == (len(embeddings), len(any_engine.vocabulary.tokens))
    assert log_posteriors.dtype == np.float32
    np.testing.assert_allclose(np.exp(log_posteriors).sum(axis=1), 1, atol=1e-4)


def test_provisional_tokens_change_nothing_for_others_and_leave_no_trace(any_engine: Engine, audio: np.ndarray) -> None:
    stream = any_engine.create_stream(TRAINED)
    chunks = [stream.encode(samples) for samples in strides(audio)[:2]]
    embeddings = embeddings_of(any_engine, chunks[1])
    assert len(embeddings) >= 3
    plain, alone = stream.copy(), stream.copy()
    expected = plain.decode(chunks[1], embeddings[:2], num_committed=2)
    found = stream.decode(chunks[1], embeddings, num_committed=2)
    np.testing.assert_allclose(found[:2], expected, atol=1e-4)
    alone.decode(chunks[1], embeddings, num_committed=0)
    behind = [each.decode(chunks[1], embeddings[2:], num_committed=1) for each in (plain, stream)]
    np.testing.assert_allclose(behind[1], behind[0], atol=1e-4)
    np.testing.assert_array_equal(alone.decode(chunks[1], embeddings[:2], num_committed=2), expected)


def test_a_copy_and_its_original_go_on_independently(any_engine: Engine, audio: np.ndarray) -> None:
    stream = any_engine.create_stream(TRAINED)
    first, second, third, fourth, _ = strides(audio)
    chunk = stream.encode(first)
    stream.decode(chunk, np.ones((2, any_engine.cif.width), np.float32), num_committed=2)
    copied, untouched = stream.copy(), stream.copy()
    stream.encode(fourth)
    stream.encode_context()
    stream.decode(chunk, np.ones((3, any_engine.cif.width), np.float32), num_committed=3)
    for samples in (second, third):
        one, two = copied.encode(samples), untouched.encode(samples)
        np.testing.assert_array_equal(one.hidden, two.hidden)
        np.testing.assert_array_equal(one.alphas, two.alphas)
        assert one.first_frame == two.first_frame
        embeddings = embeddings_of(any_engine, one)
        decoded = [each.decode(one, embeddings, num_committed=len(embeddings)) for each in (copied, untouched)]
        np.testing.assert_array_equal(*decoded)


def test_what_goes_in_and_comes_out_is_not_written_to(any_engine: Engine, audio: np.ndarray) -> None:
    stream = any_engine.create_stream(TRAINED)
    given = strides(audio.copy())[1]
    samples, chunk = given.copy(), stream.encode(given)
    hidden, embeddings = chunk.hidden.copy(), embeddings_of(any_engine, chunk)
    embeddings_before = embeddings.copy()
    stream.decode(chunk, embeddings, num_committed=1)
    stream.encode(given)
    stream.encode_context()
    for before, after in ((samples, given), (hidden, chunk.hidden), (embeddings_before, embeddings)):
        np.testing.assert_array_equal(before, after)


# --- output that is not a number ----------------------------------------------------------------------------------------


def planted(method: Any, value: float, at: tuple[int, ...], first: int = 1) -> Any:
    """``method``; from its ``first`` call on its output has ``value`` at one place."""
    calls = 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        result = method(*arguments, **options)
        if calls >= first:
            (result[0] if isinstance(result, tuple) else result)[at] = value
        return result

    return call


PARTS = {
    "encoder": ("encoder", "forward_chunk", (0, 2, 3)),
    "alphas": ("predictor.cif_output", "forward", (0, 2, 0)),
    "decoder": ("decoder", "forward_chunk", (0, 0, 7)),
}


def plant(monkeypatch: pytest.MonkeyPatch, model: Any, part: str, value: float, first: int = 1) -> None:
    path, method, at = PARTS[part]
    module = model.module.get_submodule(path)
    monkeypatch.setattr(module, method, planted(getattr(module, method), value, at, first))


def streams(engine: Engine) -> dict[str, Any]:
    return {
        "streaming": StreamingRecognizer(engine, TRAINED).create_stream(0),
        "sliced": SlicedRecognizer(engine, slice_samples=9_600, context_samples=57_600, edge_samples=5_760).create_stream(0),
    }


# An infinite alpha cannot be: it leaves a sigmoid. Minus infinity is how a token is ruled out.
@pytest.mark.parametrize(
    "wrong",
    [("encoder", np.nan), ("encoder", np.inf), ("encoder", -np.inf), ("alphas", np.nan), ("decoder", np.nan), ("decoder", np.inf)],
)
@pytest.mark.parametrize("mode", ["streaming", "sliced", "same"])
def test_output_that_is_no_number_is_a_failure(
    engine: Any, funasr_model: Any, monkeypatch: pytest.MonkeyPatch, mode: str, wrong: tuple[str, float]
) -> None:
    plant(monkeypatch, funasr_model, *wrong)
    samples = example("temperature")[0]
    with pytest.raises(NonFiniteOutput, match="values that are no numbers"):
        SamePass(engine).tokens(samples) if mode == "same" else streams(engine)[mode].accept(samples)


def test_a_token_at_minus_infinity_is_no_failure(engine: Any, funasr_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = example("temperature")[0]

    def decoded() -> list[str]:
        found = streams(engine)
        for stream in found.values():
            stream.accept(samples)
        return [stream.finish().text for stream in found.values()]

    expected = decoded()
    plant(monkeypatch, funasr_model, "decoder", -np.inf)
    assert decoded() == expected


@pytest.mark.parametrize("row", [[0, np.nan, -1], [np.inf, 0, 0], [-np.inf] * 3])
def test_posteriors_that_are_no_distribution_cannot_be_made(row: list[float]) -> None:
    with pytest.raises(NonFiniteOutput, match="posteriors"):
        TokenPosteriors(np.asarray(row, np.float32), 0, 960)
    assert TokenPosteriors(np.asarray([-np.inf, 0, -np.inf], np.float32), 0, 960).likeliest_id == 1


@pytest.mark.parametrize("mode", ["streaming", "sliced"])
def test_a_final_survives_output_that_was_no_number_once(
    engine: Any, funasr_model: Any, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    samples, expected = example("temperature")
    module, calls = funasr_model.module.decoder, []
    real_decoder = module.forward_chunk

    def once(*arguments: Any) -> Any:
        calls.append(None)
        return real_decoder(*arguments) * (np.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(module, "forward_chunk", once)
    events = run(real(engine, SileroVad(), mode), samples)
    (error,) = of_type(events, "error_event")
    assert (error["error_code"], error["recoverable"]) == ("infer_partial_failed", True)
    assert error["message"].startswith("NonFiniteOutput: ")
    assert texts(events) == list(expected)


@pytest.fixture(scope="module")
def offline_model(tmp_path_factory: pytest.TempPathFactory) -> FunasrModel:
    directory = tmp_path_factory.mktemp("second_pass") / "offline"
    write_offline_directory(directory)
    return load_model(directory, "Paraformer", "cpu")


@pytest.mark.parametrize("part", ["encoder", "alphas", "decoder"])
@pytest.mark.parametrize("which", ["same", "offline"])
def test_a_second_pass_whose_output_is_no_number_costs_only_itself(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, which: str, part: str
) -> None:
    samples, (text,) = example("temperature")
    if which == "same":
        second_pass: Any = SamePass(request.getfixturevalue("engine"))
        plant(monkeypatch, request.getfixturevalue("funasr_model"), part, np.nan)
    else:
        model = request.getfixturevalue("offline_model")
        second_pass = OfflinePass(model)
        path, _, at = PARTS[part]
        module = model.module.get_submodule(path)
        monkeypatch.setattr(module, "forward", planted(module.forward, np.nan, at))
    draft = Draft(Transcript("0" * 16, (), 0, len(samples), "silence", raw_text=text, text=text), samples, samples)
    finalized = Finalizer(second_pass=second_pass).prepare(draft)
    ((code, message),) = finalized.failures
    assert code == "second_pass_failed"
    if (which, part) != ("offline", "alphas"):  # there FunASR may fail before we see them
        assert message.startswith("NonFiniteOutput: ")
    assert finalized.transcript.text == text
