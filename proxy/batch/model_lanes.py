"""One model's lines in this process: the windows held, what is asked now, and which line is next."""

from __future__ import annotations

import asyncio

from .held import Held
from .pace import Highest, Pace
from .schedule import Turns
from .values import LineRef

AHEAD_LINES = 256
"""Lines that shall be claimed and not yet asked, at least: claiming takes a while."""


class ModelLanes:
    """held       windows, in the order in which they were claimed
    others        interactive requests that it has had at once lately
    lanes         tasks that ask lines
    in_flight     lines that are asked now
    completed, failed   lines that have had their result from here
    cold          it has no replica
    cold_at       when it last had no replica, of time.monotonic(): who waited then says nothing of a crowd
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.pace = Pace(0)
        self.others = Highest()
        self.turns = Turns()
        self.held: list[Held] = []
        self.lanes: set[asyncio.Task[None]] = set()
        self.in_flight = 0
        self.completed = self.failed = 0
        self.cold = False
        self.cold_at = 0.0

    def next(self, now: float) -> tuple[Held, LineRef, bytes] | None:
        """The next line, of the first window that does not rest; it is the caller's then."""
        for held in self.held:
            if not held.rests(now) and (found := held.next()) is not None:
                return held, *found
        return None

    def ready(self, now: float) -> int:
        """Lines that could be asked at once."""
        return sum(held.ready for held in self.held if not held.rests(now))

    def wants_more(self, now: float) -> bool:
        """Whether another window shall be claimed."""
        ahead = sum(held.ahead for held in self.held if not held.rests(now))
        return ahead < max(AHEAD_LINES, 2 * self.pace.limit)

    def resting(self, now: float) -> set[str]:
        """Batches of which no more is to be claimed for now."""
        return {held.batch.asker.batch_id for held in self.held if held.batch.rests_until > now}
