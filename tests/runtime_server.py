"""A FunASR runtime server for tests: the messages of FunASR's C++ server or of its Python script, with the embedded models behind them.

``RuntimeServer`` listens on a port of the loopback in a thread of this process. ``docs/remote.md`` holds a conversation with FunASR's own
script; ``tests/test_remote_server.py`` compares this one with it. What a server may do wrong is a ``Fault``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import json
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

import numpy as np
from websockets.asyncio.server import Request, Response, Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from voice.audio import Samples
from voice.endpointing.endpointer import Endpointer, EndpointerSettings, SpeechEnded, SpeechStarted
from voice.endpointing.silero import SileroVad
from voice.finalization.punctuation import create_punctuator
from voice.models.converted import find_conversion, load_converted
from voice.models.directory import describe_model
from voice.models.weights import PUNCTUATION, RECOGNITION
from voice.places import EMBEDDED
from voice.recognition.engine import ChunkPreset
from voice.recognition.hotwords import HotwordGraphs
from voice.recognition.onnx_engine import OnnxEngine
from voice.recognition.second_pass import SamePass
from voice.recognition.streaming import StreamingRecognizer
from voice.transcript import Token, join_tokens

Kind = Literal["python", "cpp"]
Message = dict[str, Any]

_ONLINE_FRAMES = 10


class Recognition:
    """What a server knows: increments of a stream, and the corrected text of a piece."""

    def online(self) -> Any:
        """A stream: ``accept(samples)`` and ``finish()`` give increments."""
        raise NotImplementedError

    def offline(self, samples: Samples) -> tuple[str, list[list[int]]]:
        """Text with marks, and [begin, end] of each token, ms from the start of the samples."""
        raise NotImplementedError


class Embedded(Recognition):
    """The embedded models."""

    def __init__(self) -> None:
        directory = EMBEDDED / "asr"
        graphs = find_conversion(directory, describe_model(directory, RECOGNITION))
        assert graphs is not None
        self._engine = OnnxEngine(load_converted(graphs, directory, 1), 1.0)
        tokens = self._engine.vocabulary.tokens
        self._second = SamePass(self._engine, HotwordGraphs(tuple, tokens))
        self._first = StreamingRecognizer(self._engine, ChunkPreset(0, 10, 5, 4, 1))
        directory = EMBEDDED / "punctuation"
        graphs = find_conversion(directory, describe_model(directory, PUNCTUATION))
        assert graphs is not None
        self._punctuator = create_punctuator(load_converted(graphs, directory, 1))

    def online(self) -> _Increments:
        return _Increments(self._first.create_stream(0))

    def offline(self, samples: Samples) -> tuple[str, list[list[int]]]:
        tokens: list[Token] = self._second.tokens(samples)
        text = self._punctuator.punctuate(join_tokens(token.text for token in tokens), ended=True)
        return text, [[token.start_sample // 16, token.end_sample // 16] for token in tokens]


@functools.cache
def embedded() -> Embedded:
    """The embedded models, loaded once."""
    return Embedded()


class _Increments:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._shown = 0

    def accept(self, samples: Samples) -> str:
        self._stream.accept(samples, provisional=False)
        return self._new(self._stream.hypothesis().committed)

    def finish(self) -> str:
        return self._new(self._stream.finish().committed)

    def _new(self, tokens: tuple[Token, ...]) -> str:
        new, self._shown = tokens[self._shown :], len(tokens)
        return join_tokens(token.text for token in new)


class Counting(Recognition):
    """A character for each half second, without a model; the corrected text has a mark at its end."""

    class _Stream:
        def __init__(self) -> None:
            self._samples = self._shown = 0

        def accept(self, samples: Samples) -> str:
            self._samples += len(samples)
            count = self._samples // 8_000
            new, self._shown = _counted(count)[self._shown :], count
            return new

        def finish(self) -> str:
            return ""

    def online(self) -> Any:
        return self._Stream()

    def offline(self, samples: Samples) -> tuple[str, list[list[int]]]:
        text = _counted(len(samples) // 8_000)
        return text and f"{text}。", [[500 * index, 500 * index + 200] for index in range(len(text))]


def _counted(count: int) -> str:
    return "".join("零一二三四五六七八九"[index % 10] for index in range(count))


@dataclass
class Fault:
    """What a server does wrong."""

    close_after_frames: int | None = None
    """Close the connection abnormally when so many frames of an utterance came; each time, or once."""
    once: bool = True
    silent: bool = False
    """Say nothing."""
    no_acknowledgement: bool = False
    """As an old Python server: nothing follows the last piece."""
    answer_after_sec: float = 0.0
    """Wait so long before each message."""
    instead: Callable[[Message], list[str | bytes | Message]] | None = None
    """What is sent in the place of a message."""
    fails: str = ""
    """Say at the end that recognition failed."""


@dataclass
class _Utterance:
    name: str = "microphone"
    frames: list[bytes] = field(default_factory=list)


class RuntimeServer:
    """A server that can be stopped and started again on its port."""

    def __init__(
        self,
        kind: Kind = "python",
        recognition: Recognition | None = None,
        *,
        fault: Fault | None = None,
        tls: ssl.SSLContext | None = None,
        token: str | None = None,
        piece_silence_ms: int = 800,
    ) -> None:
        self.kind = kind
        self.recognition = recognition or Counting()
        self.fault = fault or Fault()
        self.tls = tls
        self.token = token
        self.piece_silence_ms = piece_silence_ms
        self.port = 0
        self.received: list[Message | int] = []
        """Messages, and lengths of frames, in the order they came."""
        self.first_bytes: set[int] = set()
        """Of the frames."""
        self.sent: list[Message] = []
        self.connections = 0
        self._loop = asyncio.new_event_loop()
        self._server: Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.start()

    @property
    def url(self) -> str:
        return f"{'wss' if self.tls else 'ws'}://localhost:{self.port}"

    def start(self) -> None:
        """Listen, on the port of before where there was one."""
        self._do(self._start())

    def stop(self) -> None:
        """Die: every connection breaks."""
        self._do(self._stop())

    def close(self) -> None:
        """Stop for good."""
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def __enter__(self) -> RuntimeServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    async def _start(self) -> None:
        self._server = await serve(
            self._converse, "localhost", self.port, subprotocols=["binary"], ping_interval=None, ssl=self.tls, process_request=self._admit
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def _stop(self) -> None:
        if self._server is not None:
            for connection in list(self._server.connections):
                connection.transport.abort()
            self._server.close(close_connections=False)
            await self._server.wait_closed()
            self._server = None

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        if self.token is None or request.headers.get("Authorization") == f"Bearer {self.token}":
            return None
        return connection.respond(HTTPStatus.UNAUTHORIZED, "no\n")

    async def _converse(self, connection: ServerConnection) -> None:
        self.connections += 1
        session = _PythonSession(self, connection) if self.kind == "python" else _CppSession(self, connection)
        with contextlib.suppress(ConnectionClosed):
            async for message in connection:
                if isinstance(message, str):
                    content = json.loads(message)
                    self.received.append(content)
                    await session.configure(content)
                else:
                    self.received.append(len(message))
                    self.first_bytes.add(message[0])
                    await session.hear(message)

    async def send(self, connection: ServerConnection, message: Message) -> None:
        if self.fault.silent:
            return
        await asyncio.sleep(self.fault.answer_after_sec)
        for each in self.fault.instead(message) if self.fault.instead else [message]:
            if isinstance(each, dict):
                self.sent.append(each)
            await connection.send(json.dumps(each) if isinstance(each, dict) else each)


class _Session:
    """State of a connection, as both servers keep it."""

    def __init__(self, server: RuntimeServer, connection: ServerConnection) -> None:
        self.server, self.connection = server, connection
        self.name = "microphone"
        self.hotwords: str | None = None
        self.num_frames = 0
        self.reset()

    def reset(self) -> None:
        silence = self.server.piece_silence_ms * 16
        self.vad = SileroVad()
        self.endpointer = Endpointer(EndpointerSettings(0.5, 0.35, 1_440, silence, silence, 60 * 16_000, 0.0))
        self.audio: Samples = np.zeros(0, np.float32)
        self.examined = 0
        self.piece_start: int | None = None
        self.had_piece = False
        self.online = self.server.recognition.online()
        self.fed = 0
        self.frames = 0

    def _append(self, frame: bytes) -> None:
        self.audio = np.concatenate((self.audio, np.frombuffer(frame, "<i2").astype(np.float32) / 32_768))
        self.frames += 1
        self.num_frames += 1
        fault = self.server.fault
        if fault.close_after_frames == self.frames:
            fault.close_after_frames = None if fault.once else fault.close_after_frames
            self.connection.transport.abort()

    def _ends(self) -> list[int]:
        """Samples at which the server's own voice activity detection ends a piece."""
        ends = []
        size = self.vad.window_samples
        while self.examined + size <= len(self.audio):
            window = self.audio[self.examined : self.examined + size]
            start, self.examined = self.examined, self.examined + size
            for decision in self.endpointer.step(start, self.examined, self.vad.probability(window, window[:0]), 1.0):
                if isinstance(decision, SpeechStarted):
                    self.piece_start = max(decision.start_sample - 3_200, 0)
                elif isinstance(decision, SpeechEnded):
                    ends.append(decision.end_sample)
        return ends

    async def send(self, **message: Any) -> None:
        await self.server.send(self.connection, {**message, "wav_name": self.name})


class _PythonSession(_Session):
    async def configure(self, content: Message) -> None:
        self.name = content.get("wav_name", self.name)
        self.hotwords = content.get("hotwords", self.hotwords)
        if content.get("is_speaking") is False:
            await self._piece(len(self.audio))
            fails = self.server.fault.fails
            if content.get("is_end") and not self.server.fault.no_acknowledgement:
                failure = {"error": fails} if fails else {}
                await self.server.send(
                    self.connection, {"mode": "2pass", "wav_name": self.name, "is_final": not fails, "is_end": True, **failure}
                )
            self.reset()

    async def hear(self, frame: bytes) -> None:
        self._append(frame)
        if self.frames % _ONLINE_FRAMES == 0:
            text = self.online.accept(self.audio[self.fed :])
            self.fed = len(self.audio)
            if text:
                await self.send(mode="2pass-online", text=text, is_final=False)
        for end in self._ends():
            await self._piece(end)

    async def _piece(self, end: int) -> None:
        if self.piece_start is None and self.had_piece:
            return
        text, times = self.server.recognition.offline(self.audio[self.piece_start or 0 : end])
        self.online, self.fed = self.server.recognition.online(), len(self.audio)
        self.piece_start, self.had_piece = None, True
        stamps = {"timestamp": times, "punc_array": [1] * len(times)} if text else {}
        await self.send(mode="2pass-offline", spk_name="unknown", spk_score=0.0, text=text, is_final=True, **stamps)


class _CppSession(_Session):
    def __init__(self, server: RuntimeServer, connection: ServerConnection) -> None:
        super().__init__(server, connection)
        self.index = 0
        self.started = False

    async def configure(self, content: Message) -> None:
        self.name = content.get("wav_name", self.name)
        if self.hotwords is None:
            self.hotwords = content.get("hotwords")
        if content.get("is_speaking") is False:
            message = self._increment(self.online.accept(self.audio[self.fed :]) + self.online.finish())
            if self.piece_start is not None or not self.had_piece:
                message = self._piece(len(self.audio)) or message
            await self.send(**(message or {"text": "", "timestamp": 1_764_000_000_000}), is_final=True)
            self.reset()

    async def hear(self, frame: bytes) -> None:
        self._append(frame)
        message = None
        if len(self.audio) - self.fed >= 9_600:
            message = self._increment(self.online.accept(self.audio[self.fed :]))
            self.fed = len(self.audio)
        for end in self._ends():
            message = self._piece(end) or message
        if message:
            await self.send(**message, is_final=False)

    def _increment(self, text: str) -> Message:
        if not text:
            return {}
        slice_type, self.started = int(self.started), True
        return {"text": text, "mode": "2pass-online", "slice_type": slice_type, "index": self.index, "timestamp": 1_764_000_000_000}

    def _piece(self, end: int) -> Message:
        start = self.piece_start or 0
        text, times = self.server.recognition.offline(self.audio[start:end])
        self.online, self.fed = self.server.recognition.online(), len(self.audio)
        self.piece_start, self.had_piece = None, True
        if not text:
            return {}
        index, self.index, self.started = self.index, self.index + 1, False
        stamps = json.dumps([[begin + start // 16, finish + start // 16] for begin, finish in times])
        span = {"start_time": start // 16, "end_time": end // 16}
        return {"text": text, "mode": "2pass-offline", "slice_type": 2, "index": index, "timestamp": stamps, "stamp_sents": [], **span}


class Unreading:
    """Accepts connections as a WebSocket server, and reads nothing more."""

    def __init__(self, *, redirect: str = "") -> None:
        self.redirect = redirect
        self.accepted = 0
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}"
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                self.accepted += 1
                request = b""
                while b"\r\n\r\n" not in request:
                    request += connection.recv(4_096)
                if self.redirect:
                    connection.sendall(f"HTTP/1.1 302 Found\r\nLocation: {self.redirect}\r\nContent-Length: 0\r\n\r\n".encode())
                    continue
                (key,) = [line[18:].strip() for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:")]
                accept = base64.b64encode(hashlib.sha1(key.strip() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
                connection.sendall(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: binary\r\n"
                    b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
                )

    def __enter__(self) -> Unreading:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for connection in self._connections:
            connection.close()
