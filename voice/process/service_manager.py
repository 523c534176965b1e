"""Tells systemd, where it started us, that the service is ready, alive and stopping (sd_notify(3)). Elsewhere it does nothing.

One datagram a message to the socket that ``NOTIFY_SOCKET`` names. No state.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Literal


def notify(message: Literal["READY=1", "WATCHDOG=1", "STOPPING=1", "EXTEND_TIMEOUT_USEC=120000000"]) -> None:
    """Send a message; a manager that cannot be reached is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.settimeout(0)
        channel.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)


class SignOfLife:
    """Tells the service manager, once a second, that the loop goes round."""

    def __init__(self) -> None:
        self._given_at = 0.0

    def give(self, *, started: bool) -> None:
        """Called on each round, also while a microphone is waited for at the start."""
        now = time.monotonic()
        if now - self._given_at > 1:
            self._given_at = now
            notify("WATCHDOG=1" if started else "EXTEND_TIMEOUT_USEC=120000000")
