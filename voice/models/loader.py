"""FunASR's model classes, loaded strictly.

Model directory -> ``FunasrModel``. FunASR's own loader prints a line about a missing file, a missing key or another shape, and goes on with
random weights; here each of them is a ``ModelLoadFailed`` that names the file and the key. No state. Called on the thread that will run
the model.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import pickle
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

from voice.errors import ModelLoadFailed, describe
from voice.models.directory import check_sums, model_files, read_tokens, read_yaml
from voice.models.funasr_model import FunasrModel, is_out_of_memory
from voice.models.torch_setup import prepare_imports

_WHOLE = (
    "funasr.models.sanm.encoder",
    "funasr.models.paraformer.decoder",
    "funasr.models.paraformer.cif_predictor",
    "funasr.frontends.wav_frontend",
    "funasr.tokenizer.char_tokenizer",
)
_MODULES = {
    "ParaformerStreaming": (
        "funasr.models.paraformer_streaming.model",
        "funasr.models.scama.encoder",
        "funasr.models.paraformer.decoder",
        "funasr.models.paraformer.cif_predictor",
        "funasr.frontends.wav_frontend",
        "funasr.tokenizer.char_tokenizer",
    ),
    "Paraformer": ("funasr.models.paraformer.model", *_WHOLE),
    "BiCifParaformer": ("funasr.models.bicif_paraformer.model", "funasr.models.bicif_paraformer.cif_predictor", *_WHOLE),
    "SeacoParaformer": (
        "funasr.models.seaco_paraformer.model",
        "funasr.models.bicif_paraformer.model",
        "funasr.models.bicif_paraformer.cif_predictor",
        *_WHOLE,
    ),
    "FsmnVADStreaming": (
        "funasr.models.fsmn_vad_streaming.model",
        "funasr.models.fsmn_vad_streaming.encoder",
        "funasr.frontends.wav_frontend",
    ),
    "CTTransformer": ("funasr.models.ct_transformer.model", "funasr.models.sanm.encoder", "funasr.tokenizer.char_tokenizer"),
    "Emotion2vec": ("funasr.models.emotion2vec.model", "funasr.tokenizer.char_tokenizer"),
}
"""What has to be imported so that FunASR's registry knows a model class and its parts."""

_LARGE_FILE_BYTES = 64 * 2**20
_TRAINING_ONLY = {"specaug": None, "specaug_conf": None, "ctc_weight": 0.0}


def load_model(directory: Path, model_class: str | tuple[str, ...], device: str) -> FunasrModel:
    """Read a FunASR model directory.

    Args:
        directory: holds config.yaml and the files that configuration.json, or else FunASR's custom, names.
        model_class: the class that config.yaml must name, or several of which it must name one.
        device: ``cpu`` or ``cuda``.

    Raises:
        ModelLoadFailed: a file is missing, damaged or not the one that SHA256SUMS lists (where there is one), the class is
            another, the vocabulary does not fit the weights, a weight is missing or has another shape.

    Where the device has too little memory the model is on the CPU.
    """
    files = model_files(directory)
    check_sums(directory)
    config = read_yaml(files["config"])
    classes = (model_class,) if isinstance(model_class, str) else model_class
    found = config.get("model")
    if found not in classes:
        raise ModelLoadFailed(f"{files['config']}: model is {found!r}, expected {' or '.join(map(repr, classes))}")
    tokens = read_tokens(files["token_list"]) if config.get("tokenizer") else ()
    weights = _read_weights(files["init_param"], config.get("scope_map") or [])
    _check_vocabulary(tokens, weights, files)
    prepare_imports()
    for name in _MODULES[found]:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ModelLoadFailed(f"FunASR's {name} cannot be imported: {describe(error)}") from error
    try:
        tokenizer, frontend, build = _parts(config, tokens, files)
        module = _with_weights(build, weights, files["init_param"])
    except ModelLoadFailed:
        raise
    except Exception as error:  # FunASR's constructors raise whatever a wrong config leads them to
        raise ModelLoadFailed(f"{files['config']} does not describe a {found} FunASR can build: {describe(error)}") from error
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    model = FunasrModel(directory, module.eval(), tokens, tokenizer, frontend, device, num_parameters)
    try:
        module.to(device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        model.move_to_cpu()
    return model


def _read_weights(path: Path, scope_map: list[str] | str) -> dict[str, Any]:
    """State dict in float32, keys renamed as FunASR's loader would: ``scope_map`` pairs prefixes of file and module."""
    import torch  # noqa: PLC0415

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ModelLoadFailed(f"{path} is damaged or holds more than weights: {describe(error)[:200]}") from error
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelLoadFailed(f"{path} holds no state dict")
    pairs = scope_map.split(",") if isinstance(scope_map, str) else list(scope_map)
    pairs += ["module.", "None"]
    prefixes = ["" if prefix.lower() == "none" else prefix for prefix in pairs]
    for source, target in zip(prefixes[::2], prefixes[1::2], strict=False):
        if source:
            state = {target + key.removeprefix(source) if key.startswith(source) else key: value for key, value in state.items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _check_vocabulary(tokens: tuple[str, ...], weights: dict[str, Any], files: dict[str, Path]) -> None:
    vocabulary, trained = files["token_list"], files["init_param"].name
    for key in ("decoder.output_layer.weight", "proj.weight", "embed.weight"):
        if tokens and key in weights and len(weights[key]) != len(tokens):
            raise ModelLoadFailed(f"{vocabulary} has {len(tokens)} tokens, but {trained} was trained with {len(weights[key])} ({key})")


def _parts(config: dict[str, Any], tokens: tuple[str, ...], files: dict[str, Path]) -> tuple[Any, Any, Callable[[], Any]]:
    """Tokenizer, frontend, and what builds the module: what FunASR's ``AutoModel.build_model`` does, training parts left out."""
    from funasr.register import tables  # noqa: PLC0415

    tokenizer = frontend = None
    if config.get("tokenizer"):
        tokenizer = tables.tokenizer_classes[config["tokenizer"]](token_list=list(tokens), **(config.get("tokenizer_conf") or {}))
    if config.get("frontend"):
        settings = {**(config.get("frontend_conf") or {}), "cmvn_file": str(files["cmvn_file"]), "dither": 0.0}
        frontend = tables.frontend_classes[config["frontend"]](**settings)
        if frontend.cmvn.shape != (2, frontend.output_size()):
            raise ModelLoadFailed(f"{files['cmvn_file']} does not hold {frontend.output_size()} means and variances")
    arguments = {key: value for key, value in config.items() if key not in ("model", "tokenizer", "frontend")}
    arguments.update(config.get("model_conf") or {}, **_TRAINING_ONLY)
    arguments.update(vocab_size=len(tokens) or -1, input_size=frontend.output_size() if frontend else None)
    return tokenizer, frontend, functools.partial(tables.model_classes[config["model"]], **arguments)


def _with_weights(build: Callable[[], Any], weights: dict[str, Any], path: Path) -> Any:
    """A module whose every parameter comes from ``weights``.

    Large ones are built on the meta device, which spares 220 M random initial values and a third of the peak memory; for small
    ones the 0.85 s that torch then spends importing its compiler would be the larger cost.
    """
    import torch  # noqa: PLC0415

    large = path.stat().st_size > _LARGE_FILE_BYTES
    with torch.device("meta") if large else contextlib.nullcontext():
        module = build()
    expected = module.state_dict()
    missing = [key for key in expected if key not in weights]
    if missing:
        raise ModelLoadFailed(f"{path} lacks {len(missing)} of {len(expected)} weights, first {missing[0]}")
    for key, value in expected.items():
        if value.shape != weights[key].shape:
            raise ModelLoadFailed(f"{path}: {key} has shape {tuple(weights[key].shape)}, config.yaml asks for {tuple(value.shape)}")
    weights = {key: weights[key] for key in expected}
    module.load_state_dict(weights, assign=True)
    if any(tensor.is_meta for tensor in chain(module.parameters(), module.buffers())):
        module = build()  # it computes buffers that no file holds
        module.load_state_dict(weights)
    return module.requires_grad_(requires_grad=False)
