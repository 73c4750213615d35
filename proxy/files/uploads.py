"""Rows of uploads and of their parts, in the gateway's database. Everything here blocks, and runs in threads.

    pending -> completed | cancelled | expired

Each step is one statement that asks for the state it leaves, so that of two that come at once one wins. An upload past
its time is expired whatever its row says; the row stays for a day, so that who comes late is told so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection, Engine, delete, func, insert, select, update

from backends.errors import InvalidRequest
from proxy import database as db

from .store import FileStore, can_be_an_id, file_of, insert_file, not_found
from .values import MIB, PART_BYTES, File, Part, Upload

REMEMBERED_S = 24 * 3600
MOST_PARTS = 10_000

_uploads = db.uploads
_parts = db.upload_parts
_files = db.files


class UploadStore:
    """now: seconds since the epoch."""

    def __init__(self, engine: Engine, files: FileStore, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._files = files
        self._now = now

    def create(self, upload: Upload) -> None:
        """Its bytes count from now on. Raises `StorageQuotaExceeded`, `InsufficientStorage`."""
        with db.writing(self._engine) as connection:
            self._files.check_quota(connection, upload.owner, upload.bytes)
            row = asdict(replace(upload, file=None, part_ids=()))
            del row["file"], row["part_ids"]
            connection.execute(insert(_uploads).values(**row))

    def find(self, owner: str, upload_id: str) -> Upload:
        """Raises `NotFound`."""
        with self._engine.connect() as connection:
            return self._find(connection, owner, upload_id)

    def pending(self, owner: str, upload_id: str) -> Upload:
        """One that parts may be added to. Raises `NotFound`, `InvalidRequest`."""
        with self._engine.connect() as connection:
            return self._pending(connection, owner, upload_id)

    def add_part(self, owner: str, part: Part) -> None:
        """Its bytes are on disk. Raises `NotFound`, `InvalidRequest`."""
        with db.writing(self._engine) as connection:
            upload = self._pending(connection, owner, part.upload_id, lock=True)
            counted = select(func.count(), func.coalesce(func.sum(_parts.c.bytes), 0))
            count, size = connection.execute(counted.where(_parts.c.upload_id == upload.id)).one()
            # parts whose answers were lost are sent again, so there may be more than are used in the end
            if count >= MOST_PARTS or int(size) + part.bytes > 2 * upload.bytes + PART_BYTES + MIB:
                raise InvalidRequest(
                    f"The parts of upload '{upload.id}' are more than its {upload.bytes} bytes can need.",
                    param="data",
                    code="too_many_bytes",
                )
            connection.execute(insert(_parts).values(**asdict(part)))

    def parts(self, upload_id: str) -> dict[str, Part]:
        with self._engine.connect() as connection:
            rows = connection.execute(select(_parts).where(_parts.c.upload_id == upload_id))
            return {row.id: Part(row.id, row.upload_id, row.bytes, row.created_at) for row in rows}

    def complete(self, upload: Upload, file: File, part_ids: Sequence[str]) -> list[str]:
        """The file's bytes are on disk. Returns the ids of all its parts, whose rows are gone now.

        Raises `InvalidRequest` if it is not pending any more.
        """
        with db.writing(self._engine) as connection:
            self._end(connection, upload.owner, upload.id, "completed", file.id, json.dumps(list(part_ids)))
            insert_file(connection, file)
            return self._forget_parts(connection, upload.id)

    def cancel(self, owner: str, upload_id: str) -> list[str]:
        """As `complete`."""
        with db.writing(self._engine) as connection:
            self._end(connection, owner, upload_id, "cancelled")
            return self._forget_parts(connection, upload_id)

    def forget_expired(self) -> list[str]:
        """The ids of parts of uploads past their time, whose rows are gone now."""
        now = int(self._now())
        with db.writing(self._engine) as connection:
            past = select(_uploads.c.id).where(_uploads.c.expires_at <= now)
            ids = list(connection.execute(select(_parts.c.id).where(_parts.c.upload_id.in_(past))).scalars())
            connection.execute(delete(_parts).where(_parts.c.upload_id.in_(past)))
            connection.execute(delete(_uploads).where(_uploads.c.expires_at <= now - REMEMBERED_S))
            return ids

    # -- in a transaction ---------------------------------------------------------------------------------------------

    def _find(self, connection: Connection, owner: str, upload_id: str, *, lock: bool = False) -> Upload:
        mine = select(_uploads).where(_uploads.c.id == upload_id, _uploads.c.owner == owner)
        row: Any = None
        if can_be_an_id(upload_id):
            row = connection.execute(mine.with_for_update() if lock else mine).first()
        if row is None:
            raise not_found("Upload", upload_id)
        file = None
        if row.file_id is not None:
            found = connection.execute(select(_files).where(_files.c.id == row.file_id)).first()
            file = file_of(found) if found is not None else None
        late = row.status == "pending" and row.expires_at <= self._now()
        return Upload(
            id=row.id,
            owner=row.owner,
            filename=row.filename,
            purpose=row.purpose,
            bytes=row.bytes,
            status="expired" if late else row.status,
            created_at=row.created_at,
            expires_at=row.expires_at,
            keep_s=row.keep_s,
            file=file,
            part_ids=tuple(json.loads(row.part_ids or "[]")),
        )

    def _pending(self, connection: Connection, owner: str, upload_id: str, *, lock: bool = False) -> Upload:
        upload = self._find(connection, owner, upload_id, lock=lock)
        if upload.status != "pending":
            raise not_pending(upload)
        return upload

    def _end(self, connection: Connection, owner: str, upload_id: str, status: str, *more: str) -> None:
        self._pending(connection, owner, upload_id, lock=True)
        values: dict[str, str] = {"status": status, **dict(zip(("file_id", "part_ids"), more, strict=False))}
        connection.execute(update(_uploads).where(_uploads.c.id == upload_id).values(**values))

    @staticmethod
    def _forget_parts(connection: Connection, upload_id: str) -> list[str]:
        mine = _parts.c.upload_id == upload_id
        ids = list(connection.execute(select(_parts.c.id).where(mine)).scalars())
        connection.execute(delete(_parts).where(mine))
        return ids


def not_pending(upload: Upload) -> InvalidRequest:
    return InvalidRequest(
        f"Upload '{upload.id}' is {upload.status}: it cannot be changed any more.",
        param="upload_id",
        code=f"upload_{upload.status}",
    )
