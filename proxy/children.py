"""Calls of other models for one request: what a deliberation (tribunal/) asks, by the same dispatch as everything else.

Each is counted by itself, under the key of the request and the model that answers, and has a log line of its own. It is
let in already: the request's limits were asked for all of them together, or a key that may have one request at a time
would wait for itself. And the site's configuration has chosen its model, whatever else the key may ask.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from backends.base import Call, EventStream, Reply
from backends.errors import GatewayError

from .dispatch import Answer, Dispatcher, renamed
from .record import Record
from .trail import Children

ENDPOINT = "/v1/tribunal"
"""Of these calls, for log and metrics: so they are told from what clients have asked."""

Done = Callable[[Record, float], None]
"""Told of each call's end, with its seconds."""

AsOurs = Callable[[Exception, Record], GatewayError]
"""Makes an error of ours of one that was not foreseen."""


class Child(Answer):
    """`async with Child(dispatcher, call, parent, done) as reply: ...` while the parent's answer lasts, or for as long
    after it as it takes to cancel. `reply.usage` afterwards is what was accounted for. Raises as
    `Dispatcher.answer`."""

    __slots__ = ("_as_ours", "_children", "_done")

    def __init__(self, dispatcher: Dispatcher, call: Call, parent: Call, done: Done, as_ours: AsOurs) -> None:
        above = parent.notes
        if not isinstance(above, Record):
            raise TypeError("the parent is a call that the dispatcher has asked")
        record = Record("POST", above.path)
        record.id, record.endpoint, record.stream = call.id, ENDPOINT, call.stream
        record.principal, record.key_id = above.principal, above.key_id
        super().__init__(dispatcher, call, record)
        self._done = done
        self._as_ours = as_ours
        trail = above.note()
        if trail.children is None:
            trail.children = Children()
        self._children = trail.children
        call.notes = record
        call.headers = trail.headers  # so that the engine's own spans hang under the request's

    async def __aenter__(self) -> Reply | EventStream:
        children = self._children
        children.calls += 1
        children.running += 1
        try:
            entry = self._dispatcher.registry.find(self._call.model)
            self._record.model = entry.name
            if self._call.model != entry.name:
                self._call = renamed(self._call, entry.name)
            reply = await self._run(entry)
        except BaseException as error:
            children.ended(None)
            if isinstance(error, Exception) and not isinstance(error, GatewayError):
                ours = self._as_ours(error, self._record)
                self._tell(ours)
                raise ours from None
            self._tell(error)
            raise
        if isinstance(reply, EventStream):
            reply = self._reply = CountedStream(reply, self._record)
        return reply

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dispatcher.ends(self._call)
        ours: BaseException | None = error
        if isinstance(error, Exception) and not isinstance(error, GatewayError):
            ours = self._as_ours(error, self._record)
        usage = None
        try:
            usage = self._reply.usage = self._end(ours)
        finally:
            self._children.ended(usage)
            self._tell(ours)
        if ours is not None and ours is not error:
            raise ours from None

    def _tell(self, error: BaseException | None) -> None:
        record = self._record
        if isinstance(error, GatewayError):
            record.fail(error)
            record.status = error.status
        elif error is not None:
            record.status, record.error = 499, "cancelled"
        else:
            record.status = 200
        self._done(record, time.perf_counter() - record.started)


class CountedStream(EventStream):
    """A child's stream: how much of it has come is known when it ends early."""

    __slots__ = ("_inner", "_record")

    def __init__(self, inner: EventStream, record: Record) -> None:
        super().__init__(inner.served_by)
        self.model, self.headers = inner.model, inner.headers
        self._inner = inner
        self._record = record

    async def __anext__(self) -> bytes:
        data = await anext(self._inner)
        record = self._record
        if record.first_byte_s is None:
            record.first_byte_s = time.perf_counter() - record.started
        record.streamed += len(data)
        return data

    def close(self) -> None:
        self._inner.close()
        self.usage, self.failure = self._inner.usage, self._inner.failure
