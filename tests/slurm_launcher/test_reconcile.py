"""The launcher's decisions, without a launcher."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import pytest

from slurm_launcher.autoscale import Allowance, Scaling
from slurm_launcher.cluster import Job, JobComment
from slurm_launcher.failing import BACKOFF_REFUSED_S, retry_at
from slurm_launcher.observing import Poll
from slurm_launcher.reconcile import HISTORY_S, Action, Cancel, Facts, Forget, Put, Submit, reconcile
from slurm_launcher.spec import ModelSpec, Resources
from slurm_launcher.states import Failure, Replica, Status, Target, advance

NOW = 1_000_000.0
SPEC = ModelSpec("llama", "tgi", "/models/llama", scaling=Scaling(2, 2))


def replica(name: str = "r1", status: Status = Status.READY, **fields: object) -> Replica:
    base = Replica(name, SPEC.name, SPEC.config_hash, created_at=NOW - 1000, job_id=f"job-{name}", heard_at=NOW - 60)
    base = replace(base, status=status, ready_at=NOW - 500 if status is Status.READY else None)
    return replace(base, **fields)  # type: ignore[arg-type]


def job(of: Replica, state: str = "RUNNING", **fields: object) -> Job:
    mark = JobComment("main", of.model, of.id, of.config_hash)
    return replace(Job(of.job_id or f"job-{of.id}", state, node="n1", comment=mark), **fields)  # type: ignore[arg-type]


def poll(*jobs: Job, ended: Iterable[Job] = (), asked_at: float = NOW - 0.01) -> Poll:
    return Poll(asked_at, {("", j.id): j for j in jobs}, {("", j.id): j for j in ended})


def decide(*replicas: Replica, poll: Poll | None = None, spec: ModelSpec | None = SPEC) -> list[Action]:
    wanted = {spec.name: spec} if spec is not None else {}
    return reconcile(Facts(NOW, wanted, replicas, poll, service="main", heartbeat_s=5.0))


def submits(actions: list[Action]) -> int:
    return sum(isinstance(action, Submit) for action in actions)


def put(actions: list[Action], replica_id: str) -> Replica:
    return next(a.replica for a in actions if isinstance(a, Put) and a.replica.id == replica_id)


def test_what_is_missing_is_submitted() -> None:
    assert submits(decide()) == 2
    assert submits(decide(replica())) == 1
    assert submits(decide(replica("r1"), replica("r2", Status.PENDING))) == 0


def test_one_empty_answer_takes_nothing_away() -> None:
    one = replica()
    actions = decide(one, poll=poll())
    assert put(actions, "r1").status is Status.READY
    assert put(actions, "r1").unseen == 1


def test_two_empty_answers_do() -> None:
    actions = decide(replica(unseen=1), poll=poll())
    gone = put(actions, "r1")
    assert gone.status is Status.LOST
    assert gone.failure is not None
    assert "job-r1" in gone.failure.message
    assert submits(actions) == 2


def test_a_replica_that_still_reports_is_never_gone() -> None:
    assert decide(replica(unseen=5, heard_at=NOW - 1), replica("r2", heard_at=NOW - 1), poll=poll()) == []


def test_an_unanswered_question_takes_nothing_away() -> None:
    assert decide(replica(unseen=1), replica("r2", unseen=1), poll=None) == []


def test_accounting_says_how_a_vanished_job_ended() -> None:
    one = replica(unseen=1)
    ended = job(one, "OUT_OF_MEMORY")
    assert put(decide(one, poll=poll(ended=[ended])), "r1").status is Status.FAILED


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("CANCELLED", Status.STOPPED),
        ("COMPLETED", Status.STOPPED),
        ("TIMEOUT", Status.STOPPED),
        ("NODE_FAIL", Status.LOST),
        ("PREEMPTED", Status.LOST),
        ("FAILED", Status.FAILED),
    ],
)
def test_a_job_that_ended_is_replaced_at_once_if_it_had_served(state: str, status: Status) -> None:
    one, two = replica("r1"), replica("r2")
    actions = decide(one, two, poll=poll(job(one, state), job(two)))
    assert put(actions, "r1").status is status
    assert submits(actions) == 1


def test_a_job_whose_processes_are_being_killed_may_come_back() -> None:
    """A requeue passes through COMPLETING, and `scontrol requeue` looks like any other end there."""
    one, two = replica("r1", heard_at=NOW - 1), replica("r2")
    actions = decide(one, two, poll=poll(job(one, "COMPLETING"), job(two)))
    between = put(actions, "r1")
    assert (between.status, between.port, between.note) == (Status.PENDING, 0, "COMPLETING")
    assert submits(actions) == 0
    again = put(decide(between, two, poll=poll(job(one, "PENDING", reason="BeginTime"), job(two))), "r1")
    assert (again.status, again.job_id) == (Status.PENDING, "job-r1")
    gone = decide(between, two, poll=poll(job(one, "CANCELLED"), job(two)))
    assert put(gone, "r1").status is Status.STOPPED
    assert submits(gone) == 1


def test_an_engine_whose_port_is_anothers_is_replaced_once_its_agent_says_nothing() -> None:
    """Slurm sees a job that runs: its agent is stopped, or cut off. While it speaks it will tell the engine's end."""
    one, two = replica("r1", heard_at=NOW - 16), replica("r2")
    running = poll(job(one), job(two))

    def decided(usurped: Replica) -> list[Action]:
        known = {SPEC.name: SPEC}
        return reconcile(
            Facts(NOW, known, [usurped, two], running, service="main", heartbeat_s=5.0, strangers=frozenset({"r1"}))
        )

    assert submits(decided(replace(one, heard_at=NOW - 14))) == 0
    actions = decided(one)
    failed = put(actions, "r1")
    assert (failed.status, failed.failure and failed.failure.kind) == (Status.FAILED, "stranger")
    assert Cancel("", "job-r1") in actions
    assert submits(actions) == 1


def test_a_job_that_never_comes_to_its_end_is_replaced() -> None:
    """COMPLETING lasts for hours where a node hangs."""
    one, two = replica("r1", heard_at=NOW - 16), replica("r2")
    assert submits(decide(one, two, poll=poll(job(one, "COMPLETING"), job(two)))) == 1


def test_a_requeued_job_waits_again_and_is_not_doubled() -> None:
    one, two = replica("r1"), replica("r2")
    actions = decide(one, two, poll=poll(job(one, "PENDING", reason="BeginTime"), job(two)))
    waiting = put(actions, "r1")
    assert (waiting.status, waiting.port, waiting.note) == (Status.PENDING, 0, "PENDING (BeginTime)")
    assert submits(actions) == 0


def test_a_report_newer_than_the_answer_wins() -> None:
    one = replica("r1", heard_at=NOW)
    actions = decide(one, replica("r2"), poll=poll(job(one, "PENDING"), job(replica("r2")), asked_at=NOW - 1))
    assert put(actions, "r1").status is Status.READY


def test_a_submission_without_an_answer_is_found_by_its_mark() -> None:
    lost_answer = replica("r1", Status.PENDING, job_id=None, heard_at=None)
    actions = decide(lost_answer, replica("r2"), poll=poll(job(lost_answer), job(replica("r2"))))
    assert put(actions, "r1").job_id == "job-r1"
    assert submits(actions) == 0


def test_a_submission_that_never_appears_is_made_again() -> None:
    lost_answer = replica("r1", Status.PENDING, job_id=None, heard_at=None, unseen=1)
    actions = decide(lost_answer, replica("r2"), poll=poll(job(replica("r2"))))
    assert put(actions, "r1").status is Status.LOST


def test_a_job_that_nobody_remembers_is_adopted() -> None:
    stranger = replica("r9")
    actions = decide(replica("r1"), poll=poll(job(replica("r1")), job(stranger)))
    assert put(actions, "r9").job_id == "job-r9"
    assert submits(actions) == 0


def test_the_job_of_another_service_is_left_alone() -> None:
    foreign = replace(job(replica("r9")), comment=JobComment("other", "llama", "r9", "x"))
    actions = decide(replica("r1"), replica("r2"), poll=poll(job(replica("r1")), job(replica("r2")), foreign))
    assert all(not isinstance(a, Put) or a.replica.id != "r9" for a in actions)


def test_a_job_whose_replica_was_given_up_is_cancelled() -> None:
    given_up = replica("r1", Status.LOST, ended_at=NOW - 1)
    actions = decide(given_up, poll=poll(job(given_up)))
    assert Cancel("", "job-r1") in actions


def test_surplus_drains_the_least_useful_first() -> None:
    spec = replace(SPEC, scaling=Scaling(1, 1))
    actions = decide(replica("r1"), replica("r2", Status.STARTING), spec=spec)
    draining = put(actions, "r2")
    assert (draining.target, draining.status) == (Target.STOP, Status.DRAINING)


def test_a_model_that_is_no_longer_wanted_is_stopped() -> None:
    assert put(decide(replica(), spec=None), "r1").target is Target.STOP


def test_a_pending_replica_to_be_stopped_is_cancelled_and_one_that_drains_is_left_its_time() -> None:
    pending = replica("r1", Status.DRAINING, target=Target.STOP, heard_at=None, draining_since=NOW)
    draining = replica("r2", Status.DRAINING, target=Target.STOP, draining_since=NOW - 10)
    overdue = replica("r3", Status.DRAINING, target=Target.STOP, draining_since=NOW - 1000)
    actions = decide(pending, draining, overdue, poll=poll(job(pending), job(draining), job(overdue)))
    assert [a.job_id for a in actions if isinstance(a, Cancel)] == ["job-r1", "job-r3"]


def test_a_changed_configuration_is_rolled_out_one_by_one() -> None:
    old = [replica("r1", config_hash="old"), replica("r2", config_hash="old")]
    assert submits(decide(*old)) == 1
    assert decide(*old, replica("r3", Status.STARTING)) == []
    after = decide(*old, replica("r3"))
    assert put(after, "r1").target is Target.STOP
    assert sum(isinstance(a, Put) for a in after) == 1


def test_refusals_wait_longer_each_time() -> None:
    def refused(name: str, ended_at: float) -> Replica:
        return replica(name, Status.FAILED, ended_at=ended_at, failure=Failure("refused", "no such partition"))

    one = refused("r1", NOW)
    assert retry_at([one], SPEC) == NOW + BACKOFF_REFUSED_S
    assert retry_at([one, refused("r2", NOW + 40)], SPEC) == NOW + 40 + 2 * BACKOFF_REFUSED_S
    assert submits(decide(one)) == 0
    assert retry_at([replace(one, config_hash="other")], SPEC) == 0.0


def test_a_replica_that_had_served_long_is_replaced_without_waiting() -> None:
    served = replica("r1", Status.FAILED, ready_at=NOW - 500, ended_at=NOW)
    assert retry_at([served], SPEC) == 0.0


def test_a_job_that_is_cancelled_before_it_served_is_not_resubmitted_in_a_storm() -> None:
    assert retry_at([replica("r1", Status.STOPPED, ended_at=NOW)], SPEC) > NOW


def test_an_agent_that_never_reports_is_given_up_with_a_reason() -> None:
    mute = replica("r1", Status.PENDING, heard_at=None, running_since=NOW - 3000)
    ended = put(decide(mute, poll=poll(job(mute))), "r1")
    assert ended.failure is not None
    assert "never reported" in ended.failure.message


def test_ended_replicas_are_forgotten_after_a_while() -> None:
    old = replica("r1", Status.STOPPED, ended_at=NOW - HISTORY_S - 1)
    assert Forget("r1") in decide(old, replica("r2"), replica("r3"))


def test_applying_the_actions_leaves_nothing_to_do() -> None:
    one = replica("r1", Status.PENDING, heard_at=None)
    answer = poll(job(one), job(replica("r2"), "CANCELLED"))
    known = {r.id: r for r in (one, replica("r2"))}
    for _ in range(2):
        actions = decide(*known.values(), poll=answer)
        known |= {a.replica.id: a.replica for a in actions if isinstance(a, Put)}
        for number in range(submits(actions)):
            new = replica(f"new{number}", Status.PENDING, heard_at=NOW)
            known[new.id] = new
    assert decide(*known.values(), poll=answer) == []


def test_advance_marks_the_time_of_each_step() -> None:
    started = advance(replica("r1", Status.PENDING), Status.STARTING, NOW)
    ready = advance(started, Status.READY, NOW + 1)
    stopped = advance(ready, Status.STOPPED, NOW + 2)
    assert (ready.ready_at, stopped.ended_at) == (NOW + 1, NOW + 2)


# -- lives that end: successors --------------------------------------------------------------------------------------

ONE = replace(SPEC, scaling=Scaling(1, 1), lead_s=300.0)


def living(name: str, left_s: float, life_s: float = 86400.0, **fields: object) -> Replica:
    """One that was started a life ago, all but `left_s`, and was ready a minute later."""
    began = NOW + left_s - life_s
    times = {"created_at": began, "running_since": began, "ready_at": began + 60, "ends_at": NOW + left_s}
    return replica(name, **{**times, **fields})  # type: ignore[arg-type]


def test_a_successor_is_asked_for_when_the_lead_has_come_and_not_before() -> None:
    assert submits(decide(living("r1", 301), spec=ONE)) == 0
    assert submits(decide(living("r1", 299), spec=ONE)) == 1


def test_there_is_one_successor_and_the_old_one_serves_until_it_is_ready() -> None:
    old = living("r1", 200)
    for status in (Status.PENDING, Status.STARTING):
        assert decide(old, living("r2", 86400, status=status), spec=ONE) == []
    after = decide(old, living("r2", 86400), spec=ONE)
    assert [(a.replica.id, a.replica.target) for a in after if isinstance(a, Put)] == [("r1", Target.STOP)]
    assert submits(after) == 0


def test_a_queue_that_was_slow_makes_the_next_successor_come_earlier() -> None:
    slow = living("r0", -10, status=Status.STOPPED, ended_at=NOW - 10)
    slow = replace(slow, ready_at=slow.created_at + 4000)
    assert submits(decide(slow, living("r1", 6100), spec=ONE)) == 0
    assert submits(decide(slow, living("r1", 5900), spec=ONE)) == 1


def test_no_successor_in_the_first_half_of_a_short_life() -> None:
    assert submits(decide(living("r1", 70, life_s=120), spec=ONE)) == 0
    assert submits(decide(living("r1", 55, life_s=120), spec=ONE)) == 1


def test_replicas_that_end_together_are_replaced_one_after_the_other_and_in_time() -> None:
    both = [living("r1", 500), living("r2", 500)]
    assert submits(decide(*both, spec=replace(ONE, scaling=Scaling(2, 2)))) == 1
    with_one = [*both, living("r3", 86400)]
    after = decide(*with_one, spec=replace(ONE, scaling=Scaling(2, 2)))
    assert sum(isinstance(a, Put) for a in after) == 1
    assert submits(after) == 0  # never two extra jobs: the next one when the first old one has gone


def test_a_dead_replica_is_replaced_at_once_though_another_one_is_leaving() -> None:
    two = replace(ONE, scaling=Scaling(2, 2))
    assert submits(decide(living("r1", 200), spec=two)) == 2


def test_a_retired_replica_serves_until_its_successor_is_ready() -> None:
    retired = living("r1", 86400, retired=True)
    assert submits(decide(retired, spec=ONE)) == 1
    assert put(decide(retired, living("r2", 86400), spec=ONE), "r1").target is Target.STOP


def test_scaling_down_lets_go_of_who_has_the_least_to_do() -> None:
    replicas = (living("r1", 40000), living("r2", 80000), living("r3", 40000))
    facts = Facts(
        NOW, {"llama": SPEC}, replicas, None, "main", counts={"llama": 2}, in_flight={"r1": 5, "r3": 4, "r2": 1}
    )
    assert put(reconcile(facts), "r2").target is Target.STOP


# -- jobs that will not start ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["PartitionTimeLimit", "QOSMaxWallDurationPerJobLimit", "BadConstraints"])
def test_a_job_that_can_never_start_is_given_up_and_not_asked_for_again(reason: str) -> None:
    waiting = replica("r1", Status.PENDING, heard_at=None)
    actions = decide(waiting, poll=poll(job(waiting, "PENDING", reason=reason)), spec=ONE)
    given_up = put(actions, "r1")
    assert given_up.failure is not None
    assert reason in given_up.failure.message
    assert Cancel("", "job-r1") in actions
    assert submits(actions) == 0
    assert retry_at([given_up], ONE) == math.inf


@pytest.mark.parametrize("reason", ["Resources", "Priority", "PartitionDown", "QOSMaxJobsPerUserLimit", "JobHeldAdmin"])
def test_a_job_that_may_start_yet_is_waited_for(reason: str) -> None:
    waiting = replica("r1", Status.PENDING, heard_at=None)
    actions = decide(waiting, poll=poll(job(waiting, "PENDING", reason=reason)), spec=ONE)
    assert put(actions, "r1").status is Status.PENDING
    assert submits(actions) == 0


def test_a_held_job_is_cancelled_and_replaced_after_a_pause() -> None:
    held = replica("r1", Status.PENDING, heard_at=None)
    actions = decide(held, poll=poll(job(held, "PENDING", reason="JobHeldUser")), spec=ONE)
    assert Cancel("", "job-r1") in actions
    gone = put(actions, "r1")
    assert NOW < retry_at([gone], ONE) < NOW + 60


# -- nodes, rows of failures, other clusters, maintenance ------------------------------------------------------------


def failed(name: str, kind: str, node: str = "n1", ended_at: float = NOW - 1, **fields: object) -> Replica:
    return replica(name, Status.FAILED, node=node, ended_at=ended_at, failure=Failure(kind, "it broke"), **fields)


def test_a_bad_node_is_left_out_for_a_while_and_another_one_tried_at_once() -> None:
    (submit,) = decide(failed("r1", "gpu_fault"), spec=ONE)
    assert submit == Submit("llama", exclude=("n1",))
    later = decide(failed("r1", "gpu_fault", ended_at=NOW - 3700), spec=ONE)
    assert Submit("llama") in later


def test_nodes_are_left_out_for_every_model() -> None:
    (submit,) = decide(failed("r1", "node", model="other"), spec=ONE)
    assert submit == Submit("llama", exclude=("n1",))


def test_a_row_of_failures_ends_in_waiting_for_an_operator() -> None:
    row = [failed(f"r{n}", "engine_exited", ended_at=NOW - 10000 + n) for n in range(6)]
    assert retry_at(row[:5], ONE) < math.inf
    assert retry_at(row, ONE) == math.inf
    assert retry_at(row, replace(ONE, source="/models/other")) == 0.0


def test_a_limit_of_now_is_asked_again_however_often_it_was_met() -> None:
    row = [failed(f"r{n}", "limit", ended_at=NOW - 10000 + n) for n in range(20)]
    assert NOW - 10000 < retry_at(row, ONE) < math.inf


def test_what_had_served_is_tried_again_whatever_it_said_at_last() -> None:
    assert retry_at([failed("r1", "gpu_memory", ready_at=NOW - 4000)], ONE) == 0.0
    assert retry_at([failed("r1", "gpu_memory", ready_at=None)], ONE) == math.inf


def test_an_unanswered_cluster_takes_nothing_away_while_another_one_answers() -> None:
    here, there = replica("r1", unseen=1), replica("r2", unseen=1, cluster="gpu2")
    answer = Poll(NOW, {("", "job-r1"): job(here)}, answered=frozenset({""}))
    assert all(not isinstance(a, Put) or a.replica.id == "r1" for a in decide(here, there, poll=answer))


def test_the_same_job_id_on_two_clusters_is_two_jobs() -> None:
    here, there = replica("r1", job_id="7"), replica("r2", job_id="7", cluster="gpu2")
    answer = Poll(NOW, {("", "7"): job(here), ("gpu2", "7"): job(there, "CANCELLED")}, answered=frozenset({"", "gpu2"}))
    actions = decide(here, there, poll=answer)
    assert put(actions, "r2").ended
    assert put(actions, "r1").status is Status.READY


def test_no_successor_is_planned_into_a_maintenance() -> None:
    day = replace(ONE, resources=Resources(time_limit_s=86400))

    def asked(in_s: float) -> list[Action]:
        return reconcile(Facts(NOW, {"llama": day}, [], None, "main", maintenance={("", ""): NOW + in_s}))

    assert asked(100_000) == [Submit("llama")]
    assert asked(7260) == [Submit("llama", time_limit_s=7200)]
    assert asked(600) == []


def test_pending_jobs_and_gpus_of_the_service_are_bounded() -> None:
    four = replace(SPEC, scaling=Scaling(4, 4), resources=Resources(gpus=2))
    facts = Facts(NOW, {"llama": four}, [replica("r1")], None, "main", allowance=Allowance(pending_jobs=2))
    assert submits(reconcile(facts)) == 2
    assert submits(reconcile(replace(facts, allowance=Allowance(gpus=7)))) == 2


def test_the_last_lives_are_remembered_for_their_queue_waits() -> None:
    old = [replica(f"r{n}", Status.STOPPED, ready_at=NOW - 95_000, ended_at=NOW - 90_000 + n) for n in range(7)]
    forgotten = {a.replica_id for a in decide(*old, replica("x"), replica("y")) if isinstance(a, Forget)}
    assert forgotten == {"r0", "r1"}
