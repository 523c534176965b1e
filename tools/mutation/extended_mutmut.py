"""mutmut with two more kinds of mutants: a statement that calls something is dropped, a condition is negated."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import libcst as cst
from mutmut.__main__ import cli
from mutmut.mutation import file_mutation
from mutmut.mutation.diff_apply import find_mutant, get_diff_for_mutant
from mutmut.stats import status_by_exit_code


def without_call(node: cst.SimpleStatementLine) -> Iterable[cst.SimpleStatementLine]:
    """``f(x)`` -> ``pass``."""
    if len(node.body) == 1 and isinstance(node.body[0], cst.Expr) and isinstance(node.body[0].value, cst.Call):
        yield node.with_changes(body=[cst.Pass()])


def negated(node: cst.If) -> Iterable[cst.If]:
    """``if a:`` -> ``if not (a):``; comparisons have mutants of their own."""
    if not isinstance(node.test, cst.Comparison | cst.UnaryOperation):
        test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        yield node.with_changes(test=cst.UnaryOperation(cst.Not(), test))


file_mutation.mutation_operators = [*file_mutation.mutation_operators, (cst.SimpleStatementLine, without_call), (cst.If, negated)]


def differences(names: list[str]) -> None:
    """Print the result and the changed lines of each of these mutants."""
    for name in names:
        mutant = find_mutant(name)
        print(f"{name}: {status_by_exit_code[mutant.exit_code_by_key[name]]}")
        lines = get_diff_for_mutant(name, path=mutant.path).splitlines()
        print(*(f"    {line}" for line in lines if line.startswith(("+", "-")) and line[1:3] not in ("++", "--")), sep="\n")


if __name__ == "__main__":
    if sys.argv[1] == "differences":
        differences(sys.argv[2:])
    else:
        cli()
