"""An engine that answers as its behaviour says, over a real socket, and remembers what it was asked.

Answers            a whole chat completion, or the same as a stream
AnswersWith        any status and body
NeverBegins        takes the request and says nothing
StopsMidStream     sends the first chunks, then nothing more
PausesMidStream    ... then nothing until it is told to go on
TalksOn            sends chunk after chunk until nobody listens
DiesMidStream      sends the first chunks, then closes
DiesOnRequests     closes without a word
BreaksInItsStream  sends an error event inside a 200, as TGI and llama.cpp do
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

Write = Callable[[bytes], Awaitable[None]]

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
WORDS = ("Slurm", " is", " up")


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    raw: bytes
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the gateway has closed this request's connection, or sent the next request on it."""


class Engine:
    """`async with Answers() as engine: ...` listens on a free port of loopback."""

    host = "127.0.0.1"
    port = 0

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.questions: list[Request] = []
        """Those without a body: after its health, its limits."""
        self.arrived = asyncio.Condition()
        self.connections = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        self._connections: set[asyncio.Task[None]] = set()
        self._answering: set[asyncio.Task[None]] = set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in tuple(self._answering):
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def request(self, number: int = 1) -> Request:
        """The number-th request, once it has come."""
        async with self.arrived:
            await self.arrived.wait_for(lambda: len(self.requests) >= number)
        return self.requests[number - 1]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until its socket is closed. What it answers is a task of its own, since this one must not be cancelled."""
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        answering = asyncio.create_task(self._connection(reader, writer), name="fake engine")
        self._answering.add(answering)
        await asyncio.wait([answering])
        self._answering.discard(answering)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        self._connections.discard(connection)
        if not answering.cancelled() and (error := answering.exception()) is not None:
            raise error

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        request: Request | None = None
        try:
            while (head := await read_head(reader)) is not None:
                if request is not None:
                    request.over.set()
                path, headers = head
                raw = await reader.readexactly(int(headers.get("content-length", "0")))
                request = Request(path, headers, json.loads(raw) if raw else {}, raw)
                async with self.arrived:
                    if raw:
                        self.requests.append(request)
                    else:
                        self.questions.append(request)
                    self.arrived.notify_all()

                async def write(data: bytes) -> None:
                    writer.write(data)
                    await writer.drain()

                if not await self.answer(request, write):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            if request is not None:
                request.over.set()

    async def answer(self, request: Request, write: Write) -> bool:
        """Answer; False closes the connection."""
        raise NotImplementedError


async def read_head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]] | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    lines = head.decode().split("\r\n")
    pairs = (line.split(":", 1) for line in lines[1:] if line)
    return lines[0].split(" ")[1], {name.lower(): value.strip() for name, value in pairs}


def whole(status: int, body: bytes, headers: str = "") -> bytes:
    return (
        f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    ).encode() + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def delta(model: str, content: str | None, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {} if content is None else {"content": content}, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Answers(Engine):
    async def answer(self, request: Request, write: Write) -> bool:
        model = request.body.get("model", "")
        if not request.body.get("stream"):
            message = {"role": "assistant", "content": "".join(WORDS)}
            choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
            body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice]}
            await write(whole(200, json.dumps({**body, "usage": USAGE}).encode()))
            return True
        await write(STREAM_HEAD)
        for word in WORDS:
            await write(chunk(event(delta(model, word))))
        await write(chunk(event(delta(model, None, "stop"))))
        if (request.body.get("stream_options") or {}).get("include_usage"):
            await write(chunk(event({**delta(model, None), "choices": [], "usage": USAGE})))
        await write(chunk(event(b"[DONE]")) + b"0\r\n\r\n")
        return True


class AnswersWith(Engine):
    def __init__(self, status: int, body: bytes, headers: str = "") -> None:
        super().__init__()
        self.reply = whole(status, body, headers)

    async def answer(self, request: Request, write: Write) -> bool:
        await write(self.reply)
        return True


class NeverBegins(Engine):
    async def answer(self, request: Request, write: Write) -> bool:
        return True  # back to reading, where the gateway's closing is seen


class StopsMidStream(Engine):
    async def answer(self, request: Request, write: Write) -> bool:
        await write(STREAM_HEAD + chunk(event(delta("m", "Slurm"))))
        return True


class PausesMidStream(Engine):
    """Until `go_on` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    async def answer(self, request: Request, write: Write) -> bool:
        await write(STREAM_HEAD + chunk(event(delta("m", "Slurm"))))
        await self.go_on.wait()
        await write(chunk(event(delta("m", None, "stop"))) + chunk(event(b"[DONE]")) + b"0\r\n\r\n")
        return True


class TalksOn(Engine):
    """So that whoever leaves it leaves midway, however slow."""

    async def answer(self, request: Request, write: Write) -> bool:
        await write(STREAM_HEAD)
        while True:
            await write(chunk(event(delta("m", "Slurm"))))
            await asyncio.sleep(0.01)


class DiesMidStream(Engine):
    async def answer(self, request: Request, write: Write) -> bool:
        await write(STREAM_HEAD + chunk(event(delta("m", "Slurm"))))
        return False


class DiesOnRequests(Engine):
    async def answer(self, request: Request, write: Write) -> bool:
        return False


class BreaksInItsStream(Engine):
    def __init__(self, error: Any) -> None:
        super().__init__()
        self.error = error

    async def answer(self, request: Request, write: Write) -> bool:
        await write(STREAM_HEAD + chunk(event(delta("m", "Slurm"))) + chunk(event(self.error)) + b"0\r\n\r\n")
        return True
