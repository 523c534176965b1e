"""Output: whole lines on a descriptor of one's own, and a reader that leaves is noticed."""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voice.errors import EXIT_OUTPUT, OutputGone
from voice.output.events import ErrorEvent, SpeechStartedEvent, TokenTime
from voice.output.wire import final_event
from voice.output.writer import EventWriter, encode
from voice.transcript import Token, Transcript

TRACE_ID = "0123456789abcdef"
DEADLINE_SEC = 10


def event(message: str = "RuntimeError: 打开客厅的灯") -> ErrorEvent:
    return ErrorEvent(trace_id=TRACE_ID, error_code="runtime_error", message=message, recoverable=True)


class Pipe:
    """A pipe with its two ends and what was read from it."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self._open = {self.read_end, self.write_end}

    def close(self, *ends: int) -> None:
        for end in ends or tuple(self._open):
            self._open.remove(end)
            os.close(end)

    def read_all(self) -> bytes:
        """Everything written so far; ends the writing."""
        self.close(self.write_end)
        return b"".join(iter(lambda: os.read(self.read_end, 65_536), b""))


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def lines(data: bytes) -> list[dict[str, Any]]:
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.decode("utf-8").splitlines()]


def test_each_event_is_one_line_and_seq_counts_from_one_without_a_gap(pipe: Pipe):
    writer = EventWriter(pipe.write_end, lambda: 5)
    assert writer.num_lines == 0
    for number in range(20):
        writer.write(event(f"RuntimeError: {number}"))
    assert writer.num_lines == 20
    written = lines(pipe.read_all())
    assert [line["seq"] for line in written] == list(range(1, 21))
    assert [line["message"] for line in written] == [f"RuntimeError: {number}" for number in range(20)]


def test_each_line_is_readable_as_soon_as_it_is_written(pipe: Pipe):
    writer = EventWriter(pipe.write_end, lambda: 5)
    for _ in range(3):
        writer.write(event())
        assert len(lines(os.read(pipe.read_end, 65_536))) == 1


def test_ts_is_the_clock_at_the_time_of_writing(pipe: Pipe):
    clock = itertools.count(1_700_000_000_000, 7)
    writer = EventWriter(pipe.write_end, lambda: next(clock))
    made_long_ago = event()
    writer.write(made_long_ago)
    writer.write(made_long_ago)
    assert [line["ts"] for line in lines(pipe.read_all())] == [1_700_000_000_000, 1_700_000_000_007]
    assert (made_long_ago.ts, made_long_ago.seq) == (0, 0)


def test_chinese_is_written_as_utf8_and_not_escaped(pipe: Pipe):
    EventWriter(pipe.write_end, lambda: 5).write(event("打开客厅的灯😀"))
    data = pipe.read_all()
    assert "打开客厅的灯😀".encode() in data
    assert b"\\u" not in data


def test_line_breaks_inside_a_text_do_not_break_the_line(pipe: Pipe):
    EventWriter(pipe.write_end, lambda: 5).write(event("a\nb\r\nc\u2028d"))
    data = pipe.read_all()
    assert data.count(b"\n") == 1
    assert json.loads(data)["message"] == "a\nb\r\nc\u2028d"


@pytest.mark.parametrize("text", ["/tmp/\udcff.wav", "\ud83d", "\ude00客"])
def test_half_a_character_costs_neither_the_line_nor_the_process(pipe: Pipe, text: str):
    """File names that are no UTF-8 reach Python as lone surrogates."""
    writer = EventWriter(pipe.write_end, lambda: 5)
    writer.write(event(text))
    writer.write(event("next"))
    assert [line["seq"] for line in lines(pipe.read_all())] == [1, 2]


def test_keys_keep_their_order_on_the_wire(pipe: Pipe):
    EventWriter(pipe.write_end, lambda: 5).write(SpeechStartedEvent(trace_id=TRACE_ID, start_ms=960))
    assert list(lines(pipe.read_all())[0]) == ["type", "ts", "trace_id", "source", "seq", "start_ms"]


ANY_TEXT = st.text() | st.lists(st.sampled_from(['"ts": 0', '"seq": 0', "seq", '"', "\\", ", ", "\ud83d", "灯"])).map("".join)


@given(ANY_TEXT, st.integers(0, 2**53), st.integers(1, 2**53))
def test_a_line_is_the_event_as_json_with_its_stamps_whatever_its_text(text: str, ts_ms: int, seq: int) -> None:
    token = Token(text, 0, 960, 1 / 3)
    transcript = Transcript(TRACE_ID, (token,), 0, 960, "silence", text=text, raw_text=text)
    for made in (event(text), SpeechStartedEvent(trace_id=TRACE_ID, start_ms=960), final_event(text, transcript)):
        fields = {**made.model_dump(), "ts": ts_ms, "seq": seq}
        expected = (json.dumps(fields, ensure_ascii=False) + "\n").encode("utf-8", errors="replace")
        encoded = encode(made)
        assert encoded.line(ts_ms, seq) == expected
        assert encoded.size_bytes == len(expected) - len(str(ts_ms)) - len(str(seq))


def test_a_line_goes_to_a_file_in_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two services may append to one file: their lines do not mix."""
    sizes: list[int] = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: sizes.append(len(data)) or write(descriptor, data))
    with (tmp_path / "events.jsonl").open("wb", buffering=0) as file:
        EventWriter(file.fileno(), lambda: 5).write(event("x" * 100_000))
    assert len(sizes) == 1


def test_a_full_pipe_that_does_not_block_is_waited_for(pipe: Pipe) -> None:
    os.set_blocking(pipe.write_end, False)
    filled = os.write(pipe.write_end, bytes(2**24))
    writer = EventWriter(pipe.write_end, lambda: 5)
    thread = threading.Thread(target=writer.write, args=(event("x" * 100_000),), daemon=True)
    thread.start()
    received = b""
    while not received.endswith(b"\n"):
        received += os.read(pipe.read_end, 65_536)
    thread.join(DEADLINE_SEC)
    assert not thread.is_alive()
    assert lines(received[filled:])[0]["message"] == "x" * 100_000


def test_progress_changes_with_each_byte_that_the_reader_takes(pipe: Pipe) -> None:
    writer = EventWriter(pipe.write_end, lambda: 5)
    writer.write(event())
    size = len(encode(event()).line(5, 1))
    assert writer.progress() == (size, size)
    os.read(pipe.read_end, 1)
    assert writer.progress() == (size, size - 1)


def test_a_file_has_no_bytes_that_wait(tmp_path: Path) -> None:
    with (tmp_path / "events.jsonl").open("wb", buffering=0) as file:
        assert EventWriter(file.fileno(), lambda: 5).progress() == (0, 0)


def test_a_line_larger_than_the_pipe_arrives_whole(pipe: Pipe):
    """A final of 30 s with its tokens, many times over: the writer waits for the reader."""
    tokens = tuple(Token("灯", 960 * index, 960 * (index + 1), 0.5) for index in range(5_000))
    final = final_event("funasr.paraformer-zh-streaming", Transcript(TRACE_ID, tokens, 0, 960, "silence"))
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.extend(iter(lambda: os.read(pipe.read_end, 4_096), b"")), daemon=True)
    reader.start()
    EventWriter(pipe.write_end, lambda: 5).write(final)
    pipe.close(pipe.write_end)
    reader.join(DEADLINE_SEC)
    assert not reader.is_alive()
    data = b"".join(received)
    assert len(data) > 4 * 65_536  # more than a pipe holds
    (line,) = lines(data)
    assert line["tokens"][-1] == TokenTime(text="灯", start_ms=60 * 4_999, end_ms=60 * 5_000, confidence=0.5).model_dump()


def test_writing_to_a_reader_that_left_says_so(pipe: Pipe):
    writer = EventWriter(pipe.write_end, lambda: 5)
    pipe.close(pipe.read_end)
    with pytest.raises(OutputGone, match="stdout cannot be written: BrokenPipeError") as caught:
        writer.write(event())
    assert caught.value.exit_code == EXIT_OUTPUT
    assert writer.num_lines == 0


def test_a_reader_that_left_is_noticed_without_writing(pipe: Pipe):
    writer = EventWriter(pipe.write_end, lambda: 5)
    writer.check_reader()
    pipe.close(pipe.read_end)
    with pytest.raises(OutputGone, match="reader is gone"):
        writer.check_reader()


def test_a_reader_that_is_only_slow_is_not_gone(pipe: Pipe):
    os.set_blocking(pipe.write_end, False)
    assert os.write(pipe.write_end, bytes(2**24)) < 2**24  # the pipe is full
    EventWriter(pipe.write_end, lambda: 5).check_reader()


def test_a_reader_behind_a_socket_that_left_is_noticed_without_writing():
    """Node.js gives its children socket pairs for stdout; their closed end shows as a hang-up, not as an error."""
    ours, theirs = socket.socketpair()
    with ours:
        writer = EventWriter(ours.fileno(), lambda: 5)
        with theirs:
            writer.check_reader()
        with pytest.raises(OutputGone, match="reader is gone"):
            writer.check_reader()


def test_a_file_has_no_reader_that_could_leave(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    with path.open("wb", buffering=0) as file:
        writer = EventWriter(file.fileno(), lambda: 5)
        writer.check_reader()
        writer.write(event())
        writer.check_reader()
    assert len(lines(path.read_bytes())) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_says_so():
    with Path("/dev/full").open("wb", buffering=0) as full:
        writer = EventWriter(full.fileno(), lambda: 5)
        with pytest.raises(OutputGone, match="No space left on device"):
            writer.write(event())
        assert writer.num_lines == 0


def test_a_descriptor_that_is_not_open_is_noticed():
    read_end, write_end = os.pipe()
    os.close(read_end)
    os.close(write_end)
    with pytest.raises(OutputGone, match="stdout is not open"):
        EventWriter(write_end, lambda: 5)
