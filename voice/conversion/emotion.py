"""``Emotion2vec`` as an ONNX graph: the waveform of an utterance -> a number for each label.

A loaded FunASR module -> ``emotion.onnx`` and ``emotion.weights``. The arithmetic is that of FunASR's ``Emotion2vec.inference`` for the
granularity ``utterance`` (emotion2vec: Ma et al. 2023; data2vec 2.0: Baevski et al. 2022; ALiBi: Press et al. 2021). Two parts run piece by
piece, because as a whole they would take most of the memory: the first convolution of 30 s gives 196 MB, all heads' attention 109 MB.
``voice/finalization/emotion.py`` runs the graph. No state. Raises ``Unconvertible`` for a variant that the published models do not use.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from voice.conversion.graph import Graph, Precision
from voice.conversion.layers import Unconvertible, array, linear, require

__all__ = ["Unconvertible", "convert_emotion"]

_NORM_EPSILON = 1e-5
"""``torch.nn.functional.layer_norm``'s."""
_BLOCK_FRAMES = 16
"""Frames of the feature encoder that are computed at a time: about 7 MB for the full-size model; 1.6 % are computed twice."""
_BLOCK_ROWS = 64
"""Rows of the transformer that are computed at a time, at most: with 32 it takes 5 % longer, 128 bring nothing."""
_END = 2**31
"""Slices stop at the last row."""


def convert_emotion(module: Any, directory: Path, precision: Precision) -> None:
    """Write the graph.

    Input: samples (1, num_samples), float32, [-1, 1], 16 kHz mono; the graph itself normalizes them, where the module does.
    Output: logits (1, num_labels), float32, one for each line of tokens.txt. The module does not know the labels: who runs the graph
    leaves out those that FunASR leaves out (``unuse*``) and takes the softmax of the others.

    Args:
        module: ``Emotion2vec``, its weights loaded, on the CPU.
        directory: exists; receives the files.
        precision: of the weights of the transformer's linear layers; all others stay in float32.

    Raises:
        Unconvertible: the module has a part that the graph cannot express.
        OSError: a file cannot be written.
    """
    encoder = module.modality_encoders["AUDIO"]
    _check(module, encoder)
    _check_convolutions(encoder)
    graph = Graph(directory, "emotion", precision)
    rows = _features(graph, _waveform(graph, normalize=bool(module.cfg.normalize)), encoder)
    extra = [] if encoder.extra_tokens is None else [graph.weight(array(encoder.extra_tokens))]
    num_extra = 0 if encoder.extra_tokens is None else encoder.extra_tokens.shape[1]
    rows = graph.node("Concat", *extra, graph.node("Add", rows, _positions(graph, rows, encoder.relative_positional_encoder)), axis=1)
    rows = _transformer(graph, _layer_norm(graph, rows, encoder.context_encoder.norm), module)
    mean = graph.node("ReduceMean", _rows(graph, rows, num_extra, None), axes=[1], keepdims=0)
    graph.output(linear(graph, mean, module.proj, precision="float32"), "logits", (1, module.proj.out_features))
    graph.close()


def _check(module: Any, encoder: Any) -> None:
    """Refuse what the rest does not expect."""
    require(module.proj is not None, "no labels")
    require(module.norm is None, "layers that normalize before their parts")
    require(encoder.fixed_positional_encoder is None, "a table of positions")
    require(encoder.get_alibi_bias is not None and not encoder.modality_cfg.learned_alibi, "another encoding of distances")
    layers = [*encoder.context_encoder.blocks, *module.blocks]
    require(bool(layers), "no layers")
    require(len(encoder.alibi_scale) in (1, len(layers)), "other layers than scales of distances")
    require(encoder.modality_cfg.num_alibi_heads <= layers[0].attn.num_heads, "more heads that know distances than heads")
    for layer in layers:
        require(not layer.layer_norm_first and not layer.attn.cosine_attention, "a layer of another kind")
        require(type(layer.mlp.norm).__name__ == "Identity" and type(layer.mlp.fc1).__name__ == "Linear", "a layer of another kind")
        _require_gelu(layer.mlp.act)


def _check_convolutions(encoder: Any) -> None:
    for convolution, _, normalization, activation in encoder.local_encoder.conv_layers:
        _require_gelu(activation)
        require(type(normalization).__name__ == "Sequential", "a feature encoder that does not normalize over channels")
        require(convolution.bias is None and convolution.groups == 1 and convolution.padding == (0,), "another feature encoder")
    reach, hop = _reach_and_hop(encoder)
    require(reach >= hop, "a feature encoder that skips samples")


def _require_gelu(activation: Any) -> None:
    require(type(activation).__name__ == "GELU" and activation.approximate == "none", f"the activation {activation}")


def _waveform(graph: Graph, *, normalize: bool) -> str:
    """The samples (num_samples,), without their mean and with variance 1 where the module normalizes."""
    samples = graph.node("Reshape", graph.input("samples", (1, "num_samples")), graph.integers(-1))
    if not normalize:
        return samples
    centred = graph.node("Sub", samples, _mean(graph, samples))
    variance = _mean(graph, graph.node("Mul", centred, centred))
    return graph.node("Div", centred, graph.node("Sqrt", graph.node("Add", variance, _number(graph, _NORM_EPSILON))))


def _mean(graph: Graph, values: str) -> str:
    """Of a vector. ONNX Runtime adds float32 up one by one: with an offset of 0.1, the mean of 2 s would change scores by 0.001."""
    mean = graph.node("ReduceMean", graph.node("Cast", values, to=TensorProto.DOUBLE), axes=[0])
    return graph.node("Cast", mean, to=TensorProto.FLOAT)


def _features(graph: Graph, waveform: str, encoder: Any) -> str:
    """Strided convolutions over the waveform, then a linear layer: frames (1, t, width).

    A frame depends on ``reach`` samples, ``hop`` samples after the frame before it; so the waveform is cut into blocks that overlap by the
    difference, and no frame of a block depends on another block. Zeros fill up the last one; frames that reach into them are dropped.
    """
    layers = list(encoder.local_encoder.conv_layers)
    reach, hop = _reach_and_hop(encoder)
    overlap = reach - hop
    block = hop * max(_BLOCK_FRAMES, -(-reach // hop))

    one, last = graph.integers(1), graph.integers(block - 1)
    num_samples = graph.node("Shape", waveform)
    num_frames = graph.node("Div", graph.node("Sub", num_samples, graph.integers(overlap)), graph.integers(hop))
    spanned = graph.node("Mul", num_frames, graph.integers(hop))
    num_blocks = graph.node("Div", graph.node("Add", spanned, last), graph.integers(block))
    padded = graph.node("Mul", graph.node("Add", num_blocks, one), graph.integers(block))
    padding = graph.node("Concat", graph.integers(0), graph.node("Sub", padded, num_samples), axis=0)
    whole = graph.node("Reshape", graph.node("Pad", waveform, padding), graph.integers(-1, block))
    starts = graph.node("Slice", whole, graph.integers(0), graph.integers(-1), graph.integers(0))
    ends = graph.node("Slice", whole, graph.integers(1, 0), graph.integers(_END, overlap), graph.integers(0, 1))
    blocks = graph.node("Concat", starts, ends, axis=1)

    frames = graph.each(lambda samples: _convolutions(graph, samples, layers, block + overlap), blocks)
    frames = graph.node("Reshape", frames, graph.integers(1, -1, layers[-1][0].out_channels))
    _, norm, projection = encoder.project_features
    return linear(graph, _layer_norm(graph, _rows(graph, frames, 0, num_frames), norm), projection, precision="float32")


def _reach_and_hop(encoder: Any) -> tuple[int, int]:
    """How many samples a frame depends on, and how many later the next one begins."""
    reach, hop = 1, 1
    for convolution, *_ in encoder.local_encoder.conv_layers:
        reach += (convolution.kernel_size[0] - 1) * hop
        hop *= convolution.stride[0]
    return reach, hop


def _convolutions(graph: Graph, samples: str, layers: list[Any], num_samples: int) -> str:
    """The feature encoder over a block of samples (num_samples,): frames (t, channels).

    A convolution is a product with rows that hold the kernel's inputs one after the other: as fast as ONNX Runtime's fastest one, and the
    normalization over channels needs no transposed copies.
    """
    rows = graph.node("Reshape", samples, graph.integers(num_samples, 1))
    for convolution, _, normalization, _ in layers:
        (width,), (stride,) = convolution.kernel_size, convolution.stride
        num_frames = (num_samples - width) // stride + 1
        inputs = np.arange(num_frames)[:, None] * stride + np.arange(width)
        gathered = graph.node("Gather", rows, graph.weight(inputs.astype(np.int64)), axis=0)
        gathered = graph.node("Reshape", gathered, graph.integers(num_frames, width * convolution.in_channels))
        kernel = array(convolution.weight).transpose(0, 2, 1).reshape(convolution.out_channels, -1)
        rows = _layer_norm(graph, graph.linear(gathered, kernel, None, precision="float32"), normalization[1])
        rows = graph.microsoft("Gelu", rows)
        num_samples = num_frames
    return rows


def _positions(graph: Graph, rows: str, encoder: Any) -> str:
    """What stands for the frames' positions: convolutions over a second around each of them."""
    if type(encoder[0]).__name__ == "LayerNorm":
        rows = _layer_norm(graph, rows, encoder[0])
        encoder = encoder[1]
    for layer in list(encoder)[1:-1]:
        convolution, _, _, norm, *_ = layer
        (width,) = convolution.kernel_size
        channels_first = graph.node("Transpose", graph.node("Unsqueeze", rows, graph.integers(1)), perm=[0, 3, 1, 2])
        weights = [graph.weight(array(convolution.weight)[:, :, None]), graph.weight(array(convolution.bias))]
        # In two dimensions ONNX Runtime takes a kernel that is a fifth faster than its one-dimensional one.
        pads = [0, width // 2, 0, (width - 1) // 2]  # FunASR pads a kernel of even width alike on both sides, and drops the last frame
        convolved = graph.node("Conv", channels_first, *weights, group=convolution.groups, pads=pads)
        rows = graph.node("Squeeze", graph.node("Transpose", convolved, perm=[0, 2, 3, 1]), graph.integers(1))
        rows = graph.microsoft("Gelu", _layer_norm(graph, rows, norm))
    return rows


def _slopes(encoder: Any, num_layers: int, num_heads: int) -> list[NDArray[np.float32]]:
    """Of each layer, (1, num_heads, 1, 1): what each head multiplies distances by. ALiBi's, times what the model has learned."""
    num_alibi_heads = encoder.modality_cfg.num_alibi_heads
    bias = encoder.get_alibi_bias(batch_size=1, time_steps=2, heads=num_alibi_heads, dtype=encoder.alibi_scale.dtype, device="cpu")
    slopes = np.zeros((num_layers, 1, num_heads, 1, 1), np.float32)
    scales = np.maximum(array(encoder.alibi_scale), 0)  # (1 or num_layers, 1, 1 or num_alibi_heads, 1, 1)
    slopes[:, :, :num_alibi_heads] = array(bias)[:, :, :1, 1:] * scales  # the bias of a distance of 1
    return list(slopes)


def _transformer(graph: Graph, rows: str, module: Any) -> str:
    """All layers: rows (1, n, width) -> rows (1, n, width).

    Only keys and values are computed for all rows at once; all else for a block of them at a time. Blocks have equal sizes, at most
    ``_BLOCK_ROWS``; rows of zeros fill up the last one.
    """
    encoder = module.modality_encoders["AUDIO"]
    num_extra = 0 if encoder.extra_tokens is None else encoder.extra_tokens.shape[1]
    layers = [*encoder.context_encoder.blocks, *module.blocks]
    width = layers[0].attn.qkv.in_features

    one, num_rows = graph.integers(1), graph.node("Shape", rows, start=1, end=2)
    num_blocks = graph.node("Div", graph.node("Add", num_rows, graph.integers(_BLOCK_ROWS - 1)), graph.integers(_BLOCK_ROWS))
    size = graph.node("Div", graph.node("Sub", graph.node("Add", num_rows, num_blocks), one), num_blocks)
    num_padded = graph.node("Mul", num_blocks, size)
    padding = graph.node("Concat", graph.integers(0, 0, 0, 0), graph.node("Sub", num_padded, num_rows), graph.integers(0), axis=0)
    shape = graph.node("Concat", num_blocks, one, size, graph.integers(width), axis=0)
    blocks = graph.node("Reshape", graph.node("Pad", rows, padding), shape)
    shape = graph.node("Concat", num_blocks, graph.integers(1, 1), size, one, axis=0)
    places = graph.node("Reshape", _range(graph, 0, num_padded), shape)

    for layer, slopes in zip(layers, _slopes(encoder, len(layers), layers[0].attn.num_heads), strict=True):
        biases = _Biases(graph, num_extra, num_rows, graph.weight(slopes))
        blocks = _layer(graph, rows, blocks, places, layer=layer, biases=biases)
        rows = _rows(graph, graph.node("Reshape", blocks, graph.integers(1, -1, width)), 0, num_rows)
    return rows


@dataclass(frozen=True, slots=True)
class _Biases:
    """What the products of queries and keys get added: the farther away a key is, the less a head attends to it."""

    graph: Graph
    num_extra: int
    """Extra tokens stand before the frames, at no distance from anything."""
    num_rows: str
    slopes: str
    """(1, num_heads, 1, 1), below 0."""

    def of(self, places: str) -> str:
        """(1, num_heads, size, n), of the queries at ``places``, (1, 1, size, 1)."""
        graph = self.graph
        distances = graph.node("Abs", graph.node("Sub", places, _range(graph, self.num_extra, self.num_rows)))
        distances = graph.node("Pad", distances, graph.integers(0, 0, 0, self.num_extra, 0, 0, 0, 0))
        is_frame = graph.node("Cast", graph.node("GreaterOrEqual", places, _number(graph, self.num_extra)), to=TensorProto.FLOAT)
        return graph.node("Mul", distances, graph.node("Mul", is_frame, self.slopes))


def _layer(graph: Graph, rows: str, blocks: str, places: str, *, layer: Any, biases: _Biases) -> str:
    """Self-attention, then two linear layers; the input of each is added to its result, and the sum is normalized.

    Args:
        graph: receives the nodes.
        rows: (1, n, width), what is attended to.
        blocks: (num_blocks, 1, size, width), the same, and rows that fill up.
        places: (num_blocks, 1, 1, size, 1), of the blocks' rows among all.
        layer: ``AltBlock``.
        biases: of attention.
    """
    attention = layer.attn
    num_heads, width = attention.num_heads, attention.qkv.in_features
    weight = array(attention.qkv.weight)
    bias = np.zeros(3 * width, np.float32) if attention.qkv.bias is None else array(attention.qkv.bias)
    others = graph.linear(rows, weight[width:], bias[width:])
    others = graph.node("Reshape", others, graph.integers(1, -1, 2 * num_heads, width // num_heads))
    others = graph.node("Transpose", others, perm=[0, 2, 1, 3])
    key, value = graph.nodes("Split", others, graph.integers(num_heads, num_heads), num_outputs=2, axis=1)

    def of_block(rows: str, places: str) -> str:
        query = graph.linear(rows, weight[:width], bias[:width])
        inputs = [query, key, value, "", "", biases.of(places)]
        attended = graph.microsoft("MultiHeadAttention", *inputs, num_heads=num_heads, scale=float(attention.scale))
        rows = _layer_norm(graph, graph.node("Add", rows, linear(graph, attended, attention.proj)), layer.norm1)
        inner = graph.microsoft("Gelu", linear(graph, rows, layer.mlp.fc1))
        return _layer_norm(graph, graph.node("Add", rows, linear(graph, inner, layer.mlp.fc2)), layer.norm2)

    return graph.each(of_block, blocks, places)


def _layer_norm(graph: Graph, rows: str, layer: Any) -> str:
    """``torch.nn.LayerNorm`` over the last dimension, with or without weights."""
    require(type(layer).__name__ in ("LayerNorm", "Fp32LayerNorm"), f"the normalization {type(layer).__name__}")
    (width,) = layer.normalized_shape
    weights = [np.ones(width, np.float32)] if layer.weight is None else [array(layer.weight), array(layer.bias)]
    return graph.node("LayerNormalization", rows, *(graph.weight(each) for each in weights), axis=-1, epsilon=layer.eps)


def _rows(graph: Graph, rows: str, start: int, end: str | None) -> str:
    """Rows of (1, t, width) from one to another, or to the last."""
    return graph.node("Slice", rows, graph.integers(start), end or graph.integers(_END), graph.integers(1))


def _number(graph: Graph, value: float) -> str:
    return graph.weight(np.array(value, np.float32))


def _range(graph: Graph, start: int, end: str) -> str:
    """The numbers from ``start`` to before ``end``, which is a vector of one, as float32."""
    first, step = (graph.weight(np.array(value, np.int64)) for value in (start, 1))
    return graph.node("Cast", graph.node("Range", first, graph.node("Squeeze", end, graph.integers(0)), step), to=TensorProto.FLOAT)
