"""The converted punctuation model beside FunASR's own: the same marks for every text, and no torch."""

from __future__ import annotations

import copy
import json
import random
import re
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from harness import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from voice.conversion.punctuation import Unconvertible, convert_punctuation, punctuation_settings
from voice.conversion.selftest import byte_precision
from voice.finalization.punctuation import _WORD, CtTransformer, OnnxPunctuation, marks_of_text
from voice.models.funasr_model import FunasrModel
from voice.models.loader import load_model
from voice.models.onnx_session import open_session
from voice.models.torch_setup import set_num_threads
from voice.places import EMBEDDED

MARKS = ("<unk>", "_", "，", "。", "？", "、")
END = MARKS.index("。")
CHINESE = re.compile(r"[\u4e00-\u9fff]+")
MIXED = re.compile(r"[\u4e00-\u9fff]+|[A-Za-z0-9']+")
LONGEST_WORDS = 300


@pytest.fixture(scope="module")
def model() -> FunasrModel:
    set_num_threads(1)
    return load_model(EMBEDDED / "punctuation", "CTTransformer", "cpu")


@pytest.fixture(scope="module")
def reference(model: FunasrModel) -> CtTransformer:
    return CtTransformer(model)


@pytest.fixture(scope="module")
def float32(model: FunasrModel, tmp_path_factory: pytest.TempPathFactory) -> OnnxPunctuation:
    return converted(model, tmp_path_factory.mktemp("float32"), "float32")


@pytest.fixture(scope="module")
def one_byte(model: FunasrModel, tmp_path_factory: pytest.TempPathFactory) -> OnnxPunctuation:
    return converted(model, tmp_path_factory.mktemp("bytes"), byte_precision())


def converted(model: FunasrModel, directory: Path, precision: Any) -> OnnxPunctuation:
    convert_punctuation(model.module, directory, precision)
    numbers = punctuation_settings(model.module)
    assert numbers["num_words"] == len(model.tokens)
    session = open_session(directory / "punctuation.onnx")
    return OnnxPunctuation(session, model.tokens, tuple(numbers["marks"]), sentence_end_id=numbers["sentence_end_id"])


def documents(pattern: str, words: re.Pattern[str]) -> list[str]:
    """The words of the repository's own documents, in their order, without punctuation."""
    files = sorted([*REPOSITORY.glob(pattern), *(REPOSITORY / "docs").glob(pattern)])
    return [word for file in files for run in words.findall(file.read_text(encoding="utf-8")) for word in _WORD.findall(run)]


def pieces(words: Sequence[str], between: str, rng: random.Random, count: int) -> list[str]:
    """Passages of 0 to 300 words from anywhere."""
    lengths = [rng.randint(0, LONGEST_WORDS) for _ in range(count)]
    starts = [rng.randrange(len(words)) for _ in lengths]
    return [between.join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


@pytest.fixture(scope="module")
def asked(model: FunasrModel, reference: CtTransformer) -> dict[str, list[str]]:
    """Many texts, each with FunASR's punctuation after each of its words."""
    rng = random.Random(7)
    vocabulary = [token for token in model.tokens if CHINESE.fullmatch(token)]
    chinese = documents("*.zh-CN.md", CHINESE)
    texts = [
        *pieces(chinese, "", rng, 24),
        *pieces(documents("*.zh-CN.md", MIXED), " ", rng, 12),
        *pieces([word for word in documents("*.md", MIXED) if word.isascii()], " ", rng, 6),
        *pieces(rng.choices(vocabulary, k=3_000), "", rng, 12),
        *("".join(chinese[start : start + length]) for length in range(1, 45) for start in (rng.randrange(len(chinese) - length),)),
    ]
    return {text: reference._punctuation_after(_WORD.findall(text)) for text in texts if text}


def test_the_float32_graph_gives_the_same_marks(asked: dict[str, list[str]], float32: OnnxPunctuation) -> None:
    for text, marks in asked.items():
        assert float32._punctuation_after(_WORD.findall(text)) == marks


@pytest.mark.parametrize("ended", [True, False])
def test_the_text_with_its_marks_is_the_same(
    asked: dict[str, list[str]], reference: CtTransformer, float32: OnnxPunctuation, ended: bool
) -> None:
    for text in ["", *list(asked)[::20]]:
        assert float32.punctuate(text, ended=ended) == reference.punctuate(text, ended=ended)


def test_weights_of_one_byte_give_almost_the_same_marks(asked: dict[str, list[str]], one_byte: OnnxPunctuation) -> None:
    """0.2 % of the marks differ here, up to 1.0 % in other sets of mixed texts as large as these."""
    differing = total = 0
    for text, marks in asked.items():
        ours = one_byte._punctuation_after(_WORD.findall(text))
        differing += sum(mark != expected for mark, expected in zip(ours, marks, strict=True))
        total += len(marks)
    assert total > 6_000
    assert differing / total < 0.015, f"{differing} of {total}"


def test_the_float32_graph_is_as_close_as_rounding_allows(model: FunasrModel, float32: OnnxPunctuation) -> None:
    for num_words in (1, 2, 3, 20, LONGEST_WORDS):
        words = np.random.default_rng(num_words).integers(0, len(model.tokens), (1, num_words))
        (logits,) = float32._network._session.run(None, {"words": words})
        with torch.inference_mode():
            theirs, _ = model.module.punc_forward(torch.from_numpy(words), torch.tensor([num_words]))
        np.testing.assert_allclose(logits, theirs.numpy(), atol=2e-4)


class Scripted:
    """A network whose marks are made up, but depend on all it reads: read again with more words, a word may get another mark."""

    def __init__(self, seed: int, weights: Sequence[int]) -> None:
        self._seed, self._weights = seed, weights

    def marks_after(self, words: Sequence[int]) -> list[int]:
        rng = random.Random(zlib.crc32(repr((self._seed, len(words), words[0])).encode()))
        return rng.choices(range(len(MARKS)), self._weights, k=len(words))

    def punc_forward(self, text: torch.Tensor, text_lengths: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.nn.functional.one_hot(torch.tensor([self.marks_after(text[0].tolist())]), len(MARKS)).float(), None


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["好", "灯", "usb", "3.", "?", "？", "，", "a"]), min_size=1, max_size=LONGEST_WORDS + 60),
    st.sampled_from([(0, 8, 1, 1, 1, 1), (1, 90, 4, 1, 0, 0), (0, 200, 1, 0, 0, 0), (0, 1, 0, 0, 0, 0), (1, 1, 1, 0, 0, 1)]),
    st.integers(0, 1_000),
)
def test_the_loop_around_the_network_is_funasrs(words: list[str], weights: tuple[int, ...], seed: int) -> None:
    from funasr.models.ct_transformer.model import CTTransformer

    network = Scripted(seed, weights)
    module = SimpleNamespace(punc_list=MARKS, sentence_end_id=END, jieba_usr_dict=None, punc_forward=network.punc_forward)
    tokenizer = SimpleNamespace(encode=lambda tokens: [index * 10 + len(token) for index, token in enumerate(tokens)])
    results, _ = CTTransformer.inference(module, [" ".join(words) + " "], key=["k"], tokenizer=tokenizer, device="cpu")
    ours = marks_of_text(network, tokenizer.encode(words), words[-1], MARKS, END)
    assert ours == results[0]["punc_array"].tolist()


class Answer:
    """A session that answers with these marks, and keeps what it was asked."""

    def __init__(self, *marks: int, num_outputs: int = len(MARKS)) -> None:
        self._marks, self._num_outputs = list(marks), num_outputs
        self.words: list[int] = []

    def get_outputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(shape=[1, "n", self._num_outputs])]

    def run(self, _: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.words = inputs["words"][0].tolist()
        return [np.eye(self._num_outputs, dtype=np.float32)[self._marks][None]]


def test_words_are_looked_up_in_lower_case_and_unknown_ones_stand_for_themselves() -> None:
    session = Answer(1, 2, 0, 1, 1)
    punctuation = OnnxPunctuation(session, ("<blank>", "usb", "开", "<other>"), MARKS, sentence_end_id=END, unknown="<other>")
    assert punctuation.punctuate("打开USB İ 开", ended=True) == "打开，USB İ 开。"
    assert session.words == [3, 2, 1, 3, 2]


@pytest.mark.parametrize("text", ["", " \n"])
def test_a_text_without_words_is_not_sent_to_the_network(text: str) -> None:
    session = Answer(1)
    assert OnnxPunctuation(session, ("<unk>",), MARKS, sentence_end_id=END).punctuate(text, ended=True) == text
    assert session.words == []


def test_an_answer_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="3 punctuation marks for 2 words"):
        OnnxPunctuation(Answer(1, 1, 3), ("<unk>",), MARKS, sentence_end_id=END).punctuate("打开", ended=True)


@pytest.mark.parametrize(
    ("tokens", "num_outputs", "end", "message"),
    [(("好",), 6, END, "lacks '<unk>'"), (("<unk>",), 5, END, "5 outputs for 6"), (("<unk>",), 6, 6, "sentence_end_id 6")],
)
def test_what_does_not_fit_together_is_refused(tokens: tuple[str, ...], num_outputs: int, end: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OnnxPunctuation(Answer(num_outputs=num_outputs), tokens, MARKS, sentence_end_id=end)


def test_the_settings_can_be_written_as_json(model: FunasrModel) -> None:
    numbers = punctuation_settings(model.module)
    assert json.loads(json.dumps(numbers)) == numbers == {"marks": list(MARKS), "sentence_end_id": END, "num_words": 3_604}


@pytest.mark.parametrize(
    ("part", "attribute", "value"),
    [
        ("", "embed", torch.nn.Embedding(8, 2)),
        ("", "encoder", torch.nn.Identity()),
        ("encoder", "embed", torch.nn.Identity()),
        ("encoder", "normalize_before", False),
        ("encoder", "interctc_layer_idx", [1]),
        ("encoder.encoders.0", "concat_after", True),
        ("encoder.encoders.0", "self_attn", torch.nn.Identity()),
        ("encoder.encoders.0", "feed_forward", torch.nn.Identity()),
        ("encoder.encoders.0.self_attn.pad_fn", "padding", (11, -1)),
        ("encoder.encoders.0.self_attn", "linear_out", torch.nn.Identity()),
        ("encoder.encoders.0.feed_forward", "activation", torch.nn.GELU()),
    ],
)
def test_another_kind_of_model_is_refused(model: FunasrModel, tmp_path: Path, part: str, attribute: str, value: object) -> None:
    module = copy.deepcopy(model.module)
    setattr(module.get_submodule(part), attribute, value)
    with pytest.raises(Unconvertible):
        convert_punctuation(module, tmp_path, "float32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("attribute", "value"), [("sentence_end_id", 6), ("sentence_end_id", -1), ("punc_list", MARKS[:5])])
def test_settings_that_do_not_fit_the_model_are_refused(model: FunasrModel, attribute: str, value: object) -> None:
    module = copy.copy(model.module)
    setattr(module, attribute, value)
    with pytest.raises(Unconvertible):
        punctuation_settings(module)


def test_neither_torch_nor_funasr_is_imported(model: FunasrModel, tmp_path: Path) -> None:
    convert_punctuation(model.module, tmp_path, byte_precision())
    (tmp_path / "tokens.json").write_text(json.dumps(model.tokens))
    script = """
import json, sys
from pathlib import Path
from voice.finalization.punctuation import OnnxPunctuation
from voice.models.onnx_session import open_session
directory, marks = Path(sys.argv[1]), sys.argv[2].split()
session = open_session(directory / "punctuation.onnx")
tokens = tuple(json.loads((directory / "tokens.json").read_text()))
print(OnnxPunctuation(session, tokens, marks, sentence_end_id=3).punctuate("现在几点了", ended=True))
assert not {"torch", "funasr", "onnx"} & set(sys.modules)
"""
    command = [sys.executable, "-c", script, str(tmp_path), " ".join(MARKS)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, encoding="utf-8", env={"PYTHONUTF8": "1"}, check=True)
    assert result.stdout == "现在几点了？\n"
