"""FunASR's model classes, imported lightly and loaded strictly.

Model directory -> ``FunasrModel``. Three things FunASR does that a service must not rely on, and what stands here instead:

* ``import funasr`` imports all of its 200 modules (6 s, holding the GIL so that an audio callback starves). We register an
  empty parent package and import only the modules a model needs (0.5 s).
* A torchaudio that cannot load (its PyPI wheel beside a CPU torch raises OSError) kills the import. We probe it
  once and hide it if it is broken; FunASR then takes ``kaldi-native-fbank``.
* Its loader prints a line about a missing file, a missing key or another shape, and goes on with random weights.
  Here each of them is a ``ModelLoadFailed`` that names the file and the key.

No state beyond ``sys.modules``. Called on the thread that will run the model.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

import structlog

from voice.errors import ModelLoadFailed, describe

DeviceType = Literal["auto", "cpu", "cuda"]

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
_LARGE_PARAMETERS = 20_000_000
_TRAINING_ONLY = {"specaug": None, "specaug_conf": None, "ctc_weight": 0.0}

_Result = TypeVar("_Result")

log = structlog.get_logger()


class AcceleratorOutOfMemory(RuntimeError):
    """The accelerator had no memory left; the model is on the CPU now, and what was computed on the accelerator is lost."""


@dataclass(slots=True)
class FunasrModel:
    """A model in evaluation mode on its device, every weight of it read from its file."""

    directory: Path
    module: Any
    """The torch module, an instance of the class that config.yaml names."""
    tokens: tuple[str, ...]
    """The vocabulary, index = id; empty for a model without one."""
    tokenizer: Any
    frontend: Any
    """FunASR's feature extraction with its mean and variance, dither off; None for a model that takes samples."""
    device: str
    num_parameters: int

    @property
    def is_large(self) -> bool:
        """Whether its weights do not fit a processor's cache: then packing them pays, and sharing its work between threads."""
        return self.num_parameters > _LARGE_PARAMETERS

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Around what the model computes, without gradients: an accelerator that runs out of memory is left for the CPU, for good.

        Raises:
            AcceleratorOutOfMemory: that happened; the computation can be begun anew.
        """
        import torch  # noqa: PLC0415

        try:
            with torch.inference_mode():
                yield
        except RuntimeError as error:
            if self.device == "cpu" or not _is_out_of_memory(error):
                raise
            left = self.device
            self.move_to_cpu()
            raise AcceleratorOutOfMemory(f"{left} has no memory left; the model goes on on the CPU ({describe(error)[:200]})") from error

    def run(self, compute: Callable[[], _Result]) -> _Result:
        """What ``compute`` gives, which keeps nothing on the device; it is called again on the CPU where an accelerator was left."""
        try:
            with self.computing():
                return compute()
        except AcceleratorOutOfMemory:
            with self.computing():
                return compute()

    def move_to_cpu(self) -> None:
        """Leave the accelerator; said in the log."""
        import torch  # noqa: PLC0415

        log.warning("accelerator_out_of_memory", model=str(self.directory), device=self.device, instead="cpu")
        self.module.to("cpu")
        self.device = "cpu"
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


@functools.cache
def prepare_imports() -> None:
    """Make ``funasr.*`` importable without FunASR's import of everything, and a broken torchaudio invisible."""
    try:
        importlib.import_module("torchaudio")
    except Exception as error:  # noqa: BLE001 -- a wheel linked against a missing library raises OSError, others other types
        sys.modules["torchaudio"] = None  # type: ignore[assignment]  # the documented way to make an import fail
        log.info("torchaudio_hidden", reason=describe(error)[:160], instead="kaldi-native-fbank")
    if "funasr" not in sys.modules:
        spec = importlib.util.find_spec("funasr")
        if spec is None or spec.submodule_search_locations is None:
            raise ModelLoadFailed("the package funasr is not installed; run: pip install -r requirements.txt")
        package = types.ModuleType("funasr")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules["funasr"] = package


def resolve_device(device_type: DeviceType) -> str:
    """``cpu`` or ``cuda``; ``auto`` takes CUDA where it is there.

    Raises:
        ModelLoadFailed: CUDA was asked for by name and there is none.
    """
    import torch  # noqa: PLC0415

    available = torch.cuda.is_available()
    if device_type == "cuda" and not available:
        raise ModelLoadFailed("device_type is cuda, but torch sees no CUDA device; use --device-type cpu")
    return "cuda" if device_type != "cpu" and available else "cpu"


def limit_spinning() -> None:
    """Keep torch's idle threads from spinning for long; called before torch is imported, the user's own choice wins.

    libgomp lets a thread that waits spin for milliseconds. With another busy process on a machine of two cores, that starves the
    thread it waits for: a chunk then took 10 to 100 times as long. Spinning 10,000 rounds costs 3 % where the machine is idle
    (bench/README.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def set_num_threads(num_threads: int) -> None:
    """Threads of one torch operation. Called after all loading: libraries change it behind our back."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(num_threads)


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
    files = _files(directory)
    _check_sums(directory)
    config = _read_yaml(files["config"])
    classes = (model_class,) if isinstance(model_class, str) else model_class
    found = config.get("model")
    if found not in classes:
        raise ModelLoadFailed(f"{files['config']}: model is {found!r}, expected {' or '.join(map(repr, classes))}")
    tokens = _read_tokens(files["token_list"]) if config.get("tokenizer") else ()
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
        if not _is_out_of_memory(error):
            raise
        model.move_to_cpu()
    return model


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Of an accelerator: torch's own exception, or what CUDA's libraries say."""
    import torch  # noqa: PLC0415

    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or ("cuda" in said and "out of memory" in said) or "alloc_failed" in said


def _files(directory: Path) -> dict[str, Path]:
    """The model's files by FunASR's names for them; all of them exist."""
    names = {"config": "config.yaml", "init_param": "model.pt", "token_list": "tokens.json", "cmvn_file": "am.mvn"}
    if not (directory / "tokens.json").exists() and (directory / "tokens.txt").exists():
        names["token_list"] = "tokens.txt"  # noqa: S105 -- a vocabulary
    description = directory / "configuration.json"
    if description.exists():
        try:
            metas = json.loads(description.read_text(encoding="utf-8")).get("file_path_metas", {})
            named = {**metas, **metas.get("tokenizer_conf", {}), **metas.get("frontend_conf", {})}
        except (ValueError, AttributeError, TypeError) as error:
            raise ModelLoadFailed(f"{description} is not a FunASR description: {describe(error)}") from error
        names.update({key: name for key, name in named.items() if key in names and isinstance(name, str)})
    files = {key: directory / name for key, name in names.items()}
    missing = [files[key].name for key in ("config", "init_param") if not files[key].is_file()]
    if missing:
        raise ModelLoadFailed(f"model directory {directory} lacks {', '.join(missing)}")
    config = _read_yaml(files["config"])
    for section, key in (("tokenizer", "token_list"), ("frontend", "cmvn_file")):
        if config.get(section) and not files[key].is_file():
            raise ModelLoadFailed(f"model directory {directory} lacks {files[key].name}")
    return files


def _check_sums(directory: Path) -> None:
    """Compare the files with SHA256SUMS, in the format of sha256sum, where the directory has one."""
    sums = directory / "SHA256SUMS"
    if not sums.is_file():
        return
    for line in sums.read_text(encoding="utf-8").splitlines():
        expected, _, name = line.partition("  ")
        file = directory / name
        if not file.is_file():
            raise ModelLoadFailed(f"model directory {directory} lacks {name}, which SHA256SUMS lists")
        if hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            raise ModelLoadFailed(f"{file} is not the file that SHA256SUMS lists: damaged or changed; get it again")


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml  # noqa: PLC0415

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ModelLoadFailed(f"{path} is not YAML: {describe(error)}") from error
    if not isinstance(config, dict):
        raise ModelLoadFailed(f"{path} holds no settings")
    return config


def _read_tokens(path: Path) -> tuple[str, ...]:
    text = path.read_text(encoding="utf-8")
    try:
        tokens = json.loads(text) if path.suffix == ".json" else [line.rstrip() for line in text.splitlines()]
    except ValueError as error:
        raise ModelLoadFailed(f"{path} is not JSON: {describe(error)}") from error
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise ModelLoadFailed(f"{path} is not a list of tokens")
    return tuple(tokens)


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
