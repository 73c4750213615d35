"""Tokens used, by day, key and model: added up in memory, written by one transaction a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.dialects.sqlite import insert

from backends.base import Usage

from . import database as db

_COUNTS = ("requests", "prompt_tokens", "completion_tokens")


class Accounting:
    def __init__(
        self, engine: Engine, today: Callable[[], str] = lambda: time.strftime("%Y-%m-%d", time.gmtime())
    ) -> None:
        self._engine = engine
        self._today = today
        self._totals: dict[tuple[str, str], list[int]] = {}

    def add(self, key_id: str, model: str, usage: Usage | None) -> None:
        """Count one answered request. Usage is None where the engine told none."""
        total = self._totals.get((key_id, model))
        if total is None:
            total = self._totals[key_id, model] = [0, 0, 0]
        total[0] += 1
        if usage is not None:
            total[1] += usage.prompt_tokens
            total[2] += usage.completion_tokens

    def take(self) -> list[dict[str, Any]]:
        """What has come together since the last call, as rows. The day is the one in which it is taken (UTC)."""
        totals, self._totals = self._totals, {}
        day = self._today()
        return [
            {"day": day, "key_id": key_id, "model": model, "requests": n, "prompt_tokens": p, "completion_tokens": c}
            for (key_id, model), (n, p, c) in totals.items()
        ]

    def put_back(self, rows: list[dict[str, Any]]) -> None:
        """Keep what could not be written for the next time."""
        for row in rows:
            total = self._totals.setdefault((row["key_id"], row["model"]), [0, 0, 0])
            for index, name in enumerate(_COUNTS):
                total[index] += row[name]

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Add rows to the table."""
        if not rows:
            return
        statement = insert(db.usage)
        added = {name: db.usage.c[name] + statement.excluded[name] for name in _COUNTS}
        key = [db.usage.c.day, db.usage.c.key_id, db.usage.c.model]
        with self._engine.begin() as connection:
            connection.execute(statement.on_conflict_do_update(index_elements=key, set_=added), rows)
