"""Noticing that a client has gone, at any moment, and cancelling what is being done for it.

ASGI tells of a disconnect only to who asks, and nothing asks while an answer is being waited for. So somebody must.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.types import Receive


class ClientDisconnected(Exception):
    """The client closed its connection before its answer was whole."""


class while_connected:
    """`async with while_connected(receive): ...` cancels its body and raises `ClientDisconnected` when the client goes.

    To be entered once the request's body has been read: from then on `receive` returns only when the client is gone.
    """

    __slots__ = ("_gone", "_receive", "_task", "_watcher")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("while_connected is used inside a task")
        self._task = task
        self._watcher = asyncio.create_task(self._watch(), name="disconnect watcher")

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._task.cancel("client disconnected")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watcher.cancel()
        if self._gone and kind is asyncio.CancelledError and self._task.uncancel() == 0:
            raise ClientDisconnected from error
