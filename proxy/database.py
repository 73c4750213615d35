"""The gateway's database: SQLite in the state directory. Hard state (keys, usage, responses) lives in tables made here.

Migrations are numbered lists of statements, applied in order: a table with one number is all that is needed to know
where a database stands (see docs/decisions.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    insert,
    select,
    text,
    update,
)

metadata = MetaData()

schema_version = Table("schema_version", metadata, Column("version", Integer, nullable=False))

keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("hint", String(16), nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("revoked_at", Integer),
)
"""`hash` is the SHA-256 of the key in hex: keys are 256 random bits, so a slow hash would add nothing."""

usage = Table(
    "usage",
    metadata,
    Column("day", String(10), primary_key=True),
    Column("key_id", String(32), primary_key=True),
    Column("model", String(200), primary_key=True),
    Column("requests", Integer, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
)

stored_responses = Table(
    "stored_responses",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("key_id", String(32), nullable=False),
    Column("previous_id", String(80)),
    Column("expires_at", Integer, nullable=False),
    Column("response", LargeBinary, nullable=False),
    Column("input", LargeBinary, nullable=False),
)
"""`response` is the object as the client got it, `input` the items of its own request: both JSON. What was said before
is in the row of `previous_id`. Of one `key_id` only: "" where no key is needed."""

stored_items = Table(
    "stored_items",
    metadata,
    Column("key_id", String(32), primary_key=True),
    Column("item_id", String(200), primary_key=True),
    Column("response_id", String(80), nullable=False),
)
"""Which stored response holds an item."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE keys (id VARCHAR(32) PRIMARY KEY, name VARCHAR(200) NOT NULL, hash VARCHAR(64) NOT NULL UNIQUE,"
        " hint VARCHAR(16) NOT NULL, created_at INTEGER NOT NULL, revoked_at INTEGER)",
        "CREATE TABLE usage (day VARCHAR(10) NOT NULL, key_id VARCHAR(32) NOT NULL, model VARCHAR(200) NOT NULL,"
        " requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,"
        " PRIMARY KEY (day, key_id, model))",
    ),
    (
        "CREATE TABLE stored_responses (id VARCHAR(80) PRIMARY KEY, key_id VARCHAR(32) NOT NULL,"
        " previous_id VARCHAR(80), expires_at INTEGER NOT NULL, response BLOB NOT NULL, input BLOB NOT NULL)",
        "CREATE INDEX stored_responses_expiry ON stored_responses (expires_at)",
        "CREATE TABLE stored_items (key_id VARCHAR(32) NOT NULL, item_id VARCHAR(200) NOT NULL,"
        " response_id VARCHAR(80) NOT NULL, PRIMARY KEY (key_id, item_id))",
        "CREATE INDEX stored_items_response ON stored_items (response_id)",
    ),
)
"""Never change one that has been released; append."""


class NewerDatabase(Exception):
    """The database was made by a newer slurmgate."""


def open_database(path: Path) -> Engine:
    """The database at `path`, made or migrated where needed. Raises `NewerDatabase`."""
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 10.0})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    migrate(engine)
    return engine


def migrate(engine: Engine) -> None:
    with engine.begin() as connection:
        schema_version.create(connection, checkfirst=True)
        at = connection.execute(select(schema_version.c.version)).scalar()
        if at is None:
            connection.execute(insert(schema_version).values(version=0))
            at = 0
        if at > len(MIGRATIONS):
            raise NewerDatabase(
                f"{engine.url.database} has schema version {at}; this slurmgate knows versions up to {len(MIGRATIONS)}"
            )
        for statements in MIGRATIONS[at:]:
            for statement in statements:
                connection.execute(text(statement))
        if at < len(MIGRATIONS):
            connection.execute(update(schema_version).values(version=len(MIGRATIONS)))
