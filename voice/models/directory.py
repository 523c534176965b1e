"""A FunASR model directory, read and checked before any model is built: which file is which, sums, settings, vocabulary.

Directory -> files, settings, tokens. No state, no torch. Raises ``ModelLoadFailed`` that names the file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from voice.errors import ModelLoadFailed, describe


def model_files(directory: Path) -> dict[str, Path]:
    """The model's files by FunASR's names for them; all of them exist."""
    names = {"config": "config.yaml", "init_param": "model.pt", "token_list": "tokens.json", "cmvn_file": "am.mvn"}
    if not (directory / "tokens.json").exists() and (directory / "tokens.txt").exists():
        names["token_list"] = "tokens.txt"  # noqa: S105 -- a vocabulary
    description = directory / "configuration.json"
    if description.exists():
        try:
            metas = json.loads(description.read_text(encoding="utf-8")).get("file_path_metas", {})
            named = {**metas, **metas.get("tokenizer_conf", {}), **metas.get("frontend_conf", {})}
        except (ValueError, AttributeError, TypeError) as error:
            raise ModelLoadFailed(f"{description} is not a FunASR description: {describe(error)}") from error
        names.update({key: name for key, name in named.items() if key in names and isinstance(name, str)})
    files = {key: directory / name for key, name in names.items()}
    missing = [files[key].name for key in ("config", "init_param") if not files[key].is_file()]
    if missing:
        raise ModelLoadFailed(f"model directory {directory} lacks {', '.join(missing)}")
    config = read_yaml(files["config"])
    for section, key in (("tokenizer", "token_list"), ("frontend", "cmvn_file")):
        if config.get(section) and not files[key].is_file():
            raise ModelLoadFailed(f"model directory {directory} lacks {files[key].name}")
    return files


def check_sums(directory: Path) -> None:
    """Compare the files with SHA256SUMS, in the format of sha256sum, where the directory has one."""
    sums = directory / "SHA256SUMS"
    if not sums.is_file():
        return
    for line in sums.read_text(encoding="utf-8").splitlines():
        expected, _, name = line.partition("  ")
        file = directory / name
        if not file.is_file():
            raise ModelLoadFailed(f"model directory {directory} lacks {name}, which SHA256SUMS lists")
        if hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            raise ModelLoadFailed(f"{file} is not the file that SHA256SUMS lists: damaged or changed; get it again")


def read_yaml(path: Path) -> dict[str, Any]:
    import yaml  # noqa: PLC0415

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ModelLoadFailed(f"{path} is not YAML: {describe(error)}") from error
    if not isinstance(config, dict):
        raise ModelLoadFailed(f"{path} holds no settings")
    return config


def read_tokens(path: Path) -> tuple[str, ...]:
    text = path.read_text(encoding="utf-8")
    try:
        tokens = json.loads(text) if path.suffix == ".json" else [line.rstrip() for line in text.splitlines()]
    except ValueError as error:
        raise ModelLoadFailed(f"{path} is not JSON: {describe(error)}") from error
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise ModelLoadFailed(f"{path} is not a list of tokens")
    return tuple(tokens)
