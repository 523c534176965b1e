"""Capture: files and pipes give every sample, in order, and say what is wrong with them."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import select
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
from harness import Result, example, final_texts, of_type, run_service, start_service
from hypothesis import given
from hypothesis import strategies as st

from voice.audio import AudioBlock
from voice.capture.container import MAX_HEADER_BYTES, container_of, is_undecided
from voice.capture.pcm_stream import PcmStream
from voice.capture.resample import Resampler
from voice.capture.wav_file import WavFile
from voice.errors import EXIT_INPUT, InputUnreadable

DEADLINE_SEC = 10
RATE_HZ = 8_000
NOISE = np.random.default_rng(3).uniform(-0.9, 0.9, 10 * RATE_HZ).astype(np.float32)


def read_all(source: WavFile | PcmStream) -> list[AudioBlock]:
    """Blocks up to the end of the source."""
    blocks = []
    deadline = time.monotonic() + DEADLINE_SEC
    while not source.ended:
        assert time.monotonic() < deadline, "the source did not end"
        block = source.read(timeout_sec=0.5)
        if block is not None:
            blocks.append(block)
    return blocks


def joined(blocks: list[AudioBlock]) -> np.ndarray:
    return np.concatenate([block.samples for block in blocks]) if blocks else np.zeros((0, 1), np.float32)


# --- files ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    name: str
    subtype: str
    rate_hz: int
    num_channels: int
    error: float
    """How far a sample may be from what was written."""


@pytest.mark.parametrize(
    "fmt",
    [
        Format("telephone.wav", "PCM_16", 8_000, 2, 2**-15),
        Format("studio.wav", "PCM_24", 44_100, 1, 2**-23),
        Format("float.wav", "FLOAT", 16_000, 1, 0),
        Format("small.flac", "PCM_16", 16_000, 1, 2**-15),
        Format("surround.flac", "PCM_24", 48_000, 6, 2**-23),
        Format("old.wav", "ULAW", 8_000, 1, 0.03),
    ],
    ids=lambda fmt: fmt.name,
)
def test_a_file_of_any_format_gives_its_samples_at_its_rate(tmp_path: Path, fmt: Format):
    path = tmp_path / fmt.name
    wanted = NOISE[: 12_345 * fmt.num_channels].reshape(-1, fmt.num_channels)
    soundfile.write(path, wanted, fmt.rate_hz, subtype=fmt.subtype)
    blocks = read_all(WavFile(path))
    assert {block.rate_hz for block in blocks} == {fmt.rate_hz}
    assert all(block.samples.dtype == np.float32 and block.losses_before == 0 for block in blocks)
    assert joined(blocks).shape == wanted.shape
    np.testing.assert_allclose(joined(blocks), wanted, atol=fmt.error)


def test_a_file_is_read_in_blocks_of_a_tenth_of_a_second_the_last_one_shorter(tmp_path: Path):
    path = tmp_path / "x.wav"
    soundfile.write(path, NOISE[: RATE_HZ // 4], RATE_HZ)
    assert [block.duration_sec for block in read_all(WavFile(path))] == [0.1, 0.1, 0.05]


def test_after_its_end_a_file_gives_nothing_more(tmp_path: Path):
    path = tmp_path / "x.wav"
    soundfile.write(path, NOISE[:100], RATE_HZ)
    file = WavFile(path)
    assert len(read_all(file)) == 1
    assert file.ended
    assert file.read(0) is None


def test_a_closed_file_gives_nothing_more(tmp_path: Path):
    path = tmp_path / "x.wav"
    soundfile.write(path, NOISE, RATE_HZ)
    file = WavFile(path)
    assert file.read(0) is not None
    file.close()
    file.close()
    assert file.ended
    assert file.read(0) is None


def test_in_real_time_the_pace_is_asked_with_each_position_and_tells_how_late_we_are(tmp_path: Path):
    path = tmp_path / "x.wav"
    soundfile.write(path, NOISE[: RATE_HZ // 4], RATE_HZ)
    positions: list[float] = []

    def pace(position_sec: float) -> float:
        positions.append(position_sec)
        return 10 * position_sec

    file = WavFile(path, pace=pace)
    late = []
    while file.read(0) is not None:
        late.append(file.waiting_sec)
    assert positions == pytest.approx([0.1, 0.2, 0.25])
    assert late == pytest.approx([1.0, 2.0, 2.5])


def test_without_a_pace_no_audio_waits(tmp_path: Path):
    path = tmp_path / "x.wav"
    soundfile.write(path, NOISE, RATE_HZ)
    file = WavFile(path)
    file.read(0)
    assert file.waiting_sec == 0.0


def make_missing(path: Path) -> None:
    assert not path.exists()


def make_directory(path: Path) -> None:
    path.mkdir()


def make_empty(path: Path) -> None:
    path.touch()


def make_without_samples(path: Path) -> None:
    soundfile.write(path, NOISE[:0], RATE_HZ)


def make_truncated_header(path: Path) -> None:
    soundfile.write(path, NOISE, RATE_HZ)
    path.write_bytes(path.read_bytes()[:20])


def make_text(path: Path) -> None:
    path.write_text("打开客厅的灯\n" * 100, encoding="utf-8")


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_circle(path: Path) -> None:
    path.symlink_to(path)


def make_rate(rate_hz: int) -> Callable[[Path], None]:
    return lambda path: soundfile.write(path, NOISE, rate_hz)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_missing, "no such file"),
        (make_directory, "not a file"),
        (make_empty, "the file is empty"),
        (make_without_samples, "0 samples"),
        (make_truncated_header, "not readable as audio"),
        (make_text, "not readable as audio"),
        (make_fifo, "a FIFO, not a file; to read raw s16le PCM from it use --input - < "),
        (make_device, "not a file"),
        (make_circle, "cannot be opened (Too many levels of symbolic links"),
        (make_rate(1), "the file's sample rate is 1 Hz; allowed: 1000..768000 Hz"),
        (make_rate(5), "the file's sample rate is 5 Hz; allowed: 1000..768000 Hz"),
        (make_rate(999), "the file's sample rate is 999 Hz"),
        (make_rate(768_001), "the file's sample rate is 768001 Hz"),
    ],
)
def test_what_is_no_audio_file_is_refused_by_name_and_reason(tmp_path: Path, make: Callable[[Path], None], reason: str):
    path = tmp_path / "客厅 1.wav"
    make(path)
    with pytest.raises(InputUnreadable) as caught:
        WavFile(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in str(caught.value)
    assert caught.value.exit_code == EXIT_INPUT


@pytest.mark.parametrize("rate_hz", [1_000, 768_000])
def test_the_least_and_the_greatest_rate_are_read_and_resampled_to_their_length(tmp_path: Path, rate_hz: int) -> None:
    make_rate(rate_hz)(tmp_path / "x.wav")
    resampler = Resampler("mix")
    blocks = read_all(WavFile(tmp_path / "x.wav"))
    chunks = [chunk for block in blocks for chunk in resampler.accept(block)] + resampler.flush()
    assert sum(len(chunk.samples) for chunk in chunks) == round(len(NOISE) * 16_000 / rate_hz)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x" * 5_000, "is too long for a path"),
        ("a\0b.wav", "holds a character that no path can hold"),
        ("file/below.wav", "cannot be opened (Not a directory)"),
        ("pcm.raw", "a .raw file has no header; to read it as raw s16le mono PCM use --input - < "),
        ("pcm.RAW", "a .raw file has no header"),
    ],
)
def test_a_name_that_cannot_be_a_file_is_refused_in_one_line(tmp_path: Path, name: str, reason: str) -> None:
    for existing in ("file", "pcm.raw", "pcm.RAW"):
        (tmp_path / existing).write_bytes(b"x")
    with pytest.raises(InputUnreadable) as caught:
        WavFile(tmp_path / name)
    assert str(caught.value).removeprefix(str(tmp_path / name)).removeprefix(":").startswith(f" {reason}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_home_that_is_not_known_is_refused_and_one_that_is_known_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputUnreadable, match=r"^~nosuchuser/x\.wav begins with a home directory that is not known"):
        WavFile(Path("~nosuchuser/x.wav"))
    monkeypatch.setenv("HOME", str(tmp_path))
    soundfile.write(tmp_path / "x.wav", NOISE, RATE_HZ)
    assert len(joined(read_all(WavFile(Path("~/x.wav"))))) == len(NOISE)


def test_a_name_that_is_not_utf_8_is_read(tmp_path: Path) -> None:
    """Chinese names from old archives are in GBK."""
    path = tmp_path / os.fsdecode("客厅.wav".encode("gbk"))
    soundfile.write(tmp_path / "x.wav", NOISE, RATE_HZ)
    (tmp_path / "x.wav").rename(path)
    assert len(joined(read_all(WavFile(path)))) == len(NOISE)


@pytest.mark.slow
@pytest.mark.parametrize("log_format", ["console", "json"])
def test_the_service_takes_names_that_are_not_utf_8_wherever_it_takes_a_path(tmp_path: Path, log_format: str) -> None:
    directory = tmp_path / os.fsdecode("客厅".encode("gbk"))
    directory.mkdir()
    samples, texts = example("temperature")
    soundfile.write(tmp_path / "x.wav", samples, 16_000)
    (tmp_path / "x.wav").rename(directory / "x.wav")
    (directory / "words.txt").write_text("空调 20\n", encoding="utf-8")
    (directory / "settings.yaml").write_text("chunk_sec: 0.6\n", encoding="utf-8")
    files = {"--input": "x.wav", "--hotwords": "words.txt", "--config": "settings.yaml", "--record": "recordings"}
    arguments = [part for flag, name in files.items() for part in (flag, str(directory / name))]
    models = ["--emotion-model", str(directory / "missing"), "--punctuation-model", str(directory / "missing")]
    result = run_service("sliced", *arguments, *models, "--status-events", "--log-format", log_format)
    assert (final_texts(result.events), result.returncode) == (list(texts), 0)
    assert len(list((directory / "recordings").iterdir())) == 1
    shown = rf"{tmp_path}/\udcbf\udccd\udccc\udcfc"
    assert [event["device"] for event in result.events if event.get("device")] == [f"{shown}/x.wav"]
    assert [event["message"].count(f"{shown}/missing") for event in of_type(result.events, "error_event")] == [1, 1]


@pytest.mark.slow
def test_a_missing_file_whose_name_is_not_utf_8_is_an_error_event_and_exit_4(tmp_path: Path) -> None:
    result = run_service("sliced", "--input", str(tmp_path / os.fsdecode("客厅.wav".encode("gbk"))))
    [error] = of_type(result.events, "error_event")
    assert error["message"] == rf"InputUnreadable: {tmp_path}/\udcbf\udccd\udccc\udcfc.wav: no such file"
    assert result.returncode == EXIT_INPUT


@contextlib.contextmanager
def without_rights() -> Iterator[Path]:
    """A directory that anybody may search, and for root the rights of nobody."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        soundfile.write(f"{name}/secret.wav", NOISE, RATE_HZ)
        (Path(name) / "secret.wav").chmod(0)
        (Path(name) / "locked").mkdir(mode=0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65_534)
        try:
            yield Path(name)
        finally:
            os.seteuid(user)


@pytest.mark.parametrize("name", ["secret.wav", "locked/x.wav"])
def test_a_file_that_may_not_be_read_is_refused_by_its_reason(name: str) -> None:
    with without_rights() as directory, pytest.raises(InputUnreadable, match=r"cannot be opened \(Permission denied"):
        WavFile(directory / name)


STREAMINFO_SAMPLES = slice(21, 26)
"""In a FLAC file: four bits that belong to the sample size, then 36 bits for the number of samples (RFC 9639, 8.2)."""


def without_length(flac: bytes) -> bytes:
    """The file as an encoder leaves it that writes into a pipe: the number of samples is 0, which means unknown."""
    return flac[: STREAMINFO_SAMPLES.start] + bytes([flac[STREAMINFO_SAMPLES.start] & 0xF0, 0, 0, 0, 0]) + flac[STREAMINFO_SAMPLES.stop :]


def with_data_size(wav: bytes, size: int, riff_size: int) -> bytes:
    at = wav.index(b"data") + 4
    return wav[:4] + riff_size.to_bytes(4, "little") + wav[8:at] + size.to_bytes(4, "little") + wav[at + 4 :]


@pytest.mark.parametrize("num_samples", [1, RATE_HZ, RATE_HZ + 123])
def test_a_flac_of_unknown_length_is_read_to_its_end(tmp_path: Path, num_samples: int) -> None:
    path = tmp_path / "x.flac"
    soundfile.write(path, NOISE[:num_samples], RATE_HZ)
    path.write_bytes(without_length(path.read_bytes()))
    np.testing.assert_allclose(joined(read_all(WavFile(path)))[:, 0], NOISE[:num_samples], atol=2**-15)


@pytest.mark.slow
def test_the_service_ends_well_behind_a_flac_of_unknown_length(tmp_path: Path) -> None:
    samples, texts = example("temperature")
    path = tmp_path / "x.flac"
    soundfile.write(path, samples, 16_000)
    path.write_bytes(without_length(path.read_bytes()))
    result = run_service("streaming", "--input", str(path))
    assert (final_texts(result.events), result.returncode) == (list(texts), 0)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
@pytest.mark.parametrize("riff_size", [0, 8, 36, 2**32 - 1])
@pytest.mark.parametrize("size", [0, 2**31 - 1, 2**32 - 1])
def test_a_wav_of_unknown_length_is_read_to_its_end(tmp_path: Path, subtype: str, riff_size: int, size: int) -> None:
    """As ffmpeg, sox and others leave it that write into a pipe."""
    path = tmp_path / "x.wav"
    soundfile.write(path, NOISE, RATE_HZ, subtype=subtype)
    wanted = joined(read_all(WavFile(path)))
    path.write_bytes(with_data_size(path.read_bytes(), size, riff_size))
    file = WavFile(path)
    np.testing.assert_array_equal(joined(read_all(file)), wanted)
    file.close()


def test_a_wav_of_silence_and_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, np.zeros(RATE_HZ, np.float32), RATE_HZ, subtype="PCM_16")
    path.write_bytes(with_data_size(path.read_bytes(), 0, 0))
    assert len(joined(read_all(WavFile(path)))) == RATE_HZ


@pytest.mark.parametrize("behind", [b"", b"LIST\4\0\0\0INFO", b"LIST\3\0\0\0INF", b"LIST\3\0\0\0INF\0id3 \0\0\0\0"])
def test_a_wav_without_audio_is_refused_whatever_chunks_follow(tmp_path: Path, behind: bytes) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, NOISE[:0], RATE_HZ, subtype="PCM_16")
    path.write_bytes(path.read_bytes() + behind)
    with pytest.raises(InputUnreadable, match="0 samples"):
        WavFile(path)


def test_a_wav_that_was_cut_off_gives_what_it_has(tmp_path: Path):
    """A recorder that lost power: the header promises more than there is."""
    path = tmp_path / "x.wav"
    soundfile.write(path, NOISE, RATE_HZ, subtype="PCM_16")
    path.write_bytes(path.read_bytes()[: 44 + 2 * RATE_HZ])  # 1 s behind the header
    assert len(joined(read_all(WavFile(path)))) == pytest.approx(RATE_HZ, abs=1)


def test_a_file_damaged_midway_gives_what_comes_before_and_then_says_where(tmp_path: Path):
    path = tmp_path / "x.flac"
    soundfile.write(path, NOISE, RATE_HZ)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    file = WavFile(path)
    blocks: list[AudioBlock] = []
    with pytest.raises(InputUnreadable, match=r"damaged after \d+\.\d s") as caught:
        blocks.extend(iter(lambda: file.read(0), None))
    assert str(path) in str(caught.value)
    samples = joined(blocks)[:, 0]
    assert RATE_HZ < len(samples) < len(NOISE)
    np.testing.assert_allclose(samples, NOISE[: len(samples)], atol=2**-15)
    assert file.ended


# --- pipes ----------------------------------------------------------------------------------------------------------

PCM = np.random.default_rng(5).integers(-(2**15), 2**15, 10 * RATE_HZ).astype("<i2")
BLOCK_BYTES = 2 * RATE_HZ // 10  # 0.1 s


class PcmPipe:
    """A pipe with a stream at its reading end."""

    def __init__(self, *, blocking: bool = True) -> None:
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, blocking)
        self.stream = PcmStream(self.read_end, RATE_HZ)
        self._writing = True

    def end(self) -> None:
        """No more will be written."""
        if self._writing:
            self._writing = False
            os.close(self.write_end)

    def wait_for_thread(self) -> None:
        self.stream._thread.join(DEADLINE_SEC)
        assert not self.stream._thread.is_alive()

    def close(self) -> None:
        self.stream.close()
        self.end()
        self.wait_for_thread()
        os.close(self.read_end)

    def write_until_full(self, data: bytes) -> int:
        """Write as if by a program that does not wait; how many bytes the pipe and the stream took."""
        os.set_blocking(self.write_end, False)
        written = 0
        while written < len(data) and self.takes_more(within_sec=1):
            try:
                written += os.write(self.write_end, data[written:])
            except BlockingIOError:  # less than a page of room
                continue
        return written

    def takes_more(self, within_sec: float) -> bool:
        return bool(select.select([], [self.write_end], [], within_sec)[1])


@pytest.fixture
def pipe() -> Iterator[PcmPipe]:
    pipe = PcmPipe()
    yield pipe
    pipe.close()


def next_block(stream: PcmStream) -> AudioBlock:
    block = stream.read(DEADLINE_SEC)
    assert block is not None
    return block


def as_pcm(blocks: list[AudioBlock]) -> np.ndarray:
    """The 16 bit values that the samples stand for, exactly."""
    return (joined(blocks)[:, 0] * 32_768).astype("<i2")


def test_samples_of_a_pipe_arrive_exactly_and_in_order(pipe: PcmPipe):
    extremes = np.array([-(2**15), 2**15 - 1, 0, 1, -1], "<i2")
    os.write(pipe.write_end, extremes.tobytes())
    pipe.end()
    blocks = read_all(pipe.stream)
    np.testing.assert_array_equal(joined(blocks)[:, 0], [-1.0, 32_767 / 32_768, 0.0, 1 / 32_768, -1 / 32_768])
    assert {(block.rate_hz, block.samples.shape[1], block.losses_before) for block in blocks} == {(RATE_HZ, 1, 0)}


def test_ten_seconds_written_at_once_arrive_whole_though_they_do_not_fit_the_queue(pipe: PcmPipe):
    def write() -> None:
        data = memoryview(PCM.tobytes())
        while data:
            data = data[os.write(pipe.write_end, data[:1_001]) :]  # an odd size: samples are split all the time
        pipe.end()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    blocks = read_all(pipe.stream)
    writer.join(DEADLINE_SEC)
    np.testing.assert_array_equal(as_pcm(blocks), PCM)
    assert max(len(block.samples) for block in blocks) <= BLOCK_BYTES // 2


def test_a_sample_split_over_two_writes_is_put_together(pipe: PcmPipe):
    data = PCM[:3].tobytes()
    os.write(pipe.write_end, data[:3])
    first = next_block(pipe.stream)
    os.write(pipe.write_end, data[3:])
    pipe.end()
    np.testing.assert_array_equal(as_pcm([first]), PCM[:1])
    np.testing.assert_array_equal(as_pcm(read_all(pipe.stream)), PCM[1:3])


def test_an_odd_last_byte_is_ignored(pipe: PcmPipe):
    os.write(pipe.write_end, PCM[:100].tobytes() + b"\x7f")
    pipe.end()
    np.testing.assert_array_equal(as_pcm(read_all(pipe.stream)), PCM[:100])


@pytest.mark.parametrize("data", [b"", b"\x01"])
def test_a_pipe_without_a_sample_ends_without_a_block(pipe: PcmPipe, data: bytes):
    os.write(pipe.write_end, data)
    pipe.end()
    assert read_all(pipe.stream) == []
    assert pipe.stream.ended


def test_a_silent_pipe_gives_nothing_in_time_and_has_not_ended(pipe: PcmPipe):
    assert pipe.stream.read(0) is None
    assert pipe.stream.read(0.01) is None
    assert not pipe.stream.ended
    os.write(pipe.write_end, PCM[:10].tobytes())
    np.testing.assert_array_equal(as_pcm([next_block(pipe.stream)]), PCM[:10])


def test_a_writer_waits_while_nobody_reads_and_goes_on_when_somebody_does(pipe: PcmPipe):
    data = np.tile(PCM, 10).tobytes()  # 100 s
    taken = pipe.write_until_full(data)
    assert taken < len(data) / 2
    assert not pipe.takes_more(within_sec=0)
    received = [next_block(pipe.stream) for _ in range(taken // 2 // BLOCK_BYTES)]
    assert pipe.takes_more(within_sec=DEADLINE_SEC)
    pipe.end()
    np.testing.assert_array_equal(as_pcm(received + read_all(pipe.stream)), np.frombuffer(data[:taken], "<i2"))


def test_closing_while_the_pipe_is_silent_ends_at_once(pipe: PcmPipe):
    pipe.stream.close()
    pipe.stream.close()
    assert pipe.stream.ended
    assert pipe.stream.read(0) is None


def test_what_was_read_before_closing_can_still_be_read(pipe: PcmPipe):
    """At a stop the daemon closes the input first and then decodes what waits; the reader held one block more than the queue."""
    written = pipe.write_until_full(np.tile(PCM, 10).tobytes())
    pipe.stream.close()
    pipe.wait_for_thread()
    blocks = list(iter(lambda: pipe.stream.read(0), None))
    os.set_blocking(pipe.read_end, False)
    left_in_pipe = len(os.read(pipe.read_end, 1_000_000))
    assert 2 * len(joined(blocks)) == written - left_in_pipe
    np.testing.assert_array_equal(as_pcm(blocks), np.tile(PCM, 10)[: len(joined(blocks))])


def test_a_descriptor_that_cannot_be_read_says_so(tmp_path: Path):
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        stream = PcmStream(descriptor, RATE_HZ)
        with pytest.raises(InputUnreadable, match="stdin cannot be read: IsADirectoryError"):
            stream.read(DEADLINE_SEC)
        assert stream.ended
    finally:
        os.close(descriptor)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo terminal")
def test_a_terminal_is_refused():
    master, terminal = os.openpty()
    try:
        with pytest.raises(InputUnreadable, match="is a terminal"):
            PcmStream(terminal, RATE_HZ)
    finally:
        os.close(master)
        os.close(terminal)


# --- files on a pipe, and pipes that do not block -------------------------------------------------------------------


def as_file(kind: str, rate_hz: int = 16_000, **options: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, NOISE, rate_hz, format=kind, **options)
    return buffer.getvalue()


FILES = {
    "WAV (RIFF)": [as_file("WAV")],
    "WAV (RIFX)": [as_file("WAV", endian="BIG")],
    "WAV (RF64)": [as_file("RF64")],
    "FLAC": [as_file("FLAC")],
    "Ogg": [as_file("OGG")],
    "MP3 (ID3)": [b"ID3\x02\x00" + bytes(20), b"ID3\x03\x00" + bytes(20), b"ID3\x04\x00" + bytes(20)],
    "MP3": [as_file("MP3", rate_hz) for rate_hz in (8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000)],
}


@pytest.mark.parametrize("piece_bytes", [1, 7, 5_000])
@pytest.mark.parametrize(
    ("container", "data"),
    [pytest.param(name, data, id=f"{name} {index}") for name, several in FILES.items() for index, data in enumerate(several)],
)
def test_a_file_on_a_pipe_is_refused_with_the_command_that_converts_it(
    pipe: PcmPipe, container: str, data: bytes, piece_bytes: int
) -> None:
    for at in range(0, 2_000, piece_bytes):
        os.write(pipe.write_end, data[at : at + piece_bytes])
    with pytest.raises(InputUnreadable) as caught:
        pipe.stream.read(DEADLINE_SEC)
    assert str(caught.value) == (
        f"stdin holds a {container} file, not raw s16le PCM samples; use --input FILE, or convert it: "
        "ffmpeg -loglevel error -i FILE -f s16le -ac 1 -ar 8000 - | ... --input -"
    )
    assert pipe.stream.ended
    assert pipe.stream.read(0) is None


MP3 = as_file("MP3", 44_100)


@pytest.mark.parametrize(
    "start",
    [
        b"RIFF" + bytes(4) + b"AVI ",
        b"riff" + bytes(4) + b"WAVE",
        bytes(4) + b"RIFF" + bytes(4) + b"WAVE",
        b"fLaD",
        b"OggS\x01",
        b"ID3\x05\x00",
        b"ID3\x03\xff",
        b"\xff\xff" * 50,  # -1: near silence
        MP3[:4] + bytes(2_000),  # loud samples that look like one MP3 frame
        MP3[:2] + bytes([MP3[2] | 0xF0]) + MP3[3:],  # a bit rate that there is not
        MP3[:2] + bytes([MP3[2] | 0x0C]) + MP3[3:],  # a sample rate that there is not
        bytes([0xFF, MP3[1] & ~0x18 | 0x08]) + MP3[2:],  # a version that there is not
        bytes([0xFF, 0x1B]) + MP3[2:],  # no sync
    ],
)
def test_samples_that_only_resemble_a_header_are_samples(pipe: PcmPipe, start: bytes) -> None:
    data = (start + PCM.tobytes())[:3_000]
    os.write(pipe.write_end, data)
    pipe.end()
    np.testing.assert_array_equal(as_pcm(read_all(pipe.stream)), np.frombuffer(data, "<i2"))


@pytest.mark.parametrize("start", [b"RIFF", b"RIFF" + bytes(4) + b"WAV", b"fL", b"\xff", MP3[:4], MP3[:420]])
def test_a_stream_that_ends_inside_what_could_be_a_header_gives_its_samples(pipe: PcmPipe, start: bytes) -> None:
    os.write(pipe.write_end, start)
    pipe.end()
    np.testing.assert_array_equal(as_pcm(read_all(pipe.stream)), np.frombuffer(start[: len(start) // 2 * 2], "<i2"))


@given(st.binary(max_size=40) | st.sampled_from([*itertools.chain(*FILES.values())]).map(lambda data: data[:3_000]), st.integers(0, 3_000))
def test_what_is_decided_about_a_start_stays_decided(data: bytes, length: int) -> None:
    """Else a stream in small pieces would be taken for something else than the same stream at once."""
    start = data[:length]
    if not is_undecided(start):
        assert container_of(start) == container_of(data)
    if len(start) >= MAX_HEADER_BYTES:
        assert not is_undecided(start)


def test_the_longest_mp3_frame_is_waited_for_and_no_more() -> None:
    frame = bytes([0xFF, 0xFB, 0xEA, 0x00]) + bytes(1_437)  # 320 kbit/s at 32 kHz, padded
    assert len(frame) + 4 == MAX_HEADER_BYTES
    assert is_undecided(frame + frame[:3])
    assert not is_undecided(frame + frame[:4])
    assert container_of(frame + frame[:4]) == "MP3"
    assert container_of(frame + bytes([0xFF, 0xFA]) + frame[2:4]) is None, "its frames differ in a bit that a stream keeps"


def test_the_first_samples_do_not_wait_for_more(pipe: PcmPipe) -> None:
    os.write(pipe.write_end, PCM[:1].tobytes())
    np.testing.assert_array_equal(as_pcm([next_block(pipe.stream)]), PCM[:1])


@pytest.fixture
def impatient() -> Iterator[PcmPipe]:
    """A pipe whose reading end does not block."""
    pipe = PcmPipe(blocking=False)
    yield pipe
    pipe.close()


def test_a_pipe_that_does_not_block_is_waited_for(impatient: PcmPipe) -> None:
    """A parent may have made its stdin so, and the service inherits it."""
    assert impatient.stream.read(0.2) is None
    assert not impatient.stream.ended
    before = time.process_time()
    assert impatient.stream.read(0.5) is None
    assert time.process_time() - before < 0.2, "it waits without computing"
    blocks = []
    for at in range(0, 3_000, 1_000):
        os.write(impatient.write_end, PCM[at : at + 1_000].tobytes())
        blocks.append(next_block(impatient.stream))
    impatient.end()
    blocks += read_all(impatient.stream)
    np.testing.assert_array_equal(as_pcm(blocks), PCM[:3_000])


# --- the service ----------------------------------------------------------------------------------------------------


def refusal(result: Result) -> str:
    """The one event of an input that is refused; the log says the same in one line."""
    (event,) = result.events
    assert (result.returncode, event["error_code"], event["recoverable"]) == (EXIT_INPUT, "input_unreadable", False)
    assert len(event["message"].splitlines()) == 1
    assert len([line for line in result.stderr.splitlines() if "InputUnreadable" in line]) == 1
    return event["message"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x" * 5_000, "is too long for a path"),
        ("~nosuchuser/x.wav", "begins with a home directory that is not known"),
        ("/dev/zero", "not a file"),
        ("/dev/null/x.wav", "Not a directory"),
        ("/etc", "not a file"),
    ],
)
def test_a_name_that_cannot_be_read_is_exit_4(name: str, reason: str) -> None:
    assert reason in refusal(run_service("streaming", "--input", name))


@pytest.mark.slow
def test_a_nul_byte_in_a_name_is_exit_4(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text('audio:\n  input: "/tmp/a\\0b.wav"\n', encoding="utf-8")
    assert "holds a character that no path can hold" in refusal(run_service("streaming", "--config", str(tmp_path / "settings.yaml")))


@pytest.mark.slow
def test_a_fifo_as_a_file_is_exit_4_and_names_the_remedy(tmp_path: Path) -> None:
    make_fifo(tmp_path / "fifo")
    assert f"use --input - < {tmp_path / 'fifo'}" in refusal(run_service("streaming", "--input", str(tmp_path / "fifo")))


NO_CAPABILITIES = """
import ctypes
header, none = (ctypes.c_uint32 * 2)(0x2008_0522, 0), (ctypes.c_uint32 * 6)()
assert ctypes.CDLL(None).capset(header, none) == 0  # root, too, then needs the mode bits of a file
"""
NO_HOME = """
import os, pwd
def no_entry(uid): raise KeyError(uid)
pwd.getpwuid = no_entry
os.environ.pop("HOME", None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["secret.wav", "locked/x.wav"])
def test_a_file_that_may_not_be_read_is_exit_4(name: str) -> None:
    with without_rights() as directory:
        os.seteuid(os.getuid())
        assert "Permission denied" in refusal(run_service("streaming", "--input", str(directory / name), planted=NO_CAPABILITIES))


@pytest.mark.slow
def test_a_home_that_is_not_known_is_exit_4() -> None:
    assert "begins with a home directory that is not known" in refusal(run_service("streaming", "--input", "~/x.wav", planted=NO_HOME))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_file_on_stdin_is_exit_4_and_names_the_command_that_converts_it(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    soundfile.write(path, NOISE, 16_000)
    message = refusal(run_service("streaming", "--input", "-", stdin=path.read_bytes()))
    assert "ffmpeg -loglevel error -i FILE -f s16le -ac 1 -ar 16000 -" in message


@pytest.mark.slow
def test_a_stdin_that_does_not_block_is_read_to_its_end() -> None:
    samples, texts = example("temperature")
    data = (samples * 32_767).astype("<i2").tobytes()
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    service = start_service("streaming", "--input", "-", "--status-events", stdin=read_end)
    os.close(read_end)
    service.wait_for(lambda event: event.get("state") == "listening")  # an empty pipe: nothing was there to be read
    with os.fdopen(write_end, "wb") as stdin:
        stdin.write(data)
    events, code = service.finish()
    assert (final_texts(events), code) == (list(texts), 0)
