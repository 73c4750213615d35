"""How fast batches advance, and when they will be done: from what the database said at each look. Pure.

The counts are those of all workers together, so what is measured is the whole service's speed, whoever runs the lines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from .schedule import Work

HALF_LIFE_S = 120.0
"""What was measured so long ago counts half."""


class Rates:
    """Tokens a second by model, lines a second by batch."""

    def __init__(self) -> None:
        self._at: float | None = None
        self._left: dict[tuple[str, str], Work] = {}
        self._tokens: dict[str, _Average] = {}
        self._lines: dict[str, _Average] = {}

    def look(self, works: Iterable[Work], now: float) -> None:
        """What is left now. A work that is gone says nothing: it may be done, or paused, or cancelled."""
        seen = {(work.batch_id, work.model): work for work in works}
        before, self._left = self._left, seen
        elapsed, self._at = (now - self._at if self._at is not None else 0.0), now
        if elapsed <= 0:
            return
        tokens: dict[str, int] = {}
        lines: dict[str, int] = {}
        for key, rest in seen.items():
            if (work := before.get(key)) is not None:
                if (spent := work.tokens - rest.tokens) > 0:  # nothing: it rests, or no replica is there yet
                    tokens[rest.model] = tokens.get(rest.model, 0) + spent
                lines[rest.batch_id] = lines.get(rest.batch_id, 0) + max(0, work.lines - rest.lines)
        _add(self._tokens, tokens, elapsed)
        _add(self._lines, lines, elapsed)
        alive = {work.batch_id for work in seen.values()}
        self._lines = {batch_id: average for batch_id, average in self._lines.items() if batch_id in alive}

    def tokens_per_s(self, model: str) -> float | None:
        """While it has replicas and hours; None where nothing was measured."""
        average = self._tokens.get(model)
        return average.value or None if average is not None else None

    def done_at(self, batch_id: str, now: float) -> float | None:
        """When its last line will have been answered at its present speed; None where nothing is known of it."""
        left = sum(work.lines for (id, _), work in self._left.items() if id == batch_id)
        average = self._lines.get(batch_id)
        if average is None or not average.value or not left:
            return None
        return now + left / average.value


def by_its_average(done: int, total: int, began_at: float, now: float) -> float | None:
    """When a batch is done that goes on as it did since it began; None before its first line."""
    if done <= 0 or now <= began_at:
        return None
    return now + (total - done) * (now - began_at) / done


class _Average:
    """Exponential, by time; the first values count by themselves."""

    __slots__ = ("_weight", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self._weight = 0.0

    def add(self, amount: float, seconds: float) -> None:
        keep = math.exp2(-seconds / HALF_LIFE_S)
        new = 1.0 - keep
        self._weight = self._weight * keep + new
        self.value += (amount / seconds - self.value) * new / self._weight


def _add(averages: dict[str, _Average], amounts: Mapping[str, int], seconds: float) -> None:
    for name, amount in amounts.items():
        averages.setdefault(name, _Average()).add(amount, seconds)
