"""Counting what happens, in plain numbers: one event loop, so nothing needs a lock.

prometheus_client's own counters take a lock each, and a histogram walks its buckets. Here a finished request costs a
few additions; metrics are made of the numbers when somebody looks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterable

from proxy.record import Record

from . import families as f
from .coldstarts import ColdStarts, ReplicaView
from .state import Number, State

CODES = 200
"""Kinds of errors that are told apart: engines name some of them, and nothing says how many they know."""

CLASSES = ("interactive", "batch")
"""Names of priorities, by their number (backends/places.py)."""


class Histogram:
    """`counts` by bucket, the last one beyond every bound; `total` of what was observed."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def number(self) -> Number:
        """As states have it."""
        return [*self.counts, self.total]


class _Series:
    """The numbers of one (model, endpoint)."""

    __slots__ = ("completion_tokens", "duration", "first_token", "per_token", "prompt_tokens", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.duration = Histogram(f.DURATION.bounds)
        self.first_token = Histogram(f.FIRST_TOKEN.bounds)
        self.per_token = Histogram(f.PER_TOKEN.bounds)
        self.prompt_tokens = 0
        self.completion_tokens = 0


class Counts:
    """What one process has counted since it started."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.lag = Histogram(f.LAG.bounds)
        self._series: dict[tuple[str, str], _Series] = {}
        self._errors: Tally[str] = Tally()
        self._rejected: Tally[tuple[str, str]] = Tally()
        self._rate_limited: Tally[str] = Tally()
        self._retries: Tally[tuple[str, str]] = Tally()
        self._fallbacks: Tally[tuple[str, str]] = Tally()
        self._waits: dict[tuple[str, int], Histogram] = {}
        self._starts = ColdStarts()

    def observe(self, record: Record, elapsed_s: float) -> None:
        """Count a finished request."""
        series = self._series.get((record.model, record.endpoint))
        if series is None:
            series = self._series[record.model, record.endpoint] = _Series()
        statuses = series.statuses
        statuses[record.status] = statuses.get(record.status, 0) + 1
        series.duration.observe(elapsed_s)
        series.prompt_tokens += record.prompt_tokens
        tokens = record.completion_tokens
        series.completion_tokens += tokens
        first = record.first_byte_s
        if first is not None:
            series.first_token.observe(first)
            if tokens > 1:
                series.per_token.observe((elapsed_s - first) / (tokens - 1))
        if record.error:
            self._errors[self._code(record.error)] += 1
        if record.trail is not None:
            self._unusual(record)

    def _unusual(self, record: Record) -> None:
        trail = record.trail
        assert trail is not None  # noqa: S101  # the caller's condition, told to the type checker
        if trail.refusal:
            self._rejected[record.model, trail.refusal] += 1
        if trail.limit:
            self._rate_limited[trail.limit] += 1
        if trail.fallback:
            self._fallbacks[trail.asked, trail.fallback] += 1
        made_again = trail.failed if record.served_by else trail.failed[:-1]
        for attempt in made_again:
            self._retries[trail.asked or record.model, self._code(attempt.reason)] += 1

    def _code(self, code: str) -> str:
        return code if code in self._errors or len(self._errors) < CODES else "other"

    def observe_wait(self, model: str, priority: int, seconds: float) -> None:
        """A request of that class has left the model's queue, one way or the other."""
        waits = self._waits.get((model, priority))
        if waits is None:
            waits = self._waits[model, priority] = Histogram(f.QUEUE_WAIT.bounds)
        waits.observe(seconds)

    def first_tokens(self, model: str) -> list[int]:
        """How many times to first token of a model have fallen into each bucket of `families.FIRST_TOKEN`."""
        counts = [0] * (len(f.FIRST_TOKEN.bounds) + 1)
        for (name, _), series in self._series.items():
            if name == model:
                counts = [a + b for a, b in zip(counts, series.first_token.counts, strict=True)]
        return counts

    def look_at(self, replicas: Iterable[ReplicaView]) -> None:
        """What is known of replicas now; called often enough to see each of their states."""
        self._starts.look_at(replicas)

    def state(self) -> State:
        state: State = {
            f.IN_FLIGHT.name: [([], self.in_flight)],
            f.LAG.name: [([], self.lag.number())],
            f.ERRORS.name: [([code], count) for code, count in self._errors.items()],
            f.REJECTED.name: [(labels, count) for labels, count in self._rejected.items()],
            f.RATE_LIMITED.name: [([kind], count) for kind, count in self._rate_limited.items()],
            f.RETRIES.name: [(labels, count) for labels, count in self._retries.items()],
            f.FALLBACKS.name: [(labels, count) for labels, count in self._fallbacks.items()],
            f.QUEUE_WAIT.name: [
                ([model, CLASSES[priority]], waits.number()) for (model, priority), waits in self._waits.items()
            ],
            f.COLD_STARTS.name: [([model], list(number)) for model, number in self._starts.durations.items()],
            f.FAILED_STARTS.name: [(labels, count) for labels, count in self._starts.failures.items()],
        }
        state |= self._of_requests()
        return state

    def _of_requests(self) -> State:
        tokens: Tally[tuple[str, str]] = Tally()
        state: State = {family.name: [] for family in (f.REQUESTS, f.DURATION, f.FIRST_TOKEN, f.PER_TOKEN)}
        for (model, endpoint), series in self._series.items():
            labels = [model, endpoint]
            state[f.REQUESTS.name] += [([*labels, str(status)], count) for status, count in series.statuses.items()]
            for family, histogram in (
                (f.DURATION, series.duration),
                (f.FIRST_TOKEN, series.first_token),
                (f.PER_TOKEN, series.per_token),
            ):
                if any(histogram.counts):
                    state[family.name].append((labels, histogram.number()))
            if model:
                tokens[model, "prompt"] += series.prompt_tokens
                tokens[model, "completion"] += series.completion_tokens
        state[f.TOKENS.name] = [(labels, count) for labels, count in tokens.items()]
        return state
