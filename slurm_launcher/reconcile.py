"""Facts -> actions: the launcher's decisions, pure.

Each step compares what is wanted with what is known and says what to do about the difference. Nothing here waits, asks
or remembers: what must be remembered is in the replicas themselves.

    observing.py   what the scheduler says -> replicas
    wanting.py     what is wanted -> who leaves, how many are missing, who goes
    placing.py     what is missing -> which kind of replica it becomes, where a model has several
    failing.py     what has failed -> when to try again, and where not
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from .autoscale import Allowance, Wish, allot
from .failing import excluded, retry_at
from .observing import JobKey, Look, Poll, key_of, observe, strangers
from .placing import plan
from .spec import ModelSpec
from .states import Replica, Status, Target
from .wanting import LATELY, staff, stop, surplus

HISTORY_S = 3600.0
"""How long ended replicas are kept, for `slurmgate status` and the backoff."""

LONG_HISTORY_S = 14 * 86400.0
"""... the last few that were ready: how long they took to come is how early the next successor is asked for."""

CANCEL_AGAIN_S = 30.0
"""Past its drain limit by this much, a replica is cancelled from outside."""

MAINTENANCE_MARGIN_S = 60.0
LEAST_USEFUL_S = 900.0
"""Before a maintenance a replica must have at least so much time to be worth its start."""


@dataclass(frozen=True, slots=True)
class Facts:
    """`poll` is None in a step that did not ask, or was not answered. Then nothing can be found missing.

    counts       how many replicas each model shall have now; the least that its scaling allows where it is left out
    interactive  ... and without what batches ask for; as many where it is left out
    in_flight    requests on each replica
    maintenance  when the nodes of a place (`Resources.place`) go into maintenance next, in seconds since the epoch
    allowance    what the service may have at once
    strangers    replicas at whose address somebody else answers
    """

    now: float
    wanted: Mapping[str, ModelSpec]
    replicas: Sequence[Replica]
    poll: Poll | None = None
    service: str = ""
    heartbeat_s: float = 5.0
    counts: Mapping[str, int] = field(default_factory=dict)
    interactive: Mapping[str, int] = field(default_factory=dict)
    in_flight: Mapping[str, int] = field(default_factory=dict)
    maintenance: Mapping[tuple[str, str], float] = field(default_factory=dict)
    allowance: Allowance = field(default_factory=Allowance)
    strangers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Submit:
    """A new replica of a model.

    exclude       nodes that it shall not go to
    time_limit_s  shorter than the configured one, so that it fits before a maintenance; None for that
    placement     which kind of replica; "" for the model's own
    """

    model: str
    exclude: tuple[str, ...] = ()
    time_limit_s: int | None = None
    placement: str = ""


@dataclass(frozen=True, slots=True)
class Put:
    """Remember this replica as it is here."""

    replica: Replica


@dataclass(frozen=True, slots=True)
class Cancel:
    cluster: str
    job_id: str


@dataclass(frozen=True, slots=True)
class Forget:
    replica_id: str


Action = Submit | Put | Cancel | Forget


def reconcile(facts: Facts) -> list[Action]:
    """What to do now: first what was learnt (`Put`), then what to end, to start and to forget."""
    known = {replica.id: replica for replica in facts.replicas}
    after = dict(known)
    cancelled: list[JobKey] = []

    if facts.poll is not None:
        look = Look(facts.poll, facts.now, facts.wanted, facts.service, facts.heartbeat_s, facts.strangers)
        after.update({r.id: observe(r, look) for r in facts.replicas if not r.ended})
        found, orphans = strangers(after, look)
        after.update(found)
        cancelled += orphans

    by_model: dict[str, list[Replica]] = {model: [] for model in facts.wanted}
    for replica in after.values():
        by_model.setdefault(replica.model, []).append(replica)
    wishes: dict[tuple[str, int], Wish] = {}
    for model, replicas in by_model.items():
        spec = facts.wanted.get(model)
        live = [r for r in replicas if not r.ended]
        if spec is None:
            after.update({r.id: stop(r, facts.now) for r in live if r.target is Target.RUN})
            continue
        count = facts.counts.get(model, spec.scaling.least)
        there = staff(live, spec, facts.now, replicas)
        floor = facts.interactive.get(model, count)
        planned = plan(spec, there, count, floor, partial(closed, spec, replicas, facts))
        leaving = [*surplus(there, count, facts.in_flight, spec), *planned.yielding]
        after.update({r.id: stop(r, facts.now) for r in leaving})
        for rank, kind in enumerate(spec.kinds):
            if number := planned.submits.get(kind.name, 0):
                wishes[model, rank] = Wish(number, len(live), kind.resources.all_gpus)

    puts = [Put(r) for r in after.values() if r != known.get(r.id)]
    cancelled += [key for r in after.values() if overdue(r, facts) and (key := key_of(r)) is not None]
    cancels = [Cancel(*key) for key in dict.fromkeys(cancelled)]
    forgets = [Forget(replica.id) for replicas in by_model.values() for replica in forgotten(replicas, facts.now)]
    return [*puts, *cancels, *submissions(wishes, after.values(), facts), *forgets]


def closed(spec: ModelSpec, replicas: Iterable[Replica], facts: Facts, placement: str) -> bool:
    """Whether nothing is submitted there now: what failed waits, and so does what a maintenance would end too soon.

    That is asked for when the maintenance is over; submitted now it would only wait for that.
    """
    kind = spec.at(placement)
    if kind is None or facts.now < retry_at([r for r in replicas if r.ended and r.placement == placement], kind):
        return True
    return time_limit(kind, facts.maintenance.get(kind.resources.place), facts.now) == 0


def submissions(wishes: Mapping[tuple[str, int], Wish], replicas: Iterable[Replica], facts: Facts) -> list[Submit]:
    """What of the wishes is carried out now."""
    if not wishes:
        return []
    live = [r for r in replicas if not r.ended]
    pending = sum(r.status is Status.PENDING for r in live)
    gpus = sum((spec.at(r.placement) or spec).resources.all_gpus for r in live if (spec := facts.wanted.get(r.model)))
    submits: list[Submit] = []
    for (model, rank), number in allot(wishes, pending, gpus, facts.allowance).items():
        spec = facts.wanted[model].variants[rank]
        limit = time_limit(spec, facts.maintenance.get(spec.resources.place), facts.now)
        exclude = excluded(replicas, spec.resources.cluster, facts.now)
        submits += [Submit(model, exclude, limit, spec.placement)] * number
    return submits


def time_limit(spec: ModelSpec, maintenance_at: float | None, now: float) -> int | None:
    """Seconds that end before the maintenance begins; None for the model's own limit, 0 for no submission now."""
    if maintenance_at is None:
        return None
    left = maintenance_at - MAINTENANCE_MARGIN_S - now
    if spec.resources.time_limit_s and spec.resources.time_limit_s <= left:
        return None
    return int(left // 60) * 60 if left >= LEAST_USEFUL_S else 0


def overdue(replica: Replica, facts: Facts) -> bool:
    """To be cancelled from outside: it is to stop, and its agent was never heard or does not come to its end; or it
    has ended in our eyes, and its job waits to start again."""
    key = key_of(replica)
    if facts.poll is None or key is None:
        return False
    job = facts.poll.jobs.get(key)
    if job is None or not job.alive:
        return False
    if replica.ended:
        return True
    if replica.target is not Target.STOP:
        return False
    spec = facts.wanted.get(replica.model)
    limit = (spec.drain_timeout_s if spec is not None else 0.0) + CANCEL_AGAIN_S
    return replica.heard_at is None or facts.now - (replica.draining_since or facts.now) > limit


def forgotten(replicas: Iterable[Replica], now: float) -> list[Replica]:
    """Ended replicas that nobody needs to know of any more."""
    ended = sorted((r for r in replicas if r.ended), key=lambda r: r.ended_at or 0.0, reverse=True)
    kept = {r.id for r in [r for r in ended if r.ready_at is not None][:LATELY]}
    return [r for r in ended if now - (r.ended_at or 0.0) > (LONG_HISTORY_S if r.id in kept else HISTORY_S)]
