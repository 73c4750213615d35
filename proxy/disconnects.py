"""Noticing that a client has gone, at any moment, and cancelling what is being done for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from types import TracebackType

from starlette.types import Scope

from .protocol import connection_of
from .writer import DONE


class ClientDisconnected(Exception):
    """The client closed its connection before its answer was whole."""


class while_connected:
    """`async with while_connected(scope): ...` cancels its body and raises `ClientDisconnected` if the client goes."""

    __slots__ = ("_connection", "_gone", "_task")

    def __init__(self, scope: Scope) -> None:
        self._connection = connection_of(scope)
        self._gone = False

    def __aenter__(self) -> Awaitable[None]:
        task = self._connection.task or asyncio.current_task()  # the latter is a function in Python
        if task is None:
            raise RuntimeError("while_connected is used inside a task")
        if self._connection.transport.is_closing():  # it went while its request was being read
            raise ClientDisconnected
        self._task = task
        self._connection.on_gone = self._cancel
        return DONE

    def _cancel(self) -> None:
        self._gone = True
        self._task.cancel("client disconnected")

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Awaitable[None]:
        self._connection.on_gone = None
        if self._gone and kind is asyncio.CancelledError and self._task.uncancel() == 0:
            raise ClientDisconnected from error
        return DONE
