"""What the endpoints that are not OpenAI's chat share: asking a model, and answering in another API's events."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Protocol

import orjson
from starlette.types import Send

from backends.base import Call, EventStream, Reply
from backends.errors import GatewayError, MalformedResponse
from backends.sse import DONE
from proxy.dispatch import Dispatcher
from proxy.events import EventReply
from proxy.record import Record
from proxy.replies import JSON, send_reply
from proxy.translate.chunks import Events, Json

Serves = Callable[[str, str], bool]
"""(model, path) -> its engine answers there by itself. Raises `NotFound` for a model that is not served."""


class Exchange(Protocol):
    """One question as the engine gets it, and how its answer becomes the client's."""

    @property
    def call(self) -> Call: ...
    @property
    def events(self) -> Events:
        """For a stream."""

    def whole(self, reply: Reply) -> Json | None:
        """For a whole reply: what the client gets instead of it, None for the same. Notes its usage."""

    def keep(self, final: Json, /) -> Awaitable[None]:
        """Called with what the client gets, before it gets it."""


async def answer(send: Send, record: Record, dispatcher: Dispatcher, exchange: Exchange) -> None:
    """Ask, and answer. Raises `GatewayError` until the client has got a byte; from then on, errors are events."""
    if not record.stream:
        async with dispatcher.answer(exchange.call, record) as reply:
            await send_reply(send, await whole(exchange, reply))
        return
    async with EventReply(send, record, exchange.events.quiet) as client:
        try:
            async with dispatcher.answer(exchange.call, record) as reply:
                if isinstance(reply, Reply):
                    await client.whole(await whole(exchange, reply))
                else:
                    await client.relay(TranslatedStream(reply, exchange, record))
        except GatewayError as error:
            if not client.begun:
                raise
            record.fail(error)
            await client.relay(LastWord(exchange.events.fail(error)))


async def whole(exchange: Exchange, reply: Reply | EventStream) -> Reply:
    """What the client gets, where nothing is streamed. Raises `GatewayError`."""
    if not isinstance(reply, Reply):
        raise MalformedResponse("The engine streamed what was not to be streamed.")
    changed = exchange.whole(reply)
    if changed is None:
        return reply
    await exchange.keep(changed)
    return replace(reply, body=orjson.dumps(changed), content_type=JSON)


class TranslatedStream(EventStream):
    """The events that an exchange makes of an engine's stream.

    Before the first of them an error is raised; after it, it is the last event.
    """

    __slots__ = ("_begun", "_ended", "_events", "_exchange", "_inner", "_record")

    def __init__(self, inner: EventStream, exchange: Exchange, record: Record) -> None:
        super().__init__(inner.served_by)
        self.model = inner.model
        self.headers = inner.headers
        self._inner = inner
        self._exchange = exchange
        self._events = exchange.events
        self._record = record
        self._begun = False
        self._ended = False

    async def __anext__(self) -> bytes:
        while not self._ended:
            if out := await self._next():
                self._begun = True
                return out
        await self._let_go()
        raise StopAsyncIteration

    async def _next(self) -> bytes:
        events = self._events
        try:
            data = await anext(self._inner, b"")
            out = events.feed(data)
            if not events.over and (not data or data.endswith(DONE)):
                out += events.finish()
            if events.final is not None and events.failure is None:
                await self._exchange.keep(events.final)
        except GatewayError as error:
            if not self._begun:
                raise
            out = events.fail(error)
        if events.over:
            self._ended = True
            if events.failure is not None:
                self._record.fail(events.failure)
        return out

    async def _let_go(self) -> None:
        """The client has its last event. A chat stream is at its end, and its connection can be used again; another
        kind of stream has no end that `backends.sse` knows of, so it is closed."""
        if self._events.usage is not None:
            self._inner.close()
            self._inner.usage = self._events.usage
        elif self._events.failure is None:
            with contextlib.suppress(GatewayError):
                await anext(self._inner, b"")

    def close(self) -> None:
        self._inner.close()


class LastWord(EventStream):
    """A stream of one event: the error after which nothing comes."""

    __slots__ = ("_event",)

    def __init__(self, event: bytes) -> None:
        super().__init__("")
        self._event = event

    async def __anext__(self) -> bytes:
        if not self._event:
            raise StopAsyncIteration
        event, self._event = self._event, b""
        return event

    def close(self) -> None:
        """There is nothing under it."""


def parsed_reply(reply: Reply) -> Any:
    """The JSON of a whole reply. Raises `MalformedResponse`."""
    try:
        return orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        raise MalformedResponse("The engine's answer is no JSON.") from None


def chat_call(record: Record, path: str, chat: Json) -> Call:
    """A call that was translated."""
    return Call(record.id, path, chat["model"], chat, orjson.dumps(chat), record.stream, record.key_id)


def native_call(record: Record, path: str, body: Json, raw: bytes) -> Call:
    """A call at an endpoint that the engine has itself, the client's bytes untouched.

    These APIs tell usage without being asked, in events that `backends.sse` takes out for who did not ask for them. So
    the call says that they were asked for, which also keeps chat's question out of the bytes.
    """
    told = {**body, "stream_options": {"include_usage": True}} if record.stream else body
    return Call(record.id, path, body["model"], told, raw, record.stream, record.key_id)
