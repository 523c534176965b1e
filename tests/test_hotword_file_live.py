"""A hotword file that goes bad under a running service, and one that is bad from the start, seen from the parent process."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from harness import EXAMPLES, example, final_texts, of_type, resident_bytes, run_service, start_service

pytestmark = pytest.mark.slow

NAME = "air_conditioner"


def pcm(name: str) -> bytes:
    """The example and the silence that ends its last utterance, s16le."""
    samples = np.concatenate([example(name)[0], np.zeros(2 * 16_000, np.float32)])
    return (samples * 32_767).astype("<i2").tobytes()


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_the_service_goes_on_and_stops_when_its_hotword_file_becomes_something_else(tmp_path: Path, kind: str) -> None:
    path, log = tmp_path / "words.txt", tmp_path / "log"
    path.write_text("张三\n", encoding="utf-8")
    texts = example(NAME)[1]
    with log.open("wb") as stderr:
        service = start_service("streaming", "--input", "-", "--hotwords", str(path), stdin=subprocess.PIPE, stderr=stderr)
    stdin = service.process.stdin
    assert stdin is not None
    for replaced in (False, True):
        if replaced:
            memory = resident_bytes(service.process.pid)
            path.unlink()
            os.mkfifo(path) if kind == "fifo" else path.symlink_to("/dev/zero")
        stdin.write(pcm(NAME))
        for _ in texts:
            service.wait_for(lambda event: event["type"].endswith("final"))
    assert resident_bytes(service.process.pid) < memory + 100 * 2**20
    service.process.send_signal(signal.SIGTERM)
    events, code = service.finish()
    assert (final_texts(events), code) == ([*texts, *texts], 0)
    assert log.read_text(encoding="utf-8").count("hotwords_kept") == 1


def test_a_hotword_file_of_a_hundred_thousand_wrong_lines_is_one_short_event_and_exit_2(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("\n".join(["word 1000"] * 100_000), encoding="utf-8")
    result = run_service("streaming", "--input", str(EXAMPLES / f"{NAME}.wav"), "--hotwords", str(path))
    assert result.returncode == 2
    (error,) = of_type(result.events, "error_event")
    assert error["error_code"] == "config_invalid"
    assert len(error["message"]) <= 1_000
    assert error["message"].startswith("ConfigInvalid: hotwords: ")
    assert error["message"].endswith("... and 99,980 more")
    assert len(result.stderr) < 20_000
