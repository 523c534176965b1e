"""An ONNX graph in the making: nodes by name, weights into a file beside the graph.

numpy arrays -> ``NAME.onnx`` and ``NAME.weights``. ONNX Runtime maps the weights file, and drops what it has repacked: neither the
conversion nor the service ever holds a second copy of a large model. One thread at a time. Raises ``OSError`` where a file cannot be
written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

Precision = Literal["float32", "int8", "uint8"]
"""Of weights. The two of one byte round alike; which of them a processor multiplies without overflow is tested (``selftest``)."""

Rows = Literal["any", "normalized", "positive"]
"""What the input of a linear layer is known to be: of any size; made alike by a normalization; above 0."""

_OPSET = 17
_IR_VERSION = 9
_ALIGNMENT = 4096
"""A mapped weight starts at a page."""
_INLINE_VALUES = 16
"""Smaller weights stand in the graph itself: shape computations read them."""
_MICROSOFT = "com.microsoft"
_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.float16): TensorProto.FLOAT16,
}
_SMALLEST = 1e-30
_INT8_STEPS = 127
_UINT8_ZERO = 128


class Graph:
    """Collects nodes and weights. Every method that adds a node returns the name of its output."""

    def __init__(self, directory: Path, name: str, precision: Precision = "float32", alignment: int = _ALIGNMENT) -> None:
        """Begin ``name``.

        Args:
            directory: where its two files are written.
            name: of the files, without a suffix.
            precision: of the weights of ``linear``.
            alignment: a stored weight starts at a multiple of so many bytes; less than a page where there are many small ones.
        """
        self._alignment = alignment
        self._directory = directory
        self._name = name
        self._precision = precision
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._names: dict[str, str] = {}
        """Of values that are outputs."""
        self._constants: dict[tuple[int, ...], str] = {}
        self._file = directory / f"{name}.weights"
        self._file.write_bytes(b"")

    def input(self, name: str, shape: Sequence[int | str], dtype: type = np.float32) -> str:
        """An input; a dimension that is a string may have any size."""
        self._inputs.append(helper.make_tensor_value_info(name, _TYPES[np.dtype(dtype)], list(shape)))
        return name

    def output(self, value: str, name: str, shape: Sequence[int | str]) -> None:
        """Make a value a float32 output of the graph."""
        self._names[value] = name
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))

    def node(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """A node with one output."""
        return self.nodes(operator, *inputs, num_outputs=1, domain=domain, **attributes)[0]

    def nodes(self, operator: str, *inputs: str, num_outputs: int, domain: str = "", **attributes: Any) -> list[str]:
        """A node with several outputs."""
        first = f"{operator}_{len(self._nodes)}"
        outputs = [first if index == 0 else f"{first}_{index}" for index in range(num_outputs)]
        self._nodes.append(helper.make_node(operator, list(inputs), outputs, domain=domain, name=first, **attributes))
        return outputs

    def microsoft(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output, of ONNX Runtime's own operators."""
        return self.node(operator, *inputs, domain=_MICROSOFT, **attributes)

    def weight(self, values: NDArray[Any]) -> str:
        """A constant. Values that came from float16, as the embedded models' do, are stored in it, and widened when the graph is loaded."""
        if values.dtype == np.float32 and values.size > _INLINE_VALUES:
            with np.errstate(over="ignore"):
                half = values.astype(np.float16)
            if np.array_equal(half, values):
                return self.node("Cast", self._stored(half), to=TensorProto.FLOAT)
        return self._stored(values)

    def _stored(self, values: NDArray[Any]) -> str:
        name = f"weight_{len(self._weights)}"
        values = np.ascontiguousarray(values)
        tensor = TensorProto(name=name, data_type=_TYPES[values.dtype], dims=values.shape)
        if values.size <= _INLINE_VALUES:
            tensor.raw_data = values.tobytes()
        else:
            with self._file.open("r+b") as file:
                offset = -(-file.seek(0, os.SEEK_END) // self._alignment) * self._alignment
                file.seek(offset)
                file.write(values.data)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": f"{self._name}.weights", "offset": offset, "length": values.nbytes}
            tensor.external_data.extend(onnx.StringStringEntryProto(key=key, value=str(value)) for key, value in place.items())
        self._weights.append(tensor)
        return name

    def integers(self, *values: int) -> str:
        """A constant vector, as operators take axes and shapes; equal ones are stored once."""
        if values not in self._constants:
            self._constants[values] = self.weight(np.array(values, np.int64))
        return self._constants[values]

    def linear(
        self,
        rows: str,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        *,
        precision: Precision | None = None,
        kind: Rows = "any",
    ) -> str:
        """``rows @ weight.T + bias``, as ``torch.nn.Linear`` computes it.

        int8, uint8: each output channel's weights are rounded to multiples of a 127th of their largest. The rows are rounded to 256
        steps when the graph runs; the operator has one scale for all of them, which leaves too little to the rows that are small
        beside an outlier. So each row is divided by its own largest value before, unless a normalization has made the rows alike.

        Args:
            rows: (1, num_rows, in_features).
            weight: (out_features, in_features).
            bias: (out_features,).
            precision: of this one; the graph's where it is None.
            kind: of the rows.
        """
        precision = precision or self._precision
        if precision == "float32":
            product = self.node("MatMul", rows, self.weight(weight.T))
            return product if bias is None else self.node("Add", product, self.weight(bias))
        scale = np.maximum(np.abs(weight).max(axis=1) / _INT8_STEPS, np.finfo(np.float32).tiny)
        zero = 0 if precision == "int8" else _UINT8_ZERO
        steps = (np.rint(weight / scale[:, None]).T + zero).astype(precision)
        weights = [self.weight(steps), self.weight(scale.astype(np.float32))]
        weights.append(self.weight(np.full(len(weight), zero, np.uint8)) if zero else "")
        if kind == "normalized":
            return self.microsoft("DynamicQuantizeMatMul", rows, *weights, "" if bias is None else self.weight(bias))
        largest = self.node("ReduceMax", rows if kind == "positive" else self.node("Abs", rows), axes=[2], keepdims=1)
        if kind == "any":
            largest = self.node("Max", largest, self.smallest())
        product = self.microsoft("DynamicQuantizeMatMul", self.node("Div", rows, largest), *weights)
        product = self.node("Mul", product, largest)
        return product if bias is None else self.node("Add", product, self.weight(bias))

    def smallest(self) -> str:
        """What stands for 0 among numbers that are divided, and divides: a quotient of it and any activation is a normal number.

        With a number so small that quotients are subnormal, dividing took 30 % of the encoder's time on an Intel processor.
        """
        return self.weight(np.array(_SMALLEST, np.float32))

    def close(self) -> None:
        """Write the graph.

        Raises:
            OSError: a file cannot be written.
        """
        for node in self._nodes:  # a node that copies a value to its name would cost as much as computing it
            for values in (node.input, node.output):
                values[:] = [self._names.get(value, value) for value in values]
        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, self._weights)
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        (self._directory / f"{self._name}.onnx").write_bytes(model.SerializeToString())

    def each(self, body: Callable[..., str], *sequences: str) -> str:
        """What ``body`` makes of the elements of float32 sequences, stacked again; an element is a slice of the first dimension.

        One element is computed after the other: the memory is that of one.

        Args:
            body: names of one element of each sequence -> name of a value that it adds nodes for. It may use values that exist already,
                but none that is an output of the graph.
            sequences: of equal length, at least 1.
        """
        first = len(self._nodes)
        elements = [f"element_{first}_{index}" for index in range(len(sequences))]
        result = body(*elements)
        nodes = self._nodes[first:]
        del self._nodes[first:]
        inner = {name: f"each_{first}_{name}" for node in nodes for name in node.output}  # later nodes take the old names
        for node in nodes:
            node.name = inner[node.output[0]]
            for values in (node.input, node.output):
                values[:] = [inner.get(value, value) for value in values]
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (*elements, inner[result])]
        graph = helper.make_graph(nodes, f"each_{first}", infos[:-1], infos[-1:])
        return self.node("Scan", *sequences, body=graph, num_scan_inputs=len(sequences))
