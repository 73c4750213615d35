"""`--hung`: three replicas, one of which hangs under constant load. Who notices?

Two ways of hanging, both by stopping the engine's process:
    silent       the kernel goes on accepting connections for it, and nothing is ever answered
    unreachable  its backlog is full as well, so that new connections come to nothing
Before, while and after it hangs, requests come at a constant rate, whatever becomes of those before them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import signal
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from .compare import told
from .estimates import percentile
from .load import chat_request
from .mock_engine import MODEL
from .peers import slurmgate_for
from .processes import Process
from .report import machine, shown, table
from .targets import Target, engine

CONNECT_S = 1.0
FIRST_BYTE_S = 2.0
RATE = 200.0
ANSWER_MS = 50.0
PHASES = (("before", 5.0), ("hung", 15.0), ("after", 5.0))
KINDS = ("silent", "unreachable")
_BACKLOG = 8
_TOPICS = 64
_GIVE_UP_S = 30.0


@dataclass(slots=True)
class Phase:
    """What became of the requests that were sent in it. Latencies in seconds, of those that were answered."""

    name: str
    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def sent(self) -> int:
        return len(self.latencies) + len(self.failures)


@dataclass(frozen=True, slots=True)
class Outcome:
    kind: str
    phases: list[Phase]

    @property
    def failed(self) -> int:
        return sum(len(phase.failures) for phase in self.phases)

    @property
    def growth_s(self) -> float:
        """Of p99, from before to while it hung; NaN when nothing was answered."""
        before, hung = (percentile(phase.latencies, 0.99) for phase in self.phases[:2])
        return hung - before


class Arrivals:
    """Requests at a constant rate: an open loop, so that a slow answer does not hold the next request back."""

    def __init__(self, target: Target) -> None:
        self._port = target.port
        self._requests = [
            chat_request(MODEL, target.key, stream=False, topic=f"expert number {number}") for number in range(_TOPICS)
        ]
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def during(self, phase: Phase, seconds: float) -> None:
        """Send for so long. Answers may come later."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for number in range(round(seconds * RATE)):
            await asyncio.sleep(begun + number / RATE - loop.time())
            request = self._requests[number * 7 % _TOPICS]
            task = loop.create_task(self._one(phase, request), name="request")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def answered(self) -> None:
        """Wait for every answer, and close."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))
        for _, writer in self._idle:
            writer.close()

    async def _one(self, phase: Phase, request: bytes) -> None:
        begun = time.perf_counter()
        try:
            async with asyncio.timeout(_GIVE_UP_S):
                reader, writer = (
                    self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
                )
                writer.write(request)
                status, body = await answer(reader)
        except TimeoutError:
            phase.failures.append(f"no answer within {_GIVE_UP_S:g} s")
            return
        except (OSError, EOFError, ValueError) as error:
            phase.failures.append(type(error).__name__)
            return
        self._idle.append((reader, writer))
        if status == 200:
            phase.latencies.append(time.perf_counter() - begun)
        else:
            phase.failures.append(f"{status} {body[:200].decode(errors='replace')}")


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of an answer with a length. Raises `EOFError` if it ends early, `ValueError` if it is none."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    lengths = [line.partition(b":")[2] for line in lines if line.startswith(b"content-length:")]
    return int(lines[0].split()[1]), await reader.readexactly(int(lengths[0]) if lengths else 0)


@contextlib.contextmanager
def stopped(process: Process, kind: str) -> Iterator[None]:
    """The engine hangs while in it."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        with contextlib.ExitStack() as stack:
            if kind == "unreachable":
                fill_backlog(stack, process.port)
            yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def fill_backlog(stack: contextlib.ExitStack, port: int) -> None:
    """Connect to a process that accepts nothing until no connection comes about any more."""
    waiting = 0
    while waiting < 3:
        probe = stack.enter_context(socket.socket())
        probe.settimeout(0.1)
        try:
            refused = probe.connect_ex(("127.0.0.1", port))
        except TimeoutError:
            refused = errno.EAGAIN
        waiting += refused in (errno.EAGAIN, errno.ETIMEDOUT, errno.EINPROGRESS)


async def constant_load(target: Target, replica: Process, kind: str) -> list[Phase]:
    arrivals, phases = Arrivals(target), [Phase(name) for name, _ in PHASES]
    loop = asyncio.get_running_loop()
    for phase, (name, seconds) in zip(phases, PHASES, strict=True):
        told(f"{kind}: {name}, {seconds:g} s")
        with contextlib.ExitStack() as stack:
            if name == "hung":
                hanging = stopped(replica, kind)
                await loop.run_in_executor(None, stack.enter_context, hanging)  # filling takes a moment
            await arrivals.during(phase, seconds)
    await arrivals.answered()
    told("")
    return phases


def run(room: Path) -> list[Outcome]:
    """Each kind with a gateway and engines of its own. Raises `NotInstalled`, `DidNotStart`."""
    outcomes = []
    for kind in KINDS:
        place = room / kind
        place.mkdir()
        backlog = _BACKLOG if kind == "unreachable" else 4096
        with contextlib.ExitStack() as stack:
            replicas = [
                stack.enter_context(engine(place, 1, 1.0, answer_ms=ANSWER_MS, backlog=backlog)) for _ in range(3)
            ]
            ports = [replica.port for replica in replicas]
            gateway = slurmgate_for(place, ports, connect_s=CONNECT_S, first_byte_s=FIRST_BYTE_S)
            target = stack.enter_context(gateway)
            outcomes.append(Outcome(kind, uvloop.run(constant_load(target, replicas[1], kind))))
    return outcomes


def passed(outcomes: Sequence[Outcome]) -> bool:
    return all(not outcome.failed and outcome.growth_s <= CONNECT_S for outcome in outcomes)


def figures(outcome: Outcome) -> dict[str, Any]:
    """For JSON."""
    phases = [
        {"name": phase.name, "failures": phase.failures, "latencies_s": phase.latencies} for phase in outcome.phases
    ]
    growth_s = None if math.isnan(outcome.growth_s) else outcome.growth_s
    return {"kind": outcome.kind, "failed": outcome.failed, "p99_growth_s": growth_s, "phases": phases}


def report(outcomes: Sequence[Outcome]) -> str:
    rows = [["replica 2 of 3", "phase", "requests", "failed", "p50 ms", "p99 ms", "longest ms"]]
    said = []
    for outcome in outcomes:
        for phase in outcome.phases:
            times = sorted(phase.latencies) or [float("nan")]
            figures = (statistics.median(times), percentile(times, 0.99), times[-1])
            cells = [
                phase.name,
                str(phase.sent),
                str(len(phase.failures)),
                *(shown(value * 1e3, 1) for value in figures),
            ]
            rows.append([outcome.kind, *cells])
            said += [f"  {outcome.kind}, {phase.name}: {text}" for text in sorted(set(phase.failures))[:3]]
        judged = "ok" if passed([outcome]) else "missed"
        said.append(
            f"{outcome.kind}: {outcome.failed} failed (0 may), p99 grew by {outcome.growth_s * 1e3:.0f} ms (at most "
            f"the connect time-out, {CONNECT_S * 1e3:g} ms): {judged}"
        )
    return (
        f"{machine()}\n{RATE:g} requests/s, answered after {ANSWER_MS:g} ms; time-outs: connect {CONNECT_S:g} s, first "
        f"byte {FIRST_BYTE_S:g} s\n\n{table(rows)}\n" + "\n".join(said)
    )
