"""FunASR's classes for training, and model directories in FunASR's layout: configuration.json, config.yaml, tokens, weights in fp16."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from voice.models.torch_setup import prepare_imports

_CLASSES = {
    "ParaformerStreaming": "funasr.models.paraformer_streaming.model",
    "CTTransformer": "funasr.models.ct_transformer.model",
    "Emotion2vec": "funasr.models.emotion2vec.model",
    "CAMPPlus": "funasr.models.campplus.model",
}
_PARTS = (
    "funasr.models.scama.encoder",
    "funasr.models.sanm.encoder",
    "funasr.models.paraformer.decoder",
    "funasr.models.paraformer.cif_predictor",
    "funasr.models.specaug.specaug",
    "funasr.models.ctc.ctc",
    "funasr.tokenizer.char_tokenizer",
)
NOT_SHIPPED = ("ctc.",)
"""Weights that only training needs."""


def import_funasr(name: str) -> Any:
    """A model class of FunASR, its parts registered."""
    prepare_imports()
    for module in _PARTS:
        importlib.import_module(module)
    return getattr(importlib.import_module(_CLASSES[name]), name)


def write_directory(folder: Path, task: str, config: dict[str, Any], weights: dict[str, torch.Tensor], files: dict[str, Any]) -> None:
    """A directory that FunASR, and the service, loads.

    Args:
        folder: made if it is not there.
        task: FunASR's name of the task, for configuration.json.
        config: becomes config.yaml.
        weights: float tensors are stored in fp16 and widened again when loaded.
        files: what configuration.json names besides config and weights, as FunASR nests it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(config, allow_unicode=True)
    (folder / "config.yaml").write_text(text, encoding="utf8")
    paths = {"init_param": "model.pt", "config": "config.yaml", **files}
    configuration = {"framework": "pytorch", "task": task, "model": {"type": "funasr"}, "file_path_metas": paths}
    (folder / "configuration.json").write_text(json.dumps(configuration, indent=1) + "\n", encoding="utf8")
    kept = {name: tensor.detach().cpu() for name, tensor in weights.items() if not name.startswith(NOT_SHIPPED)}
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in kept.items()}
    torch.save({name: tensor.contiguous().clone() for name, tensor in halved.items()}, folder / "model.pt")


def write_tokens(folder: Path, tokens: list[str]) -> None:
    """tokens.json, a list whose index is the id."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokens.json").write_text(json.dumps(tokens, ensure_ascii=False) + "\n", encoding="utf8")


def write_recognition_directory(
    folder: Path, config: dict[str, Any], tokens: list[str], mean: np.ndarray, scale: np.ndarray, weights: dict[str, torch.Tensor]
) -> None:
    """A ParaformerStreaming directory; mean and 1 / standard deviation, (560,) each, go into am.mvn in kaldi's text form."""
    write_tokens(folder, tokens)
    shift, rescale = (" ".join(f"{value:.6f}" for value in row) for row in (-mean, scale))
    layers = [("AddShift", shift), ("Rescale", rescale)]
    lines = ["<Nnet>", "<Splice> 560 560", "[ 0 ]"]
    for layer, row in layers:
        lines += [f"<{layer}> 560 560", f"<LearnRateCoef> 0 [ {row} ]"]
    (folder / "am.mvn").write_text("\n".join([*lines, "</Nnet>", ""]), encoding="utf8")
    files = {"tokenizer_conf": {"token_list": "tokens.json"}, "frontend_conf": {"cmvn_file": "am.mvn"}}
    write_directory(folder, "auto-speech-recognition", config, weights, files)
