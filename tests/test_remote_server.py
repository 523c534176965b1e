"""The service on a FunASR runtime server (``runtime_server.py``): the contract, and servers that die, hang, lie and come back."""

from __future__ import annotations

import json
import shutil
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import trustme
from harness import (
    EXAMPLES,
    REPOSITORY,
    Event,
    Result,
    environment,
    example,
    example_names,
    final_texts,
    in_time,
    of_type,
    run_service,
    start_service,
)
from runtime_server import Fault, Kind, Message, RuntimeServer, Unreading, embedded
from virtual_microphone import VirtualMicrophone

from voice.audio import Samples
from voice.transcript import without_marks

KINDS: tuple[Kind, ...] = ("python", "cpp")
pytestmark = pytest.mark.slow


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


def engine(server: RuntimeServer, *more: str) -> tuple[str, ...]:
    return ("--engine", server.url, "--status-events", "--no-emotion", *more)


def spoken(*parts: str | float | Samples) -> Samples:
    """Examples by name, pauses in seconds, and samples."""
    pieces: list[Samples] = []
    for part in parts:
        if isinstance(part, str):
            pieces.append(example(part)[0])
        else:
            pieces.append(np.zeros(round(part * 16_000), np.float32) if isinstance(part, float) else part)
    return np.concatenate(pieces)


def wav(directory: Path, samples: Samples) -> str:
    path = directory / "speech.wav"
    soundfile.write(path, samples, 16_000)
    return str(path)


def errors(events: list[Event], code: str = "engine_unavailable") -> list[Event]:
    return [event for event in events if event.get("error_code") == code]


def totals(events: list[Event]) -> dict[str, int]:
    (stopped,) = [event for event in events if event.get("state") == "stopped"]
    found: dict[str, int] = stopped["totals"]
    return found


def messages(server: RuntimeServer) -> list[Message]:
    return [each for each in server.received if isinstance(each, dict)]


# --- the contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["streaming", "sliced"])
def test_the_examples_are_recognised_as_they_are_locally(kind: Kind, mode: str) -> None:
    with RuntimeServer(kind, embedded()) as server:
        for name in example_names():
            result = run_service(mode, "--engine", server.url, "--input", example_path(name))
            assert result.returncode == 0, result.stderr
            assert final_texts(result.events) == list(example(name)[1])
            finals = of_type(result.events, "final")
            for event in finals + of_type(result.events, "partial"):
                assert (event["source"], event["confidence"]) == ("funasr.remote", None)
            for final in finals:
                assert final["text"][:-1] == final["raw_text"], "the server's punctuation is shown"
                assert final["text"][-1] in "。？"
                assert final["emotion"]["label"], "emotion stays local"
                assert final["lost_ms"] == 0
                if kind == "cpp":
                    assert "".join(token["text"] for token in final["tokens"]) == final["raw_text"]
                    assert {token["confidence"] for token in final["tokens"]} == {None}
                    assert all(final["start_ms"] - 300 <= token["start_ms"] < final["end_ms"] + 300 for token in final["tokens"])
                else:
                    assert final["tokens"] == [], "its times have no known beginning"
            assert not errors(result.events)
        assert not {first for first in server.first_bytes if first in b"RI\xffOf\x1a"}, "a frame that FunASR's script may take for a file"
        assert {message["wav_name"] for message in messages(server) if "wav_name" in message} >= {final["trace_id"] for final in finals}


def test_partials_come_while_somebody_speaks(kind: Kind) -> None:
    with RuntimeServer(kind) as server:
        service = start_service("streaming", *engine(server, "--realtime"), "--input", example_path("temperature"))
        service.wait_for(lambda event: event["type"].endswith("partial"))
        assert not [each for each in messages(server) if each.get("is_speaking") is False], "before the end"
        events, code = service.finish()
    assert code == 0
    assert len(of_type(events, "partial")) >= 3
    assert all(event["stable_chars"] == 0 for event in of_type(events, "partial"))


def example_path(name: str) -> str:
    return str(EXAMPLES / f"{name}.wav")


def test_nothing_is_sent_in_silence(kind: Kind, tmp_path: Path) -> None:
    noise = (np.random.default_rng(1).normal(size=5 * 16_000) * 1e-3).astype(np.float32)
    with RuntimeServer(kind) as server:
        result = run_service("streaming", *engine(server), "--input", wav(tmp_path, noise))
        assert (result.returncode, of_type(result.events, "final")) == (0, [])
        assert server.received == []
        result = run_service("streaming", *engine(server), "--input", wav(tmp_path, spoken(3.0, "temperature", 3.0)))
        (final,) = of_type(result.events, "final")
        sent_ms = sum(each for each in server.received if isinstance(each, int)) / 32
        assert sent_ms <= final["end_ms"] - final["start_ms"] + 300 + 300 + 60, "pre-roll, the silence of a pause, a frame"


def test_an_utterance_of_several_pieces_is_one_final(kind: Kind, tmp_path: Path) -> None:
    """The server's own voice activity detection cuts at shorter pauses than ours."""
    with RuntimeServer(kind, embedded(), piece_silence_ms=300) as server:
        path = wav(tmp_path, spoken(0.5, trimmed("temperature"), 0.6, trimmed("air_conditioner"), 1.5))
        result = run_service("streaming", *engine(server, "--realtime"), "--input", path)
        pieces = [each["text"] for each in server.sent if each.get("mode") == "2pass-offline" and each["text"]]
    assert len(pieces) >= 2
    (final,) = of_type(result.events, "final")
    assert final["text"] == "".join(pieces)
    assert final["raw_text"] == example("temperature")[1][0] + example("air_conditioner")[1][0]


def trimmed(name: str) -> Samples:
    """An example without the silence around it."""
    samples, _ = example(name)
    loud = np.flatnonzero(np.abs(samples) > 0.02)
    return samples[loud[0] - 800 : loud[-1] + 800]


def test_the_same_final_steps_follow(tmp_path: Path) -> None:
    with RuntimeServer("cpp", embedded()) as server:
        result = run_service("streaming", *engine(server, "--itn"), "--input", example_path("temperature"))
    (final,) = of_type(result.events, "final")
    assert (final["text"], final["raw_text"]) == ("把空调的温度调到26%。", "把空调的温度调到百分之二十六")


def test_punctuation_is_local_where_the_server_has_none() -> None:
    def without_marks(message: Message) -> list[Any]:
        return [{**message, "text": message["text"].strip("。？")} if "text" in message else message]

    with RuntimeServer("python", embedded(), fault=Fault(instead=without_marks)) as server:
        result = run_service("streaming", *engine(server), "--input", example_path("temperature"))
        (final,) = of_type(result.events, "final")
        assert final["text"] == final["raw_text"] + "。"


def test_wake_words_work_on_what_a_server_says(kind: Kind) -> None:
    with RuntimeServer(kind, embedded()) as server:
        arguments = ("--engine", server.url, "--status-events", "--wake-word", "明天早上", "--input", example_path("two_utterances"))
        result = run_service("streaming", *arguments)
        hotwords = {message["hotwords"] for message in messages(server) if "hotwords" in message}
    first, second = example("two_utterances")[1]
    (wake,) = of_type(result.events, "voice.wake")
    (final,) = of_type(result.events, "final")
    assert wake["trace_id"] == final["trace_id"]
    assert (final["raw_text"], final["confidence"]) == (second.removeprefix("明天早上"), None)
    assert final["emotion"], "the side models hear it once its text is known"
    assert first[:4] not in str(result.events)
    assert totals(result.events)["unwoken_utterances"] == 1
    assert [json.loads(text) for text in hotwords] == [{"明天早上": 20}]


def test_hotwords_go_with_the_first_message_and_new_ones_on_a_new_connection(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("阿里巴巴 30\n", encoding="utf-8")
    with RuntimeServer("cpp") as server:
        arguments = engine(server, "--realtime", "--hotwords", str(words))
        service = start_service("streaming", *arguments, "--input", example_path("two_utterances"))
        service.wait_for(lambda event: event["type"] == "voice.speech.ended")
        words.write_text("达摩院\n", encoding="utf-8")
        events, code = service.finish()
        hotwords = [json.loads(message["hotwords"]) for message in messages(server) if "hotwords" in message]
    assert code == 0
    assert hotwords == [{"阿里巴巴": 30}, {"达摩院": 20}]
    assert server.connections == 2
    assert len(of_type(events, "final")) == 2
    assert not errors(events)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_in_mid_utterance_gives_the_final(kind: Kind, sent: int) -> None:
    with RuntimeServer(kind) as server:
        service = start_service("streaming", *engine(server, "--realtime"), "--input", example_path("temperature"))
        service.wait_for(lambda event: event["type"].endswith("partial"))
        service.process.send_signal(sent)
        started = time.monotonic()
        events, code = service.finish()
        took = time.monotonic() - started
    assert code == 0
    assert [final["endpoint"] for final in of_type(events, "final")] == ["shutdown"]
    assert took < in_time(3)


def test_a_microphone_and_a_server(microphone: VirtualMicrophone) -> None:
    with RuntimeServer("cpp", embedded()) as server:
        service = microphone.listen("streaming", "--engine", server.url, "--no-emotion")
        service.wait_for(lambda event: event.get("state") == "listening")
        microphone.play(EXAMPLES / "temperature.wav")
        final = service.wait_for(lambda event: event["type"].endswith("final"))
        assert final["raw_text"] == example("temperature")[1][0]
        service.process.terminate()
        events, code = service.finish()
    assert code == 0
    assert not errors(events)


def test_stdin_and_a_server(kind: Kind) -> None:
    pcm = (example("two_utterances")[0] * 32_767).astype("<i2").tobytes()
    with RuntimeServer(kind, embedded()) as server:
        result = run_service("sliced", *engine(server), "--input", "-", stdin=pcm)
    assert (result.returncode, final_texts(result.events)) == (0, list(example("two_utterances")[1]))


def test_many_recordings_on_a_server(tmp_path: Path) -> None:
    for name in example_names():
        shutil.copy(example_path(name), tmp_path)
    with RuntimeServer("python", embedded()) as server:
        done = subprocess.run(
            [sys.executable, "-m", "voice", "transcribe", "--embedded", "--no-emotion", "--engine", server.url, str(tmp_path)],
            capture_output=True,
            check=False,
            timeout=120,
            env=environment(),
            cwd=REPOSITORY,
        )
    assert done.returncode == 0, done.stderr.decode()
    for name in example_names():
        text = (tmp_path / f"{name}.txt").read_text(encoding="utf-8")
        assert all(line in without_marks(text) for line in example(name)[1]), text


def test_the_doctor_asks_the_server() -> None:
    with RuntimeServer("cpp") as server:
        assert doctor(server.url) == {"name": "server", "verdict": "ok", "text": f"{server.url} takes connections", "remedy": ""}
    found = doctor(server.url)
    assert found["verdict"] == "failed"
    assert "cannot be reached" in found["text"]


def doctor(url: str) -> dict[str, str]:
    arguments = [sys.executable, "-m", "voice", "doctor", "--embedded", "--no-microphone", "--json", "--engine", url]
    done = subprocess.run(arguments, capture_output=True, check=False, timeout=200, env=environment(), cwd=REPOSITORY)
    (found,) = [each for each in json.loads(done.stdout) if each["name"] == "server"]
    return dict(found)


def test_a_run_without_a_server_imports_nothing_of_it() -> None:
    planted = (
        "import atexit, os\n"
        "ours = ('websockets', 'voice.recognition.remote')\n"
        "def tell(): sys.stderr.write(f'IMPORTED {sorted(n for n in sys.modules if n.startswith(ours))}\\n')\n"
        "atexit.register(tell)\n"
        "leave, os._exit = os._exit, lambda code: (tell(), sys.stderr.flush(), leave(code))"
    )
    local = run_service("streaming", "--input", example_path("temperature"), planted=planted)
    assert "IMPORTED []" in local.stderr
    with RuntimeServer("cpp") as server:
        remote = run_service("streaming", *engine(server), "--input", example_path("temperature"), planted=planted)
    assert "'voice.recognition.remote.connection'" in remote.stderr, "the test can fail"


# --- servers that are away -------------------------------------------------------------------------------------------


def test_a_server_that_is_killed_and_comes_back_in_mid_utterance_costs_nothing(kind: Kind) -> None:
    with RuntimeServer(kind, embedded()) as server:
        service = start_service("streaming", *engine(server, "--realtime"), "--input", example_path("temperature"))
        service.wait_for(lambda event: event["type"].endswith("partial"))
        server.stop()
        time.sleep(0.5)
        server.start()
        events, code = service.finish()
        starts = [message["wav_name"] for message in messages(server) if "mode" in message]
    assert code == 0
    assert final_texts(events) == list(example("temperature")[1])
    assert not errors(events), "a break of half a second is not worth a word"
    assert starts[0] == starts[-1] == of_type(events, "final")[0]["trace_id"], "the same utterance was sent again"
    assert len(starts) == 2


def test_a_server_that_is_away_longer_is_told_once_and_no_utterance_is_lost(kind: Kind) -> None:
    server = RuntimeServer(kind, embedded())
    server.stop()
    try:
        service = start_service("streaming", *engine(server, "--realtime"), "--input", example_path("two_utterances"))
        error = service.wait_for(lambda event: event.get("error_code") == "engine_unavailable")
        assert error["recoverable"]
        assert "cannot be reached" in error["message"]
        assert server.url in error["message"]
        service.wait_for(lambda event: event["type"] == "voice.speech.started")
        time.sleep(3)
        server.start()
        events, code = service.finish(60)
    finally:
        server.close()
    assert code == 0
    assert final_texts(events) == list(example("two_utterances")[1])
    assert len(errors(events)) == 1
    assert totals(events)["lost_ms"] == 0
    times = [(event["type"], event["trace_id"]) for event in events if event["type"].startswith("voice.speech")]
    assert [kind for kind, _ in times] == ["voice.speech.started", "voice.speech.ended"] * 2


def test_what_waits_too_long_is_given_up_and_its_loss_is_told(kind: Kind) -> None:
    server = RuntimeServer(kind)
    server.close()
    result = run_service("streaming", *engine(server), "--input", example_path("two_utterances"), VOICE_ASR__ENGINE__MAX_WAIT_SEC="2")
    assert result.returncode == 0
    assert of_type(result.events, "final") == []
    away, *lost = errors(result.events)
    assert "cannot be reached" in away["message"]
    assert ["did not answer within 2 s" in event["message"] for event in lost] == [True, True]
    started = [event["trace_id"] for event in result.events if event["type"] == "voice.speech.started"]
    assert [event["trace_id"] for event in lost] == started
    ends = [event for event in result.events if event["type"] == "voice.speech.ended"]
    starts = [event for event in result.events if event["type"] == "voice.speech.started"]
    spoken_ms = sum(end["end_ms"] - start["start_ms"] for start, end in zip(starts, ends, strict=True))
    assert totals(result.events) | {"audio_ms": 0} == {
        "utterances": 0,
        "empty_utterances": 0,
        "audio_ms": 0,
        "lost_ms": spoken_ms,
        "rejected_ms": 0,
        "errors": 3,
    }


def test_beyond_the_bound_the_oldest_utterance_is_given_up(kind: Kind, microphone: VirtualMicrophone, tmp_path: Path) -> None:
    short = tmp_path / "short.yaml"
    short.write_text("engine: {queue_sec: 5}\n")
    server = RuntimeServer(kind)
    server.stop()
    try:
        service = microphone.listen("streaming", "--engine", server.url, "--no-emotion", "--config", str(short))
        service.wait_for(lambda event: event.get("state") == "listening")
        microphone.play(Path(wav(tmp_path, spoken("temperature", 1.0, "air_conditioner", 1.0, "temperature", 1.0))))
        lost = service.wait_for(lambda event: "waited for the server" in event.get("message", ""))
        server.start()
        service.wait_for(lambda event: event["type"].endswith("final"))
        service.wait_for(lambda event: event["type"].endswith("final"))
        service.process.terminate()
        events, code = service.finish()
    finally:
        server.close()
    assert code == 0
    started = [event["trace_id"] for event in events if event["type"] == "voice.speech.started"]
    assert lost["trace_id"] == started[0]
    assert [final["trace_id"] for final in of_type(events, "final")] == started[1:]
    assert totals(events)["lost_ms"] > 1_000


def test_a_file_waits_for_a_server_that_is_slower_than_it(kind: Kind, tmp_path: Path) -> None:
    """Nothing of a file is given up because it is read faster than a server answers."""
    path = wav(tmp_path, np.concatenate([spoken(0.5, "temperature", 1.0)] * 4))
    with RuntimeServer(kind, fault=Fault(answer_after_sec=0.3)) as server:
        result = run_service("streaming", *engine(server), "--input", path, VOICE_ASR__ENGINE__QUEUE_SEC="5")
    assert (result.returncode, len(of_type(result.events, "final"))) == (0, 4)
    assert totals(result.events)["lost_ms"] == 0


def test_the_local_model_takes_over_and_hands_back(kind: Kind, microphone: VirtualMicrophone) -> None:
    server = RuntimeServer(kind, embedded())
    try:
        service = microphone.listen("streaming", "--engine", server.url, "--no-emotion", "--engine-fallback", "local")
        service.wait_for(lambda event: event.get("state") == "listening")
        microphone.play(EXAMPLES / "temperature.wav")
        assert service.wait_for(lambda event: event["type"].endswith("final"))["source"] == "funasr.remote"
        server.stop()
        error = service.wait_for(lambda event: event.get("error_code") == "engine_unavailable")
        assert error["message"].endswith("; the local model takes over")
        microphone.play(EXAMPLES / "air_conditioner.wav")
        local = service.wait_for(lambda event: event["type"].endswith("final"))
        assert (local["source"], local["raw_text"]) == ("funasr.streaming.paraformer-zh", example("air_conditioner")[1][0])
        assert local["confidence"] > 0.5
        server.start()
        time.sleep(5 + 2 + 1)  # the longest pause between two tries, and the time a connection has to stand
        microphone.play(EXAMPLES / "temperature.wav")
        assert service.wait_for(lambda event: event["type"].endswith("final"))["source"] == "funasr.remote"
        service.process.terminate()
        events, code = service.finish()
    finally:
        server.close()
    assert (code, len(errors(events))) == (0, 1)


@pytest.mark.parametrize("mode", ["streaming", "sliced"])
def test_an_utterance_in_flight_is_taken_over_with_all_of_its_audio(mode: str) -> None:
    with RuntimeServer("cpp", embedded()) as server:
        service = start_service(
            mode, *engine(server, "--realtime", "--engine-fallback", "local"), "--input", example_path("two_utterances")
        )
        service.wait_for(lambda event: event["type"].endswith("partial"))
        server.stop()
        events, code = service.finish()
    assert code == 0
    assert final_texts(events) == list(example("two_utterances")[1])
    assert "remote" not in of_type(events, "final")[0]["source"]
    assert len(errors(events)) == 1
    assert totals(events)["lost_ms"] == 0


# --- servers that misbehave ------------------------------------------------------------------------------------------


def test_a_slow_server_delays_finals_and_mixes_nothing_up(kind: Kind) -> None:
    with RuntimeServer(kind, embedded(), fault=Fault(answer_after_sec=0.8)) as server:
        result = run_service("streaming", *engine(server, "--realtime"), "--input", example_path("two_utterances"))
    assert (result.returncode, final_texts(result.events)) == (0, list(example("two_utterances")[1]))
    assert not errors(result.events)


def test_a_stop_does_not_wait_long_for_a_slow_server(kind: Kind) -> None:
    with RuntimeServer(kind) as server:
        service = start_service("streaming", *engine(server, "--realtime"), "--input", example_path("temperature"))
        partial = service.wait_for(lambda event: event["type"].endswith("partial"))
        server.fault.silent = True
        time.sleep(0.3)
        service.process.terminate()
        started = time.monotonic()
        events, code = service.finish()
        assert time.monotonic() - started < in_time(4)
    assert code == 0
    (final,) = of_type(events, "final")
    assert final["raw_text"].startswith(partial["raw_text"]), "what was shown last"
    assert final["lost_ms"] > 0
    assert "no answer when the service ended" in errors(events)[-1]["message"]
    assert totals(events)["lost_ms"] == final["lost_ms"]


def test_a_silent_server_is_asked_again_and_then_given_up(kind: Kind) -> None:
    with RuntimeServer(kind, fault=Fault(silent=True)) as server:
        result = run_service("streaming", *engine(server), "--input", example_path("temperature"), VOICE_ASR__ENGINE__ANSWER_SEC="0.5")
    assert (result.returncode, of_type(result.events, "final")) == (0, [])
    assert server.connections >= 5
    told, lost = errors(result.events)
    assert "does not answer" in told["message"]
    assert "broke at this utterance 5 times" in lost["message"]
    assert totals(result.events)["lost_ms"] > 1_000


def test_a_server_that_closes_again_and_again_loses_one_utterance_and_not_its_partial(kind: Kind) -> None:
    with RuntimeServer(kind, fault=Fault(close_after_frames=25, once=False)) as server:
        result = run_service("streaming", *engine(server, "--realtime"), "--input", example_path("temperature"))
    assert result.returncode == 0
    (final,) = of_type(result.events, "final")
    assert final["raw_text"], "what was shown last"
    assert final["lost_ms"] > 0
    assert [event["trace_id"] for event in errors(result.events)][-1] == final["trace_id"]


def test_a_server_that_closes_once_costs_nothing(kind: Kind) -> None:
    with RuntimeServer(kind, embedded(), fault=Fault(close_after_frames=25)) as server:
        result = run_service("streaming", *engine(server, "--realtime"), "--input", example_path("temperature"))
    assert (result.returncode, final_texts(result.events)) == (0, list(example("temperature")[1]))
    assert server.connections == 2
    assert not errors(result.events)


def test_an_old_server_that_acknowledges_nothing_is_waited_for_two_seconds() -> None:
    def old(message: Message) -> list[Any]:
        message.pop("spk_name", None)
        return [message]

    with RuntimeServer("python", embedded(), fault=Fault(no_acknowledgement=True, instead=old)) as server:
        result = run_service("streaming", *engine(server), "--input", example_path("two_utterances"))
    assert (result.returncode, final_texts(result.events)) == (0, list(example("two_utterances")[1]))
    assert server.connections >= 2, "what may follow must not leak into the next utterance"
    assert not errors(result.events)


def test_a_server_that_fails_is_asked_again_and_what_it_gave_is_taken() -> None:
    with RuntimeServer("python", embedded(), fault=Fault(fails="vad inference failed")) as server:
        result = run_service("streaming", *engine(server), "--input", example_path("temperature"))
    assert (result.returncode, final_texts(result.events)) == (0, list(example("temperature")[1]))
    assert server.connections == 3
    assert "vad inference failed" not in result.stderr + str(result.events), "a server's words may be recognised text"


def twice(message: Message) -> list[Any]:
    return [message, message]


RUBBISH: dict[str, Any] = {
    "binary": lambda _: [b"\x00\x01\x02"],
    "no JSON": lambda _: ["今天天气"],
    "a list": lambda _: ["[1, 2]"],
    "deep": lambda _: ["[" * 100_000],
    "two megabytes": lambda _: [json.dumps({"mode": "2pass-online", "text": "字" * 1_000_000})],
    "too much text": lambda _: [json.dumps({"mode": "2pass-online", "text": "字" * 20_000})],
    "an error in words": lambda _: [
        json.dumps({"text": "ERROR. Real-time transcription service ONLY SUPPORT PCM stream.", "is_final": True})
    ],
}


@pytest.mark.parametrize("rubbish", RUBBISH)
def test_rubbish_costs_the_utterance_and_not_the_service(kind: Kind, rubbish: str) -> None:
    with RuntimeServer(kind, fault=Fault(instead=RUBBISH[rubbish])) as server:
        result = run_service("streaming", *engine(server), "--input", example_path("two_utterances"))
    assert (result.returncode, of_type(result.events, "final")) == (0, [])
    assert errors(result.events)
    assert totals(result.events)["lost_ms"] > 1_000
    assert "字" not in result.stderr
    assert "字" not in str(errors(result.events))


@pytest.mark.parametrize("odd", ["twice", "half characters", "control characters", "names", "times"])
def test_odd_messages_never_make_two_finals_or_a_broken_line(kind: Kind, odd: str) -> None:
    change = {
        "twice": twice,
        "half characters": lambda message: [{**message, "text": message["text"] + "\ud83d"}] if message.get("text") else [message],
        "control characters": lambda message: (
            [{**message, "text": "\x1b[2J\r\n" + message["text"] + "\x00"}] if message.get("text") else [message]
        ),
        "names": lambda message: [{**message, "wav_name": "ffffffffffffffff", "text": "错"}, message],
        "times": lambda message: [{**message, "timestamp": "[[0,99999999999999999999]]"}],
    }[odd]
    with RuntimeServer(kind, fault=Fault(instead=change)) as server:
        result = run_service("streaming", *engine(server), "--input", example_path("two_utterances"))
    assert result.returncode == 0
    assert len(of_type(result.events, "final")) == 2, "run_service checks each line"
    assert "错" not in str(result.events)


# --- what an attack found ----------------------------------------------------------------------------------------------


SMALL_BUFFERS = """
import asyncio.selector_events, socket
_connect = socket.socket.connect
_init = socket.socket.__init__
def small(self, *arguments, **options):
    _init(self, *arguments, **options)
    if self.type == socket.SOCK_STREAM:
        self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
socket.socket.__init__ = small
"""


def test_a_server_that_stops_reading_is_left_and_the_local_model_takes_over() -> None:
    """What waits to be sent could keep the closing of a connection waiting for ever."""
    with Unreading() as server:
        result = run_service(
            "streaming",
            *("--engine", server.url, "--no-emotion", "--status-events", "--realtime", "--engine-fallback", "local"),
            *("--input", example_path("two_utterances")),
            planted=SMALL_BUFFERS,
            VOICE_ASR__ENGINE__ANSWER_SEC="1",
        )
    assert (result.returncode, final_texts(result.events)) == (0, list(example("two_utterances")[1]))
    assert len(errors(result.events)) == 1
    assert server.accepted >= 2
    assert totals(result.events)["lost_ms"] == 0


def test_a_redirect_is_not_followed() -> None:
    with RuntimeServer("cpp") as other, Unreading(redirect=other.url) as server:
        result = run_service("streaming", "--engine", server.url, "--input", example_path("temperature"), **GIVE_UP_SOON)
        assert other.received == []
    assert "HTTP 302" in errors(result.events)[0]["message"]


def test_proxies_of_the_environment_are_not_asked() -> None:
    dead = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "ws_proxy"), "http://127.0.0.1:9")
    with RuntimeServer("cpp") as server:
        assert recognised(run_service("streaming", *engine(server), "--input", example_path("temperature"), no_proxy="", **dead))


def test_a_message_that_is_too_long_is_refused_however_short_its_text_is(kind: Kind) -> None:
    def long(message: Message) -> list[Any]:
        return [{**message, "padding": "x" * (2 << 20)}]

    with RuntimeServer(kind, fault=Fault(instead=long)) as server:
        result = run_service("streaming", *engine(server), "--input", example_path("temperature"))
    assert of_type(result.events, "final") == []
    assert totals(result.events)["lost_ms"] > 1_000


def test_the_last_part_of_a_frame_is_sent(kind: Kind) -> None:
    with RuntimeServer(kind) as server:
        run_service("streaming", *engine(server), "--input", example_path("temperature"))
        *frames, last = [each for each in server.received if isinstance(each, int)]
    assert set(frames) == {1_920}
    assert 0 < last < 1_920, "this utterance is no multiple of 60 ms"


@pytest.mark.parametrize("named", [True, False])
def test_an_answer_that_comes_too_late_is_not_the_next_ones(kind: Kind, named: bool) -> None:
    """Not even of a server that does not say of which utterance it speaks."""

    def nameless(message: Message) -> list[Any]:
        return [message if named else {key: value for key, value in message.items() if key != "wav_name"}]

    with RuntimeServer(kind, embedded(), fault=Fault(answer_after_sec=1.5, instead=nameless)) as server:
        arguments = engine(server, "--realtime", "--input", example_path("two_utterances"))
        result = run_service("streaming", *arguments, **GIVE_UP_SOON, VOICE_ASR__ENGINE__ANSWER_SEC="30")
    first, second = example("two_utterances")[1]
    started = [event["trace_id"] for event in result.events if event["type"] == "voice.speech.started"]
    for event in of_type(result.events, "partial") + of_type(result.events, "final"):
        expected = first if event["trace_id"] == started[0] else second
        assert event["raw_text"] in expected
    assert of_type(result.events, "partial"), "else nothing was looked at"


def test_what_a_server_fails_at_the_reserve_recognises() -> None:
    def nothing(message: Message) -> list[Any]:
        return [message] if message.get("is_end") else []

    with RuntimeServer("python", fault=Fault(fails="no memory", instead=nothing)) as server:
        arguments = engine(server, "--engine-fallback", "local", "--input", example_path("two_utterances"))
        result = run_service("streaming", *arguments)
    assert (result.returncode, final_texts(result.events)) == (0, list(example("two_utterances")[1]))
    assert totals(result.events)["lost_ms"] == 0


def test_a_server_that_ends_an_utterance_that_goes_on_is_asked_again() -> None:
    told: list[Message] = []

    def early(message: Message) -> list[Any]:
        told.append(message)
        return [{**message, "is_final": True}] if len(told) == 1 else [message]

    with RuntimeServer("cpp", embedded(), fault=Fault(instead=early)) as server:
        result = run_service("streaming", *engine(server, "--realtime"), "--input", example_path("temperature"))
    assert server.connections == 2
    assert final_texts(result.events) == list(example("temperature")[1])
    assert totals(result.events)["lost_ms"] == 0


def test_a_server_that_restarts_while_nobody_speaks_is_not_worth_a_word(microphone: VirtualMicrophone) -> None:
    server = RuntimeServer("cpp", embedded())
    try:
        service = microphone.listen("streaming", "--engine", server.url, "--no-emotion")
        service.wait_for(lambda event: event.get("state") == "listening")
        server.stop()
        time.sleep(0.1)
        server.start()
        time.sleep(4)
        microphone.play(EXAMPLES / "temperature.wav")
        service.wait_for(lambda event: event["type"].endswith("final"))
        service.process.terminate()
        events, code = service.finish()
    finally:
        server.close()
    assert (code, errors(events)) == (0, [])


def test_a_recording_that_no_server_recognised_counts_as_failed_and_leaves_no_file(tmp_path: Path) -> None:
    shutil.copy(example_path("temperature"), tmp_path)
    server = RuntimeServer("cpp")
    server.close()
    arguments = [sys.executable, "-m", "voice", "transcribe", "--embedded", "--no-emotion", "--engine", server.url, str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, check=False, timeout=120, env=environment(**GIVE_UP_SOON), cwd=REPOSITORY)
    assert done.returncode == 1, done.stderr.decode()
    assert "did not answer within 1 s" in done.stderr.decode()
    assert not (tmp_path / "temperature.txt").exists()


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_where_a_server_is_away_the_recordings_that_were_not_begun_are_not_tried(tmp_path: Path, jobs: str) -> None:
    for number in range(16):
        shutil.copy(example_path("temperature"), tmp_path / f"{number}.wav")
    server = RuntimeServer("cpp")
    server.close()
    arguments = [sys.executable, "-m", "voice", "transcribe", "--embedded", "--no-emotion", "--engine", server.url, str(tmp_path)]
    done = subprocess.run(
        [*arguments, "--jobs", jobs], capture_output=True, check=False, timeout=120, env=environment(**GIVE_UP_SOON), cwd=REPOSITORY
    )
    assert done.returncode == 1, done.stderr.decode()
    failed = [line for line in done.stderr.decode().splitlines() if line.startswith("failed: ")]
    assert len(failed) == 16
    waited = [line for line in failed if "did not answer within 1 s" in line]
    assert all(line.endswith("not tried: the server was away") for line in failed if line not in waited)
    assert 1 <= len(waited) <= (1 if jobs == "1" else 10), "a pool hands some more to its workers than they can begin"


# --- trust -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


GIVE_UP_SOON = {"VOICE_ASR__ENGINE__MAX_WAIT_SEC": "1"}


def recognised(result: Result) -> bool:
    return len(of_type(result.events, "final")) == 1


def test_a_certificate_that_nobody_signed_is_not_trusted(tls: ssl.SSLContext) -> None:
    with RuntimeServer("cpp", tls=tls) as server:
        result = run_service("streaming", *engine(server), "--input", example_path("temperature"), **GIVE_UP_SOON)
    assert (result.returncode, recognised(result), server.received) == (0, False, [])
    message = errors(result.events)[0]["message"]
    assert "certificate" in message
    assert "--engine-ca" in message


def test_a_certificate_of_the_named_authority_is_trusted(tls: ssl.SSLContext, authority: trustme.CA, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    with RuntimeServer("cpp", tls=tls) as server:
        result = run_service("streaming", *engine(server, "--engine-ca", str(path)), "--input", example_path("temperature"))
        assert recognised(result)
        assert "engine_insecure" not in result.stderr
        wrong_name = server.url.replace("localhost", "127.0.0.1")
        result = run_service(
            "streaming",
            "--engine",
            wrong_name,
            "--engine-ca",
            str(path),
            "--input",
            example_path("temperature"),
            **GIVE_UP_SOON,
        )
        assert not recognised(result)


def test_any_certificate_is_taken_where_that_is_wanted_with_a_warning(tls: ssl.SSLContext) -> None:
    with RuntimeServer("cpp", tls=tls) as server:
        result = run_service("streaming", *engine(server, "--engine-insecure"), "--input", example_path("temperature"))
    assert recognised(result)
    assert "engine_insecure" in result.stderr


def test_a_server_without_tls_is_named_as_such(tls: ssl.SSLContext) -> None:
    with RuntimeServer("cpp") as server:
        url = server.url.replace("ws:", "wss:")
        result = run_service("streaming", "--engine", url, "--input", example_path("temperature"), **GIVE_UP_SOON)
    assert "ws://" in errors(result.events)[0]["message"]
    with RuntimeServer("cpp", tls=tls) as server:
        url = server.url.replace("wss:", "ws:")
        result = run_service("streaming", "--engine", url, "--input", example_path("temperature"), **GIVE_UP_SOON)
    assert "wss://" in errors(result.events)[0]["message"]


def test_a_token_is_sent_and_never_shown() -> None:
    token = "very-secret-0815"
    with RuntimeServer("cpp", token=token) as server:
        refused = run_service(
            "streaming",
            *engine(server),
            "--input",
            example_path("temperature"),
            **GIVE_UP_SOON,
            VOICE_ASR__ENGINE__TOKEN="wrong-4711",
        )
        accepted = run_service(
            "streaming",
            *engine(server, "--log-level", "debug"),
            "--input",
            example_path("temperature"),
            VOICE_ASR__ENGINE__TOKEN=token,
        )
    assert "HTTP 401" in errors(refused.events)[0]["message"]
    assert "VOICE_ASR__ENGINE__TOKEN" in errors(refused.events)[0]["message"]
    assert recognised(accepted)
    for result in (refused, accepted):
        assert token not in result.stderr + str(result.events)
        assert "4711" not in result.stderr + str(result.events)


def test_recognised_text_is_in_no_log() -> None:
    with RuntimeServer("cpp", embedded()) as server:
        result = run_service("streaming", *engine(server, "--log-level", "debug"), "--input", example_path("temperature"))
    (final,) = of_type(result.events, "final")
    assert "空调" in final["text"]
    assert "空调" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "extra", "named"),
    [
        (("--engine", "http://localhost:1"), {}, "wss://host:10095"),
        (("--engine", "wss://user:secret@localhost:1"), {}, "wss://host:10095"),
        (("--engine", "wss://"), {}, "wss://host:10095"),
        (("--engine", "wss://host:99999"), {}, "wss://host:10095"),
        (("--engine", "wss://host:0"), {}, "wss://host:10095"),
        (("--engine", f"wss://{'h' * 70}:1"), {}, "wss://host:10095"),
        (("--engine", "wss://a..b"), {}, "wss://host:10095"),
        (("--engine", "wss://host/#part"), {}, "wss://host:10095"),
        (("--engine", "wss://localhost:1", "--engine-ca", "~nobody-of-that-name/ca.pem"), {}, "engine.ca"),
        (("--engine", "ws://localhost:1", "--second-pass", "same"), {}, "final.second_pass"),
        (("--engine", "ws://localhost:1", "--engine-fallback", "cloud"), {}, "engine.fallback"),
        (("--engine", "ws://localhost:1"), {"VOICE_ASR__ENGINE__TOKEN": "two secret words"}, "engine.token"),
        (("--engine", "ws://localhost:1"), {"VOICE_ASR__ENGINE__QUEUE_SEC": "nan"}, "engine.queue_sec"),
        (("--engine", "wss://localhost:1", "--engine-ca", "/nowhere/ca.pem"), {}, "/nowhere/ca.pem"),
        (("--engine", "wss://localhost:1", "--engine-ca", __file__), {}, "engine.ca"),
    ],
    ids=[
        "http",
        "user",
        "no host",
        "port",
        "port 0",
        "long host",
        "empty label",
        "fragment",
        "no user",
        "second pass",
        "fallback",
        "token",
        "nan",
        "no file",
        "no certificate",
    ],
)
def test_a_wrong_setting_ends_the_service_with_one_line(arguments: tuple[str, ...], extra: dict[str, str], named: str) -> None:
    result = run_service("streaming", *arguments, "--input", example_path("temperature"), **extra)
    assert result.returncode == 2
    assert named in result.stderr + str(result.events)
    assert "two secret words" not in result.stderr + str(result.events)
