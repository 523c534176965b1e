"""Opening and leaving the connection to a server by the WebSocket protocol. No state. Loop thread.

``open_socket`` raises what a network, a server or its certificate makes websockets raise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl

from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from voice.recognition.remote.protocol import MAX_MESSAGE_BYTES
from voice.recognition.remote.server import Server

CLOSE_SEC = 0.3
"""A server gets so long to take leave."""
_OPEN_SEC = 5.0
_PING_SEC, _PONG_SEC = 20.0, 20.0

_SILENT_LOGGER = logging.getLogger("voice.remote.websockets")
"""For websockets, whose debugging output shows messages: recognised text never goes into a log."""
_SILENT_LOGGER.setLevel(logging.CRITICAL + 1)
_SILENT_LOGGER.propagate = False


class _Connect(connect):
    """Goes to the server that was named and to no other."""

    def process_redirect(self, exc: Exception) -> Exception:
        """Follow nothing."""
        return exc


async def open_socket(server: Server, tls: ssl.SSLContext | None) -> ClientConnection:
    """Connect once, directly, whatever proxies the environment names."""
    return await _Connect(
        server.url,
        ssl=tls,
        subprotocols=[Subprotocol("binary")],
        additional_headers=server.headers,
        proxy=None,
        compression=None,
        open_timeout=_OPEN_SEC,
        close_timeout=CLOSE_SEC,
        ping_interval=_PING_SEC,
        ping_timeout=_PONG_SEC,
        max_size=MAX_MESSAGE_BYTES,
        logger=_SILENT_LOGGER,
    )


async def leave(socket: ClientConnection) -> None:
    """Close a connection; a server that does not read could keep that waiting for ever."""
    with contextlib.suppress(Exception):
        await asyncio.wait_for(socket.close(), 2 * CLOSE_SEC)
    socket.transport.abort()
