"""What endpoints and batches ask of files: each verb whole, its disk and database work in threads of its own.

receive, page, find, delete, content           files
begin, put, path_of                            for who makes files here, such as a batch's output
create_upload, add_part, complete, cancel      uploads
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from structlog.typing import FilteringBoundLogger

from backends.errors import InvalidRequest, RequestTooLarge
from proxy.config import ConfigError, FilesSection
from proxy.stored_responses import StorageFailed

from . import values
from .body import Body
from .disk import Disk, Incoming
from .errors import disk_errors
from .form import Form
from .quota import Promise, Quota, Room
from .store import FileStore, not_found
from .sweep import Sweeper
from .uploads import UploadStore, not_pending
from .values import File, Json, Part, Upload

THREADS = 8
"""Their own, so that a slow disk keeps nobody waiting but those who use it."""

FORM_BYTES = 8192
"""What a form has around its file, at most about; so much less than `content-length` is expected at first."""

COPY_BYTES = 1024 * 1024
COPY_AT_ONCE_BYTES = 32 * 1024 * 1024
"""Between two of these a client that has gone is noticed."""

T = TypeVar("T")


class _PartsGone(StorageFailed):
    """While they were read: the upload was completed, cancelled or swept."""


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
        self.uploads = UploadStore(engine, self.store, now)
        self._room = Room(quota, self.store.used, self.disk.free_bytes)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="files")
        self._sweeper = Sweeper(self.store, self.uploads, self.disk, log)
        self._sweeping: asyncio.Task[None] | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        self._sweeping = asyncio.create_task(self._sweeper.run(self._in_thread), name="file sweeper")

    async def stop(self) -> None:
        """After the last answer."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        await asyncio.to_thread(self.disk.close)
        self._threads.shutdown(wait=False)

    async def _in_thread(self, work: Callable[[], T], undo: Callable[[T], None] | None = None) -> T:
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

        async with self._incoming(owner, body) as (incoming, promise):
            form = Form(kind, "file", incoming, begins, lambda size: promise.grow(max(size, promise.expected), size))
            await self._feed(form, body)
            return await self._in_thread(lambda: self._finish(form, incoming, promise, most))

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
        return await self._in_thread(
            lambda: self.store.page(owner, purpose=purpose, limit=limit + 1, newest_first=newest_first, after=after)
        )

    async def find(self, owner: str, file_id: str) -> File:
        """Raises `NotFound`."""
        return await self._in_thread(lambda: self.store.find(owner, file_id))

    async def delete(self, owner: str, file_id: str) -> None:
        """Who reads it now reads it to its end. Raises `NotFound`."""

        def run() -> None:
            self.store.delete(owner, file_id)
            self.disk.remove(file_id)

        await self._in_thread(run)

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

        file, handle = await self._in_thread(run, lambda opened: os.close(opened[1]))
        try:
            yield Content(file, handle, self._in_thread)  # type: ignore[arg-type]
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
        with self._placed(incoming, file.id, keep=bool(known)):
            if known:
                return self.store.find(owner, file.id)
            self.store.add(file)
        return file

    def path_of(self, file: File) -> Path:
        """Where its bytes are; to be read only."""
        return self.disk.path(file.id)

    # -- uploads ------------------------------------------------------------------------------------------------------

    async def create_upload(self, owner: str, given: Json) -> Upload:
        """Raises `InvalidRequest`, `StorageQuotaExceeded`, `InsufficientStorage`."""
        values.only_known(given, ("filename", "purpose", "bytes", "mime_type", "expires_after"))
        filename = values.plain_name(values.text_of(given, "filename"), "filename")
        purpose = values.purpose_of(given)
        most = values.most_bytes(purpose, min(values.UPLOAD_BYTES, self._most))
        size = values.integer_of(given, "bytes", 0, most)
        values.text_of(given, "mime_type")  # asked for, as OpenAI does; answers have one type whatever it says
        keep_s = values.keep_s_of(given)
        values.check_name(filename, purpose, "filename")
        created_at = int(self._now())
        upload = Upload(
            id=values.new_id("upload_"),
            owner=owner,
            filename=filename,
            purpose=purpose,
            bytes=size,
            status="pending",
            created_at=created_at,
            expires_at=created_at + values.UPLOAD_KEPT_S,
            keep_s=keep_s,
        )

        def run() -> None:
            self._room.promise(owner, size, counted=True).release()  # the disk has room; the rows are counted below
            self.uploads.create(upload)

        await self._in_thread(run)
        return upload

    async def add_part(self, owner: str, upload_id: str, kind: bytes, body: Body) -> Part:
        """Raises as `receive`, and `NotFound`."""
        most = values.PART_BYTES
        if body.length is not None and body.length - FORM_BYTES > most:
            raise RequestTooLarge(f"The part is larger than {most} bytes, the limit here.", param="data")
        await self._in_thread(lambda: self.uploads.pending(owner, upload_id))
        async with self._incoming(owner, body, counted=True) as (incoming, promise):
            form = Form(
                kind,
                "data",
                incoming,
                lambda filename, fields: most,
                lambda size: promise.grow(max(size, promise.expected), size),
            )
            await self._feed(form, body)

            def finish() -> Part:
                form.end()
                values.only_known(dict(form.fields), ())
                part = Part(values.new_id("part_"), upload_id, incoming.size, int(self._now()))
                with self._placed(incoming, part.id):
                    self.uploads.add_part(owner, part)
                return part

            return await self._in_thread(finish)

    async def complete(self, owner: str, upload_id: str, given: Json) -> Upload:
        """The parts together are a file. Asked again with the same parts, as who lost the answer does, it answers the
        same. Raises `InvalidRequest`, `NotFound`."""
        part_ids, digest = _completion(given)
        upload = await self._in_thread(lambda: self.uploads.find(owner, upload_id))
        if upload.status == "pending":
            try:
                return await self._complete(upload, part_ids, digest)
            except (_PartsGone, InvalidRequest):
                upload = await self._in_thread(lambda: self.uploads.find(owner, upload_id))
                if upload.status == "pending":
                    raise
        if upload.status == "completed" and upload.part_ids == part_ids and upload.file is not None:
            return upload
        raise not_pending(upload)

    async def _complete(self, upload: Upload, part_ids: tuple[str, ...], digest: str | None) -> Upload:
        sizes = await self._sizes(upload, part_ids)
        promise = await self._in_thread(
            lambda: self._room.promise(upload.owner, upload.bytes, counted=True), Promise.release
        )
        try:
            incoming = await self._in_thread(self.begin, Incoming.discard)
            try:
                found = await self._join(incoming, sizes)
                if digest is not None and found != digest:
                    raise InvalidRequest(
                        "The MD5 of the parts together is another than 'md5'.", param="md5", code="md5_mismatch"
                    )
                return await self._in_thread(lambda: self._completed(upload, incoming, part_ids))
            finally:
                await self._in_thread(incoming.discard)
        finally:
            promise.release()

    async def cancel(self, owner: str, upload_id: str) -> Upload:
        """Raises `InvalidRequest`, `NotFound`."""

        def run() -> Upload:
            for part_id in self.uploads.cancel(owner, upload_id):
                self.disk.remove(part_id)
            return self.uploads.find(owner, upload_id)

        return await self._in_thread(run)

    async def _sizes(self, upload: Upload, part_ids: Sequence[str]) -> dict[str, int]:
        """Bytes of each part, in order. Raises `InvalidRequest` if they do not make up the file."""
        parts = await self._in_thread(lambda: self.uploads.parts(upload.id))
        for part_id in part_ids:
            if part_id not in parts:
                raise InvalidRequest(
                    f"Upload '{upload.id}' has no part '{part_id[:80]}'.", param="part_ids", code="part_not_found"
                )
        sizes = {part_id: parts[part_id].bytes for part_id in part_ids}
        if (total := sum(sizes.values())) != upload.bytes:
            raise InvalidRequest(
                f"The parts have {total} bytes together, but the upload was made for {upload.bytes}.",
                param="part_ids",
                code="bytes_mismatch",
            )
        return sizes

    async def _join(self, incoming: Incoming, sizes: dict[str, int]) -> str:
        """Write the parts one after the other. Returns the MD5, in hex."""
        md5 = hashlib.md5(usedforsecurity=False)
        for part_id, size in sizes.items():
            for start in range(0, size, COPY_AT_ONCE_BYTES):
                end = min(start + COPY_AT_ONCE_BYTES, size)
                await self._in_thread(partial(self._copy, incoming, part_id, start, end, md5))
        return md5.hexdigest()

    def _copy(self, incoming: Incoming, part_id: str, start: int, end: int, md5: hashlib._Hash) -> None:
        try:
            handle = self.disk.open_to_read(part_id)
        except FileNotFoundError:
            raise _PartsGone("The upload's parts are not there any more.") from None
        try:
            while start < end:
                with disk_errors():
                    data = os.pread(handle, min(COPY_BYTES, end - start), start)
                if not data:
                    raise StorageFailed("The disk has lost some of this upload.")
                md5.update(data)
                incoming.write(data)
                start += len(data)
        finally:
            os.close(handle)

    def _completed(self, upload: Upload, incoming: Incoming, part_ids: tuple[str, ...]) -> Upload:
        created_at = int(self._now())
        file = File(
            id=values.new_id("file-"),
            owner=upload.owner,
            filename=upload.filename,
            purpose=upload.purpose,
            bytes=incoming.size,
            created_at=created_at,
            expires_at=values.expiry_of(upload.purpose, created_at, upload.keep_s),
        )
        with self._placed(incoming, file.id):
            gone = self.uploads.complete(upload, file, part_ids)
        for part_id in gone:
            self.disk.remove(part_id)
        return self.uploads.find(upload.owner, upload.id)

    # -- what comes in ------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _incoming(
        self, owner: str, body: Body, *, counted: bool = False
    ) -> AsyncIterator[tuple[Incoming, Promise]]:
        """Something to write to, with the room for it. Nothing is left of it, unless it is placed."""
        expected = max((body.length or 0) - FORM_BYTES, 0)
        promise = await self._in_thread(lambda: self._room.promise(owner, expected, counted=counted), Promise.release)
        try:
            incoming = await self._in_thread(self.begin, Incoming.discard)
            try:
                yield incoming, promise
            finally:
                await self._in_thread(incoming.discard)
        finally:
            promise.release()

    async def _feed(self, form: Form, body: Body) -> None:
        while (piece := await body.next()) is not None:
            await self._in_thread(partial(form.feed, piece))

    @contextlib.contextmanager
    def _placed(self, incoming: Incoming, content_id: str, *, keep: bool = False) -> Iterator[None]:
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


def _completion(given: Json) -> tuple[tuple[str, ...], str | None]:
    """`part_ids` and `md5`. Raises `InvalidRequest`."""
    values.only_known(given, ("part_ids", "md5"))
    part_ids = given.get("part_ids")
    if part_ids is None:
        raise values.missing("part_ids")
    if not isinstance(part_ids, list) or not all(isinstance(part_id, str) for part_id in part_ids):
        raise InvalidRequest(
            "Invalid type for 'part_ids': expected an array of strings.", param="part_ids", code="invalid_type"
        )
    if len(set(part_ids)) < len(part_ids):
        raise values.wrong("part_ids", "each part once")
    if given.get("md5") is None:
        return tuple(part_ids), None
    digest = values.text_of(given, "md5").lower()
    if len(digest) != 32 or not all(c in "0123456789abcdef" for c in digest):
        raise values.wrong("md5", "32 hexadecimal digits")
    return tuple(part_ids), digest
