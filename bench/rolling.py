"""Replicas that reach their wall times under constant load, on a real Slurm with a real engine.

    python -m bench.rolling [--generations 5] [--replicas 2] [--wall-time-min 2] [--streams 64] [--rate 20]

Nothing is simulated: a cluster of four nodes on this machine, llama.cpp in jobs with a wall time of minutes, the
gateway as a process of its own. Every stream is followed by the next one, and plain requests come at a constant rate,
until each replica has been replaced `--generations` times.

It must reach: no failed request, never more than one job above the wanted number. Ends with status 1 where it does not.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from .compare import told
from .constant import Constant, Outcome
from .estimates import percentile
from .processes import DidNotStart, allow_many_files, term_is_exit
from .report import machine, shown, table
from .slurm_site import MODEL, Event, JobCount, Plan, Site, first, site
from .targets import NotInstalled
from .verdict import Judgement, Line, rows

AROUND_S = 5.0
"""Requests asked within so many seconds of a successor's becoming ready met a hand-over."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """One replica that took the place of another one. Seconds; times of the epoch.

    to_start  from its submission to the agent's first report
    to_ready  from there to its first token
    drained   from the order to the old replica to go, until it had gone
    """

    successor: str
    ready_at: float
    to_start: float
    to_ready: float
    drained: float

    @property
    def all_s(self) -> float:
        return self.to_start + self.to_ready + self.drained


def hand_overs(events: Sequence[Event], wanted: int) -> list[HandOver]:
    """By the gateway's log: the first `wanted` that were ready are the first generation, and the n-th that went was
    replaced by the n-th that came after those. One that has not gone yet is left out."""
    told = sorted(events, key=lambda event: event.at)
    went = dict.fromkeys(event.replica for event in told if event.state == "draining")
    came = list(dict.fromkeys(event.replica for event in told if event.state == "ready"))[wanted:]
    found = []
    for old, new in zip(went, came, strict=False):
        submitted, starting, ready = (first(told, new, state) for state in ("submitted", "starting", "ready"))
        draining, stopped = (first(told, old, state) for state in ("draining", "stopped"))
        if submitted and starting and ready and draining and stopped:
            found.append(HandOver(new, ready, starting - submitted, ready - starting, stopped - draining))
    return found


@dataclass(frozen=True, slots=True)
class Result:
    streams: Outcome
    plain: Outcome
    hand_overs: list[HandOver]
    wanted: int
    most: int
    with_ends: int
    seconds: float

    @property
    def failures(self) -> list[tuple[float, str]]:
        return sorted([*self.streams.failures, *self.plain.failures])

    def lines(self) -> list[Line]:
        """What it must reach."""
        return [
            Line("failed requests", float(len(self.failures)), 0.0),
            Line("jobs at once, beyond those wanted", float(self.most - self.wanted), 1.0),
        ]


def around(firsts: Sequence[tuple[float, float]], moments: Sequence[float]) -> tuple[list[float], list[float]]:
    """Times to first token of the requests that met a hand-over, and of the others."""
    met: list[float] = []
    others: list[float] = []
    for at, first_s in firsts:
        near = any(abs(at - moment) <= AROUND_S for moment in moments)
        (met if near else others).append(first_s)
    return met, others


async def loaded(found: Site, options: argparse.Namespace) -> tuple[Constant, list[HandOver]]:
    """The load, until every replica has been replaced often enough."""
    load = Constant(
        found.gateway.port, MODEL, found.key, streams=options.streams, rate=options.rate, tokens=options.tokens
    )
    enough = options.generations * options.replicas
    limit_s = 60.0 * options.wall_time_min * options.generations + 120
    running = asyncio.get_running_loop().create_task(load.run(), name="load")
    begun, seen = time.monotonic(), hand_overs(found.events(), options.replicas)
    while len(seen) < enough and not running.done():
        told(f"{time.monotonic() - begun:.0f} s, {len(seen)} of {enough} replicas replaced")
        if time.monotonic() - begun > limit_s:
            break
        await asyncio.sleep(1.0)
        seen = await asyncio.to_thread(lambda: hand_overs(found.events(), options.replicas))
    told("")
    load.end()
    await running
    return load, seen


def measure(room: Path, options: argparse.Namespace) -> Result:
    wall_time_s = 60 * options.wall_time_min
    plan = Plan(
        replicas=options.replicas,
        wall_time=f"00:{options.wall_time_min:02}:00",
        lead_s=wall_time_s / 2,
        drain_timeout_s=min(30.0, wall_time_s / 4),
    )
    with site(room, plan) as found, JobCount(found) as count:
        begun = time.monotonic()
        load, seen = uvloop.run(loaded(found, options))
        seconds = time.monotonic() - begun
    return Result(load.streams, load.plain, seen, options.replicas, count.most, count.with_ends, seconds)


def report(result: Result) -> str:
    cells = [["successor", "submitted, to start s", "to first token s", "old one drained s", "in all s"]]
    cells += [
        [str(number), *(shown(value, 2) for value in (each.to_start, each.to_ready, each.drained, each.all_s))]
        for number, each in enumerate(result.hand_overs, 1)
    ]
    moments = [each.ready_at for each in result.hand_overs]
    figures = [
        ["", "answered", "failed", "TTFT p50 ms", "p99 ms", "longest ms", "p99 ms at a hand-over", "p99 ms else"]
    ]
    for name, outcome in (("streams", result.streams), ("plain requests", result.plain)):
        # a plain request's first token comes with its last one
        times = [each for _, each in outcome.firsts]
        met, others = around(outcome.firsts, moments)
        shares = (percentile(times, 0.5), percentile(times, 0.99), max(times, default=float("nan")))
        p99s = (percentile(met, 0.99), percentile(others, 0.99))
        row = [name, str(outcome.whole), str(len(outcome.failures))]
        figures.append([*row, *(shown(value * 1e3) for value in (*shares, *p99s))])
    said = [f"  {time.strftime('%H:%M:%S', time.localtime(at))} {why}" for at, why in result.failures[:10]]
    jobs = (
        f"jobs at once: {result.most} at most ({result.with_ends} with those that were ending), wanted {result.wanted}"
    )
    return "\n\n".join([table(cells), table(figures), "\n".join([jobs, *said]), table(rows(result.lines()))])


def settings(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.rolling", description="Wall times under constant load.")
    parser.add_argument("--generations", type=int, default=5, help="how often each replica is replaced (5)")
    parser.add_argument("--replicas", type=int, default=2, help="wanted (2); the cluster has four nodes")
    parser.add_argument("--wall-time-min", type=int, default=2, help="of each job, 2 to 59 (2)")
    parser.add_argument("--streams", type=int, default=64, help="open at all times (64)")
    parser.add_argument("--rate", type=float, default=20.0, help="plain requests a second (20)")
    parser.add_argument("--tokens", type=int, default=200, help="in a stream (200)")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep the gateway's log and state here")
    options = parser.parse_args(arguments)
    if not 2 <= options.wall_time_min <= 59:  # the half of a minute is less than Slurm's own delays
        parser.error("--wall-time-min: expected 2 to 59")
    if not 1 <= options.replicas <= 3:
        parser.error("--replicas: expected 1 to 3: each takes a node, and a successor takes the fourth")
    return options


def main() -> int:
    options = settings()
    allow_many_files()
    with term_is_exit(), tempfile.TemporaryDirectory(prefix="slurmgate-bench-") as temporary:
        room = options.logs.absolute() if options.logs is not None else Path(temporary)
        room.mkdir(parents=True, exist_ok=True)
        try:
            result = measure(room, options)
        except (NotInstalled, DidNotStart) as error:
            print(f"cannot: {error}")
            return 1
    print(machine())
    print(
        f"llama.cpp, {options.replicas} replicas with a wall time of {options.wall_time_min} min, {options.streams} "
        f"streams of {options.tokens} tokens, {options.rate:g} plain requests/s; {result.seconds:.0f} s\n"
    )
    print(report(result))
    complete = len(result.hand_overs) >= options.generations * options.replicas
    if not complete:
        print(f"only {len(result.hand_overs)} replicas were replaced in this time")
    reached = all(line.judgement is Judgement.OK for line in result.lines())
    return 0 if complete and reached else 1


if __name__ == "__main__":
    sys.exit(main())
