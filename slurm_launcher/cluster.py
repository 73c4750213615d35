"""The contract of a place that runs jobs: Slurm (slurm.py) or this machine (local.py)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote


class CouldNotAsk(Exception):
    """The scheduler did not answer. Nothing is known: not that a job is gone, not that a submission failed."""


class Refused(Exception):
    """The scheduler answered no. The message is its own first line; trying the same again at once gives the same.

    temporary   it may say yes later, though nothing is changed here: a limit that other jobs have used up
    """

    def __init__(self, message: str, *, temporary: bool = False) -> None:
        super().__init__(message)
        self.temporary = temporary


@dataclass(frozen=True, slots=True)
class JobComment:
    """The mark each job carries in `--comment`, by which it is found again and adopted."""

    service: str
    model: str
    replica_id: str
    config_hash: str
    placement: str = ""

    def dumps(self) -> str:
        """One line of JSON whose values are percent-encoded, but for `/` and `:`.

        So no space, quote, backslash or `|` is inside: the comment passes `#SBATCH` lines, squeue and accounting
        unchanged, whatever the model is called. Slurm takes up to 1024 bytes.
        """
        fields = {"service": self.service, "model": self.model, "replica": self.replica_id, "config": self.config_hash}
        if self.placement:  # the model's own kind has none, as in jobs of version 0.1
            fields["placement"] = self.placement
        encoded = {name: quote(value, safe="/:") for name, value in fields.items()}
        return json.dumps({"slurmgate": 1, **encoded}, separators=(",", ":"))

    @classmethod
    def loads(cls, text: str) -> JobComment | None:
        """The comment of a job, or None where it is not one of ours."""
        try:
            fields = json.loads(text)
            if fields["slurmgate"] != 1:
                return None
            return cls(
                service=unquote(str(fields["service"])),
                model=unquote(str(fields["model"])),
                replica_id=unquote(str(fields["replica"])),
                config_hash=unquote(str(fields["config"])),
                placement=unquote(str(fields.get("placement", ""))),
            )
        except (ValueError, TypeError, KeyError):
            return None


@dataclass(frozen=True, slots=True)
class Job:
    """One job as the scheduler tells it.

    state       Slurm's own word, such as PENDING, RUNNING, COMPLETING, CANCELLED, NODE_FAIL
    reason      why it is pending or how it ended, such as Resources or NonZeroExitCode; "" for none
    node        the batch host, "" while pending
    time_left_s until the wall time, None where unknown or unlimited
    starts_at   the scheduler's estimate for a pending job, as its own text (local time), "" for none
    """

    id: str
    state: str
    reason: str = ""
    node: str = ""
    time_left_s: float | None = None
    starts_at: str = ""
    comment: JobComment | None = None

    @property
    def alive(self) -> bool:
        """It has, or may yet get, processes. So does a job whose state we do not know: a newer Slurm may have words
        that are not in our list, and a service must not end for a word."""
        return not self.over and self.state != "COMPLETING"

    @property
    def over(self) -> bool:
        """Nothing of it is left. In between is COMPLETING: its processes are being killed."""
        return self.state in OVER_STATES

    @property
    def waiting(self) -> bool:
        return self.state in WAITING_STATES


WAITING_STATES = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
"""Not running now, may run (again)."""

OVER_STATES = frozenset({
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT",
})  # fmt: skip
"""Ended (sacct(1), JOB STATE CODES; the same from 21.08 to 26.05). REVOKED: of a federation's clusters another one has
started it."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What is handed to the scheduler: a whole script, with its comment and its log's path (in `#SBATCH` lines too)."""

    replica_id: str
    script: str = field(repr=False)
    comment: JobComment
    log_path: Path


class Cluster(Protocol):
    """A place that runs jobs. All verbs raise `CouldNotAsk` when it does not answer.

    A job is known by (cluster's name, id): ids of two clusters may be equal, and those of a federation are large (the
    cluster's number is in the bits above the 25th), so an id is a text of digits and nothing is counted with it.
    What could not be asked is never an answer: an unanswered `jobs` is not {}, an unanswered `maintenance` not None.
    """

    @property
    def name(self) -> str:
        """Part of a job's identity: job ids of two clusters may be equal. "" for the default cluster."""

    @property
    def job_word(self) -> str:
        """What users are told that a job is."""
        return "Slurm job"

    async def submit(self, submission: Submission) -> str:
        """The new job's id. Raises `Refused`. After `CouldNotAsk` the job may exist all the same: look for its mark."""

    async def jobs(self) -> dict[str, Job]:
        """Every job of this service by id, lately ended ones included for as long as the scheduler remembers them."""

    async def ended(self, ids: Iterable[str]) -> dict[str, Job]:
        """How jobs that `jobs` no longer shows have ended, where accounting knows."""

    async def cancel(self, ids: Iterable[str]) -> None:
        """End jobs. Unknown and ended ones are no error."""

    async def maintenance(self, partition: str, now: float) -> float | None:
        """When all nodes of a partition ("" for the default one, `a,b` for a choice) are in maintenance next, in
        seconds since the epoch; None for never. `now` if they are in it.

        Asked with the same `now`, it may answer from memory: the launcher asks for every model in turn."""
        return None
