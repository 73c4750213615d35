"""/v1/files: create, list, show, content, delete."""

from __future__ import annotations

from urllib.parse import parse_qs, quote

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from backends.errors import InvalidRequest
from proxy import forms
from proxy.bodies import BodyReader
from proxy.disconnects import while_connected
from proxy.files import ranges
from proxy.files.body import Body
from proxy.files.service import Content, Files
from proxy.files.values import owner_of
from proxy.record import record_of
from proxy.replies import send_json

from .admin_shared import listed
from .uploads import upload_routes

MOST = 10_000
CHUNK_BYTES = 256 * 1024


class RangeNotSatisfiable(InvalidRequest):
    status = 416
    code = "range_not_satisfiable"

    def __init__(self, size: int) -> None:
        super().__init__(f"The file has {size} bytes, none of them in this range.")
        self.headers = {b"content-range": b"bytes */%d" % size}


class AllFiles:
    """GET and POST."""

    path = "/v1/files"

    def __init__(self, files: Files) -> None:
        self._files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint = self.path
        owner = owner_of(record.principal)
        if scope["method"] == "POST":
            file = await self._files.receive(owner, forms.content_type(scope["headers"]), Body(scope, receive))
            await send_json(send, file.card())
            return
        query = {name: values[-1] for name, values in parse_qs(scope["query_string"].decode("latin-1")).items()}
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise InvalidRequest(
                "Invalid value for 'order': expected one of 'asc', 'desc'.", param="order", code="invalid_value"
            )
        limit = _limit(query.get("limit", str(MOST)))
        found = await self._files.page(
            owner,
            purpose=query.get("purpose"),
            limit=limit,
            newest_first=order == "desc",
            after=query.get("after"),
        )
        await send_json(send, listed([file.card() for file in found], limit))


class OneFile:
    """GET and DELETE."""

    path = "/v1/files/{id}"

    def __init__(self, files: Files) -> None:
        self._files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint = self.path
        owner, file_id = owner_of(record.principal), scope["path_params"]["id"]
        if scope["method"] == "DELETE":
            await self._files.delete(owner, file_id)
            await send_json(send, {"id": file_id, "object": "file", "deleted": True})
            return
        file = await self._files.find(owner, file_id)
        await send_json(send, file.card())


class FileContent:
    """Its bytes, or a range of them. Nothing a client gave decides the content-type: a browser would go by it."""

    path = "/v1/files/{id}/content"

    def __init__(self, files: Files) -> None:
        self._files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint = self.path
        async with self._files.content(owner_of(record.principal), scope["path_params"]["id"]) as content:
            file = content.file
            etag = b'"%b"' % file.id.encode()
            asked = ranges.wanted(dict(scope["headers"]), file.bytes, etag)
            if asked.status == 416:
                raise RangeNotSatisfiable(file.bytes)
            headers = [
                (b"etag", etag),
                (b"accept-ranges", b"bytes"),
                (b"cache-control", b"private, no-cache"),
            ]
            if asked.status == 304:
                await send({"type": "http.response.start", "status": 304, "headers": headers})
                await send({"type": "http.response.body", "body": b""})
                return
            headers += [
                (b"content-type", b"application/octet-stream"),
                (b"content-length", b"%d" % (asked.end - asked.start)),
                (b"content-disposition", _disposition(file.filename)),
                (b"x-content-type-options", b"nosniff"),
            ]
            if asked.status == 206:
                headers.append((b"content-range", b"bytes %d-%d/%d" % (asked.start, asked.end - 1, file.bytes)))
            async with while_connected(scope):
                await send({"type": "http.response.start", "status": asked.status, "headers": headers})
                await _send_bytes(send, content, asked.start, asked.start if scope["method"] == "HEAD" else asked.end)


async def _send_bytes(send: Send, content: Content, start: int, end: int) -> None:
    """Each piece is read when the client has taken most of the one before it."""
    while start < end:
        data = await content.read(start, min(CHUNK_BYTES, end - start))
        start += len(data)
        await send({"type": "http.response.body", "body": data, "more_body": start < end})
        if start == end:
            return
    await send({"type": "http.response.body", "body": b""})


def _limit(given: str) -> int:
    if not (given.isascii() and given.isdigit() and len(given) < 10 and 1 <= int(given) <= MOST):
        raise InvalidRequest(
            f"Invalid 'limit': expected an integer from 1 to {MOST}.", param="limit", code="invalid_value"
        )
    return int(given)


def _disposition(filename: str) -> bytes:
    """RFC 6266: with the name as UTF-8 where it is more than a word."""
    return b"attachment; filename*=UTF-8''" + quote(filename, safe="").encode()


def file_routes(files: Files, bodies: BodyReader) -> list[Route]:
    return [
        Route(AllFiles.path, AllFiles(files), methods=["GET", "POST"]),
        Route(OneFile.path, OneFile(files), methods=["GET", "DELETE"]),
        Route(FileContent.path, FileContent(files), methods=["GET"]),
        *upload_routes(files, bodies),
    ]
