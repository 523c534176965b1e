"""The messages of FunASR's runtime servers, and the rules about a server that is away: pure parts, values in and out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import InvalidMessage, InvalidStatus
from websockets.http11 import Headers, Response

from voice.models.torch_setup import prepare_imports
from voice.recognition.remote.protocol import (
    END_MESSAGE,
    FRAME_BYTES,
    MAX_MESSAGES,
    MAX_TEXT,
    ServerNonsense,
    Session,
    TimedText,
    Transcription,
    as_pcm,
    hotword_text,
    start_message,
)
from voice.recognition.remote.recognizer import tokens_with_times
from voice.recognition.remote.server import Server, ServerFailed, ServerSilent, explain
from voice.recognition.remote.trouble import Trouble

NAME = "0123456789abcdef"


def take(session: Session, **message: Any) -> bool:
    return session.take(json.dumps({"wav_name": NAME, **message}))


def heard(*messages: dict[str, Any]) -> Session:
    session = Session(NAME)
    for message in messages:
        take(session, **message)
    return session


def online(text: str, **more: Any) -> dict[str, Any]:
    return {"mode": "2pass-online", "text": text, "is_final": False, **more}


def offline(text: str, **more: Any) -> dict[str, Any]:
    return {"mode": "2pass-offline", "text": text, "is_final": True, "spk_name": "unknown", **more}


def cpp_piece(text: str, **more: Any) -> dict[str, Any]:
    return {"mode": "2pass-offline", "text": text, "is_final": False, "slice_type": 2, "index": 0, **more}


ACKNOWLEDGED = {"mode": "2pass", "is_final": True, "is_end": True}


def looks_like_a_file(frame: bytes) -> bool:
    """What FunASR's Python server thinks of a frame."""
    prepare_imports()
    from funasr.utils.load_utils import _is_audio_container

    return bool(_is_audio_container(frame))


def test_the_first_message_says_what_both_servers_need() -> None:
    assert json.loads(start_message(NAME, '{"阿里巴巴": 20}')) == {
        "mode": "2pass",
        "chunk_size": [5, 10, 5],
        "chunk_interval": 10,
        "wav_name": NAME,
        "wav_format": "pcm",
        "audio_fs": 16_000,
        "is_speaking": True,
        "hotwords": '{"阿里巴巴": 20}',
        "itn": False,
    }
    assert json.loads(END_MESSAGE) == {"is_speaking": False, "is_end": True}
    assert FRAME_BYTES == 1_920, "60 ms"


def test_hotwords_are_a_text_of_words_and_whole_weights() -> None:
    assert json.loads(hotword_text([("阿里巴巴", 20.0), ("魔搭", 0.2), ("达摩院", 33.6)])) == {"阿里巴巴": 20, "魔搭": 1, "达摩院": 34}
    assert hotword_text([]) == "", "an empty object would be hotwords, too"


@pytest.mark.parametrize("start", [b"RIFF", b"ID3\x04", b"OggS", b"fLaC", b"\x1a\x45\xdf\xa3", b"\xff\xfb\x90\x00", b"\xff\xff\xff\xe3"])
def test_no_frame_begins_like_a_file(start: bytes) -> None:
    frame = start + bytes(FRAME_BYTES - len(start))
    sent = as_pcm(frame)
    assert sent[:1] != frame[:1]
    assert not looks_like_a_file(sent)
    assert [a ^ b for a, b in zip(frame, sent, strict=True)].count(0) == FRAME_BYTES - 1, "one bit of one sample"


def test_a_frame_that_begins_like_an_mp4_file() -> None:
    frame = b"\x00\x00\x00\x20ftypisom" + bytes(200)
    assert looks_like_a_file(frame)
    assert not looks_like_a_file(as_pcm(frame))


@given(st.binary(min_size=0, max_size=40))
def test_a_frame_keeps_its_length_and_all_but_the_lowest_bits_of_two_samples(frame: bytes) -> None:
    sent = as_pcm(frame)
    assert len(sent) == len(frame)
    assert all((a ^ b) in ((0, 1) if index in (0, 4) else (0,)) for index, (a, b) in enumerate(zip(frame, sent, strict=True)))


def test_increments_add_up_and_a_corrected_piece_replaces_them() -> None:
    session = heard(online("今天"), online("天气"))
    assert session.transcription == Transcription((), "今天天气")
    assert take(session, **offline("今天天气，"))
    assert (session.transcription.text, session.transcription.increments) == ("今天天气，", "")
    take(session, **online("怎么"))
    assert session.transcription.text == "今天天气，怎么"
    take(session, **offline("怎么样？"))
    assert session.transcription.text == "今天天气，怎么样？"


def test_an_empty_corrected_piece_takes_increments_back() -> None:
    session = heard(online("嗯"))
    assert take(session, **offline(""))
    assert session.transcription.text == ""


def test_a_message_that_changes_no_text_says_so() -> None:
    session = heard(online("今天"))
    assert not take(session, **offline("今天"))
    assert not take(session, **online(""))


def test_the_python_server_ends_with_an_acknowledgement_and_not_with_a_piece() -> None:
    session = heard(online("一"), offline("一。"))
    assert (session.ended, session.may_be_over) == (False, False), "a speaker's name: a server that acknowledges"
    take(session, **ACKNOWLEDGED)
    assert (session.ended, session.failed) == (True, False)


def test_an_old_python_server_may_have_ended_with_each_piece() -> None:
    session = Session(NAME)
    take(session, mode="2pass-offline", text="一。", is_final=True)
    assert (session.ended, session.may_be_over) == (False, True)
    take(session, **online("二"))
    assert not session.may_be_over


def test_a_server_that_failed_says_so_at_the_end() -> None:
    session = heard(online("一"), {**ACKNOWLEDGED, "is_final": False, "error": "vad inference failed"})
    assert (session.ended, session.failed, session.transcription.text) == (True, True, "一")


@pytest.mark.parametrize(
    "last",
    [
        cpp_piece("一。", is_final=True),
        online("一", slice_type=1, index=0, is_final=True),
        {"text": "", "timestamp": 1_764_000_000_000, "is_final": True},
    ],
    ids=["a piece", "an increment", "without a mode"],
)
def test_the_cpp_server_ends_with_is_final(last: dict[str, Any]) -> None:
    session = heard(online("一", slice_type=0, index=0), cpp_piece("一。"))
    assert not session.ended
    take(session, **last)
    assert session.ended


def test_a_late_answer_of_another_utterance_changes_nothing() -> None:
    session = heard(online("一"))
    for late in (online("晚"), offline("晚"), ACKNOWLEDGED):
        assert not session.take(json.dumps({**late, "wav_name": "another"}))
    assert (session.transcription.text, session.ended) == ("一", False)


def test_times_of_the_cpp_server_count_from_the_start_of_the_utterance() -> None:
    session = heard(cpp_piece("今天。", timestamp="[[100,280],[280,460]]"), cpp_piece("好", timestamp="[[900,1000]]"))
    assert session.transcription.times == ((100, 280), (280, 460), (900, 1_000))


@pytest.mark.parametrize(
    "stamps",
    [
        [[100, 280], [280, 460]],
        1_764_000_000_000,
        "",
        "[",
        "{}",
        "[[100]]",
        "[[1,2,3]]",
        "[[280,100]]",
        "[[280,300],[100,200]]",
        "[[-5,100]]",
        "[[1.5,2]]",
        "[[true,true]]",
        "[" * 100_000,
        "[[NaN,1]]",
        '[["1","2"]]',
        None,
    ],
    ids=lambda stamps: repr(stamps)[:20],
)
def test_times_that_are_none_of_ours_are_left_out(stamps: object) -> None:
    session = heard(cpp_piece("今天", timestamp=stamps))
    assert (session.transcription.text, session.transcription.times) == ("今天", ())


def test_there_are_no_more_times_than_characters() -> None:
    assert heard(cpp_piece("今天", timestamp="[[0,1],[1,2],[2,3]]")).transcription.times == ()


def test_an_increment_is_no_end_of_an_old_server() -> None:
    session = Session(NAME)
    take(session, mode="2pass-online", text="一", is_final=True)
    assert not session.may_be_over


def test_an_utterance_has_so_many_pieces_and_no_more() -> None:
    session = heard(*(cpp_piece("") for _ in range(MAX_TEXT)))
    with pytest.raises(ServerNonsense, match="characters"):
        take(session, **cpp_piece(""))


def test_times_are_told_only_where_all_of_the_text_has_them() -> None:
    piece = cpp_piece("今", timestamp="[[100,280]]")
    assert heard(piece, online("天")).transcription.times == ()
    assert heard(piece, cpp_piece("天")).transcription.times == ()
    assert heard(piece, cpp_piece("")).transcription.times == ((100, 280),)


@pytest.mark.parametrize(
    "message",
    [
        b"\x00\x01",
        "",
        "not json",
        "[]",
        "1",
        "null",
        "[" * 100_000,
        '{"text": 1}',
        '{"text": null}',
        '{"mode": ["2pass"], "text": ""}',
        json.dumps({"text": "ERROR. Real-time transcription service ONLY SUPPORT PCM stream.", "is_final": True}),
        json.dumps({"mode": "2pass-online", "text": "字" * (MAX_TEXT + 1)}),
        json.dumps({"mode": "2pass-offline", "text": "字" * (MAX_TEXT + 1)}),
        "1" * 10_000,
    ],
    ids=lambda message: repr(message[:24]),
)
def test_nonsense_is_refused_and_not_quoted(message: str | bytes) -> None:
    with pytest.raises(ServerNonsense) as caught:
        Session(NAME).take(message)
    assert "字" not in str(caught.value)
    assert len(str(caught.value)) < 100


def test_an_utterance_has_so_many_messages_and_characters_and_no_more() -> None:
    session = Session(NAME)
    for _ in range(MAX_MESSAGES):
        take(session, **online(""))
    with pytest.raises(ServerNonsense, match="messages"):
        take(session, **online(""))
    session = heard(*(online("字" * 1_000) for _ in range(10)))
    with pytest.raises(ServerNonsense, match="characters"):
        take(session, **online("字"))


def test_a_text_has_no_line_breaks_no_control_characters_and_no_half_characters() -> None:
    session = heard(online("今\n天\x1b[31m\x00\ud800好\u202e"))
    assert session.transcription.text == "今 天[31m好"
    session.transcription.text.encode()


WORDS = st.sampled_from(["一", "二。", "", "three ", "\ud800", "字" * 50])
MESSAGES = st.one_of(
    st.builds(online, WORDS),
    st.builds(offline, WORDS),
    st.builds(cpp_piece, WORDS, is_final=st.booleans(), timestamp=st.one_of(st.none(), st.integers(), st.text(), st.just("[[1,2]]"))),
    st.just(ACKNOWLEDGED),
    st.dictionaries(
        st.sampled_from(["text", "mode", "is_final", "is_end", "error", "wav_name", "slice_type"]), st.from_type(object).map(str)
    ),
)


@given(st.lists(MESSAGES, max_size=20))
def test_whatever_a_server_says_the_text_can_be_written(messages: list[dict[str, Any]]) -> None:
    session = Session(NAME)
    for message in messages:
        before = session.transcription.text
        try:
            changed = session.take(json.dumps(message))
        except ServerNonsense:
            continue
        assert changed == (session.transcription.text != before)
        session.transcription.text.encode()
        assert len(session.transcription.times) <= len(messages) or session.transcription.times == ()


# --- tokens ----------------------------------------------------------------------------------------------------------


def tokens_of(text: str, times: tuple[tuple[int, int], ...], num_ms: int = 2_000) -> list[tuple[str, int, int]]:
    found = tokens_with_times(Transcription((TimedText(text, times),)), 16_000, num_ms * 16)
    assert all(token.confidence is None for token in found)
    return [(token.text, token.start_sample // 16, token.end_sample // 16) for token in found]


def test_each_character_and_each_word_has_its_time() -> None:
    times = ((0, 100), (100, 300), (300, 500), (500, 700))
    assert tokens_of("打开 WiFi，好。", times) == [("打", 1_000, 1_100), ("开", 1_100, 1_300), ("WiFi", 1_300, 1_500), ("好", 1_500, 1_700)]
    assert tokens_of("hello, big world 3.5", times) == [
        ("hello", 1_000, 1_100),
        ("big", 1_100, 1_300),
        ("world", 1_300, 1_500),
        ("3.5", 1_500, 1_700),
    ]


def test_times_that_do_not_fit_the_text_are_left_out() -> None:
    assert tokens_of("打开", ((0, 100),)) == []
    assert tokens_of("打", ((0, 100), (100, 200))) == []
    assert tokens_of("打", ((0, 2_501),)) == [], "it ends half a second after the utterance"
    assert tokens_of("打", ((1_900, 2_400),)) == [("打", 2_900, 3_000)], "the last one may end in what the server added"
    assert tokens_of("", ()) == []


# --- trouble ---------------------------------------------------------------------------------------------------------


REFUSED = ConnectionRefusedError(111, "Connection refused")


def test_a_server_that_is_not_there_at_the_start_is_told_at_once_and_once() -> None:
    trouble = Trouble()
    trouble.failed(REFUSED, 0.0)
    assert trouble.look(0.0, idle=True) is REFUSED
    assert trouble.is_told
    trouble.failed(REFUSED, 5.0)
    assert trouble.look(5.0, idle=False) is None


def test_a_short_break_is_not_worth_a_word() -> None:
    trouble = Trouble()
    trouble.connected(0.0)
    trouble.disconnected()
    trouble.failed(REFUSED, 10.0)
    assert trouble.look(11.9, idle=False) is None
    trouble.connected(11.95)
    trouble.answered()
    assert (trouble.look(30.0, idle=True), trouble.is_told) == (None, False)


def test_while_the_connection_stands_a_break_is_not_told() -> None:
    trouble = Trouble()
    trouble.connected(0.0)
    trouble.disconnected()
    trouble.failed(REFUSED, 10.0)
    trouble.connected(10.3)
    assert trouble.look(11.0, idle=False) is None
    assert trouble.look(13.0, idle=False) is None, "an utterance is being sent again"
    trouble.disconnected()
    trouble.failed(REFUSED, 14.0)
    assert trouble.look(14.0, idle=False) is REFUSED, "it has lasted since the first failure"


def test_a_break_of_two_seconds_is_told_and_over_when_an_utterance_is_answered() -> None:
    trouble = Trouble()
    trouble.connected(0.0)
    trouble.disconnected()
    trouble.failed(REFUSED, 10.0)
    trouble.failed(OSError("later"), 11.0)
    told = trouble.look(12.0, idle=False)
    assert isinstance(told, OSError)
    assert trouble.is_told
    trouble.answered()
    assert not trouble.is_told
    trouble.failed(REFUSED, 20.0)
    assert trouble.look(21.0, idle=False) is None
    assert trouble.look(22.0, idle=False) is REFUSED


def test_a_connection_that_stands_while_nobody_speaks_ends_the_trouble() -> None:
    trouble = Trouble()
    trouble.failed(REFUSED, 0.0)
    trouble.look(0.0, idle=True)
    trouble.connected(10.0)
    assert trouble.look(11.9, idle=True) is None
    assert trouble.is_told
    trouble.look(12.0, idle=False)
    assert trouble.is_told, "an utterance waits: whether it is answered decides"
    trouble.look(12.0, idle=True)
    assert not trouble.is_told


@pytest.mark.parametrize("error", [ServerSilent(), ServerNonsense(), ServerFailed()])
def test_a_server_that_gave_no_answer_is_not_trusted_as_soon_as_it_is_connected(error: Exception) -> None:
    trouble = Trouble()
    trouble.connected(0.0)
    trouble.failed(error, 10.0)
    trouble.disconnected()
    trouble.connected(10.5)
    assert trouble.look(12.5, idle=True) is error
    trouble.look(40.4, idle=True)
    assert trouble.is_told
    trouble.look(40.5, idle=True)
    assert not trouble.is_told


def test_a_connection_that_broke_does_not_stand() -> None:
    trouble = Trouble()
    trouble.failed(REFUSED, 0.0)
    trouble.look(0.0, idle=True)
    trouble.connected(1.0)
    trouble.disconnected()
    trouble.look(100.0, idle=True)
    assert trouble.is_told


def rejected(status: int) -> InvalidStatus:
    return InvalidStatus(Response(status, "", Headers()))


@pytest.mark.parametrize(
    ("error", "url", "hint"),
    [
        (REFUSED, "ws://h:1", "cannot be reached (Connection refused): is the server running"),
        (TimeoutError(), "ws://h:1", "does not answer in time"),
        (rejected(401), "wss://h:1", "VOICE_ASR__ENGINE__TOKEN"),
        (rejected(500), "wss://h:1", "HTTP 500"),
        (InvalidMessage("x"), "ws://h:1", "wss://"),
        (ServerSilent("an utterance ended 6 s ago"), "ws://h:1", "does not answer: an utterance ended 6 s ago"),
        (ServerNonsense("a binary message"), "ws://h:1", "FunASR's protocol: a binary message"),
        (ServerFailed("secret"), "ws://h:1", "failed at an utterance: its own log says why"),
        (ZeroDivisionError("secret"), "ws://h:1", "cannot be used (ZeroDivisionError)"),
    ],
)
def test_each_failure_says_what_to_do(error: Exception, url: str, hint: str) -> None:
    line = explain(error, Server(f"{url}/path?key=hidden", token="hidden"))
    assert line.startswith(f"EngineUnavailable: {url}/path ")
    assert hint in line
    assert "hidden" not in line
    assert "secret" not in line
    assert "\n" not in line
