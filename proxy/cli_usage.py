"""`slurmgate usage`: requests and tokens, for people and for spreadsheets."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from .admin_options import day_of
from .terminal import ConfigOption, Mistake, StateOption, database, print_table, say

if TYPE_CHECKING:
    from .usage_report import Sum


class Format(StrEnum):
    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def usage(
    *,
    by: Annotated[str, typer.Option("--by", help="Any of key, project, model, day, with commas.")] = "day,model",
    since: Annotated[str, typer.Option("--since", metavar="7d|DATE", help="The first day (UTC).")] = "30d",
    until: Annotated[str | None, typer.Option("--until", metavar="DATE", help="The last day, which counts.")] = None,
    output: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.TABLE,
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
) -> None:
    """Show requests and tokens by key, project, model and day."""
    from .terms import UsageAsked, parsed
    from .usage_report import SHOWN, report

    first = day_of("--since", since)
    last = None if until is None else day_of("--until", until)
    if last is not None and last < first:
        raise Mistake(f"--until: {last} is before {first}, where --since begins")
    with database(config_file, state_dir) as engine:
        dimensions = parsed(UsageAsked, {"group_by": by}).group_by
        sums = report(engine, by=dimensions, since=first, until=last)
    names = [name for dimension in dimensions for name in SHOWN[dimension]]
    counts = ["requests", "failed", "prompt_tokens", "completion_tokens", "total_tokens"]
    match output:
        case Format.JSON:
            say(json.dumps([{name: getattr(one, name) for name in (*names, *counts)} for one in sums]))
        case Format.CSV:
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow([*names, *counts])
            writer.writerows([getattr(one, name) for name in (*names, *counts)] for one in sums)
        case Format.TABLE:
            print_usage(dimensions, sums, counts)


def print_usage(dimensions: Sequence[str], sums: Sequence[Sum], counts: Sequence[str]) -> None:
    rows = [
        (*(_label(one, dimension) for dimension in dimensions), *(f"{getattr(one, name):,}" for name in counts))
        for one in sums
    ]
    if len(sums) > 1:
        totals = (f"{sum(getattr(one, name) for one in sums):,}" for name in counts)
        rows.append(("total", *[""] * (len(dimensions) - 1), *totals))
    titles = (*dimensions, "requests", "failed", "prompt tokens", "completion tokens", "tokens")
    print_table(titles, rows, numbers=len(counts))


def _label(one: Sum, dimension: str) -> str:
    """A key's or project's name, its id where it has none any more."""
    name = getattr(one, f"{dimension}_name", None)
    return str(name or getattr(one, dimension, None) or getattr(one, f"{dimension}_id", None) or "-")
