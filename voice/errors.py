"""Foundation: what can go wrong, as values with a code for the reader of stdout and an exit code for the shell.

::

    VoiceError
    ├── ConfigInvalid            exit 2   bad command line, environment or settings file
    ├── ControlInvalid                    a line on the control channel that is not a command; the service goes on
    ├── ModelLoadFailed          exit 3   a model is missing, incomplete, of the wrong shape, or not to be downloaded
    ├── InputError               exit 4
    │   ├── InputUnreadable               a file or stream that cannot be read as audio
    │   └── AudioDeviceUnavailable        no such microphone, or it cannot be opened
    │       └── AudioDeviceLost           it was there and went away
    │           └── AudioStalled          it is there and delivers nothing
    └── OutputGone               exit 5   nobody reads stdout any more, or it cannot be written

Everything else that reaches ``voice.daemon`` is a bug: ``runtime_error``, exit 70.
"""

from __future__ import annotations

import traceback
from typing import Any, Literal

ErrorCode = Literal[
    "audio_device_unavailable",
    "audio_device_lost",
    "audio_stalled",
    "audio_overrun",
    "audio_silent",
    "audio_clipping",
    "input_unreadable",
    "infer_partial_failed",
    "infer_final_failed",
    "vad_failed",
    "emotion_failed",
    "speaker_failed",
    "punctuation_failed",
    "hotword_repair_failed",
    "number_format_failed",
    "second_pass_failed",
    "engine_unavailable",
    "model_load_failed",
    "config_invalid",
    "control_invalid",
    "record_failed",
    "runtime_error",
]

EXIT_OK = 0
EXIT_CONFIG = 2
EXIT_MODEL = 3
EXIT_INPUT = 4
EXIT_OUTPUT = 5
EXIT_BUG = 70


MAX_PROBLEMS = 20
MAX_PROBLEM_CHARACTERS = 300
MAX_MESSAGE_CHARACTERS = 1_000
"""Bounds of messages to users and readers of stdout: a file of 100,000 wrong lines must not become a message of megabytes."""


class VoiceError(Exception):
    """A failure that the service understands; ``str(error)`` names what and where in one line."""

    error_code: ErrorCode = "runtime_error"
    exit_code: int = EXIT_BUG


class ConfigInvalid(VoiceError):
    """A setting is unknown, malformed or out of range.

    ``problems`` holds a line for each, at most ``MAX_PROBLEMS`` of them; the last line then says how many more there are.
    """

    error_code: ErrorCode = "config_invalid"
    exit_code = EXIT_CONFIG

    def __init__(self, problems: list[str]) -> None:
        self.problems = [_shorten(_in_one_line(problem), MAX_PROBLEM_CHARACTERS) for problem in problems[:MAX_PROBLEMS]]
        if len(problems) > MAX_PROBLEMS:
            self.problems.append(f"... and {len(problems) - MAX_PROBLEMS:,} more")
        super().__init__("; ".join(self.problems))

    def __reduce__(self) -> tuple[type[ConfigInvalid], tuple[list[str]]]:
        """Let it cross from one process to another."""
        return ConfigInvalid, (self.problems,)


class ControlInvalid(VoiceError):
    """A line on the control channel is no command."""

    error_code: ErrorCode = "control_invalid"


class ModelLoadFailed(VoiceError):
    """A model could not be found, downloaded, or trusted. One line of at most 1,000 characters, whatever its files are named."""

    error_code: ErrorCode = "model_load_failed"
    exit_code = EXIT_MODEL

    def __init__(self, text: str) -> None:
        line = _in_one_line(text)
        super().__init__(line if len(line) <= 1_000 else f"{line[:500]} … {line[-497:]}")


class InputError(VoiceError):
    """The audio input cannot be used."""

    error_code: ErrorCode = "input_unreadable"
    exit_code = EXIT_INPUT


class InputUnreadable(InputError):
    """A file or stream is missing, empty, damaged, or no audio."""


class AudioDeviceUnavailable(InputError):
    """There is no such capture device, or it cannot be opened."""

    error_code: ErrorCode = "audio_device_unavailable"


class AudioDeviceLost(AudioDeviceUnavailable):
    """The capture device was open and stopped delivering."""

    error_code: ErrorCode = "audio_device_lost"


class AudioStalled(AudioDeviceLost):
    """The capture device is open and delivers no audio, not even silence."""

    error_code: ErrorCode = "audio_stalled"


class OutputGone(VoiceError):
    """stdout can no longer be written: the reader left, or the disk is full."""

    exit_code = EXIT_OUTPUT


def _in_one_line(text: str) -> str:
    """Escape what would break the line or change a terminal: keys and values come from anywhere."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def _shorten(text: str, max_characters: int) -> str:
    """Leave out the middle: the start says where, the end says what is wrong."""
    if len(text) <= max_characters:
        return text
    tail = max_characters // 3
    return f"{text[: max_characters - tail - 3]}...{text[-tail:]}"


def describe(error: BaseException) -> str:
    """``Type: text`` in one line of at most ``MAX_MESSAGE_CHARACTERS``, the form of every error event's ``message``."""
    text = " ".join(str(error).split())
    return _shorten(f"{type(error).__name__}: {text}" if text else type(error).__name__, MAX_MESSAGE_CHARACTERS)


def log_fields(error: BaseException) -> dict[str, Any]:
    """What the log says of an exception that may be anybody's: its type and its places, and in words only what our own classes say.

    The words of others may quote what they worked on: recognised text, which never goes into the log, or a hotword.
    """
    is_ours = type(error).__module__.startswith("voice.")
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    return {"error": describe(error) if is_ours else type(error).__name__, "places": places}
