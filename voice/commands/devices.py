"""``voice-asr devices``: the microphones, by the names that people see in their sound settings."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence

from voice.capture.sources import MicrophoneInfo, handle_of, table_of
from voice.cli import list_devices


def main(flags: argparse.Namespace) -> int:
    """Print them; the exit code."""
    return list_devices(json_of if flags.json else table_of)


def json_of(microphones: Sequence[MicrophoneInfo]) -> str:
    """A list of objects; ``device`` is what ``--device`` takes."""
    described = [{"device": handle_of(each, microphones), **dataclasses.asdict(each)} for each in microphones]
    return json.dumps(described, ensure_ascii=False, indent=1)
