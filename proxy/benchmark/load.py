"""The users: each sends a request, waits for its answer, sends the next one. Targets take turns.

    measure --> for each number of users: turns, each of every target --> Cell (one a number of users and target)

Cells grow while requests are answered, so that whoever stops the measurement has what was measured until then.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from .asking import Client, ask, client_for
from .figures import Figures, Sample, summary
from .prompts import Prompts, Ticket
from .targets import Target

ERROR_PAUSE_S = 0.5
"""A user whose request failed waits this long: refusals come at once, and a loop of them would measure only itself."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    users       numbers of users at once, in this order
    requests    each user sends so many at each target, all turns together; None if time decides
    duration_s  at each number of users each target is loaded so long, all turns together; what is under way is finished
    turns       of each target at each number of users
    extra       more fields of the request's body
    """

    model: str
    prompts: Prompts
    users: tuple[int, ...]
    requests: int | None = 8
    duration_s: float | None = None
    turns: int = 2
    stream: bool = True
    timeout_s: float = 600.0
    extra: Mapping[str, Any] = field(default_factory=dict)
    error_pause_s: float = ERROR_PAUSE_S

    def requests_in(self, turn: int) -> int | None:
        """Of one user, None where time decides. Adds up to `requests`."""
        if self.requests is None:
            return None
        return self.requests // self.turns + (turn < self.requests % self.turns)

    @property
    def turn_s(self) -> float | None:
        return None if self.duration_s is None else self.duration_s / self.turns

    def body(self, ticket: Ticket) -> bytes:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": self.prompts.text(ticket)}],
            "max_tokens": self.prompts.lengths(ticket)[1],
            "temperature": 0,
            "stream": self.stream,
        }
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        return orjson.dumps({**body, **self.extra})


@dataclass(slots=True)
class Cell:
    """One target at one number of users."""

    users: int
    target: str
    samples: list[Sample] = field(default_factory=list)
    wall_s: float = 0.0
    complete: bool = False

    def figures(self) -> Figures:
        return summary(self.samples, self.users, self.wall_s)


class Watcher(Protocol):
    """Who is told how it goes."""

    def turn_begins(self, cell: Cell, turn: int) -> None: ...
    def answered(self, cell: Cell, sample: Sample, elapsed_s: float) -> None: ...
    def turn_ended(self, cell: Cell) -> None: ...


class Clients:
    """A target's connections, open as long as the measurement."""

    def __init__(self, target: Target, timeout_s: float) -> None:
        self.target = target
        self.each = [client_for(place, timeout_s) for place in target.places]

    def of(self, user: int) -> Client:
        return self.each[user % len(self.each)]

    async def aclose(self) -> None:
        for client in self.each:
            await client.aclose()


async def measure(plan: Plan, targets: Sequence[Clients], cells: list[Cell], watcher: Watcher) -> None:
    """Appends to `cells`, which hold what there is at any moment. Cancelling it is how to stop it."""
    for level, users in enumerate(plan.users):
        here = {clients.target.name: Cell(users, clients.target.name) for clients in targets}
        cells += here.values()
        for turn in range(plan.turns):
            first = (level + turn) % len(targets)
            for clients in (*targets[first:], *targets[:first]):
                await _turn(plan, clients, here[clients.target.name], turn, watcher)
        for cell in here.values():
            cell.complete = True


async def _turn(plan: Plan, clients: Clients, cell: Cell, turn: int, watcher: Watcher) -> None:
    bodies = [_bodies(plan, cell, turn, user) for user in range(cell.users)]
    first = [next(each) for each in bodies]  # made before the clock runs
    watcher.turn_begins(cell, turn)
    gc.collect()
    gc.disable()
    begun = time.perf_counter()
    tasks = []
    try:
        async with asyncio.TaskGroup() as group:
            for user, body in enumerate(first):
                sending = _user(
                    plan,
                    clients.of(user),
                    itertools.chain((body,), bodies[user]),
                    cell,
                    left=plan.requests_in(turn),
                    begun=begun,
                    watcher=watcher,
                )
                tasks.append(group.create_task(sending, name=f"user {user}"))
    finally:
        cell.wall_s += time.perf_counter() - begun
        gc.enable()
    watcher.turn_ended(cell)


def _bodies(plan: Plan, cell: Cell, turn: int, user: int) -> Iterator[bytes]:
    index = 0
    while True:
        yield plan.body(Ticket(cell.target, cell.users, turn, user, index))
        index += 1


async def _user(
    plan: Plan,
    client: Client,
    bodies: Iterator[bytes],
    cell: Cell,
    *,
    left: int | None,
    begun: float,
    watcher: Watcher,
) -> None:
    """left   requests to send, None where time decides"""
    if left == 0:
        return
    for body in bodies:
        sample = await ask(client, body, stream=plan.stream, timeout_s=plan.timeout_s)
        cell.samples.append(sample)
        elapsed_s = time.perf_counter() - begun
        watcher.answered(cell, sample, elapsed_s)
        if left is not None:
            left -= 1
        elif plan.turn_s is not None and elapsed_s >= plan.turn_s:
            return
        if left == 0:
            return
        if sample.error is not None:
            await asyncio.sleep(plan.error_pause_s)
