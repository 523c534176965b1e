"""The command line: whatever is wrong with it is answered in one line and by the exit code, before a model or a device is touched."""

from __future__ import annotations

import itertools
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ENTRIES, EXAMPLES, REPOSITORY, environment, of_type, run_service

from voice import errors, prerequisites
from voice.cli import main
from voice.process.start import Start

# --- wrong settings -----------------------------------------------------------------------------------------------------

NO_PATHS = [
    ("~nosuchuser/x", "a home directory that is not known"),
    ("/" + "x" * 5_000, "a path that is too long"),
    ("a\0b", "a character that no path can hold"),
]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command line is refused with."""
    assert main("streaming", Start(0, ()), arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("error: ")
    assert len(line) <= 310
    return line


@pytest.mark.parametrize("path", [path for path, _ in NO_PATHS], ids=[why for _, why in NO_PATHS])
def test_a_settings_file_that_can_be_no_path_is_exit_2(capsys: pytest.CaptureFixture[str], path: str) -> None:
    refused(capsys, "--config", path)


@pytest.mark.slow
@pytest.mark.parametrize(("path", "why"), NO_PATHS[:2], ids=[why for _, why in NO_PATHS[:2]])
@pytest.mark.parametrize(
    ("flag", "code", "error_code"),
    [
        ("--input", 4, "input_unreadable"),
        ("--model-dir", 3, "model_load_failed"),
        ("--hotwords", 2, "config_invalid"),
        ("--record", 2, "config_invalid"),
        ("--emotion-model", 0, "model_load_failed"),
        ("--punctuation-model", 0, "model_load_failed"),
        ("--second-pass", 0, "model_load_failed"),
    ],
)
def test_what_can_be_no_path_is_one_error_event_and_the_exit_code_of_what_it_should_name(
    flag: str, path: str, why: str, code: int, error_code: str
) -> None:
    """An optional model that cannot be had costs only itself."""
    arguments = {"--input": str(EXAMPLES / "air_conditioner.wav"), flag: path}
    result = run_service("streaming", *itertools.chain(*arguments.items()), embedded=flag != "--model-dir")
    (error,) = of_type(result.events, "error_event")
    assert (result.returncode, error["error_code"], error["recoverable"]) == (code, error_code, code == 0)
    assert len(error["message"]) <= 1_000


@pytest.mark.parametrize("flag", ["--endpoint-silence-ms", "--chunk-sec", "--device", "--sample-rate", "--channel"])
def test_a_number_of_five_thousand_digits_is_exit_2(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert "is not allowed" in refused(capsys, flag, "1" * 5_000)


def test_harmful_values_are_exit_2_without_a_traceback_from_the_process_too(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("endpoint_silence_ms: 2024-13-45\n")
    result = start("--config", str(file), VOICE_ASR__CHUNK_SIZE="[" * 100_000, VOICE_ASR__VAD__MIN_SPEECH_MS="1" * 5_000)
    assert (result.returncode, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") for line in lines)


# --- microphones --------------------------------------------------------------------------------------------------------


def test_a_listing_without_a_microphone_says_what_to_do_and_is_exit_4() -> None:
    """PortAudio of a machine without any device is played by a module of its name."""
    planted = (
        "import importlib.machinery, types\nmodule = sys.modules['sounddevice'] = types.ModuleType('sounddevice')\n"
        "module.__spec__ = importlib.machinery.ModuleSpec('sounddevice', None)\n"
        "module.query_devices = lambda: []\nmodule.default = types.SimpleNamespace(device=(-1, -1))"
    )
    result = start("--list-devices", planted=planted)
    assert (result.returncode, result.stdout) == (4, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: no microphone was found: ")
    assert "--input FILE" in line


# --- Python and packages ------------------------------------------------------------------------------------------------


def start(*arguments: str, planted: str = "", mode: str = "streaming", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run an entry as ``python asr_service.py`` does, after statements that spoil its Python."""
    run = f"import runpy, sys; sys.path.insert(0, {str(REPOSITORY)!r}); sys.argv = {['asr', *arguments]!r}"
    return subprocess.run(
        [sys.executable, "-c", f"{run}\n{planted}\nrunpy.run_path({str(REPOSITORY / ENTRIES[mode])!r}, run_name='__main__')"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env=environment(**variables),
    )


@pytest.mark.parametrize("mode", ENTRIES)
@pytest.mark.parametrize(
    ("planted", "reason"),
    [
        ("sys.modules['numpy'] = None", "packages are missing (numpy)"),
        ("sys.modules['torch'] = sys.modules['funasr'] = None", "packages are missing (torch, funasr)"),
        ("sys.version_info = (3, 9, 18, 'final', 0)", "Python 3.9 does not fit, 3.10 to 3.13 is needed"),
        ("sys.version_info = (3, 14, 0, 'final', 0)", "Python 3.14 does not fit, 3.10 to 3.13 is needed"),
        ("import soundfile; sys.modules['soxr.soxr_ext'] = None", "a package is damaged ("),
    ],
)
def test_a_python_or_a_package_that_does_not_fit_is_one_line_that_names_make_demo(mode: str, planted: str, reason: str) -> None:
    result = start("--version", planted=planted, mode=mode)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {reason}")
    assert "`make demo`" in line


def test_the_check_knows_what_requirements_name() -> None:
    text = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8")
    assert "Python {}.{} to {}.{}".format(*prerequisites.OLDEST_PYTHON, *prerequisites.NEWEST_PYTHON) in text
    required = {name.lower().replace("-", "_") for name in re.findall(r"^[A-Za-z][\w-]*", text, re.MULTILINE)}
    known = {*prerequisites.PACKAGES, *prerequisites.TERMINAL_PACKAGES}
    assert {name.replace("pyyaml", "yaml") for name in required} - {"torchaudio", "setuptools", "pulsectl"} == known
    assert prerequisites.EXIT_CONFIG == errors.EXIT_CONFIG


def test_the_check_imports_nothing_heavy() -> None:
    loaded = "import voice.prerequisites, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert not set(prerequisites.PACKAGES) & set(result.stdout.split())


def test_an_entry_that_is_imported_does_not_run() -> None:
    for entry in ENTRIES.values():
        before = signal.getsignal(signal.SIGTERM)
        assert "START" not in runpy.run_path(str(REPOSITORY / entry), run_name="entry")
        assert signal.getsignal(signal.SIGTERM) is before


def test_a_package_that_python_path_spoils_is_said_to_be_spoilt_by_it(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("raise ImportError('another one')")
    result = start("--embedded", PYTHONPATH=str(tmp_path))
    assert (result.returncode, result.stdout) == (2, "")
    assert "PYTHONPATH is set: try without it" in result.stderr
    assert len(result.stderr.splitlines()) == 1
