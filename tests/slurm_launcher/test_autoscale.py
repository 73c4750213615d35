"""Scaling, simulated: an engine pool behind a Slurm queue, and loads of every shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_launcher.autoscale import (
    Allowance,
    Clock,
    Demand,
    Memory,
    Scaling,
    Supply,
    Warm,
    Wish,
    allot,
    decide,
    remember,
)

STEP_S = 5.0
CAPACITY = 10.0
FREE = Scaling(least=0, most=8, idle_s=600.0)


@dataclass
class Pool:
    """Replicas that take `delay_s` from being wanted to being ready, and go at once."""

    scaling: Scaling
    delay_s: float = 60.0
    piling: bool = False
    memory: Memory = field(default_factory=Memory)
    coming: list[float] = field(default_factory=list)
    ready: int = 0
    now: float = 0.0
    last_request_at: float | None = None
    backlog: float = 0.0
    history: list[tuple[float, int, int]] = field(default_factory=list)
    """(time, wanted, ready)"""

    def step(self, users: float, batch_replicas: int = 0) -> None:
        """`users` have a request each, all the time; with `piling` as many new ones come in every step and wait."""
        self.now += STEP_S
        self.ready += sum(at <= self.now for at in self.coming)
        self.coming = [at for at in self.coming if at > self.now]
        if users:
            self.last_request_at = self.now
        there = users + (self.backlog if self.piling else 0.0)
        served = min(there, self.ready * CAPACITY)
        self.backlog = min(there - served, 256)
        demand = Demand(int(served), int(self.backlog), batch_replicas, CAPACITY, None, self.last_request_at)
        supply = Supply(self.ready, len(self.coming))
        self.memory = decide(self.scaling, demand, supply, self.memory, Clock(self.now))
        difference = self.memory.wanted - self.ready - len(self.coming)
        if difference > 0:
            self.coming += [self.now + self.delay_s] * difference
        elif difference < 0:
            cut = min(len(self.coming), -difference)
            self.coming = self.coming[: len(self.coming) - cut]
            self.ready += difference + cut
        self.history.append((self.now, self.memory.wanted, self.ready))

    def run(self, users: Callable[[float], float], for_s: float) -> None:
        until = self.now + for_s
        while self.now < until:
            self.step(users(self.now))

    @property
    def turns(self) -> int:
        """How often what is wanted changed its direction: up after down, or down after up."""
        moves = [b[1] - a[1] for a, b in pairwise(self.history) if b[1] != a[1]]
        return sum((a > 0) != (b > 0) for a, b in pairwise(moves))

    @property
    def most(self) -> int:
        return max(wanted for _, wanted, _ in self.history)


def test_a_fixed_number_is_never_left() -> None:
    pool = Pool(Scaling(least=2, most=2))
    pool.run(lambda t: 100 * (t % 300 < 20), 3600)
    assert {wanted for _, wanted, _ in pool.history} == {2}


def test_the_first_request_brings_a_model_up_from_zero_and_idleness_takes_it_down() -> None:
    pool = Pool(FREE)
    pool.run(lambda t: 1, 300)
    assert pool.memory.wanted == 1
    pool.run(lambda t: 0, FREE.idle_s + FREE.hold_down_s + 60)
    assert pool.memory.wanted == 0
    assert pool.turns == 0


def test_a_model_that_somebody_asked_a_while_ago_stays() -> None:
    pool = Pool(FREE)
    pool.run(lambda t: float(t % 300 < 10), 7200)  # a request every five minutes
    assert all(wanted == 1 for _, wanted, _ in pool.history[1:])


def test_a_burst_is_met_step_by_step_and_let_go_after_the_window() -> None:
    pool = Pool(FREE, delay_s=30)
    pool.run(lambda t: 40, 600)
    assert pool.memory.wanted == math.ceil(40 / (0.7 * CAPACITY))
    pool.run(lambda t: 2, FREE.hold_down_s - 30)
    assert pool.memory.wanted == 6  # not yet
    pool.run(lambda t: 2, 900)
    assert pool.memory.wanted == 1
    assert pool.turns == 1


def test_flapping_load_does_not_flap_replicas() -> None:
    pool = Pool(FREE, delay_s=20)
    pool.run(lambda t: 40 if t % 120 < 60 else 1, 7200)
    assert pool.turns == 0


def test_a_day_goes_up_once_and_down_once() -> None:
    day = 86400.0
    pool = Pool(FREE, delay_s=120)
    pool.run(lambda t: 25 - 25 * math.cos(2 * math.pi * t / day), day)
    assert pool.turns == 1
    assert 7 <= pool.most <= 8
    short = [
        t for t, _, ready in pool.history if t > 600 and ready * CAPACITY < 25 - 25 * math.cos(2 * math.pi * t / day)
    ]
    assert not short


def test_a_slow_queue_is_not_asked_again_and_again() -> None:
    """Half an hour in Slurm's queue: requests pile up, and yet no more is asked for than one step."""
    pool = Pool(FREE, delay_s=1800, piling=True)
    pool.run(lambda t: 3, 1700)
    assert pool.most <= FREE.step_up


def test_noise_around_a_border_moves_nothing() -> None:
    pool = Pool(FREE, delay_s=10)
    pool.run(lambda t: 7.0 + (int(t / STEP_S) % 2), 3600)  # 7 fit on one replica, 8 do not
    assert pool.turns == 0


def test_batch_work_brings_replicas_up_and_its_end_lets_them_go() -> None:
    pool = Pool(FREE)
    for _ in range(60):
        pool.step(0, batch_replicas=3)
    assert pool.memory.wanted == 3
    pool.run(lambda t: 0, 1200)
    assert pool.memory.wanted == 0


def test_late_first_tokens_ask_for_one_more_when_the_last_one_has_come() -> None:
    scaling = Scaling(least=1, most=4, ttft_goal_s=1.0)
    demand = Demand(in_flight=3, capacity=CAPACITY, ttft_s=3.0, last_request_at=0.0)
    first = decide(scaling, demand, Supply(ready=1), Memory(wanted=1), Clock(1000.0))
    assert first.wanted == 2
    assert decide(scaling, demand, Supply(ready=1, coming=1), first, Clock(1100.0)).wanted == 2
    assert decide(scaling, demand, Supply(ready=2), first, Clock(1030.0)).wanted == 2  # not within `hold_up_s`
    assert decide(scaling, demand, Supply(ready=2), first, Clock(1100.0)).wanted == 3


def test_warm_hours_are_a_floor_also_over_midnight() -> None:
    day = Warm(frozenset(range(5)), 8 * 3600, 18 * 3600, 2)
    night = Warm(frozenset({4}), 22 * 3600, 6 * 3600, 3)
    scaling = Scaling(least=0, most=4, warm=(day, night))

    def wanted(weekday: int, hour: float) -> int:
        return decide(scaling, Demand(), Supply(), Memory(), Clock(0.0, weekday, int(hour * 3600))).wanted

    assert [wanted(0, 7.9), wanted(0, 8), wanted(4, 17.9), wanted(5, 12)] == [0, 2, 2, 0]
    assert [wanted(4, 23), wanted(5, 5.9), wanted(5, 6), wanted(3, 23)] == [3, 3, 0, 0]


def test_after_a_restart_what_runs_is_let_go_as_slowly_as_ever() -> None:
    pool = Pool(FREE, ready=5, memory=Memory(wanted=5, changed_at=0.0))
    pool.run(lambda t: 2, 50)
    assert pool.memory.wanted == 5


@given(
    st.lists(st.tuples(st.floats(0.1, 100), st.integers(0, 9)), min_size=1, max_size=60),
    st.floats(1, 300),
)
def test_the_first_peak_is_the_windows_maximum(steps: list[tuple[float, int]], window_s: float) -> None:
    now = 0.0
    peaks: tuple[tuple[float, int], ...] = ()
    seen: list[tuple[float, int]] = []
    for wait, asked in steps:
        now += wait
        seen.append((now, asked))
        peaks = remember(peaks, asked, now, window_s)
        assert peaks[0][1] == max(count for at, count in seen if now - at < window_s)


@given(
    least=st.integers(0, 3),
    extra=st.integers(0, 5),
    loads=st.lists(st.integers(0, 200), min_size=1, max_size=80),
    delay=st.floats(0, 600),
)
def test_the_bounds_hold_whatever_comes(least: int, extra: int, loads: list[int], delay: float) -> None:
    scaling = Scaling(least=least, most=least + extra)
    pool = Pool(scaling, delay_s=delay)
    for users in loads:
        before = pool.memory.wanted
        pool.step(users)
        assert least <= pool.memory.wanted <= least + extra
        assert pool.memory.wanted - before <= max(scaling.step_up, least)


# -- allotting -------------------------------------------------------------------------------------------------------


def test_models_without_a_replica_come_first() -> None:
    wishes = {"big": Wish(missing=3, live=2, gpus=1), "small": Wish(missing=1, live=0, gpus=1)}
    assert allot(wishes, 0, 2, Allowance(pending_jobs=1)) == {"big": 0, "small": 1}
    assert allot(wishes, 0, 2, Allowance(pending_jobs=3)) == {"big": 2, "small": 1}


def test_gpus_bound_what_is_submitted_and_small_ones_still_fit() -> None:
    wishes = {"70b": Wish(missing=1, live=0, gpus=4), "8b": Wish(missing=2, live=1, gpus=1)}
    assert allot(wishes, 0, 6, Allowance(gpus=8)) == {"70b": 0, "8b": 2}
    assert allot(wishes, 0, 4, Allowance(gpus=8)) == {"70b": 1, "8b": 0}


@pytest.mark.parametrize("pending", [5, 6])
def test_a_full_queue_gets_nothing_more(pending: int) -> None:
    assert allot({"m": Wish(2, 0, 1)}, pending, 0, Allowance(pending_jobs=5)) == {"m": 0}


def test_without_limits_everybody_gets_what_they_want() -> None:
    assert allot({"m": Wish(2, 0, 8), "n": Wish(7, 1, 1)}, 99, 99, Allowance()) == {"m": 2, "n": 7}
