"""/v1/uploads: create, add parts, complete, cancel."""

from __future__ import annotations

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from proxy import forms
from proxy.bodies import BodyReader, parse_object
from proxy.disconnects import while_connected
from proxy.files.body import Body
from proxy.files.service import Files
from proxy.files.values import owner_of
from proxy.record import record_of
from proxy.replies import send_json


class CreateUpload:
    path = "/v1/uploads"

    def __init__(self, files: Files, bodies: BodyReader) -> None:
        self._files = files
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint = self.path
        given = parse_object(await self._bodies.read(receive))
        upload = await self._files.uploads.create(owner_of(record.principal), given)
        await send_json(send, upload.card())


class AddPart:
    """Parts may come side by side, and in any order."""

    path = "/v1/uploads/{id}/parts"

    def __init__(self, files: Files) -> None:
        self._files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint = self.path
        kind = forms.content_type(scope["headers"])
        upload_id = scope["path_params"]["id"]
        part = await self._files.uploads.add_part(owner_of(record.principal), upload_id, kind, Body(scope, receive))
        await send_json(send, part.card())


class CompleteUpload:
    path = "/v1/uploads/{id}/complete"

    def __init__(self, files: Files, bodies: BodyReader) -> None:
        self._files = files
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint = self.path
        given = parse_object(await self._bodies.read(receive))
        async with while_connected(scope):
            upload = await self._files.uploads.complete(owner_of(record.principal), scope["path_params"]["id"], given)
        await send_json(send, upload.card())


class CancelUpload:
    path = "/v1/uploads/{id}/cancel"

    def __init__(self, files: Files) -> None:
        self._files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint = self.path
        upload = await self._files.uploads.cancel(owner_of(record.principal), scope["path_params"]["id"])
        await send_json(send, upload.card())


def upload_routes(files: Files, bodies: BodyReader) -> list[Route]:
    return [
        Route(CreateUpload.path, CreateUpload(files, bodies), methods=["POST"]),
        Route(AddPart.path, AddPart(files), methods=["POST"]),
        Route(CompleteUpload.path, CompleteUpload(files, bodies), methods=["POST"]),
        Route(CancelUpload.path, CancelUpload(files), methods=["POST"]),
    ]
