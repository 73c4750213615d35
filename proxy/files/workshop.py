"""Where files are made: threads for a slow disk, room that is promised before bytes are taken, bytes on their way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from proxy.stored_responses import StorageFailed

from .body import Body
from .disk import Disk, Incoming
from .form import Form
from .quota import Promise, Room

THREADS = 8
"""Their own, so that a slow disk keeps nobody waiting but those who use it."""

FORM_BYTES = 8192
"""What a form has around its file, at most about; so much less than `content-length` is expected at first."""

T = TypeVar("T")


class Workshop:
    """What files and uploads are made with, shared by both."""

    def __init__(self, disk: Disk, room: Room) -> None:
        self.disk = disk
        self.room = room
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="files")

    def close(self) -> None:
        """Blocking, after the last work."""
        self.disk.close()
        self._threads.shutdown(wait=False)

    async def in_thread(self, work: Callable[[], T], undo: Callable[[T], None] | None = None) -> T:
        """Raises `StorageFailed` where the database does. Who is cancelled waits for the thread first: what it works on
        can then be cleared away, and what it gave, by `undo`."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait({future})
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            if future.exception() is None and undo is not None:
                undo(future.result())
            raise cancelled
        try:
            return future.result()
        except SQLAlchemyError as error:
            raise StorageFailed("The database cannot be reached now.", retry_after_s=5.0) from error

    @asynccontextmanager
    async def incoming(
        self, owner: str, body: Body, *, counted: bool = False
    ) -> AsyncIterator[tuple[Incoming, Promise]]:
        """Something to write to, with the room for it. Nothing is left of it, unless it is placed."""
        expected = max((body.length or 0) - FORM_BYTES, 0)
        promise = await self.in_thread(lambda: self.room.promise(owner, expected, counted=counted), Promise.release)
        try:
            incoming = await self.in_thread(self.disk.begin, Incoming.discard)
            try:
                yield incoming, promise
            finally:
                await self.in_thread(incoming.discard)
        finally:
            promise.release()

    async def feed(self, form: Form, body: Body) -> None:
        """All of a body, piece by piece."""
        while (piece := await body.next()) is not None:
            await self.in_thread(partial(form.feed, piece))

    @contextlib.contextmanager
    def placed(self, incoming: Incoming, content_id: str, *, keep: bool = False) -> Iterator[None]:
        """In place while its row is written; taken away again if that fails, unless others have it."""
        try:
            incoming.place(content_id)
            yield
        except BaseException:
            if not keep:
                self.disk.remove(content_id)
            raise
        finally:
            self.disk.settled(content_id)
