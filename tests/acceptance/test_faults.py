"""Faults on the real Slurm under constant load: what may fail is said, and afterwards two replicas are there again.

One gateway, two replicas of a real engine on two nodes, five people who never stop asking. A stream on an engine that
is killed cannot be saved: `ON_ONE` is the most that one replica had at that moment. Everything else goes elsewhere.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.constant_load import Load
from tests.acceptance.test_on_slurm import CHAT, config, jobs
from tests.gateway_process import GatewayProcess
from tests.slurm_fixture import SlurmLab, require_slurm
from tests.waiting import until_sync

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]

ON_ONE = 5
SERVICE = "faults"


class Site:
    def __init__(self, gateway: GatewayProcess, lab: SlurmLab, key: str) -> None:
        self.gateway = gateway
        self.lab = lab
        self.key = key

    def load(self) -> Load:
        return Load(self.gateway.url, self.key, CHAT)

    def ready(self) -> list[dict[str, object]]:
        return [r for r in self.gateway.replicas() if r["model"] == CHAT and r["state"] == "ready"]

    def jobs(self) -> dict[str, str]:
        return jobs(self.lab, SERVICE)

    def whole_again(self, load: Load, *, without: str = "") -> None:
        """Two replicas serve, none of them by the job `without`, there are two jobs, and requests go through."""
        until_sync(lambda: sum(r["job"] != without for r in self.ready()) == 2, 90)
        until_sync(lambda: len(self.jobs()) == 2, 60)
        goes_on(load)


def goes_on(load: Load, count: int = 10) -> None:
    seen = load.whole
    until_sync(lambda: load.whole >= seen + count, 60)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    require_slurm()
    lab = SlurmLab.start()
    gateway = GatewayProcess(tmp_path_factory.mktemp("faults"), only_chat(), lab.env())
    try:
        gateway.start()
        key = gateway.key()
        gateway.until_ready(**{CHAT: 2})
        yield Site(gateway, lab, key)
    finally:
        gateway.stop()
        lab.cancel_all()
        lab.stop()


def only_chat() -> str:
    text = config(SERVICE)
    return text[: text.index('[models."')].replace("drain_timeout_s = 5.0", "drain_timeout_s = 20.0\nlead_s = 60.0")


def engine_of(job: str, root: Path = Path("/proc")) -> int:
    """The engine's process, found by its job in its environment."""
    for process in root.iterdir():
        if not process.name.isdigit():
            continue
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if f"SLURM_JOB_ID={job}".encode() in environment and b"xllamacpp_server" in command:
            return int(process.name)
    raise AssertionError(f"job {job} has no engine")


def test_a_wall_time_costs_no_request(site: Site) -> None:
    victim = str(site.ready()[0]["job"])
    most = 0
    with site.load() as load:
        goes_on(load)
        site.lab.run("scontrol", "update", f"jobid={victim}", "endtime=now+60")

        def replaced() -> bool:
            nonlocal most
            most = max(most, len(site.jobs()))
            return victim not in site.jobs() and len(site.ready()) == 2

        until_sync(replaced, 150, 0.2)
        site.whole_again(load, without=victim)
    assert load.failed == []
    assert most <= 3, "one extra job at the most"


def test_a_killed_engine_costs_what_it_had_and_is_replaced(site: Site) -> None:
    victim = str(site.ready()[0]["job"])
    with site.load() as load:
        goes_on(load)
        os.kill(engine_of(victim), signal.SIGKILL)
        until_sync(lambda: victim not in site.jobs(), 60)
        site.whole_again(load, without=victim)
    assert len(load.failed) <= ON_ONE, load.failed
    failed = [r for r in site.gateway.replicas() if r["job"] == victim]
    assert "SIGKILL" in failed[0]["failure"]["message"]


def test_a_controller_that_is_down_costs_nothing_and_nothing_is_doubled(site: Site) -> None:
    before = site.jobs()
    with site.load() as load:
        with site.lab.controller_stopped():
            until_sync(lambda: site.gateway.events("scheduler_silent"), 60)
            goes_on(load, 20)
        until_sync(lambda: site.jobs() == before, 60)
        goes_on(load)
    assert load.failed == []
    assert len(site.ready()) == 2


def test_a_requeued_job_costs_what_it_had_and_there_are_two_again(site: Site) -> None:
    victim = str(site.ready()[0]["job"])
    with site.load() as load:
        goes_on(load)
        site.lab.run("scontrol", "requeue", victim)
        until_sync(lambda: len(site.ready()) == 1, 60)
        until_sync(lambda: len(site.ready()) == 2, 120)
        until_sync(lambda: len(site.jobs()) == 2, 60)
        goes_on(load)
    assert len(load.failed) <= ON_ONE, load.failed


def test_a_preempted_job_costs_what_it_had_and_there_are_two_again_elsewhere(site: Site) -> None:
    """Into the partition that may be preempted, and then somebody wants its node."""
    path = site.gateway.log_path.parent / "config.toml"
    before = path.read_text()
    path.write_text(before.replace("cpus = 1\n", 'cpus = 1\npartition = "preempt"\n', 1))
    site.gateway.run("reload")
    site.gateway.until_ready(**{CHAT: 2})
    until_sync(lambda: len(site.jobs()) == 2 and len(site.ready()) == 2, 120)
    victim = site.ready()[0]
    node = str(victim["node"])
    with site.load() as load:
        goes_on(load)
        wanted = [
            "sbatch",
            "--parsable",
            "--partition=gpu",
            f"--nodelist={node}",
            "--gres=gpu:4",
            "--time=5",
            "--output=/dev/null",
        ]
        rival = site.lab.run(*wanted, "--wrap", "sleep 300").strip()
        until_sync(lambda: len(site.ready()) == 1, 60)
        until_sync(lambda: len(site.ready()) == 2 and len(site.jobs()) == 2, 120)
        goes_on(load)
    assert node not in site.jobs().values()
    assert len(load.failed) <= ON_ONE, load.failed
    site.lab.run("scancel", rival)
    lent = set(site.jobs())
    path.write_text(before)
    site.gateway.run("reload")
    until_sync(lambda: not lent & set(site.jobs()) and len(site.jobs()) == 2 and len(site.ready()) == 2, 120)


def test_a_gateway_that_is_killed_doubles_nothing(site: Site) -> None:
    before = site.jobs()
    assert site.gateway.stop(signal.SIGKILL) == -signal.SIGKILL
    assert site.jobs() == before
    site.gateway.start()
    site.gateway.until_ready(**{CHAT: 2})
    with site.load() as load:
        goes_on(load)
    assert load.failed == []
    assert site.jobs() == before


def test_a_drained_replica_costs_nothing(site: Site) -> None:
    victim = site.ready()[0]
    with site.load() as load:
        goes_on(load)
        site.gateway.run("drain", str(victim["replica"]))
        until_sync(lambda: victim["job"] not in site.jobs(), 60)
        site.whole_again(load, without=str(victim["job"]))
    assert load.failed == []


def test_operators_scale_and_restart_without_a_failed_request(site: Site) -> None:
    before = set(site.jobs())
    with site.load() as load:
        assert site.gateway.run("scale", CHAT, "1").stdout == f"{CHAT} shall have 1 replica\n"
        until_sync(lambda: len(site.jobs()) == 1, 60)
        site.gateway.run("scale", CHAT, "auto")
        site.whole_again(load)
        site.gateway.run("restart", CHAT)
        until_sync(lambda: not before & set(site.jobs()), 120)
        site.whole_again(load)
    assert load.failed == []


def test_a_lost_node_costs_what_it_had_and_its_replica_comes_up_elsewhere(site: Site) -> None:
    victim = site.ready()[0]
    job, node = str(victim["job"]), str(victim["node"])
    with site.load() as load:
        goes_on(load)
        site.lab.node_kill(node)
        goes_on(load, 20)  # the other one serves on
        until_sync(lambda: len(site.ready()) == 2 and node not in {r["node"] for r in site.ready()}, 120)
        goes_on(load)
    site.lab.node_start(node)
    assert len(load.failed) <= ON_ONE, load.failed
    assert len(site.jobs()) == 2, (job, site.jobs())
