"""What is wanted of one model against what there is: whom to replace, how many are missing, whom to let go. Pure.

A replica leaves when its configuration is no longer wanted, when an operator has retired it, or when its wall time is
near. One that leaves serves on until another one is ready in its place, and there is one extra job at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

from .spec import ModelSpec
from .states import Replica, Status, Target, advance

LEAD_FACTOR = 1.5
"""The queue may be longer next time than it was at its longest lately."""

LEAD_SHARE = 0.5
"""A successor is never asked for in the first half of a life: replicas would only relieve each other."""

LATELY = 5


@dataclass(frozen=True, slots=True)
class Staff:
    """The replicas of one model that serve or will, and those that are on their way out.

    lasting   to be kept
    leaving   to be replaced, the one that has to go first at the front
    draining  told to stop, with their jobs still there
    """

    lasting: Sequence[Replica]
    leaving: Sequence[Replica]
    draining: int


def serving(replica: Replica) -> bool:
    """It serves, or will."""
    return replica.target is Target.RUN and replica.status in (Status.PENDING, Status.STARTING, Status.READY)


def staff(replicas: Iterable[Replica], spec: ModelSpec, now: float, history: Iterable[Replica] = ()) -> Staff:
    """`replicas`: the live ones of a model. `history`: all that is known of it, ended ones too."""
    live = list(replicas)
    ours = [r for r in live if serving(r)]
    config_hash = spec.config_hash
    current = [r for r in ours if r.config_hash == config_hash and not r.retired]
    outdated = [r for r in ours if r.config_hash != config_hash or r.retired]
    dying = expiring(current, lead_s(spec, history), now)
    gone = {r.id for r in dying}
    lasting = [r for r in current if r.id not in gone]
    outdated.sort(key=lambda r: usefulness(r, {}))
    return Staff(lasting, [*dying, *outdated], len(live) - len(ours))


def lead_s(spec: ModelSpec, history: Iterable[Replica]) -> float:
    """How long before a wall time the successor must be submitted: what queueing and starting took lately, and half as
    much again, but at least what the configuration says."""
    known = sorted((r for r in history if r.ready_at is not None), key=lambda r: r.created_at)[-LATELY:]
    took = max(((r.ready_at or 0.0) - r.created_at for r in known), default=0.0)
    return max(spec.lead_s, LEAD_FACTOR * took)


def expiring(current: Iterable[Replica], lead_s: float, now: float) -> list[Replica]:
    """Those whose successor is due, by the end of their time.

    There is one extra job at a time, so where several end together the first successor has to begin earlier.
    """
    ending = sorted(((r.ends_at, r) for r in current if r.ends_at is not None), key=itemgetter(0), reverse=True)
    due: list[Replica] = []
    begin_at = math.inf
    for ends_at, replica in ending:
        begin_at = min(ends_at, begin_at) - lead_s
        if now >= max(begin_at, ends_at - LEAD_SHARE * (ends_at - began(replica))):
            due.append(replica)
    return due[::-1]


def began(replica: Replica) -> float:
    return replica.running_since if replica.running_since is not None else replica.created_at


def missing(there: Staff, count: int) -> int:
    """How many to submit. While others serve that are to leave, one more at a time: they go as it comes."""
    wanted = count - len(there.lasting)
    if not there.leaving:
        return max(0, wanted)
    jobs = len(there.lasting) + len(there.leaving) + there.draining
    return max(0, min(wanted, max(count + 1 - jobs, count - len(there.lasting) - len(there.leaving))))


def surplus(there: Staff, count: int, in_flight: Mapping[str, int]) -> list[Replica]:
    """Which to stop: those above the number, the least useful first to go, and leaving ones that have been replaced."""
    best_first = sorted(there.lasting, key=lambda r: usefulness(r, in_flight), reverse=True)
    ready = sum(r.status is Status.READY for r in there.lasting)
    stays = max(0, count - ready)
    return [*best_first[count:], *there.leaving[: max(0, len(there.leaving) - stays)]]


def usefulness(replica: Replica, in_flight: Mapping[str, int]) -> tuple[int, int, float]:
    """Ready before starting before pending; then who has more to do; then who has more time left.

    Last is one that has served and waits again: its job may be about to end, which the next answer tells.
    """
    order = {Status.READY: 2, Status.STARTING: 1, Status.PENDING: 0 if replica.ready_at is None else -1}
    ends_at = replica.ends_at if replica.ends_at is not None else float("inf")
    return order.get(replica.status, 0), in_flight.get(replica.id, 0), ends_at


def stop(replica: Replica, now: float) -> Replica:
    """Drain a replica that serves; what never served has nothing to finish."""
    return advance(replace(replica, target=Target.STOP), Status.DRAINING, now)
