"""The ROS 2 node; what it publishes where is decided in bridge.py.

Threads: one takes the events of the service and publishes them; the main thread spins, that is, answers ``~/mute``. Both publish under
one lock. SIGINT and SIGTERM stop the service in order; its last final is published before the node ends.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import rclpy
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String
from std_srvs.srv import SetBool

from voice.client import Error, ServiceFailed, VoiceService

from .bridge import STOPPED, Bridge, Publication, Topic, service_command, set_muted, split

LOOK_SEC = 0.2
"""So often the main thread looks whether the service stopped, or a signal came."""
DELIVERY_SEC = 1
"""So long the node waits at its end until subscribers have the last messages."""
WRONG_SETTINGS = 2
QOS: dict[Topic, QoSProfile] = {
    "final": QoSProfile(depth=10),
    "partial": QoSProfile(depth=10),
    "state": QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL),  # whoever subscribes later gets it, too
    "event": QoSProfile(depth=100),
}


class Publishers:
    """The topics of the node, for both threads."""

    def __init__(self, node: Node) -> None:
        self._publishers = {topic: node.create_publisher(String, f"~/{topic}", qos) for topic, qos in QOS.items()}
        self._lock = threading.Lock()

    def publish(self, publications: Iterable[Publication]) -> None:
        """Publish in order. An iterator of ``Bridge`` is advanced under the lock, which protects the bridge's state."""
        with self._lock:
            for each in publications:
                self._publishers[each.topic].publish(String(data=each.data))

    def finish(self) -> None:
        """Wait until subscribers have received what was published."""
        for publisher in self._publishers.values():
            publisher.wait_for_all_acked(Duration(seconds=DELIVERY_SEC))


def run(node: Node, stopping: threading.Event) -> int:
    """Run the service until it ends or ``stopping`` is set; the exit code."""
    log = node.get_logger()
    flags: str = node.declare_parameter("flags", "").value
    command: str = node.declare_parameter("command", "").value

    def complain(error: Error) -> None:
        if error.recoverable:
            log.warning(error.message)
        else:
            log.error(error.message)

    try:
        service = VoiceService(*split(flags), command=service_command(command), on_error=complain, on_log=log.debug).start()
    except (OSError, ValueError) as error:
        log.fatal(f"the service cannot be started: {error}")
        return WRONG_SETTINGS
    bridge, publishers = Bridge(), Publishers(node)

    def hand_on() -> None:
        for event in service:
            publishers.publish(bridge.publications(event))

    def answer(request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        response.success, response.message = set_muted(service, muted=request.data)
        return response

    node.create_service(SetBool, "~/mute", answer)
    with ThreadPoolExecutor(1, "voice-events") as pool:
        reading = pool.submit(hand_on)
        try:
            while not (reading.done() or stopping.is_set()):
                rclpy.spin_once(node, timeout_sec=LOOK_SEC)
                if service.state == STOPPED:  # a service that crashed sent no event of it
                    publishers.publish(bridge.state(STOPPED))
        finally:
            service.stop()
    publishers.publish(bridge.state(STOPPED))
    publishers.finish()
    try:
        reading.result()
    except ServiceFailed as failure:
        log.fatal(str(failure))
        return failure.exit_code
    return 0


def main(args: list[str] | None = None) -> int:
    """Run the node; the exit code is the service's."""
    stopping = threading.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: stopping.set())
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)  # its own handlers would end publishing at once
    node = rclpy.create_node("voice_asr")
    try:
        return run(node, stopping)
    finally:
        node.destroy_node()
        rclpy.shutdown()
