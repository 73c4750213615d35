"""Several kinds of replica of one model: which kind the missing ones become, who stays, and what one kind's trouble
means for the others."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from slurm_launcher.autoscale import Allowance, Demand, Scaling
from slurm_launcher.cluster import Job, JobComment, Refused, Submission
from slurm_launcher.loop import Launcher, Pace
from slurm_launcher.observing import Poll
from slurm_launcher.outlook import outlook
from slurm_launcher.placing import plan
from slurm_launcher.reconcile import Action, Facts, Put, Submit, reconcile
from slurm_launcher.reports import heard, parse_report
from slurm_launcher.spec import ModelSpec, Placement, Resources, Secrets, Site
from slurm_launcher.states import Failure, Replica, Status, Target
from slurm_launcher.store import ReplicaStore
from slurm_launcher.wanting import staff, surplus

NOW = 1_000_000.0
OWN = Resources(gpus=2, partition="gpu")
SPOT = Placement("spot", Resources(gpus=2, partition="preempt"), weight=0.5, most=2, batch_only=True, limit=32)
SMALL = Placement("small", Resources(gpus=1, partition="gpu", cluster="west"), weight=0.25, most=3)
SPEC = ModelSpec("llama", "tgi", "/models/llama", resources=OWN, scaling=Scaling(0, 9), placements=(SPOT, SMALL))


def replica(name: str, placement: str = "", status: Status = Status.READY, **fields: object) -> Replica:
    spec = SPEC.at(placement)
    assert spec is not None
    base = Replica(
        name,
        "llama",
        spec.config_hash,
        created_at=NOW - 1000,
        job_id=f"job-{name}",
        heard_at=NOW - 1,
        status=status,
        ready_at=NOW - 500 if status is Status.READY else None,
        placement=placement,
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def refused(name: str, placement: str = "", *, kind: str = "refused", at: float = NOW - 1) -> Replica:
    failure = Failure(kind, f"Job {name} was not taken.")
    return replica(name, placement, Status.FAILED, ended_at=at, failure=failure)


def decide(
    *replicas: Replica,
    count: int,
    floor: int | None = None,
    spec: ModelSpec = SPEC,
    maintenance: Mapping[tuple[str, str], float] | None = None,
    allowance: Allowance | None = None,
    poll: Poll | None = None,
) -> list[Action]:
    """`floor`: what is wanted without the batches."""
    facts = Facts(
        NOW,
        {"llama": spec},
        replicas,
        poll,
        service="main",
        counts={"llama": count},
        interactive={} if floor is None else {"llama": floor},
        maintenance=maintenance or {},
        allowance=allowance or Allowance(),
    )
    return reconcile(facts)


def placed(actions: list[Action]) -> dict[str, int]:
    """Submissions, by placement."""
    return dict(Counter(action.placement for action in actions if isinstance(action, Submit)))


def stopped(actions: list[Action]) -> set[str]:
    return {a.replica.id for a in actions if isinstance(a, Put) and a.replica.target is Target.STOP}


# -- where missing ones go -------------------------------------------------------------------------------------------


def test_without_a_limit_the_model_s_own_kind_takes_everything() -> None:
    assert placed(decide(count=5)) == {"": 5}


def test_the_own_kind_is_filled_first_and_then_the_placements_in_their_order() -> None:
    assert placed(decide(count=4, spec=replace(SPEC, own_most=2))) == {"": 2, "small": 2}
    assert placed(decide(replica("a"), count=6, spec=replace(SPEC, own_most=2))) == {"": 1, "small": 3}


def test_nothing_is_submitted_beyond_what_all_kinds_may_have() -> None:
    assert placed(decide(count=9, spec=replace(SPEC, own_most=1))) == {"": 1, "small": 3}


def test_what_only_batches_want_goes_to_the_batches_placement() -> None:
    assert placed(decide(count=2, floor=0)) == {"spot": 2}
    assert placed(decide(count=3, floor=1)) == {"": 1, "spot": 2}


def test_what_others_want_never_goes_there_even_where_nothing_else_has_room() -> None:
    full = replace(SPEC, own_most=0, placements=(SPOT,))
    assert placed(decide(count=2, floor=2, spec=full)) == {}
    assert placed(decide(count=2, floor=0, spec=full)) == {"spot": 2}


def test_batches_go_to_the_others_where_their_own_placement_is_full() -> None:
    assert placed(decide(count=5, floor=1)) == {"": 3, "spot": 2}


def test_a_submission_is_for_the_resources_of_its_placement() -> None:
    """Time limits before a maintenance, excluded nodes and GPUs are those of the placement."""
    spec = replace(
        SPEC, own_most=0, placements=(replace(SMALL, resources=replace(SMALL.resources, time_limit_s=7200)),)
    )
    bad = replica("x", "small", Status.FAILED, cluster="west", node="w7", ended_at=NOW - 9, ready_at=NOW - 900)
    bad = replace(bad, failure=Failure("node", "Its node went."))
    (submit,) = [
        a
        for a in decide(bad, count=1, spec=spec, maintenance={("west", "gpu"): NOW + 3660, ("", "gpu"): NOW + 10})
        if isinstance(a, Submit)
    ]
    assert submit == Submit("llama", ("w7",), 3600, "small")


def test_gpus_are_counted_by_placement() -> None:
    spec = replace(SPEC, own_most=1)
    there = [replica("a"), replica("b", "small")]  # 2 GPUs and 1
    assert placed(decide(*there, count=5, spec=spec, allowance=Allowance(gpus=5))) == {"small": 2}


# -- one kind's trouble ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["refused", "limit", "hopeless"])
def test_what_one_placement_refuses_goes_to_the_next_one_with_room(kind: str) -> None:
    assert placed(decide(refused("a", kind=kind), count=2)) == {"small": 2}
    assert placed(decide(refused("a", kind=kind), refused("b", "small", kind=kind), count=2)) == {}
    assert placed(decide(refused("a", "spot", kind=kind), count=2, floor=0)) == {"": 2}


def test_a_refusal_is_over_after_its_pause() -> None:
    assert placed(decide(refused("a", at=NOW - 31), count=1)) == {"": 1}


def test_placements_with_equal_resources_still_fail_each_for_itself() -> None:
    twins = replace(SPEC, placements=(Placement("twin", OWN),))
    assert placed(decide(refused("a"), count=1, spec=twins)) == {"twin": 1}


def test_a_placement_in_maintenance_has_no_room() -> None:
    assert placed(decide(count=1, maintenance={("", "gpu"): NOW + 60})) == {"small": 1}


def test_the_outlook_is_a_failure_only_when_every_kind_for_everybody_has_failed() -> None:
    own, small = refused("a", kind="hopeless"), refused("b", "small", at=NOW - 2)
    assert outlook(SPEC, [own], NOW, wanted=1) == ("llama is starting.", None)
    why, retry_s = outlook(SPEC, [own, small], NOW, wanted=1)
    assert "Job b was not taken." in why
    assert retry_s == pytest.approx(28.0)


# -- who stays -------------------------------------------------------------------------------------------------------


def test_a_running_batch_replica_serves_everybody_and_stays() -> None:
    """The demand of batches turns into that of others: nothing is submitted, nothing is stopped."""
    there = [replica("a", "spot"), replica("b", "spot", Status.STARTING)]
    assert decide(*there, count=2, floor=2) == []


def test_one_that_still_waits_for_a_cheap_partition_keeps_nobody_waiting() -> None:
    waits = replica("a", "spot", Status.PENDING)
    actions = decide(waits, count=1, floor=1)
    assert placed(actions) == {"": 1}
    assert stopped(actions) == {"a"}
    assert decide(waits, count=1, floor=0) == []


def test_it_gives_way_only_where_both_would_be_more_than_is_wanted() -> None:
    waits = replica("a", "spot", Status.PENDING)
    actions = decide(waits, count=2, floor=1)
    assert placed(actions) == {"": 1}
    assert stopped(actions) == set()


def test_it_does_not_give_way_to_what_cannot_be_submitted() -> None:
    waits = replica("a", "spot", Status.PENDING)
    assert decide(waits, refused("b"), refused("c", "small"), count=1, floor=1) == []


def test_when_less_is_wanted_the_batches_own_go_first() -> None:
    own, spot = replica("a", ends_at=NOW + 1000), replica("b", "spot", ends_at=NOW + 9000)
    busy = {"b": 3}
    assert surplus(staff([own, spot], SPEC, NOW), 1, busy, SPEC) == [spot]
    loading = replace(own, status=Status.STARTING)
    assert surplus(staff([loading, spot], SPEC, NOW), 1, {}, SPEC) == [loading], "what serves is worth more"


def test_among_equals_the_later_placement_goes_first() -> None:
    own, small = replica("a"), replica("b", "small")
    assert surplus(staff([own, small], SPEC, NOW), 1, {}, SPEC) == [small]
    assert surplus(staff([own, small], SPEC, NOW), 1, {"b": 1}, SPEC) == [own], "but not before an idle one"


def test_a_lowered_limit_holds_at_once() -> None:
    there = [replica("a"), replica("b")]
    assert len(stopped(decide(*there, count=2, spec=replace(SPEC, own_most=1)))) == 1
    left = [there[0], replace(there[1], target=Target.STOP, status=Status.DRAINING)]
    assert placed(decide(*left, count=2, spec=replace(SPEC, own_most=1))) == {"small": 1}


def test_a_successor_may_come_in_a_placement_that_is_full() -> None:
    dying = replica("a", "spot", ends_at=NOW + 60, running_since=NOW - 5000)
    assert placed(decide(dying, replica("b", "spot"), count=2, floor=0)) == {"spot": 1}


@given(
    there=st.lists(
        st.tuples(st.sampled_from(["", "spot", "small"]), st.sampled_from([Status.PENDING, Status.READY])), max_size=8
    ),
    count=st.integers(0, 8),
    floor=st.integers(0, 8),
    own_most=st.none() | st.integers(0, 4),
)
def test_steps_come_to_rest_within_every_limit(
    there: list[tuple[str, Status]], count: int, floor: int, own_most: int | None
) -> None:
    """From any state, where every submission is taken: soon nothing more is submitted or stopped, and what there is
    keeps to the number, to each placement's most, and to what is for batches only."""
    spec = replace(SPEC, own_most=own_most)
    floor = min(floor, count)
    lasting = [replica(f"r{n}", placement, status) for n, (placement, status) in enumerate(there)]
    for step in range(5):
        before = lasting
        now = staff(lasting, spec, NOW)
        planned = plan(spec, now, count, floor, lambda placement: False)
        gone = {r.id for r in (*surplus(now, count, {}, spec), *planned.yielding)}
        came = [
            replica(f"s{step}-{placement}-{n}", placement, Status.PENDING)
            for placement, number in planned.submits.items()
            for n in range(number)
        ]
        lasting = [r for r in lasting if r.id not in gone] + came
    assert lasting == before
    of = Counter(r.placement for r in lasting)
    assert len(lasting) <= count
    assert of["spot"] <= 2
    assert of["small"] <= 3
    assert of[""] <= (math.inf if own_most is None else own_most)
    room = math.inf if own_most is None else own_most + 3
    usable = len(lasting) - sum(r.placement == "spot" and r.status is Status.PENDING for r in lasting)
    assert usable >= min(floor, room)


# -- identity --------------------------------------------------------------------------------------------------------


def test_a_model_without_placements_is_what_it_was() -> None:
    """By its hash, so that an upgrade replaces nothing. The value is of version 0.1."""
    plain = ModelSpec("llama", "tgi", "/models/llama", resources=OWN)
    assert plain.config_hash == "a0718b61e01a"
    assert SPEC.config_hash == plain.config_hash
    assert replace(SPEC, own_most=3).config_hash == plain.config_hash
    assert {kind.placement: kind.config_hash == plain.config_hash for kind in SPEC.variants} == {
        "": True,
        "spot": False,
        "small": False,
    }


def test_a_change_of_one_placement_replaces_its_replicas_alone() -> None:
    moved = replace(SPOT, resources=replace(SPOT.resources, qos="scavenger"))
    spec = replace(SPEC, placements=(moved, SMALL))
    there = staff([replica("a"), replica("b", "spot"), replica("c", "small")], spec, NOW)
    assert [r.id for r in there.leaving] == ["b"]
    weighed = replace(SPEC, placements=(replace(SPOT, weight=2.0, most=1, batch_only=False, limit=1), SMALL))
    assert staff([replica("b", "spot")], weighed, NOW).leaving == []


def test_replicas_of_a_placement_that_is_gone_are_replaced_one_by_one() -> None:
    spec = replace(SPEC, placements=())
    there = [replica("a", "small"), replica("b", "small")]
    actions = decide(*there, count=2, spec=spec)
    assert placed(actions) == {"": 1}
    assert stopped(actions) == set()


def test_the_mark_of_a_job_tells_its_placement_and_old_marks_still_speak() -> None:
    mark = JobComment("main", "llama", "r1", "abc", "spot")
    assert JobComment.loads(mark.dumps()) == mark
    own = replace(mark, placement="")
    assert "placement" not in own.dumps(), "as version 0.1 wrote it"
    assert JobComment.loads(own.dumps()) == own


def test_after_a_lost_database_a_job_is_taken_up_with_its_placement() -> None:
    spot = SPEC.at("spot")
    assert spot is not None
    mark = JobComment("main", "llama", "r1", spot.config_hash, "spot")
    jobs = {("", "7"): Job("7", "RUNNING", node="n1", comment=mark)}
    actions = decide(count=1, floor=0, poll=Poll(NOW, jobs))
    (adopted,) = [a.replica for a in actions if isinstance(a, Put)]
    assert (adopted.placement, adopted.target) == ("spot", Target.RUN)
    assert placed(actions) == {}, "it is what is wanted"


REPORT = {
    "model": "llama",
    "config": "abc",
    "cluster": "",
    "job": "7",
    "life": 0,
    "state": "ready",
    "host": "10.0.0.1",
    "node": "n1",
    "port": 4000,
    "time_left_s": None,
    "failure": None,
}


def test_so_is_one_that_reports_before_the_scheduler_is_asked() -> None:
    assert heard(None, parse_report("r1", {**REPORT, "placement": "spot"}), NOW).placement == "spot"
    assert heard(None, parse_report("r1", REPORT), NOW).placement == "", "of an agent of version 0.1"


def test_records_of_before_there_were_placements_are_read(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/x.db")
    store = ReplicaStore(engine)
    spot = replica("b", "spot")
    store.save([spot])
    old = asdict(replica("a"))
    del old["placement"]
    with engine.begin() as connection:
        row = {"record": json.dumps(old)}
        connection.execute(text("INSERT INTO replicas (id, record, gateway) VALUES ('a', :record, '')"), row)
    assert sorted(store.load(), key=lambda r: r.id) == [replica("a"), spot]
    engine.dispose()


# -- the launcher ----------------------------------------------------------------------------------------------------


class ClusterThatMayRefuse:
    """Takes submissions, each a pending job, except those for partitions in `full`."""

    name = ""
    job_word = "job"

    def __init__(self) -> None:
        self.taken: list[Submission] = []
        self.full: set[str] = set()
        self.asked_of: list[str] = []

    async def submit(self, submission: Submission) -> str:
        if submission.comment.placement in self.full:
            raise Refused("QOSMaxSubmitJobPerUserLimit", temporary=True)
        self.taken.append(submission)
        return str(len(self.taken))

    async def jobs(self) -> dict[str, Job]:
        return {str(n): Job(str(n), "RUNNING", comment=s.comment) for n, s in enumerate(self.taken, 1)}

    async def ended(self, ids: object) -> dict[str, Job]:
        return {}

    async def cancel(self, ids: object) -> None:
        pass

    async def maintenance(self, partition: str, now: float) -> float | None:
        self.asked_of.append(partition)
        return None


class Quiet:
    def info(self, event: str, **fields: object) -> None: ...

    warning = exception = info


class World:
    """A launcher and what it is told."""

    def __init__(self, directory: Path, spec: ModelSpec) -> None:
        self.engine = create_engine(f"sqlite:///{directory}/x.db")
        self.cluster = ClusterThatMayRefuse()
        self.now = NOW
        self.demand = Demand()
        self.launcher = Launcher(
            {"": self.cluster},
            {"llama": spec},
            site=Site("main", "http://g:1", "", directory),
            secrets=Secrets(b"s"),
            store=ReplicaStore(self.engine),
            build=lambda s, r, _: Submission(
                r, "", JobComment("main", s.name, r, s.config_hash, s.placement), Path("/dev/null")
            ),
            in_flight=lambda replica_id: 0,
            demand=lambda model: self.demand,
            log=Quiet(),
            pace=Pace(busy_s=1.0, calm_s=1.0, least_s=1.0),
            clock=lambda: self.now,
        )

    async def steps(self, number: int = 1) -> None:
        for _ in range(number):
            self.now += 1.5
            await self.launcher.step()

    @property
    def taken(self) -> list[str]:
        return [submission.comment.placement for submission in self.cluster.taken]

    def all_report(self) -> None:
        for r in self.launcher.replicas():
            if r.job_id is not None:
                message = {**REPORT, "config": r.config_hash, "job": r.job_id, "placement": r.placement}
                self.launcher.report(parse_report(r.id, message))


HERE = replace(SPEC, placements=(SPOT,))


async def test_batches_start_their_own_kind_and_requests_start_the_model_s(tmp_path: Path) -> None:
    world = World(tmp_path, HERE)
    world.demand = Demand(queued=4, batch_replicas=2, last_request_at=NOW, interactive=0)
    await world.steps(2)
    assert world.taken == ["spot", "spot"]
    world.all_report()
    world.demand = Demand(in_flight=3, batch_replicas=3, interactive=3, interactive_at=NOW)
    await world.steps(2)
    assert world.taken == ["spot", "spot", ""], "no room left there"
    world.engine.dispose()


async def test_the_endpoints_of_a_kind_have_its_weight_and_its_limit_also_after_a_reload(tmp_path: Path) -> None:
    world = World(tmp_path, HERE)
    world.demand = Demand(batch_replicas=1)
    await world.steps(1)
    world.all_report()
    (endpoint,) = world.launcher.endpoints("llama")
    assert (endpoint.weight, endpoint.limit) == (0.5, 32)
    world.launcher.configure({"llama": replace(HERE, placements=(replace(SPOT, weight=2.0, limit=None),))})
    (endpoint,) = world.launcher.endpoints("llama")
    assert (endpoint.weight, endpoint.limit) == (2.0, None)
    world.engine.dispose()


async def test_a_refusing_placement_stops_no_other_and_is_tried_again(tmp_path: Path) -> None:
    world = World(tmp_path, HERE)
    world.cluster.full = {"spot"}
    world.demand = Demand(batch_replicas=1)
    await world.steps(2)
    assert world.taken == [""]
    world.cluster.full = set()
    world.now += 60
    world.demand = Demand(batch_replicas=2)
    world.all_report()
    await world.steps(2)
    assert world.taken == ["", "spot"]
    world.engine.dispose()


async def test_maintenance_is_asked_for_once_for_each_partition(tmp_path: Path) -> None:
    world = World(tmp_path, replace(HERE, placements=(SPOT, Placement("more", OWN))))
    await world.steps(1)
    assert world.cluster.asked_of == ["gpu", "preempt"]
    world.engine.dispose()


async def test_what_an_operator_has_set_is_for_everybody(tmp_path: Path) -> None:
    world = World(tmp_path, HERE)
    world.demand = Demand(batch_replicas=2)
    await world.launcher.scale("llama", 1)
    await world.steps(2)
    assert world.taken == [""]
    world.engine.dispose()


async def test_a_cluster_that_only_a_reload_has_named_stops_nothing_else(tmp_path: Path) -> None:
    """Clusters are taken up at the start."""
    world = World(tmp_path, HERE)
    far = replace(SPEC, resources=replace(OWN, cluster="far"), placements=(Placement("near", OWN),))
    world.launcher.configure({"llama": far})
    world.demand = Demand(in_flight=1)
    await world.steps(2)
    assert world.taken == ["near"]
    (failed,) = [r for r in world.launcher.replicas() if r.failure is not None]
    assert failed.failure is not None
    assert "Cluster 'far' was not named when the gateway was started" in failed.failure.message
    world.engine.dispose()
