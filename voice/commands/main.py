"""The command ``voice-asr``: which subcommand, with which flags.

Arguments -> ``argparse.Namespace`` -> ``main`` of the module that is named like the subcommand -> exit code. Imports nothing slow before
the subcommand is known. No state, main thread.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from voice import __version__
from voice.flags import EXIT_CODES, Parser, add_decoding_flags, add_model_flags, add_service_flags, names_audio
from voice.prerequisites import PACKAGES, TERMINAL_PACKAGES, missing
from voice.process.start import STDOUT, begin, open_closed

EXIT_USAGE, EXIT_OUTPUT = 2, 5
PROGRAM = "voice-asr"
COMMANDS = {
    "run": "recognise a microphone, a file or stdin; events on stdout",
    "listen": "see what the service hears: live, from a pipe or of a recording",
    "transcribe": "recognise files and folders; text, subtitles, tables",
    "export": "text, subtitles and tables of recorded events",
    "report": "a page about recorded events: timeline, text, confidence, pauses, latency, errors",
    "devices": "the microphones, and what --device takes for each",
    "models": "list, fetch, bundle, verify, convert and remove models",
    "doctor": "check packages, sound, microphone, models and speed; a remedy for what is wrong",
    "completion": "print what completes the flags of voice-asr in a shell",
}
DESCRIPTION = """Mandarin speech recognition on this machine: live text of a microphone,
and files to text and subtitles.

With --embedded it works at once and offline, but those models are small and
understand people in part. Without --embedded the first start downloads models
that understand them well, about 2.3 GB."""
EXAMPLES = """examples:
  voice-asr listen --embedded
  voice-asr run --embedded --input examples/two_utterances.wav
  voice-asr transcribe recordings/ -f txt,srt -o texts/
  voice-asr export asr_output.jsonl -f srt"""
FORMATS = ("txt", "srt", "vtt", "jsonl", "csv")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    start = begin() if given[:1] == ["run"] else None  # the service takes signals and closed descriptors over before all else
    parser, subcommands = build_parsers()
    if given and not given[0].startswith("-") and given[0] not in COMMANDS:
        parser.exit(EXIT_USAGE, f"error: {given[0]!r} is no command{_meant(given[0])}; see {parser.prog} --help\n")
    if not given:
        parser.print_help()
        return EXIT_USAGE
    if given[0] not in COMMANDS:
        parser.parse_args(given)  # --help, --version, or an error: each ends the process
    flags = subcommands[given[0]].parse_args(given[1:])  # its own parser says best what it did not understand
    flags.given = given[1:]
    if problem := missing((*PACKAGES, *TERMINAL_PACKAGES)):
        parser.exit(EXIT_USAGE, f"error: {problem}\n")
    module = importlib.import_module(f"voice.commands.{given[0]}")
    if start is None:
        return _for_people(lambda: module.main(flags))
    code: int = module.main(flags, start)
    return code


def _for_people(command: Callable[[], int]) -> int:
    """Run a command that writes texts and not events: in UTF-8 whatever the locale; a stdout that takes no more is one line and exit 5."""
    closed = open_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        if STDOUT in closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        code = command()
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # what is left in its buffer is of no use
        what = f"{error.filename} cannot be used" if error.filename else "stdout cannot be written"
        sys.stderr.write(f"error: {what} ({error.strerror})\n")
        return EXIT_OUTPUT
    return code


def _meant(word: str) -> str:
    close = difflib.get_close_matches(word, COMMANDS, 1)
    if close:
        return f" (did you mean {close[0]}?)"
    return f" (to recognise files: voice-asr transcribe {word})" if names_audio(word) or Path(word).exists() else ""


def build_parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Of the command, and of its subcommands by name."""
    parser = Parser(
        prog=PROGRAM if Path(sys.argv[0]).name != "__main__.py" else "python -m voice",
        description=DESCRIPTION,
        epilog=f"{EXAMPLES}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # it shows no settings, whose defaults take time
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)

    def add(name: str, example: str) -> argparse.ArgumentParser:
        summary = COMMANDS[name]
        return commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example: {example}",
            argument_default=argparse.SUPPRESS,
        )

    run = add("run", "voice-asr run --device jabra --status-events | my-assistant")
    _add_mode(run)
    add_service_flags(run)
    listen = add("listen", "voice-asr listen --embedded, or: voice-asr listen asr_output.jsonl")
    listen.add_argument(
        "source", nargs="?", default=None, metavar="FILE.jsonl|-", help="recorded events, or stdin (default: start a service)"
    )
    listen.add_argument("-v", "--verbose", action="store_true", default=False, help="show the log, too")
    _add_mode(listen)
    add_service_flags(listen)
    _add_transcribe(add("transcribe", "voice-asr transcribe talks/ --recursive -f srt,txt -o subtitles/"))
    _add_export(add("export", "voice-asr export asr_output.jsonl -f srt -o subtitles/"))
    report = add("report", "voice-asr report asr_output.jsonl -o report.html")
    report.add_argument("recording", type=Path, metavar="FILE.jsonl", help="what the service wrote to stdout")
    report.add_argument(
        "-o", "--output", type=Path, default=None, metavar="FILE.html", help="the page (default: beside the recording; -: stdout)"
    )
    report.add_argument("--force", action="store_true", default=False, help="write a page that is there already anew")
    devices = add("devices", "voice-asr devices --json")
    devices.add_argument("--json", action="store_true", default=False, help="as a list of JSON objects")
    models = add("models", "voice-asr models pull --to /media/usb/voice-models")
    models.add_argument("action", choices=("list", "path", "pull", "verify", "convert", "rm"), help="what to do")
    models.add_argument("names", nargs="*", default=[], metavar="NAME|DIR", help="models (default: those of a run)")
    models.add_argument("--hub", choices=("ms", "hf"), default="ms", help="where they are downloaded from (default: ms)")
    models.add_argument("--to", type=Path, default=None, metavar="DIR", help="pull: a copy there, with sums and a settings file")
    models.add_argument("--json", action="store_true", default=False, help="list: as a list of JSON objects")
    doctor = add("doctor", "voice-asr doctor --device jabra")
    doctor.add_argument("--json", action="store_true", default=False, help="as a list of JSON objects")
    doctor.add_argument("--no-microphone", action="store_true", default=False, help="do not listen to the microphone")
    add_service_flags(doctor)
    completion = add("completion", 'eval "$(voice-asr completion bash)"')
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="which shell")
    return parser, dict(commands.choices)


def _add_mode(parser: argparse.ArgumentParser) -> None:
    help_text = "how audio is cut for the recogniser (default: streaming)"
    parser.add_argument("--mode", choices=("streaming", "sliced"), default="streaming", help=help_text)


def _add_formats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f",
        "--formats",
        type=_formats,
        default=("txt",),
        metavar="FORMAT,…",
        help=f"any of {', '.join(FORMATS)} (default: txt)",
    )
    parser.add_argument("-o", "--output", type=Path, default=None, metavar="DIR", help="where the results go (default: beside each file)")
    parser.add_argument("--force", action="store_true", default=False, help="write results that are there already anew")
    parser.add_argument(
        "--emotion-labels", action="store_true", default=False, help="begin each line of text and subtitles with its emotion, [happy]"
    )


def _add_transcribe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="audio and video files, and folders of them")
    _add_formats(parser)
    parser.add_argument("--recursive", action="store_true", default=False, help="the folders in folders, too")
    parser.add_argument("--speed", action="store_true", default=False, help="say at the end how fast it was")
    parser.add_argument("--jobs", type=_positive, default=None, metavar="N", help="files at once (default: one for each core)")
    _add_mode(parser)
    parser.add_argument("--config", default=None, metavar="FILE", help="settings file (YAML)")
    add_model_flags(parser)
    add_decoding_flags(parser)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE.jsonl", help="what the service wrote to stdout")
    _add_formats(parser)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of files above 0")
    return int(text)


def _formats(text: str) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(part.strip().lower().lstrip(".") for part in text.split(",") if part.strip()))
    unknown = [each for each in chosen if each not in FORMATS]
    if unknown or not chosen:
        raise argparse.ArgumentTypeError(f"{text!r}: {', '.join(unknown) or 'nothing'} is none of {', '.join(FORMATS)}")
    return chosen
