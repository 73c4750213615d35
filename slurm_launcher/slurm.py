"""Slurm as a place that runs jobs: the only caller of Slurm's commands. What is asked and what is read: commands.py."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from . import commands
from .cluster import Cluster, CouldNotAsk, Job, Refused, Submission
from .facilities import (
    Node,
    Partition,
    Record,
    Reservation,
    asked_for,
    next_maintenance,
    parse_config,
    parse_nodes,
    parse_partitions,
    parse_ping,
    parse_reservations,
)
from .versions import Capabilities, Version, parse_version, refused_option

KEPT = frozenset({"PATH", "HOME", "USER", "LOGNAME", "TZ", "LD_LIBRARY_PATH", "SLURM_CONF", "SLURM_JWT"})
"""What Slurm's commands get of our environment: where Slurm is and who we are.

Never SBATCH_*, SQUEUE_* and the other SLURM_*: they override `#SBATCH` lines and options, and a gateway that itself
runs in a job has many of them. Nor the rest: our secrets are there.
"""

_REAP_S = 2.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command left: exit status (negative: the signal that ended it) and text."""

    command: str
    status: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Why it failed, on one line."""
        lines = commands.complaints(self.err) or [f"ended with status {self.status} and said nothing"]
        return f"{self.command}: {'; '.join(lines)}"[:400]


class SlurmCluster(Cluster):
    """The jobs of one service on one Slurm cluster.

    job_name            all jobs of this service, and no others, have it
    name                of the cluster, for sites with several (`-M`, needs slurmdbd); "" for the default one
    commands_timeout_s  each command is killed after this long; Slurm's own limit is MessageTimeout, 10 s by default,
                        and twice that for some
    environment         in place of our own, of which only `KEPT` reaches the commands

    `skipped` holds the lines of the latest squeue answer that were no jobs, for whoever wonders.
    """

    def __init__(
        self,
        job_name: str,
        *,
        name: str = "",
        commands_timeout_s: float = 20.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", job_name):  # squeue --name takes a list, and `|` is our delimiter
            raise ValueError(f"job name {job_name!r}: expected letters, digits and ._- only")
        self._job_name = job_name
        self._name = name
        self._timeout_s = commands_timeout_s
        given = os.environ if environment is None else environment
        kept = {key: value for key, value in given.items() if key in KEPT}
        self._environment = {"PATH": os.defpath, **kept, "LC_ALL": "C", "SLURM_TIME_FORMAT": "standard"}
        self.skipped: tuple[str, ...] = ()
        self._capabilities = Capabilities()
        self._reservations: tuple[float, list[Reservation]] | None = None
        self._partitions: tuple[float, list[Partition]] | None = None

    @property
    def name(self) -> str:
        return self._name

    async def submit(self, submission: Submission) -> str:
        """The new job's id. Never tried twice: an sbatch that timed out has been carried out later all the same."""
        answer = await self._run(commands.sbatch(self._name), submission.script)
        if answer.status == 0:
            job_id = commands.parse_submitted(answer.out)
            if job_id is None:
                raise CouldNotAsk(f"sbatch succeeded, but printed no job id: {answer.out[:200]!r}")
            return job_id
        if answer.status < 0 or commands.unanswered(answer.err):
            raise CouldNotAsk(answer.said)
        reason = commands.refusal(answer.err)
        raise Refused(reason, temporary=commands.temporary(reason))

    async def jobs(self) -> dict[str, Job]:
        answer = await self._ask(commands.squeue(self._job_name, self._name))
        listing = commands.parse_jobs(answer.out)
        # an empty answer is believed only from a squeue that had nothing to complain of
        nothing_but_noise = not listing.jobs and (listing.skipped or "error" in answer.err)
        if answer.status != 0 or nothing_but_noise:
            raise CouldNotAsk(answer.said if answer.err else f"squeue: answer not understood: {answer.out[:200]!r}")
        self.skipped = listing.skipped
        return listing.jobs

    async def ended(self, ids: Iterable[str]) -> dict[str, Job]:
        """Those of `ids` that are over, as sacct tells; {} where the site keeps no accounting."""
        asked = commands.job_ids(ids)
        if not asked:
            return {}
        answer = await self._ask(commands.sacct(asked, self._name))
        if answer.status == 0:
            return commands.parse_ended(answer.out)
        if commands.accounting_is_off(answer.err):
            return {}
        raise CouldNotAsk(answer.said)

    async def cancel(self, ids: Iterable[str]) -> None:
        """End those of `ids` that are jobs of ours. Slurm sends TERM, and KILL after KillWait."""
        wanted = commands.job_ids(ids)
        if wanted:
            await self._scancel(commands.scancel(wanted, self._job_name, self._name))

    async def cancel_all(self) -> None:
        """End every job of this service, also those that nobody remembers."""
        await self._scancel(commands.scancel_all(self._job_name, str(os.getuid()), self._name))

    async def signal(self, job_id: str, name: str) -> None:
        """Signal the batch shell of a running job of ours, such as "USR1". Where none runs, nothing happens."""
        for known in commands.job_ids([job_id]):
            await self._scancel(commands.scancel_signal(known, name, self._job_name, self._name))

    async def maintenance(self, partition: str, now: float) -> float | None:
        """By the reservations with the flag MAINT. Two commands for each `now`, however many partitions are asked
        for; one, where nothing is reserved for maintenance."""
        if self._reservations is None or self._reservations[0] != now:
            self._reservations = now, await self.reservations()
        planned = [r for r in self._reservations[1] if "MAINT" in r.flags and r.ends_at > now]
        if not planned:
            return None
        if self._partitions is None or self._partitions[0] != now:
            self._partitions = now, await self.partitions()
        nodes = [node for p in asked_for(self._partitions[1], partition) for node in p.nodes]
        return next_maintenance(nodes, planned, now)

    # -- what the cluster is: for maintenance, and for whoever looks for mistakes -------------------------------------

    async def reservations(self) -> list[Reservation]:
        # in UTC, where no hour comes twice
        return parse_reservations((await self._told(commands.show("reservation", self._name), TZ="UTC0")).out)

    async def partitions(self) -> list[Partition]:
        return parse_partitions((await self._told(commands.show("partition", self._name))).out)

    async def nodes(self) -> list[Node]:
        return parse_nodes((await self._told(commands.sinfo(self._name))).out)

    async def configuration(self) -> Record:
        return parse_config((await self._told(commands.show("config", self._name))).out)

    async def version(self) -> Version | None:
        """Of the commands here; None where they say something else. The controller's is in `configuration`."""
        return parse_version((await self._told(["sbatch", "--version"])).out)

    async def ping(self) -> dict[str, bool]:
        """Host -> whether its slurmctld answers. Exit status 1 where none does."""
        answer = await self._ask(commands.ping(self._name))
        found = parse_ping(answer.out)
        if not found:
            raise CouldNotAsk(answer.said)
        return found

    async def test(self, script: str) -> str:
        """What Slurm says of a script that it would take: when and where it would start. Raises `Refused`."""
        answer = await self._run(commands.sbatch_test(self._name), script)
        if answer.status == 0:
            return "; ".join(commands.complaints(answer.err))
        if answer.status < 0 or commands.unanswered(answer.err):
            raise CouldNotAsk(answer.said)
        reason = commands.refusal(answer.err)
        raise Refused(reason, temporary=commands.temporary(reason))

    async def _told(self, argv: list[str], **environment: str) -> Answer:
        """An answer to be believed. Raises `CouldNotAsk` for any other."""
        answer = await self._ask(argv, **environment)
        if answer.status != 0 or (not answer.out.strip() and "error" in answer.err):
            raise CouldNotAsk(answer.said)
        return answer

    # -- commands -----------------------------------------------------------------------------------------------------

    async def _ask(self, argv: list[str], **environment: str) -> Answer:
        """A question, said in the way that the commands here understand: an option that one of them refuses is
        remembered, and not used again."""
        while True:
            said = self._capabilities.argv(argv, os.getuid())
            answer = await self._run(said, environment=environment)
            option = refused_option(answer.err) if answer.status != 0 else None
            if option is None or option not in said or not self._capabilities.can_do_without(argv[0], option):
                return answer
            self._capabilities = self._capabilities.without(argv[0], option)

    async def _scancel(self, argv: list[str]) -> None:
        """Tried again, since saying it twice does no harm; not for long, since the launcher's loop waits."""
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(CouldNotAsk),
            stop=stop_after_attempt(3) | stop_after_delay(self._timeout_s),
            wait=wait_random_exponential(multiplier=0.2, max=2.0),
            reraise=True,
        )
        async for attempt in attempts:
            with attempt:
                answer = await self._run(argv)
                # the status is the last error's number modulo 256: only the text tells what went wrong
                if answer.status != 0 and (commands.not_cancelled(answer.err) or not answer.err.strip()):
                    raise CouldNotAsk(answer.said)

    async def _run(self, argv: list[str], script: str = "", environment: Mapping[str, str] | None = None) -> Answer:
        """Run a command to its end. Raises `CouldNotAsk` where it cannot be started or takes too long.

        Whatever ends this, the command does not outlive it.
        """
        program = shutil.which(argv[0], path=self._environment["PATH"])
        if program is None:
            raise CouldNotAsk(f"{argv[0]}: command not found on PATH ({self._environment['PATH']})")
        try:
            process = await asyncio.create_subprocess_exec(
                program,
                *argv[1:],
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**self._environment, **(environment or {})},
                cwd="/",
                start_new_session=True,  # a Ctrl-C at our terminal is for us; and wrappers can be killed whole
            )
        except OSError as error:
            raise CouldNotAsk(f"{argv[0]}: {error.strerror or error}") from error
        out, err = bytearray(), bytearray()
        try:
            async with asyncio.timeout(self._timeout_s):
                await _converse(process, script.encode(), out, err)
        except TimeoutError:
            last = commands.complaints(err.decode(errors="replace"))[-1:]
            because = f" ({last[0]})" if last else ""
            raise CouldNotAsk(f"{argv[0]} did not answer within {self._timeout_s:g} s{because}") from None
        finally:
            await _end(process)
        return Answer(
            command=argv[0],
            status=process.returncode if process.returncode is not None else -1,
            out=out.decode(errors="replace"),
            err=err.decode(errors="replace"),
        )


async def _converse(process: asyncio.subprocess.Process, script: bytes, out: bytearray, err: bytearray) -> None:
    """Say and hear everything. `out` and `err` grow as text comes, so that a time-out does not lose what was said."""
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise AssertionError("all three are pipes")
    await asyncio.gather(
        _feed(process.stdin, script), _collect(process.stdout, out), _collect(process.stderr, err), process.wait()
    )


async def _feed(stdin: asyncio.StreamWriter, data: bytes) -> None:
    """The script, then the end of it. A command that ends without reading it says why on stderr."""
    # RuntimeError is uvloop's word for a pipe that is closed already
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, RuntimeError):
        stdin.write(data)
        await stdin.drain()
    stdin.close()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, RuntimeError):
        await stdin.wait_closed()


async def _collect(stream: asyncio.StreamReader, into: bytearray) -> None:
    while chunk := await stream.read(65536):
        into += chunk


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of the command, and reap it; one that even SIGKILL cannot end is left behind."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_REAP_S):
            await process.wait()
