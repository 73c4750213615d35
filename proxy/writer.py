"""One request and its answer on a connection: ASGI's `receive` and `send`, and short cuts past both.

uvicorn's own cycle makes an event, a bytearray and a dozen references for each request, looks each header over, and
writes a reply's head and body separately. This one writes them together, suspends only when the client does not keep
up, and knows four things that ASGI has no words for:

whole_body    the body, if all of it has come
answer        a whole JSON answer, by one template
begin         a stream's head and first events, by another
push, push_chunk   a piece of a stream, at once or not at all
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterator
from typing import TYPE_CHECKING, Any, cast

from starlette.types import ASGIApp, Message, Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from backends.framing import FRAME_BYTES

if TYPE_CHECKING:
    from .protocol import Connection

_KEY = "slurmgate.exchange"
_log = logging.getLogger("uvicorn.error")

_JSON_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n%b"  # identity (record.py), body
)
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # an nginx in front must not hold events back
]
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\n%b%%btransfer-encoding: chunked\r\n\r\n%%x\r\n%%b\r\n"  # identity, length, first events
    % b"".join(b"%b: %b\r\n" % field for field in STREAM_HEADERS)
)


class _Done:
    """An awaitable that is done: awaiting it costs no coroutine."""

    __slots__ = ()

    def __await__(self) -> Iterator[Any]:
        return iter(())


DONE: Awaitable[None] = cast("Awaitable[None]", _Done())


class Exchange:
    """A request whose head has been read, until its answer is whole. Called, it is ASGI's `send`.

    body, more_body     what has come of the request's body and was not taken yet, and whether there is more to come
    disconnected        nobody reads what is written
    response_started    the head has been handed over; it is written with the first bytes of the body
    task                in which it is answered, from the start until it has been
    response_complete   all of the answer has been written
    streamed            bytes of events that were pushed; to a byte each, where they came in chunks
    """

    __slots__ = (
        "_chunked", "_connection", "_head", "_news", "_old", "_open", "_waiter", "body", "disconnected",
        "keep_alive", "more_body", "response_complete", "response_started", "scope", "streamed", "task", "transport",
        "waiting_for_100_continue",
    )  # fmt: skip

    def __init__(self, connection: Connection, scope: Scope, *, keep_alive: bool, old: bool = False) -> None:
        self._connection = connection
        self.scope = scope
        scope[_KEY] = self
        self.transport: Any = connection.transport
        self.keep_alive = keep_alive
        self._old = old  # HTTP/1.0 knows no chunks: an answer of unknown length ends where the connection does
        self.body = b""
        self.more_body = True
        self.waiting_for_100_continue = False
        self.disconnected = False
        self.response_started = False
        self.response_complete = False
        self.streamed = 0
        self._head = b""
        self._chunked = False
        self._open = (
            False  # pieces may be pushed: the head of a chunked answer is out, its end is not, the client reads
        )
        self._news = False  # something happened that `receive` has not told yet
        self._waiter: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None

    # -- the request --------------------------------------------------------------------------------------------------

    def start(self, app: ASGIApp) -> None:
        loop, tasks = self._connection.loop, self._connection.tasks
        # not loop.create_task: that gives each task a number, formats it into a name, and is told another one then
        self.task = asyncio.Task(self._run(app), loop=loop, name="request")
        tasks.add(self.task)

    async def _run(self, app: ASGIApp) -> None:
        scope = self.scope
        try:
            await app(scope, self.receive, self)
        except BaseException as error:
            _log.error("Exception in ASGI application\n", exc_info=error)
            if not self.response_started:
                await self._fail()
            else:
                self.transport.close()
        else:
            if not self.response_complete and not self.disconnected:
                _log.error("ASGI callable returned without completing response.")
                self.transport.close()
        finally:
            scope.pop(_KEY, None)  # break the circles, so that a finished request is freed at once and not collected
            if self.task is not None:
                self._connection.tasks.discard(self.task)
                self.task = None

    async def _fail(self) -> None:
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"21")]
        await self({"type": "http.response.start", "status": 500, "headers": [*headers, (b"connection", b"close")]})
        await self({"type": "http.response.body", "body": b"Internal Server Error"})

    def whole_body(self) -> bytes | None:
        """The request's body, taken; None if some of it is still to come: then it is to be received."""
        if self.more_body or self.disconnected:
            return None
        body, self.body = self.body, b""
        self._news = False
        self._connection.flow.resume_reading()  # that a client has gone is read, too
        return body

    async def receive(self) -> Message:
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not self.disconnected and not self.response_complete:
            self._connection.flow.resume_reading()
            if not self._news:
                self._waiter = self._connection.loop.create_future()
                await self._waiter
            self._news = False
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body = self.body, b""
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    def tell(self) -> None:
        """Wake `receive`."""
        self._news = True
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def disconnect(self) -> None:
        """Nobody reads the answer any more."""
        if not self.response_complete:
            self.disconnected = True
        self._open = False
        self.tell()

    def pause(self) -> None:
        """The client does not keep up. What is sent waits now; the first that does not is the one that goes on."""
        self._open = False

    # -- the answer ---------------------------------------------------------------------------------------------------

    def __call__(self, message: Message) -> Awaitable[None]:
        if self.disconnected:
            return DONE
        if self._connection.flow.write_paused:
            return self._when_drained(message)
        self._write(message)
        return DONE

    def answer(self, identity: bytes, body: bytes) -> bool:
        """A whole JSON answer with status 200, at once. False if it cannot be: then it is to be sent.

        identity   header lines that each answer has
        """
        if not self._is_plain():
            return False
        self.response_started = True
        self.transport.write(_JSON_HEAD % (len(body), identity, body))
        self._complete()
        return True

    def begin(self, identity: bytes, events: bytes) -> bool:
        """The head of a stream, and its first events, at once. False as above."""
        if not events or not self._is_plain():
            return False
        self.response_started = self._chunked = True
        self.streamed = len(events)
        self.transport.write(_STREAM_HEAD % (identity, len(events), events))
        self._open = not self._connection.flow.write_paused
        return True

    def _is_plain(self) -> bool:
        """Nothing stands in the way of a template."""
        return not (
            self.response_started
            or self._old
            or not self.keep_alive
            or self.disconnected
            or self._connection.flow.write_paused
        )

    def push(self, data: bytes) -> bool:
        """A piece of a chunked body, at once. False if it cannot be taken now: then it is to be sent and awaited."""
        if not self._open:
            return False
        self.streamed += len(data)
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def push_chunk(self, chunk: bytes) -> bool:
        """As `push`, of an event that is in a chunk already (backends/framing.py)."""
        if not self._open:
            return False
        self.streamed += len(chunk) - FRAME_BYTES
        self.transport.write(chunk)
        return True

    async def _when_drained(self, message: Message) -> None:
        await self._connection.flow.drain()
        if not self.disconnected:
            self._write(message)

    def _write(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._head = self._head_of(message["status"], message.get("headers", []))
            return
        if self.response_complete or not self.response_started:
            raise RuntimeError(f"{message['type']} out of its order")
        body: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        data = self._head
        self._head = b""
        if not self._chunked:
            data += body if self.scope["method"] != "HEAD" else b""
        else:
            self._open = more and not self._connection.flow.write_paused
            if body:
                data += b"%x\r\n%b\r\n" % (len(body), body)
            if not more:
                data += b"0\r\n\r\n"
        self.transport.write(data)
        if not more:
            self._complete()

    def _complete(self) -> None:
        self.response_complete = True
        self.tell()
        if not self.keep_alive:
            self.transport.close()
        self._connection.on_response_complete()

    def _head_of(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The head. Names are ours, in lower case; values may come from an engine or a plugin: they are looked at."""
        if self.response_started:
            raise RuntimeError("an answer has one head")
        self.response_started = True
        self.waiting_for_100_continue = False
        chunked = True
        parts = [STATUS_LINE[status]]
        for name, value in headers:
            if b"\n" in value or b"\r" in value:
                raise ValueError(f"a line end in the header {name.decode('latin-1')}")
            if name == b"content-length":
                chunked = False
            elif name == b"connection" and value == b"close":
                self.keep_alive = False
                continue
            parts += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        self._chunked = chunked and not self._old and self.scope["method"] != "HEAD" and status not in (204, 304)
        parts.append(b"transfer-encoding: chunked\r\n\r\n" if self._chunked else b"\r\n")
        return b"".join(parts)


def forget_writer(scope: Scope) -> None:
    """From now on there is no short cut: every piece of the answer is to pass what stands around `send`."""
    scope.pop(_KEY, None)


def short_cut(scope: Scope) -> Exchange | None:
    """The exchange of a request, whose `answer`, `push` and `push_chunk` are quicker than `send`, where it has one."""
    exchange: Exchange | None = scope.get(_KEY)
    return exchange
