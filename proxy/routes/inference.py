"""An endpoint that asks a model: body -> checked Call -> dispatch -> the answer's bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.types import Receive, Scope, Send

from backends.base import Call
from proxy.bodies import BodyReader, parse_object
from proxy.disconnects import while_connected
from proxy.dispatch import Dispatcher
from proxy.record import record_of
from proxy.replies import send_answer


class Inference:
    """An ASGI endpoint. `check` raises `InvalidRequest` for a body of the wrong shape."""

    def __init__(
        self, path: str, check: Callable[[dict[str, Any]], None], dispatcher: Dispatcher, bodies: BodyReader
    ) -> None:
        self._path = path
        self._check = check
        self._dispatcher = dispatcher
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint = self._path
        raw = await self._bodies.read(receive)
        body = parse_object(raw)
        self._check(body)
        record.stream = body.get("stream") is True
        call = Call(record.id, self._path, body["model"], body, raw, record.stream, record.key_id)
        async with while_connected(scope), self._dispatcher.answer(call, record) as answer:
            await send_answer(send, answer, record)
