"""How many replicas a model should have: a pure function of demand and of what was wanted before.

    Demand (now) + Scaling (the configuration) + Memory (what was wanted lately) --> decide --> replicas, new Memory
    what every model wants + what the service may have  ------------------------> allot  --> what each may submit

- **Up** at once, for what is in flight and queued, by at most `step_up` a step. What is asked for follows from the
  demand and not from what is running, so replicas that still wait in Slurm's queue are not asked for twice.
- **Down** only to the highest number that the demand asked for within `hold_down_s`, by `step_down` a step (Kubernetes'
  horizontal autoscaler calls this the stabilisation window). So a load that flaps keeps what its peaks need.
- **To zero** after `idle_s` without a request and without batch work; from zero for the first request.
- **Time to first token** above its goal asks for one more, once what was asked for before has become ready.
- **Warm hours** are a floor by the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

BUSY = 0.7
"""A replica is aimed at this share of what it takes at once: at 1.0 every burst would have to queue."""


@dataclass(frozen=True, slots=True)
class Warm:
    """Hours in which there shall be at least so many replicas. Local time of the gateway's machine.

    days        0 is Monday
    from_s, to_s   seconds since midnight; a `to_s` that is not later than `from_s` is on the next day
    """

    days: frozenset[int]
    from_s: int
    to_s: int
    replicas: int

    def covers(self, weekday: int, second: int) -> bool:
        if self.from_s < self.to_s:
            return weekday in self.days and self.from_s <= second < self.to_s
        return (weekday in self.days and second >= self.from_s) or (
            (weekday - 1) % 7 in self.days and second < self.to_s
        )


@dataclass(frozen=True, slots=True)
class Clock:
    """A moment: seconds since the epoch, and the same in local time (0 is Monday; seconds since midnight)."""

    now: float
    weekday: int = 0
    second: int = 0

    @classmethod
    def at(cls, now: float) -> Clock:
        local = time.localtime(now)
        return cls(now, local.tm_wday, (local.tm_hour * 60 + local.tm_min) * 60 + local.tm_sec)


@dataclass(frozen=True, slots=True)
class Scaling:
    """The configuration of one model.

    least, most     replicas; equal: a fixed number
    load            requests (in flight and queued) that one replica shall have; None: `BUSY` of what it takes at once
    ttft_goal_s     a median time to first token above this asks for one more replica
    idle_s          without a request for this long: down to `least`, which may be 0
    step_up, step_down   replicas added or taken away in one step
    hold_up_s       between two additions for the time to first token
    hold_down_s     the demand must have been lower for this long
    """

    least: int = 1
    most: int = 1
    load: float | None = None
    ttft_goal_s: float | None = None
    idle_s: float = 900.0
    step_up: int = 2
    step_down: int = 1
    hold_up_s: float = 60.0
    hold_down_s: float = 300.0
    warm: tuple[Warm, ...] = ()


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of one model now.

    in_flight, queued   requests, batch work aside
    batch_replicas      how many replicas its batch work could keep busy (0: none waits)
    interactive         of those in flight and queued, what is no batch work; None: all of them
    interactive_at      as `last_request_at`, of such requests
    capacity            requests that one replica takes at once
    ttft_s              median time to first token of the last minute, None without requests
    last_request_at     seconds since the epoch, None for never
    """

    in_flight: int = 0
    queued: int = 0
    batch_replicas: int = 0
    capacity: float = 1.0
    ttft_s: float | None = None
    last_request_at: float | None = None
    interactive: int | None = None
    interactive_at: float | None = None

    @property
    def without_batches(self) -> Demand:
        """What everybody else asks for."""
        requests = self.in_flight + self.queued if self.interactive is None else self.interactive
        return replace(self, in_flight=requests, queued=0, batch_replicas=0, last_request_at=self.interactive_at)

    @property
    def any(self) -> bool:
        return bool(self.in_flight or self.queued or self.batch_replicas)


@dataclass(frozen=True, slots=True)
class Supply:
    """What there is: replicas that take requests, and those on their way."""

    ready: int = 0
    coming: int = 0


@dataclass(frozen=True, slots=True)
class Memory:
    """What was wanted lately.

    wanted    the last decision
    peaks     (time, replicas that the demand asked for): falling, so only what may still be a maximum is kept
    raised_at when the time to first token last asked for one more
    changed_at   of the last decision that differed from the one before
    """

    wanted: int = 0
    peaks: tuple[tuple[float, int], ...] = ()
    raised_at: float = -math.inf
    changed_at: float = -math.inf


def decide(scaling: Scaling, demand: Demand, supply: Supply, memory: Memory, clock: Clock) -> Memory:
    """The next `Memory`, whose `wanted` is the answer."""
    now = clock.now
    floor = max(scaling.least, warm(scaling, clock))
    most = max(scaling.most, floor)
    asked = asked_for(scaling, demand, supply, memory, now)
    raised_at = memory.raised_at
    if slow(scaling, demand, supply, memory, now):
        asked = max(asked, memory.wanted + 1)
        raised_at = now
    peaks = remember(memory.peaks, asked, now, scaling.hold_down_s)
    highest = peaks[0][1]  # of the window
    before = memory.wanted
    if asked > before:
        wanted = min(asked, before + scaling.step_up)
    elif highest < before and now - memory.changed_at >= scaling.hold_up_s:
        wanted = max(highest, before - scaling.step_down)
    else:
        wanted = before
    wanted = min(max(wanted, floor), most)
    return Memory(wanted, peaks, raised_at, now if wanted != before else memory.changed_at)


def asked_for(scaling: Scaling, demand: Demand, supply: Supply, memory: Memory, now: float) -> int:
    """Replicas for the present demand, before limits and hysteresis."""
    load = scaling.load if scaling.load is not None else max(1.0, BUSY * demand.capacity)
    requests = demand.in_flight + demand.queued
    asked = max(math.ceil(requests / load), demand.batch_replicas)
    if supply.ready == 0:
        # a queue that has only waited so far says how long it has waited, not how much comes
        asked = min(asked, max(scaling.step_up, memory.wanted))
    idle = demand.last_request_at is None or now - demand.last_request_at >= scaling.idle_s
    return asked if idle and not demand.any else max(asked, 1)


def slow(scaling: Scaling, demand: Demand, supply: Supply, memory: Memory, now: float) -> bool:
    """Whether first tokens come too late, and what was asked for against it has become ready since."""
    if scaling.ttft_goal_s is None or demand.ttft_s is None or demand.ttft_s <= scaling.ttft_goal_s:
        return False
    return supply.ready >= memory.wanted and supply.coming == 0 and now - memory.raised_at >= scaling.hold_up_s


def remember(
    peaks: tuple[tuple[float, int], ...], asked: int, now: float, window_s: float
) -> tuple[tuple[float, int], ...]:
    """The maxima of a sliding window: the first is the window's highest, each later one is lower."""
    kept = [(at, count) for at, count in peaks if now - at < window_s and count > asked]
    return (*kept, (now, asked))


def warm(scaling: Scaling, clock: Clock) -> int:
    """The floor of the hour."""
    return max((hours.replicas for hours in scaling.warm if hours.covers(clock.weekday, clock.second)), default=0)


# -- what the service may have --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wish:
    """What one model wants to submit now.

    missing   replicas
    live      replicas that it has, those on their way included
    gpus      that one replica takes
    """

    missing: int
    live: int
    gpus: int


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the service may have at once, on all its models together; None: as much as it likes."""

    pending_jobs: int | None = None
    gpus: int | None = None


Wishing = TypeVar("Wishing", str, tuple[str, int])
"""A model, or one kind of its replicas by rank."""


def allot(wishes: Mapping[Wishing, Wish], pending: int, gpus: int, allowance: Allowance) -> dict[Wishing, int]:
    """How many replicas each may submit: one each in turn, those with the fewest replicas first.

    pending, gpus   jobs that wait in the queue, and GPUs that live replicas have or wait for
    """
    given = dict.fromkeys(wishes, 0)
    jobs_left = math.inf if allowance.pending_jobs is None else allowance.pending_jobs - pending
    gpus_left = math.inf if allowance.gpus is None else allowance.gpus - gpus
    while True:
        able = [
            name
            for name, wish in wishes.items()
            if given[name] < wish.missing and jobs_left >= 1 and wish.gpus <= gpus_left
        ]
        if not able:
            return given
        name = min(able, key=lambda name: (wishes[name].live + given[name], name))
        given[name] += 1
        jobs_left -= 1
        gpus_left -= wishes[name].gpus


def restarted(memory: Memory, live: int) -> Memory:
    """After the gateway's restart: what runs was wanted. It goes down from there as its demand says."""
    return replace(memory, wanted=live)
