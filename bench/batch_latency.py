"""What others notice of a batch: while its input is validated, and while its lines run. batches.py has the setup."""

from __future__ import annotations

import asyncio
import random
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from .batch_client import Client, done, write_input
from .compare import told
from .estimates import Ratio, compare, percentile
from .hung import Arrivals, Phase, answer
from .load import chat_request
from .mock_engine import MODEL
from .peers import slurmgate_for
from .report import shown, table
from .targets import Target, engine

STALL_MS = 10.0
"""By so much the p99 of a plain request may grow while a batch is validated."""
P99_RATIO = 1.3

SEATS, ANSWER_MS, TOKENS, INTERVAL_MS = 32, 300.0, 60, 30.0
USERS = 8
"""With plain requests, and as many with streams."""
THINK_S = (0.2, 1.0)
MOST_LINES = 50_000


def judged(well: bool) -> str:
    return "ok" if well else "missed"


# -- the event loop --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Latencies:
    """Two sides, side by side. Seconds."""

    what: str
    without: list[list[float]]
    beside: list[list[float]]

    def p99_ms(self, turns: Sequence[Sequence[float]]) -> float:
        return percentile([value for turn in turns for value in turn], 0.99) * 1e3

    @property
    def ratio(self) -> float:
        return self.p99_ms(self.beside) / self.p99_ms(self.without)

    @property
    def pairs(self) -> Ratio:
        ours, theirs = ([percentile(turn, 0.99) for turn in turns] for turns in (self.beside, self.without))
        return compare(ours, theirs)

    def row(self) -> list[str]:
        cells = []
        for turns in (self.without, self.beside):
            values = [value * 1e3 for turn in turns for value in turn]
            cells += [str(len(values)), *(shown(value, 1) for value in (statistics.median(values), self.p99_ms(turns)))]
            cells += [shown(max(values), 1)]
        return [self.what, *cells]


HEAD = ["", "alone", "p50 ms", "p99 ms", "longest", "beside", "p50 ms", "p99 ms", "longest"]


@dataclass(frozen=True, slots=True)
class Loop:
    latencies: Latencies
    validations_s: list[float]
    failures: list[str]

    @property
    def growth_ms(self) -> float:
        return self.latencies.p99_ms(self.latencies.beside) - self.latencies.p99_ms(self.latencies.without)

    @property
    def passed(self) -> bool:
        return not self.failures and self.growth_ms <= STALL_MS

    def told(self) -> str:
        return (
            f"{table([HEAD, self.latencies.row()])}\n"
            f"{len(self.validations_s)} validations of {statistics.median(self.validations_s):.1f} s: p99 of a plain "
            f"request grew by {self.growth_ms:.1f} ms (at most {STALL_MS:g}: {judged(self.passed)}); "
            f"{len(self.failures)} failed{': ' + self.failures[0] if self.failures else ''}"
        )


class Validations(threading.Thread):
    """Has a batch validated again and again. `during` says whether that goes on at the moment, None between the two."""

    def __init__(self, client: Client, file_id: str, looks: int) -> None:
        super().__init__(name="validations")
        self.during: bool | None = None
        self.took_s: list[float] = []
        self.error: BaseException | None = None
        self._client = client
        self._file_id = file_id
        self._looks = looks

    def run(self) -> None:
        try:
            for _ in range(self._looks):
                self.during = False
                time.sleep(2.0)
                begun = time.monotonic()
                batch_id = self._client.create(self._file_id)["id"]
                self.during = True
                self._client.tell(batch_id, "pause")
                self._client.until(batch_id, lambda card: card["status"] != "validating")
                self.took_s.append(time.monotonic() - begun)
                self.during = None
                self._client.cancelled(batch_id)
        except BaseException as error:  # told by the one who waits for the thread
            self.error = error


async def constant_load(target: Target, validations: Validations) -> tuple[Phase, Phase]:
    arrivals = Arrivals(target)
    without, beside, between = Phase("without"), Phase("beside"), Phase("between")
    await arrivals.during(between, 1.0)
    validations.start()
    while validations.is_alive():
        phase = between if validations.during is None else beside if validations.during else without
        await arrivals.during(phase, 0.1)
    await arrivals.answered()
    return without, beside


def loop(room: Path, lines: int, looks: int) -> Loop:
    """Raises `BatchError`, `NotInstalled`, `DidNotStart`."""
    place = room / "loop"
    place.mkdir()
    told(f"loop: {looks} validations of {lines} lines")
    with engine(place, 1, 0.0) as mock, slurmgate_for(place, [mock.port]) as target:
        client = Client(target)
        validations = Validations(client, client.upload(write_input(place / "in.jsonl", lines)), looks)
        without, beside = uvloop.run(constant_load(target, validations))
    if validations.error is not None:
        raise validations.error
    told("")
    latencies = Latencies("plain", [without.latencies], [beside.latencies])
    return Loop(latencies, validations.took_s, without.failures + beside.failures)


# -- interactive requests --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Interactive:
    plain: Latencies
    first: Latencies
    gaps: Latencies
    lines_per_s: float
    failures: int

    @property
    def passed(self) -> bool:
        return not self.failures and max(self.plain.ratio, self.first.ratio) <= P99_RATIO

    def told(self) -> str:
        judgements = [
            f"p99 of {one.what} with a batch / without: {shown(one.ratio, 2)}, turn by turn "
            f"{shown(one.pairs.paired, 2)} ({shown(one.pairs.low, 2)} to {shown(one.pairs.high, 2)})"
            for one in (self.plain, self.first, self.gaps)
        ]
        return (
            f"{table([HEAD, self.plain.row(), self.first.row(), self.gaps.row()])}\n" + "\n".join(judgements) + "\n"
            f"plain requests and first tokens at most {P99_RATIO:g}: {judged(self.passed)}; {self.failures} failed\n"
            f"the batch had {self.lines_per_s:.0f} lines/s beside them, of {SEATS / ANSWER_MS * 1e3:.0f} by all seats"
        )


@dataclass(slots=True)
class Turn:
    plain: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)


class Users:
    """As many as `USERS` of each kind. What they see goes to `turn`, and nowhere while that is None."""

    def __init__(self, target: Target) -> None:
        self.turn: Turn | None = None
        self.failures = 0
        self._target = target
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Users:
        for number in range(2 * USERS):
            user = self._user(random.Random(number), stream=number % 2 == 1)
            self._tasks.append(asyncio.create_task(user, name="user"))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _user(self, chance: random.Random, *, stream: bool) -> None:
        request = chat_request(MODEL, self._target.key, stream=stream)
        reader, writer = await asyncio.open_connection("127.0.0.1", self._target.port)
        while True:
            await asyncio.sleep(chance.uniform(*THINK_S))
            turn = self.turn
            try:
                await (stream_seen if stream else plain_seen)(request, reader, writer, turn)
            except (OSError, EOFError, ValueError):
                self.failures += 1
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", self._target.port)


async def plain_seen(
    request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, turn: Turn | None
) -> None:
    begun = time.perf_counter()
    writer.write(request)
    status, _ = await answer(reader)
    if status != 200:
        raise ValueError(f"status {status}")
    if turn is not None:
        turn.plain.append(time.perf_counter() - begun)


async def stream_seen(
    request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, turn: Turn | None
) -> None:
    begun = time.perf_counter()
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise ValueError("not 200")
    last, tail = begun, b""
    firsts: list[float] = []
    gaps: list[float] = []
    while not tail.endswith(b"0\r\n\r\n"):
        data = await reader.read(65536)
        if not data:
            raise EOFError
        now = time.perf_counter()
        if b"data: " in data:
            (gaps if firsts else firsts).append(now - last)
            last = now
        tail = (tail + data)[-16:]
    if turn is not None:
        turn.first += firsts
        turn.gaps += gaps


async def in_turns(
    target: Target, client: Client, batch_id: str, turns: int, turn_s: float
) -> tuple[list[Turn], list[Turn], int, int]:
    """Turns without the batch and with it, failures, and how many lines were done beside others."""
    without: list[Turn] = []
    beside: list[Turn] = []
    lines = 0
    async with Users(target) as users:
        for number in range(2 * turns):
            told(f"interactive: turn {number + 1} of {2 * turns}")
            on = number % 4 in (1, 2)  # who begins changes
            before = await asyncio.to_thread(client.tell, batch_id, "resume" if on else "pause")
            await asyncio.sleep(2.5)  # until the runner has seen it, and what runs has ended
            before = await asyncio.to_thread(client.card, batch_id)
            users.turn = Turn()
            await asyncio.sleep(turn_s)
            (beside if on else without).append(users.turn)
            users.turn = None
            if on:
                lines += done(await asyncio.to_thread(client.card, batch_id)) - done(before)
    return without, beside, users.failures, lines


def interactive(room: Path, turns: int, turn_s: float) -> Interactive:
    """Raises `BatchError`, `NotInstalled`, `DidNotStart`."""
    place = room / "interactive"
    place.mkdir()
    with (
        engine(place, TOKENS, INTERVAL_MS, answer_ms=ANSWER_MS) as mock,
        slurmgate_for(place, [mock.port], max_in_flight=SEATS) as target,
    ):
        client = Client(target)
        enough = round(2 * turns * turn_s * SEATS / ANSWER_MS * 1e3)  # more than there is time for
        batch_id = client.create(client.upload(write_input(place / "in.jsonl", min(enough, MOST_LINES))))["id"]
        client.tell(batch_id, "pause")
        client.until(batch_id, lambda card: card["status"] == "in_progress")
        without, beside, failures, lines = uvloop.run(in_turns(target, client, batch_id, turns, turn_s))
    told("")

    def sides(what: str, name: str) -> Latencies:
        return Latencies(what, *([getattr(turn, name) for turn in side] for side in (without, beside)))

    return Interactive(
        sides("plain requests", "plain"),
        sides("first tokens", "first"),
        sides("gaps between tokens", "gaps"),
        lines / (turns * turn_s),
        failures,
    )
