"""The statements that every line pays for, as text: SQLAlchemy takes several times as long to build them as SQLite
takes to run them. Values are always parameters.
"""

from __future__ import annotations

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
    'SELECT line_no, "offset", size, attempts FROM batch_lines WHERE batch_id=? AND window_no=? AND state=0'
    " ORDER BY line_no"
)

COUNTS: Final = "SELECT status, ending, total, completed, failed FROM batches WHERE id=? {update}"
WINDOW: Final = "SELECT epoch FROM batch_windows WHERE batch_id=? AND window_no=? {update}"
WAITING_NUMBERS: Final = "SELECT line_no FROM batch_lines WHERE batch_id=? AND window_no=? AND state=0"
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
    "sqlite": {"share": "", "update": "", "skip": ""},  # a transaction that writes has the database for itself
    "postgresql": {"share": "FOR SHARE", "update": "FOR UPDATE", "skip": "FOR UPDATE SKIP LOCKED"},
}
_TEXTS: Final = {
    dialect: MappingProxyType(
        {text: text.format(**locks).replace("?", "%s" if dialect == "postgresql" else "?") for text in _ALL}
    )
    for dialect, locks in _LOCKS.items()
}


def execute(connection: Connection, text: str, *values: Any) -> CursorResult[Any]:
    return connection.exec_driver_sql(_TEXTS[connection.dialect.name][text], values)


def execute_many(connection: Connection, text: str, rows: Sequence[tuple[Any, ...]]) -> None:
    connection.exec_driver_sql(_TEXTS[connection.dialect.name][text], list(rows))
