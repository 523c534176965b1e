"""The second pass: the whole utterance at once, by the streaming model's weights and by a model made for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from conftest import TRAINED
from fakes import bigrams
from harness import EXAMPLES, example, final_texts, of_type, run_service

from voice.finalization.finalizer import Draft, Finalizer
from voice.models.loader import load_model
from voice.places import EMBEDDED
from voice.recognition.hotwords import HotwordGraph
from voice.recognition.offline_pass import OfflinePass
from voice.recognition.second_pass import SamePass
from voice.recognition.streaming import StreamingRecognizer
from voice.recognition.torch_engine import TorchEngine
from voice.transcript import Token, Transcript, join_tokens


@pytest.fixture(scope="session")
def offline_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded weights as a ``Paraformer`` for whole utterances: its encoder's weights bear the same names."""
    directory = tmp_path_factory.mktemp("second_pass") / "offline"
    write_offline_directory(directory)
    return directory


def write_offline_directory(directory: Path) -> None:
    shutil.copytree(EMBEDDED / "asr", directory, ignore=shutil.ignore_patterns("SHA256SUMS"))
    config = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
    chunked = ("chunk_size", "stride", "pad_left", "encoder_att_look_back_factor", "decoder_att_look_back_factor")
    encoder = {key: value for key, value in config["encoder_conf"].items() if key not in chunked}
    config.update(model="Paraformer", encoder="SANMEncoder", encoder_conf={**encoder, "input_layer": "pe"}, frontend="WavFrontend")
    (directory / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def text_of(tokens: list[Token]) -> str:
    return join_tokens(token.text for token in tokens)


@pytest.mark.parametrize("name", ["air_conditioner", "temperature"])
def test_both_recognise_a_whole_utterance(engine: TorchEngine, offline_directory: Path, name: str) -> None:
    samples, (text,) = example(name)
    offline = OfflinePass(load_model(offline_directory, ("Paraformer", "SeacoParaformer"), "cpu"))
    assert text_of(SamePass(engine).tokens(samples)) == text
    assert text_of(offline.tokens(samples)) == text


def test_hotwords_steer_the_second_pass_too(engine: TorchEngine) -> None:
    samples, (text,) = example("air_conditioner")
    wrong = engine.vocabulary.tokens.index("零")
    right = [engine.vocabulary.tokens.index(character) for character in text]
    graph = HotwordGraph([((right[0], wrong), 100.0)])  # enough to overrule anybody
    assert text_of(SamePass(engine, lambda: graph).tokens(samples)).startswith(text[0] + "零")


def test_both_take_the_language_model_of_their_directory(
    engine: TorchEngine, offline_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By this one an utterance begins with anything but what was said."""
    samples, (text,) = example("air_conditioner")
    offline = load_model(offline_directory, ("Paraformer", "SeacoParaformer"), "cpu")
    others = {("^", token): 0.0 for token in engine.vocabulary.tokens if token != text[0]}
    language = bigrams(engine.vocabulary.tokens, others, weight=10.0)
    offline.language = language
    monkeypatch.setattr(engine, "language", language)
    for second_pass in (SamePass(engine), OfflinePass(offline)):
        assert text_of(second_pass.tokens(samples))[0] != text[0]


def test_audio_without_a_frame_has_no_tokens(engine: TorchEngine, offline_directory: Path) -> None:
    samples = example("temperature")[0][:100]
    assert SamePass(engine).tokens(samples) == []


def test_a_directory_of_another_class_is_named(offline_directory: Path) -> None:
    with pytest.raises(Exception, match="model is 'Paraformer', expected 'ParaformerStreaming'"):
        load_model(offline_directory, "ParaformerStreaming", "cpu")


class Scripted:
    def __init__(self, *tokens: Token) -> None:
        self._tokens = list(tokens)

    def tokens(self, samples: object) -> list[Token]:
        del samples
        if not self._tokens:
            raise RuntimeError("planted")
        return self._tokens


@pytest.mark.parametrize(("confidence", "text"), [(0.91, "大家"), (0.89, "打开"), (0.5, "打开")])
def test_the_text_of_the_higher_confidence_is_taken_and_the_tokens_stay(confidence: float, text: str) -> None:
    first = (Token("打", 0, 960, 0.95), Token("开", 960, 1920, 0.85))
    second = Scripted(Token("大", 0, 960, confidence), Token("家", 960, 1920, confidence))
    transcript = Transcript("0" * 16, first, 0, 1920, "silence", raw_text="打开", text="打开")
    samples = example("temperature")[0]
    finalized = Finalizer(second_pass=second).prepare(Draft(transcript, samples, samples)).transcript
    assert (finalized.text, finalized.raw_text, finalized.tokens) == (text, "打开", first)
    assert finalized.confidence == pytest.approx(max(confidence, 0.9))


def test_a_second_pass_that_fails_costs_nothing_but_itself() -> None:
    transcript = Transcript("0" * 16, (), 0, 1920, "silence", raw_text="打开", text="打开")
    samples = example("temperature")[0]
    marked = [("punctuation_failed", lambda text, *, ended: text + "。" * ended)]
    finalized = Finalizer(marked, second_pass=Scripted()).prepare(Draft(transcript, samples, samples))
    assert finalized.transcript.text == "打开。"
    assert finalized.failures == (("second_pass_failed", "RuntimeError: planted"),)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sliced", "streaming"])
@pytest.mark.parametrize("which", ["same", "offline"])
def test_the_service_with_a_second_pass(offline_directory: Path, mode: str, which: str) -> None:
    second_pass = str(offline_directory) if which == "offline" else which
    result = run_service(mode, "--second-pass", second_pass, "--input", str(EXAMPLES / "two_utterances.wav"))
    assert result.returncode == 0
    assert final_texts(result.events) == list(example("two_utterances")[1])
    assert of_type(result.events, "error_event") == []


@pytest.mark.slow
def test_a_second_pass_that_cannot_be_had_is_an_error_event_and_no_exit(tmp_path: Path) -> None:
    result = run_service("streaming", "--second-pass", str(tmp_path), "--input", str(EXAMPLES / "temperature.wav"))
    assert result.returncode == 0
    (error,) = of_type(result.events, "error_event")
    assert (error["error_code"], error["recoverable"]) == ("model_load_failed", True)
    assert final_texts(result.events) == list(example("temperature")[1])


def test_streams_and_their_copies_go_their_own_ways(engine: TorchEngine) -> None:
    samples, (text,) = example("air_conditioner")
    stream = StreamingRecognizer(engine, TRAINED).create_stream(0)
    for start in range(0, len(samples), 4_800):
        stream.accept(samples[start : start + 4_800])
        stream.copy().finish()
    assert stream.finish().text == text
