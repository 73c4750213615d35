"""What was used: sums of the usage table, by any of key, project, model and day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy import Engine, func, select

from . import database as db
from .terms import DIMENSIONS, Dimension

_usage = db.usage


@dataclass(frozen=True, slots=True)
class Sum:
    """One line of a report. What it was not asked to be split by is None; so is the name of what is not there any
    more, or of no key ("") or no project ("")."""

    day: str | None
    key_id: str | None
    key_name: str | None
    project_id: str | None
    project_name: str | None
    model: str | None
    requests: int
    failed: int
    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def card(self) -> dict[str, Any]:
        """As `/admin/usage` shows it."""
        return {"object": "usage", **asdict(self), "total_tokens": self.total_tokens}


SHOWN: dict[Dimension, tuple[str, ...]] = {
    "key": ("key_id", "key_name"),
    "project": ("project_id", "project_name"),
    "model": ("model",),
    "day": ("day",),
}
"""The fields of `Sum` that each dimension fills."""


def report(
    engine: Engine,
    *,
    by: Sequence[Dimension] = DIMENSIONS,
    since: str | None = None,
    until: str | None = None,
    key_id: str | None = None,
    project_id: str | None = None,
    model: str | None = None,
    offset: int = 0,
    limit: int | None = None,
) -> list[Sum]:
    """Sums from the day `since` to the day `until`, both included, in the order of `by`."""
    columns = {"key": _usage.c.key_id, "project": _usage.c.project_id, "model": _usage.c.model, "day": _usage.c.day}
    groups = [columns[dimension] for dimension in by]
    sums = select(*groups, *(func.sum(_usage.c[name]).label(name) for name in db.COUNTS))
    given = ((_usage.c.key_id, key_id), (_usage.c.project_id, project_id), (_usage.c.model, model))
    for column, value in given:
        if value is not None:
            sums = sums.where(column == value.replace("\0", " "))
    if since is not None:
        sums = sums.where(_usage.c.day >= since)
    if until is not None:
        sums = sums.where(_usage.c.day <= until)
    summed = sums.group_by(*groups).having(func.count() > 0).subquery()
    named: Any = select(summed)
    for dimension, table in (("key", db.keys), ("project", db.projects)):
        if dimension in by:
            id_column = summed.c[f"{dimension}_id"]
            named = named.add_columns(table.c.name.label(f"{dimension}_name")).outerjoin(table, table.c.id == id_column)
    order = [summed.c[column.name] for column in groups]
    fields = [name for dimension in by for name in SHOWN[dimension]]
    nothing: dict[str, Any] = dict.fromkeys((name for names in SHOWN.values() for name in names), None)
    with engine.connect() as connection:
        # PostgreSQL's sums are of its numeric type
        return [
            Sum(
                **nothing
                | {name: getattr(row, name) for name in fields}
                | {name: int(getattr(row, name)) for name in db.COUNTS}
            )
            for row in connection.execute(named.order_by(*order).offset(offset).limit(limit))
        ]


def spent(engine: Engine, owner: Literal["key", "project"], owner_id: str, since: str) -> int:
    """Tokens, prompt and completion together, of a key or a project from a day on."""
    column = _usage.c.key_id if owner == "key" else _usage.c.project_id
    tokens = func.sum(_usage.c.prompt_tokens + _usage.c.completion_tokens)
    with engine.connect() as connection:
        found = connection.execute(select(tokens).where(column == owner_id, _usage.c.day >= since)).scalar()
    return int(found or 0)
