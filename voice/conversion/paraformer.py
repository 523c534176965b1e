"""``ParaformerStreaming`` as two ONNX graphs: a step of the encoder with the predictor, and a step of the decoder.

A loaded FunASR module -> ``encoder.onnx``, ``decoder.onnx``. What the module keeps in caches between chunks are inputs and outputs of the
graphs, one pair for each layer, so that nothing is copied to hand them on. The arithmetic is that of FunASR's ``forward_chunk`` (SAN-M
layers: Gao et al. 2020; Paraformer: Gao et al. 2022). Raises ``Unconvertible`` for a variant that the published models do not use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from voice.audio import SAMPLE_RATE_HZ
from voice.conversion.graph import Graph, Precision
from voice.conversion.layers import Unconvertible, array, depthwise, feed_forward, layer_norm, linear, require, sanm_layer
from voice.models.funasr_model import FunasrModel

__all__ = ["Unconvertible", "convert_paraformer"]


def convert_paraformer(module: Any, directory: Path, precision: Precision) -> None:
    """Write both graphs.

    Args:
        module: ``ParaformerStreaming``, its weights loaded.
        directory: exists; receives the files.
        precision: of the weights of linear layers; the first projection, the predictor and the output layer stay in float32.

    Raises:
        Unconvertible: the module has a part that the graphs cannot express.
        OSError: a file cannot be written.
    """
    attentions = [layer.self_attn for layer in (*module.encoder.encoders0, *module.encoder.encoders)]
    require(all(max(each.pad_fn.padding) < each.fsmn_block.kernel_size[0] for each in attentions), "a convolution of another kind")
    require(not any(layer.self_attn.pad_fn.padding[1] for layer in module.decoder.decoders), "a decoder that looks ahead")
    _write_encoder(module, directory, precision)
    _write_decoder(module, directory, precision)


def _write_encoder(module: Any, directory: Path, precision: Precision) -> None:
    """Inputs: frames (1, t, input_size), with positions; for each layer the keys and values (1, past, width) of frames before them.

    Outputs: hidden (1, t, width), alphas (1, t), and for each layer the keys and values (1, past + t, width).
    """
    encoder = module.encoder
    width = encoder.output_size()
    layers = [*encoder.encoders0, *encoder.encoders]
    require(encoder.normalize_before, "an encoder that normalizes after its layers")
    require(type(encoder.embed).__name__ in ("StreamSinusoidalPositionEncoder", "RememberedPositions"), "another encoding of positions")
    graph = Graph(directory, "encoder", precision)
    rows = graph.input("frames", (1, "t", layers[0].in_size))
    for index, layer in enumerate(layers):
        require(not layer.concat_after and layer.normalize_before, "an encoder layer of another kind")
        past = [graph.input(f"{name}_{index}", (1, "past", width)) for name in ("keys", "values")]
        # What the first layer makes of the features all others work with: in one byte it costs half of the tokens that change.
        rows, present = sanm_layer(graph, layer, rows, past, precision="float32" if index == 0 else None)
        for name, value in zip(("keys", "values"), present, strict=True):
            graph.output(value, f"next_{name}_{index}", (1, "all", width))
    hidden = layer_norm(graph, rows, encoder.after_norm)
    graph.output(hidden, "hidden", (1, "t", width))
    graph.output(_alphas(graph, hidden, module.predictor), "alphas", (1, "t"))
    graph.close()


def _alphas(graph: Graph, hidden: str, predictor: Any) -> str:
    """The weights of continuous integrate-and-fire: convolution over time, one number for each frame."""
    convolution = predictor.cif_conv1d
    channels_first = graph.node("Transpose", hidden, perm=[0, 2, 1])
    weights = [graph.weight(array(convolution.weight)), graph.weight(array(convolution.bias))]
    mixed = graph.node("Relu", graph.node("Conv", channels_first, *weights, pads=list(predictor.pad.padding)))
    mixed = graph.node("Transpose", mixed, perm=[0, 2, 1])
    weight = linear(graph, mixed, predictor.cif_output, precision="float32")
    alphas = graph.node("Squeeze", graph.node("Sigmoid", weight), graph.integers(2))
    if predictor.smooth_factor != 1:
        alphas = graph.node("Mul", alphas, graph.weight(np.array(predictor.smooth_factor, np.float32)))
    if predictor.noise_threshold != 0:
        alphas = graph.node("Sub", alphas, graph.weight(np.array(predictor.noise_threshold, np.float32)))
    return graph.node("Relu", alphas)


def _write_decoder(module: Any, directory: Path, precision: Precision) -> None:
    """Inputs: hidden (1, t, width); embeddings (1, n, width); scale, a number that multiplies the logits; for each layer its memory.

    A layer's memory: tokens (1, kernel - 1, width), the last inputs of its convolution; keys and values (1, past, width).
    Outputs: log_posteriors (1, n, vocabulary); for each layer tokens (1, kernel - 1 + n, width), keys and values (1, past + t, width).
    """
    decoder = module.decoder
    width = module.encoder.output_size()
    require(decoder.normalize_before and decoder.output_layer is not None, "a decoder of another kind")
    graph = Graph(directory, "decoder", precision)
    hidden = graph.input("hidden", (1, "t", width))
    rows = graph.input("embeddings", (1, "n", width))
    scale = graph.input("scale", ())
    layers = list(decoder.decoders)[: decoder.att_layer_num]
    if decoder.num_blocks - decoder.att_layer_num > 1:  # as FunASR's forward_chunk decides
        layers += list(decoder.decoders2)
    for index, layer in enumerate(layers):
        rows = _decoder_layer(graph, layer, index, rows, hidden)
    for layer in decoder.decoders3:
        # A layer without attention returns what its feed-forward part computes, without a residual.
        rows = feed_forward(graph, layer_norm(graph, rows, layer.norm1), layer.feed_forward)
    logits = linear(graph, layer_norm(graph, rows, decoder.after_norm), decoder.output_layer, precision="float32")
    graph.output(graph.node("LogSoftmax", graph.node("Mul", logits, scale), axis=-1), "log_posteriors", (1, "n", "vocabulary"))
    graph.close()


def _decoder_layer(graph: Graph, layer: Any, index: int, rows: str, hidden: str) -> str:
    """Feed-forward, a causal convolution over the tokens, then attention to the encoder's frames, where the layer has it."""
    require(not layer.concat_after and layer.normalize_before and layer.self_attn is not None, "a decoder layer of another kind")
    convolution, width = layer.self_attn.fsmn_block, layer.size
    forwarded = feed_forward(graph, layer_norm(graph, rows, layer.norm1), layer.feed_forward)
    tokens = layer_norm(graph, forwarded, layer.norm2)
    past_tokens = graph.input(f"tokens_{index}", (1, layer.self_attn.kernel_size - 1, width))
    all_tokens = graph.node("Concat", past_tokens, tokens, axis=1)
    graph.output(all_tokens, f"next_tokens_{index}", (1, "all_tokens", width))
    convolved = depthwise(graph, all_tokens, convolution, (0, 0), add_input=False)
    rows = graph.node("Add", rows, graph.node("Add", convolved, tokens))
    attention = layer.src_attn
    if attention is None:
        return rows
    query = linear(graph, layer_norm(graph, rows, layer.norm3), attention.linear_q, kind="normalized")
    inner = attention.h * attention.d_k
    projected = linear(graph, hidden, attention.linear_k_v, kind="normalized")
    new = graph.nodes("Split", projected, graph.integers(inner, inner), num_outputs=2, axis=2)
    present = []
    for name, value in zip(("keys", "values"), new, strict=True):
        past = graph.input(f"{name}_{index}", (1, "past", inner))
        present.append(graph.node("Concat", past, value, axis=1))
        graph.output(present[-1], f"next_{name}_{index}", (1, "all", inner))
    attended = graph.microsoft("MultiHeadAttention", query, *present, num_heads=attention.h)
    return graph.node("Add", rows, linear(graph, attended, attention.linear_out))


def paraformer_settings(model: FunasrModel) -> dict[str, Any]:
    """What the service needs beside the graphs and the model's own vocabulary and am.mvn, as JSON.

    Raises:
        Unconvertible: features that are computed in another way.
    """
    module, frontend = model.module, model.frontend
    require(type(frontend).__name__ == "WavFrontendOnline" and frontend.fs == SAMPLE_RATE_HZ, "features of another kind")
    require(frontend.upsacle_samples and frontend.snip_edges, "features of another scale or edge")
    return {
        "silent_ids": sorted({module.sos, module.eos, module.blank_id}),
        "threshold": float(module.predictor.threshold),
        "tail_weight": float(module.predictor.tail_threshold),
        "width": module.encoder.output_size(),
        "features": {
            "num_mel_bins": frontend.n_mels,
            "frame_length_ms": frontend.frame_length,
            "frame_shift_ms": frontend.frame_shift,
            "window": frontend.window,
            "lfr_m": frontend.lfr_m,
            "lfr_n": frontend.lfr_n,
        },
    }
