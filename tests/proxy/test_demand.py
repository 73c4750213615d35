"""What the launcher is told of the demand."""

from __future__ import annotations

import asyncio
from pathlib import Path

from backends.base import Call
from backends.fixed import FixedEndpoint, FixedEndpoints
from backends.model_places import ModelPlaces
from backends.places import Outcome
from backends.replica_set import Rules
from proxy.demand import Demands, median_of
from proxy.metrics.families import FIRST_TOKEN

CALL = Call("req_1", "/v1/chat/completions", "m", {"model": "m"}, b"{}")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def counts(**by_bucket: int) -> list[int]:
    found = [0] * (len(FIRST_TOKEN.bounds) + 1)
    for bucket, count in by_bucket.items():
        found[int(bucket.removeprefix("b"))] = count
    return found


async def test_what_is_in_flight_and_queued_is_told_and_when_there_was_a_request(tmp_path: Path) -> None:
    endpoints = FixedEndpoints([FixedEndpoint("r1", "127.0.0.1", 1, limit=1)])
    places = ModelPlaces("m", endpoints, rules=Rules())
    clock = Clock()
    demands = Demands(lambda: {"m": places}, engine_of=lambda m: "vllm", first_tokens=lambda m: [], clock=clock)
    assert demands.of("m").last_request_at is None
    seat = places.take(CALL)
    assert seat is not None
    waiting = asyncio.create_task(places.wait(CALL), name="waiting")
    await asyncio.sleep(0)
    told = demands.of("m")
    assert (told.in_flight, told.queued, told.capacity, told.last_request_at) == (1, 1, 1.0, 1000.0)
    seat.leave(Outcome.SERVED)
    (await waiting).leave(Outcome.SERVED)
    clock.now += 10  # a request that came and went between two looks is seen as well
    assert demands.of("m").last_request_at == 1010.0
    clock.now += 10
    told = demands.of("m")
    assert (told.in_flight, told.queued, told.last_request_at) == (0, 0, 1010.0)
    places.close()


def test_a_model_that_nobody_knows_has_no_demand() -> None:
    demands = Demands(dict, engine_of=lambda m: "vllm", first_tokens=lambda m: [])
    assert not demands.of("m").any


def test_the_median_is_of_the_last_minute() -> None:
    clock = Clock()
    seen = counts(b2=10)
    places = ModelPlaces("m", FixedEndpoints([]), rules=Rules())
    demands = Demands(lambda: {"m": places}, engine_of=lambda m: "vllm", first_tokens=lambda m: seen, clock=clock)
    assert demands.of("m").ttft_s is None  # what was before the first look is nobody's minute
    clock.now += 30
    seen = counts(b2=10, b5=4)
    assert demands.of("m").ttft_s == FIRST_TOKEN.bounds[5]
    clock.now += 200
    demands.of("m")
    assert demands.of("m").ttft_s is None
    places.close()


def test_the_median_of_a_histogram() -> None:
    assert median_of((1.0, 2.0), [0, 0, 0]) is None
    assert median_of((1.0, 2.0), [3, 1, 0]) == 1.0
    assert median_of((1.0, 2.0), [1, 1, 5]) == float("inf")
