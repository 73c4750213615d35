"""`backends.places.Places` in a worker: main decides, this asks.

One question and one telling for each request, and none where main has lent seats (remote_loans.py). Main names a
replica's address once, then only its id.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from backends.base import Call
from backends.places import Outcome, Seat
from backends.wants import want_of

from .link import Handler, Link
from .messages import RemoteEndpoint, endpoint_from, want_to
from .remote_loans import RemoteLoan, Tellings

_NOBODY: frozenset[str] = frozenset()


class RemoteSeat:
    """A `backends.places.Seat`: `number` is that of the question that was answered with it."""

    __slots__ = ("_number", "_places", "endpoint")

    def __init__(self, places: RemotePlaces, number: int, endpoint: RemoteEndpoint) -> None:
        self.endpoint = endpoint
        self._places = places
        self._number = number

    def leave(self, outcome: Outcome, tokens: int = 0) -> None:
        number, self._number = self._number, 0
        if number:
            self._places.left(number, self.endpoint.replica_id, outcome, tokens)


class RemotePlaces:
    """Of one model. `affinity`: its requests' prefixes matter, so they are looked at."""

    def __init__(
        self, model: str, link: Link, tell_later: Callable[[RemoteLoan], None], *, affinity: bool = True
    ) -> None:
        self.affinity = affinity
        self._model = model
        self._link = link
        self._tell_later = tell_later
        self._loan: RemoteLoan | None = None
        self._returned: list[RemoteLoan] = []
        self._endpoints: dict[str, RemoteEndpoint] = {}
        self._in_flight: Counter[str] = Counter()
        self._waiting = 0

    def take(self, call: Call, avoid: frozenset[str] = _NOBODY) -> Seat | None:
        """Of what main has lent. Nothing is decided here."""
        loan = self._loan
        return None if loan is None or avoid else loan.seat(call)

    async def wait(self, call: Call, avoid: frozenset[str] = _NOBODY) -> Seat:
        want = want_of(call, avoid, affinity=self.affinity)
        number, answer = self._link.question("place", self._model, want_to(want))
        self._waiting += 1
        try:
            replica_id = await answer
        except asyncio.CancelledError:
            self._link.give_up(number)
            raise
        finally:
            self._waiting -= 1
        self._in_flight[replica_id] += 1
        return RemoteSeat(self, number, self._endpoints[replica_id])

    def left(self, number: int, replica_id: str, outcome: Outcome, tokens: int) -> None:
        left = self._in_flight[replica_id] - 1
        if left:
            self._in_flight[replica_id] = left
        else:
            del self._in_flight[replica_id]
        self._link.tell("leave", number, outcome.value, tokens)

    def in_flight(self, replica_id: str) -> int:
        """This worker's own requests there."""
        loans = self._returned if self._loan is None else [*self._returned, self._loan]
        return self._in_flight[replica_id] + sum(loan.used for loan in loans if loan.endpoint.replica_id == replica_id)

    def waiting(self) -> int:
        """This worker's own requests that main has not answered yet."""
        return self._waiting

    def met(self, endpoint: RemoteEndpoint) -> None:
        self._endpoints[endpoint.replica_id] = endpoint

    def forget(self) -> None:
        self._endpoints.clear()

    def borrow(self, number: int, replica_id: str, seats: int) -> None:
        """Main lends seats at a replica."""
        self._loan = RemoteLoan(number, self._endpoints[replica_id], seats, self._link, self._tell_later)

    def give_back(self) -> None:
        """Main wants them back."""
        loan, self._loan = self._loan, None
        if loan is not None:
            loan.give_back()
            self._returned = [*(one for one in self._returned if one.used), loan]


class AllPlaces:
    """The places of every model, made when somebody asks for them."""

    def __init__(self) -> None:
        self._places: dict[str, RemotePlaces] = {}
        self._tellings = Tellings()
        self._link: Link

    def told(self) -> dict[str, Handler]:
        return {
            "endpoint": self._endpoint,
            "forget": self._forget,
            "lend": self._lend,
            "call_in": self._call_in,
        }

    def open(self, link: Link) -> None:
        self._link = link

    def of(self, model: str, *, affinity: bool = True) -> RemotePlaces:
        """A model's, the same ones each time: what is known of its replicas stays known."""
        places = self._known(model)
        places.affinity = affinity
        return places

    def _known(self, model: str) -> RemotePlaces:
        places = self._places.get(model)
        if places is None:
            places = self._places[model] = RemotePlaces(model, self._link, self._tellings.later)
        return places

    def _endpoint(self, model: str, told: list[Any]) -> None:
        self._known(model).met(endpoint_from(told))

    def _forget(self, model: str) -> None:
        self._known(model).forget()

    def _lend(self, model: str, number: int, replica_id: str, seats: int) -> None:
        self._known(model).borrow(number, replica_id, seats)

    def _call_in(self, model: str) -> None:
        self._known(model).give_back()
