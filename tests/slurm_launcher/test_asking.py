"""How often Slurm is asked, how it is asked when it is slow, and in which words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from slurm_launcher.loop import Pace
from slurm_launcher.slurm import SlurmCluster
from slurm_launcher.spec import ModelSpec, Resources
from tests.slurm_fixture import SlurmLab, require_slurm
from tests.slurm_launcher.on_lab import Clock, Commands, OnLab, on_lab

pytestmark = pytest.mark.slurm

SPEC = ModelSpec("m", "llamacpp", "/m.gguf")
FIVE = [replace(SPEC, name=f"m{i}") for i in range(5)]


def running(world: OnLab, number: int) -> bool:
    return [r.note for r in world.live()] == ["RUNNING"] * number


async def test_one_question_for_all_jobs_at_each_poll_and_accounting_for_the_vanished_alone(
    slurm_lab: SlurmLab, tmp_path: Path
) -> None:
    commands = Commands(tmp_path / "bin", slurm_lab)
    world = on_lab(tmp_path, {"": commands.environment}, *FIVE)
    await world.steps_until(lambda: running(world, 5))
    commands.forget()
    await world.polls(10)
    called = commands.called()
    assert (called["squeue"], called["sacct"], called["sbatch"], called["scancel"]) == (10, 0, 0, 0)
    assert called["scontrol"] == 10  # maintenance, asked for at each step here; every ten minutes otherwise

    commands.before("squeue", "exit 0")  # an empty answer, believed by others
    commands.forget()
    await world.polls(1)
    assert commands.called()["sacct"] == 1
    [asked] = commands.arguments("sacct")
    for replica in world.live():
        assert replica.job_id is not None
        assert replica.job_id in asked.split("--jobs=")[1].split(",")
    assert len(world.live()) == 5  # one empty answer ends nothing

    commands.before("squeue", "")
    await world.polls(5)
    assert commands.called()["sacct"] == 1
    assert commands.called()["sbatch"] == 0
    assert running(world, 5)
    await world.close()


async def test_a_slow_scheduler_is_asked_less(slurm_lab: SlurmLab, tmp_path: Path) -> None:
    commands, clock = Commands(tmp_path / "bin", slurm_lab), Clock()
    pace = Pace(busy_s=1.0, calm_s=1.0, least_s=0.0, maintenance_s=1e9)
    world = on_lab(tmp_path, {"": commands.environment}, SPEC, clock=clock, pace=pace)

    async def steps_of(seconds: float, number: int) -> int:
        before = commands.called()["squeue"]
        for _ in range(number):
            clock.ahead_s += seconds
            await world.step()
        return commands.called()["squeue"] - before

    await world.steps_until(lambda: running(world, 1))
    assert await steps_of(2.0, 3) == 3
    commands.before("squeue", "sleep 0.5")
    assert await steps_of(2.0, 1) == 1
    assert await steps_of(2.0, 4) == 0  # at least 10 s after an answer that took half a second
    assert await steps_of(60.0, 2) == 2
    commands.before("squeue", "")
    assert await steps_of(60.0, 1) == 1
    assert await steps_of(5.0, 3) == 3
    await world.close()


async def test_an_option_that_is_not_known_is_asked_otherwise_from_then_on(slurm_lab: SlurmLab, tmp_path: Path) -> None:
    commands = Commands(tmp_path / "bin", slurm_lab)
    refusal = """case "$*" in *--me*) echo "squeue: unrecognized option '--me'" >&2; exit 1;; esac"""
    commands.before("squeue", refusal)
    world = on_lab(tmp_path, {"": commands.environment}, SPEC)
    await world.steps_until(lambda: running(world, 1))
    asked = commands.arguments("squeue")
    assert "--me" in asked[0]
    assert all("--user=0" in line and "--me" not in line for line in asked[1:])
    await world.close()


async def test_records_of_several_lines_are_read_where_oneliner_is_not_known(
    slurm_lab: SlurmLab, tmp_path: Path
) -> None:
    commands = Commands(tmp_path / "bin", slurm_lab)
    refusal = """case "$*" in *--oneliner*) echo "scontrol: unrecognized option '--oneliner'" >&2; exit 1;; esac"""
    cluster = SlurmCluster("slurmgate-x", environment=commands.environment)
    expected = await cluster.partitions()
    commands.before("scontrol", refusal)
    assert await cluster.partitions() == expected
    assert [p.name for p in expected] == ["gpu", "preempt", "short"]


async def test_a_state_that_is_not_known_ends_no_replica(slurm_lab: SlurmLab, tmp_path: Path) -> None:
    commands = Commands(tmp_path / "bin", slurm_lab)
    world = on_lab(tmp_path, {"": commands.environment}, SPEC)
    await world.steps_until(lambda: running(world, 1))
    [replica] = world.live()
    commands.before("squeue", f"echo '{replica.job_id}|HIBERNATING|None|n1|n1|||||||||'; exit 0")
    await world.polls(4)
    assert [(r.id, r.note) for r in world.live()] == [(replica.id, "HIBERNATING")]
    assert commands.called()["sbatch"] == 1
    await world.close()


# -- several clusters -------------------------------------------------------------------------------------------------


@contextmanager
def two_clusters() -> Iterator[tuple[SlurmLab, SlurmLab]]:
    """`lab` and `two`, of one slurmdbd: the second one's lines come last in its slurm.conf, and the last one holds."""
    require_slurm(accounting=True)
    one = SlurmLab.start(nodes=1, dbd=True)
    try:
        one.run("sacctmgr", "-iQ", "add", "cluster", "two")
        [port] = [line for line in one.conf.read_text().splitlines() if line.startswith("AccountingStoragePort=")]
        munge = one.directory / "munge" / "munge.sock"
        lines = [
            "ClusterName=two",
            f"AuthInfo=socket={munge},cred_expire=5",
            "AccountingStorageType=accounting_storage/slurmdbd",
            "AccountingStorageHost=127.0.0.1",
            port,
            f"AccountingStoragePass={munge}",
        ]
        two = SlurmLab.start(nodes=1, conf="\\n".join(lines))
        try:
            yield one, two
        finally:
            two.stop()
    finally:
        one.stop()


@pytest.mark.timeout(120)
async def test_two_clusters_with_jobs_of_the_same_id(tmp_path: Path) -> None:
    specs = [replace(SPEC, name=name, resources=Resources(cluster=name)) for name in ("lab", "two")]
    with two_clusters() as (one, two):
        environment = one.env()
        world = on_lab(tmp_path, {"": environment, "lab": environment, "two": environment}, *specs)
        world.launcher.configure({spec.name: spec for spec in specs})
        await world.steps_until(lambda: running(world, 2))
        by_cluster = {r.cluster: r for r in world.live()}
        assert set(by_cluster) == {"lab", "two"}
        assert by_cluster["lab"].job_id == by_cluster["two"].job_id == "1"
        assert [r.model for r in by_cluster.values()] == [r.cluster for r in by_cluster.values()]

        # the one that is down hides nothing of the other, and loses nothing of its own
        two.controller_stop()
        one.run("scancel", "1")
        await world.steps_until(lambda: any(r.cluster == "lab" and r.job_id == "2" for r in world.live()))
        assert [r.id for r in world.live() if r.cluster == "two"] == [by_cluster["two"].id]
        assert "scheduler_silent" in world.log.events
        two.controller_start()
        await world.steps_until(lambda: running(world, 2))
        assert [r.job_id for r in world.live() if r.cluster == "two"] == ["1"]

        # to cancel one is not to cancel its namesake
        await world.clusters["two"].cancel(["1"])
        await world.steps_until(lambda: any(r.cluster == "two" and r.job_id == "2" for r in world.live()))
        assert two.state("1") == "CANCELLED"
        assert [r.job_id for r in world.live() if r.cluster == "lab"] == ["2"]
        assert one.state("2") in {"RUNNING", "PENDING"}
        await world.close()
