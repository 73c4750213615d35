"""Rows of files, in the gateway's database. A file belongs to its owner; to any other it does not exist.

Everything here blocks, and runs in threads. Nothing of it is ever logged.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, delete, exists, func, insert, or_, select, text

from backends.errors import InvalidRequest, NotFound
from proxy import database as db
from proxy.batch.values import LIVE

from .quota import Quota
from .values import File

_files = db.files
_uploads = db.uploads
_parts = db.upload_parts

_COUNTING = 7_302_114_897
"""The number of PostgreSQL's advisory lock under which bytes are counted and added to. SQLite has one writer anyway."""

ID_LENGTH = 64


class FileInUse(InvalidRequest):
    """The input of a batch that has not ended."""

    status = 409
    code = "file_in_use"


def _in_use() -> ColumnElement[bool]:
    live = db.batches.c.input_file_id == _files.c.id, db.batches.c.status.in_(LIVE)
    return exists().where(*live)


class FileStore:
    """now: seconds since the epoch."""

    def __init__(self, engine: Engine, quota: Quota, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._quota = quota
        self._now = now

    def add(self, file: File) -> None:
        """Its bytes are on disk. Raises `StorageQuotaExceeded`, `InsufficientStorage`."""
        with db.writing(self._engine) as connection:
            self.check_quota(connection, file.owner, file.bytes)
            insert_file(connection, file)

    def find(self, owner: str, file_id: str) -> File:
        """Raises `NotFound`."""
        mine = select(_files).where(_files.c.id == file_id, _files.c.owner == owner, self._lasting())
        row = None
        if can_be_an_id(file_id):
            with self._engine.connect() as connection:
                row = connection.execute(mine).first()
        if row is None:
            raise not_found("File", file_id)
        return file_of(row)

    def page(
        self, owner: str, *, purpose: str | None = None, limit: int, newest_first: bool = True, after: str | None = None
    ) -> list[File]:
        """At most `limit` of them, from `after` on, which may have been deleted since. Raises `InvalidRequest` for an
        `after` that is no file's id."""
        wanted = select(_files).where(_files.c.owner == owner, self._lasting())
        if purpose is not None:
            wanted = wanted.where(_files.c.purpose == purpose.replace("\0", " "))
        if after is not None:
            if not (can_be_an_id(after) and after.startswith("file-")):
                raise InvalidRequest(f"No file has the id '{after[:80]}'.", param="after", code="invalid_value")
            wanted = wanted.where(_files.c.id < after if newest_first else _files.c.id > after)
        order = _files.c.id.desc() if newest_first else _files.c.id.asc()
        with self._engine.connect() as connection:
            return [file_of(row) for row in connection.execute(wanted.order_by(order).limit(limit))]

    def delete(self, owner: str, file_id: str) -> None:
        """Its bytes are to be removed afterwards. Raises `NotFound`, `FileInUse`."""
        done, used = 0, False
        if can_be_an_id(file_id):
            with db.writing(self._engine) as connection:
                mine = _files.c.id == file_id, _files.c.owner == owner, self._lasting()
                done = connection.execute(delete(_files).where(*mine, ~_in_use())).rowcount
                used = not done and connection.execute(select(_files.c.id).where(*mine)).first() is not None
        if used:
            raise FileInUse(f"File '{file_id}' is read by a batch that has not ended: cancel that one first.")
        if not done:
            raise not_found("File", file_id)

    def forget_expired(self) -> list[str]:
        """The ids of files past their time, whose rows are gone now. One that a batch still reads is left."""
        with db.writing(self._engine) as connection:
            past = select(_files.c.id).where(_files.c.expires_at <= int(self._now()), ~_in_use())
            ids = list(connection.execute(past.with_for_update()).scalars())
            for some in _slices(ids):
                connection.execute(delete(_files).where(_files.c.id.in_(some)))
            return ids

    def known(self, content_ids: list[str]) -> set[str]:
        """Which of these are a file's or a part's."""
        found: set[str] = set()
        with self._engine.connect() as connection:
            for some in _slices(content_ids):
                for column in (_files.c.id, _parts.c.id):
                    found.update(connection.execute(select(column).where(column.in_(some))).scalars())
        return found

    # -- counting -----------------------------------------------------------------------------------------------------

    def used(self, owner: str) -> tuple[int, int]:
        """Bytes of everybody's and of an owner's files, pending uploads among them."""
        with self._engine.connect() as connection:
            return self._used(connection, owner)

    def check_quota(self, connection: Connection, owner: str, added: int) -> None:
        """Nobody else adds anything until this transaction is over. Raises as `Quota.check`."""
        if self._quota.total is None and self._quota.per_owner is None:
            return
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _COUNTING})
        self._quota.check(*self._used(connection, owner), added)

    def _used(self, connection: Connection, owner: str) -> tuple[int, int]:
        now = int(self._now())
        pending = (_uploads.c.status == "pending", _uploads.c.expires_at > now)
        of_files = select(func.coalesce(func.sum(_files.c.bytes), 0)).where(self._lasting())
        of_uploads = select(func.coalesce(func.sum(_uploads.c.bytes), 0)).where(*pending)
        total = sum(int(connection.execute(wanted).scalar_one()) for wanted in (of_files, of_uploads))
        own = int(connection.execute(of_files.where(_files.c.owner == owner)).scalar_one())
        own += int(connection.execute(of_uploads.where(_uploads.c.owner == owner)).scalar_one())
        return total, own

    def _lasting(self) -> Any:
        return or_(_files.c.expires_at.is_(None), _files.c.expires_at > int(self._now()))


def insert_file(connection: Connection, file: File) -> None:
    connection.execute(insert(_files).values(**asdict(file)))


def file_of(row: Any) -> File:
    return File(row.id, row.owner, row.filename, row.purpose, row.bytes, row.created_at, row.expires_at)


def not_found(what: str, given: str) -> NotFound:
    """As OpenAI says it."""
    return NotFound(f"No such {what} object: {given[:80]}", param="id", code="not_found")


def can_be_an_id(given: str) -> bool:
    """Whether it fits the tables: ids come from clients, and PostgreSQL refuses what is longer, or holds a NUL."""
    return len(given) <= ID_LENGTH and "\0" not in given


def _slices(ids: list[str], size: int = 500) -> list[list[str]]:
    """A statement has a limit of parameters."""
    return [ids[start : start + size] for start in range(0, len(ids), size)]
