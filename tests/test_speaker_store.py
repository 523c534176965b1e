"""Known speakers on disk: what is saved comes back, for this user alone; what is damaged is one clear error."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voice.errors import ConfigInvalid
from voice.finalization import speaker_store
from voice.finalization.speaker_registry import KnownSpeaker, unit
from voice.finalization.speaker_store import SpeakerStore

SIZE = 8
posix_only = pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")


def speakers() -> tuple[KnownSpeaker, ...]:
    rng = np.random.default_rng(0)
    vectors = [unit(rng.standard_normal(SIZE).astype(np.float32)) for _ in range(2)]
    return KnownSpeaker("A", "妈妈", vectors[0] * 0.7, 12), KnownSpeaker("B", None, vectors[1], 1)


def opened(directory: Path, model: str = "m", size: int = SIZE) -> SpeakerStore:
    return SpeakerStore(str(directory), model, size)


def saved(directory: Path) -> dict[str, Any]:
    """The content of a directory of two speakers."""
    store = opened(directory)
    store.save(speakers())
    store.close()
    content: dict[str, Any] = json.loads((directory / "speakers.json").read_text(encoding="utf-8"))
    return content


def problem(directory: Path, **changed: Any) -> str:
    with pytest.raises(ConfigInvalid) as raised:
        opened(directory, **changed).load()
    (line,) = raised.value.problems
    assert raised.value.exit_code == 2
    assert line.startswith("speakers.db: ")
    return line


def test_what_is_saved_comes_back(tmp_path: Path):
    directory = tmp_path / "a" / "voices"
    first = opened(directory)
    assert first.load() == ()
    first.save(speakers())
    first.save(speakers())
    first.close()
    for before, after in zip(speakers(), opened(directory).load(), strict=True):
        assert (before.label, before.name, before.num_utterances) == (after.label, after.name, after.num_utterances)
        assert np.allclose(before.centroid, after.centroid, atol=1e-6)


@posix_only
def test_the_directory_and_its_files_are_for_their_user_alone(tmp_path: Path):
    previous = os.umask(0)
    try:
        saved(tmp_path / "voices")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "voices").stat().st_mode) == 0o700
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "voices").iterdir()}
    assert files == {"speakers.json": 0o600, "lock": 0o600}


@posix_only
@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701])
def test_a_directory_that_others_may_read_is_refused_and_left_as_it_is(tmp_path: Path, mode: int):
    tmp_path.chmod(mode)
    assert "chmod 700" in problem(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == mode
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(speaker_store.fcntl is None, reason="no such lock here")
def test_two_processes_never_share_a_directory(tmp_path: Path):
    directory = tmp_path / "voices"
    store = opened(directory)
    code = (
        "import sys\nfrom voice.errors import ConfigInvalid\nfrom voice.finalization.speaker_store import SpeakerStore\n"
        "try:\n    SpeakerStore(sys.argv[1], 'm', 8)\nexcept ConfigInvalid as error:\n    print(error)\n"
    )
    run = [sys.executable, "-c", code, str(directory)]
    other = subprocess.run(run, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    assert "is in use by another process" in other.stdout
    store.close()
    assert subprocess.run(run, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent).stdout == ""


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = saved(tmp_path / "voices")
    store = opened(tmp_path / "voices")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(speaker_store.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.save(speakers()[:1])
    assert json.loads((tmp_path / "voices" / "speakers.json").read_text(encoding="utf-8")) == before
    assert sorted(path.name for path in (tmp_path / "voices").iterdir()) == ["lock", "speakers.json"]


def test_what_a_killed_process_left_is_not_followed(tmp_path: Path):
    directory = tmp_path / "voices"
    saved(directory)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    (directory / "speakers.json.part").symlink_to(elsewhere)
    store = opened(directory)
    store.save(speakers())
    assert elsewhere.read_text() == "precious"
    assert len(store.load()) == 2


def test_voices_of_another_model_are_refused(tmp_path: Path):
    saved(tmp_path / "voices")
    assert "of another model" in problem(tmp_path / "voices", model="other")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"format": 1}',
        b'{"format": 2, "model": "m", "speakers": []}',
        b"[" * 100_000,
        b"{" + b'"a":[' * 5_000,
        b'"' + b"x" * 16_000_001,
        b"1" * 5_000,
    ],
    ids=["empty", "cut", "null", "list", "bytes", "bare", "format", "deep", "deep_objects", "huge", "digits"],
)
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, content: bytes):
    saved(tmp_path / "voices")
    (tmp_path / "voices" / "speakers.json").write_bytes(content)
    line = problem(tmp_path / "voices")
    assert "speakers.json" in line or "another model" in line
    assert len(line) <= 300


NUMBERS = [0.25] * SIZE


@pytest.mark.parametrize(
    "change",
    [
        {"label": "a"},
        {"label": "ABCDE"},
        {"label": ""},
        {"label": 1},
        {"label": "B"},
        {"name": ""},
        {"name": "a\nb"},
        {"name": "\u202eevil"},
        {"name": "x" * 65},
        {"name": 5},
        {"name": ["x"]},
        {"utterances": 0},
        {"utterances": True},
        {"utterances": 1.5},
        {"utterances": 10**400},
        {"utterances": None},
        {"embedding": NUMBERS[1:]},
        {"embedding": [*NUMBERS, 0.5]},
        {"embedding": [0.0] * SIZE},
        {"embedding": [1.0] * SIZE},
        {"embedding": [float("nan"), *NUMBERS[1:]]},
        {"embedding": [float("inf"), *NUMBERS[1:]]},
        {"embedding": [3e38, *NUMBERS[1:]]},
        {"embedding": [10**400, *NUMBERS[1:]]},
        {"embedding": [True, *NUMBERS[1:]]},
        {"embedding": ["0.5", *NUMBERS[1:]]},
        {"embedding": [[0.5], *NUMBERS[1:]]},
        {"embedding": {"0": 0.5}},
        {"embedding": None},
    ],
    ids=str,
)
def test_a_speaker_that_nobody_saved_is_one_clear_error(tmp_path: Path, change: dict[str, Any]):
    content = saved(tmp_path / "voices")
    content["speakers"][0] |= change
    (tmp_path / "voices" / "speakers.json").write_text(json.dumps(content), encoding="utf-8")
    line = problem(tmp_path / "voices")
    assert "damaged speakers.json" in line
    assert "evil" not in line


@pytest.mark.parametrize("listed", [None, {}, "x", [1], [[]], [{}], [{}] * 1_001], ids=lambda value: str(value)[:12])
def test_a_list_that_nobody_saved_is_one_clear_error(tmp_path: Path, listed: Any):
    content = saved(tmp_path / "voices") | {"speakers": listed}
    (tmp_path / "voices" / "speakers.json").write_text(json.dumps(content), encoding="utf-8")
    assert "damaged speakers.json" in problem(tmp_path / "voices")


def test_more_speakers_than_there_can_be_are_one_clear_error(tmp_path: Path):
    content = saved(tmp_path / "voices")
    one = content["speakers"][0]
    letters = [
        f"{first}{second}{third}" for first in "AB" for second in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" for third in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    ]
    for number, accepted in ((1_000, True), (1_001, False)):
        content["speakers"] = [{**one, "label": label} for label in letters[:number]]
        (tmp_path / "voices" / "speakers.json").write_text(json.dumps(content), encoding="utf-8")
        if accepted:
            store = opened(tmp_path / "voices")
            assert len(store.load()) == number
            store.close()
        else:
            assert "damaged speakers.json" in problem(tmp_path / "voices")


def test_a_place_that_cannot_be_a_directory_is_one_clear_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/voices"), Path("a\0b"), Path("x" * 5_000)):
        assert problem(path)


@pytest.mark.parametrize("name", ["speakers.json", "lock"])
def test_a_directory_in_the_place_of_a_file_is_one_clear_error(tmp_path: Path, name: str):
    (tmp_path / "voices" / name).mkdir(parents=True)
    (tmp_path / "voices").chmod(0o700)
    assert problem(tmp_path / "voices")
