"""A request's body, piece by piece, for as long as it comes fast enough."""

from __future__ import annotations

import asyncio

from starlette.types import Receive, Scope

from proxy.disconnects import ClientDisconnected
from proxy.protocol import connection_of

PIECE_BYTES = 512 * 1024
"""What is handed on at once, about: a thread for each read of the socket would cost more than the work."""

LEAST_BYTES = 128 * 1024
"""At least so much has to come within the time that a whole small request may take (`server.body_timeout_s`)."""


class Body:
    """The next piece is read only when it is asked for: until then the client has to wait."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._connection = connection_of(scope)
        self._receive = receive
        self._more = True
        self._unpraised = 0
        given = dict(scope["headers"]).get(b"content-length", b"")
        self.length = int(given) if given.isdigit() else None

    async def next(self) -> bytes | None:
        """None at the end. Raises `ClientDisconnected`."""
        held: list[bytes] = []
        size = 0
        while self._more and size < PIECE_BYTES:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            self._more = message.get("more_body", False)
            data: bytes = message.get("body", b"")
            held.append(data)
            size += len(data)
            self._note(len(data))
        return b"".join(held) if size else None

    def _note(self, size: int) -> None:
        """A large body may take longer than a small one."""
        self._unpraised += size
        if self._more and self._unpraised >= LEAST_BYTES and self._connection.sending_since is not None:
            self._unpraised = 0
            self._connection.sending_since = asyncio.get_running_loop().time()
