"""Errors under /v1/messages in Anthropic's shape, whoever raised them.

The outermost layer, around `Edge`: so a wrong key, an unknown model, a body that is too large and a mistake of our own
all look as Anthropic's SDK expects. Everything else passes at the cost of one look at its path.
"""

from __future__ import annotations

from collections.abc import Awaitable

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .translate.message_events import error_body
from .translate.messages import PATH


class AnthropicErrors:
    """Any ASGI app whose errors have OpenAI's shape."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        return self._app(scope, receive, _Sender(send) if _is_theirs(scope["path"]) else send)


def _is_theirs(path: str) -> bool:
    return path.startswith(PATH) and path[len(PATH) :][:1] in ("", "/")


class _Sender:
    """Holds an error's head until its body is there; adds the header in which Anthropic's SDK looks for the request."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._head: Message | None = None
        self._request_id = b""
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message["headers"]
            self._request_id = next((value for name, value in headers if name == b"x-request-id"), b"")
            message["headers"] = [*headers, (b"request-id", self._request_id)]
            if message["status"] >= 400:
                self._head = message
                return
        elif self._head is not None:
            self._body += message["body"]
            if message.get("more_body"):
                return
            message, head = self._translated(self._head), self._head
            await self._send(head)
        await self._send(message)

    def _translated(self, head: Message) -> Message:
        body = orjson.dumps(error_body(head["status"], _message_of(self._body), self._request_id.decode("latin-1")))
        kept = [(name, value) for name, value in head["headers"] if name != b"content-length"]
        head["headers"] = [*kept, (b"content-length", b"%d" % len(body))]
        return {"type": "http.response.body", "body": body}


def _message_of(body: bytes) -> str:
    """What an error says, in OpenAI's shape."""
    try:
        error = orjson.loads(body)["error"]
        return str(error["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "The request failed."
