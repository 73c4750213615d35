"""What endpoints and batches ask of files: each verb whole, its disk and database work in threads of its own.

receive, page, find, delete, content           files
begin, put, path_of                            for who makes files here, such as a batch's output
uploads                                        files that come in parts (assembly.py)
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import Engine
from structlog.typing import FilteringBoundLogger

from backends.errors import RequestTooLarge
from proxy.config import ConfigError, FilesSection
from proxy.stored_responses import StorageFailed

from . import values
from .assembly import Uploads
from .body import Body
from .disk import Disk, Incoming
from .errors import disk_errors
from .form import Form
from .quota import Promise, Quota, Room
from .store import FileStore, not_found
from .sweep import Sweeper
from .uploads import UploadStore
from .values import File, Json
from .workshop import FORM_BYTES, Workshop


class Content:
    """A file's bytes, open."""

    def __init__(self, file: File, handle: int, run: Callable[[Callable[[], bytes]], asyncio.Future[bytes]]) -> None:
        self.file = file
        self.handle = handle
        self._run = run

    async def read(self, start: int, size: int) -> bytes:
        """Raises `StorageFailed`, also where the disk has less than the row says."""

        def run() -> bytes:
            with disk_errors():
                data = os.pread(self.handle, size, start)
            if not data:
                raise StorageFailed("The disk has lost some of this file.")
            return data

        return await self._run(run)


class Files:
    """directory   of the state; `section.directory` goes before it
    now            seconds since the epoch

    Raises `ConfigError` where the directory cannot be used.
    """

    def __init__(
        self,
        engine: Engine,
        section: FilesSection,
        directory: Path,
        log: FilteringBoundLogger,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._log = log
        self._now = now
        self._most = section.max_file_bytes
        self.disk = Disk((section.directory or directory / "files").expanduser().absolute())
        try:
            self.disk.open()
        except OSError as error:
            why = f"files.directory: {self.disk.directory} cannot be used: {error.strerror}"
            raise ConfigError("configuration", [why]) from None
        quota = Quota(section.max_bytes_total, section.max_bytes_per_project, section.keep_free_bytes)
        self.store = FileStore(engine, quota, now)
        self._shop = Workshop(self.disk, Room(quota, self.store.used, self.disk.free_bytes))
        uploads = UploadStore(engine, self.store, now)
        self.uploads = Uploads(self._shop, uploads, section.max_file_bytes, now)
        self._sweeper = Sweeper(self.store, uploads, self.disk, log)
        self._sweeping: asyncio.Task[None] | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        self._sweeping = asyncio.create_task(self._sweeper.run(self._shop.in_thread), name="file sweeper")

    async def stop(self) -> None:
        """After the last answer."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        await asyncio.to_thread(self._shop.close)

    # -- files --------------------------------------------------------------------------------------------------------

    async def receive(self, owner: str, kind: bytes, body: Body) -> File:
        """The file of a form with `file`, `purpose` and perhaps `expires_after`, once it is safe on disk.

        Raises `InvalidRequest`, `StorageQuotaExceeded`, `InsufficientStorage`, `StorageFailed`.
        """
        most = min(values.FILE_BYTES, self._most)
        if body.length is not None and body.length - FORM_BYTES > most:
            raise RequestTooLarge(f"The file is larger than {most} bytes, the limit here.", param="file")

        def begins(filename: str, fields: dict[str, str]) -> int:
            # what can be told at once, before gigabytes have come; `purpose` may come behind the file
            given = _given(fields)
            if "purpose" not in given:
                return most
            purpose = values.purpose_of(given)
            if filename:
                values.check_name(values.plain_name(filename, "file"), purpose, "file")
            return values.most_bytes(purpose, most)

        async with self._shop.incoming(owner, body) as (incoming, promise):
            form = Form(kind, "file", incoming, begins, lambda size: promise.grow(max(size, promise.expected), size))
            await self._shop.feed(form, body)
            return await self._shop.in_thread(lambda: self._finish(form, incoming, promise, most))

    def _finish(self, form: Form, incoming: Incoming, promise: Promise, most: int) -> File:
        filename = form.end()
        given = _given(form.fields)
        values.only_known(given, ("purpose", "expires_after"))
        purpose = values.purpose_of(given)
        if not filename:
            raise values.wrong("file", "a file with a name")
        filename = values.plain_name(filename, "file")
        values.check_name(filename, purpose, "file")
        if incoming.size > values.most_bytes(purpose, most):
            limit = values.most_bytes(purpose, most)
            raise RequestTooLarge(f"The file is larger than {limit} bytes, the limit here.", param="file")
        keep_s = values.keep_s_of(given)
        promise.release()
        return self.put(promise.owner, incoming, filename, purpose, keep_s=keep_s)

    async def page(
        self, owner: str, *, purpose: str | None, limit: int, newest_first: bool, after: str | None
    ) -> list[File]:
        """One more than `limit`, where there are more. Raises `InvalidRequest`."""
        return await self._shop.in_thread(
            lambda: self.store.page(owner, purpose=purpose, limit=limit + 1, newest_first=newest_first, after=after)
        )

    async def find(self, owner: str, file_id: str) -> File:
        """Raises `NotFound`."""
        return await self._shop.in_thread(lambda: self.store.find(owner, file_id))

    async def delete(self, owner: str, file_id: str) -> None:
        """Who reads it now reads it to its end. Raises `NotFound`."""

        def run() -> None:
            self.store.delete(owner, file_id)
            self.disk.remove(file_id)

        await self._shop.in_thread(run)

    @asynccontextmanager
    async def content(self, owner: str, file_id: str) -> AsyncIterator[Content]:
        """Raises `NotFound`."""

        def run() -> tuple[File, int]:
            file = self.store.find(owner, file_id)
            try:
                return file, self.disk.open_to_read(file.id)
            except FileNotFoundError:
                self._log.error("file_without_content", file=file.id)
                raise not_found("File", file_id) from None

        file, handle = await self._shop.in_thread(run, lambda opened: os.close(opened[1]))
        try:
            yield Content(file, handle, self._shop.in_thread)  # type: ignore[arg-type]
        finally:
            os.close(handle)

    # -- for who makes files here: blocking, in threads ---------------------------------------------------------------

    def begin(self) -> Incoming:
        """Something to write to, and then to `put` or to discard."""
        return self.disk.begin()

    def put(
        self,
        owner: str,
        incoming: Incoming,
        filename: str,
        purpose: str,
        *,
        keep_s: int | None = None,
        file_id: str | None = None,
    ) -> File:
        """Make what was written a file. With the `file_id` of one that is there already, its bytes are replaced by
        these, which are to be the same: so who was killed in the middle may do it again.

        Raises `StorageQuotaExceeded`, `InsufficientStorage`, `StorageFailed`.
        """
        created_at = int(self._now())
        file = File(
            id=file_id or values.new_id("file-"),
            owner=owner,
            filename=filename,
            purpose=purpose,
            bytes=incoming.size,
            created_at=created_at,
            expires_at=values.expiry_of(purpose, created_at, keep_s),
        )
        known = file_id is not None and self.store.known([file_id])
        with self._shop.placed(incoming, file.id, keep=bool(known)):
            if known:
                return self.store.find(owner, file.id)
            self.store.add(file)
        return file

    def path_of(self, file: File) -> Path:
        """Where its bytes are; to be read only."""
        return self.disk.path(file.id)


def _given(fields: dict[str, str]) -> Json:
    """A form's fields as they would be in JSON."""
    given: Json = {}
    for name, value in fields.items():
        if name.startswith("expires_after[") and name.endswith("]"):
            inner = name.removeprefix("expires_after[")[:-1]
            number = inner == "seconds" and value.isascii() and value.isdigit() and len(value) < 19
            given.setdefault("expires_after", {})[inner] = int(value) if number else value
        else:
            given[name] = value
    return given
