"""Maintenance reservations: no replica is planned into one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_launcher.cluster import CouldNotAsk
from slurm_launcher.facilities import Reservation, next_maintenance
from slurm_launcher.slurm import SlurmCluster
from slurm_launcher.spec import ModelSpec, Resources
from tests.slurm_fixture import SlurmLab
from tests.slurm_launcher.on_lab import Commands, OnLab, on_lab

MAINT = frozenset({"MAINT"})


def maintenance(start: float, end: float, *nodes: str, flags: frozenset[str] = MAINT) -> Reservation:
    return Reservation("m", start, end, frozenset(nodes), flags)


@pytest.mark.parametrize(
    ("reservations", "at"),
    [
        ([], None),
        ([maintenance(100, 200, "n1", "n2")], 100),
        ([maintenance(100, 200, "n1", "n2", "n3")], 100),
        ([maintenance(100, 200, "n1")], None),
        ([maintenance(100, 200, "n1"), maintenance(150, 300, "n2")], 150),
        ([maintenance(100, 200, "n1"), maintenance(200, 300, "n2")], None),
        ([maintenance(10, 200, "n1", "n2")], 50),
        ([maintenance(10, 50, "n1", "n2")], None),
        ([maintenance(10, 40, "n1", "n2"), maintenance(900, 990, "n1", "n2"), maintenance(500, 600, "n1", "n2")], 500),
        ([maintenance(100, 200, "n1", "n2", flags=frozenset({"SPEC_NODES"}))], None),
    ],
)
def test_the_next_time_when_every_node_of_a_partition_is_away(
    reservations: list[Reservation], at: float | None
) -> None:
    assert next_maintenance(["n1", "n2"], reservations, now=50) == at


def test_a_partition_without_nodes_is_in_no_maintenance() -> None:
    assert next_maintenance([], [maintenance(0, 100, "n1")], now=50) is None


nodes = st.frozensets(st.sampled_from(["n1", "n2", "n3"]), min_size=1)
reservations = st.lists(
    st.builds(
        lambda start, length, names: Reservation("m", start, start + length, names, MAINT),
        st.integers(0, 60),
        st.integers(1, 30),
        nodes,
    ),
    max_size=5,
)


@given(nodes, reservations, st.integers(0, 60))
def test_it_is_the_first_such_second(names: frozenset[str], planned: list[Reservation], now: int) -> None:
    def away(at: int) -> bool:
        return all(any(n in r.nodes and r.starts_at <= at < r.ends_at for r in planned) for n in names)

    expected = next((at for at in range(now, 100) if away(at)), None)
    assert next_maintenance(names, planned, now) == expected


# -- on a real Slurm --------------------------------------------------------------------------------------------------


@contextmanager
def reserved(
    lab: SlurmLab, *, in_s: int, nodes: str = "ALL", minutes: int = 60, flags: str = "maint"
) -> Iterator[None]:
    lab.run(
        "scontrol", "create", "reservation", "reservationname=works", f"starttime=now+{in_s}", f"duration={minutes}",
        f"nodes={nodes}", f"flags={flags},ignore_jobs", "users=root",
    )  # fmt: skip
    try:
        yield
    finally:
        lab.run("scontrol", "delete", "reservationname=works", check=False)


SPEC = ModelSpec("m", "llamacpp", "/m.gguf", resources=Resources(time_limit_s=7200))


def time_limits(lab: SlurmLab, world: OnLab) -> list[str]:
    return lab.run("squeue", "-h", "-n", world.job_name, "-o", "%l").split()


@pytest.mark.slurm
class TestOnARealSlurm:
    async def test_no_reservation_and_one_command_is_asked(self, slurm_lab: SlurmLab, tmp_path: Path) -> None:
        commands = Commands(tmp_path / "bin", slurm_lab)
        cluster = SlurmCluster("slurmgate-x", environment=commands.environment)
        for partition in ("", "gpu", "short"):
            assert await cluster.maintenance(partition, 1.0) is None
        assert commands.called() == {"scontrol": 1}

    async def test_the_start_is_told_whatever_the_time_zone(self, slurm_lab: SlurmLab) -> None:
        with reserved(slurm_lab, in_s=3600):
            expected = time.time() + 3600
            for zone in ("UTC", "Asia/Kolkata", "America/New_York"):
                cluster = SlurmCluster("slurmgate-x", environment=slurm_lab.env() | {"TZ": zone})
                for partition in ("", "gpu", "preempt", "short", "gpu,short"):
                    at = await cluster.maintenance(partition, time.time())
                    assert at == pytest.approx(expected, abs=30)

    async def test_a_reservation_that_leaves_a_node_is_none(self, slurm_lab: SlurmLab) -> None:
        cluster = SlurmCluster("slurmgate-x", environment=slurm_lab.env())
        with reserved(slurm_lab, in_s=3600, nodes="n[1-3]"):
            assert await cluster.maintenance("gpu", time.time()) is None
            assert await cluster.maintenance("short", time.time()) is not None  # whose only node is n1
            assert await cluster.maintenance("nosuch", time.time()) is None
        with reserved(slurm_lab, in_s=3600, flags="overlap"):
            assert await cluster.maintenance("gpu", time.time()) is None

    async def test_while_it_lasts_it_is_now(self, slurm_lab: SlurmLab) -> None:
        cluster = SlurmCluster("slurmgate-x", environment=slurm_lab.env())
        with reserved(slurm_lab, in_s=0):
            now = time.time() + 5
            assert await cluster.maintenance("gpu", now) == now

    async def test_a_silent_controller_is_not_a_maintenance_that_was_called_off(self, slurm_lab: SlurmLab) -> None:
        cluster = SlurmCluster("slurmgate-x", environment=slurm_lab.env())
        with reserved(slurm_lab, in_s=3600), slurm_lab.controller_stopped(), pytest.raises(CouldNotAsk):
            await cluster.maintenance("gpu", time.time())

    async def test_a_replica_gets_the_time_that_is_left_before_it(self, slurm_lab: SlurmLab, tmp_path: Path) -> None:
        world = on_lab(tmp_path, {"": slurm_lab.env()}, SPEC)
        with reserved(slurm_lab, in_s=3600):
            await world.step()
            assert time_limits(slurm_lab, world) in (["58:00"], ["59:00"])
            job = world.live()[0].job_id
            assert job is not None
            await world.steps_until(lambda: slurm_lab.state(job) == "RUNNING")  # it fits, so Slurm starts it
        await world.close()

    async def test_no_replica_is_asked_for_until_a_maintenance_that_is_near_is_over(
        self, slurm_lab: SlurmLab, tmp_path: Path
    ) -> None:
        world = on_lab(tmp_path, {"": slurm_lab.env()}, SPEC)
        with reserved(slurm_lab, in_s=300):
            await world.step(3)
            assert world.launcher.replicas() == []
        await world.step()
        assert time_limits(slurm_lab, world) == ["2:00:00"]
        await world.close()
