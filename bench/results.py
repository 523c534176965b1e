"""Where the parts of the benchmark leave their figures, and what they say of the machine. The standard library only.

A part writes one JSON file; ``report.py`` makes RESULTS.md of all of them. They stay until the part is run again.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
WORKSPACE = REPOSITORY / ".cache" / "bench"
RESULTS = WORKSPACE / "results"
PEERS_PYTHON = WORKSPACE / "peers" / "bin" / "python"
"""With what requirements.txt lists; FunASR and ours run in the service's own environment."""
_PACKAGES = ("torch", "funasr", "onnxruntime", "numpy")
_KB_PER_MB = 1000
_TICKS_PER_SEC = os.sysconf("SC_CLK_TCK")


class Part:
    """One part of the benchmark while it runs: when, where, and how busy the machine was."""

    def __init__(self, name: str, *, quick: bool) -> None:
        self._name = name
        self._started = time.monotonic()
        self._about: dict[str, Any] = {
            "date": now(),
            "machine": machine(),
            "load_before": os.getloadavg(),
            "quick": quick,
        }

    def save(self, directory: Path, figures: Any) -> None:
        """Write the figures."""
        about = {**self._about, "load_after": os.getloadavg(), "minutes": (time.monotonic() - self._started) / 60}
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self._name}.json"
        path.write_text(json.dumps({"about": about, "figures": figures}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(directory: Path, name: str) -> dict[str, Any] | None:
    """What a part wrote; None if it never ran."""
    path = directory / f"{name}.json"
    content: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return content


def now() -> str:
    """Date and time, in words."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def machine() -> str:
    """Processor, cores, Python and packages, in words."""
    cpu = platform.processor() or platform.machine()
    flags: set[str] = set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            cpu = value.strip()
        elif key.strip() == "flags":
            flags = set(value.split())
    vectors = "AVX-512 VNNI" if "avx512_vnni" in flags else "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    return f"{cpu} ({vectors}), {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"


def memory_mb(pid: int) -> dict[str, float]:
    """Resident memory of a process, now and at its peak."""
    values = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in ("VmRSS", "VmHWM"):
            values[key] = int(value.split()[0]) * 1024 / _KB_PER_MB**2
    return {"resident_mb": values["VmRSS"], "peak_mb": values["VmHWM"]}


def process_sec(pid: int) -> float:
    """Time that a process has spent computing, all of its threads."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / _TICKS_PER_SEC


def busy_sec() -> float:
    """Time that all cores together have spent computing, for whomever."""
    user, nice, system, _, _, irq, soft_irq, *_ = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:])
    return (user + nice + system + irq + soft_irq) / _TICKS_PER_SEC


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """5th, 50th and 95th percentile, linear between neighbours."""
    ordered = sorted(values)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return at(0.05), at(0.5), at(0.95)


def require_peers() -> None:
    """End with a line on how to make the peers' environment, where it is missing."""
    if not PEERS_PYTHON.is_file():
        sys.exit("the peers' environment is missing; run: make .cache/bench/peers/.installed")
