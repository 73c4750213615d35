"""Knowing a request's head again. A client's connection carries the same head over and over, but for one number: the
SDK's requests to one endpoint differ in `content-length` and nothing else. Pure: bytes and scopes, no connection.

What the parser and our own checks said of a head then holds for the next one: only digits differ, and these are
compared with the bytes that came.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

HEAD_BYTES = 4096
"""Larger heads are not kept."""

_LENGTH = re.compile(rb"\r\n(content-length: *)([0-9]{1,9})\r\n", re.IGNORECASE)
_NAME = b"content-length"
_TOLD = ("type", "asgi", "http_version", "server", "client", "scheme", "root_path", "method", "path", "raw_path",
    "query_string")  # fmt: skip


@dataclass(frozen=True, slots=True)
class KnownHead:
    """before, after   the head's bytes on both sides of the length; `after` ends with the empty line
    scope              what is the same for each request, in ASGI's words
    headers, position  its headers, and where among them the length is
    """

    before: bytes
    after: bytes
    scope: dict[str, Any]
    headers: list[tuple[bytes, bytes]]
    position: int

    def body_of(self, data: bytes) -> bytes | None:
        """The body, if `data` is one whole request with this head and nothing else."""
        if not data.startswith(self.before):
            return None
        start = len(self.before)
        end = data.find(b"\r", start, start + 10)
        if not data.startswith(self.after, end) or end < 0:
            return None
        length = data[start:end]
        body = data[end + len(self.after) :]
        return body if length.isdigit() and int(length) == len(body) else None

    def scope_for(self, length: int) -> dict[str, Any]:
        headers = self.headers.copy()
        headers[self.position] = (_NAME, b"%d" % length)
        return {**self.scope, "headers": headers}


def learn(data: bytes, scope: Any) -> KnownHead | None:
    """The head of `data`, which has just been read and understood as the request in `scope`; None if it is not plain:
    a POST over HTTP/1.1 that says its length once, and nothing of how the connection or the body shall be handled."""
    end = data.find(b"\r\n\r\n") + 4
    found = _LENGTH.search(data, 0, end)
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    names = [name for name, _ in headers]
    if (
        not data.startswith(b"POST ")
        or end > HEAD_BYTES
        or found is None
        or scope["type"] != "http"
        or scope["http_version"] != "1.1"
        or names.count(_NAME) != 1
        or int(found[2]) != len(data) - end
        or _closes(headers)
        or not {b"transfer-encoding", b"expect", b"upgrade"}.isdisjoint(names)
    ):
        return None
    told = {name: scope[name] for name in _TOLD}
    return KnownHead(data[: found.start(2)], data[found.end(2) : end], told, headers.copy(), names.index(_NAME))


def _closes(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"connection" and value.lower() != b"keep-alive" for name, value in headers)
