"""What Slurm refuses, or takes and never starts: operator and user read why, and nothing is tried in a storm."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from slurm_launcher.spec import ModelSpec, Resources
from slurm_launcher.states import Status
from tests.slurm_fixture import SlurmLab, require_slurm
from tests.slurm_launcher.on_lab import Clock, Commands, OnLab, on_lab

pytestmark = pytest.mark.slurm

SPEC = ModelSpec("org/m", "llamacpp", "/m.gguf")


def asking(**resources: object) -> ModelSpec:
    return replace(SPEC, resources=Resources(**resources))  # type: ignore[arg-type]


@contextmanager
def small_lab(conf: str = "") -> Iterator[SlurmLab]:
    """A cluster that a test may spoil."""
    require_slurm()
    lab = SlurmLab.start(nodes=1, conf=conf)
    try:
        yield lab
    finally:
        lab.stop()


def why(world: OnLab) -> str:
    """What a user's 503 says."""
    return world.launcher.outlook(SPEC.name)[0]


REFUSALS = [
    (Resources(partition="nope"), "Invalid partition name specified"),
    (Resources(gpus=9), "Requested node configuration is not available"),
    (Resources(gpus=1, gpu_type="a100"), "Requested node configuration is not available"),
    (Resources(memory_mb=999_999_999), "Memory specification can not be satisfied"),
    (Resources(constraint="nosuch"), "Invalid feature specification"),
    (Resources(reservation="nosuch"), "Requested reservation is invalid"),
    (Resources(extra=("--gres=fpga:1",)), "Invalid generic resource (gres) specification"),
    (Resources(extra=("--nodelist=nosuch",)), "Invalid node name specified"),
    (Resources(extra=("--bogus",)), "unrecognized option '--bogus'"),
    (Resources(extra=("--time=soon",)), "Invalid --time specification"),
]


@pytest.mark.parametrize(("resources", "reason"), REFUSALS, ids=lambda v: v if isinstance(v, str) else "")
async def test_a_refused_submission_is_told_and_not_repeated_at_once(
    slurm_lab: SlurmLab, tmp_path: Path, resources: Resources, reason: str
) -> None:
    commands = Commands(tmp_path / "bin", slurm_lab)
    world = on_lab(tmp_path, {"": commands.environment}, replace(SPEC, resources=resources))
    await world.step(5)
    assert commands.called()["sbatch"] == 1
    [(kind, message)] = world.failures()
    assert kind == "refused"
    assert reason in message
    assert why(world).startswith("org/m cannot start: Slurm refused the job: ")
    assert reason in why(world)
    await world.close()


async def test_a_submission_that_is_refused_all_day_is_tried_six_times(slurm_lab: SlurmLab, tmp_path: Path) -> None:
    commands, clock = Commands(tmp_path / "bin", slurm_lab), Clock()
    world = on_lab(tmp_path, {"": commands.environment}, asking(partition="nope"), clock=clock)
    for _ in range(60):
        await world.step()
        clock.ahead_s += 60.0
    assert commands.called()["sbatch"] == 6
    assert why(world).endswith("It is not tried again until an operator has seen to it.")
    await world.close()


async def given_up(world: OnLab, commands: Commands, lab: SlurmLab, reason: str, words: str) -> None:
    """The job of the one replica is pending for good: it is cancelled, told of, and not asked for again."""
    await world.steps_until(world.failures, reason)
    [(kind, message)] = world.failures()
    assert kind == "hopeless"
    assert re.search(words, message)
    assert re.search(rf"Slurm says ({reason})\.$", message)
    assert message in why(world)
    [replica] = world.launcher.replicas()
    assert replica.status is Status.FAILED
    assert replica.job_id is not None
    job_id = replica.job_id
    await world.steps_until(lambda: lab.state(job_id) == "CANCELLED", "the job is cancelled")
    await world.step(3)
    assert commands.called()["sbatch"] == 1


@pytest.mark.parametrize(
    ("resources", "reason", "words"),
    [
        (Resources(partition="short", time_limit_s=3600), "PartitionTimeLimit", "asks for more time than"),
        (Resources(extra=("--ntasks=5", "--nodes=5")), "PartitionNodeLimit", "asks for more nodes than"),
    ],
    ids=["time", "nodes"],
)
async def test_a_job_that_would_wait_for_ever_is_given_up(
    slurm_lab: SlurmLab, tmp_path: Path, resources: Resources, reason: str, words: str
) -> None:
    commands = Commands(tmp_path / "bin", slurm_lab)
    world = on_lab(tmp_path, {"": commands.environment}, replace(SPEC, resources=resources))
    # whether it says so or only `PartitionConfig` depends on which part of slurmctld has looked at the job last
    await given_up(world, commands, slurm_lab, f"{reason}|PartitionConfig", f"{words}|asks for what its partition")
    await world.close()


async def test_a_job_that_a_user_holds_is_replaced(slurm_lab: SlurmLab, tmp_path: Path) -> None:
    clock = Clock()
    commands = Commands(tmp_path / "bin", slurm_lab)
    spec = asking(extra=("--begin=now+1hour",))
    world = on_lab(tmp_path, {"": commands.environment}, spec, clock=clock)
    await world.step(2)
    [first] = world.live()
    assert first.job_id is not None
    slurm_lab.run("scontrol", "uhold", first.job_id)  # as the user, though this one is root
    await world.steps_until(world.failures)
    assert world.failures() == [("held", f"Job {first.job_id} was held by a user and is replaced.")]
    await world.step(3)
    assert commands.called()["sbatch"] == 1
    clock.ahead_s += 10.0
    await world.steps_until(world.live)
    assert commands.called()["sbatch"] == 2
    job_id = first.job_id
    await world.steps_until(lambda: slurm_lab.state(job_id) == "CANCELLED", "the held job is cancelled")
    await world.close()


async def test_a_partition_that_is_closed_is_named_while_its_jobs_wait(tmp_path: Path) -> None:
    with small_lab() as lab:
        commands, clock = Commands(tmp_path / "bin", lab), Clock()
        world = on_lab(tmp_path, {"": commands.environment}, asking(partition="short"), clock=clock)
        lab.run("scontrol", "update", "partitionname=short", "state=down")
        await world.step()
        await world.steps_until(lambda: "PENDING (PartitionDown)" in why(world))
        assert world.failures() == []  # it may open again, and the job keeps its place
        lab.run("scontrol", "update", "partitionname=short", "state=inactive")
        await world.steps_until(lambda: "PENDING (PartitionInactive)" in why(world))
        assert commands.called()["sbatch"] == 1
        lab.run("scontrol", "update", "partitionname=short", "state=up")
        [replica] = world.live()
        assert replica.job_id is not None
        job_id = replica.job_id
        await world.steps_until(lambda: lab.state(job_id) == "RUNNING")
        await world.close()


async def test_a_partition_that_vanishes_under_a_running_job(tmp_path: Path) -> None:
    with small_lab() as lab:
        commands, clock = Commands(tmp_path / "bin", lab), Clock()
        world = on_lab(tmp_path, {"": commands.environment}, asking(partition="short"), clock=clock)
        await world.step()
        [replica] = world.live()
        assert replica.job_id is not None
        job_id = replica.job_id
        await world.steps_until(lambda: lab.state(job_id) == "RUNNING")
        lines = [line for line in lab.conf.read_text().splitlines() if not line.startswith("PartitionName=short")]
        lab.conf.write_text("\n".join([*lines, ""]))
        lab.controller_stop()
        lab.controller_start()
        # Slurm ends what ran there; whatever it calls it, the next submission tells what is wrong
        await world.steps_until(lambda: not any(r.job_id == job_id for r in world.live()), "the job has ended")
        for _ in range(60):
            await world.step()
            clock.ahead_s += 60.0
        assert "Invalid partition name specified" in why(world)
        assert commands.called()["sbatch"] <= 1 + 6
        await world.close()


LUA = """
function slurm_job_submit(job, partitions, user)
  slurm.log_user("jobs of %s need a project, see https://wiki/projects", "gpu")
  return slurm.ERROR
end
function slurm_job_modify(job, record, partitions, user) return slurm.SUCCESS end
return slurm.SUCCESS
"""


async def test_a_submit_plugins_own_words_reach_the_user(tmp_path: Path) -> None:
    with small_lab() as lab:
        (lab.conf.parent / "job_submit.lua").write_text(LUA)
        lab.conf.write_text(lab.conf.read_text() + "\nJobSubmitPlugins=lua\n")
        lab.controller_stop()
        lab.controller_start()
        commands = Commands(tmp_path / "bin", lab)
        world = on_lab(tmp_path, {"": commands.environment}, SPEC)
        await world.step(4)
        assert why(world) == (
            "org/m cannot start: Slurm refused the job: jobs of gpu need a project, see https://wiki/projects"
        )
        assert commands.called()["sbatch"] == 1
        await world.close()


async def test_a_submit_plugin_that_wants_a_time_limit(tmp_path: Path) -> None:
    with small_lab("JobSubmitPlugins=require_timelimit") as lab:
        world = on_lab(tmp_path, {"": lab.env()}, SPEC)
        await world.step()
        assert "Time limit specification required, but not provided" in why(world)
        await world.close()


class TestWithAccounting:
    @pytest.mark.parametrize(
        ("resources", "reason"),
        [
            (Resources(account="nosuch"), "Invalid account or account/partition combination specified"),
            (Resources(qos="nosuch"), "Invalid qos specification"),
        ],
        ids=["account", "qos"],
    )
    async def test_an_account_that_is_none(
        self, slurm_accounting_lab: SlurmLab, tmp_path: Path, resources: Resources, reason: str
    ) -> None:
        commands = Commands(tmp_path / "bin", slurm_accounting_lab)
        world = on_lab(tmp_path, {"": commands.environment}, replace(SPEC, resources=resources))
        await world.step(4)
        assert reason in why(world)
        assert commands.called()["sbatch"] == 1
        await world.close()

    async def test_a_limit_on_one_job_is_a_mistake(self, slurm_accounting_lab: SlurmLab, tmp_path: Path) -> None:
        commands = Commands(tmp_path / "bin", slurm_accounting_lab)
        world = on_lab(tmp_path, {"": commands.environment}, asking(qos="tiny", time_limit_s=3600))
        reason = "QOSMaxWallDurationPerJobLimit"
        await given_up(world, commands, slurm_accounting_lab, reason, "asks for more than one job may have")
        await world.close()

    async def test_a_limit_that_other_jobs_use_up_is_waited_for(
        self, slurm_accounting_lab: SlurmLab, tmp_path: Path
    ) -> None:
        commands = Commands(tmp_path / "bin", slurm_accounting_lab)
        spec = asking(qos="tiny")
        two = replace(spec, scaling=replace(spec.scaling, least=2, most=2))
        world = on_lab(tmp_path, {"": commands.environment}, two)
        await world.step()

        def one_waits() -> bool:
            return any("QOSMaxJobsPerUserLimit" in r.note for r in world.live())

        await world.steps_until(one_waits)
        await world.step(3)
        assert world.failures() == []
        assert commands.called()["sbatch"] == 2
        await world.close()

    async def test_a_limit_on_submissions_is_told(self, slurm_accounting_lab: SlurmLab, tmp_path: Path) -> None:
        script = "#!/bin/sh\nsleep 300\n"
        for _ in range(3):
            slurm_accounting_lab.run("sbatch", "--qos=tiny", "-o", "/dev/null", stdin=script)
        commands = Commands(tmp_path / "bin", slurm_accounting_lab)
        world = on_lab(tmp_path, {"": commands.environment}, asking(qos="tiny"))
        await world.step(4)
        assert "QOSMaxSubmitJobPerUserLimit" in why(world)
        assert commands.called()["sbatch"] == 1
        await world.close()
        slurm_accounting_lab.cancel_all()
