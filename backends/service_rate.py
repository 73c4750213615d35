"""How fast a model's requests are served, measured, and what that means for those who wait. Pure.

By Little's law: seats that are taken / the mean time that a request has one = requests that end per second. The mean is
over about the last hundred requests.
"""

from __future__ import annotations

import math

_SPAN = 128

UNKNOWN_S = 5.0
"""What is said where nothing has been measured yet."""


class ServiceRate:
    """`total_s` and `count`: of the requests that have ended, older ones with less weight each time that it is full."""

    __slots__ = ("count", "total_s")

    def __init__(self) -> None:
        self.count = 0
        self.total_s = 0.0

    def forget(self) -> None:
        """Half of what was."""
        self.count //= 2
        self.total_s /= 2

    def served(self, seconds: float, count: int = 1) -> None:
        """A request has had its seat for so long, or so many together."""
        self.count += count
        self.total_s += seconds
        while self.count >= _SPAN:
            self.forget()

    @property
    def mean_s(self) -> float:
        """How long a request has its seat; 0.0 where nothing has been measured."""
        return self.total_s / self.count if self.count else 0.0

    def per_second(self, seats: int) -> float | None:
        """Requests that end per second while so many run; None where nothing has been measured."""
        if not self.count or not seats:
            return None
        return seats / max(self.total_s / self.count, 1e-3)

    def wait_s(self, ahead: int, seats: int) -> float:
        """Until it is the turn of one who comes after `ahead` others, in whole seconds, at least 1."""
        rate = self.per_second(seats)
        return UNKNOWN_S if rate is None else float(max(1, math.ceil((ahead + 1) / rate)))
