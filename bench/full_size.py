"""Models of the published sizes with random weights, and the exports that FunASR's ONNX relatives load.

    python bench/full_size.py            # all that is missing: 2 minutes, 5 GB under .cache/bench

A model with random weights costs what the real one costs; its text means nothing. The predictor is set to fire four tokens a second, the
pace of speech. Sizes and settings are those of the published config.yaml files of paraformer-zh-streaming, ct-punc-c and
emotion2vec_plus_base.

The export for funasr-onnx is FunASR's own (``AutoModel.export`` with ``quantize=True``); sherpa-onnx loads the same graphs, with its names
of what it has to know of the model added to the encoder.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from results import REPOSITORY, WORKSPACE

EMBEDDED = REPOSITORY / "models" / "embedded"
RECOGNITION = WORKSPACE / "full-size"
PUNCTUATION = WORKSPACE / "full-size-punctuation"
EMOTION = WORKSPACE / "full-size-emotion"
CONVERSIONS = WORKSPACE / "cache"
"""Takes the place of the user's cache, where the service keeps converted models."""
EXPORTED = ("model_quant.onnx", "decoder_quant.onnx", "encoder.int8.onnx", "tokens.txt")
_FIRING = -1.1
"""Of the predictor: a CIF weight of 0.25 a frame, four tokens a second."""
_LABELS = (
    "生气/angry",
    "厌恶/disgusted",
    "恐惧/fearful",
    "开心/happy",
    "中立/neutral",
    "其他/other",
    "难过/sad",
    "吃惊/surprised",
    "<unk>",
)


def main() -> None:
    """Build what is missing, or one thing."""
    sys.path.insert(0, str(REPOSITORY))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--export", type=Path, metavar="MODEL_DIR", help="only export this recognition model for the peers")
    arguments = parser.parse_args()
    if arguments.export is not None:
        export(arguments.export, export_directory(arguments.export))
        return
    for directory, build in ((RECOGNITION, build_recognition), (PUNCTUATION, build_punctuation), (EMOTION, build_emotion)):
        if not (directory / "model.pt").exists():
            print(f"building {directory.relative_to(REPOSITORY)} once", file=sys.stderr, flush=True)
            directory.mkdir(parents=True, exist_ok=True)
            build(directory)


def ensure_built() -> None:
    """Build the models that are missing, in a process of its own: this one's memory stays small."""
    _run_self()


def ensure_converted(directories: Sequence[Path]) -> None:
    """Convert models for the service's ONNX engine, where they are not converted yet."""
    for directory in directories:
        _run([sys.executable, "-c", _CONVERT, str(directory)], cwd=REPOSITORY)


def ensure_exported(model: Path) -> Path:
    """Export a recognition model for the peers, unless an export of these weights is there already; the directory."""
    target, weights_sec = export_directory(model), (model / "model.pt").stat().st_mtime
    if not all((target / name).exists() and (target / name).stat().st_mtime > weights_sec for name in EXPORTED):
        print(f"exporting {model.name} for the peers once", file=sys.stderr, flush=True)
        _run_self("--export", str(model))
    return target


def export_directory(model: Path) -> Path:
    """Where the export of a model is."""
    return WORKSPACE / "exports" / model.name


_CONVERT = """
import subprocess, sys
from pathlib import Path
from voice.models.converted import find_conversion
from voice.models.directory import describe_model
directory = Path(sys.argv[1])
if find_conversion(directory, describe_model(directory, ("ParaformerStreaming", "CTTransformer", "Emotion2vec"))) is None:
    subprocess.run([sys.executable, "-m", "voice.conversion", str(directory)], check=True)
"""


def _run_self(*arguments: str) -> None:
    _run([sys.executable, __file__, *arguments])


def _run(command: list[str], cwd: Path | None = None) -> None:
    """A step that others build on; its log is shown only if it fails."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(CONVERSIONS)}
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)  # noqa: S603 -- our own
    if done.returncode:
        sys.exit(f"{' '.join(command[1:])} failed:\n{done.stderr[-3000:]}")


def build_recognition(directory: Path) -> None:
    """paraformer-zh-streaming: 220 M parameters."""
    modules = _funasr_modules()
    import funasr.models.scama.encoder  # noqa: F401 -- registers a part
    import torch
    from funasr.models.paraformer_streaming.model import ParaformerStreaming

    config = yaml.safe_load((EMBEDDED / "asr" / "config.yaml").read_text(encoding="utf-8"))
    config["encoder_conf"].update(output_size=512, attention_heads=4, linear_units=2048, num_blocks=50)
    config["decoder_conf"].update(attention_heads=4, linear_units=2048, num_blocks=16, att_layer_num=16)
    config["predictor_conf"]["idim"] = 512
    tokens = ["<blank>", "<s>", "</s>", *_characters(8400), "<unk>"]
    parts = {key: value for key, value in config.items() if key not in ("model", "frontend", "tokenizer")}
    module = modules(ParaformerStreaming, **{**parts, **config["model_conf"]}, vocab_size=len(tokens), input_size=560)
    with torch.no_grad():
        module.predictor.cif_output.weight.zero_()
        module.predictor.cif_output.bias.fill_(_FIRING)
    shutil.copy(EMBEDDED / "asr" / "am.mvn", directory)
    _write(directory, config, module.state_dict(), "asr", {"tokens.json": json.dumps(tokens, ensure_ascii=False)})


def build_punctuation(directory: Path) -> None:
    """ct-punc-c: 72 M parameters, of which 70 M are the vocabulary's."""
    modules = _funasr_modules()
    from funasr.models.ct_transformer.model import CTTransformer

    config = yaml.safe_load((EMBEDDED / "punctuation" / "config.yaml").read_text(encoding="utf-8"))
    config["model_conf"].update(embed_unit=256, att_unit=256)
    config["encoder_conf"].update(input_size=256, output_size=256, attention_heads=8, linear_units=1024, num_blocks=4)
    tokens = [*_characters(20_000), *(f"word{index}" for index in range(252_726)), "<unk>"]
    parts = {key: value for key, value in config.items() if key not in ("model", "tokenizer")}
    module = modules(CTTransformer, **{**parts, **config["model_conf"]}, vocab_size=len(tokens))
    _write(directory, config, module.state_dict(), "punctuation", {"tokens.json": json.dumps(tokens, ensure_ascii=False)})


def build_emotion(directory: Path) -> None:
    """emotion2vec_plus_base: 90 M parameters."""
    modules = _funasr_modules()
    from funasr.models.emotion2vec.model import Emotion2vec

    config = yaml.safe_load((EMBEDDED / "emotion" / "config.yaml").read_text(encoding="utf-8"))
    config["model_conf"].update(depth=8, embed_dim=768, num_heads=12)
    config["model_conf"]["modalities"]["audio"].update(
        conv_pos_depth=5,
        conv_pos_groups=16,
        conv_pos_width=95,
        feature_encoder_spec="[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]",
        model_depth=8,
        num_alibi_heads=12,
        num_extra_tokens=10,
        prenet_depth=4,
    )
    module = modules(Emotion2vec, model_conf=config["model_conf"], vocab_size=len(_LABELS))
    _write(directory, config, module.state_dict(), "emotion", {"tokens.txt": "\n".join(_LABELS) + "\n"})


def _funasr_modules() -> Callable[..., Any]:
    """FunASR's parts registered; what then builds a class with the same random weights each time."""
    from voice.models.torch_setup import prepare_imports

    prepare_imports()
    import funasr.frontends.wav_frontend
    import funasr.models.paraformer.cif_predictor
    import funasr.models.paraformer.decoder
    import funasr.models.sanm.encoder
    import funasr.tokenizer.char_tokenizer  # noqa: F401
    import torch

    def build(model_class: Callable[..., Any], **settings: Any) -> Any:
        torch.manual_seed(0)
        return model_class(**settings)

    return build


def _characters(number: int) -> list[str]:
    return [chr(0x4E00 + index) for index in range(number)]


def _write(directory: Path, config: dict[str, Any], state: dict[str, Any], embedded: str, texts: dict[str, str]) -> None:
    """A FunASR directory; the weights last, so that one with weights is complete."""
    import torch

    shutil.copy(EMBEDDED / embedded / "configuration.json", directory)
    (directory / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8")
    torch.save(state, directory / "model.tmp")
    (directory / "model.tmp").rename(directory / "model.pt")


def export(model: Path, target: Path) -> None:
    """Write FunASR's int8 export of a recognition model, and the same for sherpa-onnx."""
    _funasr_modules()
    import funasr.models.paraformer_streaming.model
    import funasr.models.scama.encoder  # noqa: F401
    import onnx
    import torch
    from funasr.auto.auto_model import AutoModel

    from voice.recognition.features import read_mvn

    torch.onnx.export = functools.partial(torch.onnx.export, dynamo=False)  # FunASR's call fails with the exporter that is the default
    loaded = AutoModel(model=str(model), device="cpu", ncpu=1, disable_update=True, disable_pbar=True)
    target.mkdir(parents=True, exist_ok=True)
    loaded.export(type="onnx", quantize=True, output_dir=str(target))
    for name in ("model.onnx", "decoder.onnx"):  # before quantization
        (target / name).unlink()
    for name in ("am.mvn", "config.yaml", "tokens.json"):
        shutil.copy(model / name, target)
    config = yaml.safe_load((model / "config.yaml").read_text(encoding="utf-8"))
    tokens = json.loads((model / "tokens.json").read_text(encoding="utf-8"))
    shift, scale = read_mvn(model / "am.mvn")
    settings = {
        "vocab_size": len(tokens),
        "lfr_window_size": config["frontend_conf"]["lfr_m"],
        "lfr_window_shift": config["frontend_conf"]["lfr_n"],
        "encoder_output_size": config["encoder_conf"]["output_size"],
        "decoder_num_blocks": config["decoder_conf"]["num_blocks"],
        "decoder_kernel_size": config["decoder_conf"]["kernel_size"],
        "neg_mean": ",".join(map(str, shift.tolist())),
        "inv_stddev": ",".join(map(str, scale.tolist())),
    }
    encoder = onnx.load(target / "model_quant.onnx")
    for key, value in settings.items():
        encoder.metadata_props.add(key=key, value=str(value))
    onnx.save(encoder, target / "encoder.int8.onnx")
    (target / "tokens.txt").write_text("".join(f"{token} {index}\n" for index, token in enumerate(tokens)), encoding="utf-8")


if __name__ == "__main__":
    main()
