"""The comparison: every target gets the same load in short turns, beside one another, round after round."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .estimates import Ratio, compare
from .load import Figures, chat_request, measure
from .mock_engine import MODEL
from .peers import start_all
from .targets import Target, engine, scaled


@dataclass(frozen=True, slots=True)
class Plan:
    """What each target gets. In a round there are `turns` turns of plain requests and one of streams.

    rounds        how often all of it is done
    turns         of plain requests, in a round
    requests      in a turn
    connections   that they come over
    streams       at once; twice as many in a turn
    chunks        tokens in a stream
    interval_ms   between two of them
    """

    rounds: int
    turns: int
    requests: int
    connections: int
    streams: int
    chunks: int
    interval_ms: float

    def __str__(self) -> str:
        return (
            f"{self.rounds} rounds, in each {self.turns} turns of {self.requests} plain requests over "
            f"{self.connections} connections and one of {2 * self.streams} streams, {self.streams} at once, of "
            f"{self.chunks} chunks {self.interval_ms:g} ms apart"
        )


@dataclass(frozen=True, slots=True)
class Turns:
    """All measurements of one target, in the order in which they were made: the n-th of each target are neighbours."""

    target: Target
    plain: list[Figures] = field(default_factory=list)
    stream: list[Figures] = field(default_factory=list)

    @property
    def bad_plain(self) -> int:
        return sum(figures.bad for figures in self.plain)

    @property
    def bad_streams(self) -> int:
        return sum(figures.bad for figures in self.stream)


def of_request(ours: Turns, theirs: Turns) -> Ratio:
    """CPU per plain request."""
    return compare([turn.cpu_us for turn in ours.plain], [turn.cpu_us for turn in theirs.plain])


def of_chunk(ours: Turns, theirs: Turns) -> Ratio:
    """CPU per streamed chunk."""
    return compare([turn.cpu_us for turn in ours.stream], [turn.cpu_us for turn in theirs.stream])


def of_first_p99(ours: Turns, theirs: Turns) -> Ratio:
    """p99 of the time to the first token."""
    return compare([turn.first_p99_ms for turn in ours.stream], [turn.first_p99_ms for turn in theirs.stream])


def load_plain(target: Target, plan: Plan) -> Figures:
    return measure(
        target.port,
        target.pid,
        chat_request(MODEL, target.key, stream=False),
        connections=scaled(plan.connections, target.at_once),
        requests=scaled(plan.requests, target.share),
    )


def load_streams(target: Target, plan: Plan) -> Figures:
    at_once = scaled(plan.streams, target.at_once)
    return measure(
        target.port,
        target.pid,
        chat_request(MODEL, target.key, stream=True),
        connections=at_once,
        requests=2 * at_once,
        events=plan.chunks + 2,  # the role and the finish reason
    )


def in_turn(everybody: Sequence[Turns], number: int) -> Sequence[Turns]:
    """Nobody is always the first, nor always after the same one's load."""
    first = number % len(everybody)
    turned = [*everybody[first:], *everybody[:first]]
    return turned if number // len(everybody) % 2 == 0 else turned[::-1]


def run(plan: Plan, names: Sequence[str], room: Path) -> tuple[list[Turns], list[str]]:
    """Start the targets, load them, stop them. Returns what was measured, and what is to be said about the others."""
    with contextlib.ExitStack() as stack:
        mock = stack.enter_context(engine(room, plan.chunks, plan.interval_ms))
        told("starting")
        targets, missing = start_all(stack, names, room, mock.port)
        everybody = [Turns(target) for target in targets]
        for turns in everybody:  # a warm-up that nobody counts
            load_plain(turns.target, plan)
            load_streams(turns.target, plan)
        for number, one_round in enumerate(rounds(plan)):
            for turns in in_turn(everybody, number):
                told(f"round {one_round} of {plan.rounds}: {turns.target.name}")
                if number % (plan.turns + 1) < plan.turns:
                    turns.plain.append(load_plain(turns.target, plan))
                else:
                    turns.stream.append(load_streams(turns.target, plan))
                time.sleep(0.02)  # what is written behind shall be counted, and not to the next one's time
        told("")
    return everybody, missing


def rounds(plan: Plan) -> Iterator[int]:
    """The number of the round, once for each turn in it."""
    for one_round in range(1, plan.rounds + 1):
        yield from [one_round] * (plan.turns + 1)


def told(text: str) -> None:
    """What is going on, on a terminal, in one line that is written over; an empty text takes it away."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()
