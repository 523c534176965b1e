"""Loading is strict: a model that FunASR's loader would fill with random weights is refused, with one line that names what and where."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from harness import EMBEDDED_ASR, REPOSITORY, environment

from voice.errors import ModelLoadFailed
from voice.models import store
from voice.models.loader import load_model
from voice.models.store import is_complete, resolve_model
from voice.models.torch_setup import resolve_device


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A copy of the embedded model that a test may break."""
    return Path(shutil.copytree(EMBEDDED_ASR, tmp_path / "asr", ignore=shutil.ignore_patterns("SHA256SUMS")))


def load(directory: Path) -> object:
    return load_model(directory, "ParaformerStreaming", "cpu")


def edit_weights(directory: Path, edit: Callable[[dict], object]) -> None:
    state = torch.load(directory / "model.pt", weights_only=True)
    torch.save(edit(state) or state, directory / "model.pt")


def edit_json(path: Path, edit: Callable[[object], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content = edit(content) or content
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def edit_config(directory: Path, edit: Callable[[dict], object]) -> None:
    config = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
    edit(config)
    (directory / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def test_every_weight_comes_from_the_file() -> None:
    funasr_model = load(EMBEDDED_ASR)
    state = torch.load(EMBEDDED_ASR / "model.pt", weights_only=True)
    loaded = funasr_model.module.state_dict()
    assert set(loaded) <= set(state)
    assert all(torch.equal(value, state[key].float()) for key, value in loaded.items())
    assert not any(parameter.requires_grad for parameter in funasr_model.module.parameters())
    assert funasr_model.frontend.dither == 0.0


def test_files_are_compared_with_the_sums_beside_them(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(EMBEDDED_ASR, tmp_path / "asr"))
    load(directory)
    weights = bytearray((directory / "model.pt").read_bytes())
    weights[len(weights) // 2] ^= 1  # one bit of one weight: it would load, and recognise something else
    (directory / "model.pt").write_bytes(weights)
    with pytest.raises(ModelLoadFailed, match=r"model.pt is not the file that SHA256SUMS lists"):
        load(directory)
    with (directory / "SHA256SUMS").open("a") as sums:
        sums.write(f"{'0' * 64}  seg_dict\n")
    (directory / "model.pt").write_bytes((EMBEDDED_ASR / "model.pt").read_bytes())
    with pytest.raises(ModelLoadFailed, match=r"lacks seg_dict, which SHA256SUMS lists"):
        load(directory)


@pytest.mark.parametrize("name", ["config.yaml", "model.pt", "tokens.json", "am.mvn"])
def test_a_missing_file_is_named(model_dir: Path, name: str) -> None:
    (model_dir / name).unlink()
    with pytest.raises(ModelLoadFailed, match=rf"{model_dir} lacks {name}"):
        load(model_dir)


def test_a_directory_without_description_loads_by_file_names(model_dir: Path) -> None:
    (model_dir / "configuration.json").unlink()
    load(model_dir)


def test_a_vocabulary_of_another_size_is_refused(model_dir: Path) -> None:
    known = len(json.loads((model_dir / "tokens.json").read_text(encoding="utf-8")))
    edit_json(model_dir / "tokens.json", lambda tokens: tokens[:-2] + tokens[-1:])
    with pytest.raises(ModelLoadFailed, match=rf"tokens.json has {known - 1} tokens, but model.pt was trained with {known}"):
        load(model_dir)


def test_a_missing_weight_is_named(model_dir: Path) -> None:
    edit_weights(model_dir, lambda state: {key: value for key, value in state.items() if key != "predictor.cif_output.weight"})
    with pytest.raises(ModelLoadFailed, match=r"lacks 1 of \d+ weights, first predictor.cif_output.weight"):
        load(model_dir)


def test_a_weight_of_another_shape_is_named(model_dir: Path) -> None:
    edit_config(model_dir, lambda config: config["encoder_conf"].update(linear_units=256))
    with pytest.raises(ModelLoadFailed, match=r"encoder\S+ has shape \(\d+, \d+\), config.yaml asks for \(256, \d+\)"):
        load(model_dir)


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 cut"])
def test_damaged_weights_are_named(model_dir: Path, content: bytes) -> None:
    (model_dir / "model.pt").write_bytes(content)
    with pytest.raises(ModelLoadFailed, match=r"model.pt is damaged or holds more than weights"):
        load(model_dir)


def test_weights_that_carry_code_are_refused_and_the_code_does_not_run(model_dir: Path, tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path}/ran",)

    torch.save({"a": Planted()}, model_dir / "model.pt")
    with pytest.raises(ModelLoadFailed, match=r"model.pt"):
        load(model_dir)
    assert not (tmp_path / "ran").exists()


def test_weights_that_were_saved_as_trainable_load_without_a_warning(model_dir: Path) -> None:
    edit_weights(model_dir, lambda state: {key: value.float().requires_grad_() for key, value in state.items()})
    load(model_dir)


def test_wrapped_weights_load(model_dir: Path) -> None:
    edit_weights(model_dir, lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}})
    load(model_dir)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", "a: [", "config.yaml is not YAML"),
        ("config.yaml", "", "config.yaml holds no settings"),
        ("config.yaml", "model: CTTransformer", "model is 'CTTransformer', expected 'ParaformerStreaming'"),
        ("tokens.json", "{", "tokens.json is not JSON"),
        ("tokens.json", "[1, 2]", "tokens.json is not a list of tokens"),
        ("configuration.json", "[]", "configuration.json is not a FunASR description"),
        ("am.mvn", "", "am.mvn does not hold 560 means and variances"),
        ("am.mvn", "<Nnet>\n\n", "am.mvn does not hold 560 means and variances"),
    ],
)
def test_damaged_descriptions_are_named(model_dir: Path, name: str, content: str, message: str) -> None:
    (model_dir / name).write_text(content, encoding="utf-8")
    with pytest.raises(ModelLoadFailed, match=message):
        load(model_dir)


def test_an_architecture_funasr_does_not_know_is_refused(model_dir: Path) -> None:
    edit_config(model_dir, lambda config: config.update(encoder="NoSuchEncoder"))
    with pytest.raises(ModelLoadFailed, match="does not describe a ParaformerStreaming"):
        load(model_dir)


@pytest.mark.parametrize("name", ["/no/such/dir", "./no/such/dir", "~/no/such/dir"])
def test_a_missing_directory_is_named_and_no_hub_is_asked(name: str) -> None:
    with pytest.raises(ModelLoadFailed, match="does not exist"):
        resolve_model(name, "ms")


def test_a_file_is_no_model_directory() -> None:
    with pytest.raises(ModelLoadFailed, match="is not a directory"):
        resolve_model(str(EMBEDDED_ASR / "model.pt"), "ms")


def test_an_unknown_alias_is_refused_before_any_hub_is_asked() -> None:
    with pytest.raises(ModelLoadFailed, match="neither a directory nor a model"):
        resolve_model("no-such-model", "hf")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("~nosuchuser/model", "begins with a home directory that is not known; write the whole path"),
        ("/a\0b", "holds a character that no path can hold"),
        ("/" + "x" * 5_000, "is too long for a path"),
    ],
)
def test_a_directory_that_can_be_no_path_is_refused_by_its_reason(name: str, reason: str) -> None:
    with pytest.raises(ModelLoadFailed, match=reason):
        resolve_model(name, "ms")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_by_name_without_cuda_is_refused() -> None:
    assert resolve_device("auto") == "cpu"
    with pytest.raises(ModelLoadFailed, match="sees no CUDA device"):
        resolve_device("cuda")


def resolve_in_child(hub: str, cache: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """The hub clients in a process of their own, with an empty or prepared cache and a hub that refuses connections."""
    program = (
        "import sys; from voice.models.store import resolve_model; from voice.errors import ModelLoadFailed\n"
        f"try: print(resolve_model('paraformer-zh-streaming', '{hub}'))\n"
        "except ModelLoadFailed as error: print(error); sys.exit(3)"
    )
    nowhere = "http://127.0.0.1:9"
    settings = {
        "MODELSCOPE_CACHE": str(cache),
        "MODELSCOPE_ENDPOINT": nowhere,
        "MODELSCOPE_DOMAIN": "127.0.0.1:9",
        "HF_HOME": str(cache),
        "HF_ENDPOINT": nowhere,
        **extra,
    }
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("hub", ["ms", "hf"])
def test_a_hub_that_cannot_be_reached_gives_one_line_with_ways_out(hub: str, tmp_path: Path) -> None:
    result = resolve_in_child(hub, tmp_path)
    assert result.returncode == 3, result.stderr
    line = result.stdout.strip().splitlines()[-1]
    assert f"could not be downloaded from hub '{hub}'" in line
    assert "--embedded" in line


@pytest.mark.parametrize("missing", ["config.yaml", "model.pt", "am.mvn", "tokens.json", None])
def test_a_directory_without_one_of_its_files_is_incomplete(model_dir: Path, missing: str | None) -> None:
    if missing:
        (model_dir / missing).unlink()
    assert is_complete(model_dir) == (missing is None)


@pytest.mark.parametrize("content", [b" " * 2**21, "{}".encode("utf-16")])
def test_a_cached_model_whose_description_cannot_be_read_is_refused(
    model_dir: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_from_hugging_face", lambda hub_id, *, local_only: model_dir)
    assert resolve_model("funasr/paraformer-zh-streaming", "hf") == model_dir
    (model_dir / "configuration.json").write_bytes(content)
    with pytest.raises(ModelLoadFailed, match=r"could not be downloaded from hub 'hf' \(FileInvalid: is "):
        resolve_model("funasr/paraformer-zh-streaming", "hf")


@pytest.mark.slow
def test_an_interrupted_download_is_taken_up_again_and_not_for_the_model(tmp_path: Path) -> None:
    cached_on_hugging_face(tmp_path, without="model.pt")
    result = resolve_in_child("hf", tmp_path)
    assert result.returncode == 3, result.stderr
    assert "could not be downloaded from hub 'hf'" in result.stdout
    assert "incomplete" in result.stdout + result.stderr


def cached_on_hugging_face(cache: Path, without: str | None = None) -> Path:
    """The embedded model laid out as a snapshot of the real one in the client's cache."""
    snapshot = cache / "hub" / "models--funasr--paraformer-zh-streaming" / "snapshots" / ("0" * 40)
    shutil.copytree(EMBEDDED_ASR, snapshot, ignore=shutil.ignore_patterns(without or ""))
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    return snapshot


@pytest.mark.slow
def test_a_model_in_the_hugging_face_cache_needs_no_network(tmp_path: Path) -> None:
    snapshot = cached_on_hugging_face(tmp_path)
    result = resolve_in_child("hf", tmp_path)
    assert (result.returncode, result.stdout.strip()) == (0, str(snapshot)), result.stderr


@pytest.mark.slow
def test_a_model_in_the_modelscope_cache_needs_no_network(tmp_path: Path) -> None:
    owner, name = "iic", "speech_paraformer-large_asr_nat-zh-cn-16k-common-vocab8404-online"
    directory = tmp_path / "models" / owner / name
    shutil.copytree(EMBEDDED_ASR, directory)
    result = resolve_in_child("ms", tmp_path)
    assert (result.returncode, Path(result.stdout.strip().splitlines()[-1])) == (0, directory), result.stderr
