"""How many batches there are in each state: for metrics."""

from __future__ import annotations

from sqlalchemy import Engine, func, select

from proxy import database as db


def states(engine: Engine) -> dict[str, int]:
    """Blocks; raises `SQLAlchemyError`."""
    status = db.batches.c.status
    with engine.connect() as connection:
        rows = connection.execute(select(status, func.count()).group_by(status))
        return {row[0]: row[1] for row in rows}
