"""Reading a request's body: whole, within a size."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.types import Receive

from backends.errors import InvalidRequest, RequestTooLarge

from .disconnects import ClientDisconnected


class BodyReader:
    """`limit` in bytes. How long a client may take is the connection's business (protocol.py)."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    async def read(self, receive: Receive) -> bytes:
        """The body. Raises `RequestTooLarge`, `ClientDisconnected`."""
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            body: bytes = message["body"]  # nearly always: it came with the head
            if len(body) > self._limit:
                raise self._too_large()
            return body
        return await self._rest(message, receive)

    async def _rest(self, message: Any, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            size += len(message["body"])
            if size <= self._limit:
                parts.append(message["body"])
            else:
                # read on without keeping: a client that is still sending would not see the answer
                parts.clear()
                if size > 4 * self._limit:
                    raise self._too_large()
            if not message.get("more_body"):
                break
            message = await receive()
        if size > self._limit:
            raise self._too_large()
        return b"".join(parts)

    def _too_large(self) -> RequestTooLarge:
        return RequestTooLarge(f"The request's body is larger than {self._limit} bytes, the limit here.")


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises `InvalidRequest`."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        # the position only: the parser's own message may quote the text around it
        place = f" (line {error.lineno}, column {error.colno})" if raw else ": it is empty"
        raise InvalidRequest(f"We could not parse the JSON body of your request{place}.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise InvalidRequest(
            f"Invalid type for the request's body: expected an object, but got {kind_of(body)} instead.",
            code="invalid_type",
        )
    return body


_KINDS: dict[type, str] = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    str: "a string",
    list: "an array",
    dict: "an object",
}


def kind_of(value: Any) -> str:
    """A JSON value's type in words, with its article, as OpenAI's messages have it."""
    return _KINDS[type(value)]
