"""Uploads: files that come in parts, and are put together."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial

from backends.errors import InvalidRequest, RequestTooLarge
from proxy.stored_responses import StorageFailed

from . import values
from .body import Body
from .disk import Incoming
from .errors import disk_errors
from .form import Form
from .quota import Promise
from .uploads import UploadStore, not_pending
from .values import File, Json, Part, Upload
from .workshop import FORM_BYTES, Workshop

COPY_BYTES = 1024 * 1024
COPY_AT_ONCE_BYTES = 32 * 1024 * 1024
"""Between two of these a client that has gone is noticed."""


class _PartsGone(StorageFailed):
    """While they were read: the upload was completed, cancelled or swept."""


class Uploads:
    """most   bytes of one file, however it comes
    now       seconds since the epoch
    """

    def __init__(self, workshop: Workshop, store: UploadStore, most: int, now: Callable[[], float]) -> None:
        self._shop = workshop
        self.store = store
        self._most = most
        self._now = now

    async def create(self, owner: str, given: Json) -> Upload:
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
            # whether the disk has room; the rows are counted below
            self._shop.room.promise(owner, size, counted=True).release()
            self.store.create(upload)

        await self._shop.in_thread(run)
        return upload

    async def add_part(self, owner: str, upload_id: str, kind: bytes, body: Body) -> Part:
        """Raises as `receive`, and `NotFound`."""
        most = values.PART_BYTES
        if body.length is not None and body.length - FORM_BYTES > most:
            raise RequestTooLarge(f"The part is larger than {most} bytes, the limit here.", param="data")
        await self._shop.in_thread(lambda: self.store.pending(owner, upload_id))
        async with self._shop.incoming(owner, body, counted=True) as (incoming, promise):
            form = Form(
                kind,
                "data",
                incoming,
                lambda filename, fields: most,
                lambda size: promise.grow(max(size, promise.expected), size),
            )
            await self._shop.feed(form, body)

            def finish() -> Part:
                form.end()
                values.only_known(dict(form.fields), ())
                part = Part(values.new_id("part_"), upload_id, incoming.size, int(self._now()))
                with self._shop.placed(incoming, part.id):
                    self.store.add_part(owner, part)
                return part

            return await self._shop.in_thread(finish)

    async def complete(self, owner: str, upload_id: str, given: Json) -> Upload:
        """The parts together are a file. Asked again with the same parts, as who lost the answer does, it answers the
        same. Raises `InvalidRequest`, `NotFound`."""
        part_ids, digest = _completion(given)
        upload = await self._shop.in_thread(lambda: self.store.find(owner, upload_id))
        if upload.status == "pending":
            try:
                return await self._complete(upload, part_ids, digest)
            except (_PartsGone, InvalidRequest):
                upload = await self._shop.in_thread(lambda: self.store.find(owner, upload_id))
                if upload.status == "pending":
                    raise
        if upload.status == "completed" and upload.part_ids == part_ids and upload.file is not None:
            return upload
        raise not_pending(upload)

    async def _complete(self, upload: Upload, part_ids: tuple[str, ...], digest: str | None) -> Upload:
        sizes = await self._sizes(upload, part_ids)
        promise = await self._shop.in_thread(
            lambda: self._shop.room.promise(upload.owner, upload.bytes, counted=True), Promise.release
        )
        try:
            incoming = await self._shop.in_thread(self._shop.disk.begin, Incoming.discard)
            try:
                found = await self._join(incoming, sizes)
                if digest is not None and found != digest:
                    raise InvalidRequest(
                        "The MD5 of the parts together is another than 'md5'.", param="md5", code="md5_mismatch"
                    )
                return await self._shop.in_thread(lambda: self._completed(upload, incoming, part_ids))
            finally:
                await self._shop.in_thread(incoming.discard)
        finally:
            promise.release()

    async def cancel(self, owner: str, upload_id: str) -> Upload:
        """Raises `InvalidRequest`, `NotFound`."""

        def run() -> Upload:
            for part_id in self.store.cancel(owner, upload_id):
                self._shop.disk.remove(part_id)
            return self.store.find(owner, upload_id)

        return await self._shop.in_thread(run)

    async def _sizes(self, upload: Upload, part_ids: Sequence[str]) -> dict[str, int]:
        """Bytes of each part, in order. Raises `InvalidRequest` if they do not make up the file."""
        parts = await self._shop.in_thread(lambda: self.store.parts(upload.id))
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
                await self._shop.in_thread(partial(self._copy, incoming, part_id, start, end, md5))
        return md5.hexdigest()

    def _copy(self, incoming: Incoming, part_id: str, start: int, end: int, md5: hashlib._Hash) -> None:
        try:
            handle = self._shop.disk.open_to_read(part_id)
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
        with self._shop.placed(incoming, file.id):
            gone = self.store.complete(upload, file, part_ids)
        for part_id in gone:
            self._shop.disk.remove(part_id)
        return self.store.find(upload.owner, upload.id)


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
