"""The import law of the design: layers look down only, stages do not know each other, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "voice.process",
    "voice.models",
    "voice.conversion",
    "voice.commands",
    *(f"voice.{stage}" for stage in ("capture", "endpointing", "recognition", "finalization", "output")),
)
STAGES = ("capture", "endpointing", "recognition", "finalization", "output")
LAYERS: tuple[tuple[str, ...], ...] = (
    ("voice", "voice.audio", "voice.errors", "voice.places", "voice.client"),
    ("voice.level",),
    ("voice.transcript",),
    ("voice.text_file", "voice.pinyin"),
    ("voice.yaml_file",),
    ("voice.losses", "voice.windowing", "voice.config", "voice.process", "voice.hotword_list", "voice.flags", "voice.wake_words"),
    ("voice.models",),
    tuple(f"voice.{stage}" for stage in STAGES),
    (
        "voice.intake",
        "voice.conclusion",
        "voice.utterance_state",
        "voice.conversion",
        "voice.capture_times",
        "voice.wake",
        "voice.wake_bias",
    ),
    ("voice.utterance",),
    ("voice.awaited",),
    ("voice.pipeline", "voice.utterance_log"),
    ("voice.options",),
    ("voice.build", "voice.inputs"),
    ("voice.listening",),
    ("voice.daemon",),
    ("voice.cli",),
    ("voice.prerequisites",),
    ("voice.commands",),
    ("asr_service", "asr_service_streaming", "voice.__main__"),
)
"""Lowest first; a module imports from below its own layer, a stage, the models and the process from their own package too."""

STAGE_LAYER = next(index for index, members in enumerate(LAYERS) if "voice.capture" in members)
TORCH_RECOGNITION = tuple(f"voice.recognition.{name}" for name in ("torch_engine", "acceleration", "offline_pass"))
"""All of recognition that knows torch; the rest works with any engine."""
TORCH_FREE_MODELS = ("voice.models.converted", "voice.models.language_model", "voice.models.onnx_session")
MODEL_PACKAGES = ("voice.models", "voice.conversion", "voice.recognition", "voice.finalization", "voice.endpointing")


@dataclass(frozen=True)
class Import:
    """One module that another one names."""

    module: str
    line: int
    at_top: bool
    """Outside of every function, and not for types alone: it runs when the importer is imported."""


def layer_of(module: str) -> int | None:
    """Index into ``LAYERS``; None for a module of somebody else."""
    for index, members in enumerate(LAYERS):
        if module in members or any(module.startswith(f"{member}.") for member in members if member != "voice"):
            return index
    assert not module.startswith("voice."), f"{module} stands in no layer: add it to LAYERS"
    return None


def package_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def imports_of(tree: ast.AST, module: str, modules: frozenset[str]) -> Iterator[Import]:
    """Every module imported anywhere in ``tree``, by statement or by name in a call."""
    in_functions = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(function, ast.If) and ast.unparse(function.test) == "TYPE_CHECKING")
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            submodules = [f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in modules]
            names = submodules or [base]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__"):
            names = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
        for name in names:
            yield Import(name, node.lineno, id(node) not in in_functions)


def uses_of_stdout(tree: ast.AST) -> Iterator[int]:
    """Lines that name ``sys.stdout`` or its original."""
    names = {"stdout", "__stdout__"}
    for node in ast.walk(tree):
        by_attribute = isinstance(node, ast.Attribute) and node.attr in names and ast.unparse(node.value) == "sys"
        by_import = isinstance(node, ast.ImportFrom) and node.module == "sys" and names & {alias.name for alias in node.names}
        if by_attribute or by_import:
            yield node.lineno


def violations(source: str, module: str, modules: Iterable[str] = ()) -> list[str]:
    """What is against the law in a module, a line each."""
    tree = ast.parse(source)
    own_layer = layer_of(module)
    assert own_layer is not None
    found = []
    for each in imports_of(tree, module, frozenset(modules)):
        where, top = f"{module}:{each.line} imports {each.module}", each.module.split(".")[0]
        layer = layer_of(each.module)
        own_package = package_of(module) in PACKAGES and package_of(each.module) == package_of(module)
        if layer is not None and layer >= own_layer and not own_package:
            found.append(f"{where}: {'another stage' if layer == own_layer == STAGE_LAYER else 'not below it'}")
        if top in ("torch", "torchaudio", "funasr") and package_of(module) not in MODEL_PACKAGES:
            found.append(f"{where}: only the adapters of models may")
        needs_torch = (
            top in ("torch", "torchaudio", "funasr")
            or (package_of(each.module) == "voice.models" and each.module not in TORCH_FREE_MODELS)
            or each.module in TORCH_RECOGNITION
        )
        if needs_torch and package_of(module) == "voice.recognition" and module not in TORCH_RECOGNITION:
            found.append(f"{where}: in recognition only the torch adapters may")
        if top == "websockets" and not module.startswith("voice.recognition.remote."):
            found.append(f"{where}: only recognition by a server may")
        if each.module.startswith("voice.recognition.remote.") and not module.startswith("voice.recognition.remote.") and each.at_top:
            found.append(f"{where}: only inside a function, so that a run without a server imports nothing of it")
        if top == "onnx" and package_of(module) != "voice.conversion":
            found.append(f"{where}: only the conversion may, which is a process of its own")
        if top == "sounddevice" and module != "voice.capture.portaudio":
            found.append(f"{where}: only capture/portaudio.py may")
        if top == "sounddevice" and each.at_top:
            found.append(f"{where}: only inside a function, so that a machine without PortAudio runs on files")
    # start repairs one that the parent closed; the commands write what people ask for, and leave it alone where the service runs
    if module not in ("voice.output.writer", "voice.process.start") and package_of(module) != "voice.commands":
        found += [f"{module}:{line} uses sys.stdout: only output/writer.py may" for line in uses_of_stdout(tree)]
    return found


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_of(path): path for path in [*(ROOT / "voice").rglob("*.py"), *ROOT.glob("asr_service*.py")]}


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_the_module_keeps_the_import_law(module: str):
    assert violations(SOURCES[module].read_text(encoding="utf-8"), module, SOURCES) == []


def test_the_walk_sees_the_modules_the_law_is_about():
    assert {"voice.output.writer", "voice.capture.microphone", "voice.recognition.torch_engine", "voice.cli", "asr_service"} <= set(SOURCES)


def test_the_walk_sees_imports_inside_functions():
    """Where the real code imports lazily, the checker must find it, or it would pass whatever stood there."""
    tree = ast.parse(SOURCES["voice.capture.portaudio"].read_text(encoding="utf-8"))
    lazy = [each.module for each in imports_of(tree, "voice.capture.portaudio", frozenset(SOURCES)) if not each.at_top]
    assert "sounddevice" in lazy


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("voice.audio", "from voice.config import Settings", "not below it"),
        ("voice.audio", "from voice.transcript import Token", "not below it"),
        ("voice.config", "import voice.process.logs", "not below it"),
        ("voice.errors", "def f():\n    from voice import config", "not below it"),
        ("voice.capture.resample", "from voice.pipeline import Pipeline", "not below it"),
        ("voice.capture.resample", "from voice.endpointing.endpointer import Endpointer", "another stage"),
        ("voice.recognition.sliced", "from voice.output import events", "another stage"),
        ("voice.recognition.sliced", "from ..output.events import AnyEvent", "another stage"),
        ("voice.recognition.sliced", "from .. import finalization", "another stage"),
        ("voice.output.writer", "if True:\n    class A:\n        def f(self):\n            import voice.capture.wav_file", "another stage"),
        ("voice.pipeline", "from voice.build import build_pipeline", "not below it"),
        ("voice.build", "from voice import daemon", "not below it"),
        ("voice.daemon", "import voice.cli as c", "not below it"),
        ("voice.cli", "import asr_service", "not below it"),
        ("voice.pipeline", "import torch", "only the adapters"),
        ("voice.capture.wav_file", "def f():\n    import torch.nn.functional as F", "only the adapters"),
        ("voice.build", "from funasr import AutoModel", "only the adapters"),
        ("voice.daemon", "import importlib\nimportlib.import_module('torchaudio')", "only the adapters"),
        ("voice.recognition.streaming", "def f():\n    import torch", "only the torch adapters"),
        ("voice.listening", "def f():\n    import websockets", "only recognition by a server"),
        ("voice.build", "from voice.recognition.remote.server import Server", "only inside a function"),
        ("voice.recognition.sliced", "from voice.recognition.torch_engine import TorchEngine", "only the torch adapters"),
        ("voice.recognition.engine", "from voice.models.funasr_model import FunasrModel", "only the torch adapters"),
        ("voice.recognition.onnx_engine", "from voice.models.loader import load_model", "only the torch adapters"),
        ("voice.build", "import onnx.helper", "only the conversion"),
        ("voice.daemon", "def f():\n    import sounddevice", "only capture/portaudio.py"),
        ("voice.capture.portaudio", "import sounddevice as sd", "only inside a function"),
        ("voice.capture.portaudio", "try:\n    from sounddevice import InputStream\nexcept OSError:\n    pass", "only inside a function"),
        ("voice.cli", "import sys\nsys.stdout.write('x')", "only output/writer.py"),
        ("voice.output.events", "from sys import stdout", "only output/writer.py"),
        ("voice.process.logs", "import sys\ndef f(stream=sys.__stdout__): pass", "only output/writer.py"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str, complaint: str):
    (found,) = violations(source, module, SOURCES)
    assert complaint in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("voice.config", "from voice import __version__\nfrom voice.errors import ConfigInvalid"),
        ("voice.recognition.sliced", "from voice.recognition.alignment import continuation\nfrom . import cif"),
        ("voice.endpointing.silero", "def f():\n    import torch"),
        ("voice.models.loader", "def f():\n    import torch\n    from funasr.register import tables"),
        ("voice.recognition.torch_engine", "from voice.models.funasr_model import FunasrModel\ndef f():\n    import torch"),
        ("voice.recognition.onnx_engine", "from voice.models.converted import OnnxModel"),
        ("voice.conversion.graph", "import onnx"),
        ("voice.capture.portaudio", "def f():\n    import sounddevice"),
        ("voice.output.writer", "import sys\nsys.stdout.flush()"),
        ("voice.cli", "from voice.capture.devices import find_device\nfrom voice.daemon import run_service"),
        ("voice.process.logs", "import sys, subprocess\nsys.stderr.write('x')\nprocess.stdout.read()"),
    ],
)
def test_what_the_law_allows_is_not_complained_about(module: str, source: str):
    assert violations(source, module, SOURCES) == []


def test_a_module_in_no_layer_is_noticed():
    with pytest.raises(AssertionError, match="stands in no layer"):
        violations("", "voice.utils")


def imported_at_start() -> dict[str, set[str]]:
    """Module -> our modules that it imports when it is imported itself."""
    graph = {}
    for module, path in SOURCES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        graph[module] = {each.module for each in imports_of(tree, module, frozenset(SOURCES)) if each.at_top and each.module in SOURCES}
    return graph


def test_no_module_imports_itself_through_others():
    TopologicalSorter(imported_at_start()).prepare()  # raises CycleError with the circle


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_a_file_has_at_most_300_lines_and_a_class_at_most_25_methods(module: str):
    source = SOURCES[module].read_text(encoding="utf-8")
    if module not in ("voice.client", "voice.config", "voice.output.events", "voice.daemon", "voice.pipeline"):
        assert len(source.splitlines()) <= 300
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and node.name != "Pipeline":
            assert sum(isinstance(member, ast.FunctionDef) for member in node.body) <= 25, node.name
