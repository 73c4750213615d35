"""A day of a site in seconds: the launcher's own decisions (reconcile, autoscale) over a cluster that is only numbers.

    python -m bench.simulated_day [--hours 24] [--models 60] [--nodes 200] [--seed 1]

Real here: who is submitted, replaced, stopped, given up, and how many are wanted. Simulated: Slurm (a queue with waits,
wall times, preemptions, node failures, a controller that does not always answer), engines that take their time to load
and sometimes die, and people, more of them by day than by night.

Reported: the share of requests that were answered, GPU-hours used and what a fixed number of replicas for the peak
would have used, requests that met a cold start, jobs left at the end, the longest that a model with requests had no
replica.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from slurm_launcher.autoscale import Allowance, Clock, Demand, Memory, Scaling, Supply, decide
from slurm_launcher.cluster import Job, JobComment
from slurm_launcher.failing import retry_at
from slurm_launcher.observing import Poll
from slurm_launcher.reconcile import Cancel, Facts, Forget, Put, Submit, reconcile
from slurm_launcher.reports import Report, command_for, heard
from slurm_launcher.spec import ModelSpec, Resources
from slurm_launcher.states import Failure, Replica, Status
from slurm_launcher.wanting import serving

STEP_S = 30.0
WALL_TIME_S = 4 * 3600
NODE_GPUS = 4
WAIT_S = 300.0
"""Requests that have met no replica for this long are lost."""

START = 1_700_000_000.0


@dataclass(frozen=True, slots=True)
class Rates:
    """Faults, per hour of whatever they happen to."""

    node_failure: float = 0.002
    preemption: float = 0.03
    engine_death: float = 0.01
    start_failure: float = 0.03
    """... per start."""
    silence: float = 0.02
    """... of the scheduler, per question."""
    queue_wait_s: float = 120.0
    """The mean that a job waits beside waiting for room."""


@dataclass
class SimJob:
    """A job as Slurm would have it, and what its agent knows."""

    id: str
    replica_id: str
    mark: JobComment
    gpus: int
    exclude: frozenset[str]
    may_start_at: float
    load_s: float
    limit_s: float = WALL_TIME_S
    state: str = "PENDING"
    node: str = ""
    started_at: float = 0.0
    ready_at: float = math.inf
    life: int = 0
    draining_until: float = math.inf
    told_at: float = 0.0
    reason: str = ""

    @property
    def alive(self) -> bool:
        return self.state in ("PENDING", "RUNNING")


@dataclass
class Site:
    """Nodes and their free GPUs, jobs, and what goes wrong."""

    random: random.Random
    rates: Rates
    free: dict[str, int]
    jobs: dict[str, SimJob] = field(default_factory=dict)
    down_until: dict[str, float] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 10**9)))
    gpu_s: float = 0.0

    def submit(self, spec: ModelSpec, submit: Submit, replica_id: str, now: float) -> str:
        job_id = str(next(self.numbers))
        wait = self.random.expovariate(1 / self.rates.queue_wait_s)
        mark = JobComment("sim", spec.name, replica_id, spec.config_hash)
        gpus = spec.resources.gpus
        load_s = 30.0 * gpus * self.random.uniform(0.7, 1.5)
        job = SimJob(job_id, replica_id, mark, gpus, frozenset(submit.exclude), now + wait, load_s)
        self.jobs[job_id] = job
        return job_id

    def happens(self, per_hour: float) -> bool:
        return self.random.random() < per_hour * STEP_S / 3600

    def finish(self, job: SimJob, state: str) -> None:
        if job.state == "RUNNING":
            self.free[job.node] += job.gpus
        job.state = state

    def step(self, now: float) -> None:
        for node in self.free:
            if node not in self.down_until and self.happens(self.rates.node_failure):
                self.down_until[node] = now + 1800
        self.down_until = {node: until for node, until in self.down_until.items() if until > now}
        for job in list(self.jobs.values()):
            if job.state == "RUNNING":
                self._run(job, now)
            elif job.state == "PENDING" and now >= job.may_start_at:
                self._try_to_start(job, now)
        self.gpu_s += STEP_S * sum(job.gpus for job in self.jobs.values() if job.state == "RUNNING")

    def _run(self, job: SimJob, now: float) -> None:
        if job.node in self.down_until:
            self.finish(job, "NODE_FAIL")
        elif now - job.started_at >= job.limit_s:
            self.finish(job, "TIMEOUT")
        elif now >= job.draining_until:
            self.finish(job, "COMPLETED")
        elif self.happens(self.rates.preemption):
            self.finish(job, "PREEMPTED")
            job.state, job.life, job.node, job.ready_at = "PENDING", job.life + 1, "", math.inf
            job.may_start_at = now + 120
        elif now >= job.ready_at and self.happens(self.rates.engine_death):
            self.finish(job, "FAILED")

    def _try_to_start(self, job: SimJob, now: float) -> None:
        able = [
            node
            for node, free in self.free.items()
            if free >= job.gpus and node not in job.exclude and node not in self.down_until
        ]
        if not able:
            return
        job.node = self.random.choice(able)
        self.free[job.node] -= job.gpus
        job.state, job.started_at = "RUNNING", now
        fails = self.random.random() < self.rates.start_failure
        job.ready_at = math.inf if fails else now + job.load_s
        if fails:
            job.limit_s = min(job.limit_s, job.load_s)
            job.reason = "fails"

    def poll(self, now: float) -> Poll | None:
        if self.random.random() < self.rates.silence:
            return None
        jobs = {}
        for job in self.jobs.values():
            left = job.limit_s - (now - job.started_at) if job.state == "RUNNING" else None
            jobs["", job.id] = Job(job.id, job.state, "Resources", job.node, left, "", job.mark)
        return Poll(now - 0.01, jobs)


@dataclass
class Crowd:
    """The users of one model: `peak` at once by day, `share` of that by night, each asking for `service_s`."""

    peak: float
    share: float
    phase_h: float
    service_s: float = 10.0
    capacity: int = 16
    waiting: float = 0.0
    waited_s: float = 0.0
    last_at: float | None = None

    def users(self, hour: float) -> float:
        day = 0.5 - 0.5 * math.cos(2 * math.pi * (hour - self.phase_h) / 24)
        return self.peak * (self.share + (1 - self.share) * day**2)


@dataclass
class Day:
    """What came of it."""

    hours: float
    steps: int = 0
    asked: float = 0.0
    answered: float = 0.0
    lost: float = 0.0
    cold: float = 0.0
    gpu_hours: float = 0.0
    gpu_hours_fixed: float = 0.0
    submissions: int = 0
    longest_gap_s: float = 0.0
    leaked: int = 0
    step_ms: float = 0.0

    @property
    def availability(self) -> float:
        return self.answered / max(1.0, self.answered + self.lost)

    def lines(self) -> list[str]:
        return [
            f"requests                          {self.asked:12,.0f}",
            f"answered                          {self.availability:12.3%}",
            f"met a cold start, of 1,000        {1000 * self.cold / max(1.0, self.asked):12.2f}",
            f"GPU-hours                         {self.gpu_hours:12,.0f}",
            f"GPU-hours, replicas for the peak  {self.gpu_hours_fixed:12,.0f}",
            f"submissions                       {self.submissions:12,d}",
            f"longest without a replica, min    {self.longest_gap_s / 60:12.1f}",
            f"jobs left at the end              {self.leaked:12d}",
            f"decisions, ms a step              {self.step_ms:12.2f}",
        ]


class Simulation:
    """Models, their users, their replicas as the gateway knows them, and the site."""

    def __init__(self, models: int, nodes: int, seed: int, rates: Rates | None = None) -> None:
        self.random = random.Random(seed)
        self.site = Site(self.random, rates or Rates(), {f"n{n}": NODE_GPUS for n in range(nodes)})
        self.specs: dict[str, ModelSpec] = {}
        self.crowds: dict[str, Crowd] = {}
        self.memories: dict[str, Memory] = {}
        self.replicas: dict[str, Replica] = {}
        self.gaps: dict[str, float] = {}
        for number in range(models):
            name = f"model-{number}"
            gpus = self.random.choice((1, 1, 1, 2, 4))
            scaling = Scaling(0 if number % 3 else 1, 6, idle_s=900)
            resources = Resources(gpus=gpus, time_limit_s=WALL_TIME_S)
            self.specs[name] = ModelSpec(name, "vllm", "/w", scaling=scaling, resources=resources)
            self.crowds[name] = Crowd(self.random.choice((1, 4, 12, 40)), 0.02, self.random.uniform(0, 6))

    def run(self, hours: float) -> Day:
        day = Day(hours)
        now = START
        spent = 0.0
        while now < START + hours * 3600:
            now += STEP_S
            day.steps += 1
            self.site.step(now)
            self._hear(now)
            self._ask(day, now)
            begun = time.perf_counter()
            self._decide(day, now, self.specs)
            spent += time.perf_counter() - begun
        day.gpu_hours = self.site.gpu_s / 3600
        day.step_ms = 1000 * spent / day.steps
        day.gpu_hours_fixed = hours * sum(
            math.ceil(crowd.peak / (0.7 * crowd.capacity)) * self.specs[name].resources.gpus
            for name, crowd in self.crowds.items()
        )
        for _ in range(120):  # nothing is wanted any more: everything must go
            now += STEP_S
            self.site.step(now)
            self._hear(now)
            self._decide(day, now, {})
        day.leaked = sum(job.alive for job in self.site.jobs.values())
        return day

    def _hear(self, now: float) -> None:
        """The agents report, and do as they are told."""
        for job in list(self.site.jobs.values()):
            if job.state != "RUNNING":
                if not job.alive and now - job.started_at > 2 * WALL_TIME_S:
                    del self.site.jobs[job.id]
                continue
            state = Status.READY if now >= job.ready_at else Status.STARTING
            if job.draining_until < math.inf:
                state = Status.DRAINING
            failure = None
            if job.reason == "fails" and now - job.started_at >= job.load_s - STEP_S:
                state, failure = Status.FAILED, Failure("engine_exited", "It exited.")
                self.site.finish(job, "FAILED")
            left = job.limit_s - (now - job.started_at)
            mark = job.mark
            report = Report(
                mark.replica_id, mark.model, mark.config_hash, "", job.id, job.life,
                state, "10.0.0.1", job.node, 1, left, failure,
            )  # fmt: skip
            known = self.replicas[mark.replica_id] = heard(self.replicas.get(mark.replica_id), report, now)
            if command_for(known) != "run" and job.draining_until == math.inf:
                job.draining_until = now + STEP_S

    def _ask(self, day: Day, now: float) -> None:
        hour = (now - START) / 3600
        for name, crowd in self.crowds.items():
            ready = sum(
                r.model == name and r.status is Status.READY and r.target.value == "run" for r in self.replicas.values()
            )
            coming = crowd.users(hour) * STEP_S / crowd.service_s
            requests = math.floor(coming) + (self.random.random() < coming % 1)
            day.asked += requests
            if requests:
                crowd.last_at = now
            if ready:
                room = ready * crowd.capacity * STEP_S / crowd.service_s
                served = min(room, requests + crowd.waiting)
                day.answered += served
                crowd.waiting = requests + crowd.waiting - served
                crowd.waited_s = 0.0 if crowd.waiting == 0 else crowd.waited_s + STEP_S
                self.gaps[name] = 0.0
            else:
                day.cold += requests
                crowd.waiting += requests
                if crowd.waiting:
                    crowd.waited_s += STEP_S
                    self.gaps[name] = self.gaps.get(name, 0.0) + STEP_S
                    day.longest_gap_s = max(day.longest_gap_s, self.gaps[name])
            if crowd.waited_s > WAIT_S:
                day.lost += crowd.waiting
                crowd.waiting, crowd.waited_s = 0.0, 0.0

    def _decide(self, day: Day, now: float, wanted: dict[str, ModelSpec]) -> None:
        live = [r for r in self.replicas.values() if not r.ended]
        by_model: dict[str, list[Replica]] = {name: [] for name in self.specs}
        for replica in live:
            by_model[replica.model].append(replica)
        counts = {}
        hour = (now - START) / 3600
        for name, spec in wanted.items():
            crowd, ours = self.crowds[name], [r for r in by_model[name] if serving(r)]
            ready = sum(r.status is Status.READY for r in ours)
            in_flight = min(crowd.users(hour), ready * crowd.capacity)
            demand = Demand(round(in_flight), round(crowd.waiting), 0, crowd.capacity, None, crowd.last_at)
            supply = Supply(ready, len(ours) - ready)
            memory = decide(spec.scaling, demand, supply, self.memories.get(name, Memory()), Clock(now))
            self.memories[name] = memory
            counts[name] = memory.wanted
        facts = Facts(
            now, wanted, list(self.replicas.values()), self.site.poll(now), "sim", STEP_S / 3, counts,
            allowance=Allowance(pending_jobs=40),
        )  # fmt: skip
        for action in reconcile(facts):
            match action:
                case Put(replica):
                    self.replicas[replica.id] = replica
                case Cancel(_, job_id):
                    self.site.finish(self.site.jobs[job_id], "CANCELLED")
                case Submit(model):
                    day.submissions += 1
                    self._submit(self.specs[model], action, now)
                case Forget(replica_id):
                    del self.replicas[replica_id]

    def _submit(self, spec: ModelSpec, submit: Submit, now: float) -> None:
        replica = Replica(f"{spec.name}-{len(self.site.jobs)}-{now:.0f}-{self.random.random()}", spec.name,
                          spec.config_hash, created_at=now)  # fmt: skip
        job_id = self.site.submit(spec, submit, replica.id, now)
        self.replicas[replica.id] = replace(replica, job_id=job_id)

    def stuck(self, now: float) -> list[str]:
        """Models that are not tried again by themselves."""
        return [
            name
            for name, spec in self.specs.items()
            if math.isinf(retry_at([r for r in self.replicas.values() if r.model == name and r.ended], spec))
        ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.simulated_day", description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--models", type=int, default=60)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    begun = time.perf_counter()
    simulation = Simulation(options.models, options.nodes, options.seed)
    day = simulation.run(options.hours)
    print(
        f"{options.models} models, {options.nodes} nodes of {NODE_GPUS} GPUs, {options.hours:g} h, seed {options.seed}"
    )
    print("\n".join(day.lines()))
    print(f"took {time.perf_counter() - begun:.1f} s; models that are stuck: {simulation.stuck(START) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
