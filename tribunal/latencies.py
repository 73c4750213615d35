"""How long a model's replies take, by those of late: what a straggler is told by. No clock of its own."""

from __future__ import annotations

import math
from collections import deque

WINDOW = 128
LEAST = 20
"""Replies before there is a word on it: with fewer, the 95th percentile is the slowest one."""
EVERY = 8
"""Replies between two looks."""


class Latencies:
    """By model, of all deliberations together."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[float]] = {}
        self._p95_s: dict[str, float] = {}
        self._count: dict[str, int] = {}

    def note(self, model: str, seconds: float) -> None:
        """A reply has come, so long after it was asked for."""
        seen = self._seen.get(model)
        if seen is None:
            seen = self._seen[model] = deque(maxlen=WINDOW)
        seen.append(seconds)
        count = self._count[model] = self._count.get(model, 0) + 1
        if count >= LEAST and (count - LEAST) % EVERY == 0:
            ordered = sorted(seen)
            self._p95_s[model] = ordered[math.ceil(0.95 * len(ordered)) - 1]

    def p95_s(self, model: str) -> float | None:
        """None while nobody knows."""
        return self._p95_s.get(model)
