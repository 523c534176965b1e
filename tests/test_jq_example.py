"""examples/jq.sh: each of its questions, on invented events, on those of a real run, and while the service runs."""

from __future__ import annotations

import json
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness import EXAMPLES, command, environment, in_time, of_type, run_service

JQ = shutil.which("jq")
NEEDS_JQ = pytest.mark.skipif(JQ is None, reason="needs jq 1.6 or later (apt-get install jq)")
SCRIPT = str(EXAMPLES / "jq.sh")
QUESTIONS = ("finals", "follow", "errors", "lost", "emotions", "uncertain")


def final(trace_id: str, text: str, *confidences: float, lost_ms: int = 0, emotion: str | None = None) -> dict[str, Any]:
    tokens = [
        {"text": letter, "start_ms": 100 * place, "end_ms": 100 * place + 90, "confidence": confidence}
        for place, (letter, confidence) in enumerate(zip(text, confidences, strict=False))
    ]
    summary = emotion and {"label": emotion, "confidence": 0.9}
    return {
        "type": "voice.asr_text.final",
        "trace_id": trace_id,
        "text": f"{text}。",
        "raw_text": text,
        "tokens": tokens,
        "lost_ms": lost_ms,
        "emotion": summary,
    }


def emotion(trace_id: str, label: str) -> dict[str, Any]:
    return {"type": "voice.asr_text.emotion", "trace_id": trace_id, "label": label, "confidence": 0.9}


def error(code: str, *, recoverable: bool) -> dict[str, Any]:
    message = f"Problem: {code}"
    return {"type": "core.error_event", "ts": 1_795_615_301_828, "error_code": code, "message": message, "recoverable": recoverable}


EVENTS = [
    {"type": "core.status_event", "state": "stopped", "totals": {"lost_ms": 7}},
    {"type": "voice.asr_text.partial", "trace_id": "a", "text": "打"},
    final("a", "打开", 0.59, 0.6, lost_ms=200, emotion="happy"),
    emotion("a", "happy"),  # said twice, counted once
    final("b", "关", 0.99, lost_ms=30),
    error("audio_overrun", recoverable=True),
    final("c", "好", 0.2),  # its emotion will not come
    emotion("b", "sad"),  # late: behind the final of the next utterance
    final("d", "不", 1.0, emotion="happy"),
    error("runtime_error", recoverable=False),
]
RECORDING = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in EVENTS)


def ask(*arguments: str, events: str = RECORDING, **variables: str) -> subprocess.CompletedProcess[str]:
    variables = {"TZ": "UTC", **variables}
    return subprocess.run(
        [SCRIPT, *arguments], input=events, env=environment(**variables), capture_output=True, encoding="utf-8", check=False
    )


@NEEDS_JQ
@pytest.mark.parametrize(
    ("question", "lines"),
    [
        ("finals", ["打开。", "关。", "好。", "不。"]),
        ("follow", ["… 打", "= 打开。", "= 关。", "! Problem: audio_overrun", "= 好。", "= 不。", "! Problem: runtime_error"]),
        (
            "errors",
            [
                "2026-11-25 14:01:41\taudio_overrun\tgoes on\tProblem: audio_overrun",
                "2026-11-25 14:01:41\truntime_error\tends\tProblem: runtime_error",
            ],
        ),
        ("lost", ["230"]),
        ("emotions", ["2\thappy", "1\tnone", "1\tsad"]),
        ("uncertain", ["0\t0.59\t打\t打开", "0\t0.2\t好\t好"]),
    ],
)
def test_each_question_has_its_answer(question: str, lines: list[str]) -> None:
    result = ask(question)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == lines


@NEEDS_JQ
def test_lines_that_are_no_events_are_skipped() -> None:
    cut = '5\n\nnot JSON\n{"type": "voice.wake"}\n' + RECORDING + '{"type": "voice.asr_text.final", "te'
    for question in QUESTIONS:
        assert ask(question, events=cut).stdout == ask(question).stdout


@NEEDS_JQ
@pytest.mark.parametrize(("question", "answer"), [(each, "0\n" if each == "lost" else "") for each in QUESTIONS])
def test_no_events_are_no_error(question: str, answer: str) -> None:
    result = ask(question, events="")
    assert (result.returncode, result.stdout, result.stderr) == (0, answer, "")


@NEEDS_JQ
def test_a_line_is_answered_before_the_next_one_comes() -> None:
    for question, answer in (("finals", "打开。"), ("follow", "= 打开。"), ("uncertain", "0\t0.1\t打\t打开")):
        with subprocess.Popen([SCRIPT, question], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(final("a", "打开", 0.1)).encode() + b"\n")
            process.stdin.flush()
            answered, _, _ = select.select([process.stdout], [], [], in_time(5))
            process.stdin.close()
            assert answered, "nothing came while stdin was open"
            assert process.stdout.readline().decode() == answer + "\n"


def test_without_jq_one_line_says_what_to_do(tmp_path: Path) -> None:
    result = ask("finals", PATH=str(tmp_path))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "jq.sh: jq is missing; install it: apt-get install jq, dnf install jq or brew install jq\n"


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("",), ("finals", "asr_output.jsonl")])
def test_what_is_no_question_is_answered_by_the_usage(arguments: tuple[str, ...]) -> None:
    result = ask(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == ask("--help").stdout
    assert all(f"  {question} " in result.stderr for question in QUESTIONS)


# --- the real service ---------------------------------------------------------------------------------------------------


@NEEDS_JQ
@pytest.mark.slow
def test_the_events_of_a_run_are_answered() -> None:
    events = run_service("streaming", "--input", str(EXAMPLES / "two_utterances.wav"), "--status-events").events
    recording = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events)
    finals = of_type(events, "final")
    uncertain = [token["text"] for event in finals for token in event["tokens"] if token["confidence"] < 0.6]
    assert ask("finals", events=recording).stdout.splitlines() == ["今天北京的天气怎么样？", "明天早上七点叫我起床。"]
    assert ask("lost", events=recording).stdout == "0\n"
    (label,) = {event["emotion"]["label"] for event in finals}
    assert ask("emotions", events=recording).stdout == f"2\t{label}\n"
    assert ask("errors", events=recording).stdout == ""
    assert [line.split("\t")[2] for line in ask("uncertain", events=recording).stdout.splitlines()] == uncertain


@NEEDS_JQ
@pytest.mark.slow
def test_a_service_is_followed_through_a_pipe() -> None:
    service = subprocess.Popen(
        command("streaming", "--input", str(EXAMPLES / "two_utterances.wav")),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(),
        cwd="/",
    )
    with service:
        result = subprocess.run(
            [SCRIPT, "follow"], stdin=service.stdout, capture_output=True, encoding="utf-8", env=environment(), check=False
        )
    lines = result.stdout.splitlines()
    assert (service.returncode, result.returncode, result.stderr) == (0, 0, "")
    assert [line for line in lines if line.startswith("= ")] == ["= 今天北京的天气怎么样？", "= 明天早上七点叫我起床。"]
    assert [line[:1] for line in lines].count("…") >= 2
    assert lines[-1].startswith("= ")
