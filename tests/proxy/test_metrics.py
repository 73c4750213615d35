"""Metrics: what is counted, how several processes' numbers become one, and the text that comes of it."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from backends import model_places as places
from backends.breaker import State as BreakerState
from backends.errors import (
    ConnectFailed,
    EngineRefused,
    GatewayError,
    QueueFull,
    QuotaExceeded,
    RateLimited,
    Unavailable,
)
from backends.places import Priority
from proxy.metrics import (
    BatchLines,
    BatchNumbers,
    Metrics,
    ModelLoad,
    ReplicaLoad,
    State,
    counted,
    exposition,
    load_of,
    merged,
)
from proxy.metrics.coldstarts import ColdStarts
from proxy.metrics.counting import CODES
from proxy.metrics.families import FAMILIES, Kind
from proxy.metrics.state import counts_of
from proxy.record import Record
from slurm_launcher.states import Failure, Replica, Status, advance
from tests.proxy.test_deliberations import over
from tests.waiting import until

CHAT = "/v1/chat/completions"


def finished(**values: Any) -> Record:
    record = Record("POST", CHAT)
    for name, value in {"endpoint": CHAT, "model": "org/m", "status": 200, **values}.items():
        setattr(record, name, value)
    return record


def samples(state: State) -> dict[str, dict[tuple[str, ...], float]]:
    """Everything in the text: a sample's name -> its labels' values, sorted by the labels' names -> the value."""
    text, _ = exposition(state)
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in parse_text(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(value for _, value in sorted(sample.labels.items()))] = sample.value
    return found


# -- what is counted -------------------------------------------------------------------------------------------------


def test_a_request_is_counted_with_its_time_and_its_tokens() -> None:
    metrics = Metrics()
    metrics.observe(finished(prompt_tokens=7, completion_tokens=3), 0.2)
    shown = samples(metrics.state())
    assert shown["slurmgate_requests_total"] == {(CHAT, "org/m", "200"): 1}
    assert shown["slurmgate_request_duration_seconds_sum"] == {(CHAT, "org/m"): 0.2}
    assert shown["slurmgate_request_duration_seconds_bucket"][CHAT, "0.1", "org/m"] == 0
    assert shown["slurmgate_request_duration_seconds_bucket"][CHAT, "0.25", "org/m"] == 1
    assert shown["slurmgate_tokens_total"] == {("prompt", "org/m"): 7, ("completion", "org/m"): 3}
    assert "slurmgate_time_to_first_token_seconds_count" not in shown


def test_the_time_per_output_token_is_that_of_the_tokens_after_the_first() -> None:
    metrics = Metrics()
    metrics.observe(finished(stream=True, first_byte_s=0.5, completion_tokens=11), 1.0)
    metrics.observe(finished(stream=True, first_byte_s=0.5, completion_tokens=1), 1.0)  # nothing came after it
    metrics.observe(finished(stream=True, first_byte_s=0.5, completion_tokens=0), 1.0)  # the engine told no usage
    shown = samples(metrics.state())
    assert shown["slurmgate_time_to_first_token_seconds_count"] == {(CHAT, "org/m"): 3}
    assert shown["slurmgate_time_per_output_token_seconds_count"] == {(CHAT, "org/m"): 1}
    assert shown["slurmgate_time_per_output_token_seconds_sum"][CHAT, "org/m"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("error", "reason", "kind"),
    [
        (QueueFull("full"), "queue_full", ""),
        (Unavailable("nothing runs"), "unavailable", ""),
        (Unavailable("waited too long", code="queue_timeout"), "queue_timeout", ""),
        (Unavailable("too late", code="deadline_exceeded"), "deadline_exceeded", ""),
        (RateLimited("too many", kind="tokens"), "rate_limit", "tokens"),
        (QuotaExceeded("used up"), "quota", "insufficient_quota"),
        (EngineRefused("busy", status=429, type="requests"), "engine_overloaded", ""),
        (GatewayError("ours"), "", ""),
        (ConnectFailed("no"), "", ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, GatewayError) else value,
)
def test_refused_requests_are_told_apart(error: GatewayError, reason: str, kind: str) -> None:
    metrics = Metrics()
    record = finished(status=error.status)
    record.fail(error)
    metrics.observe(record, 0.1)
    shown = samples(metrics.state())
    assert shown.get("slurmgate_rejected_requests_total", {}) == ({("org/m", reason): 1} if reason else {})
    assert shown.get("slurmgate_rate_limit_refusals_total", {}) == ({(kind,): 1} if kind else {})
    assert shown["slurmgate_errors_total"] == {(error.code or error.type,): 1}


def test_retries_are_counted_by_what_went_wrong_and_fallbacks_by_the_model_that_was_asked() -> None:
    metrics = Metrics()
    record = finished(model="org/second", served_by="second-1")
    record.attempt_failed("a", "engine_unreachable")
    record.attempt_failed("b", "engine_unreachable")
    record.fell_back("org/m", "unavailable")
    metrics.observe(record, 0.1)
    shown = samples(metrics.state())
    assert shown["slurmgate_retries_total"] == {("org/m", "engine_unreachable"): 2}
    assert shown["slurmgate_fallbacks_total"] == {("org/m", "unavailable"): 1}


def test_an_attempt_after_which_there_was_no_other_is_no_retry() -> None:
    metrics = Metrics()
    record = finished(status=502)
    record.attempt_failed("a", "engine_unreachable")
    record.attempt_failed("b", "engine_disconnected")
    metrics.observe(record, 0.1)
    assert samples(metrics.state())["slurmgate_retries_total"] == {("org/m", "engine_unreachable"): 1}


def test_engines_cannot_name_endless_kinds_of_errors() -> None:
    metrics = Metrics()
    for number in range(CODES + 50):
        metrics.observe(finished(error=f"engine_said_{number}"), 0.1)
    errors = samples(metrics.state())["slurmgate_errors_total"]
    assert len(errors) == CODES + 1
    assert errors["other",] == 50


def test_waits_are_counted_by_class() -> None:
    metrics = Metrics()
    metrics.observe_wait("org/m", 0, 0.3)
    metrics.observe_wait("org/m", 1, 20.0)
    shown = samples(metrics.state())
    assert shown["slurmgate_queue_wait_seconds_sum"] == {("interactive", "org/m"): 0.3, ("batch", "org/m"): 20.0}


def test_places_queues_and_replicas_are_shown_as_they_are_now() -> None:
    replicas = [("org/m", "ready"), ("org/m", "ready"), ("org/m", "starting")]
    load = ModelLoad(
        "org/m",
        {"interactive": 4, "batch": 0},
        (ReplicaLoad("m-1", 3, 8), ReplicaLoad("m-2", 0, None, "open")),
        service_rate=2.5,
    )
    shown = samples(Metrics(lambda: replicas, lambda: [load]).state())
    assert shown["slurmgate_replicas"] == {("org/m", "ready"): 2, ("org/m", "starting"): 1}
    assert shown["slurmgate_queue_length"] == {("interactive", "org/m"): 4, ("batch", "org/m"): 0}
    assert shown["slurmgate_replica_requests_in_flight"] == {("org/m", "m-1"): 3, ("org/m", "m-2"): 0}
    assert shown["slurmgate_replica_limit"] == {("org/m", "m-1"): 8}
    assert shown["slurmgate_circuit_breaker"]["org/m", "m-2", "open"] == 1
    assert shown["slurmgate_circuit_breaker"]["org/m", "m-1", "open"] == 0
    assert shown["slurmgate_circuit_breaker"]["org/m", "m-1", "closed"] == 1
    assert shown["slurmgate_service_rate"] == {("org/m",): 2.5}


def test_a_snapshot_of_places_is_shown_and_a_replica_that_moved_is_shown_once() -> None:
    old = places.ReplicaLoad("m-1", 2, 8, 8, BreakerState.OPEN)
    new = places.ReplicaLoad("m-1", 1, 4, 8, BreakerState.HALF_OPEN)
    snapshot = places.Snapshot("org/m", {Priority.BATCH: 3}, (new, old), 1.5, full=0, late=0)
    state = Metrics(loads=lambda: [load_of(snapshot)]).state()
    assert strictly(exposition(state)[0].decode().rstrip("\n").split("\n"))
    shown = samples(state)
    assert shown["slurmgate_queue_length"] == {("batch", "org/m"): 3}
    assert shown["slurmgate_replica_requests_in_flight"] == {("org/m", "m-1"): 3}
    assert shown["slurmgate_replica_limit"] == {("org/m", "m-1"): 4}
    assert shown["slurmgate_circuit_breaker"]["org/m", "m-1", "half_open"] == 1
    assert shown["slurmgate_service_rate"] == {("org/m",): 1.5}


def test_the_process_tells_of_itself() -> None:
    shown = samples(Metrics().state())
    assert shown["process_cpu_seconds_total"][()] > 0
    assert shown["process_resident_memory_bytes"][()] > 1e6
    assert shown["process_open_fds"][()] > 2
    assert list(shown["slurmgate_build_info"].values()) == [1]


async def test_how_late_the_event_loop_is_is_measured_and_replicas_are_looked_at_meanwhile() -> None:
    replica = Replica("a", "org/m", "hash", created_at=0.0)
    metrics = Metrics(lives=lambda: [replica])
    task = asyncio.create_task(metrics.watch(), name="metrics")
    await until(lambda: sum(metrics.lag.counts))
    replica = replace(replica, status=Status.READY, ready_at=70.0)
    await until(lambda: samples(metrics.state()).get("slurmgate_cold_start_duration_seconds_sum"))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert samples(metrics.state())["slurmgate_event_loop_lag_seconds_count"][()] == sum(metrics.lag.counts)


# -- cold starts -----------------------------------------------------------------------------------------------------


class Lives:
    """A launcher's replicas, and a clock that goes on when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.starts = ColdStarts(lambda: self.now)
        self.replicas: dict[str, Replica] = {}
        self.look()

    def submit(self, replica_id: str) -> None:
        self.replicas[replica_id] = Replica(replica_id, "org/m", "hash", created_at=self.now)
        self.look()

    def goes(self, replica_id: str, status: Status, failure: Failure | None = None) -> None:
        self.replicas[replica_id] = advance(self.replicas[replica_id], status, self.now, failure)
        self.look()

    def look(self, starts: ColdStarts | None = None) -> None:
        (starts or self.starts).look_at(self.replicas.values())

    def counted(self) -> tuple[float, float]:
        """How many, and seconds in sum."""
        number = self.starts.durations.get("org/m", [0.0])
        return sum(number[:-1]), number[-1]


def test_a_cold_start_lasts_from_the_submission_to_the_proof() -> None:
    lives = Lives()
    lives.submit("a")
    lives.now += 40
    lives.goes("a", Status.STARTING)
    lives.now += 80
    lives.goes("a", Status.READY)
    lives.look()
    assert lives.counted() == (1, 120)


def test_a_requeued_replica_starts_again_from_then_on() -> None:
    lives = Lives()
    lives.submit("a")
    lives.now += 10
    lives.goes("a", Status.READY)
    lives.now += 5000
    lives.goes("a", Status.PENDING)
    lives.now += 20
    lives.goes("a", Status.READY)
    assert lives.counted() == (2, 30)


def test_replicas_that_were_ready_before_this_process_are_not_counted_again() -> None:
    lives = Lives()
    lives.submit("old")
    lives.goes("old", Status.READY)
    lives.submit("failed")
    lives.goes("failed", Status.FAILED, Failure("node", "gone"))
    later = ColdStarts(lambda: lives.now)
    lives.look(later)
    lives.look(later)
    assert later.durations == {}
    assert not later.failures


def test_a_replica_that_fails_is_counted_once_by_its_reason() -> None:
    lives = Lives()
    lives.submit("a")
    lives.goes("a", Status.FAILED, Failure("start_timeout", "too slow"))
    lives.look()
    assert dict(lives.starts.failures) == {("org/m", "start_timeout"): 1}
    del lives.replicas["a"]
    lives.look()
    assert lives.counted() == (0, 0)


def test_a_replica_that_ends_as_it_should_is_no_failure() -> None:
    lives = Lives()
    lives.submit("a")
    lives.goes("a", Status.READY)
    lives.replicas["a"] = replace(lives.replicas["a"], status=Status.STOPPED)
    lives.look()
    assert not lives.starts.failures
    assert lives.counted()[0] == 1


# -- several processes -----------------------------------------------------------------------------------------------


def busy() -> Metrics:
    """A process with something in every family that only one process may tell."""
    replica = ReplicaLoad("m-1", 3, 8)
    metrics = Metrics(lambda: [("org/m", "ready")], lambda: [ModelLoad("org/m", {"batch": 1}, (replica,), 1.0)])
    metrics.in_flight = 2
    metrics.batches = lambda: BatchNumbers([BatchLines("org/m", 2, 1, 3)], {"in_progress": 1})
    record = finished(stream=True, first_byte_s=0.1, prompt_tokens=5, completion_tokens=5, served_by="a", status=429)
    record.attempt_failed("a", "engine_disconnected")
    record.fell_back("org/m", "overloaded")
    record.fail(RateLimited("too many", kind="requests"))
    metrics.observe(record, 0.4)
    metrics.observe_wait("org/m", 0, 1.0)
    metrics.deliberations.observe(over("delib_1"))
    metrics.lag.observe(0.001)
    metrics.look_at([])
    metrics.look_at([Replica("a", "org/m", "hash", 0.0, status=Status.READY, ready_at=50.0)])
    metrics.look_at([Replica("b", "org/m", "hash", 0.0, status=Status.FAILED, failure=Failure("node", "gone"))])
    return metrics


def test_numbers_of_several_processes_add_up() -> None:
    one, two = busy().state(), busy().state()
    alone, together = samples(one), samples(merged([one, two]))
    for family in FAMILIES:
        if family.name.startswith("process_") or family.name in ("slurmgate_build_info", "slurmgate_batches"):
            continue
        names = (
            [family.shown] if family.kind is not Kind.HISTOGRAM else [f"{family.name}_{x}" for x in ("sum", "bucket")]
        )
        for name in names:
            assert together[name] == pytest.approx({labels: 2 * value for labels, value in alone[name].items()}), name
    assert together["slurmgate_processes"][()] == 2
    assert together["slurmgate_batches"] == {("in_progress",): 1}, "each process sees them all"
    assert together["slurmgate_build_info"] == alone["slurmgate_build_info"]
    assert together["process_start_time_seconds"] == alone["process_start_time_seconds"]
    assert together["process_max_fds"] == alone["process_max_fds"]


def test_a_state_survives_its_way_through_json() -> None:
    state = busy().state()
    assert exposition(merged([json.loads(json.dumps(state))])) == exposition(merged([state]))


def test_merging_one_state_changes_nothing() -> None:
    state = busy().state()
    assert exposition(merged([state])) == exposition(state)


def test_what_a_process_counted_outlives_it_and_what_it_held_does_not() -> None:
    alive, ended = busy().state(), busy().state()
    shown = samples(merged([alive, counted(ended)]))
    assert shown["slurmgate_requests_total"] == {(CHAT, "org/m", "429"): 2}
    assert shown["slurmgate_request_duration_seconds_count"] == {(CHAT, "org/m"): 2}
    assert shown["slurmgate_requests_in_flight"][()] == 2
    assert shown["slurmgate_processes"][()] == 1


def test_a_process_of_another_version_may_tell_what_is_unknown_here() -> None:
    state = merged([busy().state(), {"slurmgate_new_thing": [([], 1)]}])
    assert "slurmgate_new_thing" not in state


# -- the text --------------------------------------------------------------------------------------------------------

SAMPLE = re.compile(
    r'(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?P<labels>[a-z_]+="(?:[^"\\\n]|\\.)*"(?:,[a-z_]+="(?:[^"\\\n]|\\.)*")*)\})?'
    r" (?P<value>NaN|[+-]Inf|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
)


def strictly(lines: Iterable[str]) -> set[str]:
    """The families of a text, after the rules of the format: HELP and TYPE once before the samples, which come
    together, none twice; buckets cumulative, the last one the count."""
    told: dict[str, str] = {}
    seen: set[str] = set()
    buckets: dict[str, list[tuple[float, float]]] = {}
    counts: dict[str, float] = {}
    family = ""
    for line in lines:
        if line.startswith("# "):
            word, name, rest = line[2:].split(" ", 2)
            assert word in ("HELP", "TYPE")
            if word == "HELP":
                assert name not in told, f"{name}: told twice"
                family, told[name] = name, ""
            else:
                assert name == family
                assert rest in ("counter", "gauge", "histogram")
                told[name] = rest
            continue
        match = SAMPLE.fullmatch(line)
        assert match is not None, line
        assert line.rsplit(" ", 1)[0] not in seen, f"twice: {line}"
        seen.add(line.rsplit(" ", 1)[0])
        name, labels, value = match["name"], match["labels"] or "", float(match["value"])
        if told[family] != "histogram":
            assert name == family
            assert told[family] != "counter" or (name.endswith("_total") and value >= 0)
            continue
        assert name in (f"{family}_bucket", f"{family}_sum", f"{family}_count")
        bound = re.search(r'(?:^|,)le="([^"]+)"', labels)
        series = family + re.sub(r'(^|,)le="[^"]+"', "", labels).strip(",")
        if name.endswith("_bucket"):
            assert bound is not None
            buckets.setdefault(series, []).append((float(bound[1]), value))
        elif name.endswith("_count"):
            counts[series] = value
    for series, steps in buckets.items():
        assert [bound for bound, _ in steps] == sorted({bound for bound, _ in steps}), series
        assert [count for _, count in steps] == sorted(count for _, count in steps), series
        assert math.isinf(steps[-1][0])
        assert steps[-1][1] == counts[series]
    return set(told)


def test_the_text_keeps_to_the_format_and_has_every_family() -> None:
    text, content_type = exposition(busy().state())
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert strictly(text.decode().rstrip("\n").split("\n")) == {family.shown for family in FAMILIES}
    assert strictly(Metrics().render().decode().rstrip("\n").split("\n")) == {family.shown for family in FAMILIES}


def test_openmetrics_is_given_to_who_asks_for_it() -> None:
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
    text, content_type = exposition(busy().state(), accept)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert text.endswith(b"# EOF\n")
    families = parse_openmetrics(text.decode())  # type: ignore[no-untyped-call]
    assert {family.name for family in families} == {family.name for family in FAMILIES}


def test_names_say_their_units_and_labels_are_few() -> None:
    for family in FAMILIES:
        assert family.kind is not Kind.HISTOGRAM or family.name.endswith("_seconds")
        assert not family.name.endswith("_total")
        assert family.help.endswith(".")
        assert not {"key", "project", "user", "path", "id"} & set(family.labels)


def test_the_buckets_of_a_model_are_added_up_over_its_endpoints() -> None:
    state: State = {"h": [(["m", "/a"], [1, 2, 0.5]), (["m", "/b"], [0, 3, 0.1]), (["n", "/a"], [9, 9, 9.0])]}
    assert counts_of(state, "h", "m") == [1, 5]
    assert counts_of(state, "h", "x") == []
