"""Blocks of any rate and size -> windows of the one internal signal, with its gaps and its ends.

``AudioBlock`` -> ``Window``, ``Settled`` losses, ``BadSamples``, ``SignalEnd``, in the order of the audio. It owns the resampler (and with
it the sample index), the unfinished window and what waits to be cut; it asks the ledger what was lost before each block. Worker thread. An
exception in the resampler costs the block: ``recover`` moves the index over it and reports it as lost.

A gap shorter than ``max_filled_gap`` becomes zeros; a longer one ends the signal, which goes on behind it.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass

import structlog

from voice.audio import NO_SAMPLES, SAMPLE_RATE_HZ, AudioBlock, AudioChunk, Samples
from voice.capture.resample import CLIP, Channel, Resampler
from voice.losses import LossLedger, Settled
from voice.transcript import Endpoint
from voice.windowing import WindowBuffer

_LAST_ENDPOINTS: frozenset[Endpoint] = frozenset({"shutdown", "end_of_input", "audio_lost"})
"""No block waits behind these: what was reported as lost since the last block belongs before them."""
_LATER = "later ones are counted in the log only"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Window:
    """The next piece of signal."""

    start: int
    samples: Samples
    """One window of the voice activity model."""
    following: Samples
    """The windows behind it that are there already; each of them comes next, in its turn."""

    @property
    def end(self) -> int:
        """Index after the last sample."""
        return self.start + len(self.samples)


@dataclass(frozen=True, slots=True)
class SignalEnd:
    """The signal ends behind ``rest``, for good or before a gap."""

    endpoint: Endpoint
    rest: Window
    """What is left, shorter than a window; perhaps nothing."""


@dataclass(frozen=True, slots=True)
class BadSamples:
    """Values that no recording should hold were replaced; reported once for each kind, with how many there were so far.

    How many there were in all is logged where the audio ends.
    """

    message: str


class _Flush(enum.Enum):
    """Takes its turn among blocks: everything the resampler holds comes out."""

    FLUSH = enum.auto()


class Intake:
    """Owner of the signal before voice activity detection."""

    def __init__(self, channel: Channel, window_samples: int, max_filled_gap: int, ledger: LossLedger) -> None:
        self._max_filled_gap = max_filled_gap
        self._ledger = ledger
        self._resampler = Resampler(channel)
        self._windows = WindowBuffer(window_samples)
        self._todo: deque[AudioBlock | AudioChunk | _Flush | Endpoint | Settled | BadSamples] = deque()
        self._block_end: int | None = None  # where the index stands after the block in the resampler, whether or not that fails
        self._non_finite_reported = self._clipping_reported = False
        self._bad_samples_logged = 0
        self.signal_start = 0
        """Where the signal began after its last end."""

    @property
    def end(self) -> int:
        """Index after the last window that was taken."""
        return self._windows.start

    @property
    def accepted_until(self) -> int:
        """Index after the last sample of the last block that was resampled."""
        return self._resampler.accepted_until

    @property
    def audio_samples(self) -> int:
        """Length of all audio so far, lost audio included."""
        return self._resampler.next_sample + self._ledger.unplaced_samples

    def accept(self, block: AudioBlock) -> None:
        """Take a block."""
        self._todo.append(block)

    def finish(self, endpoint: Endpoint) -> None:
        """End the signal behind everything that was accepted; audio may follow."""
        self._todo += (_Flush.FLUSH, endpoint)

    def skip(self, block: AudioBlock) -> None:
        """Let time pass over a block that nobody is to recognise, after ``finish`` and everything it gave."""
        settled, missing = self._settle(block, quiet=True)
        self._todo += settled
        self._skip(missing)
        self._resampler.accept(block)
        self._resampler.flush()
        self.signal_start = self._resampler.next_sample
        self._windows.move_to(self.signal_start)

    def next(self, *, quiet: bool) -> Window | SignalEnd | Settled | BadSamples | None:
        """What comes next, None when nothing is left; ``quiet`` says that nobody speaks, so that late losses may be placed here."""
        while True:
            if (samples := self._windows.take_window()) is not None:
                return Window(self._windows.start - len(samples), samples, self._windows.whole_windows)
            if not self._todo:
                return None
            item = self._todo.popleft()
            if isinstance(item, Settled | BadSamples):
                return item
            if isinstance(item, AudioBlock):
                self._resample(item, quiet=quiet)
            elif isinstance(item, _Flush):
                self._todo.extendleft(reversed(self._resampler.flush()))
            elif isinstance(item, AudioChunk):
                if item.start_sample - self._windows.end >= self._max_filled_gap:
                    self._todo.appendleft(item)
                    return self._end("audio_lost", item.start_sample)
                self._windows.append(item)
            elif item in _LAST_ENDPOINTS and (settled := self._ledger.settle(None, self._windows.end)):
                self._todo.appendleft(item)
                self._resampler.skip(settled.here_samples)
                return settled
            else:
                return self._end(item, self._windows.end)

    def recover(self) -> bool:
        """After an exception: whether it struck here. Its block is then reported as lost, and its error event is the caller's."""
        if self._block_end is None:
            return False
        missing = self._resampler.restart(self._block_end)
        self._block_end = None
        self._ledger.report(missing / SAMPLE_RATE_HZ, "it could not be resampled", announced=True)
        if settled := self._ledger.settle(None, self._windows.end):
            self._todo.appendleft(settled)
        return True

    def _resample(self, block: AudioBlock, *, quiet: bool) -> None:
        settled, missing = self._settle(block, quiet=quiet)
        self._block_end = self._resampler.accepted_until + missing + round(block.duration_sec * SAMPLE_RATE_HZ)
        before = self._skip(missing)
        chunks = self._resampler.accept(block)
        self._block_end = None
        self._todo.extendleft(reversed([*before, *settled, *self._bad_samples(), *chunks]))

    def _settle(self, block: AudioBlock, *, quiet: bool) -> tuple[list[Settled], int]:
        """The account of what was lost before a block, and by how much the index has to move.

        A late loss is placed in a pause: where it was is not known, only that it was not here.
        """
        settled = self._ledger.settle(block.losses_before, self._resampler.next_sample)
        missing = (settled.here_samples if settled else 0) + (self._ledger.place() if quiet else 0)
        return [settled] if settled else [], missing

    def _skip(self, missing: int) -> list[AudioChunk]:
        """Move the index; the audio before the gap."""
        if not missing:
            return []
        chunks = self._resampler.flush()
        self._resampler.skip(missing)
        return chunks

    def _end(self, endpoint: Endpoint, goes_on_at: int) -> SignalEnd:
        self._log_bad_samples()
        start, rest = self._windows.start, self._windows.take_rest()
        self._windows.move_to(goes_on_at)
        self.signal_start = goes_on_at
        return SignalEnd(endpoint, Window(start, rest, NO_SAMPLES))

    def _bad_samples(self) -> list[BadSamples]:
        non_finite, clipped, found = self._resampler.non_finite_samples, self._resampler.clipped_samples, []
        if non_finite and not self._non_finite_reported:
            self._non_finite_reported = True
            found.append(BadSamples(f"NonFiniteAudio: {non_finite} samples so far were not finite and became 0; {_LATER}"))
        if clipped and not self._clipping_reported:
            self._clipping_reported = True
            found.append(BadSamples(f"ClippedAudio: {clipped} samples so far were beyond {CLIP:g} times full scale and clipped; {_LATER}"))
        return found

    def _log_bad_samples(self) -> None:
        resampler = self._resampler
        count = resampler.non_finite_samples + resampler.clipped_samples
        if count > self._bad_samples_logged:
            self._bad_samples_logged = count
            log.warning("samples_replaced", non_finite=resampler.non_finite_samples, clipped=resampler.clipped_samples)
