"""Whether this processor multiplies bytes without overflow.

On x86 without VNNI, ONNX Runtime adds two products of an unsigned and a signed byte in 16 bits: 2 x 255 x 127 does not fit, and is cut
off. There the weights must be unsigned, too, which it multiplies in another way: slower, and without loss. What the processor is called
says less than a product does. No state. Raises ``OSError``.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np

from voice.conversion.graph import Graph, Precision
from voice.models.converted import SELF_TEST, products_are_right

_ROWS = (1, 4, 15)
"""Numbers of rows that ONNX Runtime has kernels of its own for."""
_WIDTH = 512


def write_self_test(directory: Path) -> None:
    """A graph without inputs whose outputs are 1 where products of the widest range are right."""
    graph = Graph(directory, SELF_TEST, "int8")
    weight = np.full((_WIDTH, _WIDTH), 1 / _WIDTH, np.float32)
    for num_rows in _ROWS:
        rows = graph.node("Expand", graph.weight(np.ones((1, 1, 1), np.float32)), graph.integers(1, num_rows, _WIDTH))
        graph.output(graph.linear(rows, weight, None), f"products_{num_rows}", (1, num_rows, _WIDTH))
    graph.close()


@functools.cache
def signed_products_are_right() -> bool:
    """Whether signed weights may be used on this processor."""
    with tempfile.TemporaryDirectory() as directory:
        write_self_test(Path(directory))
        return products_are_right(Path(directory))


def byte_precision() -> Precision:
    """The kind of one-byte weights that this processor multiplies without loss, the faster one where it can do both."""
    return "int8" if signed_products_are_right() else "uint8"
