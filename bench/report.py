"""What is printed: tables of figures, and the machine that they come from."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .load import Figures
from .peers import Target


@dataclass(frozen=True, slots=True)
class Rounds:
    """All measurements of one target, in the order in which they were made."""

    target: Target
    plain: list[Figures] = field(default_factory=list)
    stream: list[Figures] = field(default_factory=list)

    @property
    def bad(self) -> int:
        return sum(figures.bad for figures in (*self.plain, *self.stream))


def median(rounds: Sequence[Figures], name: str) -> float:
    values: list[float] = [getattr(figures, name) for figures in rounds]
    return statistics.median(values)


def ratios(ours: Sequence[Figures], theirs: Sequence[Figures]) -> list[float]:
    """Of CPU, round by round: what was measured side by side had the same machine."""
    pairs = zip(ours, theirs, strict=True)
    return [a.cpu_us / b.cpu_us if b.cpu_us > 0 else math.nan for a, b in pairs]


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
    return (
        f"{cores} cores{f' ({model})' if model else ''}, Linux {platform.release()}, Python {platform.python_version()}"
    )


def start_table(all_rounds: Sequence[Rounds]) -> str:
    rows = [["", "listens after s", "first answer after s", "RSS at rest MiB"]]
    for rounds in all_rounds:
        target = rounds.target
        if target.pid is not None:
            rows.append([target.name, shown(target.start_s, 2), shown(target.answer_s, 2), shown(target.rest_mb)])
    return table(rows)


def load_table(all_rounds: Sequence[Rounds]) -> str:
    """Medians over the rounds, of the ratios too; bad responses are added up."""
    first = all_rounds[0]
    rows = [
        [
            *("", "CPU/req us", "req/s", "p50 ms", "p99 ms", "|"),
            *("CPU/chunk us", "TTFT p50 ms", "TTFT p99 ms", "gap p99 ms", "|"),
            *("RSS MiB", "bad", "|", f"{first.target.name}/it: req", "chunk"),
        ]
    ]
    for rounds in all_rounds:
        plain, stream = rounds.plain, rounds.stream
        of_request = statistics.median(ratios(first.plain, plain))
        of_chunk = statistics.median(ratios(first.stream, stream))
        rows.append(
            [
                rounds.target.name,
                shown(median(plain, "cpu_us")),
                shown(median(plain, "per_s")),
                shown(median(plain, "p50_ms"), 2),
                shown(median(plain, "p99_ms"), 2),
                "|",
                shown(median(stream, "cpu_us"), 1),
                shown(median(stream, "first_p50_ms"), 1),
                shown(median(stream, "first_p99_ms"), 1),
                shown(median(stream, "gap_p99_ms"), 1),
                "|",
                shown(median(stream, "memory_mb")),
                str(rounds.bad),
                "|",
                shown(of_request, 2) if rounds is not first else "",
                shown(of_chunk, 2) if rounds is not first else "",
            ]
        )
    return table(rows)


def spread(all_rounds: Sequence[Rounds]) -> str:
    """The ratios of each single round: how far they are apart tells how far to trust the median."""
    first = all_rounds[0]
    rows = [["ratio of CPU", "per", "by round"]]
    for rounds in all_rounds[1:]:
        if rounds.target.pid is None:
            continue
        for word, ours, theirs in (("req", first.plain, rounds.plain), ("chunk", first.stream, rounds.stream)):
            each = [shown(ratio, 2) for ratio in ratios(ours, theirs)]
            rows.append([f"{first.target.name} / {rounds.target.name}", word, " ".join(each)])
    return table(rows) if len(rows) > 1 else ""


def as_json(all_rounds: Sequence[Rounds], settings: dict[str, Any], missing: Sequence[str]) -> dict[str, Any]:
    """Everything, NaN as null."""

    def values(item: Any) -> dict[str, Any]:
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(item).items()}

    targets = {}
    for rounds in all_rounds:
        about = values(rounds.target)
        del about["key"], about["pid"], about["port"]
        plain, stream = map(values, rounds.plain), map(values, rounds.stream)
        targets[rounds.target.name] = {**about, "plain": list(plain), "stream": list(stream)}
    return {"machine": machine(), "settings": settings, "missing": list(missing), "targets": targets}
