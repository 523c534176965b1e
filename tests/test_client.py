"""voice.client: a service as a child, its events, commands and deaths; and the example built on it."""

from __future__ import annotations

import ast
import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from harness import EXAMPLES, REPOSITORY, environment, in_time

from voice import client
from voice.client import (
    Abandoned,
    AsyncVoiceService,
    Emotion,
    Error,
    Event,
    Final,
    Partial,
    ServiceFailed,
    Status,
    VoiceService,
    Wake,
    default_command,
    parse_event,
)

TEXTS = ["今天北京的天气怎么样？", "明天早上七点叫我起床。"]
RECORDING = str(EXAMPLES / "two_utterances.wav")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", environment()["XDG_CACHE_HOME"])


def script(tmp_path: Path, body: str) -> list[str]:
    """A service that plays a part: what it prints is what the real one would."""
    path = tmp_path / "service.py"
    path.write_text(
        "import json, os, signal, sys, time\n"
        "def say(type, **more):\n"
        "    print(json.dumps({'type': type, 'ts': 1, 'trace_id': 'a' * 16, 'seq': 1, **more}), flush=True)\n"
        "def status(state, **more): say('core.status_event', state=state, **more)\n" + body
    )
    return [sys.executable, str(path)]


# --- parsing ------------------------------------------------------------------------------------------------------------


def test_the_file_needs_nothing_but_the_standard_library() -> None:
    tree = ast.parse((REPOSITORY / "voice" / "client.py").read_text(encoding="utf-8"))
    imported = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"'])
def test_what_is_no_event_is_none(line: bytes) -> None:
    assert parse_event(line) is None


def test_an_event_of_another_kind_or_with_other_keys_is_kept() -> None:
    event = parse_event('{"type": "voice.tomorrow", "trace_id": "b", "word": "小智"}')
    assert type(event) is Event
    assert event.raw["word"] == "小智"
    wake = parse_event('{"type": "voice.wake", "trace_id": "b", "word": "小智", "start_ms": 5, "end_ms": 9, "captured_ts": 7}')
    assert isinstance(wake, Wake)
    assert (wake.word, wake.start_ms, wake.end_ms, wake.captured_ts) == ("小智", 5, 9, 7)
    final = parse_event('{"type": "voice.asr_text.final", "text": "好", "speaker": 1}')
    assert isinstance(final, Final)
    assert (final.text, final.raw["speaker"]) == ("好", 1)


# --- the real service ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["streaming", "sliced"])
def test_a_recording_gives_its_finals_and_the_iteration_ends(mode: str) -> None:
    with VoiceService("--embedded", "--input", RECORDING, mode=mode) as service:
        service.wait_listening(in_time(20))
        events = list(service)
    assert [event.text for event in events if isinstance(event, Final)] == TEXTS
    finals = [event for event in events if isinstance(event, Final)]
    assert all(final.tokens and final.level and final.emotion and final.endpoint == "silence" for final in finals)
    assert [event.label for event in events if isinstance(event, Emotion)] == [final.emotion["label"] for final in finals]
    assert [event.state for event in events if isinstance(event, Status)][-1] == "stopped"
    assert (service.starts, service.state, service.pid) == (1, "stopped", None)
    assert list(service) == [], "a second iteration ends, too"


@pytest.mark.slow
def test_a_killed_service_is_started_again_and_what_it_was_saying_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_SEC", 0.1)
    seen: list[Event] = []
    with VoiceService("--embedded", "--input", RECORDING, "--realtime") as service:
        for event in service:
            seen.append(event)
            if isinstance(event, Partial) and service.starts == 1 and service.pid:
                os.kill(service.pid, signal.SIGKILL)
    abandoned = [event for event in seen if isinstance(event, Abandoned)]
    assert len(abandoned) == 1
    assert abandoned[0].text
    assert abandoned[0].trace_id in {event.trace_id for event in seen if isinstance(event, Partial)}
    assert service.starts == 2
    assert [event.text for event in seen if isinstance(event, Final)] == TEXTS


@pytest.mark.slow
def test_commands_are_followed_and_answered() -> None:
    with VoiceService("--embedded", "--input", RECORDING, "--realtime") as service:
        service.wait_listening(in_time(20))
        assert service.status(in_time(5)).state == "listening"
        service.mute()
        assert service.status(in_time(5)).state == "muted"
        service.unmute()
        assert service.status(in_time(5)).state == "listening"
        service.stop(in_time(10))
        states = [event.state for event in service if isinstance(event, Status)]
    assert [state for state in states if state in ("muted", "unmuted", "stopped")] == ["muted", "muted", "unmuted", "stopped"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--embedded", "--model-dir", "x"), 2, "exclude each other"),
        (("--model-dir", "/nonexistent/model"), 3, "/nonexistent/model"),
    ],
)
def test_wrong_settings_and_models_are_not_tried_again(flags: tuple[str, ...], code: int, said: str) -> None:
    errors: list[Error] = []
    with VoiceService(*flags, "--input", RECORDING, on_error=errors.append) as service:
        with pytest.raises(ServiceFailed, match=said) as caught:
            list(service)
        with pytest.raises(ServiceFailed):
            service.wait_listening(5)
    assert (caught.value.exit_code, service.starts) == (code, 1)
    assert len(errors) == (code == 3)


@pytest.mark.slow
def test_asyncio_has_the_same() -> None:
    async def run() -> list[Event]:
        async with AsyncVoiceService("--embedded", "--input", RECORDING) as service:
            await service.wait_listening(in_time(20))
            return [event async for event in service]

    assert [event.text for event in asyncio.run(run()) if isinstance(event, Final)] == TEXTS


@pytest.mark.slow
def test_asyncio_raises_what_ended_the_service() -> None:
    async def run() -> None:
        async with AsyncVoiceService("--nonsense") as service:
            async for _ in service:
                pass

    with pytest.raises(ServiceFailed, match="unrecognized arguments: --nonsense"):
        asyncio.run(run())


# --- services that misbehave --------------------------------------------------------------------------------------------


def test_pauses_double_and_a_mute_is_said_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_SEC", 0.05)
    monkeypatch.setattr(client, "LONGEST_PAUSE_SEC", 0.2)
    count = tmp_path / "count"
    body = f"""
path = {str(count)!r}
number = len(open(path).read()) if os.path.exists(path) else 0
open(path, "a").write("x")
status("listening", device=str(number))
if number < 4:
    os.kill(os.getpid(), signal.SIGKILL) if number % 2 else sys.exit(70)
print(json.dumps({{"type": "voice.asr_text.final", "text": sys.stdin.readline().strip()}}), flush=True)
"""
    service = VoiceService(command=script(tmp_path, body))
    service.mute()
    started = time.monotonic()
    with service:
        finals = [event for event in service if isinstance(event, Final)]
    assert finals[0].text == '{"command": "mute"}'
    assert service.starts == 5
    assert time.monotonic() - started > 0.05 + 0.1 + 0.2 + 0.2


def test_without_restart_the_first_crash_is_the_end(tmp_path: Path) -> None:
    with (
        VoiceService(command=script(tmp_path, "sys.stderr.write('a bug\\n'); sys.exit(70)"), restart=False) as service,
        pytest.raises(ServiceFailed, match="exit code 70: a bug"),
    ):
        list(service)


def test_a_callback_that_raises_ends_the_iteration_with_its_reason(tmp_path: Path) -> None:
    def fail(error: Error) -> None:
        raise KeyError(error.error_code)

    body = "say('core.error_event', error_code='audio_silent', message='m', recoverable=True)\ntime.sleep(600)"
    service = VoiceService(command=script(tmp_path, body), on_error=fail)
    threading.excepthook, hook = lambda _: None, threading.excepthook  # it is printed, too
    try:
        with service, pytest.raises(ServiceFailed, match="audio_silent"):
            list(service)
    finally:
        threading.excepthook = hook
    assert service.pid is None


def test_one_that_listened_and_has_ended_is_not_waited_for(tmp_path: Path) -> None:
    with VoiceService(command=script(tmp_path, "status('listening')")) as service:
        assert len(list(service)) == 1
        service.wait_listening(60)


def test_a_stop_ends_the_wait_for_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_SEC", 60.0)
    service = VoiceService(command=script(tmp_path, "sys.exit(70)")).start()
    time.sleep(0.5)
    started = time.monotonic()
    service.stop()
    assert time.monotonic() - started < 5
    assert list(service) == []


def test_a_service_that_does_not_stop_is_ended(tmp_path: Path) -> None:
    service = VoiceService(command=script(tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN); status('listening'); time.sleep(600)"))
    service.start()
    service.wait_listening(in_time(10))
    service.stop(timeout_sec=0.2)
    assert service.pid is None


HOLDS_THE_LOG = """
import subprocess
subprocess.Popen(["sleep", "5"], stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
status("listening")
sys.exit(1)
"""


def test_what_has_ended_is_stopped_at_once_though_another_process_holds_its_log(tmp_path: Path) -> None:
    with VoiceService(command=script(tmp_path, HOLDS_THE_LOG)) as service:
        assert service.state == "loading"
        next(iter(service))
        started = time.monotonic()
        while service.state != "stopped":
            assert time.monotonic() - started < 1.5
            time.sleep(0.01)


def test_a_log_that_is_long_does_not_stop_the_service(tmp_path: Path) -> None:
    lines: list[str] = []
    body = "sys.stderr.write('x' * 99 + '\\n' * 1 + ('y' * 99 + '\\n') * 20_000)\nstatus('listening')\n"
    with VoiceService(command=script(tmp_path, body), on_log=lines.append) as service:
        assert [event.state for event in service if isinstance(event, Status)] == ["listening"]
    assert len(lines) == 20_001


def test_events_that_nobody_reads_do_not_keep_a_stop_from_ending(tmp_path: Path) -> None:
    service = VoiceService(command=script(tmp_path, "for _ in range(5_000): status('listening')")).start()
    service.wait_listening(in_time(10))
    started = time.monotonic()
    service.stop(5)
    assert time.monotonic() - started < in_time(5)


def test_no_answer_is_a_timeout(tmp_path: Path) -> None:
    with VoiceService(command=script(tmp_path, "sys.stdin.readline(); time.sleep(2)")) as service:
        with pytest.raises(TimeoutError, match="did not answer"):
            service.status(0.2)
        with pytest.raises(TimeoutError, match="its state is loading"):
            service.wait_listening(0.1)


def test_a_command_that_cannot_be_run_is_an_error_at_once() -> None:
    with pytest.raises(FileNotFoundError):
        VoiceService(command=["/nonexistent/voice-asr"]).start()


def test_a_copy_elsewhere_finds_the_installed_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_command()[1] == str(REPOSITORY / "asr_service_streaming.py")
    monkeypatch.setattr(client, "__file__", str(tmp_path / "client.py"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="not on the path"):
        default_command()
    (tmp_path / "voice-asr").write_text("#!/bin/sh\n")
    (tmp_path / "voice-asr").chmod(0o755)
    assert default_command("sliced") == [str(tmp_path / "voice-asr"), "run", "--mode", "sliced"]


# --- the example --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_assistant_answers_each_sentence(tmp_path: Path) -> None:
    assert len((EXAMPLES / "assistant.py").read_text(encoding="utf-8").splitlines()) <= 40
    quiet = tmp_path / "bin"
    quiet.mkdir()
    shutil.copy(shutil.which("true") or "/bin/true", quiet / "espeak-ng")
    command = [sys.executable, "-m", "examples.assistant", "--embedded", "--input", RECORDING, "--realtime"]
    variables = environment(PATH=f"{quiet}{os.pathsep}{os.environ['PATH']}", PYTHONIOENCODING="utf-8")
    result = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, encoding="utf-8", check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [line for text in TEXTS for line in (f"you: {text}", f"assistant: 你说的是：{text}")]
