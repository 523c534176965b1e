"""The gate of the wake words: events of the pipeline, in their order -> those that may pass, and ``voice.wake``.

Nothing of an utterance passes unless it begins with a wake word, or begins within ``listen_ms`` of the end of the last final that passed.
Times are those of the audio clock. A word counts only where the recogniser cannot take it back: in committed text, or in a final.

State: until when the gate is open, the utterance in flight and what is held of it, the trace ids of the last finals that passed, recordings
that wait for the verdict. Nothing resets it: it lives as long as the pipeline. Worker thread. Raises nothing.

::

                 its committed text, or its final          open: it begins within listen_ms of the last final
    UNDECIDED ---- begins with a wake word ----> WOKEN     voice.wake; then it passes without the word
        |    ---- begins with something else --> PASSING   where the gate is open: it passes as it is
        +---------------------------------------> WITHHELD  where it is closed: it does not, and is counted
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from voice.audio import Samples, samples_to_ms
from voice.errors import ErrorCode
from voice.output.events import (
    AnyEvent,
    EmotionEvent,
    ErrorEvent,
    FinalEvent,
    PartialEvent,
    SpeakerEvent,
    SpeechEndedEvent,
    SpeechStartedEvent,
    TokenTime,
    WakeEvent,
)
from voice.transcript import CONTINUES, SPECIAL_TOKENS, Hypothesis, Token, Transcript
from voice.wake_words import Match, NoMatch, WakeWords

Keep = Callable[[str, Samples], None]
"""Takes the trace id and the audio of an utterance."""
Heard = tuple[str, Hypothesis]
"""The trace id of the utterance in flight, and what its recogniser thinks now."""
_Time = tuple[str, int, int]
"""Text, start and end of a token, ms."""

_MAY_QUOTE: frozenset[ErrorCode] = frozenset(
    {
        "infer_partial_failed",
        "infer_final_failed",
        "second_pass_failed",
        "hotword_repair_failed",
        "punctuation_failed",
        "number_format_failed",
        "emotion_failed",
        "speaker_failed",
    }
)
"""Errors of parts that work on an utterance: the message of an exception might quote its text."""
_REMEMBERED = 64
"""Finals that passed, whose emotion may still follow."""
_WAITING_RECORDINGS = 8
"""Of utterances without a verdict: one that had no text never gets one. Half a minute of audio takes 2 MB."""
_SAME = 0.0002
"""Confidences that differ by less are the same: both were rounded."""


class _State(enum.Enum):
    UNDECIDED = enum.auto()
    WOKEN = enum.auto()
    PASSING = enum.auto()
    WITHHELD = enum.auto()


@dataclass(slots=True)
class _Utterance:
    """The utterance in flight."""

    trace_id: str
    open: bool
    """Whether it passes without a word."""
    state: _State = _State.UNDECIDED
    match: Match | None = None
    partial: PartialEvent | None = None
    """The newest one, while undecided."""
    speech: list[AnyEvent] = field(default_factory=list)
    """That it started and ended, while undecided."""


class WakeGate:
    """The gate of one pipeline."""

    def __init__(self, words: WakeWords, listen_ms: int, keep: Keep | None = None) -> None:
        """Close the gate.

        Args:
            words: what opens it.
            listen_ms: how long after the end of a final that passed utterances pass without a word, on the audio clock.
            keep: is given the audio of the utterances that passed.
        """
        self._words = words
        self._listen_ms = listen_ms
        self._keep = keep
        self._open_until_ms = -1
        self._utterance = _Utterance("", open=False)
        self._passed: deque[str] = deque(maxlen=_REMEMBERED)
        self._recordings: deque[tuple[str, Samples]] = deque(maxlen=_WAITING_RECORDINGS)
        self.num_withheld = 0
        """Utterances with text that did not pass."""

    def admit(self, events: Sequence[AnyEvent], heard: Heard | None = None) -> list[AnyEvent]:
        """The events that may pass, changed where they hold the word; ``heard`` may commit what the last partial held."""
        ending = {event.trace_id for event in events if isinstance(event, FinalEvent)}
        passing = [each for event in events for each in self._admit(event, heard, ends=event.trace_id in ending)]
        return passing + list(self._committed_since(heard))

    def wants_labels(self, transcript: Transcript) -> bool:
        """Whether the final of an utterance will pass: else no side model is to listen to it."""
        utterance = self._utterance
        woken = utterance.trace_id == transcript.trace_id and utterance.state is _State.WOKEN
        return woken or self._is_open(samples_to_ms(transcript.start_sample)) or self._begins_with_word(transcript.raw_text)

    def keep(self, trace_id: str, samples: Samples) -> None:
        """Take the audio of an utterance that ended, before its final comes; it is recorded if that passes."""
        if self._keep:
            self._recordings.append((trace_id, samples))

    def pass_over(self, start_ms: int, end_ms: int) -> None:
        """Audio that nobody was to recognise, because the service is muted, is no time in which somebody could have spoken."""
        if start_ms <= self._open_until_ms:
            self._open_until_ms += end_ms - start_ms

    def _is_open(self, start_ms: int) -> bool:
        return start_ms <= self._open_until_ms

    def _begins_with_word(self, text: str) -> bool:
        return isinstance(self._words.look(text, ended=True), Match)

    def _admit(self, event: AnyEvent, heard: Heard | None, *, ends: bool) -> Iterator[AnyEvent]:
        if isinstance(event, SpeechStartedEvent):
            utterance = self._of(event)
            if utterance.open:
                yield event
            else:
                utterance.speech.append(event)
        elif isinstance(event, PartialEvent):
            yield from self._admit_partial(event, heard, ends=ends)
        elif isinstance(event, SpeechEndedEvent):
            yield from self._admit_ended(event)
        elif isinstance(event, FinalEvent):
            yield from self._admit_final(event)
        elif isinstance(event, ErrorEvent):
            yield event if self._may_tell(event) else event.model_copy(update={"message": event.message.partition(":")[0]})
        elif not isinstance(event, EmotionEvent | SpeakerEvent) or event.trace_id in self._passed:
            yield event

    def _of(self, event: SpeechStartedEvent | PartialEvent | FinalEvent) -> _Utterance:
        """The utterance of an event, a new one with its first."""
        if self._utterance.trace_id != event.trace_id:
            self._utterance = _Utterance(event.trace_id, self._is_open(event.start_ms))
        return self._utterance

    def _admit_partial(self, event: PartialEvent, heard: Heard | None, *, ends: bool) -> Iterator[AnyEvent]:
        """Decide by what is committed; ``ends``: the final is among the events, too, and knows the word's times."""
        utterance = self._of(event)
        if utterance.state is _State.UNDECIDED:
            found = self._words.look(event.raw_text[: event.stable_chars], ended=False)
            if not (ends and isinstance(found, Match)):
                yield from self._decide(utterance, found, event.start_ms, event.raw_text, _times_of(event, heard))
        if utterance.state is _State.PASSING:
            yield event
        elif utterance.state is _State.WOKEN and utterance.match:
            yield from self._without_word(event, utterance.match)
        elif utterance.state is _State.UNDECIDED:
            if utterance.open and self._words.look(event.raw_text, ended=False) is NoMatch.ABSENT:
                utterance.partial = None
                yield event.model_copy(update={"stable_chars": 0})  # shown at once, and taken back should it become a word after all
            else:
                utterance.partial = event

    def _committed_since(self, heard: Heard | None) -> Iterator[AnyEvent]:
        """A partial that waits, and whose text was committed without a new one: a partial comes only where the text is new."""
        waiting = self._utterance.partial
        if waiting is None or heard is None or heard[0] != waiting.trace_id:
            return
        hypothesis = heard[1]
        if hypothesis.text == waiting.raw_text and hypothesis.stable_chars > waiting.stable_chars:
            self._utterance.partial = None
            yield from self._admit_partial(waiting.model_copy(update={"stable_chars": hypothesis.stable_chars}), heard, ends=False)

    def _admit_ended(self, event: SpeechEndedEvent) -> Iterator[AnyEvent]:
        utterance = self._utterance
        if utterance.trace_id == event.trace_id and utterance.state is _State.UNDECIDED and not utterance.open:
            utterance.speech.append(event)
        elif utterance.trace_id == event.trace_id and utterance.state is not _State.WITHHELD:
            yield event

    def _admit_final(self, event: FinalEvent) -> Iterator[AnyEvent]:
        utterance = self._of(event)
        if utterance.state is _State.UNDECIDED:
            found = self._words.look(event.raw_text, ended=True)
            yield from self._decide(
                utterance, found, event.start_ms, event.raw_text, [(each.text, each.start_ms, each.end_ms) for each in event.tokens]
            )
        utterance.partial = None
        if utterance.state is _State.WITHHELD:
            self.num_withheld += 1
        else:
            self._open_until_ms = event.end_ms + self._listen_ms
            self._passed.append(event.trace_id)
            yield self._final_without_word(event, utterance.match) if utterance.match else event
        self._release_recordings(event.trace_id)

    def _decide(
        self, utterance: _Utterance, found: Match | NoMatch, start_ms: int, raw_text: str, times: Sequence[_Time]
    ) -> Iterator[AnyEvent]:
        """Move on where there is an answer; what was held of an utterance that passes, and its ``voice.wake``."""
        if found is NoMatch.UNDECIDED:
            return
        if isinstance(found, Match):
            utterance.state, utterance.match = _State.WOKEN, found
            started = [event for event in utterance.speech if isinstance(event, SpeechStartedEvent)]
            ended = [event for event in utterance.speech if isinstance(event, SpeechEndedEvent)]
            yield from started
            yield self._wake_event(utterance.trace_id, found, start_ms, raw_text, times)
            yield from ended
        else:
            utterance.state = _State.PASSING if utterance.open else _State.WITHHELD
        utterance.partial = None
        utterance.speech.clear()

    def _wake_event(self, trace_id: str, match: Match, start_ms: int, raw_text: str, times: Sequence[_Time]) -> WakeEvent:
        start, end = self._words.span(raw_text, match)
        texts = [text for text, _, _ in times]
        word = times[_tokens_in(texts, raw_text[:start]) : _tokens_in(texts, raw_text[:end])]
        first, last = (word[0][1], word[-1][2]) if word else (start_ms, start_ms)
        return WakeEvent(trace_id=trace_id, word=match.word, start_ms=first, end_ms=last)

    def _without_word(self, event: PartialEvent, match: Match) -> Iterator[PartialEvent]:
        """The partial of the rest, where there is any."""
        cut = self._words.cut(event.raw_text, match.end_unit)
        if rest := event.raw_text[cut:]:
            yield event.model_copy(update={"text": rest, "raw_text": rest, "stable_chars": max(event.stable_chars - cut, 0)})

    def _final_without_word(self, event: FinalEvent, match: Match) -> FinalEvent:
        """The final of the rest, which may be empty."""
        cut = self._words.cut(event.raw_text, match.end_unit)
        tokens = event.tokens[_tokens_in([token.text for token in event.tokens], event.raw_text[:cut]) :]
        changes: dict[str, object] = {"raw_text": event.raw_text[cut:], "tokens": tokens, "text": self._text_without_word(event, match)}
        if event.tokens and event.confidence is not None and abs(event.confidence - _mean(event.tokens)) < _SAME:
            changes["confidence"] = round(_mean(tokens), 4)
        elif event.confidence is not None and not changes["text"]:  # of the second pass, of which nothing is left
            changes["confidence"] = 0.0
        return event.model_copy(update=changes)

    def _text_without_word(self, event: FinalEvent, match: Match) -> str:
        """What is shown, which steps after the recogniser made; where the word is not found in it, what was recognised."""
        in_text = self._words.look(event.text, ended=True)
        if isinstance(in_text, Match):
            return event.text[self._words.cut(event.text, in_text.end_unit) :]
        shown = event.text if self._words.num_units(event.text) == self._words.num_units(event.raw_text) else event.raw_text
        return shown[self._words.cut(shown, match.end_unit) :]

    def _may_tell(self, event: ErrorEvent) -> bool:
        """Whether a message may be told whole: of an utterance that does not pass, or not yet, it might quote the text."""
        utterance = self._utterance
        passes = utterance.trace_id == event.trace_id and (utterance.open or utterance.state is _State.WOKEN)
        return passes or event.error_code not in _MAY_QUOTE or event.trace_id in self._passed

    def _release_recordings(self, trace_id: str) -> None:
        """Hand on the audio of an utterance whose final passed; forget that of earlier ones, whose finals will not come."""
        if trace_id not in [waiting_id for waiting_id, _ in self._recordings]:
            return
        waiting_id = ""
        while waiting_id != trace_id:
            waiting_id, samples = self._recordings.popleft()
        if self._keep and trace_id in self._passed:
            self._keep(trace_id, samples)


def _times_of(event: PartialEvent, heard: Heard | None) -> list[_Time]:
    """The committed tokens of a partial, where its hypothesis is at hand."""
    tokens: tuple[Token, ...] = heard[1].committed if heard and heard[0] == event.trace_id else ()
    return [(token.text.replace(CONTINUES, ""), samples_to_ms(token.start_sample), samples_to_ms(token.end_sample)) for token in tokens]


def _tokens_in(texts: Iterable[str], text: str) -> int:
    """How many tokens at the beginning make this text, which may have blanks where the tokens have none."""
    missing, num_tokens = len("".join(text.split())), 0
    for token in texts:
        if missing <= 0:
            break
        missing -= 0 if token in SPECIAL_TOKENS else len(token)
        num_tokens += 1
    return num_tokens


def _mean(tokens: Sequence[TokenTime]) -> float:
    return sum(token.confidence or 0.0 for token in tokens) / len(tokens) if tokens else 0.0
