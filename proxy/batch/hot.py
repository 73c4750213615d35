"""The statements that every line pays for, as text: SQLAlchemy takes several times as long to build them as SQLite
takes to run them. Values are always parameters.

SQLite's driver gives the interpreter away and takes it back for every row that it reads or writes, which beside a busy
event loop costs more than the row. So many rows are read as one text, and written by one statement.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import Connection, CursorResult

LIVES: Final = "SELECT 1 FROM batch_workers WHERE id=? {share}"
MAY_RUN: Final = (
    "SELECT 1 FROM batches WHERE id=? AND status='in_progress' AND paused_at IS NULL AND expires_at>? {share}"
)
FREE_WINDOW: Final = (
    "SELECT window_no, model, epoch FROM batch_windows WHERE batch_id=? AND worker IS NULL AND not_before<=?"
    " ORDER BY window_no LIMIT 1 {skip}"
)
FREE_WINDOW_OF_MODEL: Final = (
    "SELECT window_no, model, epoch FROM batch_windows WHERE batch_id=? AND worker IS NULL AND not_before<=?"
    " AND model=? ORDER BY window_no LIMIT 1 {skip}"
)
CLAIM: Final = "UPDATE batch_windows SET worker=?, epoch=? WHERE batch_id=? AND window_no=?"
WAITING_LINES: Final = (
    "SELECT {join}(line_no || ' ' || \"offset\" || ' ' || size || ' ' || attempts, ',') FROM batch_lines"
    " WHERE batch_id=? AND window_no=? AND state=0"
)

COUNTS: Final = "SELECT status, ending, total, completed, failed FROM batches WHERE id=? {update}"
WINDOW: Final = "SELECT epoch FROM batch_windows WHERE batch_id=? AND window_no=? {update}"
WAITING_NUMBERS: Final = (
    "SELECT {join}(line_no || '', ',') FROM batch_lines WHERE batch_id=? AND window_no=? AND state=0"
)
RESULT: Final = "UPDATE batch_lines SET state=?, seq=?, result=? WHERE batch_id=? AND line_no=?"
LEFT: Final = "UPDATE batch_windows SET lines_left=? WHERE batch_id=? AND window_no=?"
OVER: Final = "DELETE FROM batch_windows WHERE batch_id=? AND window_no=?"
COUNT: Final = (
    "UPDATE batches SET completed=?, failed=?, prompt_tokens=prompt_tokens+?, cached_tokens=cached_tokens+?,"
    " completion_tokens=completion_tokens+?, reasoning_tokens=reasoning_tokens+? WHERE id=?"
)
SIZES: Final = (
    "SELECT line_no, length(result) FROM batch_lines WHERE batch_id=? AND line_no>? AND state=?"
    " ORDER BY line_no LIMIT ?"
)
RESULTS: Final = (
    "SELECT line_no, result FROM batch_lines WHERE batch_id=? AND line_no>? AND state=? AND line_no<=? ORDER BY line_no"
)
ADD_LINE: Final = (
    'INSERT INTO batch_lines (batch_id, line_no, window_no, "offset", size, custom_id, attempts, state)'
    " VALUES (?, ?, ?, ?, ?, ?, 0, 0)"
)

_ALL: Final = (
    LIVES, MAY_RUN, FREE_WINDOW, FREE_WINDOW_OF_MODEL, CLAIM, WAITING_LINES, COUNTS, WINDOW, WAITING_NUMBERS, RESULT,
    LEFT, OVER, COUNT, SIZES, RESULTS, ADD_LINE,
)  # fmt: skip
_LOCKS: Final = {
    "sqlite": {
        "share": "",
        "update": "",
        "skip": "",
        "join": "group_concat",
    },  # a transaction that writes has the database for itself
    "postgresql": {
        "share": "FOR SHARE",
        "update": "FOR UPDATE",
        "skip": "FOR UPDATE SKIP LOCKED",
        "join": "string_agg",
    },
}
_TEXTS: Final = {
    dialect: MappingProxyType(
        {text: text.format(**locks).replace("?", "%s" if dialect == "postgresql" else "?") for text in _ALL}
    )
    for dialect, locks in _LOCKS.items()
}


_UPDATE_FROM: Final = (3, 33)
"""The first version of SQLite that has it."""
_AT_ONCE: Final = (64, 16, 4, 1)
"""Few sizes: the driver keeps statements that it has seen."""
_SEVERAL_RESULTS: Final = {
    count: "UPDATE batch_lines SET state=new.column1, seq=new.column2, result=new.column3 FROM (VALUES "  # noqa: S608  # of placeholders
    + ", ".join(["(?, ?, ?, ?)"] * count)
    + ") AS new WHERE batch_id=? AND line_no=new.column4"
    for count in _AT_ONCE
}


def execute(connection: Connection, text: str, *values: Any) -> CursorResult[Any]:
    return connection.exec_driver_sql(_TEXTS[connection.dialect.name][text], values)


def write_results(connection: Connection, batch_id: str, rows: Sequence[tuple[int, int, bytes, int]]) -> None:
    """rows   (state, seq, result, line_no) of lines of one batch"""
    if connection.dialect.name != "sqlite" or sqlite3.sqlite_version_info < _UPDATE_FROM:
        execute_many(connection, RESULT, [(state, seq, result, batch_id, no) for state, seq, result, no in rows])
        return
    begin = 0
    while begin < len(rows):
        count = next(count for count in _AT_ONCE if count <= len(rows) - begin)
        values = [value for row in rows[begin : begin + count] for value in row]
        connection.exec_driver_sql(_SEVERAL_RESULTS[count], (*values, batch_id))
        begin += count


def execute_many(connection: Connection, text: str, rows: Sequence[tuple[Any, ...]]) -> None:
    connection.exec_driver_sql(_TEXTS[connection.dialect.name][text], list(rows))
