"""The launcher's loop over a cluster that can be told how to fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from slurm_launcher.autoscale import Demand, Scaling
from slurm_launcher.cluster import Cluster, CouldNotAsk, Job, JobComment, Refused, Submission
from slurm_launcher.loop import Launcher, Pace
from slurm_launcher.reports import parse_report
from slurm_launcher.spec import ModelSpec, Resources, Secrets, Site
from slurm_launcher.states import Status
from slurm_launcher.store import ReplicaStore

SPEC = ModelSpec("org/m", "llamacpp", "/m.gguf")
SITE = Site("main", "http://127.0.0.1:1", "/dev/null", Path("/tmp"), heartbeat_s=5.0)  # noqa: S108


class FaultyCluster:
    """Runs jobs in memory. `fault` is raised by every verb; `lost_answers` carries submissions out, then fails."""

    def __init__(self) -> None:
        self.name = ""
        self.job_word = "Slurm job"
        self.known: dict[str, Job] = {}
        self.fault: Exception | None = None
        self.lost_answers = False
        self.polls = 0
        self.submissions = 0

    async def submit(self, submission: Submission) -> str:
        self.submissions += 1
        if isinstance(self.fault, Refused):
            raise self.fault
        job = Job(str(100 + self.submissions), "RUNNING", node="n1", comment=submission.comment)
        self.known[job.id] = job
        if self.lost_answers:
            raise CouldNotAsk("Socket timed out on send/recv operation")
        return job.id

    async def jobs(self) -> dict[str, Job]:
        self.polls += 1
        if isinstance(self.fault, CouldNotAsk):
            raise self.fault
        return dict(self.known)

    async def ended(self, ids: Iterable[str]) -> dict[str, Job]:
        return {}

    async def cancel(self, ids: Iterable[str]) -> None:
        for job_id in ids:
            self.known[job_id] = replace(self.known[job_id], state="CANCELLED")

    async def maintenance(self, partition: str, now: float) -> float | None:
        return None


class Heard:
    """A log that remembers."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    warning = exception = info


class World:
    def __init__(self, directory: Path) -> None:
        self.engine = create_engine(f"sqlite:///{directory}/x.db")
        self.cluster = FaultyCluster()
        self.log = Heard()
        self.now = 1_000_000.0
        self.demand = Demand()

    def launcher(self, *specs: ModelSpec, clusters: dict[str, Cluster] | None = None) -> Launcher:
        return Launcher(
            clusters or {"": self.cluster},
            {spec.name: spec for spec in specs or (SPEC,)},
            site=SITE,
            secrets=Secrets(b"s"),
            store=ReplicaStore(self.engine),
            build=lambda s, r, _: Submission(r, "", JobComment("main", s.name, r, s.config_hash), Path("/dev/null")),
            in_flight=lambda replica_id: 3,
            demand=lambda model: self.demand,
            log=self.log,
            pace=Pace(busy_s=1.0, calm_s=1.0, least_s=1.0),
            clock=lambda: self.now,
        )

    async def steps(self, launcher: Launcher, number: int = 1) -> None:
        for _ in range(number):
            self.now += 1.5
            await launcher.step()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    world.engine.dispose()


def report(launcher: Launcher, state: str = "ready", **fields: Any) -> tuple[str, int]:
    """What the agent of the launcher's newest replica would send."""
    replica = launcher.replicas()[-1]
    message = {"model": SPEC.name, "config": replica.config_hash, "cluster": "", "job": replica.job_id, "life": 0}
    message |= {"state": state, "host": "10.0.0.1", "node": "n1", "port": 4000, "time_left_s": None, "failure": None}
    return launcher.report(parse_report(replica.id, {**message, **fields}))


async def test_a_replica_from_submission_to_requests(world: World) -> None:
    launcher = world.launcher()
    assert launcher.endpoints("org/m") == ()
    await world.steps(launcher)
    assert "is starting" in launcher.outlook("org/m")[0]
    news = asyncio.create_task(launcher.changed("org/m"), name="news")
    await asyncio.sleep(0)
    assert report(launcher) == ("run", 3)
    await asyncio.wait_for(news, 5)
    (endpoint,) = launcher.endpoints("org/m")
    assert (endpoint.host, endpoint.port) == ("10.0.0.1", 4000)
    assert launcher.endpoints("org/m") is launcher.endpoints("org/m")
    await world.steps(launcher, 3)
    assert world.cluster.submissions == 1


async def test_a_refusal_is_said_and_not_repeated_at_once(world: World) -> None:
    world.cluster.fault = Refused("Slurm refused the job: Invalid partition name specified")
    launcher = world.launcher()
    await world.steps(launcher, 10)
    assert world.cluster.submissions == 1
    why, retry_after_s = launcher.outlook("org/m")
    assert "Invalid partition name specified" in why
    assert retry_after_s is not None
    assert 0 < retry_after_s <= 30
    assert any("Invalid partition" in str(fields) for event, fields in world.log.lines if event == "replica_state")
    world.now += 60
    await world.steps(launcher)
    assert world.cluster.submissions == 2


async def test_a_submission_whose_answer_was_lost_is_not_made_twice(world: World) -> None:
    world.cluster.lost_answers = True
    launcher = world.launcher()
    await world.steps(launcher, 5)
    assert world.cluster.submissions == 1
    assert launcher.replicas()[0].job_id == "101"


async def test_a_silent_scheduler_changes_nothing_and_is_said_once(world: World) -> None:
    launcher = world.launcher()
    await world.steps(launcher)
    report(launcher)
    world.cluster.fault = CouldNotAsk("Unable to contact slurm controller")
    await world.steps(launcher, 50)
    assert launcher.replicas()[0].status is Status.READY
    assert world.cluster.submissions == 1
    assert [event for event, _ in world.log.lines].count("scheduler_silent") == 1


async def test_a_scheduler_that_never_answered_is_the_reason_a_user_gets(world: World) -> None:
    world.cluster.fault = CouldNotAsk("squeue: command not found")
    world.cluster.lost_answers = True
    launcher = world.launcher()
    await world.steps(launcher, 3)
    why, retry_after_s = launcher.outlook("org/m")
    assert "squeue: command not found" in why
    assert retry_after_s is not None


async def test_a_failed_agent_s_last_words_reach_the_user_without_its_log(world: World) -> None:
    launcher = world.launcher()
    await world.steps(launcher)
    failure = {"kind": "engine_exited", "message": "The engine exited with status 1.", "tail": ["CUDA out of memory"]}
    assert report(launcher, "failed", failure=failure)[0] == "stop"
    why, _ = launcher.outlook("org/m")
    assert "exited with status 1" in why
    assert "CUDA" not in why


async def test_a_new_process_takes_up_what_the_old_one_knew(world: World) -> None:
    first = world.launcher()
    await world.steps(first)
    report(first)
    await first.stop()
    second = world.launcher()
    await second.start()
    try:
        assert [e.host for e in second.endpoints("org/m")] == ["10.0.0.1"]
    finally:
        await second.stop()
    assert world.cluster.submissions == 1


async def test_a_new_process_without_a_database_adopts_by_mark_and_report(world: World, tmp_path: Path) -> None:
    first = world.launcher()
    await world.steps(first)
    (tmp_path / "other").mkdir()
    other = World(tmp_path / "other")
    other.cluster = world.cluster
    second = other.launcher()
    await other.steps(second, 2)
    assert world.cluster.submissions == 1
    report(second)
    assert len(second.endpoints("org/m")) == 1
    other.engine.dispose()


async def test_stopping_the_replicas_leaves_no_job(world: World) -> None:
    launcher = world.launcher(replace(SPEC, scaling=Scaling(3, 3)))
    await world.steps(launcher)
    assert await launcher.stop_replicas(5) == []
    assert {job.state for job in world.cluster.known.values()} == {"CANCELLED"}
    assert all(replica.status is Status.STOPPED for replica in launcher.replicas())


async def test_jobs_that_do_not_end_are_named(world: World) -> None:
    launcher = world.launcher()
    await world.steps(launcher)
    world.cluster.fault = CouldNotAsk("Unable to contact slurm controller")

    def later() -> float:
        world.now += 10
        return world.now

    set_clock(launcher, later)
    assert await launcher.stop_replicas(5) == ["101"]


def set_clock(launcher: Launcher, clock: Callable[[], float]) -> None:
    launcher._clock = clock


async def test_the_scheduler_is_asked_no_more_often_than_agreed(world: World) -> None:
    launcher = world.launcher()
    await world.steps(launcher)
    before = world.cluster.polls
    for _ in range(100):
        launcher.need("org/m")
        world.now += 0.005
        await launcher.step()
    assert world.cluster.polls <= before + 1


# -- scaling, operators, several clusters ----------------------------------------------------------------------------

ELASTIC = replace(SPEC, scaling=Scaling(0, 3, idle_s=60.0))


async def test_demand_brings_replicas_up_from_zero_and_its_end_lets_them_go(world: World) -> None:
    world.demand = Demand()
    launcher = world.launcher(ELASTIC)
    await world.steps(launcher, 3)
    assert world.cluster.submissions == 0
    world.demand = Demand(queued=1, last_request_at=world.now)
    await world.steps(launcher, 2)
    assert world.cluster.submissions == 1
    assert launcher.outlook("org/m")[1] is None  # it is coming: waiting helps
    report(launcher)
    world.demand = Demand(last_request_at=world.now)
    await world.steps(launcher)
    assert len(launcher.endpoints("org/m")) == 1
    world.now += 1000
    report(launcher)
    await world.steps(launcher)
    world.now += 1000
    assert report(launcher) == ("drain", 3)


async def test_what_an_operator_has_set_holds_and_survives_a_restart(world: World) -> None:
    launcher = world.launcher()
    await launcher.scale("org/m", 2)
    await world.steps(launcher, 2)
    assert world.cluster.submissions == 2
    again = world.launcher()
    await again.start()
    await again.stop()
    assert again.count_of("org/m") == 2
    await again.scale("org/m", None)
    assert again.count_of("org/m") == 1


async def test_a_drained_replica_is_told_so_and_replaced(world: World) -> None:
    launcher = world.launcher()
    await world.steps(launcher)
    report(launcher)
    (endpoint,) = launcher.endpoints("org/m")
    assert launcher.drain(endpoint.replica_id)
    assert launcher.endpoints("org/m") == ()
    assert report(launcher)[0] == "drain"
    await world.steps(launcher)
    assert world.cluster.submissions == 2
    assert not launcher.drain("no-such-replica")


async def test_a_restart_forgets_failures_and_replaces_what_runs(world: World) -> None:
    world.cluster.fault = Refused("Slurm refused the job: Invalid qos specification")
    launcher = world.launcher()
    await world.steps(launcher, 2)
    world.cluster.fault = None
    launcher.restart("org/m")
    await world.steps(launcher)
    assert world.cluster.submissions == 2
    report(launcher)
    launcher.restart("org/m")
    await world.steps(launcher)
    assert world.cluster.submissions == 3
    assert len(launcher.endpoints("org/m")) == 1  # the old one serves until the new one is ready


async def test_a_model_goes_to_its_own_cluster_and_one_silent_cluster_hides_no_other(world: World) -> None:
    far = FaultyCluster()
    far.name = "gpu2"
    near_spec, far_spec = SPEC, replace(SPEC, name="far", resources=Resources(cluster="gpu2"))
    launcher = world.launcher(near_spec, far_spec, clusters={"": world.cluster, "gpu2": far})
    await world.steps(launcher)
    assert (world.cluster.submissions, far.submissions) == (1, 1)
    far.fault = CouldNotAsk("Unable to contact slurm controller")
    world.cluster.known.clear()
    await world.steps(launcher, 3)
    states = {r.model: r.ended for r in launcher.replicas() if r.job_id == "101"}
    assert states == {"org/m": True, "far": False}
    assert "does not answer" not in launcher.outlook("org/m")[0]


async def test_a_scheduler_that_is_slow_to_answer_is_asked_less_often(world: World) -> None:
    launcher = world.launcher()
    await world.steps(launcher, 2)
    launcher._took_s = 2.0
    asked = world.cluster.polls
    await world.steps(launcher, 10)
    assert world.cluster.polls == asked
    world.now += 40
    await launcher.step()
    assert world.cluster.polls == asked + 1


async def test_a_stranger_at_a_replicas_address_is_said_where_people_look(world: World) -> None:
    launcher = world.launcher()
    await world.steps(launcher)
    report(launcher)
    (replica,) = launcher.replicas()
    launcher.identity("org/m", replica.id, ours=False)
    told = {"replica": replica.id, "model": "org/m", "node": "n1"}
    assert ("engine_is_a_stranger", told) in world.log.lines
    await world.steps(launcher, 2)
    assert launcher.replicas()[0].note == "somebody else answers at its address"
    launcher.identity("org/m", replica.id, ours=True)
    await world.steps(launcher, 2)
    assert launcher.replicas()[0].note == "RUNNING"
    launcher.identity("org/m", replica.id, ours=False)
    report(launcher, port=4001)
    await world.steps(launcher, 2)
    assert launcher.replicas()[0].note == "RUNNING", "its agent has started the engine on another port"
    launcher.identity("org/m", "nobody", ours=False)
    await world.steps(launcher)
