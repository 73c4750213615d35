"""What was measured, for people (tables) and for programs (one JSON document). Pure: values in, values out."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .figures import PERCENTILES, Figures, Share, Spread, share
from .load import Cell, Plan
from .targets import DIRECT, GATEWAY, Target

if TYPE_CHECKING:
    from rich.table import Table

Json = dict[str, Any]

LATENCIES = {"ttft": "TTFT", "itl": "ITL", "e2e": "end to end"}
"""Shown on the terminal; the JSON has TPOT, too."""


@dataclass(frozen=True, slots=True)
class Results:
    """One run.

    begun_at      seconds since the epoch
    interrupted   somebody stopped it: the last cells hold less than was planned
    """

    plan: Plan
    targets: tuple[Target, ...]
    cells: tuple[Cell, ...]
    begun_at: float
    version: str
    interrupted: bool = False

    @property
    def levels(self) -> dict[int, dict[str, Figures]]:
        """Figures by number of users and target; cells without a sample are left out."""
        levels: dict[int, dict[str, Figures]] = {}
        for cell in self.cells:
            if cell.samples:
                levels.setdefault(cell.users, {})[cell.target] = cell.figures()
        return levels


def spread_of(figures: Figures, latency: str) -> Spread:
    value: Spread = getattr(figures, f"{latency}_ms")
    return value


def shares(level: dict[str, Figures]) -> dict[str, dict[int, Share]]:
    """The gateway's, by latency and percentile; empty where one of the two was not measured."""
    if not {DIRECT, GATEWAY} <= level.keys():
        return {}
    ours, theirs = level[GATEWAY], level[DIRECT]
    return {
        name: share(spread_of(ours, name), spread_of(theirs, name))
        for name in ("ttft", "itl", "tpot", "e2e")
        if spread_of(ours, name).count and spread_of(theirs, name).count
    }


# -- for people ------------------------------------------------------------------------------------------------------


def milliseconds(value: float) -> str:
    """Three digits that matter."""
    if math.isnan(value):
        return "-"
    size = abs(value)
    return f"{value:.2f}" if size < 10 else f"{value:.1f}" if size < 100 else f"{value:,.0f}"


def three(spread: Spread) -> str:
    if not spread.count:
        return "-"
    return " / ".join(milliseconds(spread.at(percent)) for percent in PERCENTILES)


def errors_text(figures: Figures) -> str:
    if not figures.errors:
        return "0"
    return ", ".join(f"{count} x {kind}" for kind, count in figures.errors.items())


def figures_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """Titles and rows: one row a number of users and target."""
    heads = [f"{title} ms" for title in LATENCIES.values()]
    titles = ["users", "by", "requests", *heads, "tokens/s", "per user", "errors"]
    rows = []
    for users, level in results.levels.items():
        for name, figures in level.items():
            rows.append(
                [
                    str(users),
                    name,
                    f"{figures.requests:,}",
                    *(three(spread_of(figures, latency)) for latency in LATENCIES),
                    f"{figures.output_tokens_per_s:,.1f}",
                    f"{figures.output_tokens_per_s_per_user:,.1f}",
                    errors_text(figures),
                ]
            )
    return titles, rows


def share_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """What the gateway adds: one row a number of users; no rows where only one target was measured."""
    titles = ["users", *(f"{title} ms (ratio)" for title in LATENCIES.values())]
    rows = []
    for users, level in results.levels.items():
        if found := shares(level):
            rows.append([str(users), *(_added(found.get(latency)) for latency in LATENCIES)])
    return titles, rows


def _added(share: dict[int, Share] | None) -> str:
    if share is None:
        return "-"
    return " / ".join(
        f"{'+' if part.difference_ms >= 0 else ''}{milliseconds(part.difference_ms)} ({ratio(part.ratio)})"
        for part in share.values()
    )


def ratio(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, left: frozenset[str] = frozenset()) -> Table:
    from rich.table import Table  # noqa: PLC0415  # only where something is shown

    shown = Table(box=None, pad_edge=False)
    for title in titles:
        shown.add_column(title, justify="left" if title in left else "right", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    return shown


def introduction(results: Results) -> str:
    plan = results.plan
    much = f"{plan.requests} requests a user" if plan.requests is not None else f"{plan.duration_s:g} s"
    count = plan.prompts.count
    prompts = f"{plan.prompts.prompt} tokens" + ("" if count.exact else " (nominal: about a word a token)")
    lines = [
        f"{plan.model}: prompts of {prompts}, answers of at most {plan.prompts.output} tokens, "
        f"{'streamed' if plan.stream else 'whole'}; closed loop, {much} in {plan.turns} turns, seed {plan.prompts.seed}"
    ]
    lines += [f"{target.name}: {', '.join(target.urls)}" for target in results.targets]
    counted = [figures.prompt_tokens_mean for level in results.levels.values() for figures in level.values()]
    counted = [mean for mean in counted if not math.isnan(mean)]
    if counted:
        lines.append(f"prompt tokens as the server counted them: {math.fsum(counted) / len(counted):.0f} on average")
    if not all(figures.by_usage for level in results.levels.values() for figures in level.values() if figures.requests):
        lines.append("the server gave no usage for some answers: there each event counts as one token")
    return "\n".join(lines)


# -- for programs ----------------------------------------------------------------------------------------------------


def document(results: Results) -> Json:
    """Times in the units of their names; what was not measured is null."""
    plan, prompts = results.plan, results.plan.prompts
    complete = {users: all(cell.complete for cell in results.cells if cell.users == users) for users in plan.users}
    document = {
        "slurmgate": results.version,
        "begun_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(results.begun_at)),
        "interrupted": results.interrupted,
        "model": plan.model,
        "loop": "closed",
        "users": list(plan.users),
        "requests_per_user": plan.requests,
        "duration_s": plan.duration_s,
        "turns": plan.turns,
        "stream": plan.stream,
        "timeout_s": plan.timeout_s,
        "extra": dict(plan.extra),
        "seed": prompts.seed,
        "prompt_tokens": {"low": prompts.prompt.low, "high": prompts.prompt.high, "exact": prompts.count.exact},
        "output_tokens": {"low": prompts.output.low, "high": prompts.output.high},
        "shared_prefix_tokens": prompts.shared,
        "targets": [{"name": target.name, "urls": target.urls} for target in results.targets],
        "levels": [
            {**document_of(users, level), "complete": complete[users]} for users, level in results.levels.items()
        ],
    }
    cleaned: Json = without_nan(document)
    return cleaned


def document_of(users: int, level: dict[str, Figures]) -> Json:
    """One number of users, not yet `without_nan`."""
    return {
        "users": users,
        "measured": {name: asdict(figures) for name, figures in level.items()},
        "gateway_share": {
            latency: {f"p{percent}": asdict(part) for percent, part in found.items()}
            for latency, found in shares(level).items()
        },
    }


def without_nan(value: Any) -> Any:
    """JSON has no NaN. Six digits are more than any of this is worth."""
    if isinstance(value, float):
        return None if math.isnan(value) or math.isinf(value) else float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_nan(each) for each in value]
    return value
