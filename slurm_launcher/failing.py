"""What follows from replicas that have ended badly: when to try again, where not, and when to stop trying. Pure.

Remedy   AGAIN      after a pause that doubles
         ELSEWHERE  at once, but not on that node for a while
         NEVER      an operator or another configuration has to come first
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import Enum

from .spec import ModelSpec
from .states import Replica, Status, Target

SETTLED_S = 60.0
"""A replica that was ready for this long has proven its configuration: its end does not count towards the backoff."""

BACKOFF_S = 5.0
BACKOFF_REFUSED_S = 30.0
BACKOFF_LIMIT_S = 600.0

ROW_LIMIT = 6
"""So many bad ends in a row, and it is not tried again by itself."""

_REFUSALS = ("refused", "limit")

EXCLUDE_S = 3600.0
"""How long a node is left out after a fault of its own."""

EXCLUDE_LIMIT = 8
"""At most so many nodes, the latest: where everything fails it is not the nodes."""


class Remedy(Enum):
    AGAIN = "again"
    ELSEWHERE = "elsewhere"
    NEVER = "never"


REMEDIES: dict[str, Remedy] = {
    "hopeless": Remedy.NEVER,
    "bad_arguments": Remedy.NEVER,
    "weights_missing": Remedy.NEVER,
    "image_missing": Remedy.NEVER,
    "program_missing": Remedy.NEVER,
    "model_unsupported": Remedy.NEVER,
    "gpu_memory": Remedy.NEVER,
    "maintenance": Remedy.AGAIN,
    "node": Remedy.ELSEWHERE,
    "gpu_fault": Remedy.ELSEWHERE,
    "launch": Remedy.ELSEWHERE,
    "disk_full": Remedy.ELSEWHERE,
}
"""By the failure's kind (diagnosis.py); what is not listed is tried again."""


def remedy(replica: Replica) -> Remedy:
    """What its end asks for. What had served for a while is right for its model, whatever it says at last."""
    if replica.failure is None:
        return Remedy.AGAIN
    found = REMEDIES.get(replica.failure.kind, Remedy.AGAIN)
    return Remedy.AGAIN if found is Remedy.NEVER and settled(replica) else found


def settled(replica: Replica) -> bool:
    return replica.ready_at is not None and (replica.ended_at or 0.0) - replica.ready_at >= SETTLED_S


def failures(ended: Iterable[Replica], spec: ModelSpec) -> list[Replica]:
    """The latest unbroken row of bad ends under this configuration, oldest first."""
    row: list[Replica] = []
    config_hash = spec.config_hash
    for replica in sorted(ended, key=lambda r: r.ended_at or 0.0):
        if replica.config_hash != config_hash or replica.target is Target.STOP:
            continue
        if settled(replica) or (replica.status is Status.STOPPED and replica.ready_at is not None):
            row.clear()
        else:
            row.append(replica)
    return row


def broken(row: list[Replica]) -> bool:
    """Whether it is not tried again by itself: `slurmgate restart`, or another configuration."""
    lasting = [r for r in row if r.failure is None or r.failure.kind != "limit"]  # a limit of now passes by itself
    return bool(row) and (len(lasting) >= ROW_LIMIT or remedy(row[-1]) is Remedy.NEVER)


def retry_at(ended: Iterable[Replica], spec: ModelSpec) -> float:
    """When the next submission may be made, in seconds since the epoch; 0.0 for at once, infinity for not at all.

    A replica that was ready and went is replaced at once. What fails again and again waits twice as long each time.
    """
    row = failures(ended, spec)
    if not row:
        return 0.0
    if broken(row):
        return math.inf
    last = row[-1]
    if len(row) == 1 and (last.ready_at is not None or remedy(last) is Remedy.ELSEWHERE):
        return 0.0
    base = BACKOFF_REFUSED_S if last.failure is not None and last.failure.kind in _REFUSALS else BACKOFF_S
    return (last.ended_at or 0.0) + min(base * 2.0 ** (len(row) - 1), BACKOFF_LIMIT_S)


def excluded(replicas: Iterable[Replica], cluster: str, now: float) -> tuple[str, ...]:
    """Nodes that have lately failed a replica by a fault of their own, of whichever model."""
    bad = {
        r.node: r.ended_at
        for r in sorted(replicas, key=lambda r: r.ended_at or 0.0)
        if r.ended_at is not None
        and r.cluster == cluster
        and r.node
        and now - r.ended_at < EXCLUDE_S
        and remedy(r) is Remedy.ELSEWHERE
    }
    latest = sorted(bad, key=lambda node: bad[node], reverse=True)[:EXCLUDE_LIMIT]
    return tuple(sorted(latest))
