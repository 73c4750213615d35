"""A thin pooled HTTP/1.1 client: the hot path.

    Pool.request ----> Connection (one per socket) ----> engine
         |                 | parses with httptools, keeps what arrived until it is taken
         `--> Response <---'   next(): what has arrived since the last call;  read(): the whole body

One `asyncio.Protocol` per connection, no task, one future per wait. When its answer has ended, a connection goes back
to its pool at once, before anybody has read the body: the last bytes move over to the `Response`.

Time is not looked at per chunk. A pool has one timer, the sweep: it adds one to every connection's `quiet`, a
read sets it to zero, and who was quiet for longer than it may be has timed out. That costs one store a read, fires at
most an eighth of the time-out (or a second) late, and a gateway that was itself stopped for a minute blames no engine.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from . import liveness
from .connection import Connection
from .errors import ConnectFailed, Disconnected, MalformedResponse, TransportError

Sink = Callable[[bytes], bool]
"""Takes bytes, or says that it cannot now."""

_SWEEPS = 8


@dataclass(frozen=True, slots=True)
class Timeouts:
    """In seconds. `first_byte_s`: from sending to the end of the response head; `idle_s`: between reads of a body;
    `total_s`: from taking a request to the end of its answer, which is for who asks the pool to keep."""

    connect_s: float = 5.0
    first_byte_s: float = 600.0
    idle_s: float = 120.0
    total_s: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may hold, and how many wait for their next request.

    header_bytes       of a response head, and of what else is not body
    body_bytes         of a body for `read`
    buffer_bytes       of a stream that nobody takes, before reading stops
    idle_connections   per pool
    keep_alive_s       an idle connection is closed after this. Engines may close theirs earlier (uvicorn, and so vLLM
                       and SGLang, after 5 s): it is then forgotten, and a request just on its way is sent again
    end_s              how long the end of a body may take whose content is complete
    """

    header_bytes: int = 64 * 1024
    body_bytes: int = 64 * 1024 * 1024
    buffer_bytes: int = 256 * 1024
    idle_connections: int = 256
    keep_alive_s: float = 60.0
    end_s: float = 4.0


class Pool:
    """The connections to one origin. Bound to the event loop that first uses it."""

    def __init__(self, host: str, port: int, *, timeouts: Timeouts | None = None, limits: Limits | None = None) -> None:
        self.timeouts = timeouts = timeouts or Timeouts()
        self.limits = limits = limits or Limits()
        self.origin = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._host = host
        self._port = port
        self._host_header = b"host: " + self.origin.encode() + b"\r\n"
        self._open: set[Connection] = set()
        self._idle: list[Connection] = []
        self._connecting: set[asyncio.Timeout] = set()
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        waits = (timeouts.first_byte_s, timeouts.idle_s, limits.keep_alive_s, limits.end_s)
        self._interval_s = min(1.0, min(waits) / _SWEEPS)
        # n sweeps are seen within (n-1)..n intervals, so it takes one more than ceil() not to fire early
        self.first_byte_sweeps, self.idle_sweeps, self.keep_alive_sweeps, self.end_sweeps = (
            math.ceil(wait / self._interval_s) for wait in waits
        )

    @property
    def open_connections(self) -> int:
        """All of them, until the socket is closed."""
        return len(self._open)

    @property
    def idle_connections(self) -> int:
        """Those that wait for a request."""
        return len(self._idle)

    def unanswered_s(self) -> float:
        """How long the request has waited for which nothing has come for the longest, by the sweep's count; else 0."""
        waited = [connection.quiet * self._interval_s for connection in self._open if connection.is_unanswered]
        if self._connecting:
            now = asyncio.get_running_loop().time()
            waited += [self.timeouts.connect_s - ((limit.when() or now) - now) for limit in self._connecting]
        return max(waited, default=0.0)

    async def request(self, method: bytes, target: bytes, headers: bytes, body: bytes = b"") -> Response:
        """Send, and return when the response head is there; of an event stream, when its first bytes are, or its end.

        `headers` is a rendered block, each line with its end; host and content-length are added here. Nothing is
        checked: whoever lets a client's bytes into `target` or `headers` must have looked for line ends.
        Raises `TransportError`. Cancelling it closes the connection.
        """
        head = b"%s %s HTTP/1.1\r\n%s%scontent-length: %d\r\n\r\n" % (
            method,
            target,
            self._host_header,
            headers,
            len(body),
        )
        reused = bool(self._idle)
        error: TransportError | None = None
        while True:
            # the last one in is the first one out: it is the warmest, and the others get old enough to be closed
            connection = self._idle.pop() if reused else await self._connect_after(error)
            response = Response(connection, self.limits.body_bytes)
            connection.send(response, head, body)
            if response.connection is not None:
                try:
                    await connection.news()  # as `Response.wait`, less a coroutine
                except BaseException:
                    response.close()
                    raise
            error = response.error
            if response.status or error is None:
                return response
            # The server closed while our request was on its way to it, as servers do with idle connections. To send it
            # again is safe: an inference request changes nothing and has no effect but its answer, of which we have
            # not seen a byte. Once only, and never on a connection of its own: that one dies of the request.
            if not (reused and isinstance(error, Disconnected) and not error.received):
                raise error
            reused = False

    def give_up(self, most: int) -> None:
        """Let all fail that wait for a connection, and up to `most` that wait for the first byte of an answer, as if
        their time were up: somebody has found that nobody is there."""
        for limit in self._connecting:
            if not limit.expired():
                limit.reschedule(0.0)
        for connection in [connection for connection in self._open if connection.is_unanswered][:most]:
            connection.expire()

    def close_idle(self) -> None:
        """Close the connections that wait for a request."""
        while self._idle:
            self._idle.pop().abort()

    async def aclose(self) -> None:
        """Close idle connections and wait until they are. Those of open responses close when their response ends."""
        self._closed = True
        closed = [connection.close_event() for connection in self._idle]
        self.close_idle()
        for event in closed:
            await event.wait()

    async def _connect(self) -> Connection:
        try:
            async with asyncio.timeout(self.timeouts.connect_s) as limit:
                self._connecting.add(limit)
                try:
                    transport, connection = await asyncio.get_running_loop().create_connection(
                        self._new_connection, self._host, self._port
                    )
                finally:
                    self._connecting.discard(limit)
        except TimeoutError:
            detail = f"{self.origin}: no connection in time"
            raise ConnectFailed("The engine did not take the connection in time.", detail=detail) from None
        except (OSError, UnicodeError) as error:  # UnicodeError: a host that is no name
            raise ConnectFailed("The engine cannot be reached.", detail=f"{self.origin}: {error}") from error
        # counted only now: uvloop, cancelled in between, has called connection_made and never calls connection_lost
        if connection.is_open:
            liveness.probe(transport.get_extra_info("socket"), liveness.ENGINE)
            self._open.add(connection)
            if self._timer is None:
                self._timer = connection.loop.call_later(self._interval_s, self._sweep, connection.loop)
        return connection

    async def _connect_after(self, failure: TransportError | None) -> Connection:
        """A connection for a request that may have been sent in vain (`failure`). If nobody listens any more, then that
        is what the request has come to: the engine took it, and may have died of it."""
        try:
            return await self._connect()
        except ConnectFailed:
            if failure is not None:
                raise failure from None
            raise

    def _new_connection(self) -> Connection:
        return Connection(self, asyncio.get_running_loop())

    # -- called by connections ----------------------------------------------------------------------------------------

    def lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        self.forget(connection)
        if not self._open and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def forget(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def keep(self, connection: Connection) -> bool:
        """Take a connection back, unless there is no need for it."""
        if self._closed or len(self._idle) >= self.limits.idle_connections:
            return False
        self._idle.append(connection)
        return True

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(self._interval_s, self._sweep, loop)
        for connection in tuple(self._open):
            connection.quiet += 1
            if connection.quiet > connection.patience:
                connection.expire()


class Response:
    """One answer. Its body is read by `next` or `read`, by one task at a time; then `close` it, whatever happened."""

    __slots__ = ("_limit", "connection", "error", "raw_headers", "rest", "status")

    def __init__(self, connection: Connection, limit: int) -> None:
        self._limit = limit
        self.status = 0
        self.raw_headers: list[tuple[bytes, bytes]] = []
        self.connection: Connection | None = connection
        """None as soon as the whole body has arrived, or has failed to."""
        self.rest = b""
        self.error: TransportError | None = None

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Names in lower case, in the engine's order."""
        return [(name.lower(), value) for name, value in self.raw_headers]

    def header(self, name: bytes) -> bytes:
        """The first value of a header, given in lower case; b"" if there is none."""
        for key, value in self.raw_headers:
            if len(key) == len(name) and key.lower() == name:
                return value
        return b""

    @property
    def content_type(self) -> bytes:
        return self.header(b"content-type")

    async def next(self) -> bytes:
        """What has arrived since the last call, waiting if nothing has; b"" at the end.

        Raises `Disconnected` for a body cut short, `EngineTimeout`, `MalformedResponse`; what had come before the
        failure is given out first.
        """
        while (connection := self.connection) is not None:
            if connection.chunks:
                return connection.take()
            await self.wait(connection)
        if rest := self.rest:
            self.rest = b""
            return rest
        if self.error is not None:
            raise self.error
        return b""

    def pass_to(self, sink: Sink) -> None:
        """From now on what arrives while `next` waits is offered to `sink` first, without waking who waits.

        True: it has taken it. False: `next` returns it, as if there were no sink. So the order is kept.
        """
        if self.connection is not None:
            self.connection.sink = sink

    def pass_chunks_to(self, sink: Sink) -> None:
        """After `pass_to`: offer to this sink first what is read of a chunked body, before it is parsed, when it begins
        where a chunk does. It may take only what is exactly one chunk (framing.py), and not the last one."""
        if self.connection is not None:
            self.connection.chunk_sink = sink

    async def read(self) -> bytes:
        """The whole body, or what is left of it. Does not suspend if all of it is there. Raises as `next` does."""
        if self.connection is not None:
            self.connection.want_all()
            while (connection := self.connection) is not None:
                await self.wait(connection)
        if self.error is not None:
            raise self.error
        rest, self.rest = self.rest, b""
        if len(rest) > self._limit:
            raise MalformedResponse(f"The engine's answer is too large: its body has more than {self._limit} bytes.")
        return rest

    def finish(self) -> None:
        """Let go of an answer whose content is complete, as after `[DONE]`, though its last chunk has not come.

        The connection waits for that on its own and can then be used again; if it does not come, it is closed.
        """
        self.rest = b""
        if self.connection is not None:
            self.connection.let_end()

    def close(self) -> None:
        """Let go of the answer. If its end has not come, the connection is closed, so that the engine stops."""
        if self.connection is not None:
            self.connection.drop()
        self.rest = b""

    async def wait(self, connection: Connection) -> None:
        """Until the connection has news: the head, a part of the body, the end, whichever is awaited."""
        try:
            await connection.news()
        except BaseException:  # cancelled, and nobody will read on
            self.close()
            raise
