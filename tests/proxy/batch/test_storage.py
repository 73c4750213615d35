"""The database as the runner uses it: away, locked, full for a while; nothing is lost, and the log says it once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from sqlalchemy.exc import OperationalError

from proxy.batch.storage import GROUP_LINES, MOST_BYTES, Results, Storage
from proxy.batch.values import Committed, Done


class Log:
    def __init__(self) -> None:
        self.events: list[str] = []

    def error(self, event: str, **fields: Any) -> None:
        assert "secret" not in str(fields)
        self.events.append(event)

    info = error


class IsAway:
    """A database that refuses so many times."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.groups: list[list[Done]] = []

    def commit(self, done: Sequence[Done]) -> Committed:
        if self.left:
            self.left -= 1
            raise OperationalError("UPDATE secret", {"result": "secret"}, Exception("database is locked"))
        self.groups.append(list(done))
        return Committed(len(done))


def done(line_no: int, data: bytes = b"{}") -> Done:
    return Done("batch_1", 0, 1, line_no, True, data)


async def test_results_that_wait_for_the_database_are_kept_and_committed_once() -> None:
    log: Any = Log()
    database = IsAway(3)
    storage = Storage(log)
    results = Results(storage, database.commit, lambda group, committed: None)
    committing = asyncio.create_task(results.keep_committing(), name="results")
    for number in range(GROUP_LINES + 10):
        results.put(done(number))
    await asyncio.sleep(0.2)
    assert (storage.well, log.events) == (False, ["batches_wait_for_storage"])
    await results.empty()
    assert (storage.well, log.events) == (True, ["batches_wait_for_storage", "batches_go_on"])
    assert [one.line_no for group in database.groups for one in group] == list(range(GROUP_LINES + 10))
    assert all(len(group) <= GROUP_LINES for group in database.groups)
    assert results.bytes == 0
    committing.cancel()
    await asyncio.gather(committing, return_exceptions=True)
    storage.close()


async def test_no_more_is_asked_for_when_there_are_many_bytes_of_results() -> None:
    log: Any = Log()
    storage = Storage(log)
    results = Results(storage, IsAway(0).commit, lambda group, committed: None)
    results.put(done(1, b"x" * MOST_BYTES))
    was_full = results.full
    committing = asyncio.create_task(results.keep_committing(), name="results")
    await results.empty()
    assert (was_full, results.full) == (True, False)
    committing.cancel()
    await asyncio.gather(committing, return_exceptions=True)
    storage.close()


async def test_what_is_told_of_a_group_is_what_was_committed() -> None:
    log: Any = Log()
    storage = Storage(log)
    told: list[tuple[int, int]] = []
    results = Results(storage, IsAway(0).commit, lambda group, committed: told.append((len(group), committed.lines)))
    committing = asyncio.create_task(results.keep_committing(), name="results")
    results.put(done(1))
    results.put(done(2))
    await results.empty()
    assert told == [(2, 2)]
    committing.cancel()
    await asyncio.gather(committing, return_exceptions=True)
    storage.close()
