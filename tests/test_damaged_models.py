"""Damaged model directories: each is refused in one line that names the file, at once and in little memory; nothing else is raised."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import tempfile
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from harness import EXAMPLES, example, final_texts, in_time, of_type, run_service
from test_second_pass import write_offline_directory

from voice.build import build_pipeline
from voice.config import load_settings
from voice.errors import ModelLoadFailed
from voice.hotword_list import HotwordList
from voice.losses import LossLedger
from voice.models import store
from voice.models.funasr_model import FunasrModel
from voice.models.loader import load_model
from voice.models.weights import Models, load_models, locate_models
from voice.places import EMBEDDED

pytestmark = pytest.mark.filterwarnings("ignore")  # as in the service, where a warning is no exception

CLASSES = {"asr": "ParaformerStreaming", "punctuation": "CTTransformer", "emotion": "Emotion2vec"}
AT_ONCE_SEC = 2.5
"""The slowest takes 1 s on an idle machine."""
MAX_BYTES = 2**30
"""Of memory beyond what the process has. The undamaged model takes 0.03 GB."""

Damage = Callable[[Path], object]
"""Damages a copy of a model directory."""
Cases = dict[str, tuple[Damage, str]]
"""Name -> the damage, and a part of the message that shows that just this was found; it names the file."""


# --- what refusing costs ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """An allocation beyond ``MAX_BYTES`` fails; the message is then another one than the test expects."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def refused(use: Callable[[], object], says: str) -> None:
    """``use`` raises ``ModelLoadFailed`` within the bounds."""
    started = time.process_time()
    with little_memory(), pytest.raises(ModelLoadFailed) as caught:
        use()
    assert time.process_time() - started < in_time(AT_ONCE_SEC)
    text = str(caught.value)
    assert says in text
    assert len(text.splitlines()) == 1
    assert len(text) <= 1_000


def test_the_bound_of_memory_is_one() -> None:
    with little_memory(), pytest.raises(RuntimeError, match="can't allocate memory"):
        torch.empty(2 * MAX_BYTES, dtype=torch.uint8)
    with little_memory(), pytest.raises(MemoryError):
        bytearray(2 * MAX_BYTES)


@contextlib.contextmanager
def copied(model: str) -> Iterator[Path]:
    """A copy of an embedded model that a test may damage, without sums; any user may read it."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(shutil.copytree(EMBEDDED / model, f"{name}/{model}", ignore=shutil.ignore_patterns("SHA256SUMS")))


@pytest.fixture
def asr() -> Iterator[Path]:
    with copied("asr") as directory:
        yield directory


@pytest.fixture(autouse=True, scope="module")
def undamaged() -> dict[str, FunasrModel]:
    """The copies load, so what a test below sees is its damage; and what loading imports is in memory."""
    models = {}
    for name, model_class in CLASSES.items():
        with copied(name) as directory:
            models[name] = load_model(directory, model_class, "cpu")
    return models


SETTINGS = load_settings({}, environment={})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids that a hub was asked for."""
    ids: list[str] = []

    def ask(hub_id: str, *, local_only: bool) -> Path:
        ids.append(hub_id)
        raise FileNotFoundError(hub_id)

    monkeypatch.setattr(store, "_from_modelscope", ask)
    monkeypatch.setattr(store, "_from_hugging_face", ask)
    return ids


def table(cases: Cases) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("damage", "says"), cases.values(), ids=cases)


def load(directory: Path, name: str = "asr") -> FunasrModel:
    return load_model(directory, CLASSES[name], "cpu")


# --- damages ------------------------------------------------------------------------------------------------------------


def write(name: str, content: str | bytes) -> Damage:
    def damage(directory: Path) -> None:
        (directory / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def config(path: str, *value: Any) -> Damage:
    """Set ``section.key`` of config.yaml, or take it away where no value is given."""

    def damage(directory: Path) -> None:
        file = directory / "config.yaml"
        root = node = yaml.safe_load(file.read_text(encoding="utf-8"))
        *sections, key = path.split(".")
        for section in sections:
            node = node[section]
        node.pop(key, None)
        if value:
            node[key] = value[0]
        file.write_text(yaml.safe_dump(root, allow_unicode=True), encoding="utf-8")

    return damage


def described(**metas: Any) -> Damage:
    return write("configuration.json", json.dumps({"file_path_metas": metas}))


def vocabulary(edit: Callable[[list[Any]], object]) -> Damage:
    """Replace the vocabulary by what ``edit`` makes of it."""

    def damage(directory: Path) -> None:
        file = directory / "tokens.json"
        file.write_text(json.dumps(edit(json.loads(file.read_text(encoding="utf-8")))), encoding="utf-8")

    return damage


def weights(edit: Callable[[dict[str, Any]], object], **form: Any) -> Damage:
    """Save what ``edit`` returns, or else what it left of the state dict."""

    def damage(directory: Path) -> None:
        state = torch.load(directory / "model.pt", weights_only=True)
        changed = edit(state)
        torch.save(state if changed is None else changed, directory / "model.pt", **form)

    return damage


def weight(key: str, edit: Callable[[torch.Tensor], object]) -> Damage:
    return weights(lambda state: state.update({key: edit(state[key])}))


def with_value(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """A copy of a tensor whose last value is ``value``."""

    def edit(tensor: torch.Tensor) -> torch.Tensor:
        edited = tensor.clone()
        edited.view(-1)[-1] = value
        return edited

    return edit


def pickled(content: bytes, **records: bytes) -> Damage:
    """An archive as ``torch.save`` writes it, whose data.pkl is ``content``."""

    def damage(directory: Path) -> None:
        with zipfile.ZipFile(directory / "model.pt", "w") as archive:
            for name, data in {"data.pkl": content, "version": b"3\n", "byteorder": b"little", **records}.items():
                archive.writestr(f"model/{name}", data)

    return damage


class Reduced:
    """What is pickled as the call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def zipped_again(directory: Path, **form: Any) -> None:
    """Write the weights' archive anew."""
    with zipfile.ZipFile(directory / "model.pt") as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(directory / "model.pt", "w", **form) as archive:
        for name, data in records.items():
            archive.writestr(name, data)


def overlapping(directory: Path) -> None:
    """200 records that share the bytes of one: 1.6 GB of an 8 MB file."""
    with zipfile.ZipFile(directory / "model.pt", "a") as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
        archive.filelist += [largest] * (2 * 10**9 // largest.file_size)
        archive._didModify = True  # type: ignore[attr-defined]


def bomb(directory: Path) -> None:
    """64 MB of zeros in 0.3 MB."""
    with zipfile.ZipFile(directory / "model.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("model/data/0", "w", force_zip64=True) as record:
            zeros = bytes(2**20)
            for _ in range(64):
                record.write(zeros)
        archive.writestr("model/data.pkl", pickle.dumps({}, protocol=2))


def cut(num_bytes: int) -> Damage:
    """Keep only the start of the weights."""
    return lambda directory: os.truncate(directory / "model.pt", num_bytes)


def beyond_storage(directory: Path) -> None:
    """A weight of 1,000,000,000 rows on a storage of four values, as no ``torch.save`` writes it."""
    stored = Reduced(torch._utils._rebuild_tensor_v2, StoredAs("4"), 0, (10**9, 4), (4, 1), False, OrderedDict())
    content = io.BytesIO()
    Pickler(content, protocol=2).dump({"a": stored})
    pickled(content.getvalue(), **{"data/0": bytes(16)})(directory)


class StoredAs:
    """A storage of so many float32 values."""

    def __init__(self, num_values: str) -> None:
        self.num_values = int(num_values)


class Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return ("storage", torch.FloatStorage, "0", "cpu", value.num_values) if isinstance(value, StoredAs) else None


def nested(levels: int) -> list[Any]:
    innermost: list[Any] = []
    for _ in range(levels):
        innermost = [innermost]
    return innermost


def loop() -> dict[str, Any]:
    state: dict[str, Any] = {}
    state["model"] = state
    return state


def cmvn(edit: Callable[[str], str]) -> Damage:
    def damage(directory: Path) -> None:
        file = directory / "am.mvn"
        file.write_text(edit(file.read_text(encoding="utf-8")), encoding="utf-8")

    return damage


def first_number(new: str) -> Callable[[str], str]:
    """Replace the first of the means."""

    def edit(text: str) -> str:
        words = text.split(" ")
        at = words.index("[") + 1
        return " ".join([*words[:at], new, *words[at + 1 :]])

    return edit


# --- files that are none ------------------------------------------------------------------------------------------------

ODD: dict[str, Callable[[Path], object]] = {
    "directory": lambda path: path.mkdir(),
    "fifo": os.mkfifo,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path),
    "link to nowhere": lambda path: path.symlink_to("nowhere"),
}
NUM_TOKENS = len(json.loads((EMBEDDED / "asr" / "tokens.json").read_text(encoding="utf-8")))
OTHER_NUMBER = f"tokens, but model.pt was trained with {NUM_TOKENS}"
NUM_BLOCKS = yaml.safe_load((EMBEDDED / "asr" / "config.yaml").read_text(encoding="utf-8"))["encoder_conf"]["num_blocks"]
WEIGHTS = tuple(torch.load(EMBEDDED / "asr" / "model.pt", mmap=True, weights_only=True))
NUM_WEIGHTS, BLOCK_WEIGHTS = len(WEIGHTS), sum(name.startswith("encoder.encoders.0.") for name in WEIGHTS)
FILES = ("config.yaml", "configuration.json", "SHA256SUMS", "model.pt", "tokens.json", "am.mvn")


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_regular_file_is_refused(asr: Path, name: str, kind: str) -> None:
    (asr / name).unlink(missing_ok=True)
    ODD[kind](asr / name)
    refused(lambda: load(asr), name)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_may_not_be_read_is_refused(asr: Path, name: str) -> None:
    (asr / name).touch()
    (asr / name).chmod(0)
    user = os.geteuid()
    os.seteuid(65_534 if user == 0 else user)
    try:
        refused(lambda: load(asr), f"{name} cannot be read (Permission denied); check the path and its permissions")
    finally:
        os.seteuid(user)


# --- config.yaml and configuration.json: found before anything is downloaded or loaded ------------------------------------

DESCRIPTIONS: Cases = {
    "utf-16": (write("config.yaml", "model: x".encode("utf-16")), "config.yaml is not UTF-8 text (byte 0)"),
    "latin-1": (write("config.yaml", b"model: \xe9"), "config.yaml is not UTF-8 text (byte 7)"),
    "list": (write("config.yaml", "- model"), "config.yaml holds list, not a mapping"),
    "only a comment": (write("config.yaml", "# model: ParaformerStreaming"), "config.yaml holds no settings"),
    "tag": (write("config.yaml", "model: !!python/name:os.system"), "config.yaml is not YAML (ConstructorError"),
    "itself": (write("config.yaml", "model: &a [*a]"), "config.yaml holds a value that contains itself"),
    "no model": (config("model"), "config.yaml is of another model: model is None"),
    "model null": (config("model", None), "config.yaml is of another model: model is None"),
    "model list": (config("model", ["ParaformerStreaming"]), "config.yaml is of another model: model is ['Para"),
    "model mapping": (config("model", {"a": 1}), "config.yaml is of another model: model is {'a'"),
    "model unknown": (config("model", "Whisper"), "model is 'Whisper', expected 'ParaformerStreaming'"),
    "model long": (config("model", "x" * 100_000), "config.yaml is of another model: model is 'xxx"),
    "model lines": (config("model", "a\nb\x1b[2J"), r"config.yaml is of another model: model is 'a\nb\x1b"),
    "model date": (write("config.yaml", "model: 2024-01-01"), "config.yaml is of another model: model is '2024-01-01'"),
    "tokenizer number": (config("tokenizer", 5), "config.yaml is wrong: tokenizer must be a name"),
    "frontend list": (config("frontend", ["WavFrontend"]), "config.yaml is wrong: frontend must be a name"),
    "tokenizer_conf list": (config("tokenizer_conf", [1]), "config.yaml is wrong: tokenizer_conf must be a mapping"),
    "frontend_conf text": (config("frontend_conf", "x"), "config.yaml is wrong: frontend_conf must be a mapping"),
    "model_conf number": (config("model_conf", 0), "config.yaml is wrong: model_conf must be a mapping"),
    "scope_map number": (config("scope_map", 5), "config.yaml is wrong: scope_map must be a list"),
    "scope_map true": (config("scope_map", True), "config.yaml is wrong: scope_map must be a list"),
    "scope_map mapping": (config("scope_map", {"a": "b"}), "config.yaml is wrong: scope_map must be a list"),
    "scope_map numbers": (config("scope_map", [1, 2]), "config.yaml is wrong: scope_map must be a list"),
    "scope_map nulls": (config("scope_map", ["a", None]), "config.yaml is wrong: scope_map must be a list"),
    "scope_map huge": (config("scope_map", ["e", "ee"] * 9_000), "config.yaml is wrong: scope_map must be a list"),
    "scope_map text huge": (config("scope_map", "e,ee," * 9_000), "config.yaml is wrong: scope_map must be a list"),
    "scope_map long": (config("scope_map", ["e", "e" * 200_000]), "config.yaml is wrong: scope_map must be a list"),
    "number huge": (config("encoder_conf.linear_units", 10**9), "config.yaml is wrong: encoder_conf.linear_units is 1e+09"),
    "number 90 digits": (config("decoder_conf.num_blocks", 10**90), "config.yaml is wrong: decoder_conf.num_blocks is 1e+90"),
    "number -huge": (config("predictor_conf.idim", -(10**7)), "config.yaml is wrong: predictor_conf.idim is -1e+07"),
    "number nan": (config("model_conf.lsm_weight", float("nan")), "config.yaml is wrong: model_conf.lsm_weight is nan"),
    "number inf": (config("frontend_conf.fs", float("inf")), "config.yaml is wrong: frontend_conf.fs is inf"),
    "number -inf in lists": (config("ctc_conf", [[float("-inf")]]), "config.yaml is wrong: ctc_conf is -inf"),
    "stride huge": (config("encoder_conf.lstride", 50_000), "config.yaml is wrong: encoder_conf.lstride is 5e+04"),
    "reference": (config("model_conf.a", "${oc.env:HOME}"), "config.yaml is wrong: model_conf.a refers to something else"),
    "json cut": (write("configuration.json", '{"file_path_metas": {'), "configuration.json is not a FunASR description (JSON"),
    "json utf-16": (write("configuration.json", "{}".encode("utf-16")), "configuration.json is not UTF-8 text (byte 0)"),
    "json latin-1": (write("configuration.json", b'{"a": "\xe9"}'), "configuration.json is not UTF-8 text (byte 7)"),
    "json deep": (write("configuration.json", "[" * 100_000), "configuration.json is not a FunASR description (Recursion"),
    "json deep mapping": (write("configuration.json", '{"a":' * 100_000), "configuration.json is not a FunASR description (Rec"),
    "json digits": (write("configuration.json", "9" * 5_000), "configuration.json is not a FunASR description ("),
    "json huge": (write("configuration.json", " " * 2**21 + "{}"), "configuration.json is larger than 1,048 kB"),
    "json null": (write("configuration.json", "null"), "configuration.json is not a FunASR description (Attribute"),
    "json text": (write("configuration.json", '"model.pt"'), "configuration.json is not a FunASR description (Attribute"),
    "metas null": (write("configuration.json", '{"file_path_metas": null}'), "configuration.json is not a FunASR description"),
    "metas list": (write("configuration.json", '{"file_path_metas": [1]}'), "configuration.json is not a FunASR description"),
    "metas tokenizer list": (described(tokenizer_conf=["tokens.json"]), "configuration.json is not a FunASR description"),
    "metas frontend text": (described(frontend_conf="am.mvn"), "configuration.json is not a FunASR description"),
    "name number": (described(init_param=5), "configuration.json names a file by something that is no text"),
    "name null": (described(tokenizer_conf={"token_list": None}), "configuration.json names a file by something that is no"),
    "name list": (described(config=["config.yaml"]), "configuration.json names a file by something that is no text"),
    "name empty": (described(config=""), "configuration.json names '', which is no file of this directory"),
    "name above": (described(init_param="../asr/model.pt"), "configuration.json names '../asr/model.pt', which is no file"),
    "name above inside": (described(init_param="a/../../x"), "configuration.json names 'a/../../x', which is no file"),
    "name absolute": (described(frontend_conf={"cmvn_file": "/etc/passwd"}), "configuration.json names '/etc/passwd', which"),
    "name of a drive": (described(init_param="C:model.pt"), "configuration.json names 'C:model.pt', which is no file"),
    "name with NUL": (described(init_param="a\0b"), r"configuration.json names 'a\x00b', which is no file"),
    "name of none": (described(init_param="other.pt"), "lacks other.pt"),
    "name long": (described(init_param="客" * 100), "configuration.json names '客客客"),
    "name surrogate": (described(init_param="\ud800.pt"), r"lacks \ud800.pt"),
    "name of itself": (described(init_param="."), "lacks asr"),
}


@table(DESCRIPTIONS)
def test_a_damaged_description_is_refused_before_anything_is_loaded(asr: Path, damage: Damage, says: str, asked: list[str]) -> None:
    damage(asr)
    refused(lambda: locate_models(SETTINGS.model_copy(update={"model_dir": str(asr)})), says)
    assert asked == []
    refused(lambda: load(asr), says)


# --- config.yaml that FunASR builds no model of, or another one -------------------------------------------------------------

NOT_BUILT = "config.yaml does not describe a ParaformerStreaming FunASR can build"
TOO_LARGE = f"{NOT_BUILT} (TooLarge: it asks for far more weights than the weights file holds)"
UNFIT = "model.pt does not fit config.yaml: "
MODULES: Cases = {
    **{f"{key} unknown": (config(key, "NoSuch"), NOT_BUILT) for key in ("tokenizer", "frontend", "encoder", "decoder", "predictor")},
    **{
        f"no {key}": (config(key), f"{NOT_BUILT} (")
        for key in ("encoder", "encoder_conf", "decoder", "decoder_conf", "predictor", "predictor_conf")
    },
    **{f"no {key}": (config(key), "model.pt lacks ") for key in ("decoder_conf.att_layer_num", "encoder_conf.input_layer")},
    **{f"{key} list": (config(key, [1]), NOT_BUILT) for key in ("encoder", "encoder_conf", "decoder", "decoder_conf", "predictor_conf")},
    **{f"{key} text": (config(key, "x"), NOT_BUILT) for key in ("encoder_conf", "decoder_conf", "predictor_conf", "specaug_conf")[:3]},
    **{f"{key} unknown": (config(f"{key}.x", 1), NOT_BUILT) for key in ("encoder_conf", "decoder_conf", "predictor_conf")},
    **{
        f"{key} huge": (config(key, 1_000_000), TOO_LARGE)
        for key in ("encoder_conf.linear_units", "encoder_conf.num_blocks", "encoder_conf.output_size", "encoder_conf.kernel_size")
    },
    **{
        f"{key} huge": (config(key, 1_000_000), TOO_LARGE)
        for key in ("decoder_conf.linear_units", "decoder_conf.num_blocks", "decoder_conf.att_layer_num", "predictor_conf.idim")
    },
    "n_mels huge": (config("frontend_conf.n_mels", 1_000_000), "am.mvn does not hold 7000000 means and variances"),
    "n_mels 0": (config("frontend_conf.n_mels", 0), f"{NOT_BUILT} (ValueError: n_mels must be a whole number above 0)"),
    "lfr_m list": (
        lambda at: (config("frontend_conf.lfr_m", [1] * 9_000)(at), config("frontend_conf.n_mels", 10**6)(at)),
        f"{NOT_BUILT} (ValueError: lfr_m must",
    ),
    "lfr_m text": (config("frontend_conf.lfr_m", "x" * 9_000), f"{NOT_BUILT} (ValueError: lfr_m must be a whole number"),
    "linear_units 0": (config("encoder_conf.linear_units", 0), f"{UNFIT}encoder.encoders0.0.feed_forward.w_1.weight"),
    "linear_units -1": (config("encoder_conf.linear_units", -1), NOT_BUILT),
    "linear_units text": (config("encoder_conf.linear_units", "640"), NOT_BUILT),
    "linear_units list": (config("encoder_conf.linear_units", [640]), NOT_BUILT),
    "linear_units float": (config("encoder_conf.linear_units", 640.5), NOT_BUILT),
    "linear_units smaller": (config("decoder_conf.linear_units", 320), UNFIT),
    "output_size 0": (config("encoder_conf.output_size", 0), NOT_BUILT),
    "output_size larger": (config("encoder_conf.output_size", 164), UNFIT),
    "attention_heads 0": (config("encoder_conf.attention_heads", 0), NOT_BUILT),
    "kernel_size 0": (config("encoder_conf.kernel_size", 0), UNFIT),
    "kernel_size -1": (config("decoder_conf.kernel_size", -1), NOT_BUILT),
    "num_blocks 0": (config("encoder_conf.num_blocks", 0), f"{NOT_BUILT} (ValueError: it lacks the layer encoder.encoders.0,"),
    "num_blocks -1": (config("encoder_conf.num_blocks", -1), f"{NOT_BUILT} (ValueError: it lacks the layer encoder.encoders.0,"),
    "num_blocks smaller": (
        config("encoder_conf.num_blocks", NUM_BLOCKS - 1),
        f"{NOT_BUILT} (ValueError: it lacks the layer encoder.encoders.{NUM_BLOCKS - 2},",
    ),
    "num_blocks larger": (
        config("encoder_conf.num_blocks", NUM_BLOCKS + 1),
        f"model.pt lacks {BLOCK_WEIGHTS} of {NUM_WEIGHTS + BLOCK_WEIGHTS} weights, first encoder.encoders.{NUM_BLOCKS - 1}.",
    ),
    "num_blocks null": (config("decoder_conf.num_blocks", None), NOT_BUILT),
    "input_layer unknown": (config("encoder_conf.input_layer", "x"), NOT_BUILT),
    "dropout_rate 2": (config("encoder_conf.dropout_rate", 2), NOT_BUILT),
    "chunk_size number": (config("encoder_conf.chunk_size", 5), NOT_BUILT),
    "unk_symbol": (config("tokenizer_conf.unk_symbol", ["<unk>"]), "tokens.json lacks ['<unk>'], the token that stands for unknown"),
    "token_list": (config("tokenizer_conf.token_list", ["a"]), NOT_BUILT),
    "values": (config("a", [[1] * 9_000] * 3), "config.yaml holds more than 20,000 values"),
}


@table(MODULES)
def test_a_config_that_does_not_fit_is_refused(asr: Path, damage: Damage, says: str) -> None:
    damage(asr)
    refused(lambda: load(asr), says)


USED: Cases = {
    "fs 0": (config("frontend_conf.fs", 0), "config.yaml describes a model that cannot be used (ZeroDivisionError"),
    "frame_length -1": (config("frontend_conf.frame_length", -1), "config.yaml describes a model that cannot be used ("),
    "frame_shift 0": (config("frontend_conf.frame_shift", 0), "config.yaml describes a model that cannot be used (ZeroDivisionError"),
    "lfr_n 0": (config("frontend_conf.lfr_n", 0), "config.yaml describes a model that cannot be used (ZeroDivisionError"),
    "window": (config("frontend_conf.window", "x"), "config.yaml describes a model that cannot be used ("),
    "attention_heads": (config("encoder_conf.attention_heads", -1), "config.yaml describes a model that cannot be used (Runtime"),
    "sanm_shfit": (config("decoder_conf.sanm_shfit", 0), "the decoder looks ahead (decoder_conf.sanm_shfit)"),
    "threshold": (config("predictor_conf.tail_threshold", "x"), "config.yaml describes a model that cannot be used (ValueError: could"),
}


@table(USED)
def test_a_model_that_loads_and_cannot_be_used_is_refused_before_anybody_speaks(asr: Path, damage: Damage, says: str) -> None:
    damage(asr)
    model = load(asr)
    refused(lambda: built(models_of(recognition=model)), says)


# --- weights --------------------------------------------------------------------------------------------------------------

DAMAGED = "model.pt is damaged or holds more than weights"
NO_DICT = "model.pt holds no state dict"
ENCODER = "encoder.encoders.3.feed_forward.w_1.weight"
PARTS = {"encoder": ENCODER, "decoder": "decoder.output_layer.bias", "predictor": "predictor.cif_output.bias"}
WEIGHTS: Cases = {
    **{
        f"{value} in {part}": (weight(key, with_value(value)), f"model.pt holds weights that are NaN or infinite, first in {key}")
        for value in (float("nan"), float("inf"), float("-inf"))
        for part, key in PARTS.items()
    },
    "inf in float16": (weight(ENCODER, lambda tensor: with_value(float("inf"))(tensor.half())), "model.pt holds weights that are NaN"),
    "text": (write("model.pt", "version https://git-lfs.github.com/spec/v1\n"), DAMAGED),
    "empty": (write("model.pt", b""), DAMAGED),
    "zeros": (write("model.pt", bytes(100_000)), DAMAGED),
    "gzip": (write("model.pt", b"\x1f\x8b\x08" + bytes(1_000)), DAMAGED),
    "pickle of another": (write("model.pt", pickle.dumps({"a": 1}, protocol=2)), DAMAGED),
    "wrong magic": (write("model.pt", pickle.dumps(1, protocol=2) * 5), DAMAGED),
    "cut in half": (cut(4_000_000), DAMAGED),
    "cut by a byte": (lambda at: os.truncate(at / "model.pt", (at / "model.pt").stat().st_size - 1), DAMAGED),
    "cut in its magic": (cut(4), DAMAGED),
    "pickle cut": (pickled(pickle.dumps({"a": [1, 2]}, protocol=2)[:-3]), f"{DAMAGED} (ValueError: pickle exhausted"),
    "pickle empty": (pickled(b""), DAMAGED),
    "pickle of protocol 4": (pickled(pickle.dumps(OrderedDict(a=1), protocol=4)), DAMAGED),
    "pickle stack": (pickled(b"\x80\x02."), DAMAGED),
    "pickle memo": (pickled(b"\x80\x02h\x05."), DAMAGED),
    "pickle long": (pickled(b"\x80\x02(" + b"N" * 2**20 + b"t."), f"{DAMAGED} (ValueError: model/data.pkl has 1,048,581 bytes)"),
    "pickle missing": (lambda at: zipfile.ZipFile(at / "model.pt", "w").close(), DAMAGED),
    "no storage": (pickled(b"\x80\x02X\x01\x00\x00\x00aQ."), DAMAGED),
    "torchscript": (pickled(pickle.dumps({}, protocol=2), **{"constants.pkl": b"\x80\x02)."}), DAMAGED),
    "legacy cut": (lambda at: (weights(lambda _: None, _use_new_zipfile_serialization=False)(at), cut(5_000_000)(at)), DAMAGED),
    "legacy cut in its pickle": (lambda at: (weights(lambda _: None, _use_new_zipfile_serialization=False)(at), cut(500)(at)), DAMAGED),
    "bytearray": (weights(lambda _: {"a": Reduced(bytearray, 10**10)}), f"{DAMAGED} (ValueError: it uses __builtin__ bytearray)"),
    "legacy bytearray": (weights(lambda _: Reduced(bytearray, 10**10), _use_new_zipfile_serialization=False), f"{DAMAGED} (ValueError: it"),
    "codec": (weights(lambda _: {"a": Reduced(__import__("_codecs").encode, "ä" * 99, "punycode")}), f"{DAMAGED} (ValueError: it uses _c"),
    "compressed": (lambda at: zipped_again(at, compression=zipfile.ZIP_DEFLATED), f"{DAMAGED} (ValueError: its records are compressed)"),
    "zip bomb": (bomb, f"{DAMAGED} (ValueError: its records are compressed)"),
    "zip overlaps": (overlapping, f"{DAMAGED} (ValueError: its records overlap)"),
    "list": (weights(list), NO_DICT),
    "tensor": (weights(lambda _: torch.zeros(3)), NO_DICT),
    "number": (weights(lambda _: 5), NO_DICT),
    "nothing": (pickled(pickle.dumps(None, protocol=2)), NO_DICT),
    "numbers": (weights(lambda state: dict.fromkeys(state, 1.0)), NO_DICT),
    "lists": (weights(lambda state: {key: value[:1].tolist() for key, value in state.items() if value.ndim}), NO_DICT),
    "nested lists": (weights(lambda _: {"a": nested(200)}), NO_DICT),
    "dicts": (weights(lambda state: {"a": state}), NO_DICT),
    "dict in itself": (weights(lambda _: loop()), NO_DICT),
    "number as key": (weights(lambda state: state.update({1: torch.zeros(1)})), NO_DICT),
    "no weights": (weights(lambda _: {}), f"model.pt lacks {NUM_WEIGHTS} of {NUM_WEIGHTS} weights, first "),
    "meta": (weight(ENCODER, lambda tensor: tensor.to("meta")), f"{DAMAGED} (ValueError: it uses torch._utils _rebuild_meta"),
    "sparse": (weight(ENCODER, lambda tensor: tensor.to_sparse()), f"{DAMAGED} (ValueError: it uses torch._utils _rebuild_sparse"),
    "sparse rows": (weight(ENCODER, lambda tensor: tensor.to_sparse_csr()), f"{DAMAGED} (ValueError: it uses torch."),
    "quantized": (
        weight(ENCODER, lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)),
        f"{DAMAGED} (ValueError: it uses",
    ),
    "complex": (weight(ENCODER, lambda tensor: tensor.to(torch.complex64)), f"{UNFIT}{ENCODER} holds torch.complex64, config.yaml asks"),
    "integer": (weight(ENCODER, lambda tensor: tensor.int()), f"{UNFIT}{ENCODER} holds torch.int32, config.yaml asks for torch.float32"),
    "boolean": (weight(ENCODER, lambda tensor: tensor > 0), f"{UNFIT}{ENCODER} holds torch.bool, config.yaml asks for torch.float32"),
    "expanded": (weight(ENCODER, lambda tensor: tensor[:1].clone().expand(tensor.shape)), f"model.pt is damaged: {ENCODER} has fewer"),
    "expanded far": (weight(ENCODER, lambda tensor: tensor[:1, :1].clone().expand(10**6, 10**6)), f"{UNFIT}{ENCODER} has shape (1000000,"),
    "overlapping": (
        weight(ENCODER, lambda tensor: tensor.flatten()[: len(tensor) * 100].clone().as_strided(tensor.shape, (99, 1))),
        f"model.pt is damaged: {ENCODER} has fewer stored values than its shape",
    ),
    "beyond its storage": (beyond_storage, DAMAGED),
    "scalar": (
        weight("decoder.output_layer.weight", lambda tensor: tensor.sum()),
        f"tokens.json has {NUM_TOKENS} tokens, but model.pt was trained with 0",
    ),
    "transposed": (weight(ENCODER, lambda tensor: tensor.T.contiguous()), f"{UNFIT}{ENCODER} has shape"),
}


@table(WEIGHTS)
def test_damaged_weights_are_refused(asr: Path, damage: Damage, says: str) -> None:
    damage(asr)
    refused(lambda: load(asr), says)


def test_a_file_from_before_pytorch_1_6_loads(asr: Path) -> None:
    weights(lambda _: None, _use_new_zipfile_serialization=False)(asr)
    assert load(asr).num_parameters


# --- vocabulary, means and variances ------------------------------------------------------------------------------------------

NO_LIST = "tokens.json is not a list of tokens"
NO_MEANS = "am.mvn does not hold 560 means and variances"
TEXTS: Cases = {
    "tokens utf-16": (write("tokens.json", '["a"]'.encode("utf-16")), "tokens.json is not UTF-8 text (byte 0)"),
    "tokens gbk": (write("tokens.json", '["客"]'.encode("gbk")), "tokens.json is not UTF-8 text (byte 2)"),
    "tokens deep": (write("tokens.json", "[" * 100_000), "tokens.json is not JSON (RecursionError"),
    "tokens digits": (write("tokens.json", f"[{'9' * 5_000}]"), "tokens.json is not"),
    "tokens cut": (lambda at: os.truncate(at / "tokens.json", 5_001), "tokens.json is not JSON (JSONDecodeError"),
    "tokens empty": (write("tokens.json", ""), "tokens.json is not JSON (JSONDecodeError"),
    "tokens twice": (vocabulary(lambda known: [*known[:-1], known[5]]), "tokens.json lists the token "),
    "tokens none": (write("tokens.json", "[]"), NO_LIST),
    "tokens text": (write("tokens.json", '"abc"'), NO_LIST),
    "tokens mapping": (vocabulary(lambda known: dict.fromkeys(known, 1)), NO_LIST),
    "tokens nested": (vocabulary(lambda known: [[token] for token in known]), NO_LIST),
    "tokens null": (vocabulary(lambda known: [*known[:-1], None]), NO_LIST),
    "tokens numbers": (vocabulary(lambda known: [*range(len(known))]), NO_LIST),
    "tokens lists": (write("tokens.json", f"[{'[],' * 2_000_000}[]]"), NO_LIST),
    "tokens fewer": (vocabulary(lambda known: known[1:]), f"tokens.json has {NUM_TOKENS - 1} {OTHER_NUMBER}"),
    "tokens more": (vocabulary(lambda known: [*known, "more"]), f"tokens.json has {NUM_TOKENS + 1} {OTHER_NUMBER}"),
    "tokens far more": (
        vocabulary(lambda known: [*known, *map(str, range(10**6, 2 * 10**5 + 10**6))]),
        f"tokens.json has {NUM_TOKENS + 200_000} tokens, but",
    ),
    "tokens huge": (write("tokens.json", b'["' + b"x" * 2**24 + b'"]'), "tokens.json is larger than 16,777 kB"),
    "tokens without unknown": (vocabulary(lambda known: known[:-1]), "tokens.json lacks '<unk>', the token that stands for unknown ones"),
    "cmvn empty": (write("am.mvn", ""), NO_MEANS),
    "cmvn blank": (write("am.mvn", "\n\n\n"), NO_MEANS),
    "cmvn other": (write("am.mvn", '{"means": []}'), NO_MEANS),
    "cmvn narrower": (config("frontend_conf.lfr_m", 5), "am.mvn does not hold 400 means and variances"),
    "cmvn one more": (cmvn(first_number("0 0")), NO_MEANS),
    "cmvn means only": (cmvn(lambda text: text[: text.index("<Rescale>")]), NO_MEANS),
    "cmvn cut": (cmvn(lambda text: text[: len(text) // 4]), NO_MEANS),
    "cmvn words": (cmvn(first_number("x")), NO_MEANS),
    "cmvn nan": (cmvn(first_number("nan")), "am.mvn holds means or variances that are NaN or infinite"),
    "cmvn inf": (cmvn(first_number("-inf")), "am.mvn holds means or variances that are NaN or infinite"),
    "cmvn beyond float32": (cmvn(first_number("1e39")), "am.mvn holds means or variances that are NaN or infinite"),
    "cmvn utf-16": (write("am.mvn", "<Nnet>".encode("utf-16")), "am.mvn is not UTF-8 text (byte 0)"),
    "cmvn binary": (write("am.mvn", b"\0B<Nnet>\xff"), "am.mvn is not UTF-8 text (byte 8)"),
    "cmvn long number": (cmvn(first_number("1" * 900_000)), "am.mvn holds a number of 900,000 characters"),
    "cmvn long line": (cmvn(first_number("1 " * 2**20)), "am.mvn is larger than 1,048 kB"),
}


@table(TEXTS)
def test_a_damaged_vocabulary_or_cmvn_is_refused(asr: Path, damage: Damage, says: str) -> None:
    damage(asr)
    refused(lambda: load(asr), says)


# --- SHA256SUMS -----------------------------------------------------------------------------------------------------------

NAMES = ("config.yaml", "configuration.json", "model.pt", "tokens.json", "am.mvn")
ZEROS = "0" * 64


def sums(directory: Path, form: str = "{sum}  {name}\n") -> str:
    """The right list, each line in the given form."""
    return "".join(
        form.format(sum=digest, SUM=digest.upper(), name=name)
        for name in NAMES
        for digest in [hashlib.sha256((directory / name).read_bytes()).hexdigest()]
    )


def listed(edit: Callable[[str], str | bytes]) -> Damage:
    return lambda directory: write("SHA256SUMS", edit(sums(directory)))(directory)


FOREIGN = "which does not list a file of this directory"
SUMS: Cases = {
    "utf-16": (listed(lambda text: text.encode("utf-16")), "SHA256SUMS is not UTF-8 text (byte 0)"),
    "binary": (write("SHA256SUMS", b"\xff" * 100), "SHA256SUMS is not UTF-8 text (byte 0)"),
    "garbage": (listed(lambda text: f"{text}garbage\n"), f"SHA256SUMS has the line 'garbage', {FOREIGN}"),
    "no name": (write("SHA256SUMS", f"{ZEROS}  \n"), "SHA256SUMS has the line "),
    "short sum": (listed(lambda text: text[1:]), "SHA256SUMS has the line "),
    "long sum": (listed(lambda text: f"0{text}"), "SHA256SUMS has the line "),
    "md5": (write("SHA256SUMS", f"{'0' * 32}  model.pt\n"), "SHA256SUMS has the line "),
    "bsd": (write("SHA256SUMS", f"SHA256 (model.pt) = {ZEROS}\n"), "SHA256SUMS has the line 'SHA256 (model.pt)"),
    "one line": (listed(lambda text: text.replace("\n", " ")), "SHA256SUMS has the line "),
    "above": (write("SHA256SUMS", f"{ZEROS}  ../asr/model.pt\n"), "SHA256SUMS has the line "),
    "absolute": (write("SHA256SUMS", f"{ZEROS}  /etc/passwd\n"), "SHA256SUMS has the line "),
    "NUL": (write("SHA256SUMS", f"{ZEROS}  a\0b\n"), "SHA256SUMS has the line "),
    "missing file": (listed(lambda text: f"{text}{ZEROS}  seg_dict\n"), "lacks seg_dict, which SHA256SUMS lists"),
    "directory": (listed(lambda text: f"{text}{ZEROS}  .\n"), "lacks ., which SHA256SUMS lists"),
    "wrong sum": (write("SHA256SUMS", f"{ZEROS}  am.mvn\n"), "am.mvn is not the file that SHA256SUMS lists: damaged or changed"),
    "wrong sum of -b": (write("SHA256SUMS", f"{ZEROS} *am.mvn\n"), "am.mvn is not the file that SHA256SUMS lists"),
    "wrong sum behind the right": (listed(lambda text: f"{text}{ZEROS}  am.mvn\n"), "am.mvn is not the file that SHA256SUMS lists"),
    "huge": (listed(lambda text: text * 5_000), "SHA256SUMS is larger than 1,048 kB"),
    "long line": (write("SHA256SUMS", "x" * 900_000), "SHA256SUMS has the line 'xxx"),
}


@table(SUMS)
def test_sums_that_are_wrong_or_no_sums_are_refused(asr: Path, damage: Damage, says: str) -> None:
    damage(asr)
    refused(lambda: load(asr), says)


def test_a_listed_file_that_may_not_be_read_is_the_one_that_is_named(asr: Path) -> None:
    listed(lambda text: text)(asr)
    (asr / "am.mvn").chmod(0)
    user = os.geteuid()
    os.seteuid(65_534 if user == 0 else user)
    try:
        refused(lambda: load(asr), "am.mvn cannot be read (Permission denied)")
    finally:
        os.seteuid(user)


@pytest.mark.parametrize(
    "form",
    ["{sum}  {name}\n", "{sum} *{name}\n", "\n{sum}  {name}\n  \n", "# sums\n{sum}  {name}\n", "{sum}  {name}\r\n", "{SUM}  {name}\n"],
)
def test_right_sums_in_every_form_of_sha256sum_load_and_are_compared(asr: Path, form: str) -> None:
    text = sums(asr, form)
    write("SHA256SUMS", text)(asr)
    assert load(asr)
    write("SHA256SUMS", f"\ufeff{text}")(asr)
    assert load(asr)
    cmvn(first_number("0.5"))(asr)
    refused(lambda: load(asr), "am.mvn is not the file that SHA256SUMS lists")


def test_a_file_that_is_listed_ten_thousand_times_is_read_once(asr: Path) -> None:
    listed(lambda text: text.splitlines()[2] + "\n")(asr)
    (line,) = (asr / "SHA256SUMS").read_text().splitlines()
    (asr / "SHA256SUMS").write_text(f"{line}\n" * 10_000 + "end")
    refused(lambda: load(asr), "SHA256SUMS has the line 'end'")


# --- the models that the service can do without ---------------------------------------------------------------------------

SPEC = "model_conf.modalities.audio.feature_encoder_spec"
NO_EMOTION = "config.yaml does not describe a Emotion2vec FunASR can build"
EMOTION: Cases = {
    "code": (config(SPEC, "[__import__('os').system('touch ran')]"), NO_EMOTION),
    "code behind layers": (config(SPEC, "[(64, 40, 16)] + [open('ran', 'w')] * 0"), NO_EMOTION),
    "code as count": (config(SPEC, "[(64, 40, 16)] * len(open('ran', 'w').name)"), NO_EMOTION),
    "repetition": (config(SPEC, "[(64, 40, 16)] * 1000000000"), f"{NO_EMOTION} (ValueError: feature_encoder_spec has more than 64 layers)"),
    "repetition of text": (config(SPEC, "'x' * 10000000000"), NO_EMOTION),
    "power": (config(SPEC, "[(64, 40, 16)] * 9**9**9"), NO_EMOTION),
    "long": (
        config(SPEC, "+".join(["[(64, 40, 16)]"] * 9_000)),
        f"{NO_EMOTION} (ValueError: feature_encoder_spec has more than 1,000 char",
    ),
    "deep": (config(SPEC, "(" * 900), NO_EMOTION),
    "digits": (config(SPEC, f"[({'9' * 900}, 1, 1)]"), NO_EMOTION),
    "width": (config(SPEC, "[(64000000, 400, 16)]"), f"{NO_EMOTION} (TooLarge"),
    "no layers": (config(SPEC, "[]"), NO_EMOTION),
    "spec null": (config(SPEC, None), NO_EMOTION),
    "spec number": (config(SPEC, 5), NO_EMOTION),
    "spec list": (config(SPEC, [[64, 40, 16]]), NO_EMOTION),
    "spec missing": (config(SPEC), NO_EMOTION),
    "audio list": (config("model_conf.modalities.audio", [1]), NO_EMOTION),
    "modalities null": (config("model_conf.modalities", None), NO_EMOTION),
    "modalities beside": (lambda at: (config("modalities", {"audio": {}})(at), config("model_conf.modalities")(at)), NO_EMOTION),
    "model_conf missing": (config("model_conf"), NO_EMOTION),
    "depth huge": (config("model_conf.depth", 1_000_000), f"{NO_EMOTION} (TooLarge"),
    "depth smaller": (config("model_conf.depth", 1), f"{NO_EMOTION} (ValueError: it lacks the layer blocks.1,"),
    "embed_dim huge": (config("model_conf.embed_dim", 1_000_000), f"{NO_EMOTION} (TooLarge"),
    "num_heads 0": (config("model_conf.num_heads", 0), NO_EMOTION),
    "alibi": (
        lambda at: [
            config(f"model_conf.modalities.audio.{key}", value)(at)
            for key, value in {"learned_alibi": True, "alibi_max_pos": 20_000}.items()
        ],
        f"{NO_EMOTION} (ValueError: learned_alibi must be false",
    ),
    "interpolation": (
        config("model_conf.modalities.audio.type", "${model_conf}"),
        "config.yaml is wrong: model_conf.modalities.audio.type refers",
    ),
    "labels twice": (write("tokens.txt", "angry\n" * 10), "tokens.txt lists the token 'angry' twice"),
    "labels fewer": (write("tokens.txt", "angry\n<unk>\n"), "tokens.txt has 2 tokens, but model.pt was trained with"),
    "labels empty": (write("tokens.txt", ""), "tokens.txt is not a list of tokens"),
    "labels utf-16": (write("tokens.txt", "angry\n<unk>".encode("utf-16")), "tokens.txt is not UTF-8 text"),
    "nan": (weight("proj.bias", with_value(float("nan"))), "model.pt holds weights that are NaN or infinite, first in proj.bias"),
}


@table(EMOTION)
def test_a_damaged_emotion_model_is_refused_and_no_text_of_it_is_run(
    damage: Damage, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with copied("emotion") as directory:
        damage(directory)
        refused(lambda: load(directory, "emotion"), says)
    assert not list(tmp_path.iterdir())


def test_a_comment_between_the_layers_of_an_emotion_model_is_never_replaced_and_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """OmegaConf would put another setting in place of ``${...}``, and FunASR would run what that makes."""
    monkeypatch.chdir(tmp_path)
    with copied("emotion") as directory:
        config("model_conf.a", "\n + [open('ran', 'w')][:0]")(directory)
        spec = yaml.safe_load((directory / "config.yaml").read_text())["model_conf"]["modalities"]["audio"]["feature_encoder_spec"]
        config(SPEC, f"({spec} # ${{a}}\n)")(directory)
        refused(lambda: load(directory, "emotion"), "config.yaml is wrong")
        config(SPEC, f"({spec} # comment\n)")(directory)
        assert load(directory, "emotion")
    assert not list(tmp_path.iterdir())


NO_PUNCTUATION = "config.yaml does not describe a CTTransformer FunASR can build"
PUNCTUATION: Cases = {
    "punc_list number": (config("model_conf.punc_list", 6), NO_PUNCTUATION),
    "punc_list missing": (config("model_conf.punc_list"), NO_PUNCTUATION),
    "punc_list shorter": (config("model_conf.punc_list", ["，"]), "model.pt does not fit config.yaml: decoder.weight has shape"),
    "punc_list huge": (config("model_conf.punc_list", "x" * 200_000), f"{NO_PUNCTUATION} (TooLarge"),
    "embed_unit huge": (config("model_conf.embed_unit", 1_000_000), f"{NO_PUNCTUATION} (TooLarge"),
    "embed_unit -1": (config("model_conf.embed_unit", -1), NO_PUNCTUATION),
    "encoder missing": (config("encoder"), NO_PUNCTUATION),
    "encoder_conf null": (config("encoder_conf", None), NO_PUNCTUATION),
    "num_blocks smaller": (config("encoder_conf.num_blocks", 2), f"{NO_PUNCTUATION} (ValueError: it lacks the layer encoder.encoders.1,"),
    "tokens twice": (vocabulary(lambda known: [*known[:-1], known[5]]), "tokens.json lists the token"),
    "tokens fewer": (vocabulary(lambda known: known[1:]), "tokens, but model.pt was trained with"),
    "inf": (weight("decoder.bias", with_value(float("inf"))), "model.pt holds weights that are NaN or infinite, first in decoder.bias"),
    "no weights": (write("model.pt", b""), DAMAGED),
}


@table(PUNCTUATION)
def test_a_damaged_punctuation_model_is_refused(damage: Damage, says: str) -> None:
    with copied("punctuation") as directory:
        damage(directory)
        refused(lambda: load(directory, "punctuation"), says)


def test_a_list_of_words_that_a_punctuation_model_names_is_not_opened() -> None:
    with copied("punctuation") as directory, little_memory():
        config("model_conf.jieba_usr_dict", "/dev/zero")(directory)
        assert load(directory, "punctuation")


def models_of(**parts: FunasrModel) -> Models:
    return Models(**{"vad": None, "second_pass": None, "punctuation": None, "emotion": None, **parts}, name="x", problems=())  # type: ignore[arg-type]


def built(models: Models, **settings: Any) -> Any:
    """The pipeline of streaming mode."""
    wanted = load_settings({"embedded": True, **settings}, environment={})
    return build_pipeline(wanted, "streaming", models, ledger=LossLedger(), hotwords=HotwordList(()))


FLAGS: dict[str, Callable[[str], dict[str, Any]]] = {
    "punctuation": lambda path: {"final": {"punctuation_model": path}},
    "emotion": lambda path: {"emotion": {"enabled": True, "model": path}},
    "second_pass": lambda path: {"final": {"second_pass": path}},
}
OPTIONAL: dict[str, tuple[Damage, str]] = {
    "located": (shutil.rmtree, "does not exist"),
    "described": (write("config.yaml", "[" * 100_000), "config.yaml is nested deeper than 32 levels"),
    "loaded": (cut(100_000), DAMAGED),
    "summed": (write("SHA256SUMS", f"{ZEROS}  model.pt\n"), "model.pt is not the file that SHA256SUMS lists"),
}
USED_OPTIONAL: dict[str, tuple[Damage, str]] = {
    "punctuation": (
        config("model_conf.punc_list", [[1], "_", "，", "。", "？", "、"]),
        "punctuation/config.yaml describes a model that cannot be",
    ),
    "emotion": (
        lambda at: write("tokens.txt", (at / "tokens.txt").read_text().replace("angry", "bored"))(at),
        "emotion has labels that are no",
    ),
}


@contextlib.contextmanager
def copied_optional(name: str) -> Iterator[Path]:
    if name == "second_pass":
        with tempfile.TemporaryDirectory() as parent:
            write_offline_directory(Path(parent) / name)
            yield Path(parent) / name
    else:
        with copied(name) as directory:
            yield directory


def models_with(name: str, directory: Path) -> Models:
    settings = load_settings({"embedded": True, "model": {"engine": "torch"}, **FLAGS[name](str(directory))}, environment={})
    return load_models(locate_models(settings), settings)


@pytest.mark.parametrize("name", FLAGS)
def test_an_undamaged_optional_model_is_had(name: str) -> None:
    with copied_optional(name) as directory:
        models = models_with(name, directory)
        assert getattr(models, name)
        assert built(models, **FLAGS[name](str(directory))).problems == ()


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize(("damage", "says"), OPTIONAL.values(), ids=OPTIONAL)
def test_a_damaged_optional_model_costs_only_a_problem(name: str, damage: Damage, says: str) -> None:
    with copied_optional(name) as directory, little_memory():
        damage(directory)
        models = models_with(name, directory)
        (problem,) = built(models, **FLAGS[name](str(directory))).problems
    assert (getattr(models, name), models.problems) == (None, (problem,))
    assert says in str(problem)


@pytest.mark.parametrize("name", USED_OPTIONAL)
def test_an_optional_model_that_loads_and_cannot_be_used_costs_only_a_problem(name: str) -> None:
    damage, says = USED_OPTIONAL[name]
    with copied_optional(name) as directory:
        damage(directory)
        models = models_with(name, directory)
        assert models.problems == ()
        (problem,) = built(models, **FLAGS[name](str(directory))).problems
    assert says in str(problem)


# --- whole directories ----------------------------------------------------------------------------------------------------


WHOLE: dict[str, tuple[Damage, str]] = {
    "empty": (
        lambda at: [file.unlink() for file in at.iterdir() if file.is_file()],
        "lacks config.yaml, model.pt; give the directory that holds",
    ),
    "only weights": (
        lambda at: [file.unlink() for file in at.iterdir() if file.is_file() and file.name != "model.pt"],
        "lacks config.yaml; give",
    ),
    "no vocabulary": (lambda at: (at / "tokens.json").unlink(), "lacks tokens.json; give the directory that holds"),
    "no means": (lambda at: (at / "am.mvn").unlink(), "lacks am.mvn; give the directory that holds"),
    "gone": (shutil.rmtree, "does not exist; give a directory that holds config.yaml and the weights"),
    "a file": (lambda at: (shutil.rmtree(at), at.touch()), "is not a directory; give a directory that holds"),
    "a loop": (lambda at: (shutil.rmtree(at), at.symlink_to(at)), "cannot be read (Too many levels of symbolic links)"),
    "another model": (lambda at: shutil.copy(EMBEDDED / "punctuation" / "config.yaml", at), "model is 'CTTransformer', expected"),
}


@table(WHOLE)
def test_a_wrong_model_dir_is_refused_at_once_and_no_hub_is_asked(asr: Path, damage: Damage, says: str, asked: list[str]) -> None:
    settings = load_settings({"model_dir": str(asr), "vad": {"engine": "fsmn"}, "emotion": {"enabled": True}}, environment={})
    damage(asr)
    refused(lambda: locate_models(settings), says)
    assert asked == []


def test_with_a_right_model_dir_hubs_are_asked_for_the_others(asr: Path, asked: list[str]) -> None:
    """So that an empty list means something in the test above."""
    settings = load_settings({"model_dir": str(asr), "vad": {"engine": "fsmn"}}, environment={})
    refused(lambda: locate_models(settings), "could not be downloaded")
    assert asked


@pytest.mark.slow
def test_the_service_runs_on_without_a_damaged_optional_model() -> None:
    with copied("punctuation") as directory:
        weight("decoder.bias", with_value(float("nan")))(directory)
        result = run_service("streaming", "--punctuation-model", str(directory), "--input", str(EXAMPLES / "temperature.wav"))
    assert result.returncode == 0, result.stderr
    (error,) = of_type(result.events, "error_event")
    assert (error["error_code"], error["recoverable"]) == ("model_load_failed", True)
    assert "model.pt holds weights that are NaN or infinite, first in decoder.bias" in error["message"]
    assert final_texts(result.events) == list(example("temperature")[1])
