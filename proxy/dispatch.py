"""The only way to a model: whoever wants an answer asks here, and every answer is accounted for here."""

from __future__ import annotations

from types import TracebackType

from backends.base import Call, EventStream, Reply

from .accounting import Accounting
from .record import Record
from .registry import Registry


class Dispatcher:
    def __init__(self, registry: Registry, accounting: Accounting) -> None:
        self._registry = registry
        self._accounting = accounting

    def answer(self, call: Call, record: Record) -> Answer:
        """`async with dispatcher.answer(call, record) as reply: ...`. Raises `GatewayError` on entering."""
        return Answer(self._registry, self._accounting, call, record)


class Answer:
    """One answer, from asking for it to having accounted for it."""

    __slots__ = ("_accounting", "_call", "_record", "_registry", "_reply")

    def __init__(self, registry: Registry, accounting: Accounting, call: Call, record: Record) -> None:
        self._registry = registry
        self._accounting = accounting
        self._call = call
        self._record = record

    async def __aenter__(self) -> Reply | EventStream:
        entry = self._registry.find(self._call.model)
        self._record.model = entry.name  # not before it is known: it becomes a label
        self._reply = await entry.backend.run(self._call)
        self._record.served_by = self._reply.served_by
        self._record.model = self._reply.model or entry.name
        return self._reply

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        reply, record = self._reply, self._record
        if isinstance(reply, EventStream):
            reply.close()
            if reply.failure is not None:
                record.fail(reply.failure)
        usage = reply.usage
        if usage is not None:
            record.prompt_tokens = usage.prompt_tokens
            record.completion_tokens = usage.completion_tokens
        self._accounting.add(record.key_id, record.model, usage)
