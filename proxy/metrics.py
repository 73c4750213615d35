"""Prometheus metrics. Label values come from the configuration or from our own code, never from a request.

What each request counts is kept in plain numbers and made into metrics when somebody looks: prometheus_client's own
counters take a lock each, and a histogram walks its buckets. There is one event loop, so nothing needs a lock here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from .record import Record

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class _Histogram:
    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, by upper bound."""
        seen = 0
        cumulative = []
        for bound, count in zip((*map(float, BUCKETS_S), float("inf")), self.counts, strict=True):
            seen += count
            cumulative.append(("+Inf" if bound == float("inf") else str(bound), float(seen)))
        return cumulative


class _Series:
    """The numbers of one (model, endpoint)."""

    __slots__ = ("completion_tokens", "duration", "first_byte", "prompt_tokens", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.duration = _Histogram()
        self.first_byte = _Histogram()
        self.prompt_tokens = 0
        self.completion_tokens = 0


class Metrics(Collector):
    """Everything that `/metrics` shows, in a registry of its own.

    replicas   gives (model, state) for each replica
    """

    def __init__(self, replicas: Callable[[], Iterable[tuple[str, str]]]) -> None:
        self.in_flight = 0
        self._replicas = replicas
        self._series: dict[tuple[str, str], _Series] = {}
        self._errors: Tally[str] = Tally()
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def observe(self, record: Record, elapsed_s: float) -> None:
        """Count a finished request."""
        series = self._series.get((record.model, record.endpoint))
        if series is None:
            series = self._series[record.model, record.endpoint] = _Series()
        series.statuses[record.status] = series.statuses.get(record.status, 0) + 1
        series.duration.observe(elapsed_s)
        if record.first_byte_s is not None:
            series.first_byte.observe(record.first_byte_s)
        series.prompt_tokens += record.prompt_tokens
        series.completion_tokens += record.completion_tokens
        if record.error:
            self._errors[record.error] += 1

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        labels = ["model", "endpoint"]
        requests = CounterMetricFamily("slurmgate_requests", "Requests answered.", labels=[*labels, "status"])
        duration = HistogramMetricFamily(
            "slurmgate_request_duration_seconds", "From a request's arrival to the end of its answer.", labels=labels
        )
        first_byte = HistogramMetricFamily(
            "slurmgate_time_to_first_token_seconds",
            "From a request's arrival to the first bytes of its stream.",
            labels=labels,
        )
        tokens = CounterMetricFamily("slurmgate_tokens", "Tokens, as engines count them.", labels=["model", "kind"])
        by_model: Tally[tuple[str, str]] = Tally()
        for (model, endpoint), series in self._series.items():
            for status, count in series.statuses.items():
                requests.add_metric([model, endpoint, str(status)], count)
            duration.add_metric([model, endpoint], series.duration.buckets(), series.duration.total)
            if any(series.first_byte.counts):
                first_byte.add_metric([model, endpoint], series.first_byte.buckets(), series.first_byte.total)
            by_model[model, "prompt"] += series.prompt_tokens
            by_model[model, "completion"] += series.completion_tokens
        for (model, kind), count in by_model.items():
            if model:
                tokens.add_metric([model, kind], count)
        errors = CounterMetricFamily("slurmgate_errors", "Requests that failed, by code.", labels=["code"])
        for code, count in self._errors.items():
            errors.add_metric([code], count)
        in_flight = GaugeMetricFamily("slurmgate_requests_in_flight", "Requests being answered.", value=self.in_flight)
        replicas = GaugeMetricFamily("slurmgate_replicas", "Replicas by state.", labels=["model", "state"])
        for (model, state), count in Tally(self._replicas()).items():
            replicas.add_metric([model, state], count)
        yield from (requests, duration, first_byte, tokens, errors, in_flight, replicas)
