"""This machine as a place that runs jobs: the same script, the same contract, no Slurm. Linux only (it reads /proc).

A job is a directory:

    <directory>/<id>/job.json     who it is: comment, process, when
                     script       what runs; removed when it has ended, since secrets are in it
                     cancelled    when it was cancelled, if it was
                     status       its exit status, written by its keeper

and a session of processes, which outlives the gateway and is found again by the next one:

    keeper (sh)      stands where slurmd would: runs the script, survives TERM, writes `status`
      bash -> agent  the script; TERM to the keeper's process group is meant for this one
        engine       in a process group of its own

A process is known by its pid and its start time, since pids come round again. What may be left of an ended job is known
by its session and by SLURMGATE_JOB_ID in its environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets as random_source
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cluster import Cluster, Job, JobComment, Refused, Submission

KEPT_S = 3600.0
"""How long ended jobs are remembered."""

KEEPER = """
trap : HUP INT TERM USR1
cd "$1" || exit 1
/bin/bash script
echo $? > status.new
mv status.new status
"""
"""A caught signal is reset in children, an ignored one would not be: so the script gets TERM and this shell stays."""

PASSED = frozenset(
    {
        *("HOME", "USER", "LOGNAME", "SHELL", "PATH", "TMPDIR", "LD_LIBRARY_PATH"),
        *("LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ"),
        *("CUDA_VISIBLE_DEVICES", "CUDA_HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE"),
    }
)
"""What a job gets of our environment, as with sbatch's `--export=NONE`: our secrets are not its business."""

_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Record:
    """What job.json holds. `boot` and `started` (clock ticks since boot) tell our process from a later one."""

    id: str
    comment: JobComment
    pid: int
    boot: str
    started: int

    def dumps(self) -> str:
        fields = {"id": self.id, "pid": self.pid, "boot": self.boot, "started": self.started}
        return json.dumps({**fields, "comment": self.comment.dumps()})

    @classmethod
    def load(cls, home: Path) -> Record | None:
        """The job in a directory; None for one that is not whole: its submission was cut off before anything ran."""
        try:
            fields: dict[str, Any] = json.loads((home / "job.json").read_text())
            comment = JobComment.loads(fields["comment"])
            if comment is None:
                return None
            return cls(fields["id"], comment, int(fields["pid"]), fields["boot"], int(fields["started"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def runs(self) -> bool:
        """Its keeper is there."""
        return self.boot == boot_id() and start_time(self.pid) == self.started


class LocalCluster(Cluster):
    """Jobs of one service as processes of this machine.

    directory     where jobs are kept, of this service alone
    kill_wait_s   from TERM to KILL, as Slurm's KillWait
    """

    def __init__(self, directory: Path, service: str, *, kill_wait_s: float = 10.0) -> None:
        self._directory = directory
        self._service = service
        self._kill_wait_s = kill_wait_s

    @property
    def name(self) -> str:
        return ""

    @property
    def job_word(self) -> str:
        return "local job"

    async def submit(self, submission: Submission) -> str:
        return await asyncio.to_thread(self._submit, submission)

    async def jobs(self) -> dict[str, Job]:
        return await asyncio.to_thread(self._jobs)

    async def ended(self, ids: Iterable[str]) -> dict[str, Job]:
        """Nothing more than `jobs` knows."""
        jobs = await self.jobs()
        return {job_id: jobs[job_id] for job_id in ids if job_id in jobs and not jobs[job_id].alive}

    async def cancel(self, ids: Iterable[str]) -> None:
        await asyncio.to_thread(self._cancel, list(ids))

    # -- what the threads do ------------------------------------------------------------------------------------------

    def _submit(self, submission: Submission) -> str:
        job_id = random_source.token_hex(4)
        home = self._directory / job_id
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            home.mkdir(mode=0o700)
            script = home / "script"
            script.touch(mode=0o600)
            script.write_text(submission.script)
            record = start(home, job_id, submission)
        except OSError as error:
            shutil.rmtree(home, ignore_errors=True)
            raise Refused(f"cannot start a process: {error}") from None
        # it is our child now, and must not stay a zombie; its end is seen by everybody in /proc
        threading.Thread(target=bury, args=(home, record), name=f"job {job_id}", daemon=True).start()
        return job_id

    def _jobs(self) -> dict[str, Job]:
        found: dict[str, Job] = {}
        for home in self._homes():
            record = Record.load(home)
            if record is None:  # cut off between the directory and its job.json
                if older_than(home, KEPT_S):
                    shutil.rmtree(home, ignore_errors=True)
                continue
            if record.comment.service != self._service:
                continue
            if record.runs:
                self._end_overdue(home, record)
            else:
                sweep(home, record)
                if older_than(home / "swept", KEPT_S):
                    shutil.rmtree(home, ignore_errors=True)
                    continue
            state, reason = state_of(home, record)
            found[record.id] = Job(record.id, state, reason, socket.gethostname(), comment=record.comment)
        return found

    def _homes(self) -> list[Path]:
        try:
            return sorted(self._directory.iterdir())
        except FileNotFoundError:
            return []

    def _cancel(self, ids: list[str]) -> None:
        for job_id in ids:
            home = self._directory / job_id
            record = Record.load(home)
            if record is None or not record.runs:
                continue
            if not (home / "cancelled").exists():
                (home / "cancelled").touch()
                threading.Thread(
                    target=self._kill_later, args=(home, record), name=f"kill {job_id}", daemon=True
                ).start()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(record.pid, signal.SIGTERM)

    def _kill_later(self, home: Path, record: Record) -> None:
        deadline = time.monotonic() + self._kill_wait_s
        while record.runs and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        self._end_overdue(home, record)

    def _end_overdue(self, home: Path, record: Record) -> None:
        """KILL after the grace; also when it was another gateway's process that cancelled the job."""
        if record.runs and older_than(home / "cancelled", self._kill_wait_s):
            kill_all(record)


def start(home: Path, job_id: str, submission: Submission) -> Record:
    """A running job, with its job.json. Raises OSError, and then nothing runs."""
    pid = spawn(home, job_id, submission.log_path)
    record = Record(job_id, submission.comment, pid, boot_id(), start_time(pid) or 0)
    try:
        replace_file(home / "job.json", record.dumps())
    except OSError:
        kill_all(record)
        os.waitpid(pid, 0)
        raise
    return record


def spawn(home: Path, job_id: str, log_path: Path) -> int:
    """Start the keeper in a session of its own. Raises OSError."""
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", KEEPER, "slurmgate-job", str(home)],
            environment_of(job_id, os.environ),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # which Python ignores
        )
    finally:
        os.close(log)


def environment_of(job_id: str, ours: Mapping[str, str]) -> dict[str, str]:
    """A job's environment. A gateway that itself runs in a Slurm job must not pass that job off as its replicas'."""
    passed = {name: value for name, value in ours.items() if name in PASSED}
    return {"PATH": os.defpath, **passed, "SLURMGATE_JOB_ID": job_id}


def bury(home: Path, record: Record) -> None:
    """Wait for a child's end, clean up behind it, and only then let go of its pid."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, record.pid, os.WEXITED | os.WNOWAIT)
        if home.exists():
            sweep(home, record)
        os.waitpid(record.pid, 0)


def sweep(home: Path, record: Record) -> None:
    """Once after a job's end: kill what it left running, remove what is secret."""
    if (home / "swept").exists():
        return
    kill_all(record)
    with contextlib.suppress(OSError):
        (home / "script").unlink(missing_ok=True)
        (home / "swept").touch()


def state_of(home: Path, record: Record) -> tuple[str, str]:
    """Slurm's word for how a job is, and the reason."""
    cancelled = (home / "cancelled").exists()
    if record.runs:
        return ("COMPLETING", "Cancelled") if cancelled else ("RUNNING", "")
    if cancelled:
        return "CANCELLED", ""
    try:
        status = int((home / "status").read_text())
    except (OSError, ValueError):
        return ("FAILED", "Killed") if record.boot == boot_id() else ("NODE_FAIL", "Reboot")
    return ("COMPLETED", "") if status == 0 else ("FAILED", f"ExitCode {status}")


# -- files and processes ----------------------------------------------------------------------------------------------


def replace_file(path: Path, text: str) -> None:
    """Write it whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)


def older_than(path: Path, age_s: float) -> bool:
    """False for a file that is not there."""
    try:
        return time.time() - path.stat().st_mtime >= age_s
    except FileNotFoundError:
        return False


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True, slots=True)
class Process:
    """From /proc/PID/stat (proc(5)): `started` in clock ticks since boot."""

    pid: int
    state: str
    session: int
    started: int

    @property
    def ended(self) -> bool:
        """A zombie."""
        return self.state in "ZX"


def process(pid: int) -> Process | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name in parentheses may hold anything
    return Process(pid, state=fields[0], session=int(fields[3]), started=int(fields[19]))


def start_time(pid: int) -> int | None:
    """None for a process that is not there, or has ended."""
    found = process(pid)
    return None if found is None or found.ended else found.started


def kill_all(record: Record) -> None:
    for pid in processes_of(record):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def processes_of(record: Record) -> list[int]:
    """Every process of a job: of its session, or with its id in the environment, since programs may change either.

    The session is only trusted while its leader, if only as a zombie, holds the number: later it may be another's.
    """
    if record.boot != boot_id():
        return []
    leader = process(record.pid)
    session_is_ours = leader is not None and leader.started == record.started
    mark = f"SLURMGATE_JOB_ID={record.id}\0".encode()
    return [
        found.pid
        for found in every_process()
        if (session_is_ours and found.session == record.pid) or mark in environment_bytes(found.pid)
    ]


def every_process() -> Iterator[Process]:
    """All living ones but this one."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            found = process(int(name))
            if found is not None and not found.ended:
                yield found


def environment_bytes(pid: int) -> bytes:
    """Empty for other users' processes."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
