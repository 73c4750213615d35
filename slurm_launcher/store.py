"""What the launcher remembers of its replicas. Soft: jobs' comments and agents' reports rebuild what matters."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import Column, Engine, MetaData, String, Table, Text, delete, insert, select

from .states import Failure, Replica, Status, Target

_metadata = MetaData()
_replicas = Table(
    "replicas",
    _metadata,
    Column("id", String(128), primary_key=True),
    Column("record", Text, nullable=False),
)
_FIELDS = frozenset(field.name for field in fields(Replica))


def _dumps(replica: Replica) -> str:
    return json.dumps(asdict(replica))


def _loads(text: str) -> Replica | None:
    """The replica, or None for a record of another version: it is adopted again from its next report."""
    try:
        record: dict[str, Any] = json.loads(text)
        failure = record.get("failure")
        record |= {
            "target": Target(record["target"]),
            "status": Status(record["status"]),
            "failure": Failure(failure["kind"], failure["message"], tuple(failure["tail"])) if failure else None,
        }
        return Replica(**record) if record.keys() == _FIELDS else None
    except (ValueError, TypeError, KeyError):
        return None


class ReplicaStore:
    """Replicas by id, one JSON document each, in the table `replicas` of the gateway's database. Not thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        _metadata.create_all(engine)

    def load(self) -> list[Replica]:
        with self._engine.connect() as connection:
            rows = connection.execute(select(_replicas.c.record)).scalars().all()
        return [replica for replica in map(_loads, rows) if replica is not None]

    def save(self, changed: Iterable[Replica], forgotten: Iterable[str] = ()) -> None:
        """Write what changed, in one transaction."""
        changed = list(changed)
        gone = [replica.id for replica in changed] + list(forgotten)
        with self._engine.begin() as connection:
            if gone:
                connection.execute(delete(_replicas).where(_replicas.c.id.in_(gone)))
            if changed:
                connection.execute(insert(_replicas), [{"id": r.id, "record": _dumps(r)} for r in changed])
