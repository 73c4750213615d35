"""What is known of models now, as gauges: places and queues, replicas by state."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from . import families as f
from .coldstarts import ReplicaView
from .state import State

if TYPE_CHECKING:
    from backends.model_places import Snapshot

Breaker = Literal["closed", "half_open", "open"]
BREAKER_STATES: tuple[Breaker, ...] = ("closed", "half_open", "open")


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """limit   requests it gets at once now, None without one"""

    replica_id: str
    in_flight: int
    limit: int | None = None
    breaker: Breaker = "closed"


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """One model's places and queue.

    waiting        requests in its queue, by class ("interactive", "batch")
    service_rate   requests a second that leave its replicas, as measured; None while nobody knows
    """

    model: str
    waiting: Mapping[str, int] = field(default_factory=dict)
    replicas: tuple[ReplicaLoad, ...] = ()
    service_rate: float | None = None


Replicas = Callable[[], Iterable[tuple[str, str]]]
"""Gives (model, state) for each replica."""

Loads = Callable[[], Iterable[ModelLoad]]

Lives = Callable[[], Iterable[ReplicaView]]


def load_of(snapshot: Snapshot) -> ModelLoad:
    """What the places of a model say of themselves."""
    replicas = tuple(ReplicaLoad(r.replica_id, r.in_flight, r.limit, r.breaker.value) for r in snapshot.replicas)
    waiting = {priority.name.lower(): count for priority, count in snapshot.waiting.items()}
    return ModelLoad(snapshot.model, waiting, replicas, snapshot.per_second)


def state_of_models(replicas: Iterable[tuple[str, str]], loads: Iterable[ModelLoad]) -> State:
    """A replica may be there twice: under its new address, and under the one that requests are still going to."""
    lengths: dict[tuple[str, ...], float] = {}
    rates: dict[tuple[str, ...], float] = {}
    in_flight: Tally[tuple[str, ...]] = Tally()
    limits: dict[tuple[str, ...], float] = {}
    breakers: dict[tuple[str, ...], float] = {}
    for load in loads:
        lengths |= {(load.model, name): count for name, count in load.waiting.items()}
        if load.service_rate is not None:
            rates[load.model,] = load.service_rate
        for replica in load.replicas:
            labels = (load.model, replica.replica_id)
            in_flight[labels] += replica.in_flight
            if replica.limit is not None:
                limits.setdefault(labels, replica.limit)
            for name in BREAKER_STATES:
                breakers.setdefault((*labels, name), float(replica.breaker == name))
    return {
        f.REPLICAS.name: list(Tally(replicas).items()),
        f.QUEUE_LENGTH.name: list(lengths.items()),
        f.SERVICE_RATE.name: list(rates.items()),
        f.REPLICA_IN_FLIGHT.name: list(in_flight.items()),
        f.REPLICA_LIMIT.name: list(limits.items()),
        f.BREAKER.name: list(breakers.items()),
    }
