"""Prometheus metrics. Label values come from the configuration or from our own code, never from a request."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from .record import Record

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class _Bound:
    """The children of one (model, endpoint), bound once: looking labels up costs more than counting."""

    __slots__ = ("completion_tokens", "duration", "first_byte", "prompt_tokens", "requests")

    def __init__(self, metrics: Metrics, model: str, endpoint: str) -> None:
        self.requests: dict[int, Counter] = {}
        self.duration = metrics.duration.labels(model, endpoint)
        self.first_byte = metrics.first_byte.labels(model, endpoint)
        self.prompt_tokens = metrics.tokens.labels(model, "prompt")
        self.completion_tokens = metrics.tokens.labels(model, "completion")


class Metrics:
    """Everything that `/metrics` shows, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "slurmgate_requests", "Requests answered.", ["model", "endpoint", "status"], registry=self.registry
        )
        self.errors = Counter("slurmgate_errors", "Requests that failed, by code.", ["code"], registry=self.registry)
        self.in_flight = Gauge("slurmgate_requests_in_flight", "Requests being answered.", registry=self.registry)
        self.duration = Histogram(
            "slurmgate_request_duration_seconds",
            "From a request's arrival to the end of its answer.",
            ["model", "endpoint"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first_byte = Histogram(
            "slurmgate_time_to_first_token_seconds",
            "From a request's arrival to the first bytes of its stream.",
            ["model", "endpoint"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.tokens = Counter(
            "slurmgate_tokens", "Tokens, as engines count them.", ["model", "kind"], registry=self.registry
        )
        self._bound: dict[tuple[str, str], _Bound] = {}
        self._errors: dict[str, Counter] = {}

    def watch_replicas(self, states: Callable[[], Iterable[tuple[str, str]]]) -> None:
        """Show the replicas by model and state; `states` gives a pair for each."""
        self.registry.register(_Replicas(states))

    def observe(self, record: Record, elapsed_s: float) -> None:
        """Count a finished request."""
        bound = self._bound.get((record.model, record.endpoint))
        if bound is None:
            bound = self._bound[record.model, record.endpoint] = _Bound(self, record.model, record.endpoint)
        requests = bound.requests.get(record.status)
        if requests is None:
            requests = self.requests.labels(record.model, record.endpoint, str(record.status))
            bound.requests[record.status] = requests
        requests.inc()
        bound.duration.observe(elapsed_s)
        if record.first_byte_s is not None:
            bound.first_byte.observe(record.first_byte_s)
        if record.prompt_tokens:
            bound.prompt_tokens.inc(record.prompt_tokens)
        if record.completion_tokens:
            bound.completion_tokens.inc(record.completion_tokens)
        if record.error:
            error = self._errors.get(record.error)
            if error is None:
                error = self._errors[record.error] = self.errors.labels(record.error)
            error.inc()

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)


class _Replicas(Collector):
    def __init__(self, states: Callable[[], Iterable[tuple[str, str]]]) -> None:
        self._states = states

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily("slurmgate_replicas", "Replicas by state.", labels=["model", "state"])
        for (model, state), count in Tally(self._states()).items():
            family.add_metric([model, state], count)
        yield family
