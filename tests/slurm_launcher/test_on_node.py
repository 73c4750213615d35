"""What an agent does on its node: placeholders, files, and containers that outlive their processes."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from slurm_launcher import on_node
from slurm_launcher.script import ON_NODE, assemble, manifest
from slurm_launcher.spec import ModelSpec, Secrets, Site
from tests.fakes import engines as fakes
from tests.fakes import podman
from tests.fakes.gateway import FakeGateway
from tests.slurm_launcher.test_agent import HASTE, PYTHONS, Job
from tests.waiting import until_sync

LAUNCH = Secrets(b"a secret of the gateway").launch("tiny-0001")
PLACES = {"host": "10.0.0.1", "head": "10.0.0.1", "tmp": "/tmp/x", "port": 8000}  # noqa: S108


def here(monkeypatch: pytest.MonkeyPatch, **slurm: str) -> on_node.Places:
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_PROCID", "SLURMD_NODENAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    return on_node.places_here(PLACES, "tiny-0001")


# -- placeholders -----------------------------------------------------------------------------------------------------


def test_a_word_with_gpu_is_repeated_for_each_gpu_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    places = here(monkeypatch, SLURM_JOB_GPUS="4,5")
    assert on_node.fill_all(["run", "--device=nvidia.com/gpu={gpu}", "{rank}"], places) == [
        "run", "--device=nvidia.com/gpu=4", "--device=nvidia.com/gpu=5", "0",
    ]  # fmt: skip
    assert on_node.fill_all(['--gpus="device={gpus}"'], places) == ['--gpus="device=4,5"']


def test_a_step_has_gpus_of_its_own_on_each_node(monkeypatch: pytest.MonkeyPatch) -> None:
    places = here(monkeypatch, SLURM_JOB_GPUS="4,5", SLURM_STEP_GPUS="0,1", SLURM_PROCID="1")
    assert (places["gpus"], places["rank"]) == ("0,1", 1)


@pytest.mark.parametrize("gpus", ["", "gpu:h100:2", "(null)"])
def test_where_slurm_does_not_say_which_all_gpus_are_meant(monkeypatch: pytest.MonkeyPatch, gpus: str) -> None:
    places = here(monkeypatch, SLURM_JOB_GPUS=gpus)
    assert on_node.fill_all(["--device=nvidia.com/gpu={gpu}"], places) == ["--device=nvidia.com/gpu=all"]


def test_a_plans_files_are_for_their_user_alone_and_filled(tmp_path: Path) -> None:
    on_node.write_files({"files": {"{tmp}/environment": "KEY=k\nAT={host}\n"}}, {**PLACES, "tmp": str(tmp_path)})
    path = tmp_path / "environment"
    assert path.read_text() == "KEY=k\nAT=10.0.0.1\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_private_directory_that_is_anothers_is_not_taken(tmp_path: Path) -> None:
    on_node.take_directory(str(tmp_path / "new"))
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    on_node.take_directory(str(tmp_path / "new"))
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path / "new")
    for name in ("open", "link"):
        with pytest.raises(FileExistsError):
            on_node.take_directory(str(tmp_path / name))


def test_it_is_ascii_and_python_3_6() -> None:
    ast.parse(ON_NODE, feature_version=(3, 6))
    assert ON_NODE.isascii()
    assert len(on_node.program_for_nodes(ON_NODE, {})) < 60_000, "fits into a pipe"


# -- leftovers --------------------------------------------------------------------------------------------------------


def test_a_container_is_left_when_its_agent_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = here(monkeypatch, SLURMD_NODENAME="n7")["container"]
    prefix, node, pid, start = mine.rsplit("_", 3)
    assert (prefix, node, pid) == ("slurmgate_tiny-0001", "n7", str(os.getpid()))
    assert not on_node.is_leftover(mine), "its agent is this process"
    assert on_node.is_leftover(f"{prefix}_{node}_{pid}_{int(start) + 1}"), "another process has the number now"
    assert on_node.is_leftover(f"{prefix}_{node}_4194305_{start}"), "no process has that number"


@pytest.mark.parametrize("name", ["web", "slurmgate", "slurmgate_x_n8_4194305_1", "my_slurmgate_x_n7_4194305_1"])
def test_a_container_of_another_node_or_of_somebody_else_is_none_of_ours(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    assert not on_node.is_leftover(name)


def test_names_hold_what_container_runtimes_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "gpu_1.cluster")
    name = on_node.places_here(PLACES, "a b/c")["container"]
    assert name.startswith(f"slurmgate_a-b-c_gpu-1.cluster_{os.getpid()}_")
    assert not on_node.is_leftover(name)
    assert on_node.is_leftover("slurmgate_a-b-c_gpu-1.cluster_4194305_1")


def test_private_directories_of_processes_that_are_gone_are_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    for name in ("slurmgate-mine", "slurmgate-left", "slurmgate-unmarked", "slurmgate-of-n8", "other"):
        (tmp_path / name).mkdir()
    on_node.mark_directory(str(tmp_path / "slurmgate-mine"), "tiny-0001")
    on_node.mark_directory(str(tmp_path / "slurmgate-mine"), "somebody else")
    assert (tmp_path / "slurmgate-mine" / ".owner").read_text() == on_node.own_name("tiny-0001")
    for name, owner in {"slurmgate-left": "n7", "slurmgate-of-n8": "n8", "other": "n7"}.items():
        (tmp_path / name / ".owner").write_text(f"slurmgate_tiny_{owner}_4194305_1")
    on_node.remove_left_directories(str(tmp_path))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"slurmgate-mine", "slurmgate-unmarked", "slurmgate-of-n8", "other"}


# -- with an agent, and a podman that leaks ---------------------------------------------------------------------------


class LeakyNode:
    """Jobs of one node whose podman leaks. `containers`: those that live."""

    def __init__(self, directory: Path, gateway: FakeGateway) -> None:
        self.directory = directory
        self.gateway = gateway
        self.state = directory / "containers"
        self.state.mkdir()
        (directory / "bin").mkdir()
        program = directory / "bin" / "podman"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{podman.__file__}" "$@"\n')
        program.chmod(0o755)
        self.jobs: list[Job] = []

    def run(self, kind: type[fakes.Engine], replica: str = "tiny-0001") -> Job:
        spec = ModelSpec(
            "tiny/model",
            "vllm",
            "org/tiny",
            runtime="podman",
            image="localhost/none:1",
            command=(sys.executable, fakes.__file__, kind.__name__),
            environment=(("HF_TOKEN", "hf_a_token_of_the_user"),),
        )
        site = Site("test", self.gateway.url, str(self.directory / "url"), self.directory, python=PYTHONS[0])
        site = replace(site, heartbeat_s=0.1)
        told = manifest(spec, replace(LAUNCH, replica_id=replica), site, host="127.0.0.1")
        script = assemble(told, python=site.python)
        for constant, shorter in HASTE.items():
            script = script.replace(constant, shorter)
        place = self.directory / f"job-{len(self.jobs)}"
        place.mkdir()
        path = f"{self.directory / 'bin'}:{os.environ['PATH']}"
        job = Job(script, place, {"PATH": path, "FAKE_PODMAN": str(self.state), "SLURMD_NODENAME": "n7"})
        self.jobs.append(job)
        return job

    def containers(self) -> list[str]:
        return sorted(path.name for path in self.state.iterdir())

    def engine(self) -> int:
        [name] = self.containers()
        return int((self.state / name).read_text())

    @property
    def calls(self) -> list[str]:
        return (self.directory / "calls").read_text().splitlines()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[LeakyNode]:
    gateway = FakeGateway(LAUNCH.token)
    node = LeakyNode(tmp_path, gateway)
    yield node
    for job in node.jobs:
        job.end()
    gateway.close()
    shutil.rmtree(node.state)


def by_the_gateway(node: LeakyNode, job: Job) -> None:
    node.gateway.command = "drain"


def by_term(node: LeakyNode, job: Job) -> None:
    job.signal(signal.SIGTERM)


def by_the_engines_end(node: LeakyNode, job: Job) -> None:
    os.kill(node.engine(), signal.SIGKILL)


@pytest.mark.parametrize("ends", [by_the_gateway, by_term, by_the_engines_end])
def test_no_container_is_left_however_the_job_ends(node: LeakyNode, ends: Callable[[LeakyNode, Job], None]) -> None:
    job = node.run(fakes.Engine)
    node.gateway.wait_for_state("ready")
    [name] = node.containers()
    assert name.startswith("slurmgate_tiny-0001_n7_")
    ends(node, job)
    job.wait()
    assert node.containers() == []
    assert node.calls[-1] == f"rm --force --ignore --volumes {name}"
    job.wait_until_nothing_is_left()


def test_a_container_that_never_gets_healthy_is_removed_as_well(node: LeakyNode) -> None:
    job = node.run(fakes.EngineThatAnswersHealthButNoToken)
    until_sync(node.containers)
    job.signal(signal.SIGTERM)
    job.signal(signal.SIGTERM)
    job.wait()
    assert node.containers() == []
    job.wait_until_nothing_is_left()


def test_what_a_killed_agent_left_goes_before_the_next_engine_starts(node: LeakyNode) -> None:
    killed = node.run(fakes.Engine)
    node.gateway.wait_for_state("ready")
    [left] = node.containers()
    engine = node.engine()
    killed.signal(signal.SIGKILL)
    killed.wait()
    assert Path(f"/proc/{engine}").exists(), "the container is nobody's now"

    (node.state / "somebody-elses").write_text(str(os.getpid()))
    job = node.run(fakes.Engine, replica="tiny-0002")
    node.gateway.wait_for(lambda report: report["replica"] == "tiny-0002" and report["state"] == "ready")
    assert f"removing containers that earlier jobs have left: {left}" in job.log
    assert left not in node.containers()
    assert "somebody-elses" in node.containers()
    until_sync(lambda: not Path(f"/proc/{engine}/exe").exists())
    (node.state / "somebody-elses").unlink()


def test_the_container_of_a_living_agent_is_left_alone(node: LeakyNode) -> None:
    node.run(fakes.Engine)
    node.gateway.wait_for_state("ready")
    [first] = node.containers()
    node.run(fakes.Engine, replica="tiny-0002")
    node.gateway.wait_for(lambda report: report["replica"] == "tiny-0002" and report["state"] == "ready")
    assert first in node.containers()
    assert len(node.containers()) == 2


def test_podman_is_told_names_of_variables_only(node: LeakyNode) -> None:
    node.run(fakes.Engine)
    node.gateway.wait_for_state("ready")
    [started] = [line for line in node.calls if line.startswith("run ")]
    assert "--env=VLLM_API_KEY" in started
    assert "--env=HF_TOKEN" in started
    assert LAUNCH.engine_key not in started
    assert "hf_a_token_of_the_user" not in started


def test_a_runtime_whose_listing_fails_keeps_no_engine_from_starting(node: LeakyNode) -> None:
    program = node.directory / "bin" / "podman"
    program.write_text(program.read_text().replace("exec", '[ "$1" = ps ] && exit 125\nexec'))
    node.run(fakes.Engine)
    node.gateway.wait_for_state("ready")
