"""Batches in the database, made without files; a clock that tests move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Engine, select

from proxy import database as db
from proxy.batch.step_store import StepStore
from proxy.batch.store import BatchStore
from proxy.batch.values import Batch, Done, Kind, NewLine, NewWindow, Status, Window, Worker
from proxy.files.values import new_id

NOW = 1_000_000


class Clock:
    now = float(NOW)

    def __call__(self) -> float:
        return self.now


def batch(**changes: Any) -> Batch:
    whole: dict[str, Any] = {
        "id": new_id("batch_"), "owner": "one", "key_id": "key", "status": Status.VALIDATING,
        "endpoint": "/v1/chat/completions", "input_file_id": "file-x", "completion_window": "24h", "created_at": NOW,
        "expires_at": NOW + 86400,
    }  # fmt: skip
    return Batch(**{**whole, **changes})


def windows(models: Sequence[str] = ("m",), each: int = 2, lines: int = 3) -> list[NewWindow]:
    """`each` windows for every model, of so many lines."""
    made: list[NewWindow] = []
    for model in models:
        for _ in range(each):
            first = sum(len(window.lines) for window in made) + 1
            numbers = range(first, first + lines)
            made.append(
                NewWindow(
                    len(made), model, tuple(NewLine(at, (at - 1) * 100, 99, f"custom {at}", 10) for at in numbers)
                )
            )
    return made


def worker(name: str, home: str | None = None, boot: str = "boot") -> Worker:
    return Worker(name, home or f"home of {name}", boot)


def begun(engine: Engine, clock: Callable[[], float], made: Sequence[NewWindow] | None = None, **changes: Any) -> Batch:
    """A batch in progress, validated by a worker who is gone."""
    made = windows() if made is None else made
    store, steps = BatchStore(engine, clock, clock), StepStore(engine, clock)
    who = worker(f"validator {new_id('')}")
    store.beat(who)
    store.create(batch(**changes))
    step = store.claim_step(who)
    assert step is not None
    assert step.kind is Kind.VALIDATE
    steps.add(step, made)
    valid = steps.validated(step, sum(len(window.lines) for window in made), made[0].model)
    store.release(who)
    return valid


def done(window: Window, *line_nos: int, ok: bool = True, said: str = "") -> list[Done]:
    """Results of some lines of a window; of all without any numbers."""
    where = window.batch_id, window.window_no, window.epoch
    return [
        Done(*where, line.line_no, ok, f"{line.line_no} {said}".encode(), 3, 1, 2, 1)
        for line in window.lines
        if not line_nos or line.line_no in line_nos
    ]


def states(engine: Engine, batch_id: str) -> dict[int, int]:
    """Of each line."""
    lines = db.batch_lines
    with engine.connect() as connection:
        rows = connection.execute(select(lines.c.line_no, lines.c.state).where(lines.c.batch_id == batch_id))
        return {row.line_no: row.state for row in rows}
