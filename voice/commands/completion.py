"""``voice-asr completion``: a script that completes the flags of ``voice-asr`` in a shell."""

from __future__ import annotations

import argparse

import shtab

from voice.commands import main as command
from voice.errors import EXIT_OK


def main(flags: argparse.Namespace) -> int:
    """Print the script; 0."""
    parser, _ = command.build_parsers()
    parser.prog = command.PROGRAM  # however this was started: a shell completes the installed command
    print(shtab.complete(parser, shell=flags.shell))  # noqa: T201 -- it is what was asked for
    return EXIT_OK
