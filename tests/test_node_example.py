"""The Node example, and the types it has of the events."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import EXAMPLES, REPOSITORY, environment

NODE = shutil.which("node")
NEEDS_NODE = pytest.mark.skipif(NODE is None, reason="needs Node 18 or later (apt-get install nodejs)")
VOICE = EXAMPLES / "node" / "voice.mjs"


def test_the_types_are_those_of_the_schema() -> None:
    """After a change of the events: python tools/event_types.py."""
    spec = importlib.util.spec_from_file_location("event_types", REPOSITORY / "tools" / "event_types.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    schema = json.loads(tool.SCHEMA.read_text(encoding="utf-8"))
    text = tool.typescript(schema)
    assert tool.TARGET.read_text(encoding="utf-8") == text
    assert all(f"interface {name} " in text for name in schema["$defs"])


def node(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(NODE), *map(str, arguments)], env=environment(), capture_output=True, encoding="utf-8", check=False)


@NEEDS_NODE
@pytest.mark.slow
def test_the_program_prints_the_finals_of_the_service() -> None:
    result = node(VOICE, "--embedded", "--input", EXAMPLES / "two_utterances.wav")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ["928 今天北京的天气怎么样？", "4736 明天早上七点叫我起床。"]


@NEEDS_NODE
def test_wrong_settings_end_it() -> None:
    assert node(VOICE, "--nonsense").returncode == 2


@NEEDS_NODE
def test_a_crash_is_followed_by_a_new_start_a_mute_and_what_was_cut_off(tmp_path: Path) -> None:
    """A service that plays a part: it crashes in the middle of an utterance, then says what it read on stdin."""
    service = tmp_path / "service.py"
    service.write_text(
        f"""
import json, os, pathlib, sys
first = pathlib.Path({str(tmp_path / "first")!r})
if not first.exists():
    first.touch()
    print(json.dumps({{"type": "voice.asr_text.partial", "trace_id": "a", "text": "今天"}}), flush=True)
    sys.stdin.readline()
    os._exit(70)
print(json.dumps({{"type": "voice.asr_text.final", "trace_id": "b", "text": sys.stdin.readline().strip()}}), flush=True)
"""
    )
    program = tmp_path / "program.mjs"
    program.write_text(
        f"""
import {{ VoiceService }} from {json.dumps(VOICE.as_uri())};
const service = new VoiceService([], [{json.dumps(sys.executable)}, {json.dumps(str(service))}]);
for (const name of ["abandoned", "voice.asr_text.final", "end"]) service.on(name, (value) => console.log(name, JSON.stringify(value)));
service.on("voice.asr_text.partial", () => service.mute());
service.start();
"""
    )
    assert node(program).stdout.splitlines() == [
        'abandoned {"trace_id":"a","text":"今天"}',
        'voice.asr_text.final {"type":"voice.asr_text.final","trace_id":"b","text":"{\\"command\\":\\"mute\\"}"}',
        "end 0",
    ]
