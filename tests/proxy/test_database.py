from __future__ import annotations

import multiprocessing
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, inspect, select, text, update

from proxy import database as db
from proxy.config import parse
from proxy.database import MIGRATIONS, DatabaseUnusable, NewerDatabase, database_of, metadata, open_database, writing
from proxy.keys import KeyStore, digest
from proxy.principals import Principal
from proxy.state import StateDir
from proxy.terms import KeyChanges, NewKey
from proxy.usage_report import Sum, report
from tests.postgres_fixture import PostgresServer


def test_the_migrations_make_the_tables_that_the_code_uses(engine: Engine) -> None:
    found = inspect(engine)
    for table in metadata.tables.values():
        there = {column["name"]: column["nullable"] for column in found.get_columns(table.name)}
        wanted = {column.name: bool(column.nullable) for column in table.columns}
        # SQLite does not say NOT NULL of a primary key
        assert {name: nullable or name == "id" for name, nullable in there.items()} == {
            name: nullable or name == "id" for name, nullable in wanted.items()
        }
        key = found.get_pk_constraint(table.name)["constrained_columns"]
        assert key == [column.name for column in table.primary_key.columns]


def test_opening_again_changes_nothing(database_url: str) -> None:
    for _ in range(2):
        engine = open_database(database_url)
        with engine.connect() as connection:
            assert connection.execute(text("SELECT version FROM schema_version")).scalars().all() == [len(MIGRATIONS)]
        engine.dispose()


def test_a_database_of_a_newer_version_is_left_alone(database_url: str) -> None:
    engine = open_database(database_url)
    with writing(engine) as connection:
        connection.execute(text("UPDATE schema_version SET version = 99"))
    engine.dispose()
    with pytest.raises(NewerDatabase, match="has schema version 99; this slurmgate knows versions up to"):
        open_database(database_url)


# -- databases of earlier versions -----------------------------------------------------------------------------------

OLD = (
    "INSERT INTO keys VALUES ('key_1', 'ada', '{hash}', 'wxyz', 1763800000, NULL)",
    "INSERT INTO keys VALUES ('key_2', 'bob', 'another', 'abcd', 1763800001, 1763800002)",
    "INSERT INTO usage VALUES ('2026-11-20', 'key_1', 'm', 3, 3000000000, 5)",
    "INSERT INTO usage VALUES ('2026-11-21', 'key_1', 'm', 1, 10, 5)",
)
"""What version 2 could hold; a day may have more tokens than fit into 32 bits."""


@pytest.fixture
def version_2(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a database that version 2 made and used."""
    with monkeypatch.context() as patch:
        patch.setattr(db, "MIGRATIONS", MIGRATIONS[:2])
        engine = open_database(database_url)
        with writing(engine) as connection:
            for statement in OLD:
                connection.execute(text(statement.format(hash=digest("sk-sg-old"))))
        engine.dispose()
    return database_url


def test_a_database_of_version_2_keeps_everything(version_2: str) -> None:
    engine = open_database(version_2)
    assert KeyStore(engine).valid() == {digest("sk-sg-old"): Principal(key_id="key_1")}
    ada, bob = KeyStore(engine).list()
    assert (ada.name, ada.hint, ada.created_at, ada.last_used, ada.status) == (
        "ada", "wxyz", 1763800000, "2026-11-21", "valid",
    )  # fmt: skip
    assert bob.status == "revoked"
    assert report(engine, by=["key", "day"]) == [
        Sum("2026-11-20", "key_1", "ada", None, None, None, 3, 0, 3000000000, 5),
        Sum("2026-11-21", "key_1", "ada", None, None, None, 1, 0, 10, 5),
    ]
    engine.dispose()


def test_released_migrations_read_for_sqlite_as_they_were_released(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "old.db") as connection:
        for statements in MIGRATIONS[:2]:
            for statement in statements:
                connection.execute(statement.format(int="INTEGER", blob="BLOB"))
        kept = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    connection.close()
    assert kept["keys"].endswith("hint VARCHAR(16) NOT NULL, created_at INTEGER NOT NULL, revoked_at INTEGER)")
    assert kept["stored_responses"].endswith(
        "expires_at INTEGER NOT NULL, response BLOB NOT NULL, input BLOB NOT NULL)"
    )
    assert sorted(kept) == [
        "keys", "stored_items", "stored_items_response", "stored_responses", "stored_responses_expiry", "usage",
    ]  # fmt: skip


# -- several processes -----------------------------------------------------------------------------------------------


def _open_and_count(url: str) -> int:
    engine = open_database(url)
    with engine.connect() as connection:
        versions = len(connection.execute(select(db.schema_version)).all())
    engine.dispose()
    return versions


def _raise_limit(url: str, key_id: str, times: int) -> None:
    """Reads, then writes what it has read plus one."""
    engine = open_database(url)
    for _ in range(times):
        with writing(engine) as connection:
            mine = db.keys.c.id == key_id
            wanted = select(db.keys.c.tokens_per_day).where(mine).with_for_update()
            before = connection.execute(wanted).scalar_one()
            connection.execute(update(db.keys).where(mine).values(tokens_per_day=before + 1))
    engine.dispose()


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def test_processes_that_start_together_migrate_once(database_url: str, processes: ProcessPoolExecutor) -> None:
    assert list(processes.map(_open_and_count, [database_url] * 8)) == [1] * 8


def test_no_update_of_another_process_is_lost(database_url: str, processes: ProcessPoolExecutor) -> None:
    engine = open_database(database_url)
    key, _ = KeyStore(engine).make(NewKey.model_validate({"name": "ada", "limits": {"tokens_per_day": 1}}))
    for done in [processes.submit(_raise_limit, database_url, key.id, 25) for _ in range(4)]:
        done.result(60)
    assert KeyStore(engine).find(key.id).limits.tokens_per_day == 101
    KeyStore(engine).update(key.id, KeyChanges(name="ada"))
    engine.dispose()


def test_a_server_that_was_away_is_found_again(postgres_server: PostgresServer) -> None:
    url = postgres_server.new_database()
    engine, other = open_database(url), open_database(url)
    keys = KeyStore(engine)
    keys.create("ada")
    with writing(other) as connection:
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        connection.execute(text(f"{ended} AND pid <> pg_backend_pid()"))
    assert [key.name for key in keys.list()] == ["ada"]
    engine.dispose()
    other.dispose()


# -- what cannot be opened -------------------------------------------------------------------------------------------

REFUSED = {
    "no URL": ("postgresql://ada:se/cret@host:port:x/name", "the database's URL cannot be read: expected postgresql:"),
    "another database": ("mysql://ada:secret@host/name", "begins with 'mysql': expected postgresql:"),
    "another driver": ("postgresql+asyncpg://ada:secret@host/name", "begins with 'postgresql+asyncpg'"),
    "in memory": ("sqlite:///:memory:", "begins with 'sqlite'"),
    "no name": ("postgresql://ada:secret@host", "names no database"),
    "nobody listens": (
        "postgresql://ada:secret@127.0.0.1:1/name?passfile=secret",
        "the database postgresql://ada@127.0.0.1:1/name cannot be used: ",
    ),
    "an unknown option": ("postgresql://ada:secret@127.0.0.1:1/name?sslmod=secret", "cannot be used"),
}


@pytest.mark.parametrize(("url", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_opened_is_one_sentence_without_the_password(url: str, told: str) -> None:
    with pytest.raises(DatabaseUnusable) as caught:
        open_database(url)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "cret@" not in str(caught.value)


def test_a_refused_login_says_so(postgres_server: PostgresServer) -> None:
    postgres_server.new_database()
    with pytest.raises(DatabaseUnusable, match=r'cannot be used: password authentication failed for user "tests"$'):
        open_database(postgres_server.url("postgres", "wrong"))


def test_a_database_that_is_not_there_says_so(postgres_server: PostgresServer) -> None:
    with pytest.raises(DatabaseUnusable, match=r'cannot be used: database "nosuch" does not exist$'):
        open_database(postgres_server.url("nosuch"))


def test_a_missing_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(DatabaseUnusable, match="install slurmgate with its extra `postgresql`"):
        open_database("postgresql://ada@127.0.0.1:1/name")


def test_a_file_that_is_no_database_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("a shopping list, long enough to be looked at\n" * 20)
    with pytest.raises(DatabaseUnusable, match=r"x\.db cannot be used: file is not a database$"):
        open_database(tmp_path / "x.db")


def test_the_configuration_names_the_variable_that_holds_the_url(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse('[database]\nurl_env = "THE_URL"\n[models.m]\nengine = "vllm"\nurls = ["http://127.0.0.1:1"]')
    state = StateDir(tmp_path / "state")
    with pytest.raises(DatabaseUnusable, match=r"^database\.url_env: the environment variable THE_URL is not set$"):
        database_of(config, state)
    monkeypatch.setenv("THE_URL", database_url)
    engine = database_of(config, state)
    assert engine.url.get_backend_name() == database_url.partition(":")[0]
    engine.dispose()
    assert not state.database.exists()
    database_of(None, state).dispose()
    assert state.database.exists()


def test_sqlite_needs_no_driver_of_postgresql(tmp_path: Path) -> None:
    code = (
        f"import sys, pathlib, proxy.database as db; db.open_database(pathlib.Path('{tmp_path}/x.db')); "
        "print([m for m in ('psycopg', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
