"""The arithmetic of limits: so much a minute, so much a day. Pure: who asks says what time it is.

Bucket   a token bucket that fills without steps: full it holds one minute's worth
Budget   what may be used in a period; what is used in it, and what is kept for requests that still run
"""

from __future__ import annotations

from typing import Literal

Kind = Literal["key", "project"]

MINUTE_S = 60.0
_ROUNDING = 1e-6
"""Of a token: what sums of fractions may be off by without anybody being refused for it."""


class Bucket:
    """So much a minute, counted from what is used of it, so that another limit changes nothing about that.

    In any time of t seconds it gives at most `limit * (1 + t / 60)`. What comes out larger than was taken (`settle`)
    makes a debt, and later ones wait for it.

    limit        what it holds when it is full, and gets in a minute; `limit_text` is it in ASCII
    used         what is missing from full, as of when it was last asked
    """

    __slots__ = ("_at", "limit", "limit_text", "rate", "used")

    def __init__(self, limit: int, now: float) -> None:
        self.used = 0.0
        self._at = now
        self.change(limit, now)

    def change(self, limit: int, now: float) -> None:
        """Another limit from now on; what is used stays used."""
        if now > self._at:
            self.drain(now)
        self.limit = limit
        self.limit_text = b"%d" % limit
        self.rate = limit / MINUTE_S

    def drain(self, now: float) -> None:
        """Bring `used` up to now."""
        elapsed = now - self._at
        if elapsed > 0.0:
            used = self.used - elapsed * self.rate
            self.used = used if used > 0.0 else 0.0
            self._at = now

    def has_room(self, amount: float, now: float) -> bool:
        """Whether so much may be added to `used` now. There is always room for nothing, whatever is owed."""
        elapsed = now - self._at
        if elapsed > 0.0:
            used = self.used - elapsed * self.rate
            self.used = used if used > 0.0 else 0.0
            self._at = now
        return self.used + amount <= self.limit + _ROUNDING or not amount

    def settle(self, taken: float, used: float, now: float) -> None:
        """What was `taken` for a request turns out to be `used`: the rest goes back, or what lacks is owed."""
        self.drain(now)
        self.used = max(0.0, self.used + used - taken)

    @property
    def remaining(self) -> int:
        """Whole units that could be taken now."""
        left = self.limit - self.used
        return int(left + _ROUNDING) if left > 0.0 else 0

    @property
    def full_in_s(self) -> float:
        return self.used / self.rate

    def wait_s(self, amount: float) -> float:
        """Until so much can be taken, if nobody else takes any. Infinite for more than it holds."""
        if amount > self.limit:
            return float("inf")
        return max(0.0, (self.used + amount - self.limit) / self.rate)


class Budget:
    """What may be used in a day, or a month.

    kind       whose it is: "key" or "project"; `owner` is its id
    period     the one that is counted, as `2026-11-22` or `2026-11`
    known      `used` is true: it holds what was used before this process began, too
    reserved   for requests that still run: never more than the limit is used, however many run at once
    """

    __slots__ = ("kind", "known", "limit", "owner", "period", "reserved", "used")

    def __init__(self, limit: int, kind: Kind, owner: str, period: str) -> None:
        self.limit = limit
        self.kind = kind
        self.owner = owner
        self.period = period
        self.known = False
        self.used = 0
        self.reserved = 0

    def turn_to(self, period: str) -> None:
        """A new day, or month: nothing of it is used. What still runs is counted in the one it ends in."""
        if period != self.period:
            self.period = period
            self.used = 0
            self.known = True

    def learn(self, used_before: int) -> None:
        """What was used in this period before anything was counted here."""
        if not self.known:
            self.known = True
            self.used += used_before

    def has_room(self, amount: int) -> bool:
        return self.used + self.reserved + amount <= self.limit or not amount

    @property
    def daily(self) -> bool:
        return len(self.period) > len("2026-11")

    @property
    def first_day(self) -> str:
        return self.period if self.daily else f"{self.period}-01"

    @property
    def idle(self) -> bool:
        """Nothing would be lost by forgetting it."""
        return not (self.used or self.reserved)
