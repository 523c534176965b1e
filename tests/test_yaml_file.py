"""YAML and text files from outside: read within bounds, or refused in one line, at once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from voice.text_file import FileInvalid, expand, read_text
from voice.yaml_file import MAX_BYTES, MAX_DEPTH, MAX_NODES, read_mapping

AT_ONCE_SEC = 2.0
"""Refusing takes at most half a second; a busy machine is slower."""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "file.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def refused(path: Path) -> str:
    """The one line a file is refused with, at once."""
    started = time.process_time()
    with pytest.raises(FileInvalid) as caught:
        read_mapping(path)
    assert time.process_time() - started < AT_ONCE_SEC
    (line,) = str(caught.value).splitlines()
    assert len(line) < 1_100
    return line


def bomb(levels: int) -> str:
    """Each line is a list of ten times the line before."""
    lines = ["endpoint_silence_ms: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"k{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


def merge_bomb(levels: int) -> str:
    lines = ["k0: &a0 {a: 1, b: 2}"]
    lines += [f"k{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, levels)]
    return "\n".join(lines)


CHAIN = "\n".join(["k0: &a0 [1]", *(f"k{n}: &a{n} [*a{n - 1}]" for n in range(1, 1_000))])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (bomb(9), "holds more than 20,000 values"),
        (merge_bomb(9), "holds more than 20,000 values"),
        (CHAIN, "is nested deeper than 32 levels (line 31)"),
        ("[" * 3_000, "is nested deeper than 32 levels (line 1)"),
        ("a: " + "{a: " * 900 + "1" + "}" * 900, "is nested deeper than 32 levels (line 1)"),
        ("\n".join(" " * n + "a:" for n in range(600)), "is nested deeper than 32 levels (line 32)"),
        ("- " * 3_000, "is nested deeper than 32 levels (line 1)"),
        ("a: &a [*a]", "holds a value that contains itself (line 1)"),
        ("a: &a\n  <<: *a\n", "holds a value that contains itself (line 2)"),
        ("a: &a 1\nb: &a 2", "is not YAML (ComposerError: found duplicate anchor 'a'"),
        ("a: " + "1" * 5_000, "holds a number of 5,000 characters (line 1)"),
        ("a: 0x" + "f" * 5_000, "holds a number of 5,002 characters (line 1)"),
        ("a: 1" + ":59" * 2_000, "holds a number of 6,001 characters (line 1)"),
        ("a: " + "9" * 4_999 + ".5", "holds a number of 5,001 characters (line 1)"),
        ("a: [" + "1, " * 60_000 + "]", "holds more than 20,000 values (line 1)"),
        ("a: " + "x" * 2_000_000, "is larger than 256 kB"),
        ("a: 1\0", "is not YAML (ReaderError: unacceptable character #x0000"),
        ("a: 客厅".encode("gbk"), "is not UTF-8 text (byte 3)"),
        ("a: 1".encode("utf-16"), "is not UTF-8 text (byte 0)"),
        ('a: !!int ""', "is not YAML (IndexError"),
        ("a: !!bool x", "is not YAML (KeyError"),
        ("a: !!float x", "is not YAML (ValueError"),
        ("a: !!timestamp x", "is not YAML (ConstructorError"),
        ("a: !!python/object/apply:os.getcwd []", "is not YAML (ConstructorError"),
        ("a: *b", "is not YAML (ComposerError: found undefined alias"),
        ("? [1]\n: 2", "is not YAML (ConstructorError: while constructing a mapping"),
        ("a: 1\n---\nb: 2", "is not YAML (ComposerError: expected a single document"),
        ("1: 2", "has the key 1, which is not text"),
        ("null: 2", "has the key None, which is not text"),
        ("- 1", "holds list, not a mapping"),
    ],
)
def test_a_harmful_or_wrong_file_is_refused_at_once_in_one_line(write: Any, content: str | bytes, reason: str):
    assert refused(write(content)).startswith(reason)


def test_a_date_is_text_so_that_an_impossible_one_is_no_failure_of_the_reader(write: Any):
    assert read_mapping(write("a: 2024-13-45\nb: 2024-01-01")) == {"a": "2024-13-45", "b": "2024-01-01"}


def test_aliases_and_merges_within_the_bounds_are_read(write: Any):
    text = "a: &a {x: 1}\nb: {<<: *a, y: [*a, *a]}\nc: &c\n  - 1\nd: *c\n"
    assert read_mapping(write(text)) == {"a": {"x": 1}, "b": {"x": 1, "y": [{"x": 1}, {"x": 1}]}, "c": [1], "d": [1]}


def test_files_at_the_bounds_are_read(write: Any):
    assert len(read_mapping(write("a: [" + "1, " * (MAX_NODES - 3) + "]"))["a"]) == MAX_NODES - 3
    deepest = MAX_DEPTH - 1  # the mapping itself is a level; the scalar stands in the deepest list
    assert yaml.safe_dump(read_mapping(write("a: " + "[" * (deepest - 1) + "1" + "]" * (deepest - 1))))
    assert len(read_mapping(write("a: " + "x" * (MAX_BYTES - 3)))["a"]) == MAX_BYTES - 3
    assert refused(write("a: " + "x" * (MAX_BYTES - 2))) == "is larger than 256 kB"


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null", "\ufeff"])
def test_an_empty_file_is_an_empty_mapping(write: Any, text: str):
    assert read_mapping(write(text)) == {}


def test_a_plain_reading_gives_what_pyyaml_gives(write: Any):
    text = 'a: 1\nb: [1.5, .inf, true, null, ~, "x", 0x10, 1_000]\nc: {d: off, e: |\n    text\n  }\n'.replace("|\n    text\n  ", "t")
    assert read_mapping(write(text)) == yaml.safe_load(text)


# --- what is no regular file --------------------------------------------------------------------------------------------


def odd_files(directory: Path) -> dict[str, Path]:
    os.mkfifo(directory / "fifo")
    (directory / "zero").symlink_to("/dev/zero")
    (directory / "folder").mkdir()
    (directory / "loop").symlink_to(directory / "loop")
    return {name: directory / name for name in ("fifo", "zero", "folder", "loop", "missing")}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fifo", "cannot be read (it is no regular file)"),
        ("zero", "cannot be read (it is no regular file)"),
        ("folder", "cannot be read (it is a directory)"),
    ],
)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, name: str, reason: str):
    assert refused(odd_files(tmp_path)[name]) == reason


@pytest.mark.parametrize(("name", "reason"), [("loop", "Too many levels of symbolic links"), ("missing", "No such file")])
def test_what_cannot_be_opened_is_an_operating_system_error(tmp_path: Path, name: str, reason: str):
    with pytest.raises(OSError, match=reason):
        read_text(odd_files(tmp_path)[name], 10)


def test_a_file_that_becomes_a_fifo_between_look_and_opening_neither_hangs_nor_is_read(tmp_path: Path):
    path, file, fifo = tmp_path / "file", tmp_path / "regular", tmp_path / "fifo"
    file.write_text("a: 1")
    os.mkfifo(fifo)
    path.symlink_to(file)
    ended = threading.Event()

    def swap() -> None:
        turn = tmp_path / "turn"
        while not ended.is_set():
            for target in (fifo, file):
                turn.symlink_to(target)
                turn.replace(path)

    swapper = threading.Thread(target=swap)
    swapper.start()
    answers = set()
    try:
        for _ in range(2_000):
            try:
                answers.add(read_text(path, 100))
            except FileInvalid as error:
                answers.add(str(error))
    finally:
        ended.set()
        swapper.join()
    assert answers <= {"a: 1", "cannot be read (it is no regular file)"}


def test_a_file_that_says_it_is_empty_and_is_not_is_read_up_to_the_bound():
    """Files under /proc have size 0."""
    assert read_text(Path("/proc/self/status"), 100_000).startswith("Name:")
    with pytest.raises(FileInvalid, match="larger than"):
        read_text(Path("/proc/self/status"), 10)


# --- paths --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("~nosuchuser/models", "begins with a home directory that is not known; write the whole path"),
        ("/" + "x" * 5_000, "is too long for a path"),
        ("x/" * 2_500, "is too long for a path"),
        ("a\0b", "holds a character that no path can hold"),
        ("a\ud800b", "holds a character that no path can hold"),
    ],
)
def test_what_can_be_no_path_is_refused(path: str, reason: str):
    with pytest.raises(FileInvalid) as caught:
        expand(path)
    assert str(caught.value) == reason


def test_a_path_is_expanded_whether_it_exists_or_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert expand("~/a") == tmp_path / "a"
    assert expand("a/b") == Path("a/b")
    (tmp_path / "file").touch()
    assert expand("file/below") == Path("file/below")  # ENOTDIR is for whoever opens it


def test_a_tab_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("audio:\n\tinput: mic\n")
    assert refused(path) == "is not YAML: line 2 is indented with a tab; use spaces"
