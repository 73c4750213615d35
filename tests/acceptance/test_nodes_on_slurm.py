"""One engine over two nodes of a real Slurm, as one job: it serves, and ends on both nodes however it ends.

The engine is a fake that is healthy once its other node is there (EngineThatNeedsAllItsNodes).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_launcher.spec import Secrets
from tests.container_image import Podman, host_paths, make_image, podman, podman_reason
from tests.fakes import engines as fakes
from tests.gateway_process import GatewayProcess
from tests.slurm_fixture import SlurmLab
from tests.waiting import until_sync

__all__ = ["podman", "podman_reason"]  # fixtures

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]

CONFIG = """
[server]
shutdown_grace_s = 2.0
[launcher]
service = "spread"
python = "{python}"
heartbeat_s = 0.5
poll_busy_s = 1.0
poll_calm_s = 2.0
[models."{model}"]
engine = "vllm"
command = ["{python}", "{fakes}", "EngineThatNeedsAllItsNodes"]
source = "org/model"
start_timeout_s = 40.0
prologue = ["export SLURM_CONF={conf}"]
drain_timeout_s = 5.0
environment = {{ PRIVATE = "{{tmp}}/rank-{{rank}}-of-{{node}}"{environment} }}
slurm = {{ nodes = 2, gpus = {gpus}, time = "00:10:00" }}
{more}
"""


def conf_for_srun(lab: SlurmLab) -> Path:
    """The cluster's configuration but for one word: its daemons share a port, each at its own address, while srun has
    to listen at all of them, since connections between loopback addresses come from 127.0.0.1.
    """
    path = lab.conf.with_name("srun.conf")
    path.write_text(lab.conf.read_text().replace("NoInAddrAny,", ""))
    return path


class Spread:
    def __init__(self, lab: SlurmLab, directory: Path, more: str = "", gpus: int = 2, environment: str = "") -> None:
        self.lab = lab
        self.model = f"wide-{uuid.uuid4().hex[:8]}"
        text = CONFIG.format(
            python=sys.executable,
            model=self.model,
            fakes=fakes.__file__,
            conf=conf_for_srun(lab),
            more=more,
            gpus=gpus,
            environment=environment,
        )
        self.gateway = GatewayProcess(directory, text, lab.env())

    def start(self) -> None:
        self.gateway.start()
        self.gateway.until_ready(**{self.model: 1})

    def replica(self) -> dict[str, object]:
        return next(r for r in self.gateway.replicas() if r["state"] == "ready")

    def engines(self) -> dict[int, int]:
        """Living engines: rank -> process."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode().split("\0")
            except OSError:
                continue
            if self.model in words and "--node-rank" in words and words[0] == sys.executable:
                found[int(words[words.index("--node-rank") + 1])] = int(path.parent.name)
        return found

    def processes(self) -> list[str]:
        """All that is left of it anywhere: engines, srun, and what looks after the engine on a node."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                environment = (path / "environ").read_bytes().decode(errors="replace")
                if "SLURM_JOB_NAME=slurmgate-spread\0" in environment and f"={self.lab.directory}/" in environment:
                    found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
        return [line for line in found if line]


def variables(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/environ").read_text()
    return dict(item.split("=", 1) for item in text.split("\0") if "=" in item)


@pytest.fixture
def spread(slurm_lab: SlurmLab, tmp_path: Path) -> Iterator[Spread]:
    spread = Spread(slurm_lab, tmp_path)
    yield spread
    spread.gateway.stop()
    slurm_lab.cancel_all()


def until_both_nodes_are_clean(spread: Spread) -> None:
    until_sync(lambda: not spread.processes(), 30)
    assert spread.engines() == {}


def test_an_engine_over_two_nodes_serves_and_drains(spread: Spread) -> None:
    spread.start()
    ranks = spread.engines()
    assert sorted(ranks) == [0, 1]
    told = {rank: variables(pid) for rank, pid in ranks.items()}
    assert told[0]["SLURMD_NODENAME"] == spread.replica()["node"], "the first node is where the agent is"
    assert told[1]["SLURMD_NODENAME"] != told[0]["SLURMD_NODENAME"]
    for rank in (0, 1):
        node = told[rank]["SLURMD_NODENAME"]
        assert told[rank]["VLLM_HOST_IP"] == spread.lab.nodes[node]
        assert told[rank]["PRIVATE"].endswith(f"/rank-{rank}-of-{spread.lab.nodes[node]}")
        assert len(told[rank]["CUDA_VISIBLE_DEVICES"].split(",")) == 2, "the GPUs of the job, on each node"
    request = urllib.request.Request(
        f"{spread.gateway.url}/v1/completions",
        json.dumps({"model": spread.model, "prompt": "Hello"}).encode(),
        {"Authorization": f"Bearer {spread.gateway.key()}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.load(answer)["choices"] == [{"text": "x"}]
    private = Path(told[0]["PRIVATE"]).parent
    assert private.exists()

    spread.gateway.run("scale", spread.model, "0")
    until_both_nodes_are_clean(spread)
    assert not private.exists()
    stopped = {r["state"] for r in spread.gateway.replicas()}
    assert "failed" not in stopped


def test_no_secret_of_an_engine_over_two_nodes_is_on_a_command_line(spread: Spread) -> None:
    spread.start()
    secrets = Secrets((spread.gateway.state_dir / "secret").read_bytes())
    replica = str(spread.replica()["replica"])
    shown = [*spread.processes(), spread.lab.run("scontrol", "show", "job"), spread.lab.run("scontrol", "show", "step")]
    log = (spread.gateway.state_dir / "logs" / f"{replica}.log").read_text()
    assert len(spread.processes()) >= 6, "bash that became the agent, srun, two that look after two engines"
    for secret in (secrets.engine_key(replica), secrets.agent_token(replica)):
        assert not any(secret in text for text in [*shown, log])


def test_a_rank_that_dies_fails_the_replica_and_says_where(spread: Spread) -> None:
    spread.start()
    replica = spread.replica()["replica"]
    other = spread.engines()[1]
    node = variables(other)["SLURMD_NODENAME"]
    os.kill(other, signal.SIGKILL)

    def failed() -> list[dict[str, object]]:
        return [r for r in spread.gateway.replicas() if r["replica"] == replica and r["state"] == "failed"]

    until_sync(lambda: bool(failed()), 20)
    failure = failed()[0]["failure"]
    assert isinstance(failure, dict)
    assert f"was killed by SIGKILL, as the kernel does when memory runs out, on {node} (rank 1)" in failure["message"]
    spread.gateway.until_ready(**{spread.model: 1})


@pytest.mark.parametrize("how", ["scancel", "the agent is killed"])
def test_nothing_is_left_on_either_node(spread: Spread, how: str) -> None:
    spread.start()
    job = str(spread.replica()["job"])
    agent = agent_of(spread)
    spread.gateway.stop(signal.SIGKILL)
    if how == "scancel":
        spread.lab.run("scancel", job)
    else:
        os.kill(agent, signal.SIGKILL)
    until_both_nodes_are_clean(spread)


def agent_of(spread: Spread) -> int:
    """The agent's process: the parent of srun."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
            environment = (path.parent / "environ").read_text()
        except OSError:
            continue
        if words[0] == "srun" and f"={spread.lab.directory}/" in environment:
            parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
            if b"srun" not in Path(f"/proc/{parent}/cmdline").read_bytes():  # srun has a child of its own
                return parent
    raise AssertionError("no srun")


# -- in containers ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("ch-run") is None, reason="no ch-run: charliecloud-runtime")
def test_each_node_has_its_charliecloud_container(slurm_lab: SlurmLab, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image")
    spread = Spread(slurm_lab, tmp_path, f'runtime = "charliecloud"\nimage = "{image}"\nbinds = {host_paths()}')
    try:
        spread.start()
        for pid in spread.engines().values():
            assert Path(f"/proc/{pid}/root/etc/passwd").read_text() != Path("/etc/passwd").read_text()
        spread.gateway.run("scale", spread.model, "0")
        until_both_nodes_are_clean(spread)
    finally:
        spread.gateway.stop()
        slurm_lab.cancel_all()


def test_each_node_removes_its_podman_container(slurm_lab: SlurmLab, tmp_path: Path, podman: Podman) -> None:
    where = "".join(f', {name} = "{value}"' for name, value in podman.environment.items())
    more = f'runtime = "podman"\nimage = "{podman.image}"\nbinds = {host_paths()}'
    spread = Spread(slurm_lab, tmp_path, more, gpus=0, environment=where)
    try:
        spread.start()
        nodes = {name.split("_")[-3] for name in podman.containers()}
        assert len(nodes) == len(podman.containers()) == 2
        spread.gateway.run("scale", spread.model, "0")
        until_both_nodes_are_clean(spread)
        assert podman.containers() == []
    finally:
        spread.gateway.stop()
        slurm_lab.cancel_all()
