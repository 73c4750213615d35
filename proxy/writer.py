"""The way out of a request: ASGI's `send`, and a short cut for the pieces of streams.

uvicorn's own `send` is a coroutine for each message, and writes a reply's head and body separately. This one writes
them together and suspends only when the client does not keep up. It keeps uvicorn's own account of the reply (begun,
complete, chunked), so that its keep-alive, pipelining and clean-up go on as before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, cast

from starlette.types import Message, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

_KEY = "slurmgate.writer"


class _Done:
    """An awaitable that is done: awaiting it costs no coroutine."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


_DONE = _Done()


class Writer:
    """`send` for one request. It may be called as ASGI's; `push` is for pieces of a body that is under way."""

    __slots__ = ("_cycle", "_head")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._head = b""

    def __call__(self, message: Message) -> Awaitable[None]:
        cycle = self._cycle
        if cycle.flow.write_paused and not cycle.disconnected:
            return self._when_drained(message)
        if not cycle.disconnected:
            self._write(message)
        return _DONE

    def push(self, data: bytes) -> bool:
        """A piece of a chunked body, at once. False if it cannot be taken now: then it is to be sent and awaited."""
        cycle = self._cycle
        if cycle.flow.write_paused or cycle.disconnected or self._head or not cycle.chunked_encoding:
            return False
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    async def _when_drained(self, message: Message) -> None:
        await self._cycle.flow.drain()
        if not self._cycle.disconnected:
            self._write(message)

    def _write(self, message: Message) -> None:
        cycle = self._cycle
        if message["type"] == "http.response.start":
            self._head = self._head_of(message["status"], message["headers"])
            return
        body: bytes = message["body"]
        more: bool = message.get("more_body", False)
        data = self._head
        self._head = b""
        if not cycle.chunked_encoding:
            data += body
        elif body:
            data += b"%x\r\n%b\r\n" % (len(body), body)
        if cycle.chunked_encoding and not more:
            data += b"0\r\n\r\n"
        cycle.transport.write(data)
        if not more:
            cycle.response_complete = True
            cycle.message_event.set()
            if not cycle.keep_alive:
                cycle.transport.close()
            cycle.on_response()

    def _head_of(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The head. Names are ours, in lower case; values may come from an engine or a plugin: they are looked at."""
        cycle = self._cycle
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        cycle.chunked_encoding = True
        parts = [STATUS_LINE[status]]
        for name, value in headers:
            if b"\n" in value or b"\r" in value:
                raise ValueError(f"a line end in the header {name.decode('latin-1')}")
            if name == b"content-length":
                cycle.chunked_encoding = False
            elif name == b"connection" and value == b"close":
                cycle.keep_alive = False
                continue
            parts += (name, b": ", value, b"\r\n")
        if not cycle.keep_alive:
            parts.append(b"connection: close\r\n")
        parts.append(b"transfer-encoding: chunked\r\n\r\n" if cycle.chunked_encoding else b"\r\n")
        return b"".join(parts)


def writer_for(scope: Scope, send: Send) -> Send:
    """The writer in place of uvicorn's `send`, for replies that have bodies and know chunks; else that one."""
    if scope["type"] != "http" or scope["method"] not in ("POST", "GET"):
        return send
    cycle = cast(Any, send).__self__  # `send` is a method of the request's cycle: several may be queued on a connection
    if type(cycle) is not RequestResponseCycle:  # HTTP/1.0 has one of its own
        return send
    writer = scope[_KEY] = Writer(cycle)
    return writer


def forget_writer(scope: Scope) -> None:
    """Break the circle of scope, writer and cycle, so that a finished request is freed at once and not collected."""
    scope.pop(_KEY, None)


def push_of(scope: Scope) -> Callable[[bytes], bool] | None:
    """`Writer.push` of a request, where it has one."""
    writer: Writer | None = scope.get(_KEY)
    return writer.push if writer is not None else None
