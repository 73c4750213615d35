"""A batch's row and its value; the locks under which batches are changed, and in which order.

Rows are locked in one order, so that transactions which need several wait for each other and never for ever:
worker, batches by id, windows by number, lines. Counts of a batch and states of its lines are changed under its lock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any

import orjson
from sqlalchemy import Connection, select, update

from backends.errors import InvalidRequest
from proxy import database as db
from proxy.files.batch_lines import Mistake
from proxy.files.store import not_found

from .values import Batch, Status

_batches = db.batches
_windows = db.batch_windows

_COLUMNS = tuple(field.name for field in fields(Batch))


def row_of(batch: Batch) -> dict[str, Any]:
    row = asdict(batch)
    row["metadata"] = _json(batch.metadata)
    row["errors"] = errors_json(batch.errors)
    row["mixed_models"] = int(batch.mixed_models)
    return row


def batch_of(row: Any) -> Batch:
    values = {name: getattr(row, name) for name in _COLUMNS}
    values["status"] = Status(row.status)
    values["ending"] = Status(row.ending) if row.ending is not None else None
    values["metadata"] = orjson.loads(row.metadata) if row.metadata is not None else None
    values["errors"] = tuple(Mistake(**mistake) for mistake in orjson.loads(row.errors)) if row.errors else ()
    values["mixed_models"] = bool(row.mixed_models)
    return Batch(**values)


def errors_json(errors: Iterable[Mistake]) -> str | None:
    return _json([mistake.card() for mistake in errors] or None)


def _json(value: Any) -> str | None:
    return orjson.dumps(value).decode() if value is not None else None


def locked(connection: Connection, batch_id: str) -> Batch | None:
    """A batch as it is, and stays until this transaction is over."""
    row = connection.execute(select(_batches).where(_batches.c.id == batch_id).with_for_update()).first()
    return batch_of(row) if row is not None else None


def free_all_of(connection: Connection, worker_id: str) -> None:
    """What a worker has claimed is nobody's. Its results are taken until somebody else has claimed."""
    of_windows = select(_windows.c.batch_id).where(_windows.c.worker == worker_id)
    of_steps = select(_batches.c.id).where(_batches.c.worker == worker_id)
    for batch_id in sorted(set(connection.execute(of_windows.union(of_steps)).scalars())):
        connection.execute(select(_batches.c.id).where(_batches.c.id == batch_id).with_for_update())
    connection.execute(update(_windows).where(_windows.c.worker == worker_id).values(worker=None))
    connection.execute(update(_batches).where(_batches.c.worker == worker_id).values(worker=None))


def unknown(batch_id: str) -> InvalidRequest:
    return not_found("Batch", batch_id)


def conflict(message: str, code: str) -> InvalidRequest:
    error = InvalidRequest(message, code=code)
    error.status = 409
    return error
