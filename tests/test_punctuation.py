"""Punctuation: marks are the model's, letters the recogniser's. On the shipped CTTransformer."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from harness import EXAMPLES, example, of_type, run_service
from hypothesis import given, settings
from hypothesis import strategies as st

from voice.finalization.punctuation import PUNCTUATION, CtTransformer
from voice.models.funasr_model import FunasrModel
from voice.models.loader import load_model
from voice.places import EMBEDDED

WORDS = st.text("打开客厅的灯你好小镜今天天气怎么样USBwifi 3.5'", max_size=60)


@pytest.fixture(scope="module")
def model() -> FunasrModel:
    return load_model(EMBEDDED / "punctuation", "CTTransformer", "cpu")


@pytest.fixture(scope="module")
def punctuator(model: FunasrModel) -> CtTransformer:
    return CtTransformer(model)


def scripted(marks: list[int], punc_list: tuple[str, ...] = ("<unk>", "_", "，", "。", "？", "、")) -> CtTransformer:
    """A model that answers with these marks, whatever it is asked."""

    def inference(*_: Any, **__: Any) -> tuple[list[dict[str, torch.Tensor]], dict[str, Any]]:
        return [{"punc_array": torch.tensor(marks)}], {}

    module = SimpleNamespace(punc_list=list(punc_list), inference=inference)
    return CtTransformer(FunasrModel(Path(), module, (), tokenizer=None, frontend=None, device="cpu", num_parameters=0))


@settings(max_examples=60, deadline=None)
@given(WORDS, st.booleans())
def test_every_letter_stays_where_it_was(punctuator: CtTransformer, text: str, ended: bool) -> None:
    marked = punctuator.punctuate(text, ended=ended)
    bare = "".join(char for char in marked if char not in PUNCTUATION)
    assert bare.replace(" ", "").translate(str.maketrans("", "", ",?")).rstrip(".") == text.replace(" ", "").rstrip(".") or text.isascii()
    if not text.isascii():
        assert bare.replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("打开客厅的灯", "打开客厅的灯。"),
        ("现在几点了", "现在几点了？"),
        ("你好小镜今天北京的天气怎么样", "你好小镜，今天北京的天气怎么样？"),
        ("太热了把空调的温度调到二十六度", "太热了，把空调的温度调到二十六度。"),
    ],
)
def test_commands_and_questions(punctuator: CtTransformer, text: str, marked: str) -> None:
    assert punctuator.punctuate(text, ended=True) == marked


def test_our_text_is_funasrs_on_chinese_text(punctuator: CtTransformer, model: FunasrModel) -> None:
    text = "酒店的位置很好离火车站很近服务员也很热情就是房间有点小早餐一般下次还会来" * 3  # more than one window of 20 words
    with torch.inference_mode():
        (theirs,), _ = model.module.inference([text], key=["k"], tokenizer=model.tokenizer, device="cpu")
    assert punctuator.punctuate(text, ended=True) == theirs["text"]
    assert theirs["text"].count("，") > 3


def test_text_that_was_cut_has_no_punctuation_at_its_end(punctuator: CtTransformer) -> None:
    assert punctuator.punctuate("打开客厅的灯", ended=False) == "打开客厅的灯"


@pytest.mark.parametrize(
    ("text", "marks", "marked"),
    [
        ("我用USB连接wifi", [1, 1, 2, 1, 1, 3], "我用USB，连接wifi。"),
        ("hello world how are you", [1, 2, 1, 1, 4], "hello world, how are you?"),
        ("打开wifi ok", [1, 1, 2, 3], "打开wifi，ok。"),
        ("打 开", [0, 0], "打 开"),
        ("", [], ""),
    ],
)
def test_where_punctuation_stands(text: str, marks: list[int], marked: str) -> None:
    assert scripted(marks).punctuate(text, ended=True) == marked


def test_an_answer_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="3 punctuation marks for 2 words"):
        scripted([1, 1, 3]).punctuate("打开", ended=True)


def test_a_file_of_that_name_is_not_opened(punctuator: CtTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FunASR would: it takes any text that names a file for the file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "好").write_text("有人把别的字写在这里")
    assert punctuator.punctuate("好", ended=True) == "好。"


@pytest.mark.slow
def test_a_model_that_cannot_be_had_costs_an_error_event_and_the_punctuation(tmp_path: Path) -> None:
    broken = Path(shutil.copytree(EMBEDDED / "punctuation", tmp_path / "broken"))
    (broken / "model.pt").write_bytes(b"x")
    result = run_service("streaming", "--input", str(EXAMPLES / "temperature.wav"), "--punctuation-model", str(broken))
    assert result.returncode == 0
    (error,) = of_type(result.events, "error_event")
    assert (error["error_code"], error["recoverable"]) == ("model_load_failed", True)
    assert "SHA256SUMS" in error["message"]
    assert [final["text"] for final in of_type(result.events, "final")] == list(example("temperature")[1])


@pytest.mark.slow
def test_off_means_no_punctuation() -> None:
    result = run_service("streaming", "--input", str(EXAMPLES / "temperature.wav"), "--punctuation-model", "off")
    (final,) = of_type(result.events, "final")
    assert final["text"] == final["raw_text"] == example("temperature")[1][0]
