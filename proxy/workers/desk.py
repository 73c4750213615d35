"""Main's side of one worker: answers what it asks, and remembers what it holds.

Whatever a worker took (seats, passes, places in line) hangs on its link, by the number of the question that took it:
when the link closes, all of it is given back. So are the seats that it was lent, by numbers of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from structlog.typing import FilteringBoundLogger

from backends.base import Endpoint
from backends.errors import GatewayError, Unavailable
from backends.loans import Loan
from backends.places import Outcome, Seat, Want
from proxy.config import ConfigError
from proxy.control import BatchWork
from proxy.limits.seam import Admission, Pass
from proxy.metrics import State
from proxy.principals import Principal
from proxy.reload import Changes

from .link import Handler, Link
from .messages import OUTCOMES, Json, endpoint_to, headers_to, principal_from, reloaded_to, want_from, work_from

TOLD_AT_MOST = 256
"""Replicas of one model that a worker remembers; they come and go for as long as it lives."""


class WantedPlaces(Protocol):
    """Of `backends.model_places.ModelPlaces` what is needed here."""

    def take_want(self, want: Want) -> Seat | None: ...

    async def wait_want(self, want: Want) -> Seat: ...

    def lend(self, borrowers: int, call_in: Callable[[], None]) -> Loan | None: ...


class Reporting(Protocol):
    """Of `proxy.control.Control` what is passed on to it as it is."""

    @property
    def limits(self) -> Admission: ...

    async def report(self, replica_id: str, body: Json) -> Json: ...

    async def reload(self) -> Changes: ...

    async def operate(self, verb: str, arguments: Json) -> Json: ...

    def tell_batches(self, work: Mapping[str, BatchWork], process: object = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Deciders:
    """What decides, in the main process.

    places    a model's, None for one that has none here
    metrics   numbers of all processes together
    workers   how many there are
    """

    control: Reporting
    places: Callable[[str], WantedPlaces | None]
    metrics: Callable[[], Awaitable[State]]
    workers: int = 1


class Principals:
    """The same object for the same values, whichever worker names them: limits tell principals by identity."""

    def __init__(self) -> None:
        self._known: dict[str, Principal] = {}

    def same(self, principal: Principal) -> Principal:
        known = self._known.get(principal.key_id)
        if known == principal:
            return known
        self._known[principal.key_id] = principal
        return principal


class Desk:
    """One worker's."""

    def __init__(self, deciders: Deciders, principals: Principals, log: FilteringBoundLogger) -> None:
        self._deciders = deciders
        self._shared = principals
        self._log = log
        self._principals: dict[str, Principal] = {}
        self._seats: dict[int, Seat] = {}
        self._passes: dict[int, Pass] = {}
        self._loans: dict[int, Loan] = {}
        self._lent: set[str] = set()
        self._last_loan = 0
        self._told: dict[str, dict[str, Endpoint]] = {}
        self._waits: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._link: Link

    def asked(self) -> dict[str, Handler]:
        return {
            "place": self._place,
            "enter": self._enter,
            "report": self._report,
            "reload": self._reload,
            "operate": self._operate,
            "metrics": self._metrics,
        }

    def told(self) -> dict[str, Handler]:
        return {
            "leave": self._leave,
            "used": self._used,
            "went": self._went,
            "returned": self._returned,
            "principal": self._principal,
            "left": self._left,
            "cancel": self._cancel,
            "batches": self._batches,
        }

    def open(self, link: Link) -> None:
        self._link = link

    def gone(self) -> None:
        """The link is closed: nobody waits, nobody will leave."""
        self._deciders.control.tell_batches({}, self)
        for task in self._waits.values():  # first: what the seats below make free is not for them
            task.cancel()
        seats, self._seats = self._seats, {}
        for seat in seats.values():
            seat.leave(Outcome.ABANDONED)
        loans, self._loans = self._loans, {}
        for loan in loans.values():
            loan.lost()
        passes, self._passes = self._passes, {}
        for granted in passes.values():
            granted.leave(None)

    @property
    def holds(self) -> tuple[int, int, int]:
        """(seats, passes, requests that wait for one of them)"""
        seats = len(self._seats) + sum(loan.used for loan in self._loans.values())
        return seats, len(self._passes), len(self._waits)

    # -- places -------------------------------------------------------------------------------------------------------

    def _place(self, number: int, model: str, told: list[Any]) -> None:
        places = self._deciders.places(model)
        if places is None:  # a new configuration has not reached the worker yet
            raise Unavailable(f"{model} is no longer served here.", retry_after_s=5.0)
        want = want_from(told)
        seat = places.take_want(want)
        if seat is None:
            self._cancellable(number, self._wait(number, model, places, want))
            return
        self._seat(number, model, seat)
        if model not in self._lent:
            self._lend(model, places)

    async def _wait(self, number: int, model: str, places: WantedPlaces, want: Want) -> None:
        self._seat(number, model, await places.wait_want(want))

    def _seat(self, number: int, model: str, seat: Seat) -> None:
        self._seats[number] = seat
        self._tell(model, seat.endpoint)
        self._link.answer(number, seat.endpoint.replica_id)

    def _tell(self, model: str, endpoint: Endpoint) -> None:
        """Where a replica is, once; from then on its id is enough."""
        told = self._told.setdefault(model, {})
        if told.get(endpoint.replica_id) is endpoint:
            return
        if len(told) >= TOLD_AT_MOST:
            told.clear()
            self._link.tell("forget", model)
        told[endpoint.replica_id] = endpoint
        self._link.tell("endpoint", model, endpoint_to(endpoint))

    def _leave(self, number: int, outcome: str, tokens: int) -> None:
        seat = self._seats.pop(number, None)
        if seat is not None:
            seat.leave(OUTCOMES[outcome], tokens)

    # -- places that it gives out by itself ---------------------------------------------------------------------------

    def _lend(self, model: str, places: WantedPlaces) -> None:
        def call_in() -> None:
            self._lent.discard(model)
            self._link.tell("call_in", model)

        loan = places.lend(self._deciders.workers, call_in)
        if loan is None:
            return
        self._last_loan = number = self._last_loan + 1
        self._loans[number] = loan
        self._lent.add(model)
        self._tell(model, loan.replica.endpoint)
        self._link.tell("lend", model, number, loan.replica.replica_id, loan.seats)

    def _used(self, number: int, used: int, served: int, seconds: float) -> None:
        self._loans[number].told(used, served, seconds)

    def _went(self, number: int, want: list[Any], outcome: str, seconds: float, tokens: int) -> None:
        loan = self._loans[number]
        loan.left(want_from(want), OUTCOMES[outcome], seconds, tokens)
        self._forget_if_over(number, loan)

    def _returned(self, number: int) -> None:
        loan = self._loans[number]
        loan.returned()
        self._forget_if_over(number, loan)

    def _forget_if_over(self, number: int, loan: Loan) -> None:
        if loan.over:
            del self._loans[number]

    # -- limits -------------------------------------------------------------------------------------------------------

    def _principal(self, told: Json) -> None:
        """Who `key_id` is, in what follows."""
        principal = principal_from(told)
        self._principals[principal.key_id] = self._shared.same(principal)

    def _enter(self, number: int, key_id: str, model: str, tokens: int) -> None:
        principal = self._principals[key_id]
        granted = self._deciders.control.limits.enter(principal, model, tokens)
        if granted is not None:
            self._grant(number, granted)
        else:
            self._cancellable(number, self._ask(number, principal, model, tokens))

    async def _ask(self, number: int, principal: Principal, model: str, tokens: int) -> None:
        self._grant(number, await self._deciders.control.limits.ask(principal, model, tokens))

    def _grant(self, number: int, granted: Pass) -> None:
        self._passes[number] = granted
        self._link.answer(number, headers_to(granted.headers))

    def _left(self, number: int, tokens: int | None) -> None:
        granted = self._passes.pop(number, None)
        if granted is not None:
            granted.leave(tokens)

    # -- the rest -----------------------------------------------------------------------------------------------------

    def _cancel(self, number: int) -> None:
        """Given up: perhaps in the very moment in which the answer went out."""
        task = self._waits.get(number)
        if task is not None:
            task.cancel()
        self._leave(number, Outcome.ABANDONED.value, 0)
        self._left(number, 0)

    def _batches(self, told: Json) -> None:
        self._deciders.control.tell_batches(work_from(told), self)

    def _report(self, number: int, replica_id: str, body: Json) -> None:
        self._later(number, self._reported(number, replica_id, body))

    async def _reported(self, number: int, replica_id: str, body: Json) -> None:
        self._link.answer(number, await self._deciders.control.report(replica_id, body))

    def _reload(self, number: int) -> None:
        self._later(number, self._reloaded(number))

    async def _reloaded(self, number: int) -> None:
        done: Changes | ConfigError
        try:
            done = await self._deciders.control.reload()
        except ConfigError as error:
            done = error
        self._link.answer(number, reloaded_to(done))

    def _operate(self, number: int, verb: str, arguments: Json) -> None:
        self._later(number, self._operated(number, verb, arguments))

    async def _operated(self, number: int, verb: str, arguments: Json) -> None:
        self._link.answer(number, await self._deciders.control.operate(verb, arguments))

    def _metrics(self, number: int) -> None:
        self._later(number, self._measured(number))

    async def _measured(self, number: int) -> None:
        self._link.answer(number, await self._deciders.metrics())

    def _later(self, number: int, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do it whatever becomes of who asked: a reload that was begun is not left half done."""
        task = asyncio.get_running_loop().create_task(self._guarded(number, work), name="a worker's question")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _cancellable(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        self._waits[number] = task = self._later(number, work)
        task.add_done_callback(lambda _: self._waits.pop(number))

    async def _guarded(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except GatewayError as error:
            self._link.fail(number, error)
        except Exception:  # a fault of ours: the client gets a 500, as it would in one process
            self._log.exception("question_failed")
            self._link.fail(number, GatewayError("The gateway failed.", code="internal_error"))
