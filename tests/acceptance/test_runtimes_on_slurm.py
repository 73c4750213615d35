"""Engines in containers in jobs of a real Slurm: they answer, and nothing of them is left however the job ends.

Those runtimes that this machine has: charliecloud and podman. (`make test` installs charliecloud; podman where it is.)
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from tests.container_image import REPOSITORY, Podman, host_paths, make_image, podman, podman_reason
from tests.gateway_process import GatewayProcess
from tests.slurm_fixture import SlurmLab
from tests.waiting import until_sync

__all__ = ["podman", "podman_reason"]  # fixtures

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]

CONFIG = """
[server]
shutdown_grace_s = 2.0
[launcher]
service = "contained"
python = "{python}"
heartbeat_s = 0.5
poll_busy_s = 1.0
poll_calm_s = 2.0
[models."{model}"]
engine = "llamacpp"
command = ["{python}", "-m", "slurm_launcher.xllamacpp_server"]
source = "{root}/proxy/embedded/guide.gguf"
context_length = 4096
start_timeout_s = 40.0
drain_timeout_s = 5.0
runtime = "{runtime}"
image = "{image}"
binds = {binds}
environment = {{ {environment} }}
slurm = {{ cpus = 1, time = "00:10:00" }}
"""


class Contained:
    """A gateway with one model in a container. Its name is on the engine's command line: processes are found by it."""

    def __init__(self, lab: SlurmLab, directory: Path, runtime: str, image: str, **environment: str) -> None:
        self.lab = lab
        self.model = f"in-{runtime}-{uuid.uuid4().hex[:8]}"
        given = {"PYTHONPATH": str(REPOSITORY), **environment}
        text = CONFIG.format(
            python=sys.executable,
            root=REPOSITORY,
            model=self.model,
            runtime=runtime,
            image=image,
            binds=host_paths(),
            environment=", ".join(f'{name} = "{value}"' for name, value in given.items()),
        )
        self.gateway = GatewayProcess(directory, text, lab.env())

    def start(self) -> None:
        self.gateway.start()
        self.gateway.until_ready(**{self.model: 1})

    def ask(self) -> str:
        with OpenAI(base_url=f"{self.gateway.url}/v1", api_key=self.gateway.key(), max_retries=0, timeout=30) as client:
            messages = [{"role": "user", "content": "What is slurmgate?"}]
            answer = client.chat.completions.create(model=self.model, messages=messages, temperature=0)  # type: ignore[arg-type]
        return answer.choices[0].message.content or ""

    def engines(self) -> dict[int, str]:
        """Living engines: process -> what its root directory is, as its container sees it."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                line = (path / "cmdline").read_bytes().split(b"\0")
                if (
                    self.model.encode() in line
                    and b"slurm_launcher.xllamacpp_server" in line
                    and line[0].endswith(b"python")
                ):
                    found[int(path.name)] = (path / "root" / "etc" / "passwd").read_text()
            except OSError:
                continue
        return found

    def job(self) -> str:
        return next(str(r["job"]) for r in self.gateway.replicas() if r["state"] == "ready")

    def stop_wanting(self) -> None:
        """No gateway that would start another one."""
        self.gateway.stop(signal.SIGKILL)


def until_nothing_is_left(contained: Contained, job: str) -> None:
    until_sync(lambda: contained.lab.state(job) in ("CANCELLED", "COMPLETED", "FAILED", ""), 30)
    until_sync(lambda: not contained.engines(), 10)


# -- charliecloud -----------------------------------------------------------------------------------------------------

with_charliecloud = pytest.mark.skipif(shutil.which("ch-run") is None, reason="no ch-run: charliecloud-runtime")


@pytest.fixture
def charliecloud(slurm_lab: SlurmLab, tmp_path: Path) -> Iterator[Contained]:
    contained = Contained(slurm_lab, tmp_path, "charliecloud", str(make_image(tmp_path / "image")))
    yield contained
    contained.gateway.stop()
    slurm_lab.cancel_all()


@with_charliecloud
def test_an_engine_in_charliecloud_answers_and_scancel_leaves_nothing(charliecloud: Contained) -> None:
    charliecloud.start()
    assert "slurm" in charliecloud.ask().lower()
    [passwd] = charliecloud.engines().values()
    assert passwd != Path("/etc/passwd").read_text(), "in its own root file system"
    job = charliecloud.job()
    charliecloud.stop_wanting()
    charliecloud.lab.run("scancel", job)
    until_nothing_is_left(charliecloud, job)
    assert not list(Path("/tmp").glob("slurmgate-*/environment-0")), "the file with its variables went, too"  # noqa: S108


@with_charliecloud
def test_no_secret_of_an_engine_in_charliecloud_is_on_a_command_line(charliecloud: Contained) -> None:
    charliecloud.start()
    [engine] = charliecloud.engines()
    variables = dict(
        item.split("=", 1) for item in Path(f"/proc/{engine}/environ").read_text().split("\0") if "=" in item
    )
    assert variables["FROM_THE_IMAGE"] == "yes"
    assert variables["HOME"].startswith("/tmp/slurmgate-"), "the model's variables go over the image's"  # noqa: S108
    key = variables["LLAMA_API_KEY"]
    assert len(key) == 64
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert key.encode() not in path.read_bytes()
        except OSError:
            continue
    file = Path(variables["HOME"]) / "environment-0"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


@with_charliecloud
def test_an_image_that_is_not_there_is_said_and_not_tried_again(slurm_lab: SlurmLab, tmp_path: Path) -> None:
    contained = Contained(slurm_lab, tmp_path, "charliecloud", f"{tmp_path}/no-such-image")
    contained.gateway.start()
    try:
        until_sync(lambda: any(r["state"] == "failed" for r in contained.gateway.replicas()), 40)
        [failed] = [r for r in contained.gateway.replicas() if r["state"] == "failed"]
        assert failed["failure"]["kind"] == "image_missing"
    finally:
        contained.gateway.stop()
        slurm_lab.cancel_all()


# -- podman -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_podman(slurm_lab: SlurmLab, tmp_path: Path, podman: Podman) -> Iterator[Contained]:
    contained = Contained(slurm_lab, tmp_path, "podman", podman.image, **podman.environment)
    yield contained
    contained.gateway.stop()
    slurm_lab.cancel_all()


def test_an_engine_in_podman_answers_and_scancel_leaves_no_container(in_podman: Contained, podman: Podman) -> None:
    in_podman.start()
    assert "slurm" in in_podman.ask().lower()
    [name] = podman.containers()
    assert name.startswith(f"slurmgate_{in_podman.model}")
    job = in_podman.job()
    in_podman.stop_wanting()
    in_podman.lab.run("scancel", job)
    until_nothing_is_left(in_podman, job)
    until_sync(lambda: not podman.containers(), 10)


def test_a_drained_engine_in_podman_leaves_no_container(in_podman: Contained, podman: Podman) -> None:
    in_podman.start()
    job = in_podman.job()
    in_podman.gateway.run("scale", in_podman.model, "0")
    until_nothing_is_left(in_podman, job)
    assert podman.containers() == []


def test_the_container_of_a_killed_agent_is_removed_by_the_next_one_on_its_node(
    in_podman: Contained, podman: Podman
) -> None:
    in_podman.start()
    [name] = podman.containers()
    node = next(r["node"] for r in in_podman.gateway.replicas() if r["state"] == "ready")
    agent = int(name.split("_")[-2])
    for other in set(in_podman.lab.nodes) - {node}:
        in_podman.lab.run("scontrol", "update", f"nodename={other}", "state=drain", "reason=test")
    try:
        os.kill(agent, signal.SIGKILL)
        until_sync(lambda: any(other != name for other in podman.containers()), 40)
        in_podman.gateway.until_ready(**{in_podman.model: 1})
        assert name not in podman.containers()
        assert len(podman.containers()) == 1
        assert len(in_podman.engines()) == 1
    finally:
        for other in set(in_podman.lab.nodes) - {node}:
            in_podman.lab.run("scontrol", "update", f"nodename={other}", "state=resume")
