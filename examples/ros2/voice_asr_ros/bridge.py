"""What the ROS 2 node publishes for each event of the service, and how it mutes the service. Needs no ROS.

Events of ``voice.client`` in, texts for topics out. ``Bridge`` holds the state that was published last and whether a partial is shown;
it is not thread-safe.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from voice import client
from voice.client import Abandoned, Event, Final, Partial, Status

Topic = Literal["final", "partial", "state", "event"]
STOPPED = "stopped"
CONFIRM_SEC = 5.0
"""So long the answer to a mute is waited for; a microphone that delivers nothing delays it by 1 s."""


@dataclass(frozen=True)
class Publication:
    """A text for a topic of the node."""

    topic: Topic
    data: str


class Bridge:
    """Decides what is published where."""

    def __init__(self) -> None:
        self._state = ""
        self._partial_shown = False

    def publications(self, event: Event) -> Iterator[Publication]:
        """What an event is on the topics, in this order: its JSON, then its text or state."""
        yield Publication("event", as_json(event))
        match event:
            case Partial(text=text):
                self._partial_shown = True
                yield Publication("partial", text)
            case Final(text=text):
                yield Publication("final", text)
                yield from self._clear_partial()
            case Abandoned():
                yield from self._clear_partial()
            case Status(state=state):
                yield from self.state(state)

    def state(self, state: str) -> Iterator[Publication]:
        """The state, where it is another one than before.

        A service that crashes sends no event of it: the node asks ``VoiceService.state`` and passes ``stopped`` here.
        """
        if state != self._state:
            self._state = state
            yield Publication("state", state)

    def _clear_partial(self) -> Iterator[Publication]:
        """An empty partial ends an utterance that had one, so that a display of partials alone shows no old text."""
        if self._partial_shown:
            self._partial_shown = False
            yield Publication("partial", "")


def as_json(event: Event) -> str:
    """The event as the service wrote it; of an ``Abandoned``, which the service could not write, its type, trace_id and text."""
    raw = {"type": "abandoned", "trace_id": event.trace_id, "text": event.text} if isinstance(event, Abandoned) else event.raw
    return json.dumps(raw, ensure_ascii=False)


class Mutable(Protocol):
    """What muting needs of ``VoiceService``."""

    def mute(self) -> None:
        """Recognise nothing from now on."""

    def unmute(self) -> None:
        """Recognise again."""

    def status(self, timeout_sec: float) -> Status:
        """Ask the service what it is doing; raises TimeoutError."""


def set_muted(service: Mutable, *, muted: bool, timeout_sec: float = CONFIRM_SEC) -> tuple[bool, str]:
    """Mute or unmute, and wait until the service says that it has.

    Returns:
        Whether the service confirmed it within ``timeout_sec``, and a message. A service that is loading or is being started again
        confirms nothing yet, but keeps the command and follows it.
    """
    if muted:
        service.mute()
    else:
        service.unmute()
    try:
        state = service.status(timeout_sec).state
    except TimeoutError:
        return False, f"the service did not confirm it within {timeout_sec:g} s; it follows as soon as it listens"
    return (state == "muted") == muted, state


def split(parameter: str) -> list[str]:
    """The words of a parameter, as a shell splits them.

    Raises:
        ValueError: a quotation does not end.
    """
    return shlex.split(parameter)


def service_command(parameter: str) -> list[str]:
    """The command line that starts the service, without flags.

    Args:
        parameter: the node's parameter ``command``. If it is empty and ``voice`` is imported from a checkout that ``make`` set up, the
            command is the checkout's own Python, because the Python of ROS lacks the service's packages. ``-E`` hides the PYTHONPATH of
            ROS from it. Otherwise the command is what ``voice.client`` finds.

    Raises:
        FileNotFoundError: there is no service.
        ValueError: a quotation in ``parameter`` does not end.
    """
    if words := split(parameter):
        return words
    checkout = Path(client.__file__).resolve().parent.parent
    python, entry = checkout / ".venv" / "bin" / "python", checkout / "asr_service_streaming.py"
    return [str(python), "-E", str(entry)] if python.is_file() and entry.is_file() else client.default_command()
