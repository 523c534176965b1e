"""A pytest plugin: only tests that need no model, no process and no clock, and the same inputs from hypothesis every time."""

from __future__ import annotations

import os
import signal
from typing import Any

import hypothesis
import pytest

MAX_CPU_SEC = 10
"""Of one test. A mutant that loops for ever ends here, however busy the machine is."""
TIMED_OUT = 36
"""The exit code that mutmut takes for a timeout."""
SLOW_FIXTURES = frozenset({"funasr_model", "engine", "paraformer", "silero", "offline_model", "microphone", "auto_model"})

hypothesis.settings.register_profile(
    "mutation", derandomize=True, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)
hypothesis.settings.load_profile("mutation")


def end(*_: Any) -> None:
    """End the process at once: the test may catch any exception."""
    os._exit(TIMED_OUT)


signal.signal(signal.SIGPROF, end)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Any:
    """Start the count for the next test."""
    signal.setitimer(signal.ITIMER_PROF, MAX_CPU_SEC)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the others."""
    slow = [item for item in items if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())) or item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]
