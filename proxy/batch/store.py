"""Rows of batches: what clients ask for, and what workers claim and commit. Each verb is one transaction.

    create, same, find, page, cancel, pause, resume, results       clients
    beat, release, active, claim_window, commit, give_back         workers, for lines
    claim_step, abandon                                            ... for the rest: step_store.py goes on from there

A worker claims a window under an epoch that its claim has counted up, and a result is taken only under the epoch of the
window's last claim, for a line that has none: so who was taken for dead and is not, commits nothing that another runs
now, and no line has two results. A state, the counts and the window's rest change in one transaction.

Everything here blocks, and runs in threads. Every verb raises `SQLAlchemyError` where the database cannot be used: then
nothing was changed, or all of it (an answer can be lost); to do the same again is right in both cases.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, and_, delete, exists, func, insert, or_, select, update

from backends.errors import InvalidRequest
from proxy import database as db
from proxy.files.batch_lines import Mistake
from proxy.files.store import can_be_an_id

from . import hot
from .leases import Watch
from .results import OK, WAITING, first_results, write_results
from .rows import batch_of, conflict, errors_json, free_all_of, row_of, unknown
from .values import (
    LIVE,
    Batch,
    Committed,
    Done,
    Kind,
    LineRef,
    Progress,
    Result,
    Status,
    Step,
    Window,
    Worker,
    before,
)

__all__ = ["BatchStore", "Committed", "Done", "LineRef", "Progress", "Result", "Step", "Window", "Worker"]

CANCELLING_S = 600
"""So long lines that run may go on after a cancellation, at most. Whoever runs them lets them go sooner."""
EXPIRING_S = 60
"""... and after the end of the window."""

_batches = db.batches
_windows = db.batch_windows
_lines = db.batch_lines
_workers = db.batch_workers


class BatchStore:
    """now   seconds since the epoch
    clock    monotonic, in seconds

    One for each worker, made at its start: it remembers when it saw the others.
    """

    def __init__(
        self, engine: Engine, now: Callable[[], float] = time.time, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._now = now
        self._clock = clock
        self._watch = Watch()
        self._begun = False

    # -- clients ------------------------------------------------------------------------------------------------------

    def create(self, batch: Batch, idempotency: tuple[str, str] | None = None) -> Batch:
        """The batch; or the one that is there for the same key and digest of what was asked. Once it returns, the
        batch is safe from a loss of power too. Raises `InvalidRequest` (409) for a key that came with something else.
        """
        key, digest = idempotency or (None, None)
        row = {**row_of(batch), "idempotency_key": key, "idempotency_hash": digest, "not_before": 0, "cleared": 0}
        with db.writing(self._engine, durable=True) as connection:
            connection.execute(db.inserting(connection, _batches).values(**row).on_conflict_do_nothing())
            if connection.execute(select(_batches.c.id).where(_batches.c.id == batch.id)).first() is not None:
                return batch
        found = self.same(batch.owner, key, digest) if key is not None and digest is not None else None
        if found is None:
            raise RuntimeError("a batch's id came twice")
        return found

    def same(self, owner: str, key: str, digest: str) -> Batch | None:
        """The batch that was made with an `Idempotency-Key`. Raises `InvalidRequest` (409) where the digest of what was
        asked is another."""
        mine = select(_batches).where(_batches.c.owner == owner, _batches.c.idempotency_key == key)
        with self._engine.connect() as connection:
            row = connection.execute(mine).first()
        if row is not None and row.idempotency_hash != digest:
            raise conflict("This Idempotency-Key came with another request before.", "idempotency_key_reused")
        return batch_of(row) if row is not None else None

    def find(self, owner: str, batch_id: str) -> Batch:
        """Raises `NotFound`."""
        row = None
        if can_be_an_id(batch_id):
            with self._engine.connect() as connection:
                mine = select(_batches).where(_batches.c.id == batch_id, _batches.c.owner == owner)
                row = connection.execute(mine).first()
        if row is None:
            raise unknown(batch_id)
        return batch_of(row)

    def page(self, owner: str, limit: int, after: str | None = None) -> list[Batch]:
        """Newest first, from `after` on; one more than `limit` where there are more. Raises `InvalidRequest` for an
        `after` that is no batch's id."""
        wanted = select(_batches).where(_batches.c.owner == owner)
        if after is not None:
            if not (can_be_an_id(after) and after.startswith("batch_")):
                raise InvalidRequest(f"No batch has the id '{after[:80]}'.", param="after", code="invalid_value")
            wanted = wanted.where(_batches.c.id < after)
        with self._engine.connect() as connection:
            rows = connection.execute(wanted.order_by(_batches.c.id.desc()).limit(limit + 1))
            return [batch_of(row) for row in rows]

    def cancel(self, owner: str, batch_id: str) -> Batch:
        """No more lines are begun. Asked again, it says the same. Raises `NotFound`, `InvalidRequest` (409)."""
        changed = {"status": Status.CANCELLING.value, "cancelling_at": int(self._now()), "not_before": 0}
        batch, done = self._change(owner, batch_id, _batches.c.status.in_(before(Status.CANCELLING)), changed)
        if done or batch.status in (Status.CANCELLING, Status.CANCELLED):
            return batch
        raise conflict(f"Cannot cancel a batch with status '{batch.status}'.", "batch_not_cancellable")

    def pause(self, owner: str, batch_id: str) -> Batch:
        """No more lines are begun until `resume`; its time runs on. Raises `NotFound`, `InvalidRequest` (409)."""
        can = and_(_may_pause(), _batches.c.paused_at.is_(None))
        batch, done = self._change(owner, batch_id, can, {"paused_at": int(self._now())})
        if done or (batch.paused_at is not None and not batch.status.over):
            return batch
        raise conflict(f"Cannot pause a batch with status '{batch.status}'.", "batch_not_pausable")

    def resume(self, owner: str, batch_id: str) -> Batch:
        """Raises `NotFound`, `InvalidRequest` (409)."""
        batch, done = self._change(owner, batch_id, _may_pause(), {"paused_at": None})
        if done:
            return batch
        raise conflict(f"Cannot resume a batch with status '{batch.status}'.", "batch_not_resumable")

    def _change(self, owner: str, batch_id: str, can: Any, values: dict[str, Any]) -> tuple[Batch, bool]:
        done = 0
        if can_be_an_id(batch_id):
            mine = update(_batches).where(_batches.c.id == batch_id, _batches.c.owner == owner, can).values(**values)
            with db.writing(self._engine, durable=True) as connection:
                done = connection.execute(mine).rowcount
        return self.find(owner, batch_id), bool(done)

    def results(self, batch_id: str, after: int, limit: int) -> list[Result]:
        """Committed results whose `seq` is above `after`, in that order: none is missed by who asks again from the last
        one. None of a batch that ended more than `step_store.KEPT_S` ago: then its files have them."""
        columns = _lines.c.seq, _lines.c.line_no, _lines.c.state, _lines.c.result
        wanted = select(*columns).where(_lines.c.batch_id == batch_id, _lines.c.seq > after)
        with self._engine.connect() as connection:
            rows = connection.execute(wanted.order_by(_lines.c.seq).limit(limit))
            return [Result(row.seq, row.line_no, row.state == OK, bytes(row.result)) for row in rows]

    # -- workers ------------------------------------------------------------------------------------------------------

    def beat(self, worker: Worker) -> bool:
        """Say that the worker lives, again every few seconds, and take what dead ones have claimed from them. False
        where nobody knew of it: at its start, or because it was taken for dead; its claims may be another's now."""
        with db.writing(self._engine) as connection:
            mine = update(_workers).where(_workers.c.id == worker.id)
            values = {"beats": _workers.c.beats + 1, "seen_at": int(self._now())}
            known = bool(connection.execute(mine.values(**values)).rowcount)
            if not known:
                row = {"id": worker.id, "home": worker.home, "boot": worker.boot, "beats": 0}
                connection.execute(insert(_workers).values(**row, seen_at=int(self._now())))
        self._bury(worker)
        return known

    def _bury(self, worker: Worker) -> None:
        with self._engine.connect() as connection:
            others = connection.execute(select(_workers).where(_workers.c.id != worker.id)).all()
        silent = set(self._watch.look({row.id: row.beats for row in others}, self._clock()))
        for row in others:
            # who starts in a state directory knows that processes of its holders before are gone, or going:
            # one of those that goes on for a moment does not know it of the new ones
            before = row.home == worker.home and row.boot != worker.boot and not self._begun
            if row.id in silent or before:
                with db.writing(self._engine) as connection:
                    dead = delete(_workers).where(_workers.c.id == row.id, _workers.c.beats == row.beats)
                    if connection.execute(dead).rowcount:
                        free_all_of(connection, row.id)
        self._begun = True

    def release(self, worker: Worker) -> None:
        """It ends: what it has claimed is free at once."""
        with db.writing(self._engine) as connection:
            connection.execute(delete(_workers).where(_workers.c.id == worker.id))
            free_all_of(connection, worker.id)

    def active(self) -> list[Progress]:
        """What is left of every batch whose lines may run now, by model. A batch that is not in here is not to be run
        on: it is paused, out of time, cancelled, ending or over; or every line has its result."""
        left = func.sum(_windows.c.lines_left)
        tokens = func.sum(_windows.c.tokens * _windows.c.lines_left / _windows.c.lines)
        held = func.count(_windows.c.worker)
        running = _batches.c.status == Status.IN_PROGRESS.value, *self._may_run()
        with self._engine.connect() as connection:
            batches = {row.id: batch_of(row) for row in connection.execute(select(_batches).where(*running))}
            wanted = (
                select(_windows.c.batch_id, _windows.c.model, func.count(), held, left, tokens)
                .where(_windows.c.batch_id.in_(select(_batches.c.id).where(*running)))
                .group_by(_windows.c.batch_id, _windows.c.model)
                .order_by(_windows.c.batch_id, _windows.c.model)
            )
            return [
                Progress(batches[batch_id], model, count, count - claimed, int(lines), int(estimate))
                for batch_id, model, count, claimed, lines, estimate in connection.execute(wanted)
                if batch_id in batches
            ]

    def _may_run(self) -> tuple[Any, ...]:
        return _batches.c.paused_at.is_(None), _batches.c.expires_at > int(self._now())

    def claim_window(self, worker: Worker, batch_id: str, model: str | None = None) -> Window | None:
        """The first free window of a batch, of a model where one is given. None where there is none, where the batch
        may not run now, and for a worker that has not said that it lives, or was taken for dead."""
        now = int(self._now())
        with db.writing(self._engine) as connection:
            if not _lives(connection, worker):
                return None
            if hot.execute(connection, hot.MAY_RUN, batch_id, now).first() is None:
                return None
            if model is None:
                found = hot.execute(connection, hot.FREE_WINDOW, batch_id, now).first()
            else:
                found = hot.execute(connection, hot.FREE_WINDOW_OF_MODEL, batch_id, now, model).first()
            if found is None:
                return None
            window_no, its_model, epoch = found[0], found[1], found[2] + 1
            hot.execute(connection, hot.CLAIM, worker.id, epoch, batch_id, window_no)
            texts = hot.execute(connection, hot.WAITING_LINES, batch_id, window_no).scalar()
        lines = sorted(LineRef._make(map(int, text.split())) for text in texts.split(",")) if texts else []
        return Window(batch_id, window_no, its_model, epoch, tuple(lines))

    def give_back(self, window: Window, not_before: float = 0.0, attempts: Mapping[int, int] | None = None) -> None:
        """Its lines without a result wait again, for anybody, from `not_before` on. Nothing happens where the window is
        another's by now.

        attempts   of lines that have failed, by number
        """
        mine = (
            _windows.c.batch_id == window.batch_id,
            _windows.c.window_no == window.window_no,
            _windows.c.epoch == window.epoch,
            _windows.c.worker.is_not(None),
        )
        with db.writing(self._engine) as connection:
            free = update(_windows).where(*mine).values(worker=None, not_before=math.ceil(not_before))
            if not connection.execute(free).rowcount:
                return
            for line_no, count in sorted((attempts or {}).items()):
                line = _lines.c.batch_id == window.batch_id, _lines.c.line_no == line_no, _lines.c.state == WAITING
                connection.execute(update(_lines).where(*line).values(attempts=count))

    # -- results ------------------------------------------------------------------------------------------------------

    def commit(self, done: Sequence[Done]) -> Committed:
        """Results, of any batches and windows, in one transaction; once it returns, they are safe from a loss of power
        too. A line's first result counts. What came under an epoch that is not the window's any more is left out."""
        by_batch: dict[str, dict[int, list[Done]]] = {}
        for one in done:
            by_batch.setdefault(one.batch_id, {}).setdefault(one.window_no, []).append(one)
        new = 0
        lost: set[tuple[str, int]] = set()
        answered: set[str] = set()
        with db.writing(self._engine, durable=True) as connection:
            for batch_id in sorted(by_batch):
                batch = hot.execute(connection, hot.COUNTS, batch_id).first()
                if batch is None or batch.ending is not None or batch.status not in _TAKES_RESULTS:
                    lost.update((batch_id, window_no) for window_no in by_batch[batch_id])
                    continue
                fresh: list[Done] = []
                for window_no, results in sorted(by_batch[batch_id].items()):
                    if (first := first_results(connection, batch_id, window_no, results)) is None:
                        lost.add((batch_id, window_no))
                    else:
                        fresh += first
                if fresh:
                    write_results(connection, batch_id, batch.completed, batch.failed, fresh)
                    new += len(fresh)
                if batch.completed + batch.failed + len(fresh) >= batch.total:
                    answered.add(batch_id)
        return Committed(new, frozenset(lost), frozenset(answered))

    # -- steps --------------------------------------------------------------------------------------------------------

    def claim_step(self, worker: Worker) -> Step | None:
        """What is to be done with some batch now outside of its lines, leased to this worker; None for nothing."""
        now = int(self._now())
        held = exists().where(_windows.c.batch_id == _batches.c.id, _windows.c.worker.is_not(None))
        due = or_(
            _batches.c.status.in_([Status.VALIDATING.value, Status.FINALIZING.value]),
            and_(
                _batches.c.status == Status.CANCELLING.value, or_(~held, _batches.c.cancelling_at <= now - CANCELLING_S)
            ),
            and_(
                _batches.c.status == Status.IN_PROGRESS.value,
                or_(
                    _batches.c.completed + _batches.c.failed >= _batches.c.total,
                    and_(_batches.c.expires_at <= now, or_(~held, _batches.c.expires_at <= now - EXPIRING_S)),
                ),
            ),
        )
        live = _batches.c.status.in_(LIVE), _batches.c.worker.is_(None), _batches.c.not_before <= now
        wanted = select(_batches).where(*live, due).order_by(_batches.c.not_before, _batches.c.id).limit(1)
        with self._engine.connect() as connection:
            if connection.execute(wanted).first() is None:  # almost always; and reading takes no lock
                return None
        with db.writing(self._engine) as connection:
            if not _lives(connection, worker):
                return None
            row = connection.execute(wanted.with_for_update(skip_locked=True, of=_batches)).first()
            if row is None:
                return None
            values = {"worker": worker.id, "epoch": row.epoch + 1}
            connection.execute(update(_batches).where(_batches.c.id == row.id).values(**values))
            batch = batch_of(connection.execute(select(_batches).where(_batches.c.id == row.id)).one())
        return Step(Kind.VALIDATE if batch.status is Status.VALIDATING else Kind.END, batch)

    def abandon(self, batch_id: str, errors: Iterable[Mistake]) -> bool:
        """End a batch that cannot go on, such as one whose key was revoked. Its lines without a result get the first of
        the errors. Whether it was in progress."""
        values = {
            "status": Status.FINALIZING.value,
            "ending": Status.FAILED.value,
            "finalizing_at": int(self._now()),
            "errors": errors_json(errors),
            "not_before": 0,
        }
        mine = _batches.c.id == batch_id, _batches.c.status == Status.IN_PROGRESS.value
        with db.writing(self._engine, durable=True) as connection:
            return bool(connection.execute(update(_batches).where(*mine).values(**values)).rowcount)


_TAKES_RESULTS = (Status.IN_PROGRESS, Status.CANCELLING)


def _may_pause() -> Any:
    return _batches.c.status.in_([Status.VALIDATING.value, Status.IN_PROGRESS.value])


def _lives(connection: Connection, worker: Worker) -> bool:
    """Nobody takes it for dead while this transaction lasts. What one without a row claimed would never be freed."""
    return hot.execute(connection, hot.LIVES, worker.id).first() is not None
