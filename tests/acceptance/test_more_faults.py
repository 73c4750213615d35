"""More faults on the real Slurm under constant load: of nodes, networks, engines and strangers.

Each test says how many requests may fail, and ends when as many jobs and replicas are there as were wanted. Each has a
model of its own, so that no one's failures count towards another's backoff; the engine is a quick one that can be told
how to fail (tests/fakes/slurm_engine.py).
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.operator_socket import ask as ask_socket
from tests.acceptance.fault_site import (
    ON_ONE,
    Relay,
    Site,
    Usurper,
    address_of,
    agent_of,
    engine_and_command,
    frozen,
    frozen_node,
    goes_on,
    running_site,
)
from tests.fakes import slurm_engine
from tests.gateway_process import free_port
from tests.slurm_fixture import require_slurm
from tests.waiting import until_sync

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]

SERVICE = "more-faults"
ENGINE = Path(slurm_engine.__file__)
OUT_OF_ROTATION_S = 15.0
START_TIMEOUT_S = 8
MODELS = 16

CONFIG = """
[server]
advertise_url = "{url}"
shutdown_grace_s = 5.0
[launcher]
service = "{service}"
python = "{python}"
heartbeat_s = 0.5
poll_busy_s = 1.0
poll_calm_s = 2.0
[defaults]
engine = "vllm"
command = ["{python}", "{engine}"]
start_timeout_s = {start_timeout_s}
drain_timeout_s = 5.0
environment = {{ FAULTS = "{faults}" }}
[defaults.timeouts]
idle_s = 4.0
[defaults.slurm]
time = "00:30:00"
cpus = 1
gpus = 4
gpu_type = "h100"
"""


class Place:
    """The gateway, the way to it, and the directory from which engines take their faults."""

    def __init__(self, whole: Site, relay: Relay, faults: Path) -> None:
        self.whole = whole
        self.relay = relay
        self.faults = faults
        self.models = (f"m{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    require_slurm()
    directory = tmp_path_factory.mktemp("more_faults")
    faults = directory / "faults"
    faults.mkdir()
    port = free_port()
    with Relay(port) as relay:
        text = CONFIG.format(
            url=relay.url, service=SERVICE, python=sys.executable, engine=ENGINE, faults=faults,
            start_timeout_s=START_TIMEOUT_S,
        )  # fmt: skip
        text += "".join(f'[models.m{number}]\nsource = "org/m"\nreplicas = 0\n' for number in range(MODELS))
        with running_site(directory, text, SERVICE, "", port) as whole:
            yield Place(whole, relay, faults)


@pytest.fixture
def site(place: Place) -> Iterator[Site]:
    """With a model that nobody has used yet, and no replica of it."""
    whole = place.whole
    site = Site(whole.gateway, whole.lab, whole.key, SERVICE, next(place.models))
    yield site
    scale(site, 0)
    site.lab.cancel_all()


def scale(site: Site, count: int) -> None:
    ask_socket(
        site.gateway.state_dir / "control.sock", "POST", f"/admin/models/{site.model}/scale", {"replicas": count}
    )


def scaled(site: Site, count: int = 2) -> Site:
    """... when they are ready."""
    scale(site, count)
    site.gateway.until_ready(**{site.model: count})
    return site


def ask(site: Site, question: str = "What is Slurm?") -> httpx.Response:
    body = {"model": site.model, "messages": [{"role": "user", "content": question}], "max_tokens": 8}
    headers = {"authorization": f"Bearer {site.key}"}
    return httpx.post(f"{site.gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=90)


def in_rotation(site: Site, replica: str) -> bool:
    """Whether requests are sent to it, by the gateway's own metrics."""
    with urllib.request.urlopen(f"{site.gateway.url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    closed = f'slurmgate_circuit_breaker{{model="{site.model}",replica="{replica}",state="closed"}} 1'
    return any(line.startswith(closed) for line in lines)


def failure_of(site: Site, found: Callable[[dict[str, Any]], bool]) -> str:
    """Of a replica that has failed, as status shows it; "" for none."""
    return next((card["failure"]["message"] for card in site.cards() if card["failure"] and found(card)), "")


# -- engines and nodes -----------------------------------------------------------------------------------------------


def test_a_dead_engine_is_out_of_rotation_after_one_failed_connect(site: Site) -> None:
    """No request fails. Its agent is stopped, so that nobody but the requests can tell."""
    victim = scaled(site).ready()[0]
    engine, _ = engine_and_command(victim["job"], site.lab, ENGINE.name)
    with frozen(agent_of(engine)):
        os.kill(engine, signal.SIGKILL)
        assert {ask(site).status_code for _ in range(20)} == {200}
        attempts = [line for line in site.gateway.events("request") if line["model"] == site.model]
        failed = [attempt for line in attempts for attempt in line.get("failed_attempts", [])]
        assert failed == [{"replica": victim["replica"], "error": "engine_unreachable"}]
        assert not in_rotation(site, victim["replica"])
    with site.load() as load:
        site.whole_again(load, without=victim["job"])
    assert load.failed == []


def test_a_frozen_node_costs_the_streams_it_had_and_its_replica_comes_up_elsewhere(site: Site) -> None:
    """Its kernel still takes connections, so only silence tells. Plain requests are sent again, streams cannot be."""
    victim = scaled(site).ready()[0]
    with site.load() as load:
        goes_on(load)
        with frozen_node(site.lab, victim["node"]):
            until_sync(lambda: not in_rotation(site, victim["replica"]), OUT_OF_ROTATION_S)
            goes_on(load, 20)
            until_sync(lambda: victim["node"] not in site.jobs().values(), 60, 0.2)
            until_sync(lambda: len(site.ready()) == 2, 90, 0.2)
            assert len(site.jobs()) == 2
        site.whole_again(load)
    assert len(load.failed) <= ON_ONE, load.failed


def test_a_node_that_freezes_for_a_moment_keeps_its_replica(site: Site) -> None:
    victim = scaled(site).ready()[0]
    before = site.jobs()
    with site.load() as load:
        goes_on(load)
        with frozen_node(site.lab, victim["node"]):
            until_sync(lambda: not in_rotation(site, victim["replica"]), OUT_OF_ROTATION_S)
        until_sync(lambda: in_rotation(site, victim["replica"]), 60)
        goes_on(load)
    assert len(load.failed) <= ON_ONE, load.failed
    assert site.jobs() == before


def test_a_poisonous_request_kills_two_replicas_at_most_and_the_rest_goes_on(site: Site) -> None:
    """It is sent again once, since most engines that close die of something else; never a third time."""
    before = set(scaled(site, 3).jobs())
    with site.load() as load:
        goes_on(load)
        answer = ask(site, f"What does {slurm_engine.POISON} do?")
        assert answer.status_code == 502, answer.text
        assert answer.headers["x-should-retry"] == "false"
        assert slurm_engine.POISON not in answer.text
        goes_on(load)
        until_sync(lambda: len(before - set(site.jobs())) == 2, 60, 0.2)
        site.whole_again(load, count=3)
        assert len(before - set(site.jobs())) == 2, "two have died of it"
    assert len(load.failed) <= 2 * ON_ONE, load.failed


# -- strangers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["another engine", "a web server"])
def test_somebody_else_on_the_port_of_a_dead_engine_gets_no_request_twice_and_fails_none(site: Site, kind: str) -> None:
    """The engine is killed and its agent stopped, which costs what it had; the stranger that comes after it nothing."""
    victim = scaled(site).ready()[0]
    engine, command = engine_and_command(victim["job"], site.lab, ENGINE.name)
    with site.load() as load, ExitStack() as after:
        goes_on(load)
        after.enter_context(frozen(agent_of(engine)))
        os.kill(engine, signal.SIGKILL)
        until_sync(lambda: is_free(address_of(command)))
        usurper = after.enter_context(Usurper(address_of(command), kind))
        message = until_sync(lambda: failure_of(site, lambda r: r["replica"] == victim["replica"]), 60, 0.2)
        assert message == (
            f"Somebody else answers at the address of job {victim['job']}'s engine, and its agent says nothing."
        )
        site.whole_again(load, without=victim["job"])
    assert len(load.failed) <= ON_ONE, load.failed
    assert not [failure for failure in load.failed if "own key" in failure or "no engine" in failure]
    assert all(count == 1 for count in usurper.posts.values()), usurper.posts
    assert len(usurper.posts) <= ON_ONE, "what was on its way when the first came back"
    told = [e for e in site.gateway.events("engine_is_a_stranger") if e["replica"] == victim["replica"]]
    assert len(told) == 1


def is_free(address: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(address) != 0


# -- the way to the gateway ------------------------------------------------------------------------------------------


def test_agents_that_cannot_reach_the_gateway_cost_nothing_and_nothing_is_doubled(site: Site, place: Place) -> None:
    before = scaled(site).jobs()
    relay = place.relay
    with site.load() as load:
        with relay.cut():
            asked = len(site.gateway.events("request"))
            until_sync(lambda: relay.held >= 4, 60)  # each agent has been silent for ten heartbeats
            goes_on(load, 20)
        assert len(site.gateway.events("request")) > asked
        passed = relay.passed
        until_sync(lambda: relay.passed >= passed + 4, 60)
        goes_on(load)
    assert load.failed == []
    assert site.jobs() == before
    assert len(site.ready()) == 2


# -- replicas that do not come up ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("mute", "The engine says that it is healthy, but /v1/completions gave an empty answer."),
        ("never_ready", f"The engine was not ready within {START_TIMEOUT_S} s."),
        ("port_taken", ""),
    ],
)
def test_one_engine_of_two_that_does_not_come_up_costs_nothing_and_is_replaced(
    site: Site, place: Place, fault: str, reason: str
) -> None:
    """A port that is taken is not even a new job: the agent starts its engine again on another one."""
    scaled(site, 1)
    (place.faults / fault).touch()
    with site.load() as load:
        goes_on(load)
        scale(site, 2)
        until_sync(lambda: not any(place.faults.iterdir()), 60)
        if reason:
            told = until_sync(lambda: failure_of(site, lambda r: r["state"] == "failed"), 60, 0.2)
            assert reason in told
            assert reason in site.gateway.run("status").stdout
        site.whole_again(load)
    assert load.failed == []
    assert len([card for card in site.cards() if card["failure"]]) == bool(reason), "no storm"


def test_a_model_whose_only_engine_is_mute_says_so_in_its_503(site: Site, place: Place) -> None:
    always = place.faults / "mute.always"
    always.touch()
    try:
        scale(site, 1)
        until_sync(lambda: failure_of(site, lambda r: r["state"] == "failed"), 60, 0.2)
        answer = ask(site)
    finally:
        always.unlink()
    assert answer.status_code == 503
    assert "The engine says that it is healthy, but" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) >= 1
    site.gateway.run("restart", site.model)
    site.gateway.until_ready(**{site.model: 1})
    assert ask(site).status_code == 200
    assert len(site.jobs()) == 1


def test_a_job_that_is_held_costs_nothing_and_is_replaced_unless_an_administrator_holds_it(site: Site) -> None:
    ((serving, node),) = scaled(site, 1).jobs().items()
    others = ",".join(other for other in site.lab.nodes if other != node)
    site.lab.run("scontrol", "update", f"nodename={others}", "state=drain", "reason=full")
    try:
        with site.load() as load:
            goes_on(load)
            scale(site, 2)
            held = until_sync(lambda: next((job for job in site.jobs() if job != serving), ""), 60)
            site.lab.run("scontrol", "hold", held)
            until_sync(lambda: "PENDING (JobHeldAdmin)" in [r["note"] for r in site.cards()], 60, 0.2)
            goes_on(load)
            assert set(site.jobs()) == {serving, held}, "it is theirs to let go"
            site.lab.run("scontrol", "release", held)
            site.lab.run("scontrol", "uhold", held)
            told = until_sync(lambda: failure_of(site, lambda r: r["job"] == held), 60, 0.2)
            assert told == f"Job {held} was held by a user and is replaced."
            until_sync(lambda: held not in site.jobs() and len(site.jobs()) == 2, 60, 0.2)
            site.lab.run("scontrol", "update", f"nodename={others}", "state=resume")
            site.whole_again(load)
    finally:
        site.lab.run("scontrol", "update", f"nodename={others}", "state=resume", check=False)
    assert load.failed == []
