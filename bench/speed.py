"""Real-time factor of both modes beside FunASR's own streaming loop: same audio, same weights, same threads, same process.

    python bench/speed.py --model-dir models/embedded/asr
    python bench/speed.py --full-size        # 220 M parameters with random weights: honest cost, meaningless text

The three take turns, so that a noisy machine is noisy for all of them; medians are printed. A ratio above 1 means faster than FunASR.
A benchmark, not a test: nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from voice.audio import SAMPLE_RATE_HZ, Samples  # noqa: E402
from voice.build import build_recognizer  # noqa: E402
from voice.config import load_settings  # noqa: E402
from voice.models.loader import load_model  # noqa: E402
from voice.models.store import EMBEDDED  # noqa: E402
from voice.models.torch_setup import limit_spinning, prepare_imports, set_num_threads  # noqa: E402
from voice.recognition.engine import ChunkPreset  # noqa: E402
from voice.recognition.hotwords import HotwordGraphs  # noqa: E402
from voice.recognition.recognizer import Recognizer  # noqa: E402
from voice.recognition.torch_engine import TorchEngine  # noqa: E402

FULL_SIZE = REPOSITORY / ".cache" / "bench" / "full-size"
FEED_SAMPLES = 512  # what the pipeline feeds: one VAD window


def main() -> None:
    """Measure and print a table."""
    limit_spinning()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-dir", type=Path, default=EMBEDDED / "asr", help="recognition model")
    parser.add_argument("--full-size", action="store_true", help="build and measure the 220 M architecture with random weights")
    parser.add_argument("--seconds", type=float, default=18.0, help="length of the one utterance")
    parser.add_argument("--repeat", type=int, default=5, help="turns of each")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    arguments = parser.parse_args()
    directory = build_full_size() if arguments.full_size else arguments.model_dir
    samples = utterance(arguments.seconds)
    settings = load_settings({}, environment={})
    preset = ChunkPreset(*settings.chunk_size, *settings.look_backs)
    started = time.perf_counter()
    model = TorchEngine(load_model(directory, "ParaformerStreaming", "cpu"))
    loaded_sec = time.perf_counter() - started
    hotwords = HotwordGraphs(lambda: (), model.vocabulary.tokens)
    streaming = build_recognizer(settings, "streaming", model, hotwords)
    sliced = build_recognizer(settings, "sliced", model, hotwords)
    contenders: dict[str, Callable[[], None]] = {
        "FunASR AutoModel.generate, streaming": funasr_loop(directory, samples, preset, arguments.threads),
        "streaming": lambda: recognize(streaming, samples, provisional=True),
        "streaming without provisional tail": lambda: recognize(streaming, samples, provisional=False),
        "sliced": lambda: recognize(sliced, samples, provisional=True),
    }
    set_num_threads(arguments.threads)
    times = take_turns(contenders, arguments.repeat)
    print(f"{directory.name}, {arguments.threads} threads, {arguments.seconds:g} s of audio, chunk_size {list(settings.chunk_size)},")
    print(f"{arguments.repeat} turns each; our strict load took {loaded_sec:.1f} s\n")
    print(f"{'':38} {'real-time factor':>17} {'ms per 600 ms':>14} {'ratio to FunASR':>16}")
    reference = times["FunASR AutoModel.generate, streaming"]
    for name, seconds in times.items():
        factor = statistics.median(seconds) / arguments.seconds
        ratio = statistics.median(theirs / ours for theirs, ours in zip(reference, seconds, strict=True))
        print(f"{name:38} {factor:17.4f} {600 * factor:14.1f} {ratio:16.2f}")


def take_turns(contenders: dict[str, Callable[[], None]], repeat: int) -> dict[str, list[float]]:
    """Seconds of each run; one uncounted run each comes first."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeat + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if turn:
                times[name].append(time.perf_counter() - started)
    return times


def recognize(recognizer: Recognizer, samples: Samples, *, provisional: bool) -> None:
    """One utterance as the pipeline feeds it, hypothesis asked for after each decode."""
    stream = recognizer.create_stream(0)
    for start in range(0, len(samples), FEED_SAMPLES):
        if stream.accept(samples[start : start + FEED_SAMPLES], provisional=provisional):
            stream.hypothesis()
    stream.finish()


def funasr_loop(directory: Path, samples: Samples, preset: ChunkPreset, num_threads: int) -> Callable[[], None]:
    """The loop of FunASR's documentation on the same directory, dither off as ours."""
    prepare_imports()
    from funasr.auto.auto_model import AutoModel

    model = AutoModel(model=str(directory), device="cpu", ncpu=num_threads, disable_update=True, disable_pbar=True)
    model.kwargs["frontend"].dither = 0.0
    stride = preset.stride_samples
    options: dict[str, Any] = {
        "chunk_size": [preset.left, preset.chunk, preset.right],
        "encoder_chunk_look_back": preset.encoder_look_back,
        "decoder_chunk_look_back": preset.decoder_look_back,
    }

    def run() -> None:
        cache: dict[str, Any] = {}
        for start in range(0, len(samples), stride):
            model.generate(input=samples[start : start + stride], cache=cache, is_final=start + stride >= len(samples), **options)

    return run


def utterance(seconds: float) -> Samples:
    """The examples one after the other, repeated to the length."""
    pieces = [soundfile.read(path, dtype="float32")[0] for path in sorted((REPOSITORY / "examples").glob("*.wav"))]
    samples = np.concatenate(pieces)
    return np.resize(samples, round(seconds * SAMPLE_RATE_HZ)).astype(np.float32)


def build_full_size() -> Path:
    """A directory with the architecture of paraformer-zh-streaming and random weights, made once."""
    if (FULL_SIZE / "model.pt").exists():
        return FULL_SIZE
    prepare_imports()
    import funasr.frontends.wav_frontend
    import funasr.models.paraformer.cif_predictor
    import funasr.models.paraformer.decoder
    import funasr.models.scama.encoder  # noqa: F401
    import torch
    from funasr.models.paraformer_streaming.model import ParaformerStreaming

    print(f"building {FULL_SIZE} once", file=sys.stderr)
    FULL_SIZE.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load((EMBEDDED / "asr" / "config.yaml").read_text(encoding="utf-8"))
    config["encoder_conf"].update(output_size=512, attention_heads=4, linear_units=2048, num_blocks=50)
    config["decoder_conf"].update(attention_heads=4, linear_units=2048, num_blocks=16, att_layer_num=16)
    config["predictor_conf"]["idim"] = 512
    tokens = ["<blank>", "<s>", "</s>", *(chr(0x4E00 + index) for index in range(8400)), "<unk>"]
    torch.manual_seed(0)
    parts = {key: value for key, value in config.items() if key not in ("model", "frontend", "tokenizer")}
    module = ParaformerStreaming(**{**parts, **config["model_conf"]}, vocab_size=len(tokens), input_size=560)
    with torch.no_grad():
        module.predictor.cif_output.weight.zero_()
        module.predictor.cif_output.bias.fill_(-1.1)  # alpha 0.25: 4 tokens a second, the pace of speech
    for name in ("am.mvn", "configuration.json"):
        shutil.copy(EMBEDDED / "asr" / name, FULL_SIZE / name)
    (FULL_SIZE / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (FULL_SIZE / "tokens.json").write_text(json.dumps(tokens, ensure_ascii=False), encoding="utf-8")
    torch.save(module.state_dict(), FULL_SIZE / "model.tmp")
    (FULL_SIZE / "model.tmp").rename(FULL_SIZE / "model.pt")
    return FULL_SIZE


if __name__ == "__main__":
    main()
