"""``voice-asr doctor``: is everything there, does the microphone hear, is the machine fast enough; a verdict and a remedy for each."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

from voice.audio import NO_SAMPLES, SAMPLE_RATE_HZ, Samples
from voice.capture.microphone_list import find_sources
from voice.capture.portaudio import import_sounddevice
from voice.capture.resample import Resampler
from voice.commands.checks import (
    Finding,
    check_disk,
    check_ffmpeg,
    check_packages,
    check_python,
    check_python_path,
    check_sources,
    judge_decoding,
    judge_microphone,
)
from voice.commands.file_recognition import FileRecognizer
from voice.config import Mode, Settings, load_settings
from voice.errors import EXIT_CONFIG, EXIT_OK, ConfigInvalid, InputError, ModelLoadFailed, describe
from voice.flags import settings_of
from voice.inputs import open_source
from voice.losses import LossLedger
from voice.models.converted import cache_directory
from voice.models.directory import check_sums
from voice.models.store import Hub, find_model, is_complete, names_path
from voice.models.weights import wanted_models
from voice.options import connect
from voice.places import EMBEDDED, EXAMPLES
from voice.process.logs import configure_logs

EXIT_FAILED = 1
_LISTEN_SEC = 3.0
_OPEN_SEC = 6.0
_LOOK_SEC = 0.05
_EXAMPLE = "temperature"
_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "red")}
_OUR_FLAGS = ("json", "no_microphone")


def main(flags: argparse.Namespace) -> int:
    """Check, and print; 1 where something failed."""
    configure_logs("console", "error")
    try:
        settings = load_settings(
            settings_of(argparse.Namespace(**{k: v for k, v in vars(flags).items() if k not in _OUR_FLAGS})), flags.config
        )
    except ConfigInvalid as error:
        for problem in error.problems:
            sys.stderr.write(f"error: {problem}\n")
        return EXIT_CONFIG
    console = Console(highlight=False)
    found = []
    for finding in _findings(settings, microphone=not flags.no_microphone):
        found.append(finding)
        if not flags.json:
            _show(console, finding)
    if flags.json:
        print(json.dumps([dataclasses.asdict(each) for each in found], ensure_ascii=False, indent=1))  # noqa: T201
    return EXIT_FAILED if any(each.verdict == "failed" for each in found) else EXIT_OK


def _show(console: Console, finding: Finding) -> None:
    mark, style = _MARKS[finding.verdict]
    line = Text().append(f"{mark} ", style=style)
    line.append(finding.name, style="bold").append(f": {finding.text}")
    console.print(line, soft_wrap=True)
    if finding.remedy:
        console.print(Text(f"    {finding.remedy}", style="dim"), soft_wrap=True)


def _findings(settings: Settings, *, microphone: bool) -> Iterator[Finding]:
    yield check_python()
    yield check_packages()
    yield check_python_path()
    yield _check_port_audio()
    yield check_sources(find_sources())
    if microphone:
        yield _check_microphone(settings)
    yield check_ffmpeg()
    yield check_disk(cache_directory())
    yield from _check_models()
    for use, name in wanted_models(settings):
        yield _guarded(f"model for {use}", lambda use=use, name=name: _check_wanted(use, name, settings.model.hub))  # type: ignore[misc]
    if settings.server is not None:
        yield _guarded("server", lambda: _check_server(settings, settings.server or ""))
    for mode in ("streaming", "sliced"):
        for engine in ("onnx", "torch"):
            yield _guarded(f"{mode}, {engine}", lambda mode=mode, engine=engine: _check_decoding(mode, engine))  # type: ignore[misc]


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    """A check that breaks is a finding, too."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001 -- it must report, not break
        return Finding(name, "failed", describe(error), "reinstall: pip install --force-reinstall, or `make clean demo` in a checkout")


def _check_server(settings: Settings, url: str) -> Finding:
    """Whether the server that recognises takes connections."""
    try:
        connection = connect(settings, url)
    except ConfigInvalid as error:
        return Finding("server", "failed", str(error), "correct the setting")
    deadline = time.monotonic() + _OPEN_SEC
    problems: list[str] = []
    while not connection.is_connected and not problems and time.monotonic() < deadline:
        time.sleep(_LOOK_SEC)
        problems = connection.take_problems()
    is_connected = connection.is_connected
    connection.close()
    if is_connected:
        return Finding("server", "ok", f"{url.partition('?')[0]} takes connections")
    return Finding("server", "failed", (problems or [f": {url.partition('?')[0]} does not answer"])[0].partition(": ")[2], "docs/remote.md")


def _check_port_audio() -> Finding:
    try:
        version = import_sounddevice().get_portaudio_version()[1]
    except InputError as error:
        return Finding("PortAudio", "failed", describe(error), "apt-get install libportaudio2 libasound2-plugins; files work without it")
    return Finding("PortAudio", "ok", version.split(",")[0])


def _check_microphone(settings: Settings) -> Finding:
    audio = settings.audio.model_copy(update={"input": "mic", "wait_for_device": False})
    try:
        samples, device = _listen(settings.model_copy(update={"audio": audio}))
    except (InputError, ConfigInvalid) as error:
        return Finding("microphone", "failed", str(error), "voice-asr devices lists what there is")
    return judge_microphone(samples, device)


def _listen(settings: Settings) -> tuple[Samples, str]:
    """Some seconds of the microphone, and its name."""
    source = open_source(settings, LossLedger())
    resampler, pieces, device = Resampler(settings.audio.channel), [NO_SAMPLES], "the microphone"
    sys.stderr.write(f"speak for {_LISTEN_SEC:g} seconds ...\n")
    try:
        deadline = time.monotonic() + _OPEN_SEC
        while sum(map(len, pieces)) < _LISTEN_SEC * SAMPLE_RATE_HZ and time.monotonic() < deadline:
            block = source.read(0.25)
            if block is not None:
                device = source.format.device if source.format else device
                pieces += [chunk.samples for chunk in resampler.accept(block)]
    finally:
        source.close()
    return np.concatenate(pieces), device


def _check_models() -> Iterator[Finding]:
    for directory in sorted(path for path in EMBEDDED.iterdir() if path.is_dir()):
        name = f"embedded model {directory.name}"
        try:
            check_sums(directory)
            check_sums(directory / "onnx")
            yield Finding(name, "ok", f"{_size_mb(directory):.0f} MB, as it was published ({directory})")
        except (ModelLoadFailed, OSError) as error:
            yield Finding(name, "failed", str(error), "reinstall the package, or check the files out again")


def _check_wanted(use: str, name: str, hub: Hub) -> Finding:
    """A model that the settings name: whether it is here, and whole. Nothing is downloaded."""
    title = f"model for {use}"
    of_hub = "" if hub == "ms" else f" --hub {hub}"
    try:
        directory = find_model(name, hub)
    except ModelLoadFailed as error:
        return Finding(
            title, "failed", str(error), "name a directory that holds the whole model, or a model of the hub: voice-asr models list"
        )
    if directory is None:
        remedy = f"voice-asr models pull {name}{of_hub}; without network carry a bundle over (models pull --to DIR), or use --embedded"
        return Finding(title, "warning", f"{name} is not on this machine: the first start downloads it", remedy)
    try:
        check_sums(directory)
    except ModelLoadFailed as error:
        again = f"voice-asr models rm {name}{of_hub}, then voice-asr models pull {name}{of_hub}"
        return Finding(title, "failed", str(error), "copy the whole model there again" if names_path(name) else f"get it again: {again}")
    if not is_complete(directory):
        return Finding(title, "failed", f"{directory} lacks its settings, its weights or its vocabulary", "copy the whole model there")
    sums = "its sums are right" if (directory / "SHA256SUMS").is_file() else "complete, without sums to compare with"
    return Finding(title, "ok", f"{name}, {_size_mb(directory):.0f} MB, {sums} ({directory})")


def _size_mb(directory: Path) -> float:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / 1e6


def _check_decoding(mode: Mode, engine: str) -> Finding:
    path = EXAMPLES / f"{_EXAMPLE}.wav"
    expected = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
    settings = load_settings({"embedded": True, "model": {"engine": engine, "device_type": "cpu"}, "emotion": {"enabled": False}})
    recognizer = FileRecognizer(settings, mode)
    recognizer.recognize(path, lambda _: None)
    started = time.perf_counter()
    result = recognizer.recognize(path, lambda _: None)
    factor = (time.perf_counter() - started) / result.audio_sec
    texts = [event["raw_text"] for event in result.events if event["type"] == "voice.asr_text.final"]
    return judge_decoding(f"{mode}, {engine}, embedded model", factor, right=texts == [expected])
