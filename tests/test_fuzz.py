"""Whatever comes in from outside: PCM, files, settings, environment, hotwords, commands. It is accepted, or refused in one line.

``make test`` runs a short form, ``make fuzz`` 100,000 inputs and more (``FUZZ_SCALE`` multiplies the number). pytest's summary shows the
number of inputs and the seconds they took.
"""

from __future__ import annotations

import functools
import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from conftest import FUZZED, TRAINED
from fakes import CountingRecognizer, silence, speech
from harness import EMBEDDED_ASR, EXAMPLES, check_guarantees, example, in_time, of_type
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_pipeline import build

from voice.audio import AudioBlock
from voice.capture.container import container_of
from voice.capture.pcm_stream import PcmStream
from voice.capture.wav_file import WavFile
from voice.config import Settings, load_settings
from voice.endpointing.silero import SileroVad
from voice.errors import ConfigInvalid, ControlInvalid, InputUnreadable, describe
from voice.hotword_list import HotwordList, parse_lines
from voice.models.loader import load_model
from voice.pipeline import Pipeline
from voice.process.control import parse_command
from voice.recognition.streaming import StreamingRecognizer
from voice.recognition.torch_engine import TorchEngine

SCALE = float(os.environ.get("FUZZ_SCALE", "1"))
TARGETS: dict[str, tuple[Callable[..., None], st.SearchStrategy[Any]]] = {}
"""What is checked, and with what: tests/fuzz_by_coverage.py goes on from here."""
CONTROL = "\n\r\t\x00\x1b"


def fuzz(inputs: int, *strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test over so many inputs, times FUZZ_SCALE; every one is counted."""

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        TARGETS[check.__name__] = (check, st.tuples(*strategies))

        @settings(max_examples=round(inputs * SCALE), deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(st.tuples(*strategies))
        def run(request: pytest.FixtureRequest, tmp_path: Path, drawn: tuple[Any, ...]) -> None:
            FUZZED.count(check.__name__)
            check(tmp_path, *drawn)

        run.__name__ = check.__name__
        run.__doc__ = check.__doc__
        return run

    return decorate


@pytest.fixture(autouse=True)
def timed(request: pytest.FixtureRequest) -> Iterator[None]:
    started = time.monotonic()
    yield
    FUZZED.seconds += time.monotonic() - started


def one_line(text: str) -> None:
    assert text
    assert len(text.splitlines()) == 1, "an error is one line"
    assert "Traceback" not in text


# --- audio --------------------------------------------------------------------------------------------------------------


@fuzz(300, st.lists(st.binary(max_size=5_000), max_size=6), st.sampled_from([4_000, 16_000, 384_000]))
def test_any_bytes_are_pcm(tmp_path: Path, pieces: list[bytes], rate_hz: int) -> None:
    read_end, write_end = os.pipe()
    stream = PcmStream(read_end, rate_hz)
    for piece in pieces:
        os.write(write_end, piece)
    os.close(write_end)
    frames = 0
    refused = False
    while not stream.ended:
        try:
            block = stream.read(5)
        except InputUnreadable as error:
            one_line(str(error))
            refused = "use --input FILE" in str(error)
        else:
            frames += len(block.samples) if block else 0
    os.close(read_end)
    data = b"".join(pieces)
    if refused:
        assert container_of(data) is not None
    else:
        assert frames == len(data) // 2


def wav_header() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(300, np.int16), 16_000, format="WAV")
    return buffer.getvalue()


def flac() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, soundfile.read(EXAMPLES / "air_conditioner.wav")[0][:4_000], 16_000, format="FLAC")
    return buffer.getvalue()


WHOLE = {"wav": wav_header(), "flac": flac()}


@fuzz(
    1_500,
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=8),
    st.one_of(st.none(), st.integers(0, 700)),
    st.binary(max_size=20),
)
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, kind: str, damage: list[tuple[int, int]], cut: int | None, tail: bytes) -> None:
    data = bytearray(WHOLE[kind])
    for position, value in damage:
        data[position] = value
    path = tmp_path / f"damaged.{kind}"
    path.write_bytes(bytes(data[:cut]) + tail)
    try:
        file = WavFile(path)
    except InputUnreadable as error:
        one_line(str(error))
        return
    try:
        for _ in range(100):
            block = file.read(0)
            if block is None:
                break
            assert block.samples.ndim == 2
    except InputUnreadable as error:
        one_line(str(error))
    finally:
        file.close()


@fuzz(300, st.binary(min_size=1, max_size=400))
def test_any_bytes_are_no_reason_to_crash_as_a_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "anything.wav"
    path.write_bytes(data)
    try:
        WavFile(path).close()
    except InputUnreadable as error:
        one_line(str(error))


SPECIAL = st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e38, 3e38, -3e38, 1e19, -1e19, -1.0, 0.0, 0.3])
BLOCKS = st.lists(
    st.tuples(
        st.sampled_from([8_000, 16_000, 44_100]),
        st.integers(1, 3),
        st.integers(0, 9_000),
        SPECIAL,
        st.booleans(),
        st.sampled_from([0, 0, 0, 1, 700, 40_000]),
    ),
    max_size=10,
)


@fuzz(300, BLOCKS, st.floats(0, 3), st.sampled_from(["shutdown", "end_of_input", "audio_lost", "muted"]))
def test_any_audio_keeps_the_guarantees(tmp_path: Path, blocks: list[tuple[Any, ...]], load_sec: float, endpoint: Any) -> None:
    events = fed(build(CountingRecognizer()), blocks, load_sec, endpoint)
    check_guarantees([{**event.model_dump(), "seq": number} for number, event in enumerate(events, 1)])


def fed(pipeline: Pipeline, blocks: list[tuple[Any, ...]], load_sec: float, endpoint: Any) -> list[Any]:
    events = []
    audio_sec = 0.0
    for rate_hz, channels, frames, value, loud, lost in blocks:
        samples = np.repeat((speech(frames / 16_000) if loud else silence(frames / 16_000))[:, None], channels, axis=1)
        samples[frames // 2 : frames // 2 + 1] = value
        pipeline._ledger.report(lost / rate_hz, "planted")
        events += pipeline.process(AudioBlock(samples, rate_hz, pipeline._ledger.seal()), load_sec)
        audio_sec += (len(samples) + lost) / rate_hz
    events += pipeline.finish(endpoint)
    assert pipeline.totals.audio_ms == pytest.approx(1_000 * audio_sec, abs=1 + len(blocks)), "no sample appears from nowhere or vanishes"
    assert pipeline.totals.lost_ms == pytest.approx(sum(1_000 * lost / rate_hz for rate_hz, *_, lost in blocks), abs=len(blocks))
    return events


class RealModels:
    """Loaded once, whoever fuzzes."""

    @functools.cached_property
    def recognizer(self) -> StreamingRecognizer:
        return StreamingRecognizer(TorchEngine(load_model(EMBEDDED_ASR, "ParaformerStreaming", "cpu")), TRAINED)

    @functools.cached_property
    def vad(self) -> SileroVad:
        return SileroVad()


REAL = RealModels()


@fuzz(8, BLOCKS, SPECIAL, st.sampled_from(["shutdown", "end_of_input"]))
def test_after_any_audio_the_real_models_hear_what_follows(tmp_path: Path, blocks: list[tuple[Any, ...]], value: float, end: Any) -> None:
    """A value that no recording holds may spoil its moment, not what comes after it: not the voice activity, not the recogniser."""
    REAL.vad.reset()
    pipeline = build(REAL.recognizer, REAL.vad)
    events = fed(pipeline, blocks, 0.0, "requested")
    spoiled = np.array([[value]] * 300, np.float32)
    events += pipeline.process(AudioBlock(spoiled, 16_000))
    samples, (text,) = example("air_conditioner")
    events += pipeline.process(AudioBlock(samples[:, None], 16_000))
    events += pipeline.finish(end)
    dumped = [{**event.model_dump(), "seq": number} for number, event in enumerate(events, 1)]
    check_guarantees(dumped)
    assert len(set(text) & set(of_type(dumped, "final")[-1]["raw_text"])) >= 5, "of seven"
    assert all(error["error_code"] in ("input_unreadable", "audio_overrun") for error in of_type(dumped, "error_event"))


# --- settings -----------------------------------------------------------------------------------------------------------

NAMES = sorted(name for name in Settings.model_fields)
LEAVES = sorted(
    f"{section}.{name}" for section, field in Settings.model_fields.items() for name in getattr(field.annotation, "model_fields", {})
)
HARMFUL = st.sampled_from(["~nosuchuser/x", "x" * 5_000, "a\0b", "1" * 5_000, "0." + "1" * 5_000, "2024-13-45", "\ud800", "\x1b[31m\n"])
VALUES = st.recursive(
    st.one_of(HARMFUL, st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.just("off"), st.just([0, 10, 5])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.text(max_size=5), st.integers()), inner, max_size=3)),
    max_leaves=5,
)


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in flat.items():
        section, _, name = key.partition(".")
        if name and isinstance(result.setdefault(section, {}), dict):
            result[section][name] = value
        else:
            result[section] = value
    return result


def loads(call: Callable[[], object]) -> None:
    """It is accepted, or refused with a few short lines; both at once."""
    problems, message = ["accepted"], ""
    started = time.monotonic()
    try:
        call()
    except ConfigInvalid as error:
        problems, message = error.problems, describe(error)
    assert time.monotonic() - started < in_time(1), "an input costs time"
    assert 0 < len(problems) <= 21
    assert len(message) <= 1_000
    for problem in problems:
        one_line(problem)
        assert len(problem) <= 300


@fuzz(600, st.dictionaries(st.sampled_from([*NAMES, *LEAVES, "nonsense", "audio.nonsense"]), VALUES, max_size=4))
def test_any_settings_are_taken_or_refused(tmp_path: Path, flat: dict[str, Any]) -> None:
    loads(lambda: load_settings(nested(flat), environment={}))


ANY_BYTES = st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode))


YAML_PIECES = st.sampled_from(
    [
        *(
            "a: ",
            "b: ",
            "endpoint_silence_ms: ",
            "hotwords: ",
            "<<: ",
            "- ",
            "? ",
            ": ",
            ", ",
            "[",
            "]",
            "{",
            "}",
            "\n",
            "  ",
            "\t",
            "#",
            "|",
            ">",
        ),
        *("&a ", "&b ", "*a", "*b", "[*a, *a, *a, *a, *a, *a, *a, *a]", "{<<: *a}", "'", '"', "\\", "---\n", "%YAML 1.1\n", "\0", "\ufeff"),
        *(f"!!{tag} " for tag in ("int", "float", "bool", "null", "str", "timestamp", "binary", "omap", "set", "pairs", "python/name:os")),
        *("2024-13-45", "1:59:59", "0x", "1_0", ".inf", "~", "1" * 5_000, "[" * 40, "{a: " * 40, "x" * 2_000),
    ]
)
YAML_TEXT = st.lists(YAML_PIECES, max_size=40).map(lambda pieces: "".join(pieces).encode())
ANY_FILE = st.one_of(ANY_BYTES, YAML_TEXT, VALUES.map(lambda value: yaml.safe_dump(value).encode()))


@fuzz(600, ANY_FILE)
def test_any_bytes_as_a_settings_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes(data)
    loads(lambda: load_settings({}, path, environment={}))


ENVIRONMENT = st.dictionaries(
    st.one_of(
        st.sampled_from([f"VOICE_ASR__{name.replace('.', '__').upper()}" for name in [*NAMES, *LEAVES]]),
        st.text("ABC_xyz", min_size=1, max_size=8).map(lambda name: f"VOICE_ASR__{name}"),
    ),
    st.one_of(
        st.text(max_size=15),
        st.sampled_from(["true", "0", "-1", "[0, 8, 4]", "{", "null", "1e999", '{"a": 1}']),
        HARMFUL,
        st.tuples(st.sampled_from(["[", '{"a":', "[1, "]), st.sampled_from([1, 30, 100, 900, 50_000])).map(lambda pair: pair[0] * pair[1]),
        st.integers(1, 1_000).map(lambda depth: "[" * depth + "]" * depth),
        st.just("[" + "1" * 5_000 + "]"),
    ),
    max_size=3,
)


@fuzz(300, ENVIRONMENT)
def test_any_environment_is_taken_or_refused(tmp_path: Path, environment: dict[str, str]) -> None:
    loads(lambda: load_settings({}, environment=environment))


# --- lines --------------------------------------------------------------------------------------------------------------

ANY_LINE = st.one_of(st.text(max_size=60), st.text(CONTROL + "打开 0123456789.-einfa周", max_size=20))


@fuzz(3_000, st.lists(ANY_LINE, max_size=6))
def test_any_lines_are_hotwords_or_refused(tmp_path: Path, lines: list[str]) -> None:
    def check() -> None:
        for word in parse_lines(lines, "hotwords"):
            assert word.text.strip() if hasattr(word, "text") else word[0].strip()

    loads(check)


@fuzz(
    500,
    st.one_of(
        st.binary(max_size=300),
        st.tuples(st.lists(ANY_LINE, min_size=1, max_size=5), st.sampled_from([1, 1_000])).map(
            lambda pair: "\n".join(pair[0] * pair[1]).encode()
        ),
        st.sampled_from([b"x" * 1_000_001, ("打" * 65 + "\n").encode() * 5_000, "\ufeff周".encode(), "词".encode("utf-16")]),
    ),
)
def test_any_bytes_as_a_hotword_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(data)
    loads(lambda: HotwordList(str(path)).current())


@fuzz(5_000, st.one_of(ANY_BYTES, st.sampled_from([b'{"command": ', b"[", b'{"command": "mute"}', b"1" * 5_000])))
def test_any_line_is_a_command_or_refused(tmp_path: Path, line: bytes) -> None:
    answer = parse_command(line)
    if isinstance(answer, ControlInvalid):
        one_line(str(answer))
