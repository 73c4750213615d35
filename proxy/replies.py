"""Writing whole answers: JSON, and errors in the OpenAI shape. Streams are in events.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import orjson
from starlette.types import Send

from backends.base import Reply
from backends.errors import GatewayError

from .record import Record
from .writer import Exchange

Headers = Sequence[tuple[bytes, bytes]]

JSON = b"application/json"
RETRY_AFTER_LIMIT_S = 120
"""The official SDK waits at most this long, and does not retry at all when told to wait longer."""


async def send_bytes(send: Send, status: int, content_type: bytes, body: bytes, headers: Headers = ()) -> None:
    length = b"%d" % len(body)
    start = [(b"content-type", content_type), (b"content-length", length), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, body: Any, status: int = 200, headers: Headers = ()) -> None:
    await send_bytes(send, status, JSON, orjson.dumps(body), headers)


async def send_error(send: Send, error: GatewayError) -> None:
    headers = list(error.headers.items())
    if error.retry_after_s is not None:
        seconds = min(max(error.retry_after_s, 0.0), RETRY_AFTER_LIMIT_S)
        headers += [
            (b"retry-after", b"%d" % math.ceil(seconds)),
            (b"retry-after-ms", b"%d" % math.ceil(seconds * 1000)),
        ]
    await send_json(send, error.body(), error.status, headers)


def answer_at_once(exchange: Exchange, record: Record, reply: Reply) -> bool:
    """`send_reply` past everything that stands around `send`, where it is as plain as nearly all are; else False."""
    if reply.status != 200 or reply.content_type != JSON or reply.headers:
        return False
    if not exchange.answer(record.identity(), reply.body):
        return False
    record.status = 200
    return True


async def send_reply(send: Send, reply: Reply) -> None:
    """A model's whole answer, the engine's bytes as they came."""
    await send_bytes(send, reply.status, reply.content_type, reply.body, reply.headers)
