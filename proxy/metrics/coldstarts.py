"""How long replicas take from their submission until they are proven, and which of them fail. Pure.

A replica's life is told by its own times (slurm_launcher/states.py); kept here is only what was counted already.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from .families import COLD_STARTS


class FailureView(Protocol):
    @property
    def kind(self) -> str: ...


class ReplicaView(Protocol):
    """What is needed of a replica, as the launcher knows it. Times are seconds since the epoch."""

    @property
    def id(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def created_at(self) -> float: ...
    @property
    def ready_at(self) -> float | None: ...
    @property
    def failure(self) -> FailureView | None: ...


@dataclass(slots=True)
class _Seen:
    """since   when it began to start; None for one that does not start any more"""

    since: float | None
    ended: bool = False


class ColdStarts:
    """durations   by model: as a histogram's number (state.py)
    failures    by (model, kind of failure)
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.durations: dict[str, list[float]] = {}
        self.failures: Tally[tuple[str, str]] = Tally()
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._first_look = True

    def look_at(self, replicas: Iterable[ReplicaView]) -> None:
        """Count what is new. What was over before the first look, an earlier process has counted."""
        there = {replica.id: replica for replica in replicas}
        for replica in there.values():
            self._look(replica)
        self._first_look = False
        for gone in self._seen.keys() - there.keys():
            del self._seen[gone]

    def _look(self, replica: ReplicaView) -> None:
        known = self._seen.get(replica.id)
        seen = known or self._seen.setdefault(replica.id, _Seen(replica.created_at))
        counts = known is not None or not self._first_look
        match replica.status:
            case "pending" | "starting":
                if seen.since is None:  # requeued by Slurm, or its engine was started again: another start
                    seen.since = self._clock()
            case "ready" | "draining":
                if counts and seen.since is not None and replica.ready_at is not None:
                    self._count(replica.model, max(0.0, replica.ready_at - seen.since))
                seen.since = None
            case _:
                if counts and not seen.ended and replica.failure is not None:
                    self.failures[replica.model, replica.failure.kind] += 1
                seen.since, seen.ended = None, True

    def _count(self, model: str, seconds: float) -> None:
        number = self.durations.setdefault(model, [0.0] * (len(COLD_STARTS.bounds) + 2))
        number[bisect_left(COLD_STARTS.bounds, seconds)] += 1
        number[-1] += seconds
