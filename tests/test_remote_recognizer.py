"""A server as the recogniser, with a scripted connection: what is sent, what waits, when the reserve takes over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fakes import CountingRecognizer, speech

from voice.recognition.recognizer import Unanswered
from voice.recognition.remote.protocol import TimedText, Transcription
from voice.recognition.remote.recognizer import RemoteRecognizer
from voice.recognition.remote.utterance import News
from voice.transcript import REMOTE_SOURCE


class ScriptedUtterance:
    def __init__(self, name: str, hotwords: str) -> None:
        self.name, self.hotwords = name, hotwords
        self.news = News()
        self.sent = b""
        self.ended = 0
        self.reasons: list[str] = []

    def send(self, audio: bytes) -> None:
        self.sent += audio

    def end(self) -> None:
        self.ended += 1

    def give_up(self, reason: str) -> None:
        self.reasons.append(reason)

    def say(self, text: str, *, is_over: bool = False, given_up: str = "") -> None:
        self.news = News(Transcription((TimedText(text),)), len(self.sent), len(self.sent) // 2, is_over, given_up)


class ScriptedConnection:
    def __init__(self) -> None:
        self.unavailable = False
        self.opened: list[ScriptedUtterance] = []
        self.problems: list[str] = []

    def open(self, name: str, hotwords: str) -> ScriptedUtterance:
        self.opened.append(ScriptedUtterance(name, hotwords))
        return self.opened[-1]

    def take_problems(self) -> list[str]:
        return self.problems

    def close(self) -> None:
        self.problems.append("closed")


def served(*, reserve: bool = False, max_waiting_sec: float = 5.0) -> tuple[RemoteRecognizer, ScriptedConnection, CountingRecognizer]:
    connection, local = ScriptedConnection(), CountingRecognizer()
    words: Any = lambda: [("魔搭", 20.0)]  # noqa: E731
    samples = round(max_waiting_sec * 16_000)
    return RemoteRecognizer(connection, words, max_waiting_samples=samples, reserve=local if reserve else None), connection, local  # type: ignore[arg-type]


def test_samples_are_sent_as_16_bits_and_what_is_beyond_full_scale_is_clipped() -> None:
    server, connection, _ = served()
    stream = server.create_stream(0, "a")
    stream.accept(np.array([0.0, 1.0, -1.0, 3.0, -8.0, 0.5], np.float32))
    sent = np.frombuffer(connection.opened[0].sent, "<i2")
    assert sent.tolist() == [0, 32_767, -32_767, 32_767, -32_767, 16_383]
    assert (connection.opened[0].name, connection.opened[0].hotwords) == ("a", '{"魔搭": 20}')


def test_what_the_server_said_is_the_hypothesis_and_how_far_it_rests_on_audio() -> None:
    server, connection, _ = served()
    stream = server.create_stream(16_000, "a")
    assert not stream.accept(speech(1.0))
    connection.opened[0].say("今天，")
    assert stream.poll()
    assert not stream.poll()
    assert (stream.hypothesis().text, stream.hypothesis().stable_chars, stream.decoded_until) == ("今天", 0, 32_000)
    assert (stream.source, stream.supports_copy) == (REMOTE_SOURCE, False)


def test_a_result_comes_when_the_answer_is_whole() -> None:
    server, connection, _ = served()
    stream = server.create_stream(0, "a")
    stream.accept(speech(1.0))
    assert stream.finish() is None
    assert connection.opened[0].ended == 1
    connection.opened[0].say("今天。")
    assert stream.result() is None
    connection.opened[0].say("今天好。", is_over=True)
    result = stream.result()
    assert result is not None
    assert not isinstance(result, Unanswered)
    assert (result.text, result.marked_text, result.confidence) == ("今天好", "今天好。", None)


def test_an_answer_that_was_given_up_says_how_far_its_text_rests_on_audio() -> None:
    server, connection, _ = served()
    stream = server.create_stream(160, "a")
    stream.accept(speech(1.0))
    stream.finish()
    connection.opened[0].say("今", is_over=True, given_up="EngineUnavailable: gone")
    assert stream.result() == Unanswered("EngineUnavailable: gone", 160 + 8_000)
    assert stream.hypothesis().text == "今"


def test_beyond_the_bound_the_oldest_is_given_up_and_the_youngest_never() -> None:
    server, connection, _ = served(max_waiting_sec=2.5)
    streams = [server.create_stream(0, name) for name in "abc"]
    for stream in streams[:2]:
        stream.accept(speech(1.0))
        stream.finish()
    assert server.is_congested
    assert [utterance.reasons for utterance in connection.opened] == [[], [], []]
    streams[2].accept(speech(9.0))
    streams[2].finish()
    assert [len(utterance.reasons) for utterance in connection.opened] == [1, 1, 0]
    assert "2.5 s" in connection.opened[0].reasons[0]


def test_what_was_answered_does_not_count() -> None:
    server, connection, _ = served(max_waiting_sec=2.5)
    for name in "abcd":
        stream = server.create_stream(0, name)
        stream.accept(speech(1.0))
        stream.finish()
        connection.opened[-1].say("好", is_over=True)
    assert not server.is_congested
    assert [utterance.reasons for utterance in connection.opened] == [[], [], [], []]


def test_the_reserve_takes_over_an_utterance_with_all_of_its_audio() -> None:
    server, connection, local = served(reserve=True)
    stream = server.create_stream(16_000, "a")
    stream.accept(speech(1.0))
    stream.accept(speech(0.5))
    assert local.streams == []
    connection.unavailable = True
    assert stream.poll()
    assert len(local.streams[0].audio) == 24_000
    assert len(connection.opened[0].reasons) == 1, "the server need not go on"
    stream.accept(speech(1.0))
    assert (stream.source, stream.supports_copy, len(local.streams[0].audio)) == ("fake", True, 40_000)
    result = stream.finish()
    assert result is not None
    assert len(result.tokens) == 5


def test_an_utterance_that_the_reserve_began_stays_with_it() -> None:
    """Its committed text must stay, too, should its stream be made anew."""
    server, connection, local = served(reserve=True)
    connection.unavailable = True
    assert server.create_stream(0, "a") is local.streams[0]
    connection.unavailable = False
    assert server.create_stream(0, "a") is local.streams[1]
    assert server.create_stream(0, "b").source == REMOTE_SOURCE


@pytest.mark.parametrize("away", [True, False])
def test_the_reserve_answers_for_what_waits(away: bool) -> None:
    """Because the server is away, or because it gave this utterance up."""
    server, connection, _ = served(reserve=True)
    stream = server.create_stream(0, "a")
    stream.accept(speech(1.0))
    stream.finish()
    connection.unavailable = away
    if not away:
        connection.opened[0].say("", is_over=True, given_up="EngineUnavailable: failed")
    result = stream.result()
    assert result is not None
    assert not isinstance(result, Unanswered)
    assert len(result.tokens) == 2
    assert stream.result() is result


def test_an_answer_that_is_there_is_taken_though_the_server_is_away() -> None:
    server, connection, local = served(reserve=True)
    stream = server.create_stream(0, "a")
    stream.finish()
    connection.opened[0].say("好。", is_over=True)
    connection.unavailable = True
    result = stream.result()
    assert not isinstance(result, Unanswered | None)
    assert (result.text, local.streams) == ("好", [])


def test_at_a_stop_nobody_takes_over() -> None:
    server, connection, local = served(reserve=True)
    stream = server.create_stream(0, "a")
    stream.accept(speech(1.0))
    stream.finish()
    stream.give_up("TimeoutError: the end")
    connection.unavailable = True
    assert isinstance(stream.result(), Unanswered)
    assert local.streams == []


def test_problems_say_that_the_local_model_takes_over_where_it_does() -> None:
    for reserve, ending in ((True, "; the local model takes over"), (False, "")):
        server, connection, _ = served(reserve=reserve)
        connection.problems = ["EngineUnavailable: gone"]
        assert server.take_problems() == [f"EngineUnavailable: gone{ending}"]
