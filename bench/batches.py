"""A batch of 50,000 lines: what a line costs, what it takes of memory, and what everybody else notices of it.

    python -m bench.batches [--lines 50000] [--quick] [--only cost,memory,loop,interactive] [--json out.json]

cost         Rounds of a plain load (32 connections) and a batch of a tenth of the lines, in turns on one gateway, both
             with the same request of 1.3 kB: CPU of the gateway's process for each, and the ratio of each pair. A
             batch's CPU is all that it takes from its creation to its end: validation, lines, commits, files. Then one
             batch of all the lines, of which every line of output is looked at. The engine answers at once. Before each
             batch the gateway has 11 s without a request: lines start at a slow pace for 10 s after somebody has asked.
memory       Resident memory of a fresh gateway, after a plain load and a small batch, against its highest while a file
             of 200 MB is uploaded, validated, run and finished: 50,000 lines of 4 kB, and 4,000 lines of 50 kB.
loop         Plain requests at a constant 200/s, an open loop. Meanwhile a batch of all the lines is validated (and
             rests: it is paused at once), and cancelled, again and again: latency while it is validated and while not.
interactive  One engine of 32 seats that answers a plain request after 300 ms and streams 60 tokens 30 ms apart. Eight
             users with plain requests and eight with streams, each thinking for 0.2 to 1 s between two: about nine
             requests are open at a time. A batch that would fill all seats is paused and resumed in turns of 10 s: p99
             of plain requests and of the first token.

Ends with status 1 where a target is missed, or a line is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .batch_client import BatchError, Client, Times, done, write_input
from .batch_latency import Interactive, Loop, interactive, judged, loop
from .compare import told
from .estimates import Ratio, compare
from .load import chat_request, measure
from .mock_engine import MODEL
from .peers import slurmgate_for
from .processes import DidNotStart, allow_many_files, cpu, family, memory_mb, term_is_exit
from .report import machine, shown, table
from .targets import NotInstalled, engine

LINES = 50_000
CPU_RATIO = 2.0
GROWTH_MB = 50.0

PARTS = ("cost", "memory", "loop", "interactive")
QUIET_S = 11.0
SHAPES = ((50_000, 4_100), (4_000, 50_000))
_MB_PER_MIB = 1.048576


@dataclass(frozen=True, slots=True)
class Plan:
    """lines   of the large batch
    rounds     of the cost; `turn_lines` in each of its batches, `requests` in each plain load
    shapes     of memory: (lines, bytes of each)
    looks      validations in `loop`
    turns      of `interactive`, with and without; `turn_s` each
    """

    lines: int
    rounds: int
    turn_lines: int
    requests: int
    shapes: tuple[tuple[int, int], ...]
    looks: int
    turns: int
    turn_s: float


def plan_of(lines: int, *, quick: bool) -> Plan:
    if quick:
        shapes = tuple((count // 5, size) for count, size in SHAPES)
        return Plan(min(lines, 10_000), 3, min(lines, 2000), 2000, shapes, 2, 3, 6.0)
    return Plan(lines, 8, lines // 10, 5000, SHAPES, 8, 8, 10.0)


# -- cost ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU in microseconds: of the turns; `large_us` of a line of the large batch."""

    line_us: list[float]
    plain_us: list[float]
    lines: int
    large_us: float
    times: Times
    bad: int

    @property
    def ratio(self) -> Ratio:
        return compare(self.line_us, self.plain_us)

    @property
    def large(self) -> float:
        return self.large_us / statistics.median(self.plain_us)

    @property
    def passed(self) -> bool:
        return not self.bad and self.ratio.paired <= CPU_RATIO and self.large <= CPU_RATIO

    def told(self) -> str:
        ratio, times = self.ratio, self.times
        rows = [["CPU us", *(str(number + 1) for number in range(len(self.line_us))), "large"]]
        rows += [["a plain request", *map(shown, self.plain_us), "-"]]
        rows += [["a line", *map(shown, self.line_us), shown(self.large_us)]]
        return (
            f"{table(rows)}\n"
            f"a line / a plain request: {shown(ratio.paired, 2)} ({shown(ratio.low, 2)} to {shown(ratio.high, 2)}"
            f"{'' if ratio.sure else ', all'}), the large batch by the median {shown(self.large, 2)} "
            f"(at most {CPU_RATIO:g}: {judged(self.passed)}); {self.bad} wrong answers\n"
            f"{self.lines} lines: validated in {times.validated:.1f} s, run in {times.running_s:.1f} s, "
            f"{self.lines / times.running_s:.0f} lines/s, finalized in {times.finalizing_s:.1f} s"
        )


def cost(room: Path, plan: Plan) -> Cost:
    """Raises `BatchError`, `NotInstalled`, `DidNotStart`."""
    with engine(room, 1, 0.0) as mock, slurmgate_for(room, [mock.port]) as target:
        assert target.pid is not None  # told to the type checker
        client, pids = Client(target), family(target.pid)
        plain = chat_request(MODEL, target.key, stream=False)
        small = client.upload(write_input(room / "turn.jsonl", plan.turn_lines))
        large = client.upload(write_input(room / "large.jsonl", plan.lines))
        bad = measure(target.port, target.pid, plain, connections=32, requests=plan.requests).bad
        line_us, plain_us = [], []
        for number in range(plan.rounds):
            told(f"cost: round {number + 1} of {plan.rounds}")
            figures = measure(target.port, target.pid, plain, connections=32, requests=plan.requests)
            bad += figures.bad
            plain_us.append(figures.cpu_us)
            time.sleep(QUIET_S)
            before = cpu(pids)
            card, _ = client.run(small)
            line_us.append((cpu(pids) - before).total / plan.turn_lines * 1e6)
            client.check_output(card, plan.turn_lines)
        told(f"cost: {plan.lines} lines")
        before = cpu(pids)
        card, times = client.run(large)
        used = cpu(pids) - before
        client.check_output(card, plan.lines)
    told("")
    return Cost(line_us, plain_us, plan.lines, used.total / plan.lines * 1e6, times, bad)


# -- memory ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Memory:
    """MiB resident: at rest, and the highest of each phase."""

    lines: int
    size: int
    rest_mb: float
    highest: dict[str, float] = field(default_factory=dict)

    @property
    def growth_mb(self) -> float:
        return (max(self.highest.values()) - self.rest_mb) * _MB_PER_MIB

    @property
    def passed(self) -> bool:
        return self.growth_mb < GROWTH_MB

    def told(self) -> str:
        grown = ", ".join(
            f"{phase} {(highest - self.rest_mb) * _MB_PER_MIB:+.1f}" for phase, highest in self.highest.items()
        )
        return (
            f"a file of {self.lines * self.size / 1e6:.0f} MB, {self.lines} lines: resident memory grew by "
            f"{self.growth_mb:.1f} MB over {self.rest_mb:.0f} MiB (less than {GROWTH_MB:g}: {judged(self.passed)}); "
            f"by phase: {grown}"
        )


class Watcher:
    """The highest resident memory of a gateway, by what it does at the time."""

    def __init__(self, pids: Sequence[int], memory: Memory) -> None:
        self.phase = "upload"
        self._pids = pids
        self._memory = memory
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory")

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            highest = self._memory.highest
            highest[self.phase] = max(highest.get(self.phase, 0.0), memory_mb(self._pids))


def memory(room: Path, lines: int, size: int) -> Memory:
    """Raises `BatchError`, `NotInstalled`, `DidNotStart`."""
    place = room / f"memory-{size}"
    place.mkdir()
    path = write_input(place / "large.jsonl", lines, size)
    with engine(place, 1, 0.0) as mock, slurmgate_for(place, [mock.port]) as target:
        assert target.pid is not None  # told to the type checker
        client, pids = Client(target), family(target.pid)
        plain = chat_request(MODEL, target.key, stream=False)
        bad = measure(target.port, target.pid, plain, connections=32, requests=2000).bad
        small = client.upload(write_input(place / "small.jsonl", 500))
        client.check_output(client.run(small)[0], 500)
        time.sleep(QUIET_S)
        memory = Memory(lines, size, memory_mb(pids))
        with Watcher(pids, memory) as watcher:
            told(f"memory: {lines} lines of {size} bytes")
            file_id = client.upload(path)
            watcher.phase = "validation"
            batch_id = client.create(file_id)["id"]
            client.until(batch_id, lambda card: card["status"] != "validating")
            watcher.phase = "run"
            client.until(batch_id, lambda card: done(card) >= card["request_counts"]["total"] > 0)
            watcher.phase = "finalizing"
            card = client.until(batch_id, lambda card: card["status"] in ("completed", "failed"))
            watcher.phase = "download"
            client.check_output(card, lines)
    if bad:
        raise BatchError(f"{bad} plain requests failed")
    told("")
    return memory


# -- all of it -------------------------------------------------------------------------------------------------------


def results(room: Path, plan: Plan, parts: Sequence[str]) -> Iterator[Cost | Memory | Loop | Interactive]:
    if "cost" in parts:
        yield cost(room, plan)
    if "memory" in parts:
        for lines, size in plan.shapes:
            yield memory(room, lines, size)
    if "loop" in parts:
        yield loop(room, plan.lines, plan.looks)
    if "interactive" in parts:
        yield interactive(room, plan.turns, plan.turn_s)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=LINES, help="of the large batch (50000)")
    parser.add_argument("--quick", action="store_true", help="a look: fewer lines, fewer turns")
    parser.add_argument("--only", default=",".join(PARTS), help="some of them, with commas between")
    parser.add_argument("--json", type=Path, help="every single measurement into this file")
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    allow_many_files()
    plan, well, found = plan_of(options.lines, quick=options.quick), True, []
    print(machine(), flush=True)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(term_is_exit())
            room = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-batches-")))
            for result in results(room, plan, parts):
                print(f"\n{result.told()}", flush=True)
                well = well and result.passed
                found.append({"part": type(result).__name__.lower(), "passed": result.passed, **asdict(result)})
    except (BatchError, NotInstalled, DidNotStart) as error:
        sys.exit(f"bench.batches: {error}")
    finally:
        if options.json:
            options.json.write_text(json.dumps({"machine": machine(), "plan": asdict(plan), "results": found}))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
