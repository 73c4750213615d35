"""Projects: what keys belong to, with limits for all of a project's keys together."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Select, Table, insert, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from backends.errors import InvalidRequest, NotFound

from . import database as db
from .principals import Allowance
from .terms import NewProject, ProjectChanges, with_limits

_projects = db.projects


@dataclass(frozen=True, slots=True)
class Project:
    """account  of Slurm, "" for none
    models      public names that its keys may use; None for all
    disabled    its keys are refused until it is enabled again; archived is for good
    Times are seconds since the epoch.
    """

    id: str
    name: str
    account: str
    models: tuple[str, ...] | None
    limits: Allowance
    disabled: bool
    created_at: int
    archived_at: int | None

    @property
    def status(self) -> str:
        return "archived" if self.archived_at is not None else "disabled" if self.disabled else "active"

    def card(self) -> dict[str, Any]:
        """As `/admin/projects` shows it."""
        return {
            "id": self.id,
            "object": "project",
            "name": self.name,
            "status": self.status,
            "account": self.account,
            "models": self.models,
            "limits": asdict(self.limits),
            "created_at": self.created_at,
            "archived_at": self.archived_at,
        }


class ProjectStore:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(self, given: NewProject) -> Project:
        """Raises `InvalidRequest` for a name that is taken, an archived project's included."""
        row = {
            "id": f"proj_{secrets.token_hex(8)}",
            "name": given.name,
            "account": given.account,
            "models": models_as_text(given.models),
            **asdict(with_limits(Allowance(), given.limits)),
            "disabled": 0,
            "created_at": int(time.time()),
        }
        try:
            with db.writing(self._engine) as connection:
                connection.execute(insert(_projects).values(**row))
                return _project(self._find(connection, row["id"]))
        except IntegrityError:
            raise _taken(given.name) from None

    def list(self, *, archived: bool = True, after: str | None = None, limit: int | None = None) -> list[Project]:
        """The oldest first. Raises `InvalidRequest` where there is no project `after`."""
        wanted = select(_projects)
        if not archived:
            wanted = wanted.where(_projects.c.archived_at.is_(None))
        with self._engine.connect() as connection:
            rows = connection.execute(a_page(connection, wanted, _projects, after, limit))
            return [_project(row) for row in rows]

    def find(self, id_or_name: str) -> Project:
        """Raises `NotFound`."""
        with self._engine.connect() as connection:
            return _project(self._find(connection, id_or_name))

    def update(self, id_or_name: str, changes: ProjectChanges) -> Project:
        """Change what is named in `changes`. Raises `NotFound`, `InvalidRequest`."""
        named = changes.model_fields_set
        try:
            with db.writing(self._engine) as connection:
                row = self._find(connection, id_or_name, lock=True)
                values: dict[str, Any] = {name: getattr(changes, name) for name in named & {"name", "account"}}
                if "disabled" in named:
                    values["disabled"] = int(changes.disabled)
                if "models" in named:
                    values["models"] = models_as_text(changes.models)
                if "limits" in named:
                    values |= asdict(with_limits(limits_of(row), changes.limits))
                if values:
                    connection.execute(update(_projects).where(_projects.c.id == row.id).values(**values))
                return _project(self._find(connection, row.id))
        except IntegrityError:
            raise _taken(changes.name) from None

    def archive(self, id_or_name: str) -> Project:
        """For good: its keys stop working, its usage stays. Raises `NotFound`."""
        with db.writing(self._engine) as connection:
            row = self._find(connection, id_or_name, lock=True)
            if row.archived_at is None:
                mine = update(_projects).where(_projects.c.id == row.id)
                connection.execute(mine.values(archived_at=int(time.time())))
            return _project(self._find(connection, row.id))

    @staticmethod
    def _find(connection: Connection, id_or_name: str, *, lock: bool = False) -> Any:
        wanted = select(_projects).where((_projects.c.id == id_or_name) | (_projects.c.name == id_or_name))
        rows = [] if "\0" in id_or_name else connection.execute(wanted.with_for_update() if lock else wanted).all()
        if not rows:
            raise NotFound(f"No project has the id or the name '{id_or_name[:80]}'.", code="project_not_found")
        return next((row for row in rows if row.id == id_or_name), rows[0])


def _taken(name: str) -> InvalidRequest:
    return InvalidRequest(f"There is a project called '{name}' already.", param="name", code="name_taken")


def _project(row: Any) -> Project:
    return Project(
        id=row.id,
        name=row.name,
        account=row.account,
        models=models_of(row.models),
        limits=limits_of(row),
        disabled=bool(row.disabled),
        created_at=row.created_at,
        archived_at=row.archived_at,
    )


# -- shared with keys ------------------------------------------------------------------------------------------------


def limits_of(row: Any, prefix: str = "") -> Allowance:
    """From the columns of a row that are named as the limits are."""
    return Allowance(*(getattr(row, prefix + name) for name in db.LIMITS))


def models_as_text(models: Sequence[str] | None) -> str | None:
    return None if models is None else json.dumps(models)


def models_of(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(json.loads(text))


def a_page(
    connection: Connection, wanted: Select[Any], table: Table, after: str | None, limit: int | None
) -> Select[Any]:
    """Rows by age, at most `limit` of them, those `after` an id. Raises `InvalidRequest` for an unknown one."""
    order = (table.c.created_at, table.c.id)
    if after is not None:
        known = select(*order).where(table.c.id == after)
        last = None if "\0" in after else connection.execute(known).first()
        if last is None:
            raise InvalidRequest(f"There is nothing with the id '{after[:80]}'.", param="after", code="invalid_value")
        wanted = wanted.where(tuple_(*order) > tuple_(last.created_at, last.id))
    return wanted.order_by(*order).limit(limit)
