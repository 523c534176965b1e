"""voice-asr doctor: each set-up that it knows to be broken is broken here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from harness import EXAMPLES, REPOSITORY, environment, example
from virtual_microphone import NEEDS_PULSEAUDIO, VirtualMicrophone

from voice.capture.sources import MicrophoneInfo
from voice.commands import checks
from voice.commands.checks import (
    check_disk,
    check_ffmpeg,
    check_python,
    check_python_path,
    check_sources,
    judge_decoding,
    judge_microphone,
)
from voice.commands.doctor import _check_wanted
from voice.config import load_settings
from voice.models.weights import wanted_models

SPEECH = example("two_utterances")[0][: 3 * 16_000]
QUIET = (1e-4 * np.random.default_rng(0).standard_normal(3 * 16_000)).astype(np.float32)


def source(**more: bool) -> MicrophoneInfo:
    return MicrophoneInfo("alsa_input.usb", "Jabra", 48_000, 1, **{"is_default": True, **more})


# --- verdicts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "verdict", "said", "remedy"),
    [
        (SPEECH, "ok", "peak -6 dBFS", ""),
        (np.zeros(48_000, np.float32), "failed", "exact zeros: it is muted", "set-source-mute"),
        (np.zeros(0, np.float32), "failed", "delivers nothing", "replug"),
        (0.005 * SPEECH, "failed", "peak -52 dBFS", "set-source-volume @DEFAULT_SOURCE@ 100%"),
        (0.02 * SPEECH + 0.01 * QUIET, "warning", "faint", "raise"),
        (np.clip(8 * SPEECH, -1, 1), "warning", "is clipped", "60%"),
        (0.1 * SPEECH + 200 * QUIET, "warning", "noisy", "fans"),
    ],
)
def test_a_microphone_is_judged_by_what_it_hears(samples: np.ndarray, verdict: str, said: str, remedy: str) -> None:
    finding = judge_microphone(samples.astype(np.float32), "Jabra")
    assert (finding.verdict, said in finding.text, remedy in finding.remedy) == (verdict, True, True), finding
    assert "Jabra" in finding.text
    assert bool(finding.remedy) == (verdict != "ok")


@pytest.mark.parametrize(
    ("sources", "verdict", "said"),
    [
        (None, "warning", "none answers"),
        ([], "failed", "no source"),
        ([source()], "ok", "1 microphone; the default is 'Jabra'"),
        ([source(is_muted=True)], "failed", "muted"),
        ([source(is_monitor=True)], "warning", "it hears what is played"),
        ([source(is_default=False)], "failed", "no source"),
    ],
)
def test_a_sound_server_is_judged_by_its_default(sources: list[MicrophoneInfo] | None, verdict: str, said: str) -> None:
    finding = check_sources(sources)
    assert (finding.verdict, said in finding.text) == (verdict, True), finding


@pytest.mark.parametrize(
    ("factor", "right", "verdict"), [(0.1, True, "ok"), (0.6, True, "warning"), (1.2, True, "failed"), (0.1, False, "failed")]
)
def test_decoding_is_judged_by_its_speed_and_its_text(factor: float, right: bool, verdict: str) -> None:
    assert judge_decoding("streaming, onnx", factor, right=right).verdict == verdict


def test_a_python_path_that_shadows_a_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "soxr.py").write_text("")
    assert check_python_path({}).verdict == "ok"
    assert check_python_path({"PYTHONPATH": str(tmp_path)}).verdict == "ok", "not imported from there"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "soxr")
    finding = check_python_path({"PYTHONPATH": f"/nonexistent{os.pathsep}{tmp_path}"})
    assert (finding.verdict, "soxr" in finding.text, "env -u PYTHONPATH" in finding.remedy) == ("failed", True, True)


def test_ffmpeg_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert (check_ffmpeg().verdict, "apt-get install ffmpeg" in check_ffmpeg().remedy) == ("warning", True)
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/ffmpeg")
    assert check_ffmpeg().verdict == "ok"


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_disk(tmp_path / "not" / "there").text.endswith(str(tmp_path))
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    assert check_disk(tmp_path).verdict == "warning"


def test_python_is_named() -> None:
    assert check_python().text.startswith(".".join(map(str, sys.version_info[:3])))


# --- the command --------------------------------------------------------------------------------------------------------


def doctor(*flags: str, **variables: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code, and the findings by name."""
    command = [sys.executable, "-m", "voice", "doctor", "--json", *flags]
    result = subprocess.run(
        command, cwd=REPOSITORY, env=environment(PYTHONIOENCODING="utf-8", **variables), capture_output=True, text=True, check=False
    )
    assert result.stdout, result.stderr
    return result.returncode, {each["name"]: each for each in json.loads(result.stdout)}


@pytest.mark.slow
def test_a_machine_without_a_microphone_can_still_decode() -> None:
    code, found = doctor("--no-microphone", PULSE_SERVER="unix:/nonexistent")
    assert code == 0
    assert found["sound server"]["verdict"] == "warning"
    for name in ("streaming, onnx", "streaming, torch", "sliced, onnx", "sliced, torch"):
        assert found[f"{name}, embedded model"]["verdict"] == "ok"
    assert "microphone" not in found


@NEEDS_PULSEAUDIO
@pytest.mark.slow
def test_a_microphone_that_hears_speech_is_told_from_one_that_hears_nothing(microphone: VirtualMicrophone) -> None:
    code, found = doctor(**microphone.variables)
    assert (code, found["microphone"]["verdict"]) == (1, "failed")
    assert "exact zeros" in found["microphone"]["text"]
    speech, rate_hz = soundfile.read(EXAMPLES / "two_utterances.wav")
    path = microphone.directory / "long.wav"
    soundfile.write(path, np.tile(speech, 6), rate_hz)
    microphone.begin_to_play(path)
    time.sleep(1)
    code, found = doctor(**microphone.variables)
    assert found["microphone"]["verdict"] == "ok", found["microphone"]
    assert "'Monitor of Null Output': peak" in found["microphone"]["text"]
    assert "monitor" in found["sound server"]["text"]


@pytest.mark.slow
def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("voice", "config", "examples", "models"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    weights = copy / "models" / "embedded" / "punctuation" / "onnx" / "punctuation.weights"
    content = bytearray(weights.read_bytes())
    content[1_000] ^= 1
    weights.write_bytes(content)
    command = [sys.executable, "-m", "voice", "doctor", "--json", "--no-microphone"]
    result = subprocess.run(command, cwd=copy, env=environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 1
    (failed,) = [each for each in json.loads(result.stdout) if each["name"] == "embedded model punctuation"]
    assert (failed["verdict"], "punctuation.weights" in failed["text"]) == ("failed", True)


def test_the_models_of_the_settings_are_looked_for_and_nothing_is_downloaded(tmp_path: Path) -> None:
    finding = _check_wanted("recognition", "paraformer-zh-streaming", "ms")
    assert (finding.verdict, "voice-asr models pull paraformer-zh-streaming" in finding.remedy) == ("warning", True)
    model = Path(shutil.copytree(REPOSITORY / "models" / "embedded" / "asr", tmp_path / "asr", ignore=shutil.ignore_patterns("onnx")))
    finding = _check_wanted("recognition", str(model), "ms")
    assert (finding.verdict, "its sums are right" in finding.text) == ("ok", True)
    assert "pull paraformer-zh-streaming --hub hf" in _check_wanted("recognition", "paraformer-zh-streaming", "hf").remedy
    (model / "am.mvn").write_text("no means")
    finding = _check_wanted("recognition", str(model), "ms")
    assert (finding.verdict, "am.mvn" in finding.text, "pull" in finding.remedy) == ("failed", True, False)
    assert "pull" not in _check_wanted("emotion", "a bad name", "ms").remedy
    (model / "SHA256SUMS").unlink()
    assert "without sums" in _check_wanted("recognition", str(model), "ms").text
    (model / "model.pt").unlink()
    assert _check_wanted("recognition", str(model), "ms").verdict == "failed"
    assert "does not exist" in _check_wanted("emotion", str(tmp_path / "nothing"), "ms").text


def test_which_models_the_settings_want(tmp_path: Path) -> None:
    assert wanted_models(load_settings({"embedded": True})) == []
    standard = wanted_models(load_settings({}))
    assert standard == [("recognition", "paraformer-zh-streaming"), ("punctuation", "ct-punc-c"), ("emotion", "iic/emotion2vec_plus_base")]
    given = {
        "model_dir": str(tmp_path),
        "vad": {"engine": "fsmn"},
        "final": {"punctuation_model": "off", "second_pass": "paraformer-zh"},
        "emotion": {"enabled": False},
    }
    assert wanted_models(load_settings(given)) == [
        ("recognition", str(tmp_path)),
        ("voice activity", "fsmn-vad"),
        ("second pass", "paraformer-zh"),
    ]
