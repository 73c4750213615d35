"""What is wanted of one model against what there is: whom to replace, how many are missing, whom to let go. Pure.
Where missing ones go, of a model with several kinds of replica, is in placing.py.

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
    wanted = {kind.placement: kind.config_hash for kind in spec.variants}
    current = [r for r in ours if wanted.get(r.placement) == r.config_hash and not r.retired]
    outdated = [r for r in ours if wanted.get(r.placement) != r.config_hash or r.retired]
    dying = expiring(current, lead_s(spec, history), now)
    gone = {r.id for r in dying}
    lasting = [r for r in current if r.id not in gone]
    order = order_of(spec)
    outdated.sort(key=lambda r: usefulness(r, {}, order))
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


def surplus(there: Staff, count: int, in_flight: Mapping[str, int], spec: ModelSpec) -> list[Replica]:
    """Which to stop: those above the number, of all or of their kind, the least useful first to go, and leaving ones
    that have been replaced."""
    above: list[Replica] = []
    if len(there.lasting) > count or any(kind.most is not None for kind in spec.kinds):
        above = _above(there.lasting, count, in_flight, spec)
    ready = sum(r.status is Status.READY for r in there.lasting)
    stays = max(0, count - ready)
    return [*above, *there.leaving[: max(0, len(there.leaving) - stays)]]


def _above(lasting: Iterable[Replica], count: int, in_flight: Mapping[str, int], spec: ModelSpec) -> list[Replica]:
    """Those for which there is no room, neither by the number nor by their kind's."""
    order = order_of(spec)
    room = {kind.name: math.inf if kind.most is None else kind.most for kind in spec.kinds}
    above: list[Replica] = []
    for replica in sorted(lasting, key=lambda r: usefulness(r, in_flight, order), reverse=True):
        if count > 0 and room[replica.placement] > 0:
            count -= 1
            room[replica.placement] -= 1
        else:
            above.append(replica)
    return above


Order = Mapping[str, tuple[int, int]]
"""Of each kind: below 0 where it is there for batches only; and its rank, later ones below earlier ones."""


def order_of(spec: ModelSpec) -> Order:
    return {kind.name: (-1 if kind.batch_only else 0, -rank) for rank, kind in enumerate(spec.kinds)}


def usefulness(replica: Replica, in_flight: Mapping[str, int], order: Order) -> tuple[int, int, int, int, float]:
    """Ready before starting before pending; then who is not there for batches only; then who has more to do; then who
    is of an earlier kind; then who has more time left.

    Last is one that has served and waits again: its job may be about to end, which the next answer tells.
    """
    far = {Status.READY: 2, Status.STARTING: 1, Status.PENDING: 0 if replica.ready_at is None else -1}
    everybodys, rank = order.get(replica.placement, (-1, -len(order)))
    ends_at = replica.ends_at if replica.ends_at is not None else float("inf")
    return far.get(replica.status, 0), everybodys, in_flight.get(replica.id, 0), rank, ends_at


def stop(replica: Replica, now: float) -> Replica:
    """Drain a replica that serves; what never served has nothing to finish."""
    return advance(replace(replica, target=Target.STOP), Status.DRAINING, now)
