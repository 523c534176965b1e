"""FunASR's Emotion2vec class for real: a tiny one with random weights, made here, in its own directory layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from harness import example, final_texts, of_type, run_service

from voice.errors import ModelLoadFailed
from voice.finalization.emotion import EMOTION_NAMES, Emotion2vec
from voice.models.loader import load_model
from voice.models.torch_setup import prepare_imports

LABELS = ["生气/angry", "厌恶/disgusted", "恐惧/fearful", "开心/happy", "中立/neutral", "其他/other", "难过/sad", "吃惊/surprised", "<unk>"]
FIVE_LABELS = ["生气/angry", "unuse_0", "unuse_1", "开心/happy", "中立/neutral", "unuse_2", "难过/sad", "unuse_3", "<unk>"]


def make_model(directory: Path, labels: list[str]) -> Path:
    """A directory that FunASR reads as it reads emotion2vec_plus_base; 100 k random weights."""
    directory.mkdir(parents=True)
    width, depth, heads = 32, 2, 4
    audio = {
        "type": "AUDIO",
        "prenet_depth": 1,
        "prenet_layerdrop": 0.0,
        "prenet_dropout": 0.0,
        "start_drop_path_rate": 0.0,
        "end_drop_path_rate": 0.0,
        "num_extra_tokens": 2,
        "init_extra_token_zero": True,
        "use_alibi_encoder": True,
        "alibi_scale": 1.0,
        "learned_alibi": False,
        "alibi_max_pos": None,
        "learned_alibi_scale": False,
        "learned_alibi_scale_per_head": False,
        "learned_alibi_scale_per_layer": False,
        "num_alibi_heads": heads,
        "model_depth": depth,
        "extractor_mode": "layer_norm",
        "feature_encoder_spec": "[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16, 2, 2)] * 2",
        "conv_pos_width": 5,
        "conv_pos_groups": 4,
        "conv_pos_depth": 2,
        "conv_pos_pre_ln": False,
        "decoder": None,
        "local_grad_mult": 1.0,
        "ema_local_encoder": False,
    }
    model_conf = {
        "depth": depth,
        "start_drop_path_rate": 0.0,
        "end_drop_path_rate": 0.0,
        "num_heads": heads,
        "norm_eps": 1e-5,
        "norm_affine": True,
        "encoder_dropout": 0.0,
        "post_mlp_drop": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "dropout_input": 0.0,
        "layerdrop": 0.0,
        "embed_dim": width,
        "mlp_ratio": 2.0,
        "layer_norm_first": False,
        "end_of_block_targets": False,
        "clone_batch": 1,
        "average_top_k_layers": depth,
        "normalize": True,
        "modalities": {"audio": audio},
    }
    config = {
        "model": "Emotion2vec",
        "model_conf": model_conf,
        "tokenizer": "CharTokenizer",
        "tokenizer_conf": {"unk_symbol": "<unk>", "split_with_space": True},
        "scope_map": ["d2v_model.", "none"],
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (directory / "tokens.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
    metas = {"init_param": "model.pt", "config": "config.yaml", "tokenizer_conf": {"token_list": "tokens.txt"}}
    (directory / "configuration.json").write_text(json.dumps({"file_path_metas": metas}), encoding="utf-8")
    prepare_imports()
    from funasr.models.emotion2vec.model import Emotion2vec as FunasrEmotion2vec

    torch.manual_seed(3)
    module = FunasrEmotion2vec(model_conf=model_conf, vocab_size=len(labels))
    state = {key if key.startswith("proj") else f"d2v_model.{key}": value for key, value in module.state_dict().items()}
    torch.save(state, directory / "model.pt")
    return directory


@pytest.fixture(scope="session")
def emotion_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "emotion2vec_tiny", LABELS)


def load(directory: Path) -> Emotion2vec:
    return Emotion2vec(load_model(directory, "Emotion2vec", "cpu"), str(directory))


def test_nine_scores_sum_to_one_and_depend_on_the_audio(emotion_dir: Path) -> None:
    model = load(emotion_dir)
    samples, _ = example("temperature")
    one, two = model.scores(samples), model.scores(samples[::-1].copy())
    assert tuple(one) == EMOTION_NAMES
    assert sum(one.values()) == pytest.approx(1, abs=1e-5)
    assert all(score > 0 for score in one.values())
    assert one != two
    assert model.scores(samples) == one
    assert model.source == "funasr.emotion2vec_tiny"


def test_labels_are_mapped_by_name_and_a_missing_one_scores_zero(tmp_path: Path) -> None:
    scores = load(make_model(tmp_path / "five", FIVE_LABELS)).scores(example("temperature")[0])
    assert {name for name, score in scores.items() if score} == {"angry", "happy", "neutral", "sad", "unknown"}
    assert sum(scores.values()) == pytest.approx(1, abs=1e-5)


def test_scores_agree_with_funasrs_own_answer_whatever_the_order(tmp_path: Path) -> None:
    labels = [*LABELS[4:], *LABELS[:4]]
    directory = make_model(tmp_path / "shuffled", labels)
    model = load_model(directory, "Emotion2vec", "cpu")
    samples, _ = example("air_conditioner")
    with torch.inference_mode():
        (theirs,), _ = model.module.inference(
            [torch.from_numpy(samples)], key=["k"], tokenizer=model.tokenizer, fs=16_000, device="cpu", extract_embedding=False
        )
    assert theirs["labels"] == labels
    ours = Emotion2vec(model, "x").scores(samples)
    for label, score in zip(labels, theirs["scores"], strict=True):
        assert ours["unknown" if label == "<unk>" else label.split("/")[1]] == pytest.approx(score)


def test_a_model_with_other_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="no emotion of ours: 困倦/sleepy"):
        load(make_model(tmp_path / "other", ["困倦/sleepy", "<unk>"]))


@pytest.mark.slow
def test_the_service_ties_an_emotion_to_its_final(emotion_dir: Path) -> None:
    result = run_service("streaming", "--input", wav("two_utterances"), "--emotion-model", str(emotion_dir))
    assert result.returncode == 0
    finals, emotions = of_type(result.events, "final"), of_type(result.events, "emotion")
    assert len(finals) == len(emotions) == 2
    for final, emotion in zip(finals, emotions, strict=True):
        assert final["emotion"] == {"label": emotion["label"], "confidence": emotion["confidence"]}
        assert emotion["trace_id"] == final["trace_id"]
        assert emotion["source"] == "funasr.emotion2vec_tiny"
        assert emotion["confidence"] == max(emotion["scores"].values()) == emotion["scores"][emotion["label"]]
        assert sum(emotion["scores"].values()) == pytest.approx(1, abs=1e-3)
        assert (emotion["start_ms"], emotion["end_ms"]) == (final["start_ms"], final["end_ms"])


@pytest.mark.slow
def test_without_emotion_there_is_no_emotion_event() -> None:
    result = run_service("sliced", "--input", wav("two_utterances"), "--no-emotion")
    assert [event["emotion"] for event in of_type(result.events, "final")] == [None, None]
    assert of_type(result.events, "emotion") == []


@pytest.mark.slow
def test_an_emotion_model_that_cannot_be_loaded_costs_an_error_event_and_no_final(tmp_path: Path) -> None:
    broken = make_model(tmp_path / "broken", LABELS)
    (broken / "model.pt").write_bytes(b"x")
    result = run_service("streaming", "--input", wav("temperature"), "--emotion-model", str(broken))
    assert result.returncode == 0
    (error,) = of_type(result.events, "error_event")
    assert (error["error_code"], error["recoverable"]) == ("model_load_failed", True)
    assert final_texts(result.events) == list(example("temperature")[1])


def wav(name: str) -> str:
    from harness import EXAMPLES

    return str(EXAMPLES / f"{name}.wav")


def test_too_short_audio_would_break_the_model_and_never_reaches_it(emotion_dir: Path) -> None:
    """FunASR's convolutions need 400 samples; the finalizer's minimum stands above that."""
    model: Any = load(emotion_dir)
    with pytest.raises(RuntimeError):
        model.scores(np.zeros(100, np.float32))
    assert sum(model.scores(np.zeros(400, np.float32)).values()) == pytest.approx(1, abs=1e-5)
