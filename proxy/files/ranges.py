"""Conditions and ranges of a GET -> which bytes are asked for (RFC 9110, sections 13 and 14). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_RANGE = re.compile(rb"bytes[ \t]*=[ \t]*(\d{0,18})[ \t]*-[ \t]*(\d{0,18})[ \t]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Wanted:
    """status  200 whole, 206 a part, 304 the client has it, 416 there are no such bytes
    start, end   of the bytes to send, the end not among them
    """

    status: int
    start: int
    end: int


def wanted(headers: Mapping[bytes, bytes], size: int, etag: bytes) -> Wanted:
    """Several ranges at once, and what is no range of bytes, get the whole, as section 14.2 allows.

    etag   strong, in its quotes
    """
    if (known := headers.get(b"if-none-match")) is not None:
        tags = [tag.strip().removeprefix(b"W/") for tag in known.split(b",")]
        if b"*" in tags or etag in tags:
            return Wanted(304, 0, 0)
    whole = Wanted(200, 0, size)
    match = _RANGE.fullmatch(headers.get(b"range", b"").strip())
    if match is None or headers.get(b"if-range", etag).strip() != etag:
        return whole
    first, last = match.groups()
    if not first and not last:
        return whole
    if not first:
        start, end = max(size - int(last), 0), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < int(first):
            return whole  # invalid, and so ignored
    return Wanted(206, start, end) if start < end else Wanted(416, 0, 0)
