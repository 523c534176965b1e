"""The connection to a server: its thread, its pauses, and servers that do not read. Real sockets on the loopback."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import in_time
from runtime_server import Message, RuntimeServer, Unreading

from voice.recognition.remote.connection import Connection
from voice.recognition.remote.protocol import TimedText, Transcription
from voice.recognition.remote.server import Server
from voice.recognition.remote.utterance import RemoteUtterance

SECOND = bytes(32_000)


@pytest.fixture
def connect() -> Iterator[Callable[..., Connection]]:
    made: list[Connection] = []

    def to(url: str, *, answer_sec: float = 1.0, max_wait_sec: float = 60.0) -> Connection:
        made.append(Connection(Server(url), None, answer_sec=answer_sec, max_wait_sec=max_wait_sec))
        return made[-1]

    yield to
    for connection in made:
        connection.close()


def until(true: Callable[[], Any], sec: float = 10.0) -> None:
    deadline = time.monotonic() + in_time(sec)
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_that_reads_nothing_is_left_however_much_waits_to_be_sent(connect: Callable[..., Connection]) -> None:
    """More than all buffers take: closing such a connection in peace would never end."""
    with Unreading() as server:
        connection = connect(server.url, answer_sec=0.5)
        utterance = connection.open("a", "")
        utterance.send(SECOND * 600)
        utterance.end()
        until(lambda: server.accepted >= 3)
        until(lambda: connection.unavailable)
        started = time.monotonic()
        connection.close()
        assert time.monotonic() - started < in_time(1)
        until(lambda: not connection._thread.is_alive(), 2)


def test_the_pauses_between_two_tries_grow(connect: Callable[..., Connection]) -> None:
    accepted = 0
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def refuse() -> None:
            nonlocal accepted
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return
                accepted += 1

        threading.Thread(target=refuse, daemon=True).start()
        connect(f"ws://127.0.0.1:{listener.getsockname()[1]}")
        until(lambda: accepted >= 2)
        time.sleep(3)
        assert accepted <= 6, "0, 0.25, 0.75, 1.75 and 3.75 s after the start"
        listener.shutdown(socket.SHUT_RDWR)


def test_a_server_that_has_acknowledged_once_is_waited_for(connect: Callable[..., Connection]) -> None:
    """Without a speaker's name nothing else tells an old server from one whose second pass takes long."""

    def old(message: Message) -> list[Any]:
        message.pop("spk_name", None)
        if message.get("is_end"):
            server.fault.answer_after_sec = 2.5
        return [message]

    with RuntimeServer("python") as server:
        server.fault.instead = old
        connection = connect(server.url, answer_sec=20)
        for name in ("a", "b"):
            utterance = connection.open(name, "")
            utterance.send(SECOND)
            utterance.end()
            until(lambda utterance=utterance: utterance.news.is_over, 12)  # type: ignore[misc]
        time.sleep(0.5)
        assert server.connections == 1, "no doubt, no new connection"


def test_a_connection_that_is_closed_leaves_neither_thread_nor_complaint(capfd: pytest.CaptureFixture[str]) -> None:
    with RuntimeServer("cpp") as server:
        connection = Connection(Server(server.url), None, answer_sec=1, max_wait_sec=5)
        utterance = connection.open("a", "")
        utterance.send(SECOND)
        until(lambda: server.received)
        connection.close()
        connection.close()
        until(lambda: not connection._thread.is_alive(), 2)
        utterance.send(SECOND)  # changes nothing
    assert "Task" not in capfd.readouterr().err


def said(text: str) -> Transcription:
    return Transcription((TimedText(text),))


def test_while_an_utterance_is_sent_again_its_text_does_not_shrink() -> None:
    utterance = RemoteUtterance("a", "", lambda function, *arguments: function(*arguments))
    assert utterance.begin()
    utterance.hear(said("今天天气"))
    assert utterance.begin()
    utterance.hear(said("今"))
    assert utterance.news.transcription.text == "今天天气"
    utterance.hear(said("今天天气好"))
    assert utterance.news.transcription.text == "今天天气好"
    utterance.hear(said("今天"), all_of_it=True)
    assert utterance.news.transcription.text == "今天"


def test_an_utterance_is_sent_five_times_at_most() -> None:
    utterance = RemoteUtterance("a", "", lambda *_: None)
    assert [utterance.begin() for _ in range(6)] == [True] * 5 + [False]


def test_audio_counts_as_not_taken_only_from_when_there_is_a_frame_of_it() -> None:
    utterance = RemoteUtterance("a", "", lambda function, *arguments: function(*arguments))

    class Socket:
        async def send(self, message: object) -> None:
            pass

    async def talk() -> None:
        sending = asyncio.create_task(utterance.send_all(Socket()))  # type: ignore[arg-type]
        utterance.send(bytes(2_000))
        await asyncio.sleep(0.2)
        assert utterance.stuck_sec == 0.0, "80 bytes are no frame"
        sending.cancel()
        utterance.send(bytes(2_000))
        assert 0.0 <= utterance.stuck_sec < 0.1

    asyncio.run(talk())
