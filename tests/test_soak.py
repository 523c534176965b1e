"""A short form of the day in tests/soak: 40 minutes of audio."""

from __future__ import annotations

import subprocess
import sys

import pytest
from harness import REPOSITORY, environment


@pytest.mark.slow
def test_forty_minutes_lose_nothing_and_leave_nothing_behind() -> None:
    """A process of its own, so that memory is the pipeline's. The day checks itself; make soak runs all of it."""
    result = subprocess.run(
        [sys.executable, str(REPOSITORY / "tests" / "soak" / "day.py"), "--hours", "0.67", "--real-share", "0.1"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2_000:]
    assert " 0 ms lost" in result.stdout
