"""A run from its command line: flags -> ``Settings`` -> a run -> exit code.

No state, main thread. Everything that is wrong with flags or settings is a line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import structlog

from voice import __version__
from voice.capture.microphone_list import find_microphones
from voice.capture.sources import MicrophoneInfo, table_of
from voice.config import Mode, Settings, load_settings
from voice.daemon import run_service
from voice.errors import EXIT_CONFIG, EXIT_INPUT, EXIT_OK, AudioDeviceUnavailable, ConfigInvalid, describe
from voice.flags import EXIT_CODES, SETTINGS, Parser, add_service_flags, settings_of
from voice.process.logs import configure_logs
from voice.process.start import Start

log = structlog.get_logger()

_DESCRIPTIONS: dict[Mode, str] = {
    "sliced": "Voice ASR service, sliced mode: each slice is decoded with its left context and without any model state.",
    "streaming": "Voice ASR service, streaming mode: one cache per utterance, partials with a provisional tail.",
}
_NO_DEVICES = (
    "no microphone was found: connect one; on Linux `arecord -l` must list it, or a sound server must run (`pactl list short sources`); "
    "a container needs --device /dev/snd or the sound server's socket in PULSE_SERVER; without a microphone use --input FILE or --input -"
)


def main(mode: Mode, start: Start, arguments: Sequence[str] | None = None) -> int:
    """Run the service in ``mode``; its exit code."""
    parser = Parser(description=_DESCRIPTIONS[mode], epilog=f"{SETTINGS}\n\n{EXIT_CODES}", argument_default=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=__version__)
    add_service_flags(parser)
    return run(parser.parse_args(arguments), mode, start)


def run(flags: argparse.Namespace, mode: Mode, start: Start) -> int:
    """Run the service with flags that were parsed; its exit code."""
    if flags.list_devices:
        return list_devices()
    try:
        settings = load_settings(settings_of(flags), flags.config)
    except ConfigInvalid as error:
        for problem in error.problems:
            sys.stderr.write(f"error: {problem}\n")
        return EXIT_CONFIG
    configure_logs(settings.log.format, settings.log.level)
    return run_service(_for_mode(settings, mode), mode, start)


def _for_mode(settings: Settings, mode: Mode) -> Settings:
    chosen = settings.for_mode(mode)
    if chosen.chunk_size != settings.chunk_size:
        log.info("chunk_sec_mapped", chunk_sec=settings.chunk_sec, chunk_size=list(chosen.chunk_size))
    return chosen


def list_devices(show: Callable[[Sequence[MicrophoneInfo]], str] = table_of) -> int:
    """Print the microphones, as ``show`` writes them; the exit code."""
    configure_logs("console", "warning")
    try:
        microphones = find_microphones()
    except AudioDeviceUnavailable as error:
        sys.stderr.write(f"error: {describe(error)}\n")
        return error.exit_code
    if not microphones:
        sys.stderr.write(f"error: {_NO_DEVICES}\n")
        return EXIT_INPUT
    print(show(microphones))  # noqa: T201 -- a listing for a person, not a run of the service
    return EXIT_OK
