"""What the launcher remembers of its replicas. Soft: jobs' comments and agents' reports rebuild what matters."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    delete,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateTable

from .states import Failure, Replica, Status, Target

_replicas = Table(
    "replicas",
    MetaData(),
    Column("id", String(128), primary_key=True),
    Column("record", Text, nullable=False),
    Column("gateway", String(64), nullable=False),
)
_counts = Table(
    "replica_counts",
    _replicas.metadata,
    Column("model", String(200), primary_key=True),
    Column("gateway", String(64), primary_key=True),
    Column("count", Integer, nullable=False),
)
_MAKING = 7_302_114_897
"""The number of PostgreSQL's advisory lock: two that make the table at once would fail even with IF NOT EXISTS."""

_FIELDS = frozenset(field.name for field in fields(Replica))
_LATER = {"placement": ""}
"""Fields that records of version 0.1 do not have, and what they were."""


def _dumps(replica: Replica) -> str:
    return json.dumps(asdict(replica))


def _loads(document: str) -> Replica | None:
    """The replica, or None for a record of another version: it is adopted again from its next report."""
    try:
        record: dict[str, Any] = {**_LATER, **json.loads(document)}
        failure = record.get("failure")
        record |= {
            "target": Target(record["target"]),
            "status": Status(record["status"]),
            "failure": Failure(failure["kind"], failure["message"], tuple(failure["tail"])) if failure else None,
        }
        return Replica(**record) if record.keys() == _FIELDS else None
    except (ValueError, TypeError, KeyError):
        return None


class CannotSave(Exception):
    """The database did not take it: its disk is full, or it is away. The message is its own, without values."""


@contextmanager
def _saving() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise CannotSave(str(error.orig).strip().partition("\n")[0]) from None


class ReplicaStore:
    """Replicas by id, one JSON document each, in the table `replicas` of the gateway's database. Not thread-safe.

    gateway   whose they are, where several gateways share a database; "" where this is the only one
    """

    def __init__(self, engine: Engine, gateway: str = "") -> None:
        self._engine = engine
        self._gateway = gateway
        self._mine = _replicas.c.gateway == gateway
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _MAKING})
            for table in (_replicas, _counts):
                connection.execute(CreateTable(table, if_not_exists=True))
            if len(inspect(connection).get_columns(_replicas.name)) < len(_replicas.columns):  # of version 0.1
                connection.execute(text("ALTER TABLE replicas ADD COLUMN gateway VARCHAR(64) NOT NULL DEFAULT ''"))
                connection.execute(update(_replicas).values(gateway=gateway))

    def load(self) -> list[Replica]:
        with self._engine.connect() as connection:
            rows = connection.execute(select(_replicas.c.record).where(self._mine)).scalars().all()
        return [replica for replica in map(_loads, rows) if replica is not None]

    def save(self, changed: Iterable[Replica], forgotten: Iterable[str] = ()) -> None:
        """Write what changed, in one transaction. Raises `CannotSave`."""
        changed = list(changed)
        gone = [replica.id for replica in changed] + list(forgotten)
        with _saving(), self._engine.begin() as connection:
            if gone:
                connection.execute(delete(_replicas).where(_replicas.c.id.in_(gone), self._mine))
            if changed:
                rows = [{"id": r.id, "record": _dumps(r), "gateway": self._gateway} for r in changed]
                connection.execute(insert(_replicas), rows)

    def counts(self) -> dict[str, int]:
        """How many replicas operators have set, by model."""
        mine = select(_counts.c.model, _counts.c["count"]).where(_counts.c.gateway == self._gateway)
        with self._engine.connect() as connection:
            return dict(connection.execute(mine).tuples().all())

    def set_count(self, model: str, count: int | None) -> None:
        """Remember such a number; None forgets it. Raises `CannotSave`."""
        row = {"model": model, "gateway": self._gateway}
        with _saving(), self._engine.begin() as connection:
            connection.execute(delete(_counts).where(*(_counts.c[name] == value for name, value in row.items())))
            if count is not None:
                connection.execute(insert(_counts).values(**row, count=count))
