"""Every metric that `/metrics` shows: its name, kind, labels and meaning.

Names follow Prometheus' conventions (base units, `_total`, `_seconds`) and, where there is one, the word of
OpenTelemetry's GenAI conventions. Label values come from the configuration or from our own code, never from a request:
so there are few, and nobody's name or words stand in them. Whose requests they were is in the usage tables, not here.

docs/observability.md and the dashboard are checked against this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


class Kind(Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Merge(Enum):
    """How the numbers of several processes become one."""

    SUM = "sum"
    LEAST = "least"
    GREATEST = "greatest"


@dataclass(frozen=True, slots=True)
class Family:
    """name    as the library wants it: without the `_total` of counters
    bounds  of a histogram's buckets, upwards, without infinity
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    merge: Merge = Merge.SUM

    @property
    def shown(self) -> str:
        """The name in the text: what queries are written with, for histograms without `_bucket` and its like."""
        return f"{self.name}_total" if self.kind is Kind.COUNTER else self.name


REQUEST_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKEN_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
LAG_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
START_S: Final = (1, 5, 10, 30, 60, 120, 180, 300, 600, 900, 1800, 3600, 7200, 21600)


def _counter(name: str, help: str, *labels: str, merge: Merge = Merge.SUM) -> Family:
    return Family(name, Kind.COUNTER, help, labels, merge=merge)


def _gauge(name: str, help: str, *labels: str, merge: Merge = Merge.SUM) -> Family:
    return Family(name, Kind.GAUGE, help, labels, merge=merge)


def _histogram(name: str, help: str, *labels: str, bounds: tuple[float, ...] = REQUEST_S) -> Family:
    return Family(name, Kind.HISTOGRAM, help, labels, bounds)


REQUESTS = _counter("slurmgate_requests", "Requests answered.", "model", "endpoint", "status")
IN_FLIGHT = _gauge("slurmgate_requests_in_flight", "Requests being answered.")
DURATION = _histogram(
    "slurmgate_request_duration_seconds", "From a request's arrival to the end of its answer.", "model", "endpoint"
)
FIRST_TOKEN = _histogram(
    "slurmgate_time_to_first_token_seconds",
    "From a request's arrival to the first bytes of its stream.",
    "model",
    "endpoint",
)
PER_TOKEN = _histogram(
    "slurmgate_time_per_output_token_seconds",
    "Inter-token latency, a stream's mean: from its first bytes to its end, by the tokens after the first.",
    "model",
    "endpoint",
    bounds=TOKEN_S,
)
TOKENS = _counter("slurmgate_tokens", "Tokens, as engines count them.", "model", "kind")
ERRORS = _counter("slurmgate_errors", "Requests that failed, by code.", "code")
REJECTED = _counter("slurmgate_rejected_requests", "Requests answered by 429 or 503, by reason.", "model", "reason")
RATE_LIMITED = _counter(
    "slurmgate_rate_limit_refusals", "Requests over a limit of their key or project, by kind of limit.", "kind"
)
RETRIES = _counter(
    "slurmgate_retries", "Attempts at a replica that failed and were made again at another one.", "model", "reason"
)
FALLBACKS = _counter("slurmgate_fallbacks", "Requests that another model answered.", "model", "reason")
QUEUE_LENGTH = _gauge("slurmgate_queue_length", "Requests waiting for a place at a replica.", "model", "class")
QUEUE_WAIT = _histogram(
    "slurmgate_queue_wait_seconds",
    "How long requests waited that had to, those that gave up included.",
    "model",
    "class",
)
SERVICE_RATE = _gauge(
    "slurmgate_service_rate", "Requests a second that leave the model's replicas: what retry-after is made of.", "model"
)
BATCHES = _gauge("slurmgate_batches", "Batches by state.", "state", merge=Merge.GREATEST)
BATCH_LINES = _counter("slurmgate_batch_lines", "Lines of batches that have their result.", "model", "result")
BATCH_IN_FLIGHT = _gauge("slurmgate_batch_lines_in_flight", "Lines of batches that are asked now.", "model")
REPLICAS = _gauge("slurmgate_replicas", "Replicas by state.", "model", "state")
REPLICA_IN_FLIGHT = _gauge("slurmgate_replica_requests_in_flight", "Requests on a replica.", "model", "replica")
REPLICA_LIMIT = _gauge("slurmgate_replica_limit", "Requests that a replica gets at once.", "model", "replica")
BREAKER = _gauge(
    "slurmgate_circuit_breaker", "1 for the state that a replica's circuit breaker is in.", "model", "replica", "state"
)
COLD_STARTS = _histogram(
    "slurmgate_cold_start_duration_seconds",
    "From a replica's submission until it was proven ready.",
    "model",
    bounds=START_S,
)
FAILED_STARTS = _counter("slurmgate_failed_replicas", "Replicas that ended by a fault, by reason.", "model", "reason")
TRIBUNALS = _counter(
    "slurmgate_tribunal_deliberations",
    "Deliberations that are over: how they came to their answer, and `answered`, or why it is less or none.",
    "model",
    "verdict",
    "outcome",
)
TRIBUNAL_CALLS = _counter(
    "slurmgate_tribunal_calls", "Calls of other models, by phase and what came of them.", "model", "phase", "outcome"
)
TRIBUNAL_PHASE = _histogram(
    "slurmgate_tribunal_phase_duration_seconds", "How long the phases of deliberations took.", "model", "phase"
)
LAG = _histogram(
    "slurmgate_event_loop_lag_seconds",
    "How late the event loop was to a timer that is due twice a second.",
    bounds=LAG_S,
)
PROCESSES = _gauge("slurmgate_processes", "Processes whose numbers these are.")
BUILD = _gauge("slurmgate_build_info", "1; what runs is in the labels.", "version", "python", merge=Merge.GREATEST)

CPU = _counter("process_cpu_seconds", "User and system CPU time, of all processes together.")
RESIDENT = _gauge("process_resident_memory_bytes", "Resident memory, of all processes together.")
VIRTUAL = _gauge("process_virtual_memory_bytes", "Virtual memory, of all processes together.")
OPEN_FDS = _gauge("process_open_fds", "Open file descriptors, of all processes together.")
MAX_FDS = _gauge("process_max_fds", "File descriptors that one process may open.", merge=Merge.LEAST)
STARTED = _gauge(
    "process_start_time_seconds", "When the oldest process started, in seconds since the epoch.", merge=Merge.LEAST
)

FAMILIES: Final = (
    REQUESTS, IN_FLIGHT, DURATION, FIRST_TOKEN, PER_TOKEN, TOKENS, ERRORS, REJECTED, RATE_LIMITED, RETRIES, FALLBACKS,
    QUEUE_LENGTH, QUEUE_WAIT, SERVICE_RATE, BATCHES, BATCH_LINES, BATCH_IN_FLIGHT, REPLICAS, REPLICA_IN_FLIGHT,
    REPLICA_LIMIT, BREAKER, COLD_STARTS, FAILED_STARTS, TRIBUNALS, TRIBUNAL_CALLS, TRIBUNAL_PHASE, LAG, PROCESSES,
    BUILD, CPU, RESIDENT, VIRTUAL, OPEN_FDS,
    MAX_FDS, STARTED,
)  # fmt: skip
"""In the order in which they are shown."""
