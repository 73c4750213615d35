"""One `slurmgate bench`: first answers, the measurement, and what is shown and written, however it ends."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import orjson
import uvloop
from rich.console import Console

from proxy.terminal import Mistake

from . import plot
from .load import Cell, Clients, Plan, measure
from .progress import Bar, Silent
from .show import Results, document, figures_rows, introduction, share_rows, table
from .targets import Target
from .warmup import first_answer, word_count

INTERRUPTED = 130
"""The exit status after Ctrl-C: 128 + SIGINT, as shells have it."""


@dataclass(frozen=True, slots=True)
class Output:
    """Where results go beside the terminal."""

    json_file: Path | None = None
    plot_file: Path | None = None

    def check(self) -> None:
        """Before anything is measured. Raises `Mistake`."""
        if self.plot_file is not None and not plot.is_possible():
            raise Mistake(plot.MISSING)
        files = [self.json_file] if self.json_file is not None else []
        files += plot.files_of(self.plot_file) if self.plot_file is not None else []
        for file in files:
            if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
                raise Mistake(f"{file} cannot be written")


def run(plan: Plan, targets: Sequence[Target], output: Output) -> int:
    """The exit status. Raises `Mistake` for what the user can mend."""
    output.check()
    allow_connections(max(plan.users) * len(targets))
    status = Console(stderr=True, markup=False, highlight=False)
    begun_at = time.time()
    cells: list[Cell] = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        plan, interrupted = runner.run(_session(plan, targets, cells, status))
    results = Results(plan, tuple(targets), tuple(cells), begun_at, version("slurmgate"), interrupted)
    if not results.levels:
        raise Mistake("stopped before anything was measured")
    show(results)
    write(results, output)
    if interrupted:
        status.print("stopped: these are the figures of what was answered until then")
        return INTERRUPTED
    if not any(figures.requests > figures.failed for level in results.levels.values() for figures in level.values()):
        raise Mistake("no request was answered")
    return 0


def allow_connections(count: int) -> None:
    """A user holds a connection, and a file descriptor with it. Raises `Mistake` where the system allows fewer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + 64
    if soft < needed and hard != resource.RLIM_INFINITY and hard < needed:
        raise Mistake(f"{count} connections are more than this system allows a process (ulimit -Hn: {hard})")
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def show(results: Results) -> None:
    console = Console(width=None if sys.stdout.isatty() else 240, markup=False, highlight=False)
    console.print(introduction(results))
    console.print("latencies: p50 / p95 / p99\n")
    console.print(table(*figures_rows(results), left=frozenset({"by", "errors"})))
    titles, rows = share_rows(results)
    if rows:
        console.print("\nwhat the gateway adds: p50 / p95 / p99, each with gateway / direct\n")
        console.print(table(titles, rows))


def write(results: Results, output: Output) -> None:
    try:
        if output.json_file is not None:
            data = orjson.dumps(document(results), option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS)
            output.json_file.write_bytes(data + b"\n")
        if output.plot_file is not None:
            plot.draw(results, output.plot_file)
    except OSError as error:
        raise Mistake(f"the results cannot be written: {error}") from None


async def _session(plan: Plan, targets: Sequence[Target], cells: list[Cell], console: Console) -> tuple[Plan, bool]:
    """The plan with prompts as they were measured, and whether somebody stopped it."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  # told to the type checker
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)
    opened = [Clients(target, plan.timeout_s) for target in targets]
    try:
        with console.status("waiting for a first answer") if console.is_terminal else Silent():
            for clients in opened:
                for place, client in zip(clients.target.places, clients.each, strict=True):
                    await first_answer(plan, clients.target, place, client)
            plan = replace(plan, prompts=replace(plan.prompts, count=await word_count(plan, opened)))
        with Bar(plan, len(opened), console) as bar:
            await measure(plan, opened, cells, bar)
    except asyncio.CancelledError:
        task.uncancel()
        return plan, True
    finally:
        for clients in opened:
            await clients.aclose()
    return plan, False
