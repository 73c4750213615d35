"""How many lines of a model are asked at once, and how soon one after the other. Pure.

    Pace       the number in flight: grows while lines are served without a wait, falls when the model is crowded
    Courtesy   the time between two starts: none while nobody else asks, some while somebody does
    Highest    how many others a model had at once lately: they keep their seats

Batches take what interactive requests leave. At the engines that is the line's class in the model's queue, and the
seats that are left free for others. In this process it is the event loop: a fast engine could be asked so often that
whoever comes meets a busy loop, so beside others lines start at a pace that leaves most of it free.
"""

from __future__ import annotations

import math

START = 8
DECREASE = 0.7
MUCH_MORE = 1.25
RESERVE = 8
"""One seat of so many stays free for others while there are any."""

QUIET_S = 10.0
"""Nobody else has asked for so long: then lines may start as fast as they can."""

BESIDE_OTHERS_S = 0.0025
"""Between two starts while others ask: far more than engines serve, and a small share of one process's time."""


class Pace:
    """Of one model in one process.

    limit     lines in flight at most
    ceiling   ... whatever is learnt; 0: none may start
    """

    __slots__ = ("_growing_fast", "_lowered_at", "_rests_until", "_room", "ceiling", "limit")

    def __init__(self, ceiling: int, start: int = START) -> None:
        self.ceiling = ceiling
        self._room = float(max(1, start))
        self._growing_fast = True
        self._lowered_at = -math.inf
        self._rests_until = -math.inf
        self.limit = 0
        self._set()

    def set_ceiling(self, ceiling: int, *, known: bool = False) -> None:
        """`known`: it follows from what the replicas take, so there is nothing to find out step by step."""
        if ceiling == self.ceiling:
            return
        if ceiling > MUCH_MORE * self.ceiling:  # replicas have come; a little more or less is the engines' own pacing
            self._growing_fast = True
            if known:
                self._room = float(ceiling)
        self.ceiling = ceiling
        self._set()

    def served(self, in_flight: int) -> None:
        """A line was answered without a wait while so many were in flight, it among them."""
        if in_flight < self.limit or self._room >= self.ceiling:
            return  # the limit was not what held lines back
        self._room += 1.0 if self._growing_fast else 1.0 / self._room
        self._set()

    def crowded(self, begun: float, in_flight: int, now: float) -> None:
        """A line that began at `begun` had to wait for a seat, or an engine had no room for it."""
        if begun < self._lowered_at:
            return  # it began before the limit was lowered: that has been answered for
        self._lowered_at = now
        self._growing_fast = False
        self._room = max(1.0, min(self._room, float(in_flight)) * DECREASE)
        self._set()

    def rest(self, until: float) -> None:
        """Start nothing before then."""
        self._rests_until = max(self._rests_until, until)

    def go_on(self) -> None:
        """What it rested for has come."""
        self._rests_until = -math.inf

    def rests_s(self, now: float) -> float:
        """For how long nothing may start; 0 for not at all."""
        return max(0.0, self._rests_until - now)

    def _set(self) -> None:
        if self.ceiling:  # 0 is for a while, and says nothing of what the engines take
            self._room = min(self._room, float(self.ceiling))
        self.limit = min(int(self._room), self.ceiling)


def ceiling_of(
    most: int, share: float, seats: int | None, *, processes: int, beside_others: bool, others: int = 0
) -> int:
    """The lines of a model that one process may have in flight.

    most       the configured limit of one process
    share      of the engines that batches may have at this hour
    seats      requests that the model's replicas take at once; None where nobody knows, 0 where none is ready
    others     interactive requests of the model that the process had at once lately. Without seats of their own each
               would wait for the end of a line, and lines may take minutes
    """
    if share <= 0:
        return 0
    if seats is None:
        return max(1, int(most * share))
    if seats == 0:
        return min(most, START)  # they wait in the model's queue, which is what starts a replica
    free = seats / processes
    if beside_others:
        free -= max(free / RESERVE, others + others / RESERVE)
    return max(1, min(most, int(free * share)))


class Courtesy:
    """Of one process. `others` counts requests that others have made so far."""

    __slots__ = ("_next", "_others", "_seen_at")

    def __init__(self) -> None:
        self._others = 0
        self._seen_at = -math.inf
        self._next = -math.inf

    def look(self, others: int, now: float) -> None:
        if others != self._others:
            self._others = others
            self._seen_at = now

    def beside_others(self, now: float) -> bool:
        return now - self._seen_at < QUIET_S

    def wait_s(self, now: float) -> float:
        """How long a line that would like to start shall wait; its turn is kept."""
        if not self.beside_others(now):
            return 0.0
        at = max(now, self._next)
        self._next = at + BESIDE_OTHERS_S
        return at - now


class Highest:
    """Of a number that is looked at again and again, its highest in the last `QUIET_S`, or up to twice that."""

    __slots__ = ("_before", "_begun_at", "_lately")

    def __init__(self) -> None:
        self._before = self._lately = 0
        self._begun_at = -math.inf

    @property
    def number(self) -> int:
        return max(self._before, self._lately)

    def look(self, number: int, now: float) -> None:
        passed = now - self._begun_at
        if passed >= QUIET_S:
            self._before = self._lately if passed < 2 * QUIET_S else 0
            self._lately = 0
            self._begun_at = now
        self._lately = max(self._lately, number)
