"""One socket of the HTTP client in transport.py: an `asyncio.Protocol` around httptools' parser.

    idle --send--> waiting for the head --on_headers_complete--> body --on_message_complete--> idle, or closed

While an exchange runs the connection has its `Response`, and keeps what arrives of the body in `chunks` until it is
taken. When the exchange ends, well or not, `_end` moves the rest over to the response and the two part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from .errors import Disconnected, EngineTimeout, MalformedResponse, TransportError

if TYPE_CHECKING:
    from .transport import Pool, Response

ONE_WRITE_BYTES = 128 * 1024
"""A request body up to this size leaves in one write with its head, a larger one in slices of this size."""


def _take_nothing(_data: bytes) -> bool:
    return False


class _Surplus(Exception):
    """Bytes after the end of an answer."""


class _HeadTooLarge(Exception):
    pass


class Connection(asyncio.Protocol):
    """One socket. Between two requests it holds nothing of the first one.

    Without `__slots__`: measured, they cost 0.3 us a chunk here.
    """

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
        self.sink: Callable[[bytes], bool] | None = None  # see Response.pass_to
        self.chunk_sink: Callable[[bytes], bool] = _take_nothing
        self._chunk_over = False  # the last thing that the parser told of was a chunk's end
        self._between_chunks = False  # and it has read nothing since
        self._unsent: memoryview | None = None  # None: the body left with the head
        self.quiet = 0
        self.patience = pool.keep_alive_sweeps
        self._parser: HttpResponseParser | None = HttpResponseParser(self)

    # -- called by Pool and Response ----------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    @property
    def is_unanswered(self) -> bool:
        """It has a request, and not a byte of its answer."""
        return self._response is not None and self._response.status == 0 and self._taken == 0

    def send(self, response: Response, head: bytes, body: bytes) -> None:
        """Start an exchange. Never raises: a failure ends the response."""
        self._response = response
        pool = self._pool
        self._taken = 0
        self._room = pool.limits.header_bytes
        self._whole = False
        self.sink = None
        self._between_chunks = False
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

    def let_end(self) -> None:
        """The reader has what it wants, and only the end is missing: it may come, with little else and soon."""
        self.chunks.clear()
        self._taken = 0
        self._whole = True
        self._room = self._pool.limits.header_bytes
        self.patience = self._pool.end_sweeps
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

    def data_received(self, data: bytes) -> None:
        if self._between_chunks and self._waiter is not None and not self.chunks and self.chunk_sink(data):
            self.quiet = 0  # the parser has not seen this chunk, and stands where it stood: between two of them
            return
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
        # after the end of a chunk a part of the next one's size may have come; that has no line end
        self._between_chunks = self._chunk_over and data.endswith(b"\r\n")
        if self._taken > self._room:
            self._overflow(response)
        if self.chunks and self._waiter is not None and not self._whole:
            if self.sink is not None and self.sink(self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)):
                self.chunks.clear()
                self._taken = 0
            else:
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
        if status >= 400 and self._unsent:
            self._unsent = self._unsent[:0]  # it does not want the rest
            self._keep_alive = False
        if status != 200 or b"event-stream" not in response.content_type:
            self._wake()  # else with the first events, which come later: nobody can do anything before

    def on_chunk_header(self) -> None:
        self._chunk_over = False

    def on_chunk_complete(self) -> None:
        self._chunk_over = True

    def on_message_complete(self) -> None:
        if self._response is not None and self._response.status:
            self._end(None)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _end(self, error: TransportError | None) -> None:
        """The response has all it will ever get."""
        self.sink = None
        self.chunk_sink = _take_nothing
        self._between_chunks = False
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
