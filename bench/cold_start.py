"""From sbatch to a token, and from a fault to a replica again: on a real Slurm, with llama.cpp.

    python -m bench.cold_start [--starts 5] [--faults killed-engine,killed-job,killed-node,silent-node]

Starts: a client's stream waits for a model that has no replica; one is asked for; the client gets its first token.
Slurm's own part is from sbatch to the start of the job's shell on its node (as the kernel has it, to a hundredth of a
second; scontrol has whole ones). Ours is the rest: 3 s at most, by the slowest.

Faults: two replicas on two nodes under load, with the launcher's default pace. One of them is lost:

    killed-engine   SIGKILL to the engine alone: its agent tells of it
    killed-job      SIGKILL to all of the job: only Slurm knows
    killed-node     SIGKILL to slurmd and all that ran on the node: Slurm finds out, and queues the job again
    silent-node     the same, and the node's address takes and sends no packet any more (needs iptables)

Out of rotation: when the last request was asked that failed or waited for the dead replica, after the fault; 15 s at
most. Asked for again: from Slurm's knowing of it (for the engine: from the fault) until there is a job for it again;
within one poll. `--starts 0` and `--faults ""` leave a part out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvloop

from .compare import told
from .constant import Constant, Outcome
from .processes import DidNotStart, allow_many_files, term_is_exit
from .report import machine, shown, table
from .slurm_site import MODEL, Plan, Site, site, until
from .targets import NotInstalled
from .verdict import Judgement, Line, rows

START_LIMIT_S = 3.0
ROTATION_LIMIT_S = 15.0
SLOW_S = 1.0
"""A request that took longer met the dead replica: the load is light, and answers take a tenth of that."""

_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds. `slurm`: from sbatch to the job's shell; then, ours: `report` (Python, the agent, its first report),
    `load` (the engine until its first token, for the agent), `serve` (until the waiting client's first token)."""

    slurm: float
    report: float
    load: float
    serve: float

    @property
    def ours(self) -> float:
        return self.report + self.load + self.serve


@dataclass(frozen=True, slots=True)
class Loss:
    """Seconds after a fault; NaN for what did not happen.

    rotation   until the last request was asked that met the dead replica
    known      until Slurm's word on the job was another one
    asked      from then, or for a killed engine from the fault, until there was a job for it again
    ready      until there were as many ready replicas as before
    """

    fault: str
    failed: int
    rotation: float
    known: float
    asked: float
    ready: float


# -- starts -----------------------------------------------------------------------------------------------------------


def processes_of(job: str, conf: str) -> Iterator[tuple[int, list[str]]]:
    """(pid, argv) of a job's processes on this cluster."""
    for process in _PROC.iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            environment = (process / "environ").read_bytes().split(b"\0")
            if f"SLURM_JOB_ID={job}".encode() in environment and f"SLURM_CONF={conf}".encode() in environment:
                yield int(process.name), (process / "cmdline").read_bytes().decode(errors="replace").split("\0")


def is_engine(argv: list[str]) -> bool:
    return "slurm_launcher.xllamacpp_server" in argv


def started_at(stat: str, uptime_s: float, now: float) -> float:
    """When a process started, in seconds of the epoch, by its line of /proc/PID/stat (proc(5), field 22)."""
    ticks = int(stat[stat.rindex(")") + 2 :].split()[19])
    return now - uptime_s + ticks / _TICKS_PER_S


def shell_started_at(job: str, conf: str) -> float:
    """The job's shell has become the agent by exec, so it is the oldest of the job's processes."""
    uptime_s, now = time.clock_gettime(time.CLOCK_BOOTTIME), time.time()
    starts = [started_at((_PROC / str(pid) / "stat").read_text(), uptime_s, now) for pid, _ in processes_of(job, conf)]
    if not starts:
        raise DidNotStart(f"job {job} has no process")
    return min(starts)


class Asker(threading.Thread):
    """A client whose stream waits. `first_at`: its first token, in seconds of the epoch."""

    def __init__(self, found: Site) -> None:
        super().__init__(name="waiting client")
        self.load = Constant(found.gateway.port, MODEL, found.key, streams=0, rate=1.0, tokens=4)
        self.outcome = Outcome()

    def run(self) -> None:
        asyncio.run(self.load.one_stream(self.outcome))

    @property
    def first_at(self) -> float:
        if not self.outcome.firsts:
            raise DidNotStart(f"the waiting client got no token: {self.outcome.failures}")
        at, first_s = self.outcome.firsts[0]
        return at + first_s


def one_start(found: Site) -> Start:
    found.gateway.run("scale", MODEL, "0")
    until(lambda: not found.jobs(), 60, "no job is left")
    known = {event.replica for event in found.events()}
    asker = Asker(found)
    asker.start()
    found.gateway.run("scale", MODEL, "1")
    asker.join()
    job = until(lambda: next(iter(found.jobs()), ""), 10, "the job is in squeue")
    shell = shell_started_at(job, str(found.lab.conf))

    def told_of() -> dict[str, float]:
        """The log is written a moment later."""
        states = {event.state: event.at for event in found.events() if event.replica not in known}
        return states if "ready" in states else {}

    states = until(told_of, 10, "the log says that it is ready")
    submitted, reported, ready = (states[state] for state in ("pending", "starting", "ready"))
    return Start(shell - submitted, reported - shell, ready - reported, asker.first_at - ready)


def starts(room: Path, number: int) -> list[Start]:
    with site(room, Plan(replicas=1, poll_busy_s=2.0, parallel=4)) as found:
        results = []
        for index in range(number):
            told(f"start {index + 1} of {number}")
            results.append(one_start(found))
        told("")
    return results


# -- faults -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def silent(address: str) -> Iterator[None]:
    """While in it, no packet to or from an address of this machine arrives. Raises `NotInstalled`."""
    program = shutil.which("iptables", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if program is None:
        raise NotInstalled("silent-node: no iptables")
    rules = [["INPUT", "--destination", address, "--jump", "DROP"], ["INPUT", "--source", address, "--jump", "DROP"]]
    with contextlib.ExitStack() as stack:
        for rule in rules:
            done = subprocess.run([program, "-I", *rule], capture_output=True, text=True, check=False)
            if done.returncode:
                raise NotInstalled(f"silent-node: iptables: {done.stderr.strip()}")
            stack.callback(subprocess.run, [program, "-D", *rule], check=False)
        yield


def kill_engine(found: Site, job: str, node: str, stack: contextlib.ExitStack) -> None:
    for pid, argv in processes_of(job, str(found.lab.conf)):
        if is_engine(argv):
            os.kill(pid, signal.SIGKILL)


def kill_job(found: Site, job: str, node: str, stack: contextlib.ExitStack) -> None:
    for pid, _ in processes_of(job, str(found.lab.conf)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_node(found: Site, job: str, node: str, stack: contextlib.ExitStack) -> None:
    found.lab.node_kill(node)


def silence_node(found: Site, job: str, node: str, stack: contextlib.ExitStack) -> None:
    stack.enter_context(silent(found.lab.nodes[node]))
    found.lab.node_kill(node)


Fault = Callable[[Site, str, str, contextlib.ExitStack], None]

FAULTS: dict[str, Fault] = {
    "killed-engine": kill_engine,
    "killed-job": kill_job,
    "killed-node": kill_node,
    "silent-node": silence_node,
}


def met(outcome: Outcome, since: float) -> list[float]:
    """When those requests were asked that failed or were slow. Only what was open at `since` or came after it."""
    slow = [at for at, taken_s in zip(outcome.asked, outcome.latencies, strict=True) if taken_s > SLOW_S]
    return [at for at in (*slow, *(at for at, _ in outcome.failures)) if at > since - SLOW_S]


async def under_load(found: Site, fault: str) -> Loss:
    # mostly plain requests: what hangs on a dead replica does not hold the next ones back
    load = Constant(found.gateway.port, MODEL, found.key, streams=4, rate=10.0, tokens=40, plain_tokens=40)
    running = asyncio.get_running_loop().create_task(load.run(), name="load")
    await asyncio.sleep(3.0)
    victim = next(r for r in await asyncio.to_thread(found.gateway.replicas) if r["state"] == "ready")
    job, node = str(victim["job"]), str(victim["node"])
    with contextlib.ExitStack() as stack:
        begun = time.time()
        await asyncio.to_thread(FAULTS[fault], found, job, node, stack)
        watched = asyncio.get_running_loop().run_in_executor(None, aftermath, found, fault, job, begun)
        known, asked, ready = await watched
        load.end()
        await running
    rotation = [at - begun for outcome in (load.plain, load.streams) for at in met(outcome, begun)]
    failed = len(load.plain.failures) + len(load.streams.failures)
    return Loss(fault, failed, max(0.0, *rotation, 0.0), known, asked, ready)


def aftermath(found: Site, fault: str, job: str, begun: float) -> tuple[float, float, float]:
    """`Loss.known`, `asked` and `ready`."""
    before = {event.replica for event in found.events() if event.at < begun}

    def known() -> float:
        return time.time() if found.jobs().get(job) != "RUNNING" else 0.0

    since = begun if fault == "killed-engine" else until(known, 120, "Slurm knows of it", 0.1)

    def asked() -> float:
        if found.jobs().get(job) == "PENDING":  # queued again by Slurm itself
            return time.time()
        return next((e.at for e in found.events() if e.name == "replica_submitted" and e.replica not in before), 0.0)

    asked_at = until(asked, 120, "a job is asked for again", 0.1)

    def whole() -> bool:
        there = [r for r in found.gateway.replicas() if r["state"] == "ready" and r["model"] == MODEL]
        return len([r for r in there if r["job"] != job or fault.endswith("node")]) == 2

    until(whole, 120, "two replicas are ready again", 0.2)
    return since - begun, max(0.0, asked_at - since), time.time() - begun


def faults(room: Path, names: list[str]) -> list[Loss]:
    losses = []
    for name in names:
        told(f"fault: {name}")
        place = room / name
        place.mkdir(parents=True)
        with site(place, Plan(replicas=2, parallel=16)) as found:
            losses.append(uvloop.run(under_load(found, name)))
    told("")
    return losses


# -- what is printed --------------------------------------------------------------------------------------------------


def judged(started: list[Start], losses: list[Loss], poll_s: float) -> list[Line]:
    lines = []
    if started:
        lines.append(
            Line("sbatch to first token, beyond Slurm's part", max(s.ours for s in started), START_LIMIT_S, " s")
        )
    if losses:
        lines.append(Line("out of rotation after", max(loss.rotation for loss in losses), ROTATION_LIMIT_S, " s"))
        lines.append(Line("asked for again after", max(loss.asked for loss in losses), poll_s, " s"))
    return lines


def report(started: list[Start], losses: list[Loss], poll_s: float) -> str:
    parts = []
    if started:
        cells = [["start", "Slurm's s", "report s", "engine s", "client s", "ours s"]]
        for number, each in enumerate(started, 1):
            times = (each.slurm, each.report, each.load, each.serve, each.ours)
            cells.append([str(number), *(shown(value, 2) for value in times)])
        parts.append(table(cells))
    if losses:
        cells = [["fault", "failed", "out of rotation s", "Slurm knows s", "asked again after that s", "two ready s"]]
        for loss in losses:
            seconds = (loss.rotation, loss.known, loss.asked, loss.ready)
            cells.append([loss.fault, str(loss.failed), *(shown(value, 1) for value in seconds)])
        parts.append(table(cells))
    parts.append(table(rows(judged(started, losses, poll_s))))
    return "\n\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cold_start", description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--faults", default=",".join(FAULTS), help=f"some of {','.join(FAULTS)}; each in turn")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep the gateways' logs and states here")
    options = parser.parse_args()
    names = [name for name in options.faults.split(",") if name]
    if unknown := [name for name in names if name not in FAULTS]:
        parser.error(f"unknown faults: {', '.join(unknown)}")
    allow_many_files()
    with term_is_exit(), tempfile.TemporaryDirectory(prefix="slurmgate-bench-") as temporary:
        room = options.logs.absolute() if options.logs is not None else Path(temporary)
        try:
            place = room / "starts"
            place.mkdir(parents=True)
            started = starts(place, options.starts) if options.starts else []
            losses = faults(room, names)
        except (NotInstalled, DidNotStart) as error:
            print(f"cannot: {error}")
            return 1
    poll_s = Plan().poll_calm_s
    print(f"{machine()}\nllama.cpp on a cluster of four nodes; heartbeat {Plan().heartbeat_s:g} s, poll {poll_s:g} s\n")
    print(report(started, losses, poll_s))
    return 0 if all(line.judgement is Judgement.OK for line in judged(started, losses, poll_s)) else 1


if __name__ == "__main__":
    sys.exit(main())
