"""voice-asr as people use it: help, mistakes, files and folders to text and subtitles, recorded events to subtitles."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from harness import EXAMPLES, REPOSITORY, environment, final_texts, in_time, parse_events

from voice.commands.main import COMMANDS
from voice.commands.results import inputs_below, targets_of, write_all
from voice.flags import AUDIO_SUFFIXES

TEXT = "把空调的温度调到百分之二十六。"


def voice(*arguments: str | Path, directory: Path = REPOSITORY, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "voice", *map(str, arguments)],
        cwd=directory,
        env=environment(PYTHONPATH=str(REPOSITORY), PYTHONIOENCODING="utf-8", **variables),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


# --- the command itself -------------------------------------------------------------------------------------------------


def test_help_names_every_command() -> None:
    result = voice("--help")
    assert result.returncode == 0
    assert all(f"\n    {name}" in result.stdout for name in COMMANDS)
    assert voice().returncode == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself_with_an_example(name: str) -> None:
    result = voice(name, "--help")
    assert result.returncode == 0
    assert "example: " in result.stdout


def test_help_of_a_run_shows_the_defaults_of_its_settings() -> None:
    text = " ".join(voice("run", "--help").stdout.split())
    assert "silence that ends an utterance (default: 800)" in text
    assert "where models run (default: auto)" in text


def test_help_imports_nothing_slow() -> None:
    slow = ("numpy", "yaml", "pydantic", "structlog", "rich", "onnxruntime")
    shows = f"print([name for name in {slow} if name in sys.modules], file=sys.stderr)"
    code = f"import sys, voice.commands.main as m\ntry: m.main(['--help'])\nfinally: {shows}"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False)
    assert result.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("trancribe", "a.wav"), "'trancribe' is no command (did you mean transcribe?)"),
        (("talk.m4a",), "'talk.m4a' is no command (to recognise files: voice-asr transcribe talk.m4a)"),
        (("run", "talk.wav"), "unrecognized arguments: talk.wav (to read a file: --input talk.wav)"),
        (("run", "--modle-dir", "x"), "unrecognized arguments: --modle-dir x (did you mean --model-dir?)"),
        (("transcribe", "a.wav", "-f", "srt,doc"), "'srt,doc': doc is none of txt, srt, vtt, jsonl, csv"),
        (("transcribe", "a.wav", "-f", ","), "nothing is none of"),
        (("transcribe", "a.wav", "--jobs", "0"), "'0' is no number of files above 0"),
        (("transcribe", "a.wav", "--jobs=-3"), "'-3' is no number of files above 0"),
        (("run", "--device", "cuda"), "--device names a microphone; for where models run: --device-type cuda"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_was_meant(arguments: tuple[str, ...], said: str) -> None:
    result = voice(*arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_the_entries_give_the_same_hints() -> None:
    result = subprocess.run(
        [sys.executable, "asr_service.py", "talk.wav"], cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False
    )
    assert (result.returncode, "--input talk.wav" in result.stderr) == (2, True)


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_the_commands_and_their_flags(shell: str) -> None:
    result = voice("completion", shell)
    assert result.returncode == 0
    assert "transcribe" in result.stdout
    assert "endpoint-silence-ms" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["streaming", "sliced"])
def test_run_is_the_service(mode: str) -> None:
    result = voice("run", "--mode", mode, "--embedded", "--input", EXAMPLES / "temperature.wav")
    assert result.returncode == 0
    events = parse_events(result.stdout)
    assert final_texts(events) == [TEXT[:-1]]
    assert events[0]["source"].startswith("funasr.streaming" if mode == "streaming" else "funasr.paraformer")
    assert "embedded_model" not in result.stderr, "nobody speaks to it"


@pytest.mark.slow
def test_run_gives_a_signal_the_documented_end() -> None:
    command = [sys.executable, "-m", "voice", "run", "--embedded", "--input", "-"]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(in_time(10)) == 0
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()


@pytest.mark.parametrize("command", ["export", "listen", "completion"])
def test_a_stdout_that_takes_nothing_is_one_line_and_exit_5(recorded: Path, command: str) -> None:
    arguments = {"export": (recorded, "-o", "-"), "listen": (recorded,), "completion": ("bash",)}[command]
    line = [sys.executable, "-m", "voice", command, *map(str, arguments)]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(line, cwd=REPOSITORY, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (5, "error: stdout cannot be written (No space left on device)\n")
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(line, cwd=REPOSITORY, env=environment(), stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (result.returncode, result.stderr) == (5, "error: stdout cannot be written (Broken pipe)\n")
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *line], cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False
    )
    assert (closed.returncode, closed.stderr) == (5, "error: stdout cannot be written (Bad file descriptor)\n")


def test_texts_are_utf_8_whatever_the_locale(recorded: Path) -> None:
    """The tests' environment has LC_ALL=C, and Python's own coercion is off."""
    for arguments in (("export", recorded, "-o", "-"), ("listen", recorded)):
        line = [sys.executable, "-m", "voice", *map(str, arguments)]
        result = subprocess.run(line, cwd=REPOSITORY, env=environment(PYTHONCOERCECLOCALE="0"), capture_output=True, check=False)
        assert (result.returncode, result.stderr) == (0, b"")
        assert "好。" in result.stdout.decode("utf-8")


# --- which files, and where their results go ----------------------------------------------------------------------------


def touch(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"x")


def test_a_folder_gives_its_recordings_and_deeper_ones_where_asked(tmp_path: Path) -> None:
    touch(tmp_path, "b.WAV", "a.mp3", "notes.txt", "sub/c.flac")
    found, problems = inputs_below([tmp_path], AUDIO_SUFFIXES, recursive=False)
    assert ([str(each.relative) for each in found], problems) == (["a.mp3", "b.WAV"], [])
    found, _ = inputs_below([tmp_path], AUDIO_SUFFIXES, recursive=True)
    assert [str(each.relative) for each in found] == ["a.mp3", "b.WAV", "sub/c.flac"]


def test_a_file_is_taken_whatever_it_is_called_and_once(tmp_path: Path) -> None:
    touch(tmp_path, "recording.dat", "a.wav")
    found, _ = inputs_below([tmp_path / "recording.dat", tmp_path / "a.wav", tmp_path], AUDIO_SUFFIXES, recursive=False)
    assert [each.path.name for each in found] == ["recording.dat", "a.wav"]


def test_what_is_missing_or_empty_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    _, problems = inputs_below([tmp_path / "no.wav", tmp_path / "empty"], AUDIO_SUFFIXES, recursive=False)
    assert problems == [
        f"{tmp_path / 'no.wav'}: no such file or folder",
        f"{tmp_path / 'empty'}: no recordings in this folder (for the folders in it: --recursive)",
    ]


def test_results_stand_beside_the_recording_or_below_the_folder(tmp_path: Path) -> None:
    touch(tmp_path, "in/sub/a.wav")
    found, _ = inputs_below([tmp_path / "in"], AUDIO_SUFFIXES, recursive=True)
    assert targets_of(found, None, ["srt"]) == [{"srt": tmp_path / "in/sub/a.srt"}]
    assert targets_of(found, tmp_path / "out", ["srt"]) == [{"srt": tmp_path / "out/sub/a.srt"}]


def test_two_recordings_of_one_name_keep_their_endings(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "a.mp3", "v1.2.wav")
    found, _ = inputs_below([tmp_path], AUDIO_SUFFIXES, recursive=False)
    names = [each["txt"].name for each in targets_of(found, None, ["txt"])]
    assert names == ["a.mp3.txt", "a.wav.txt", "v1.2.txt"]


def test_a_result_that_cannot_be_written_leaves_nothing_half_done(tmp_path: Path) -> None:
    (tmp_path / "b.srt").mkdir()
    with pytest.raises(OSError, match="no file"):
        write_all({tmp_path / "b.srt": "text"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_all({tmp_path / "c.srt": "text"})
    assert [path.name for path in tmp_path.iterdir()] == ["b.srt"]


def test_results_have_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    write_all({tmp_path / "a.txt": "好"})
    touch(tmp_path, "other")
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


# --- transcribe ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("temperature", "two_utterances"):
        shutil.copy(EXAMPLES / f"{name}.wav", folder)
    return folder


@pytest.mark.slow
def test_a_folder_becomes_texts_and_subtitles_and_is_done_once(recordings: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = voice("transcribe", recordings, "--embedded", "-f", "txt,srt,vtt,jsonl,csv", "-o", out, "--speed")
    assert result.returncode == 0, result.stderr
    assert "times as fast as it was spoken" in result.stderr
    assert (out / "temperature.txt").read_text(encoding="utf-8") == f"{TEXT}\n"
    assert (out / "two_utterances.txt").read_text(encoding="utf-8").splitlines() == ["今天北京的天气怎么样？", "明天早上七点叫我起床。"]
    assert sorted(path.suffix for path in out.glob("temperature.*")) == [".csv", ".jsonl", ".srt", ".txt", ".vtt"]
    events = parse_events((out / "temperature.jsonl").read_bytes())
    assert final_texts(events) == [TEXT[:-1]]
    assert events[0]["emotion"] is not None
    (out / "temperature.txt").write_text("edited")
    again = voice("transcribe", recordings, "--embedded", "-f", "txt,srt,vtt,jsonl,csv", "-o", out)
    assert again.returncode == 0
    assert "2 of 2 are done already" in again.stderr
    assert (out / "temperature.txt").read_text() == "edited"
    forced = voice("transcribe", recordings, "--embedded", "-o", out, "--force", "--jobs", "1")
    assert forced.returncode == 0
    assert (out / "temperature.txt").read_text(encoding="utf-8") == f"{TEXT}\n"


@pytest.mark.slow
def test_one_that_fails_costs_the_others_nothing_and_is_listed_at_the_end(recordings: Path, tmp_path: Path) -> None:
    touch(recordings, "broken.mp3", "video.mp4")
    samples, rate_hz = soundfile.read(EXAMPLES / "two_utterances.wav")
    soundfile.write(recordings / "cut.flac", np.concatenate((samples, samples)), rate_hz)
    whole = (recordings / "cut.flac").read_bytes()
    (recordings / "cut.flac").write_bytes(whole[: len(whole) * 3 // 4])
    result = voice("transcribe", recordings, "--embedded", "-o", tmp_path / "out", PATH=str(tmp_path))
    assert result.returncode == 1
    failed = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert [next(name for name in ("broken.mp3", "cut.flac", "video.mp4") if name in line) for line in sorted(failed)]
    assert len(failed) == 3
    assert all("install it (apt-get install ffmpeg" in line for line in failed if "cut.flac" not in line)
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["cut.txt", "temperature.txt", "two_utterances.txt"]
    assert "今天北京的天气怎么样？" in (tmp_path / "out" / "cut.txt").read_text(encoding="utf-8"), "what was read is kept"


@pytest.mark.slow
def test_one_recording_may_go_to_stdout(tmp_path: Path) -> None:
    result = voice("transcribe", EXAMPLES / "temperature.wav", "--embedded", "-o", "-")
    assert (result.returncode, result.stdout) == (0, f"{TEXT}\n")
    assert voice("transcribe", EXAMPLES, "--embedded", "-o", "-").returncode == 2


@pytest.mark.slow
def test_what_ffmpeg_reads_is_read(recordings: Path, tmp_path: Path) -> None:
    """A stand-in for ffmpeg that writes what ffmpeg is asked for: the real one belongs to no machine by default."""
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    wav = recordings / "temperature.wav"
    program.write_text(
        f"""#!{sys.executable}
import sys, soundfile
assert sys.argv[1] == "-nostdin" and sys.argv[sys.argv.index("-protocol_whitelist") + 1] == "file,pipe"
assert sys.argv[sys.argv.index("-f") + 1] == "s16le" and sys.argv[sys.argv.index("-ar") + 1] == "16000"
name = sys.argv[sys.argv.index("-i") + 1]
assert name.startswith("file:")
if name.endswith("bad.m4a"):
    sys.exit(name + ": Invalid data found when processing input")
sys.stdout.buffer.write((soundfile.read({str(wav)!r}, dtype="int16")[0]).tobytes())
"""
    )
    program.chmod(0o755)
    touch(tmp_path, "in2/talk.m4a", "in2/bad.m4a")
    result = voice("transcribe", tmp_path / "in2", "--embedded", PATH=f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    assert result.returncode == 1
    assert (tmp_path / "in2" / "talk.txt").read_text(encoding="utf-8") == f"{TEXT}\n"
    assert "bad.m4a: ffmpeg cannot read it (the file: Invalid data found when processing input)" in result.stderr


@pytest.mark.slow
def test_an_interruption_keeps_what_is_done(recordings: Path, tmp_path: Path) -> None:
    samples, rate_hz = soundfile.read(EXAMPLES / "two_utterances.wav")
    soundfile.write(recordings / "long.wav", np.tile(samples, 200), rate_hz)
    command = [sys.executable, "-m", "voice", "transcribe", str(recordings), "--embedded", "-o", str(tmp_path / "out"), "--jobs", "2"]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + in_time(30)
    while not (tmp_path / "out" / "two_utterances.txt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=in_time(20))
    assert process.returncode == 130
    assert "what is done is kept" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "long.txt").exists()


def test_wrong_settings_are_listed_before_any_work(tmp_path: Path) -> None:
    result = voice("transcribe", EXAMPLES, "--embedded", "--model-dir", "x", "-o", tmp_path)
    assert (result.returncode, "exclude each other" in result.stderr) == (2, True)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_wrong_hotwords_are_said_once(tmp_path: Path, jobs: str) -> None:
    (tmp_path / "words.txt").write_text("北京,40\n", encoding="utf-8")
    result = voice("transcribe", EXAMPLES, "--embedded", "--hotwords", tmp_path / "words.txt", "-o", tmp_path, "--jobs", jobs)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "use a blank" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_model_that_cannot_be_loaded_is_said_once(tmp_path: Path, jobs: str) -> None:
    """Damaged so that only loading it shows that."""
    model = Path(shutil.copytree(REPOSITORY / "models" / "embedded" / "asr", tmp_path / "asr"))
    (model / "SHA256SUMS").unlink()
    (model / "am.mvn").write_text("no means")
    flags = ("--model-dir", model, "--punctuation-model", "off", "--no-emotion", "--jobs", jobs)
    result = voice("transcribe", EXAMPLES, *flags, "-o", tmp_path / "out")
    assert result.returncode == 3, result.stderr
    assert "am.mvn" in result.stderr.splitlines()[-1], result.stderr
    assert "Traceback" not in result.stderr


# --- export -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """What a service wrote, with a partial before, and a last line that a crash cut off."""
    token = {"start_ms": 0, "end_ms": 300, "confidence": 0.9}
    final = {
        "type": "voice.asr_text.final", "ts": 1, "trace_id": "0" * 16, "text": "好。", "confidence": 0.9, "seq": 2, "start_ms": 0,
        "end_ms": 900, "endpoint": "silence", "raw_text": "好", "tokens": [{"text": "好", **token}], "emotion": None, "lost_ms": 0,
    }  # fmt: skip
    partial = {"type": "voice.asr_text.partial", "trace_id": "0" * 16, "text": "好", "stable_chars": 1}
    path = tmp_path / "asr_output.jsonl"
    path.write_text("\n".join(json.dumps(each, ensure_ascii=False) for each in (partial, final)) + '\n{"type": "voi', encoding="utf-8")
    return path


def test_a_recording_of_events_becomes_subtitles_beside_it(recorded: Path) -> None:
    result = voice("export", recorded, "-f", "srt,txt")
    assert (result.returncode, result.stderr) == (0, "")
    assert recorded.with_suffix(".srt").read_text(encoding="utf-8") == "1\n00:00:00,000 --> 00:00:00,500\n好\n"
    assert recorded.with_suffix(".txt").read_text(encoding="utf-8") == "好。\n"
    again = voice("export", recorded, "-f", "srt")
    assert (again.returncode, "--force" in again.stderr) == (1, True)


def test_an_export_never_replaces_its_own_recording(recorded: Path) -> None:
    before = recorded.read_bytes()
    result = voice("export", recorded, "-f", "jsonl", "--force")
    assert (result.returncode, "the result would replace it" in result.stderr) == (1, True)
    assert recorded.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"2026-01-01 [info] pipeline_built\n{}\n", "line 1 is no event; record stdout alone"),
        (b"[1]\n", "line 1 is no event of this service"),
        (b'{"type": "voice.asr_text.final", "text": "a"}\n', "line 1 is an event voice.asr_text.final without a right trace_id"),
        (b'{"type": "voice.asr_text.partial", "text": [], "stable_chars": 0}\n', "without a right text"),
        (b"\xff\xfe{}\n", "codec can't decode"),
    ],
)
def test_what_is_no_recording_of_events_is_said(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    result = voice("export", tmp_path / "x.jsonl")
    assert (result.returncode, said in result.stderr) == (1, True), result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert voice("export", tmp_path / "nothing.jsonl").returncode == 4
