"""Kokoro-82M on the CPU in three graphs: what needs f32 stays in ONNX Runtime, the decoder's convolutions run in OpenVINO, in bf16 on AMX.

- prosody: tokens, style, speed -> the decoder's inputs (text features, pitch, energy, harmonic source); kokoro.onnx's own nodes.
- decoder: those -> log-magnitudes and phases; kokoro.onnx's weights as floats, its normalizations and sin^2 rewritten for OpenVINO.
- waveform: log-magnitudes and phases -> samples; unchanged as well.

`prepare` needs onnx and numpy; `FastKokoro` needs numpy, onnxruntime and openvino.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

_GENERATOR = "/decoder/decoder/generator"
_FRAMED = {  # the decoder's inputs that have frames -> channels, entries a frame
    "/encoder/MatMul_1_output_0": (512, 1),
    "/decoder/decoder/Unsqueeze_output_0": (1, 2),
    "/decoder/decoder/Unsqueeze_1_output_0": (1, 2),
    f"{_GENERATOR}/Concat_3_output_0": (22, 120),
}
_STYLE = "/decoder/Slice_output_0"
_SPECTRUM = f"{_GENERATOR}/conv_post/Conv_output_0"
_SAMPLES_PER_FRAME = 600
_EPSILON = 1e-5  # of every normalization


class _DecoderNodes:
    """kokoro.onnx's nodes by their outputs, as they are (exact) and rewritten for OpenVINO (made_by); some are then unused."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        from onnx import numpy_helper

        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.exact = {output: node for node in graph.node for output in node.output}
        self._used_by: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._used_by.setdefault(name, []).append(node)
        self.made_by = dict(self.exact)
        for node in graph.node:
            if node.op_type in ("ConvInteger", "MatMulInteger") and node.input[1] in self.constants:
                self._dequantize(node)
            elif node.op_type == "Div" and self._kind(node.input[0]) == "Sub" and self._kind(node.input[1]) == "Sqrt":
                self._normalize(node)
            elif node.op_type == "Pow" and self._kind(node.input[0]) == "Sin":
                self._square_sine(node)

    def _kind(self, name: str) -> str:
        return self.exact[name].op_type if name in self.exact else ""

    def _constant(self, name: str, value: np.ndarray | float) -> str:
        self.constants[name] = np.asarray(value, np.float32)
        return name

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        from onnx import helper

        self.made_by[output] = helper.make_node(kind, inputs, [output], **attributes)
        return output

    def _dequantize(self, node: onnx.NodeProto) -> None:
        """Quantize -> integer product [-> + bias quantized] -> cast -> * scales  =>  float product [+ bias]."""
        from onnx import helper

        bias, (user,) = None, self._used_by[node.output[0]]
        if user.op_type == "Add":
            quantized = self.exact[user.input[1]]
            while quantized.op_type != "Div":
                quantized = self.exact[quantized.input[0]]
            bias, (user,) = quantized.input[0], self._used_by[user.output[0]]
        (scaled,) = self._used_by[user.output[0]]
        scale = self.constants[self.exact[scaled.input[1]].input[1]]
        zero = self.constants[node.input[3]].astype(np.float32) if len(node.input) > 3 else np.float32(0)
        weight = self._constant(f"{node.input[1]}_float", (self.constants[node.input[1]].astype(np.float32) - zero) * scale)
        source, output = self.exact[node.input[0]].input[0], scaled.output[0]
        if node.op_type == "MatMulInteger":
            self._add("MatMul", [source, weight], output)
        else:
            attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            self._add("Conv", [source, weight, *([bias] if bias else [])], output, **attributes)

    def _normalize(self, node: onnx.NodeProto) -> None:
        """(x - mean) / sqrt(variance + epsilon)  =>  instance normalization, its scale 1 and offset 0."""
        bias = self.constants.get(node.name.rpartition("/")[0].strip("/").replace("/", ".") + ".fc.bias")  # of the style's projection
        if bias is not None:
            channels = len(bias) // 2
            one, zero = self._constant(f"ones_{channels}", np.ones(channels)), self._constant(f"zeros_{channels}", np.zeros(channels))
            signal = self.exact[node.input[0]].input[0]
            self._add("InstanceNormalization", [signal, one, zero], node.output[0], epsilon=_EPSILON)

    def _square_sine(self, node: onnx.NodeProto) -> None:
        """sin(a x)^2  =>  a chain of functions of one variable, which OpenVINO runs in one pass; max. error 4e-5.

        1 - cos(pi r)^2, where r is a x / pi without its whole part; the cosine of pi r / 8 by its series, then doubled three times.
        """
        scaled = self.exact[self.exact[node.input[0]].input[0]]
        output = node.output[0]
        turns = self._constant(f"{output}_frequency", self.constants[scaled.input[0]] / np.pi)
        value = self._add("Mul", [scaled.input[1], turns], f"{output}_turns")
        value = self._add("Mod", [value, self._constant("one_turn", 1)], f"{output}_part", fmod=1)
        unit = (np.pi / 8) ** 2  # cos = (y^2 - 12 y + 24) / 24 = ((y - 6)^2 - 12) / 24, y = unit r^2
        steps = ((1, 0), (unit, -6), (1 / 24, -0.5), (2, -1), (2, -1), (2, -1))
        for number, (factor, offset) in enumerate(steps):
            if (factor, offset) != (1, 0):
                value = self._add("Mul", [value, self._constant(f"factor_{number}", factor)], f"{output}_multiplied_{number}")
                value = self._add("Add", [value, self._constant(f"offset_{number}", offset)], f"{output}_added_{number}")
            value = self._add("Pow", [value, self._constant("two", 2)], f"{output}_squared_{number}")
        value = self._add("Mul", [value, self._constant("minus_one", -1)], f"{output}_negative")
        self._add("Add", [value, self._constant("plus_one", 1)], output)


def _widen(model: onnx.ModelProto) -> None:
    """Make signals (1, channels, frames) images (1, channels, 1, frames): OpenVINO keeps those in the layout its convolutions want."""
    from onnx import numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}

    def replace(node: onnx.NodeProto, index: int, value: np.ndarray) -> None:
        name = f"{node.input[index]}_wide"
        if name not in constants:
            constants[name] = numpy_helper.from_array(value, name)
            graph.initializer.append(constants[name])
        node.input[index] = name

    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            replace(node, 1, numpy_helper.to_array(constants[node.input[1]])[:, :, None])
            for attribute in node.attribute:
                first = {"kernel_shape": 1, "strides": 1, "dilations": 1, "pads": 0, "output_padding": 0}.get(attribute.name)
                if first is not None:
                    values = [part for value in attribute.ints for part in (first, value)]
                    attribute.ints[:] = [0, values[1], 0, values[3]] if attribute.name == "pads" else values
        elif node.op_type == "Unsqueeze":
            replace(node, 1, np.array([2, 3]))
        elif node.op_type in ("Resize", "Pad"):
            index = 2 if node.op_type == "Resize" else 1
            neutral = 1 if node.op_type == "Resize" else 0
            replace(node, index, np.insert(numpy_helper.to_array(constants[node.input[index]]).reshape(-1, 3), 2, neutral, axis=1).ravel())
        elif node.op_type in ("Mul", "Add"):
            for index, name in enumerate(node.input):
                if name in constants and len(constants[name].dims) == 3:
                    replace(node, index, numpy_helper.to_array(constants[name])[:, :, None])
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _subgraph(
    model: onnx.ModelProto,
    made_by: dict[str, onnx.NodeProto],
    constants: dict[str, np.ndarray],
    inputs: dict[str, list[int | None]],
    outputs: list[str],
) -> onnx.ModelProto:
    """The nodes between inputs (name -> shape) and outputs."""
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[onnx.NodeProto] = []
    used: dict[str, onnx.TensorProto] = {}
    done = set(inputs)

    def visit(name: str) -> None:
        if name in constants:
            used[name] = numpy_helper.from_array(constants[name], name)
        elif name and name not in done:
            node = made_by[name]
            done.update(node.output)
            for source in node.input:
                visit(source)
            nodes.append(node)

    for name in outputs:
        visit(name)
    kinds = {"tokens": TensorProto.INT64}
    graph = helper.make_graph(
        nodes,
        "kokoro",
        [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        list(used.values()),
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def prepare(source: Path, folder: Path) -> None:
    """Write prosody.onnx, decoder.onnx and waveform.onnx, made of kokoro.onnx, to a folder."""
    import sys

    import onnx

    sys.setrecursionlimit(20_000)
    model = onnx.load(str(source))
    decoder = _DecoderNodes(model.graph)
    images: dict[str, list[int | None]] = {name: [1, channels, 1, None] for name, (channels, _) in _FRAMED.items()}
    pieces: dict[str, tuple[dict[str, onnx.NodeProto], dict[str, list[int | None]], list[str]]] = {
        "prosody": (decoder.exact, {"tokens": [1, None], "style": [1, 256], "speed": [1]}, [*_FRAMED, _STYLE]),
        "decoder": (
            decoder.made_by,
            {**images, _STYLE: [1, 128]},
            [_SPECTRUM],
        ),
        "waveform": (decoder.exact, {_SPECTRUM: [1, 22, None]}, ["audio"]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, (made_by, inputs, outputs) in pieces.items():
        piece = _subgraph(model, made_by, decoder.constants, inputs, outputs)
        if name == "decoder":
            _widen(piece)
        onnx.save(piece, str(folder / f"{name}.onnx"))


class FastKokoro:
    """The three graphs one after the other; bf16 where the CPU has AMX for it.

    OpenVINO makes its kernels for every new length, some 0.3 s, and keeps them, some 12 MB. Hence lengths are rounded up to frames_step
    frames of 25 ms, the last frame repeated and the audio cut.
    """

    def __init__(self, folder: Path, threads: int = 1, *, frames_step: int = 4, precision: str | None = None) -> None:
        import onnxruntime
        import openvino

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._prosody, self._waveform = (
            onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
            for name in ("prosody", "waveform")
        )
        if precision is None:
            precision = "bf16" if "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf8") else "f32"
        core = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
            "NUM_STREAMS": 1,
            "CPU_RUNTIME_CACHE_CAPACITY": 100_000,
        }
        self._decoder = core.compile_model(core.read_model(str(folder / "decoder.onnx")), "CPU", settings).create_infer_request()
        self._frames_step = frames_step

    def __call__(self, tokens: np.ndarray, style: np.ndarray, speed: np.ndarray) -> np.ndarray:
        """Tokens (1, n), style (1, 256), speed (1,) -> samples at 24 kHz."""
        names = [*_FRAMED, _STYLE]
        inputs = dict(zip(names, self._prosody.run(names, {"tokens": tokens, "style": style, "speed": speed}), strict=True))
        frames = inputs[names[0]].shape[2]
        padding = -frames % self._frames_step
        for name, (_, entries) in _FRAMED.items():
            inputs[name] = np.pad(inputs[name], ((0, 0), (0, 0), (0, padding * entries)), mode="edge")[:, :, None]
        spectrum = self._decoder.infer(inputs)[0]
        (audio,) = self._waveform.run(["audio"], {_SPECTRUM: spectrum[:, :, 0]})
        return audio[: frames * _SAMPLES_PER_FRAME]
