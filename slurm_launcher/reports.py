"""What agents say, and what it makes of a replica: pure.

One idempotent message: the agent's full state, sent on every change and every heartbeat. So a gateway that has never
heard of a replica (a lost database) learns all of it from the next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .diagnosis import diagnosed
from .states import Failure, Replica, Status, Target, advance


class BadReport(Exception):
    """Not a report; the message names the field."""


@dataclass(frozen=True, slots=True)
class Report:
    """One report. `life` is Slurm's restart count, `time_left_s` counts to the job's wall time."""

    replica_id: str
    model: str
    config_hash: str
    cluster: str
    job_id: str
    life: int
    status: Status
    host: str
    node: str
    port: int
    time_left_s: float | None
    failure: Failure | None
    placement: str = ""


REPORTED = {
    "starting": Status.STARTING,
    "ready": Status.READY,
    "draining": Status.DRAINING,
    "stopped": Status.STOPPED,
    "failed": Status.FAILED,
}


def parse_report(replica_id: str, message: Any) -> Report:
    """The report in a JSON object as agent.py sends it. Raises `BadReport`."""
    if not isinstance(message, Mapping):
        raise BadReport("a report is a JSON object")

    def field(name: str, kind: type | tuple[type, ...]) -> Any:
        value = message.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise BadReport(f"{name}: found {type(value).__name__}")
        return value

    state = field("state", str)
    if state not in REPORTED:
        raise BadReport(f"state: not one of {', '.join(REPORTED)}")
    failure = message.get("failure")
    if failure is not None:
        if not isinstance(failure, Mapping):
            raise BadReport("failure: not an object")
        tail = failure.get("tail")
        failure = Failure(
            kind=str(failure.get("kind", "unknown")),
            message=str(failure.get("message", "")),
            tail=tuple(str(line) for line in tail) if isinstance(tail, list) else (),
        )
    time_left = message.get("time_left_s")
    placement = field("placement", str) if "placement" in message else ""  # agents of version 0.1 have none
    return Report(
        replica_id=replica_id,
        model=field("model", str),
        config_hash=field("config", str),
        cluster=field("cluster", str),
        job_id=field("job", str),
        life=field("life", int),
        status=REPORTED[state],
        host=field("host", str),
        node=field("node", str),
        port=field("port", int),
        time_left_s=float(time_left) if isinstance(time_left, int | float) else None,
        failure=failure,
        placement=placement,
    )


def heard(replica: Replica | None, report: Report, now: float) -> Replica:
    """The replica after a report; a new one where it was unknown (adoption).

    A replica that has ended stays so: its agent will be told to stop. A report from an earlier life of a requeued job
    changes nothing.
    """
    if replica is None:
        replica = Replica(report.replica_id, report.model, report.config_hash, created_at=now, note="adopted")
        replica = replace(replica, placement=report.placement)
    if replica.ended or report.life < replica.life:
        return replica
    if report.life > replica.life:  # requeued by Slurm before we knew
        replica = advance(replica, Status.PENDING, now)
    status = report.status
    if replica.status is Status.DRAINING and status in (Status.STARTING, Status.READY):
        status = Status.DRAINING  # told to drain, not yet aware of it
    replica = replace(
        replica,
        cluster=report.cluster,
        job_id=report.job_id or replica.job_id,
        life=report.life,
        host=report.host,
        node=report.node or replica.node,
        port=report.port,
        heard_at=now,
        unseen=0,
    ).ending_in(report.time_left_s, now)
    if status is Status.STOPPED and replica.target is Target.RUN:
        # ended from outside: for good, by scancel, or to be started again elsewhere, by a requeue. The scheduler knows
        gone = replace(replica, host="", port=0, node="", running_since=None, ends_at=None, note="ended from outside")
        return advance(gone, Status.PENDING, now)
    return advance(replica, status, now, diagnosed(report.failure))


def command_for(replica: Replica) -> str:
    """What the agent is to do: run, drain or stop."""
    if replica.ended:
        return "stop"
    return "drain" if replica.target is Target.STOP else "run"
