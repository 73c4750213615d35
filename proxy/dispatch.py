"""The only way to a model: whoever wants an answer asks here, and every answer is accounted for here.

    find the model, if the key may use it --> let in by the limits --> the backend --> ... the answer passes on ...
        --> count its tokens --> give back to the limits what was taken too much --> usage

A client that leaves at any moment, and a backend that fails in any way, ends in the same place: what was taken is given
back (`Pass.leave`), and what was used is counted.

A request that other models are asked for (children.py) counts as one without tokens, since theirs are counted, each by
itself; its limits are asked once, for all of them together.
"""

from __future__ import annotations

import time
from dataclasses import replace
from types import TracebackType
from typing import Protocol

import orjson

from backends.base import Call, EventStream, Headers, Reply, Usage
from backends.errors import GatewayError
from backends.places import Priority
from backends.sse import error_event

from . import forms
from .limits import estimates
from .limits.local import FREE, Limits
from .limits.seam import Admission, Pass
from .record import Record
from .registry import Entry, Registry

_SMOOTHING = 0.1


class Account(Protocol):
    """Where answers are counted: accounting.py."""

    def add(self, key_id: str, project_id: str, model: str, usage: Usage | None, *, failed: bool = False) -> None:
        """Count one request. Usage is None where nothing was used."""


class Dispatcher:
    """limits   None: nobody has any
    interactive   requests of that class that were asked so far; `interactive_at`, those that have no end yet, by model
    """

    def __init__(self, registry: Registry, accounting: Account, limits: Admission | None = None) -> None:
        self.registry = registry
        self.accounting = accounting
        self.limits = limits or Limits()
        self.interactive = 0
        self.interactive_at: dict[str, int] = {}
        self._event_bytes: dict[tuple[str, str], float] = {}

    def answer(self, call: Call, record: Record) -> Answer:
        """`async with dispatcher.answer(call, record) as reply: ...`. Raises `GatewayError` on entering."""
        return Answer(self, call, record)

    @property
    def interactive_now(self) -> int:
        return sum(self.interactive_at.values())

    def begins(self, call: Call) -> None:
        if not call.priority:
            self.interactive += 1
            self.interactive_at[call.model] = self.interactive_at.get(call.model, 0) + 1

    def ends(self, call: Call) -> None:
        if not call.priority:
            self.interactive_at[call.model] -= 1

    def find(self, model: str, record: Record) -> Entry:
        """The model of that name or alias. Raises `NotFound` for one that there is not, or not for this key."""
        return self.registry.find(model, record.principal)

    def bytes_per_token(self, record: Record) -> float:
        """Of a stream of this model, at this endpoint."""
        return self._event_bytes.get((record.model, record.endpoint), estimates.EVENT_BYTES)

    def learn(self, record: Record, tokens: int) -> None:
        """A stream has ended well that had so many tokens."""
        measured = record.streamed / tokens
        name = (record.model, record.endpoint)
        known = self._event_bytes.get(name, measured)
        self._event_bytes[name] = known + _SMOOTHING * (measured - known)


class Answer:
    """One answer, from asking for it to having accounted for it."""

    __slots__ = ("_call", "_dispatcher", "_pass", "_record", "_reply")

    def __init__(self, dispatcher: Dispatcher, call: Call, record: Record) -> None:
        self._dispatcher = dispatcher
        self._call = call
        self._record = record
        self._pass: Pass = FREE

    async def __aenter__(self) -> Reply | EventStream:
        call, record, dispatcher = self._call, self._record, self._dispatcher
        principal = record.principal
        entry = dispatcher.registry.find(call.model, principal)
        record.model = entry.name  # not before it is known: it becomes a label
        if call.model != entry.name:
            call = self._call = renamed(call, entry.name)
        if principal.priority or call.body.get("service_tier") == "flex":
            call.priority = Priority.BATCH
        if record.read_timeout_s is not None and not call.stream:
            # between two bytes: a stream has signs of life in it (events.py), so there it says nothing of its end
            call.deadline = time.monotonic() + record.read_timeout_s
        limits = dispatcher.limits
        if limits.concerns(principal):
            tokens = estimates.requested_tokens(call) * entry.calls
            granted = limits.enter(principal, call.model, tokens)
            if granted is None:
                granted = await limits.ask(principal, call.model, tokens)
            self._pass = granted
            record.headers = granted.headers
        call.notes = record
        if record.trail is not None:  # with tracing it is always there
            record.trail.asked, record.trail.body, call.headers = entry.name, call.body, record.trail.headers
        return await self._run(entry)

    async def _run(self, entry: Entry) -> Reply | EventStream:
        call, record, dispatcher = self._call, self._record, self._dispatcher
        dispatcher.begins(call)
        try:
            reply = self._reply = await entry.backend.run(call)
        except BaseException as error:  # `__aexit__` is not called; cancelled or failed, it has used nothing itself
            self._leave(0)
            dispatcher.ends(call)
            if isinstance(error, GatewayError):
                dispatcher.accounting.add(record.key_id, record.principal.project_id, entry.name, None, failed=True)
            raise
        record.served_by = reply.served_by
        if reply.model and reply.model != entry.name:
            record.fell_back(entry.name, reason_in(reply.headers))
        record.model = reply.model or entry.name
        return reply

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        used = None
        self._dispatcher.ends(self._call)
        try:
            usage = self._end(error)
            if (trail := self._record.trail) is not None and trail.children is not None:
                await trail.children.end()
            used = usage.prompt_tokens + usage.completion_tokens if usage is not None else 0
        finally:
            self._leave(used)

    def _leave(self, used: int | None) -> None:
        """Give back what was taken too much: the children's, where there were some, when the last of them has ended."""
        trail = self._record.trail
        if trail is None or trail.children is None:
            self._pass.leave(used)
        else:
            trail.children.leave(self._pass)

    def _end(self, error: BaseException | None) -> Usage | None:
        """Close what is open, and count. Returns what was used, None for nothing."""
        reply, record, dispatcher = self._reply, self._record, self._dispatcher
        if isinstance(reply, EventStream):
            reply.close()
            if reply.failure is not None:
                record.fail(reply.failure)
        usage = reply.usage
        if record.trail is not None and record.trail.children is not None:  # accounted for already, each by itself
            usage = None
        elif usage is None:
            usage = self._estimate(error)
            record.estimated = usage is not None
        elif record.streamed and usage.completion_tokens:
            dispatcher.learn(record, usage.completion_tokens)
        if usage is not None:
            record.prompt_tokens = usage.prompt_tokens
            record.completion_tokens = usage.completion_tokens
        failed = isinstance(error, GatewayError) or (isinstance(reply, EventStream) and reply.failure is not None)
        dispatcher.accounting.add(record.key_id, record.principal.project_id, record.model, usage, failed=failed)
        return usage

    def _estimate(self, error: BaseException | None) -> Usage | None:
        """What an answer took for which no engine has said it: none, where the client got nothing of it."""
        reply, record, call = self._reply, self._record, self._call
        if isinstance(reply, Reply):
            return None if isinstance(error, GatewayError) else estimates.whole_answer(call, len(reply.body))
        passed = record.streamed - (len(error_event(reply.failure)) if reply.failure is not None else 0)
        return estimates.streamed_answer(call, passed, self._dispatcher.bytes_per_token(record))


def reason_in(headers: Headers) -> str:
    """Why another model answered, as its answer's headers have it (backends/fallback.py)."""
    return next((value.decode() for name, value in headers if name == b"x-slurmgate-fallback"), "unknown")


def renamed(call: Call, model: str) -> Call:
    """The same call by the name that the engine knows: of a model that was asked for by an alias."""
    if call.content_type == b"application/json":
        # `body` may hold what shall not be sent, so `raw` is taken apart again
        raw = orjson.dumps({**orjson.loads(call.raw), "model": model})
    else:
        raw = forms.with_value(call.content_type, call.raw, "model", call.model, model)
    return replace(call, model=model, body={**call.body, "model": model}, raw=raw)
