"""Reading a request's body: whole, within a size; and as JSON, or telling why it is none.

Whatever parses is taken, whatever its content-type says: curl's default is a form. What a header says of the body is
only looked at when the body does not parse, so that it costs nothing.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

import orjson
from starlette.types import Receive

from backends.errors import InvalidRequest, RequestTooLarge

from .disconnects import ClientDisconnected
from .writer import Exchange


class BodyReader:
    """`limit` in bytes. How long a client may take is the connection's business (protocol.py)."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def at_once(self, exchange: Exchange | None) -> bytes | None:
        """The body, if it has come already and is not too large; else it is to be `read`."""
        if exchange is None or len(exchange.body) > self._limit:
            return None
        return exchange.whole_body()

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


class NotJson(InvalidRequest):
    """The body cannot be parsed; Edge asks `why_not_json` before it tells."""

    code = "invalid_json"


class UnsupportedMedia(InvalidRequest):
    status = 415
    code = "unsupported_media_type"
    headers = MappingProxyType({b"accept": b"application/json", b"accept-encoding": b"identity"})


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises `InvalidRequest`."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise NotJson(f"We could not parse the JSON body of your request{_place(raw, error)}.") from None
    if not isinstance(body, dict):
        raise InvalidRequest(
            f"Invalid type for the request's body: expected an object, but got {kind_of(body)} instead.",
            code="invalid_type",
        )
    return body


def _place(raw: bytes, error: orjson.JSONDecodeError) -> str:
    """Where it goes wrong. The position only: the parser's own message may quote the text around it."""
    if not raw:
        return ": it is empty"
    if raw.startswith(codecs.BOM_UTF8):
        return ": it begins with a byte order mark, which JSON does not have"
    try:
        raw.decode()
    except UnicodeDecodeError as wrong:
        return f": it is not UTF-8 (byte {wrong.start})"
    return f" (line {error.lineno}, column {error.colno})"


def why_not_json(error: NotJson, headers: Iterable[tuple[bytes, bytes]]) -> InvalidRequest:
    """A better error where the request's headers explain why its body does not parse."""
    fields = dict(headers)
    coding = fields.get(b"content-encoding", b"identity").strip().lower()
    if coding not in (b"", b"identity"):
        return UnsupportedMedia("Request bodies are taken as they are: send yours without a content-encoding.")
    kind, *parameters = fields.get(b"content-type", b"").lower().split(b";")
    kind = kind.strip()
    charsets = [p.partition(b"=")[2].strip(b' "') for p in parameters if p.strip().startswith(b"charset")]
    if any(charset not in (b"utf-8", b"utf8", b"us-ascii") for charset in charsets):
        return UnsupportedMedia("JSON is UTF-8: send your body so, without another charset in its content-type.")
    if kind and kind not in _TAKEN and not kind.endswith(b"+json"):
        return UnsupportedMedia(f"{error.message} Its content-type is not application/json.")
    return error


_TAKEN = (b"application/json", b"text/json", b"text/plain", b"application/x-www-form-urlencoded")
"""Said of bodies that are meant to be JSON. The last is what curl says by default."""

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
