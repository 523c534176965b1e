"""``CTTransformer`` as an ONNX graph: the network alone, without FunASR's loop around it.

A loaded FunASR module -> ``punctuation.onnx`` and ``punctuation.weights``. The arithmetic is that of FunASR's ``punc_forward`` (SAN-M
layers: Gao et al. 2020; CT-Transformer: Chen et al. 2020). ``voice/finalization/punctuation.py`` runs it. No state. Raises
``Unconvertible`` for a variant that the published models do not use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from voice.conversion.graph import Graph, Precision
from voice.conversion.layers import Unconvertible, array, layer_norm, linear, require, sanm_layer

__all__ = ["Unconvertible", "convert_punctuation", "punctuation_settings"]

_LONGEST_PERIOD = 10_000.0
_INT8_STEPS = 127
_BLOCK_ROWS = 16_384
"""Of the table, quantized at a time: the whole table in float32 has up to 1 GB."""


def convert_punctuation(module: Any, directory: Path, precision: Precision) -> None:
    """Write the graph.

    Input: words (1, n), ids as int64. Output: logits (1, n, num_marks), float32.

    Args:
        module: ``CTTransformer``, its weights loaded, on the CPU.
        directory: exists; receives the files.
        precision: of the weights of linear layers and of the word embeddings; the last layer stays in float32.

    Raises:
        Unconvertible: the module has a part that the graph cannot express.
        OSError: a file cannot be written.
    """
    encoder = module.encoder
    _check(module)
    layers = [*encoder.encoders0, *encoder.encoders]
    graph = Graph(directory, "punctuation", precision)
    words = graph.input("words", (1, "n"), np.int64)
    embeddings = _embeddings(graph, words, array(module.embed.weight), encoder.output_size() ** 0.5, precision)
    rows = graph.node("Add", embeddings, _positions(graph, words, module.embed.embedding_dim))
    for layer in layers:
        rows, _ = sanm_layer(graph, layer, rows)
    logits = linear(graph, layer_norm(graph, rows, encoder.after_norm), module.decoder, precision="float32")
    graph.output(logits, "logits", (1, "n", module.decoder.out_features))
    graph.close()


def punctuation_settings(module: Any) -> dict[str, Any]:
    """What the service needs to know beside the graph and the vocabulary; can be written as JSON.

    Args:
        module: ``CTTransformer``.

    Returns:
        ``marks``: the marks, index = column of the logits. ``sentence_end_id``: the one that ends a text without an end.
        ``num_words``: rows of the table of embeddings; the vocabulary must have as many.

    Raises:
        Unconvertible: the module's marks do not fit its last layer.
    """
    marks, end = [str(mark) for mark in module.punc_list], int(module.sentence_end_id)
    require(len(marks) == module.decoder.out_features, f"{len(marks)} marks for {module.decoder.out_features} outputs")
    require(0 <= end < len(marks), f"the sentence_end_id {end}, but {len(marks)} marks")
    return {"marks": marks, "sentence_end_id": end, "num_words": int(module.embed.num_embeddings)}


def _check(module: Any) -> None:
    """Raise ``Unconvertible`` where the module computes anything else than the graph."""
    encoder, embedding = module.encoder, module.embed
    require(type(encoder).__name__ == "SANMEncoder", f"the encoder {type(encoder).__name__}")
    require(type(encoder.embed).__name__ == "SinusoidalPositionEncoder", "another encoding of positions")
    require(encoder.normalize_before, "an encoder that normalizes after its layers")
    require(not encoder.interctc_layer_idx, "outputs in the middle of its encoder")
    require(embedding.max_norm is None, "embeddings that are normalized when they are read")
    width = embedding.embedding_dim
    require(width % 2 == 0 and width > 2, f"embeddings of width {width}")
    for layer in (*encoder.encoders0, *encoder.encoders):
        attention, forward = layer.self_attn, layer.feed_forward
        require(layer.normalize_before and not layer.concat_after, "an encoder layer of another kind")
        require(type(attention).__name__ == "MultiHeadedAttentionSANM", f"the attention {type(attention).__name__}")
        require(type(forward).__name__ == "PositionwiseFeedForward", f"the feed-forward part {type(forward).__name__}")
        require(type(forward.activation).__name__ == "ReLU", f"the activation {type(forward.activation).__name__}")
        kinds = {type(each).__name__ for each in (attention.linear_q_k_v, attention.linear_out, forward.w_1, forward.w_2)}
        require(kinds == {"Linear"}, "linear layers of another kind")
        require(min(attention.pad_fn.padding) >= 0, "a convolution shifted by more than its width")


def _embeddings(graph: Graph, words: str, table: NDArray[np.float32], factor: float, precision: Precision) -> str:
    """The words' rows of the table, times a factor, (1, n, width). ONNX Runtime maps the table and reads only these rows.

    int8: each row is rounded to multiples of a 127th of its largest value.
    """
    if precision == "float32":
        rows = graph.node("Gather", graph.weight(table), words)
        return graph.node("Mul", rows, graph.weight(np.array(factor, np.float32)))
    quantized = np.empty(table.shape, np.int8)
    scales = np.empty((len(table), 1), np.float32)
    for start in range(0, len(table), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        scales[block] = np.maximum(np.abs(table[block]).max(axis=1, keepdims=True) / _INT8_STEPS, np.finfo(np.float32).tiny)
        quantized[block] = np.rint(table[block] / scales[block])
    rows = graph.node("Cast", graph.node("Gather", graph.weight(quantized), words), to=TensorProto.FLOAT)
    return graph.node("Mul", rows, graph.node("Gather", graph.weight(scales * np.float32(factor)), words))


def _positions(graph: Graph, words: str, width: int) -> str:
    """Sinusoidal encodings of the positions 1 to n, (n, width): sines before cosines, as FunASR lays them out."""
    rate = np.float32(np.log(np.float32(_LONGEST_PERIOD)) / np.float32(width / 2 - 1))
    timescales = np.exp(np.arange(width // 2, dtype=np.float32) * -rate)
    one = graph.weight(np.array(1, np.int64))
    num_words = graph.node("Squeeze", graph.node("Shape", words, start=1))
    positions = graph.node("Range", one, graph.node("Add", num_words, one), one)
    column = graph.node("Reshape", graph.node("Cast", positions, to=TensorProto.FLOAT), graph.integers(-1, 1))
    angles = graph.node("Mul", column, graph.weight(timescales))
    return graph.node("Concat", graph.node("Sin", angles), graph.node("Cos", angles), axis=1)
