"""A streamed answer on its way to the client: status line, events, signs of life in silence, errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType

from starlette.types import Send

from backends.base import EventStream, Reply
from backends.errors import GatewayError, MalformedResponse, Unavailable
from backends.sse import error_event

from .record import Record, elapsed_s
from .replies import send_reply
from .writer import STREAM_HEADERS, Exchange

SILENCE_S = 15.0
"""After this long without an event the client gets a sign of life, so that nothing on the way takes the connection for
dead."""

QUIET_CHUNK_EVERY = 4
"""Each so many signs one is a real chunk that says nothing: LangChain gives up on a stream after 120 s without a chunk,
and does not count comments."""

_COMMENT = b": keep-alive\n\n"


class EventReply:
    """`async with EventReply(send, record) as reply:` from before the model is asked until the last event.

    quiet_chunk   makes an event without content, in the endpoint's own shape; b"" where there is none
    exchange      has a quicker way out than `send` for the pieces of a stream, where there is one (writer.py)
    begun         the status line has been sent, so an error can only be an event now
    """

    __slots__ = (
        "_exchange",
        "_handle",
        "_last",
        "_loop",
        "_pushed",
        "_quiet_chunk",
        "_record",
        "_send",
        "_sign",
        "_signs",
        "begun",
        "headers",
    )

    def __init__(
        self,
        send: Send,
        record: Record,
        quiet_chunk: Callable[[], bytes] = bytes,
        exchange: Exchange | None = None,
    ) -> None:
        self._send = send
        self._record = record
        self._quiet_chunk = quiet_chunk
        self._exchange = exchange
        self._sign: asyncio.Task[None] | None = None
        self._signs = 0
        self._pushed = 0
        self.begun = False
        self.headers: Sequence[tuple[bytes, bytes]] = ()

    async def __aenter__(self) -> EventReply:
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._handle = self._loop.call_later(SILENCE_S, self._listen)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._handle.cancel()
        if self._sign is not None:
            self._sign.cancel()
        if isinstance(error, asyncio.CancelledError) and self._exchange is not None:
            # the gateway stops, and will not wait any longer; a client that has gone gets nothing of this
            self._exchange.push(error_event(Unavailable("The gateway is stopping.", code="gateway_stopping")))
        if not isinstance(error, GatewayError) or not self.begun:
            return False
        self._record.fail(error)
        await self._body(error_event(error), more=True)
        await self._body(b"", more=False)
        return True

    async def relay(self, stream: EventStream) -> None:
        """All of a stream. Before its first event an error is still an HTTP error."""
        send, record, exchange = self._send, self._record, self._exchange
        self.headers = stream.headers
        if exchange is not None:
            stream.pass_to(exchange.push if stream.headers else partial(self._open, stream, exchange))
            stream.pass_chunks_to(exchange.push_chunk)
        time = self._loop.time
        try:
            async for events in stream:
                if record.first_byte_s is None:
                    record.first_byte_s = elapsed_s(record)
                if self.begun:
                    self._last = time()
                    record.streamed += len(events)
                    await send({"type": "http.response.body", "body": events, "more_body": True})
                elif exchange is None or stream.headers or not self._open(stream, exchange, events):
                    record.streamed += len(events)
                    await self.event(events)
        finally:
            if exchange is not None:
                record.streamed += exchange.streamed
        if not self.begun:
            await self._begin()
        await self._body(b"", more=False)

    def _open(self, stream: EventStream, exchange: Exchange, events: bytes) -> bool:
        """Take the first events, the head before them, in one write. False if they cannot be taken so."""
        record = self._record
        if record.first_byte_s is None:
            record.first_byte_s = elapsed_s(record)
        if self.begun:  # by a sign of life
            if not exchange.push(events):
                return False
        else:
            if not exchange.begin(record.identity(), events):
                return False
            self.begun = True
            record.status = 200
        stream.pass_to(exchange.push)
        return True

    async def whole(self, reply: Reply) -> None:
        """An engine answered with a whole reply where a stream was asked for: passed on, if it is not too late."""
        if self.begun:
            raise MalformedResponse("The engine did not answer with a stream.")
        await send_reply(self._send, reply)

    async def event(self, events: bytes) -> None:
        """Whole events, the status line before the first of them."""
        self._last = self._loop.time()
        if not self.begun:
            await self._begin()
        await self._body(events, more=True)

    async def _begin(self) -> None:
        self.begun = True
        await self._send({"type": "http.response.start", "status": 200, "headers": [*STREAM_HEADERS, *self.headers]})

    async def _body(self, data: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    def _listen(self) -> None:
        """Every so often: was it silent since? What was pushed is counted, and not looked at the clock for."""
        exchange = self._exchange
        if exchange is not None and exchange.streamed != self._pushed:
            self._pushed = exchange.streamed
            self._last = self._loop.time()  # it was earlier, so a sign may come up to twice as late
        silent_s = self._loop.time() - self._last
        if silent_s < SILENCE_S:
            self._handle = self._loop.call_later(SILENCE_S - silent_s, self._listen)
            return
        self._handle = self._loop.call_later(SILENCE_S, self._listen)
        if self._sign is None or self._sign.done():  # else the client does not read
            self._sign = asyncio.create_task(self._give_sign(), name="keep-alive")

    async def _give_sign(self) -> None:
        self._signs += 1
        chunk = self._quiet_chunk() if self._signs % QUIET_CHUNK_EVERY == 0 else b""
        if not self.begun:
            await self._begin()
        await self._body(chunk or _COMMENT, more=True)
