"""`--slow-streams`: a thousand streams at once, each a token a second: what does holding a stream cost?"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from .compare import told
from .load import Load, chat_request, in_ms
from .mock_engine import MODEL
from .peers import start_all
from .processes import Cpu, cpu, family, memory_mb
from .report import machine, shown, table
from .targets import Target, engine

NAMES = ("slurmgate", "vllm-router", "nginx", "direct")
"""LiteLLM's proxy is not among them: it needs a millisecond of CPU a chunk, so 1,000 chunks a second are all it has."""


@dataclass(frozen=True, slots=True)
class Slow:
    """One target under slow streams. NaN where no process stands between.

    bad           streams that did not end as they must
    seconds       from the first stream's start to the last one's end
    chunks        events in all
    first_*_ms    from sending a request to its first byte, less the time that the engine takes for its first token
    stream_kib    what a stream that is open takes of resident memory: the most while all were open, less that before
    """

    name: str
    bad: int
    seconds: float
    chunks: int
    used: Cpu
    first_p50_ms: float
    first_p99_ms: float
    gap_p99_ms: float
    stream_kib: float


async def watched(load: Load, pids: Sequence[int]) -> float:
    """Run the load; the most resident memory that was seen, in MiB."""
    running = asyncio.get_running_loop().create_task(load.run(), name="load")
    most = memory_mb(pids)
    while not running.done():
        await asyncio.wait((running,), timeout=0.5)
        most = max(most, memory_mb(pids))
    running.result()
    return most


def hold(target: Target, streams: int, chunks: int, interval_s: float) -> Slow:
    """Open the streams evenly over one interval, so that their tokens do not come all at once, and see them end."""
    request = chat_request(MODEL, target.key, stream=True)
    pids = family(target.pid) if target.pid is not None else []
    load = Load(
        target.port, request, connections=streams, requests=streams, events=chunks + 2, ramp_s=max(1.0, interval_s)
    )
    gc.collect()
    gc.disable()
    try:
        rest_mb, before, begun = memory_mb(pids), cpu(pids), time.perf_counter()
        most_mb = uvloop.run(watched(load, pids))
        seconds, used = time.perf_counter() - begun, cpu(pids) - before
    finally:
        gc.enable()
    return Slow(
        name=target.name,
        bad=load.bad,
        seconds=seconds,
        chunks=load.received,
        used=used,
        first_p50_ms=in_ms(load.firsts, 0.5) - interval_s * 1e3,
        first_p99_ms=in_ms(load.firsts, 0.99) - interval_s * 1e3,
        gap_p99_ms=in_ms(load.gaps, 0.99),
        stream_kib=(most_mb - rest_mb) * 1024 / streams if pids else math.nan,
    )


def run(room: Path, streams: int, seconds: float, interval_s: float) -> list[Slow]:
    """All targets in turn, before an engine of their own pace. Says who is missing."""
    chunks = max(1, round(seconds / interval_s))
    with contextlib.ExitStack() as stack:
        mock = stack.enter_context(engine(room, chunks, interval_s * 1e3))
        targets, missing = start_all(stack, NAMES, room, mock.port)
        for line in missing:
            print(f"without {line}\n")
        results = []
        for target in targets:
            told(f"slow streams: {target.name}")
            results.append(hold(target, streams, chunks, interval_s))
        told("")
    return results


def report(results: Sequence[Slow], streams: int, seconds: float, interval_s: float) -> str:
    rows = [
        [
            *("slow streams", "bad", "CPU ms per s", "user", "system", "CPU/chunk us"),
            *("TTFT p50 ms", "p99 ms", "gap p99 ms", "KiB per stream"),
        ]
    ]
    for result in results:
        none = math.isnan(result.stream_kib)  # no process
        per_s = [math.nan if none else value / result.seconds * 1e3 for value in cpu_parts(result.used)]
        rows.append(
            [
                result.name,
                str(result.bad),
                *(shown(value, 1) for value in per_s),
                shown(math.nan if none else result.used.total / max(result.chunks, 1) * 1e6, 1),
                shown(result.first_p50_ms, 1),
                shown(result.first_p99_ms, 1),
                shown(result.gap_p99_ms, 1),
                shown(result.stream_kib, 1),
            ]
        )
    return (
        f"{machine()}\n{streams} streams open at once, a token each {interval_s:g} s, for {seconds:g} s; TTFT without "
        f"the engine's own {interval_s:g} s\n\n{table(rows)}"
    )


def cpu_parts(used: Cpu) -> tuple[float, float, float]:
    """All, user, system: the split by ticks is put on the exact sum."""
    ticks = used.user + used.system
    share = used.system / ticks if ticks else math.nan
    return used.total, used.total * (1 - share), used.total * share


def passed(results: Sequence[Slow]) -> bool:
    """Whether each of the gateway's streams ended as it must."""
    return bool(results) and results[0].name == NAMES[0] and not results[0].bad
