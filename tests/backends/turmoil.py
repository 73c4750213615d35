"""Places under requests that come, end well or badly, and go away, in any order: a machine for hypothesis to drive."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from backends.errors import QueueFull, Unavailable
from backends.fixed import FixedEndpoint
from backends.model_places import ModelPlaces
from backends.places import Outcome, Priority, Seat, Want
from backends.replica_set import Rules

from .placing import Health, Launches, turns


class Turmoil(RuleBasedStateMachine):
    """Requests that come, end well or badly, and go away, in any order."""

    @initialize(limits=st.lists(st.integers(1, 3), min_size=1, max_size=4), alive=st.booleans())
    def begin(self, limits: list[int], alive: bool) -> None:
        self.runner = asyncio.Runner()
        self.now = 0.0
        self.limits = {f"r{number}": limit for number, limit in enumerate(limits)}
        self.endpoints = [FixedEndpoint(name, "h", 1, limit=limit) for name, limit in self.limits.items()]
        self.launcher = Launches(*self.endpoints)
        self.places = ModelPlaces(
            "m",
            self.launcher,
            rules=Rules(queue_size=6),
            health=Health(alive),
            clock=lambda: self.now,
        )
        self.tasks: list[asyncio.Task[Seat]] = []
        self.held: list[Seat] = []

    def run(self, what: Callable[[], Any]) -> None:
        async def in_loop() -> None:
            what()
            await turns()

        self.runner.run(in_loop())
        self.collect()

    def collect(self) -> None:
        for task in self.tasks:
            if task.done() and not task.cancelled():
                error = task.exception()
                if error is None:
                    self.held.append(task.result())
                else:
                    assert isinstance(error, QueueFull | Unavailable)
        self.tasks = [task for task in self.tasks if not task.done()]

    @rule(owner=st.sampled_from("abc"), priority=st.sampled_from(list(Priority)), affinity=st.integers(0, 2))
    def ask(self, owner: str, priority: Priority, affinity: int) -> None:
        want = Want(owner, priority, 500, affinity)

        def begin() -> None:
            seat = self.places.take_want(want)
            if seat is not None:
                self.held.append(seat)
            else:
                self.tasks.append(asyncio.create_task(self.places.wait_want(want), name="asks"))

        self.run(begin)

    @rule(which=st.integers(0, 100), outcome=st.sampled_from(list(Outcome)))
    def end(self, which: int, outcome: Outcome) -> None:
        if self.held:
            seat = self.held.pop(which % len(self.held))
            self.run(lambda: seat.leave(outcome, 700))

    @rule(which=st.integers(0, 100), outcome=st.sampled_from([None, Outcome.SERVED]))
    def go_away(self, which: int, outcome: Outcome | None) -> None:
        if not self.tasks:
            return
        task = self.tasks[which % len(self.tasks)]

        def both() -> None:
            if outcome is not None and self.held:
                self.held.pop().leave(outcome)
            task.cancel()

        self.run(both)

    @rule(count=st.integers(0, 4))
    def replicas_change(self, count: int) -> None:
        self.run(lambda: self.launcher.set(*self.endpoints[:count]))

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "places"):
            return
        held = Counter(seat.endpoint.replica_id for seat in self.held)
        for name, limit in self.limits.items():
            assert self.places.in_flight(name) == held[name]
            assert held[name] <= limit
        assert self.places.waiting() == len(self.tasks) <= 6

    def teardown(self) -> None:
        if not hasattr(self, "places"):
            return
        self.run(lambda: [task.cancel() for task in self.tasks])
        for seat in self.held:
            self.run(lambda seat=seat: seat.leave(Outcome.SERVED))  # type: ignore[misc]
        assert self.places.waiting() == 0
        assert all(self.places.in_flight(name) == 0 for name in self.limits)
        assert all(load.in_flight == 0 for load in self.places.snapshot().replicas)
        self.places.close()
        self.runner.close()
