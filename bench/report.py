"""What is printed: tables of figures, and the machine that they come from."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .compare import Plan, Turns, of_chunk, of_first_p99, of_request
from .estimates import Ratio
from .load import Figures


def median(turns: Sequence[Figures], name: str) -> float:
    return statistics.median([float(getattr(figures, name)) for figures in turns])


def share_of_system(turns: Sequence[Figures]) -> float:
    """The kernel's part of the CPU time: of all turns together, since a single one has few of the clock's ticks."""
    user, system = (sum(getattr(figures, name) for figures in turns) for name in ("user_us", "system_us"))
    return float(system / (user + system)) if user + system > 0 else math.nan


def shown(value: float, digits: int = 0) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they must be; the first is text, the others are numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def machine() -> str:
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else ""
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    return (
        f"{cores} cores{f' ({model})' if model else ''}, Linux {platform.release()}, Python "
        f"{platform.python_version()}; load average {load:.1f}"
    )


def start_table(everybody: Sequence[Turns]) -> str:
    rows = [["", "listens after s", "first answer after s", "RSS at rest MiB"]]
    for turns in everybody:
        target = turns.target
        if target.pid is not None:
            rows.append([target.name, shown(target.start_s, 2), shown(target.answer_s, 2), shown(target.rest_mb)])
    return table(rows)


def part(share: float) -> str:
    """Of the load, where it is not the whole."""
    return "all" if share == 1 else f"{share:.2g} of it"


def plain_table(everybody: Sequence[Turns]) -> str:
    """Medians over the turns; bad responses are added up."""
    rows = [["plain requests", "CPU/req us", "user", "system", "req/s", "p50 ms", "p99 ms", "bad", "answers", "load"]]
    for turns in everybody:
        plain = turns.plain
        cost, system = median(plain, "cpu_us"), share_of_system(plain)
        rows.append(
            [
                turns.target.name,
                *(shown(cost), shown(cost * (1 - system)), shown(cost * system)),
                *(shown(median(plain, "per_s")), shown(median(plain, "p50_ms"), 2), shown(median(plain, "p99_ms"), 2)),
                *(str(turns.bad_plain), str(sum(figures.requests for figures in plain))),
                part(turns.target.share),
            ]
        )
    return table(rows)


def stream_table(everybody: Sequence[Turns]) -> str:
    """Likewise of streams."""
    rows = [
        [
            *("streams", "CPU/chunk us", "user", "system", "TTFT p50 ms", "p99 ms", "gap p99 ms"),
            *("RSS MiB", "bad", "answers", "load"),
        ]
    ]
    for turns in everybody:
        stream = turns.stream
        cost, system = median(stream, "cpu_us"), share_of_system(stream)
        rows.append(
            [
                turns.target.name,
                *(shown(cost, 1), shown(cost * (1 - system), 1), shown(cost * system, 1)),
                *(shown(median(stream, name), 1) for name in ("first_p50_ms", "first_p99_ms", "gap_p99_ms")),
                shown(median(stream, "memory_mb")),
                *(str(turns.bad_streams), str(sum(figures.requests for figures in stream))),
                part(turns.target.at_once),
            ]
        )
    return table(rows)


def failures(everybody: Sequence[Turns]) -> str:
    """A line for everyone whose figures are not to be trusted: what failed may have cost less, or more."""
    lines = [
        f"FAILED: {turns.target.name}, {turns.bad_plain} plain requests, {turns.bad_streams} streams"
        for turns in everybody
        if turns.bad_plain or turns.bad_streams
    ]
    return "\n".join([*lines, ""]) if lines else ""


def ratio_table(everybody: Sequence[Turns]) -> str:
    """What the first costs, by what each other one does."""
    ours = everybody[0]
    rows = [[f"{ours.target.name} /", "of", "median of pairs", "90 % interval", "ratio of medians", "pairs"]]
    kinds = (("CPU/req", of_request), ("CPU/chunk", of_chunk), ("TTFT p99", of_first_p99))
    for theirs in everybody[1:]:
        for word, ratio_of in kinds:
            ratio = ratio_of(ours, theirs)
            unequal = theirs.target.at_once != ours.target.at_once and ratio_of is of_first_p99
            if ratio.pairs and not unequal:
                rows.append([theirs.target.name, word, *ratio_cells(ratio)])
    return table(rows)


def ratio_cells(ratio: Ratio) -> list[str]:
    digits = 4 if ratio.paired < 0.1 else 2
    interval = f"{shown(ratio.low, digits)} to {shown(ratio.high, digits)}"
    if not ratio.sure:
        interval += " (all)"
    return [shown(ratio.paired, digits), interval, shown(ratio.of_medians, digits), str(ratio.pairs)]


def plainly(item: Any) -> dict[str, Any]:
    """A dataclass for JSON, NaN as null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(item).items()}


def as_json(everybody: Sequence[Turns], plan: Plan, missing: Sequence[str]) -> dict[str, Any]:
    """Every single measurement."""
    targets = {}
    for turns in everybody:
        about = plainly(turns.target)
        del about["key"], about["pid"], about["port"]
        plain, stream = map(plainly, turns.plain), map(plainly, turns.stream)
        targets[turns.target.name] = {**about, "plain": list(plain), "stream": list(stream)}
    ratios = {
        theirs.target.name: {
            "cpu_per_request": plainly(of_request(everybody[0], theirs)),
            "cpu_per_chunk": plainly(of_chunk(everybody[0], theirs)),
            "first_token_p99": plainly(of_first_p99(everybody[0], theirs)),
        }
        for theirs in everybody[1:]
    }
    return {"machine": machine(), "plan": asdict(plan), "missing": list(missing), "ratios": ratios, "targets": targets}
