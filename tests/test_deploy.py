"""What `deploy/` promises: systemd hears of readiness, life and end; the files are well formed and name what exists."""

from __future__ import annotations

import argparse
import configparser
import plistlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from harness import EXAMPLES, REPOSITORY, in_time, start_service

from voice.config import load_settings
from voice.flags import Parser, add_service_flags, settings_of
from voice.process.service_manager import notify

DEPLOY = REPOSITORY / "deploy"


@pytest.fixture
def manager(tmp_path: Path) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    channel.bind(str(tmp_path / "notify"))
    channel.settimeout(60)
    return channel


def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for address in (None, "", "relative", str(tmp_path / "nobody"), "@nobody-listens-here"):
        if address is None:
            monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
        else:
            monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify("READY=1")


def test_an_abstract_socket_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind("\0voice-asr-test")
        channel.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@voice-asr-test")
        notify("WATCHDOG=1")
        assert channel.recv(100) == b"WATCHDOG=1"


@pytest.mark.slow
def test_systemd_hears_that_the_service_is_ready_alive_and_stopping(manager: socket.socket, tmp_path: Path) -> None:
    wav = str(EXAMPLES / "temperature.wav")
    service = start_service("streaming", "--input", wav, "--realtime", "--status-events", NOTIFY_SOCKET=str(tmp_path / "notify"))
    events, code = service.finish(timeout_sec=60)
    assert code == 0
    assert any(event.get("state") == "ready" for event in events)
    manager.setblocking(False)
    heard = []
    while True:
        try:
            heard.append(manager.recv(100))
        except BlockingIOError:
            break
    manager.close()
    assert heard[0] == b"READY=1"
    assert heard[-1] == b"STOPPING=1"
    assert 3 <= heard.count(b"WATCHDOG=1") <= 6, "once a second in 3.8 s"


@pytest.mark.slow
def test_systemd_waits_as_long_as_the_service_waits_for_a_microphone(manager: socket.socket, tmp_path: Path) -> None:
    variables = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "PULSE_SERVER": f"unix:{tmp_path}/none"}
    service = start_service("streaming", "--device", "no such microphone", **variables)
    manager.settimeout(in_time(20))
    assert [manager.recv(100) for _ in range(3)] == [b"EXTEND_TIMEOUT_USEC=120000000"] * 3
    service.process.terminate()
    _, code = service.finish()
    assert code == 0
    manager.close()


def options(arguments: list[str]) -> list[str]:
    return [argument for argument in arguments if argument.startswith("--")]


def test_the_unit_starts_an_entry_with_flags_that_exist() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(DEPLOY / "voice-asr.service", encoding="utf-8")
    service = unit["Service"]
    assert (service["Type"], service["Restart"]) == ("notify", "on-failure")
    _, entry, *arguments = service["ExecStart"].split()
    assert (REPOSITORY / entry).exists()
    check_flags(entry, arguments)


def test_the_agent_starts_an_entry_with_flags_that_exist() -> None:
    agent = plistlib.loads((DEPLOY / "com.example.voice-asr.plist").read_bytes())
    _, entry, *arguments = agent["ProgramArguments"]
    assert (REPOSITORY / Path(entry).name).exists()
    assert agent["KeepAlive"] == {"SuccessfulExit": False}
    check_flags(Path(entry).name, arguments)


def check_flags(entry: str, arguments: list[str]) -> None:
    usage = subprocess.run(
        [sys.executable, str(REPOSITORY / entry), "--help"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert all(option in usage for option in options(arguments))


def test_the_compose_file_starts_a_server_and_three_daemons_with_flags_that_exist() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    server = compose["services"].pop("asr-server")
    assert "ports" not in server, "plain speech stays within the network of compose"
    assert server["volumes"][0].split(":")[0] in compose["volumes"]
    assert len(compose["services"]) == 3
    devices = set()
    for daemon in compose["services"].values():
        interpreter, entry, *flags = daemon["command"]
        assert (interpreter, (REPOSITORY / entry).is_file()) == ("python", True)
        parser = Parser()
        add_service_flags(parser)
        given = {name: value for name, value in vars(parser.parse_args(flags)).items() if value is not None}
        settings = load_settings(settings_of(argparse.Namespace(**given)), environment=daemon["environment"])
        assert settings.server == "ws://asr-server:10095"
        assert not settings.recognizes_locally
        assert "depends_on" in daemon
        devices.add(settings.audio.device)
    assert len(devices) == 3
