"""A FunASR runtime server as the recogniser of both modes; with a local recogniser in reserve, where the settings want one.

Samples of one utterance -> ``Hypothesis``, which arrives by itself: ``poll`` and ``result`` take what is there and never wait. A server
gives text and perhaps times, no confidence, so none is made up; everything that it said may change until its answer is whole. Results come
in the order of the utterances. State: the audio that waits for results, which is bounded. Worker thread. What a local recogniser raises is
raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import structlog

from voice.audio import SAMPLE_RATE_HZ, Samples, samples_to_ms
from voice.recognition.recognizer import Recognizer, RecognizerStream, Unanswered
from voice.recognition.remote.connection import Connection
from voice.recognition.remote.protocol import Transcription, hotword_text
from voice.recognition.remote.utterance import News, RemoteUtterance
from voice.transcript import REMOTE_SOURCE, Hypothesis, Token, without_marks

_SAMPLES_PER_MS = SAMPLE_RATE_HZ // 1000
_BYTES_PER_SAMPLE = 2
_LATEST_MS = 500
"""A token that is said to end so long after its utterance has a wrong time."""

log = structlog.get_logger()


class RemoteRecognizer:
    """A server."""

    source = REMOTE_SOURCE

    def __init__(
        self,
        connection: Connection,
        hotwords: Callable[[], Iterable[tuple[str, float]]],
        *,
        max_waiting_samples: int,
        reserve: Recognizer | None = None,
    ) -> None:
        """Serve streams.

        Args:
            connection: to the server; closed by ``close``.
            hotwords: the current words and weights; asked at the start of each utterance.
            max_waiting_samples: ended utterances may have so much audio together; beyond it the oldest is given up.
            reserve: takes over while the server is unavailable; None: utterances wait for the server.
        """
        self._connection = connection
        self._hotwords = hotwords
        self._max_waiting_samples = max_waiting_samples
        self._reserve = reserve
        self._waiting: list[RemoteStream] = []
        self._kept_local = ""

    @property
    def is_congested(self) -> bool:
        """Whether half of what may wait waits."""
        return self._waiting_samples > self._max_waiting_samples // 2

    @property
    def has_reserve(self) -> bool:
        """Whether something could take over."""
        return self._reserve is not None

    @property
    def reserve(self) -> Recognizer | None:
        """What has to take over now; None where nothing has to, or can."""
        return self._reserve if self._connection.unavailable else None

    def create_stream(self, first_sample: int, trace_id: str = "") -> RecognizerStream:
        """A stream for an utterance whose audio begins at ``first_sample``: of the reserve while the server is unavailable.

        An utterance that the reserve began stays with it, so that its committed text stays.
        """
        local = self._reserve if self._kept_local == trace_id else self.reserve
        if local:
            self._kept_local = trace_id
            return local.create_stream(first_sample, trace_id)
        return RemoteStream(self, self._connection.open(trace_id, hotword_text(self._hotwords())), first_sample, trace_id)

    def take_problems(self) -> list[str]:
        """Since when the server cannot be used, and why."""
        problems = self._connection.take_problems()
        return [f"{problem}; the local model takes over" for problem in problems] if self._reserve else problems

    def close(self) -> None:
        """Take leave of the server."""
        self._connection.close()

    def keep_local(self, trace_id: str, *, at_once: bool) -> Recognizer | None:
        """For a stream of an utterance: what takes it over now; ``at_once``: however the server is."""
        reserve = self._reserve if at_once else self.reserve
        if reserve:
            self._kept_local = trace_id
        return reserve

    def wait_for(self, stream: RemoteStream) -> None:
        """A stream's audio is complete; where too much waits, the oldest is given up."""
        self._waiting = [each for each in self._waiting if each.waits]
        self._waiting.append(stream)
        while len(self._waiting) > 1 and self._waiting_samples > self._max_waiting_samples:
            seconds = self._max_waiting_samples / SAMPLE_RATE_HZ
            self._waiting.pop(0).overflow(f"EngineUnavailable: more than {seconds:g} s of speech waited for the server")

    @property
    def _waiting_samples(self) -> int:
        return sum(stream.num_samples for stream in self._waiting if stream.waits)


class RemoteStream:
    """One utterance at a server, and at the reserve once that took over."""

    def __init__(self, owner: RemoteRecognizer, utterance: RemoteUtterance, first_sample: int, trace_id: str) -> None:
        self._owner = owner
        self._utterance = utterance
        self._first_sample = first_sample
        self._trace_id = trace_id
        self._seen = News()
        self._audio: list[Samples] = []
        self._local: RecognizerStream | None = None
        self._is_ended = False
        self._given_up = ""
        self._local_result: Hypothesis | None = None
        self.num_samples = 0
        """Audio so far."""

    @property
    def source(self) -> str:
        """The server's, or the reserve's."""
        return self._local.source if self._local else REMOTE_SOURCE

    @property
    def supports_copy(self) -> bool:
        """Only of a local stream."""
        return self._local is not None and self._local.supports_copy

    @property
    def decoded_until(self) -> int:
        """Sample index after the last audio that had been sent when the last text came."""
        return self._local.decoded_until if self._local else self._first_sample + self._seen.sent_bytes // _BYTES_PER_SAMPLE

    @property
    def waits(self) -> bool:
        """Whether its audio is complete and its result is not there."""
        return self._is_ended and self._local is None and not self._given_up and not self._utterance.news.is_over

    def accept(self, samples: Samples, *, provisional: bool = True) -> bool:
        """Send the next samples; True when text came meanwhile."""
        if self._local:
            return self._local.accept(samples, provisional=provisional)
        self.num_samples += len(samples)
        if self._owner.has_reserve:
            self._audio.append(samples)
        self._utterance.send((np.clip(samples, -1.0, 1.0) * 32767).astype("<i2").tobytes())
        return self.poll()

    def preview(self) -> bool:
        """The server shows what it wants."""
        return self._local.preview() if self._local else False

    def poll(self) -> bool:
        """Take what the server said; True when its text changed."""
        if self._local:
            return False
        if self._take_over():
            return True
        news = self._utterance.news
        changed = news.transcription.text != self._seen.transcription.text
        self._seen = news
        return changed

    def hypothesis(self) -> Hypothesis:
        """What is known so far; nothing of it is committed."""
        return self._local.hypothesis() if self._local else Hypothesis(given_text=self._seen.transcription.text)

    def finish(self) -> Hypothesis | None:
        """Tell the server that the utterance is over; its answer is awaited."""
        if self._local:
            return self._local.finish()
        self._is_ended = True
        self._utterance.end()
        self._owner.wait_for(self)
        return None

    def result(self) -> Hypothesis | Unanswered | None:
        """The server's answer, or that of the reserve; None while it is not there."""
        news = self._utterance.news
        if not self._local and (not news.is_over or news.given_up):
            self._take_over(at_once=bool(news.given_up))
        if self._local:
            self._local_result = self._local_result or self._local.finish()
            return self._local_result
        self._seen = news
        if news.is_over and not news.given_up:
            return self._answer(news.transcription)
        reason = self._given_up or news.given_up
        return Unanswered(reason, self._first_sample + news.heard_bytes // _BYTES_PER_SAMPLE) if reason else None

    def overflow(self, reason: str) -> None:
        """Too much waits: the server is not asked any longer, the reserve may be."""
        self._utterance.give_up(reason)

    def give_up(self, reason: str) -> None:
        """The answer is not awaited any longer."""
        self._given_up = reason
        self._utterance.give_up(reason)

    def copy(self) -> RecognizerStream:
        """MUST NOT be called where ``supports_copy`` is False."""
        assert self._local is not None  # noqa: S101 -- supports_copy
        return self._local.copy()

    def _take_over(self, *, at_once: bool = False) -> bool:
        """Whether the reserve has just taken over, with all of the audio, because the server is unavailable, or ``at_once``."""
        reserve = None if self._given_up else self._owner.keep_local(self._trace_id, at_once=at_once)
        if reserve is None:
            return False
        log.info("engine_reserve", trace_id=self._trace_id)
        self._utterance.give_up("the reserve took over")
        local = reserve.create_stream(self._first_sample, self._trace_id)
        local.accept(np.concatenate(self._audio) if self._audio else np.zeros(0, np.float32))
        self._local, self._audio = local, []
        return True

    def _answer(self, transcription: Transcription) -> Hypothesis:
        return Hypothesis(tokens_with_times(transcription, self._first_sample, self.num_samples), given_text=transcription.text)


def tokens_with_times(transcription: Transcription, first_sample: int, num_samples: int) -> tuple[Token, ...]:
    """The characters and words of an answer with their times; nothing unless there is exactly one time for each, within the utterance."""
    times, texts = transcription.times, _units(without_marks(transcription.text))
    latest_ms = samples_to_ms(num_samples) + _LATEST_MS
    if len(times) != len(texts) or any(end > latest_ms for _, end in times):
        return ()
    ends = first_sample + num_samples
    return tuple(
        Token(text, min(first_sample + begin * _SAMPLES_PER_MS, ends), min(first_sample + end * _SAMPLES_PER_MS, ends), None)
        for text, (begin, end) in zip(texts, times, strict=True)
    )


def _units(text: str) -> list[str]:
    """What has a time of its own: each Chinese character, each word of letters and digits."""
    units: list[str] = []
    in_word = False
    for character in text:
        is_of_word = character.isascii() and not character.isspace()
        if is_of_word and in_word:
            units[-1] += character
        elif not character.isspace():
            units.append(character)
        in_word = is_of_word
    return units
