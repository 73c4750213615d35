"""Server-sent events: what an engine's stream holds, and how a translated one is written. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import orjson

from backends.base import Usage
from backends.errors import GatewayError, MalformedResponse

Json = dict[str, Any]


class Events(Protocol):
    """One stream on its way to a client, as bytes of whole events. `fail` or `finish` is called once, and last.

    over      a final event has been given: whatever follows is not for the client
    final     the object that the events have built, None until a final event has been given
    failure   the error that the final event tells of, None if it tells of none
    usage     what was counted, where only this machine can know it
    """

    @property
    def over(self) -> bool: ...
    @property
    def final(self) -> Json | None: ...
    @property
    def failure(self) -> GatewayError | None: ...
    @property
    def usage(self) -> Usage | None: ...

    def feed(self, data: bytes) -> bytes:
        """Whole events of the engine. Raises `GatewayError` for what cannot be understood."""

    def quiet(self) -> bytes:
        """A sign of life that the API's clients take for an event and that says nothing, b"" where there is none."""

    def finish(self) -> bytes:
        """The engine's stream has ended."""

    def fail(self, error: GatewayError) -> bytes:
        """It broke: the event that says so."""


def payloads(data: bytes) -> Iterator[bytes]:
    """The data of each whole event, without the last one's `[DONE]`."""
    for block in data.split(b"\n\n"):
        lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
        if (payload := b"\n".join(lines)) and payload != b"[DONE]":
            yield payload


def objects(data: bytes) -> Iterator[Json]:
    """The same, parsed. Raises `MalformedResponse` for what is no JSON object."""
    for payload in payloads(data):
        yield parsed(payload)[0]


def parsed(payload: bytes) -> tuple[Json, bytes]:
    """(the object, its bytes)"""
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise MalformedResponse("The engine sent an event that is no JSON object.")
    return value, payload


def reported(error: Any) -> GatewayError:
    """The error inside a chat stream, in the four keys that `backends.sse` has given it."""
    fields = error if isinstance(error, dict) else {"message": str(error)}
    found = GatewayError(
        str(fields.get("message") or "The engine failed."), param=fields.get("param"), code=fields.get("code")
    )
    if isinstance(fields.get("type"), str):
        found.type = fields["type"]
    return found


def named(event: Json) -> bytes:
    """An event with its type as its name, as OpenAI's Responses API and Anthropic's Messages API send them."""
    return b"event: %s\ndata: %s\n\n" % (event["type"].encode(), orjson.dumps(event))
