"""The flags of the service, as both entries and ``voice-asr run`` have them, and a parser that says what was meant.

Arguments -> ``argparse.Namespace`` -> nested settings. Imports nothing slow: ``--help`` answers at once. No state, main thread. A wrong
command line ends the process with one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import difflib
import functools
from pathlib import Path
from typing import Any, NoReturn

from voice.places import DATA

EXIT_CODES = """exit codes:
  0  stopped by a signal or a command, or end of the input
  1  some of several files failed (transcribe)
  2  bad command line or settings, or a package is missing
  3  a model could not be loaded
  4  the input could not be opened or read
  5  stdout can no longer be written
  70 a bug"""
SETTINGS = "config/default.yaml describes all settings; set them with --config FILE or as VOICE_ASR__SECTION__KEY."
_SOUND = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".wma", ".amr", ".aiff", ".aif", ".caf")
_VIDEO = (".mp4", ".m4v", ".mkv", ".mov", ".avi", ".webm", ".3gp", ".ts")
AUDIO_SUFFIXES = frozenset((*_SOUND, *_VIDEO))
"""Of recordings, with sound alone and with pictures."""
_NOT_SETTINGS = frozenset(("config", "list_devices", "mode", "given"))
_CLOSE = 0.6
_PROCESSORS = {"cpu": "cpu", "cuda": "cuda", "gpu": "cuda"}


class Parser(argparse.ArgumentParser):
    """Shows the defaults of settings, and adds to an error what was probably meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": _Formatter, **options})

    def error(self, message: str) -> NoReturn:
        """End with one line."""
        self.exit(2, f"error: {message}{self._hint(message)}; see {self.prog} --help\n")

    def _hint(self, message: str) -> str:
        """What the first word that was not understood may mean."""
        _, found, rest = message.partition("unrecognized arguments: ")
        word = rest.split()[0].partition("=")[0] if found and rest.split() else ""
        if word.startswith("-"):
            close = difflib.get_close_matches(word, self._option_string_actions, 1, _CLOSE)
            return f" (did you mean {close[0]}?)" if close else ""
        if word and "--input" in self._option_string_actions and names_audio(word):
            return f" (to read a file: --input {word})"
        return ""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help texts end with the default of their setting."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = _default_of(action.dest) if action.help and action.nargs != 0 else None
        if default is None or isinstance(default, dict | list):
            return action.help
        return f"{action.help} (default: {default})".replace("%", "%%")


def add_service_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a run; each names its setting, and is absent from the result unless it was given."""
    parser.add_argument("--list-devices", action="store_true", default=False, help="list the microphones and exit")
    parser.add_argument("--config", default=None, metavar="FILE", help="settings file (YAML)")
    _add_input_flags(parser)
    _add_process_flags(parser)
    add_model_flags(parser)
    add_decoding_flags(parser)
    _add_output_flags(parser)


def _add_input_flags(parser: argparse.ArgumentParser) -> None:
    audio = parser.add_argument_group("input")
    audio.add_argument("--input", dest="audio.input", metavar="mic|FILE|-", help="microphone, audio file, or raw s16le mono PCM on stdin")
    audio.add_argument(
        "--device", dest="audio.device", metavar="NAME|INDEX", type=_microphone, help="microphone: part of its name, or its index"
    )
    audio.add_argument(
        "--wait-for-device", dest="audio.wait_for_device", action=argparse.BooleanOptionalAction, help="wait for a missing microphone"
    )
    audio.add_argument("--channel", dest="audio.channel", metavar="mix|N", help="channel of the input, counted from 0")
    audio.add_argument("--sample-rate", dest="audio.sample_rate", metavar="HZ", help="rate of the PCM on stdin")
    audio.add_argument("--realtime", dest="audio.realtime", action="store_true", help="read a file at real-time pace")


def _add_process_flags(parser: argparse.ArgumentParser) -> None:
    process = parser.add_argument_group("process")
    process.add_argument("--control", dest="control", metavar="off|stdin", help="read commands from stdin, one JSON object a line")
    process.add_argument(
        "--exit-with-parent", dest="exit_with_parent", action=argparse.BooleanOptionalAction, help="exit when the parent process ends"
    )


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Which models, and where they run."""
    model = parser.add_argument_group("models")
    model.add_argument("--embedded", dest="embedded", action="store_true", help="use the small models that ship with the repository")
    model.add_argument("--model-dir", dest="model_dir", metavar="DIR", help="local directory of the recognition model")
    model.add_argument("--hub", dest="model.hub", metavar="ms|hf", help="where models are downloaded from")
    model.add_argument("--device-type", dest="model.device_type", metavar="auto|cpu|cuda", help="where models run")
    model.add_argument("--engine", dest="model.engine", metavar="auto|onnx|torch|URL", help="what runs models; wss://HOST:PORT: a server")
    model.add_argument("--engine-fallback", dest="engine.fallback", metavar="off|local", help="what recognises while a server is away")
    model.add_argument("--engine-ca", dest="engine.ca", metavar="FILE", help="certificates (PEM) that may sign the server's")
    model.add_argument("--engine-insecure", dest="engine.insecure", action="store_true", help="take any certificate of a server")
    model.add_argument("--vad-engine", dest="vad.engine", metavar="silero|fsmn", help="voice activity detection")
    model.add_argument("--second-pass", dest="final.second_pass", metavar="auto|off|same|NAME|DIR", help="decodes finals with full context")
    model.add_argument("--punctuation-model", dest="final.punctuation_model", metavar="NAME|DIR|off", help="adds punctuation to finals")
    model.add_argument("--emotion-model", dest="emotion.model", metavar="NAME|DIR", help="emotion2vec+ model")
    model.add_argument("--speakers", dest="speakers.enabled", action="store_true", help="label finals with their speakers: A, B, ...")
    model.add_argument("--speaker-model", dest="speakers.model", metavar="NAME|DIR", help="CAM++ model")
    model.add_argument("--no-emotion", dest="emotion.enabled", action="store_false", help="do not label finals with emotions")


def add_decoding_flags(parser: argparse.ArgumentParser) -> None:
    """How speech is decoded."""
    decoding = parser.add_argument_group("decoding")
    decoding.add_argument("--chunk-sec", dest="chunk_sec", metavar="SEC", help="sliced mode: audio per slice")
    decoding.add_argument("--chunk-size", dest="chunk_size", metavar="L,C,R", type=_numbers, help="streaming mode: frames of 60 ms")
    decoding.add_argument("--hotwords", dest="hotwords", metavar="FILE", help="words to prefer, one a line, each with an optional weight")
    decoding.add_argument("--itn", dest="final.itn", action="store_true", help="write the numbers of finals in digits")
    decoding.add_argument("--endpoint-silence-ms", dest="endpoint_silence_ms", metavar="MS", help="silence that ends an utterance")
    decoding.add_argument("--near-field", dest="vad.near_field", metavar="off|auto|DBFS", help="reject speech that is not near, or quieter")


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument("--status-events", dest="output.status_events", action="store_true", help="also write status and speech events")
    output.add_argument(
        "--wake-word", dest="wake.words", action="append", metavar="WORD", help="write only what follows this word; may be repeated"
    )
    output.add_argument("--record", dest="record.directory", metavar="DIR", help="record the audio of each utterance, for bug reports")
    output.add_argument("--speaker-db", dest="speakers.db", metavar="DIR", help="keep voices and their names from run to run")
    output.add_argument("--log-format", dest="log.format", metavar="console|json", help="form of the log on stderr")
    output.add_argument("--log-level", dest="log.level", metavar="LEVEL", help="debug, info, warning or error")


def settings_of(flags: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, nested like the settings."""
    nested: dict[str, Any] = {}
    for name, value in vars(flags).items():
        if name in _NOT_SETTINGS:
            continue
        *sections, key = name.split(".")
        target = nested
        for section in sections:
            target = target.setdefault(section, {})
        target[key] = value
    return nested


def _numbers(text: str) -> list[str]:
    return text.strip("[] ").split(",")


def _microphone(text: str) -> str:
    if text.lower() in _PROCESSORS:
        raise argparse.ArgumentTypeError(f"--device names a microphone; for where models run: --device-type {_PROCESSORS[text.lower()]}")
    return text


def names_audio(word: str) -> bool:
    """Whether a word ends like the name of a recording."""
    return Path(word).suffix.lower() in AUDIO_SUFFIXES


@functools.cache
def _defaults() -> dict[str, Any]:
    """config/default.yaml, read where help is shown only; empty where it cannot be."""
    try:
        import yaml  # noqa: PLC0415 -- a third of the time in which --help answers

        content = yaml.safe_load((DATA / "config" / "default.yaml").read_text(encoding="utf-8"))
    except (ImportError, OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _default_of(setting: str) -> object:
    value: object = _defaults()
    for key in setting.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value
