from __future__ import annotations

import pytest
from sqlalchemy import Engine, insert

from proxy import database as db
from proxy.keys import KeyStore
from proxy.projects import ProjectStore
from proxy.terms import NewKey, NewProject
from proxy.usage_report import Sum, report, spent


@pytest.fixture
def used(database: Engine) -> Engine:
    """Two days of a key in a project, and one of requests without a key."""
    project = ProjectStore(database).create(NewProject(name="physics"))
    key, _ = KeyStore(database).make(NewKey(name="ada", project_id=project.id))
    rows = [
        ("2026-10-31", key.id, project.id, "a", 1, 0, 10, 1),
        ("2026-11-01", key.id, project.id, "a", 2, 1, 20, 2),
        ("2026-11-01", key.id, project.id, "b", 4, 0, 40, 4),
        ("2026-11-02", key.id, "", "a", 8, 0, 80, 8),
        ("2026-11-02", "", "", "a", 16, 0, 160, 16),
    ]
    with db.writing(database) as connection:
        names = [column.name for column in db.usage.columns]
        connection.execute(insert(db.usage), [dict(zip(names, row, strict=True)) for row in rows])
    return database


def by_hand(sums: list[Sum]) -> list[tuple[object, ...]]:
    """What is filled in, and the requests."""
    shown = ("day", "key_name", "project_name", "model")
    return [(*(value for name in shown if (value := getattr(one, name)) is not None), one.requests) for one in sums]


def test_sums_by_each_dimension(used: Engine) -> None:
    assert by_hand(report(used, by=["day"])) == [("2026-10-31", 1), ("2026-11-01", 6), ("2026-11-02", 24)]
    assert by_hand(report(used, by=["model"])) == [("a", 27), ("b", 4)]
    assert by_hand(report(used, by=["key"])) == [(16,), ("ada", 15)]
    assert by_hand(report(used, by=["project"])) == [(24,), ("physics", 7)]


def test_sums_by_several_come_in_the_order_that_was_asked_for(used: Engine) -> None:
    assert by_hand(report(used, by=["model", "day"])) == [
        ("2026-10-31", "a", 1),
        ("2026-11-01", "a", 2),
        ("2026-11-02", "a", 24),
        ("2026-11-01", "b", 4),
    ]


def test_everything_together_is_one_line(used: Engine) -> None:
    (total,) = report(used, by=[])
    assert total == Sum(None, None, None, None, None, None, 31, 1, 310, 31)
    assert total.total_tokens == 341


def test_from_a_day_to_a_day_both_included(used: Engine) -> None:
    assert by_hand(report(used, by=["day"], since="2026-11-01", until="2026-11-01")) == [("2026-11-01", 6)]
    assert report(used, by=[], since="2026-11-03") == []


def test_only_of_one_key_project_or_model(used: Engine) -> None:
    key, project = KeyStore(used).find("ada").id, ProjectStore(used).find("physics").id
    assert by_hand(report(used, by=[], key_id=key)) == [(15,)]
    assert by_hand(report(used, by=[], project_id=project, model="a")) == [(3,)]
    assert report(used, by=[], key_id="\0") == []


def test_a_page_of_it(used: Engine) -> None:
    assert by_hand(report(used, by=["day"], offset=1, limit=1)) == [("2026-11-01", 6)]


def test_what_a_budget_has_spent(used: Engine) -> None:
    key, project = KeyStore(used).find("ada").id, ProjectStore(used).find("physics").id
    assert spent(used, "key", key, "2026-11-01") == 22 + 44 + 88
    assert spent(used, "project", project, "2026-11-01") == 22 + 44
    assert spent(used, "key", "nobody", "2026-11-01") == 0
