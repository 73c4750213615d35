"""The launcher: one loop that makes the wanted replicas true.

Handlers (`report`, `need`) only record facts and wake the loop. The loop alone polls the scheduler, reconciles and
acts, one step after the other, so no two of its decisions ever overlap.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import secrets as random_source
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from .autoscale import Allowance, Clock, Demand, Memory, Supply, decide, restarted
from .cluster import Cluster, CouldNotAsk, Job, Refused, Submission
from .failing import retry_at
from .observing import COMPLETING, STRANGER, JobKey, Poll, key_of
from .outlook import outlook
from .reconcile import Cancel, Facts, Forget, Put, Submit, reconcile
from .reports import Report, command_for, heard
from .spec import ModelSpec, Placement, Resources, Secrets, Site
from .states import Failure, Replica, Status, Target, advance
from .store import CannotSave, ReplicaStore
from .wanting import serving, stop


class Log(Protocol):
    """As structlog's bound loggers: an event and its fields."""

    def info(self, event: str, **fields: Any) -> Any: ...
    def warning(self, event: str, **fields: Any) -> Any: ...
    def exception(self, event: str, **fields: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A replica that takes requests."""

    replica_id: str
    host: str
    port: int
    api_key: str = field(repr=False)
    weight: float = 1.0
    limit: int | None = None
    ends_at: float | None = None


QUIET_BEATS = 3
"""Heartbeats that an agent may miss before the scheduler is asked for it."""

SLOWNESS = 20.0
"""A scheduler that takes a second to answer is asked at most every so many seconds."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds between polls of the scheduler: while something changes, and while nothing does.

    Liveness comes from the agents' reports; the scheduler is asked for what they cannot tell.

    least_s         never more often than this, whatever happens
    scale_s         between two looks at the demand, where a number of replicas follows it
    maintenance_s   between two questions for maintenance reservations
    """

    busy_s: float = 15.0
    calm_s: float = 60.0
    least_s: float = 2.0
    scale_s: float = 5.0
    maintenance_s: float = 600.0


def no_demand(model: str) -> Demand:
    """Of a launcher that nobody tells of requests."""
    return Demand()


class Launcher:
    """Keeps replicas of each model running on clusters.

    clusters   by name; "" is the default one
    in_flight(replica_id) -> how many requests the gateway has on that replica now; agents end a drained engine at 0.
    build(spec, replica_id, submit) -> the submission for a new replica: script and mark.
    demand(model) -> what is asked of it now
    """

    def __init__(
        self,
        clusters: Mapping[str, Cluster],
        models: Mapping[str, ModelSpec],
        *,
        site: Site,
        secrets: Secrets,
        store: ReplicaStore,
        build: Callable[[ModelSpec, str, Submit], Submission],
        in_flight: Callable[[str], int],
        log: Log,
        demand: Callable[[str], Demand] = no_demand,
        allowance: Allowance | None = None,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.models = dict(models)
        self._clusters = dict(clusters)
        self._site = site
        self._secrets = secrets
        self._store = store
        self._build = build
        self._in_flight = in_flight
        self._demand = demand
        self._allowance = allowance or Allowance()
        self._log = log
        self._pace = pace or Pace()
        self._clock = clock
        self._replicas: dict[str, Replica] = {}
        self._endpoints: dict[str, tuple[Endpoint, ...]] = {}
        self._memories: dict[str, Memory] = {}
        self._interactive: dict[str, Memory] = {}
        """The same without what batches ask for, of models that place those elsewhere."""
        self._set: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._poll_soon = True
        self._polled_at = 0.0
        self._took_s = 0.0
        self._maintenance: dict[tuple[str, str], float] = {}
        self._maintenance_at = 0.0
        self._changed: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._waiting: Counter[str] = Counter()
        self._dirty: dict[str, Replica | None] = {}
        self._silence: dict[str, str] = {}
        self._unsaved = ""
        """Why the database does not take what is known of replicas."""
        self._strangers: set[str] = set()
        """Replicas at whose address somebody else answers."""
        self._task: asyncio.Task[None] | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take up what an earlier process left, then keep at it."""
        for replica in await asyncio.to_thread(self._store.load):
            self._replicas[replica.id] = replica
        for model in {replica.model for replica in self._replicas.values()}:
            self._refresh(model)
        self._set = await asyncio.to_thread(self._store.counts)
        self._task = asyncio.create_task(self._run(), name="launcher")

    def configure(self, models: Mapping[str, ModelSpec]) -> None:
        """Other models from now on. Replicas that no longer fit are replaced one by one, those of no model drained."""
        gone = self.models.keys() - models.keys()
        reweighed = [model for model, spec in models.items() if model in self.models and self.models[model] != spec]
        self.models = dict(models)
        for model in gone:
            self._changed.pop(model, asyncio.Event()).set()
        for model in reweighed:
            self._refresh(model)
        self._wake.set()

    async def stop(self) -> None:
        """Stop looking after replicas. They go on: the next process finds them."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._save()

    async def stop_replicas(self, timeout_s: float = 60.0) -> list[str]:
        """After `stop`: end every job of this service. Returns the ids of jobs still there after `timeout_s`."""
        deadline = self._clock() + timeout_s
        while True:
            left: list[str] = []
            for name, cluster in self._clusters.items():
                try:
                    jobs = await cluster.jobs()
                    left += [job.id for job in jobs.values() if not job.over]
                    await cluster.cancel([job.id for job in jobs.values() if job.alive])
                except CouldNotAsk as error:
                    left += [r.job_id or r.id for r in self._replicas.values() if not r.ended and r.cluster == name]
                    self._log.warning("scheduler_silent", cluster=name, error=str(error))
            if not left:
                break
            if self._clock() >= deadline:
                return left
            await asyncio.sleep(min(1.0, self._pace.least_s))
        now = self._clock()
        for replica in [r for r in self._replicas.values() if not r.ended]:
            self._put(advance(replace(replica, target=Target.STOP), Status.STOPPED, now))
        await self._save()
        return []

    async def _run(self) -> None:
        while True:
            try:
                await self.step()
            except Exception:  # a fault in one step must not end the service's only loop
                self._log.exception("launcher_step_failed")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._rest_s())
            self._wake.clear()

    def _rest_s(self) -> float:
        """Until the next step: the next poll, the next attempt, or the next look at the demand."""
        now = self._clock()
        due = self._polled_at + self._poll_every_s()
        for model, spec in self.models.items():
            ended = [r for r in self._replicas.values() if r.model == model and r.ended]
            for kind in spec.variants if ended else ():
                at = retry_at([r for r in ended if r.placement == kind.placement], kind)
                if at > now:
                    due = min(due, at)
        if any(spec.scaling.least != spec.scaling.most for spec in self.models.values()):
            due = min(due, now + self._pace.scale_s)
        quiet = [at for r in self._replicas.values() if r.status is Status.READY and (at := self._quiet_at(r)) > now]
        return max(0.05, min([due, *quiet]) - now)

    def _quiet_at(self, replica: Replica) -> float:
        """When an agent that serves has said nothing for too long: killed with all of its job, perhaps, and only the
        scheduler can tell. It is asked more often then."""
        return math.inf if replica.heard_at is None else replica.heard_at + QUIET_BEATS * self._site.heartbeat_s

    def _poll_every_s(self) -> float:
        if self._poll_soon:
            return max(self._pace.least_s, self._took_s)
        now = self._clock()
        unsettled = any(
            r.status in (Status.PENDING, Status.STARTING, Status.DRAINING)
            or r.unseen
            or (r.status is Status.READY and now >= self._quiet_at(r))
            for r in self._replicas.values()
        )
        return max(self._pace.busy_s if unsettled else self._pace.calm_s, SLOWNESS * self._took_s)

    # -- one step -----------------------------------------------------------------------------------------------------

    async def step(self) -> None:
        """Ask if it is time to, reconcile, act."""
        poll = await self._poll() if self._clock() - self._polled_at >= self._poll_every_s() else None
        now = self._clock()
        await self._look_for_maintenance(now)
        live = [r for r in self._replicas.values() if not r.ended]
        counts = {model: self._count(spec, live, now) for model, spec in self.models.items()}
        facts = Facts(
            now=now,
            wanted=self.models,
            replicas=list(self._replicas.values()),
            poll=poll,
            service=self._site.service,
            heartbeat_s=self._site.heartbeat_s,
            counts={model: total for model, (total, _) in counts.items()},
            interactive={model: interactive for model, (_, interactive) in counts.items()},
            in_flight={r.id: self._in_flight(r.id) for r in live},
            maintenance=self._maintenance,
            allowance=self._allowance,
            strangers=frozenset(self._strangers),
        )
        self._strangers &= {r.id for r in live}
        actions = reconcile(facts)
        for action in actions:
            match action:
                case Put(replica):
                    self._put(replica)
                    # nobody will tell us of its end but the scheduler
                    self._poll_soon |= replica.status is Status.DRAINING and replica.heard_at is None
                    self._poll_soon |= replica.note == COMPLETING and not replica.ended
                case Forget(replica_id):
                    self._forget(replica_id)
                case _:
                    pass
        await self._save()
        await self._cancel([action for action in actions if isinstance(action, Cancel)])
        for action in actions:
            if isinstance(action, Submit):
                await self._submit(action)
        await self._save()

    def _count(self, spec: ModelSpec, live: list[Replica], now: float) -> tuple[int, int]:
        """How many replicas a model shall have: what an operator has set, else what its demand asks for; and how many
        of them without what batches ask for."""
        ours = [r for r in live if r.model == spec.name and serving(r)]
        memory = self._memories.get(spec.name) or restarted(Memory(), len(ours))
        ready = sum(r.status is Status.READY for r in ours)
        supply, demand, clock = Supply(ready, len(ours) - ready), self._demand(spec.name), Clock.at(now)
        memory = decide(spec.scaling, demand, supply, memory, clock)
        self._memories[spec.name] = memory
        if spec.name in self._set:
            return self._set[spec.name], self._set[spec.name]
        cheap = {kind.name for kind in spec.placements if kind.batch_only}
        if not cheap:
            self._interactive.pop(spec.name, None)
            return memory.wanted, memory.wanted
        before = self._interactive.get(spec.name) or restarted(Memory(), sum(r.placement not in cheap for r in ours))
        without = decide(spec.scaling, demand.without_batches, supply, before, clock)
        self._interactive[spec.name] = without
        return memory.wanted, min(without.wanted, memory.wanted)

    async def _poll(self) -> Poll | None:
        """One question to each cluster; None if none of them has answered."""
        asked_at = self._clock()
        self._polled_at = asked_at
        self._poll_soon = False
        begun = time.monotonic()
        answers = await asyncio.gather(*(self._jobs_of(name) for name in self._clusters))
        self._took_s = time.monotonic() - begun
        jobs: dict[JobKey, Job] = {}
        answered = frozenset(name for name, found in zip(self._clusters, answers, strict=True) if found is not None)
        if not answered:
            return None
        for name, found in zip(self._clusters, answers, strict=True):
            jobs |= {(name, job_id): job for job_id, job in (found or {}).items()}
        ended: dict[JobKey, Job] = {}
        for name in answered:
            vanished = [
                r.job_id
                for r in self._replicas.values()
                if not r.ended and r.job_id and r.cluster == name and key_of(r) not in jobs
            ]
            if vanished:
                # accounting only says how they ended; that they are gone, two answers without them tell
                with contextlib.suppress(CouldNotAsk):
                    told = await self._clusters[name].ended(vanished)
                    ended |= {(name, job_id): job for job_id, job in told.items()}
        return Poll(asked_at, jobs, ended, answered)

    async def _jobs_of(self, name: str) -> dict[str, Job] | None:
        try:
            jobs = await self._clusters[name].jobs()
        except CouldNotAsk as error:
            if name not in self._silence:
                self._log.warning("scheduler_silent", cluster=name, error=str(error))
            self._silence[name] = str(error)
            return None
        self._silence.pop(name, None)
        return jobs

    async def _look_for_maintenance(self, now: float) -> None:
        """When the nodes that replicas may use go away next. What could not be asked stays as it was."""
        if now - self._maintenance_at < self._pace.maintenance_s:
            return
        self._maintenance_at = now
        places = {kind.resources.place for spec in self.models.values() for kind in spec.kinds}
        self._maintenance = {place: at for place, at in self._maintenance.items() if place in places}
        for name, partition in sorted(places):
            cluster = self._clusters.get(name)
            if cluster is None:
                continue
            with contextlib.suppress(CouldNotAsk):
                begins_at = await cluster.maintenance(partition, now)
                self._maintenance.pop((name, partition), None)
                if begins_at is not None:
                    self._maintenance[name, partition] = begins_at

    async def _submit(self, submit: Submit) -> None:
        spec = self.models[submit.model].at(submit.placement)
        if spec is None:
            return  # the configuration has changed since
        cluster = self._clusters.get(spec.resources.cluster)
        name = re.sub(r"[^a-z0-9]+", "-", spec.name.lower()).strip("-")[-40:]
        replica_id = f"{name}-{random_source.token_hex(4)}"
        replica = Replica(
            replica_id,
            spec.name,
            spec.config_hash,
            created_at=self._clock(),
            cluster=spec.resources.cluster,
            placement=spec.placement,
        )
        if cluster is None:
            why = f"Cluster {spec.resources.cluster!r} was not named when the gateway was started: start it again."
            self._put(advance(replica, Status.FAILED, self._clock(), Failure("refused", why)))
            return
        self._put(replica)
        await self._save()  # before the submission: a crash in between leaves a record to match the job with
        try:
            job_id = await cluster.submit(self._build(spec, replica_id, submit))
        except Refused as error:
            kind = "limit" if error.temporary else "refused"
            self._put(advance(replica, Status.FAILED, self._clock(), Failure(kind, str(error))))
            return
        except CouldNotAsk as error:
            self._put(replace(replica, note=f"submission not answered: {error}"))
            self._poll_soon = True
            return
        # the agent may have reported while the answer was on its way
        self._put(replace(self._replicas[replica_id], job_id=job_id, note="submitted"))
        self._poll_soon = True
        placed = {"placement": spec.placement} if spec.placement else {}
        self._log.info("replica_submitted", replica=replica_id, model=spec.name, job=job_id, **placed)

    async def _cancel(self, cancels: list[Cancel]) -> None:
        for name in {cancel.cluster for cancel in cancels} & self._clusters.keys():
            ids = [cancel.job_id for cancel in cancels if cancel.cluster == name]
            try:
                await self._clusters[name].cancel(ids)
            except CouldNotAsk as error:
                self._log.warning("cancel_not_answered", cluster=name, jobs=ids, error=str(error))
            self._poll_soon = True

    # -- what operators wish ------------------------------------------------------------------------------------------

    async def scale(self, model: str, count: int | None) -> None:
        """So many replicas whatever the demand, until told otherwise; None: as configured again.

        Raises `CannotSave`, and changes nothing then: it would not hold.
        """
        await asyncio.to_thread(self._store.set_count, model, count)
        if count is None:
            self._set.pop(model, None)
        else:
            self._set[model] = count
        self._wake.set()

    def drain(self, replica_id: str) -> bool:
        """Let one replica finish what it has and end; another takes its place. False if there is no such one."""
        replica = self._replicas.get(replica_id)
        if replica is None or replica.ended:
            return False
        self._put(stop(replica, self._clock()))
        self._wake.set()
        return True

    def restart(self, model: str) -> None:
        """Replace a model's replicas one after the other, and forget how earlier ones have failed."""
        for replica in [r for r in self._replicas.values() if r.model == model]:
            if replica.ended:
                self._forget(replica.id)
            else:
                self._put(replace(replica, retired=True))
        self._refresh(model)
        self._wake.set()

    def count_of(self, model: str) -> int:
        """How many replicas it shall have now."""
        memory = self._memories.get(model)
        return self._set.get(model, memory.wanted if memory is not None else self.models[model].scaling.least)

    # -- facts from outside -------------------------------------------------------------------------------------------

    def report(self, report: Report) -> tuple[str, int]:
        """An agent's report. Returns its command (run, drain, stop) and the requests in flight on it."""
        before = self._replicas.get(report.replica_id)
        after = heard(before, report, self._clock())
        self._put(after)
        if before is not None and (before.host, before.port) != (after.host, after.port):
            self._strangers.discard(report.replica_id)  # who answers at its last address is no matter any more
        if before is None or before.status is not after.status:
            self._poll_soon |= after.status is Status.PENDING  # ended from outside: is it over?
            self._wake.set()
        return command_for(after), self._in_flight(report.replica_id)

    def is_agent(self, replica_id: str, token: str) -> bool:
        return self._secrets.is_agent(replica_id, token)

    # -- what backends ask (the `Launcher` protocol of backends/base.py) ---------------------------------------------

    def endpoints(self, model: str) -> tuple[Endpoint, ...]:
        """The replicas that take requests now. The same object until something changed."""
        return self._endpoints.get(model, ())

    def need(self, model: str) -> None:
        """Somebody wants this model."""
        self._wake.set()

    async def changed(self, model: str) -> None:
        """Return when something about this model's replicas has changed."""
        self._waiting[model] += 1
        try:
            await self._changed[model].wait()
        finally:
            self._waiting[model] -= 1

    def waiting(self, model: str) -> int:
        """How many requests wait for a replica of this model."""
        return self._waiting[model]

    def identity(self, model: str, replica_id: str, *, ours: bool) -> None:
        """Somebody else answers at this replica's address, or (`ours`) its engine has been proven by its key again.

        Not yet its end: its agent will tell that, or start the engine anew, while there is an agent.
        """
        replica = self._replicas.get(replica_id)
        details = {"replica": replica_id, "model": model, "node": replica.node if replica is not None else ""}
        if ours:
            self._strangers.discard(replica_id)
            self._log.info("engine_proven_again", **details)
        else:
            self._strangers.add(replica_id)
            self._log.warning("engine_is_a_stranger", **details)
        if replica is not None and not replica.ended:
            self._put(replace(replica, note="" if ours else STRANGER))
        self._wake.set()

    def outlook(self, model: str) -> tuple[str, float | None]:
        """Why nothing is ready, in one sentence, and when to try again (None: it is starting, waiting may help)."""
        spec = self.models.get(model)
        if spec is None:
            return f"{model} is no longer served.", 120.0
        replicas = [r for r in self._replicas.values() if r.model == model]
        cluster = self._clusters.get(spec.resources.cluster)
        return outlook(
            spec,
            replicas,
            self._clock(),
            self._silence.get(spec.resources.cluster, ""),
            wanted=self.count_of(model),
            set_by_operator=model in self._set,
            job=cluster.job_word if cluster is not None else "job",
        )

    def is_idle(self, model: str) -> bool:
        """It has no replica and shall have none, until somebody asks for it."""
        spec = self.models.get(model)
        return (
            spec is not None
            and model not in self._set
            and spec.scaling.most > 0
            and self.count_of(model) == 0
            and not any(r.model == model and serving(r) for r in self._replicas.values())
        )

    def troubles(self) -> list[str]:
        """What keeps the launcher from its work now, for operators."""
        silent = [
            f"the scheduler{f' of {name}' if name else ''} does not answer: {why}"
            for name, why in self._silence.items()
        ]
        return [*silent, *([f"the database cannot be written: {self._unsaved}"] if self._unsaved else [])]

    def replicas(self) -> list[Replica]:
        """All that is known, ended ones included."""
        return list(self._replicas.values())

    # -- bookkeeping --------------------------------------------------------------------------------------------------

    def _put(self, replica: Replica) -> None:
        before = self._replicas.get(replica.id)
        if before == replica:
            return
        self._replicas[replica.id] = replica
        if before is None or replace(before, heard_at=replica.heard_at) != replica:
            self._dirty[replica.id] = replica  # what every report brings anew is not worth a write
            self._announce(before, replica)

    def _forget(self, replica_id: str) -> None:
        del self._replicas[replica_id]
        self._dirty[replica_id] = None

    def _announce(self, before: Replica | None, replica: Replica) -> None:
        if before is None or before.status is not replica.status or before.target is not replica.target:
            details: dict[str, Any] = {"job": replica.job_id, "node": replica.node}
            if replica.failure is not None:
                details |= {"reason": replica.failure.kind, "message": replica.failure.message}
            say = self._log.warning if replica.status in (Status.FAILED, Status.LOST) else self._log.info
            say("replica_state", replica=replica.id, model=replica.model, state=replica.word, **details)
        self._refresh(replica.model)

    def _refresh(self, model: str) -> None:
        spec = self.models.get(model)
        kinds = {kind.name: kind for kind in spec.kinds} if spec is not None else {}
        own = Placement("", Resources())
        self._endpoints[model] = tuple(
            Endpoint(r.id, r.host, r.port, self._secrets.engine_key(r.id), kind.weight, kind.limit, r.ends_at)
            for r in self._replicas.values()
            for kind in (kinds.get(r.placement, own),)
            if r.model == model and r.status is Status.READY and r.target is Target.RUN
        )
        self._changed.pop(model, asyncio.Event()).set()

    async def _save(self) -> None:
        """What cannot be written is kept for the next time. The service goes on without: jobs carry their marks."""
        dirty, self._dirty = self._dirty, {}
        if not dirty:
            return
        changed = [replica for replica in dirty.values() if replica is not None]
        forgotten = [replica_id for replica_id, replica in dirty.items() if replica is None]
        try:
            await asyncio.to_thread(self._store.save, changed, forgotten)
        except CannotSave as error:
            self._dirty = dirty | self._dirty
            if not self._unsaved:
                self._log.warning("replicas_not_saved", error=str(error))
            self._unsaved = str(error)
        else:
            self._unsaved = ""
