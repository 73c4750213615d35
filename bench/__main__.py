"""One command: `python -m bench`. `--help` has the knobs; README.md says how to read what it prints."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from . import compare, hung, report, slow_streams, soak, verdict
from .compare import Plan, Turns
from .peers import STARTERS, start_all
from .processes import DidNotStart, allow_many_files, term_is_exit
from .sampling import profile
from .targets import NotInstalled, engine

TWO = "slurmgate-2"
QUICK = {"rounds": 2, "turns": 2, "requests": 1000, "streams": 64, "chunks": 50}


def settings(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Load slurmgate and its peers in turn.")
    parser.add_argument("--rounds", type=int, default=8, help="of turns of plain requests and one of streams (8)")
    parser.add_argument("--turns", type=int, default=5, help="of plain requests, in each round (5)")
    parser.add_argument("--requests", type=int, default=3000, help="plain ones, in each turn (3000)")
    parser.add_argument("--connections", type=int, default=32, help="that they come over (32)")
    parser.add_argument("--streams", type=int, default=128, help="at once; twice as many in each turn (128)")
    parser.add_argument("--chunks", type=int, default=100, help="tokens in a stream (100)")
    parser.add_argument("--interval-ms", type=float, default=20.0, help="between two of them (20)")
    parser.add_argument(
        "--targets", default=",".join(STARTERS), help=f"some of {','.join(STARTERS)}; first is compared"
    )
    parser.add_argument("--quick", action="store_true", help=f"a look: {QUICK}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep configurations and logs of the targets here")
    parser.add_argument("--slow", type=int, default=1000, metavar="N", help="streams of --slow-streams (1000)")
    parser.add_argument("--slow-for-s", type=float, default=20.0, help="and how long each lasts (20)")
    parser.add_argument("--slow-interval-s", type=float, default=1.0, help="and from token to token (1)")
    parser.add_argument("--soak-requests", type=int, default=soak.REQUESTS, metavar="N", help="of --soak (300000)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--all", action="store_true", help="the comparison, and then soak, slow streams, hung replica")
    what.add_argument("--soak", action="store_true", help="instead: does it keep memory?")
    what.add_argument("--slow-streams", action="store_true", help="instead: many streams that are slow")
    what.add_argument("--hung", action="store_true", help="instead: one replica of three hangs")
    what.add_argument(
        "--profile", type=Path, metavar="DIR", nargs="?", const=Path("bench-profile"),
        help="instead: sample the first target with py-spy, stacks into DIR",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.quick:
        for name, value in QUICK.items():
            if getattr(options, name) == parser.get_default(name):
                setattr(options, name, value)
    options.targets = [name.strip() for name in options.targets.split(",") if name.strip()]
    unknown = [name for name in options.targets if name not in STARTERS]
    if unknown or not options.targets:
        parser.error(f"unknown targets: {', '.join(unknown)}; known are {', '.join(STARTERS)}")
    return options


def planned(options: argparse.Namespace) -> Plan:
    return Plan(
        rounds=options.rounds,
        turns=options.turns,
        requests=options.requests,
        connections=options.connections,
        streams=options.streams,
        chunks=options.chunks,
        interval_ms=options.interval_ms,
    )


def comparison(options: argparse.Namespace, room: Path) -> int:
    """The default. Ends with status 1 when the first target did not run, or gave a bad answer."""
    plan = planned(options)
    begun = time.perf_counter()
    everybody, missing = compare.run(plan, options.targets, room)
    for line in missing:
        print(f"without {line}\n")
    if not everybody or everybody[0].target.name != options.targets[0]:
        return 1
    print(report.machine())
    print(f"{plan}; {time.perf_counter() - begun:.0f} s\n")
    for each in (report.start_table, report.plain_table, report.stream_table, report.ratio_table):
        print(each(everybody) + "\n")
    print(report.failures(everybody), end="")
    soaked = run_soak(options, room) if options.all else None
    slow = run_slow_streams(options, room) if options.all else None
    outcomes = run_hung(room) if options.all else None
    lines = judged(everybody, soaked, outcomes)
    print(report.table(verdict.rows(lines)))
    ours = everybody[0]
    if options.json:
        found: dict[str, Any] = report.as_json(everybody, plan, missing)
        found["verdict"] = [{**report.plainly(line), "judgement": line.judgement.value} for line in lines]
        found["soak"] = report.plainly(soaked) if soaked else None
        found["hung"] = [hung.figures(outcome) for outcome in outcomes] if outcomes else None
        found["slow_streams"] = [report.plainly(result) for result in slow] if slow else None
        options.json.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY))
    wrong = ours.bad_plain or ours.bad_streams
    failed = (soaked and not soak.passed(soaked)) or (slow and not slow_streams.passed(slow))
    return 1 if wrong or failed or (outcomes and not hung.passed(outcomes)) else 0


def judged(everybody: list[Turns], soaked: soak.Soak | None, outcomes: list[hung.Outcome] | None) -> list[verdict.Line]:
    """What the gateway must reach, line by line."""
    ours, by_name = everybody[0], {turns.target.name: turns for turns in everybody}

    def against(
        what: str, peer: str, ratio_of: Callable[[Turns, Turns], Any], target: float, ours: Turns | None = ours
    ) -> verdict.Line:
        theirs = by_name.get(peer)
        ratio = ratio_of(ours, theirs) if ours is not None and theirs is not None else None
        return verdict.of_ratio(f"{what} / {peer}", ratio, target, f"{peer if ours is not None else TWO} did not run")

    failed = float(sum(outcome.failed for outcome in outcomes)) if outcomes else math.nan
    growth = max(outcome.growth_s for outcome in outcomes) if outcomes else math.nan
    return [
        against("CPU per plain request", "vllm-router", compare.of_request, 1.0),
        against("CPU per streamed chunk", "vllm-router", compare.of_chunk, 1.0),
        against("CPU per streamed chunk", "nginx", compare.of_chunk, 1.6),
        against("CPU per plain request", "litellm", compare.of_request, 0.01),
        against("TTFT p99", "nginx", compare.of_first_p99, 1.3),
        against("TTFT p99 with two workers", "nginx", compare.of_first_p99, 1.3, by_name.get(TWO)),
        verdict.Line(
            "memory growth over the soak", soaked.growth_mb if soaked else math.nan, soak.LIMIT_MB, " MB",
            how="--all or --soak",
        ),
        verdict.Line("from start to listening", ours.target.start_s, 1.0, " s"),
        verdict.Line("failed requests, one replica of three hung", failed, 0.0, how="--all or --hung"),
        verdict.Line("growth of p99 meanwhile", growth, hung.CONNECT_S, " s", how="--all or --hung"),
    ]  # fmt: skip


def run_soak(options: argparse.Namespace, room: Path) -> soak.Soak:
    with contextlib.ExitStack() as stack:
        place = room / "soak"
        place.mkdir()
        mock = stack.enter_context(engine(place, soak.CHUNKS, soak.INTERVAL_MS))
        target = stack.enter_context(STARTERS["slurmgate"](place, mock.port))
        result = soak.soak(target, options.soak_requests)
    print(soak.report(result) + "\n")
    return result


def run_slow_streams(options: argparse.Namespace, room: Path) -> list[slow_streams.Slow]:
    place = room / "slow-streams"
    place.mkdir()
    how = (options.slow, options.slow_for_s, options.slow_interval_s)
    results = slow_streams.run(place, *how)
    print(slow_streams.report(results, *how) + "\n")
    return results


def run_hung(room: Path) -> list[hung.Outcome]:
    place = room / "hung"
    place.mkdir()
    outcomes = hung.run(place)
    print(hung.report(outcomes) + "\n")
    return outcomes


def sample(options: argparse.Namespace, room: Path) -> int:
    """`--profile`."""
    plan = planned(options)
    with contextlib.ExitStack() as stack:
        mock = stack.enter_context(engine(room, plan.chunks, plan.interval_ms))
        targets, missing = start_all(stack, options.targets[:1], room, mock.port)
        if missing:
            raise NotInstalled(missing[0])
        compare.load_plain(targets[0], plan)
        compare.load_streams(targets[0], plan)
        profile(
            targets[0],
            options.profile,
            connections=options.connections,
            streams=options.streams,
            events=options.chunks + 2,
        )
    return 0


def work(options: argparse.Namespace, room: Path) -> int:
    if options.profile:
        return sample(options, room)
    if options.soak:
        return 0 if soak.passed(run_soak(options, room)) else 1
    if options.slow_streams:
        return 0 if slow_streams.passed(run_slow_streams(options, room)) else 1
    if options.hung:
        return 0 if hung.passed(run_hung(room)) else 1
    return comparison(options, room)


def main() -> int:
    options = settings()
    allow_many_files()
    with term_is_exit(), contextlib.ExitStack() as stack:
        if options.logs is None:
            room = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurmgate-bench-")))
        else:
            room = options.logs.absolute()
            room.mkdir(parents=True)
        try:
            return work(options, room)
        except (NotInstalled, DidNotStart) as error:
            print(f"cannot: {error}")
            return 1


if __name__ == "__main__":
    sys.exit(main())
