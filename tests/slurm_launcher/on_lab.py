"""A launcher on a real Slurm, whose jobs only sleep; and Slurm's commands behind a script that counts them."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import Engine, create_engine

from proxy.launching import asked
from slurm_launcher.cluster import Cluster, JobComment, Submission
from slurm_launcher.commands import directives
from slurm_launcher.loop import Launcher, Pace
from slurm_launcher.reconcile import Submit
from slurm_launcher.slurm import SlurmCluster
from slurm_launcher.spec import ModelSpec, Secrets, Site
from slurm_launcher.states import Replica
from slurm_launcher.store import ReplicaStore
from tests.slurm_fixture import SlurmLab, until

AT_EVERY_STEP = Pace(busy_s=0.0, calm_s=0.0, least_s=0.0, maintenance_s=0.0)
COMMANDS = ("sbatch", "squeue", "scancel", "sacct", "scontrol", "sinfo")


class Clock:
    """The launcher's, which can be put forward: it goes on by itself, since Slurm's does too."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


class Quiet:
    """A log that remembers events."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def info(self, event: str, **fields: Any) -> None:
        self.events.append(event)

    warning = exception = info


class Commands:
    """Slurm's commands, counted. `before` is shell text that runs first: `sleep 2` is a slow Slurm."""

    def __init__(self, directory: Path, lab: SlurmLab) -> None:
        self.directory = directory
        self.log = directory / "called"
        self.directory.mkdir()
        self.environment = lab.env() | {"PATH": f"{directory}:{lab.env()['PATH']}"}
        for name in COMMANDS:
            real = shutil.which(name, path=lab.env()["PATH"])
            (directory / f"before-{name}").write_text("")
            path = directory / name
            script = f'echo "{name} $*" >>{self.log}\n. {directory}/before-{name}\nexec {real} "$@"'
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)

    def before(self, name: str, text: str) -> None:
        (self.directory / f"before-{name}").write_text(text + "\n")

    def called(self) -> Counter[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return Counter(line.split()[0] for line in lines)

    def arguments(self, name: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(f"{name} ")]

    def forget(self) -> None:
        self.log.write_text("")


@dataclass
class OnLab:
    """A launcher that is stepped by hand."""

    launcher: Launcher
    clock: Clock
    clusters: Mapping[str, SlurmCluster]
    database: Engine
    log: Quiet
    job_name: str

    async def step(self, number: int = 1) -> None:
        for _ in range(number):
            await self.launcher.step()

    async def polls(self, number: int = 1) -> None:
        """Steps so far apart that each asks Slurm, however slow this machine is."""
        for _ in range(number):
            self.clock.ahead_s += 60.0
            await self.launcher.step()

    async def steps_until(self, condition: Callable[[], object], what: str = "") -> None:
        async def holds() -> object:
            await self.launcher.step()
            return condition()

        await until(holds, timeout_s=30, what=what or "the launcher's state")

    def live(self) -> list[Replica]:
        return [r for r in self.launcher.replicas() if not r.ended]

    def failures(self) -> list[tuple[str, str]]:
        return [(r.failure.kind, r.failure.message) for r in self.launcher.replicas() if r.failure]

    async def close(self) -> None:
        for cluster in self.clusters.values():
            await cluster.cancel_all()
        self.database.dispose()


def on_lab(
    directory: Path,
    environments: Mapping[str, Mapping[str, str]],
    *specs: ModelSpec,
    clock: Clock | None = None,
    pace: Pace = AT_EVERY_STEP,
) -> OnLab:
    """`environments`: by the clusters' names ("" for the default one), of their commands."""
    clock = clock or Clock()
    job_name = f"slurmgate-{uuid4().hex[:8]}"
    clusters = {name: SlurmCluster(job_name, name=name, environment=env) for name, env in environments.items()}
    engine = create_engine(f"sqlite:///{directory}/replicas.db")
    log = Quiet()

    def build(spec: ModelSpec, replica_id: str, submit: Submit) -> Submission:
        mark = JobComment("main", spec.name, replica_id, spec.config_hash)
        output = directory / f"{replica_id}.log"
        lines = directives(
            asked(spec.resources, submit),
            job_name=job_name,
            comment=mark.dumps(),
            output=str(output),
            signal_lead_s=0,
        )
        return Submission(replica_id, "\n".join(["#!/bin/bash", *lines, "sleep 300 & wait", ""]), mark, output)

    by_name: dict[str, Cluster] = dict(clusters)
    launcher = Launcher(
        by_name,
        {spec.name: spec for spec in specs},
        site=Site("main", "http://127.0.0.1:1", "/dev/null", directory, heartbeat_s=5.0),
        secrets=Secrets(b"s"),
        store=ReplicaStore(engine),
        build=build,
        in_flight=lambda replica_id: 0,
        log=log,
        pace=pace,
        clock=clock,
    )
    return OnLab(launcher, clock, clusters, engine, log, job_name)
