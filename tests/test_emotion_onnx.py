"""The emotion model as an ONNX graph: the embedded one against FunASR's own answer, variants of the class, and what is refused."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from harness import REPOSITORY, example, example_names
from test_emotion import FIVE_LABELS, LABELS, make_model

from voice.audio import SAMPLE_RATE_HZ, Samples
from voice.conversion.emotion import Unconvertible, convert_emotion
from voice.conversion.graph import Precision
from voice.conversion.selftest import signed_products_are_right
from voice.errors import ModelLoadFailed
from voice.finalization.emotion import Emotion2vec, EmotionLabeller, EmotionSettings, OnnxEmotion
from voice.models.loader import load_model
from voice.models.onnx_session import open_session, session_errors
from voice.places import EMBEDDED

EMOTION = EMBEDDED / "emotion"
HOP, REACH = 320, 408
"""Of the embedded model's frames, in samples."""
CONVERTED_SCORES = """
import sys
from pathlib import Path
import numpy as np
from voice.finalization.emotion import OnnxEmotion
from voice.models.onnx_session import open_session

def peak_mb():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1]) / 1024

graph, labels = Path(sys.argv[1]), Path(sys.argv[2]).read_text(encoding="utf-8").split()
emotion = OnnxEmotion(open_session(graph), labels, "x")
loaded = peak_mb()
assert abs(sum(emotion.scores(np.zeros(30 * 16_000, np.float32)).values()) - 1) < 1e-5
assert not {"torch", "funasr", "onnx"} & set(sys.modules)
print(peak_mb() - loaded)
"""


@pytest.fixture(scope="module")
def on_torch() -> Emotion2vec:
    return Emotion2vec(load_model(EMOTION, "Emotion2vec", "cpu"), "emotion")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, on_torch: Emotion2vec) -> Callable[[Precision], OnnxEmotion]:
    """The embedded model as a graph."""
    known: dict[Precision, OnnxEmotion] = {}

    def with_precision(precision: Precision) -> OnnxEmotion:
        if precision not in known:
            directory = tmp_path_factory.mktemp(precision)
            convert_emotion(on_torch._model.module, directory, precision)
            known[precision] = OnnxEmotion(open_session(directory / "emotion.onnx"), LABELS, "emotion")
        return known[precision]

    return with_precision


def speech(num_seconds: float) -> Samples:
    """The examples one after the other."""
    return np.concatenate([example(name)[0] for name in example_names()])[: round(num_seconds * SAMPLE_RATE_HZ)]


def noise(num_samples: int, level: float = 0.1) -> Samples:
    return (np.random.default_rng(7).standard_normal(num_samples) * level).astype(np.float32)


def difference(one: dict[Any, float], other: dict[Any, float]) -> float:
    assert one.keys() == other.keys()
    return max(abs(one[name] - other[name]) for name in one)


def logits_of(module: Any, samples: Samples) -> np.ndarray:
    """FunASR's, which ``inference`` takes the softmax of."""
    with torch.inference_mode():
        source = torch.from_numpy(samples)
        if module.cfg.normalize:
            source = torch.nn.functional.layer_norm(source, source.shape)
        frames = module.extract_features(source.view(1, -1), padding_mask=None)["x"]
        return module.proj(frames.mean(dim=1)).numpy()


@pytest.mark.parametrize("audio", [*(speech(seconds) for seconds in (0.3, 1, 5, 12)), np.zeros(SAMPLE_RATE_HZ, np.float32), noise(32_000)])
def test_the_graph_gives_the_scores_that_funasr_gives(on_torch, converted, audio):
    assert difference(converted("float32").scores(audio), on_torch.scores(audio)) < 1e-5
    assert converted("float32").source == on_torch.source


@pytest.mark.parametrize("gain", [1e-4, 1.0])
@pytest.mark.parametrize("offset", [-0.2, 0.1])
def test_loudness_and_an_offset_are_removed_as_funasr_removes_them(on_torch, converted, gain, offset):
    """A mean added up in float32 changes these scores by 4.7e-4 and more."""
    audio = (speech(12) + np.float32(offset)) * np.float32(gain)
    assert difference(converted("float32").scores(audio), on_torch.scores(audio)) < 2e-4


@pytest.mark.parametrize("num_frames", [1, 2, 15, 16, 17, 32, 59, 60, 61, 124, 125])
def test_no_length_loses_a_frame_or_gets_one_too_many(on_torch, converted, num_frames):
    """Blocks of 16 frames, and of 64 rows with 4 extra tokens among them: full, one more, one less."""
    least = REACH + HOP * (num_frames - 1)
    for num_samples in (least, least + 1, least + HOP - 1):
        audio = noise(num_samples)
        assert difference(converted("float32").scores(audio), on_torch.scores(audio)) < 1e-5


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_weights_of_one_byte_keep_the_label(on_torch, converted, precision):
    if precision == "int8" and not signed_products_are_right():
        pytest.skip("this processor cuts off sums of signed products")
    emotion = converted(precision)
    for audio in [*(example(name)[0] for name in example_names()), speech(5), speech(12)]:
        ours, theirs = emotion.scores(audio), on_torch.scores(audio)
        assert max(ours, key=ours.__getitem__) == max(theirs, key=theirs.__getitem__)
        assert difference(ours, theirs) < 0.03
        assert sum(ours.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("precision", ["float32", "uint8"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_give_no_label(converted, precision, value):
    audio = speech(1).copy()
    audio[8_000] = value
    labeller = EmotionLabeller(converted(precision), EmotionSettings(1, 10**6, 0.0))
    with pytest.raises(ValueError, match="no numbers"):
        labeller.label(audio, len(audio))


def test_audio_without_a_whole_frame_is_an_error(converted):
    for num_samples in (0, 100, REACH - 1):
        with pytest.raises(session_errors()):
            converted("float32").scores(np.zeros(num_samples, np.float32))


def test_thirty_seconds_take_little_memory_and_no_torch(tmp_path, on_torch):
    """All heads' attention alone would take 36 MB, were it computed at once."""
    convert_emotion(on_torch._model.module, tmp_path, "float32")
    command = [sys.executable, "-c", CONVERTED_SCORES, str(tmp_path / "emotion.onnx"), str(EMOTION / "tokens.txt")]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 30


@pytest.mark.parametrize("labels", [LABELS, FIVE_LABELS, [*LABELS[4:], *LABELS[:4]]])
def test_labels_are_mapped_by_name_and_unused_ones_get_nothing(tmp_path, labels):
    model = load_model(make_model(tmp_path / "model", labels), "Emotion2vec", "cpu")
    model.module.proj.bias[labels.index("<unk>") - 1] += 90  # an unused output that drowns all others, where there is one
    convert_emotion(model.module, tmp_path, "float32")
    emotion = OnnxEmotion(open_session(tmp_path / "emotion.onnx"), labels, "iic/model")
    assert difference(emotion.scores(speech(1)), Emotion2vec(model, "x").scores(speech(1))) < 1e-5
    assert emotion.source == "funasr.model"


def test_labels_that_do_not_fit_are_refused(converted):
    session = converted("float32")._session
    with pytest.raises(ModelLoadFailed, match="x has 8 labels, but its graph has 9"):
        OnnxEmotion(session, LABELS[:8], "x")
    with pytest.raises(ModelLoadFailed, match="no emotion of ours: 困倦/sleepy"):
        OnnxEmotion(session, ["困倦/sleepy", *LABELS[1:]], "x")
    with pytest.raises(ModelLoadFailed, match="none at all"):
        OnnxEmotion(session, ["unuse"] * 9, "x")


@pytest.fixture(scope="module")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = make_model(tmp_path_factory.mktemp("tiny") / "model", LABELS)
    config: dict[str, Any] = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))["model_conf"]
    return config


def build(config: dict[str, Any], changes: dict[str, Any], audio_changes: dict[str, Any]) -> Any:
    """FunASR's module with random weights, none of them as it is initialized."""
    from funasr.models.emotion2vec.model import Emotion2vec as FunasrEmotion2vec

    config = copy.deepcopy(config)
    config.update(changes)
    config["modalities"]["audio"].update(audio_changes)
    torch.manual_seed(5)
    module = FunasrEmotion2vec(model_conf=config, vocab_size=9).eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return module


@pytest.mark.parametrize(
    ("changes", "audio_changes"),
    [
        ({}, {}),
        ({"normalize": False}, {}),
        ({"norm_affine": False}, {}),
        ({"num_heads": 8}, {}),  # the last four know no distances
        ({}, {"num_extra_tokens": 0}),
        ({}, {"conv_pos_pre_ln": True}),
        ({}, {"conv_pos_width": 16}),  # kernels of even width
        ({}, {"learned_alibi_scale": True, "learned_alibi_scale_per_head": True, "alibi_scale": 0.05}),  # some below 0
        ({}, {"learned_alibi_scale": True, "learned_alibi_scale_per_head": True, "learned_alibi_scale_per_layer": True}),
        ({}, {"feature_encoder_spec": "[(16, 400, 320)]"}),
        ({}, {"feature_encoder_spec": "[(8, 7, 3), (16, 40, 4)]"}),  # a frame reaches over fourteen others
    ],
)
def test_every_variant_computes_what_funasr_computes(tmp_path, tiny_config, changes, audio_changes):
    module = build(tiny_config, changes, audio_changes)
    convert_emotion(module, tmp_path, "float32")
    session = open_session(tmp_path / "emotion.onnx")
    for audio in (noise(2_000), speech(2), noise(5_000)):
        np.testing.assert_allclose(session.run(None, {"samples": audio[None]})[0], logits_of(module, audio), atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "audio_changes", "what"),
    [
        ({"layer_norm_first": True}, {}, "normalize before their parts"),
        ({}, {"use_alibi_encoder": False}, "another encoding of distances"),
        ({}, {"extractor_mode": "default"}, "does not normalize over channels"),
        ({}, {"feature_encoder_spec": "[(16, 10, 20)]"}, "skips samples"),
        ({"depth": 0}, {"prenet_depth": 0}, "no layers"),
        ({}, {"model_depth": 3, "learned_alibi_scale": True, "learned_alibi_scale_per_layer": True}, "other layers than scales"),
    ],
)
def test_what_no_published_model_has_is_left_to_torch(tmp_path, tiny_config, changes, audio_changes, what):
    with pytest.raises(Unconvertible, match=what):
        convert_emotion(build(tiny_config, changes, audio_changes), tmp_path, "float32")


@pytest.mark.parametrize(("part", "what"), [("act", "the activation Tanh"), ("norm", "a layer of another kind")])
def test_a_layer_of_another_kind_is_left_to_torch(tmp_path, tiny_config, part, what):
    module = build(tiny_config, {}, {})
    setattr(module.blocks[1].mlp, part, torch.nn.Tanh())
    with pytest.raises(Unconvertible, match=what):
        convert_emotion(module, tmp_path, "float32")


def test_a_model_without_labels_is_left_to_torch(tmp_path: Path, tiny_config: dict[str, Any]) -> None:
    module = build(tiny_config, {}, {})
    module.proj = None
    with pytest.raises(Unconvertible, match="no labels"):
        convert_emotion(module, tmp_path, "float32")
