"""Capture: files and pipes give every sample, in order, and say what is wrong with them."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from voice.audio import AudioBlock
from voice.capture.pcm_stream import PcmStream
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
    assert all(block.samples.dtype == np.float32 and block.lost_frames == 0 for block in blocks)
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


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_missing, "no such file"),
        (make_directory, "not a file"),
        (make_empty, "the file is empty"),
        (make_without_samples, "0 samples"),
        (make_truncated_header, "not readable as audio"),
        (make_text, "not readable as audio"),
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

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
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
    assert {(block.rate_hz, block.samples.shape[1], block.lost_frames) for block in blocks} == {(RATE_HZ, 1, 0)}


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
