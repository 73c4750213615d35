"""What is asked of each model, for the launcher's scaling: read from its places whenever the launcher looks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from backends.admission import admitted
from backends.model_places import ModelPlaces
from backends.places import Priority
from slurm_launcher.autoscale import Demand

from .metrics.families import FIRST_TOKEN

RECENT_S = 60.0
"""What a median time to first token is taken over."""


class Demands:
    """The demand for each model.

    places         of each model that engines answer for
    engine_of      the family of a model's engine, for what a replica takes that is not there yet
    first_tokens   gives how many times to first token of a model have fallen into each bucket so far
    """

    def __init__(
        self,
        places: Callable[[], Mapping[str, ModelPlaces]],
        *,
        first_tokens: Callable[[str], list[int]],
        engine_of: Callable[[str], str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._places = places
        self._first_tokens = first_tokens
        self._engine_of = engine_of
        self._clock = clock
        self._last_at: dict[str, float] = {}
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
        if in_flight or queued or batch or ended != self._ended.get(model, ended):
            self._last_at[model] = now
        self._ended[model] = ended
        limits = places.limits()
        capacity = sum(limits.values()) / len(limits) if limits else float(admitted(self._engine_of(model)))
        return Demand(
            in_flight=in_flight,
            queued=queued + batch,
            capacity=capacity,
            ttft_s=self._median(model, now),
            last_request_at=self._last_at.get(model),
        )

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
