"""What the scheduler says, and what it makes of replicas: pure.

One unanswered or empty answer changes nothing. A job is gone after two answers without it, and not while its agent
still reports. What accounting knows of its end is used, and not needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .cluster import Job, JobComment
from .spec import ModelSpec
from .states import Failure, Replica, Status, Target, advance

UNSEEN_LIMIT = 2
"""Answered polls without a job before it counts as gone: one empty squeue answer has deleted live state elsewhere."""

COMPLETING = "COMPLETING"

STRANGER = "somebody else answers at its address"

NOWHERE: dict[str, Any] = {"host": "", "port": 0, "node": "", "running_since": None, "ends_at": None}
"""What is known of a replica's place when it has none."""

JobKey = tuple[str, str]
"""(cluster, job id): two clusters may give the same id."""


@dataclass(frozen=True, slots=True)
class Poll:
    """The schedulers' answers to one question. `asked_at`: what agents said after that is newer than these answers.

    answered clusters that did answer; nothing can be said of the jobs of others
    ended    from accounting: how jobs ended that `jobs` no longer shows
    """

    asked_at: float
    jobs: Mapping[JobKey, Job]
    ended: Mapping[JobKey, Job] = field(default_factory=dict)
    answered: frozenset[str] = frozenset({""})


@dataclass(frozen=True, slots=True)
class Look:
    """A poll, and what is needed to understand it. `strangers`: replicas at whose address somebody else answers."""

    poll: Poll
    now: float
    wanted: Mapping[str, ModelSpec]
    service: str
    heartbeat_s: float
    strangers: frozenset[str] = frozenset()


def key_of(replica: Replica) -> JobKey | None:
    return (replica.cluster, replica.job_id) if replica.job_id is not None else None


def observe(replica: Replica, look: Look) -> Replica:
    """The replica after an answered poll."""
    poll, now = look.poll, look.now
    if replica.cluster not in poll.answered:
        return replica
    key = key_of(replica)
    job = poll.jobs.get(key) if key is not None else find_by_mark(replica, poll)
    if job is None:
        return unseen(replica, look)
    replica = changed(replica, job_id=job.id, unseen=0)
    newer_report = replica.heard_at is not None and replica.heard_at >= poll.asked_at
    if job.waiting:
        return waits(replica, job, newer_report, now)
    if job.alive:
        replica = changed(
            replica,
            note=STRANGER if replica.id in look.strangers else job.state,
            starts_at="",
            node=replica.node or job.node,
            running_since=replica.running_since or now,
        ).ending_in(job.time_left_s, now)
        return silent(replica, look) if replica.heard_at is None else usurped(replica, look)
    if job.state == COMPLETING and spoke_lately(replica, look):
        return replica if newer_report else ends_or_comes_back(replica, now)
    return end(replica, job, now)


def changed(replica: Replica, **fields: Any) -> Replica:
    """With these fields; the same object where they are no news, as for nearly all of a thousand replicas in each
    answer: `replace` would make another one of all its fields (half of a step's time)."""
    for name, value in fields.items():
        if getattr(replica, name) != value:
            return replace(replica, **fields)
    return replica


def ends_or_comes_back(replica: Replica, now: float) -> Replica:
    """A job whose processes are being killed: for good, or to be queued again. The next answer tells which."""
    replica = replace(replica, note=COMPLETING)
    if replica.target is Target.STOP:
        return replica
    return advance(replace(replica, **NOWHERE), Status.PENDING, now)


def waits(replica: Replica, job: Job, newer_report: bool, now: float) -> Replica:
    """A job in the queue, for the first time or again."""
    note = f"{job.state} ({job.reason})" if job.reason else job.state
    replica = replace(replica, note=note, starts_at=job.starts_at)
    if newer_report:
        return replica
    if (failure := stuck(job)) is not None:
        return advance(replica, Status.FAILED, now, failure)  # its job is cancelled: it would come back otherwise
    if replica.status is Status.PENDING:
        return replica
    # Slurm requeued it: the same id, another life, elsewhere
    return advance(replace(replica, **NOWHERE), Status.PENDING, now)


def find_by_mark(replica: Replica, poll: Poll) -> Job | None:
    """The job of a submission that was not answered: it may have been carried out all the same."""
    for (cluster, _), job in poll.jobs.items():
        if cluster == replica.cluster and job.comment is not None and job.comment.replica_id == replica.id:
            return job
    return None


def unseen(replica: Replica, look: Look) -> Replica:
    """Not in the answer. Gone only after two answers, and not while its agent still speaks."""
    if spoke_lately(replica, look):
        return replica
    replica = replace(replica, unseen=replica.unseen + 1)
    if replica.unseen < UNSEEN_LIMIT:
        return replica
    key = key_of(replica)
    job = look.poll.ended.get(key) if key is not None else None
    if job is not None:
        return end(replica, job, look.now)
    if replica.job_id is None:
        gone = Failure("submission", "The submission was not answered, and no job of it has appeared.")
    else:
        gone = Failure("gone", f"Job {replica.job_id} has left the queue, and how it ended is not known.")
    return advance(replica, Status.LOST, look.now, gone)


def spoke_lately(replica: Replica, look: Look) -> bool:
    return replica.heard_at is not None and look.now - replica.heard_at < 3 * look.heartbeat_s


def usurped(replica: Replica, look: Look) -> Replica:
    """A job that runs in Slurm's eyes, while somebody else has its engine's port and its agent says nothing: nobody is
    left there who would start the engine again."""
    if replica.id not in look.strangers or replica.target is not Target.RUN or spoke_lately(replica, look):
        return replica
    message = f"Somebody else answers at the address of job {replica.job_id}'s engine, and its agent says nothing."
    return advance(replica, Status.FAILED, look.now, Failure("stranger", message))


def silent(replica: Replica, look: Look) -> Replica:
    """A job whose agent has never been heard: given up once an engine would have had the time to start."""
    spec = look.wanted.get(replica.model)
    limit = spec.start_timeout_s if spec is not None else 0.0
    if replica.running_since is None or look.now - replica.running_since <= limit + 3 * look.heartbeat_s:
        return replica
    message = (
        f"Job {replica.job_id} runs on {replica.node or 'a node'}, but its agent has never reported: "
        "the job's log says why, or the node cannot reach the gateway's URL (server.advertise_url)."
    )
    return advance(replica, Status.FAILED, look.now, Failure("silent", message))


# -- jobs that will not start ----------------------------------------------------------------------------------------

HOPELESS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"^PartitionTimeLimit$"), "asks for more time than its partition allows"),
    (re.compile(r"^PartitionNodeLimit$"), "asks for more nodes than its partition allows"),
    (re.compile(r"^PartitionConfig$"), "asks for what its partition does not allow"),
    (re.compile(r"^(QOS|Assoc)Max\w+(PerJob(Limit)?|PerNode)$"), "asks for more than one job may have"),
    (re.compile(r"^MaxMemPerLimit$"), "asks for more memory than its partition allows"),
    (re.compile(r"^QOSMin\w+$"), "asks for less than its QOS demands"),
    (re.compile(r"^(InvalidAccount|AccountNotAllowed)$"), "has an account that may not run here"),
    (re.compile(r"^AccountingPolicy$"), "asks for what its account or QOS does not allow"),
    (re.compile(r"^(InvalidQOS|QOSNotAllowed)$"), "has a QOS that may not run here"),
    (re.compile(r"^BadConstraints$"), "asks for what no node has"),
    (re.compile(r"^DependencyNeverSatisfied$"), "waits for a job that has failed"),
    (re.compile(r"^Reservation(Deleted|Invalid)$"), "waits for a reservation that is gone"),
)
"""Reasons of squeue(1) that do not go away by waiting -> what is wrong. Slurm keeps such jobs pending for ever.

The words of job_state_reason.c, 21.08 to 26.05. Not among them are those that may pass: `Constraints` (23.02 on: cannot
be satisfied *now*), `PartitionDown`, `PartitionInactive`, group and user limits, whatever a node's state brings.
"""

_HELD = re.compile(r"^JobHeldUser$")
_LAUNCH_HELD = re.compile(r"\brequeued.held$|^JobHoldMaxRequeue$", re.IGNORECASE)


def stuck(job: Job) -> Failure | None:
    """Why a waiting job is given up; None for one that may start yet.

    A hold by an administrator is one of these: it is theirs to lift, and another job would go round it.
    """
    for pattern, words in HOPELESS:
        if pattern.search(job.reason):
            return Failure("hopeless", f"Job {job.id} {words}: Slurm says {job.reason}.")
    if _LAUNCH_HELD.search(job.reason):
        return Failure("launch", f"Job {job.id} could not be launched on its node and is held: {job.reason}.")
    if _HELD.search(job.reason):
        return Failure("held", f"Job {job.id} was held by a user and is replaced.")
    return None


# -- jobs that have ended --------------------------------------------------------------------------------------------

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
    words = f"ended as {job.state}" + (f" ({job.reason})" if job.reason else "")
    if job.reason == "JobLaunchFailure":
        words += ": mostly its log cannot be written from the node (launcher.shared_dir)"
    default = (Status.FAILED, "job_failed", words)
    status, kind, words = ENDS.get(job.state, default)
    return advance(replica, status, now, Failure(kind, f"Job {job.id} {words}."))


# -- jobs that nobody remembers --------------------------------------------------------------------------------------


def strangers(replicas: Mapping[str, Replica], look: Look) -> tuple[dict[str, Replica], list[JobKey]]:
    """Live jobs of ours that nobody remembers -> replicas; and the jobs of replicas that have ended in our eyes."""
    found: dict[str, Replica] = {}
    orphans: list[JobKey] = []
    for key, job in look.poll.jobs.items():
        mark = job.comment
        if not job.alive or mark is None or mark.service != look.service:
            continue
        known = replicas.get(mark.replica_id)
        if known is None:
            found[mark.replica_id] = adopted(key[0], job, mark, look.now)
        elif known.ended:
            orphans.append(key)
    return found, orphans


def adopted(cluster: str, job: Job, mark: JobComment, now: float) -> Replica:
    """A replica that only the scheduler remembers: its agent's next report fills in the rest."""
    return Replica(
        mark.replica_id,
        mark.model,
        mark.config_hash,
        created_at=now,
        cluster=cluster,
        job_id=job.id,
        node=job.node,
        running_since=None if job.waiting else now,
        note=job.state,
        placement=mark.placement,
    ).ending_in(None if job.waiting else job.time_left_s, now)
