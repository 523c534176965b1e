"""The command line of both entries: flags -> ``Settings`` -> a run -> exit code.

No state, main thread. Everything that is wrong with flags or settings is a line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import structlog

from voice import __version__
from voice.capture.devices import list_devices
from voice.capture.portaudio import import_sounddevice
from voice.config import Mode, Settings, load_settings
from voice.daemon import run_service
from voice.errors import EXIT_CONFIG, EXIT_INPUT, EXIT_OK, AudioDeviceUnavailable, ConfigInvalid, describe
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
    flags = _parser(mode).parse_args(arguments)
    if flags.list_devices:
        return _list_devices()
    try:
        settings = load_settings(_settings_of(flags), flags.config)
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


def _list_devices() -> int:
    try:
        sounddevice = import_sounddevice()
        lines = list_devices(sounddevice.query_devices(), sounddevice.default.device[0])
    except AudioDeviceUnavailable as error:
        sys.stderr.write(f"error: {describe(error)}\n")
        return error.exit_code
    if not lines:
        sys.stderr.write(f"error: {_NO_DEVICES}\n")
        return EXIT_INPUT
    for line in lines:
        print(line)  # noqa: T201 -- a listing for a person, not a run of the service
    return EXIT_OK


def _parser(mode: Mode) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=_DESCRIPTIONS[mode],
        epilog="config/default.yaml describes all settings; set them with --config FILE or as VOICE_ASR__SECTION__KEY.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--list-devices", action="store_true", default=False, help="list the microphones and exit")
    parser.add_argument("--config", default=None, metavar="FILE", help="settings file (YAML)")

    audio = parser.add_argument_group("input")
    audio.add_argument("--input", dest="audio.input", metavar="mic|FILE|-", help="microphone, audio file, or raw s16le mono PCM on stdin")
    audio.add_argument("--device", dest="audio.device", metavar="NAME|INDEX", help="microphone: part of its name, or its index")
    audio.add_argument(
        "--wait-for-device", dest="audio.wait_for_device", action=argparse.BooleanOptionalAction, help="wait for a missing microphone"
    )
    audio.add_argument("--channel", dest="audio.channel", metavar="mix|N", help="channel of the input, counted from 0")
    audio.add_argument("--sample-rate", dest="audio.sample_rate", metavar="HZ", help="rate of the PCM on stdin")
    audio.add_argument("--realtime", dest="audio.realtime", action="store_true", help="read a file at real-time pace")

    process = parser.add_argument_group("process")
    process.add_argument("--control", dest="control", metavar="off|stdin", help="read commands from stdin, one JSON object a line")
    process.add_argument(
        "--exit-with-parent", dest="exit_with_parent", action=argparse.BooleanOptionalAction, help="exit when the parent process ends"
    )

    model = parser.add_argument_group("models")
    model.add_argument("--embedded", dest="embedded", action="store_true", help="use the small models that ship with the repository")
    model.add_argument("--model-dir", dest="model_dir", metavar="DIR", help="local directory of the recognition model")
    model.add_argument("--hub", dest="model.hub", metavar="ms|hf", help="where models are downloaded from")
    model.add_argument("--device-type", dest="model.device_type", metavar="auto|cpu|cuda", help="where models run")
    model.add_argument("--engine", dest="model.engine", metavar="auto|onnx|torch", help="what runs models")
    model.add_argument("--vad-engine", dest="vad.engine", metavar="silero|fsmn", help="voice activity detection")
    model.add_argument("--second-pass", dest="final.second_pass", metavar="off|same|NAME|DIR", help="decodes finals with full context")
    model.add_argument("--punctuation-model", dest="final.punctuation_model", metavar="NAME|DIR|off", help="adds punctuation to finals")
    model.add_argument("--emotion-model", dest="emotion.model", metavar="NAME|DIR", help="emotion2vec+ model")
    model.add_argument("--no-emotion", dest="emotion.enabled", action="store_false", help="do not label finals with emotions")

    decoding = parser.add_argument_group("decoding")
    decoding.add_argument("--chunk-sec", dest="chunk_sec", metavar="SEC", help="sliced mode: audio per slice")
    decoding.add_argument("--chunk-size", dest="chunk_size", metavar="L,C,R", type=_numbers, help="streaming mode: frames of 60 ms")
    decoding.add_argument("--hotwords", dest="hotwords", metavar="FILE", help="words to prefer, one a line, each with an optional weight")
    decoding.add_argument("--itn", dest="final.itn", action="store_true", help="write the numbers of finals in digits")
    decoding.add_argument("--endpoint-silence-ms", dest="endpoint_silence_ms", metavar="MS", help="silence that ends an utterance")

    output = parser.add_argument_group("output")
    output.add_argument("--status-events", dest="output.status_events", action="store_true", help="also write status and speech events")
    output.add_argument("--record", dest="record.directory", metavar="DIR", help="record the audio of each utterance, for bug reports")
    output.add_argument("--log-format", dest="log.format", metavar="console|json", help="form of the log on stderr")
    output.add_argument("--log-level", dest="log.level", metavar="LEVEL", help="debug, info, warning or error")
    return parser


def _numbers(text: str) -> list[str]:
    return text.strip("[] ").split(",")


def _settings_of(flags: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, nested like the settings."""
    nested: dict[str, Any] = {}
    for name, value in vars(flags).items():
        if name in ("config", "list_devices"):
            continue
        *sections, key = name.split(".")
        target = nested
        for section in sections:
            target = target.setdefault(section, {})
        target[key] = value
    return nested
