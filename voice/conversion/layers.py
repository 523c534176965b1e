"""The layers that FunASR's models are made of, from torch modules into a graph.

A torch module and the name of a value -> the name of the layer's output. No state. Raises ``Unconvertible``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voice.conversion.graph import Graph, Precision, Rows


class Unconvertible(RuntimeError):
    """The model has a part that no graph was written for; torch runs it."""


def require(holds: bool, what: str) -> None:  # noqa: FBT001 -- reads as an assertion
    """Check what the graphs rely on.

    Raises:
        Unconvertible: it does not hold.
    """
    if not holds:
        raise Unconvertible(f"the model has {what}")


def array(tensor: Any) -> NDArray[np.float32]:
    """A weight as float32; shares memory with the tensor where that is float32."""
    values: NDArray[np.float32] = tensor.detach().float().numpy()
    return values


def linear(graph: Graph, rows: str, layer: Any, *, precision: Precision | None = None, kind: Rows = "any") -> str:
    """``torch.nn.Linear``."""
    return graph.linear(rows, array(layer.weight), bias_of(layer), precision=precision, kind=kind)


def bias_of(layer: Any) -> NDArray[np.float32] | None:
    """Of ``torch.nn.Linear``, as float32; None where it has none."""
    return None if layer.bias is None else array(layer.bias)


def layer_norm(graph: Graph, rows: str, layer: Any) -> str:
    """``torch.nn.LayerNorm`` over the last dimension."""
    weights = [graph.weight(array(layer.weight)), graph.weight(array(layer.bias))]
    return graph.node("LayerNormalization", rows, *weights, axis=-1, epsilon=layer.eps)


def feed_forward(graph: Graph, rows: str, layer: Any) -> str:
    """Two linear layers; between them a rectifier, and a normalization where the module has one there.

    Args:
        graph: receives the nodes.
        rows: normalized.
        layer: FunASR's ``PositionwiseFeedForward`` or ``PositionwiseFeedForwardDecoderSANM``.
    """
    require(type(layer.activation).__name__ == "ReLU", f"the activation {type(layer.activation).__name__}")
    inner = linear(graph, rows, layer.w_1, kind="normalized")
    if getattr(layer, "norm", None) is not None:
        return linear(graph, layer_norm(graph, graph.node("Relu", inner), layer.norm), layer.w_2, kind="normalized")
    # What the rectifier cuts off becomes a number above 0 that changes no sum.
    return linear(graph, graph.node("Max", inner, graph.smallest()), layer.w_2, kind="positive")


def depthwise(
    graph: Graph,
    rows: str,
    convolution: Any,
    padding: tuple[int, int],
    *,
    bias: NDArray[np.float32] | None = None,
    add_input: bool = True,
) -> str:
    """A convolution over time of each channel by itself (FSMN, Zhang et al. 2015), of rows (1, t, channels).

    Args:
        graph: receives the nodes.
        rows: the input.
        convolution: ``torch.nn.Conv1d``, as many groups as channels.
        padding: zero rows before and after.
        bias: (channels,), added to the result.
        add_input: add the input to the result; the kernel's middle takes it up.
    """
    kernel = array(convolution.weight).copy()  # (channels, 1, width)
    require(convolution.bias is None and kernel.shape[1] == 1, "a convolution that mixes channels")
    if add_input:
        kernel[:, :, padding[0]] += 1
    # In two dimensions, of which one has size 1, ONNX Runtime takes a kernel that is 14 times faster than its one-dimensional one.
    shape = [graph.integers(1, 1, -1, kernel.shape[0]), graph.integers(1, -1, kernel.shape[0])]
    channels_first = graph.node("Transpose", graph.node("Reshape", rows, shape[0]), perm=[0, 3, 1, 2])
    before, after = padding
    weights = [graph.weight(kernel[:, :, None])] + ([] if bias is None else [graph.weight(bias)])
    convolved = graph.node("Conv", channels_first, *weights, group=kernel.shape[0], pads=[0, before, 0, after])
    return graph.node("Reshape", graph.node("Transpose", convolved, perm=[0, 2, 3, 1]), shape[1])


def sanm_layer(
    graph: Graph, layer: Any, rows: str, past: Sequence[str] = (), *, precision: Precision | None = None
) -> tuple[str, list[str]]:
    """One SAN-M layer (Gao et al. 2020): attention to what was and is, beside a convolution over the values of these rows.

    Args:
        graph: receives the nodes.
        layer: FunASR's ``EncoderLayerSANM``.
        rows: (1, t, in_size).
        past: keys and values of earlier rows, (1, past, width) each; none where there are no earlier ones.
        precision: of the projection to queries, keys and values; the graph's where it is None.

    Returns:
        The layer's output, (1, t, width), and the keys and values of all rows.
    """
    attention = layer.self_attn
    width = attention.h * attention.d_k
    projected = linear(graph, layer_norm(graph, rows, layer.norm1), attention.linear_q_k_v, precision=precision, kind="normalized")
    query, key, value = graph.nodes("Split", projected, graph.integers(width, width, width), num_outputs=3, axis=2)
    present = [key, value]
    if past:
        present = [graph.node("Concat", before, new, axis=1) for before, new in zip(past, present, strict=True)]
    attended = graph.microsoft("MultiHeadAttention", query, *present, num_heads=attention.h)
    # The convolution adds the bias of the attention's last layer on its way.
    memory = depthwise(graph, value, attention.fsmn_block, attention.pad_fn.padding, bias=bias_of(attention.linear_out))
    attended = graph.node("Add", graph.linear(attended, array(attention.linear_out.weight), None), memory)
    if layer.in_size == layer.size:
        attended = graph.node("Add", rows, attended)
    forwarded = feed_forward(graph, layer_norm(graph, attended, layer.norm2), layer.feed_forward)
    return graph.node("Add", attended, forwarded), present
