"""The loop around a pipeline, shown with scripted sources, commands and models: order of time, losses of the input, policy of failures."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import structlog
from fakes import CountingRecognizer, LoudnessVad, silence, speech
from harness import check_guarantees, of_type
from test_pipeline import SETTINGS, trace_ids

from voice.audio import SAMPLE_RATE_HZ, AudioBlock
from voice.capture.source import AudioFormat
from voice.errors import AudioDeviceLost, AudioDeviceUnavailable, ControlInvalid, InputUnreadable
from voice.finalization.finalizer import Finalizer
from voice.level import LevelMonitor
from voice.listening import Listening
from voice.losses import LossLedger
from voice.output.event_queue import EventQueue
from voice.output.writer import EventWriter
from voice.pipeline import Pipeline
from voice.process.clock import clock_sec
from voice.process.control import TimedCommand
from voice.process.stop import StopRequest

TENTH = SAMPLE_RATE_HZ // 10


class Script:
    """An input that gives blocks, raises exceptions and calls functions in turn, then ends."""

    waiting_sec = 0.0

    def __init__(self, *items: Any, recovers: bool = False, live_from: float | None = None) -> None:
        """Samples become blocks of 0.1 s; with ``live_from`` they carry the time at which they were captured."""
        self.recovers = recovers
        self.ended = False
        self.format: AudioFormat | None = None
        self.gathers_sec: list[float] = []
        """What each call of ``read`` was given."""
        self._items: list[Any] = []
        at = 0
        for item in items:
            if not isinstance(item, np.ndarray):
                self._items.append(item)
                continue
            for start in range(0, len(item), TENTH):
                captured_at = None if live_from is None else live_from + at / SAMPLE_RATE_HZ
                self._items.append(AudioBlock(item[start : start + TENTH, None], SAMPLE_RATE_HZ, captured_at=captured_at))
                at += len(item[start : start + TENTH])

    def read(self, timeout_sec: float, gather_sec: float = 0.0) -> AudioBlock | None:
        self.gathers_sec.append(gather_sec)
        while self._items and callable(self._items[0]):
            self._items.pop(0)()
        if not self._items:
            self.ended = True
            return None
        item = self._items.pop(0)
        if isinstance(item, Exception):
            self.format = None
            raise item
        if item is not None:
            self.format = AudioFormat("scripted", SAMPLE_RATE_HZ, 1)
        return item

    def close(self) -> None:
        self.ended = True


class Commands:
    """A control channel that has these commands from the start."""

    def __init__(self, *commands: TimedCommand | ControlInvalid) -> None:
        self._commands = list(commands)

    def take(self) -> list[Any]:
        taken, self._commands = self._commands, []
        return taken


class Run:
    """A loop over a script: its events, its exit code, and what the recogniser was given."""

    def __init__(
        self, source: Script, recognizer: CountingRecognizer | None = None, *commands: Any, stop: StopRequest | None = None
    ) -> None:
        self.recognizer = recognizer or CountingRecognizer()
        self.ledger = LossLedger()
        self.statuses: list[tuple[str, dict[str, Any]]] = []
        pipeline = Pipeline(SETTINGS, LoudnessVad(), self.recognizer, Finalizer(), ledger=self.ledger, new_trace_id=trace_ids())
        self.pipeline = pipeline
        read_end, write_end = os.pipe()
        received: list[bytes] = []
        reader = threading.Thread(target=lambda: received.extend(iter(lambda: os.read(read_end, 65_536), b"")))
        reader.start()
        queue = EventQueue(EventWriter(write_end, lambda: 0))
        self.error: Exception | None = None
        self.code: int | None = None
        loop = Listening(
            source,
            pipeline,
            queue,
            stop or StopRequest(),
            status=lambda state, **fields: self.statuses.append((state, fields)),
            max_failures=5,
            control=Commands(*commands) if commands else None,
            recorder=None,
            monitor=LevelMonitor(1.0, 5.0),
        )
        try:
            self.code = loop.run()
        except RuntimeError as error:
            self.error = error
        finally:
            queue.close()
            os.close(write_end)
            reader.join(10)
            os.close(read_end)
        self.events = [json.loads(line) for line in b"".join(received).splitlines()]
        check_guarantees(self.events)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return of_type(self.events, kind)

    @property
    def states(self) -> list[str]:
        return [state for state, _ in self.statuses]

    @property
    def decoded(self) -> list[tuple[int, int]]:
        """Spans of audio that the recogniser was given."""
        return [(stream.first_sample, stream.first_sample + len(stream.audio)) for stream in self.recognizer.streams]


def talk(utterances: int) -> np.ndarray:
    return np.concatenate([np.concatenate((silence(1), speech(3), silence(1.5))) for _ in range(utterances)])


# --- when it listens ------------------------------------------------------------------------------------------------------


def test_it_listens_with_the_first_block_and_says_to_what() -> None:
    run = Run(Script(None, talk(1)))
    assert run.statuses == [("listening", {"device": "scripted", "rate_hz": 16_000, "channels": 1})]
    assert run.code == 0


def test_without_a_block_it_never_said_that_it_listens() -> None:
    assert Run(Script(None, None)).statuses == []


def test_a_microphone_that_comes_back_is_restored_with_its_first_block() -> None:
    run = Run(Script(talk(1), AudioDeviceLost("gone"), None, None, talk(1), recovers=True))
    assert run.states == ["listening", "audio_lost", "audio_restored"]
    assert run.statuses[-1][1]["device"] == "scripted"
    assert len(run.of("final")) == 2
    (error,) = run.of("error_event")
    assert (error["error_code"], error["recoverable"]) == ("audio_device_lost", True)


def test_a_microphone_that_is_absent_at_the_start_is_restored_and_listened_to() -> None:
    run = Run(Script(AudioDeviceUnavailable("absent"), None, talk(1), recovers=True))
    assert run.states == ["audio_lost", "audio_restored", "listening"]


def test_a_microphone_that_is_lost_in_an_utterance_ends_it() -> None:
    run = Run(Script(talk(1)[: 3 * SAMPLE_RATE_HZ], AudioDeviceLost("gone"), None, recovers=True))
    (final,), (error,) = run.of("final"), run.of("error_event")
    assert (final["endpoint"], error["trace_id"]) == ("audio_lost", final["trace_id"])
    assert run.code == 0


def test_while_nobody_speaks_audio_may_gather_and_from_the_first_window_of_speech_on_every_block_is_read_at_once() -> None:
    source = Script(talk(1))  # 10 blocks of silence, 30 of speech, 15 of silence, of which 8 belong to the utterance
    assert len(Run(source).of("final")) == 1
    unhurried = [index for index, gather_sec in enumerate(source.gathers_sec) if gather_sec]
    assert unhurried[:11] == list(range(11)), "the eleventh block has the first speech"
    assert unhurried[11] in (48, 49), "a window ends within a block"
    assert unhurried[11:] == list(range(unhurried[11], 56))


# --- inputs that fail -----------------------------------------------------------------------------------------------------


def test_an_input_that_breaks_gives_the_final_then_leaves_with_4() -> None:
    run = Run(Script(talk(1)[: 3 * SAMPLE_RATE_HZ], InputUnreadable("broken")))
    assert run.code == 4
    (final,), (error,) = run.of("final"), run.of("error_event")
    assert (final["endpoint"], error["error_code"], error["recoverable"]) == ("end_of_input", "input_unreadable", False)
    assert error["trace_id"] == final["trace_id"]


def test_a_microphone_that_is_not_waited_for_leaves_with_4() -> None:
    run = Run(Script(talk(1)[: 3 * SAMPLE_RATE_HZ], AudioDeviceLost("gone")))
    assert (run.code, run.of("final")[0]["endpoint"]) == (4, "audio_lost")


def test_an_input_that_breaks_while_the_model_fails_for_good_still_gives_the_final() -> None:
    run = Run(Script(talk(1)[: 3 * SAMPLE_RATE_HZ], InputUnreadable("broken")), CountingRecognizer(fail_finish=lambda _: True))
    assert run.code == 4
    assert len(run.of("final")) == 1


def test_an_input_that_breaks_while_it_is_drained_still_gives_the_final() -> None:
    stop = StopRequest()
    samples = talk(1)
    source = Script(samples[: 2 * SAMPLE_RATE_HZ], stop.request, None, samples[2 * SAMPLE_RATE_HZ :][:TENTH], InputUnreadable("broken"))
    run = Run(source, stop=stop)
    assert run.code == 4
    assert len(run.of("final")) == len(run.of("error_event")) == 1


# --- failures of models ---------------------------------------------------------------------------------------------------


def failing_from(first: int) -> Callable[[int], bool]:
    return lambda call: call >= first


def test_a_model_that_fails_now_and_then_stops_nobody() -> None:
    run = Run(Script(talk(6)), CountingRecognizer(fail_accept=lambda call: call % 50 == 10))
    assert run.code == 0
    assert len(run.of("final")) == 6
    assert len(run.of("error_event")) > 5


def test_what_a_model_that_fails_says_is_in_the_event_and_not_in_the_log() -> None:
    with structlog.testing.capture_logs() as logs:
        run = Run(Script(talk(1)), CountingRecognizer(fail_accept=lambda call: call == 10))
    assert [event["message"] for event in run.of("error_event")] == ["RuntimeError: planted in accept"]
    (line,) = (line for line in logs if line["event"] == "inference_failed")
    assert line["error"] == "RuntimeError"
    assert line["places"][-1].endswith(" accept")
    assert "planted" not in str(logs)


def test_a_model_that_fails_for_good_ends_the_run_and_the_utterance_keeps_what_was_shown() -> None:
    run = Run(Script(talk(6)), CountingRecognizer(fail_accept=failing_from(60)))
    assert isinstance(run.error, RuntimeError)
    assert {event["trace_id"] for event in run.of("partial")} == {event["trace_id"] for event in run.of("final")}
    assert 4 <= len(run.of("error_event")) <= 6


# --- stops ----------------------------------------------------------------------------------------------------------------


def test_a_stop_decodes_what_waits_and_says_shutdown() -> None:
    stop = StopRequest()
    samples = talk(1)
    run = Run(Script(samples[: 2 * SAMPLE_RATE_HZ], stop.request, samples[2 * SAMPLE_RATE_HZ : 3 * SAMPLE_RATE_HZ]), stop=stop)
    (final,) = run.of("final")
    assert (final["endpoint"], final["end_ms"], final["lost_ms"]) == ("shutdown", 3_000, 0)
    assert run.code == 0


def test_audio_that_waits_longer_than_there_is_time_at_a_stop_is_lost_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voice.listening._DRAIN_SEC", 0.0)
    stop = StopRequest()
    samples = talk(1)
    run = Run(Script(samples[: 2 * SAMPLE_RATE_HZ], stop.request, samples[2 * SAMPLE_RATE_HZ : 3 * SAMPLE_RATE_HZ]), stop=stop)
    (final,), (error,) = run.of("final"), run.of("error_event")
    assert final["lost_ms"] in (900, 1_000), "the block that was read when the stop came is decoded"
    assert (error["error_code"], error["trace_id"]) == ("audio_overrun", final["trace_id"])
    assert run.pipeline.totals.lost_ms == final["lost_ms"]
    assert run.pipeline.totals.audio_ms == 3_000


# --- commands -------------------------------------------------------------------------------------------------------------

AT = 1_000.0
"""When the scripted audio begins, on the clock."""


def live(*items: Any) -> Script:
    return Script(*items, live_from=AT)


def test_a_mute_takes_effect_at_the_sample_captured_when_it_arrived() -> None:
    """However much audio waits: all of it is read after the command came."""
    run = Run(live(np.concatenate((silence(1), speech(4), silence(1)))), None, TimedCommand("mute", AT + 2.55))
    (final,) = run.of("final")
    assert (final["endpoint"], final["end_ms"]) == ("muted", 2_550)
    assert run.decoded[-1][1] == round(2.55 * SAMPLE_RATE_HZ)
    assert run.states == ["listening", "muted"]
    assert (run.pipeline.totals.lost_ms, run.pipeline.totals.audio_ms) == (0, 6_000)


def test_after_an_unmute_nothing_is_heard_that_was_captured_before_it() -> None:
    commands = (TimedCommand("mute", AT + 0.5), TimedCommand("unmute", AT + 3.01))
    run = Run(live(np.concatenate((silence(1), speech(4), silence(1.5)))), None, *commands)
    (final,) = run.of("final")
    assert final["endpoint"] == "silence"
    assert run.decoded[0][0] == round(3.01 * SAMPLE_RATE_HZ)
    assert run.states == ["listening", "muted", "unmuted", "listening"]
    assert run.statuses[-1][1]["device"] == "scripted"


def test_an_endpoint_ends_the_utterance_at_its_moment_and_the_rest_is_the_next_one() -> None:
    run = Run(live(np.concatenate((silence(1), speech(4), silence(1.5)))), None, TimedCommand("endpoint", AT + 3.02))
    one, two = run.of("final")
    assert (one["endpoint"], one["end_ms"], two["endpoint"]) == ("requested", 3_020, "silence")
    assert run.decoded[0][1] == run.decoded[1][0] == round(3.02 * SAMPLE_RATE_HZ)


def test_commands_in_one_block_are_followed_in_their_order() -> None:
    commands = [TimedCommand(name, AT + 2.0 + at) for name, at in (("endpoint", 0.01), ("mute", 0.03), ("unmute", 0.05), ("mute", 0.07))]
    run = Run(live(np.concatenate((silence(1), speech(4), silence(1.5)))), None, *commands)
    assert run.states == ["listening", "muted", "unmuted", "listening", "muted"]
    assert run.pipeline.totals.audio_ms == 6_500


def test_a_command_with_an_id_gets_one_answer_that_carries_it() -> None:
    commands = [TimedCommand(name, AT + 1 + at, f"{name} {at}") for at, name in enumerate(("mute", "mute", "unmute", "endpoint", "status"))]
    run = Run(live(silence(7)), None, *commands)
    answers = {fields["id"]: state for state, fields in run.statuses if "id" in fields}
    assert answers == {"mute 0": "muted", "mute 1": "muted", "unmute 2": "unmuted", "endpoint 3": "listening", "status 4": "listening"}
    assert run.states == ["listening", "muted", "muted", "unmuted", "listening", "listening", "listening"]


def test_a_status_says_what_was_counted_and_of_which_device_asked_by_name_or_not() -> None:
    run = Run(live(np.concatenate((silence(1), speech(2), silence(2)))), None, TimedCommand("status", AT + 4.5))
    ((state, fields),) = [(state, fields) for state, fields in run.statuses if "id" in fields]
    assert (state, fields["id"], fields["device"]) == ("listening", None, "scripted")
    assert (fields["totals"].utterances, fields["totals"].audio_ms) == (1, 4_500)


def test_a_status_while_there_is_no_microphone_says_so() -> None:
    gone = Run(Script(AudioDeviceLost("gone"), None, recovers=True), None, TimedCommand("status", clock_sec()))
    assert gone.states == ["audio_lost", "audio_lost"]
    assert Run(Script(None, None), None, TimedCommand("status", clock_sec() - 2)).states == ["waiting"]


def test_the_level_of_a_live_device_comes_each_second_and_none_is_told_while_muted() -> None:
    run = Run(live(np.concatenate((silence(1.2), speech(4)))), None, TimedCommand("mute", AT + 2.5))
    levels = run.of("level_event")
    assert [(round(each["end_ms"], -3), each["muted"]) for each in levels[:4]] == [
        (1_000, False),
        (2_000, False),
        (3_000, True),
        (4_000, True),
    ]
    assert levels[0]["level"]["rms_dbfs"] == levels[0]["level"]["peak_dbfs"] == -120
    assert -40 < levels[1]["level"]["rms_dbfs"] < levels[1]["level"]["peak_dbfs"] <= 0
    assert levels[2]["level"] is levels[3]["level"] is None
    assert Run(Script(talk(2))).of("level_event") == [], "a file has no microphone"


@pytest.mark.parametrize("value", [3e38, -3e38, np.nan, np.inf, 1e-45])
def test_a_device_that_gives_no_audio_at_all_has_a_level_and_goes_on(value: float) -> None:
    run = Run(live(np.concatenate((np.full(SAMPLE_RATE_HZ * 2, value, np.float32), speech(2), silence(1.5)))))
    assert (run.code, run.error) == (0, None)
    assert len(run.of("level_event")) == 5
    assert all(-120 <= each["level"]["rms_dbfs"] <= each["level"]["peak_dbfs"] <= 60 for each in run.of("level_event"))


def test_a_microphone_that_gives_zeros_is_reported_once_until_it_gives_something() -> None:
    run = Run(live(np.concatenate((silence(11), speech(1), silence(6)))))
    (silent,) = [event for event in run.of("error_event") if event["error_code"] == "audio_silent"]
    assert silent["recoverable"]
    assert "pactl" in silent["message"]


def test_a_second_mute_changes_nothing() -> None:
    commands = [TimedCommand("mute", AT + 1), TimedCommand("mute", AT + 2)]
    assert Run(live(silence(4)), None, *commands).states == ["listening", "muted"]


def test_in_a_file_a_command_takes_effect_at_once() -> None:
    run = Run(Script(talk(1)), None, TimedCommand("mute", clock_sec()))
    assert run.states == ["listening", "muted"]
    assert run.decoded == []


def test_while_the_microphone_is_away_a_command_is_followed_at_once() -> None:
    run = Run(Script(AudioDeviceLost("gone"), None, recovers=True), None, TimedCommand("mute", clock_sec() + 60))
    assert run.states == ["audio_lost", "muted"]


def test_while_no_audio_comes_a_command_waits_for_what_was_captured_before_it() -> None:
    early = Run(Script(None, None), None, TimedCommand("mute", clock_sec()))
    assert early.states == []
    late = Run(Script(None, None), None, TimedCommand("mute", clock_sec() - 2))
    assert late.states == ["muted"]


def test_an_invalid_line_is_an_error_event_and_nothing_else() -> None:
    run = Run(live(talk(1)), None, ControlInvalid("nonsense"))
    (error,) = run.of("error_event")
    assert (error["error_code"], error["message"], error["recoverable"]) == ("control_invalid", "ControlInvalid: nonsense", True)
    assert len(run.of("final")) == 1


def test_what_was_heard_says_when_it_was_captured() -> None:
    captured_from = clock_sec() - 120.0
    before_ms = (time.time() - 120.0) * 1000
    run = Run(Script(silence(0.5), speech(1.0), silence(2.0), live_from=captured_from))
    (final,) = run.of("final")
    partials = run.of("partial")
    assert partials
    for event in (*partials, final):
        assert event["captured_ts"] == pytest.approx(before_ms + event["end_ms"], abs=60)
    spans = [event["captured_ts"] - event["end_ms"] for event in (*partials, final)]
    assert max(spans) - min(spans) <= 2, "positions and times run at one pace"


def test_what_was_captured_while_muted_keeps_the_times_right() -> None:
    captured_from = clock_sec() - 60.0
    source = Script(speech(1.0), silence(2.0), speech(1.0), silence(2.0), live_from=captured_from)
    run = Run(source, None, TimedCommand("mute", captured_from), TimedCommand("unmute", captured_from + 2.5))
    (final,) = run.of("final")
    assert final["captured_ts"] - final["end_ms"] == pytest.approx((time.time() - 60.0) * 1000, abs=500)


def test_of_a_file_it_says_when_it_was_read() -> None:
    before_ms = time.time() * 1000
    run = Run(Script(silence(0.5), speech(1.0), silence(2.0)))
    (final,) = run.of("final")
    assert before_ms - 1 <= final["captured_ts"] <= time.time() * 1000 + 1


def test_the_time_that_recognition_takes_is_in_the_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    process, delay_ms = Pipeline.process, 20

    def slowly(self: Pipeline, *arguments: Any) -> Any:
        time.sleep(delay_ms / 1000)
        return process(self, *arguments)

    monkeypatch.setattr(Pipeline, "process", slowly)
    written: list[tuple[float, int]] = []
    write = EventQueue.write

    def note(self: EventQueue, event: Any) -> None:
        if getattr(event, "captured_ts", 0):
            written.append((time.time() * 1000, event.captured_ts))
        write(self, event)

    monkeypatch.setattr(EventQueue, "write", note)
    Run(Script(silence(0.5), speech(1.0), silence(2.0)))
    assert len(written) >= 2
    assert all(now - captured >= delay_ms for now, captured in written)
