"""Tokens used, by day, key, project and model: added up in memory, written by one transaction several times a second.

So a process that is killed loses what was answered since its last write, less than a second. A day is that of the
answer, not of the write, and those of UTC.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine
from structlog.typing import FilteringBoundLogger

from backends.base import Usage

from . import database as db

WRITE_EVERY_S = 0.5
"""With what a write itself takes, well inside the second that may be lost."""

DAY_S = 86400


class Accounting:
    """now: seconds since the epoch."""

    def __init__(self, engine: Engine, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._now = now
        self._day = ""
        self._day_ends = 0.0
        self._totals: dict[tuple[str, str, str, str], list[int]] = {}

    def add(self, key_id: str, project_id: str, model: str, usage: Usage | None, *, failed: bool = False) -> None:
        """Count one request. Usage is None where the engine told none."""
        now = self._now()
        if not self._day_ends - DAY_S <= now < self._day_ends:
            self._day = time.strftime("%Y-%m-%d", time.gmtime(now))
            self._day_ends = now - now % DAY_S + DAY_S
        key = (self._day, key_id, project_id, model)
        total = self._totals.get(key)
        if total is None:
            total = self._totals[key] = [0, 0, 0, 0]
        total[0] += 1
        if failed:
            total[1] += 1
        if usage is not None:
            total[2] += usage.prompt_tokens
            total[3] += usage.completion_tokens

    def take(self) -> list[dict[str, Any]]:
        """What has come together since the last call, as rows.

        In the order of the primary key: processes that write the same rows then wait for each other in the same order.
        """
        totals, self._totals = self._totals, {}
        return [
            {"day": day, "key_id": key_id, "project_id": project_id, "model": model}
            | dict(zip(db.COUNTS, counts, strict=True))
            for (day, key_id, project_id, model), counts in sorted(totals.items())
        ]

    def put_back(self, rows: list[dict[str, Any]]) -> None:
        """Keep what could not be written for the next time."""
        for row in rows:
            key = (row["day"], row["key_id"], row["project_id"], row["model"])
            total = self._totals.setdefault(key, [0, 0, 0, 0])
            for index, name in enumerate(db.COUNTS):
                total[index] += row[name]

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Add rows to the table. To be called in a thread."""
        if not rows:
            return
        with db.writing(self._engine) as connection:
            db.upsert(
                connection, db.usage, rows, lambda new: {name: db.usage.c[name] + new[name] for name in db.COUNTS}
            )

    async def flush(self) -> None:
        """Write what has come together; what cannot be written is kept. Raises what the database did."""
        rows = self.take()
        if not rows:
            return
        writing = asyncio.create_task(asyncio.to_thread(self.write, rows), name="usage write")
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:  # only the waiting: the thread goes on, and what becomes of it is waited for
            await asyncio.wait([writing])
            if writing.exception() is not None:
                self.put_back(rows)
            raise
        except Exception:
            self.put_back(rows)
            raise

    async def keep_writing(self, log: FilteringBoundLogger) -> None:
        """Until it is cancelled. The database may be locked, full or away for a while."""
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            try:
                await self.flush()
            except Exception:
                log.exception("usage_not_written")
