from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, event, select, text
from sqlalchemy.exc import SQLAlchemyError

from backends.base import Usage
from proxy import database as db
from proxy.accounting import Accounting

NOON = 1795348800.0  # 2026-11-22 12:00 UTC
MIDNIGHT = NOON + 12 * 3600


class Clock:
    now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def accounting(database: Engine, clock: Clock) -> Accounting:
    return Accounting(database, now=clock)


def stored(database: Engine) -> list[tuple[object, ...]]:
    ordered = select(db.usage).order_by(db.usage.c.day, db.usage.c.model, db.usage.c.project_id)
    with database.connect() as connection:
        return [tuple(row) for row in connection.execute(ordered)]


def test_usage_adds_up_by_day_key_project_and_model(database: Engine, accounting: Accounting) -> None:
    for _ in range(2):
        accounting.add("k", "p", "a", Usage(10, 5))
        accounting.add("k", "q", "a", Usage(1, 1))
        accounting.add("k", "p", "b", None, failed=True)
        accounting.write(accounting.take())
    assert stored(database) == [
        ("2026-11-22", "k", "p", "a", 2, 0, 20, 10),
        ("2026-11-22", "k", "q", "a", 2, 0, 2, 2),
        ("2026-11-22", "k", "p", "b", 2, 2, 0, 0),
    ]


def test_a_request_counts_on_its_own_day_though_it_is_written_on_the_next(
    database: Engine, accounting: Accounting, clock: Clock
) -> None:
    clock.now = MIDNIGHT - 0.001
    accounting.add("k", "", "a", Usage(10, 5))
    clock.now = MIDNIGHT
    accounting.add("k", "", "a", Usage(1, 1))
    accounting.write(accounting.take())
    assert stored(database) == [("2026-11-22", "k", "", "a", 1, 0, 10, 5), ("2026-11-23", "k", "", "a", 1, 0, 1, 1)]


def test_a_clock_that_is_set_back_is_believed(database: Engine, accounting: Accounting, clock: Clock) -> None:
    clock.now = MIDNIGHT
    accounting.add("k", "", "a", None)
    clock.now = NOON
    accounting.add("k", "", "a", None)
    assert [row["day"] for row in accounting.take()] == ["2026-11-22", "2026-11-23"]


def test_what_could_not_be_written_is_kept_with_its_day(database: Engine, accounting: Accounting, clock: Clock) -> None:
    accounting.add("k", "p", "a", Usage(10, 5))
    rows = accounting.take()
    clock.now = MIDNIGHT
    accounting.add("k", "p", "a", Usage(1, 1))
    accounting.put_back(rows)
    clock.now = NOON
    accounting.add("k", "p", "a", Usage(100, 100))
    accounting.write(accounting.take())
    assert stored(database) == [
        ("2026-11-22", "k", "p", "a", 2, 0, 110, 105),
        ("2026-11-23", "k", "p", "a", 1, 0, 1, 1),
    ]


async def test_a_database_that_refuses_for_a_while_costs_nothing(database: Engine, accounting: Accounting) -> None:
    with db.writing(database) as connection:
        connection.execute(text("ALTER TABLE usage RENAME TO elsewhere"))
    accounting.add("k", "p", "a", Usage(10, 5))
    with pytest.raises(SQLAlchemyError):
        await accounting.flush()
    with db.writing(database) as connection:
        connection.execute(text("ALTER TABLE elsewhere RENAME TO usage"))
    accounting.add("k", "p", "a", Usage(1, 1))
    await accounting.flush()
    assert [row[4:] for row in stored(database)] == [(2, 0, 11, 6)]


async def test_a_write_that_nobody_waits_for_any_more_is_not_done_twice(
    database: Engine, accounting: Accounting
) -> None:
    writing = asyncio.Event()
    loop = asyncio.get_running_loop()
    may_go_on = threading.Event()

    def begun(_: object) -> None:
        loop.call_soon_threadsafe(writing.set)
        may_go_on.wait(30)

    event.listen(database, "begin", begun)
    accounting.add("k", "p", "a", Usage(10, 5))
    flush = asyncio.create_task(accounting.flush(), name="flush")
    await writing.wait()
    flush.cancel()
    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await flush
    await accounting.flush()
    assert [row[4:] for row in stored(database)] == [(1, 0, 10, 5)]


def test_gateways_that_write_the_same_rows_do_not_lock_each_other_out(database: Engine, clock: Clock) -> None:
    models = [f"m{i}" for i in range(20)]

    def serve(order: int) -> None:
        accounting = Accounting(database, now=clock)
        for _ in range(10):
            for model in models[::order]:
                accounting.add("k", "p", model, Usage(1, 1))
            accounting.write(accounting.take())

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(serve, order) for order in (1, -1, 1, -1)]:
            done.result(60)
    assert [row[4:] for row in stored(database)] == [(40, 0, 40, 40)] * len(models)


def test_more_tokens_than_32_bits_hold(database: Engine, accounting: Accounting) -> None:
    for _ in range(2):
        accounting.add("k", "p", "a", Usage(2**33, 2**33))
        accounting.write(accounting.take())
    assert [row[6:] for row in stored(database)] == [(2**34, 2**34)]


async def test_nothing_to_write_is_no_transaction(database: Engine, accounting: Accounting) -> None:
    begun: list[object] = []
    event.listen(database, "begin", begun.append)
    await accounting.flush()
    accounting.write([])
    assert begun == []
