"""Rows of batches, for who has leased a step: reading a batch's input into rows, and ending it. Each verb is one
transaction. For who has lost the lease, or whose batch is in another state now, it changes nothing: it raises `Lost`.

    clear, add ..., validated | failed                          validating -> in_progress | failed
    begin_ending, close_lines ..., decide_files, finished       -> finalizing, cancelling -> completed, expired, ...
    put_off, drop                                               the lease ends without a result

Doing it all again after being killed anywhere gives the same: rows of a broken validation are cleared, and files' ids
are written down before the files are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, delete, func, insert, select, update

from proxy import database as db
from proxy.files.batch_lines import Mistake
from proxy.files.values import new_id

from . import hot
from .results import WAITING, write_results
from .rows import batch_of, errors_json, locked
from .values import EXPIRED, STEPS, Batch, Done, NewWindow, Status, Step, unrun

KEPT_S = 24 * 3600
"""Rows of lines outlive their batch by so much: who reads results while it runs shall get the last ones, too."""

CLEAR_LINES = 5000

_batches = db.batches
_windows = db.batch_windows
_lines = db.batch_lines

Events = Callable[[Batch], Sequence[dict[str, Any]]]
"""A batch that has just ended -> rows of `webhook_events`."""


class Lost(Exception):
    """Somebody else has the step now, or the batch was cancelled: what was being done is not wanted any more."""


class StepStore:
    """now   seconds since the epoch"""

    def __init__(self, engine: Engine, now: Callable[[], float] = time.time, events: Events = lambda batch: ()) -> None:
        self._engine = engine
        self._now = now
        self._events = events

    # -- validating ---------------------------------------------------------------------------------------------------

    def clear(self, step: Step) -> None:
        """Take away the rows of a validation that somebody else did not finish."""
        while True:
            with db.writing(self._engine) as connection:
                batch = self._mine(connection, step, Status.VALIDATING)
                if not _clear_some(connection, batch.id):
                    connection.execute(delete(_windows).where(_windows.c.batch_id == batch.id))
                    return

    def add(self, step: Step, windows: Sequence[NewWindow]) -> None:
        """Rows for some windows and their lines."""
        rows = [
            {
                "batch_id": step.batch.id,
                "window_no": window.window_no,
                "model": window.model,
                "lines": len(window.lines),
                "lines_left": len(window.lines),
                "tokens": sum(line.tokens for line in window.lines),
                "epoch": 0,
                "not_before": 0,
            }
            for window in windows
        ]
        lines = [
            (step.batch.id, line.line_no, window.window_no, line.offset, line.size, line.custom_id)
            for window in windows
            for line in window.lines
        ]
        with db.writing(self._engine) as connection:
            self._mine(connection, step, Status.VALIDATING)
            connection.execute(insert(_windows), rows)
            hot.execute_many(connection, hot.ADD_LINE, lines)

    def validated(self, step: Step, total: int, model: str) -> Batch:
        """All of its lines have rows: they may run."""
        with db.writing(self._engine, durable=True) as connection:
            self._mine(connection, step, Status.VALIDATING)
            now = int(self._now())
            begun = {"total": total, "model": model, "in_progress_at": now}
            return self._change(connection, step, Status.IN_PROGRESS, **begun, worker=None)

    def failed(self, step: Step, mistakes: Iterable[Mistake], model: str | None = None) -> Batch:
        """Its input is not what it should be: nothing of it runs."""
        with db.writing(self._engine, durable=True) as connection:
            self._mine(connection, step, Status.VALIDATING)
            return self._over(connection, step, Status.FAILED, errors=errors_json(mistakes), model=model)

    # -- ending -------------------------------------------------------------------------------------------------------

    def begin_ending(self, step: Step) -> Batch:
        """From now on no result is taken, and how the batch ends is decided: by what it is now, since a client may have
        cancelled it after the step was claimed."""
        with db.writing(self._engine, durable=True) as connection:
            batch = self._mine(connection, step)
            if batch.ending is None:
                self._change(connection, step, None, ending=_ending_of(batch).value)
            if batch.status is Status.IN_PROGRESS:
                self._change(connection, step, Status.FINALIZING, finalizing_at=int(self._now()))
            connection.execute(update(_windows).where(_windows.c.batch_id == batch.id).values(worker=None))
            return self._mine(connection, step)

    def close_lines(self, step: Step, after_line: int, limit: int) -> int | None:
        """Lines that were never run get their error, some at a time. Returns the last one's number; None when there is
        none behind `after_line`."""
        waiting = _lines.c.batch_id == step.batch.id, _lines.c.line_no > after_line, _lines.c.state == WAITING
        wanted = select(_lines.c.line_no, _lines.c.custom_id).where(*waiting).order_by(_lines.c.line_no).limit(limit)
        with db.writing(self._engine) as connection:
            batch = self._mine(connection, step)
            why = batch.errors[0] if batch.errors else EXPIRED
            rows = connection.execute(wanted).all()
            if not rows:
                return None
            unran = [
                Done(batch.id, 0, 0, row.line_no, False, unrun(batch.id, row.line_no, row.custom_id, why))
                for row in rows
            ]
            write_results(connection, batch.id, batch.completed, batch.failed, unran)
            return int(rows[-1].line_no)

    def decide_files(self, step: Step) -> Batch:
        """The ids of the files that it will have: one where there are lines for it."""
        with db.writing(self._engine, durable=True) as connection:
            batch = self._mine(connection, step)
            ids = {
                "output_file_id": batch.output_file_id or (new_id("file-") if batch.completed else None),
                "error_file_id": batch.error_file_id or (new_id("file-") if batch.failed else None),
            }
            return self._change(connection, step, None, **ids)

    def lines(
        self, batch_id: str, state: int, after_line: int, most_lines: int, most_bytes: int
    ) -> list[tuple[int, bytes]]:
        """Results of one state in the order of the file, from behind a line on: not more bytes than that, but one line
        at least; none after the last."""
        with self._engine.connect() as connection:
            last, total = None, 0
            for line_no, size in hot.execute(connection, hot.SIZES, batch_id, after_line, state, most_lines):
                total += size
                if last is not None and total > most_bytes:
                    break
                last = line_no
            if last is None:
                return []
            rows = hot.execute(connection, hot.RESULTS, batch_id, after_line, state, last).all()
            return [(line_no, bytes(result)) for line_no, result in rows]

    def check(self, step: Step) -> None:
        """Whether it is still this worker's."""
        with self._engine.connect() as connection:
            self._mine(connection, step)

    def finished(self, step: Step) -> Batch:
        """Its files are in place."""
        with db.writing(self._engine, durable=True) as connection:
            batch = self._mine(connection, step)
            assert batch.ending is not None  # noqa: S101  # `begin_ending` was before
            connection.execute(delete(_windows).where(_windows.c.batch_id == batch.id))
            return self._over(connection, step, batch.ending)

    # -- without a result ---------------------------------------------------------------------------------------------

    def put_off(self, step: Step, seconds: float) -> None:
        """Let it be tried again then, by anybody."""
        with db.writing(self._engine) as connection:
            later = int(self._now() + seconds) + 1
            connection.execute(update(_batches).where(*_leased(step)).values(worker=None, not_before=later))

    def drop(self, step: Step) -> None:
        """Let somebody else see what is to be done now."""
        with db.writing(self._engine) as connection:
            connection.execute(update(_batches).where(*_leased(step)).values(worker=None))

    def forget(self) -> int:
        """Remove rows of lines of batches that ended long ago, and of batches whose validation failed. Returns how many
        batches; to be called again until there is none."""
        old = _batches.c.cleared == 0, _batches.c.ended_at < int(self._now()) - KEPT_S
        with self._engine.connect() as connection:
            wanted = select(_batches.c.id).where(*old).order_by(_batches.c.ended_at).limit(1)
            batch_id = connection.execute(wanted).scalar()
        if batch_id is None:
            return 0
        more = True
        while more:
            with db.writing(self._engine) as connection:
                more = _clear_some(connection, batch_id)
                if not more:
                    connection.execute(delete(_windows).where(_windows.c.batch_id == batch_id))
                    connection.execute(update(_batches).where(_batches.c.id == batch_id).values(cleared=1))
        return 1

    # -- inside -------------------------------------------------------------------------------------------------------

    def _mine(self, connection: Connection, step: Step, status: Status | None = None) -> Batch:
        """The batch as it is now, locked. Raises `Lost`."""
        batch = locked(connection, step.batch.id)
        if (
            batch is None
            or (batch.worker, batch.epoch) != (step.batch.worker, step.batch.epoch)
            or batch.status.over
            or (status is not None and batch.status is not status)
        ):
            raise Lost
        return batch

    def _over(self, connection: Connection, step: Step, status: Status, **values: Any) -> Batch:
        """The one place where batches end."""
        now = int(self._now())
        values |= {f"{status.value}_at": now, "ended_at": now}
        batch = self._change(connection, step, status, worker=None, **values)
        events = list(self._events(batch))
        if events:
            connection.execute(insert(db.webhook_events), events)
        return batch

    def _change(self, connection: Connection, step: Step, status: Status | None, **values: Any) -> Batch:
        """A step by the table, or none; locked by `_mine` before."""
        mine = _batches.c.id == step.batch.id
        if status is not None:
            now = Status(connection.execute(select(_batches.c.status).where(mine)).scalar_one())
            if status not in STEPS[now]:
                raise RuntimeError(f"a batch cannot go from {now} to {status}")
            values["status"] = status.value
        connection.execute(update(_batches).where(mine).values(**values))
        return batch_of(connection.execute(select(_batches).where(mine)).one())


def _ending_of(batch: Batch) -> Status:
    if batch.status is Status.CANCELLING:
        return Status.CANCELLED
    return Status.COMPLETED if batch.answered else Status.EXPIRED


def _leased(step: Step) -> tuple[Any, ...]:
    return (
        _batches.c.id == step.batch.id,
        _batches.c.worker == step.batch.worker,
        _batches.c.epoch == step.batch.epoch,
    )


def _clear_some(connection: Connection, batch_id: str) -> bool:
    """Whether there were any lines."""
    mine = _lines.c.batch_id == batch_id
    some = select(_lines.c.line_no).where(mine).order_by(_lines.c.line_no).limit(CLEAR_LINES).subquery()
    last = connection.execute(select(func.max(some.c.line_no))).scalar()
    if last is None:
        return False
    connection.execute(delete(_lines).where(mine, _lines.c.line_no <= last))
    return True
