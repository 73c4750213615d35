"""The pure parts of the benches that run on a real Slurm, and the fleet of bench.reconcile."""

from __future__ import annotations

import random

import pytest

from bench import cold_start, constant, reconcile, rolling
from bench.constant import Outcome
from bench.rolling import HandOver, Result
from bench.slurm_site import Event, Plan, first, parse_events
from bench.verdict import Judgement
from proxy.config.reading import parse
from slurm_launcher.commands import parse_jobs
from slurm_launcher.states import Status


def life(replica: str, **states: float) -> list[Event]:
    return [
        Event(at, "replica_submitted" if state == "submitted" else "replica_state", replica, state)
        for state, at in states.items()
    ]


def test_an_event_is_a_whole_line_of_the_gateways_log_about_a_replica() -> None:
    log = """slurmgate listens
{"event":"request","id":"r"}
{"replica":"r1","state":"ready","job":"7","node":"n1","event":"replica_state","timestamp":"2026-11-22T12:00:01.5+00:00"}
{"replica":"r1","model":"m","job":"7","event":"replica_submitted","timestamp":"2026-11-22T12:00:00.5+00:00"}
{"replica":"r1","event":"replica_state","timest"""
    ready, submitted = parse_events(log)
    assert (ready.replica, ready.state, ready.job, ready.node) == ("r1", "ready", "7", "n1")
    assert ready.at - submitted.at == 1.0
    assert first([ready, submitted], "r1", "submitted") == submitted.at
    assert first([ready, submitted], "r2", "ready") is None


def test_the_sites_configuration_is_one_that_the_gateway_takes() -> None:
    model = parse(Plan(replicas=3, wall_time="00:02:00").toml(), "bench").models["guide"]
    assert (model.replicas, model.slurm.time, model.lead_s) == (3, 120, 60.0)


def test_who_goes_is_paired_with_who_came_after_the_first_ones() -> None:
    events = [
        *life("a", submitted=0, starting=1, ready=2, draining=64, stopped=67),
        *life("b", submitted=0, starting=1, ready=3, draining=72, stopped=73),
        *life("c", submitted=60, starting=62, ready=63.5),
        *life("d", submitted=67, starting=70, ready=71),
        *life("e", submitted=120, starting=121),
    ]
    assert rolling.hand_overs(events, wanted=2) == [
        HandOver("c", 63.5, to_start=2, to_ready=1.5, drained=3),
        HandOver("d", 71, to_start=3, to_ready=1, drained=1),
    ]
    assert rolling.hand_overs(events, wanted=2)[0].all_s == 6.5


def test_one_that_has_not_gone_yet_is_not_counted() -> None:
    events = [*life("a", submitted=0, starting=1, ready=2, draining=9), *life("b", submitted=5, starting=6, ready=8)]
    assert rolling.hand_overs(events, wanted=1) == []


@pytest.mark.parametrize(
    ("failures", "most", "judgements"),
    [
        ([], 3, [Judgement.OK, Judgement.OK]),
        ([(1.0, "503")], 3, [Judgement.MISSED, Judgement.OK]),
        ([], 4, [Judgement.OK, Judgement.MISSED]),
    ],
)
def test_one_failed_request_or_one_job_too_many_is_a_miss(
    failures: list[tuple[float, str]], most: int, judgements: list[Judgement]
) -> None:
    hand_over = HandOver("c", 63.5, 2, 1.5, 3)
    result = Result(Outcome(failures=failures), Outcome(), [hand_over], wanted=2, most=most, with_ends=4, seconds=9)
    assert [line.judgement for line in result.lines()] == judgements
    assert "503" in rolling.report(result) or not failures


def test_times_to_first_token_are_told_apart_by_a_hand_over() -> None:
    assert rolling.around([(10.0, 0.1), (14.0, 0.2), (30.0, 0.3)], [12.0]) == ([0.1, 0.2], [0.3])


@pytest.mark.parametrize(
    ("status", "body", "stream", "words"),
    [
        (200, b'data: {"choices":[]}\n\ndata: [DONE]\n\n', True, None),
        (200, b'data: {"choices":[]}\n\n', True, "no end"),
        (200, b'data: {"error":{"message":"gone"}}\n\ndata: [DONE]\n\n', True, "gone"),
        (503, b'{"error":{}}', True, "503"),
        (200, b'{"choices":[]}', False, None),
        (200, b"{}", False, "no choices"),
    ],
)
def test_what_is_wrong_with_an_answer(status: int, body: bytes, stream: bool, words: str | None) -> None:
    said = constant.fault(status, body, stream=stream)
    assert said is None if words is None else said is not None and words in said


def test_a_process_began_so_many_ticks_after_the_machine() -> None:
    stat = "7 (a) b) S " + " ".join(["0"] * 18) + " 250 0 0"
    assert cold_start.started_at(stat, uptime_s=10.0, now=1000.0) == pytest.approx(1000.0 - 10.0 + 2.5)


def test_requests_that_failed_or_were_slow_after_the_fault_met_it() -> None:
    outcome = Outcome(asked=[1.0, 20.0, 25.0], latencies=[9.0, 0.1, 1.5], failures=[(22.0, "502")])
    assert cold_start.met(outcome, since=21.0) == [25.0, 22.0]


def test_the_slowest_start_and_the_slowest_fault_are_judged() -> None:
    started = [cold_start.Start(1.0, 0.3, 0.5, 0.1), cold_start.Start(1.0, 3.0, 0.5, 0.1)]
    losses = [cold_start.Loss("killed-node", 3, 2.0, 17.0, 20.0, 40.0)]
    lines = cold_start.judged(started, losses, 60.0)
    assert [line.judgement for line in lines] == [Judgement.MISSED, Judgement.OK, Judgement.OK]
    assert "killed-node" in cold_start.report(started, losses, 60.0)
    assert cold_start.judged([], [], 60.0) == []


def test_the_fleets_text_is_what_the_parser_of_squeue_reads() -> None:
    fleet = reconcile.Fleet.of(20, 3)
    fleet.churn(0.5, reconcile.START)
    listing = parse_jobs(fleet.text(reconcile.START))
    assert (len(listing.jobs), listing.skipped) == (20, ())
    assert {job.comment.replica_id for job in listing.jobs.values() if job.comment} == set(fleet.replicas)
    assert {job.state for job in listing.jobs.values()} > {"RUNNING", "PENDING"}
    assert all(job.time_left_s for job in listing.jobs.values() if job.state == "RUNNING")


def test_what_is_lost_is_asked_for_again_and_the_fleet_stays_as_large() -> None:
    fleet = reconcile.Fleet.of(30, 3)
    times = reconcile.decisions(fleet, steps=40, churn=0.1)
    assert len(times.both) == 40
    assert times.submitted > 10
    live = [r for r in fleet.replicas.values() if not r.ended]
    assert 25 <= len(live) <= 33
    assert {r.status for r in live} <= {Status.PENDING, Status.READY}


def test_a_fleet_is_the_same_for_the_same_seed() -> None:
    one, other = reconcile.Fleet.of(10, 2, seed=4), reconcile.Fleet.of(10, 2, seed=4)
    assert one.text(reconcile.START) == other.text(reconcile.START)
    assert isinstance(one.random, random.Random)
