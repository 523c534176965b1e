"""voice-asr models: what is there, whether it is whole, and a bundle for a machine without network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from harness import EXAMPLES, REPOSITORY, environment, final_texts, parse_events

from voice.commands.models import ROLES
from voice.config import DEFAULT_PATH, load_settings
from voice.models.store import find_model, hub_id_of
from voice.places import EMBEDDED


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """Caches that have nothing yet, and no network."""
    return {
        "MODELSCOPE_CACHE": str(tmp_path / "modelscope"),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HOME": str(tmp_path),
        "https_proxy": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }


def models(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "voice", "models", *map(str, arguments)],
        cwd=REPOSITORY,
        env=environment(PYTHONIOENCODING="utf-8", **variables),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def test_the_models_of_a_run_are_those_of_the_default_settings() -> None:
    content = yaml.safe_load(DEFAULT_PATH.read_text(encoding="utf-8"))
    names = [content["model"]["name"], content["final"]["punctuation_model"], content["emotion"]["model"]]
    assert [role.name for role in ROLES if role.is_default] == names
    assert all(hub_id_of(role.name, hub) for role in ROLES for hub in ("ms", "hf"))


@pytest.mark.slow
def test_a_list_says_what_is_here_and_what_is_not(variables: dict[str, str]) -> None:
    result = models("list", "--json", **variables)
    assert result.returncode == 0, result.stderr
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert not rows["paraformer-zh-streaming"]["here"]
    assert "about 880 MB from iic/speech_paraformer-large" in rows["paraformer-zh-streaming"]["where"]
    assert rows["embedded asr"] == {
        "name": "embedded asr",
        "for": "--embedded",
        "where": str(EMBEDDED / "asr"),
        "here": True,
        "converted": True,
    }


@pytest.mark.slow
@pytest.mark.parametrize("hub", ["ms", "hf"])
def test_what_is_not_here_and_cannot_be_fetched_is_said_in_one_line(variables: dict[str, str], hub: str) -> None:
    result = models("path", "paraformer-zh", "--hub", hub, **variables)
    assert (result.returncode, result.stdout) == (3, "")
    assert "models pull paraformer-zh" in result.stderr
    result = models("pull", "paraformer-zh", "--hub", hub, **variables)
    assert result.returncode == 3
    assert "could not be downloaded" in result.stderr.splitlines()[-1]


def test_a_name_that_no_hub_has_is_refused(variables: dict[str, str]) -> None:
    result = models("path", "no model", **variables)
    assert (result.returncode, "neither a directory nor a model" in result.stderr) == (3, True)


def test_verify_finds_a_changed_and_a_missing_file(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(EMBEDDED / "asr", tmp_path / "asr"))
    assert models("verify", copy, EMBEDDED / "punctuation").stdout.count("ok: ") == 2
    (copy / "am.mvn").write_text("changed")
    result = models("verify", copy)
    assert (result.returncode, "am.mvn is not the file that SHA256SUMS lists" in result.stderr) == (3, True)
    (copy / "am.mvn").unlink()
    assert "am.mvn" in models("verify", copy).stderr
    assert models("verify").returncode == 0


@pytest.mark.slow
def test_a_model_is_converted_and_its_conversion_removed(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(EMBEDDED / "punctuation", tmp_path / "model", ignore=shutil.ignore_patterns("onnx")))
    variables = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    result = models("convert", copy, **variables)
    assert result.returncode == 0, result.stderr
    graphs = Path(result.stdout.strip())
    assert (graphs / "conversion.json").is_file()
    assert models("rm", copy, **variables).returncode == 0
    assert not graphs.exists()
    assert copy.is_dir(), "a directory that was named by its path is not deleted"
    assert models("rm", **variables).returncode == 2


@pytest.mark.slow
def test_a_bundle_runs_where_it_was_carried_to(tmp_path: Path, variables: dict[str, str]) -> None:
    """The hub's cache holds the embedded models under the names of the real ones."""
    for role in ROLES:
        if role.is_default:
            owner, name = hub_id_of(role.name, "ms").split("/")
            shutil.copytree(EMBEDDED / role.folder, Path(variables["MODELSCOPE_CACHE"]) / "models" / owner / name, dirs_exist_ok=True)
    pulled = models("pull", "--to", tmp_path / "bundle", **variables)
    if pulled.returncode:
        pytest.fail(pulled.stderr)
    moved = (tmp_path / "bundle").rename(tmp_path / "elsewhere")
    sums = (moved / "SHA256SUMS").read_text().splitlines()
    assert {line.split("/")[0].split()[-1] for line in sums} == {"asr", "punctuation", "emotion"}
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=moved, check=False).returncode == 0
    settings = load_settings({}, moved / "settings.yaml", {})
    assert settings.model_dir == str(moved / "asr")
    assert settings.final.punctuation_model == str(moved / "punctuation")
    command = [
        sys.executable,
        "asr_service_streaming.py",
        "--config",
        str(moved / "settings.yaml"),
        "--input",
        str(EXAMPLES / "temperature.wav"),
    ]
    result = subprocess.run(command, cwd=REPOSITORY, env=environment(**variables), capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    assert final_texts(parse_events(result.stdout)) == ["把空调的温度调到百分之二十六"]


def test_a_settings_file_may_name_what_stands_beside_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "settings.yaml"
    path.write_text('model_dir: "{here}/asr"\nvad: {model: "{here}/vad"}\nhotwords: ["{here}", "a{here}/b"]\n')
    settings = load_settings({}, path, {})
    assert (settings.model_dir, settings.vad.model) == (str(tmp_path / "sub" / "asr"), str(tmp_path / "sub" / "vad"))
    assert settings.hotwords == ("{here}", "a{here}/b")


def test_a_model_that_is_not_cached_is_not_looked_for_in_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))
    assert find_model("paraformer-zh", "ms") is None
    assert find_model(str(EMBEDDED / "asr"), "ms") == EMBEDDED / "asr"
