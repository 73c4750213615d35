"""What is asked of each model, for the launcher's scaling: read from its places whenever the launcher looks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from backends.admission import admitted
from backends.model_places import ModelPlaces
from backends.places import Priority
from slurm_launcher.autoscale import Demand

from .control import BatchWork
from .metrics.families import FIRST_TOKEN

RECENT_S = 60.0
"""What a median time to first token is taken over."""


TOLD_EVERY_S = 1.5
"""What batches tell of their lines in flight may be so old."""

FORGOTTEN_S = 30.0
"""What a process has told of its batches, and not told again since."""


class Batches:
    """What batches ask of each model, as the processes that run them tell it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[object, tuple[float, Mapping[str, BatchWork]]] = {}

    def tell(self, work: Mapping[str, BatchWork], process: object = None) -> None:
        self._told[process] = self._clock(), work

    def forget(self, process: object) -> None:
        """It has ended."""
        self._told.pop(process, None)

    def of(self, model: str) -> BatchWork:
        """All processes see the same batches; each has lines of its own in flight."""
        oldest = self._clock() - FORGOTTEN_S
        self._told = {process: told for process, told in self._told.items() if told[0] >= oldest}
        found = [work[model] for _, work in self._told.values() if model in work]
        return BatchWork(max((work.replicas for work in found), default=0), sum(work.in_flight for work in found))


class Demands:
    """The demand for each model.

    places         of each model that engines answer for
    engine_of      the family of a model's engine, for what a replica takes that is not there yet
    batches        what they ask for. Their lines are no requests: they would ask for as much as there is
    first_tokens   gives how many times to first token of a model have fallen into each bucket so far
    """

    def __init__(
        self,
        places: Callable[[], Mapping[str, ModelPlaces]],
        *,
        first_tokens: Callable[[str], list[int]],
        engine_of: Callable[[str], str],
        batches: Batches | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._places = places
        self._first_tokens = first_tokens
        self._engine_of = engine_of
        self._batches = batches or Batches()
        self._clock = clock
        self._last_at: dict[str, float] = {}
        self._interactive_at: dict[str, float] = {}
        self._others: dict[str, tuple[float, int]] = {}
        self._ended: dict[str, tuple[int, float]] = {}
        self._seen: dict[str, deque[tuple[float, list[int]]]] = {}

    def of(self, model: str) -> Demand:
        """Of one model, now."""
        places = self._places().get(model)
        if places is None:
            return Demand()
        now = self._clock()
        seen = places.snapshot()
        in_flight = sum(replica.in_flight for replica in seen.replicas)
        queued, batch = seen.waiting[Priority.INTERACTIVE], seen.waiting[Priority.BATCH]
        ended = (places.rate.count, places.rate.total_s)
        has_ended = ended != self._ended.get(model, ended)
        if in_flight or queued or batch or has_ended:
            self._last_at[model] = now
        self._ended[model] = ended
        limits = places.limits()
        work = self._batches.of(model)
        queued += batch
        of_batches = min(queued, work.in_flight)
        in_flight = max(0, in_flight - (work.in_flight - of_batches))
        busy = bool(work.replicas or work.in_flight)
        interactive = seen.waiting[Priority.INTERACTIVE] + self._steady(model, in_flight, now, busy=busy)
        # while lines run, what has ended between two looks was one of them, most likely
        if interactive or (has_ended and not busy and not batch):
            self._interactive_at[model] = now
        capacity = sum(limits.values()) / len(limits) if limits else float(admitted(self._engine_of(model)))
        return Demand(
            in_flight=in_flight,
            queued=queued - of_batches,
            batch_replicas=work.replicas,
            capacity=capacity,
            ttft_s=self._median(model, now),
            last_request_at=self._last_at.get(model),
            interactive=interactive,
            interactive_at=self._interactive_at.get(model),
        )

    def _steady(self, model: str, in_flight: int, now: float, *, busy: bool) -> int:
        """Requests in flight that are no lines of batches: while lines run, those that an earlier look has seen too."""
        at, before = self._others.get(model, (float("-inf"), 0))
        if now - at >= TOLD_EVERY_S:
            self._others[model] = now, in_flight
        return min(in_flight, before) if busy else in_flight

    def _median(self, model: str, now: float) -> float | None:
        """Of the times to first token of the last minute, as the upper bound of the bucket it is in."""
        counts = self._first_tokens(model)
        seen = self._seen.setdefault(model, deque())
        seen.append((now, counts))
        while len(seen) > 1 and now - seen[1][0] >= RECENT_S:
            seen.popleft()
        if not counts:
            return None
        recent = [new - old for new, old in zip(counts, seen[0][1], strict=True)]
        return median_of(FIRST_TOKEN.bounds, recent)


def median_of(bounds: tuple[float, ...], counts: list[int]) -> float | None:
    """Of a histogram; None for an empty one, infinity beyond its last bound."""
    half, below = sum(counts) / 2, 0
    if not half:
        return None
    for bound, count in zip((*bounds, float("inf")), counts, strict=True):
        below += count
        if below >= half:
            return bound
    return None
