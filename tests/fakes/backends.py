"""Backends without engines, for what stands before them.

AnswersAtOnce    a whole reply, with usage or without
Streams          the events it was given, and usage once they have all passed
NeverAnswers     takes the call and says nothing
Refuses          raises what it was given
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from backends.base import Call, EventStream, Reply, Usage
from backends.errors import GatewayError


class _Backend:
    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.asked = asyncio.Event()

    async def run(self, call: Call) -> Reply | EventStream:
        self.calls.append(call)
        self.asked.set()
        return await self.answer(call)

    async def answer(self, call: Call) -> Reply | EventStream:
        raise NotImplementedError

    def in_flight(self, replica_id: str) -> int:
        return 0

    async def aclose(self) -> None:
        """Nothing is open."""


class AnswersAtOnce(_Backend):
    def __init__(self, usage: Usage | None = None, body: bytes = b"{}") -> None:
        super().__init__()
        self.reply = Reply(200, b"application/json", body, usage, "replica-1")

    async def answer(self, call: Call) -> Reply:
        return self.reply


class Streams(_Backend):
    def __init__(
        self, events: Sequence[bytes], usage: Usage | None = None, failure: GatewayError | None = None
    ) -> None:
        super().__init__()
        self.events = events
        self.usage = usage
        self.failure = failure

    async def answer(self, call: Call) -> EventStream:
        return _Events(self.events, self.usage, self.failure)


class _Events(EventStream):
    def __init__(self, events: Sequence[bytes], usage: Usage | None, failure: GatewayError | None) -> None:
        super().__init__("replica-1")
        self._left = list(events)
        self._last = (usage, failure)

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop(0)

    def close(self) -> None:
        if not self._left:
            self.usage, self.failure = self._last


class NeverAnswers(_Backend):
    async def answer(self, call: Call) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError


class Refuses(_Backend):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    async def answer(self, call: Call) -> Reply:
        raise self.error
