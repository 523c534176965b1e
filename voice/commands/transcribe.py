"""``voice-asr transcribe``: recordings to text, subtitles and tables, as many at once as there are cores.

Files -> files, what goes on on stderr; exit code 0, or 1 where some recording failed. Each worker process loads the models once; the
main process writes. A worker that dies costs the recordings that were not done, not the results of the others.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import soundfile
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from voice.commands.file_recognition import FileRecognizer, Recognized
from voice.commands.formats import WRITERS, Event
from voice.commands.results import Input, inputs_below, targets_of, write_all, write_stdout
from voice.config import Settings, load_settings
from voice.errors import EXIT_INPUT, EXIT_OK, ConfigInvalid, ModelLoadFailed, describe
from voice.flags import AUDIO_SUFFIXES, settings_of
from voice.hotword_list import HotwordList
from voice.models.weights import locate_models
from voice.process.logs import configure_logs

EXIT_SOME_FAILED = 1
EXIT_INTERRUPTED = 130
_NOT_TRIED = Recognized([], 0.0, "not tried: the server was away")
_POLL_SEC = 0.2
_OUR_FLAGS = ("paths", "formats", "output", "force", "emotion_labels", "recursive", "jobs", "speed")


def main(flags: argparse.Namespace) -> int:
    """Recognise recordings and write the results; the exit code."""
    console = Console(stderr=True, highlight=False)
    configure_logs("console", "warning")
    try:
        return _transcribe(flags, console)
    except (ConfigInvalid, ModelLoadFailed) as error:
        for problem in error.problems if isinstance(error, ConfigInvalid) else [str(error)]:
            _say(console, f"error: {problem}")
        return error.exit_code
    except KeyboardInterrupt:
        _say(console, "stopped; what is done is kept, the same command goes on from there")
        return EXIT_INTERRUPTED


def _transcribe(flags: argparse.Namespace, console: Console) -> int:
    settings = load_settings(_given(flags), flags.config)
    if settings.speakers.db is not None:
        raise ConfigInvalid(["speakers.db: recordings are done side by side, each with speakers of its own; none are kept"])
    HotwordList(settings.hotwords)  # wrong words are said once, before any work
    inputs, problems = inputs_below(flags.paths, AUDIO_SUFFIXES, recursive=flags.recursive)
    to_stdout = str(flags.output) == "-"
    if to_stdout and (len(inputs) > 1 or len(flags.formats) > 1):
        raise ConfigInvalid(["-o - takes one recording and one format"])
    targets = targets_of(inputs, None if to_stdout else flags.output, flags.formats)
    todo = [
        (each, files)
        for each, files in zip(inputs, targets, strict=True)
        if to_stdout or flags.force or not all(path.exists() for path in files.values())
    ]
    if len(todo) < len(inputs):
        _say(console, f"{len(inputs) - len(todo)} of {len(inputs)} are done already (--force does them anew)")
    started = time.monotonic()
    run = _Run(flags, settings, console)
    for (each, files), result in run.results(todo):
        failure = result.problem
        try:
            _write(result.events, files, to_stdout=to_stdout, emotion=flags.emotion_labels, failed=failure is not None)
        except OSError as error:
            if to_stdout:
                raise
            failure = f"the results cannot be written ({error.strerror}): {error.filename}"
        if failure:
            problems.append(failure if str(each.path) in failure else f"{each.path}: {failure}")
    if flags.speed and run.audio_sec:
        taken = time.monotonic() - started
        speed = run.audio_sec / taken
        _say(console, f"{run.audio_sec:.1f} s of audio in {taken:.1f} s: {speed:.1f} times as fast as it was spoken")
    for problem in problems:
        _say(console, f"failed: {problem}", "red")
    if problems and not inputs:
        return EXIT_INPUT
    return EXIT_SOME_FAILED if problems else EXIT_OK


def _say(console: Console, text: str, style: str = "") -> None:
    """A line of its own, however long."""
    console.print(text, style=style, markup=False, soft_wrap=True)


def _given(flags: argparse.Namespace) -> dict[str, Any]:
    """The settings among the flags."""
    return settings_of(argparse.Namespace(**{name: value for name, value in vars(flags).items() if name not in _OUR_FLAGS}))


def _write(events: list[Event], files: dict[str, Path], *, to_stdout: bool, emotion: bool, failed: bool) -> None:
    """Write the results of one recording; of one that failed, only where something was recognised."""
    if failed and not any(event["type"] == "voice.asr_text.final" for event in events):
        return
    texts = {path: WRITERS[ending](events, emotion=emotion) for ending, path in files.items()}
    if to_stdout:
        write_stdout(texts.values())
    else:
        write_all(texts)


@dataclass(frozen=True, slots=True)
class _Position:
    """How far a recording was read."""

    index: int
    seconds: float


class _Run:
    """Recordings, the workers that recognise them, and a bar that shows how far they are."""

    def __init__(self, flags: argparse.Namespace, settings: Settings, console: Console) -> None:
        self._flags = flags
        self._settings = settings
        self._console = console
        self.audio_sec = 0.0
        """Recognised so far."""

    def results(self, todo: Sequence[tuple[Input, dict[str, Path]]]) -> Iterator[tuple[tuple[Input, dict[str, Path]], Recognized]]:
        """What came of each recording, in the order in which they are done."""
        if not todo:
            return
        locate_models(self._settings)  # a download or a conversion happens here, once, and not in each worker
        lengths = [_length_sec(each.path) for each, _ in todo]
        jobs = min(self._flags.jobs or os.cpu_count() or 1, len(todo))
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), _Speed(), TimeRemainingColumn())
        with Progress(*columns, console=self._console, disable=not self._console.is_terminal) as bar:
            task = bar.add_task(f"{len(todo)} recordings", total=sum(lengths) or None)
            positions = [0.0] * len(todo)

            def show(position: _Position) -> None:
                positions[position.index] = min(position.seconds, lengths[position.index] or position.seconds)
                bar.update(task, completed=sum(positions))

            recognized = self._alone(todo, show) if jobs == 1 else self._side_by_side(todo, lengths, jobs, show)
            for index, result in recognized:
                self.audio_sec += result.audio_sec
                show(_Position(index, lengths[index] or result.audio_sec))
                if not self._console.is_terminal:
                    _say(self._console, f"{todo[index][0].path}: {result.audio_sec:.1f} s")
                yield todo[index], result

    def _alone(self, todo: Sequence[tuple[Input, Any]], show: Callable[[_Position], None]) -> Iterator[tuple[int, Recognized]]:
        recognizer, gone = FileRecognizer(self._settings, self._flags.mode), False
        for index, (each, _) in enumerate(todo):
            on_progress = functools.partial(_show_position, show, index)
            result = _NOT_TRIED if gone else _outcome(functools.partial(recognizer.recognize, each.path, on_progress))
            gone = gone or result.server_gone
            yield index, result

    def _side_by_side(
        self, todo: Sequence[tuple[Input, Any]], lengths: Sequence[float], jobs: int, show: Callable[[_Position], None]
    ) -> Iterator[tuple[int, Recognized]]:
        """Longest first, so that no worker is left alone with a long one at the end."""
        context = multiprocessing.get_context("spawn")  # a fork would share ONNX Runtime's threads
        progress: SimpleQueue[_Position] = context.SimpleQueue()
        order = sorted(range(len(todo)), key=lambda index: -lengths[index])
        pool = ProcessPoolExecutor(jobs, context, _prepare, (_given(self._flags), self._flags.config, self._flags.mode, progress))
        futures: dict[Future[Recognized], int] = {pool.submit(_recognize, index, todo[index][0].path): index for index in order}
        try:
            while futures:
                done, _ = wait(futures, _POLL_SEC, FIRST_COMPLETED)
                while not progress.empty():
                    show(progress.get())
                for future in done:
                    result = _NOT_TRIED if future.cancelled() else _outcome(future.result)
                    if result.server_gone:
                        for other in futures:
                            other.cancel()
                    yield futures.pop(future), result
        except ModelLoadFailed:
            pool.shutdown(cancel_futures=True)  # what the other workers log stands before the error, not behind it
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _show_position(show: Callable[[_Position], None], index: int, seconds: float) -> None:
    show(_Position(index, seconds))


def _outcome(recognize: Callable[[], Recognized]) -> Recognized:
    """What came of a recording; a failure of ours costs it alone, unless the models are of no use for any.

    Raises:
        ModelLoadFailed: they are.
    """
    try:
        return recognize()
    except ModelLoadFailed:
        raise
    except BrokenProcessPool:
        return Recognized([], 0.0, "a worker process ended (out of memory? fewer at once: --jobs 1)")
    except Exception as error:  # noqa: BLE001 -- one recording must not cost the others
        return Recognized([], 0.0, describe(error))


def _length_sec(path: Path) -> float:
    """Of a recording, 0 where only decoding tells."""
    try:
        return float(soundfile.info(str(path)).duration)
    except (RuntimeError, OSError):
        return 0.0


class _Speed(ProgressColumn):
    """How many times as fast as it was spoken."""

    def render(self, task: Task) -> Text:
        """``12.3x``."""
        return Text(f"{task.speed:.1f}x" if task.speed else "", style="progress.data.speed")


# --- in a worker ----------------------------------------------------------------------------------------------------------

_worker: tuple[FileRecognizer | ModelLoadFailed, SimpleQueue[_Position]] | None = None


def _prepare(given: dict[str, Any], config: str | None, mode: Any, progress: SimpleQueue[_Position]) -> None:
    global _worker  # noqa: PLW0603 -- a worker process has one set of models, and no other place for it
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the main process says what there is to say
    configure_logs("console", "warning")
    try:
        _worker = FileRecognizer(load_settings(given, config), mode), progress
    except ModelLoadFailed as error:  # an exception here would break the pool without a word
        _worker = error, progress


def _recognize(index: int, path: Path) -> Recognized:
    assert _worker is not None  # noqa: S101 -- _prepare came before
    recognizer, progress = _worker
    if isinstance(recognizer, ModelLoadFailed):
        raise recognizer
    return recognizer.recognize(path, lambda seconds: progress.put(_Position(index, seconds)))
