"""examples/ros2: what is published for which event, muting, the node, and the package as colcon installs it.

rclpy comes with ROS 2 and is not among the packages of the tests: a stand-in of the part of its interface that the node uses takes its
place, and counts what the node does. ROS_PYTHON names a Python that has rclpy; then the node is also run on that one.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from harness import EXAMPLES, environment, in_time

from examples.ros2.voice_asr_ros import bridge
from examples.ros2.voice_asr_ros.bridge import Bridge, Publication, service_command, set_muted
from voice import client
from voice.client import Abandoned, Event, Status, parse_event

PACKAGE = EXAMPLES / "ros2"
NAME = "voice_asr_ros"
TEXTS = ["今天北京的天气怎么样？", "明天早上七点叫我起床。"]

# --- what is published --------------------------------------------------------------------------------------------------


def event(kind: str, **keys: Any) -> Event:
    parsed = parse_event(json.dumps({"type": kind, "trace_id": "a", **keys}))
    assert parsed is not None
    return parsed


def partial(text: str) -> Event:
    return event("voice.asr_text.partial", text=text)


def final(text: str) -> Event:
    return event("voice.asr_text.final", text=text)


def status(state: str) -> Event:
    return event("core.status_event", state=state)


def published(*events: Event, topics: tuple[str, ...] = ("final", "partial", "state")) -> list[tuple[str, str]]:
    decide = Bridge()
    return [(each.topic, each.data) for one in events for each in decide.publications(one) if each.topic in topics]


def test_an_utterance_is_partials_then_its_final_then_an_empty_partial() -> None:
    assert published(partial("今天"), partial("今天北京"), final("今天北京。")) == [
        ("partial", "今天"),
        ("partial", "今天北京"),
        ("final", "今天北京。"),
        ("partial", ""),
    ]


def test_a_final_without_partials_clears_nothing() -> None:
    assert published(partial("一"), final("一。"), final("二。"))[-1:] == [("final", "二。")]


def test_an_utterance_that_a_crash_cut_off_has_no_final_and_leaves_no_text() -> None:
    cut = Abandoned({}, "a", text="今天")
    assert published(partial("今天"), cut) == [("partial", "今天"), ("partial", "")]
    assert [json.loads(data) for _, data in published(cut, topics=("event",))] == [{"type": "abandoned", "trace_id": "a", "text": "今天"}]


def test_a_state_is_published_when_it_changes() -> None:
    states = ("loading", "ready", "listening", "listening", "muted", "listening")
    assert published(*map(status, states)) == [("state", each) for each in ("loading", "ready", "listening", "muted", "listening")]


def test_a_service_that_is_seen_stopped_is_published_once_and_its_return_is_published() -> None:
    decide = Bridge()
    seen = [*decide.publications(status("listening")), *decide.state("stopped"), *decide.state("stopped")]
    seen += [*decide.publications(status("listening"))]
    assert [each.data for each in seen if each.topic == "state"] == ["listening", "stopped", "listening"]


@pytest.mark.parametrize("kind", ["voice.asr_text.emotion", "core.error_event", "core.level_event", "voice.speech.started", "voice.wake"])
def test_each_event_is_published_whole_and_others_are_nothing_else(kind: str) -> None:
    one = event(kind, label="高兴", new_key=1)
    assert [(each.topic, json.loads(each.data)) for each in Bridge().publications(one)] == [("event", one.raw)]
    assert "高兴" in bridge.as_json(one)


def test_the_event_precedes_its_text() -> None:
    assert [each.topic for each in Bridge().publications(final("好。"))] == ["event", "final"]
    assert Publication("final", "好。") in Bridge().publications(final("好。"))


# --- mute ---------------------------------------------------------------------------------------------------------------


@dataclass
class FakeService:
    """Answers with a state; without one it does not answer."""

    answer: str | None
    commands: list[str] = field(default_factory=list)
    waited_sec: list[float] = field(default_factory=list)

    def mute(self) -> None:
        self.commands.append("mute")

    def unmute(self) -> None:
        self.commands.append("unmute")

    def status(self, timeout_sec: float) -> Status:
        self.commands.append("status")
        self.waited_sec.append(timeout_sec)
        if self.answer is None:
            raise TimeoutError
        return Status({}, state=self.answer)


@pytest.mark.parametrize(
    ("muted", "answer", "success", "message"),
    [
        (True, "muted", True, "muted"),
        (True, "listening", False, "listening"),
        (False, "listening", True, "listening"),
        (False, "audio_lost", True, "audio_lost"),
        (False, "muted", False, "muted"),
        (True, None, False, "the service did not confirm it within 3 s; it follows as soon as it listens"),
    ],
)
def test_a_mute_succeeds_when_the_service_confirms_it(muted: bool, answer: str | None, success: bool, message: str) -> None:
    service = FakeService(answer)
    assert set_muted(service, muted=muted, timeout_sec=3) == (success, message)
    assert service.commands == ["mute" if muted else "unmute", "status"], "the answer is asked for behind the command"
    assert service.waited_sec == [3]


# --- which service ------------------------------------------------------------------------------------------------------


def test_the_service_of_a_checkout_runs_on_its_own_python_without_the_pythonpath_of_ros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "__file__", str(tmp_path / "voice" / "client.py"))
    monkeypatch.setattr(client, "default_command", lambda: ["voice-asr", "run"])
    assert service_command("") == ["voice-asr", "run"]
    for name in (".venv/bin/python", "asr_service_streaming.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert service_command(" ") == [str(tmp_path / ".venv/bin/python"), "-E", str(tmp_path / "asr_service_streaming.py")]


def test_the_command_of_a_parameter_is_split_as_a_shell_does() -> None:
    assert service_command("'/opt/my voice/voice-asr' run") == ["/opt/my voice/voice-asr", "run"]


# --- the node on a stand-in of rclpy ------------------------------------------------------------------------------------


@dataclass
class Ros:
    """What the node did with ROS, and what happens to it while it spins."""

    parameters: dict[str, str] = field(default_factory=dict)
    steps: list[tuple[Callable[[], bool], Callable[[], None]]] = field(default_factory=list)
    """While the node spins, the first step is taken as soon as its condition holds."""
    count: Counter[str] = field(default_factory=Counter)
    published: list[tuple[str, str]] = field(default_factory=list)
    latched: dict[str, bool] = field(default_factory=dict)
    services: dict[str, Callable[[Any, Any], Any]] = field(default_factory=dict)
    logged: list[tuple[str, str]] = field(default_factory=list)
    broken: bool = False
    """Nothing can be published."""
    deadline: float = field(default_factory=lambda: time.monotonic() + in_time(30))

    def data(self, topic: str) -> list[str]:
        return [data for name, data in self.published if name == topic]

    def mute(self, muted: bool) -> tuple[bool, str]:
        """Call the service of the node as a client does."""
        request, response = types.SimpleNamespace(data=muted), types.SimpleNamespace(success=None, message=None)
        answer = self.services["~/mute"](request, response)
        return answer.success, answer.message

    # --- the interface of rclpy ---

    def init(self, *, args: Any, signal_handler_options: str) -> None:
        assert signal_handler_options == "NO"
        self.count["init"] += 1

    def shutdown(self) -> None:
        self.count["shutdown"] += 1

    def create_node(self, name: str) -> Ros:
        assert name == "voice_asr"
        return self

    def destroy_node(self) -> None:
        self.count["destroy_node"] += 1

    def spin_once(self, node: Ros, *, timeout_sec: float) -> None:
        assert node is self
        assert time.monotonic() < self.deadline, (self.published, self.logged)
        self.count["spin_once"] += 1
        if self.steps and self.steps[0][0]():
            self.steps.pop(0)[1]()
        time.sleep(min(timeout_sec, 0.01))

    def declare_parameter(self, name: str, default: str) -> types.SimpleNamespace:
        return types.SimpleNamespace(value=self.parameters.get(name, default))

    def create_publisher(self, kind: type, topic: str, qos: types.SimpleNamespace) -> types.SimpleNamespace:
        assert kind is Message
        self.latched[topic] = qos.durability == "transient_local"

        def publish(message: Message) -> None:
            if self.broken:
                raise RuntimeError("the context is invalid")
            assert not self.count["destroy_node"], "the node is gone"
            self.published.append((topic, message.data))

        def wait_for_all_acked(timeout: Any) -> bool:
            self.count["acked"] += 1
            return True

        return types.SimpleNamespace(publish=publish, wait_for_all_acked=wait_for_all_acked)

    def create_service(self, kind: type, name: str, answer: Callable[[Any, Any], Any]) -> None:
        assert kind is SetBool
        self.services[name] = answer

    def get_logger(self) -> types.SimpleNamespace:
        def at(level: str) -> Callable[[str], None]:
            return lambda text: self.logged.append((level, text))

        return types.SimpleNamespace(**{level: at(level) for level in ("debug", "warning", "error", "fatal")})

    def modules(self) -> dict[str, types.SimpleNamespace]:
        space = types.SimpleNamespace
        qos = space(
            DurabilityPolicy=space(TRANSIENT_LOCAL="transient_local"),
            QoSProfile=lambda depth, durability="volatile": space(depth=depth, durability=durability),
        )
        return {
            "rclpy": space(init=self.init, shutdown=self.shutdown, create_node=self.create_node, spin_once=self.spin_once),
            "rclpy.duration": space(Duration=lambda seconds: seconds),
            "rclpy.node": space(Node=Ros),
            "rclpy.qos": qos,
            "rclpy.signals": space(SignalHandlerOptions=space(NO="NO")),
            "std_msgs": space(),
            "std_msgs.msg": space(String=Message),
            "std_srvs": space(),
            "std_srvs.srv": space(SetBool=SetBool),
        }


@dataclass
class Message:
    """Stands for std_msgs/String."""

    data: str = ""


class SetBool:
    """Stands for std_srvs/SetBool."""

    Request = Response = types.SimpleNamespace


@pytest.fixture
def ros(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ros]:
    monkeypatch.setenv("XDG_CACHE_HOME", environment()["XDG_CACHE_HOME"])
    monkeypatch.setattr(client, "FIRST_PAUSE_SEC", 0.5)
    stand_in = Ros()
    for name, module in stand_in.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    yield stand_in
    for each, handler in handlers.items():
        signal.signal(each, handler)


def run_node() -> int:
    """Run the node to its end; its exit code."""
    name = f"examples.ros2.{NAME}.node"
    sys.modules.pop(name, None)
    code: int = importlib.import_module(name).main()
    return code


def raise_signal(number: signal.Signals) -> None:
    assert signal.getsignal(number) not in (signal.SIG_DFL, signal.default_int_handler), "it would end the tests, too"
    signal.raise_signal(number)


def played(tmp_path: Path, body: str) -> str:
    """The parameter ``command`` of a service that plays a part."""
    path = tmp_path / "service.py"
    path.write_text(
        "import json, os, pathlib, sys, time\n"
        "def say(type, **more): print(json.dumps({'type': type, 'trace_id': 'a', **more}), flush=True)\n"
        "def status(state, **more): say('core.status_event', state=state, **more)\n" + body,
        encoding="utf-8",
    )
    return f"'{sys.executable}' '{path}'"


LISTENS = """
status("loading")
status("listening")
say("voice.asr_text.partial", text="今天")
state = "listening"
for line in sys.stdin:
    command = json.loads(line)
    if command["command"] == "mute":
        state = "muted"
        status("muted")
    elif command["command"] == "unmute":
        state = "listening"
        status("unmuted")
        status("listening")
    elif command["command"] == "status":
        status(state, id=command["id"])
    else:
        say("voice.asr_text.final", text="今天。")
        status("stopped")
        break
"""


def test_the_topics_are_there_and_only_the_state_is_latched(ros: Ros, tmp_path: Path) -> None:
    ros.parameters["command"] = played(tmp_path, "status('stopped')")
    assert run_node() == 0
    assert ros.latched == {"~/final": False, "~/partial": False, "~/state": True, "~/event": False}
    assert list(ros.services) == ["~/mute"]
    assert ros.count["init"] == ros.count["shutdown"] == ros.count["destroy_node"] == 1
    assert ros.count["acked"] == 4, "each topic's last message is waited for"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_is_muted_and_unmuted_and_a_signal_costs_no_final(ros: Ros, tmp_path: Path, number: signal.Signals) -> None:
    ros.parameters["command"] = played(tmp_path, LISTENS)
    answers: list[tuple[bool, str]] = []
    ros.steps = [
        (lambda: ros.data("~/partial") == ["今天"], lambda: answers.append(ros.mute(True))),
        (lambda: "muted" in ros.data("~/state"), lambda: answers.append(ros.mute(False))),
        (lambda: ros.data("~/state")[-1] == "listening", lambda: raise_signal(number)),
    ]
    assert run_node() == 0
    assert answers == [(True, "muted"), (True, "listening")]
    states = ros.data("~/state")
    assert states[states.index("loading") :] == ["loading", "listening", "muted", "unmuted", "listening", "stopped"]
    assert (ros.data("~/final"), ros.data("~/partial")) == (["今天。"], ["今天", ""])
    assert ros.count["destroy_node"] == ros.count["shutdown"] == 1


def test_the_last_state_is_stopped_even_if_the_service_does_not_say_so(ros: Ros, tmp_path: Path) -> None:
    ros.parameters["command"] = played(tmp_path, LISTENS.replace('status("stopped")', "pass"))
    ros.steps = [(lambda: ros.data("~/partial") == ["今天"], lambda: raise_signal(signal.SIGTERM))]
    assert run_node() == 0
    assert ros.data("~/state")[-2:] == ["listening", "stopped"]


def test_after_a_crash_the_state_is_stopped_and_the_service_returns(ros: Ros, tmp_path: Path) -> None:
    body = f"""
first = pathlib.Path({str(tmp_path / "first")!r})
status("listening")
if not first.exists():
    first.touch()
    say("voice.asr_text.partial", text="今天")
    os._exit(70)
say("voice.asr_text.final", text="明天。")
"""
    ros.parameters["command"] = played(tmp_path, body)
    assert run_node() == 0
    states = ros.data("~/state")
    assert states[states.index("listening") :] == ["listening", "stopped", "listening", "stopped"]
    assert (ros.data("~/partial"), ros.data("~/final")) == (["今天", ""], ["明天。"])
    kinds = [json.loads(each)["type"].rpartition(".")[2] for each in ros.data("~/event")]
    assert kinds == ["status_event", "partial", "abandoned", "status_event", "final"]


def test_errors_and_the_log_are_logged_by_their_weight(ros: Ros, tmp_path: Path) -> None:
    body = """
sys.stderr.write("a line of the log\\n")
say("core.error_event", error_code="audio_silent", message="Silent: m", recoverable=True)
say("core.error_event", error_code="model_load_failed", message="Missing: m", recoverable=False)
sys.exit(3)
"""
    ros.parameters["command"] = played(tmp_path, body)
    assert run_node() == 3
    assert sorted(ros.logged) == [
        ("debug", "a line of the log"),
        ("error", "Missing: m"),
        ("fatal", "the service ended with exit code 3: Missing: m"),
        ("warning", "Silent: m"),
    ]
    assert ros.data("~/state") == ["stopped"]


@pytest.mark.parametrize("parameters", [{"command": "/nonexistent/voice-asr run"}, {"command": "'open"}, {"flags": "'open"}])
def test_a_service_that_cannot_be_started_ends_the_node_with_the_reason(ros: Ros, parameters: dict[str, str]) -> None:
    ros.parameters.update(parameters)
    assert run_node() == 2
    assert [level for level, _ in ros.logged] == ["fatal"]
    assert ros.count["shutdown"] == 1
    assert ros.count["spin_once"] == 0


def test_a_node_that_cannot_publish_ends_and_stops_the_service(ros: Ros, tmp_path: Path) -> None:
    ros.broken = True
    ros.parameters["command"] = played(tmp_path, LISTENS + f"pathlib.Path({str(tmp_path / 'stopped')!r}).touch()")
    with pytest.raises(RuntimeError, match="context is invalid"):
        run_node()
    assert (tmp_path / "stopped").exists()
    assert ros.count["shutdown"] == 1


@pytest.mark.slow
def test_the_node_publishes_what_the_real_service_recognises(ros: Ros, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('of another Python')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ros.parameters["flags"] = f"--embedded --input '{EXAMPLES / 'two_utterances.wav'}'"
    assert run_node() == 0, ros.logged
    assert ros.data("~/final") == TEXTS
    assert ros.data("~/partial")[-1] == ""
    assert ros.data("~/partial").count("") == 2
    states = ros.data("~/state")
    assert states[states.index("loading") :] == ["loading", "ready", "listening", "stopped"]
    events = [json.loads(each) for each in ros.data("~/event")]
    assert [each["seq"] for each in events] == list(range(1, len(events) + 1))
    assert [each["text"] for each in events if each["type"] == "voice.asr_text.final"] == TEXTS


# --- the node on rclpy --------------------------------------------------------------------------------------------------

ROS_PYTHON = os.environ.get("ROS_PYTHON")
LISTENER = """
import json, subprocess, sys, time
import rclpy
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String
from std_srvs.srv import SetBool

rclpy.init()
node = rclpy.create_node("listener")
heard = {"final": [], "partial": [], "event": [], "state": []}


def listen(topic, qos):
    node.create_subscription(String, f"/voice_asr/{topic}", lambda message: heard[topic].append(message.data), qos)


def spin_until(condition):
    deadline = time.monotonic() + float(sys.argv[1])
    while not condition():
        assert time.monotonic() < deadline, heard
        rclpy.spin_once(node, timeout_sec=0.05)


def mute(muted):
    answer = client.call_async(SetBool.Request(data=muted))
    spin_until(answer.done)
    return answer.result().success, answer.result().message


for topic in ("final", "partial", "event"):
    listen(topic, 100)
client = node.create_client(SetBool, "/voice_asr/mute")
program = "import sys; from voice_asr_ros.node import main; sys.exit(main())"
voice = subprocess.Popen([sys.executable, "-c", program, "--ros-args", "-p", "flags:=" + sys.argv[2]])
spin_until(lambda: heard["partial"])
listen("state", QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL))
spin_until(lambda: heard["state"])
answers = [mute(True), mute(False)]
spin_until(lambda: voice.poll() is not None and heard["state"][-1] == "stopped")
print(json.dumps({**heard, "answers": answers, "code": voice.returncode}))
"""


@pytest.mark.slow
@pytest.mark.skipif(ROS_PYTHON is None, reason="needs ROS_PYTHON=/path/to/a/python that has rclpy, std_msgs and std_srvs")
def test_on_rclpy_itself_it_publishes_latches_mutes_and_ends(tmp_path: Path) -> None:
    flags = f"--embedded --realtime --input '{EXAMPLES / 'two_utterances.wav'}'"
    path = os.pathsep.join([str(EXAMPLES.parent), str(PACKAGE), os.environ.get("PYTHONPATH", "")])
    local = {"ROS_LOCALHOST_ONLY": "1", "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_LOG_DIR": str(tmp_path)}
    command = [str(ROS_PYTHON), "-c", LISTENER, str(in_time(20)), flags]
    result = subprocess.run(command, env=environment(PYTHONPATH=path, **local), capture_output=True, encoding="utf-8", check=False)
    assert result.returncode == 0, result.stderr
    heard = json.loads(result.stdout)
    assert heard["state"] == ["listening", "muted", "unmuted", "listening", "stopped"], "the first was published before anybody subscribed"
    assert heard["answers"] == [[True, "muted"], [True, "listening"]]
    assert heard["final"][-1] == TEXTS[-1]
    assert heard["partial"][-1] == ""
    texts = [event["text"] for event in map(json.loads, heard["event"]) if event["type"] == "voice.asr_text.final"]
    assert texts == heard["final"]
    assert heard["code"] == 0


# --- the package --------------------------------------------------------------------------------------------------------


def imported(path: Path) -> set[str]:
    """The packages that a module imports, without those of the standard library, ``voice`` and its own."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module).split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return names - sys.stdlib_module_names - {"voice"}


def test_the_package_declares_what_it_imports_and_only_the_node_knows_ros() -> None:
    root = ET.parse(PACKAGE / "package.xml").getroot()
    assert root.findtext("name") == NAME
    assert root.findtext("export/build_type") == "ament_python"
    assert {each.text for each in root.iter("exec_depend")} == imported(PACKAGE / NAME / "node.py")
    assert imported(PACKAGE / NAME / "bridge.py") == set()


def test_it_is_installed_where_ros_looks_for_it(tmp_path: Path) -> None:
    """The commands are those that colcon gives setup.py for ament_python."""
    source, prefix = tmp_path / "source", tmp_path / "prefix"
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--single-version-externally-managed", "--record", str(tmp_path / "record")]
    command = [sys.executable, "setup.py", "-q", "install", "--prefix", str(prefix), *options]
    result = subprocess.run(command, cwd=source, env=environment(PYTHONWARNINGS="ignore"), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    files = {str(path.relative_to(prefix)) for path in prefix.rglob("*") if path.is_file()}
    assert {f"lib/{NAME}/voice_asr", f"share/ament_index/resource_index/packages/{NAME}", f"share/{NAME}/package.xml"} <= files
    (installed,) = prefix.glob(f"lib/python*/site-packages/{NAME}")
    assert {path.name for path in installed.glob("*.py")} == {"__init__.py", "bridge.py", "node.py"}
    version = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=source, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert version == ET.parse(PACKAGE / "package.xml").getroot().findtext("version")
