"""Where the results of a recording go, and how they are written: all of them, or none that is half done.

Path of a recording, folder, formats -> paths; texts -> files. No state. Raises ``OSError``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Input:
    """A recording, and where it stands below the path that was given: its results stand there below the output folder."""

    path: Path
    relative: Path


def inputs_below(paths: Iterable[Path], suffixes: frozenset[str], *, recursive: bool) -> tuple[list[Input], list[str]]:
    """The recordings that paths name, each once, and what is wrong with paths.

    Args:
        paths: of files, which are taken whatever they are called, and of folders.
        suffixes: of files in folders.
        recursive: also the folders in folders.
    """
    found: dict[Path, Input] = {}
    problems = []
    for path in paths:
        if path.is_dir():
            pattern = "**/*" if recursive else "*"
            inside = sorted(each for each in path.glob(pattern) if each.suffix.lower() in suffixes and each.is_file())
            if not inside:
                deeper = "" if recursive else " (for the folders in it: --recursive)"
                problems.append(f"{path}: no recordings in this folder{deeper}")
            for each in inside:
                found.setdefault(each.resolve(), Input(each, each.relative_to(path)))
        elif path.exists():
            found.setdefault(path.resolve(), Input(path, Path(path.name)))
        else:
            problems.append(f"{path}: no such file or folder")
    return list(found.values()), problems


def targets_of(inputs: Sequence[Input], folder: Path | None, formats: Sequence[str]) -> list[dict[str, Path]]:
    """Where the results of each input go, by format.

    ``talk.wav`` gives ``talk.srt``; where two inputs would share it, ``talk.wav.srt`` and ``talk.mp3.srt``.
    """
    stems = [folder / each.relative.with_suffix("") if folder else each.path.with_suffix("") for each in inputs]
    shared = Counter(map(os.path.normcase, map(str, stems)))
    names = [
        stem.with_name(each.path.name) if shared[os.path.normcase(str(stem))] > 1 else stem
        for stem, each in zip(stems, inputs, strict=True)
    ]
    return [{ending: name.with_name(f"{name.name}.{ending}") for ending in formats} for name in names]


def write_stdout(texts: Iterable[str]) -> None:
    """Write texts to stdout, now.

    Raises:
        OSError: without a file's name: it cannot be written.
    """
    sys.stdout.write("".join(texts))
    sys.stdout.flush()


def write_all(texts: Mapping[Path, str]) -> None:
    """Write files in UTF-8, each at once: a reader sees the old one, or the whole new one.

    Raises:
        OSError: one cannot be written.
    """
    for named, text in texts.items():
        path = named.resolve()  # of a link, what it leads to
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is there and no file", str(named))
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".partial")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace", newline="\n") as file:
                file.write(text)
            mask = os.umask(0)
            os.umask(mask)
            Path(partial).chmod(0o666 & ~mask)  # as any file that a user writes; mkstemp's are private
            Path(partial).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(partial).unlink()
            raise
