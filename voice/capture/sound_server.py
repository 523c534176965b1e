"""Watches on which source of PulseAudio, or of PipeWire's PulseAudio server, our capture streams are.

Desktops move a stream to another source when its own vanishes (``module-rescue-streams``), and people move streams in mixer
programs. Neither PortAudio nor ALSA reports it: the callback goes on with the audio of another microphone.

A thread of its own with its own connection asks the server at every event about capture streams and every ``_CHECK_SEC``; its calls may
hang, so nobody waits for it without a deadline. Our streams are those whose client has our process id. Without ``pulsectl``, libpulse or
a server there is nothing to see: every method returns as if we had no stream, and one debug line says why. Linux only. Raises nothing.

State: our streams as of the last check, and the environment variable ``PULSE_SOURCE`` (``pin``). Thread-safe.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from dataclasses import dataclass
from typing import Any

import structlog

from voice.capture.sources import MicrophoneInfo
from voice.errors import describe
from voice.process.clock import clock_sec

_CHECK_SEC = 0.5
_RETRY_SEC = 5.0
"""Between two tries to connect, unless ``wait_for_stream`` asks for one at once."""
_CLOSE_SEC = 0.2
_MONITOR_OF_NOTHING = 0xFFFF_FFFF
_PIN = "PULSE_SOURCE"
"""libpulse reads it whenever a stream is opened that names no source, and ALSA's plugin names none."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Source:
    """A source of the sound server: a microphone, or the monitor of an output."""

    name: str
    """Unique, the same after replugging."""
    description: str
    """For people; two sources may share it."""


@dataclass(slots=True)
class Stream:
    """One of our capture streams. Changed by the watching thread alone."""

    seen_at: float
    """``clock_sec()`` when it was first seen."""
    source: Source
    """Where it was first seen."""
    source_index: int
    verified_at: float
    """``clock_sec()`` at the start of the last check that saw it there."""
    moved_to: Source | None = None
    """The first other source it was seen on."""


class SoundServer:
    """The sound server of this session, if there is one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._streams: dict[int, Stream] = {}
        self._checked_at = -math.inf
        self._sources: list[MicrophoneInfo] | None = None
        self._wants_sources = False
        self._watches = sys.platform.startswith("linux")
        self._pulse: Any = None
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._pinned = False
        self._reported = False
        self._thread = threading.Thread(target=self._run, name="sound-server", daemon=True)
        if self._watches:
            self._thread.start()

    def newest_stream(self, since: float) -> Stream | None:
        """Our newest stream that was opened after ``since`` (``clock_sec()``), as far as the last check saw."""
        with self._changed:
            return max((stream for stream in self._streams.values() if stream.seen_at > since), key=lambda each: each.seen_at, default=None)

    def wait_for_stream(self, since: float, timeout_sec: float) -> Stream | None:
        """As ``newest_stream``, after the server was asked anew. Returns what is known when it does not answer in time."""
        self._ask(timeout_sec)
        return self.newest_stream(since)

    def sources(self, timeout_sec: float) -> list[MicrophoneInfo] | None:
        """The sources as they are now, microphones before monitors; None where no server answers in time."""
        with self._changed:
            self._sources, self._wants_sources = None, True
        self._ask(timeout_sec)
        with self._changed:
            self._wants_sources = False
            return self._sources

    def lacks(self, source: Source, timeout_sec: float) -> bool:
        """Whether the server says now that it has no such source. An opening would fail, and ALSA writes seven lines about each."""
        found = self.sources(timeout_sec)
        return found is not None and all(each.name != source.name for each in found)

    def pin(self, source: Source, *, asked_for: bool = False) -> None:
        """Have streams that are opened from now on connect to this source or fail.

        A choice that the user made in the environment stays, unless the settings ask for this source by name.
        """
        if _PIN not in os.environ or self._pinned or asked_for:
            os.environ[_PIN] = source.name
            self._pinned = True

    def close(self) -> None:
        """Watch no more. A thread that hangs is left behind."""
        self._closing.set()
        self._interrupt()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_SEC)
        if self._pinned:
            os.environ.pop(_PIN, None)
            self._pinned = False

    def _ask(self, timeout_sec: float) -> None:
        """Wait until a check that begins now has ended."""
        asked_at = clock_sec()
        self._interrupt()
        with self._changed:
            self._changed.wait_for(lambda: not self._watches or self._checked_at >= asked_at, timeout_sec)

    def _interrupt(self) -> None:
        """Have the thread look at once."""
        self._wake.set()
        with self._changed:
            if self._pulse is not None:
                self._pulse.event_listen_stop()

    def _run(self) -> None:
        try:
            import pulsectl  # noqa: PLC0415 -- it loads libpulse, which other machines lack
            from pulsectl._pulsectl import LibPulse  # noqa: PLC0415
        except (ImportError, OSError, AttributeError) as error:
            self._report(error)
            with self._changed:
                self._watches = False
                self._changed.notify_all()
            return
        pulsectl.PulseSourceInfo._init_from_struct = _copy_format  # noqa: SLF001 -- its place for such fields
        failures = (pulsectl.PulseError, pulsectl.PulseDisconnected, LibPulse.CallError, UnicodeDecodeError)
        while not self._closing.is_set():
            self._wake.clear()
            started_at = clock_sec()
            pulse = pulsectl.Pulse("voice-asr", connect=False)
            try:
                pulse.connect()  # without autospawn; its timeout waits for the whole of it when the server answers, too
                with self._changed:
                    self._pulse = pulse
                self._watch(pulse, pulsectl.PulseLoopStop, pulsectl.PulseIndexError)
            except failures as error:
                self._report(error)
            finally:
                with self._changed:
                    self._pulse = None
                pulse.close()
            self._publish(started_at, {}, None)
            self._wake.wait(_RETRY_SEC)

    def _watch(self, pulse: Any, loop_stop: type[Exception], gone: type[Exception]) -> None:
        """Check at every event, until the connection ends."""
        stale = False

        def notice(event: Any) -> None:
            del event
            nonlocal stale
            stale = True
            raise loop_stop

        pulse.event_mask_set("source_output")
        pulse.event_callback_set(notice)
        while not self._closing.is_set():
            stale = False
            started_at = clock_sec()
            sources = _sources_of(pulse) if self._wants_sources else None
            self._publish(started_at, self._our_streams(pulse, started_at, gone), sources)
            if not stale:
                pulse.event_listen(timeout=_CHECK_SEC)

    def _our_streams(self, pulse: Any, now: float, gone: type[Exception]) -> dict[int, Stream]:
        streams = {}
        for output in pulse.source_output_list():
            if output.proplist.get("application.process.id") != str(os.getpid()):
                continue
            stream = self._streams.get(output.index)
            if stream is not None and stream.source_index == output.source:
                if stream.moved_to is None:
                    stream.verified_at = now
            else:
                with contextlib.suppress(gone):  # it is between two sources
                    info = pulse.source_info(output.source)
                    stream = _seen_on(stream, Source(info.name, info.description), output.source)
            if stream is not None:
                streams[output.index] = stream
        return streams

    def _publish(self, started_at: float, streams: dict[int, Stream], sources: list[MicrophoneInfo] | None) -> None:
        with self._changed:
            self._streams, self._checked_at, self._sources = streams, started_at, sources
            self._changed.notify_all()

    def _report(self, error: BaseException) -> None:
        if not self._reported:
            self._reported = True
            log.debug("sound_server_not_watched", error=describe(error))


def _copy_format(info: Any, struct: Any) -> None:
    """Called by pulsectl while libpulse's memory is valid: ``sample_spec`` itself is a view of it, which changes with the next source."""
    info.rate_hz = int(struct.sample_spec.rate)


def _sources_of(pulse: Any) -> list[MicrophoneInfo]:
    default = pulse.server_info().default_source_name
    found = [
        MicrophoneInfo(
            source.name,
            source.description or source.name,
            source.rate_hz,
            source.channel_count,
            source.name == default,
            source.monitor_of_sink != _MONITOR_OF_NOTHING,
            bool(source.mute),
        )
        for source in pulse.source_list()
    ]
    return sorted(found, key=lambda each: each.is_monitor)


def _seen_on(stream: Stream | None, source: Source, index: int) -> Stream:
    """A stream that is new, or on another source than at the last check."""
    if stream is None:
        now = clock_sec()  # not the start of the check: the stream may be younger
        return Stream(now, source, index, now)
    stream.source_index = index
    if source.name != stream.source.name and stream.moved_to is None:
        stream.moved_to = source
    return stream
