"""Models converted to ONNX graphs: where they are, how they come about, and what the service loads of them. No torch.

Model directory -> directory of graphs -> ``OnnxModel``. Graphs that ship with a model are in its directory ``onnx``; others are made
once, by ``python -m voice.conversion`` in a process of its own, and kept in the user's cache under the digest of the model's files and the
version of the converter. No state but these files. Raises ``ModelLoadFailed``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from voice.errors import ModelLoadFailed, describe
from voice.models.directory import Description, blaming, check_sums, damaged, describe_model, read_tokens, sha256_of
from voice.models.language_model import LanguageModel, read_language_model
from voice.models.onnx_session import open_session
from voice.places import IMPORT_ROOT
from voice.text_file import FileInvalid, expand, read_text

CONVERTER_VERSION = 4
"""Raised with every change of the graphs: those that an older converter made are made anew."""
GRAPHS = {
    "ParaformerStreaming": ("encoder", "decoder"),
    "CTTransformer": ("punctuation",),
    "Emotion2vec": ("emotion",),
    "CAMPPlus": ("speaker",),
}
"""What a model of a FunASR class is converted to."""
SELF_TEST = "selftest"
"""A graph beside int8 ones: a product whose result shows whether this processor adds pairs of products without overflow."""

_DESCRIPTION = "conversion.json"
_MAX_DESCRIPTION_BYTES = 2**20
_MAX_REASON_BYTES = 10_000
_TIMEOUT_SEC = 1_800
_MAX_ERROR = 1e-3
_LARGE_FILE_BYTES = 64 * 2**20

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """A converted model, ready to compute."""

    directory: Path
    """FunASR's, from which it was converted."""
    description: Description
    tokens: tuple[str, ...]
    """The vocabulary, index = id; empty for a model without one."""
    settings: dict[str, Any]
    """Numbers and names that the converter took from the module."""
    sessions: dict[str, Any]
    """By the graphs' names."""
    language: LanguageModel | None = None
    """None where its directory has no language model."""
    device = "cpu"


def find_conversion(directory: Path, description: Description) -> Path | None:
    """The directory of a model's graphs; None where it was not converted, or by another version.

    Raises:
        ModelLoadFailed: a file of the model cannot be read.
    """
    digest = source_digest(description)
    for graphs in (directory / "onnx", conversion_path(description.model_class, digest)):
        made_of = _read_description(graphs)
        if made_of.get("source") == digest and made_of.get("converter") == CONVERTER_VERSION:
            return graphs
    return None


def convert(directory: Path, description: Description, log_format: str) -> Path | None:
    """Convert a model in a process of its own, and wait for it: ten seconds for the full-size one.

    Args:
        directory: the model's.
        description: of it.
        log_format: of the lines that the process writes to our stderr.

    Returns:
        The directory of its graphs; None where another process is at it.

    Raises:
        ModelLoadFailed: it cannot be converted. A failure is remembered: it is not tried again with the same files and converter.
    """
    target = conversion_path(description.model_class, source_digest(description))
    failed = target.with_suffix(".failed")
    if failed.is_file():
        raise ModelLoadFailed(f"{directory} could not be converted to ONNX ({_reason(failed)}; to try again, remove {failed})")
    command = [sys.executable, "-m", "voice.conversion", str(directory), "--target", str(target), "--log-format", log_format]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_suffix(".lock")) as mine:
            if not mine:
                log.info("conversion_under_way", model=str(directory))
                return None
            log.info("conversion_started", model=str(directory), target=str(target))
            try:
                code = _run(command)
            finally:
                for left in target.parent.glob(f"{target.name}.*.partial"):  # of this one, if it was killed, or of an earlier one
                    shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        raise ModelLoadFailed(f"{target.parent} cannot hold converted models ({error.strerror or describe(error)})") from error
    if code != 0 or not _read_description(target):
        reason = _reason(failed) if failed.is_file() else f"its process ended with code {code}"
        raise ModelLoadFailed(f"{directory} could not be converted to ONNX ({reason})")
    log.info("conversion_finished", model=str(directory), target=str(target))
    return target


def load_converted(graphs: Path, directory: Path, num_threads: int, *, with_language: bool = True) -> OnnxModel:
    """Open the sessions of a converted model.

    Args:
        graphs: from ``find_conversion`` or ``convert``.
        directory: the model's own.
        num_threads: of one operation.
        with_language: read the language model beside the model, too, where there is one.

    Raises:
        ModelLoadFailed: a file is missing or damaged, or int8 products overflow on this processor.
    """
    check_sums(directory)
    check_sums(graphs)
    settings = _read_description(graphs)
    with blaming(graphs / _DESCRIPTION, "is not what the converter wrote"):
        model_class = settings["model_class"]
        description = describe_model(directory, model_class)
        if (graphs / f"{SELF_TEST}.onnx").is_file() and not products_are_right(graphs):
            raise damaged(graphs, "was converted for another processor")
        sessions = {name: open_session(graphs / f"{name}.onnx", num_threads) for name in GRAPHS[model_class]}
        tokens = read_tokens(description.files["token_list"]) if description.config.get("tokenizer") else ()
        if len(tokens) != settings["num_tokens"]:
            raise damaged(
                description.files["token_list"], f"has {len(tokens)} tokens, but the model was converted with {settings['num_tokens']}"
            )
    language = read_language_model(directory, tokens) if with_language else None
    return OnnxModel(directory, description, tokens, settings, sessions, language)


def discard(graphs: Path) -> None:
    """Remove graphs from the cache that turned out to be damaged; those that ship with a model stay."""
    if graphs.parent == cache_directory():
        shutil.rmtree(graphs, ignore_errors=True)


def write_description(graphs: Path, description: Description, settings: dict[str, Any]) -> None:
    """The last file of a conversion: what it was made of and by what, and what the service has to know of the model."""
    content = {"converter": CONVERTER_VERSION, "source": source_digest(description), "model_class": description.model_class, **settings}
    (graphs / _DESCRIPTION).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def conversion_path(model_class: str, digest: str) -> Path:
    """Where the graphs of a model are kept that does not ship with its own."""
    return cache_directory() / f"{model_class}-{digest[:20]}-{CONVERTER_VERSION}"


def cache_directory() -> Path:
    """Of this user, for all converted models; of the machine where the user has no home."""
    base = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
    if not base:
        try:
            base = str(expand("~/.cache"))
        except FileInvalid:
            base = tempfile.gettempdir()
    return Path(base) / "voice-asr" / "onnx"


def source_digest(description: Description) -> str:
    """SHA-256 over a model's files. That of a large file is remembered by its size and its time: reading 0.9 GB takes a second.

    Raises:
        ModelLoadFailed: a file cannot be read.
    """
    digest = hashlib.sha256()
    for key, path in sorted(description.files.items()):
        if path.is_file():
            digest.update(f"{key} {_file_digest(path)}\n".encode())
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    with blaming(path, "cannot be read"):
        status = path.stat()
        known = cache_directory() / "digests" / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
        key = f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"
        with contextlib.suppress(OSError, ValueError):
            remembered = read_text(known, 1_000).split("\n")
            if remembered[0] == key:
                return remembered[1]
        digest = sha256_of(path)
        if status.st_size > _LARGE_FILE_BYTES:
            with contextlib.suppress(OSError):
                known.parent.mkdir(parents=True, exist_ok=True)
                known.write_text(f"{key}\n{digest}")
        return digest


def _read_description(graphs: Path) -> dict[str, Any]:
    """What a conversion says of itself; nothing where there is none."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(read_text(graphs / _DESCRIPTION, _MAX_DESCRIPTION_BYTES))
        return content if isinstance(content, dict) else {}
    return {}


def products_are_right(graphs: Path) -> bool:
    """Whether the converter's kind of int8 weights gives right products on this processor, by the self-test beside them.

    The converter tests its own machine; a home directory may be that of several.
    """
    session = open_session(graphs / f"{SELF_TEST}.onnx")
    return all(bool((abs(result - 1) < _MAX_ERROR).all()) for result in session.run(None, {}))


def _reason(failed: Path) -> str:
    """Why a conversion failed, as its process wrote it."""
    try:
        return read_text(failed, _MAX_REASON_BYTES)
    except (OSError, ValueError) as error:
        return f"the reason cannot be read: {describe(error)}"


def _run(command: list[str]) -> int:
    """Run the converter with our stderr; it ends with us. Its exit code."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), cwd=IMPORT_ROOT)  # noqa: S603 -- our own
    try:
        return process.wait(_TIMEOUT_SEC)
    except subprocess.TimeoutExpired:
        return -1
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether this process may convert; another one holds the lock until it ends, however it ends. Windows has no such lock."""
    with path.open("w") as file:
        if fcntl is None:
            yield True
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
