"""Mutation testing of the modules that decide: changes them one small step at a time and counts the changes that no test notices.

mutmut makes the mutants and runs the tests that reach each one, every time in a process of its own. This adds what mutmut 3 leaves out:
statements that are dropped, conditions that are negated, bodies of properties, and, planted by hand, constants and what the review of this
project once found untested (``planted.py``). Only tests without a model, a process or a clock take part (``fast_tests.py``).

Run: ``make mutation``, or ``tools/mutation/run.py losses search`` for some modules; ``--again`` keeps what was killed before and tries the
others with the tests as they stand now. Exit 1 when more than a tenth of the mutants of one module survive, or a planted one.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
SCRATCH = ROOT / ".cache" / "mutation"
MODULES = {
    "losses": "voice/losses.py",
    "endpointer": "voice/endpointing/endpointer.py",
    "search": "voice/recognition/search.py",
    "utterance": "voice/utterance.py",
    "pipeline": "voice/pipeline.py",
    "sliced": "voice/recognition/sliced.py",
    "streaming": "voice/recognition/streaming.py",
}
TESTS = ("losses", "endpointer", "intake", "hotwords", "search", "utterance", "pipeline", "sliced", "streaming")
PYTEST = ["-p", "fast_tests", "-p", "no:cacheprovider", "-p", "no:xdist"]
TIMED_OUT = 36
MAX_SURVIVING = 0.1
MAX_MEMORY_BYTES = 8_000_000_000
"""Of one test process: a mutant that appends for ever ends there."""
CONFIG = """
[tool.mutmut]
source_paths = ["voice"]
only_mutate = {modules}
also_copy = ["config"]
do_not_mutate_patterns = ["^ *log\\\\."]
pytest_add_cli_args = {pytest}
pytest_add_cli_args_test_selection = {tests}
timeout_constant = 1.0
timeout_multiplier = 15.0
use_git_change_detection = false
"""
EXIT_CODES = {0: "survived", 1: "killed", 3: "killed", 33: "no tests", 5: "no tests", 36: "timeout", 24: "timeout", -24: "timeout"}


def main() -> int:
    """Run the mutants of some modules, then the planted ones; the exit code."""
    parser = argparse.ArgumentParser(description="Mutation testing of the modules that decide.")
    parser.add_argument("modules", nargs="*", choices=[*MODULES, []], help="default: all")
    parser.add_argument("--again", action="store_true", help="try only those that survived the last run")
    parser.add_argument("--planted", action="store_true", help="only the mutants planted by hand")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    modules = arguments.modules or list(MODULES)
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    if arguments.planted:
        return int(run_planted(modules, environment))
    if not arguments.again:
        shutil.rmtree(SCRATCH, ignore_errors=True)
    copy_project(SCRATCH / "tree", modules, again=arguments.again)
    names = left_over(SCRATCH / "tree", modules) if arguments.again else []
    if names or not arguments.again:
        command = [sys.executable, str(HERE / "extended_mutmut.py"), "run", "--max-children", str(arguments.jobs), *names]
        subprocess.run(command, cwd=SCRATCH / "tree", env=environment, check=True)
    failed = report(SCRATCH / "tree", modules)
    failed |= run_planted(modules, environment)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")
    return int(failed)


def copy_project(tree: Path, modules: list[str], *, again: bool) -> None:
    """The sources with properties that can be mutated, the tests and the settings."""
    tests = [f"tests/test_{name}.py" for name in TESTS if (ROOT / f"tests/test_{name}.py").exists()]
    if not again:
        shutil.copytree(ROOT / "voice", tree / "voice", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "config", tree / "config")
        for path in MODULES.values():
            source = (ROOT / path).read_text(encoding="utf-8")
            (tree / path).write_text(plain_properties(source), encoding="utf-8")
    (tree / "tests").mkdir(exist_ok=True)
    (tree / "examples").mkdir(exist_ok=True)
    for path in (ROOT / "tests").glob("*.py"):
        shutil.copy2(path, tree / "tests")
    config = CONFIG.format(modules=[MODULES[name] for name in modules], tests=tests, pytest=PYTEST)
    (tree / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8") + config, encoding="utf-8")


def plain_properties(source: str) -> str:
    """Properties as ``property(method)``: mutmut leaves decorated functions alone."""
    lines = source.splitlines()
    found = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and [ast.unparse(each) for each in node.decorator_list] == ["property"]
    ]
    for node in sorted(found, key=lambda node: -node.lineno):
        indent = " " * node.col_offset
        lines.insert(node.end_lineno or node.lineno, f"{indent}{node.name} = property(get_{node.name})")
        lines[node.lineno - 1] = lines[node.lineno - 1].replace(f"def {node.name}(", f"def get_{node.name}(")
        del lines[node.decorator_list[0].lineno - 1]
    return "\n".join(lines) + "\n"


def results(tree: Path, module: str) -> dict[str, str]:
    """What became of each mutant."""
    meta = tree / "mutants" / f"{MODULES[module]}.meta"
    codes = json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]
    return {name: EXIT_CODES.get(code, f"exit code {code}") for name, code in codes.items()}


def left_over(tree: Path, modules: list[str]) -> list[str]:
    """Names of the mutants that no test noticed."""
    return [name for module in modules for name, result in results(tree, module).items() if result in ("survived", "no tests")]


def report(tree: Path, modules: list[str]) -> bool:
    """Print the figures, write the survivors to a file; whether there are too many."""
    failed = False
    total: Counter[str] = Counter()
    print(f"\n{'module':12}{'mutants':>9}{'killed':>9}{'timeout':>9}{'survived':>9}")
    with (SCRATCH / "survivors.txt").open("w", encoding="utf-8") as file:
        for module in modules:
            found = results(tree, module)
            counts = Counter(found.values())
            survived = counts["survived"] + counts["no tests"]
            others = {result: count for result, count in counts.items() if result not in EXIT_CODES.values()}
            share = survived / len(found)
            failed |= share > MAX_SURVIVING or bool(others)
            print(f"{module:12}{len(found):9}{counts['killed']:9}{counts['timeout']:9}{survived:9}  {share:.1%}", others or "")
            total += Counter(mutants=len(found), killed=counts["killed"], timeout=counts["timeout"], survived=survived)
            file.write(differences(tree, [name for name, result in found.items() if result != "killed"]))
    print(f"{'all':12}" + "".join(f"{total[key]:9}" for key in ("mutants", "killed", "timeout", "survived")), end="  ")
    print(f"{total['survived'] / total['mutants']:.1%}")
    print(f"survivors: {SCRATCH / 'survivors.txt'}")
    return failed


def differences(tree: Path, names: list[str]) -> str:
    """The lines that each mutant changed."""
    command = [sys.executable, str(HERE / "extended_mutmut.py"), "differences", *names]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True).stdout


def run_planted(modules: list[str], environment: dict[str, str]) -> bool:
    """Plant each mutant of ``planted.py`` in a copy and run the tests named for it; whether one survived."""
    from planted import PLANTED

    tree = SCRATCH / "planted"
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("voice", "tests", "config", "examples"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", tree)
    survivors = 0
    paths = [MODULES[name] for name in modules]
    for mutant in PLANTED:
        if mutant.path not in paths and mutant.path in MODULES.values():
            continue
        path = tree / mutant.path
        source = path.read_text(encoding="utf-8")
        path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", *PYTEST, *(f"tests/test_{name}" for name in mutant.tests)]
        ran = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=300, check=False)
        path.write_text(source, encoding="utf-8")
        if source.count(mutant.old) != 1:
            outcome = f"CANNOT BE PLANTED: what it replaces stands {source.count(mutant.old)} times in {mutant.path}"
        elif ran.returncode == TIMED_OUT or (ran.returncode == 1 and "failed" in ran.stdout.splitlines()[-1]):
            outcome = "killed"
        else:
            outcome = f"SURVIVED (exit code {ran.returncode})"
        survivors += outcome != "killed"
        print(f"planted: {mutant.name}: {outcome}", flush=True)
    return survivors > 0


if __name__ == "__main__":
    sys.exit(main())
