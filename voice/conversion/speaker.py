"""``CAMPPlus`` as an ONNX graph: the filterbanks of an utterance -> the embedding of its voice.

A loaded FunASR module -> ``speaker.onnx`` and ``speaker.weights``. The arithmetic is that of FunASR's ``CAMPPlus.forward`` (CAM++: Wang et
al. 2023). ``voice/finalization/speaker_embedding.py`` runs the graph. No state. Raises ``Unconvertible`` for a variant that the published
models do not use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voice.conversion.graph import Graph, Precision
from voice.conversion.layers import array, bias_of, require

_NUM_BINS = 80
_SEGMENT_FRAMES = 100
"""``CAMLayer.seg_pooling``'s ``seg_len``: 2 s."""
_ALIGNMENT = 64
"""Most of the 470 weights are smaller than a page: with pages the embedded model's file would be twice as large."""


def convert_speaker(module: Any, directory: Path, precision: Precision) -> None:
    """Write the graph.

    Input: features (1, frames, 80), float32, the mean of each bin taken off; at least 3 frames. Output: embedding (1, size), float32.

    Between the input and the output values are (1, channels, 1, frames): in two dimensions ONNX Runtime has the faster convolutions.

    Args:
        module: ``CAMPPlus``, its weights loaded, on the CPU.
        directory: exists; receives the files.
        precision: weights stay as they are, whatever it says: the published model is small.

    Raises:
        Unconvertible: the module has a part that the graph cannot express.
        OSError: a file cannot be written.
    """
    del precision
    require(module.output_level == "segment", "an embedding for each frame")
    graph = Graph(directory, "speaker", alignment=_ALIGNMENT)
    values = graph.node("Unsqueeze", graph.input("features", (1, "frames", _NUM_BINS)), graph.integers(1))
    values = _head(graph, graph.node("Transpose", values, perm=[0, 1, 3, 2]), module.head)
    layers = dict(module.xvector.named_children())
    values = _normalized(graph, _convolution(graph, values, layers["tdnn"].linear), layers["tdnn"].nonlinear)
    for index in (1, 2, 3):
        for layer in layers[f"block{index}"]:
            values = graph.node("Concat", values, _dense_layer(graph, values, layer), axis=1)
        transit = layers[f"transit{index}"]
        values = _convolution(graph, _normalized(graph, values, transit.nonlinear), transit.linear)
    values = _statistics(graph, _normalized(graph, values, layers["out_nonlinear"]))
    values = _normalized(graph, _convolution(graph, values, layers["dense"].linear), layers["dense"].nonlinear)
    size = layers["dense"].linear.out_channels
    graph.output(graph.node("Reshape", values, graph.integers(1, size)), "embedding", (1, size))
    graph.close()


def _head(graph: Graph, values: str, head: Any) -> str:
    """Residual convolutions over bins and frames, (1, 1, 80, frames), then the bins of all channels as channels."""
    values = graph.node("Relu", _folded(graph, values, head.conv1, head.bn1))
    for block in (*head.layer1, *head.layer2):
        inner = graph.node("Relu", _folded(graph, values, block.conv1, block.bn1))
        inner = _folded(graph, inner, block.conv2, block.bn2)
        shortcut = _folded(graph, values, *block.shortcut) if len(block.shortcut) else values
        values = graph.node("Relu", graph.node("Add", inner, shortcut))
    values = graph.node("Relu", _folded(graph, values, head.conv2, head.bn2))
    return graph.node("Reshape", values, graph.integers(1, head.out_channels, 1, -1))


def _dense_layer(graph: Graph, values: str, layer: Any) -> str:
    """``CAMDenseTDNNLayer``: a convolution, and a mask for its channels made of the mean of everything and of the surrounding 2 s."""
    values = _normalized(graph, values, layer.nonlinear1)
    values = _normalized(graph, _convolution(graph, values, layer.linear1), layer.nonlinear2)
    mask = layer.cam_layer
    whole = graph.node("ReduceMean", values, axes=[3], keepdims=1)
    context = graph.node("Add", whole, _segments(graph, values))
    context = graph.node("Relu", _convolution(graph, context, mask.linear1))
    context = graph.node("Sigmoid", _convolution(graph, context, mask.linear2))
    return graph.node("Mul", _convolution(graph, values, mask.linear_local), context)


def _segments(graph: Graph, values: str) -> str:
    """Each frame as the mean of its segment; the last segment is as long as what is left."""
    length = _SEGMENT_FRAMES
    means = graph.node("AveragePool", values, kernel_shape=[1, length], strides=[1, length], ceil_mode=1)
    repeated = graph.node("Expand", graph.node("Unsqueeze", means, graph.integers(4)), graph.integers(1, 1, 1, 1, length))
    frames = graph.node("Reshape", repeated, graph.integers(0, 0, 1, -1))
    return graph.node("Slice", frames, graph.integers(0), graph.node("Shape", values, start=3, end=4), graph.integers(3))


def _statistics(graph: Graph, values: str) -> str:
    """Mean and standard deviation of each channel, unbiased: (1, 2 channels, 1, 1)."""
    mean = graph.node("ReduceMean", values, axes=[3], keepdims=1)
    centred = graph.node("Sub", values, mean)
    squares = graph.node("ReduceSum", graph.node("Mul", centred, centred), graph.integers(3), keepdims=1)
    others = graph.node("Sub", graph.node("Shape", values, start=3, end=4), graph.integers(1))
    deviation = graph.node("Sqrt", graph.node("Div", squares, graph.node("CastLike", others, squares)))
    return graph.node("Concat", mean, deviation, axis=1)


def _folded(graph: Graph, values: str, convolution: Any, norm: Any) -> str:
    """A convolution without bias and the batch normalization behind it, as one convolution."""
    require(convolution.bias is None, "a convolution with a bias before its normalization")
    scale, shift = _scale_and_shift(norm)
    kernel = array(convolution.weight) * scale[:, None, None, None]
    (above, left), strides = convolution.padding, list(convolution.stride)
    return graph.node("Conv", values, graph.weight(kernel), graph.weight(shift), strides=strides, pads=[above, left, above, left])


def _convolution(graph: Graph, values: str, convolution: Any) -> str:
    """``torch.nn.Conv1d`` over the frames."""
    (padding,), (stride,), (dilation,) = convolution.padding, convolution.stride, convolution.dilation
    bias = bias_of(convolution)
    weights = [graph.weight(array(convolution.weight)[:, :, None])] + ([] if bias is None else [graph.weight(bias)])
    return graph.node("Conv", values, *weights, strides=[1, stride], dilations=[1, dilation], pads=[0, padding, 0, padding])


def _normalized(graph: Graph, values: str, nonlinear: Any) -> str:
    """Batch normalization, and a rectifier where there is one."""
    parts = dict(nonlinear.named_children())
    require(set(parts) in ({"batchnorm"}, {"batchnorm", "relu"}), f"an activation of other parts: {', '.join(parts)}")
    both = np.stack(_scale_and_shift(parts["batchnorm"]))[:, None, :, None, None]
    scale, shift = graph.nodes("Split", graph.weight(both), graph.integers(1, 1), num_outputs=2, axis=0)
    shape = graph.integers(*both.shape[1:])
    values = graph.node("Mul", values, graph.node("Reshape", scale, shape))
    values = graph.node("Add", values, graph.node("Reshape", shift, shape))
    return graph.node("Relu", values) if "relu" in parts else values


def _scale_and_shift(norm: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What batch normalization multiplies by and adds when it is not trained any more."""
    deviation = np.sqrt(array(norm.running_var) + np.float32(norm.eps))
    weight = np.ones_like(deviation) if norm.weight is None else array(norm.weight)
    bias = np.zeros_like(deviation) if norm.bias is None else array(norm.bias)
    scale: NDArray[np.float32] = weight / deviation
    return scale, bias - array(norm.running_mean) * scale
