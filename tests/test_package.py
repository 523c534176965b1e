"""The wheel, installed where nothing of the checkout is: the command works, and finds its settings, models and examples."""

from __future__ import annotations

import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from harness import EXAMPLES, REPOSITORY, environment, final_texts, parse_events

DATA = ("config/default.yaml", "config/events.schema.json", "examples/temperature.wav", "models/embedded/asr/onnx/encoder.onnx")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-cache-dir",
        "-q",
        "-w",
        directory,
        REPOSITORY,
    ]
    subprocess.run(command, check=True, env=environment(), capture_output=True)
    (path,) = directory.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def bin_directory(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has the wheel, and the packages that it needs from ours."""
    directory = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    (packages,) = directory.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    command = [sys.executable, "-m", "pip", "--python", directory / "bin" / "python", "install", "--no-deps", "--no-index", "-q", wheel]
    subprocess.run(command, check=True, env=environment(), capture_output=True)
    return directory / "bin"


def test_the_wheel_has_what_the_checkout_has(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"voice/_data/{name}" for name in DATA} <= names
    modules = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "voice").glob("**/*.py")}
    assert modules <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/NOTICE") for name in names)
    assert not any(name.startswith(("tests", "bench", "tools")) for name in names)


def run(bin_directory: Path, directory: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [bin_directory / "voice-asr", *arguments], cwd=directory, env=environment(PYTHONPATH=""), capture_output=True, check=False
    )


def test_the_installed_command_recognises(bin_directory: Path, tmp_path: Path) -> None:
    result = run(bin_directory, tmp_path, "run", "--embedded", "--input", str(EXAMPLES / "temperature.wav"))
    assert result.returncode == 0, result.stderr
    assert final_texts(parse_events(result.stdout)) == ["把空调的温度调到百分之二十六"]


def test_the_installed_command_has_the_template_of_its_report(bin_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "talk.jsonl").write_bytes(
        run(bin_directory, tmp_path, "run", "--embedded", "--input", str(EXAMPLES / "temperature.wav")).stdout
    )
    result = run(bin_directory, tmp_path, "report", "talk.jsonl")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "talk.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_the_installed_command_transcribes(bin_directory: Path, tmp_path: Path) -> None:
    result = run(bin_directory, tmp_path, "transcribe", "--embedded", str(EXAMPLES / "temperature.wav"), "-o", str(tmp_path), "-f", "srt")
    assert result.returncode == 0, result.stderr
    assert "把空调的温度调到百分之二十六" in (tmp_path / "temperature.srt").read_text(encoding="utf-8")
