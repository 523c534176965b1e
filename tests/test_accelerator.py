"""An accelerator that runs out of memory costs time, not words: the model goes on on the CPU, said once.

No accelerator is at hand: ``cpu:0`` stands for one. To torch it is the CPU, to us another device, and its memory ends on command.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fakes import ACCELERATOR, failing_on_the_accelerator
from harness import EMBEDDED_ASR, ENTRIES, EXAMPLES, REPOSITORY, example, final_texts, of_type, run_service
from test_listening import Run, Script

from voice.build import build_recognizer
from voice.config import load_settings
from voice.finalization.emotion import Emotion2vec
from voice.finalization.punctuation import CtTransformer
from voice.hotword_list import HotwordList
from voice.models.funasr_model import AcceleratorOutOfMemory, FunasrModel
from voice.models.loader import load_model
from voice.recognition.hotwords import HotwordGraphs
from voice.recognition.torch_engine import TorchEngine


def recognizer_out_of_memory(mode: Any, part: str, first: int) -> tuple[FunasrModel, Any]:
    model = load_model(EMBEDDED_ASR, "ParaformerStreaming", ACCELERATOR)
    module = getattr(model.module, part)
    module.forward_chunk = failing_on_the_accelerator(model, module.forward_chunk, first)
    settings = load_settings({}, environment={})
    graphs = HotwordGraphs(HotwordList(()).current, model.tokens)
    return model, build_recognizer(settings, mode, TorchEngine(model), graphs)


@pytest.mark.parametrize("calls", [(1, 6), pytest.param(None, marks=pytest.mark.slow, id="every call")])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("mode", ENTRIES)
def test_wherever_the_memory_ends_no_word_is_lost(mode: str, part: str, calls: tuple[int, ...] | None) -> None:
    """At every call: chunks, and the ends that are made before they are sure."""
    samples, _ = example("two_utterances")
    _, never = recognizer_out_of_memory(mode, part, 10**9)
    expected = final_texts(Run(Script(samples), never).events)
    for first in calls or itertools.count(1):
        model, recognizer = recognizer_out_of_memory(mode, part, first)
        run = Run(Script(samples), recognizer)
        if model.device == ACCELERATOR and not calls:
            break  # there were no more calls
        assert model.device == "cpu"
        assert run.code == 0
        assert final_texts(run.events) == expected
        errors = run.of("error_event")
        assert len(errors) <= 1, "said once"
        assert all(error["recoverable"] and "goes on on the CPU" in error["message"] for error in errors)
    assert calls or first > 8


@pytest.mark.slow
@pytest.mark.parametrize("mode", ENTRIES)
def test_the_service_says_it_once_and_goes_on(mode: str) -> None:
    planted = f"""
import voice.models.weights
sys.path.insert(0, {str(REPOSITORY / "tests")!r})
from fakes import failing_on_the_accelerator
real = voice.models.weights.load_model
def load(directory, names, device):
    model = real(directory, names, device)
    if "ParaformerStreaming" in names:
        model.module.encoder.forward_chunk = failing_on_the_accelerator(model, model.module.encoder.forward_chunk, 9)
    return model
voice.models.weights.load_model = load
voice.models.weights.resolve_device = lambda wanted: "{ACCELERATOR}"
"""
    result = run_service(mode, "--input", str(EXAMPLES / "two_utterances.wav"), planted=planted, VOICE_ASR__MODEL__ENGINE="torch")
    assert result.returncode == 0
    assert final_texts(result.events) == list(example("two_utterances")[1])
    assert result.stderr.count("accelerator_out_of_memory") == 1
    assert len(of_type(result.events, "error_event")) <= 1


def test_a_model_that_finds_no_room_when_it_is_loaded_goes_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.nn.Module.to

    def to(self: torch.nn.Module, device: str) -> torch.nn.Module:
        if device == ACCELERATOR:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, device)

    monkeypatch.setattr(torch.nn.Module, "to", to)
    assert load_model(EMBEDDED_ASR, "ParaformerStreaming", ACCELERATOR).device == "cpu"


def optional_models() -> dict[str, tuple[str, str, str, Callable[[FunasrModel], Any]]]:
    audio = example("temperature")[0]
    text = "你好今天天气怎么样我们出去走走吧"
    return {
        "emotion": ("emotion", "Emotion2vec", "inference", lambda model: Emotion2vec(model, "emotion").scores(audio)),
        "punctuation": ("punctuation", "CTTransformer", "inference", lambda model: CtTransformer(model).punctuate(text, ended=True)),
    }


@pytest.mark.parametrize("name", optional_models())
def test_optional_models_answer_on_the_cpu(name: str) -> None:
    directory, model_class, method, use = optional_models()[name]
    path = REPOSITORY / "models" / "embedded" / directory
    expected = use(load_model(path, model_class, "cpu"))
    model = load_model(path, model_class, ACCELERATOR)
    setattr(model.module, method, failing_on_the_accelerator(model, getattr(model.module, method)))
    assert use(model) == expected
    assert model.device == "cpu"


def test_other_failures_move_nothing(funasr_model: FunasrModel) -> None:
    model = load_model(EMBEDDED_ASR, "ParaformerStreaming", ACCELERATOR)

    def fail(message: str) -> None:
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        model.run(lambda: fail("mat1 and mat2 shapes cannot be multiplied"))
    assert model.device == ACCELERATOR
    with pytest.raises(RuntimeError, match="can't allocate memory"):  # of the machine itself: there is nowhere to go
        funasr_model.run(lambda: fail("DefaultCPUAllocator: can't allocate memory: CUDA out of memory"))
    assert funasr_model.device == "cpu"
    with pytest.raises(AcceleratorOutOfMemory, match="cpu:0 has no memory left"), model.computing():
        fail("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)")
    assert model.device == "cpu"
