"""API keys, stored hashed: made, listed and revoked in the database, checked in memory."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass

from sqlalchemy import Engine, func, insert, select, update

from . import database as db

PREFIX = "sk-sg-"


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it can be shown: `hint` is its last four characters. Times are seconds since the epoch."""

    id: str
    name: str
    hint: str
    created_at: int
    revoked_at: int | None


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class KeyStore:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(self, name: str, key: str | None = None) -> str:
        """A new key, in clear for the only time. `key` is given where it must be the same at every start."""
        key = key or PREFIX + secrets.token_urlsafe(32)
        row = {"id": f"key_{secrets.token_hex(8)}", "name": name, "hash": digest(key), "hint": key[-4:]}
        with self._engine.begin() as connection:
            connection.execute(insert(db.keys).values(**row, created_at=int(time.time())))
        return key

    def ensure(self, name: str, key: str) -> None:
        """Create `key` unless it is there already; a revoked one stays revoked."""
        with self._engine.connect() as connection:
            known = connection.execute(select(db.keys.c.id).where(db.keys.c.hash == digest(key))).first()
        if known is None:
            self.create(name, key)

    def list(self) -> list[Key]:
        columns = (db.keys.c.id, db.keys.c.name, db.keys.c.hint, db.keys.c.created_at, db.keys.c.revoked_at)
        with self._engine.connect() as connection:
            return [Key(*row) for row in connection.execute(select(*columns).order_by(db.keys.c.created_at))]

    def revoke(self, id_or_name: str) -> int:
        """Revoke by id, or every key of a name. Returns how many were valid until now."""
        mine = (db.keys.c.id == id_or_name) | (db.keys.c.name == id_or_name)
        with self._engine.begin() as connection:
            result = connection.execute(
                update(db.keys).where(mine, db.keys.c.revoked_at.is_(None)).values(revoked_at=int(time.time()))
            )
            return int(result.rowcount)

    def valid(self) -> dict[str, str]:
        """Hash -> id of every key that is not revoked."""
        with self._engine.connect() as connection:
            rows = connection.execute(select(db.keys.c.hash, db.keys.c.id).where(db.keys.c.revoked_at.is_(None)))
            return {row.hash: row.id for row in rows}

    def ever(self) -> bool:
        """Whether a key was ever made: revoking the last one must not open the gateway."""
        with self._engine.connect() as connection:
            return bool(connection.execute(select(func.count()).select_from(db.keys)).scalar())
