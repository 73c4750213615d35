"""Rows of webhooks: what is to be told, when next, and what was. Each verb is one transaction, and blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, func, insert, select, update

from proxy import database as db

CLAIM_S = 60
"""A claimed delivery that nobody has told the end of is due again after this, or later: its gateway was killed."""
KEPT_S = 7 * 24 * 3600

Row = dict[str, Any]
_events = db.webhook_events


@dataclass(frozen=True, slots=True)
class Due:
    """An event that is to be sent now. `attempts` counts this one; `owner` is its batch's."""

    id: str
    batch_id: str
    type: str
    url: str
    body: bytes
    attempts: int
    owner: str


class EventStore:
    """now: seconds since the epoch."""

    def __init__(self, engine: Engine, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._now = now

    def add(self, rows: Sequence[Row]) -> None:
        with db.writing(self._engine) as connection:
            if rows:
                connection.execute(insert(_events), list(rows))

    def claim(self, limit: int) -> list[Due]:
        """What is due, for whoever asks first."""
        now = int(self._now())
        wanted = (
            select(_events, db.batches.c.owner)
            .outerjoin(db.batches, db.batches.c.id == _events.c.batch_id)
            .where(_events.c.next_at <= now)
            .order_by(_events.c.next_at)
            .limit(limit)
        )
        with self._engine.connect() as connection:
            found = connection.execute(wanted).all()
        if not found:
            return []
        due: list[Due] = []
        with db.writing(self._engine) as connection:
            for row in found:
                mine = _events.c.id == row.id, _events.c.attempts == row.attempts, _events.c.next_at == row.next_at
                taken = update(_events).where(*mine).values(attempts=row.attempts + 1, next_at=now + CLAIM_S)
                if connection.execute(taken).rowcount:
                    due.append(
                        Due(
                            row.id,
                            row.batch_id,
                            row.type,
                            row.url,
                            bytes(row.body),
                            row.attempts + 1,
                            row.owner or "",
                        )
                    )
        return due

    def delivered(self, event: Due) -> None:
        self._settle(event, next_at=None, delivered_at=int(self._now()))

    def failed(self, event: Due, next_at: float | None) -> None:
        """To be tried again then; given up with None."""
        if next_at is None:
            self._settle(event, next_at=None, given_up_at=int(self._now()))
        else:
            self._settle(event, next_at=int(next_at))

    def _settle(self, event: Due, **values: int | None) -> None:
        mine = _events.c.id == event.id, _events.c.attempts == event.attempts
        with db.writing(self._engine) as connection:
            connection.execute(update(_events).where(*mine).values(**values))

    def waiting(self) -> int:
        with self._engine.connect() as connection:
            counted = select(func.count()).select_from(_events).where(_events.c.next_at.is_not(None))
            return int(connection.execute(counted).scalar_one())

    def forget(self) -> int:
        """Rows that ended a week ago. Returns how many."""
        past = int(self._now()) - KEPT_S
        with db.writing(self._engine) as connection:
            over = _events.delete().where(_events.c.next_at.is_(None), _events.c.created_at < past)
            return connection.execute(over).rowcount
