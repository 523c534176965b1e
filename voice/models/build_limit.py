"""A limit on what building a module may allocate: a config.yaml is wrong if it asks for much more than its weights file holds.

No state beyond one ``with`` block. On the thread that builds. Raises ``TooLarge`` before the memory is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_SPARE_VALUES = 16 * 2**20
"""Position tables and whatever else no file holds: 64 MB in float32. The largest table in use has 5,000 × 512 values."""
_SPARE_TENSORS = 1_000
_FACTORIES = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn})
"""What FunASR's modules, and torch's own, make their tensors with."""


class TooLarge(ValueError):
    """A module would have far more tensors or values than its weights file."""


class BuildLimit(TorchFunctionMode):  # type: ignore[misc]  # torch is not followed
    """While it is entered, tensors may be made with twice as many values as the file holds, and a little more."""

    def __init__(self, num_values: int, num_tensors: int) -> None:
        """Take the counts of the weights file."""
        super().__init__()
        self._values_left = 2 * num_values + _SPARE_VALUES
        self._tensors_left = 4 * num_tensors + _SPARE_TENSORS

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Count what ``function`` is about to allocate, then call it."""
        del types
        kwargs = kwargs or {}
        if function in _FACTORIES:
            self._count(math.prod(_shape(args, kwargs)))
        elif function is torch.Tensor.repeat:
            self._count(args[0].numel() * math.prod(_shape(args[1:], kwargs)))
        return function(*args, **kwargs)

    def _count(self, num_values: int) -> None:
        self._values_left -= num_values
        self._tensors_left -= 1
        if self._values_left < 0 or self._tensors_left < 0:
            raise TooLarge("it asks for far more weights than the weights file holds")


def _shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    """The sizes that a factory is given: as ``size``, as one sequence, or as one argument each."""
    sizes = kwargs.get("size", args)
    if sizes and not isinstance(sizes[0], int):
        sizes = sizes[0]
    return [size for size in sizes if isinstance(size, int)]
