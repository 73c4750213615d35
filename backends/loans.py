"""Seats that another process gives out by itself: main lends it some where there is nothing to decide, at a model's
only replica, in good order, with nobody in line. A worker's request then costs no message (proxy/workers/).

    lend --> open --call_in--> called in --returned--> what is in use ends one by one --> over

What is lent counts against the replica's limit from the first moment, in use or not (`Replica.lent`): the limit holds
over all processes at all times. What is not in use is in nobody's way, since all of it is called in as soon as somebody
waits, a second replica comes, or the only one leaves, fails or takes less: then everything is decided here again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sized

from .places import Outcome, Want
from .replica_set import Replica, ReplicaSet

AGAIN_S = 1.0
"""After loans were called in, nothing is lent for so long: a model that is nearly full would lend and call in all the
time."""


Left = Callable[[Replica, Want, Outcome, float, int], None]
"""(replica, what was asked for, how it ended, since when it had its seat, tokens it used): of `ModelPlaces.left`"""


class Loan:
    """Seats of one replica that somebody gives out as they like.

    seats   that may be in use at once; once they have been returned, those that still are
    used    that are in use, as was last told
    """

    __slots__ = ("_call_in", "_lending", "_returned", "replica", "seats", "used")

    def __init__(self, lending: Lending, replica: Replica, seats: int, call_in: Callable[[], None]) -> None:
        self.replica = replica
        self.seats = seats
        self.used = 0
        self._lending = lending
        self._call_in = call_in
        self._returned = False
        replica.lent += seats

    @property
    def over(self) -> bool:
        return self._returned and not self.used

    def told(self, used: int, served: int, seconds: float) -> None:
        """So many are in use. Since the last telling so many requests were served, which had their seats for so long
        in all."""
        self._count(used)
        if served:
            self._lending.rate.served(seconds, served)

    def left(self, want: Want, outcome: Outcome, seconds: float, tokens: int) -> None:
        """A request has ended, after so many seconds, that was not served, or that was not to be told of with others
        since the loan had been called in."""
        self.used -= 1
        if self._returned:
            self.seats -= 1
        else:
            self.replica.lent += 1
        self._lending.left(self.replica, want, outcome, seconds, tokens)

    def call_in(self) -> None:
        """Ask for it back: no more requests get seats of it."""
        self._call_in()

    def returned(self) -> None:
        """Those in use end one by one, the others are free."""
        self._returned = True
        self.replica.lent -= self.seats - self.used
        self.seats = self.used
        self._lending.freed()

    def lost(self) -> None:
        """Whoever had it is gone, and nothing of it is in use any more."""
        self._count(0)
        self.returned()
        self._lending.forget(self)

    def _count(self, used: int) -> None:
        replica = self.replica
        more = used - self.used
        self.used = used
        replica.in_flight += more
        replica.lent -= more


class Lending:
    """The loans of one model.

    line   who waits
    left   is told of a request that has ended, which its replica still counts
    freed  is told that seats are free again
    """

    def __init__(
        self,
        model: str,
        replicas: ReplicaSet,
        line: Sized,
        *,
        left: Left,
        freed: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self.rate = replicas.rate
        self.freed = freed
        self._model = model
        self._replicas = replicas
        self._line = line
        self._left = left
        self._clock = clock
        self._open: list[Loan] = []
        self._again_at = 0.0
        self._watcher: asyncio.Task[None] | None = None

    def lend(self, borrowers: int, call_in: Callable[[], None]) -> Loan | None:
        """Seats for one of so many borrowers, or None. The loan is theirs until `call_in` has been called.

        All of them together get half of the limit at most: what one needs beyond its part is not called in from the
        others, but asked for.
        """
        replicas = self._replicas
        replicas.refresh()
        if self._line or self._clock() < self._again_at or not replicas.replicas:
            return None
        replica = replicas.replicas[0]
        if not self._is_fit(replica):
            return None
        limit = replica.limit.now
        seats = min(limit // (2 * borrowers), limit - replica.in_flight - replica.lent)
        if seats < 1:
            return None
        loan = Loan(self, replica, seats, call_in)
        self._open.append(loan)
        if self._watcher is None:
            self._watcher = asyncio.get_running_loop().create_task(self._watch(), name=f"loans of {self._model}")
        return loan

    def look(self) -> None:
        """Call in what is lent of a replica that is not what it was."""
        if self._open and not all(self._is_fit(loan.replica) for loan in self._open):
            self.call_in()

    def call_in(self) -> None:
        """All of it."""
        if not self._open:
            return
        self._again_at = self._clock() + AGAIN_S
        loans, self._open = self._open, []
        for loan in loans:
            loan.call_in()

    def close(self) -> None:
        """Nothing is watched any more; what is lent is called in."""
        self.call_in()
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    def left(self, replica: Replica, want: Want, outcome: Outcome, seconds: float, tokens: int) -> None:
        self._left(replica, want, outcome, self._clock() - seconds, tokens)

    def forget(self, loan: Loan) -> None:
        if loan in self._open:
            self._open.remove(loan)

    def _is_fit(self, replica: Replica) -> bool:
        return self._replicas.replicas == [replica] and replica.is_calm

    async def _watch(self) -> None:
        """Replicas come and go while nobody asks main for a seat."""
        while True:
            self._replicas.refresh()
            self.look()
            await self._replicas.launcher.changed(self._model)
