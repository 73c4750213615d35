"""A whole site on this machine, for what only a real Slurm can tell: a cluster, a gateway, llama.cpp in jobs.

The cluster and the gateway's process are those of the tests (tests/slurm_fixture.py, tests/gateway_process.py): what is
measured here is what is tested there. It needs root and Slurm's packages (`make slurm-install`).
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Self, TypeVar

from tests.gateway_process import GatewayProcess
from tests.slurm_fixture import SlurmLab, slurm_unavailable_reason

from .processes import DidNotStart
from .targets import NotInstalled

T = TypeVar("T")

MODEL = "guide"
SERVICE = "bench"
ROOT = Path(__file__).parents[1]

_CONFIG = """\
[server]
shutdown_grace_s = 5.0

[launcher]
service = "{service}"
python = "{python}"
heartbeat_s = {heartbeat_s}
poll_busy_s = {poll_busy_s}
poll_calm_s = {poll_calm_s}

[models.{model}]
engine = "llamacpp"
command = ["{python}", "-m", "slurm_launcher.xllamacpp_server"]
arguments = ["--parallel", "{parallel}", "--threads", "1"]
source = "{root}/proxy/embedded/guide.gguf"
context_length = 32768
environment = {{ PYTHONPATH = "{root}" }}
replicas = {replicas}
max_in_flight = {parallel}
start_timeout_s = 60.0
drain_timeout_s = {drain_timeout_s}
lead_s = {lead_s}
slurm = {{ gpus = {gpus}, time = "{wall_time}" }}
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the site's one model asks for. `gpus`: of a node's 4, so 4 puts each replica on a node of its own."""

    replicas: int = 2
    wall_time: str = "00:30:00"
    lead_s: float = 60.0
    drain_timeout_s: float = 30.0
    parallel: int = 64
    gpus: int = 4
    heartbeat_s: float = 5.0
    poll_busy_s: float = 15.0
    poll_calm_s: float = 60.0

    def toml(self) -> str:
        return _CONFIG.format(
            service=SERVICE, python=sys.executable, root=ROOT, model=MODEL, replicas=self.replicas, gpus=self.gpus,
            wall_time=self.wall_time, lead_s=self.lead_s, drain_timeout_s=self.drain_timeout_s, parallel=self.parallel,
            heartbeat_s=self.heartbeat_s, poll_busy_s=self.poll_busy_s, poll_calm_s=self.poll_calm_s,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the gateway's log about a replica. `at`: seconds since the epoch."""

    at: float
    name: str
    replica: str
    state: str = ""
    job: str = ""
    node: str = ""
    reason: str = ""


def parse_events(log: str) -> list[Event]:
    """Those lines of a log that are about replicas, in their order. Its last line may be half written."""
    whole = log[: log.rfind("\n") + 1].splitlines()
    lines = [json.loads(line) for line in whole if line.startswith("{") and '"event":"replica_' in line]
    return [
        Event(
            at=datetime.fromisoformat(line["timestamp"]).timestamp(),
            name=line["event"],
            replica=line["replica"],
            state=line.get("state", ""),
            job=line.get("job") or "",
            node=line.get("node") or "",
            reason=line.get("reason", ""),
        )
        for line in lines
        if line["event"] in ("replica_state", "replica_submitted")
    ]


def first(events: list[Event], replica: str, state: str) -> float | None:
    """When a replica first was in a state; "submitted" is one of them."""
    for event in events:
        if event.replica == replica and (event.state == state or event.name == f"replica_{state}"):
            return event.at
    return None


@dataclass
class Site:
    lab: SlurmLab
    gateway: GatewayProcess
    key: str

    def events(self) -> list[Event]:
        return parse_events(self.gateway.log_path.read_text())

    def jobs(self) -> dict[str, str]:
        """The service's jobs in squeue, those that are ending included: id -> state."""
        told = self.lab.run("squeue", "-h", f"--name=slurmgate-{SERVICE}", "-t", "PD,R,CF,CG", "-o", "%i %T")
        return dict(line.split() for line in told.splitlines())

    def started(self, job: str) -> tuple[float, float]:
        """When a job was submitted and when it started, as the controller has it: whole seconds since the epoch."""
        words = dict(word.split("=", 1) for word in self.lab.run("scontrol", "show", "job", job).split() if "=" in word)
        at = [datetime.fromisoformat(words[name]).timestamp() for name in ("SubmitTime", "StartTime")]
        return at[0], at[1]


@contextlib.contextmanager
def site(room: Path, plan: Plan, environment: Mapping[str, str] | None = None) -> Iterator[Site]:
    """Everything up, every replica ready. Raises `NotInstalled` where there can be no Slurm."""
    reason = slurm_unavailable_reason()
    if reason is not None:
        raise NotInstalled(reason)
    lab = SlurmLab.start()
    gateway = GatewayProcess(room, plan.toml(), {**lab.env(), **(environment or {})})
    try:
        gateway.start()
        key = gateway.key()
        try:
            gateway.until_ready(60, **{MODEL: plan.replicas})
        except AssertionError as error:
            raise DidNotStart(str(error)) from None
        yield Site(lab, gateway, key)
    finally:
        gateway.stop()
        lab.cancel_all()
        lab.stop()


def until(condition: Callable[[], T], limit_s: float, what: str, every_s: float = 0.02) -> T:
    """The condition's first true value. Raises `DidNotStart`, saying what did not happen."""
    deadline = time.monotonic() + limit_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise DidNotStart(f"not within {limit_s:g} s: {what}")
        time.sleep(every_s)
    return value


@dataclass
class JobCount:
    """`with JobCount(site) as count`: how many jobs there were at most, asked four times a second.

    most       that wait or run
    with_ends  the same, and those whose processes are being ended
    """

    site: Site
    most: int = 0
    with_ends: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, name="job count")
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.25):
            states = self.site.jobs().values()
            self.with_ends = max(self.with_ends, len(states))
            self.most = max(self.most, sum(state != "COMPLETING" for state in states))
