from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from proxy.database import MIGRATIONS, NewerDatabase, metadata, open_database


def test_the_migrations_make_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    engine = open_database(tmp_path / "x.db")
    found = inspect(engine)
    for table in metadata.tables.values():
        assert {column["name"] for column in found.get_columns(table.name)} == {column.name for column in table.columns}
    engine.dispose()


def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        engine = open_database(tmp_path / "x.db")
        with engine.connect() as connection:
            assert connection.execute(text("SELECT version FROM schema_version")).scalars().all() == [len(MIGRATIONS)]
        engine.dispose()


def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    engine = open_database(tmp_path / "x.db")
    with engine.begin() as connection:
        connection.execute(text("UPDATE schema_version SET version = 99"))
    engine.dispose()
    with pytest.raises(NewerDatabase, match="version 99"):
        open_database(tmp_path / "x.db")
