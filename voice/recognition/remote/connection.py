"""The connection to a server: one thread with an event loop, which sends utterances one after the other and keeps what it was told.

Worker: ``open`` an utterance, ``send`` its audio, ``end`` it, read its ``news``. Loop thread: everything else. Each side only hands values
over: the worker by ``call_soon_threadsafe``, the loop by replacing ``news``, an immutable value.

An utterance's audio is kept until its answer is there. A connection that breaks is made anew after a pause that doubles from 0.25 to
5 s, and the utterance is sent again from its start. One connection serves utterances one after the other, and the next one is not begun
before the server ended the one before; after any doubt (no answer in time, an utterance that was given up) a new connection is made, so
nothing of an old utterance can leak into the next one. Nothing is sent in silence, but the pings of the protocol.

What goes wrong is told as ``trouble.py`` says; nothing is raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable

import structlog
from websockets.asyncio.client import ClientConnection

from voice.recognition.remote.protocol import ServerNonsense, Session, start_message
from voice.recognition.remote.server import Server, ServerFailed, ServerSilent, explain
from voice.recognition.remote.socket import CLOSE_SEC, leave, open_socket
from voice.recognition.remote.trouble import Trouble
from voice.recognition.remote.utterance import MAX_ATTEMPTS, RemoteUtterance

_FIRST_PAUSE_SEC, _LONGEST_PAUSE_SEC = 0.25, 5.0
_MAX_FAILURES = 3
"""So often a server may say that it failed at an utterance."""
_LOOK_SEC = 0.25
_MAX_IDLE_MESSAGES = 1_000
_UNACKNOWLEDGED_SEC = 2.0
"""A server that sends no acknowledgement has ended an utterance when a corrected piece came and nothing followed for so long."""

log = structlog.get_logger()


class Connection:
    """The way to one server."""

    def __init__(self, server: Server, tls: ssl.SSLContext | None, *, answer_sec: float, max_wait_sec: float) -> None:
        """Connect, and stay connected.

        Args:
            server: where.
            tls: how its certificate is checked; None without TLS.
            answer_sec: a server that says nothing for so long after the end of an utterance is connected anew.
            max_wait_sec: an utterance that ended so long ago is given up, unless another one was answered since.
        """
        self._server = server
        self._tls = tls
        self._answer_sec = answer_sec
        self._max_wait_sec = max_wait_sec
        self._problems: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._trouble = Trouble()
        self._queue: deque[RemoteUtterance] = deque()  # from here on the loop's
        self._wanted = asyncio.Event()
        self._hotwords: str | None = None
        self._acknowledges = self._renews = self._stopping = False
        self._num_idle_messages = 0
        self._last_answer_at = 0.0
        self._pause_sec = _FIRST_PAUSE_SEC
        self._loop = asyncio.new_event_loop()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="remote engine", daemon=True)
        self._thread.start()

    @property
    def unavailable(self) -> bool:
        """Any thread: whether a problem was told and is not over."""
        return self._trouble.is_told

    @property
    def is_connected(self) -> bool:
        """Any thread: whether the connection stands."""
        return self._trouble.stands

    def open(self, name: str, hotwords: str) -> RemoteUtterance:
        """Worker: begin an utterance; it is sent when those before it are answered."""
        utterance = RemoteUtterance(name, hotwords, self._call)
        self._call(self._add, utterance)
        return utterance

    def take_problems(self) -> list[str]:
        """Worker: what was told since the last call, ``Type: text`` each."""
        problems = []
        with contextlib.suppress(queue.Empty):
            while True:
                problems.append(self._problems.get_nowait())
        return problems

    def close(self) -> None:
        """Worker: take leave of the server. Idempotent."""
        if not self._closed:
            self._closed = True
            self._loop.call_soon_threadsafe(self._stop)
            self._thread.join(2 * CLOSE_SEC)

    def _stop(self) -> None:
        self._stopping = True  # before Python 3.12 wait_for may swallow what is cancelled
        self._main.cancel()

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        if not self._closed:
            self._loop.call_soon_threadsafe(function, *arguments)

    def _run(self) -> None:
        self._main = self._loop.create_task(self._stay_connected())
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._main)
        self._loop.run_until_complete(self._cancel_rest())
        self._loop.close()

    async def _cancel_rest(self) -> None:
        """What was under way; a task that is dropped complains on stderr."""
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _add(self, utterance: RemoteUtterance) -> None:
        self._queue.append(utterance)
        self._wanted.set()

    async def _stay_connected(self) -> None:
        watch = asyncio.create_task(self._watch())
        try:
            while not self._stopping:
                await self._connect_once()
                if self._renews:
                    continue
                self._wanted.clear()
                with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                    await asyncio.wait_for(self._wanted.wait(), self._pause_sec)
                self._pause_sec = min(2 * self._pause_sec, _LONGEST_PAUSE_SEC)
        finally:
            watch.cancel()

    async def _connect_once(self) -> None:
        """Connect and serve until that ends, for whatever reason."""
        self._renews = False
        try:
            socket = await open_socket(self._server, self._tls)
            log.info("engine_connected", server=self._server.name)
            self._trouble.connected(time.monotonic())
            self._hotwords, self._acknowledges = None, False
            try:
                await self._serve(socket)
            finally:
                await leave(socket)
        except _Renewal:
            self._renews = True
        except Exception as error:  # noqa: BLE001 -- whatever a server or a network does, it is connected again
            log.warning("engine_lost", error=explain(error, self._server))
            self._trouble.failed(error, time.monotonic())
            self._tell()
        finally:
            self._trouble.disconnected()

    async def _serve(self, socket: ClientConnection) -> None:
        while not self._stopping:
            if not self._queue:
                await self._idle(socket)
                continue
            utterance = self._queue[0]
            if utterance.news.is_over:
                self._queue.popleft()
            elif self._hotwords not in (None, utterance.hotwords):  # the C++ server takes those of the first message
                raise _Renewal
            elif not utterance.begin():
                utterance.conclude(f"EngineUnavailable: {self._server.name} broke at this utterance {MAX_ATTEMPTS} times")
            else:
                self._hotwords = utterance.hotwords
                await self._converse(socket, utterance)

    async def _idle(self, socket: ClientConnection) -> None:
        """Until an utterance is there; what the server says meanwhile belongs to none."""
        self._num_idle_messages += 1
        if self._num_idle_messages > _MAX_IDLE_MESSAGES:
            raise ServerNonsense(f"more than {_MAX_IDLE_MESSAGES:,} messages while nobody spoke")
        self._wanted.clear()
        wanted, received = asyncio.create_task(self._wanted.wait()), asyncio.create_task(socket.recv())
        try:
            await asyncio.wait((wanted, received), return_when=asyncio.FIRST_COMPLETED)
            if received.done():
                received.result()
        finally:
            wanted.cancel()
            received.cancel()

    async def _converse(self, socket: ClientConnection, utterance: RemoteUtterance) -> None:
        """Send one utterance, and hear what the server makes of it.

        Raises:
            ServerNonsense, ServerSilent, ServerFailed, ConnectionClosed: it has to be sent again.
            _Renewal: a new connection is needed; nothing is wrong.
        """
        self._num_idle_messages = 0
        session = Session(utterance.name)
        await socket.send(start_message(utterance.name, utterance.hotwords))
        sending = asyncio.create_task(utterance.send_all(socket))
        last_message_at = 0.0
        try:
            while not session.ended:
                if utterance.news.is_over or self._stopping:  # given up
                    raise _Renewal
                if sending.done():
                    sending.result()
                try:
                    message = await asyncio.wait_for(socket.recv(), _LOOK_SEC)
                except (TimeoutError, asyncio.TimeoutError):
                    if self._is_over(utterance, session, last_message_at):
                        break
                    continue
                last_message_at = time.monotonic()
                if session.take(message):
                    utterance.hear(session.transcription)
        finally:
            sending.cancel()
        if utterance.end_sent_at is None:
            raise ServerNonsense("it ended an utterance that goes on")
        self._finish(utterance, session)

    def _is_over(self, utterance: RemoteUtterance, session: Session, last_message_at: float) -> bool:
        """Whether a server that says nothing has said everything.

        Raises:
            ServerSilent: it should have said something.
        """
        if utterance.end_sent_at is None:
            if utterance.stuck_sec > self._answer_sec:
                raise ServerSilent(f"it has read nothing for {self._answer_sec:g} s")
            return False
        silent_sec = time.monotonic() - max(utterance.end_sent_at, last_message_at)
        answers = session.may_be_over and last_message_at > utterance.end_sent_at and not self._acknowledges
        if answers and silent_sec > _UNACKNOWLEDGED_SEC:
            return True
        limit_sec = self._answer_sec * utterance.attempts + utterance.duration_sec  # a slow server gets more time with each try
        if silent_sec > limit_sec:
            raise ServerSilent(f"an utterance ended {limit_sec:.0f} s ago")
        return False

    def _finish(self, utterance: RemoteUtterance, session: Session) -> None:
        """The server is done with an utterance.

        Raises:
            ServerFailed: it failed; it is asked again, on a new connection.
            _Renewal: more of it may follow.
        """
        if session.failed and utterance.attempts < _MAX_FAILURES:
            raise ServerFailed
        if session.failed and not session.transcription.text:
            utterance.conclude(explain(ServerFailed(), self._server))
        utterance.hear(session.transcription, all_of_it=True)
        utterance.conclude()
        self._last_answer_at = time.monotonic()
        if session.failed:
            self._trouble.failed(ServerFailed(), self._last_answer_at)
        else:
            self._trouble.answered()
        self._pause_sec = _FIRST_PAUSE_SEC
        if not session.ended:
            raise _Renewal
        self._acknowledges = True

    async def _watch(self) -> None:
        """Give up what waits too long, and tell trouble that lasts."""
        while True:
            for utterance in self._queue:
                if utterance.waits_since(self._last_answer_at) > self._max_wait_sec:
                    utterance.conclude(f"EngineUnavailable: {self._server.name} did not answer within {self._max_wait_sec:g} s")
            while self._queue and self._queue[0].news.is_over:
                self._queue.popleft()
            self._tell()
            await asyncio.sleep(_LOOK_SEC)

    def _tell(self) -> None:
        error = self._trouble.look(time.monotonic(), idle=not self._queue)
        if error is not None:
            self._problems.put(explain(error, self._server))


class _Renewal(Exception):
    """The connection is given up for a new one; nothing is wrong."""
