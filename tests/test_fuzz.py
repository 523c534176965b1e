"""Whatever comes in from outside: PCM, files, settings, environment, hotwords, commands. It is taken, or refused in one line.

``make test`` runs a short form, ``make fuzz`` 100,000 inputs and more (``FUZZ_SCALE`` multiplies the number). How many were tried, and how
long that took, stands in pytest's summary.
"""

from __future__ import annotations

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
from conftest import FUZZED
from fakes import CountingRecognizer, silence, speech
from harness import EXAMPLES, check_guarantees
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_pipeline import build

from voice.audio import AudioBlock
from voice.capture.pcm_stream import PcmStream
from voice.capture.wav_file import WavFile
from voice.config import Settings, load_settings
from voice.errors import ConfigInvalid, ControlInvalid, InputUnreadable
from voice.hotword_list import parse_lines
from voice.process.control import parse_command

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
    while not stream.ended:
        block = stream.read(5)
        frames += len(block.samples) if block else 0
    os.close(read_end)
    assert frames == sum(map(len, pieces)) // 2


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


SPECIAL = st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e38, -1.0, 0.0, 0.3])
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
    pipeline = build(CountingRecognizer())
    events = []
    for rate_hz, channels, frames, value, loud, lost in blocks:
        samples = np.repeat((speech(frames / 16_000) if loud else silence(frames / 16_000))[:, None], channels, axis=1)
        samples[frames // 2 : frames // 2 + 1] = value
        events += pipeline.process(AudioBlock(samples, rate_hz, lost), load_sec)
    events += pipeline.finish(endpoint)
    check_guarantees([{**event.model_dump(), "seq": number} for number, event in enumerate(events, 1)])


# --- settings -----------------------------------------------------------------------------------------------------------

NAMES = sorted(name for name in Settings.model_fields)
LEAVES = sorted(
    f"{section}.{name}" for section, field in Settings.model_fields.items() for name in getattr(field.annotation, "model_fields", {})
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.just("off"), st.just([0, 10, 5])),
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
    problems = ["taken"]
    try:
        call()
    except ConfigInvalid as error:
        problems = error.problems
    assert problems
    for problem in problems:
        one_line(problem)


@fuzz(600, st.dictionaries(st.sampled_from([*NAMES, *LEAVES, "nonsense", "audio.nonsense"]), VALUES, max_size=4))
def test_any_settings_are_taken_or_refused(tmp_path: Path, flat: dict[str, Any]) -> None:
    loads(lambda: load_settings(nested(flat), environment={}))


ANY_BYTES = st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode))


@fuzz(300, st.one_of(ANY_BYTES, VALUES.map(lambda value: yaml.safe_dump(value).encode())))
def test_any_bytes_as_a_settings_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes(data)
    loads(lambda: load_settings({}, path, environment={}))


ENVIRONMENT = st.dictionaries(
    st.one_of(
        st.sampled_from([f"VOICE_ASR__{name.replace('.', '__').upper()}" for name in [*NAMES, *LEAVES]]),
        st.text("ABC_xyz", min_size=1, max_size=8).map(lambda name: f"VOICE_ASR__{name}"),
    ),
    st.one_of(st.text(max_size=15), st.sampled_from(["true", "0", "-1", "[0, 8, 4]", "{", "null", "1e999", '{"a": 1}'])),
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


@fuzz(5_000, st.one_of(ANY_BYTES, st.sampled_from([b'{"command": ', b"[", b'{"command": "mute"}', b"1" * 5_000])))
def test_any_line_is_a_command_or_refused(tmp_path: Path, line: bytes) -> None:
    answer = parse_command(line)
    if isinstance(answer, ControlInvalid):
        one_line(str(answer))
