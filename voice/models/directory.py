"""A FunASR model directory, read and checked before a model is built: its files, their sums, its settings, its vocabulary.

Directory -> ``Description``, tokens. No state, no torch. Any thread. Raises ``ModelLoadFailed`` that names the file and what to do;
nothing else, whatever the directory holds.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from voice.errors import ModelLoadFailed, describe
from voice.text_file import FileInvalid, read_text
from voice.yaml_file import read_mapping

_MAX_TEXT_BYTES = 2**20
"""Of configuration.json and SHA256SUMS: real ones have a few thousand bytes."""
_MAX_VOCABULARY_BYTES = 16 * 2**20
"""The largest published vocabulary (ct-punc, 471,067 tokens) has 8 MB. 16 MB of empty lists take 0.4 GB once parsed."""
_MAX_CMVN_BYTES = 2**20
"""Of am.mvn: a real one has 11 kB."""
_MAX_CMVN_CHARACTERS = 100
"""Of a number in am.mvn: FunASR has numpy give each number the room of the longest."""
_MAX_NUMBER = 1_000_000
"""No number in a published config.yaml is larger; a larger one asks for more memory than any weights file fills."""
_MAX_STRIDE = 100
"""fsmn-vad keeps 20 × ``lstride`` frames between two windows; published models have 1."""
_MAX_SCOPES = 20
_MAX_SCOPE_CHARACTERS = 100
"""Of ``scope_map``: each pair of prefixes renames every weight and may lengthen its name."""
_MAX_NAME_BYTES = 255
"""Of a file's name, in the file systems that are in use."""
_SUM = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
"""A line of sha256sum: ``*`` marks a file that was read in binary mode."""
_SECTIONS = ("tokenizer", "frontend")


@dataclass(frozen=True, slots=True)
class Description:
    """What a model directory says of itself."""

    files: dict[str, Path]
    """``config``, ``init_param`` (weights), ``token_list`` and ``cmvn_file``, FunASR's names. Those that the model needs exist."""
    config: dict[str, Any]
    """config.yaml; ``model``, ``tokenizer`` and ``frontend`` are names or null, their ``_conf`` are mappings or null."""

    @property
    def model_class(self) -> str:
        """Name of FunASR's class."""
        return str(self.config["model"])


@contextlib.contextmanager
def blaming(path: Path, what: str) -> Iterator[None]:
    """Turn any exception of the body into a ``ModelLoadFailed`` that names ``path``, says ``what`` is wrong with it, and what to do.

    The parsers and constructors that a model's files pass through raise some twenty types on damaged files.
    """
    try:
        yield
    except ModelLoadFailed:
        raise
    except OSError as error:
        if error.errno == errno.EINVAL:  # a damaged archive names a place outside the file
            raise damaged(path, what) from error
        raise ModelLoadFailed(f"{path} cannot be read ({error.strerror or describe(error)}); check the path and its permissions") from error
    except Exception as error:
        raise damaged(path, f"{what} ({describe(error)[:200]})") from error


def damaged(path: Path, what: str) -> ModelLoadFailed:
    """The failure of a model whose file ``path`` is of no use."""
    return ModelLoadFailed(f"{path} {what}; get this model again, or use another")


def describe_model(directory: Path, model_class: str | tuple[str, ...]) -> Description:
    """Find a model's files and read its config.yaml: milliseconds, before anything is downloaded or loaded.

    Args:
        directory: holds config.yaml and the files that configuration.json, or else FunASR's custom, names.
        model_class: the class that config.yaml must name, or several of which it must name one.

    Raises:
        ModelLoadFailed: a file is missing or not readable, or config.yaml is not that of such a model.
    """
    with blaming(directory, "is not a model directory"):
        files = _model_files(directory)
        missing = [files[key].name for key in ("config", "init_param") if not files[key].is_file()]
        if missing:
            raise _lacking(directory, missing)
        config = read_yaml(files["config"])
        _check_config(config, files["config"], (model_class,) if isinstance(model_class, str) else model_class)
        needed = [files[key] for section, key in zip(_SECTIONS, ("token_list", "cmvn_file"), strict=True) if config.get(section)]
        missing = [file.name for file in needed if not file.is_file()]
        if missing:
            raise _lacking(directory, missing)
    return Description(files, config)


def check_sums(directory: Path) -> None:
    """Compare the files with SHA256SUMS, in the format of sha256sum, where the directory has one."""
    sums = directory / "SHA256SUMS"
    with blaming(sums, "is not a list that sha256sum wrote"):
        if not _is_there(sums):
            return
        digests: dict[Path, str] = {}
        for line in _read_text(sums, _MAX_TEXT_BYTES).splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            match = _SUM.fullmatch(line.rstrip())
            if match is None or _leaves(match[2]):
                raise damaged(sums, f"has the line {line[:100]!r}, which does not list a file of this directory")
            file = directory / match[2]
            if not file.is_file():
                raise ModelLoadFailed(f"model directory {directory} lacks {match[2]}, which SHA256SUMS lists; get this model again")
            if file not in digests:
                digests[file] = sha256_of(file)
            if digests[file] != match[1].lower():
                raise damaged(file, "is not the file that SHA256SUMS lists: damaged or changed")


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping of a size that can be walked, from a YAML file."""
    with blaming(path, "is not YAML"):
        try:
            config = read_mapping(path)
        except FileInvalid as error:
            raise damaged(path, str(error)) from error
    if not config:
        raise damaged(path, "holds no settings")
    return config


def read_tokens(path: Path) -> tuple[str, ...]:
    """The vocabulary, index = id: a JSON list of texts that differ, or a line a token."""
    text = _read_text(path, _MAX_VOCABULARY_BYTES)
    with blaming(path, "is not JSON"):
        tokens = json.loads(text) if path.suffix == ".json" else [line.rstrip() for line in text.splitlines()]
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise damaged(path, "is not a list of tokens")
    if len(set(tokens)) < len(tokens):
        (twice, _), *_ = Counter(tokens).most_common(1)
        raise damaged(path, f"lists the token {twice[:100]!r} twice")
    return tuple(tokens)


def check_cmvn(path: Path) -> None:
    """Whether FunASR may read am.mvn: UTF-8, and neither it nor a number in it longer than any that is in use.

    Raises:
        ModelLoadFailed: it is not so.
    """
    longest = max(map(len, _read_text(path, _MAX_CMVN_BYTES).split()), default=0)
    if longest > _MAX_CMVN_CHARACTERS:
        raise damaged(path, f"holds a number of {longest:,} characters")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits.

    Raises:
        ModelLoadFailed: it cannot be read.
    """
    digest = hashlib.sha256()
    with blaming(path, "cannot be read"), path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _model_files(directory: Path) -> dict[str, Path]:
    """The model's files by FunASR's names for them, whether they exist or not."""
    names = {"config": "config.yaml", "init_param": "model.pt", "token_list": "tokens.json", "cmvn_file": "am.mvn"}
    if not (directory / "tokens.json").exists() and (directory / "tokens.txt").exists():
        names["token_list"] = "tokens.txt"  # noqa: S105 -- a vocabulary
    description = directory / "configuration.json"
    if _is_there(description):
        with blaming(description, "is not a FunASR description"):
            metas = json.loads(_read_text(description, _MAX_TEXT_BYTES)).get("file_path_metas", {})
            named = {**metas, **metas.get("tokenizer_conf", {}), **metas.get("frontend_conf", {})}
        names.update({key: named[key] for key in names if key in named})
        if not all(isinstance(name, str) for name in names.values()):
            raise damaged(description, "names a file by something that is no text")
        outside = [name for name in names.values() if _leaves(name)]
        if outside:
            raise damaged(description, f"names {outside[0][:100]!r}, which is no file of this directory")
    return {key: directory / name for key, name in names.items()}


def _lacking(directory: Path, names: list[str]) -> ModelLoadFailed:
    return ModelLoadFailed(
        f"model directory {directory} lacks {', '.join(names)}; give the directory that holds config.yaml and the weights"
    )


def _is_there(path: Path) -> bool:
    """Whether a directory has an entry of that name; a link to nowhere is one, and reading it says so."""
    return path.is_symlink() or path.exists()


def _leaves(name: str) -> bool:
    """Whether a file name is no relative path that stays within its directory, or too long to be one."""
    paths = (PurePosixPath(name), PureWindowsPath(name))
    is_odd = not name or "\0" in name or len(name.encode(errors="replace")) > _MAX_NAME_BYTES
    return is_odd or any(path.is_absolute() or path.drive or ".." in path.parts for path in paths)


def _check_config(config: dict[str, Any], path: Path, classes: tuple[str, ...]) -> None:
    found = config.get("model")
    if found not in classes:
        raise damaged(path, f"is of another model: model is {repr(found)[:100]}, expected {' or '.join(map(repr, classes))}")
    for section in _SECTIONS:
        if not isinstance(config.get(section), str | None):
            raise damaged(path, f"is wrong: {section} must be a name")
        if not isinstance(config.get(f"{section}_conf"), dict | None):
            raise damaged(path, f"is wrong: {section}_conf must be a mapping")
    if not isinstance(config.get("model_conf"), dict | None):
        raise damaged(path, "is wrong: model_conf must be a mapping")
    if not _is_scope_map(config.get("scope_map")):
        raise damaged(path, f"is wrong: scope_map must be a list of at most {_MAX_SCOPES} short names")
    for key, value in _values(config, ""):
        limit = _MAX_STRIDE if key.endswith((".lstride", ".rstride")) else _MAX_NUMBER
        if isinstance(value, int | float) and not (math.isfinite(value) and abs(value) <= limit):
            raise damaged(path, f"is wrong: {key[1:][:100]} is {value:.3g}; no model needs such a number")
        if isinstance(value, str) and "${" in value:  # Emotion2vec has OmegaConf replace it
            raise damaged(path, f"is wrong: {key[1:][:100]} refers to something else; write its value")


def _is_scope_map(value: Any) -> bool:
    """Whether it is null, or names that renaming may be done by: a list, or text with commas."""
    names = value.split(",") if isinstance(value, str) else [] if value is None else value
    return (
        isinstance(names, list)
        and len(names) <= _MAX_SCOPES
        and all(isinstance(name, str) and len(name) <= _MAX_SCOPE_CHARACTERS for name in names)
    )


def _values(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every value in a tree of mappings and lists, with the path of keys to it."""
    yield key, value
    if isinstance(value, dict):
        for name, child in value.items():
            yield from _values(child, f"{key}.{name}")
    elif isinstance(value, list):
        for child in value:
            yield from _values(child, key)


def _read_text(path: Path, max_bytes: int) -> str:
    with blaming(path, "is not UTF-8"):
        try:
            return read_text(path, max_bytes)
        except FileInvalid as error:
            raise damaged(path, str(error)) from error
