"""A worker's places and limits over a link: decided in main, and all given back when the worker is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from backends.errors import GatewayError, InvalidRequest, NotFound, QueueFull, RateLimited, Unavailable
from backends.fixed import FixedEndpoint, FixedEndpoints
from backends.model_places import ModelPlaces
from backends.places import Outcome, Places, Seat, Want
from backends.replica_set import Rules
from proxy.config import Config, ConfigError
from proxy.limits.local import Limits
from proxy.limits.seam import Headers
from proxy.metrics import merged
from proxy.principals import ANYBODY, Allowance, Principal
from proxy.reload import Changes
from proxy.workers.desk import TOLD_AT_MOST
from proxy.workers.link import LinkLost
from proxy.workers.remote_control import RemoteControl
from proxy.workers.remote_limits import RemoteLimits
from tests.waiting import until

from .desks import CONFIG, ENGINE, Main, Worker, call


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
