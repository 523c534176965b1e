"""Utterances kept for bug reports: heard again they say the same, they are the user's alone, and a disk that refuses costs nothing else."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fakes import CountingRecognizer, silence, speech
from harness import ENTRIES, EXAMPLES, example, final_texts, in_time, of_type, run_service
from test_pipeline import build

from voice.audio import AudioBlock
from voice.errors import ConfigInvalid
from voice.output.recorder import Recorder

IDS = [f"{number:016x}" for number in range(100)]


def clock():
    seconds = itertools.count()
    return lambda: datetime(2026, 11, 21, tzinfo=timezone.utc) + timedelta(seconds=next(seconds))


def recorder(directory: Path, max_bytes: int = 10**9) -> Recorder:
    return Recorder(directory, max_bytes, clock())


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_an_utterance_is_a_file_that_holds_exactly_its_samples(tmp_path: Path) -> None:
    kept = recorder(tmp_path / "new" / "directory")
    samples = np.random.default_rng(1).normal(size=5_000).astype(np.float32)
    kept.keep(IDS[1], samples)
    kept.drain(5)
    (path,) = (tmp_path / "new" / "directory").iterdir()
    assert path.name == "20261121T000000.000Z-0000000000000001.wav"
    read, rate_hz = soundfile.read(path, dtype="float32")
    assert rate_hz == 16_000
    assert np.array_equal(read, samples)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_oldest_make_room_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_bytes(b"x" * 100_000)
    kept = recorder(tmp_path, max_bytes=3 * 4_200)
    for trace_id in IDS[:6]:
        kept.keep(trace_id, np.zeros(1_000, np.float32))
        kept.drain(5)
    assert [name[-8:] for name in names(tmp_path)] == ["0003.wav", "0004.wav", "0005.wav", "otes.wav"]
    kept.keep(IDS[7], np.zeros(100_000, np.float32))
    kept.drain(5)
    assert [name[-8:] for name in names(tmp_path)] == ["0007.wav", "otes.wav"], "the newest stays, however large"


SIZE = 4_104
"""Bytes of a recording of 1,000 samples, about."""


def record(kept: Recorder, *trace_ids: str) -> None:
    for trace_id in trace_ids:
        kept.keep(trace_id, np.zeros(1_000, np.float32))
        kept.drain(5)


def name_like_ours(number: int) -> str:
    """Older than any that the clock of these tests makes."""
    return f"20251121T000000.000Z-{number:016x}.wav"


def test_what_bears_our_names_but_is_no_file_of_ours_is_left_alone_and_the_limit_holds(tmp_path: Path) -> None:
    directory = tmp_path / "kept"
    (directory / name_like_ours(1)).mkdir(parents=True)
    (tmp_path / "precious.wav").write_bytes(b"x" * 100_000)
    (directory / name_like_ours(2)).symlink_to(tmp_path / "precious.wav")
    (directory / name_like_ours(3)).symlink_to(tmp_path / "nowhere.wav")
    (directory / name_like_ours(4)).symlink_to(tmp_path)
    os.mkfifo(directory / name_like_ours(5))
    kept = recorder(directory, max_bytes=round(2.5 * SIZE))
    record(kept, *IDS[10:16])
    assert kept.take_failures() == []
    assert names(directory) == [*map(name_like_ours, range(1, 6)), *names(directory)[5:]]
    assert [int(name[-20:-4], 16) for name in names(directory)[5:]] == [14, 15]
    assert (tmp_path / "precious.wav").stat().st_size == 100_000


@pytest.mark.parametrize("reason", [FileNotFoundError, PermissionError])
def test_a_recording_that_vanishes_or_cannot_be_looked_at_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: type[OSError]
) -> None:
    (tmp_path / name_like_ours(1)).write_bytes(b"x")
    lstat = Path.lstat

    def failing(path: Path) -> os.stat_result:
        if path.name == name_like_ours(1):
            raise reason(path.name)
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", failing)
    kept = recorder(tmp_path, max_bytes=round(1.5 * SIZE))
    record(kept, *IDS[10:13])
    assert kept.take_failures() == []
    assert [int(name[-20:-4], 16) for name in names(tmp_path)] == [1, 12]


def test_a_recording_that_another_program_deleted_first_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name_like_ours(1)).write_bytes(b"x" * SIZE)
    unlink = Path.unlink

    def deleted_twice(path: Path, *, missing_ok: bool = False) -> None:
        unlink(path)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", deleted_twice)
    kept = recorder(tmp_path, max_bytes=round(1.5 * SIZE))
    record(kept, IDS[10])
    assert kept.take_failures() == []
    assert [int(name[-20:-4], 16) for name in names(tmp_path)] == [10]


def test_a_recording_that_cannot_be_deleted_lets_the_next_make_room_and_is_said_where_that_is_not_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name_like_ours(1)).write_bytes(b"x" * SIZE)
    unlink = Path.unlink

    def failing(path: Path, *, missing_ok: bool = False) -> None:
        if path.name == name_like_ours(1):
            raise PermissionError(path.name)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", failing)
    kept = recorder(tmp_path, max_bytes=round(2.5 * SIZE))
    record(kept, *IDS[10:13])
    assert [int(name[-20:-4], 16) for name in names(tmp_path)] == [1, 12]
    assert kept.take_failures() == []
    (tmp_path / name_like_ours(1)).write_bytes(b"x" * 3 * SIZE)
    record(kept, *IDS[13:15])
    assert [int(name[-20:-4], 16) for name in names(tmp_path)] == [1, 14]
    assert kept.take_failures() == [f"PermissionError: {name_like_ours(1)}"]


def test_an_error_of_libsndfile_costs_that_recording_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = recorder(tmp_path)
    failures = iter([soundfile.LibsndfileError(1), RuntimeError("planted")])
    write = soundfile.write

    def failing(*arguments: Any, **options: Any) -> None:
        for failure in failures:
            raise failure
        write(*arguments, **options)

    monkeypatch.setattr(soundfile, "write", failing)
    record(kept, *IDS[:3])
    assert [failure.split(":")[0] for failure in kept.take_failures()] == ["LibsndfileError"], "said once until one succeeds again"
    assert [int(name[-20:-4], 16) for name in names(tmp_path)] == [2]


def test_a_directory_that_went_away_is_said_once_until_it_is_back(tmp_path: Path) -> None:
    directory = tmp_path / "kept"
    kept = recorder(directory)
    for _ in range(2):
        shutil.rmtree(directory)
        for trace_id in IDS[:3]:
            kept.keep(trace_id, np.zeros(100, np.float32))
            kept.drain(5)
        (failure,) = kept.take_failures()
        assert failure.startswith("FileNotFoundError: ")
        assert kept.take_failures() == []
        directory.mkdir()
        kept.keep(IDS[4], np.zeros(100, np.float32))
        kept.drain(5)
        assert len(names(directory)) == 1


def test_a_disk_slower_than_speech_costs_recordings_and_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = recorder(tmp_path)
    monkeypatch.setattr(kept, "_write", lambda *_: time.sleep(60))
    started = time.monotonic()
    for trace_id in IDS:
        kept.keep(trace_id, np.zeros(100, np.float32))
    kept.drain(0.2)
    assert time.monotonic() - started < in_time(1)
    assert [failure.split(":")[0] for failure in kept.take_failures()] == ["TooSlow"]


@pytest.mark.parametrize("place", ["file/below", "file"])
def test_what_is_no_directory_is_refused_in_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigInvalid, match=r"record\.directory: .*file.* cannot be made: "):
        recorder(tmp_path / place)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("~nosuchuser/kept", "begins with a home directory that is not known"),
        ("/tmp/a\0b", "holds a character that no path can hold"),
        ("/tmp/" + "x" * 5_000, "is too long for a path"),
        ("/tmp/" + "x" * 300, "is too long for a path"),
    ],
)
def test_a_name_that_cannot_be_a_directory_is_refused_in_one_line(name: str, reason: str) -> None:
    with pytest.raises(ConfigInvalid, match=rf"record\.directory: .* {reason}") as caught:
        recorder(Path(name))
    assert len(caught.value.problems) == len(str(caught.value).splitlines()) == 1


def test_the_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    record(recorder(Path("~/kept")), IDS[1])
    assert len(names(tmp_path / "kept")) == 1


def test_every_utterance_is_kept_with_its_pre_roll_and_nothing_of_its_neighbours() -> None:
    kept: dict[str, np.ndarray] = {}
    audio = np.concatenate([silence(2), speech(1), silence(2), speech(2), silence(2)])
    pipeline = build(CountingRecognizer())
    pipeline._keep = kept.__setitem__
    pipeline.process(AudioBlock(audio[:, None], 16_000))
    pipeline.finish("end_of_input")
    lengths = [len(samples) / 16_000 for samples in kept.values()]
    assert lengths == pytest.approx([1.6, 2.6], abs=0.1), "300 ms before it, 300 ms behind it"
    assert [float(np.abs(samples).max()) > 0.1 for samples in kept.values()] == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ENTRIES)
def test_what_was_kept_says_the_same_when_it_is_heard_again(mode: str, tmp_path: Path) -> None:
    texts = list(example("two_utterances")[1])
    result = run_service(mode, "--input", str(EXAMPLES / "two_utterances.wav"), "--record", str(tmp_path / "kept"))
    assert final_texts(result.events) == texts
    paths = sorted((tmp_path / "kept").iterdir())
    assert [path.stem.rpartition("-")[2] for path in paths] == [final["trace_id"] for final in of_type(result.events, "final")]
    for path, text in zip(paths, texts, strict=True):
        assert final_texts(run_service(mode, "--input", str(path)).events) == [text]


@pytest.mark.slow
def test_a_full_disk_is_one_error_event_and_no_lost_word(tmp_path: Path) -> None:
    """No file may grow beyond 1,000 bytes; a pipe may."""
    planted = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))"
    arguments = ("--input", str(EXAMPLES / "two_utterances.wav"), "--record", str(tmp_path))
    result = run_service("streaming", *arguments, planted=planted)
    assert result.returncode == 0
    assert final_texts(result.events) == list(example("two_utterances")[1])
    (error,) = of_type(result.events, "error_event")
    assert (error["error_code"], error["recoverable"]) == ("record_failed", True)
    assert "File too large" in error["message"]
    assert "Traceback" not in result.stderr
    assert names(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("directory", ["/dev/null/here", "~nosuchuser/kept", "x" * 5_000])
def test_a_directory_that_cannot_be_is_exit_2(directory: str) -> None:
    result = run_service("streaming", "--input", str(EXAMPLES / "temperature.wav"), "--record", directory)
    assert result.returncode == 2
    (error,) = of_type(result.events, "error_event")
    assert error["error_code"] == "config_invalid"
