"""The launcher: one loop that makes the wanted replicas true.

Handlers (`report`, `need`) only record facts and wake the loop. The loop alone polls the scheduler, reconciles and
acts, one step after the other, so no two of its decisions ever overlap.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets as random_source
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from .cluster import Cluster, CouldNotAsk, Job, Refused, Submission
from .reconcile import Cancel, Facts, Forget, Poll, Put, Submit, failures, reconcile, retry_at
from .reports import Report, command_for, heard
from .spec import ModelSpec, Secrets, Site
from .states import Failure, Replica, Status, Target, advance
from .store import ReplicaStore


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


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds between polls of the scheduler: while something changes, and while nothing does.

    Liveness comes from the agents' reports; the scheduler is asked for what they cannot tell.
    """

    busy_s: float = 15.0
    calm_s: float = 60.0
    least_s: float = 2.0
    """Never more often than this, whatever happens."""


class Launcher:
    """Keeps `replicas` of each model running on a cluster.

    in_flight(replica_id) -> how many requests the gateway has on that replica now; agents end a drained engine at 0.
    build(spec, replica_id) -> the submission for a new replica: script and mark.
    """

    def __init__(
        self,
        cluster: Cluster,
        models: Mapping[str, ModelSpec],
        *,
        site: Site,
        secrets: Secrets,
        store: ReplicaStore,
        build: Callable[[ModelSpec, str], Submission],
        in_flight: Callable[[str], int],
        log: Log,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.models = dict(models)
        self._cluster = cluster
        self._site = site
        self._secrets = secrets
        self._store = store
        self._build = build
        self._in_flight = in_flight
        self._log = log
        self._pace = pace or Pace()
        self._clock = clock
        self._replicas: dict[str, Replica] = {}
        self._endpoints: dict[str, tuple[Endpoint, ...]] = {}
        self._wake = asyncio.Event()
        self._poll_soon = True
        self._polled_at = 0.0
        self._changed: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._waiting: Counter[str] = Counter()
        self._dirty: dict[str, Replica | None] = {}
        self._cannot_ask = ""
        self._task: asyncio.Task[None] | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take up what an earlier process left, then keep at it."""
        for replica in await asyncio.to_thread(self._store.load):
            self._replicas[replica.id] = replica
        for model in {replica.model for replica in self._replicas.values()}:
            self._refresh(model)
        self._task = asyncio.create_task(self._run(), name="launcher")

    def configure(self, models: Mapping[str, ModelSpec]) -> None:
        """Other models from now on. Replicas that no longer fit are replaced one by one, those of no model drained."""
        gone = self.models.keys() - models.keys()
        self.models = dict(models)
        for model in gone:
            self._changed.pop(model, asyncio.Event()).set()
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
            try:
                jobs = await self._cluster.jobs()
                left = [job.id for job in jobs.values() if not job.over]
                if not left:
                    break
                await self._cluster.cancel([job.id for job in jobs.values() if job.alive])
            except CouldNotAsk as error:
                left = [r.job_id or r.id for r in self._replicas.values() if not r.ended]
                self._log.warning("scheduler_silent", error=str(error))
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
        """Until the next step: the next poll or the next attempt, whichever is first."""
        now = self._clock()
        due = self._polled_at + (self._pace.least_s if self._poll_soon else self._interval_s())
        for model, spec in self.models.items():
            at = retry_at([r for r in self._replicas.values() if r.model == model and r.ended], spec)
            if at > now:
                due = min(due, at)
        return max(0.05, due - now)

    def _interval_s(self) -> float:
        unsettled = any(
            r.status in (Status.PENDING, Status.STARTING, Status.DRAINING) or r.unseen for r in self._replicas.values()
        )
        return self._pace.busy_s if unsettled else self._pace.calm_s

    # -- one step -----------------------------------------------------------------------------------------------------

    async def step(self) -> None:
        """Ask if it is time to, reconcile, act."""
        poll = await self._poll() if self._poll_is_due() else None
        facts = Facts(
            now=self._clock(),
            wanted=self.models,
            replicas=list(self._replicas.values()),
            poll=poll,
            service=self._site.service,
            heartbeat_s=self._site.heartbeat_s,
        )
        actions = reconcile(facts)
        for action in actions:
            match action:
                case Put(replica):
                    self._put(replica)
                    # nobody will tell us of its end but the scheduler
                    self._poll_soon |= replica.status is Status.DRAINING and replica.heard_at is None
                case Forget(replica_id):
                    self._forget(replica_id)
                case _:
                    pass
        await self._save()
        cancelled = [action.job_id for action in actions if isinstance(action, Cancel)]
        if cancelled:
            await self._cancel(cancelled)
        for action in actions:
            if isinstance(action, Submit):
                await self._submit(self.models[action.model])
        await self._save()

    def _poll_is_due(self) -> bool:
        since = self._clock() - self._polled_at
        return since >= (self._pace.least_s if self._poll_soon else self._interval_s())

    async def _poll(self) -> Poll | None:
        asked_at = self._clock()
        self._polled_at = asked_at
        self._poll_soon = False
        try:
            jobs = await self._cluster.jobs()
        except CouldNotAsk as error:
            if not self._cannot_ask:
                self._log.warning("scheduler_silent", error=str(error))
            self._cannot_ask = str(error)
            return None
        self._cannot_ask = ""
        vanished = [r.job_id for r in self._replicas.values() if not r.ended and r.job_id and r.job_id not in jobs]
        ended: dict[str, Job] = {}
        if vanished:
            # accounting only says how they ended; that they are gone, two answers without them tell
            with contextlib.suppress(CouldNotAsk):
                ended = await self._cluster.ended(vanished)
        return Poll(asked_at, jobs, ended)

    async def _submit(self, spec: ModelSpec) -> None:
        name = re.sub(r"[^a-z0-9]+", "-", spec.name.lower()).strip("-")[-40:]
        replica_id = f"{name}-{random_source.token_hex(4)}"
        replica = Replica(replica_id, spec.name, spec.config_hash, created_at=self._clock(), cluster=self._cluster.name)
        self._put(replica)
        await self._save()  # before the submission: a crash in between leaves a record to match the job with
        try:
            job_id = await self._cluster.submit(self._build(spec, replica_id))
        except Refused as error:
            self._put(advance(replica, Status.FAILED, self._clock(), Failure("refused", str(error))))
            return
        except CouldNotAsk as error:
            self._put(replace(replica, note=f"submission not answered: {error}"))
            self._poll_soon = True
            return
        # the agent may have reported while the answer was on its way
        self._put(replace(self._replicas[replica_id], job_id=job_id, note="submitted"))
        self._poll_soon = True
        self._log.info("replica_submitted", replica=replica_id, model=spec.name, job=job_id)

    async def _cancel(self, job_ids: list[str]) -> None:
        try:
            await self._cluster.cancel(job_ids)
        except CouldNotAsk as error:
            self._log.warning("cancel_not_answered", jobs=job_ids, error=str(error))
        self._poll_soon = True

    # -- facts from outside -------------------------------------------------------------------------------------------

    def report(self, report: Report) -> tuple[str, int]:
        """An agent's report. Returns its command (run, drain, stop) and the requests in flight on it."""
        before = self._replicas.get(report.replica_id)
        after = heard(before, report, self._clock())
        self._put(after)
        if before is None or before.status is not after.status:
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

    def outlook(self, model: str) -> tuple[str, float | None]:
        """Why nothing is ready, in one sentence, and when to try again (None: it is starting, waiting may help)."""
        spec = self.models.get(model)
        return self._outlook(model, spec) if spec is not None else (f"{model} is no longer served.", 120.0)

    def _outlook(self, model: str, spec: ModelSpec) -> tuple[str, float | None]:
        coming = [r for r in self._replicas.values() if r.model == model and not r.ended and r.target is Target.RUN]
        ended = [r for r in self._replicas.values() if r.model == model and r.ended]
        failed = failures(ended, spec)
        for replica in sorted(coming, key=lambda r: r.status is not Status.STARTING):
            if replica.status is Status.STARTING:
                return f"{model} is starting: job {replica.job_id} runs on {replica.node}, the engine is loading.", None
            if replica.status is Status.PENDING and (replica.job_id or not self._cannot_ask):
                start = f", expected to start at {replica.starts_at}" if replica.starts_at else ""
                return f"{model} is starting: job {replica.job_id or '(new)'} is {replica.note or 'new'}{start}.", None
        if self._cannot_ask:
            return f"{model} is not running, and the scheduler does not answer: {self._cannot_ask}", self._pace.busy_s
        if failed and failed[-1].failure is not None:
            wait_s = max(1.0, retry_at(ended, spec) - self._clock())
            return f"{model} cannot start: {failed[-1].failure.message}", wait_s
        if spec.scaling.most == 0:
            return f"{model} is switched off (replicas = 0).", 120.0
        return f"{model} is starting.", None

    def replicas(self) -> list[Replica]:
        """All that is known, ended ones included."""
        return list(self._replicas.values())

    # -- bookkeeping --------------------------------------------------------------------------------------------------

    def _put(self, replica: Replica) -> None:
        before = self._replicas.get(replica.id)
        if before == replica:
            return
        self._replicas[replica.id] = replica
        if before is None or replace(before, heard_at=replica.heard_at, time_left_s=replica.time_left_s) != replica:
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
        self._endpoints[model] = tuple(
            Endpoint(r.id, r.host, r.port, self._secrets.engine_key(r.id))
            for r in self._replicas.values()
            if r.model == model and r.status is Status.READY and r.target is Target.RUN
        )
        self._changed.pop(model, asyncio.Event()).set()

    async def _save(self) -> None:
        dirty, self._dirty = self._dirty, {}
        if dirty:
            changed = [replica for replica in dirty.values() if replica is not None]
            forgotten = [replica_id for replica_id, replica in dirty.items() if replica is None]
            await asyncio.to_thread(self._store.save, changed, forgotten)
