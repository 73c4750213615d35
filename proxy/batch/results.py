"""Which results count, and how they are written: inside the transaction of who calls, under the lock of the batch."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from . import hot
from .values import Done

WAITING, OK, FAILED = 0, 1, 2
"""`batch_lines.state`."""


def first_results(connection: Connection, batch_id: str, window_no: int, results: Sequence[Done]) -> list[Done] | None:
    """Which of a window's results are its lines' first, and are counted as such; None where it is another's now, or
    over."""
    window = hot.execute(connection, hot.WINDOW, batch_id, window_no).first()
    ours = [one for one in results if window is not None and one.epoch == window.epoch]
    if not ours:
        return None
    numbers = hot.execute(connection, hot.WAITING_NUMBERS, batch_id, window_no).scalar()
    waiting = set(map(int, numbers.split(","))) if numbers else set()
    first: list[Done] = []
    for one in ours:
        if one.line_no in waiting:
            waiting.remove(one.line_no)
            first.append(one)
    if waiting:
        hot.execute(connection, hot.LEFT, len(waiting), batch_id, window_no)
    else:
        hot.execute(connection, hot.OVER, batch_id, window_no)
    return first


def write_results(connection: Connection, batch_id: str, completed: int, failed: int, results: Sequence[Done]) -> None:
    """Of lines without a result, of a batch that is locked and has these counts."""
    seq = completed + failed
    rows = []
    for one in results:
        seq += 1
        completed += one.ok
        rows.append((OK if one.ok else FAILED, seq, one.data, one.line_no))
    hot.write_results(connection, batch_id, rows)
    used = (
        sum(one.prompt_tokens for one in results),
        sum(one.cached_tokens for one in results),
        sum(one.completion_tokens for one in results),
        sum(one.reasoning_tokens for one in results),
    )
    hot.execute(connection, hot.COUNT, completed, seq - completed, *used, batch_id)
