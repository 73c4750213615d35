"""The agent with weights that are copied to its node first: the whole script under bash, by the oldest Python."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from slurm_launcher.script import assemble, manifest
from slurm_launcher.spec import ModelSpec, Site
from tests.fakes import engines as fakes
from tests.fakes.gateway import FakeGateway
from tests.slurm_launcher.conftest import LAUNCH
from tests.slurm_launcher.test_agent import PYTHONS, Job


@pytest.mark.parametrize("python", [PYTHONS[0], PYTHONS[-1]])
@pytest.mark.parametrize("there", [True, False])
def test_a_replica_reads_the_nodes_copy_or_where_there_is_no_room_for_one_the_shared_weights(
    gateway: FakeGateway,
    tmp_path: Path,
    python: str,
    there: bool,  # the fixture
) -> None:
    source = tmp_path / "shared" / "llama"
    source.mkdir(parents=True)
    (source / "model.safetensors").write_bytes(bytes(100_000))
    scratch = tmp_path / "scratch"
    if there:
        scratch.mkdir()
    spec = ModelSpec(
        "tiny/model",
        "vllm",
        "/models/llama",
        command=(sys.executable, fakes.__file__, "Engine"),
        binds=(f"{tmp_path}/shared:/models:ro",),
        local_copy=str(scratch),
    )
    site = Site("test", gateway.url, str(tmp_path / "url"), tmp_path, python=python, heartbeat_s=0.1)
    script = assemble(manifest(spec, LAUNCH, site, host="127.0.0.1"), python=python)
    job = Job(script, tmp_path, {})
    try:
        gateway.wait_for_state("ready")
        folder = next(scratch.glob("slurmgate-weights-*/*/")) if there else source.parent
        assert f"{folder}/llama --host" in job.log
        assert (folder / "llama" / "model.safetensors").stat().st_size == 100_000
        assert gateway.states() == ["starting", "ready"]
        job.signal(signal.SIGTERM)
        assert job.wait() == 0
    finally:
        job.end()


def test_a_job_that_is_told_to_end_does_not_wait_for_the_copy(
    gateway: FakeGateway, tmp_path: Path
) -> None:  # the fixture
    source = tmp_path / "shared" / "llama"
    source.mkdir(parents=True)
    (source / "model.safetensors").write_bytes(bytes(1_000_000))
    (tmp_path / "scratch").mkdir()
    spec = ModelSpec(
        "tiny/model",
        "vllm",
        str(source),
        command=(sys.executable, fakes.__file__, "Engine"),
        local_copy=str(tmp_path / "scratch"),
    )
    site = Site("test", gateway.url, str(tmp_path / "url"), tmp_path, python=PYTHONS[0], heartbeat_s=0.1)
    script = assemble(manifest(spec, LAUNCH, site, host="127.0.0.1"), python=PYTHONS[0])
    script = script.replace("    copied = 0\n", "    time.sleep(60)\n    copied = 0\n")
    job = Job(script, tmp_path, {})
    try:
        gateway.wait_for(lambda r: r.get("note") == "copying weights: 0 %")
        job.signal(signal.SIGTERM)
        assert job.wait() == 0
        assert gateway.states()[-1] == "stopped"
    finally:
        job.end()
