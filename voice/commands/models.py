"""``voice-asr models``: which models there are, where they are, and whether they are whole; a bundle for machines without network.

Names and directories -> tables, downloads, copies. Exit code 3 where a model is missing or damaged.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from voice.commands.results import write_all
from voice.errors import EXIT_CONFIG, EXIT_MODEL, EXIT_OK, ModelLoadFailed
from voice.models.converted import cache_directory, conversion_path, convert, find_conversion, source_digest
from voice.models.directory import Description, check_sums, describe_model, sha256_of
from voice.models.store import find_model, hub_id_of, is_complete, names_path, resolve_directory, resolve_model
from voice.places import EMBEDDED
from voice.process.logs import configure_logs

SETTINGS_NAME = "settings.yaml"
_SUMS = "SHA256SUMS"
_CLASSES = ("ParaformerStreaming", "CTTransformer", "Emotion2vec", "CAMPPlus")
"""FunASR's, of models that are converted."""


@dataclass(frozen=True, slots=True)
class Role:
    """What a model is used for."""

    name: str
    """As its setting calls it."""
    purpose: str
    setting: tuple[str, ...]
    """Where a settings file names it."""
    size_mb: int
    is_default: bool = True
    folder: str = ""
    """Of the embedded model, and in a bundle."""


ROLES = (
    Role("paraformer-zh-streaming", "recognition", ("model_dir",), 880, folder="asr"),
    Role("ct-punc-c", "punctuation of finals", ("final", "punctuation_model"), 300, folder="punctuation"),
    Role("iic/emotion2vec_plus_base", "emotion of finals", ("emotion", "model"), 1_100, folder="emotion"),
    Role("paraformer-zh", "--second-pass paraformer-zh", ("final", "second_pass"), 850, is_default=False, folder="second-pass"),
    Role("iic/speech_campplus_sv_zh-cn_16k-common", "--speakers", ("speakers", "model"), 28, is_default=False, folder="speaker"),
    Role("fsmn-vad", "--vad-engine fsmn", ("vad", "model"), 2, is_default=False, folder="vad"),
)


def main(flags: argparse.Namespace) -> int:
    """Do what the action says; the exit code."""
    configure_logs("console", "info")
    try:
        return {"list": _list, "path": _path, "pull": _pull, "verify": _verify, "convert": _convert, "rm": _remove}[flags.action](flags)
    except ModelLoadFailed as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_MODEL
    except OSError as error:
        sys.stderr.write(f"error: {error.filename}: {error.strerror}\n")
        return EXIT_MODEL


def _chosen(flags: argparse.Namespace) -> list[str]:
    """The models that were named; the three of a run where none was."""
    return flags.names or [role.name for role in ROLES if role.is_default]


def _list(flags: argparse.Namespace) -> int:
    rows = []
    for role in ROLES:
        directory = find_model(role.name, flags.hub)
        where = str(directory) if directory else f"not here, about {role.size_mb} MB from {hub_id_of(role.name, flags.hub)}"
        row = {"name": role.name, "for": role.purpose, "where": where, "here": directory is not None}
        rows.append({**row, "converted": _is_converted(directory)})
    for directory in sorted(path for path in EMBEDDED.iterdir() if path.is_dir()):
        row = {"name": f"embedded {directory.name}", "for": "--embedded", "where": str(directory), "here": True}
        rows.append({**row, "converted": _is_converted(directory)})
    if flags.json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))  # noqa: T201
        return EXIT_OK
    width = max(len(str(row["name"])) for row in rows)
    for row in rows:
        converted = ", converted" if row["converted"] else ""
        print(f"{row['name']:{width}}  {row['for']}\n    {row['where']}{converted}")  # noqa: T201
    return EXIT_OK


def _path(flags: argparse.Namespace) -> int:
    for name in _chosen(flags):
        directory = find_model(name, flags.hub)
        if directory is None:
            raise ModelLoadFailed(f"{name} is not on this machine; voice-asr models pull {name} fetches it")
        print(directory)  # noqa: T201
    return EXIT_OK


def _pull(flags: argparse.Namespace) -> int:
    """Fetch models; the hubs' clients show how far they are, and go on where they were interrupted."""
    found = [(name, resolve_model(name, flags.hub)) for name in _chosen(flags)]
    for _, directory in found:
        sys.stderr.write(f"{directory}\n")
    if flags.to is not None:
        write_bundle(found, flags.to)
        sys.stderr.write(f"on the other machine: voice-asr run --config {flags.to / SETTINGS_NAME}\n")
    return EXIT_OK


def write_bundle(found: list[tuple[str, Path]], target: Path) -> None:
    """Models, their sums, and the settings that name them, in one folder that can be carried to another machine.

    Raises:
        OSError: a file cannot be read or written.
    """
    settings: dict[str, Any] = {}
    named = {role.name for role in ROLES if role.name in dict(found)}
    for name, directory in found:
        role = next((role for role in ROLES if role.name == name), None)
        folder = role.folder if role else directory.name
        shutil.copytree(directory, target / folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
        if role:
            *sections, key = role.setting
            section = settings
            for each in sections:
                section = section.setdefault(each, {})
            section[key] = f"{{here}}/{folder}"
    if "ct-punc-c" not in named:
        settings.setdefault("final", {})["punctuation_model"] = "off"
    if "iic/emotion2vec_plus_base" not in named:
        settings.setdefault("emotion", {})["enabled"] = False
    if "fsmn-vad" in named:
        settings.setdefault("vad", {})["engine"] = "fsmn"
    text = "# Made by `voice-asr models pull --to`. {here} is the folder of this file.\n" + yaml.safe_dump(settings, allow_unicode=True)
    sums = "".join(f"{sha256_of(path)}  {path.relative_to(target).as_posix()}\n" for path in _files(target))
    write_all({target / SETTINGS_NAME: text, target / _SUMS: sums})


def _files(directory: Path) -> Iterator[Path]:
    own = {directory / SETTINGS_NAME, directory / _SUMS}
    yield from sorted(path for path in directory.rglob("*") if path.is_file() and path not in own and not path.name.endswith(".partial"))


def _verify(flags: argparse.Namespace) -> int:
    """Whether models are whole; the embedded ones, too, where none is named."""
    directories = [_here(name, flags.hub) for name in flags.names]
    if not flags.names:
        present = [find_model(role.name, flags.hub) for role in ROLES]
        directories = [each for each in present if each] + sorted(path for path in EMBEDDED.iterdir() if path.is_dir())
    code = EXIT_OK
    for directory in directories:
        try:
            check_sums(directory)
            if not is_complete(directory):
                raise ModelLoadFailed(f"{directory} is incomplete; voice-asr models pull fetches what is missing")
            sums = "sums are right" if (directory / _SUMS).is_file() else "it is complete, and has no sums to compare with"
            print(f"ok: {directory}: {sums}")  # noqa: T201
        except ModelLoadFailed as error:
            sys.stderr.write(f"failed: {error}\n")
            code = EXIT_MODEL
    return code


def _convert(flags: argparse.Namespace) -> int:
    for name in _chosen(flags):
        directory = _here(name, flags.hub)
        description = _description(directory)
        if description is None:
            raise ModelLoadFailed(f"{directory} is no model that is converted: {', '.join(_CLASSES)} are")
        graphs = find_conversion(directory, description) or convert(directory, description, "console")
        print(graphs or f"{directory} is being converted by another process")  # noqa: T201
    return EXIT_OK


def _remove(flags: argparse.Namespace) -> int:
    """Delete downloads and conversions; a directory that somebody named by its path is not ours to delete."""
    if not flags.names:
        sys.stderr.write(f"error: name the models to remove; converted ones are in {cache_directory()}\n")
        return EXIT_CONFIG
    for name in flags.names:
        directory = _here(name, flags.hub)
        description = _description(directory)
        targets = [] if names_path(name) else [_download_of(directory)]
        if description is not None:
            conversion = conversion_path(description.model_class, source_digest(description))
            targets += [path for path in (conversion, conversion.with_suffix(".failed")) if path.exists()]
        for target in targets:
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink()
            sys.stderr.write(f"removed {target}\n")
    return EXIT_OK


def _download_of(directory: Path) -> Path:
    """All of a download: Hugging Face's client keeps the contents beside the directory that names them."""
    return directory.parent.parent if directory.parent.name == "snapshots" else directory


def _here(name: str, hub: Any) -> Path:
    """The directory of a model that is on this machine.

    Raises:
        ModelLoadFailed: it is not.
    """
    if names_path(name):
        return resolve_directory(name)
    directory = find_model(name, hub)
    if directory is None:
        raise ModelLoadFailed(f"{name} is not on this machine; voice-asr models pull {name} fetches it")
    return directory


def _description(directory: Path) -> Description | None:
    """Of a model that is converted; None of another, or a damaged one."""
    try:
        return describe_model(directory, _CLASSES)
    except ModelLoadFailed:
        return None


def _is_converted(directory: Path | None) -> bool:
    description = _description(directory) if directory else None
    return description is not None and directory is not None and find_conversion(directory, description) is not None
