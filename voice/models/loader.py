"""FunASR's model classes, loaded strictly.

Model directory -> ``FunasrModel``. FunASR's own loader prints a line about a missing file, a missing key or another shape, and goes on
with random weights; here each of them is a ``ModelLoadFailed`` that names the file, the key and what to do. No state. Called on the
thread that will run the model.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

from voice.errors import ModelLoadFailed, describe
from voice.models.directory import blaming, check_cmvn, check_sums, damaged, describe_model, read_tokens
from voice.models.funasr_model import FunasrModel, is_out_of_memory
from voice.models.language_model import read_language_model
from voice.models.state_dict import count_values, fitted, read_state_dict
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
    "CAMPPlus": ("funasr.models.campplus.model",),
}
"""What has to be imported so that FunASR's registry knows a model class and its parts."""

_LARGE_FILE_BYTES = 64 * 2**20
_UNUSED = {"specaug": None, "specaug_conf": None, "ctc_weight": 0.0, "jieba_usr_dict": None}
"""Parts that only training needs, and a list of words that would be opened wherever it is."""
_NAMES_OF_FILES = ("seg_dict", "seg_dict_file", "non_linguistic_symbols")
"""Keys of tokenizer_conf that would open further files; what they are for is not used here."""
_MAX_LAYERS = 64
"""Of a feature encoder's convolutions: published models have 7."""
_MAX_LAYERS_CHARACTERS = 1_000
"""Of the text that lists them: Python's parser may crash on a long one."""


def load_model(directory: Path, model_class: str | tuple[str, ...], device: str, *, with_language: bool = True) -> FunasrModel:
    """Read a FunASR model directory. Where the device has too little memory, the model is on the CPU.

    Args:
        directory: holds config.yaml and the files that configuration.json, or else FunASR's custom, names.
        model_class: the class that config.yaml must name, or several of which it must name one.
        device: ``cpu`` or ``cuda``.
        with_language: read the language model beside it, too, where there is one.

    Raises:
        ModelLoadFailed: a file is missing, damaged or not the one that SHA256SUMS lists (where there is one), the class is
            another, the vocabulary does not fit the weights, a weight is missing, has another shape, or is not finite.
    """
    check_sums(directory)
    description = describe_model(directory, model_class)
    config, files = description.config, description.files
    tokens = read_tokens(files["token_list"]) if config.get("tokenizer") else ()
    _import_classes(description.model_class)
    wrong = f"does not describe a {description.model_class} FunASR can build"
    with blaming(files["config"], wrong):
        tokenizer = _tokenizer(config, tokens, files["token_list"])
        frontend = _frontend(config, files["cmvn_file"])
        build = _builder(config, len(tokens), frontend)
    state = read_state_dict(files["init_param"], config.get("scope_map") or [])
    _check_vocabulary(tokens, state, files)
    with blaming(files["config"], wrong):
        module = _with_weights(build, state, files["init_param"])
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    language = read_language_model(directory, tokens) if with_language else None
    model = FunasrModel(directory, module.eval(), tokens, tokenizer, frontend, device, num_parameters, language)
    try:
        module.to(device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise ModelLoadFailed(f"{directory} cannot be moved to {device} ({describe(error)[:200]}); use --device-type cpu") from error
        model.move_to_cpu()
    return model


def _import_classes(model_class: str) -> None:
    prepare_imports()
    for name in _MODULES[model_class]:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ModelLoadFailed(
                f"FunASR's {name} cannot be imported ({describe(error)}); run: pip install -r requirements.txt"
            ) from error


def _check_vocabulary(tokens: tuple[str, ...], state: dict[str, Any], files: dict[str, Path]) -> None:
    vocabulary, trained = files["token_list"], files["init_param"].name
    for key in ("decoder.output_layer.weight", "proj.weight", "embed.weight"):
        if tokens and key in state and state[key].shape[:1] != (len(tokens),):
            num_trained = state[key].shape[0] if state[key].ndim else 0
            raise damaged(vocabulary, f"has {len(tokens)} tokens, but {trained} was trained with {num_trained} ({key})")


# The three parts below are what FunASR's ``AutoModel.build_model`` makes, without those that only training needs.


def _tokenizer(config: dict[str, Any], tokens: tuple[str, ...], vocabulary: Path) -> Any:
    from funasr.register import tables  # noqa: PLC0415

    if not config.get("tokenizer"):
        return None
    settings = {key: value for key, value in (config.get("tokenizer_conf") or {}).items() if key not in _NAMES_OF_FILES}
    unknown = settings.get("unk_symbol", "<unk>")
    if unknown not in tokens:
        raise damaged(vocabulary, f"lacks {unknown!r}, the token that stands for unknown ones")
    return tables.tokenizer_classes[config["tokenizer"]](token_list=list(tokens), **settings)


def _frontend(config: dict[str, Any], cmvn_file: Path) -> Any:
    """FunASR's feature extraction, with the means and variances of ``cmvn_file``."""
    from funasr.register import tables  # noqa: PLC0415

    if not config.get("frontend"):
        return None
    check_cmvn(cmvn_file)
    settings = {**(config.get("frontend_conf") or {}), "cmvn_file": None, "dither": 0.0}
    for key in ("n_mels", "lfr_m"):  # FunASR multiplies one by the other, whatever they are
        if not isinstance(settings.get(key, 1), int) or settings.get(key, 1) < 1:
            raise ValueError(f"{key} must be a whole number above 0")
    frontend = tables.frontend_classes[config["frontend"]](**settings)
    width = frontend.output_size()
    with blaming(cmvn_file, f"does not hold {width} means and variances"):
        frontend = tables.frontend_classes[config["frontend"]](**{**settings, "cmvn_file": str(cmvn_file)})
    if frontend.cmvn.shape != (2, width):
        raise damaged(cmvn_file, f"does not hold {width} means and variances")
    if not bool(frontend.cmvn.isfinite().all()):
        raise damaged(cmvn_file, "holds means or variances that are NaN or infinite")
    return frontend


def _builder(config: dict[str, Any], num_tokens: int, frontend: Any) -> Callable[[], Any]:
    """What builds the module."""
    from funasr.register import tables  # noqa: PLC0415

    arguments = {key: value for key, value in config.items() if key not in ("model", "tokenizer", "frontend")}
    arguments.update(config.get("model_conf") or {}, **_UNUSED)
    arguments.update(vocab_size=num_tokens or -1, input_size=frontend.output_size() if frontend else None)
    if config["model"] == "Emotion2vec":
        arguments["model_conf"] = _with_literal_layers(config["model_conf"])
    return functools.partial(tables.model_classes[config["model"]], **arguments)


def _with_literal_layers(model_conf: dict[str, Any]) -> dict[str, Any]:
    """Emotion2vec's settings with its convolutions as plain numbers: FunASR evaluates their text as Python, whatever it says."""
    audio = model_conf["modalities"]["audio"]
    text = audio["feature_encoder_spec"]
    if len(text) > _MAX_LAYERS_CHARACTERS:
        raise ValueError(f"feature_encoder_spec has more than {_MAX_LAYERS_CHARACTERS:,} characters")
    if audio.get("learned_alibi"):
        raise ValueError("learned_alibi must be false: its table may take any memory")
    layers = repr(_layers(ast.parse(text, mode="eval").body))
    return {**model_conf, "modalities": {"audio": {**audio, "feature_encoder_spec": layers}}}


def _layers(node: ast.expr) -> list[tuple[int, int, int]]:
    """``[(512, 10, 5)] + [(512, 3, 2)] * 4``, as fairseq writes layers."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        layers = _layers(node.left) + _layers(node.right)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        times = ast.literal_eval(node.right)
        layers = _layers(node.left) * min(times, _MAX_LAYERS + 1)
    else:
        layers = [(int(width), int(kernel), int(stride)) for width, kernel, stride in ast.literal_eval(node)]
    if len(layers) > _MAX_LAYERS:
        raise ValueError(f"feature_encoder_spec has more than {_MAX_LAYERS} layers")
    return layers


def _with_weights(build: Callable[[], Any], state: dict[str, Any], path: Path) -> Any:
    """A module whose every parameter comes from ``state``, the content of ``path``.

    Large ones are built on the meta device, which spares 220 M random initial values and a third of the peak memory; for small
    ones the 0.85 s that torch then spends importing its compiler would be the larger cost.
    """
    import torch  # noqa: PLC0415

    from voice.models.build_limit import BuildLimit  # noqa: PLC0415 -- it imports torch

    num_values = count_values(state)
    large = path.stat().st_size > _LARGE_FILE_BYTES
    with torch.device("meta") if large else contextlib.nullcontext(), BuildLimit(num_values, len(state)):
        module = build()
    weights = fitted(state, module.state_dict(), path)
    _check_whole(module, state.keys() - weights.keys())
    module.load_state_dict(weights, assign=True)
    if any(tensor.is_meta for tensor in chain(module.parameters(), module.buffers())):
        with BuildLimit(num_values, len(state)):
            module = build()  # it computes buffers that no file holds
        module.load_state_dict(weights)
    return module.requires_grad_(requires_grad=False)


def _check_whole(module: Any, unused: set[str]) -> None:
    """Whether config.yaml asks for all parts and layers of a model: FunASR also builds one without a decoder, or with fewer layers.

    Weights of other parts may be left over: published files hold some that only training needs.

    Args:
        module: with its weights.
        unused: names of the weights that the module does not have.

    Raises:
        ValueError: a part or a layer is missing.
    """
    missing = [part for part in ("encoder", "decoder", "predictor") if getattr(module, part, module) is None]
    if missing:
        raise ValueError(f"{missing[0]} is missing")
    names = {name for name, _ in module.named_modules()}
    for key in sorted(unused):
        parts = key.split(".")
        for depth, part in enumerate(parts):
            if part.isdecimal() and ".".join(parts[:depth]) in names and ".".join(parts[: depth + 1]) not in names:
                raise ValueError(f"it lacks the layer {'.'.join(parts[: depth + 1])}, which the weights file holds")
