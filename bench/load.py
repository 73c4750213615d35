"""The load generator: as many connections as are asked for, each with one request after the other.

It speaks HTTP/1.1 itself, so that it costs little beside what it loads; it shares the machine with it all the same, so
quote the CPU figures and the ratios between targets, not the requests per second.

    python -m bench.load PORT [--pid PID] [--key KEY] [--stream]     # one measurement of whatever listens there
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import cast

import httptools
import orjson
import uvloop

from .estimates import percentile
from .processes import cpu, family, memory_mb

TIMEOUT_S = 60.0
"""One measurement ends after this long, whatever is still open: those requests are bad."""

_DONE = b"data: [DONE]"
_ERRORS = (b'data: {"error"', b'data: {"object":"error"', b"event: error")


@dataclass(frozen=True, slots=True)
class Figures:
    """One measurement. Times are in the unit that the name says; what was not measured is NaN.

    bad        responses of another status, streams that broke, lacked an event or [DONE], or held an error
    cpu_us     of the target: per request, or per event of its streams
    user_us    the part of it in the target's own code; counted in ticks, so good only as a mean of many
    system_us  the part of it in the kernel, likewise
    """

    requests: int
    bad: int
    per_s: float
    p50_ms: float
    p99_ms: float
    first_p50_ms: float
    first_p99_ms: float
    gap_p99_ms: float
    cpu_us: float
    user_us: float
    system_us: float
    memory_mb: float


def in_ms(seconds: Sequence[float], share: float) -> float:
    """A percentile, in milliseconds."""
    return percentile(seconds, share) * 1e3


def chat_request(model: str, key: str, *, stream: bool, topic: str = "a helpful assistant") -> bytes:
    """A chat request of about 1.3 kB, headers included, as the official SDK would send it. Topics differ in prefix."""
    body = orjson.dumps(
        {
            "messages": [
                {"role": "system", "content": f"You are {topic}. " * 20},
                {"role": "user", "content": "What is the meaning of life? " * 20},
            ],
            "model": model,
            "max_tokens": 100,
            "stream": stream,
        }
    )
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\n"
        "host: localhost\r\n"
        "accept: application/json\r\n"
        "content-type: application/json\r\n"
        f"authorization: Bearer {key}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Load:
    """`requests` requests over `connections` connections. With `events`, each is a stream of that many and [DONE].

    status     that every answer must have
    ramp_s     the connections are opened evenly over this time, not at once
    """

    def __init__(
        self,
        port: int,
        request: bytes,
        *,
        connections: int,
        requests: int,
        events: int = 0,
        status: int = 200,
        ramp_s: float = 0.0,
    ) -> None:
        self.request = request
        self.events = events
        self.status = status
        self.left = requests
        self.latencies: list[float] = []
        self.firsts: list[float] = []
        self.gaps: list[float] = []
        self.received = 0
        self.bad = 0
        self.port = port
        self._connections = connections
        self._pause_s = ramp_s / connections
        self._busy = 0
        self._finished = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self._busy = self._connections
        begun = loop.time()
        for number in range(self._connections):
            if self._pause_s:
                await asyncio.sleep(begun + number * self._pause_s - loop.time())
            try:
                await loop.create_connection(lambda: Client(self), "127.0.0.1", self.port)
            except OSError:
                self.bad += 1
                self.client_ended()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._finished.wait()
        except TimeoutError:
            self.bad += self._busy
        self.bad += self.left  # nobody was left to send them

    def client_ended(self) -> None:
        self._busy -= 1
        if not self._busy:
            self._finished.set()


class Client(asyncio.Protocol):
    """One connection. When the target closes it between two requests, another one is made."""

    _transport: asyncio.Transport

    def __init__(self, load: Load) -> None:
        self._load = load
        self._open = False  # a request is under way

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only
        self._next()

    def _next(self) -> None:
        load = self._load
        if load.left <= 0:
            self._open = False
            self._transport.close()
            return
        load.left -= 1
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._first = self._last = 0.0
        self._open = True
        self._complete = False
        self._begun = time.perf_counter()
        self._transport.write(load.request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()
            return
        if self._complete:
            if self._keep_alive:
                self._next()
            else:
                self._open = False
                self._transport.close()

    def on_headers_complete(self) -> None:
        self._keep_alive = self._parser.should_keep_alive()  # known only here: it is gone when the message is complete

    def on_body(self, body: bytes) -> None:
        now = time.perf_counter()
        if not self._first:
            self._first = now
        else:
            self._load.gaps.append(now - self._last)
        self._last = now
        self._parts.append(body)

    def on_message_complete(self) -> None:
        load = self._load
        load.latencies.append(time.perf_counter() - self._begun)
        load.firsts.append(self._first - self._begun)
        self._complete = True
        body = b"".join(self._parts)
        events = body.count(b"data: ")
        load.received += events
        good = self._parser.get_status_code() == load.status
        if load.events:
            # the events, and [DONE]
            good = good and events >= load.events + 1 and _DONE in body and not any(mark in body for mark in _ERRORS)
        load.bad += not good

    def connection_lost(self, exc: Exception | None) -> None:
        load = self._load
        if self._open:
            load.bad += 1
        if load.left > 0:
            loop = asyncio.get_running_loop()
            self._reconnecting = loop.create_task(self._reconnect(loop), name="reconnect")
        else:
            load.client_ended()

    async def _reconnect(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            await loop.create_connection(lambda: Client(self._load), "127.0.0.1", self._load.port)
        except OSError:
            self._load.bad += 1
            self._load.client_ended()


def measure(
    port: int,
    pid: int | None,
    request: bytes,
    *,
    connections: int,
    requests: int,
    events: int = 0,
    status: int = 200,
) -> Figures:
    """Load what listens on `port` and read what it cost the process `pid` and those under it."""
    load = Load(port, request, connections=connections, requests=requests, events=events, status=status)
    pids = family(pid) if pid is not None else []
    gc.collect()
    gc.disable()
    try:
        before, begun = cpu(pids), time.perf_counter()
        uvloop.run(load.run())
        wall, used = time.perf_counter() - begun, cpu(pids) - before
    finally:
        gc.enable()
    count = load.received if events else len(load.latencies)
    each = 1e6 / count if pids and count else math.nan
    return Figures(
        requests=len(load.latencies),
        bad=load.bad,
        per_s=len(load.latencies) / wall,
        p50_ms=in_ms(load.latencies, 0.5),
        p99_ms=in_ms(load.latencies, 0.99),
        first_p50_ms=in_ms(load.firsts, 0.5),
        first_p99_ms=in_ms(load.firsts, 0.99),
        gap_p99_ms=in_ms(load.gaps, 0.99),
        cpu_us=used.total * each,
        user_us=used.user * each,
        system_us=used.system * each,
        memory_mb=memory_mb(pids) if pids else math.nan,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--pid", type=int, help="of the target, for its CPU and memory")
    parser.add_argument("--key", default="sk-none")
    parser.add_argument("--model", default="m")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--events", type=int, default=102, help="that each stream must have, [DONE] aside (102)")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--requests", type=int, default=3000)
    options = parser.parse_args()
    figures = measure(
        options.port,
        options.pid,
        chat_request(options.model, options.key, stream=options.stream),
        connections=options.connections,
        requests=options.requests,
        events=options.events if options.stream else 0,
    )
    for name, value in asdict(figures).items():
        print(f"{name:14} {value:10.2f}")


if __name__ == "__main__":
    main()
