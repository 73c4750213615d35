"""Who is let in, who is not, and what both are told: by clocks that the tests hold."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import OperationalError

from backends.errors import QuotaExceeded, RateLimited, Unavailable
from proxy.limits.local import FREE, SWEEP_S, Limits, LocalPass
from proxy.principals import ANYBODY, Allowance, Principal

NOON = 1_795_348_800.0
"""2026-11-22 12:00 UTC."""


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class World:
    """`spent` is what the table has, by (kind, id, first day)."""

    def __init__(self, defaults: Allowance | None = None) -> None:
        self.clock, self.wall = Clock(1000.0), Clock(NOON)
        self.spent: dict[tuple[str, str, str], int] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.limits = Limits(defaults, spent=self.look_up, clock=self.clock, wall=self.wall)

    def look_up(self, kind: str, id: str, since: str) -> int:
        assert threading.current_thread() is not threading.main_thread()
        self.asked.append((kind, id, since))
        return self.spent.get((kind, id, since), 0)

    def enter(self, principal: Principal, tokens: int = 10) -> LocalPass:
        granted = self.limits.enter(principal, "m", tokens)
        assert granted is not None
        return granted

    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        self.wall.now += seconds


@pytest.fixture
def world() -> World:
    return World()


def key(id: str = "key_1", project_id: str = "", project: Allowance | None = None, **limits: int) -> Principal:
    return Principal(id, project_id, key_limits=Allowance(**limits), project_limits=project or Allowance())


def told(given: LocalPass | RateLimited) -> dict[str, str]:
    pairs = given.headers.items() if isinstance(given, RateLimited) else given.headers
    return {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in pairs}


def test_who_has_no_limits_is_not_counted(world: World) -> None:
    for principal in (ANYBODY, Principal("key_1", "proj_1")):
        assert not world.limits.concerns(principal)
        granted = world.enter(principal)
        assert granted is FREE
        granted.leave(5)
    assert world.limits.remembered == 0
    assert FREE.headers == ()


def test_requests_per_minute_are_counted_and_come_back_evenly(world: World) -> None:
    ada = key(requests_per_minute=3)
    for left, reset in ((2, "20s"), (1, "40s"), (0, "1m0s")):
        headers = told(world.enter(ada))
        assert headers == {
            "limit-requests": "3",
            "remaining-requests": str(left),
            "reset-requests": reset,
        }
    with pytest.raises(RateLimited) as caught:
        world.enter(ada)
    error = caught.value
    assert (error.status, error.type, error.code) == (429, "requests", "rate_limit_exceeded")
    assert error.message == (
        "Rate limit reached for m in key key_1 on requests per min (RPM): Limit 3, Used 3, Requested 1. "
        "Please try again in 20s."
    )
    assert error.retry_after_s == pytest.approx(20)
    assert told(error) == {"limit-requests": "3", "remaining-requests": "0", "reset-requests": "1m0s"}
    world.pass_time(20)
    world.enter(ada)
    with pytest.raises(RateLimited):
        world.enter(ada)


def test_tokens_are_taken_by_estimate_and_put_right_afterwards(world: World) -> None:
    ada = key(tokens_per_minute=600)
    first = world.enter(ada, 500)
    assert told(first) == {"limit-tokens": "600", "remaining-tokens": "100", "reset-tokens": "50s"}
    with pytest.raises(RateLimited) as caught:
        world.enter(ada, 200)
    assert caught.value.type == "tokens"
    assert caught.value.message == (
        "Rate limit reached for m in key key_1 on tokens per min (TPM): Limit 600, Used 500, Requested 200. "
        "Please try again in 10s."
    )
    first.leave(50)
    assert told(world.enter(ada, 200))["remaining-tokens"] == "350"


def test_more_than_was_thought_is_owed_and_shown_as_nothing_left(world: World) -> None:
    ada = key(tokens_per_minute=600)
    world.enter(ada, 10).leave(1200)
    with pytest.raises(RateLimited) as caught:
        world.enter(ada, 1)
    assert told(caught.value)["remaining-tokens"] == "0"
    assert caught.value.retry_after_s == pytest.approx(60.1)
    world.enter(ada, 0).leave(0)  # to count tokens takes none
    world.pass_time(60.2)
    world.enter(ada, 1)


def test_what_nobody_can_tell_stays_as_it_was_estimated(world: World) -> None:
    ada = key(tokens_per_minute=600)
    world.enter(ada, 100).leave(None)
    assert told(world.enter(ada, 1))["remaining-tokens"] == "499"


def test_a_request_that_never_fits_is_told_so_and_not_to_come_again(world: World) -> None:
    with pytest.raises(RateLimited) as caught:
        world.enter(key(tokens_per_minute=600), 601)
    error = caught.value
    assert (error.type, error.code, error.retry_after_s) == ("tokens", "rate_limit_exceeded", None)
    assert error.message.startswith(
        "Request too large for m in key key_1 on tokens per min (TPM): Limit 600, Requested 601."
    )
    assert error.headers[b"x-should-retry"] == b"false"


def test_concurrent_requests_are_told_when_one_of_them_will_probably_end(world: World) -> None:
    ada = key(concurrent_requests=2)
    first = world.enter(ada)
    world.pass_time(8)
    first.leave(1)
    running = [world.enter(ada), world.enter(ada)]
    assert running[0].headers == ()
    with pytest.raises(RateLimited) as caught:
        world.enter(ada)
    assert caught.value.type == "requests"
    assert "on concurrent requests: Limit 2, Used 2, Requested 1. Please try again in 4s." in caught.value.message
    running[0].leave(1)
    world.enter(ada)


def test_coming_back_twice_counts_once(world: World) -> None:
    ada = key(concurrent_requests=1, tokens_per_minute=100)
    granted = world.enter(ada, 50)
    granted.leave(0)
    granted.leave(0)
    assert world.limits.in_flight == 0
    assert told(world.enter(ada, 0))["remaining-tokens"] == "100"


def test_nothing_is_taken_anywhere_when_anything_refuses(world: World) -> None:
    """Whichever limit it is, of the key or of the project."""
    wide = {"requests_per_minute": 60, "tokens_per_minute": 6000, "concurrent_requests": 10}
    for narrow in ({"requests_per_minute": 1}, {"tokens_per_minute": 15}, {"concurrent_requests": 1}):
        for of_key in (True, False):
            own, project = (narrow, wide) if of_key else (wide, narrow)
            ada = key("key_1", "proj_1", Allowance(**project), **own)
            other = World()
            other.enter(ada)
            before = (
                told(other.enter(replace(ada, key_id="key_2", key_limits=Allowance(**wide)), 0)) if of_key else None
            )
            for _ in range(20):
                with pytest.raises(RateLimited):
                    other.enter(ada)
            assert other.limits.in_flight == (2 if of_key else 1)
            if before is not None:
                after = told(other.enter(replace(ada, key_id="key_3", key_limits=Allowance(**wide)), 0))
                assert int(after["remaining-requests"]) == int(before["remaining-requests"]) - 1
                assert after["remaining-tokens"] == before["remaining-tokens"]


def test_keys_of_one_project_share_its_limits_and_the_tightest_is_shown(world: World) -> None:
    shared = Allowance(requests_per_minute=5)
    ada, bob = key("key_a", "proj_1", shared, requests_per_minute=3), key("key_b", "proj_1", shared)
    assert told(world.enter(ada))["limit-requests"] == "3"
    for _ in range(3):
        headers = told(world.enter(bob))
    assert headers["limit-requests"] == "5"
    assert headers["remaining-requests"] == "1"
    assert told(world.enter(ada)) == {"limit-requests": "5", "remaining-requests": "0", "reset-requests": "1m0s"}
    with pytest.raises(RateLimited) as caught:
        world.enter(bob)
    assert "in project proj_1 on" in caught.value.message


def test_defaults_are_for_keys_that_say_nothing_nor_their_projects() -> None:
    world = World(Allowance(requests_per_minute=2, tokens_per_minute=100))
    assert told(world.enter(ANYBODY))["limit-requests"] == "2"
    assert told(world.enter(key(requests_per_minute=9)))["limit-requests"] == "9"
    assert told(world.enter(key(requests_per_minute=9)))["limit-tokens"] == "100"
    of_project = key("key_2", "proj_1", Allowance(requests_per_minute=7))
    assert told(world.enter(of_project))["limit-requests"] == "7"
    world.limits.configure(Allowance(requests_per_minute=4))
    assert told(world.enter(ANYBODY)) == {
        "limit-requests": "4",
        "remaining-requests": "2",
        "reset-requests": "30s",
    }
    world.limits.configure(Allowance())
    assert world.enter(ANYBODY) is FREE


def test_the_longest_wait_is_the_one_that_is_told(world: World) -> None:
    ada = key(requests_per_minute=1, tokens_per_minute=60)
    world.enter(ada, 60).leave(90)
    world.pass_time(30)
    with pytest.raises(RateLimited) as caught:
        world.enter(ada, 31)
    assert caught.value.retry_after_s == pytest.approx(31)
    assert "on tokens per min" in caught.value.message
    assert caught.value.type == "tokens"


def test_changed_limits_count_at_once_and_what_is_used_stays_used(world: World) -> None:
    ada = key(requests_per_minute=10, concurrent_requests=5)
    running = [world.enter(ada) for _ in range(4)]
    narrower = key(requests_per_minute=5, concurrent_requests=4)
    with pytest.raises(RateLimited):
        world.enter(narrower)
    for granted in running:
        granted.leave(0)
    assert told(world.enter(narrower)) == {
        "limit-requests": "5",
        "remaining-requests": "0",
        "reset-requests": "1m0s",
    }


# -- budgets ---------------------------------------------------------------------------------------------------------


async def test_a_budget_knows_what_was_used_before_the_process_began(world: World) -> None:
    ada = key("key_1", "proj_1", Allowance(tokens_per_month=1000), tokens_per_day=100)
    world.spent = {("key", "key_1", "2026-11-22"): 60, ("project", "proj_1", "2026-11-01"): 900}
    assert world.limits.enter(ada, "m", 10) is None
    (await world.limits.ask(ada, "m", 10)).leave(10)
    assert sorted(world.asked) == [("key", "key_1", "2026-11-22"), ("project", "proj_1", "2026-11-01")]
    with pytest.raises(QuotaExceeded) as caught:
        world.enter(ada, 31)
    error = caught.value
    assert (error.status, error.type, error.code) == (429, "insufficient_quota", "insufficient_quota")
    assert error.headers[b"x-should-retry"] == b"false"
    assert error.retry_after_s == 12 * 3600
    assert error.message == (
        "You exceeded your current quota: the budget of key key_1 on tokens per day (TPD) does not cover the request "
        "for m: Limit 100, Used 70, Requested 31. It begins anew in 12h0m0s, by UTC."
    )
    world.enter(ada, 30)


async def test_midnight_opens_the_day_and_the_month_stays(world: World) -> None:
    ada = key(tokens_per_day=100, tokens_per_month=150)
    (await world.limits.ask(ada, "m", 100)).leave(100)
    with pytest.raises(QuotaExceeded):
        world.enter(ada, 10)
    world.pass_time(12 * 3600)
    world.enter(ada, 50).leave(50)
    with pytest.raises(QuotaExceeded) as caught:
        world.enter(ada, 10)
    assert "tokens per month" in caught.value.message
    world.pass_time(8 * 86400)  # 1 December
    await world.limits.ask(ada, "m", 100)


async def test_what_ends_after_midnight_counts_for_the_new_day(world: World) -> None:
    ada = key(tokens_per_day=100)
    running = await world.limits.ask(ada, "m", 80)
    world.pass_time(12 * 3600)
    with pytest.raises(RateLimited):
        world.enter(ada, 30)
    running.leave(60)
    with pytest.raises(QuotaExceeded):
        world.enter(ada, 41)
    world.enter(ada, 40)


async def test_what_running_requests_may_give_back_is_no_reason_to_give_up(world: World) -> None:
    ada = key(tokens_per_day=100)
    running = await world.limits.ask(ada, "m", 90)
    with pytest.raises(RateLimited) as caught:
        world.enter(ada, 20)
    assert not isinstance(caught.value, QuotaExceeded)
    assert caught.value.code == "rate_limit_exceeded"
    assert b"x-should-retry" not in caught.value.headers
    running.leave(5)
    world.enter(ada, 20)


async def test_many_that_come_at_once_ask_and_count_what_is_right(world: World) -> None:
    ada = key(tokens_per_day=100)
    world.spent = {("key", "key_1", "2026-11-22"): 40}
    results = await asyncio.gather(*(world.limits.ask(ada, "m", 10) for _ in range(10)), return_exceptions=True)
    assert sum(isinstance(result, LocalPass) for result in results) == 6
    assert sum(isinstance(result, RateLimited) for result in results) == 4


async def test_without_knowing_what_was_used_nobody_is_let_in() -> None:
    def away(kind: str, id: str, since: str) -> int:
        raise OperationalError("SELECT", {}, Exception("gone"))

    limits = Limits(spent=away)
    with pytest.raises(Unavailable):
        await limits.ask(key(tokens_per_day=100), "m", 1)
    assert limits.in_flight == 0


# -- memory ----------------------------------------------------------------------------------------------------------


async def test_who_is_idle_and_full_again_is_forgotten(world: World) -> None:
    many = [
        key(f"key_{n}", f"proj_{n % 10}", Allowance(requests_per_minute=1000), tokens_per_minute=60) for n in range(200)
    ]
    for principal in many:
        world.enter(principal, 30).leave(30)
    staying = world.enter(many[0], 1)
    assert world.limits.remembered == 210
    world.pass_time(SWEEP_S + 1)
    world.enter(many[1], 1).leave(1)
    assert world.limits.remembered == 4  # two keys and their projects
    staying.leave(1)
    world.pass_time(SWEEP_S + 1)
    world.enter(key("key_x", requests_per_minute=1))
    assert world.limits.remembered == 1
    assert len(world.limits._plans) == 1


async def test_who_has_used_some_of_a_budget_is_remembered_until_it_begins_anew(world: World) -> None:
    ada, bob = key(tokens_per_day=100), key("key_2", requests_per_minute=5)
    (await world.limits.ask(ada, "m", 50)).leave(50)
    world.pass_time(2 * SWEEP_S)
    world.enter(bob)
    assert world.limits.remembered == 2
    with pytest.raises(QuotaExceeded):
        world.enter(ada, 51)
    assert len(world.asked) == 1
    world.pass_time(86400)
    world.enter(bob)
    assert world.limits.remembered == 1


STEPS = st.lists(
    st.tuples(st.sampled_from(["enter", "leave", "wait"]), st.integers(0, 2), st.integers(0, 60)), max_size=80
)


@given(STEPS)
def test_whatever_happens_everything_comes_back(steps: list[tuple[str, int, int]]) -> None:
    """Conservation: when all have left without using anything, and a minute has passed, all is as at the beginning."""
    world = World()
    project = Allowance(requests_per_minute=40, tokens_per_minute=300, concurrent_requests=8)
    keys = [
        key(f"key_{n}", "proj_1", project, tokens_per_minute=120 * (n + 1), concurrent_requests=4) for n in range(3)
    ]
    running: list[LocalPass] = []
    for what, number, amount in steps:
        if what == "wait":
            world.pass_time(amount)
        elif what == "leave" and running:
            running.pop(number % len(running)).leave(0)
        elif what == "enter":
            try:
                granted = world.enter(keys[number], amount)
            except RateLimited as error:
                headers = told(error)
            else:
                running.append(granted)
                headers = told(granted)
            assert int(headers["remaining-tokens"]) >= 0
            assert int(headers["remaining-requests"]) >= 0
        assert world.limits.in_flight == len(running)
        assert len(running) <= 8
    for granted in running:
        granted.leave(0)
    world.pass_time(60)
    assert world.limits.in_flight == 0
    for number, principal in enumerate(keys):
        headers = told(world.enter(principal, 0))
        assert headers["remaining-tokens"] == str(min(120 * (number + 1), 300))
