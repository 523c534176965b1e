"""Shared fixtures: the real embedded model, loaded once."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from harness import EMBEDDED_ASR, STARTED
from virtual_microphone import VirtualMicrophone

from voice.conversion.convert import write_graphs
from voice.models.converted import OnnxModel, load_converted
from voice.models.directory import describe_model
from voice.models.funasr_model import FunasrModel
from voice.models.loader import load_model
from voice.models.torch_setup import limit_spinning, set_num_threads
from voice.models.weights import RECOGNITION
from voice.recognition.engine import ChunkPreset
from voice.recognition.onnx_engine import OnnxEngine
from voice.recognition.torch_engine import TorchEngine

limit_spinning()  # as the service does, before any test imports torch
structlog.configure(  # its default draws the local variables of every frame: seconds for each exception that a test plants
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)


class Fuzzed:
    """Inputs that the fuzz tests tried, for the summary."""

    def __init__(self) -> None:
        self.inputs: collections.Counter[str] = collections.Counter()
        self.seconds = 0.0

    def count(self, name: str) -> None:
        self.inputs[name] += 1


FUZZED = Fuzzed()


def pytest_sessionfinish(session: Any) -> None:
    """A worker hands on what it counted; there is one where pytest-xdist runs tests side by side."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["fuzzed"] = (dict(FUZZED.inputs), FUZZED.seconds)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    inputs, seconds = getattr(node, "workeroutput", {}).get("fuzzed", ({}, 0.0))  # a worker that crashed has none
    FUZZED.inputs.update(inputs)
    FUZZED.seconds += seconds


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if FUZZED.inputs:
        terminalreporter.write_line(f"fuzz: {FUZZED.inputs.total():,} inputs in {FUZZED.seconds:.0f} s, {len(FUZZED.inputs)} targets")


TRAINED = ChunkPreset(0, 10, 5, encoder_look_back=4, decoder_look_back=1)
PRESETS = {
    "0-10-5": TRAINED,
    "0-8-4": ChunkPreset(0, 8, 4, encoder_look_back=4, decoder_look_back=1),
    "5-10-5": ChunkPreset(5, 10, 5, encoder_look_back=0, decoder_look_back=0),
}


@pytest.fixture(scope="session")
def funasr_model() -> FunasrModel:
    """The embedded model with its weights."""
    model = load_model(EMBEDDED_ASR, "ParaformerStreaming", "cpu")
    set_num_threads(1)
    return model


@pytest.fixture(scope="session")
def engine(funasr_model: FunasrModel) -> TorchEngine:
    """The embedded model behind the seam."""
    return TorchEngine(funasr_model)


@pytest.fixture(scope="session")
def paraformer(engine: TorchEngine) -> TorchEngine:
    """The same, under the name that older tests know."""
    return engine


@pytest.fixture(scope="session")
def converted_embedded(funasr_model: FunasrModel, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    """The embedded model, converted now."""
    graphs = tmp_path_factory.mktemp("onnx")
    write_graphs(funasr_model, describe_model(funasr_model.directory, RECOGNITION), graphs)
    return load_converted(graphs, funasr_model.directory, num_threads=1)


@pytest.fixture(scope="session")
def onnx_engine(converted_embedded: OnnxModel) -> OnnxEngine:
    """The embedded model on ONNX Runtime."""
    return OnnxEngine(converted_embedded)


@pytest.fixture(autouse=True)
def no_service_outlives_its_test() -> Iterator[None]:
    """A test that fails costs no other test anything."""
    yield
    while STARTED:
        STARTED.pop().end()


@pytest.fixture
def microphone(tmp_path: Path) -> Iterator[VirtualMicrophone]:
    """A microphone that is there."""
    virtual = VirtualMicrophone(tmp_path)
    virtual.start()
    try:
        yield virtual
    finally:
        virtual.stop()
