"""The targets of test_fuzz.py, their inputs chosen by what code they reach: `python tests/fuzz_by_coverage.py [--seconds 10] [TARGET ...]`.

Atheris (libFuzzer) watches the branches of ``voice`` and of the Python libraries that parse for it, and mutates the bytes that hypothesis
draws an input from. `make fuzz` installs it and runs this after the random inputs. Each target has a process of its own, as libFuzzer
never returns from one.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

WATCHED = ["voice", "yaml", "pydantic_settings"]
TESTS = Path(__file__).resolve().parent


def main() -> int:
    """Run every target, say how many inputs it was given; the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=10, help="for each target")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*")
    arguments = parser.parse_args()
    if arguments.run:
        fuzz_for_ever(arguments.run, arguments.seconds)
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
    from test_fuzz import TARGETS

    failed = total = 0
    for name in arguments.targets or TARGETS:
        command = [sys.executable, __file__, "--run", name, "--seconds", str(arguments.seconds)]
        with tempfile.TemporaryDirectory() as directory:  # libFuzzer leaves the input that crashed where it stands
            result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, cwd=directory)
        inputs = int((re.findall(r"^inputs: (\d+)$", result.stderr, re.MULTILINE) or ["0"])[-1])
        reached = re.findall(r"cov: (\d+)", result.stderr)
        total += inputs
        failed += result.returncode != 0 or not inputs
        print(
            f"{'ok  ' if not result.returncode and inputs else 'FAIL'} {name}: {inputs:,} inputs, {reached[-1] if reached else 0} branches"
        )
        if result.returncode:
            print(result.stdout[-2_000:] + result.stderr[-2_000:])
    print(f"fuzz by coverage: {total:,} inputs, {len(arguments.targets or TARGETS)} targets, {failed} failed")
    return failed


def fuzz_for_ever(name: str, seconds: int) -> None:
    """Hand the process to libFuzzer."""
    import atheris

    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
    with atheris.instrument_imports(include=WATCHED):
        from test_fuzz import TARGETS
    from hypothesis import HealthCheck, given, settings

    check, strategy = TARGETS[name]
    inputs = itertools.count(1)
    with tempfile.TemporaryDirectory() as directory:

        @settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(strategy)
        def one(drawn: tuple[object, ...]) -> None:
            check(Path(directory), *drawn)
            count = next(inputs)  # of the bytes that hypothesis can draw an input from
            if count % 10 == 0:
                os.write(2, b"\ninputs: %d\n" % count)  # libFuzzer ends the process without a word to Python

        atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-max_len=8192"], one.hypothesis.fuzz_one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
