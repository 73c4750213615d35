"""From one replica to the next: who goes when there is one too many, and how soon a lost one is missed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine

from slurm_launcher.cluster import JobComment, Submission
from slurm_launcher.loop import Launcher, Pace
from slurm_launcher.reports import parse_report
from slurm_launcher.spec import ModelSpec, Secrets, Site
from slurm_launcher.states import Replica, Status
from slurm_launcher.store import ReplicaStore
from slurm_launcher.wanting import Staff, surplus
from tests.slurm_launcher.test_loop import FaultyCluster, Heard

SPEC = ModelSpec("org/m", "llamacpp", "/m.gguf")
HEARTBEAT_S = 5.0


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path}/x.db")
    yield engine
    engine.dispose()


class Paced:
    """A launcher with the default pace, and a clock that is put forward by hand."""

    def __init__(self, database: Engine) -> None:
        self.now = 1_000_000.0
        self.cluster = FaultyCluster()
        self.launcher = Launcher(
            {"": self.cluster},
            {SPEC.name: SPEC},
            site=Site("main", "http://127.0.0.1:1", "", Path("/nowhere"), heartbeat_s=HEARTBEAT_S),
            secrets=Secrets(b"s"),
            store=ReplicaStore(database),
            build=lambda s, r, _: Submission(r, "", JobComment("main", s.name, r, s.config_hash), Path("/dev/null")),
            in_flight=lambda replica_id: 0,
            log=Heard(),
            pace=Pace(),
            clock=lambda: self.now,
        )

    def report(self) -> None:
        (replica,) = (r for r in self.launcher.replicas() if not r.ended)
        message = {"model": SPEC.name, "config": replica.config_hash, "cluster": "", "job": replica.job_id, "life": 0}
        message |= {"state": "ready", "host": "10.0.0.1", "node": "n1", "port": 4000, "time_left_s": None}
        self.launcher.report(parse_report(replica.id, {**message, "failure": None}))

    async def seconds(self, number: int, *, reports: bool) -> int:
        """Let so many pass, with a step in each. Returns how often the scheduler was asked."""
        before = self.cluster.polls
        for second in range(number):
            self.now += 1.0
            if reports and second % HEARTBEAT_S == 0:
                self.report()
            await self.launcher.step()
        return self.cluster.polls - before


async def settled(database: Engine) -> Paced:
    """One replica that has been ready for a while."""
    paced = Paced(database)
    await paced.launcher.step()
    paced.report()
    await paced.seconds(100, reports=True)
    return paced


async def test_while_agents_speak_the_scheduler_is_asked_once_a_minute(database: Engine) -> None:
    paced = await settled(database)
    assert await paced.seconds(120, reports=True) == 2


async def test_the_scheduler_is_asked_soon_for_an_agent_that_says_nothing_any_more(database: Engine) -> None:
    """Killed with all of its job, say: waiting for the next minute's question would leave the model without it."""
    paced = await settled(database)
    await paced.seconds(1, reports=True)
    for job_id, job in paced.cluster.known.items():
        paced.cluster.known[job_id] = replace(job, state="FAILED")
    await paced.seconds(16, reports=False)
    assert next(iter(paced.launcher.replicas())).status is Status.FAILED
    assert paced.cluster.submissions == 2


async def test_an_agent_that_is_only_cut_off_is_asked_for_at_the_busy_pace_and_kept(database: Engine) -> None:
    paced = await settled(database)
    assert 3 <= await paced.seconds(60, reports=False) <= 4
    assert [r.status for r in paced.launcher.replicas()] == [Status.READY]
    assert paced.cluster.submissions == 1


def test_a_replica_that_ends_from_outside_does_not_cost_the_one_that_comes_in_its_place() -> None:
    """It waits, until the scheduler says whether it is over. Meanwhile there is one too many, and that one is it."""
    coming = Replica("new", SPEC.name, SPEC.config_hash, created_at=2.0, job_id="2")
    ending = Replica("old", SPEC.name, SPEC.config_hash, created_at=1.0, job_id="1", ready_at=1.5)
    for lasting in ([coming, ending], [ending, coming]):
        assert surplus(Staff(lasting, [], 0), 1, {}, SPEC) == [ending]
