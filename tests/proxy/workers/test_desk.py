"""A worker's places and limits over a link: decided in main, and all given back when the worker is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog

from backends.base import Call
from backends.breaker import State
from backends.errors import GatewayError, InvalidRequest, NotFound, QueueFull, RateLimited, Unavailable
from backends.fixed import FixedEndpoint, FixedEndpoints
from backends.model_places import ModelPlaces
from backends.places import Outcome, Places, Seat, Want
from backends.replica_set import Rules
from proxy.config import Config, ConfigError, parse
from proxy.limits.local import Limits
from proxy.limits.seam import Headers
from proxy.metrics import State as Numbers
from proxy.metrics import merged
from proxy.principals import ANYBODY, Allowance, Principal
from proxy.reload import Changes
from proxy.workers.desk import TOLD_AT_MOST, Deciders, Desk, Principals
from proxy.workers.link import Link, LinkLost
from proxy.workers.remote_control import RemoteControl
from proxy.workers.remote_limits import RemoteLimits
from proxy.workers.remote_places import AllPlaces, RemotePlaces
from tests.backends.placing import Launches
from tests.waiting import until

from .pair import linked

CONFIG = parse('[models.m]\nengine = "vllm"\nurls = ["http://127.0.0.1:1"]')
ENGINE = FixedEndpoint("r1", "127.0.0.1", 8001, api_key="engine-key", weight=2.0, limit=2)


def call(**given: Any) -> Call:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    return Call("req_1", "/v1/chat/completions", "m", body, b"{}", **given)


@dataclass
class FakeControl:
    """What main has beside places."""

    limits: Limits = field(default_factory=Limits)
    reports: list[tuple[str, Any]] = field(default_factory=list)
    reload_goes: asyncio.Event = field(default_factory=asyncio.Event)
    reloads: int = 0
    mistakes: list[str] = field(default_factory=list)
    batches: dict[str, Any] = field(default_factory=dict)

    async def report(self, replica_id: str, body: dict[str, Any]) -> dict[str, Any]:
        if body.get("fault") == "ours":
            raise ZeroDivisionError
        if body.get("fault"):
            raise InvalidRequest("Not a report.", code="bad_report")
        self.reports.append((replica_id, body))
        return {"command": "run", "in_flight": 3}

    def tell_batches(self, work: Any, process: object = None) -> None:
        self.batches = work

    async def operate(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["model"] != "m":
            raise NotFound("No such model.", param="model", code="model_not_found")
        return {"verb": verb, **arguments}

    async def reload(self) -> Changes:
        await self.reload_goes.wait()
        self.reloads += 1
        if self.mistakes:
            raise ConfigError("config.toml", self.mistakes)
        return Changes(added=("n",), limits=True)


class Main:
    """The main process' half. `worker()` is one worker."""

    def __init__(self, *endpoints: FixedEndpoint, rules: Rules | None = None, limits: Limits | None = None) -> None:
        self.places: dict[str, ModelPlaces] = {
            "m": ModelPlaces("m", FixedEndpoints(endpoints or (ENGINE,)), rules=rules or Rules(queue_size=3))
        }
        self.control = FakeControl(limits or Limits())
        self.principals = Principals()

    def deciders(self) -> Deciders:
        async def metrics() -> Numbers:
            return {"slurmgate_requests_in_flight": [([], 5)]}

        return Deciders(self.control, self.places.get, metrics, workers=2)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Worker]:
        desk = Desk(self.deciders(), self.principals, structlog.get_logger())
        all_places = AllPlaces()
        async with linked(asked=desk.asked(), told=desk.told(), worker=all_places.told()) as pair:
            desk.open(pair.main)
            all_places.open(pair.worker)
            yield Worker(desk, pair.worker, all_places.of("m"), all_places)
            pair.worker.close()
            await until(lambda: not pair.main.is_open)
            desk.gone()


@dataclass
class Worker:
    desk: Desk
    link: Link
    places: RemotePlaces
    all: AllPlaces

    async def settled(self) -> None:
        """Until main has read everything that was said."""
        await self.link.ask("metrics")


async def test_a_seat_is_taken_in_main_and_left_there() -> None:
    main = Main()
    async with main.worker() as worker:
        places: Places = worker.places
        assert places.take(call()) is None, "nothing is decided in a worker, and nothing has been lent"
        seat = await places.wait(call())
        assert (seat.endpoint.host, seat.endpoint.port) == ("127.0.0.1", 8001)
        assert (seat.endpoint.api_key, seat.endpoint.weight, seat.endpoint.limit) == ("engine-key", 2.0, 2)
        assert "engine-key" not in repr(seat.endpoint)
        assert main.places["m"].in_flight("r1") == places.in_flight("r1") == 1
        seat.leave(Outcome.SERVED, 17)
        seat.leave(Outcome.SERVED, 17)
        await worker.settled()
        assert main.places["m"].in_flight("r1") == places.in_flight("r1") == 0


async def test_the_limit_of_a_replica_holds_over_all_workers() -> None:
    main = Main()
    async with main.worker() as one, main.worker() as other:
        seats = [await one.places.wait(call()), await other.places.wait(call())]
        waiting = asyncio.ensure_future(other.places.wait(call()))
        await until(main.places["m"].waiting)
        assert other.places.waiting() == 1
        seats[0].leave(Outcome.SERVED)
        seat = await waiting
        assert main.places["m"].in_flight("r1") == 2
        assert (one.places.in_flight("r1"), other.places.in_flight("r1")) == (0, 2)
        for taken in (seats[1], seat):
            taken.leave(Outcome.SERVED)


async def test_a_full_queue_and_a_long_wait_are_refused_in_a_worker_as_in_main() -> None:
    main = Main(rules=Rules(queue_size=1, queue_wait_s=0.05))
    async with main.worker() as worker:
        seats = [await worker.places.wait(call()) for _ in range(2)]
        waiting = asyncio.ensure_future(worker.places.wait(call()))
        await until(main.places["m"].waiting)
        with pytest.raises(QueueFull, match="m is busy: 1 requests wait already"):
            await worker.places.wait(call())
        with pytest.raises(Unavailable, match="m is busy"):
            await waiting
        for seat in seats:
            seat.leave(Outcome.SERVED)


async def test_a_request_that_gives_up_waiting_leaves_the_queue() -> None:
    main = Main()
    async with main.worker() as worker:
        seats = [await worker.places.wait(call()) for _ in range(2)]
        waiting = asyncio.ensure_future(worker.places.wait(call()))
        await until(main.places["m"].waiting)
        waiting.cancel()
        await until(lambda: not main.places["m"].waiting())
        for seat in seats:
            seat.leave(Outcome.SERVED)
        await worker.settled()
        assert worker.desk.holds == (0, 0, 0)


async def test_a_request_that_gives_up_when_its_seat_is_on_the_way_leaves_no_seat_taken() -> None:
    main = Main()
    async with main.worker() as worker:
        for _ in range(20):
            asked = asyncio.ensure_future(worker.places.wait(call()))
            await until(lambda: main.places["m"].in_flight("r1"), every_s=0)
            asked.cancel()
            await asyncio.wait([asked])
            if not asked.cancelled():
                asked.result().leave(Outcome.SERVED)
            await worker.settled()
            assert main.places["m"].in_flight("r1") == 0


async def test_what_a_dead_worker_held_is_given_back_and_its_requests_do_not_wait_any_more() -> None:
    outcomes: list[Outcome] = []

    class Watched(ModelPlaces):
        def left(self, replica: Any, request: Any, outcome: Outcome, begun: float, tokens: int) -> None:
            outcomes.append(outcome)
            super().left(replica, request, outcome, begun, tokens)

    main = Main(limits=Limits(Allowance(concurrent_requests=10)))
    main.places["m"] = Watched("m", FixedEndpoints([ENGINE]), rules=Rules())
    async with main.worker() as other:
        async with main.worker() as dying:
            limits = RemoteLimits(dying.link, Allowance(concurrent_requests=10))
            await limits.ask(ANYBODY, "m", 5)
            for _ in range(2):
                await dying.places.wait(call())
            waiting = [asyncio.ensure_future(dying.places.wait(call())) for _ in range(3)]
            await until(lambda: main.places["m"].waiting() == 3)
            patient = asyncio.ensure_future(other.places.wait(call()))
            await until(lambda: main.places["m"].waiting() == 4)
            assert dying.desk.holds == (2, 1, 3)
        for lost in waiting:
            with pytest.raises(LinkLost):
                await lost
        seat = await patient
        assert outcomes == [Outcome.ABANDONED, Outcome.ABANDONED]
        await until(lambda: dying.desk.holds == (0, 0, 0))
        assert main.control.limits.in_flight == 0
        assert (main.places["m"].in_flight("r1"), main.places["m"].waiting()) == (1, 0)
        seat.leave(Outcome.SERVED)


# -- seats that are lent ---------------------------------------------------------------------------------------------

LARGE = FixedEndpoint("r1", "127.0.0.1", 8001, limit=16)


def lent(worker: Worker) -> int:
    """Seats that a worker gives out at once; they all leave again."""
    seats = []
    while (seat := worker.places.take(call())) is not None:
        seats.append(seat)
    for seat in seats:
        seat.leave(Outcome.SERVED)
    return len(seats)


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
        seats = [worker.places.take(call()) for _ in range(3)]
        assert told == []
        assert worker.places.in_flight("r1") == 3
        del worker.link.tell
        await until(lambda: places.in_flight("r1") == 3)
        count = places.rate.count
        for seat in seats:
            assert seat is not None
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
        kept = one.places.take(call())
        assert kept is not None
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
        seat, still_there = worker.places.take(call()), worker.places.take(call())
        assert seat is not None
        assert still_there is not None
        seat.leave(Outcome.ABANDONED)
        await worker.settled()
        assert main.places["m"].in_flight("r1") == 1
        assert worker.places.take(call()) is not None


async def test_a_failure_at_a_lent_seat_is_known_in_main_at_once() -> None:
    main = Main(LARGE)
    async with main.worker() as one, main.worker() as other:
        await borrowing(one)
        await borrowing(other)
        seat, still_there = one.places.take(call()), one.places.take(call())
        assert seat is not None
        assert still_there is not None
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
                assert dying.places.take(call()) is not None
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
        seat = worker.places.take(call())
        launcher.set(FixedEndpoint("r2", "127.0.0.1", 8002))
        assert places.in_flight("r1") == 4, "nobody knows yet how many it has"
        await until(lambda: places.in_flight("r1") == 1)
        assert worker.places.take(call()) is None
        assert worker.places.in_flight("r1") == 1
        assert seat is not None
        seat.leave(Outcome.SERVED)
        await until(lambda: places.in_flight("r1") == 0)
        again = await worker.places.wait(call())
        assert again.endpoint.replica_id == "r2"
        again.leave(Outcome.SERVED)
        places.close()


# -- addresses -------------------------------------------------------------------------------------------------------


async def test_the_address_of_a_replica_is_told_once_and_again_when_it_has_moved() -> None:
    main = Main()
    told: list[Any] = []
    async with main.worker() as worker:
        original = worker.link._handlers["endpoint"]

        def endpoint(*values: Any) -> None:
            told.append(values)
            original(*values)

        worker.link._handlers["endpoint"] = endpoint
        for _ in range(5):
            (await worker.places.wait(call())).leave(Outcome.SERVED)
        assert len(told) == 1
        moved = FixedEndpoint("r1", "127.0.0.1", 9001)
        main.places["m"].configure(Rules(), FixedEndpoints([moved]), "")
        seat = await worker.places.wait(call())
        assert seat.endpoint.port == 9001
        assert len(told) == 2
        seat.leave(Outcome.SERVED)


async def test_a_worker_remembers_only_so_many_replicas_however_many_come_and_go() -> None:
    class Fleeting:
        """Places at a new replica each time."""

        def __init__(self) -> None:
            self.count = 0

        def take_want(self, want: Want) -> Seat | None:
            self.count += 1
            return FreeSeat(FixedEndpoint(f"r{self.count}", "127.0.0.1", self.count))

        async def wait_want(self, want: Want) -> Seat:
            raise AssertionError("never full")

        def lend(self, borrowers: int, call_in: Callable[[], None]) -> None:
            return None

    @dataclass
    class FreeSeat:
        endpoint: FixedEndpoint

        def leave(self, outcome: Outcome, tokens: int = 0) -> None:
            pass

    main = Main()
    main.places["m"] = Fleeting()  # type: ignore[assignment]
    async with main.worker() as worker:
        held = await worker.places.wait(call())
        for number in range(2, 3 * TOLD_AT_MOST):
            seat = await worker.places.wait(call())
            assert seat.endpoint.port == number
            seat.leave(Outcome.SERVED)
        assert len(worker.places._endpoints) <= TOLD_AT_MOST
        assert held.endpoint.replica_id == "r1"
        held.leave(Outcome.SERVED)
        assert not worker.places._in_flight


async def test_a_model_that_main_no_longer_serves_is_a_503() -> None:
    main = Main()
    async with main.worker() as worker:
        del main.places["m"]
        with pytest.raises(Unavailable, match="no longer served here"):
            await worker.places.wait(call())


# -- limits ----------------------------------------------------------------------------------------------------------


def key(**limits: int) -> Principal:
    return Principal("key_1", key_limits=Allowance(**limits))


async def test_the_limits_of_a_key_hold_over_all_workers() -> None:
    main = Main()
    async with main.worker() as one, main.worker() as other:
        first, second = RemoteLimits(one.link, Allowance()), RemoteLimits(other.link, Allowance())
        assert first.enter(key(concurrent_requests=2), "m", 5) is None, "nothing is decided in a worker"
        passes = [
            await first.ask(key(concurrent_requests=2), "m", 5),
            await second.ask(key(concurrent_requests=2), "m", 5),
        ]
        with pytest.raises(RateLimited, match="concurrent requests"):
            await first.ask(key(concurrent_requests=2), "m", 5)
        passes[1].leave(5)
        passes[1].leave(5)
        await other.settled()
        passes[1] = await first.ask(key(concurrent_requests=2), "m", 5)
        for granted in passes:
            granted.leave(5)
        await one.settled()
        assert main.control.limits.in_flight == 0


async def test_headers_about_limits_are_those_of_main_with_and_without_a_refusal() -> None:
    def remaining(headers: Headers) -> bytes:
        return dict(headers)[b"x-ratelimit-remaining-requests"]

    main = Main()
    principal = key(requests_per_minute=2)
    async with main.worker() as one, main.worker() as other:
        first, second = RemoteLimits(one.link, Allowance()), RemoteLimits(other.link, Allowance())
        assert remaining((await first.ask(principal, "m", 5)).headers) == b"1"
        assert remaining((await second.ask(principal, "m", 5)).headers) == b"0"
        with pytest.raises(RateLimited) as caught:
            await first.ask(principal, "m", 5)
        assert remaining(tuple(caught.value.headers.items())) == b"0"
        assert caught.value.retry_after_s == pytest.approx(30, abs=2)


async def test_workers_that_name_the_same_key_mean_the_same_object_in_main() -> None:
    main = Main()
    same = main.principals.same
    one = same(key(concurrent_requests=2))
    assert same(key(concurrent_requests=2)) is one
    changed = same(key(concurrent_requests=3))
    assert changed is not one
    assert same(key(concurrent_requests=3)) is changed


async def test_a_key_whose_limits_have_changed_is_told_anew() -> None:
    main = Main()
    async with main.worker() as worker:
        limits = RemoteLimits(worker.link, Allowance())
        granted = await limits.ask(key(concurrent_requests=1), "m", 5)
        with pytest.raises(RateLimited):
            await limits.ask(key(concurrent_requests=1), "m", 5)
        another = await limits.ask(key(concurrent_requests=2), "m", 5)
        granted.leave(5)
        another.leave(5)


async def test_who_has_no_limits_is_let_in_without_asking() -> None:
    main = Main()
    async with main.worker() as worker:
        limits = RemoteLimits(worker.link, Allowance())
        assert not limits.concerns(ANYBODY)
        assert limits.enter(ANYBODY, "m", 5) is not None
        limits.configure(Allowance(tokens_per_day=100))
        assert limits.concerns(ANYBODY)
        assert limits.enter(ANYBODY, "m", 5) is None


async def test_a_pass_that_takes_a_look_into_the_database_comes_when_it_has_been_taken() -> None:
    main = Main(limits=Limits(spent=lambda kind, id, since: 90))
    async with main.worker() as worker:
        limits = RemoteLimits(worker.link, Allowance())
        (await limits.ask(key(tokens_per_day=100), "m", 10)).leave(10)
        with pytest.raises(RateLimited, match="quota"):
            await limits.ask(key(tokens_per_day=100), "m", 10)


async def test_a_request_that_gives_up_when_its_pass_is_on_the_way_takes_nothing() -> None:
    main = Main()
    async with main.worker() as worker:
        limits = RemoteLimits(worker.link, Allowance())
        asked = asyncio.ensure_future(limits.ask(key(concurrent_requests=1), "m", 5))
        await until(lambda: main.control.limits.in_flight, every_s=0)
        asked.cancel()
        await asyncio.wait([asked])
        if not asked.cancelled():
            asked.result().leave(0)
        await worker.settled()
        assert main.control.limits.in_flight == 0


# -- the rest --------------------------------------------------------------------------------------------------------


def control(worker: Worker, config: Config = CONFIG) -> RemoteControl:
    return RemoteControl(worker.link, config, {}, lambda replica_id, token: token == "right")


async def test_an_agents_report_is_answered_by_main_through_any_worker() -> None:
    main = Main()
    async with main.worker() as worker:
        remote = control(worker)
        remote.check_agent("r1", "right")
        with pytest.raises(GatewayError, match="Not this replica's token"):
            remote.check_agent("r1", "wrong")
        assert await remote.report("r1", {"state": "ready"}) == {"command": "run", "in_flight": 3}
        assert main.control.reports == [("r1", {"state": "ready"})]
        with pytest.raises(InvalidRequest, match="Not a report") as caught:
            await remote.report("r1", {"fault": "theirs"})
        assert caught.value.code == "bad_report"


async def test_a_fault_in_main_is_a_500_for_the_worker_and_the_link_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main = Main()
    async with main.worker() as worker:
        remote = control(worker)
        with pytest.raises(GatewayError) as caught:
            await remote.report("r1", {"fault": "ours"})
        assert caught.value.status == 500
        assert await remote.report("r1", {}) == {"command": "run", "in_flight": 3}


async def test_what_operators_tell_a_worker_is_done_in_main() -> None:
    main = Main()
    async with main.worker() as worker:
        remote = control(worker)
        told = {"model": "m", "replicas": None}
        assert await remote.operate("scale", told) == {"verb": "scale", **told}
        with pytest.raises(NotFound, match="No such model") as caught:
            await remote.operate("scale", {"model": "n"})
        assert caught.value.param == "model"


async def test_a_fault_in_deciding_is_a_500_and_the_worker_keeps_what_it_holds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Faulty:
        def take_want(self, want: Want) -> Seat | None:
            raise ZeroDivisionError

        async def wait_want(self, want: Want) -> Seat:
            raise AssertionError

    main = Main()
    async with main.worker() as worker:
        seat = await worker.places.wait(call())
        healthy, main.places["m"] = main.places["m"], Faulty()  # type: ignore[assignment]
        with pytest.raises(GatewayError) as caught:
            await worker.places.wait(call())
        assert caught.value.status == 500
        assert "could not be handled: place" in caplog.text
        main.places["m"] = healthy
        assert healthy.in_flight("r1") == 1
        seat.leave(Outcome.SERVED)
        await worker.settled()
        assert healthy.in_flight("r1") == 0


async def test_a_reload_asked_for_in_a_worker_is_mains_and_so_are_its_mistakes() -> None:
    main = Main()
    main.control.reload_goes.set()
    async with main.worker() as worker:
        remote = control(worker)
        assert await remote.reload() == Changes(added=("n",), limits=True)
        main.control.mistakes = ["models.m: is missing"]
        with pytest.raises(ConfigError, match="is missing"):
            await remote.reload()


async def test_a_reload_goes_on_when_who_asked_for_it_is_gone() -> None:
    main = Main()
    async with main.worker() as worker:
        asked = asyncio.ensure_future(control(worker).reload())
        await until(lambda: worker.desk._tasks)
    with pytest.raises(LinkLost):
        await asked
    main.control.reload_goes.set()
    await until(lambda: main.control.reloads == 1)


async def test_models_are_as_main_has_said_last() -> None:
    from proxy.workers.messages import ModelNow

    main = Main()
    async with main.worker() as worker:
        remote = control(worker)
        assert (remote.endpoints(), remote.state_of("m"), remote.context_length("m")) == ({}, "starting", None)
        remote.models = {"m": ModelNow(2, "ready", 4096)}
        assert (remote.endpoints(), remote.state_of("m"), remote.context_length("m")) == ({"m": 2}, "ready", 4096)
        assert merged([await remote.metrics()]) == {"slurmgate_requests_in_flight": [([], 5)]}
