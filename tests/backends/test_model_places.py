"""Seats and queue of one model, in one loop: who gets in, who waits, who is sent away, and what is left: nothing."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import settings

from backends.breaker import State
from backends.errors import NotTheEngine, QueueFull, Unavailable
from backends.fixed import FixedEndpoint, FixedEndpoints
from backends.model_places import ModelPlaces
from backends.places import Outcome, Priority, Want
from backends.replica_set import Rules
from tests.waiting import until

from .placing import Health, Launches, call, places_of, replicas, standing, taken, turns
from .turmoil import Turmoil

BATCH, INTERACTIVE = Priority.BATCH, Priority.INTERACTIVE
SERVED, UNREACHABLE, STRANGER = Outcome.SERVED, Outcome.UNREACHABLE, Outcome.STRANGER


# -- seats -----------------------------------------------------------------------------------------------------------


def test_no_replica_gets_more_than_its_limit() -> None:
    places = places_of(*replicas(3, limit=2))
    seats = [taken(places) for _ in range(6)]
    assert places.take(call()) is None
    assert Counter(seat.endpoint.replica_id for seat in seats) == {"r0": 2, "r1": 2, "r2": 2}
    seats[3].leave(SERVED)
    assert taken(places).endpoint is seats[3].endpoint


def test_a_seat_that_is_left_twice_counts_once() -> None:
    places = places_of(*replicas(1))
    seat = taken(places)
    seat.leave(SERVED)
    seat.leave(SERVED)
    assert places.in_flight("r0") == 0


def test_a_heavier_replica_gets_more() -> None:
    light, heavy = replicas(2, limit=100)
    places = places_of(light, replace(heavy, weight=3.0))
    assert Counter(taken(places).endpoint.replica_id for _ in range(40)) == {"r0": 10, "r1": 30}


def test_a_long_prefix_stays_with_one_replica_and_short_prompts_are_spread() -> None:
    places = places_of(*replicas(3, limit=100))
    prompt = call(text="x" * 2000)
    one_by_one = set()
    for _ in range(20):
        seat = taken(places, prompt)
        one_by_one.add(seat.endpoint.replica_id)
        seat.leave(SERVED)
    assert len(one_by_one) == 1
    assert len({taken(places).endpoint.replica_id for _ in range(3)}) == 3


def test_a_popular_prefix_overflows_to_others() -> None:
    places = places_of(*replicas(3, limit=100))
    where = Counter(taken(places, call(text="x" * 2000)).endpoint.replica_id for _ in range(60))
    assert len(where) == 3
    assert max(where.values()) <= 25


def test_without_affinity_nobody_looks_at_the_prompt() -> None:
    places = places_of(*replicas(3, limit=100), affinity=False)
    where = Counter(taken(places, call(text="x" * 2000)).endpoint.replica_id for _ in range(30))
    assert set(where.values()) == {10}


@pytest.mark.parametrize(("engine", "limit"), [("tgi", 120), ("llamacpp", 4), ("tei", 480), ("vllm", 320)])
def test_limits_come_from_the_engine_s_family_then_from_the_engine_then_from_the_configuration(
    engine: str, limit: int
) -> None:
    places = ModelPlaces("m", FixedEndpoints(replicas(1, limit=None)), engine=engine)
    assert places.take(call())
    assert places.limits() == {"r0": limit}
    places.set_limit("r0", 16)
    assert places.limits()["r0"] in (15, 16, 20)
    places.configure(Rules(max_in_flight=3), FixedEndpoints(replicas(1, limit=None)), engine)
    assert places.limits() == {"r0": 3}
    places.configure(Rules(max_in_flight=3), FixedEndpoints(replicas(1, limit=7)), engine)
    assert places.limits() == {"r0": 7}
    assert places.in_flight("r0") == 1


async def test_an_engine_without_room_gets_less_and_slowly_more_again() -> None:
    places = places_of(*replicas(1, limit=8))
    seats = [taken(places) for _ in range(8)]
    seats.pop().leave(Outcome.OVERLOADED)
    assert places.limits() == {"r0": 6}
    assert places.take(call()) is None  # it rests, too
    for seat in seats:
        seat.leave(SERVED)
    await until(lambda: places.take(call()))
    assert places.snapshot().replicas[0].ceiling == 8


def test_replicas_come_and_go_and_what_they_have_is_still_counted() -> None:
    launcher = Launches(*replicas(2))
    places = ModelPlaces("m", launcher)
    seats = [taken(places) for _ in range(4)]
    launcher.set(*replicas(1))
    assert places.take(call()) is None
    assert places.in_flight("r1") == 2
    for seat in seats:
        seat.leave(SERVED)
    assert places.in_flight("r1") == 0
    assert {load.replica_id for load in places.snapshot().replicas} == {"r0"}


# -- replicas that fail ----------------------------------------------------------------------------------------------


def test_one_that_refuses_is_passed_over_and_the_only_one_is_asked_all_the_same() -> None:
    places = places_of(*replicas(2, limit=50))
    taken(places, avoid=frozenset({"r0"})).leave(UNREACHABLE)
    assert {taken(places).endpoint.replica_id for _ in range(20)} == {"r0"}
    alone = places_of(*replicas(1))
    taken(alone).leave(UNREACHABLE)
    assert alone.take(call())


def test_where_all_are_out_the_least_bad_is_asked() -> None:
    places = places_of(*replicas(3))
    for _ in range(3):
        taken(places).leave(UNREACHABLE)
    assert {load.breaker for load in places.snapshot().replicas} == {State.OPEN}
    assert {taken(places).endpoint.replica_id for _ in range(3)} == {"r0", "r1", "r2"}


async def test_after_its_cool_down_its_health_is_asked_and_no_request_has_to_try() -> None:
    now = 0.0
    health = Health(alive=False)
    places = ModelPlaces("m", FixedEndpoints(replicas(2, 50)), health=health, clock=lambda: now)
    bad = taken(places)
    bad.leave(UNREACHABLE)
    for later in (3.0, 7.0, 8.0, 20.0):
        now = later
        assert taken(places).endpoint is not bad.endpoint
        await turns()
    assert health.asked == [bad.endpoint.replica_id] * 2  # at 7, and again when the longer cool-down was over
    health.alive = True
    now = 100.0
    taken(places)
    await turns()
    assert bad.endpoint in [taken(places).endpoint for _ in range(30)]


# -- strangers -------------------------------------------------------------------------------------------------------


async def test_a_stranger_is_told_of_once_and_gets_nothing_until_its_key_has_proven_it() -> None:
    now = 0.0
    health = Health(alive=False)
    launcher = Launches(*replicas(2, 50))
    places = ModelPlaces("m", launcher, health=health, clock=lambda: now)
    on_their_way = [taken(places) for _ in range(4)]
    for seat in on_their_way:
        if seat.endpoint.replica_id == "r0":
            seat.leave(STRANGER)
    assert launcher.strangers == [("r0", False)]
    await turns()
    assert health.asked == ["r0"], "at once: somebody on the way may have refused that one request"
    assert {taken(places).endpoint.replica_id for _ in range(10)} == {"r1"}
    now = 100.0
    taken(places)
    await turns()
    assert health.asked == ["r0", "r0"]
    health.alive = True
    now = 200.0
    taken(places)
    await turns()
    assert launcher.strangers == [("r0", False), ("r0", True)]
    assert "r0" in {taken(places).endpoint.replica_id for _ in range(20)}


async def test_a_stranger_that_comes_while_nobody_asks_is_found_by_the_probe() -> None:
    now = 0.0
    launcher = Launches(*replicas(2, 50))
    places = ModelPlaces("m", launcher, health=Health(ours=False), clock=lambda: now)
    dead = taken(places)
    dead.leave(UNREACHABLE)
    now = 10.0
    taken(places)
    await turns()
    assert launcher.strangers == [(dead.endpoint.replica_id, False)]


async def test_a_request_that_alone_was_refused_costs_nobody_else_anything() -> None:
    """A proxy may refuse what a prompt says: by its key the engine is found to be ours all the same."""
    places = places_of(*replicas(1, 50), health=Health())
    taken(places).leave(STRANGER)
    seat = await places.wait(call())
    assert seat.endpoint.replica_id == "r0"


async def test_an_only_replica_that_is_a_stranger_gets_no_prompt_and_the_refusal_names_the_key() -> None:
    health = Health(alive=False)
    places = places_of(*replicas(1, 50), health=health)
    taken(places).leave(STRANGER)
    with pytest.raises(NotTheEngine, match="refused the gateway's own key") as refused:
        await places.wait(call())
    assert (refused.value.status, refused.value.retry_after_s) == (502, 5.0)
    with pytest.raises(NotTheEngine):
        await places.wait(call())
    assert places.take(call()) is None


async def test_who_waits_while_a_stranger_is_all_there_is_gets_its_successor() -> None:
    launcher = Launches(*replicas(1, 50), hope="m is starting.")
    places = ModelPlaces("m", launcher, health=Health(alive=False))
    taken(places).leave(STRANGER)
    (waiting,) = await standing(places, Want(avoid=frozenset({"r0"})))
    await turns()
    assert not waiting.done()
    launcher.set(*replicas(2, 50))
    assert (await asyncio.wait_for(waiting, 5)).endpoint.replica_id == "r1"


async def test_another_key_or_another_address_is_another_engine() -> None:
    (known,) = replicas(1, 50)
    for other in (replace(known, api_key="new"), replace(known, port=1)):
        launcher = Launches(known)
        places = ModelPlaces("m", launcher, health=Health(alive=False))
        taken(places).leave(STRANGER)
        launcher.set(other)
        assert taken(places).endpoint is other


# -- the queue -------------------------------------------------------------------------------------------------------


async def test_who_finds_no_room_waits_its_turn_and_nobody_overtakes() -> None:
    places = places_of(*replicas(1, limit=1))
    seat = taken(places)
    first, second = await standing(places, Want("a"), Want("a"))
    seat.leave(SERVED)
    assert places.take(call()) is None
    (await first).leave(SERVED)
    (await second).leave(SERVED)
    assert (places.waiting(), places.in_flight("r0")) == (0, 0)


async def test_interactive_before_batch_and_owners_in_turn() -> None:
    places = places_of(*replicas(1, limit=1))
    seat = taken(places)
    wants = [Want("a", BATCH), Want("a"), Want("a"), Want("b"), Want("c", BATCH)]
    names = ["a batch", "a1", "a2", "b", "c batch"]
    tasks = dict(zip(names, await standing(places, *[replace(want, tokens=1024) for want in wants]), strict=True))
    order: list[str] = []
    while tasks:
        seat.leave(SERVED)
        await turns()
        (name,) = [name for name, task in tasks.items() if task.done()]
        order.append(name)
        seat = tasks.pop(name).result()
    seat.leave(SERVED)
    assert order == ["a1", "b", "a2", "a batch", "c batch"]


async def test_a_full_queue_refuses_at_once_and_says_how_long_it_would_take() -> None:
    now = 0.0
    places = ModelPlaces(
        "m", FixedEndpoints(replicas(1, limit=1)), rules=Rules(queue_size=2), clock=lambda: time.monotonic() + now
    )
    seat = taken(places)
    now = 4.0
    seat.leave(SERVED)
    seat = taken(places)
    tasks = await standing(places, Want(), Want())
    with pytest.raises(QueueFull) as caught:
        await places.wait(call())
    assert caught.value.status == 429
    assert caught.value.retry_after_s in (12.0, 13.0)  # two before it and itself, 4 s each
    assert "2 requests wait already" in caught.value.message
    assert places.snapshot().full == 1
    seat.leave(SERVED)
    for task in tasks:
        (await task).leave(SERVED)


async def test_who_waits_too_long_is_told_so() -> None:
    waits: list[tuple[str, Priority, float]] = []
    places = ModelPlaces(
        "m",
        FixedEndpoints(replicas(1, limit=1)),
        rules=Rules(queue_wait_s=0.05),
        on_wait=lambda *wait: waits.append(wait),
    )
    seat = taken(places)
    with pytest.raises(Unavailable) as caught:
        await places.wait(call(priority=1))
    assert (caught.value.status, caught.value.retry_after_s) == (503, 5.0)
    assert [(model, priority) for model, priority, _ in waits] == [("m", BATCH)]
    assert waits[0][2] >= 0.05
    assert (places.waiting(), places.snapshot().late) == (0, 1)
    seat.leave(SERVED)


async def test_a_deadline_ends_the_wait_before_the_queue_s_own_limit() -> None:
    places = places_of(*replicas(1, limit=1))
    seat = taken(places)
    with pytest.raises(Unavailable) as caught:
        await places.wait(call(deadline=time.monotonic() + 0.15))
    assert caught.value.code == "deadline_exceeded"
    seat.leave(SERVED)


async def test_who_goes_away_leaves_the_queue_and_costs_nobody_a_seat() -> None:
    places = places_of(*replicas(1, limit=1))
    seat = taken(places)
    gone, next_one = await standing(places, Want("a"), Want("b"))
    gone.cancel()
    seat.leave(SERVED)  # in the very moment in which the first one goes
    with pytest.raises(asyncio.CancelledError):
        await gone
    (await next_one).leave(SERVED)
    assert (places.waiting(), places.in_flight("r0")) == (0, 0)


async def test_who_goes_away_with_its_seat_just_given_gives_it_back() -> None:
    places = places_of(*replicas(1, limit=1))
    seat = taken(places)
    (gone,) = await standing(places, Want())
    seat.leave(SERVED)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert places.in_flight("r0") == 0


async def test_without_a_replica_requests_wait_for_one() -> None:
    launcher = Launches()
    places = ModelPlaces("m", launcher, rules=Rules(queue_wait_s=0.01))
    tasks = await standing(places, Want(), Want(), Want())
    assert launcher.needed == 3
    await asyncio.sleep(0.05)  # longer than a request may wait where there are replicas
    assert places.waiting() == 3
    launcher.set(*replicas(1, limit=3))
    for task in tasks:
        (await task).leave(SERVED)


async def test_a_replica_that_comes_in_the_moment_in_which_somebody_begins_to_wait_is_seen() -> None:
    launcher = Launches()
    places = ModelPlaces("m", launcher, health=Health())
    asked = asyncio.create_task(places.wait_want(Want()), name="asks")
    await asyncio.sleep(0)  # it is in line, and nobody listens yet
    launcher.set(*replicas(1))
    (await asked).leave(SERVED)


async def test_a_cold_start_that_takes_too_long_says_why() -> None:
    places = ModelPlaces("m", Launches(), rules=Rules(replica_wait_s=0.05))
    with pytest.raises(Unavailable) as caught:
        await places.wait(call())
    assert caught.value.message == "m is starting: job 7 is pending."


async def test_where_there_is_no_hope_nobody_waits() -> None:
    launcher = Launches()
    places = ModelPlaces("m", launcher)
    tasks = await standing(places, Want(), Want())
    launcher.set(hope=None)
    for task in tasks:
        with pytest.raises(Unavailable) as caught:
            await task
        assert (caught.value.message, caught.value.retry_after_s) == ("m cannot start: out of memory.", 30.0)
    with pytest.raises(Unavailable):
        await places.wait(call())


async def test_when_the_last_replica_goes_those_in_line_wait_as_for_a_first_one() -> None:
    launcher = Launches(*replicas(1, limit=1))
    places = ModelPlaces("m", launcher, rules=Rules(queue_wait_s=0.2, replica_wait_s=30.0))
    seat = taken(places)
    (task,) = await standing(places, Want())
    launcher.set()
    seat.leave(Outcome.BROKE_OFF)
    await asyncio.sleep(0.3)
    launcher.set(*replicas(1))
    (await task).leave(SERVED)


async def test_a_request_that_failed_somewhere_waits_for_another_and_a_full_queue_does_not_stop_it() -> None:
    places = places_of(*replicas(2, limit=1), queue_size=1)
    one, other = taken(places), taken(places)
    failed = one.endpoint.replica_id
    (before,) = await standing(places, Want("x", avoid=frozenset({failed})))
    (task,) = await standing(places, Want(avoid=frozenset({failed})))
    one.leave(SERVED)
    await turns()
    assert places.waiting() == 2  # there is room, but not for them
    other.leave(SERVED)
    seat = await before
    assert seat.endpoint is other.endpoint
    seat.leave(SERVED)
    (await task).leave(SERVED)


async def test_a_replica_comes_back_for_those_who_wait_for_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.breaker.COOL_DOWN_S", 0.05)
    launcher = Launches(*replicas(1))
    places = ModelPlaces("m", launcher)
    taken(places).leave(UNREACHABLE)
    seat = await asyncio.wait_for(places.wait(call(), frozenset({"r0"})), 10)
    assert seat.endpoint.replica_id == "r0"
    seat.leave(SERVED)


async def test_closing_sends_everybody_away() -> None:
    places = places_of(*replicas(1, limit=1))
    seat = taken(places)
    tasks = await standing(places, Want(), Want())
    places.close()
    for task in tasks:
        with pytest.raises(Unavailable):
            await task
    seat.leave(SERVED)


async def test_more_room_by_a_learned_limit_is_given_out_at_once() -> None:
    places = ModelPlaces("m", FixedEndpoints(replicas(1, limit=None)), engine="llamacpp")
    seats = [taken(places) for _ in range(4)]
    tasks = await standing(places, Want(), Want())
    places.set_limit("r0", 6)
    for seat in (*seats, *[await task for task in tasks]):
        seat.leave(SERVED)


# -- many at once ----------------------------------------------------------------------------------------------------


async def test_fifty_owners_in_bursts_are_served_alike_and_nobody_starves() -> None:
    """Three replicas, two at a time; one owner asks for ten times as much as each of the others."""
    random_ = random.Random(7)
    places = places_of(*replicas(3, limit=2), queue_size=10_000)
    served = Counter[str]()
    at_half: dict[str, int] = {}
    total = 0

    async def one(owner: str, priority: Priority) -> None:
        nonlocal total
        tokens = random_.randint(200, 2000)
        seat = await places.wait_want(Want(owner, priority, tokens))
        loads = places.snapshot().replicas
        assert all(load.in_flight <= 2 for load in loads)
        for _ in range(random_.randint(1, 4)):
            await asyncio.sleep(0)
        served[owner] += tokens
        total += 1
        if total == 500:
            at_half.update(served)
        seat.leave(SERVED, tokens)

    owners = [f"o{number}" for number in range(50)]
    asked = [(owner, INTERACTIVE) for owner in owners for _ in range(20)]
    asked += [("o0", INTERACTIVE)] * 200 + [("batch", BATCH)] * 50
    random_.shuffle(asked)
    tasks = [asyncio.create_task(one(*who), name="one") for who in asked]
    await asyncio.gather(*tasks)
    assert total == 1250
    fair = sum(at_half.values()) / 50
    assert "batch" not in at_half
    assert set(at_half) == set(owners)
    assert all(abs(tokens - fair) < 3500 for tokens in at_half.values()), at_half
    assert places.waiting() == 0
    assert all(load.in_flight == 0 for load in places.snapshot().replicas)


TestTurmoil = Turmoil.TestCase
TestTurmoil.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


# -- replicas whose time is nearly over ------------------------------------------------------------------------------


def ending(name: str, in_s: float | None) -> FixedEndpoint:
    return FixedEndpoint(name, "127.0.0.1", 9000, limit=8, ends_at=None if in_s is None else time.time() + in_s)


def test_a_request_that_would_outlive_a_replica_goes_to_another_one() -> None:
    places = places_of(ending("dying", 3.0), ending("young", 86400.0))
    assert {taken(places).endpoint.replica_id for _ in range(4)} == {"young"}


def test_how_long_is_long_enough_follows_what_requests_take() -> None:
    places = places_of(ending("dying", 60.0), ending("young", None))
    assert {taken(places).endpoint.replica_id for _ in range(4)} == {"dying", "young"}
    places.rate.served(40.0)
    assert {taken(places).endpoint.replica_id for _ in range(4)} == {"young"}


def test_a_dying_replica_is_better_than_none() -> None:
    assert taken(places_of(ending("dying", 1.0))).endpoint.replica_id == "dying"
    both = places_of(ending("dying", 1.0), ending("dying too", 1.0))
    assert {taken(both).endpoint.replica_id for _ in range(4)} == {"dying", "dying too"}
