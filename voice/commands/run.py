"""``voice-asr run``: the service, as the two entries start it."""

from __future__ import annotations

import argparse

from voice import cli
from voice.process.start import Start


def main(flags: argparse.Namespace, start: Start) -> int:
    """Run until the input ends or somebody stops it; the exit code."""
    return cli.run(flags, flags.mode, start)
