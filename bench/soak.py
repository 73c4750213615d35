"""`--soak`: does the gateway keep memory? Hundreds of thousands of requests, good and bad, and its memory meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import uvloop

from .compare import told
from .estimates import slope
from .load import chat_request, measure
from .mock_engine import MODEL
from .processes import family, memory_mb, open_files
from .report import shown, table
from .targets import Target

LIMIT_MB = 10.0
REQUESTS = 300_000
WARM_UP = 20_000
CHUNKS, INTERVAL_MS = 20, 5.0
_MB_PER_MIB = 1.048576
_SLICE = 10_000
_ODD = 100  # of each other kind of request, with every slice of plain ones


@dataclass(frozen=True, slots=True)
class Sample:
    """The gateway after `requests` requests: MiB resident, and file descriptors."""

    requests: int
    memory_mb: float
    files: int


@dataclass(frozen=True, slots=True)
class Soak:
    """What a soak showed. The first sample is the one after the warm-up.

    bad    answers that were not what they must be: broken streams, other statuses
    odd    streams, disconnects and refused requests, beside the plain ones
    """

    samples: list[Sample]
    plain: int
    odd: int
    bad: int
    seconds: float

    @property
    def growth_mb(self) -> float:
        """From the end of the warm-up to the end, in megabytes, as the limit is."""
        return (self.samples[-1].memory_mb - self.samples[0].memory_mb) * _MB_PER_MIB

    @property
    def slope_mb(self) -> float:
        """Per 100,000 plain requests, over the second half: near zero when what grew was a cache that is full now."""
        half = self.samples[len(self.samples) // 2 :]
        if len(half) < 2:
            return 0.0
        per_request = slope([sample.memory_mb for sample in half]) / (half[1].requests - half[0].requests)
        return per_request * _MB_PER_MIB * 100_000


class Leaver(asyncio.Protocol):
    """A client that goes away in the middle of its stream, or before anything came."""

    def __init__(self, request: bytes, *, at_once: bool, gone: asyncio.Event) -> None:
        self._request = request
        self._at_once = at_once
        self._gone = gone

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)
        if self._at_once:
            asyncio.get_running_loop().call_later(0.002, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set()


async def leave(port: int, request: bytes, count: int) -> None:
    """That many clients, ten at a time, every second one before an answer can have come."""
    loop = asyncio.get_running_loop()
    for begin in range(0, count, 10):
        events = [asyncio.Event() for _ in range(min(10, count - begin))]
        for number, gone in enumerate(events):
            at_once = number % 2 == 0

            def client(gone: asyncio.Event = gone, at_once: bool = at_once) -> Leaver:
                return Leaver(request, at_once=at_once, gone=gone)

            await loop.create_connection(client, "127.0.0.1", port)
        for gone in events:
            await gone.wait()


def soak(target: Target, requests: int = REQUESTS, warm_up: int = WARM_UP) -> Soak:
    """Load a target of which `Target.pid` is the process, whose engine has streams of `CHUNKS` chunks."""
    assert target.pid is not None
    begun = time.perf_counter()
    bad = odd = plain = 0
    for count in slices(warm_up):
        bad += one_slice(target, count)
    samples = [sampled(target.pid, 0)]
    for count in slices(requests):
        told(f"soak: {plain} of {requests}, {samples[-1].memory_mb:.1f} MiB")
        bad += one_slice(target, count)
        plain, odd = plain + count, odd + 5 * _ODD
        samples.append(sampled(target.pid, plain))
    told("")
    return Soak(samples, plain, odd, bad, time.perf_counter() - begun)


def slices(requests: int) -> Iterator[int]:
    for begin in range(0, requests, _SLICE):
        yield min(_SLICE, requests - begin)


def one_slice(target: Target, count: int) -> int:
    """Plain requests, then some of everything else. Returns how many answers were wrong."""
    port, key = target.port, target.key
    plain = chat_request(MODEL, key, stream=False)
    stream = chat_request(MODEL, key, stream=True)
    bad = measure(port, None, plain, connections=32, requests=count).bad
    bad += measure(port, None, stream, connections=_ODD, requests=_ODD, events=CHUNKS + 2).bad
    refused = ((chat_request(MODEL, "sk-wrong", stream=False), 401), (chat_request("nobody", key, stream=False), 404))
    for request, status in (*refused, (not_json(plain), 400)):
        bad += measure(port, None, request, connections=10, requests=_ODD, status=status).bad
    uvloop.run(leave(port, stream, _ODD))
    return bad


def not_json(request: bytes) -> bytes:
    """The same request, its body broken and as long as before."""
    return request[:-2] + b"]]"


def sampled(pid: int, requests: int) -> Sample:
    time.sleep(0.5)  # usage and log are written behind
    return Sample(requests, memory_mb(family(pid)), open_files(pid))


def report(result: Soak) -> str:
    samples = result.samples
    every = max(1, len(samples) // 8)
    chosen = [*samples[:-1:every], samples[-1]]
    rows = [["plain requests", *(str(sample.requests) for sample in chosen)]]
    rows += [["RSS MiB", *(shown(sample.memory_mb, 1) for sample in chosen)]]
    rows += [["open files", *(str(sample.files) for sample in chosen)]]
    judged = "ok" if result.growth_mb <= LIMIT_MB else "missed"
    return (
        f"soak: {result.plain} plain requests, {result.odd} streams, disconnects and refusals, in {result.seconds:.0f} "
        f"s; after a warm-up of {WARM_UP}\n{table(rows)}\n"
        f"resident memory grew by {result.growth_mb:.1f} MB (at most {LIMIT_MB:g}: {judged}); in the second half by "
        f"{result.slope_mb:.1f} MB per 100,000 requests; {result.bad} wrong answers"
    )


def passed(result: Soak) -> bool:
    return result.growth_mb <= LIMIT_MB and not result.bad
