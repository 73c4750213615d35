"""The concurrency experiment over four model sizes: simulated engines, a real gateway, `slurmgate bench`'s own load.

    python -m bench.experiment [--out DIR] [--setups llama-1b,llama-8b] [--quick]

It starts one engine simulator a setup and one gateway before all of them (as a user does: a configuration with `urls`,
a key, `slurmgate serve`), then measures each number of users directly and through the gateway, in turns. Beside both it
puts what the engine model says alone, without a socket: what is measured beyond that is not the engine's.

It writes experiment.json, experiment.md (the tables of docs/experiment.md), experiment.png and experiment.svg to DIR.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import uvloop

from proxy.benchmark import plot
from proxy.benchmark.asking import PlainClient
from proxy.benchmark.figures import Figures, Sample, summary
from proxy.benchmark.load import Cell, Clients, Plan, measure
from proxy.benchmark.prompts import Lengths, Prompts, Ticket
from proxy.benchmark.show import document_of, milliseconds, shares, without_nan
from proxy.benchmark.targets import DIRECT, GATEWAY, Place, Target
from proxy.benchmark.warmup import first_answer, word_count

from .engine_profiles import PROFILES
from .engine_users import closed_loop
from .processes import Process, cpu, family, free_port, term_is_exit

ROOT = Path(__file__).parent.parent
SEED = 20250825
PROMPT = Lengths(128, 384)
OUTPUT = Lengths(32, 96)
MODEL = "model"
"""A third target beside the two that are measured: the engine model alone."""


@dataclass(frozen=True, slots=True)
class Step:
    """One number of users. `requests` of each, all turns together."""

    users: int
    requests: int = 4
    turns: int = 2


@dataclass(frozen=True, slots=True)
class Setup:
    """speed      of the simulated world; latencies are told in its own time
    gateway    more lines of the model's configuration
    """

    profile: str
    title: str
    steps: tuple[Step, ...]
    speed: float = 1.0
    gateway: str = ""


_LIGHT = (Step(1, 8), Step(2, 6), Step(4), Step(8), Step(16), Step(32))
SETUPS = (
    Setup("llama-1b", "Llama 3.2 1B, 1 x A100", (*_LIGHT, Step(64), Step(128))),
    Setup("llama-3b", "Llama 3.2 3B, 1 x A100", (*_LIGHT, Step(64, 2, 1), Step(128, 2, 1))),
    Setup(
        "llama-8b",
        "Llama 3.1 8B, 1 x A100",
        (*(Step(users) for users in (1, 2, 4, 8, 16, 32)), Step(64, 2, 1), Step(128, 2, 1)),
    ),
    Setup(
        "llama-70b",
        "Llama 3.1 70B, 4 x A100",
        (Step(1), Step(2), *(Step(users, 2, 1) for users in (4, 8, 16, 32, 64, 128))),
    ),
    Setup(
        "llama-70b-2gpu",
        "Llama 3.1 70B, 2 x A100: the cache is full",
        (Step(16, 2, 1), Step(32, 2, 1), Step(64, 2, 1), Step(128, 2, 1)),
        speed=8.0,
    ),
    Setup(
        "llama-8b-tgi",
        "Llama 3.1 8B, whole prompts, at most 128 requests",
        (Step(96, 2, 1), Step(128, 2, 1), Step(192, 2, 1)),
        speed=4.0,
        gateway="max_in_flight = 120",
    ),
)
QUICK = (Step(1, 2, 1), Step(4, 2, 1))


@dataclass(slots=True)
class Level:
    """One number of users.

    engine       the simulator's counts so far, and its peaks at this level
    gateway_cpu  of the gateway's process while it was measured, as a share of one core
    """

    users: int
    figures: dict[str, Figures] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    gateway_cpu: float = 0.0


@dataclass(slots=True)
class Measured:
    setup: Setup
    levels: list[Level] = field(default_factory=list)


class GatewayGone(Exception):
    """Its process has ended: what would be measured is nothing."""


# -- measuring -------------------------------------------------------------------------------------------------------


class Observer:
    """Asks the simulator after its peaks, and the kernel after the gateway's CPU, around each turn."""

    def __init__(self, gateway_pid: int) -> None:
        self._pids = family(gateway_pid)
        self._before = 0.0
        self._busy_s = 0.0
        self._wall_s = 0.0

    @property
    def gateway_cpu(self) -> float:
        return self._busy_s / self._wall_s if self._wall_s else 0.0

    def turn_begins(self, cell: Cell, turn: int) -> None:
        if cell.target == GATEWAY:
            self._before = cpu(self._pids).total
            self._wall_s -= cell.wall_s

    def answered(self, cell: Cell, sample: Sample, elapsed_s: float) -> None: ...

    def turn_ended(self, cell: Cell) -> None:
        if cell.target == GATEWAY:
            self._busy_s += cpu(self._pids).total - self._before
            self._wall_s += cell.wall_s


async def state_of(simulator: PlainClient) -> dict[str, Any]:
    answer = await simulator.send("GET", "/simulator", b"")
    try:
        told: dict[str, Any] = orjson.loads(await answer.read())
    finally:
        answer.close()
    return told


async def run_setup(setup: Setup, engine: Place, gateway: Place, gateway_pid: int) -> Measured:
    measured = Measured(setup)
    plan = Plan(setup.profile, Prompts(SEED, PROMPT, OUTPUT), (1,), timeout_s=300.0)
    targets = [Clients(Target(DIRECT, (engine,)), 300.0), Clients(Target(GATEWAY, (gateway,)), 300.0)]
    simulator = PlainClient(engine, 10.0)
    try:
        for clients in targets:
            await first_answer(plan, clients.target, clients.target.places[0], clients.each[0])
        plan = replace(plan, prompts=replace(plan.prompts, count=await word_count(plan, targets)))
        for number, step in enumerate(setup.steps):
            here = replace(plan, users=(step.users,), requests=step.requests, turns=step.turns)
            level = Level(step.users)
            observer = Observer(gateway_pid)
            cells: list[Cell] = []
            await state_of(simulator)
            await measure(here, targets if number % 2 == 0 else targets[::-1], cells, observer)
            level.engine = await state_of(simulator)
            level.gateway_cpu = observer.gateway_cpu
            for cell in cells:
                level.figures[cell.target] = figures_of(cell.samples, step.users, cell.wall_s, setup.speed)
            level.figures[MODEL] = predicted(setup, here, step)
            if level.figures[GATEWAY].errors.get("no connection"):
                raise GatewayGone
            measured.levels.append(level)
            print(line_of(setup, level), flush=True)
    finally:
        for clients in targets:
            await clients.aclose()
        await simulator.aclose()
    return measured


def figures_of(samples: Sequence[Sample], users: int, wall_s: float, speed: float) -> Figures:
    """In the simulated world's own time."""
    scaled = [
        replace(
            sample,
            e2e_s=sample.e2e_s * speed,
            ttft_s=None if sample.ttft_s is None else sample.ttft_s * speed,
            gaps_s=[gap * speed for gap in sample.gaps_s],
        )
        for sample in samples
    ]
    return summary(scaled, users, wall_s * speed)


def predicted(setup: Setup, plan: Plan, step: Step) -> Figures:
    """By the engine model alone, for the same lengths in the same turns."""
    samples: list[Sample] = []
    wall_s = 0.0
    for turn in range(step.turns):

        def lengths(user: int, index: int, turn: int = turn) -> tuple[int, int]:
            return plan.prompts.lengths(Ticket(MODEL, step.users, turn, user, index))

        more, took_s = closed_loop(PROFILES[setup.profile].speeds, step.users, plan.requests_in(turn) or 0, lengths)
        samples += more
        wall_s += took_s
    return summary(samples, step.users, wall_s)


def line_of(setup: Setup, level: Level) -> str:
    parts = [
        f"{name} {figures.output_tokens_per_s:8.1f} tokens/s, TTFT {milliseconds(figures.ttft_ms.p50)} ms"
        + (f", {figures.failed} failed" if figures.failed else "")
        for name, figures in level.figures.items()
    ]
    return f"{setup.profile:16} {level.users:4} users: {'; '.join(parts)}"


# -- processes -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def started(setups: Sequence[Setup], directory: Path) -> Iterator[tuple[dict[str, Place], Place, int]]:
    """Simulators and a gateway: places of both, and the gateway's process id."""
    with contextlib.ExitStack() as stack:
        engines: dict[str, Place] = {}
        models = []
        for setup in setups:
            port = free_port()
            command = [sys.executable, "-m", "bench.engine_simulator", "--profile", setup.profile]
            command += ["--port", str(port), "--speed", str(setup.speed)]
            stack.enter_context(Process(setup.profile, command, port, directory / f"{setup.profile}.log"))
            engines[setup.profile] = Place("127.0.0.1", port)
            models.append(
                f'[models.{setup.profile}]\nengine = "vllm"\nurls = ["http://127.0.0.1:{port}"]\n{setup.gateway}\n'
            )
        port = free_port()
        config = directory / "config.toml"
        config.write_text(f"[server]\nport = {port}\n\n" + "\n".join(models))
        options = ["--config", str(config), "--state-dir", str(directory / "state")]
        slurmgate = [sys.executable, "-m", "proxy.cli"]
        made = subprocess.run(
            [*slurmgate, "keys", "create", "experiment", *options], capture_output=True, text=True, check=True
        )
        gateway = stack.enter_context(
            Process("slurmgate", [*slurmgate, "serve", *options], port, directory / "gateway.log")
        )
        try:
            yield engines, Place("127.0.0.1", port, key=made.stdout.strip()), gateway.pid
        except GatewayGone:
            sys.exit(f"the gateway has ended; the end of its log:\n{gateway.log_tail()}")


def run(setups: Sequence[Setup], out: Path) -> list[Measured]:
    """Figures are written after each setup, so that a run that ends early leaves what it has."""
    begun = time.monotonic()

    async def all_of_them(engines: dict[str, Place], gateway: Place, pid: int) -> list[Measured]:
        measured = []
        for setup in setups:
            measured.append(await run_setup(setup, engines[setup.profile], gateway, pid))
            write(measured, time.monotonic() - begun, out)
        return measured

    with (
        tempfile.TemporaryDirectory() as directory,
        started(setups, Path(directory)) as (engines, gateway, pid),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(all_of_them(engines, gateway, pid))


# -- telling ---------------------------------------------------------------------------------------------------------


def markdown(measured: Sequence[Measured]) -> str:
    parts = []
    for one in measured:
        speed = f"; the simulated world ran {one.setup.speed:g} times as fast" if one.setup.speed != 1 else ""
        parts.append(f"### {one.setup.title}\n\n`{one.setup.profile}`{speed}\n\n{_latencies(one)}")
        if one.setup.speed == 1:
            parts.append(_shares(one))
    return "\n".join(parts)


def _latencies(one: Measured) -> str:
    titles = [
        *("users", "tokens/s: model", "direct", "gateway", "TTFT p50, ms: model", "direct", "gateway"),
        *("TTFT p99: direct", "gateway", "ITL p50: direct", "gateway", "end to end p50: direct", "gateway"),
        *("waiting", "cache", "failed: direct", "gateway"),
    ]
    rows = []
    for level in one.levels:
        model, direct, ours = (level.figures[name] for name in (MODEL, DIRECT, GATEWAY))
        rows.append(
            [
                str(level.users),
                *(f"{figures.output_tokens_per_s:,.0f}" for figures in (model, direct, ours)),
                *(milliseconds(figures.ttft_ms.p50) for figures in (model, direct, ours)),
                *(milliseconds(figures.ttft_ms.p99) for figures in (direct, ours)),
                *(milliseconds(figures.itl_ms.p50) for figures in (direct, ours)),
                *(milliseconds(figures.e2e_ms.p50) for figures in (direct, ours)),
                str(level.engine["peak_waiting"]),
                f"{level.engine['peak_cache_tokens'] / level.engine['cache_tokens']:.0%}",
                str(direct.failed),
                str(ours.failed),
            ]
        )
    return _table(titles, rows)


def _shares(one: Measured) -> str:
    titles = ["users", "TTFT p50, ms", "p99", "ITL p50, ms", "p99", "end to end p50, ms", "p99", "gateway's CPU"]
    rows = []
    for level in one.levels:
        found = shares(level.figures)
        cells = []
        for latency in ("ttft", "itl", "e2e"):
            for percent in (50, 99):
                share = found[latency][percent]
                cells.append(f"{share.difference_ms:+.2f} ({share.ratio:.3f})")
        rows.append([str(level.users), *cells, f"{level.gateway_cpu:.0%}"])
    return "What the gateway adds (and gateway / direct):\n\n" + _table(titles, rows)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---:"] * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def document(measured: Sequence[Measured], took_s: float) -> dict[str, Any]:
    told = {
        "engine": "simulated",
        "machine": {"cpus": os.cpu_count(), "python": sys.version.split()[0]},
        "took_s": took_s,
        "seed": SEED,
        "prompt_tokens": asdict(PROMPT),
        "output_tokens": asdict(OUTPUT),
        "setups": [
            {
                **asdict(one.setup),
                "speeds": asdict(PROFILES[one.setup.profile].speeds),
                "levels": [
                    {
                        **document_of(level.users, level.figures),
                        "engine": level.engine,
                        "gateway_cpu": level.gateway_cpu,
                    }
                    for level in one.levels
                ],
            }
            for one in measured
        ],
    }
    cleaned: dict[str, Any] = without_nan(told)
    return cleaned


def write(measured: Sequence[Measured], took_s: float, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    data = orjson.dumps(document(measured, took_s), option=orjson.OPT_INDENT_2)
    (out / "experiment.json").write_bytes(data + b"\n")
    (out / "experiment.md").write_text(markdown(measured))


def draw(measured: Sequence[Measured], out: Path) -> None:
    drawn = [one for one in measured if one.setup.speed == 1]
    panels = [plot.Panel(one.setup.profile, {level.users: level.figures for level in one.levels}) for one in drawn]
    plot.draw_panels(panels, out / "experiment")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiment"), help="where files go (experiment/)")
    parser.add_argument("--setups", help="some of them, with commas")
    parser.add_argument("--quick", action="store_true", help="a look: 1 and 4 users, 2 requests each")
    options = parser.parse_args()
    names = options.setups.split(",") if options.setups else [setup.profile for setup in SETUPS]
    setups = [setup for setup in SETUPS if setup.profile in names]
    if unknown := set(names) - {setup.profile for setup in setups}:
        parser.error(f"there is no setup {', '.join(sorted(unknown))}")
    if options.quick:
        setups = [replace(setup, steps=QUICK) for setup in setups]
    begun = time.monotonic()
    with term_is_exit():
        measured = run(setups, options.out)
    draw(measured, options.out)
    print(f"{time.monotonic() - begun:.0f} s; written to {options.out}")


if __name__ == "__main__":
    main()
