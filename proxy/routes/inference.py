"""An endpoint that asks a model: body -> checked Call -> dispatch -> the answer's bytes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from backends.base import Call, Reply
from proxy.bodies import BodyReader, parse_object
from proxy.disconnects import while_connected
from proxy.dispatch import Dispatcher
from proxy.events import EventReply
from proxy.record import record_of
from proxy.replies import answer_at_once, send_reply
from proxy.writer import short_cut

Check = Callable[[dict[str, Any]], None]


class Inference:
    """An ASGI endpoint.

    check          raises `InvalidRequest` for a body of the wrong shape
    quiet_choice   a stream's choice that says nothing, sent when a model is silent for long; None where nothing streams
    """

    def __init__(
        self,
        path: str,
        check: Check,
        dispatcher: Dispatcher,
        bodies: BodyReader,
        quiet_choice: dict[str, Any] | None = None,
    ) -> None:
        self._path = path
        self._check = check
        self._dispatcher = dispatcher
        self._bodies = bodies
        self._quiet_choice = quiet_choice

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint = self._path
        exchange = short_cut(scope)
        raw = self._bodies.at_once(exchange)
        if raw is None:
            raw = await self._bodies.read(receive)
        body = parse_object(raw)
        self._check(body)
        record.stream = body.get("stream") is True
        call = Call(record.id, self._path, body["model"], body, raw, record.stream, record.key_id)
        async with while_connected(scope):
            if not record.stream:
                async with self._dispatcher.answer(call, record) as answer:
                    assert isinstance(answer, Reply)  # noqa: S101  # backends stream only what was asked to be streamed
                    if exchange is None or not answer_at_once(exchange, record, answer):
                        await send_reply(send, answer)
                return
            quiet_chunk = partial(self._quiet_chunk, call)
            events = EventReply(send, record, quiet_chunk, exchange)
            async with events, self._dispatcher.answer(call, record) as answer:
                if isinstance(answer, Reply):
                    await events.whole(answer)
                else:
                    await events.relay(answer)

    def _quiet_chunk(self, call: Call) -> bytes:
        if self._quiet_choice is None:
            return b""
        chunk = {
            "id": f"chatcmpl-{call.id}",
            "object": "chat.completion.chunk" if "delta" in self._quiet_choice else "text_completion",
            "created": int(time.time()),
            "model": call.model,
            "choices": [self._quiet_choice],
        }
        return b"data: %s\n\n" % orjson.dumps(chunk)
