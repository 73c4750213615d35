"""Batches ask for replicas: by what is left and by when, not by the lines that they have in flight."""

from __future__ import annotations

import asyncio

from backends.base import Call
from backends.fixed import FixedEndpoint, FixedEndpoints
from backends.model_places import ModelPlaces
from backends.places import Outcome, Priority
from backends.replica_set import Rules
from proxy.control import BatchWork
from proxy.demand import FORGOTTEN_S, Batches, Demands


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def line() -> Call:
    return Call("req_1", "/v1/chat/completions", "m", {"model": "m"}, b"{}", priority=Priority.BATCH)


def demands(batches: Batches) -> tuple[Demands, ModelPlaces]:
    endpoints = FixedEndpoints([FixedEndpoint("r1", "127.0.0.1", 1, limit=8)])
    places = ModelPlaces("m", endpoints, rules=Rules())
    return Demands(
        lambda: {"m": places}, engine_of=lambda m: "vllm", batches=batches, first_tokens=lambda m: []
    ), places


async def test_lines_in_flight_are_no_requests_for_they_take_whatever_there_is() -> None:
    batches = Batches()
    found, places = demands(batches)
    seats = [places.take(line()) for _ in range(8)]
    assert found.of("m").in_flight == 8
    batches.tell({"m": BatchWork(replicas=2, in_flight=8)})
    told = found.of("m")
    assert (told.in_flight, told.queued, told.batch_replicas) == (0, 0, 2)
    for seat in seats:
        assert seat is not None
        seat.leave(Outcome.SERVED)
    places.close()


async def test_requests_of_others_are_still_seen_beside_them() -> None:
    batches = Batches()
    found, places = demands(batches)
    seats = [places.take(line()) for _ in range(8)]
    batches.tell({"m": BatchWork(replicas=1, in_flight=5)})
    assert found.of("m").in_flight == 3
    for seat in seats:
        assert seat is not None
        seat.leave(Outcome.SERVED)
    places.close()


def test_processes_see_the_same_batches_and_have_lines_of_their_own() -> None:
    batches = Batches()
    batches.tell({"m": BatchWork(3, 10)}, "one")
    batches.tell({"m": BatchWork(2, 7)}, "other")
    assert batches.of("m") == BatchWork(3, 17)
    batches.forget("one")
    assert batches.of("m") == BatchWork(2, 7)


def test_what_nobody_says_any_more_is_forgotten() -> None:
    clock = Clock()
    batches = Batches(clock)
    batches.tell({"m": BatchWork(3, 10)})
    clock.now += FORGOTTEN_S + 1
    assert batches.of("m") == BatchWork(0, 0)


def test_batch_work_alone_keeps_a_model_from_being_idle() -> None:
    batches = Batches()
    found, places = demands(batches)
    batches.tell({"m": BatchWork(1, 0)})
    assert found.of("m").any
    places.close()


async def test_lines_that_end_are_no_sign_of_somebody_who_waits_for_answers() -> None:
    """A model whose only work is a batch is idle for everybody else: its replicas may be the batches' own kind."""
    batches = Batches()
    found, places = demands(batches)
    batches.tell({"m": BatchWork(replicas=1, in_flight=1)})
    seat = places.take(line())
    assert seat is not None
    found.of("m")
    seat.leave(Outcome.SERVED)
    told = found.of("m")
    assert told.last_request_at is not None
    assert told.interactive_at is None
    batches.tell({})
    seat = places.take(line())
    assert seat is not None
    assert found.of("m").interactive_at is not None, "one of a key's, since no batch has lines in flight"
    seat.leave(Outcome.SERVED)
    places.close()


async def test_lines_that_wait_or_have_just_begun_are_asked_for_by_batches_alone() -> None:
    """They are in the places up to a second before batches tell of them."""
    batches = Batches()
    found, places = demands(batches)
    batches.tell({"m": BatchWork(replicas=2, in_flight=0)})
    seats = [places.take(line()) for _ in range(8)]
    waits = asyncio.create_task(places.wait(line()), name="a line that waits")
    await asyncio.sleep(0)
    told = found.of("m")
    assert (told.in_flight, told.queued) == (8, 1)
    assert (told.interactive, told.interactive_at) == (0, None)
    assert told.without_batches.any is False
    waits.cancel()
    await asyncio.gather(waits, return_exceptions=True)
    for seat in seats:
        assert seat is not None
        seat.leave(Outcome.SERVED)
    places.close()
