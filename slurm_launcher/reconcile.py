"""Facts -> actions: the launcher's decisions, pure.

Each step compares what is wanted with what is known and says what to do about the difference. Nothing here waits, asks
or remembers: what must be remembered is in the replicas themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .cluster import Job, JobComment
from .spec import ModelSpec
from .states import Failure, Replica, Status, Target, advance

UNSEEN_LIMIT = 2
"""Answered polls without a job before it counts as gone: one empty squeue answer has deleted live state elsewhere."""

SETTLED_S = 60.0
"""A replica that was ready for this long has proven its configuration: its end does not count towards the backoff."""

BACKOFF_S = 5.0
BACKOFF_REFUSED_S = 30.0
BACKOFF_LIMIT_S = 600.0
HISTORY_S = 3600.0
"""How long ended replicas are kept, for `slurmgate status` and the backoff."""

CANCEL_AGAIN_S = 30.0
"""Past its drain limit by this much, a replica is cancelled from outside."""


@dataclass(frozen=True, slots=True)
class Poll:
    """One answer of the scheduler. `asked_at`: what agents said after that is newer than this answer.

    ended    from accounting: how jobs ended that `jobs` no longer shows
    """

    asked_at: float
    jobs: Mapping[str, Job]
    ended: Mapping[str, Job] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Facts:
    """`poll` is None in a step that did not ask, or was not answered. Then nothing can be found missing.

    counts   how many replicas each model shall have now; the least that its scaling allows where it is left out
    """

    now: float
    wanted: Mapping[str, ModelSpec]
    replicas: Sequence[Replica]
    poll: Poll | None = None
    service: str = ""
    heartbeat_s: float = 5.0
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Submit:
    model: str


@dataclass(frozen=True, slots=True)
class Put:
    """Remember this replica as it is here."""

    replica: Replica


@dataclass(frozen=True, slots=True)
class Cancel:
    job_id: str


@dataclass(frozen=True, slots=True)
class Forget:
    replica_id: str


Action = Submit | Put | Cancel | Forget


def reconcile(facts: Facts) -> list[Action]:
    """What to do now: first what was learnt (`Put`), then what to end, to start and to forget."""
    known = {replica.id: replica for replica in facts.replicas}
    after = dict(known)
    cancels: list[Action] = []
    submits: list[Action] = []

    if facts.poll is not None:
        after.update({r.id: observe(r, facts.poll, facts) for r in facts.replicas if not r.ended})
        cancels.extend(adopt_strangers(after, facts.poll, facts))

    for model in {*facts.wanted, *(replica.model for replica in after.values())}:
        spec = facts.wanted.get(model)
        live = [r for r in after.values() if r.model == model and not r.ended]
        after.update({r.id: stop(r, facts.now) for r in surplus(live, spec, facts.counts)})
        if spec is not None:
            ended = [r for r in after.values() if r.model == model and r.ended]
            if facts.now >= retry_at(ended, spec):
                submits.extend(Submit(model) for _ in range(missing(live, spec, facts.counts)))

    cancels.extend(Cancel(r.job_id) for r in after.values() if r.job_id is not None and overdue(r, facts))
    puts: list[Action] = [Put(r) for r in after.values() if r != known.get(r.id)]
    forgets: list[Action] = [
        Forget(r.id) for r in after.values() if r.ended and facts.now - (r.ended_at or 0.0) > HISTORY_S
    ]
    return [*puts, *cancels, *submits, *forgets]


def adopt_strangers(replicas: dict[str, Replica], poll: Poll, facts: Facts) -> list[Action]:
    """Take in live jobs of ours that nobody remembers; cancel those of replicas that have ended in our eyes."""
    cancels: list[Action] = []
    for job in poll.jobs.values():
        mark = job.comment
        if not job.alive or mark is None or mark.service != facts.service:
            continue
        found = replicas.get(mark.replica_id)
        if found is None:
            replicas[mark.replica_id] = adopted(job, mark, facts.now)
        elif found.ended:
            cancels.append(Cancel(job.id))
    return cancels


# -- what the scheduler says ------------------------------------------------------------------------------------------


def observe(replica: Replica, poll: Poll, facts: Facts) -> Replica:
    """The replica after an answered poll."""
    job = poll.jobs.get(replica.job_id) if replica.job_id is not None else find_by_mark(replica, poll)
    if job is None:
        return unseen(replica, poll, facts)
    replica = replace(replica, job_id=job.id, unseen=0)
    newer_report = replica.heard_at is not None and replica.heard_at >= poll.asked_at
    if job.waiting:
        note = f"{job.state} ({job.reason})" if job.reason else job.state
        replica = replace(replica, note=note, starts_at=job.starts_at)
        if newer_report or replica.status is Status.PENDING:
            return replica
        # Slurm requeued it: the same id, another life, elsewhere
        replica = replace(replica, host="", port=0, node="", running_since=None, time_left_s=None)
        return advance(replica, Status.PENDING, facts.now)
    if job.alive:
        replica = replace(
            replica,
            note=job.state,
            starts_at="",
            node=replica.node or job.node,
            running_since=replica.running_since or facts.now,
            time_left_s=job.time_left_s if job.time_left_s is not None else replica.time_left_s,
        )
        return silent(replica, facts) if replica.heard_at is None else replica
    if newer_report and job.state == "COMPLETING":
        return replica  # its agent is about to say how it ended
    return end(replica, job, facts.now)


def find_by_mark(replica: Replica, poll: Poll) -> Job | None:
    """The job of a submission that was not answered: it may have been carried out all the same."""
    for job in poll.jobs.values():
        if job.comment is not None and job.comment.replica_id == replica.id:
            return job
    return None


def unseen(replica: Replica, poll: Poll, facts: Facts) -> Replica:
    """Not in the answer. Gone only after two answers, and not while its agent still speaks."""
    if replica.heard_at is not None and facts.now - replica.heard_at < 3 * facts.heartbeat_s:
        return replica
    replica = replace(replica, unseen=replica.unseen + 1)
    if replica.unseen < UNSEEN_LIMIT:
        return replica
    job = poll.ended.get(replica.job_id) if replica.job_id is not None else None
    if job is not None:
        return end(replica, job, facts.now)
    if replica.job_id is None:
        gone = Failure("submission", "The submission was not answered, and no job of it has appeared.")
    else:
        gone = Failure("gone", f"Job {replica.job_id} has left the queue, and how it ended is not known.")
    return advance(replica, Status.LOST, facts.now, gone)


def silent(replica: Replica, facts: Facts) -> Replica:
    """A job whose agent has never been heard: given up once an engine would have had the time to start."""
    spec = facts.wanted.get(replica.model)
    limit = spec.start_timeout_s if spec is not None else 0.0
    if replica.running_since is None or facts.now - replica.running_since <= limit + 3 * facts.heartbeat_s:
        return replica
    message = (
        f"Job {replica.job_id} runs on {replica.node or 'a node'}, but its agent has never reported: "
        "the job's log says why, or the node cannot reach the gateway's URL (server.advertise_url)."
    )
    return advance(replica, Status.FAILED, facts.now, Failure("silent", message))


ENDS: dict[str, tuple[Status, str, str]] = {
    "COMPLETED": (Status.STOPPED, "ended", "ended"),
    "CANCELLED": (Status.STOPPED, "cancelled", "was cancelled"),
    "COMPLETING": (Status.LOST, "ended", "is ending"),
    "TIMEOUT": (Status.STOPPED, "wall_time", "reached its wall time"),
    "PREEMPTED": (Status.LOST, "preempted", "was preempted"),
    "NODE_FAIL": (Status.LOST, "node", "was lost with its node"),
    "BOOT_FAIL": (Status.LOST, "node", "was lost: its node did not boot"),
    "OUT_OF_MEMORY": (Status.FAILED, "host_memory", "was killed: it used more host memory than it asked for"),
    "DEADLINE": (Status.FAILED, "deadline", "was ended by its deadline"),
}
"""Slurm's final states -> status, kind, words (sacct(1), JOB STATE CODES)."""


def end(replica: Replica, job: Job, now: float) -> Replica:
    """The replica of a job that has ended."""
    default = (Status.FAILED, "job_failed", f"ended as {job.state}" + (f" ({job.reason})" if job.reason else ""))
    status, kind, words = ENDS.get(job.state, default)
    return advance(replica, status, now, Failure(kind, f"Job {job.id} {words}."))


def adopted(job: Job, mark: JobComment, now: float) -> Replica:
    """A replica that only the scheduler remembers: its agent's next report fills in the rest."""
    return Replica(
        mark.replica_id,
        mark.model,
        mark.config_hash,
        created_at=now,
        job_id=job.id,
        node=job.node,
        running_since=None if job.waiting else now,
        time_left_s=job.time_left_s,
        note=job.state,
    )


# -- what is wanted ---------------------------------------------------------------------------------------------------


def serving(replica: Replica) -> bool:
    """It serves, or will."""
    return replica.target is Target.RUN and replica.status in (Status.PENDING, Status.STARTING, Status.READY)


def count_of(spec: ModelSpec, counts: Mapping[str, int]) -> int:
    return counts.get(spec.name, spec.scaling.least)


def missing(live: Iterable[Replica], spec: ModelSpec, counts: Mapping[str, int]) -> int:
    """How many to submit. While replicas of an older configuration serve, one more at a time: they go as it comes."""
    ours = [r for r in live if serving(r)]
    current = sum(r.config_hash == spec.config_hash for r in ours)
    count = count_of(spec, counts)
    wanted = count - current
    return min(wanted, max(0, count + 1 - len(ours))) if len(ours) > current else max(0, wanted)


def surplus(live: Iterable[Replica], spec: ModelSpec | None, counts: Mapping[str, int]) -> list[Replica]:
    """Which to stop: those of models no longer wanted, those above the number, outdated ones that are replaced."""
    ours = [r for r in live if serving(r)]
    if spec is None:
        return ours
    current = sorted((r for r in ours if r.config_hash == spec.config_hash), key=usefulness, reverse=True)
    outdated = sorted((r for r in ours if r.config_hash != spec.config_hash), key=usefulness, reverse=True)
    ready = sum(r.status is Status.READY for r in current)
    count = count_of(spec, counts)
    return [*current[count:], *outdated[max(0, count - ready) :]]


def usefulness(replica: Replica) -> tuple[int, float]:
    """Ready before starting before pending; among equals the one with more of its wall time left."""
    order = {Status.READY: 2, Status.STARTING: 1}
    return order.get(replica.status, 0), replica.time_left_s or 0.0


def stop(replica: Replica, now: float) -> Replica:
    """Drain a replica that serves; what never served has nothing to finish."""
    return advance(replace(replica, target=Target.STOP), Status.DRAINING, now)


def overdue(replica: Replica, facts: Facts) -> bool:
    """To be cancelled from outside: it is to stop, and its agent was never heard or does not come to its end."""
    if facts.poll is None or replica.job_id is None or replica.target is not Target.STOP or replica.ended:
        return False
    job = facts.poll.jobs.get(replica.job_id)
    if job is None or not job.alive:
        return False
    spec = facts.wanted.get(replica.model)
    limit = (spec.drain_timeout_s if spec is not None else 0.0) + CANCEL_AGAIN_S
    return replica.heard_at is None or facts.now - (replica.draining_since or facts.now) > limit


# -- failures ---------------------------------------------------------------------------------------------------------


def failures(ended: Iterable[Replica], spec: ModelSpec) -> list[Replica]:
    """The latest unbroken row of bad ends under this configuration, oldest first."""
    row: list[Replica] = []
    for replica in sorted(ended, key=lambda r: r.ended_at or 0.0):
        if replica.config_hash != spec.config_hash or replica.target is Target.STOP:
            continue
        settled = replica.ready_at is not None and (replica.ended_at or 0.0) - replica.ready_at >= SETTLED_S
        if settled or (replica.status is Status.STOPPED and replica.ready_at is not None):
            row.clear()
        else:
            row.append(replica)
    return row


def retry_at(ended: Iterable[Replica], spec: ModelSpec) -> float:
    """When the next submission may be made, in seconds since the epoch; 0.0 for at once.

    A replica that was ready and went is replaced at once. What fails again and again waits twice as long each time.
    """
    row = failures(ended, spec)
    if not row:
        return 0.0
    last = row[-1]
    if len(row) == 1 and last.ready_at is not None:
        return 0.0
    base = BACKOFF_REFUSED_S if last.failure is not None and last.failure.kind == "refused" else BACKOFF_S
    return (last.ended_at or 0.0) + min(base * 2.0 ** (len(row) - 1), BACKOFF_LIMIT_S)
