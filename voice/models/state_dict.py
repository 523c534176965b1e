"""A weights file, read without running what it may carry, and its tensors made fit for a module.

File -> state dict. No state. Called on the thread that loads models. Raises ``ModelLoadFailed`` that names the file and the tensor;
nothing else, whatever the file holds.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from voice.models.directory import blaming, damaged

_ZIP_MAGIC = b"PK\x03\x04"
_NUM_PICKLES = 5
"""At the start of a file from before PyTorch 1.6, which is no ZIP archive: magic number, version, system, content, storages."""
_MAX_PICKLE_BYTES = 2**20
"""Of what is not values: names and shapes. A model of 1,000 weights has 0.2 MB; 1 MB takes 3 s to read."""
_USED = re.compile(
    r"collections (Counter|OrderedDict)|torch(\.storage)? ([a-z]\w*|Size|\w+Storage)|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
)
"""What a state dict is built of. torch's own list has more, such as ``bytearray`` and codecs, which take any memory and time."""


def read_state_dict(path: Path, scope_map: list[str] | str) -> dict[str, Any]:
    """The tensors of a file as they are stored, by the names they have in FunASR's module.

    Args:
        path: written by ``torch.save``; a state dict, or a checkpoint that wraps one.
        scope_map: pairs of prefixes, in the file and in the module, as FunASR's loader takes them from config.yaml.

    Raises:
        ModelLoadFailed: the file is damaged, holds more than tensors, or cannot be read.
    """
    import torch  # noqa: PLC0415

    with blaming(path, "is damaged or holds more than weights"):
        stored_bytes = _checked_bytes(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        for wrapper in ("state_dict", "model_state_dict", "model"):
            if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
                state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(key, str) and _is_plain(value) for key, value in state.items()):
        raise damaged(path, "holds no state dict")
    if sum(storage.nbytes() for storage in _storages(state.values()).values()) > stored_bytes:
        # A damaged stride or offset: torch then adds memory of any content behind the stored values.
        raise damaged(path, "is damaged or holds more than weights (a tensor reaches beyond its stored values)")
    return _renamed({key: value.detach() for key, value in state.items()}, scope_map)  # a checkpoint may hold trainable parameters


def count_values(state: dict[str, Any]) -> int:
    """Numbers that a state dict holds; values that tensors share count once."""
    widths = {value.untyped_storage().data_ptr(): value.element_size() for value in state.values()}
    return sum(storage.nbytes() // widths[at] for at, storage in _storages(state.values()).items())


def fitted(state: dict[str, Any], expected: dict[str, Any], path: Path) -> dict[str, Any]:
    """The tensors that a module asks for, floating point in float32, every value finite.

    Args:
        state: from ``read_state_dict``.
        expected: the module's own state dict, whose names, shapes and kinds of numbers are asked for.
        path: where ``state`` is from.

    Raises:
        ModelLoadFailed: one is missing, has another shape, or holds NaN or infinity.
    """
    missing = [key for key in expected if key not in state]
    if missing:
        raise damaged(path, f"lacks {len(missing)} of {len(expected)} weights, first {missing[0]}")
    result = {}
    for key, wanted in expected.items():
        value = state[key]
        if value.shape != wanted.shape:
            asked = f"config.yaml asks for {tuple(wanted.shape)}"
            raise damaged(path, f"does not fit config.yaml: {key} has shape {tuple(value.shape)}, {asked}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise damaged(path, f"is damaged: {key} has fewer stored values than its shape {tuple(value.shape)}")
        kinds = [(tensor.is_floating_point(), tensor.is_complex()) for tensor in (value, wanted)]
        if kinds[0] != kinds[1]:
            raise damaged(path, f"does not fit config.yaml: {key} holds {value.dtype}, config.yaml asks for {wanted.dtype}")
        result[key] = value.float() if value.is_floating_point() else value
        if not _is_finite(result[key]):
            raise damaged(path, f"holds weights that are NaN or infinite, first in {key}")
    return result


def _is_plain(value: Any) -> bool:
    """A tensor whose values lie in memory as they are."""
    import torch  # noqa: PLC0415

    return isinstance(value, torch.Tensor) and value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized


def _is_finite(value: Any) -> bool:
    """One pass without a copy: a sum is finite unless a value is not, or the values are so large that the sum is not, either."""
    import torch  # noqa: PLC0415

    return math.isfinite(float(value.sum())) or bool(torch.isfinite(value).all())


def _storages(tensors: Iterable[Any]) -> dict[int, Any]:
    """The memory behind tensors, each piece once, by its address."""
    return {storage.data_ptr(): storage for storage in (tensor.untyped_storage() for tensor in tensors)}


def _checked_bytes(path: Path) -> int:
    """An upper bound of the bytes that a file's tensors have, after a look at what else it would make torch build.

    ``torch.save`` never compresses; a compressed file is not its own, and may unpack to any size. So may one whose records overlap.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP_MAGIC)) != _ZIP_MAGIC:
            file.seek(0)
            pickles = io.BytesIO(file.read(_MAX_PICKLE_BYTES))
            for _ in range(_NUM_PICKLES):
                _check_pickle(pickles)
            return path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("its records are compressed")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise ValueError("its records overlap")
        for record in records:
            if record.filename.endswith(".pkl"):
                if record.file_size > _MAX_PICKLE_BYTES:
                    raise ValueError(f"{record.filename} has {record.file_size:,} bytes")
                _check_pickle(io.BytesIO(archive.read(record)))
    return sum(record.file_size for record in records if "/data/" in record.filename)


def _check_pickle(file: BinaryIO) -> None:
    """Read one pickle without building it.

    Raises:
        ValueError: it is damaged, or names what no state dict is built of.
    """
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL" and not _USED.fullmatch(str(argument)):
            raise ValueError(f"it uses {str(argument)[:100]}")


def _renamed(state: dict[str, Any], scope_map: list[str] | str) -> dict[str, Any]:
    pairs = scope_map.split(",") if isinstance(scope_map, str) else list(scope_map)
    pairs += ["module.", "None"]
    prefixes = ["" if prefix.lower() == "none" else prefix for prefix in pairs]
    for source, target in zip(prefixes[::2], prefixes[1::2], strict=False):
        if source:
            state = {target + key.removeprefix(source) if key.startswith(source) else key: value for key, value in state.items()}
    return state
