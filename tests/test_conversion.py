"""Conversion to ONNX: what ships is current, what is converted is checked and kept, and where that fails the service goes on on torch."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from harness import EMBEDDED_ASR, EXAMPLES, REPOSITORY, environment, example, final_texts, of_type, run_service

from voice.conversion import check, convert, layers, paraformer, selftest
from voice.conversion.graph import Graph
from voice.conversion.layers import Unconvertible
from voice.errors import ModelLoadFailed
from voice.models import converted, onnx_session
from voice.models.converted import CONVERTER_VERSION, find_conversion, load_converted, source_digest
from voice.models.converted import convert as convert_in_process
from voice.models.directory import describe_model
from voice.models.funasr_model import FunasrModel
from voice.models.language_model import FILE as LANGUAGE_MODEL
from voice.models.loader import load_model
from voice.models.onnx_session import open_session
from voice.recognition.onnx_engine import OnnxEngine
from voice.transcript import Token

EMBEDDED = EMBEDDED_ASR.parent
CLASSES = {"asr": "ParaformerStreaming", "punctuation": "CTTransformer", "emotion": "Emotion2vec", "speaker": "CAMPPlus"}
WAV = ("--input", str(EXAMPLES / "temperature.wav"))
TEXT = "把空调的温度调到百分之二十六"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache that has nothing yet, for this process too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """The embedded recognition model without its graphs."""
    return Path(shutil.copytree(EMBEDDED_ASR, tmp_path / "asr", ignore=shutil.ignore_patterns("onnx")))


def describe(directory: Path, name: str = "asr") -> Any:
    return describe_model(directory, CLASSES[name])


def write(model: FunasrModel, directory: Path, precision: Any = None) -> Path:
    directory.mkdir()
    convert.write_graphs(model, describe(model.directory), directory, precision)
    return directory


# --- what ships ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_the_embedded_models_ship_with_graphs_of_their_weights(name: str, cache: Path) -> None:
    """After other weights or another converter: python tools/embedded_models/convert.py."""
    directory = EMBEDDED / name
    graphs = find_conversion(directory, describe(directory, name))
    assert graphs == directory / "onnx"
    assert load_converted(graphs, directory, 1).settings["converter"] == CONVERTER_VERSION
    assert not cache.exists(), "nothing was converted or remembered"


@pytest.mark.parametrize("name", CLASSES)
def test_what_ships_is_what_the_converter_writes(name: str, tmp_path: Path) -> None:
    """Where the graphs change, CONVERTER_VERSION changes with them, and convert.py is run."""
    model = load_model(EMBEDDED / name, CLASSES[name], "cpu")
    convert.write_graphs(model, describe(EMBEDDED / name, name), tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (EMBEDDED / name / "onnx" / path.name).read_bytes(), path.name


def test_a_start_from_converted_models_imports_neither_torch_nor_funasr_and_sends_nothing(tmp_path: Path) -> None:
    planted = (
        "import atexit\n"
        "heavy = ('torch', 'funasr', 'torchaudio', 'modelscope', 'onnx', 'librosa', 'transformers')\n"
        "atexit.register(lambda: sys.stderr.write(f'IMPORTED {sorted(set(heavy) & set(sys.modules))}\\n'))"
    )
    result = run_service("streaming", *WAV, planted=planted, XDG_CACHE_HOME=str(tmp_path / "cache"), HOME=str(tmp_path / "home"))
    assert (result.returncode, final_texts(result.events)) == (0, [TEXT])
    (final,) = of_type(result.events, "final")
    assert final["text"] == f"{TEXT}。"
    assert final["emotion"] is not None
    assert "IMPORTED []" in result.stderr
    assert list(tmp_path.iterdir()) == [], "ONNX Runtime's telemetry keeps an identifier and a database there"


def test_graphs_do_not_depend_on_the_language_model_beside_a_model(model_dir: Path, tmp_path: Path) -> None:
    """A damaged one stops no conversion, whose failure would be remembered for weights that are whole."""
    (model_dir / "SHA256SUMS").unlink()
    (model_dir / LANGUAGE_MODEL).write_bytes(b"PK")
    target = tmp_path / "graphs"
    target.mkdir()
    convert.convert_model(model_dir, describe(model_dir), target)
    assert (target / "encoder.onnx").read_bytes() == (EMBEDDED_ASR / "onnx" / "encoder.onnx").read_bytes()


# --- conversion at the first start --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_without_graphs_is_converted_once(model_dir: Path, cache: Path) -> None:
    arguments = ("--model-dir", str(model_dir), *WAV, "--no-emotion", "--punctuation-model", "off")
    first, second = (run_service("streaming", *arguments, embedded=False, XDG_CACHE_HOME=str(cache)) for _ in range(2))
    for result in (first, second):
        assert (result.returncode, final_texts(result.events)) == (0, [TEXT])
        assert of_type(result.events, "error_event") == []
        assert "engine=onnx" in result.stderr
    assert "conversion_finished" in first.stderr
    assert "conversion_started" not in second.stderr
    (graphs,) = (path for path in (cache / "voice-asr" / "onnx").iterdir() if path.is_dir())
    assert {"encoder.onnx", "decoder.onnx", "conversion.json"} <= {path.name for path in graphs.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["auto", "onnx"])
def test_where_it_cannot_be_converted_torch_runs_it_and_one_event_says_why(model_dir: Path, tmp_path: Path, engine: str) -> None:
    (tmp_path / "cache").write_text("a file in the place of the user's cache")
    arguments = ("--model-dir", str(model_dir), *WAV, "--no-emotion", "--punctuation-model", "off", "--engine", engine)
    result = run_service("streaming", *arguments, embedded=False, XDG_CACHE_HOME=str(tmp_path / "cache"))
    (error,) = of_type(result.events, "error_event")
    assert error["error_code"] == "model_load_failed"
    assert "cannot hold converted models" in error["message"]
    if engine == "auto":
        assert (result.returncode, error["recoverable"], final_texts(result.events)) == (0, True, [TEXT])
        assert "engine=torch" in result.stderr
    else:
        assert (result.returncode, error["recoverable"]) == (3, False)


@pytest.mark.slow
def test_torch_runs_what_the_settings_want_on_torch(cache: Path) -> None:
    result = run_service("streaming", *WAV, "--engine", "torch", "--no-emotion", XDG_CACHE_HOME=str(cache))
    assert (result.returncode, final_texts(result.events)) == (0, [TEXT])
    assert "engine=torch" in result.stderr
    assert not cache.exists()


def run_converter(monkeypatch: pytest.MonkeyPatch, statements: str) -> list[list[str]]:
    """Another program in the place of the converter; the command lines it would have had."""
    commands: list[list[str]] = []
    real = converted._run

    def run(command: list[str]) -> int:
        commands.append(command)
        target = command[command.index("--target") + 1]
        return real([sys.executable, "-c", f"import os, sys, pathlib; target = pathlib.Path({target!r})\n{statements}"])

    monkeypatch.setattr(converted, "_run", run)
    return commands


def test_a_failure_is_remembered_and_not_tried_again(model_dir: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = run_converter(monkeypatch, "target.with_suffix('.failed').write_text('Unconvertible: it is odd'); sys.exit(3)")
    for _ in range(2):
        with pytest.raises(ModelLoadFailed, match=r"could not be converted to ONNX \(Unconvertible: it is odd"):
            convert_in_process(model_dir, describe(model_dir), "console")
    assert len(commands) == 1


@pytest.mark.parametrize("statements", ["sys.exit(1)", "sys.exit(0)", "os.kill(os.getpid(), 9)"])
def test_a_converter_that_leaves_nothing_has_failed(model_dir: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, statements: str) -> None:
    run_converter(monkeypatch, f"pathlib.Path(str(target) + '.abc.partial').mkdir()\n{statements}")
    with pytest.raises(ModelLoadFailed, match="its process ended with code"):
        convert_in_process(model_dir, describe(model_dir), "console")
    assert list((cache / "voice-asr" / "onnx").glob("*.partial")) == []


def test_a_converter_that_hangs_is_ended(model_dir: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converted, "_TIMEOUT_SEC", 0.5)
    run_converter(monkeypatch, "import time; time.sleep(600)")
    with pytest.raises(ModelLoadFailed, match="could not be converted"):
        convert_in_process(model_dir, describe(model_dir), "console")


def test_while_another_process_converts_this_one_does_not_wait(model_dir: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = run_converter(monkeypatch, "sys.exit(1)")
    target = converted.conversion_path(CLASSES["asr"], source_digest(describe(model_dir)))
    target.parent.mkdir(parents=True)
    lock = f"file = open({str(target.with_suffix('.lock'))!r}, 'w')\nfcntl.flock(file, fcntl.LOCK_EX)"
    hold = f"import fcntl, time\n{lock}\nprint(flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert convert_in_process(model_dir, describe(model_dir), "console") is None
        other.kill()
    assert commands == []


@pytest.mark.slow
def test_a_stop_while_a_model_is_converted_ends_both_processes(model_dir: Path, cache: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "asr_service_streaming.py"), "--model-dir", str(model_dir), *WAV, "--no-emotion"]
    process = subprocess.Popen(
        [*command, "--punctuation-model", "off"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(XDG_CACHE_HOME=str(cache))
    )
    assert process.stderr is not None
    while b"conversion_loading" not in process.stderr.readline():
        pass
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 1
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, b"")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(Path(f"/proc/{child}").exists() for child in children):
        time.sleep(0.05)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert list(cache.rglob("*.partial")) == []


# --- graphs that cannot be used -----------------------------------------------------------------------------------------


def truncate(graphs: Path) -> None:
    os.truncate(graphs / "encoder.weights", 100_000)


def remove(graphs: Path) -> None:
    (graphs / "decoder.onnx").unlink()


def garble(graphs: Path) -> None:
    (graphs / "encoder.onnx").write_bytes(b"\x08\x09" * 5_000)


def forget(graphs: Path) -> None:
    content = json.loads((graphs / "conversion.json").read_text())
    del content["num_tokens"]
    (graphs / "conversion.json").write_text(json.dumps(content))


@pytest.mark.parametrize("damage", [truncate, remove, garble, forget])
def test_damaged_graphs_are_refused_by_name(funasr_model: FunasrModel, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    graphs = write(funasr_model, tmp_path / "graphs")
    damage(graphs)
    with pytest.raises(ModelLoadFailed, match=str(graphs)):
        load_converted(graphs, funasr_model.directory, 1)


@pytest.mark.slow
def test_damaged_graphs_in_the_cache_cost_one_start_on_torch(model_dir: Path, cache: Path) -> None:
    arguments = ("--model-dir", str(model_dir), *WAV, "--no-emotion", "--punctuation-model", "off")
    run_service("streaming", *arguments, embedded=False, XDG_CACHE_HOME=str(cache))
    (graphs,) = (path for path in (cache / "voice-asr" / "onnx").iterdir() if path.is_dir())
    truncate(graphs)
    damaged, after = (run_service("streaming", *arguments, embedded=False, XDG_CACHE_HOME=str(cache)) for _ in range(2))
    (error,) = of_type(damaged.events, "error_event")
    assert (error["error_code"], error["recoverable"]) == ("model_load_failed", True)
    assert str(graphs) in error["message"]
    assert final_texts(damaged.events) == final_texts(after.events) == [TEXT]
    assert "engine=torch" in damaged.stderr
    assert "engine=onnx" in after.stderr
    assert of_type(after.events, "error_event") == []


def test_graphs_of_other_weights_or_of_another_converter_are_none(model_dir: Path, funasr_model: FunasrModel, cache: Path) -> None:
    graphs = model_dir / "onnx"
    graphs.mkdir()
    convert.write_graphs(funasr_model, describe(model_dir), graphs)
    assert find_conversion(model_dir, describe(model_dir)) == graphs
    content = json.loads((graphs / "conversion.json").read_text())
    (graphs / "conversion.json").write_text(json.dumps({**content, "converter": CONVERTER_VERSION + 1}))
    assert find_conversion(model_dir, describe(model_dir)) is None
    (graphs / "conversion.json").write_text(json.dumps(content))
    with (model_dir / "model.pt").open("ab") as file:
        file.write(b"x")
    assert find_conversion(model_dir, describe(model_dir)) is None


@pytest.mark.parametrize("content", ["", "[]", "{", "null", '"text"', "\0"])
def test_a_description_that_is_none_is_no_conversion(model_dir: Path, cache: Path, content: str) -> None:
    (model_dir / "onnx").mkdir()
    (model_dir / "onnx" / "conversion.json").write_text(content)
    assert find_conversion(model_dir, describe(model_dir)) is None


def test_the_digest_of_a_large_file_is_remembered_until_the_file_changes(
    model_dir: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converted, "_LARGE_FILE_BYTES", 0)
    read: list[Path] = []
    real = converted.sha256_of
    monkeypatch.setattr(converted, "sha256_of", lambda path: (read.append(path), real(path))[1])
    first = source_digest(describe(model_dir))
    num_read = len(read)
    assert source_digest(describe(model_dir)) == first
    assert len(read) == num_read
    with (model_dir / "model.pt").open("ab") as file:
        file.write(b"x")
    assert source_digest(describe(model_dir)) != first
    assert read[num_read:] == [model_dir / "model.pt"]


# --- the arithmetic -----------------------------------------------------------------------------------------------------


def test_both_kinds_of_bytes_give_the_same_products(funasr_model: FunasrModel, tmp_path: Path) -> None:
    if not selftest.signed_products_are_right():
        pytest.skip("this processor cuts off sums of signed products")
    samples = example("temperature")[0]
    chunks = []
    for precision in ("int8", "uint8"):
        graphs = write(funasr_model, tmp_path / precision, precision)
        chunks.append(OnnxEngine(load_converted(graphs, funasr_model.directory, 1)).create_stream(None).encode_last(samples))
    np.testing.assert_allclose(chunks[0].hidden, chunks[1].hidden, atol=2e-3)


def test_bytes_leave_the_text_of_the_examples_as_it_is(funasr_model: FunasrModel, tmp_path: Path) -> None:
    check.check_recognition(funasr_model, write(funasr_model, tmp_path / "graphs", selftest.byte_precision()))


def test_products_that_overflow_on_this_processor_are_noticed(
    funasr_model: FunasrModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a processor without VNNI answers is planted, too: where there is one, the answers are its own."""
    graphs = write(funasr_model, tmp_path / "graphs", "int8")
    assert selftest.products_are_right(graphs) == selftest.signed_products_are_right()
    saturated = Graph(graphs, "selftest", "float32")
    rows = saturated.weight(np.ones((1, 1, 512), np.float32))
    saturated.output(saturated.linear(rows, np.full((512, 512), 0.5 / 512, np.float32), None), "products_1", (1, 1, 512))
    saturated.close()
    with pytest.raises(ModelLoadFailed, match="another processor"):
        load_converted(graphs, funasr_model.directory, 1)
    monkeypatch.setattr(selftest, "signed_products_are_right", lambda: False)
    monkeypatch.setattr(FunasrModel, "is_large", property(lambda _: True))
    unsigned = write(funasr_model, tmp_path / "unsigned")
    assert load_converted(unsigned, funasr_model.directory, 1).settings["precision"] == "uint8"


@pytest.mark.parametrize("precision", ["float32", "bytes"])
def test_graphs_compute_with_no_subnormal_numbers(funasr_model: FunasrModel, tmp_path: Path, precision: str) -> None:
    """Each costs an Intel processor more than a hundred cycles: with them the encoder took twice its time."""
    graphs = write(funasr_model, tmp_path / "graphs", selftest.byte_precision() if precision == "bytes" else "float32")
    model = onnx.load(graphs / "encoder.onnx")
    rectified = [node.output[0] for node in model.graph.node if node.op_type == "Max" and "ReduceMax" not in node.input[0]]
    divided = [node.output[0] for node in model.graph.node if node.op_type == "Div"]
    assert rectified
    assert bool(divided) == (precision == "bytes")
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in (*rectified, *divided))
    onnx.save(model, graphs / "opened.onnx")
    session = open_session(graphs / "opened.onnx")
    rng = np.random.default_rng(0)
    sizes = {"t": 15, "past": 5}
    shapes = {each.name: [sizes.get(size, size) for size in each.shape] for each in session.get_inputs()}
    feed = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    smallest = np.finfo(np.float32).tiny
    for values in session.run(rectified, feed):
        assert (values * 1e-6 >= smallest).all(), "nor is a product of it and a weight"
    for values in session.run(divided, feed) if divided else ():
        assert not ((values != 0) & (np.abs(values) < smallest)).any()


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_is_right_within_its_precision(tmp_path: Path, precision: Any, *, bias: bool) -> None:
    if precision == "int8" and not selftest.signed_products_are_right():
        pytest.skip("this processor cuts off sums of signed products")
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((48, 64)).astype(np.float32)
    weight[3] = 0
    offset = rng.standard_normal(48).astype(np.float32) if bias else None
    graph = Graph(tmp_path, "linear", precision)
    rows = graph.input("rows", (1, "t", 64))
    graph.output(graph.linear(rows, weight, offset), "result", (1, "t", 48))
    graph.close()
    values = rng.standard_normal((1, 7, 64)).astype(np.float32)
    (found,) = open_session(tmp_path / "linear.onnx").run(None, {"rows": values})
    expected = values @ weight.T + (0 if offset is None else offset)
    np.testing.assert_allclose(found, expected, atol=1e-4 if precision == "float32" else 0.3)
    assert found[0, :, 3] == pytest.approx(0 if offset is None else offset[3], abs=1e-6)


def test_values_that_came_from_half_precision_are_stored_in_it(tmp_path: Path) -> None:
    half = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float16)
    sizes = []
    for name, weight in (("half", half.astype(np.float32)), ("single", half.astype(np.float32) * np.float32(1.0001))):
        graph = Graph(tmp_path, name)
        graph.output(graph.linear(graph.input("rows", (1, "t", 64)), weight, None), "result", (1, "t", 64))
        graph.close()
        sizes.append((tmp_path / f"{name}.weights").stat().st_size)
        (found,) = open_session(tmp_path / f"{name}.onnx").run(None, {"rows": np.eye(64, dtype=np.float32)[None]})
        np.testing.assert_array_equal(found[0], weight.T)
    assert sizes == [8_192, 16_384]


def token(text: str, confidence: float) -> Token:
    return Token(text, 0, 960, confidence)


def test_a_comparison_counts_what_torch_was_sure_of() -> None:
    ours = [[token("一", 0.9), token("二", 0.5), token("三", 0.9)]]
    same = check.compare(ours, [[token("一", 0.8), token("九", 0.5), token("三", 0.9)]])
    assert (same.num_tokens, same.num_other, same.num_sure_changed) == (3, 3, 0)
    assert same.confidence_difference == pytest.approx(0.05)
    assert check.compare(ours, [[token("九", 0.9), token("二", 0.5), token("三", 0.9)]]).num_sure_changed == 1
    assert check.compare(ours, [[]]).num_sure_changed == 2


@pytest.mark.parametrize("wrong", ["layer_norm", "depthwise", "linear"])
def test_graphs_that_compute_something_else_fail_the_comparison(
    funasr_model: FunasrModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    real = getattr(layers, wrong)
    for module in (layers, paraformer):
        monkeypatch.setattr(module, wrong, lambda graph, rows, *rest, **options: graph.node("Relu", real(graph, rows, *rest, **options)))
    with pytest.raises(Unconvertible, match="do not compute what torch computes"):
        check.check_recognition(funasr_model, write(funasr_model, tmp_path / "graphs"))


def test_a_model_of_another_kind_is_refused_by_what_it_has(
    funasr_model: FunasrModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(funasr_model.module.encoder, "normalize_before", False)
    with pytest.raises(Unconvertible, match="normalizes after"):
        write(funasr_model, tmp_path / "graphs")


# --- ONNX Runtime -------------------------------------------------------------------------------------------------------


def test_a_session_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelLoadFailed, match=r"a\.onnx cannot be loaded"):
        open_session(tmp_path / "a.onnx")


def test_telemetry_is_off_before_the_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    onnx_session._onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_the_command_names_what_is_wrong_with_a_directory(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "voice.conversion", str(tmp_path / "nothing")],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        check=False,
    )
    assert result.returncode == 3
    assert b"conversion_failed" in result.stderr
    assert b"Traceback" not in result.stderr
