"""One model in two partitions of a real Slurm: both serve, and batches start the kind that is theirs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import OpenAI

from tests.acceptance.test_batches_sdk import begun, read, waited
from tests.acceptance.test_on_slurm import EMBEDDED
from tests.gateway_process import GatewayProcess
from tests.slurm_fixture import SlurmLab, require_slurm
from tests.waiting import until_sync

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]

SERVICE = "places"
BOTH, BATCHED = "guide", "guide/batched"

CONFIG = f"""
[server]
shutdown_grace_s = 2.0
[launcher]
service = "{SERVICE}"
python = "{sys.executable}"
heartbeat_s = 0.5
poll_busy_s = 1.0
poll_calm_s = 2.0
[defaults]
engine = "llamacpp"
source = "{EMBEDDED}/guide.gguf"
command = ["{sys.executable}", "-m", "slurm_launcher.xllamacpp_server"]
context_length = 8192
drain_timeout_s = 5.0
environment = {{ PYTHONPATH = "{EMBEDDED.parents[1]}" }}
slurm = {{ time = "00:30:00", cpus = 1, partition = "gpu" }}
[models."{BOTH}"]
replicas = 2
own_max = 1
placements = [{{ name = "second", slurm = {{ partition = "preempt" }}, weight = 0.5, max_in_flight = 2 }}]
[models."{BATCHED}"]
scaling = {{ min = 0, max = 1, idle_s = 600 }}
placements = [{{ name = "spot", slurm = {{ partition = "preempt" }}, batch_only = true }}]
"""


class Site:
    def __init__(self, gateway: GatewayProcess, lab: SlurmLab) -> None:
        self.gateway = gateway
        self.lab = lab
        self.key = gateway.key()

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.gateway.url}/v1", api_key=self.key, max_retries=0, timeout=100)

    def ask(self, model: str) -> str:
        question = {"role": "user", "content": "What is slurmgate?"}
        with self.client() as client:
            answer = client.chat.completions.create(model=model, messages=[question], max_tokens=8)  # type: ignore[list-item]
        return answer.choices[0].message.content or ""

    def partitions(self, model: str) -> dict[str, str]:
        """Of a model's live replicas: placement -> the partition in which Slurm has its job."""
        lines = self.lab.run("squeue", "-h", f"--name=slurmgate-{SERVICE}", "-t", "PD,CF,R", "-o", "%i %P").split("\n")
        partition = dict(line.split() for line in lines if line)
        live = [r for r in self.gateway.replicas() if r["model"] == model and r["job"] in partition]
        return {r["placement"]: partition[r["job"]] for r in live}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    require_slurm()
    lab = SlurmLab.start(nodes=2)
    gateway = GatewayProcess(tmp_path_factory.mktemp("placements"), CONFIG, lab.env())
    try:
        gateway.start()
        yield Site(gateway, lab)
    finally:
        gateway.stop()
        lab.cancel_all()
        lab.stop()


def test_replicas_of_one_model_serve_from_two_partitions(site: Site) -> None:
    site.gateway.until_ready(**{BOTH: 2})
    assert site.partitions(BOTH) == {"": "gpu", "second": "preempt"}
    ids = {r["placement"]: r["replica"] for r in site.gateway.replicas() if r["model"] == BOTH}

    def both_have_served() -> bool:
        with ThreadPoolExecutor(8) as at_once:  # one after the other they would all go to the one with more weight
            assert all(at_once.map(site.ask, [BOTH] * 8))
        served = {line["replica"] for line in site.gateway.events("request") if line["model"] == BOTH}
        return set(ids.values()) <= served

    until_sync(both_have_served, 30)
    shown = site.gateway.run("status").stdout
    assert "(second)" in shown


def test_they_keep_their_placement_when_the_gateway_has_lost_its_database(site: Site) -> None:
    site.gateway.until_ready(**{BOTH: 2})
    before = {r["replica"]: r["placement"] for r in site.gateway.replicas() if r["model"] == BOTH}
    site.gateway.stop()
    for file in site.gateway.state_dir.glob("*.db*"):
        file.unlink()
    site.gateway.start()
    site.key = site.gateway.key()
    site.gateway.until_ready(**{BOTH: 2})
    after = {r["replica"]: r["placement"] for r in site.gateway.replicas() if r["model"] == BOTH}
    assert after == before
    assert site.gateway.events("replica_submitted")[-1]["replica"] in before, "none was submitted anew"


def test_a_batch_starts_its_own_kind_which_then_serves_everybody(site: Site) -> None:
    assert site.partitions(BATCHED) == {}
    body = {"model": BATCHED, "messages": [{"role": "user", "content": "What is slurmgate?"}], "max_tokens": 8}
    lines = [{"custom_id": f"id-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body} for n in range(4)]
    with site.client() as client:
        batch = waited(client, begun(client, lines))
        assert (batch.status, len(read(client, batch.output_file_id))) == ("completed", 4)
    assert site.partitions(BATCHED) == {"spot": "preempt"}
    assert site.ask(BATCHED)
    assert site.partitions(BATCHED) == {"spot": "preempt"}, "it is there, so no other is needed"


def test_a_request_starts_the_model_s_own_kind(site: Site) -> None:
    for r in site.gateway.replicas():
        if r["model"] == BATCHED and r["placement"] == "spot" and r["state"] == "ready":
            site.lab.run("scancel", r["job"])
    until_sync(lambda: "spot" not in site.partitions(BATCHED), 30)
    assert site.ask(BATCHED)
    assert site.partitions(BATCHED) == {"": "gpu"}
