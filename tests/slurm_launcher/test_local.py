"""Jobs without Slurm: the contract of cluster.py, on this machine's processes."""

# ruff: noqa: ASYNC220, ASYNC221, ASYNC240  # nothing else runs in these loops that a blocking call could hold up

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from slurm_launcher import local
from slurm_launcher.cluster import JobComment, Refused, Submission
from slurm_launcher.local import LocalCluster, Record
from slurm_launcher.script import render
from slurm_launcher.spec import ModelSpec, Secrets, Site
from tests.fakes import engines as fakes
from tests.fakes.gateway import FakeGateway

COMMENT = JobComment("test", "org/m", "m-1", "abc123")


def submission(directory: Path, script: str, comment: JobComment = COMMENT) -> Submission:
    return Submission(comment.replica_id, f"#!/bin/bash\n{script}\n", comment, directory / "log")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    made = LocalCluster(tmp_path / "jobs", "test", kill_wait_s=0.3)
    yield made
    for job_id in await made.jobs():
        record = record_of(made, job_id)
        local.kill_all(record)


def record_of(cluster: LocalCluster, job_id: str) -> Record:
    record = Record.load(cluster._directory / job_id)
    assert record is not None
    return record


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def ends_as(cluster: LocalCluster, job_id: str) -> tuple[str, str]:
    """Wait for a job's end: state and reason."""

    async def over() -> bool:
        return (await cluster.jobs())[job_id].over

    await until(over)
    job = (await cluster.jobs())[job_id]
    return job.state, job.reason


async def written(path: Path) -> str:
    """A file's text, once there is some."""

    async def there() -> bool:
        return path.exists() and path.read_text().endswith("\n")

    await until(there)
    return path.read_text()


async def test_a_job_runs_with_its_comment_and_writes_its_log(cluster: LocalCluster, tmp_path: Path) -> None:
    job_id = await cluster.submit(submission(tmp_path, "echo hello; sleep 60"))
    assert await written(tmp_path / "log") == "hello\n"
    job = (await cluster.jobs())[job_id]
    assert job.state == "RUNNING"
    assert job.comment == COMMENT
    assert job.node == os.uname().nodename


async def test_how_a_job_ended_is_remembered(cluster: LocalCluster, tmp_path: Path) -> None:
    good = await cluster.submit(submission(tmp_path, "exit 0"))
    bad = await cluster.submit(submission(tmp_path, "exit 3"))
    assert await ends_as(cluster, good) == ("COMPLETED", "")
    assert await ends_as(cluster, bad) == ("FAILED", "ExitCode 3")
    assert set(await cluster.ended([good, bad, "unknown"])) == {good, bad}


async def test_cancelling_is_term_for_the_script(cluster: LocalCluster, tmp_path: Path) -> None:
    script = f"trap 'echo told > {tmp_path}/told; exit 0' TERM\necho up > {tmp_path}/up\nsleep 60 & wait"
    job_id = await cluster.submit(submission(tmp_path, script))
    await written(tmp_path / "up")
    await cluster.cancel([job_id, "unknown"])
    assert await ends_as(cluster, job_id) == ("CANCELLED", "")
    assert (tmp_path / "told").read_text() == "told\n"


async def test_what_ignores_term_is_killed_after_the_wait(cluster: LocalCluster, tmp_path: Path) -> None:
    script = f"trap '' TERM\necho up > {tmp_path}/up\nsleep 60; sleep 60"
    job_id = await cluster.submit(submission(tmp_path, script))
    await written(tmp_path / "up")
    record = record_of(cluster, job_id)
    await cluster.cancel([job_id])
    assert (await cluster.jobs())[job_id].state == "COMPLETING"
    assert await ends_as(cluster, job_id) == ("CANCELLED", "")

    async def nothing_left() -> bool:
        return local.processes_of(record) == []

    await until(nothing_left)


async def test_a_kill_that_its_gateway_could_not_do_is_done_by_the_next(tmp_path: Path) -> None:
    patient = LocalCluster(tmp_path / "jobs", "test", kill_wait_s=600)
    job_id = await patient.submit(submission(tmp_path, f"trap '' TERM\necho up > {tmp_path}/up\nsleep 60; sleep 60"))
    await written(tmp_path / "up")
    home = tmp_path / "jobs" / job_id
    (home / "cancelled").touch()
    long_ago = time.time() - 3600
    os.utime(home / "cancelled", (long_ago, long_ago))
    assert await ends_as(LocalCluster(tmp_path / "jobs", "test"), job_id) == ("CANCELLED", "")


async def test_what_a_job_leaves_running_ends_with_it(cluster: LocalCluster, tmp_path: Path) -> None:
    job_id = await cluster.submit(submission(tmp_path, f"setsid sleep 60 & echo $! > {tmp_path}/pid; exit 1"))
    pid = int(await written(tmp_path / "pid"))
    assert await ends_as(cluster, job_id) == ("FAILED", "ExitCode 1")

    async def gone() -> bool:
        return local.start_time(pid) is None

    await until(gone)


async def test_no_zombie_is_left_and_no_script_with_secrets(cluster: LocalCluster, tmp_path: Path) -> None:
    job_id = await cluster.submit(submission(tmp_path, "exit 0"))
    pid = record_of(cluster, job_id).pid
    assert (await ends_as(cluster, job_id))[0] == "COMPLETED"

    async def buried() -> bool:
        return local.process(pid) is None

    await until(buried)
    assert not (tmp_path / "jobs" / job_id / "script").exists()


async def test_what_is_secret_is_for_its_owner_only(cluster: LocalCluster, tmp_path: Path) -> None:
    job_id = await cluster.submit(submission(tmp_path, "sleep 60"))
    home = tmp_path / "jobs" / job_id
    assert (home / "script").stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


async def test_a_jobs_environment_is_not_the_gateways(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    job_id = await cluster.submit(submission(tmp_path, "env; echo done"))
    await ends_as(cluster, job_id)
    lines = (tmp_path / "log").read_text().splitlines()
    assert f"SLURMGATE_JOB_ID={job_id}" in lines
    assert f"PATH={os.environ['PATH']}" in lines
    assert not any(line.startswith(("OPENAI_API_KEY", "SLURM_")) for line in lines)


async def test_jobs_outlive_the_gateway_and_are_found_again(cluster: LocalCluster, tmp_path: Path) -> None:
    """Submitted by another process, which has ended since."""
    program = f"""
import asyncio
from pathlib import Path
from slurm_launcher.cluster import JobComment, Submission
from slurm_launcher.local import LocalCluster
there = Path({str(tmp_path)!r})
comment = JobComment("test", "org/m", "m-1", "abc123")
script = "#!/bin/bash\\necho up > " + str(there / "up") + "; exec sleep 60"
print(asyncio.run(LocalCluster(there / "jobs", "test").submit(Submission("m-1", script, comment, there / "log"))))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=20)
    job_id = done.stdout.strip()
    await written(tmp_path / "up")
    job = (await cluster.jobs())[job_id]
    assert (job.state, job.comment) == ("RUNNING", COMMENT)
    await cluster.cancel([job_id])
    assert await ends_as(cluster, job_id) == ("CANCELLED", "")


async def test_two_gateways_see_only_their_own_jobs(cluster: LocalCluster, tmp_path: Path) -> None:
    await cluster.submit(submission(tmp_path, "sleep 60"))
    assert await LocalCluster(tmp_path / "jobs", "other").jobs() == {}


async def test_a_pid_that_came_round_again_is_not_the_job(cluster: LocalCluster, tmp_path: Path) -> None:
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        started = local.start_time(stranger.pid)
        assert started is not None
        leave_behind(tmp_path, Record("deadbeef", COMMENT, stranger.pid, local.boot_id(), started - 5))
        job = (await cluster.jobs())["deadbeef"]
        assert (job.state, job.reason) == ("FAILED", "Killed")
        await cluster.cancel(["deadbeef"])
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_after_a_reboot_a_job_counts_as_lost_with_its_node(cluster: LocalCluster, tmp_path: Path) -> None:
    leave_behind(tmp_path, Record("deadbeef", COMMENT, os.getpid(), "another boot", local.start_time(os.getpid()) or 0))
    job = (await cluster.jobs())["deadbeef"]
    assert (job.state, job.reason) == ("NODE_FAIL", "Reboot")


def leave_behind(directory: Path, record: Record) -> Path:
    home = directory / "jobs" / record.id
    home.mkdir(parents=True)
    (home / "job.json").write_text(record.dumps())
    return home


async def test_ended_jobs_are_forgotten_after_a_while(cluster: LocalCluster, tmp_path: Path) -> None:
    job_id = await cluster.submit(submission(tmp_path, "exit 0"))
    await ends_as(cluster, job_id)
    long_ago = time.time() - local.KEPT_S - 1
    os.utime(tmp_path / "jobs" / job_id / "swept", (long_ago, long_ago))
    assert job_id not in await cluster.jobs()
    assert not (tmp_path / "jobs" / job_id).exists()


async def test_what_is_no_job_is_no_error(cluster: LocalCluster, tmp_path: Path) -> None:
    assert await cluster.jobs() == {}
    (tmp_path / "jobs" / "half").mkdir(parents=True)
    (tmp_path / "jobs" / "wrong").mkdir()
    (tmp_path / "jobs" / "wrong" / "job.json").write_text(json.dumps({"id": "wrong"}))
    (tmp_path / "jobs" / "file").touch()
    assert await cluster.jobs() == {}


async def test_a_log_that_cannot_be_written_is_a_refusal(cluster: LocalCluster, tmp_path: Path) -> None:
    bad = Submission("m-1", "#!/bin/bash\n", COMMENT, tmp_path / "nowhere" / "log")
    with pytest.raises(Refused, match="No such file or directory"):
        await cluster.submit(bad)
    assert await cluster.jobs() == {}


async def test_a_replica_lives_its_whole_life_here(cluster: LocalCluster, tmp_path: Path) -> None:
    launch = Secrets(b"a secret of the gateway").launch("m-1")
    gateway = FakeGateway(launch.token)
    try:
        spec = ModelSpec("org/m", "vllm", "org/m", command=(sys.executable, fakes.__file__, "Engine"))
        site = Site("test", gateway.url, str(tmp_path / "url"), tmp_path, python=sys.executable, heartbeat_s=0.1)
        script = render(spec, launch, site, host="127.0.0.1")
        job_id = await cluster.submit(Submission("m-1", script, COMMENT, tmp_path / "log"))
        report = await asyncio.to_thread(gateway.wait_for_state, "ready")
        assert report["job"] == job_id
        commands = [
            Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in local.processes_of(record_of(cluster, job_id))
        ]
        assert len(commands) == 3  # keeper, agent, engine
        assert not any(launch.token in text or launch.engine_key in text for text in commands)
        await cluster.cancel([job_id])
        assert await ends_as(cluster, job_id) == ("CANCELLED", "")
        assert gateway.states() == ["starting", "ready", "draining", "stopped"]
    finally:
        gateway.close()


async def test_a_killed_agent_takes_its_engine_with_it(cluster: LocalCluster, tmp_path: Path) -> None:
    """Even one that the kernel does not end by itself: the keeper's end is the job's."""
    script = f"setsid sleep 60 & echo $$ > {tmp_path}/pid; wait"
    job_id = await cluster.submit(submission(tmp_path, script))
    with suppress(ProcessLookupError):
        os.kill(int(await written(tmp_path / "pid")), signal.SIGKILL)
    assert await ends_as(cluster, job_id) == ("FAILED", "ExitCode 137")

    async def nothing_left() -> bool:
        return local.processes_of(record_of(cluster, job_id)) == []

    await until(nothing_left)
