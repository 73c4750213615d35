"""Several processes before one engine on the real Slurm, whose seats they are lent: what becomes of the engine reaches
all of them in time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.acceptance.fault_site import ON_ONE, Site, engine_of, goes_on, running_site
from tests.acceptance.test_faults import only_chat
from tests.acceptance.test_on_slurm import CHAT
from tests.waiting import until_sync

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]

SERVICE = "workers"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    text = only_chat(SERVICE).replace("[server]\n", "[server]\nworkers = 2\n")
    text = text.replace("replicas = 2", f"replicas = 1\nmax_in_flight = {4 * ON_ONE}  # each worker is lent {ON_ONE}")
    with running_site(tmp_path_factory.mktemp("workers"), text, SERVICE, CHAT) as site:
        site.gateway.until_ready(**{CHAT: 1})
        yield site


def test_a_drained_replica_costs_nothing(site: Site) -> None:
    (victim,) = site.ready()
    with site.load() as load:
        goes_on(load)
        site.gateway.run("drain", str(victim["replica"]))
        until_sync(lambda: victim["job"] not in site.jobs(), 90)
        site.whole_again(load, without=str(victim["job"]), count=1)
    assert load.failed == []


def test_a_wall_time_costs_nothing(site: Site) -> None:
    (victim,) = site.ready()
    with site.load() as load:
        goes_on(load)
        site.lab.run("scontrol", "update", f"jobid={victim['job']}", "endtime=now+60")
        until_sync(lambda: victim["job"] not in site.jobs(), 150, 0.2)
        site.whole_again(load, without=str(victim["job"]), count=1)
    assert load.failed == []


def test_a_killed_engine_costs_what_it_had(site: Site) -> None:
    (victim,) = site.ready()
    with site.load() as load:
        goes_on(load)
        os.kill(engine_of(str(victim["job"]), site.lab), signal.SIGKILL)
        until_sync(lambda: victim["job"] not in site.jobs(), 60)
        site.whole_again(load, without=str(victim["job"]), count=1)
    assert len(load.failed) <= ON_ONE, load.failed


def test_nothing_seems_to_be_in_use_when_nothing_is(site: Site) -> None:
    """Lent seats are no requests: a model at rest would never be given up for it."""
    until_sync(lambda: [card["in_flight"] for card in site.cards() if card["state"] == "ready"] == [0], 30)
