"""The gateway's database: SQLite in the state directory, or PostgreSQL by a URL. Hard state lives in tables made here.

Migrations are numbered lists of statements, applied in order: a table with one number is all that is needed to know
where a database stands (see docs/decisions.md). Whoever writes does so inside `writing`.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    URL,
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    insert,
    inspect,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.sql.expression import ColumnElement

from .principals import Allowance

if TYPE_CHECKING:
    from .config import Config
    from .state import StateDir

BUSY_TIMEOUT_S = 10.0
"""How long SQLite waits for another process's transaction; ours take milliseconds."""

CONNECT_TIMEOUT_S = 10
"""For PostgreSQL, unless the URL says otherwise."""

LIMITS = tuple(field.name for field in fields(Allowance))
"""Columns of keys and of projects, named as the fields of `Allowance`."""

# -- tables ----------------------------------------------------------------------------------------------------------

metadata = MetaData()

schema_version = Table("schema_version", metadata, Column("version", Integer, nullable=False))

projects = Table(
    "projects",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("account", String(80), nullable=False),
    Column("models", Text),
    *(Column(name, BigInteger) for name in LIMITS),
    Column("disabled", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("archived_at", BigInteger),
)
"""`account` is a Slurm account, "" for none; `models` a JSON list of names, NULL for all."""

keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("hint", String(16), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
    Column("project_id", String(32), nullable=False),
    Column("models", Text),
    Column("priority", Integer, nullable=False),
    *(Column(name, BigInteger) for name in LIMITS),
    Column("admin", Integer, nullable=False),
    Column("disabled", Integer, nullable=False),
    Column("expires_at", BigInteger),
)
"""`hash` is the SHA-256 of the key in hex: keys are 256 random bits, so a slow hash would add nothing. `project_id` is
"" for none; `priority` a value of `Priority`."""

COUNTS = ("requests", "failed", "prompt_tokens", "completion_tokens")

usage = Table(
    "usage",
    metadata,
    Column("day", String(10), primary_key=True),
    Column("key_id", String(32), primary_key=True),
    Column("project_id", String(32), primary_key=True),
    Column("model", String(200), primary_key=True),
    *(Column(name, BigInteger, nullable=False) for name in COUNTS),
)
"""`project_id` is the project that the key belonged to when it asked. Days are those of UTC."""

stored_responses = Table(
    "stored_responses",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("key_id", String(32), nullable=False),
    Column("previous_id", String(80)),
    Column("expires_at", BigInteger, nullable=False),
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

files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(32), nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
)
"""What clients gave, and what is made for them; the bytes are on disk (files/disk.py). `owner` is a project's id, or
that of a key of no project; "" where no key is needed. Ids grow with time."""

uploads = Table(
    "uploads",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(32), nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("status", String(16), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("keep_s", BigInteger),
    Column("file_id", String(64)),
    Column("part_ids", Text),
)
"""`bytes` are those that were announced; `status` is pending, completed or cancelled: expired shows in `expires_at`.
`keep_s` is how long its file is kept after its making, NULL for its purpose's default. `part_ids`, a JSON list, is what
it was completed with."""

upload_parts = Table(
    "upload_parts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("upload_id", String(64), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(32), nullable=False),
    Column("key_id", String(32), nullable=False),
    Column("status", String(16), nullable=False),
    Column("ending", String(16)),
    Column("endpoint", String(64), nullable=False),
    Column("input_file_id", String(64), nullable=False),
    Column("output_file_id", String(64)),
    Column("error_file_id", String(64)),
    Column("completion_window", String(16), nullable=False),
    Column("metadata", Text),
    Column("errors", Text),
    Column("model", Text),
    Column("mixed_models", Integer, nullable=False),
    Column("output_keep_s", BigInteger),
    Column("webhook", Text),
    Column("idempotency_key", String(255)),
    Column("idempotency_hash", String(64)),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("paused_at", BigInteger),
    Column("in_progress_at", BigInteger),
    Column("finalizing_at", BigInteger),
    Column("completed_at", BigInteger),
    Column("failed_at", BigInteger),
    Column("expired_at", BigInteger),
    Column("cancelling_at", BigInteger),
    Column("cancelled_at", BigInteger),
    Column("ended_at", BigInteger),
    Column("total", BigInteger, nullable=False),
    Column("completed", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("worker", String(64)),
    Column("epoch", BigInteger, nullable=False),
    Column("not_before", BigInteger, nullable=False),
    Column("cleared", Integer, nullable=False),
)
"""Batches (batch/values.py). `metadata` and `errors` are JSON. `completed` and `failed` are the numbers of its lines in
those states, changed in the transactions that change theirs. `worker` validates or ends it now, under `epoch`; nobody
does before `not_before`. `cleared`: its lines' rows are gone, since it ended long ago."""

batch_windows = Table(
    "batch_windows",
    metadata,
    Column("batch_id", String(64), primary_key=True),
    Column("window_no", BigInteger, primary_key=True),
    Column("model", Text, nullable=False),
    Column("lines", BigInteger, nullable=False),
    Column("lines_left", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("worker", String(64)),
    Column("epoch", BigInteger, nullable=False),
    Column("not_before", BigInteger, nullable=False),
)
"""What is claimed at once: lines that belong together. Its row goes with its last line's result. A claim counts `epoch`
up; results are taken only under the epoch of their claim."""

batch_lines = Table(
    "batch_lines",
    metadata,
    Column("batch_id", String(64), primary_key=True),
    Column("line_no", BigInteger, primary_key=True),
    Column("window_no", BigInteger, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("custom_id", Text, nullable=False),
    Column("attempts", BigInteger, nullable=False),
    Column("state", Integer, nullable=False),
    Column("seq", BigInteger),
    Column("result", LargeBinary),
)
"""A row for each line of each input. `state` is 0 (no result yet), 1 (`result` is a line of the output file) or 2 (of
the error file), and never changes twice. `seq` counts results in the order of their commits, from 1 without a gap."""

batch_workers = Table(
    "batch_workers",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("home", String(64), nullable=False),
    Column("boot", String(64), nullable=False),
    Column("beats", BigInteger, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
)
"""Processes that run lines. One whose `beats` stand still is dead; `seen_at` is for people to look at."""

webhook_events = Table(
    "webhook_events",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("batch_id", String(64), nullable=False),
    Column("type", String(64), nullable=False),
    Column("url", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", BigInteger),
    Column("delivered_at", BigInteger),
    Column("given_up_at", BigInteger),
)
"""Ends of batches that somebody is to be told of, or was: no `next_at` any more."""

deliberations = Table(
    "deliberations",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("key_id", String(32), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("deliberation", LargeBinary, nullable=False),
)
"""What tribunals did, as JSON. Of one `key_id` only: "" where no key is needed."""

# -- migrations ------------------------------------------------------------------------------------------------------

_LIMIT_COLUMNS = ", ".join(f"{name} {{int}}" for name in LIMITS)

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE keys (id VARCHAR(32) PRIMARY KEY, name VARCHAR(200) NOT NULL, hash VARCHAR(64) NOT NULL UNIQUE,"
        " hint VARCHAR(16) NOT NULL, created_at {int} NOT NULL, revoked_at {int})",
        "CREATE TABLE usage (day VARCHAR(10) NOT NULL, key_id VARCHAR(32) NOT NULL, model VARCHAR(200) NOT NULL,"
        " requests {int} NOT NULL, prompt_tokens {int} NOT NULL, completion_tokens {int} NOT NULL,"
        " PRIMARY KEY (day, key_id, model))",
    ),
    (
        "CREATE TABLE stored_responses (id VARCHAR(80) PRIMARY KEY, key_id VARCHAR(32) NOT NULL,"
        " previous_id VARCHAR(80), expires_at {int} NOT NULL, response {blob} NOT NULL, input {blob} NOT NULL)",
        "CREATE INDEX stored_responses_expiry ON stored_responses (expires_at)",
        "CREATE TABLE stored_items (key_id VARCHAR(32) NOT NULL, item_id VARCHAR(200) NOT NULL,"
        " response_id VARCHAR(80) NOT NULL, PRIMARY KEY (key_id, item_id))",
        "CREATE INDEX stored_items_response ON stored_items (response_id)",
    ),
    (
        "CREATE TABLE projects (id VARCHAR(32) PRIMARY KEY, name VARCHAR(200) NOT NULL UNIQUE,"
        f" account VARCHAR(80) NOT NULL, models TEXT, {_LIMIT_COLUMNS}, disabled {{int}} NOT NULL,"
        " created_at {int} NOT NULL, archived_at {int})",
        "ALTER TABLE keys ADD COLUMN project_id VARCHAR(32) NOT NULL DEFAULT ''",
        "ALTER TABLE keys ADD COLUMN models TEXT",
        "ALTER TABLE keys ADD COLUMN priority {int} NOT NULL DEFAULT 0",
        *(f"ALTER TABLE keys ADD COLUMN {name} {{int}}" for name in LIMITS),
        "ALTER TABLE keys ADD COLUMN admin {int} NOT NULL DEFAULT 0",
        "ALTER TABLE keys ADD COLUMN disabled {int} NOT NULL DEFAULT 0",
        "ALTER TABLE keys ADD COLUMN expires_at {int}",
        "CREATE TABLE usage_of_projects (day VARCHAR(10) NOT NULL, key_id VARCHAR(32) NOT NULL,"
        " project_id VARCHAR(32) NOT NULL, model VARCHAR(200) NOT NULL, requests {int} NOT NULL, failed {int} NOT NULL,"
        " prompt_tokens {int} NOT NULL, completion_tokens {int} NOT NULL,"
        " PRIMARY KEY (day, key_id, project_id, model))",
        "INSERT INTO usage_of_projects SELECT day, key_id, '', model, requests, 0, prompt_tokens, completion_tokens"
        " FROM usage",
        "DROP TABLE usage",
        "ALTER TABLE usage_of_projects RENAME TO usage",
        "CREATE INDEX usage_of_key ON usage (key_id, day)",
        "CREATE INDEX usage_of_project ON usage (project_id, day)",
    ),
    (
        "CREATE TABLE files (id VARCHAR(64) PRIMARY KEY, owner VARCHAR(32) NOT NULL, filename TEXT NOT NULL,"
        " purpose VARCHAR(32) NOT NULL, bytes {int} NOT NULL, created_at {int} NOT NULL, expires_at {int})",
        "CREATE INDEX files_of_owner ON files (owner, id)",
        "CREATE INDEX files_expiry ON files (expires_at)",
        "CREATE TABLE uploads (id VARCHAR(64) PRIMARY KEY, owner VARCHAR(32) NOT NULL, filename TEXT NOT NULL,"
        " purpose VARCHAR(32) NOT NULL, bytes {int} NOT NULL, status VARCHAR(16) NOT NULL, created_at {int} NOT NULL,"
        " expires_at {int} NOT NULL, keep_s {int}, file_id VARCHAR(64), part_ids TEXT)",
        "CREATE INDEX uploads_of_owner ON uploads (owner, status)",
        "CREATE INDEX uploads_expiry ON uploads (expires_at)",
        "CREATE TABLE upload_parts (id VARCHAR(64) PRIMARY KEY, upload_id VARCHAR(64) NOT NULL, bytes {int} NOT NULL,"
        " created_at {int} NOT NULL)",
        "CREATE INDEX upload_parts_of_upload ON upload_parts (upload_id)",
    ),
    (
        "CREATE TABLE batches (id VARCHAR(64) PRIMARY KEY, owner VARCHAR(32) NOT NULL, key_id VARCHAR(32) NOT NULL,"
        " status VARCHAR(16) NOT NULL, ending VARCHAR(16), endpoint VARCHAR(64) NOT NULL,"
        " input_file_id VARCHAR(64) NOT NULL, output_file_id VARCHAR(64), error_file_id VARCHAR(64),"
        " completion_window VARCHAR(16) NOT NULL, metadata TEXT, errors TEXT, model TEXT, mixed_models {int} NOT NULL,"
        " output_keep_s {int}, webhook TEXT, idempotency_key VARCHAR(255), idempotency_hash VARCHAR(64),"
        " created_at {int} NOT NULL, expires_at {int} NOT NULL, paused_at {int}, in_progress_at {int},"
        " finalizing_at {int}, completed_at {int}, failed_at {int}, expired_at {int}, cancelling_at {int},"
        " cancelled_at {int}, ended_at {int}, total {int} NOT NULL, completed {int} NOT NULL, failed {int} NOT NULL,"
        " prompt_tokens {int} NOT NULL, cached_tokens {int} NOT NULL, completion_tokens {int} NOT NULL,"
        " reasoning_tokens {int} NOT NULL, worker VARCHAR(64), epoch {int} NOT NULL, not_before {int} NOT NULL,"
        " cleared {int} NOT NULL)",
        "CREATE INDEX batches_of_owner ON batches (owner, id)",
        "CREATE UNIQUE INDEX batches_idempotency ON batches (owner, idempotency_key)",
        "CREATE INDEX batches_status ON batches (status)",
        "CREATE TABLE batch_windows (batch_id VARCHAR(64) NOT NULL, window_no {int} NOT NULL, model TEXT NOT NULL,"
        " lines {int} NOT NULL, lines_left {int} NOT NULL, tokens {int} NOT NULL, worker VARCHAR(64),"
        " epoch {int} NOT NULL, not_before {int} NOT NULL, PRIMARY KEY (batch_id, window_no))",
        "CREATE INDEX batch_windows_of_worker ON batch_windows (worker) WHERE worker IS NOT NULL",
        "CREATE TABLE batch_lines (batch_id VARCHAR(64) NOT NULL, line_no {int} NOT NULL, window_no {int} NOT NULL,"
        ' "offset" {int} NOT NULL, size {int} NOT NULL, custom_id TEXT NOT NULL, attempts {int} NOT NULL,'
        " state {int} NOT NULL, seq {int}, result {blob}, PRIMARY KEY (batch_id, line_no))",
        "CREATE INDEX batch_lines_of_window ON batch_lines (batch_id, window_no, line_no)",
        "CREATE INDEX batch_lines_seq ON batch_lines (batch_id, seq) WHERE seq IS NOT NULL",
        "CREATE TABLE batch_workers (id VARCHAR(64) PRIMARY KEY, home VARCHAR(64) NOT NULL, boot VARCHAR(64) NOT NULL,"
        " beats {int} NOT NULL, seen_at {int} NOT NULL)",
        "CREATE TABLE webhook_events (id VARCHAR(64) PRIMARY KEY, batch_id VARCHAR(64) NOT NULL,"
        " type VARCHAR(64) NOT NULL, url TEXT NOT NULL, body {blob} NOT NULL, created_at {int} NOT NULL,"
        " attempts {int} NOT NULL, next_at {int}, delivered_at {int}, given_up_at {int})",
        "CREATE INDEX webhook_events_due ON webhook_events (next_at)",
    ),
    (
        "CREATE TABLE deliberations (id VARCHAR(64) PRIMARY KEY, key_id VARCHAR(32) NOT NULL,"
        " created_at {int} NOT NULL, expires_at {int} NOT NULL, deliberation {blob} NOT NULL)",
        "CREATE INDEX deliberations_expiry ON deliberations (expires_at)",
    ),
)
"""Never change one that has been released; append. `{int}` and `{blob}` are the dialect's words for 64 bits, bytes."""

_WORDS = {"sqlite": {"int": "INTEGER", "blob": "BLOB"}, "postgresql": {"int": "BIGINT", "blob": "BYTEA"}}
_MIGRATING = 7_302_114_896
"""The number of PostgreSQL's advisory lock: gateways that start together migrate once."""


class DatabaseUnusable(Exception):
    """It cannot be opened. The message is one sentence, without a password."""


class NewerDatabase(DatabaseUnusable):
    """The database was made by a newer slurmgate."""


# -- opening ---------------------------------------------------------------------------------------------------------


def database_of(config: Config | None, state: StateDir) -> Engine:
    """The database of a configuration: the one that `database.url_env` names, else SQLite in the state directory.

    Raises `DatabaseUnusable`.
    """
    variable = config.database.url_env if config is not None else None
    if variable is None:
        return open_database(state.database)
    url = os.environ.get(variable)
    if not url:
        raise DatabaseUnusable(f"database.url_env: the environment variable {variable} is not set")
    return open_database(url)


def open_database(where: Path | str) -> Engine:
    """The database at a path or a URL, made or migrated where needed. Raises `DatabaseUnusable`."""
    url, shown = _address(where)
    try:
        engine = _sqlite(url) if url.get_backend_name() == "sqlite" else _postgresql(url)
    except ImportError:
        raise DatabaseUnusable(
            "PostgreSQL needs the Python package psycopg: install slurmgate with its extra `postgresql`"
        ) from None
    try:
        migrate(engine)
    except (SQLAlchemyError, sqlite3.Error) as error:
        engine.dispose()
        raise DatabaseUnusable(f"the database {shown} cannot be used: {_reason(error)}") from None
    except NewerDatabase as error:
        engine.dispose()
        raise NewerDatabase(f"the database {shown} {error}") from None
    return engine


def _address(where: Path | str) -> tuple[URL, str]:
    """The URL for SQLAlchemy, and what may be shown of it: no password, and no query, which can hold one too."""
    if isinstance(where, Path) or "://" not in where:
        return URL.create("sqlite", database=str(where)), str(where)
    expected = "expected postgresql://USER:PASSWORD@HOST:PORT/NAME, special characters percent-encoded"
    try:
        url = make_url(where)
    except (ArgumentError, ValueError):  # whose messages quote parts of it
        raise DatabaseUnusable(f"the database's URL cannot be read: {expected}") from None
    if url.drivername == "sqlite" and url.database not in (None, "", ":memory:"):  # that one would be each thread's own
        return url, str(url.database)
    if url.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise DatabaseUnusable(f"the database's URL begins with {url.drivername!r}: {expected}")
    if not url.database:
        raise DatabaseUnusable(f"the database's URL names no database: {expected}")
    shown = URL.create("postgresql", url.username, None, url.host, url.port, url.database).render_as_string()
    return url.set(drivername="postgresql+psycopg"), shown


def _reason(error: Exception) -> str:
    """The driver's own last line, such as `password authentication failed for user "ada"`."""
    told = str(getattr(error, "orig", None) or error)
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    found = next((line for line in reversed(lines) if "failed:" in line or "FATAL" in line), lines[0] if lines else "")
    return found.rpartition("FATAL:")[2].strip() or type(error).__name__


def _postgresql(url: URL) -> Engine:
    arguments = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_TIMEOUT_S}
    return create_engine(
        url, hide_parameters=True, connect_args=arguments, pool_pre_ping=True, pool_size=5, max_overflow=27
    )


def _sqlite(url: URL) -> Engine:
    """Transactions are begun by us: Python's module begins none before reading, and late before writing."""
    engine = create_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT_S}, max_overflow=27)

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        _use_wal(connection)
        connection.execute("PRAGMA synchronous=NORMAL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        synchronous = "FULL" if options.get(_DURABLE, False) else "NORMAL"
        if options.get(_WRITES, False):
            if connection.info.get("synchronous", "NORMAL") != synchronous:
                connection.exec_driver_sql(f"PRAGMA synchronous={synchronous}")
                connection.info["synchronous"] = synchronous
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("BEGIN")

    return engine


def _use_wal(connection: Any) -> None:
    """Turning it on needs the file for itself, and SQLite does not wait for that: processes that start together try
    again."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def migrate(engine: Engine) -> None:
    """Bring the tables to the newest version, once, whoever else starts now. Raises `NewerDatabase`."""
    with engine.connect() as connection:
        if _version(connection) == len(MIGRATIONS):
            return
    words = _WORDS[engine.dialect.name]
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _MIGRATING})
        at = _version(connection)
        if at is None:
            schema_version.create(connection, checkfirst=True)
            connection.execute(insert(schema_version).values(version=0))
            at = 0
        if at > len(MIGRATIONS):
            raise NewerDatabase(f"has schema version {at}; this slurmgate knows versions up to {len(MIGRATIONS)}")
        for statements in MIGRATIONS[at:]:
            for statement in statements:
                connection.execute(text(statement.format(**words)))
        connection.execute(update(schema_version).values(version=len(MIGRATIONS)))


def _version(connection: Connection) -> int | None:
    if not inspect(connection).has_table(schema_version.name):
        return None
    return connection.execute(select(schema_version.c.version)).scalar()


# -- using -----------------------------------------------------------------------------------------------------------

_WRITES = "slurmgate_writes"
_DURABLE = "slurmgate_durable"


@contextmanager
def writing(engine: Engine, *, durable: bool = False) -> Iterator[Connection]:
    """A transaction that writes. With SQLite it waits for its turn at its start: one that reads first and then wants
    to write would be refused at once if another process has written in between.

    durable   once committed, it outlives a loss of power too: with SQLite its log is synced. PostgreSQL always does so
    """
    options = {_WRITES: True, _DURABLE: durable}
    with engine.connect() as connection, connection.execution_options(**options).begin():
        yield connection


def inserting(connection: Connection, table: Table) -> Any:
    """An INSERT that knows `ON CONFLICT`, as both databases have it; SQLAlchemy has one for each."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert  # noqa: PLC0415  # 3 % of the time to start
    else:
        from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]  # noqa: PLC0415
    return insert(table)


def upsert(
    connection: Connection,
    table: Table,
    rows: Sequence[dict[str, Any]],
    merged: Callable[[Any], dict[str, ColumnElement[Any]]],
) -> None:
    """Insert rows; where the primary key is there already, set what `merged` makes of the new values."""
    statement = inserting(connection, table)
    key = list(table.primary_key.columns)
    connection.execute(statement.on_conflict_do_update(index_elements=key, set_=merged(statement.excluded)), list(rows))
