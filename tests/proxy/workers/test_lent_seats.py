"""Seats that main has lent to workers: no message where there is room, and none too many where there is none."""

from __future__ import annotations

import asyncio
from typing import Any

from backends.breaker import State
from backends.fixed import FixedEndpoint
from backends.model_places import ModelPlaces
from backends.places import Outcome, Seat
from backends.replica_set import Rules
from tests.backends.placing import Launches
from tests.waiting import until

from .desks import Main, Worker, call

LARGE = FixedEndpoint("r1", "127.0.0.1", 8001, limit=16)


def lent(worker: Worker) -> int:
    """Seats that a worker gives out at once; they all leave again."""
    seats = []
    while (seat := worker.places.take(call())) is not None:
        seats.append(seat)
    for seat in seats:
        seat.leave(Outcome.SERVED)
    return len(seats)


def taken(worker: Worker) -> Seat:
    seat = worker.places.take(call())
    assert seat is not None
    return seat


async def borrowing(worker: Worker) -> None:
    """Who has asked once is lent some."""
    (await worker.places.wait(call())).leave(Outcome.SERVED)
    await worker.settled()
    assert lent(worker) == 4


async def test_lent_seats_cost_no_message_and_main_knows_soon_what_is_in_use() -> None:
    main = Main(LARGE)
    places = main.places["m"]
    async with main.worker() as worker, main.worker() as other:
        assert lent(worker) == 0
        await borrowing(worker)
        assert lent(other) == 0, "each its own"
        told: list[Any] = []
        worker.link.tell = lambda *message: told.append(message)  # type: ignore[method-assign]
        seats = [taken(worker) for _ in range(3)]
        assert told == []
        assert worker.places.in_flight("r1") == 3
        del worker.link.tell
        await until(lambda: places.in_flight("r1") == 3)
        count = places.rate.count
        for seat in seats:
            assert (seat.endpoint.host, seat.endpoint.port) == ("127.0.0.1", 8001)
            seat.leave(Outcome.SERVED, 12)
            seat.leave(Outcome.SERVED, 12)
        await until(lambda: places.in_flight("r1") == 0)
        assert places.rate.count == count + 3
        assert worker.places.in_flight("r1") == 0


async def test_a_request_that_has_failed_somewhere_gets_no_lent_seat() -> None:
    async with Main(LARGE).worker() as worker:
        await borrowing(worker)
        assert worker.places.take(call(), frozenset({"r1"})) is None


async def test_who_waits_gets_what_another_worker_has_been_lent() -> None:
    main = Main(LARGE)
    async with main.worker() as one, main.worker() as other:
        await borrowing(one)
        kept = taken(one)
        seats = [await other.places.wait(call()) for _ in range(15)]
        assert lent(one) == 0
        assert main.places["m"].in_flight("r1") == 16
        waiting = asyncio.ensure_future(other.places.wait(call()))
        await until(main.places["m"].waiting)
        kept.leave(Outcome.SERVED)
        seats.append(await waiting)
        for seat in seats:
            seat.leave(Outcome.SERVED)
        await other.settled()
        assert main.places["m"].in_flight("r1") == 0
        assert one.desk.holds == other.desk.holds == (0, 0, 0)


async def test_whose_client_goes_away_is_counted_out_at_once() -> None:
    main = Main(LARGE)
    async with main.worker() as worker:
        await borrowing(worker)
        seat, _still_there = taken(worker), taken(worker)
        seat.leave(Outcome.ABANDONED)
        await worker.settled()
        assert main.places["m"].in_flight("r1") == 1
        taken(worker)


async def test_a_failure_at_a_lent_seat_is_known_in_main_at_once() -> None:
    main = Main(LARGE)
    async with main.worker() as one, main.worker() as other:
        await borrowing(one)
        await borrowing(other)
        seat, still_there = taken(one), taken(one)
        seat.leave(Outcome.UNREACHABLE)
        await one.settled()
        (load,) = main.places["m"].snapshot().replicas
        assert (load.breaker, load.in_flight) == (State.OPEN, 1)
        assert lent(one) == 0
        await until(lambda: not lent(other))
        still_there.leave(Outcome.SERVED)


async def test_what_was_lent_to_a_dead_worker_is_free_again() -> None:
    main = Main(LARGE)
    async with main.worker() as other:
        async with main.worker() as dying:
            await borrowing(dying)
            for _ in range(3):
                taken(dying)
            await until(lambda: dying.desk.holds == (3, 0, 0))
            seats = [await other.places.wait(call()) for _ in range(12)]
            waiting = [asyncio.ensure_future(other.places.wait(call())) for _ in range(4)]
            await until(waiting[0].done)
            assert not any(one.done() for one in waiting[1:]), "three are still in use"
        seats += [await one for one in waiting]
        assert dying.desk.holds == (0, 0, 0)
        for seat in seats:
            seat.leave(Outcome.SERVED)


async def test_a_drained_replica_is_called_in_though_nobody_asks_for_anything() -> None:
    main = Main()
    launcher = Launches(LARGE)
    main.places["m"] = places = ModelPlaces("m", launcher, rules=Rules())
    async with main.worker() as worker:
        await borrowing(worker)
        seat = taken(worker)
        launcher.set(FixedEndpoint("r2", "127.0.0.1", 8002))
        assert places.in_flight("r1") == 4, "nobody knows yet how many it has"
        await until(lambda: places.in_flight("r1") == 1)
        assert worker.places.take(call()) is None
        assert worker.places.in_flight("r1") == 1
        seat.leave(Outcome.SERVED)
        await until(lambda: places.in_flight("r1") == 0)
        again = await worker.places.wait(call())
        assert again.endpoint.replica_id == "r2"
        again.leave(Outcome.SERVED)
        places.close()
