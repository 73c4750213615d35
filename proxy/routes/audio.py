"""POST /v1/audio/transcriptions: a multipart form, passed on as the bytes that came: only its model is needed here."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Receive, Scope, Send

from backends.base import Call, Reply
from backends.errors import InvalidRequest
from proxy import forms
from proxy.bodies import BodyReader
from proxy.disconnects import while_connected
from proxy.dispatch import Dispatcher
from proxy.events import EventReply
from proxy.record import record_of
from proxy.replies import send_reply

PATH = "/v1/audio/transcriptions"
BESIDE_BYTES = 1024 * 1024
"""A larger form is read in a thread, so that the other requests go on."""


def check(fields: dict[str, Any], files: set[str]) -> None:
    for name, there in (("file", "file" in files), ("model", bool(fields.get("model")))):
        if not there:
            message = f"Missing required parameter: '{name}'."
            raise InvalidRequest(message, param=name, code="missing_required_parameter")


class Transcriptions:
    """An ASGI endpoint."""

    def __init__(self, dispatcher: Dispatcher, bodies: BodyReader) -> None:
        self._dispatcher = dispatcher
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint = PATH
        kind = forms.content_type(scope["headers"])
        raw = await self._bodies.read(receive)
        if len(raw) > BESIDE_BYTES:
            fields, files = await asyncio.to_thread(forms.read, kind, raw)
        else:
            fields, files = forms.read(kind, raw)
        check(fields, files)
        record.stream = fields.get("stream", "").lower() == "true"
        call = Call(record.id, PATH, fields["model"], dict(fields), raw, record.stream, record.key_id, kind)
        async with (
            while_connected(scope),
            EventReply(send, record) as events,
            self._dispatcher.answer(call, record) as answer,
        ):
            if isinstance(answer, Reply):
                await send_reply(send, answer)
            else:
                await events.relay(answer)
