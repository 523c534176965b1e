"""One recogniser in a process of its own, which recognises what speed.py asks for, when it asks for it.

    python contender.py NAME --model-dir DIR --export DIR --audio FILE.npy --threads 1

It answers on stdout, one JSON object a line: once when it has loaded, or with ``error``, then for each line ``START END`` on stdin (samples
of the audio, which is repeated without end) when it has recognised these as one utterance. What libraries print goes to stderr. It runs in
the service's environment or in the peers': each recogniser imports what it needs.
"""

from __future__ import annotations

import time

_STARTED = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import traceback  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from results import REPOSITORY, memory_mb  # noqa: E402

Samples = NDArray[np.float32]
Recognize = Callable[[Samples], Iterator[None]]
"""Recognises an utterance; returns control after each 600 ms of it, and at its end."""

SAMPLE_RATE_HZ = 16_000
CHUNK_SAMPLES = 9_600
CHUNK_SIZE, LOOK_BACKS = (0, 10, 5), (4, 1)
FEED_SAMPLES = 512
"""What our pipeline feeds: one window of the voice activity model."""
PREVIEW_MS = 200


@dataclass(frozen=True, slots=True)
class Request:
    """What a contender is made of."""

    model: Path
    """FunASR's directory."""
    export: Path
    """The same weights for funasr-onnx and sherpa-onnx."""
    num_threads: int


def main() -> None:
    """Load, then recognise on demand."""
    wire = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--export", type=Path, required=True)
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    def answer(content: dict[str, Any]) -> None:
        wire.write(json.dumps(content) + "\n")
        wire.flush()

    audio = np.load(arguments.audio)
    try:
        recognize = CONTENDERS[arguments.name](Request(arguments.model_dir, arguments.export, arguments.threads))
        answer({"load_sec": time.perf_counter() - _STARTED, **memory_mb(os.getpid())})
        for line in sys.stdin:
            start, end = map(int, line.split())
            answer(measure(recognize, np.take(audio, range(start, end), mode="wrap")))
    except Exception as error:  # noqa: BLE001 -- whatever keeps a peer from working is quoted
        traceback.print_exc()
        answer({"error": f"{type(error).__name__}: {error}"})


def measure(recognize: Recognize, samples: Samples) -> dict[str, Any]:
    """Recognise once: the time of each piece and of all, the processor's time, the memory afterwards."""
    pieces = []
    computed = time.process_time()
    began = last = time.perf_counter()
    for _ in recognize(samples):
        now = time.perf_counter()
        pieces.append(now - last)
        last = now
    return {"pieces_sec": pieces, "sec": last - began, "cpu_sec": time.process_time() - computed, **memory_mb(os.getpid())}


def funasr(request: Request) -> Recognize:
    """The loop of FunASR's documentation, dither off as ours."""
    sys.path.insert(0, str(REPOSITORY))
    from voice.models.torch_setup import limit_spinning, prepare_imports

    limit_spinning()
    prepare_imports()
    import funasr.frontends.wav_frontend
    import funasr.models.paraformer.cif_predictor
    import funasr.models.paraformer.decoder
    import funasr.models.paraformer_streaming.model
    import funasr.models.scama.encoder
    import funasr.tokenizer.char_tokenizer  # noqa: F401
    from funasr.auto.auto_model import AutoModel

    model = AutoModel(model=str(request.model), device="cpu", ncpu=request.num_threads, disable_update=True, disable_pbar=True)
    model.kwargs["frontend"].dither = 0.0
    options = {"chunk_size": list(CHUNK_SIZE), "encoder_chunk_look_back": LOOK_BACKS[0], "decoder_chunk_look_back": LOOK_BACKS[1]}

    def recognize(samples: Samples) -> Iterator[None]:
        cache: dict[str, Any] = {}
        for start in range(0, len(samples), CHUNK_SAMPLES):
            end = start + CHUNK_SAMPLES
            model.generate(input=samples[start:end], cache=cache, is_final=end >= len(samples), **options)
            yield

    return recognize


def on_torch(mode: str = "streaming", preview_ms: int = 0) -> Callable[[Request], Recognize]:
    """Ours, on torch as the service accelerates it."""

    def load(request: Request) -> Recognize:
        sys.path.insert(0, str(REPOSITORY))
        from voice.models.torch_setup import limit_spinning, set_num_threads

        limit_spinning()
        from voice.models.loader import load_model
        from voice.recognition.torch_engine import TorchEngine

        engine = TorchEngine(load_model(request.model, "ParaformerStreaming", "cpu"))
        set_num_threads(request.num_threads)
        return ours(engine, mode, preview_ms)

    return load


def on_onnx(mode: str = "streaming", preview_ms: int = 0) -> Callable[[Request], Recognize]:
    """Ours, on ONNX Runtime. The model was converted before."""

    def load(request: Request) -> Recognize:
        sys.path.insert(0, str(REPOSITORY))
        from voice.models.converted import find_conversion, load_converted
        from voice.models.directory import describe_model
        from voice.recognition.onnx_engine import OnnxEngine

        graphs = find_conversion(request.model, describe_model(request.model, "ParaformerStreaming"))
        if graphs is None:
            raise FileNotFoundError(f"{request.model} is not converted")
        return ours(OnnxEngine(load_converted(graphs, request.model, request.num_threads)), mode, preview_ms)

    return load


def ours(engine: Any, mode: str, preview_ms: int) -> Recognize:
    """An engine as the pipeline drives it: a hypothesis is asked for after each decode."""
    from voice.build import build_recognizer
    from voice.config import load_settings
    from voice.recognition.hotwords import HotwordGraphs

    settings = load_settings({"streaming": {"partial_interval_ms": preview_ms}}, environment={})
    recognizer = build_recognizer(settings, mode, engine, HotwordGraphs(lambda: (), engine.vocabulary.tokens))

    def recognize(samples: Samples) -> Iterator[None]:
        stream = recognizer.create_stream(0)
        due = CHUNK_SAMPLES
        for start in range(0, len(samples), FEED_SAMPLES):
            if stream.accept(samples[start : start + FEED_SAMPLES]) or stream.preview():
                stream.hypothesis()
            if start + FEED_SAMPLES >= due and due < len(samples):
                due += CHUNK_SAMPLES
                yield
        stream.finish()
        yield

    return recognize


def funasr_onnx(chunk_size: tuple[int, int, int]) -> Callable[[Request], Recognize]:
    """FunASR's package for its own int8 export. It has no look-back: what a chunk knows of earlier audio is its left context."""

    def load(request: Request) -> Recognize:
        from funasr_onnx.paraformer_online_bin import Paraformer

        model = Paraformer(str(request.export), quantize=True, chunk_size=list(chunk_size), intra_op_num_threads=request.num_threads)

        def recognize(samples: Samples) -> Iterator[None]:
            cache: dict[str, Any] = {}
            for start in range(0, len(samples), CHUNK_SAMPLES):
                end = start + CHUNK_SAMPLES
                model(audio_in=samples[start:end], param_dict={"cache": cache, "is_final": end >= len(samples)})
                yield

        return recognize

    return load


def sherpa_onnx(request: Request) -> Recognize:
    """sherpa-onnx: chunks of 600 ms after 5 frames of left context and before 3 of look-ahead, fixed in its code, and no look-back."""
    from sherpa_onnx import OnlineRecognizer

    recognizer = OnlineRecognizer.from_paraformer(
        tokens=str(request.export / "tokens.txt"),
        encoder=str(request.export / "encoder.int8.onnx"),
        decoder=str(request.export / "decoder_quant.onnx"),
        num_threads=request.num_threads,
    )

    def decode(stream: Any) -> None:
        while recognizer.is_ready(stream):
            recognizer.decode_stream(stream)
        recognizer.get_result(stream)

    def recognize(samples: Samples) -> Iterator[None]:
        stream = recognizer.create_stream()
        for start in range(0, len(samples), CHUNK_SAMPLES):
            stream.accept_waveform(SAMPLE_RATE_HZ, samples[start : start + CHUNK_SAMPLES])
            if start + CHUNK_SAMPLES >= len(samples):
                stream.input_finished()
            decode(stream)
            yield

    return recognize


CONTENDERS: dict[str, Callable[[Request], Recognize]] = {
    "funasr": funasr,
    "torch": on_torch(),
    "onnx": on_onnx(),
    "onnx previews": on_onnx(preview_ms=PREVIEW_MS),
    "funasr-onnx": funasr_onnx(CHUNK_SIZE),
    "funasr-onnx left context": funasr_onnx((5, 10, 5)),
    "sherpa-onnx": sherpa_onnx,
    "torch sliced": on_torch("sliced"),
    "onnx sliced": on_onnx("sliced"),
}
PEERS = ("funasr-onnx", "funasr-onnx left context", "sherpa-onnx")
"""Those that run in the peers' environment."""

if __name__ == "__main__":
    main()
