"""One `slurmgate bench`: first answers, the measurement, and what is shown and written, however it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from backends.errors import TransportError
from proxy.terminal import Mistake

from . import plot
from .asking import CHAT, Client, kind_of, refusal
from .figures import Sample
from .load import Cell, Clients, Plan, measure
from .prompts import WordCount, fitted, sample_words, text_of
from .show import Results, document, figures_rows, introduction, share_rows, table
from .targets import GATEWAY, Place, Target

INTERRUPTED = 130
"""The exit status after Ctrl-C: 128 + SIGINT, as shells have it."""

_TOKENIZE_S = 10.0
_FEW, _MANY = 50, 450
"""Words of the two prompts by which tokens are measured."""


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
        with console.status("waiting for a first answer") if console.is_terminal else _Silent():
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


# -- before ----------------------------------------------------------------------------------------------------------


async def first_answer(plan: Plan, target: Target, place: Place, client: Client) -> None:
    """One short request, so that connections, caches and a model that has to start are no part of the measurement.

    Raises `Mistake`: one sentence on what is wrong, and where it can be mended.
    """
    body: dict[str, Any] = {
        "model": plan.model,
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 1,
        "temperature": 0,
    }
    url = place.url
    try:
        async with asyncio.timeout(plan.timeout_s):
            answer = await client.send("POST", CHAT, orjson.dumps({**body, **plan.extra}))
            try:
                status, data = answer.status, await answer.read()
            finally:
                answer.close()
    except TimeoutError:
        raise Mistake(f"{url} gave no answer within {plan.timeout_s:g} s") from None
    except TransportError as error:
        kind = kind_of(error)
        if kind == "no connection":
            hint = ": is the gateway running? --url names another address" if target.name == GATEWAY else ""
            raise Mistake(f"nothing listens on {url}{hint}") from None
        raise Mistake(f"{url} gave no answer: {kind}") from None
    if status == 200:
        if _parsed(data).get("choices"):
            return
        raise Mistake(f"what {url} answered is no chat completion: is it an OpenAI-compatible server?")
    told = refusal(status, data)
    if status in (401, 403):
        variable = target.key_env or "none"
        option = "--key-env" if target.name == GATEWAY else "--direct-key-env"
        what = "refused the key" if place.key else "wants a key"
        raise Mistake(f"{url} {what} ({status}); it is read from an environment variable ({variable}): {option} NAME")
    if status == 404:
        served = await models(client)
        if served and plan.model not in served:
            raise Mistake(f"{url} serves no model {plan.model!r}; it serves: {', '.join(served)}")
    raise Mistake(f"{url} answered {told.kind}{f': {told.message}' if told.message else ''}")


async def models(client: Client) -> list[str]:
    """What a server says it serves; nothing if it does not say."""
    parsed = await _exchange(client, "GET", "/v1/models", b"")
    listed = parsed.get("data")
    if not isinstance(listed, list):
        return []
    return [str(card["id"]) for card in listed if isinstance(card, dict) and "id" in card]


async def word_count(plan: Plan, opened: Sequence[Clients]) -> WordCount:
    """How many tokens words are, by the first `/tokenize` that answers as vLLM's does; else the assumption."""
    for clients in opened:
        counted = []
        for words in (_FEW, _MANY):
            text = text_of(sample_words(f"{plan.prompts.seed}/tokenize/{words}", words))
            body = {"model": plan.model, "messages": [{"role": "user", "content": text}]}
            told = await _exchange(clients.each[0], "POST", "/tokenize", orjson.dumps(body))
            counted.append((words, told.get("count")))
        (few, t0), (many, t1) = counted
        if isinstance(t0, int) and isinstance(t1, int) and (count := fitted((few, t0), (many, t1))) is not None:
            return count
    return WordCount()


async def _exchange(client: Client, method: str, path: str, body: bytes) -> dict[str, Any]:
    """A small JSON object, empty if there is none."""
    try:
        async with asyncio.timeout(_TOKENIZE_S):
            answer = await client.send(method, path, body)
            try:
                data = await answer.read()
            finally:
                answer.close()
    except (TimeoutError, TransportError):
        return {}
    return _parsed(data) if answer.status == 200 else {}


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        parsed = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


# -- meanwhile -------------------------------------------------------------------------------------------------------


class _Silent:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


class Bar:
    """The progress bar: by requests, or by seconds where time decides. Drawn four times a second at most, since it is
    drawn by the process that measures; and not at all where standard error is no terminal."""

    def __init__(self, plan: Plan, targets: int, console: Console) -> None:
        self._plan = plan
        self._done = 0.0
        self._failed = 0
        self._turn_done = 0.0
        self._by_time = plan.requests is None
        total = targets * len(plan.users) * (plan.duration_s or 0.0)
        if plan.requests is not None:
            total = float(targets * sum(plan.users) * plan.requests)
        unit = "s" if self._by_time else "requests"
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=4,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=round(total))

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def turn_begins(self, cell: Cell, turn: int) -> None:
        self._turn_done = 0.0
        many = "user" if cell.users == 1 else "users"
        failed = f", {self._failed} failed" if self._failed else ""
        what = f"{cell.users} {many}, {cell.target}, turn {turn + 1} of {self._plan.turns}{failed}"
        self._progress.update(self._task, description=what)

    def answered(self, cell: Cell, sample: Sample, elapsed_s: float) -> None:
        self._failed += sample.error is not None
        if self._by_time:
            self._turn_done = min(elapsed_s, self._plan.turn_s or 0.0)
        else:
            self._turn_done += 1
        self._progress.update(self._task, completed=int(self._done + self._turn_done))

    def turn_ended(self, cell: Cell) -> None:
        self._done += self._turn_done
