"""Where models are: a local directory, a hub's cache, or a download.

A name that is on disk never touches the network (FunASR's own aliases ask the hub even when cached). The hub clients are
imported only when a hub name has to be looked up. No state; raises ``ModelLoadFailed``.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path
from typing import Literal

import structlog

from voice.errors import ModelLoadFailed, describe
from voice.text_file import FileInvalid, expand, read_text

Hub = Literal["ms", "hf"]

_HUB_IDS: dict[str, dict[Hub, str]] = {
    "paraformer-zh-streaming": {
        "ms": "iic/speech_paraformer-large_asr_nat-zh-cn-16k-common-vocab8404-online",
        "hf": "funasr/paraformer-zh-streaming",
    },
    "paraformer-zh": {
        "ms": "iic/speech_seaco_paraformer_large_asr_nat-zh-cn-16k-common-vocab8404-pytorch",
        "hf": "funasr/paraformer-zh",
    },
    "fsmn-vad": {"ms": "iic/speech_fsmn_vad_zh-cn-16k-common-pytorch", "hf": "funasr/fsmn-vad"},
    "ct-punc-c": {"ms": "iic/punc_ct-transformer_zh-cn-common-vocab272727-pytorch", "hf": "funasr/ct-punc"},  # hf has no smaller one
    "ct-punc": {"ms": "iic/punc_ct-transformer_cn-en-common-vocab471067-large", "hf": "funasr/ct-punc"},
    "iic/emotion2vec_plus_base": {"ms": "iic/emotion2vec_plus_base", "hf": "emotion2vec/emotion2vec_plus_base"},
    "iic/emotion2vec_plus_large": {"ms": "iic/emotion2vec_plus_large", "hf": "emotion2vec/emotion2vec_plus_large"},
    "iic/emotion2vec_plus_seed": {"ms": "iic/emotion2vec_plus_seed", "hf": "emotion2vec/emotion2vec_plus_seed"},
    "iic/speech_campplus_sv_zh-cn_16k-common": {"ms": "iic/speech_campplus_sv_zh-cn_16k-common", "hf": "funasr/campplus"},
}
"""FunASR's aliases of the models this service uses (funasr/download/name_maps_from_hub.py)."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_MAX_HUB_ID = 200
_MAX_DESCRIPTION_BYTES = 2**20
"""Of configuration.json: a real one has some hundred bytes."""

log = structlog.get_logger()


def resolve_model(name: str, hub: Hub) -> Path:
    """Directory that holds the model ``name``: a path, or a hub id or alias that is cached or gets downloaded.

    Raises:
        ModelLoadFailed: a path that is no readable directory, an id that the hub cannot give.
    """
    if names_path(name):
        return resolve_directory(name)
    hub_id = hub_id_of(name, hub)
    fetch = _from_modelscope if hub == "ms" else _from_hugging_face
    try:
        cached = fetch(hub_id, local_only=True)
        if is_complete(cached):
            return cached
        reason = f"incomplete: {cached}"  # a download that was interrupted
    except Exception as absent:  # noqa: BLE001 -- the clients raise a dozen types for "not in the cache"; then we ask the network
        reason = describe(absent)[:120]
    log.info("model_download_started", model=hub_id, hub=hub, cache=reason)
    try:
        directory = fetch(hub_id, local_only=False)
        if not is_complete(directory):  # Hugging Face's client gives what it has when it cannot reach the hub
            raise FileNotFoundError(f"{directory} is incomplete")
    except Exception as error:  # any failure of a foreign client means the same to the user
        raise ModelLoadFailed(
            f"{hub_id} is not on disk and could not be downloaded from hub '{hub}' ({describe(error)[:200]}); connect once, "
            f"try --hub {'hf' if hub == 'ms' else 'ms'}, give a local directory, or use --embedded"
        ) from error
    return directory


def hub_id_of(name: str, hub: Hub) -> str:
    """What a hub calls a model.

    Raises:
        ModelLoadFailed: no hub can have a model of that name.
    """
    hub_id = _HUB_IDS.get(name, {}).get(hub, name)
    if len(hub_id) > _MAX_HUB_ID or not _HUB_ID.fullmatch(hub_id):
        raise ModelLoadFailed(f"{name} is neither a directory nor a model that the hub '{hub}' is known to have")
    return hub_id


def find_model(name: str, hub: Hub) -> Path | None:
    """As ``resolve_model``, without asking the network; None where the model is not on this machine.

    Raises:
        ModelLoadFailed: a path that is no readable directory, a name that no hub can have.
    """
    if names_path(name):
        return resolve_directory(name)
    fetch = _from_modelscope if hub == "ms" else _from_hugging_face
    hub_id = hub_id_of(name, hub)
    try:
        directory = fetch(hub_id, local_only=True)
    except Exception:  # noqa: BLE001 -- the clients raise a dozen types for "not in the cache"
        return None
    return directory if is_complete(directory) else None


def names_path(name: str) -> bool:
    """Whether ``name`` is that of a path, never of a model on a hub: it is written as one, or something of that name exists."""
    path = Path(name)
    with contextlib.suppress(OSError, ValueError):  # not a name that the file system can have
        if path.exists():
            return True
    return path.is_absolute() or name.startswith((".", "~"))


def resolve_directory(name: str) -> Path:
    """The directory of that name; no hub is asked.

    Raises:
        ModelLoadFailed: there is none, or it cannot be read.
    """
    try:
        path = expand(name).absolute()
        if stat.S_ISDIR(path.stat().st_mode):
            return path
        reason = "is not a directory"
    except FileNotFoundError:
        reason = "does not exist"
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    except FileInvalid as error:
        reason = str(error)
    raise ModelLoadFailed(f"model directory {name} {reason}; give a directory that holds config.yaml and the weights")


def is_complete(directory: Path) -> bool:
    """Whether a model directory has its settings, weights, and those small files that configuration.json names."""
    description = directory / "configuration.json"
    named = read_text(description, _MAX_DESCRIPTION_BYTES) if description.is_file() else ""
    small = [name for name in ("am.mvn", "tokens.json", "tokens.txt") if f'"{name}"' in named]
    return any(directory.glob("*.pt")) and all((directory / name).is_file() for name in ["config.yaml", *small])


def _from_modelscope(hub_id: str, *, local_only: bool) -> Path:
    from modelscope.hub.snapshot_download import snapshot_download  # noqa: PLC0415 -- 1.7 s of import

    return Path(snapshot_download(hub_id, local_files_only=local_only))


def _from_hugging_face(hub_id: str, *, local_only: bool) -> Path:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download  # noqa: PLC0415

    return Path(snapshot_download(hub_id, local_files_only=local_only))
