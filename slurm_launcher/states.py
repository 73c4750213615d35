"""A replica's life: what we want (`Target`), what is (`Status`), and the one table of legal steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Target(StrEnum):
    RUN = "run"
    STOP = "stop"  # drain, then end


class Status(StrEnum):
    """Each comment says what a reader should do with a replica in that state."""

    PENDING = "pending"  # submitted or about to be; nothing heard from its agent: wait, show the scheduler's reason
    STARTING = "starting"  # its agent reports, the engine is not proven: wait
    READY = "ready"  # proven by a real token: send requests
    DRAINING = "draining"  # finishes what it has: send nothing new, let streams end
    STOPPED = "stopped"  # ended as it should, or because somebody cancelled it: forget it
    LOST = "lost"  # the scheduler no longer has its job: replace it
    FAILED = "failed"  # refused, or ended by a fault; `failure` says which: replace it with care


ENDED = frozenset({Status.STOPPED, Status.LOST, Status.FAILED})

TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.PENDING: frozenset({Status.STARTING, Status.READY, Status.DRAINING}) | ENDED,
    Status.STARTING: frozenset({Status.PENDING, Status.READY, Status.DRAINING}) | ENDED,
    Status.READY: frozenset({Status.PENDING, Status.STARTING, Status.DRAINING}) | ENDED,
    Status.DRAINING: frozenset({Status.PENDING, Status.STARTING}) | ENDED,
    Status.STOPPED: frozenset(),
    Status.LOST: frozenset(),
    Status.FAILED: frozenset(),
}
"""Back to PENDING: Slurm requeued the job (same id, another life). Back to STARTING: the agent restarted its engine."""


SAME_END_S = 90.0
"""Slurm checks wall times every 30 s and squeue counts from another moment than the agent."""


class IllegalTransition(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a replica ended.

    kind      a short stable word: refused, launch, start_timeout, engine_exited, engine_unproven, node, timeout, ...
    message   one sentence for the operator and the user
    tail      the engine's last lines, for the operator only
    """

    kind: str
    message: str
    tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica as the gateway knows it. Times are seconds since the epoch.

    job_id       None while a submission is under way, or after one that was not answered
    life         Slurm's restart count: a requeued job keeps its id and starts again with a higher one
    running_since   when the scheduler was first seen to run the job (of this life)
    heard_at     the agent's last report
    ends_at      when its wall time is over
    retired      to be replaced by a new one as soon as that is ready
    placement    which kind of its model's replicas it is; "" for the model's own
    note         what the scheduler says of the job, such as "PENDING (Resources)"
    unseen       how many answered polls in a row did not show the job
    """

    id: str
    model: str
    config_hash: str
    created_at: float
    target: Target = Target.RUN
    status: Status = Status.PENDING
    cluster: str = ""
    job_id: str | None = None
    life: int = 0
    node: str = ""
    host: str = ""
    port: int = 0
    running_since: float | None = None
    ready_at: float | None = None
    heard_at: float | None = None
    draining_since: float | None = None
    ended_at: float | None = None
    ends_at: float | None = None
    starts_at: str = ""
    note: str = ""
    unseen: int = 0
    retired: bool = False
    failure: Failure | None = None
    placement: str = ""

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    def time_left_s(self, now: float) -> float | None:
        """Until the wall time; None where there is none or it is not known."""
        return None if self.ends_at is None or self.ended else max(0.0, self.ends_at - now)

    def ending_in(self, seconds: float | None, now: float) -> Replica:
        """The same with another word on its time left. Words differ by a few seconds, which is no news."""
        if seconds is None or (self.ends_at is not None and abs(now + seconds - self.ends_at) < SAME_END_S):
            return self
        return replace(self, ends_at=now + seconds)

    @property
    def word(self) -> str:
        """The public word, from target and status."""
        if self.target is Target.STOP and not self.ended:
            return "draining"
        return self.status.value


def advance(replica: Replica, status: Status, now: float, failure: Failure | None = None) -> Replica:
    """The replica one step on. The same status again is no step. Raises `IllegalTransition`."""
    if status is replica.status:
        return replica
    if status not in TRANSITIONS[replica.status]:
        raise IllegalTransition(f"replica {replica.id}: {replica.status} -> {status}")
    return replace(
        replica,
        status=status,
        ready_at=now if status is Status.READY else replica.ready_at,
        draining_since=now if status is Status.DRAINING else replica.draining_since,
        ended_at=now if status in ENDED else None,
        failure=failure,
    )
