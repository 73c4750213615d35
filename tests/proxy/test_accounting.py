from __future__ import annotations

from sqlalchemy import Engine, select

from backends.base import Usage
from proxy import database as db
from proxy.accounting import Accounting


def stored(database: Engine) -> list[tuple[object, ...]]:
    with database.connect() as connection:
        return [tuple(row) for row in connection.execute(select(db.usage).order_by(db.usage.c.model))]


def test_usage_adds_up_by_day_key_and_model(database: Engine) -> None:
    accounting = Accounting(database, today=lambda: "2026-11-22")
    for _ in range(2):
        accounting.add("k", "a", Usage(10, 5))
        accounting.add("k", "b", None)
        accounting.write(accounting.take())
    assert stored(database) == [("2026-11-22", "k", "a", 2, 20, 10), ("2026-11-22", "k", "b", 2, 0, 0)]


def test_what_could_not_be_written_is_kept(database: Engine) -> None:
    accounting = Accounting(database, today=lambda: "2026-11-22")
    accounting.add("k", "a", Usage(10, 5))
    rows = accounting.take()
    accounting.add("k", "a", Usage(1, 1))
    accounting.put_back(rows)
    accounting.write(accounting.take())
    assert stored(database) == [("2026-11-22", "k", "a", 2, 11, 6)]


def test_nothing_to_write_is_no_write(database: Engine) -> None:
    Accounting(database).write([])
    assert stored(database) == []
