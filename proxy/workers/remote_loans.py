"""A worker's side of `backends.loans`: seats that it gives out without asking.

Main is told what is in use ten times a second, and at once of every request that it has to know of by itself: one that
was not served, one that ends after the loan was called in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from backends.base import Call
from backends.places import Outcome
from backends.wants import want_of

from .link import Link
from .messages import RemoteEndpoint, want_to

TELL_EVERY_S = 0.1
"""How old main's knowledge is, at most, of what is in use: what metrics and scaling go by. Limits do not."""


class LentSeat:
    """A `backends.places.Seat` of a loan."""

    __slots__ = ("_begun", "_call", "_loan", "endpoint")

    def __init__(self, loan: RemoteLoan, call: Call) -> None:
        self.endpoint = loan.endpoint
        self._loan: RemoteLoan | None = loan
        self._call = call
        self._begun = time.monotonic()

    def leave(self, outcome: Outcome, tokens: int = 0) -> None:
        loan, self._loan = self._loan, None
        if loan is not None:
            loan.left(self._call, outcome, time.monotonic() - self._begun, tokens)


class RemoteLoan:
    """So many seats at one replica, until main calls them in.

    tell_later   has `tell` called soon
    """

    __slots__ = ("_is_open", "_is_told", "_link", "_number", "_seats", "_seconds", "_served", "_tell_later", "endpoint",
                 "used")  # fmt: skip

    def __init__(
        self, number: int, endpoint: RemoteEndpoint, seats: int, link: Link, tell_later: Callable[[RemoteLoan], None]
    ) -> None:
        self.endpoint = endpoint
        self.used = 0
        self._number = number
        self._seats = seats
        self._link = link
        self._tell_later = tell_later
        self._is_open = True
        self._is_told = True
        self._served = 0
        self._seconds = 0.0

    def seat(self, call: Call) -> LentSeat | None:
        """None where all of them are in use."""
        if self.used >= self._seats:
            return None
        self.used += 1
        self._changed()
        return LentSeat(self, call)

    def left(self, call: Call, outcome: Outcome, seconds: float, tokens: int) -> None:
        if outcome is Outcome.SERVED and self._is_open:
            self.used -= 1
            self._served += 1
            self._seconds += seconds
            self._changed()
        else:
            self.tell()  # this one as in use: main counts it out by itself
            self.used -= 1
            want = want_to(want_of(call, affinity=False))
            self._link.tell("went", self._number, want, outcome.value, seconds, tokens)

    def give_back(self) -> None:
        """What is in use ends one by one."""
        self._is_open = False
        self.tell()
        self._link.tell("returned", self._number)

    def tell(self) -> None:
        """What has changed since the last time."""
        if not self._is_told:
            self._is_told = True
            self._link.tell("used", self._number, self.used, self._served, self._seconds)
            self._served = 0
            self._seconds = 0.0

    def _changed(self) -> None:
        if self._is_told:
            self._is_told = False
            self._tell_later(self)


class Tellings:
    """Loans that main is to be told of, all of them together."""

    def __init__(self) -> None:
        self._loans: list[RemoteLoan] = []

    def later(self, loan: RemoteLoan) -> None:
        if not self._loans:
            asyncio.get_running_loop().call_later(TELL_EVERY_S, self._now)
        self._loans.append(loan)

    def _now(self) -> None:
        loans, self._loans = self._loans, []
        for loan in loans:
            loan.tell()
