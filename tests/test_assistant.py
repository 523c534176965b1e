"""The assistant of ``examples/assistant.py`` on a microphone: it survives a service that is killed and a microphone that is replugged, and
it does not hear itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import EXAMPLES, REPOSITORY, environment, example, in_time
from virtual_microphone import NEEDS_PULSEAUDIO, VirtualMicrophone

pytestmark = [pytest.mark.slow, NEEDS_PULSEAUDIO]

SAID, OWN = example("air_conditioner")[1][0], example("temperature")[1][0]
SPEAK = """#!/bin/sh
cat > /dev/null
paplay --device=speaker "{wav}"
echo spoken >> "{spoken}"
"""
"""In the place of espeak-ng: the assistant's voice comes out of a loudspeaker beside the microphone."""


class Assistant:
    """The process, what it printed, and the microphone that it hears."""

    def __init__(self, directory: Path) -> None:
        self.microphone = VirtualMicrophone(directory)
        self.microphone.start()
        self.spoken = directory / "spoken"
        programs = directory / "bin"
        programs.mkdir()
        (programs / "espeak-ng").write_text(SPEAK.format(wav=EXAMPLES / "temperature.wav", spoken=self.spoken))
        (programs / "espeak-ng").chmod(0o755)
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "examples.assistant", "--embedded", "--input", "mic"],
            cwd=REPOSITORY,
            env=environment(PATH=path, PYTHONIOENCODING="utf-8", **self.microphone.variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        self.lines: list[str] = []
        self.problems: list[str] = []
        pipes = ((self.process.stdout, self.lines), (self.process.stderr, self.problems))
        self._readers = [
            threading.Thread(target=lambda pipe=pipe, lines=lines: lines.extend(map(str.strip, pipe)), daemon=True) for pipe, lines in pipes
        ]
        for reader in self._readers:
            reader.start()

    def wait(self, what: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None, self.problems
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def service(self) -> int:
        """The process id of the running service."""
        found: list[int] = []

        def look() -> bool:
            threads = Path(f"/proc/{self.process.pid}/task").glob("*/children")
            children = [int(each) for path in threads for each in path.read_text().split()]
            found[:] = [each for each in children if b"asr_service" in Path(f"/proc/{each}/cmdline").read_bytes()]
            return bool(found)

        assert self.wait(look, in_time(10))
        return found[0]

    def converse(self) -> None:
        """Speak until it answers, and until its answer was spoken; a sentence that nobody listened to yet is said again."""
        heard, answered = self.lines.count(f"you: {SAID}。"), self.answers
        for _ in range(10):
            self.microphone.play(EXAMPLES / "air_conditioner.wav")
            if self.wait(lambda: self.lines.count(f"you: {SAID}。") > heard, 3):
                break
        assert self.wait(lambda: self.answers > answered, in_time(10)), (self.lines, self.problems)
        time.sleep(1.5)  # what it said into the microphone would be heard by now

    @property
    def answers(self) -> int:
        return self.spoken.read_text().count("spoken") if self.spoken.exists() else 0

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for reader in self._readers:
            reader.join(10)
        self.process.communicate()
        self.microphone.stop()


@pytest.fixture
def assistant(tmp_path: Path) -> Iterator[Assistant]:
    running = Assistant(tmp_path)
    yield running
    running.end()


def test_it_goes_on_after_a_kill_and_a_replugged_microphone_and_never_hears_itself(assistant: Assistant) -> None:
    assistant.converse()
    killed = assistant.service()
    speaking = assistant.microphone.begin_to_play(EXAMPLES / "two_utterances.wav")
    time.sleep(2)
    os.kill(killed, signal.SIGKILL)
    speaking.terminate()
    assert assistant.wait(lambda: "assistant: 对不起，请再说一遍。" in assistant.lines, in_time(10)), assistant.lines
    assistant.converse()
    assert assistant.service() != killed
    assistant.microphone.unplug()
    time.sleep(in_time(2))
    assert any(each.startswith("problem: AudioDeviceLost") for each in assistant.problems), assistant.problems
    assistant.microphone.plug_in()
    assistant.converse()
    assert {each for each in assistant.lines if each.startswith("you:")} == {f"you: {SAID}。"}
    assert assistant.answers >= 3
    assert f"you: {OWN}" not in "\n".join(assistant.lines)
