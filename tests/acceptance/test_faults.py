"""Faults on the real Slurm under constant load: what may fail is said, and afterwards two replicas are there again.

One gateway, two replicas of a real engine on two nodes, five people who never stop asking. A stream on an engine that
is killed cannot be saved: `ON_ONE` is the most that one replica had at that moment. Everything else goes elsewhere.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.acceptance.fault_site import ON_ONE, Site, engine_of, goes_on, running_site
from tests.acceptance.test_on_slurm import CHAT, config
from tests.waiting import until_sync

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]

SERVICE = "faults"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_site(tmp_path_factory.mktemp("faults"), only_chat(), SERVICE, CHAT) as site:
        site.gateway.until_ready(**{CHAT: 2})
        yield site


def only_chat(service: str = SERVICE) -> str:
    text = config(service)
    return text[: text.index('[models."')].replace("drain_timeout_s = 5.0", "drain_timeout_s = 20.0\nlead_s = 60.0")


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
        os.kill(engine_of(victim, site.lab), signal.SIGKILL)
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
    node = str(site.ready()[0]["node"])
    with site.load() as load:
        goes_on(load)
        site.lab.node_kill(node)
        goes_on(load, 20)  # the other one serves on
        until_sync(lambda: len(site.ready()) == 2 and node not in {r["node"] for r in site.ready()}, 120)
        site.lab.node_start(node)
        site.whole_again(load)
    assert len(load.failed) <= ON_ONE, load.failed


def test_a_node_that_is_back_before_slurm_missed_it_costs_what_it_had(site: Site) -> None:
    """Its job runs in Slurm's eyes until the node registers without it."""
    victim = site.ready()[0]
    with site.load() as load:
        goes_on(load)
        site.lab.node_kill(str(victim["node"]))
        site.lab.node_start(str(victim["node"]))
        until_sync(lambda: len(site.ready()) == 1, 60, 0.2)
        site.whole_again(load)
    assert len(load.failed) <= ON_ONE, load.failed
