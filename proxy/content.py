"""What was asked and answered, into the log and the spans: only where the operator switched privacy off.

Stands between the edge and the rest of the gateway. With privacy, which is the default, it is not there at all.
"""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .record import record_of
from .writer import forget_writer

LIMIT_BYTES = 32 * 1024
"""Of each: a log is no archive."""


class _Clipping:
    """The first bytes of what passes."""

    __slots__ = ("_data", "_size")

    def __init__(self) -> None:
        self._data = bytearray()
        self._size = 0

    def add(self, data: bytes) -> None:
        self._size += len(data)
        if (room := LIMIT_BYTES - len(self._data)) > 0:
            self._data += data[:room]

    def text(self) -> str:
        try:
            # a character that was cut in two is no reason to call it binary
            text = self._data.decode(errors="strict" if self._size <= LIMIT_BYTES else "ignore")
        except UnicodeDecodeError:
            return f"({self._size} bytes, no text)"
        return text if self._size <= LIMIT_BYTES else f"{text}... ({self._size} bytes)"


class KeepContent:
    """Notes the bodies of requests to `/v1/` and of their answers. Other paths are none of a model's business; some of
    their answers hold keys."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        forget_writer(scope)  # it would take the pieces of streams past us
        asked, answered = _Clipping(), _Clipping()

        async def receive_and_keep() -> Message:
            message = await receive()
            asked.add(message.get("body", b""))
            return message

        def send_and_keep(message: Message) -> Awaitable[None]:
            answered.add(message.get("body", b""))
            return send(message)

        try:
            await self._app(scope, receive_and_keep, send_and_keep)
        finally:
            trail = record_of(scope).note()
            trail.request, trail.response = asked.text(), answered.text()
