"""Writing answers: JSON, errors in the OpenAI shape, event streams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import orjson
from starlette.types import Send

from backends.base import EventStream, Reply
from backends.errors import GatewayError
from backends.sse import error_event

from .record import Record, elapsed_s

Headers = Sequence[tuple[bytes, bytes]]

JSON = b"application/json"
RETRY_AFTER_LIMIT_S = 120
"""The official SDK waits at most this long, and does not retry at all when told to wait longer."""

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # an nginx in front must not hold events back
]


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


async def send_answer(send: Send, answer: Reply | EventStream, record: Record) -> None:
    """A model's answer, the engine's bytes as they came."""
    if isinstance(answer, Reply):
        await send_bytes(send, answer.status, answer.content_type, answer.body, answer.headers)
    else:
        await send_events(send, answer, record)


async def send_events(send: Send, stream: EventStream, record: Record) -> None:
    """A stream. Before the first event an error is still an HTTP error; after it, it is an event, then the end."""
    first = await anext(stream, b"")
    record.first_byte_s = elapsed_s(record)
    await send({"type": "http.response.start", "status": 200, "headers": [*_STREAM_HEADERS, *stream.headers]})
    await send({"type": "http.response.body", "body": first, "more_body": True})
    try:
        async for events in stream:
            await send({"type": "http.response.body", "body": events, "more_body": True})
    except GatewayError as error:
        record.fail(error)
        await send({"type": "http.response.body", "body": error_event(error), "more_body": True})
    await send({"type": "http.response.body", "body": b""})
