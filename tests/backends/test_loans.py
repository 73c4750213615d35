"""Seats that others give out by themselves: the limit holds, and whoever waits gets what is not in use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from backends.errors import QueueFull
from backends.fixed import FixedEndpoints
from backends.loans import AGAIN_S, Loan
from backends.model_places import ModelPlaces
from backends.places import Outcome, Want
from backends.replica_set import Rules

from .placing import Health, Launches, replicas, standing, taken, turns
from .turmoil import Turmoil

SERVED = Outcome.SERVED


class Site:
    """One model with one replica of limit 8, and those who borrow of it.

    called_in   loans that were, in order
    """

    def __init__(self, *, limit: int = 8, count: int = 1, **rules: Any) -> None:
        self.now = 100.0
        self.called_in: list[Loan] = []
        self.launcher = Launches(*replicas(count, limit))
        self.places = ModelPlaces("m", self.launcher, rules=Rules(**rules), health=Health(), clock=lambda: self.now)

    def borrow(self, borrowers: int = 2) -> Loan | None:
        loan: Loan | None = None

        def call_in() -> None:
            assert loan is not None
            self.called_in.append(loan)

        loan = self.places.lend(borrowers, call_in)
        return loan

    def borrowed(self, borrowers: int = 2) -> Loan:
        loan = self.borrow(borrowers)
        assert loan is not None
        return loan

    @property
    def in_flight(self) -> int:
        """As metrics and scaling see it."""
        return sum(replica.in_flight for replica in self.places.snapshot().replicas)

    def room(self) -> int:
        """How many find a seat at once; they all leave again."""
        seats = []
        while (seat := self.places.take_want(Want())) is not None:
            seats.append(seat)
        for seat in seats:
            seat.leave(SERVED)
        return len(seats)


@contextmanager
def site(**settings: Any) -> Iterator[Site]:
    site = Site(**settings)
    yield site
    site.places.close()


async def test_what_is_lent_counts_against_the_limit_and_for_nothing_else() -> None:
    with site() as m:
        assert m.room() == 8
        first, second = m.borrowed(), m.borrowed()
        assert (first.seats, second.seats) == (2, 2)
        assert m.room() == 4
        assert (m.in_flight, m.places.in_flight("r0")) == (0, 0)
        first.told(2, 0, 0.0)
        assert m.room() == 4
        assert (m.in_flight, m.places.in_flight("r0")) == (2, 2)
        first.told(0, 5, 2.5)
        assert m.in_flight == 0
        assert m.places.rate.total_s == 2.5


async def test_who_waits_gets_what_is_not_in_use_and_then_nothing_is_lent_for_a_while() -> None:
    with site(limit=4) as m:
        loans = [m.borrowed(), m.borrowed()]
        seats = [taken(m.places) for _ in range(2)]
        (waiting,) = await standing(m.places, Want())
        assert m.called_in == loans
        loans[0].told(1, 0, 0.0)
        loans[0].returned()
        await turns()
        assert not waiting.done(), "it was in use after all"
        loans[1].returned()
        assert (await waiting).endpoint.replica_id == "r0"
        assert loans[1].over
        assert not loans[0].over
        for seat in (*seats, waiting.result()):
            seat.leave(SERVED)
        assert m.borrow() is None
        m.now += AGAIN_S
        assert m.room() == 3
        assert m.borrowed().seats == 1


async def test_what_is_in_use_when_it_is_called_in_ends_one_by_one() -> None:
    with site() as m:
        loan = m.borrowed(1)
        loan.told(3, 0, 0.0)
        m.launcher.set(*replicas(2, 8))
        await turns()
        assert m.called_in == [loan]
        loan.returned()
        assert m.places.in_flight("r0") == 3
        for left in (2, 1, 0):
            loan.left(Want(), SERVED, 1.0, 0)
            assert (m.places.in_flight("r0"), loan.over) == (left, left == 0)
        assert m.room() == 16


async def test_a_full_queue_refuses_nobody_for_whom_there_is_a_seat_that_is_lent() -> None:
    with site(queue_size=0) as m:
        loan = m.borrowed(1)
        seats = [taken(m.places) for _ in range(4)]
        waiting = await standing(m.places, *[Want()] * 4)
        with pytest.raises(QueueFull):
            await m.places.wait_want(Want())
        loan.returned()
        seats += [await one for one in waiting]
        with pytest.raises(QueueFull):
            await m.places.wait_want(Want())
        for seat in seats:
            seat.leave(SERVED)


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_of_next_to_nothing_nothing_is_lent(limit: int) -> None:
    with site(limit=limit) as m:
        assert m.borrow() is None


async def test_where_there_is_something_to_decide_nothing_is_lent() -> None:
    with site(count=2) as two, site(count=0) as none, site() as fails, site(limit=4) as full:
        assert two.borrow() is None
        assert none.borrow() is None
        taken(fails.places).leave(Outcome.OVERLOADED)
        fails.now += 60.0
        assert fails.borrow() is None, "its engine has less room than it said"
        for _ in range(4):
            taken(full.places)
        assert full.borrow() is None


@pytest.mark.parametrize("outcome", [Outcome.UNREACHABLE, Outcome.TIMED_OUT, Outcome.OVERLOADED, Outcome.STRANGER])
async def test_an_only_replica_that_fails_is_lent_no_more(outcome: Outcome) -> None:
    with site() as m:
        loans = [m.borrowed(), m.borrowed()]
        loans[0].told(1, 0, 0.0)
        loans[0].left(Want(), outcome, 0.1, 0)
        assert m.called_in == loans
        assert m.borrow() is None


async def test_a_client_that_goes_away_changes_nothing() -> None:
    with site() as m:
        loan = m.borrowed()
        loan.told(1, 0, 0.0)
        loan.left(Want(), Outcome.ABANDONED, 0.1, 0)
        assert m.called_in == []
        assert m.in_flight == 0
        assert m.room() == 6


async def test_a_replica_that_leaves_is_not_free_before_its_loans_have_been_returned() -> None:
    """An agent ends a drained engine that has nothing in flight."""
    with site() as m:
        loan = m.borrowed()
        m.launcher.set(*[replace(one, replica_id="r9", port=1) for one in replicas(1)])
        assert m.places.in_flight("r0") == 2, "before anybody could hear of it"
        await turns()
        assert m.called_in == [loan]
        loan.told(1, 7, 0.7)
        assert m.places.in_flight("r0") == 2
        loan.returned()
        assert m.places.in_flight("r0") == 1
        loan.left(Want(), SERVED, 3.0, 10)
        assert m.places.in_flight("r0") == 0
        assert [load.replica_id for load in m.places.snapshot().replicas] == ["r9"]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.places.set_limit("r0", 4),
        lambda m: m.places.configure(Rules(max_in_flight=2), m.launcher, ""),
        lambda m: m.places.configure(Rules(), FixedEndpoints(replicas(1)), ""),
        lambda m: m.places.close(),
    ],
    ids=["limit", "rules", "source", "end"],
)
async def test_new_limits_new_rules_and_the_end_call_it_in(change: Callable[[Site], None]) -> None:
    with site(limit=None) as m:
        loan = m.borrowed()
        change(m)
        assert m.called_in == [loan]
        loan.returned()
        assert m.places.in_flight("r0") == 0


@pytest.mark.parametrize("returned", [False, True])
async def test_what_somebody_had_who_is_gone_is_free(returned: bool) -> None:
    with site(limit=4) as m:
        loan = m.borrowed(1)
        loan.told(2, 0, 0.0)
        seats = [taken(m.places) for _ in range(2)]
        (waiting,) = await standing(m.places, Want())
        if returned:
            loan.returned()
            await turns()
        loan.lost()
        (await waiting).leave(SERVED)
        for seat in seats:
            seat.leave(SERVED)
        assert m.room() == 4
        assert m.in_flight == 0


async def test_who_is_gone_is_not_asked_to_give_back() -> None:
    with site() as m:
        m.borrowed().lost()
        m.places.close()
        assert m.called_in == []


async def test_fairness_counts_what_borrowed_seats_have_used() -> None:
    """Somebody whose request was far larger than it was taken for comes after the others."""
    with site(limit=2) as m:
        loan = m.borrowed(1)
        loan.told(1, 0, 0.0)
        seat = taken(m.places)
        greedy, modest = await standing(m.places, Want("greedy", tokens=500), Want("modest", tokens=500))
        loan.returned()
        loan.left(Want("greedy", tokens=500), SERVED, 1.0, 50_000)
        (await modest).leave(SERVED)
        (await greedy).leave(SERVED)
        seat.leave(SERVED)


class Borrower:
    """As a worker is: it hears late, and tells late.

    loan    that seats are taken of; None where there is none, or it has been returned
    old     those that have been returned and are still in use
    used    seats of each loan that really are
    """

    def __init__(self, places: ModelPlaces) -> None:
        self._places = places
        self._served = 0
        self.loan: Loan | None = None
        self.asked_back = False
        self.old: list[Loan] = []
        self.used: Counter[Loan] = Counter()

    def borrow(self) -> None:
        if self.loan is None:
            self.asked_back = False
            self.loan = self._places.lend(1, self._hear)

    def _hear(self) -> None:
        self.asked_back = True

    def take(self) -> None:
        if self.loan is not None and self.used[self.loan] < self.loan.seats:
            self.used[self.loan] += 1

    def leave(self, outcome: Outcome) -> None:
        loan = self.loan
        if loan is not None and self.used[loan]:
            if outcome is SERVED:
                self._served += 1
            else:
                self.tell()
                loan.left(Want(), outcome, 0.1, 0)
            self.used[loan] -= 1
        elif self.old:
            self.old[0].left(Want(), outcome, 0.1, 0)
            self.used[self.old[0]] -= 1
            self.old = [one for one in self.old if self.used[one]]

    def tell(self) -> None:
        if self.loan is not None:
            self.loan.told(self.used[self.loan], self._served, self._served * 0.1)
            self._served = 0

    def give_back(self) -> None:
        if self.loan is not None and self.asked_back:
            self.tell()
            self.loan.returned()
            self.old = [one for one in (*self.old, self.loan) if self.used[one]]
            self.loan = None

    def die(self) -> None:
        for loan in self.loans:
            loan.lost()
        self.loan, self.old = None, []

    @property
    def loans(self) -> list[Loan]:
        return self.old if self.loan is None else [*self.old, self.loan]


class TurmoilWithLoans(Turmoil):
    """The same with somebody who borrows, and hears and tells at any time."""

    @initialize(limits=st.lists(st.integers(1, 7), min_size=1, max_size=3), alive=st.booleans())
    def begin(self, limits: list[int], alive: bool) -> None:
        super().begin(limits, alive)
        self.borrower = Borrower(self.places)

    @rule()
    def an_only_replica_in_good_order_is_borrowed_of(self) -> None:
        self.now += 60.0
        self.run(lambda: self.launcher.set(*self.endpoints[:1]))
        self.run(self.is_served)
        self.run(self.borrower.borrow)

    def is_served(self) -> None:
        seat = self.places.take_want(Want())
        if seat is not None:
            seat.leave(SERVED)

    @rule(verb=st.sampled_from(["borrow", "take", "take", "take", "tell", "give_back", "give_back", "die"]))
    def borrower_does(self, verb: str) -> None:
        self.run(getattr(self.borrower, verb))

    @rule(outcome=st.sampled_from(list(Outcome)))
    def borrower_leaves(self, outcome: Outcome) -> None:
        self.run(lambda: self.borrower.leave(outcome))

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "borrower"):
            return
        borrower = self.borrower
        there = {endpoint.replica_id for endpoint in self.launcher.endpoints("m")}
        for name, limit in self.limits.items():
            held = sum(seat.endpoint.replica_id == name for seat in self.held)
            loans = [loan for loan in borrower.loans if loan.replica.replica_id == name]
            known = sum(loan.used if name in there else loan.seats for loan in loans)
            assert self.places.in_flight(name) == held + known
            assert held + sum(borrower.used[loan] for loan in loans) <= limit
        assert self.places.waiting() == len(self.tasks)
        if self.tasks:
            assert borrower.loan is None or borrower.asked_back, "who waits gets what is not in use"

    def teardown(self) -> None:
        if hasattr(self, "borrower"):
            self.run(self.borrower.die)
        super().teardown()


TestTurmoilWithLoans = TurmoilWithLoans.TestCase
TestTurmoilWithLoans.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
