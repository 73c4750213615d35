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
from dataclasses import dataclass
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from .errors import ConnectFailed, Disconnected, EngineTimeout, MalformedResponse, TransportError

ONE_WRITE_BYTES = 128 * 1024
"""A request body up to this size leaves in one write with its head, a larger one in slices of this size."""

_SWEEPS = 8


@dataclass(frozen=True, slots=True)
class Timeouts:
    """In seconds. `first_byte_s`: from sending to the end of the response head; `idle_s`: between reads of a body."""

    connect_s: float = 5.0
    first_byte_s: float = 600.0
    idle_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may hold, and how many wait for their next request.

    header_bytes       of a response head, and of what else is not body
    body_bytes         of a body for `read`
    buffer_bytes       of a stream that nobody takes, before reading stops
    idle_connections   per pool
    keep_alive_s       an idle connection is closed after this; below the 5 s of uvicorn, and so of vLLM and SGLang,
                       so that it is us who close, and not them just when the next request is on its way
    """

    header_bytes: int = 64 * 1024
    body_bytes: int = 64 * 1024 * 1024
    buffer_bytes: int = 256 * 1024
    idle_connections: int = 256
    keep_alive_s: float = 4.0


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
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        waits = (timeouts.first_byte_s, timeouts.idle_s, limits.keep_alive_s)
        self._interval_s = min(1.0, min(waits) / _SWEEPS)
        # n sweeps are seen within (n-1)..n intervals, so it takes one more than ceil() not to fire early
        self.first_byte_sweeps, self.idle_sweeps, self.keep_alive_sweeps = (
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

    async def request(self, method: bytes, target: bytes, headers: bytes, body: bytes = b"") -> Response:
        """Send, and return when the response head is there.

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
        while True:
            # the last one in is the first one out: it is the warmest, and the others get old enough to be closed
            connection = self._idle.pop() if reused else await self._connect()
            response = Response(connection, self.limits.body_bytes)
            connection.send(response, head, body)
            if response.connection is not None:
                await response.wait(connection)
            error = response.error
            if response.status or error is None:
                return response
            # The server closed while our request was on its way to it, as servers do with idle connections. To send it
            # again is safe: an inference request changes nothing and has no effect but its answer, of which we have
            # not seen a byte. Once only, and never on a connection of its own: that one dies of the request.
            if not (reused and isinstance(error, Disconnected) and not error.received):
                raise error
            reused = False

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
            async with asyncio.timeout(self.timeouts.connect_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    self._new_connection, self._host, self._port
                )
        except TimeoutError:
            detail = f"{self.origin}: no connection within {self.timeouts.connect_s:g} s"
            raise ConnectFailed("The engine did not take the connection in time.", detail=detail) from None
        except (OSError, UnicodeError) as error:  # UnicodeError: a host that is no name
            raise ConnectFailed("The engine cannot be reached.", detail=f"{self.origin}: {error}") from error
        return connection

    def _new_connection(self) -> Connection:
        return Connection(self, asyncio.get_running_loop())

    # -- called by connections ----------------------------------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)
        if self._timer is None:
            self._timer = connection.loop.call_later(self._interval_s, self._sweep, connection.loop)

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


class _Surplus(Exception):
    """Bytes after the end of an answer."""


class _HeadTooLarge(Exception):
    pass


class Connection(asyncio.Protocol):
    """One socket. Between two requests it holds nothing of the first one."""

    __slots__ = (
        "_closed",
        "_header_list",
        "_keep_alive",
        "_parser",
        "_pool",
        "_reading",
        "_response",
        "_room",
        "_taken",
        "_transport",
        "_unsent",
        "_waiter",
        "_whole",
        "_writing",
        "chunks",
        "loop",
        "on_body",
        "patience",
        "quiet",
    )

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._response: Response | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._closed: asyncio.Event | None = None
        self._header_list: list[tuple[bytes, bytes]] = []
        self.chunks: list[bytes] = []
        self.on_body = self.chunks.append  # the parser appends without a Python frame in between
        self._taken = 0  # bytes read since the reader last took some
        self._room = 0  # `_taken` may not pass this
        self._whole = False  # the reader waits for the end
        self._reading = True
        self._writing = True
        self._keep_alive = False
        self._unsent: memoryview | None = None  # None: the body left with the head
        self.quiet = 0
        self.patience = pool.keep_alive_sweeps
        self._parser: HttpResponseParser | None = HttpResponseParser(self)

    # -- called by Pool and Response ----------------------------------------------------------------------------------

    def send(self, response: Response, head: bytes, body: bytes) -> None:
        """Start an exchange. Never raises: a failure ends the response."""
        self._response = response
        pool = self._pool
        self._taken = 0
        self._room = pool.limits.header_bytes
        self._whole = False
        self.quiet = 0
        self.patience = pool.first_byte_sweeps
        if self._transport is None:
            self._end(self._disconnected("closed before the request"))
        elif len(body) <= ONE_WRITE_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._unsent = memoryview(body)
            self._send_slices()

    def news(self) -> asyncio.Future[None]:
        """Done when there is something to look at: the head, a part of the body, the end, whichever is awaited."""
        waiter = self._waiter = self.loop.create_future()
        return waiter

    def take(self) -> bytes:
        chunks = self.chunks
        if len(chunks) == 1:
            data = chunks.pop()
        else:
            data = b"".join(chunks)
            chunks.clear()
        self._taken = 0
        if not self._reading:
            self._resume()
        return data

    def want_all(self) -> None:
        """The reader takes the whole body at once."""
        self._whole = True
        self._room = self._pool.limits.body_bytes
        if not self._reading:
            self._resume()

    def drop(self) -> None:
        """The reader has lost interest."""
        self.abort()
        self.chunks.clear()
        self._end(None)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def close_event(self) -> asyncio.Event:
        self._closed = asyncio.Event()
        return self._closed

    def expire(self) -> None:
        """Quiet for too long."""
        if self._response is None:
            self._pool.forget(self)
            self.abort()
        elif self._reading:  # else it is the reader who is slow
            if self._response.status:
                phase, seconds = "idle", self._pool.timeouts.idle_s
            else:
                phase, seconds = "first byte", self._pool.timeouts.first_byte_s
            detail = f"{self._pool.origin}: {phase}, {seconds:g} s"
            self._fail(EngineTimeout("The engine did not answer in time.", detail=detail, phase=phase))

    # -- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # asyncio and uvloop both set TCP_NODELAY themselves
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        response, parser = self._response, self._parser
        if response is None or parser is None:
            self._pool.forget(self)  # bytes that nobody asked for must never be the next request's answer
            self.abort()
            return
        self.quiet = 0
        self._taken += len(data)
        try:
            parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._keep_alive = False
            if response.connection is not None:  # else it is only what follows the answer that is wrong
                self._malformed(error)
                return
        if response.connection is None:
            self._release()
            return
        if self._taken > self._room:
            self._overflow(response)
        if self.chunks and self._waiter is not None and not self._whole:
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._parser = None  # it refers to us: break the cycle
        self._unsent = None
        self._pool.lost(self)
        if self._closed is not None:
            self._closed.set()
        if self._response is not None:
            if exc is None and self._ends_by_closing(self._response):
                self._end(None)
            else:
                self._end(self._disconnected(str(exc or "closed")))

    def pause_writing(self) -> None:
        self._writing = False

    def resume_writing(self) -> None:
        self._writing = True
        self._send_slices()

    # -- httptools ----------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._response is None:
            raise _Surplus

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_list.append((name, value))

    def on_headers_complete(self) -> None:
        response, parser = self._response, self._parser
        if response is None or parser is None:  # cannot be: on_message_begin saw to it
            raise _Surplus
        headers = self._header_list
        if self._taken > self._room and sum(len(name) + len(value) + 4 for name, value in headers) > self._room:
            raise _HeadTooLarge
        self._header_list = []
        status = parser.get_status_code()
        if status < 200:  # 100, 103: the answer is still to come
            return
        response.raw_headers = headers
        response.status = status
        self._keep_alive = parser.should_keep_alive()
        self._taken = 0
        self._room = self._pool.limits.buffer_bytes
        self.patience = self._pool.idle_sweeps
        if status >= 400 and self._unsent is not None:
            self._unsent = self._unsent[:0]  # it does not want the rest
            self._keep_alive = False
        self._wake()

    def on_message_complete(self) -> None:
        if self._response is not None and self._response.status:
            self._end(None)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _end(self, error: TransportError | None) -> None:
        """The response has all it will ever get."""
        response, self._response = self._response, None
        if response is None:
            return
        chunks = self.chunks
        if len(chunks) == 1:
            response.rest = chunks.pop()
        elif chunks:
            response.rest = b"".join(chunks)
            chunks.clear()
        response.error = error
        response.connection = None
        self._wake()

    def _release(self) -> None:
        """After the answer's end: back to the pool, if the connection is as good as new."""
        transport = self._transport
        if self._unsent is not None:
            # an early answer leaves a request half sent behind, and nobody can say where the next one would start
            if self._unsent or transport is None or transport.get_write_buffer_size():
                self._keep_alive = False
            self._unsent = None
        if self._header_list:  # trailers
            self._header_list = []
        self.patience = self._pool.keep_alive_sweeps
        if not (self._keep_alive and self._pool.keep(self)):
            self.abort()

    def _fail(self, error: TransportError) -> None:
        self._end(error)
        self.abort()

    def _malformed(self, error: Exception) -> None:
        cause = error.__context__
        what = "the head is too large" if isinstance(cause, _HeadTooLarge) else str(error)
        self._fail(MalformedResponse("The engine's answer is not valid HTTP.", detail=f"{self._pool.origin}: {what}"))

    def _overflow(self, response: Response) -> None:
        """More has come than there is room for."""
        if response.status and self.chunks and not self._whole:
            self._reading = False
            if self._transport is not None:
                self._transport.pause_reading()
            return
        # the rest is refused: a head, trailers or chunk extensions without end, or a body larger than `read` may return
        self.chunks.clear()
        what = "body" if self._whole else "head"
        message = f"The engine's answer is too large: its {what} has more than {self._room} bytes."
        self._fail(MalformedResponse(message, detail=self._pool.origin))

    def _resume(self) -> None:
        self._reading = True
        self.quiet = 0
        if self._transport is not None:
            self._transport.resume_reading()

    def _send_slices(self) -> None:
        while self._unsent and self._writing and self._transport is not None:
            piece, self._unsent = self._unsent[:ONE_WRITE_BYTES], self._unsent[ONE_WRITE_BYTES:]
            self._transport.write(piece)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _ends_by_closing(self, response: Response) -> bool:
        """A body without a length is as long as its connection lives."""
        return (
            response.status != 0
            and not self._keep_alive
            and not response.header(b"content-length")
            and b"chunked" not in response.header(b"transfer-encoding").lower()
        )

    def _disconnected(self, why: str) -> Disconnected:
        response = self._response
        received = self._taken > 0 or (response is not None and response.status != 0)
        message = "The engine closed the connection before its answer was whole."
        return Disconnected(message, detail=f"{self._pool.origin}: {why}", received=received)
