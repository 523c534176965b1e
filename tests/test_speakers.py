"""Speaker labels: the side model beside the pipeline, names, and runs of the service with --speakers."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from harness import EXAMPLES, Event, environment, example, example_names, of_type, run_service, start_service

from voice.audio import SAMPLE_RATE_HZ, Samples
from voice.errors import ControlInvalid
from voice.finalization.finalizer import Draft, Finalizer, PreparedFinal
from voice.finalization.speaker_embedding import CamPlusPlus, OnnxCamPlusPlus, create_speaker_model, features_of
from voice.finalization.speaker_registry import MatchSettings, SpeakerRegistry
from voice.finalization.speakers import SpeakerBook, SpeakerLabeller, SpeakerSettings
from voice.models.converted import load_converted
from voice.models.loader import load_model
from voice.places import EMBEDDED
from voice.process.control import ParsedCommand, parse_command
from voice.transcript import Transcript

SPEAKER = EMBEDDED / "speaker"
DEADLINE_SEC = 30
TWO = ("--input", str(EXAMPLES / "two_utterances.wav"))


class Voices:
    """A model whose embedding of an utterance is what the audio says: the voice's number in its first sample. It waits where told to."""

    source = "test"

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.num_calls = 0

    def embedding(self, samples: Samples) -> Any:
        assert self.may_answer.wait(DEADLINE_SEC)
        self.num_calls += 1
        voice = int(samples[0])
        if voice < 0:
            raise RuntimeError("planted")
        return np.full(8, np.nan, np.float32) if voice == 99 else np.eye(8, dtype=np.float32)[voice]


def draft(index: int, voice: int, num_samples: int = SAMPLE_RATE_HZ) -> Draft:
    transcript = Transcript(f"{index:016x}", (), 0, index * SAMPLE_RATE_HZ, "silence", raw_text="打开", text="打开")
    samples = np.full(num_samples, voice, np.float32)
    return Draft(transcript, samples, samples)


class Desk:
    """A finalizer with a speaker model, and its registry."""

    def __init__(self, max_wait_sec: float | None = None) -> None:
        self.voices = Voices()
        self.registry = SpeakerRegistry(MatchSettings(same_threshold=0.6, new_threshold=0.4, max_speakers=50))
        labeller = SpeakerLabeller(self.voices, self.registry, SpeakerSettings(min_samples=8_000, max_samples=32_000))
        self.finalizer = Finalizer(side_models=[labeller], max_wait_sec=max_wait_sec, with_speaker=True)

    def label(self, prepared: PreparedFinal) -> str | None:
        speaker = self.finalizer.complete(prepared).transcript.speaker
        return speaker and speaker.label

    def labels(self, voices: Sequence[int]) -> list[str | None]:
        return [self.label(self.finalizer.prepare(draft(index, voice))) for index, voice in enumerate(voices, 1)]


def test_finals_bear_the_labels_of_their_voices():
    assert Desk().labels([5, 2, 5, 2, 7]) == ["A", "B", "A", "B", "C"]


def test_a_final_that_is_cancelled_neither_opens_nor_moves_a_speaker():
    desk = Desk()
    assert desk.labels([1]) == ["A"]
    for voice in (3, 1):  # a new voice, and a known one
        cancelled = desk.finalizer.prepare(draft(2, voice))
        cancelled.labels[0].future.result(DEADLINE_SEC)  # the embedding was made
        desk.finalizer.cancel(cancelled)
    assert (desk.registry.num_changes, desk.registry.num_moves) == (1, 0)
    assert desk.labels([4]) == ["B"]


def test_labels_follow_the_finals_and_not_the_preparations():
    """The final that was prepared last is sent first: its voice is A."""
    desk = Desk()
    first, second = (desk.finalizer.prepare(draft(index, index)) for index in (1, 2))
    assert [desk.label(each) for each in (second, first)] == ["A", "B"]


def test_a_late_voice_comes_before_a_later_one_that_is_in_time():
    desk = Desk(max_wait_sec=0)
    desk.voices.may_answer.clear()
    late = desk.finalizer.prepare(draft(1, 3))
    assert desk.label(late) is None
    desk.voices.may_answer.set()
    next_one = desk.finalizer.prepare(draft(2, 4))
    next_one.labels[0].future.result(DEADLINE_SEC)
    assert desk.label(next_one) == "B", "A is the one that was late"
    (outcome,) = desk.finalizer.take_late()
    assert outcome.trace_id == late.transcript.trace_id
    assert outcome.label is not None
    assert outcome.label.label == "A"
    assert desk.finalizer.take_late() == []


@pytest.mark.parametrize("order", [[1, 2, 1, 3, 2], [3, 3, 1, 2, 1]])
def test_labels_do_not_depend_on_which_of_them_are_late(order: list[int]):
    in_time = Desk().labels(order)
    desk = Desk(max_wait_sec=0)
    desk.voices.may_answer.clear()
    prepared = [desk.finalizer.prepare(draft(index, voice)) for index, voice in enumerate(order[:4], 1)]
    assert [desk.label(each) for each in prepared] == [None] * 4
    desk.voices.may_answer.set()
    prepared[-1].labels[0].future.result(DEADLINE_SEC)
    last = desk.finalizer.prepare(draft(5, order[4]))
    last.labels[0].future.result(DEADLINE_SEC)
    in_the_end = desk.label(last)
    late = [outcome.label and outcome.label.label for outcome in desk.finalizer.take_late()]
    assert [*late, in_the_end] == in_time


def test_what_is_too_short_has_no_speaker_and_costs_nothing():
    desk = Desk()
    short = desk.finalizer.complete(desk.finalizer.prepare(draft(1, 1, num_samples=7_999)))
    assert (short.transcript.speaker, short.failures, desk.voices.num_calls) == (None, (), 0)
    exact = desk.finalizer.complete(desk.finalizer.prepare(draft(2, 1, num_samples=8_000)))
    assert exact.transcript.speaker is not None


@pytest.mark.parametrize("voice", [-1, 99], ids=["raises", "NaN"])
def test_a_model_that_fails_costs_its_label_only(voice: int):
    desk = Desk()
    final = desk.finalizer.complete(desk.finalizer.prepare(draft(1, voice)))
    assert (final.transcript.text, final.transcript.speaker) == ("打开", None)
    ((code, _),) = final.failures
    assert code == "speaker_failed"
    assert desk.labels([2]) == ["A"]


def test_only_the_end_of_a_long_utterance_is_used():
    seen: list[list[float]] = []

    class Long(Voices):
        def embedding(self, samples: Samples) -> Any:
            seen.append(samples.tolist())
            return np.ones(8, np.float32)

    registry = SpeakerRegistry(MatchSettings(0.6, 0.4, 5))
    labeller = SpeakerLabeller(Long(), registry, SpeakerSettings(100, 200))
    labeller.label(np.arange(201, dtype=np.float32), 0)
    assert seen == [list(range(1, 201))]


# --- names ----------------------------------------------------------------------------------------------------------------


class Kept:
    """A store that remembers what it was given, and fails where told to."""

    def __init__(self) -> None:
        self.saved: list[list[tuple[str, str | None]]] = []
        self.full = False

    def save(self, speakers: Sequence[Any]) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.saved.append([(each.label, each.name) for each in speakers])


def book() -> tuple[SpeakerBook, SpeakerRegistry, Kept]:
    registry, kept = SpeakerRegistry(MatchSettings(0.6, 0.4, 50)), Kept()
    return SpeakerBook(registry, kept), registry, kept  # type: ignore[arg-type]


def test_speakers_and_names_are_saved_at_once_and_moves_now_and_then():
    speakers, registry, kept = book()
    voice = np.eye(8, dtype=np.float32)[0]
    speakers.drain(0)
    assert kept.saved == []
    registry.assign(voice)
    speakers.drain(0)
    speakers.drain(0)
    assert kept.saved == [[("A", None)]]
    for _ in range(19):
        registry.assign(voice)
        speakers.drain(0)
    assert len(kept.saved) == 1
    registry.assign(voice)
    speakers.drain(0)
    assert len(kept.saved) == 2
    assert speakers.name("A", "妈妈") is None
    speakers.drain(0)
    assert kept.saved[2:] == [[("A", "妈妈")]]
    registry.assign(voice)
    speakers.drain(0.5)
    speakers.drain(0.5)
    assert len(kept.saved) == 4, "the end saves what is left, once"


def test_a_failed_save_is_reported_once_and_made_good():
    speakers, registry, kept = book()
    kept.full = True
    registry.assign(np.eye(8, dtype=np.float32)[0])
    for _ in range(3):
        speakers.drain(0)
    (reason,) = speakers.take_failures()
    assert "No space left" in reason
    assert speakers.take_failures() == []
    kept.full = False
    speakers.drain(0.5)
    assert kept.saved == [[("A", None)]]


@pytest.mark.parametrize(("label", "name"), [("B", "妈妈"), ("A", ""), ("A", "\u200b"), ("A", "x" * 65), ("", "x"), ("a", "x")])
def test_a_name_that_cannot_be_given_is_refused_without_quoting_it(label: str, name: str):
    speakers, registry, _ = book()
    registry.assign(np.eye(8, dtype=np.float32)[0])
    refused = speakers.name(label, name)
    assert isinstance(refused, ControlInvalid)
    assert not name.strip("\u200b") or name not in str(refused)
    assert registry.speakers[0].name is None


def test_without_a_model_a_name_finds_nobody():
    speakers = SpeakerBook(None)
    assert isinstance(speakers.name("A", "妈妈"), ControlInvalid)
    speakers.drain(0.5)
    assert speakers.take_failures() == []


@pytest.mark.parametrize(
    ("line", "parsed"),
    [
        ({"label": "A", "name": "妈妈"}, ParsedCommand("name_speaker", None, "A", "妈妈")),
        ({"label": "AA", "name": None, "id": 7}, ParsedCommand("name_speaker", 7, "AA", None)),
    ],
)
def test_the_command_names_a_label(line: dict[str, Any], parsed: ParsedCommand):
    content = json.dumps({"command": "name_speaker", **line}).encode()
    assert parse_command(content, with_speakers=True) == parsed
    without = parse_command(content)
    assert isinstance(without, ControlInvalid)
    assert "name_speaker" not in str(without).partition("is no command")[2], "without --speakers there is no such command"


@pytest.mark.parametrize(
    "line",
    [
        {"label": "A"},
        {"name": "秘密"},
        {"label": "", "name": "秘密"},
        {"label": "ABCDE", "name": "秘密"},
        {"label": 1, "name": "秘密"},
        {"label": "A", "name": 5},
        {"label": "A", "name": ["秘密"]},
    ],
)
def test_a_wrong_naming_is_refused_without_quoting_it(line: dict[str, Any]):
    refused = parse_command(json.dumps({"command": "name_speaker", **line}, ensure_ascii=False).encode(), with_speakers=True)
    assert isinstance(refused, ControlInvalid)
    assert "秘密" not in str(refused)


def test_other_commands_still_take_no_label():
    assert isinstance(parse_command(b'{"command": "mute", "label": "A"}', with_speakers=True), ControlInvalid)


# --- the embedded model -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_torch() -> CamPlusPlus:
    model = create_speaker_model(load_model(SPEAKER, "CAMPPlus", "cpu"), "speaker")
    assert isinstance(model, CamPlusPlus)
    return model


@pytest.fixture(scope="module")
def on_onnx() -> OnnxCamPlusPlus:
    model = create_speaker_model(load_converted(SPEAKER / "onnx", SPEAKER, 1), "speaker")
    assert isinstance(model, OnnxCamPlusPlus)
    return model


def speech(num_samples: int) -> Samples:
    return np.resize(np.concatenate([example(name)[0] for name in example_names()]), num_samples).astype(np.float32)


@pytest.mark.parametrize("num_samples", [720, 16_000, 31_999, 32_400, 64_400, 10 * SAMPLE_RATE_HZ])
def test_the_graph_computes_what_torch_computes(on_torch: CamPlusPlus, on_onnx: OnnxCamPlusPlus, num_samples: int):
    """Also where the last segment of 2 s is short, or holds one frame."""
    samples = speech(num_samples)
    assert np.allclose(on_torch.embedding(samples), on_onnx.embedding(samples), atol=1e-4)


def test_features_are_those_of_the_class(on_torch: CamPlusPlus):
    import torch
    from funasr.models.campplus.utils import extract_feature

    samples = speech(3 * SAMPLE_RATE_HZ + 77)
    theirs, _, _ = extract_feature([torch.from_numpy(samples)])
    assert np.allclose(theirs[0].numpy(), features_of(samples), atol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -1e30])
def test_samples_that_are_no_audio_are_refused(on_torch: CamPlusPlus, on_onnx: OnnxCamPlusPlus, value: float):
    samples = speech(SAMPLE_RATE_HZ)
    samples[5_000] = value
    for model in (on_torch, on_onnx):
        with pytest.raises(ValueError, match="not numbers"):
            model.embedding(samples)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e8])
def test_silent_and_loud_audio_has_a_finite_embedding(on_onnx: OnnxCamPlusPlus, scale: float):
    assert np.isfinite(on_onnx.embedding(speech(SAMPLE_RATE_HZ) * np.float32(scale))).all()


# --- the service ------------------------------------------------------------------------------------------------------------


def speakers_of(events: list[Event]) -> list[dict[str, Any] | None]:
    return [final["speaker"] for final in of_type(events, "final")]


def test_finals_name_their_speaker():
    result = run_service("streaming", *TWO, "--speakers")
    assert (result.returncode, of_type(result.events, "error_event")) == (0, [])
    first, second = speakers_of(result.events)
    assert first == {"label": "A", "name": None, "confidence": 1.0}
    assert second is not None
    assert (second["label"], second["name"]) == ("A", None), "the example is of one voice"
    assert of_type(result.events, "asr_text.speaker") == [], "it was in time"


PLANTED = """
import time
import voice.finalization.speaker_embedding as planted
embed = planted.OnnxCamPlusPlus.embedding
calls = []
def embedding(self, samples):
    calls.append(len(samples))
    if len(calls) > 1:  # the first is the probe at the start
        {does}
    return embed(self, samples)
planted.OnnxCamPlusPlus.embedding = embedding
"""


def test_a_speaker_that_is_late_has_an_event_of_its_own():
    planted = PLANTED.format(does="time.sleep(2)")
    result = run_service("streaming", *TWO, "--realtime", "--speakers", "--no-emotion", planted=planted)
    finals, late = of_type(result.events, "final"), of_type(result.events, "asr_text.speaker")
    assert [final["speaker"] for final in finals] == [None, None]
    assert [(event["trace_id"], event["label"]) for event in late] == [(final["trace_id"], "A") for final in finals]
    assert [event["source"] for event in late] == ["funasr.speaker"] * 2


def test_a_model_that_fails_is_an_error_event_and_the_final_goes_without_its_speaker():
    result = run_service("streaming", *TWO, "--speakers", planted=PLANTED.format(does="raise RuntimeError('planted')"))
    errors = of_type(result.events, "error_event")
    assert [(each["error_code"], each["recoverable"]) for each in errors] == [("speaker_failed", True)] * 2
    assert speakers_of(result.events) == [None, None]
    assert result.returncode == 0


def test_without_the_setting_nothing_of_it_is_there():
    """No key, no import, and the finals of two runs are equal but for what names a run."""
    planted = (
        "import atexit\n"
        "ours = lambda: [name for name in sys.modules if name.startswith('voice.') and 'speaker' in name]\n"
        "atexit.register(lambda: sys.stderr.write(f'IMPORTED {ours()}\\n'))"
    )
    without = run_service("streaming", *TWO, planted=planted)
    assert "IMPORTED []" in without.stderr
    assert all("speaker" not in event for event in without.events)
    with_speakers = run_service("streaming", *TWO, "--speakers", planted=planted)
    assert "voice.finalization.speaker_registry" in with_speakers.stderr
    assert _timeless(with_speakers.events) == _timeless(without.events)


def _timeless(events: list[Event]) -> list[Event]:
    """Without partials, some of which a busy machine leaves out."""
    kept = [event for event in events if event["type"] != "voice.asr_text.partial"]
    return [
        {key: value for key, value in event.items() if key not in ("ts", "captured_ts", "trace_id", "seq", "speaker")} for event in kept
    ]


def test_an_utterance_that_is_too_short_has_a_speaker_of_null():
    result = run_service("streaming", *TWO, "--speakers", VOICE_ASR__SPEAKERS__MIN_AUDIO_MS="60000")
    assert result.returncode == 0
    assert speakers_of(result.events) == [None, None]


def test_a_model_that_cannot_be_had_costs_the_labels_only(tmp_path: Path):
    result = run_service("streaming", *TWO, "--speakers", "--speaker-model", str(tmp_path / "missing"))
    (error,) = of_type(result.events, "error_event")
    assert (result.returncode, error["error_code"], error["recoverable"]) == (0, "model_load_failed", True)
    assert speakers_of(result.events) == [None, None]


def test_names_are_kept_from_run_to_run(tmp_path: Path):
    directory = tmp_path / "voices"
    rest = np.zeros(30 * SAMPLE_RATE_HZ, np.float32)
    wav = tmp_path / "long.wav"
    soundfile.write(wav, np.concatenate([example("two_utterances")[0], rest]), SAMPLE_RATE_HZ)
    service = start_service(
        "streaming",
        *("--input", str(wav), "--realtime", "--speakers", "--speaker-db", str(directory), "--control", "stdin"),
        stdin=subprocess.PIPE,
        VOICE_ASR__EMOTION__MAX_WAIT_MS="60000",  # a busy machine may take longer than 100 ms
    )
    service.wait_for(lambda event: event["type"] == "voice.asr_text.final")
    stdin = service.process.stdin
    assert stdin is not None
    stdin.write(json.dumps({"command": "name_speaker", "label": "A", "name": " 妈\u200b妈 ", "id": 1}).encode() + b"\n")
    service.wait_for(lambda event: event.get("id") == 1)
    stdin.write(json.dumps({"command": "name_speaker", "label": "Q", "name": "爸爸", "id": 2}).encode() + b"\n")
    service.wait_for(lambda event: event.get("error_code") == "control_invalid")
    stdin.write(b'{"command": "stop"}\n')
    events, code = service.finish()
    assert code == 0
    assert "爸爸" not in json.dumps(events, ensure_ascii=False)
    again = run_service("streaming", *TWO, "--speakers", "--speaker-db", str(directory))
    assert [(each or {}).get("label") for each in speakers_of(again.events)] == ["A", "A"]
    assert {(each or {}).get("name") for each in speakers_of(again.events)} == {"妈妈"}


def test_no_voice_is_written_without_a_directory(tmp_path: Path):
    result = run_service("streaming", *TWO, "--speakers", HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert result.returncode == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert "embedding" not in result.stderr


@pytest.mark.parametrize("content", [b"{", b'{"format": 1, "model": "x", "speakers": []}'], ids=["damaged", "another model"])
def test_a_directory_of_no_use_is_exit_2_and_one_line(tmp_path: Path, content: bytes):
    directory = tmp_path / "voices"
    directory.mkdir(mode=0o700)
    (directory / "speakers.json").write_bytes(content)
    result = run_service("streaming", *TWO, "--speakers", "--speaker-db", str(directory))
    (event,) = result.events
    assert (result.returncode, event["error_code"], event["recoverable"]) == (2, "config_invalid", False)
    assert "speakers.db" in event["message"]
    assert "Traceback" not in result.stderr


def test_a_directory_without_the_feature_is_exit_2(tmp_path: Path):
    result = run_service("streaming", *TWO, "--speaker-db", str(tmp_path / "voices"))
    assert result.returncode == 2
    assert "speakers.db" in result.stderr
    assert not (tmp_path / "voices").exists()


def test_transcribe_keeps_no_voices(tmp_path: Path):
    """Recordings are done side by side: a directory of voices is refused before any work."""
    command = [
        sys.executable,
        "-m",
        "voice",
        "transcribe",
        "--embedded",
        "--speakers",
        str(EXAMPLES / "temperature.wav"),
        "-o",
        str(tmp_path),
    ]
    extra = environment(VOICE_ASR__SPEAKERS__DB=str(tmp_path / "voices"))
    result = subprocess.run(command, capture_output=True, check=False, cwd=EXAMPLES.parent, env=extra)
    assert result.returncode == 2
    assert b"speakers.db" in result.stderr
    assert list(tmp_path.iterdir()) == []
