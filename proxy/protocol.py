"""uvicorn's HTTP protocol with what a public server needs beyond it.

- What is not HTTP gets an error in the OpenAI shape.
- A client that sends its request too slowly, head or body, is told so and let go (`Patience`).
- Who answers a request can be called when its client goes: ASGI tells of it only to who keeps asking `receive`, which
  costs a task for each request. `connection_of(scope).on_gone` costs an assignment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_KEY = "slurmgate.connection"


class Connection(HttpToolsProtocol):
    """One client's connection.

    on_gone        called once when the client is gone; set and unset by whoever answers the current request
    sending_since  when the client began to send a request that is not whole yet, in the loop's time; None between
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.on_gone: Callable[[], None] | None = None
        self.sending_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.sending_since = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        on_gone, self.on_gone = self.on_gone, None
        if on_gone is not None:
            on_gone()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast(dict[str, Any], self.scope)[_KEY] = self
        if self.sending_since is None:
            self.sending_since = self.loop.time()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.sending_since = None

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, b"Bad Request", b"invalid_http", b"Invalid HTTP request received.")

    def too_slow(self) -> None:
        """The request has not come in time. A connection that has sent nothing at all is only closed."""
        if self.scope is not None and (self.cycle is None or not self.cycle.response_started):
            self._refuse(408, b"Request Timeout", b"request_timeout", b"The request did not arrive in time.")
        else:
            self.transport.close()

    def _refuse(self, status: int, reason: bytes, code: bytes, message: bytes) -> None:
        body = b'{"error":{"message":"%s","type":"invalid_request_error","param":null,"code":"%s"}}' % (message, code)
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"x-request-id: req_none\r\ncontent-length: %d\r\n\r\n%s" % (status, reason, len(body), body)
        )
        self.transport.close()


def connection_of(scope: Scope) -> Connection:
    """The connection that a request came over."""
    connection: Connection = scope[_KEY]
    return connection


class Patience:
    """Lets go of clients that send too slowly, all of them by one timer. To be started in the server's event loop."""

    def __init__(self, connections: set[Any], limit_s: float) -> None:
        self._connections = connections
        self._limit_s = limit_s
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._limit_s
        for connection in tuple(self._connections):
            if connection.sending_since is not None and connection.sending_since < oldest:
                connection.too_slow()
        self._handle = loop.call_later(min(1.0, self._limit_s / 4), self.start)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
