"""Logs go to stderr, in the form that was asked for, and never hold what was said."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from harness import REPOSITORY, environment

PROGRAM = """
import logging, sys, warnings
import structlog
from voice.process.logs import configure_logs

configure_logs(sys.argv[1], sys.argv[2])
log = structlog.get_logger("voice.test")
log.debug("debugged", number=1)
log.info("informed", number=2)

def fail(text):
    raise ValueError("planted")

try:
    fail(bytes.fromhex("e68993e5bc80e5aea2e58e85e79a84e781af").decode())
except ValueError:
    log.exception("failed")
logging.getLogger("a.library").warning("a library warns")
logging.getLogger("a.library").info("a library chatters")
warnings.warn("a warning", UserWarning)
"""


def run(log_format: str, level: str = "info") -> list[str]:
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, log_format, level], cwd=REPOSITORY, env=environment(PYTHONUTF8="1"), capture_output=True, check=True
    )
    assert process.stdout == b""
    stderr = process.stderr.decode("utf-8")
    assert "客" not in stderr
    assert "\\u5ba2" not in stderr
    return stderr.splitlines()


def test_json_logs_are_an_object_a_line() -> None:
    lines = [json.loads(line) for line in run("json")]
    assert [line["event"] for line in lines][:3] == ["informed", "failed", "a library warns"]
    assert lines[0]["number"] == 2
    assert lines[1]["exception"][0]["exc_type"] == "ValueError"
    assert all({"timestamp", "level"} <= set(line) for line in lines)
    assert any("a warning" in line["event"] for line in lines)


def test_console_logs_show_the_traceback_without_values() -> None:
    text = "\n".join(run("console"))
    assert "informed" in text
    assert "ValueError: planted" in text
    assert "a library chatters" not in text


@pytest.mark.parametrize(("level", "shown"), [("debug", True), ("info", False)])
def test_the_level_is_obeyed(level: str, shown: bool) -> None:
    assert any("debugged" in line for line in run("json", level)) == shown
