"""One command, one table: `python -m bench`. `--help` has the knobs; README.md says how to read it."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson

from . import report
from .load import chat_request, measure
from .mock_engine import MODEL
from .peers import STARTERS, NotInstalled, Target, engine, start_all
from .processes import term_is_exit
from .report import Rounds
from .sampling import profile

QUICK = {"rounds": 2, "requests": 1000, "streams": 64, "chunks": 50}


def settings(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Load slurmgate and its peers in turn.")
    parser.add_argument("--rounds", type=int, default=5, help="each loads every target once; medians are shown (5)")
    parser.add_argument("--requests", type=int, default=3000, help="plain ones, in each round (3000)")
    parser.add_argument("--connections", type=int, default=32, help="that they come over (32)")
    parser.add_argument("--streams", type=int, default=128, help="at once; twice as many in each round (128)")
    parser.add_argument("--chunks", type=int, default=100, help="tokens in a stream (100)")
    parser.add_argument("--interval-ms", type=float, default=20.0, help="between two of them (20)")
    parser.add_argument(
        "--targets", default=",".join(STARTERS), help=f"some of {','.join(STARTERS)}; first is compared"
    )
    parser.add_argument("--quick", action="store_true", help=f"a look: {QUICK}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep configurations and logs of the targets here")
    parser.add_argument(
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


def load_once(rounds: Rounds, options: argparse.Namespace, *, warm_up: bool = False) -> None:
    """Plain requests, then streams, on one target."""
    target: Target = rounds.target
    plain = chat_request(MODEL, target.key, stream=False)
    stream = chat_request(MODEL, target.key, stream=True)
    one, many = options.connections, options.streams
    requests, streams = (200, many) if warm_up else (options.requests, 2 * many)
    events = options.chunks + 2  # the role and the finish reason
    plainly = measure(target.port, target.pid, plain, connections=one, requests=requests)
    streamed = measure(target.port, target.pid, stream, connections=many, requests=streams, events=events)
    if not warm_up:
        rounds.plain.append(plainly)
        rounds.stream.append(streamed)


def compare(options: argparse.Namespace, room: Path) -> int:
    with contextlib.ExitStack() as stack:
        mock = stack.enter_context(engine(room, options.chunks, options.interval_ms))
        targets, missing = start_all(stack, options.targets, room, mock.port)
        for line in missing:
            print(f"without {line}\n")
        if not targets:
            return 1
        all_rounds = [Rounds(target) for target in targets]
        for rounds in all_rounds:
            load_once(rounds, options, warm_up=True)
        for number in range(options.rounds):
            turn = number % len(all_rounds)  # nobody is always the first
            for rounds in (*all_rounds[turn:], *all_rounds[:turn]):
                if sys.stderr.isatty():
                    sys.stderr.write(f"\r\033[Kround {number + 1} of {options.rounds}: {rounds.target.name}")
                    sys.stderr.flush()
                load_once(rounds, options)
                time.sleep(0.2)
        if sys.stderr.isatty():
            sys.stderr.write("\r\033[K")
    chosen: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("rounds", "requests", "connections", "streams", "chunks", "interval_ms")
    }
    print(report.machine())
    print(
        f"medians of {options.rounds} rounds: {options.requests} requests over {options.connections} connections; "
        f"{2 * options.streams} streams, {options.streams} at once, of {options.chunks} chunks, "
        f"{options.interval_ms:g} ms apart\n"
    )
    print(report.start_table(all_rounds) + "\n")
    print(report.load_table(all_rounds) + "\n")
    print(report.spread(all_rounds))
    if options.json:
        options.json.write_bytes(orjson.dumps(report.as_json(all_rounds, chosen, missing), option=orjson.OPT_INDENT_2))
    ours = all_rounds[0]
    return 1 if ours.bad or ours.target.name != options.targets[0] else 0


def sample(options: argparse.Namespace, room: Path) -> int:
    with contextlib.ExitStack() as stack:
        mock = stack.enter_context(engine(room, options.chunks, options.interval_ms))
        targets, missing = start_all(stack, options.targets[:1], room, mock.port)
        if missing:
            print(f"cannot: {missing[0]}")
            return 1
        rounds = Rounds(targets[0])
        load_once(rounds, options, warm_up=True)
        try:
            profile(
                targets[0],
                options.profile,
                connections=options.connections,
                streams=options.streams,
                events=options.chunks + 2,
            )
        except NotInstalled as error:
            print(f"cannot: {error}")
            return 1
    return 0


def main() -> int:
    options = settings()
    work = sample if options.profile else compare
    with term_is_exit(), contextlib.ExitStack() as stack:
        if options.logs is None:
            room = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurmgate-bench-")))
        else:
            room = options.logs.absolute()
            room.mkdir(parents=True)
        return work(options, room)


if __name__ == "__main__":
    sys.exit(main())
