"""What tribunals did, for those who asked them: kept in the gateway's database for as long as the profile says.

    keep    a deliberation that is over: at once in memory, in the database a moment later
    show    one of them, to the key that asked for it; to any other it does not exist
    sweep   what is past its time

Nothing of this is ever logged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy import Engine, delete, insert, select
from sqlalchemy.exc import SQLAlchemyError
from structlog.typing import FilteringBoundLogger

from backends.errors import GatewayError, NotFound

from . import database as db

if TYPE_CHECKING:
    from tribunal.backend import Deliberated

MOST_BYTES = 8 * 1024 * 1024
"""Of one deliberation: what is larger is kept without texts."""
MOST_WAITING = 10_000
"""Deliberations that are not written yet, where the database is away: further ones are not kept."""
AGAIN_S = 1.0
TOGETHER_S = 0.02
"""What is over within this time is written by one transaction."""

Json = dict[str, Any]
_table = db.deliberations


class Deliberations:
    """now: seconds since the epoch."""

    def __init__(self, engine: Engine, *, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._now = now
        self._waiting: dict[str, Waiting] = {}
        self._some = asyncio.Event()

    def keep(self, over: Deliberated) -> None:
        """Never fails, and never waits."""
        keep_s = over.profile.keep_s
        if keep_s and len(self._waiting) < MOST_WAITING:
            now = self._now()
            self._waiting[over.id] = Waiting(over, int(now - (over.ended_s - over.began_s)), int(now + keep_s))
            self._some.set()

    async def show(self, owner: str, id: str) -> Json:
        """Of `owner`, a key's id, "" where no key is needed. Raises `NotFound`."""
        waiting = self._waiting.get(id)
        row = waiting.row() if waiting is not None else None
        if row is None:
            try:
                row = await asyncio.to_thread(self._row, id)
            except SQLAlchemyError as error:
                raise StorageFailed("Deliberations cannot be read just now.", retry_after_s=5.0) from error
        if row is None or row["key_id"] != owner or row["expires_at"] <= self._now():
            raise NotFound(f"Deliberation '{id[:80]}' not found: it may not be over yet, or its time is past.")
        shown: Json = orjson.loads(row["deliberation"])
        return shown

    def _row(self, id: str) -> Json | None:
        if len(id) > 64 or "\0" in id:  # ids come from clients, and PostgreSQL refuses these
            return None
        with self._engine.connect() as connection:
            found = connection.execute(select(_table).where(_table.c.id == id)).mappings().first()
        return dict(found) if found is not None else None

    def sweep(self) -> int:
        """Forget what is past its time; how many that was. To be called in a thread."""
        with db.writing(self._engine) as connection:
            return int(connection.execute(delete(_table).where(_table.c.expires_at <= int(self._now()))).rowcount)

    # -- writing ------------------------------------------------------------------------------------------------------

    async def keep_writing(self, log: FilteringBoundLogger) -> None:
        """Until it is cancelled. The database may be locked, full or away for a while."""
        while True:
            await self._some.wait()
            await asyncio.sleep(TOGETHER_S)
            try:
                await self.flush()
            except SQLAlchemyError:
                log.exception("deliberations_not_written")
                await asyncio.sleep(AGAIN_S)

    async def flush(self) -> None:
        """Write what waits; what cannot be written goes on waiting."""
        self._some.clear()
        those = list(self._waiting.values())
        if not those:
            return
        writing = asyncio.create_task(asyncio.to_thread(self._write, those), name="deliberations write")
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:  # only the waiting: the thread goes on
            await asyncio.wait([writing])
            if writing.exception() is None:
                self._written(those)
            raise
        except SQLAlchemyError:
            self._some.set()
            raise
        self._written(those)

    def _write(self, those: list[Waiting]) -> None:
        rows = [one.row() for one in those]
        with db.writing(self._engine) as connection:
            connection.execute(insert(_table), rows)

    def _written(self, those: list[Waiting]) -> None:
        for one in those:
            del self._waiting[one.over.id]


class StorageFailed(GatewayError):
    """The database is locked or away. Asking again may help."""

    status = 503
    code = "storage_failed"


@dataclass(frozen=True, slots=True)
class Waiting:
    """One that is to be written. Made into JSON by whoever needs that: it takes a while, and nobody waits for it."""

    over: Deliberated
    created_at: int
    expires_at: int

    def row(self) -> Json:
        """Of the table. Without texts where they are not to be kept, or are too many."""
        data = self._dumped(redacted=self.over.redact)
        if len(data) > MOST_BYTES:
            data = self._dumped(redacted=True)
        return {
            "id": self.over.id,
            "key_id": self.over.call.key_id,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "deliberation": data,
        }

    def _dumped(self, *, redacted: bool) -> bytes:
        over = self.over
        trace = over.trace.redacted() if redacted else over.trace
        head = {
            "id": over.id,
            "object": "tribunal.deliberation",
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "request_id": over.call.id,
            "model": over.call.model,
            "redacted": redacted,
        }
        told = {field.name: getattr(trace, field.name) for field in fields(trace)}  # orjson knows what is inside
        return orjson.dumps(head | told, option=orjson.OPT_NON_STR_KEYS)
