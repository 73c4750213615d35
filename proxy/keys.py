"""API keys, stored hashed: made, listed, changed and revoked in the database, checked in memory."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Engine, func, insert, or_, select, update

from backends.errors import InvalidRequest, NotFound
from backends.places import Priority

from . import database as db
from .principals import Allowance, Principal
from .projects import a_page, limits_of, models_as_text, models_of
from .terms import PRIORITIES, KeyChanges, NewKey, check_name, with_limits

PREFIX = "sk-sg-"

_keys = db.keys
_projects = db.projects
_usage = db.usage


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it can be shown: `hint` is its last four characters. Times are seconds since the epoch.

    project_id   "" for none
    models       public names that it may use; None for all
    last_used    a day (UTC), None for never
    status       valid, disabled (until it is enabled), expired or revoked; that of its project is not looked at
    """

    id: str
    name: str
    hint: str
    project_id: str
    models: tuple[str, ...] | None
    priority: Priority
    limits: Allowance
    admin: bool
    disabled: bool
    expires_at: int | None
    created_at: int
    revoked_at: int | None
    last_used: str | None
    status: str

    def card(self) -> dict[str, Any]:
        """As `/admin/keys` shows it."""
        return {
            "id": self.id,
            "object": "key",
            "name": self.name,
            "hint": self.hint,
            "status": self.status,
            "project_id": self.project_id or None,
            "models": self.models,
            "priority": self.priority.name.lower(),
            "limits": asdict(self.limits),
            "admin": self.admin,
            "expires_at": self.expires_at,
            "created_at": self.created_at,
            "revoked_at": self.revoked_at,
            "last_used_on": self.last_used,
        }


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class KeyStore:
    """now: seconds since the epoch."""

    def __init__(self, engine: Engine, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._now = now
        self._principals: dict[tuple[Any, ...], Principal] = {}

    # -- changing -----------------------------------------------------------------------------------------------------

    def create(self, name: str, key: str | None = None) -> str:
        """A new key that may do everything but administrate, in clear for the only time. `key` is given where it must
        be the same at every start."""
        return self.make(NewKey(name=check_name(name)), key)[1]

    def make(self, given: NewKey, key: str | None = None) -> tuple[Key, str]:
        """A new key, and the key in clear for the only time. Raises `InvalidRequest`."""
        key = key or PREFIX + secrets.token_urlsafe(32)
        row = {
            "id": f"key_{secrets.token_hex(8)}",
            "name": given.name,
            "hash": digest(key),
            "hint": key[-4:],
            "created_at": int(self._now()),
            "models": models_as_text(given.models),
            "priority": int(PRIORITIES[given.priority]),
            **asdict(with_limits(Allowance(), given.limits)),
            "admin": int(given.admin),
            "disabled": 0,
            "expires_at": given.expires_at,
        }
        with db.writing(self._engine) as connection:
            project_id = _project_id(connection, given.project_id)
            connection.execute(insert(_keys).values(**row, project_id=project_id))
            return self._key(self._find(connection, row["id"])), key

    def ensure(self, name: str, key: str) -> None:
        """Create `key` unless it is there already; a revoked one stays revoked."""
        with self._engine.connect() as connection:
            known = connection.execute(select(_keys.c.id).where(_keys.c.hash == digest(key))).first()
        if known is None:
            self.create(name, key)

    def update(self, id_or_name: str, changes: KeyChanges) -> Key:
        """Change what is named in `changes`. Raises `NotFound`, `InvalidRequest`."""
        named = changes.model_fields_set
        with db.writing(self._engine) as connection:
            row = self._find(connection, id_or_name, lock=True)
            if row.revoked_at is not None:
                raise InvalidRequest(f"The key {row.id} is revoked: that is for good.", code="key_revoked")
            values: dict[str, Any] = {name: getattr(changes, name) for name in named & {"name", "expires_at"}}
            values |= {name: int(getattr(changes, name)) for name in named & {"admin", "disabled"}}
            if "project_id" in named:
                values["project_id"] = _project_id(connection, changes.project_id)
            if "models" in named:
                values["models"] = models_as_text(changes.models)
            if "priority" in named:
                values["priority"] = int(PRIORITIES[changes.priority])
            if "limits" in named:
                values |= asdict(with_limits(limits_of(row), changes.limits))
            if values:
                connection.execute(update(_keys).where(_keys.c.id == row.id).values(**values))
            return self._key(self._find(connection, row.id))

    def revoke(self, id_or_name: str) -> int:
        """Revoke by id, or every key of a name. Returns how many were valid until now."""
        if "\0" in id_or_name:
            return 0
        mine = (_keys.c.id == id_or_name) | (_keys.c.name == id_or_name)
        with db.writing(self._engine) as connection:
            result = connection.execute(
                update(_keys).where(mine, _keys.c.revoked_at.is_(None)).values(revoked_at=int(self._now()))
            )
            return int(result.rowcount)

    # -- looking ------------------------------------------------------------------------------------------------------

    def list(
        self,
        *,
        project_id: str | None = None,
        revoked: bool = True,
        after: str | None = None,
        limit: int | None = None,
    ) -> list[Key]:
        """The oldest first. Raises `InvalidRequest` where there is no key `after`."""
        wanted = _shown()
        if project_id is not None:
            wanted = wanted.where(_keys.c.project_id == project_id.replace("\0", " "))
        if not revoked:
            wanted = wanted.where(_keys.c.revoked_at.is_(None))
        with self._engine.connect() as connection:
            rows = connection.execute(a_page(connection, wanted, _keys, after, limit))
            return [self._key(row) for row in rows]

    def find(self, id_or_name: str) -> Key:
        """Raises `NotFound`, and `InvalidRequest` for a name that several valid keys have."""
        with self._engine.connect() as connection:
            return self._key(self._find(connection, id_or_name))

    def valid(self) -> dict[str, Principal]:
        """Hash -> whose it is, for every key that can be used now, with its own and its project's terms."""
        own = [_keys.c[name] for name in ("hash", "id", "project_id", "models", "priority", "admin", "expires_at")]
        theirs = [_projects.c[name].label(f"project_{name}") for name in ("account", "models", *db.LIMITS)]
        wanted = (
            select(*own, *(_keys.c[name] for name in db.LIMITS), *theirs)
            .outerjoin(_projects, _projects.c.id == _keys.c.project_id)
            .where(
                _keys.c.revoked_at.is_(None),
                _keys.c.disabled == 0,
                or_(_keys.c.expires_at.is_(None), _keys.c.expires_at > int(self._now())),
                or_(_keys.c.project_id == "", (_projects.c.disabled == 0) & _projects.c.archived_at.is_(None)),
            )
        )
        with self._engine.connect() as connection:
            rows = connection.execute(wanted).all()
        # asked for again and again, and mostly nothing has changed: what a row was made into is kept
        before = self._principals
        self._principals = {tuple(row): before.get(tuple(row)) or _principal(row) for row in rows}
        return {row[0]: principal for row, principal in self._principals.items()}

    def ever(self) -> bool:
        """Whether a key was ever made: revoking the last one must not open the gateway."""
        with self._engine.connect() as connection:
            return connection.execute(select(_keys.c.id).limit(1)).first() is not None

    @staticmethod
    def _find(connection: Connection, id_or_name: str, *, lock: bool = False) -> Any:
        mine = (_keys.c.id == id_or_name) | (_keys.c.name == id_or_name)
        wanted = _shown().where(mine).order_by(_keys.c.created_at)
        if lock:
            wanted = wanted.with_for_update(of=_keys)
        rows = [] if "\0" in id_or_name else list(connection.execute(wanted))
        exact = [row for row in rows if row.id == id_or_name] or [row for row in rows if row.revoked_at is None]
        if len(exact) > 1:
            ids = ", ".join(row.id for row in exact)
            raise InvalidRequest(f"{len(exact)} keys are called '{id_or_name}'; their ids: {ids}.")
        if not rows:
            raise NotFound(f"No key has the id or the name '{id_or_name[:80]}'.", code="key_not_found")
        return (exact or rows[-1:])[0]

    def _key(self, row: Any) -> Key:
        expired = row.expires_at is not None and row.expires_at <= self._now()
        status = "revoked" if row.revoked_at is not None else "expired" if expired else "valid"
        return Key(
            id=row.id,
            name=row.name,
            hint=row.hint,
            project_id=row.project_id,
            models=models_of(row.models),
            priority=Priority(row.priority),
            limits=limits_of(row),
            admin=bool(row.admin),
            disabled=bool(row.disabled),
            expires_at=row.expires_at,
            created_at=row.created_at,
            revoked_at=row.revoked_at,
            last_used=row.last_used,
            status="disabled" if status == "valid" and row.disabled else status,
        )


def _shown() -> Any:
    used = select(func.max(_usage.c.day)).where(_usage.c.key_id == _keys.c.id).scalar_subquery()
    return select(_keys, used.label("last_used"))


def _project_id(connection: Connection, given: str | None) -> str:
    """The id of a project that keys can be given to. Raises `InvalidRequest`."""
    if not given:
        return ""
    mine = (_projects.c.id == given) | (_projects.c.name == given)
    row = None
    if "\0" not in given:
        row = connection.execute(select(_projects.c.id, _projects.c.archived_at).where(mine)).first()
    if row is None or row.archived_at is not None:
        what = "No project has the id or the name" if row is None else "Archived is the project"
        raise InvalidRequest(f"{what} '{given[:80]}'.", param="project_id", code="invalid_value")
    return str(row.id)


def _principal(row: Any) -> Principal:
    own, theirs = models_of(row.models), models_of(row.project_models)
    either = [frozenset(models) for models in (own, theirs) if models is not None]
    return Principal(
        key_id=row.id,
        project_id=row.project_id,
        models=frozenset.intersection(*either) if either else None,
        priority=Priority(row.priority),
        admin=bool(row.admin),
        expires_at=row.expires_at,
        key_limits=limits_of(row),
        project_limits=limits_of(row, "project_"),
        account=row.project_account or "",
    )
