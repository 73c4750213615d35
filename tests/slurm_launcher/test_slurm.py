"""SlurmCluster against a real Slurm, and against commands that misbehave in ways that a real one seldom shows."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
import uvloop

from slurm_launcher import commands
from slurm_launcher.cluster import CouldNotAsk, Job, JobComment, Refused, Submission
from slurm_launcher.slurm import SlurmCluster
from slurm_launcher.spec import Resources
from tests.slurm_fixture import SlurmLab, until

SLEEP = "sleep 300 & wait"
SECRET = "sk-very-secret"


def bare(script: str) -> Submission:
    return Submission("r", script, JobComment("test", "m", "r", "abc"), Path("/dev/null"))


# -- a real Slurm -----------------------------------------------------------------------------------------------------


@dataclass
class Service:
    """One test's service: a job name of its own on the cluster."""

    lab: SlurmLab
    job_name: str
    cluster: SlurmCluster

    def submission(
        self,
        body: str = SLEEP,
        ask: Resources | None = None,
        *,
        model: str = "m",
        log: str = "/dev/null",
        lead: int = 0,
    ) -> Submission:
        mark = JobComment("test", model, uuid4().hex[:8], "abc")
        lines = commands.directives(
            ask or Resources(), job_name=self.job_name, comment=mark.dumps(), output=log, signal_lead_s=lead
        )
        return Submission(mark.replica_id, "\n".join(["#!/bin/bash", *lines, body, ""]), mark, Path(log))

    async def submit(self, body: str = SLEEP, ask: Resources | None = None, *, log: str = "/dev/null") -> str:
        return await self.cluster.submit(self.submission(body, ask, log=log))

    async def comes_to(self, job_id: str, *states: str) -> Job:
        async def there() -> bool:
            job = (await self.cluster.jobs()).get(job_id)
            return job is not None and job.state in states

        await until(there, what=f"job {job_id} is {' or '.join(states)}; it is {self.lab.state(job_id)}")
        return (await self.cluster.jobs())[job_id]


def service_on(lab: SlurmLab, *, conf: Path | None = None, name: str = "") -> Service:
    job_name = f"slurmgate-{uuid4().hex[:8]}"
    environment = lab.env() | ({"SLURM_CONF": str(conf)} if conf else {})
    return Service(lab, job_name, SlurmCluster(job_name, name=name, environment=environment))


@pytest.fixture
async def service(slurm_lab: SlurmLab) -> AsyncIterator[Service]:
    service = service_on(slurm_lab)
    yield service
    await service.cluster.cancel_all()


@pytest.fixture
def hasty_conf(slurm_lab: SlurmLab, tmp_path: Path) -> Path:
    """The cluster's configuration for clients that give up after 2 s."""
    text = slurm_lab.conf.read_text().replace("MessageTimeout=5", "MessageTimeout=2")
    conf = tmp_path / "slurm.conf"
    conf.write_text(text)
    return conf


@pytest.mark.slurm
class TestOnARealSlurm:
    async def test_a_submitted_job_is_found_by_its_mark(self, service: Service) -> None:
        submission = service.submission(ask=Resources(gpus=2, gpu_type="h100", time_limit_s=600))
        job_id = await service.cluster.submit(submission)
        job = (await service.cluster.jobs())[job_id]
        assert job.comment == JobComment("test", "m", submission.replica_id, "abc")
        running = await service.comes_to(job_id, "RUNNING")
        assert running.node in service.lab.nodes
        assert running.time_left_s is not None
        assert 500 < running.time_left_s <= 600

    @pytest.mark.parametrize(
        "model",
        [
            "meta-llama/Llama-3.1-8B-Instruct",
            'it\'s "odd" | name, #1 \\ $HOME `id` %j 100%',
            "モデル/é ü",
            "  spaces  and\ttabs\nand a line  ",
            "--uid=0",
        ],
    )
    async def test_a_mark_comes_back_whatever_the_model_is_called(self, service: Service, model: str) -> None:
        submission = service.submission("true", model=model)
        job_id = await service.cluster.submit(submission)
        assert (await service.cluster.jobs())[job_id].comment == JobComment("test", model, submission.replica_id, "abc")

    async def test_a_quoted_value_reaches_slurm_as_it_was(self, service: Service) -> None:
        comment = "a 'b' \"c\" \\d \\\\ #e $f `g` é %j \\"
        lines = commands.directives(
            Resources(), job_name=service.job_name, comment=comment, output="/dev/null", signal_lead_s=0
        )
        job_id = await service.cluster.submit(bare("\n".join(["#!/bin/sh", *lines, "true", ""])))
        assert service.lab.run("squeue", "-h", "-t", "all", "-j", job_id, "-o", "%k") == comment + "\n"

    async def test_all_directives_are_understood(self, service: Service, tmp_path: Path) -> None:
        log = tmp_path / "50%j it's.log"
        ask = Resources(
            gpus=1,
            gpu_type="h100",
            cpus=3,
            memory_mb=2000,
            time_limit_s=90,
            partition="gpu",
            constraint=None,
            extra=("--nodelist=n2", "--partition=short", "--nodelist=n1", "--job-name=hijacked"),
        )
        job_id = await service.cluster.submit(service.submission("echo life; pwd", ask, log=str(log), lead=30))
        assert (await service.comes_to(job_id, "COMPLETED")).node == "n1"
        assert log.read_text() == "life\n/tmp\n"
        shown = service.lab.run("scontrol", "show", "job", job_id)
        for fact in ("Partition=short", "NumCPUs=3", "MinMemoryNode=2000M", "TimeLimit=00:02:00", "Requeue=1"):
            assert fact in shown

    async def test_jobs_of_other_names_and_arrays_are_not_ours(self, service: Service) -> None:
        ours = await service.submit()
        script = f"#!/bin/sh\n{SLEEP}\n"
        other = service.lab.run("sbatch", "--parsable", "-J", "other", "-o", "/dev/null", stdin=script).strip()
        service.lab.run("sbatch", "-a", "1-2", "-J", service.job_name, "-o", "/dev/null", stdin=script)
        try:
            assert list(await service.cluster.jobs()) == [ours]
            assert service.cluster.skipped == ()
            await service.cluster.cancel([other])
            await service.cluster.cancel_all()
            assert service.lab.state(other) in {"PENDING", "RUNNING"}
        finally:
            service.lab.run("scancel", other)

    async def test_a_pending_job_says_why_it_waits(self, service: Service) -> None:
        ask = Resources(partition="short", time_limit_s=3600)
        job = await service.comes_to(await service.submit(ask=ask), "PENDING")
        await until(lambda: reason_is(service, job.id, "PartitionTimeLimit"), what="the reason")
        assert (job.waiting, job.node) == (True, "")

    async def test_an_ended_job_is_shown_with_its_end(self, service: Service) -> None:
        failed = await service.comes_to(await service.submit("exit 3"), "FAILED")
        assert (failed.over, failed.reason) == (True, "NonZeroExitCode")
        assert (await service.comes_to(await service.submit("true"), "COMPLETED")).over

    @pytest.mark.parametrize(
        ("ask", "reason"),
        [
            (Resources(partition="nope"), "Invalid partition name specified"),
            (Resources(gpus=9), "Requested node configuration is not available"),
            (Resources(gpus=1, gpu_type="a100"), "Requested node configuration is not available"),
            (Resources(memory_mb=999_999_999), "Memory specification can not be satisfied"),
            (Resources(constraint="nosuch"), "Invalid feature specification"),
            (Resources(reservation="nosuch"), "Requested reservation is invalid"),
            (Resources(extra=("--gres=fpga:1",)), "Invalid generic resource (gres) specification"),
            (Resources(extra=("--nodelist=nosuch",)), "Invalid node name specified"),
            (Resources(extra=("--bogus",)), "unrecognized option '--bogus'"),
            (Resources(extra=("--time=soon",)), "Invalid --time specification"),
            (Resources(extra=("--dependency=whatever:1",)), "Job dependency problem"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    async def test_a_refusal_says_why(self, service: Service, ask: Resources, reason: str) -> None:
        with pytest.raises(Refused) as refused:
            await service.submit(ask=ask)
        assert str(refused.value).startswith("Slurm refused the job: ")
        assert reason in str(refused.value)
        # some refused submissions leave a record, FAILED for BadConstraints and with our mark: nothing of it lives
        assert all(job.over for job in (await service.cluster.jobs()).values())

    async def test_an_empty_script_is_refused(self, service: Service) -> None:
        with pytest.raises(Refused, match="Batch script is empty"):
            await service.cluster.submit(bare(""))

    async def test_cancelling_ends_running_and_pending_jobs_at_once(self, service: Service) -> None:
        running = await service.submit()
        pending = await service.submit(ask=Resources(extra=("--begin=now+1hour",)))
        await service.comes_to(running, "RUNNING")
        await service.cluster.cancel([running, pending])
        for job_id in (running, pending):
            assert (await service.comes_to(job_id, "CANCELLED")).over

    async def test_cancelling_what_is_not_there_is_no_error(self, service: Service) -> None:
        ended = await service.submit("true")
        await service.comes_to(ended, "COMPLETED")
        live = await service.submit()
        await service.cluster.cancel([ended, "99999999", "no id", live])
        await service.comes_to(live, "CANCELLED")
        await service.cluster.cancel([ended])
        await service.cluster.cancel([])
        await service_on(service.lab).cluster.cancel_all()

    async def test_an_id_alone_does_not_get_a_job_cancelled(self, service: Service) -> None:
        """Ids are used again when a cluster is set up anew, and agents report ids over the network."""
        job_id = await service.submit()
        stranger = service_on(service.lab).cluster
        await stranger.cancel([job_id, "--user=root", f"-n{service.job_name}"])
        await stranger.signal(job_id, "KILL")
        await service.comes_to(job_id, "RUNNING")

    async def test_cancel_all_ends_every_job_of_the_service(self, service: Service) -> None:
        ids = [await service.submit() for _ in range(3)]
        ids.append(await service.submit(ask=Resources(extra=("--begin=now+1hour",))))
        await service.cluster.cancel_all()
        for job_id in ids:
            await service.comes_to(job_id, "CANCELLED")

    async def test_a_signal_reaches_the_batch_shell_alone(self, service: Service, tmp_path: Path) -> None:
        log = tmp_path / "log"
        body = 'trap "echo heard; exit 0" USR1\necho ready\nsleep 300 &\nwait'
        job_id = await service.submit(body, log=str(log))

        async def is_ready() -> bool:
            return log.exists() and "ready" in log.read_text()

        await until(is_ready)
        await service.cluster.signal(job_id, "USR1")
        await service.comes_to(job_id, "COMPLETED")
        assert "heard" in log.read_text()

    async def test_a_signal_that_nobody_can_hear_is_no_error(self, service: Service) -> None:
        pending = await service.submit(ask=Resources(extra=("--begin=now+1hour",)))
        for job_id in (pending, "99999999", "no id"):
            await service.cluster.signal(job_id, "USR1")
        await service.comes_to(pending, "PENDING")

    async def test_without_accounting_no_end_is_known(self, service: Service) -> None:
        assert await service.cluster.ended(["1", "2"]) == {}
        assert await service.cluster.ended([]) == {}

    async def test_nothing_of_our_environment_reaches_a_job(self, slurm_lab: SlurmLab, tmp_path: Path) -> None:
        log = tmp_path / "log"
        service = service_on(slurm_lab)
        dirt = {
            "OPENAI_API_KEY": SECRET,
            "SBATCH_PARTITION": "nope",
            "SBATCH_EXPORT": "ALL",
            "SQUEUE_FORMAT": "%i",
            "SQUEUE_STATES": "CANCELLED",
            "SLURM_CLUSTERS": "nope",
            "SLURM_JOB_ID": "1",
            "SLURM_TIME_FORMAT": "relative",
        }
        cluster = SlurmCluster(service.job_name, environment=slurm_lab.env() | dirt)
        service = Service(slurm_lab, service.job_name, cluster)
        # even a site that asks for everything gets nothing of ours
        job_id = await service.submit("env", Resources(extra=("--export=ALL",)), log=str(log))
        await service.comes_to(job_id, "COMPLETED")
        assert "SLURM_JOB_ID=" + job_id in log.read_text()
        assert SECRET not in log.read_text()
        assert "SBATCH_" not in log.read_text()

    async def test_a_secret_in_the_script_is_in_no_listing(self, service: Service) -> None:
        body = f"export ENGINE_KEY={SECRET}\n{SLEEP}"
        submitting = asyncio.ensure_future(service.submit(body))
        seen: list[str] = []
        while not submitting.done():
            seen.append(command_lines())
            await asyncio.sleep(0)
        job_id = await submitting
        await service.comes_to(job_id, "RUNNING")
        seen.append(command_lines())
        seen.append(service.lab.run("scontrol", "-dd", "show", "job", job_id))
        seen.append(service.lab.run("squeue", "-a", "-o", "%all"))
        assert f"slurmgate-{service.job_name.split('-')[1]}" in "".join(seen)
        assert SECRET not in "".join(seen)

    async def test_a_stopped_controller_is_never_an_empty_answer(self, service: Service, hasty_conf: Path) -> None:
        job_id = await service.submit()
        cluster = SlurmCluster(service.job_name, environment=service.lab.env() | {"SLURM_CONF": str(hasty_conf)})
        with service.lab.controller_stopped():
            answers = await asyncio.gather(cluster.jobs(), cluster.submit(service.submission()), return_exceptions=True)
        for answer in answers:
            assert isinstance(answer, CouldNotAsk)
            assert "Unable to contact slurm controller" in str(answer)
        assert job_id in await service.cluster.jobs()

    async def test_a_submission_that_timed_out_is_found_by_its_mark(self, service: Service, hasty_conf: Path) -> None:
        """Slurm carries it out when it comes to itself: so it is looked for, and never sent twice."""
        cluster = SlurmCluster(service.job_name, environment=service.lab.env() | {"SLURM_CONF": str(hasty_conf)})
        submission = service.submission()
        with service.lab.controller_frozen():
            answers = await asyncio.gather(cluster.jobs(), cluster.submit(submission), return_exceptions=True)
        for answer in answers:
            assert isinstance(answer, CouldNotAsk)
            assert "Socket timed out" in str(answer)

        async def found() -> bool:
            marks = [job.comment for job in (await service.cluster.jobs()).values()]
            return [mark.replica_id for mark in marks if mark] == [submission.replica_id]

        await until(found, what="the job of the submission")

    async def test_no_configuration_at_all_is_a_silence_with_a_reason(self, tmp_path: Path) -> None:
        environment = {"PATH": os.environ["PATH"], "SLURM_CONF": str(tmp_path / "none.conf")}
        cluster = SlurmCluster("slurmgate-x", commands_timeout_s=1.0, environment=environment)
        with pytest.raises(CouldNotAsk, match=r"within 1 s .*none\.conf"):
            await cluster.jobs()


def command_lines() -> str:
    """What `ps` shows to everybody."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(lines)


async def reason_is(service: Service, job_id: str, reason: str) -> bool:
    return (await service.cluster.jobs())[job_id].reason == reason


@pytest.mark.slurm
class TestWithAccounting:
    async def test_the_ends_of_jobs(self, slurm_accounting_lab: SlurmLab) -> None:
        service = service_on(slurm_accounting_lab, name="lab")
        failed, killed = await service.submit("exit 3"), await service.submit("kill -9 $$")
        running, cancelled = await service.submit(), await service.submit()
        await service.comes_to(failed, "FAILED")
        await service.comes_to(killed, "FAILED")
        await service.comes_to(cancelled, "RUNNING")
        service.lab.run("scontrol", "requeue", cancelled)
        await service.comes_to(cancelled, "PENDING")
        await service.cluster.cancel([cancelled])
        ids = [failed, killed, running, cancelled, "99999999", "no id"]

        async def all_known() -> bool:  # slurmdbd hears of an end a little later than squeue
            return len(await service.cluster.ended(ids)) == 3

        await until(all_known)
        ended = await service.cluster.ended(ids)
        assert {job.id: (job.state, job.reason) for job in ended.values()} == {
            failed: ("FAILED", "exit code 3"),
            killed: ("FAILED", "signal 9"),
            cancelled: ("CANCELLED", ""),
        }
        await service.cluster.cancel_all()

    @pytest.mark.parametrize(
        ("ask", "reason"),
        [
            (Resources(account="nosuch"), "Invalid account or account/partition combination specified"),
            (Resources(qos="nosuch"), "Invalid qos specification"),
        ],
        ids=["account", "qos"],
    )
    async def test_accounts_and_qos_are_checked(
        self, slurm_accounting_lab: SlurmLab, ask: Resources, reason: str
    ) -> None:
        with pytest.raises(Refused, match=reason):
            await service_on(slurm_accounting_lab).submit(ask=ask)

    async def test_a_quota_is_named(self, slurm_accounting_lab: SlurmLab) -> None:
        service = service_on(slurm_accounting_lab)
        for _ in range(3):
            await service.submit(ask=Resources(qos="tiny"))
        with pytest.raises(Refused, match="QOSMaxSubmitJobPerUserLimit"):
            await service.submit(ask=Resources(qos="tiny"))
        await service.cluster.cancel_all()

    async def test_a_silent_accounting_is_not_an_empty_one(self, slurm_accounting_lab: SlurmLab) -> None:
        service = service_on(slurm_accounting_lab)
        slurm_accounting_lab.accounting_stop()
        try:
            with pytest.raises(CouldNotAsk, match="Connection refused"):
                await service.cluster.ended(["1"])
            assert await service.cluster.jobs() == {}
        finally:
            slurm_accounting_lab.accounting_start()

    async def test_an_unknown_cluster_is_a_silence_with_a_reason(self, slurm_accounting_lab: SlurmLab) -> None:
        service = service_on(slurm_accounting_lab, name="nosuch")
        with pytest.raises(CouldNotAsk, match="nosuch"):
            await service.cluster.jobs()


# -- commands that misbehave ------------------------------------------------------------------------------------------


def a_cluster_whose(directory: Path, timeout_s: float = 10.0, **programs: str) -> SlurmCluster:
    """Slurm's commands as shell scripts: `sbatch="sleep 60"` is an sbatch that hangs."""
    for name, body in programs.items():
        path = directory / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    environment = {"PATH": f"{directory}:/usr/bin:/bin"}
    return SlurmCluster("slurmgate-x", commands_timeout_s=timeout_s, environment=environment)


HANGS = 'echo $$ >{pid}\necho "sbatch: error: Slurm job queue full, sleeping and retrying" >&2\nsleep 60 & wait'


async def test_a_hanging_command_is_killed_with_all_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    cluster = a_cluster_whose(tmp_path, timeout_s=0.3, sbatch=HANGS.format(pid=pid))
    with pytest.raises(CouldNotAsk, match=r"sbatch did not answer within 0.3 s \(Slurm job queue full"):
        await cluster.submit(bare("#!/bin/sh\n"))
    await until(lambda: group_is_gone(int(pid.read_text())))


async def test_a_cancelled_question_leaves_no_command_behind(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    cluster = a_cluster_whose(tmp_path, sbatch=HANGS.format(pid=pid))

    async def has_started() -> bool:
        return pid.exists() and pid.read_text().endswith("\n")

    async with asyncio.timeout(10):
        asking = asyncio.ensure_future(cluster.submit(bare("#!/bin/sh\n")))
        await until(has_started)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    await until(lambda: group_is_gone(int(pid.read_text())))


async def group_is_gone(pgid: int) -> bool:
    return not members(pgid)


def members(pgid: int) -> list[str]:
    """The states of a process group's members, but for zombies, which pid 1 of a container may leave."""
    states = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(group) == pgid and state not in "ZX":
            states.append(state)
    return states


async def test_a_missing_command_is_named(tmp_path: Path) -> None:
    cluster = SlurmCluster("slurmgate-x", environment={"PATH": str(tmp_path)})
    with pytest.raises(CouldNotAsk, match=r"sbatch: command not found on PATH"):
        await cluster.submit(bare("#!/bin/sh\n"))
    with pytest.raises(CouldNotAsk, match=r"squeue: command not found on PATH"):
        await cluster.jobs()


async def test_a_command_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "squeue").write_bytes(b"\x7fELF not really")
    (tmp_path / "squeue").chmod(0o755)
    cluster = SlurmCluster("slurmgate-x", environment={"PATH": str(tmp_path)})
    with pytest.raises(CouldNotAsk, match="squeue: Exec format error"):
        await cluster.jobs()


async def test_an_empty_answer_is_believed(tmp_path: Path) -> None:
    assert await a_cluster_whose(tmp_path, squeue="exit 0").jobs() == {}


@pytest.mark.parametrize(
    "squeue",
    [
        "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1",
        "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 0",
        "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1",
        "echo 'A new interface! Try qstat.'",
        "echo '7|RUNNING|None'; exit 1",
        "kill -9 $$",
        "exit 3",
    ],
)
async def test_no_other_answer_makes_jobs_vanish(tmp_path: Path, squeue: str) -> None:
    with pytest.raises(CouldNotAsk, match="squeue: "):
        await a_cluster_whose(tmp_path, squeue=squeue).jobs()


@pytest.mark.parametrize(
    "sbatch",
    [
        "echo 'sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received' >&2; exit 1",
        "echo 'Submitted, I think'",
        "kill -9 $$",
        "exit 1",
    ],
)
async def test_an_unclear_end_of_sbatch_is_not_a_refusal(tmp_path: Path, sbatch: str) -> None:
    """The job may exist."""
    with pytest.raises(CouldNotAsk, match="sbatch"):
        await a_cluster_whose(tmp_path, sbatch=sbatch).submit(bare("#!/bin/sh\n"))


async def test_a_long_script_to_a_command_that_does_not_read_it_is_no_error(tmp_path: Path) -> None:
    cluster = a_cluster_whose(tmp_path, sbatch="echo 'sbatch: error: No thanks' >&2; exit 1")
    with pytest.raises(Refused, match="No thanks"):
        await cluster.submit(bare("#!/bin/sh\n" + "#" * 4_000_000))


def test_uvloop_tells_it_just_the_same(tmp_path: Path) -> None:
    """It has other exceptions for a pipe that nobody reads, and the gateway runs on it."""
    refusing = a_cluster_whose(tmp_path, sbatch="echo 'sbatch: error: No thanks' >&2; exit 1", squeue="exit 0")
    hanging = a_cluster_whose(tmp_path, timeout_s=0.2, scancel="sleep 60 & wait")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for script in ("", "#!/bin/sh\n", "#" * 4_000_000):
            with pytest.raises(Refused, match="No thanks"):
                runner.run(refusing.submit(bare(script)))
        assert runner.run(refusing.jobs()) == {}
        with pytest.raises(CouldNotAsk, match="did not answer"):
            runner.run(hanging.cancel(["7"]))


async def test_the_script_arrives_whole(tmp_path: Path) -> None:
    script = "#!/bin/sh\n" + "é" * 1_000_000
    cluster = a_cluster_whose(tmp_path, sbatch=f"cat >{tmp_path}/got; echo 7")
    assert await cluster.submit(bare(script)) == "7"
    assert (tmp_path / "got").read_text() == script


FAILS_TWICE = """echo x >>{count}
[ $(wc -l <{count}) -ge {enough} ] && exit 0
echo 'scancel: error: Kill job error on job id 7: Unable to contact slurm controller (connect failure)' >&2
exit 8"""


async def test_cancelling_is_tried_again(tmp_path: Path) -> None:
    count = tmp_path / "count"
    await a_cluster_whose(tmp_path, scancel=FAILS_TWICE.format(count=count, enough=3)).cancel(["7"])
    assert count.read_text().count("x") == 3


async def test_cancelling_gives_up_in_the_end(tmp_path: Path) -> None:
    count = tmp_path / "count"
    with pytest.raises(CouldNotAsk, match="Unable to contact"):
        await a_cluster_whose(tmp_path, scancel=FAILS_TWICE.format(count=count, enough=99)).cancel(["7"])
    assert count.read_text().count("x") == 3


async def test_a_submission_is_never_tried_again(tmp_path: Path) -> None:
    count = tmp_path / "count"
    with pytest.raises(CouldNotAsk):
        await a_cluster_whose(tmp_path, sbatch=FAILS_TWICE.format(count=count, enough=3)).submit(bare("#!"))
    assert count.read_text().count("x") == 1


@pytest.mark.parametrize("job_name", ["", "a,b", "a|b", "a b", "a\n"])
def test_a_job_name_that_squeue_would_misread_is_refused(job_name: str) -> None:
    with pytest.raises(ValueError, match="job name"):
        SlurmCluster(job_name)
