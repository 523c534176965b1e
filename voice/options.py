"""Settings -> parts of a pipeline that it may do without: the near-field gate, wake words, a server that recognises.

Nothing of a part is imported unless it is asked for. No state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import structlog

from voice.audio import SAMPLE_RATE_HZ, Samples
from voice.config import Settings
from voice.endpointing.detector import Gate
from voice.hotword_list import Hotword, HotwordList
from voice.recognition.recognizer import Recognizer

if TYPE_CHECKING:
    from voice.recognition.remote.connection import Connection
    from voice.wake import WakeGate

log = structlog.get_logger()


def near_field_gate(settings: Settings) -> Gate | None:
    """What rejects speech that is not near; None where that is off."""
    near_field = settings.vad.near_field
    if near_field == "off":
        return None
    from voice.endpointing.near_field import FixedLevel, LearntLevel, NearFieldGate  # noqa: PLC0415 -- off means not imported

    return NearFieldGate(LearntLevel() if near_field == "auto" else FixedLevel(near_field))


def wake_gate(settings: Settings, keep: Callable[[str, Samples], None] | None) -> WakeGate:
    """What lets utterances pass that begin with a wake word, and gives ``keep`` their audio."""
    from voice.wake import WakeGate  # noqa: PLC0415 -- only with wake words
    from voice.wake_words import WakeWords  # noqa: PLC0415 -- likewise

    wake = settings.wake
    return WakeGate(WakeWords(wake.words, tones=wake.tones), round(wake.listen_sec * 1000), keep)


def with_wake_words(settings: Settings, hotwords: HotwordList, vocabulary: Sequence[str] | None) -> Callable[[], tuple[Hotword, ...]]:
    """The hotwords of the decoder: the user's, and the wake words; as they are for a server, whose vocabulary is not known."""
    from voice.wake_bias import WithWakeWords, spellings  # noqa: PLC0415 -- only with wake words

    wake = settings.wake
    as_they_are = [Hotword(word, wake.weight) for word in wake.words]
    spelt = as_they_are if vocabulary is None else spellings(wake.words, vocabulary, tones=wake.tones, weight=wake.weight)
    return WithWakeWords(hotwords.current, spelt).current if wake.weight else hotwords.current


def remote_recognizer(settings: Settings, hotwords: HotwordList, local: Recognizer | None) -> Recognizer | None:
    """The server that recognises, with ``local`` in reserve; None where the settings name none. Nothing of it is imported then."""
    if settings.server is None:
        return None
    from voice.recognition.remote.recognizer import RemoteRecognizer  # noqa: PLC0415 -- only where a server recognises

    waiting = round(settings.engine.queue_sec * SAMPLE_RATE_HZ)
    preferred = with_wake_words(settings, hotwords, None) if settings.wake.words else hotwords.current
    return RemoteRecognizer(connect(settings, settings.server), preferred, max_waiting_samples=waiting, reserve=local)


def connect(settings: Settings, url: str) -> Connection:
    """The way to the server at ``url``, trusted as the settings say.

    Raises:
        ConfigInvalid: its certificates cannot be read.
    """
    from voice.recognition.remote.connection import Connection  # noqa: PLC0415 -- only where a server recognises
    from voice.recognition.remote.server import Server, tls_context  # noqa: PLC0415

    wanted = settings.engine
    server = Server(url, wanted.token, wanted.ca, wanted.insecure)
    if wanted.insecure and server.is_encrypted:
        log.warning("engine_insecure", server=server.name, meaning="any certificate is taken: whoever is in between can listen")
    if not server.is_encrypted:
        log.warning("engine_not_encrypted", server=server.name, meaning="speech and token can be read on the way")
    return Connection(server, tls_context(server), answer_sec=wanted.answer_sec, max_wait_sec=wanted.max_wait_sec)
