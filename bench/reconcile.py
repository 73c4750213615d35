"""A thousand replicas: what does a step of the launcher cost, and how often is squeue asked?

    python -m bench.reconcile [--replicas 1000] [--models 100] [--steps 100] [--churn 0.02]

Two runs over the same fleet, in the text that squeue prints (the columns of tests/slurm_launcher/recorded), new at each
step: times go on, and a share of the jobs changes: preempted and queued again, started, lost with a node, gone.

    decisions   parsing the answer and `reconcile`, by themselves; what they decide is carried out on the fleet
    steps       the launcher's whole step: squeue as a process (a script that prints the text and counts its calls),
                parsing, decisions, what is remembered written to SQLite

The first run is measured in CPU time, since machines are shared. It must reach: 50 ms for parsing and `reconcile`
together, by the median; one squeue for each poll.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine

from slurm_launcher.autoscale import Scaling
from slurm_launcher.cluster import JobComment, Submission
from slurm_launcher.commands import format_duration, parse_jobs
from slurm_launcher.loop import Launcher, Pace
from slurm_launcher.observing import Poll
from slurm_launcher.reconcile import Action, Facts, Forget, Put, Submit, reconcile
from slurm_launcher.slurm import SlurmCluster
from slurm_launcher.spec import ModelSpec, Resources, Secrets, Site
from slurm_launcher.states import Replica, Status
from slurm_launcher.store import ReplicaStore

from .report import machine, shown, table
from .verdict import Judgement, Line, rows

SERVICE = "bench"
WALL_TIME_S = 86400
POLL_S = 15.0
LIMIT_MS = 50.0
NODES = 400
START = 1_700_000_000.0
_SPAN_S = 1500.0
"""Of the second run: agents that have never reported are given up later."""
_HISTORY_S = 300.0
"""Slurm's MinJobAge: how long squeue shows a job that has ended."""


@dataclass
class SimJob:
    """A job as squeue tells of it. Times are seconds since the epoch."""

    id: int
    mark: JobComment
    state: str
    node: str
    began_at: float
    ended_at: float = 0.0

    def line(self, now: float) -> str:
        """In the columns of `commands.FORMAT`."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self.began_at))
        ends = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self.began_at + WALL_TIME_S))
        limit = format_duration(WALL_TIME_S)
        name = f"slurmgate-{SERVICE}"
        if self.state == "PENDING":
            head = f"{self.id}|PENDING|Resources||n/a|{at}|{ends}|{limit}|{limit}"
        else:
            reason = "NonZeroExitCode" if self.state == "FAILED" else "None"
            left = format_duration(max(0.0, self.began_at + WALL_TIME_S - now))
            head = f"{self.id}|{self.state}|{reason}|{self.node}|{self.node}|{at}|{ends}|{limit}|{left}"
        return f"{head}|{at}|gpu|{name}|gres/gpu:h100:2|{self.mark.dumps()}"


@dataclass
class Fleet:
    """All jobs of a service, and what the gateway knows of its replicas."""

    random: random.Random
    specs: dict[str, ModelSpec] = field(default_factory=dict)
    jobs: dict[str, SimJob] = field(default_factory=dict)
    replicas: dict[str, Replica] = field(default_factory=dict)
    number: int = 0

    @classmethod
    def of(cls, replicas: int, models: int, seed: int = 1) -> Fleet:
        fleet = cls(random.Random(seed))
        each, more = divmod(replicas, models)
        for index in range(models):
            count = each + (index < more)
            resources = Resources(gpus=2, gpu_type="h100", time_limit_s=WALL_TIME_S)
            spec = ModelSpec(
                f"org/model-{index}", "vllm", "/weights", scaling=Scaling(count, count), resources=resources
            )
            fleet.specs[spec.name] = spec
            for _ in range(count):
                fleet.add(spec, START - fleet.random.uniform(600, WALL_TIME_S / 4), running=True)
        return fleet

    def add(self, spec: ModelSpec, at: float, *, running: bool = False) -> None:
        """A replica with its job: in the queue, or serving for long."""
        self.number += 1
        mark = JobComment(SERVICE, spec.name, f"model-{self.number:08x}", spec.config_hash)
        node = f"n{self.random.randrange(NODES)}"
        job = SimJob(self.number, mark, "RUNNING" if running else "PENDING", node, at)
        self.jobs[str(job.id)] = job
        replica = Replica(mark.replica_id, spec.name, spec.config_hash, created_at=at, job_id=str(job.id))
        if running:
            replica = replace(
                replica, status=Status.READY, host="10.0.0.1", port=8000, node=node, running_since=at, ready_at=at + 60
            )
        self.replicas[replica.id] = replica

    def churn(self, share: float, now: float) -> None:
        """That share of the live jobs changes: a waiting one starts, a running one is queued again, lost, or gone."""
        live = [job for job in self.jobs.values() if job.state in ("RUNNING", "PENDING")]
        for job in self.random.sample(live, min(len(live), round(share * len(live)))):
            if job.state == "PENDING":
                job.state, job.began_at = "RUNNING", now
                continue
            job.state = self.random.choice(("PENDING", "PENDING", "NODE_FAIL", "FAILED"))
            job.ended_at = now if job.state != "PENDING" else 0.0
        for key in [key for key, job in self.jobs.items() if job.ended_at and now - job.ended_at > _HISTORY_S]:
            del self.jobs[key]

    def text(self, now: float) -> str:
        return "\n".join([*(job.line(now) for job in self.jobs.values()), ""])

    def hear(self, now: float) -> None:
        """Every agent reports; one whose job has started says that it serves."""
        for job in self.jobs.values():
            known = self.replicas.get(job.mark.replica_id)
            if known is None or known.ended or job.state != "RUNNING":
                continue
            status = Status.READY if known.status in (Status.PENDING, Status.STARTING) else known.status
            self.replicas[known.id] = replace(known, heard_at=now, status=status, ready_at=known.ready_at or now)

    def carry_out(self, actions: Sequence[Action], now: float) -> None:
        for action in actions:
            match action:
                case Put(known):
                    self.replicas[known.id] = known
                case Forget(replica_id):
                    del self.replicas[replica_id]
                case Submit(model):
                    self.add(self.specs[model], now)
                case _:
                    self.jobs[action.job_id].state = "CANCELLED"
                    self.jobs[action.job_id].ended_at = now


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds, one for each step; `submitted`: replicas that were asked for in all of them."""

    parsing: list[float]
    deciding: list[float]
    submitted: int

    @property
    def both(self) -> list[float]:
        return [a + b for a, b in zip(self.parsing, self.deciding, strict=True)]


def decisions(fleet: Fleet, steps: int, churn: float) -> Times:
    """Parsing and deciding, step by step, a poll apart."""
    parsing, deciding = [], []
    submitted = 0
    for step in range(1, steps + 1):
        now = START + step * POLL_S
        fleet.churn(churn, now)
        fleet.hear(now - 1.0)
        text = fleet.text(now)
        begun = time.thread_time()
        listing = parse_jobs(text)
        parsed = time.thread_time()
        poll = Poll(now - 0.1, {("", job_id): job for job_id, job in listing.jobs.items()})
        facts = Facts(now, fleet.specs, list(fleet.replicas.values()), poll, SERVICE)
        actions = reconcile(facts)
        decided = time.thread_time()
        parsing.append((parsed - begun) * 1e3)
        deciding.append((decided - parsed) * 1e3)
        submitted += sum(isinstance(action, Submit) for action in actions)
        fleet.carry_out(actions, now)
    return Times(parsing, deciding, submitted)


class Unlogged:
    def info(self, event: str, **fields: Any) -> None:
        """Nobody reads it."""

    warning = exception = info


@dataclass(frozen=True, slots=True)
class Steps:
    """Milliseconds of each whole step; how often squeue was called for `polls` polls; jobs that were submitted."""

    times: list[float]
    squeues: int
    polls: int
    known: int


def squeue_script(room: Path) -> Path:
    """A squeue that prints `answer` and adds a line to `called`. Returns the folder that it is in."""
    programs = room / "bin"
    programs.mkdir()
    script = programs / "squeue"
    script.write_text(f"#!/bin/sh\necho squeue >>{room}/called\nexec cat {room}/answer\n")
    script.chmod(0o755)
    return programs


async def whole_steps(room: Path, fleet: Fleet, steps: int) -> Steps:
    """The launcher's own loop, stepped by hand. It takes up every replica from the jobs' comments: nothing is wrong in
    this fleet but that its times go on, and one job in fifty is queued again or has started."""
    programs, now = squeue_script(room), START
    cluster = SlurmCluster(f"slurmgate-{SERVICE}", environment={"PATH": f"{programs}:/usr/bin:/bin"})
    engine = create_engine(f"sqlite:///{room}/replicas.db")

    def build(spec: ModelSpec, replica_id: str, submit: Submit) -> Submission:
        raise AssertionError("nothing is to be submitted")

    launcher = Launcher(
        {"": cluster},
        fleet.specs,
        site=Site(SERVICE, "http://127.0.0.1:1", "", room),
        secrets=Secrets(b"bench"),
        store=ReplicaStore(engine),
        build=build,
        in_flight=lambda replica_id: 0,
        log=Unlogged(),
        pace=Pace(busy_s=0.0, calm_s=0.0, least_s=0.0, maintenance_s=float("inf")),
        clock=lambda: now,
    )
    times = []
    try:
        for step in range(steps + 1):
            now = START + step * _SPAN_S / steps
            for job in fleet.random.sample(list(fleet.jobs.values()), len(fleet.jobs) // 50 if step else 0):
                job.state = "PENDING" if job.state == "RUNNING" else "RUNNING"
            (room / "answer").write_text(fleet.text(now))
            begun = time.perf_counter()
            await launcher.step()
            times.append((time.perf_counter() - begun) * 1e3)
    finally:
        engine.dispose()
    squeues = len((room / "called").read_text().splitlines())
    return Steps(times[1:], squeues, steps + 1, len(launcher.replicas()))  # the first one only adopts


def spread(name: str, times: Sequence[float]) -> list[str]:
    ordered = sorted(times)
    return [name, *(shown(value, 1) for value in (ordered[0], ordered[len(ordered) // 2], ordered[-1]))]


def judged(times: Times, steps: Steps) -> list[Line]:
    both = sorted(times.both)
    return [
        Line("parsing and reconcile, median", both[len(both) // 2], LIMIT_MS, " ms"),
        Line("squeue for each poll", steps.squeues / steps.polls, 1.0),
    ]


def report(times: Times, steps: Steps) -> str:
    cells = [
        ["ms", "min", "median", "max"],
        spread("parsing squeue's answer (CPU)", times.parsing),
        spread("reconcile (CPU)", times.deciding),
        spread("both (CPU)", times.both),
        spread("whole step, by the clock: squeue, both, SQLite", steps.times),
    ]
    said = f"{times.submitted} replicas submitted in the first run; the second one took up {steps.known} by comments"
    return f"{table(cells)}\n\n{said}\n\n{table(rows(judged(times, steps)))}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.reconcile", description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--churn", type=float, default=0.02, help="share of the jobs that change in a step (0.02)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement")
    options = parser.parse_args()
    times = decisions(Fleet.of(options.replicas, options.models), options.steps, options.churn)
    with tempfile.TemporaryDirectory(prefix="slurmgate-bench-") as room:
        fleet = Fleet.of(options.replicas, options.models)
        steps = asyncio.run(whole_steps(Path(room), fleet, options.steps))
    print(machine())
    print(f"{options.replicas} replicas of {options.models} models, {options.steps} steps\n")
    print(report(times, steps))
    if options.json:
        found = {"parsing_ms": times.parsing, "reconcile_ms": times.deciding, "step_ms": steps.times}
        options.json.write_text(json.dumps(found))
    return 0 if all(line.judgement is Judgement.OK for line in judged(times, steps)) else 1


if __name__ == "__main__":
    sys.exit(main())
