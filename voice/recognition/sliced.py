"""Sliced mode: no model state between slices, only the audio of the left context and the committed tokens.

Samples of one utterance -> ``Hypothesis`` without a provisional part. After every slice, a window (context and slice) is decoded as one
chunk without history. Its tokens are aligned with the committed ones, and those after the alignment are appended. A committed
token is never changed, and the cost of a slice is bounded by the length of the window::

      committed 打 开 客 厅
      window  [    开 客 厅 的 灯 ]      的 is appended; 灯 lies in the edge and waits for the next slice or the end
              |--- context ---|- slice -|
                                    |edge

A token that may yet become part of a hotword waits for one slice too. Worker thread only; any exception leaves the stream unusable.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from voice.audio import Samples
from voice.recognition.alignment import continuation
from voice.recognition.engine import FRAME_SAMPLES, Engine
from voice.recognition.hotwords import HotwordGraph
from voice.recognition.posteriors import decode_whole
from voice.recognition.recognizer import LocalRecognizer, LocalStream
from voice.recognition.search import TokenSearch
from voice.transcript import CONTINUES, Hypothesis, Token

_TIME_SLACK_SAMPLES = 2 * FRAME_SAMPLES
"""A committed token that ends up to this long before the window may be in it again: CIF times vary by a frame or two with context."""
_CUT_SAMPLES = 8 * FRAME_SAMPLES
"""Tokens that end within this many samples of the window's start are unreliable: they have no left context."""
_SOURCE = "funasr.paraformer-zh-streaming"


@dataclass(frozen=True, slots=True)
class _Lengths:
    """All in samples."""

    slice: int
    context: int
    edge: int


class SlicedRecognizer(LocalRecognizer):
    """Sliced decoding with the weights of ``engine``."""

    source = _SOURCE

    def __init__(
        self,
        engine: Engine,
        *,
        slice_samples: int,
        context_samples: int,
        edge_samples: int,
        hotwords: Callable[[], HotwordGraph] = HotwordGraph,
    ) -> None:
        self._engine = engine
        self._lengths = _Lengths(slice_samples, context_samples, edge_samples)
        self._hotwords = hotwords

    def create_stream(self, first_sample: int, trace_id: str = "") -> SlicedStream:  # noqa: ARG002 -- a server wants to know it
        """A stream for an utterance whose audio begins at ``first_sample``."""
        return SlicedStream(self._engine, self._lengths, self._hotwords(), first_sample)


class SlicedStream(LocalStream):
    """One utterance in sliced mode."""

    source = _SOURCE

    def __init__(self, engine: Engine, lengths: _Lengths, hotwords: HotwordGraph, first_sample: int) -> None:
        self._engine = engine
        self._lengths = lengths
        self._hotwords = hotwords
        self._first_sample = first_sample
        self._waited = False
        """Whether the last slice kept tokens back that a hotword may still change. They wait for one slice only."""
        self._window = np.zeros(0, np.float32)
        self._pending = np.zeros(0, np.float32)
        self._committed: list[Token] = []
        self.decoded_until = first_sample

    def accept(self, samples: Samples, *, provisional: bool = True) -> bool:
        """Decode every slice that is complete with these samples."""
        del provisional  # this mode has no provisional part
        self._pending = np.concatenate((self._pending, samples))
        decoded = len(self._pending) >= self._lengths.slice
        while len(self._pending) >= self._lengths.slice:
            self._decode(self._pending[: self._lengths.slice], is_final=False)
            self._pending = self._pending[self._lengths.slice :]
        return decoded

    def preview(self) -> bool:
        """Nothing: this mode has no provisional part."""
        return False

    def hypothesis(self) -> Hypothesis:
        """The committed tokens, but for a trailing Latin word, which the next slice may continue."""
        shown = list(self._committed)
        while shown and (CONTINUES in shown[-1].text or shown[-1].text.isascii()):
            shown.pop()
        return Hypothesis(tuple(shown))

    def finish(self) -> Hypothesis:
        """Decode the rest; tokens in the edge are committed too."""
        self._decode(self._pending, is_final=True)
        self._pending = self._pending[:0]
        return Hypothesis(tuple(self._committed))

    def copy(self) -> SlicedStream:
        """A stream that goes on independently from here."""
        other = SlicedStream(self._engine, self._lengths, self._hotwords, self._first_sample)
        other._window, other._pending, other._waited = self._window, self._pending, self._waited
        other._committed, other.decoded_until = list(self._committed), self.decoded_until
        return other

    def _decode(self, samples: Samples, *, is_final: bool) -> None:
        self._window = np.concatenate((self._window[max(0, len(self._window) - self._lengths.context) :], samples))
        self.decoded_until += len(samples)
        decided, undecided = self._decode_window(is_final=is_final)
        tokens = decided + undecided
        begin = self.decoded_until - len(self._window)
        overlapping = itertools.takewhile(lambda token: token.end_sample > begin - _TIME_SLACK_SAMPLES, reversed(self._committed))
        cut_until = begin + _CUT_SAMPLES if begin > self._first_sample else begin  # the utterance's own start cuts no token
        first_new = continuation(list(overlapping)[::-1], tokens, cut_until)
        edge = self.decoded_until - self._lengths.edge
        ready = list(itertools.takewhile(lambda token: is_final or token.end_sample <= edge, tokens[first_new:]))
        waiting = first_new + len(ready) - max(first_new, len(decided))
        if waiting > 0 and not (is_final or self._waited):
            ready, self._waited = ready[:-waiting], True
        else:
            self._waited = False
        self._committed += ready

    def _decode_window(self, *, is_final: bool) -> tuple[list[Token], list[Token]]:
        """The tokens of the window that are decided, then those that a hotword may still change."""
        begin = self.decoded_until - len(self._window)
        before = None if begin == self._first_sample else [token.text for token in self._committed if token.end_sample <= begin]
        search = TokenSearch(self._engine.vocabulary, self._hotwords, self._engine.language, before=before)
        decided = search.advance(decode_whole(self._engine, self._window, begin, is_final=is_final))
        num_firm = search.num_firm()
        rest = search.finish()
        return decided + rest[:num_firm], rest[num_firm:]
