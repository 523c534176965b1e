"""The language model of a model directory: what its automaton says, and files that are not one."""

from __future__ import annotations

import io
import itertools
import math
import os
import random
import shutil
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voice.errors import ModelLoadFailed
from voice.models.converted import find_conversion, load_converted
from voice.models.directory import describe_model
from voice.models.language_model import FILE, ROOT, LanguageModel, read_language_model
from voice.models.loader import load_model
from voice.places import EMBEDDED
from voice.recognition.onnx_engine import OnnxEngine
from voice.recognition.torch_engine import TorchEngine

Arrays = dict[str, np.ndarray]

TOKENS = ("<blank>", "开", "打", "灯", "<unk>")
BLANK, OPEN, HIT, LAMP, UNKNOWN = range(5)
UNHEARD = -9.0
"""What a token costs that the model does not know."""
AFTER_HIT, START, AFTER_HIT_OPEN = 1, 2, 3


def arrays(weight: float = 1.0) -> Arrays:
    """Symbols 打, 开, 灯. Known: 打, 开, 灯 alone; 打 at the start; 开 behind 打; 灯 behind 打开."""
    return {
        "symbols": np.array(["打", "开", "灯"]),
        "first_arc": np.array([0, 3, 4, 5, 6], np.int32),
        "arc_symbol": np.array([0, 1, 2, 1, 0, 2], np.uint16),
        "arc_next": np.array([AFTER_HIT, ROOT, ROOT, AFTER_HIT_OPEN, AFTER_HIT, ROOT], np.int32),
        "arc_score": np.array([-1.0, -2.0, -3.0, -0.25, -0.5, -0.125], np.float16),
        "lower": np.array([ROOT, ROOT, ROOT, ROOT], np.int32),
        "back_off": np.array([UNHEARD, -0.75, -1.5, -2.5], np.float16),
        "start": np.array(START),
        "weight": np.array(weight),
    }


def write(directory: Path, found: Arrays) -> Path:
    path = directory / FILE
    np.savez_compressed(path, **found)  # type: ignore[arg-type]
    return path


# --- what it says -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "token", "score", "following"),
    [
        (ROOT, HIT, -1.0, AFTER_HIT),
        (ROOT, LAMP, -3.0, ROOT),
        (START, HIT, -0.5, AFTER_HIT),
        (START, OPEN, -1.5 - 2.0, ROOT),
        (AFTER_HIT, OPEN, -0.25, AFTER_HIT_OPEN),
        (AFTER_HIT, HIT, -0.75 - 1.0, AFTER_HIT),
        (AFTER_HIT_OPEN, LAMP, -0.125, ROOT),
        (AFTER_HIT_OPEN, OPEN, -2.5 - 2.0, ROOT),
        (ROOT, UNKNOWN, UNHEARD, ROOT),
        (AFTER_HIT_OPEN, BLANK, -2.5 + UNHEARD, ROOT),
        (AFTER_HIT, UNKNOWN, -0.75 + UNHEARD, ROOT),
    ],
)
def test_a_token_costs_what_its_n_gram_says_or_the_next_shorter_one(state: int, token: int, score: float, following: int) -> None:
    scores, states = LanguageModel(arrays(), TOKENS).step([state], [token])
    assert (scores.tolist(), states.tolist()) == ([score], [following])


def test_many_are_asked_at_once() -> None:
    """In any order, and as each alone."""
    model = LanguageModel(arrays(weight=0.5), TOKENS)
    asked = list(itertools.product([3, 0, 2, 1, 0], range(len(TOKENS))))
    scores, following = model.step(*zip(*asked, strict=True))
    assert scores.dtype == np.float32
    for number, (state, token_id) in enumerate(asked):
        alone, alone_next = model.step([state], [token_id])
        assert (scores[number], following[number]) == (alone[0], alone_next[0])
    assert scores[asked.index((ROOT, HIT))] == -0.5, "the weight is in it"
    assert asked == list(itertools.product([3, 0, 2, 1, 0], range(len(TOKENS)))), "nothing of the caller's is changed"


@pytest.mark.parametrize(
    ("before", "state"),
    [("", ROOT), ("打", AFTER_HIT), ("打开", AFTER_HIT_OPEN), ("灯打开", AFTER_HIT_OPEN), ("开", ROOT), ("打灯", ROOT), ("打？开", ROOT)],
)
def test_the_state_after_some_tokens_is_that_of_the_last_ones(before: str, state: int) -> None:
    model = LanguageModel(arrays(), TOKENS)
    assert model.after(before) == state
    assert model.after("开灯灯开打灯灯开" + before) == state


@pytest.mark.parametrize(("weight", "score"), [(0.0, 0.0), (10.0, -10.0)])
def test_the_least_and_the_greatest_weight(weight: float, score: float) -> None:
    assert LanguageModel(arrays(weight), TOKENS).step([ROOT], [HIT])[0].tolist() == [score]


def test_a_model_without_n_grams_knows_no_token() -> None:
    arcs = {name: arrays()[name][:0] for name in ("arc_symbol", "arc_next", "arc_score")}
    empty = {**arrays(), **arcs, "first_arc": np.zeros(5, np.int32)}
    scores, following = LanguageModel(empty, TOKENS).step([AFTER_HIT], [OPEN])
    assert (scores.tolist(), following.tolist()) == ([-0.75 + UNHEARD], [ROOT])


# --- beside a model -----------------------------------------------------------------------------------------------------


def test_a_directory_without_the_file_has_none(tmp_path: Path) -> None:
    assert read_language_model(tmp_path, TOKENS) is None


def test_both_engines_take_the_one_beside_the_model(tmp_path: Path) -> None:
    directory = tmp_path / "asr"
    shutil.copytree(EMBEDDED / "asr", directory)
    (directory / "SHA256SUMS").unlink()
    write(directory, arrays(weight=0.25))
    graphs = find_conversion(directory, describe_model(directory, "ParaformerStreaming"))
    assert graphs == directory / "onnx", "a language model is no reason to convert anew"
    for engine in (
        TorchEngine(load_model(directory, "ParaformerStreaming", "cpu")),
        OnnxEngine(load_converted(graphs, directory, num_threads=1)),
    ):
        assert engine.language is not None
        hit = engine.vocabulary.tokens.index("打")
        assert engine.language.step([engine.language.start], [hit])[0].tolist() == [-0.125]


# --- files that are none ------------------------------------------------------------------------------------------------


def changed(**changes: Any) -> Callable[[Path], object]:
    def damage(directory: Path) -> None:
        found = {**arrays(), **{name: np.asarray(value) for name, value in changes.items() if value is not None}}
        write(directory, {name: value for name, value in found.items() if not (name in changes and changes[name] is None)})

    return damage


def as_bytes(content: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / FILE).write_bytes(content)


def pickled(directory: Path) -> None:
    np.savez(directory / FILE, **{**arrays(), "symbols": np.array(["打", "开", "灯"], object)})  # type: ignore[arg-type]


def cut_short(directory: Path) -> None:
    path = write(directory, arrays())
    path.write_bytes(path.read_bytes()[:-40])


def with_member(name: str, content: bytes) -> Callable[[Path], object]:
    """One array in the file is these bytes."""

    def damage(directory: Path) -> None:
        np.savez(directory / FILE, **{key: value for key, value in arrays().items() if key != name})  # type: ignore[arg-type]
        with zipfile.ZipFile(directory / FILE, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{name}.npy", content)

    return damage


def boasting(name: str, descr: object, shape: tuple[int, ...], content: bytes = b"") -> Callable[[Path], object]:
    """An array whose header says that it has so many values."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return with_member(name, header.getvalue() + content)


def twice(directory: Path) -> None:
    write(directory, arrays())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(directory / FILE, "a") as archive:
            archive.writestr("lower.npy", archive.read("lower.npy"))


def larger_than_allowed(directory: Path) -> None:
    """A hole on the disk."""
    with (directory / FILE).open("wb") as file:
        file.truncate(64 * 2**20 + 1)


def chain(length: int) -> Arrays:
    """States of which each backs off to the one before it."""
    empty = {name: arrays()[name][:0] for name in ("arc_symbol", "arc_next", "arc_score")}
    states = {"lower": np.maximum(np.arange(length) - 1, 0), "back_off": np.full(length, -1.0), "first_arc": np.zeros(length + 1, int)}
    return {**arrays(), **empty, **states}


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (as_bytes(b""), "is not a language model"),
    "text": (as_bytes("打 开 灯\n".encode()), "is not a language model"),
    "cut short": (cut_short, "is not a language model"),
    "pickled": (pickled, "is not a language model"),
    "a zip bomb": (boasting("lower", "|i1", (300 * 2**20,), bytes(300 * 2**20)), "more than 8,388,608 values"),
    "values that are not there": (boasting("lower", "<i4", (10**6,)), "is not a language model"),
    "a million million values": (boasting("lower", "<i4", (10**12,)), "more than 8,388,608 values"),
    "fewer than no values": (boasting("lower", "<i4", (-1,)), "values"),
    "a billion symbols of no bytes": (boasting("symbols", "<U0", (10**9,)), "symbols is of another type"),
    "a billion void symbols": (boasting("symbols", "|V0", (10**9,)), "symbols is of another type"),
    "a million symbols": (boasting("symbols", "<U1", (10**6,), bytes(4 * 10**6)), "more than 131,072 values"),
    "a symbol of a million characters": (boasting("symbols", "<U1000000", (1,), bytes(4 * 10**6)), "symbols is of another type"),
    "a structure": (boasting("lower", [("a", "<i4")], (4,), bytes(16)), "lower is of another type"),
    "no header": (with_member("lower", b"\x93NUMPY"), "is not a language model"),
    "a header of another version": (with_member("lower", b"\x93NUMPY\x03\x00"), "another format"),
    "a header that is too long": (
        boasting("lower", [(f"f{number:05}", "<i4") for number in range(1_000)], (4,)),
        "is not a language model",
    ),
    "an array twice": (twice, "does not hold the arrays of one"),
    "larger than allowed": (larger_than_allowed, "is larger than"),
    "a FIFO": (lambda directory: os.mkfifo(directory / FILE), "it is no regular file"),
    "a device": (lambda directory: (directory / FILE).symlink_to("/dev/zero"), "it is no regular file"),
    "one state below the other": (lambda directory: write(directory, chain(11)), "backs off more than 8 times"),
    "differences that overflow": (
        lambda directory: write(directory, {**chain(3), "first_arc": np.array([0, 2**63 - 1, -2, 0])}),
        "its states share arcs",
    ),
    "a directory": (lambda directory: (directory / FILE).mkdir(), "cannot be read"),
    "a link to nowhere": (lambda directory: (directory / FILE).symlink_to(directory / "nowhere"), "cannot be read"),
    "no states": (changed(lower=np.zeros(0, np.int32), first_arc=np.zeros(1, np.int32)), "its states and their arcs are not as many"),
    "an array is missing": (changed(lower=None), "does not hold the arrays of one"),
    "a symbol twice": (changed(symbols=["打", "开", "打"]), "a symbol stands there twice"),
    "the weight is NaN": (changed(weight=math.nan), "its weight is not from 0 to 10"),
    "the weight is negative": (changed(weight=-0.1), "its weight is not from 0 to 10"),
    "the weight is huge": (changed(weight=3e38), "its weight is not from 0 to 10"),
    "the weight is a list": (changed(weight=[0.3, 0.3]), "weight has another shape"),
    "the weight is text": (changed(weight="0.3"), "weight is of another type"),
    "the start has a fraction": (changed(start=2.7), "start is of another type"),
    "a start below the states": (changed(start=-1), "an arc leads nowhere"),
    "symbols are numbers": (changed(symbols=[1, 2, 3]), "symbols is of another type"),
    "symbols in a square": (changed(symbols=[["打"], ["开"], ["灯"]]), "symbols has another shape"),
    "an arc below the symbols": (changed(arc_symbol=[0, 1, 2, -1, 0, 2]), "an arc has no symbol"),
    "an arc too few": (changed(first_arc=[0, 3, 4, 5, 5]), "its states share arcs"),
    "arcs that overlap": (changed(first_arc=[0, 4, 3, 5, 6]), "its states share arcs"),
    "arcs of nobody": (changed(first_arc=[1, 3, 4, 5, 6]), "its states share arcs"),
    "a state too many": (changed(first_arc=[0, 3, 4, 5, 6, 6]), "its states and their arcs are not as many"),
    "a state asks itself": (changed(lower=[0, 1, 0, 0]), "backs off to itself or a later one"),
    "states ask in a circle": (changed(lower=[0, 2, 1, 0]), "backs off to itself or a later one"),
    "a state asks one below the root": (changed(lower=[0, -1, 0, 0]), "backs off to itself or a later one"),
    "the root asks another": (changed(lower=[1, 0, 0, 0]), "backs off to itself or a later one"),
    "a start beyond the states": (changed(start=4), "an arc leads nowhere"),
    "an arc beyond the states": (changed(arc_next=[1, 0, 0, 3, 1, 4]), "an arc leads nowhere"),
    "an arc below the states": (changed(arc_next=[1, 0, 0, 3, 1, -1]), "an arc leads nowhere"),
    "an arc beyond the symbols": (changed(arc_symbol=[0, 1, 3, 1, 0, 2]), "an arc has no symbol"),
    "arcs out of order": (changed(arc_symbol=[0, 2, 1, 1, 0, 2]), "not in order"),
    "two arcs of one symbol": (changed(arc_symbol=[0, 1, 1, 1, 0, 2]), "not in order"),
    "numbers with fractions": (changed(lower=[0.0, 0.0, 0.0, 0.0]), "lower is of another type"),
    "numbers beyond int64": (changed(lower=np.full(4, 2**64 - 1, np.uint64)), "backs off to itself or a later one"),
    "numbers in a square": (changed(lower=np.zeros((2, 2), np.int32)), "lower has another shape"),
    "a score is NaN": (changed(back_off=[UNHEARD, math.nan, -1.5, -2.5]), "a score is not from -100 to 0"),
    "a score is infinite": (changed(arc_score=[-1.0, -math.inf, -3.0, -0.25, -0.5, -0.125]), "a score is not from -100 to 0"),
    "a score is positive": (changed(arc_score=[-1.0, 0.5, -3.0, -0.25, -0.5, -0.125]), "a score is not from -100 to 0"),
    "scores are whole numbers": (changed(back_off=[-9, -1, -2, -3]), "back_off is of another type"),
    "a score too few": (changed(arc_score=[-1.0, -2.0, -3.0, -0.25, -0.5]), "not as many as what they belong to"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_file_that_is_none_is_refused_in_one_line_that_names_it(damage: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    damage(tmp_path)
    tracemalloc.start()
    with pytest.raises(ModelLoadFailed) as refusal:
        read_language_model(tmp_path, TOKENS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 80 * 2**20, "a file of 64 MB at most is read, and little more is made of it"
    message = str(refusal.value)
    assert str(tmp_path / FILE) in message
    assert said in message
    assert "\n" not in message


def test_whatever_numbers_a_file_holds_it_is_refused_or_can_be_asked(tmp_path: Path) -> None:
    """Planted at random into the arrays: a file that is taken gives finite scores and states that it has."""
    rng, taken = random.Random(0), 0
    for _ in range(300):
        found = arrays()
        for _ in range(rng.randint(1, 2)):
            name = rng.choice([name for name in found if name != "symbols"])
            array = found[name] = found[name].copy()
            array.flat[rng.randrange(array.size)] = rng.choice([0, 1, 2, 3, 4, -1, 7]) if array.dtype.kind != "u" else rng.randrange(6)
        try:
            model = LanguageModel(found, TOKENS)
        except ValueError:
            continue
        taken += 1
        scores, states = model.step(*zip(*itertools.product(range(4), range(len(TOKENS))), strict=True))
        assert np.isfinite(scores).all()
        assert ((states >= 0) & (states < 4)).all()
    assert 30 < taken < 270


def test_loading_a_model_reports_its_damaged_language_model(tmp_path: Path) -> None:
    directory = tmp_path / "asr"
    shutil.copytree(EMBEDDED / "asr", directory)
    (directory / "SHA256SUMS").unlink()
    (directory / FILE).write_bytes(b"PK")
    for load in (
        lambda: load_model(directory, "ParaformerStreaming", "cpu"),
        lambda: load_converted(directory / "onnx", directory, num_threads=1),
    ):
        with pytest.raises(ModelLoadFailed, match=f"{FILE} is not a language model"):
            load()
