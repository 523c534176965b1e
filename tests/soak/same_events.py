"""The events of this checkout against those of another one: `python tests/soak/same_events.py OTHER_CHECKOUT [--hours 2]`.

Both run the entry of each mode, as a parent would, on every example and on the first hours of the soak's audio (``day.py``: commands with
1.2 to 20 s of silence between them, 48 kHz). Lines are compared key by key; ``ts`` and ``trace_id`` differ in each run, and ``--ignore``
names keys that were added since (``raw_text`` of partials). Both checkouts run on the Python that runs this script. The queue's rule that a
newer partial takes the place of one that waits is switched off: which partials wait is chance. Exit 1 where a line differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import soundfile
from day import INPUT_RATE_HZ, REPOSITORY, microphone
from harness import ENTRIES, EXAMPLES, environment

EVERY_PARTIAL = """
import runpy, sys
sys.path.insert(0, {checkout!r})
from voice.output.event_queue import EventQueue
EventQueue._replace = lambda self, newer: False
sys.argv = {argv!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def main() -> None:
    """Compare, print a line for each input and mode."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="checkout of the other commit")
    parser.add_argument("--hours", type=float, default=2.0, help="of the soak's audio")
    parser.add_argument("--ignore", nargs="*", default=["voice.asr_text.partial:raw_text"], metavar="TYPE:KEY")
    arguments = parser.parse_args()
    ignored = {tuple(each.rsplit(":", 1)) for each in arguments.ignore}
    differ = 0
    with tempfile.TemporaryDirectory() as directory:
        day = Path(directory) / "day.flac"
        write_day(day, arguments.hours)
        for mode in ENTRIES:
            for path in [*sorted(EXAMPLES.glob("*.wav")), day]:
                ours, theirs = (events(checkout, mode, path, ignored) for checkout in (REPOSITORY, arguments.other))
                different = [index for index, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]]
                differ += len(different) + abs(len(ours) - len(theirs))
                print(f"{mode}, {path.name}: {len(ours)} and {len(theirs)} lines, {len(different)} differ", flush=True)
                for index in different[:3]:
                    print("  ours  ", ours[index], "\n  theirs", theirs[index])
    sys.exit(differ > 0)


def write_day(path: Path, hours: float) -> None:
    """The first hours of the soak's audio."""
    with soundfile.SoundFile(path, "w", INPUT_RATE_HZ, 1, "PCM_16") as file:
        for _, block, _ in microphone(hours * 3_600):
            file.write(block.samples)


def events(checkout: Path, mode: str, path: Path, ignored: set[tuple[str, ...]]) -> list[dict[str, Any]]:
    """What a checkout's entry writes, less what differs from run to run."""
    argv = [str(checkout / ENTRIES[mode]), "--embedded", "--input", str(path), "--log-level", "error"]
    command = [sys.executable, "-c", EVERY_PARTIAL.format(checkout=str(checkout), argv=argv)]
    output = subprocess.run(command, cwd="/", env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout
    lines = [json.loads(line) for line in output.splitlines()]
    return [
        {key: value for key, value in line.items() if key not in ("ts", "trace_id", "captured_ts") and (line["type"], key) not in ignored}
        for line in lines
    ]


if __name__ == "__main__":
    main()
