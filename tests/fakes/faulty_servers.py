"""Servers on loopback, each named after its fault. They wait for events, never for time.

    async with StallsMidStream() as server:
        ... a request to server.host, server.port ...
        await server.wait_closed_by_peer()

`connections_opened` counts all connections so far, `connections_open` those open now, `closed_by_peer` those that the
other side ended; `requests` holds what came, head and body. `until(condition)` waits for anything of these.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Self


def plain(body: bytes, head: bytes = b"200 OK") -> bytes:
    """A response with a content-length."""
    return b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (head, len(body), body)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
DONE = b"data: [DONE]\n\n"


class Peer:
    """The server's side of one connection."""

    def __init__(self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self.reader = reader
        self.writer = writer

    async def head(self) -> bytes:
        """The next request's head. Raises `IncompleteReadError` if the other side closes instead."""
        return await self.reader.readuntil(b"\r\n\r\n")

    async def body(self, head: bytes) -> bytes:
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                return await self.reader.readexactly(int(value))
        return b""

    async def request(self) -> bytes:
        head = await self.head()
        request = head + await self.body(head)
        self._server.requests.append(request)
        self._server.notify()
        return request

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Close so that the other side gets a reset instead of an end of file."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def until_closed(self) -> None:
        """Until the other side has closed."""
        try:
            while await self.reader.read(64 * 1024):
                pass
        except ConnectionError:
            pass
        self._server.closed_by_peer += 1
        self._server.notify()


class Server:
    """Serves every connection by `serve`; when that returns, the server closes the connection."""

    host = "127.0.0.1"
    port = 0
    listens_at = 0
    tls: ssl.SSLContext | None = None

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.connections_opened = 0
        self.connections_open = 0
        self.closed_by_peer = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, self.host, self.listens_at, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, type_: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def serve(self, peer: Peer) -> None:
        raise NotImplementedError

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    async def wait_closed_by_peer(self, connections: int = 1) -> None:
        await self.until(lambda: self.closed_by_peer >= connections)

    async def wait_for_requests(self, requests: int = 1) -> None:
        await self.until(lambda: len(self.requests) >= requests)

    async def wait_all_closed(self) -> None:
        """By whichever side."""
        await self.until(lambda: self.connections_open == 0)

    def notify(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self.connections_opened += 1
        self.connections_open += 1
        self.notify()
        try:
            await self.serve(Peer(self, reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed_by_peer += 1
        except asyncio.CancelledError:
            writer.transport.abort()  # the test is over; not raised again, since nobody asks this task
        finally:
            writer.close()
            self.connections_open -= 1
            self.notify()


class Answers(Server):
    """No fault: the given responses in turn, the last one over and over, on connections that are kept."""

    def __init__(self, *responses: bytes) -> None:
        super().__init__()
        self.responses = responses or (plain(b"{}"),)

    def next_response(self) -> bytes:
        return self.responses[min(len(self.requests), len(self.responses)) - 1]

    async def serve(self, peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(self.next_response())


class AnswersAndCloses(Answers):
    """One response, then the end of the connection: right for `connection: close` and for bodies without a length."""

    async def serve(self, peer: Peer) -> None:
        await peer.request()
        await peer.send(self.next_response())


class AnswersWhenTold(Answers):
    """Holds each response back until `go` is set."""

    def __init__(self, *responses: bytes) -> None:
        super().__init__(*responses)
        self.go = asyncio.Event()

    async def serve(self, peer: Peer) -> None:
        while True:
            await peer.request()
            await self.go.wait()
            await peer.send(self.next_response())


class ClosesIdleConnection(Answers):
    """Promises to keep the connection and closes it when `close_now` is set."""

    def __init__(self, *responses: bytes) -> None:
        super().__init__(*responses)
        self.close_now = asyncio.Event()

    async def serve(self, peer: Peer) -> None:
        await peer.request()
        await peer.send(self.next_response())
        await self.close_now.wait()


class ClosesOnReuse(Answers):
    """Takes the second request of a connection and closes without a byte: how a closed idle connection looks when the
    close and the request have crossed. With `always`, every later connection is closed on its first request."""

    def __init__(self, *responses: bytes, always: bool = False, reset: bool = False) -> None:
        super().__init__(*responses)
        self.always = always
        self.by_reset = reset

    async def serve(self, peer: Peer) -> None:
        if not self.always or self.connections_opened == 1:
            await peer.request()
            await peer.send(self.next_response())
        await peer.request()
        if self.by_reset:
            peer.reset()


class ClosesReusedMidHead(Answers):
    """Like ClosesOnReuse, but part of a response head has been sent."""

    async def serve(self, peer: Peer) -> None:
        await peer.request()
        await peer.send(self.next_response())
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-")


class ClosesBeforeResponse(Server):
    """Takes the request and closes."""

    async def serve(self, peer: Peer) -> None:
        await peer.request()


class ResetsBeforeResponse(Server):
    async def serve(self, peer: Peer) -> None:
        await peer.request()
        peer.reset()


class ClosesAtOnce(Server):
    """Accepts and closes, without waiting for a request."""

    async def serve(self, peer: Peer) -> None:
        return


class DiesMidBody(Server):
    """Half of a body with a content-length, then the end."""

    async def serve(self, peer: Peer) -> None:
        await peer.request()
        await peer.send(plain(b'{"object":"chat.completion"}')[:-14])


class DiesMidStream(Server):
    """`events` events of a chunked stream, then the end, without the last chunk."""

    def __init__(self, events: int = 1) -> None:
        super().__init__()
        self.events = events

    async def serve(self, peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD + chunk(EVENT) * self.events)


class NeverAnswers(Server):
    """Takes the request and says nothing."""

    async def serve(self, peer: Peer) -> None:
        await peer.request()
        await peer.until_closed()


class StallsMidStream(Server):
    """One event, then nothing."""

    async def serve(self, peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD + chunk(EVENT))
        await peer.until_closed()


class StallsMidBody(Server):
    """Half of a body with a content-length, then nothing."""

    async def serve(self, peer: Peer) -> None:
        await peer.request()
        await peer.send(plain(b'{"object":"chat.completion"}')[:-14])
        await peer.until_closed()


class LingersAfterDone(Server):
    """A whole stream but for its last chunk, which comes when `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()

    async def serve(self, peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(STREAM_HEAD + chunk(EVENT + DONE))
            await self.go.wait()
            await peer.send(LAST_CHUNK)


class SendsForever(Server):
    """`start`, then `more` as long as the other side takes it; `sent` bytes so far."""

    def __init__(self, start: bytes, more: bytes) -> None:
        super().__init__()
        self.start = start
        self.more = more
        self.sent = 0

    async def serve(self, peer: Peer) -> None:
        await peer.request()
        await peer.send(self.start)
        while not peer.writer.transport.is_closing():
            await peer.send(self.more)
            self.sent += len(self.more)
        await peer.until_closed()


class SendsEndlessHeaders(SendsForever):
    def __init__(self) -> None:
        super().__init__(b"HTTP/1.1 200 OK\r\n", b"x-more: " + b"m" * 1000 + b"\r\n")


class SendsEndlessInterims(SendsForever):
    """100 Continue, and again, and again."""

    def __init__(self) -> None:
        super().__init__(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 40)


class SendsEndlessTrailers(SendsForever):
    def __init__(self) -> None:
        super().__init__(STREAM_HEAD + chunk(EVENT) + b"0\r\n", b"x-more: " + b"m" * 1000 + b"\r\n")


class SendsEndlessBody(SendsForever):
    """A stream that never ends, as fast as it is taken."""

    def __init__(self) -> None:
        super().__init__(STREAM_HEAD, chunk(EVENT * 100))


class SendsGarbage(Server):
    """Something that is not HTTP; `after` is sent before it."""

    def __init__(self, after: bytes = b"") -> None:
        super().__init__()
        self.after = after

    async def serve(self, peer: Peer) -> None:
        await peer.request()
        await peer.send(self.after + b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        await peer.until_closed()


class AnswersTwice(Answers):
    """Two responses to one request."""

    async def serve(self, peer: Peer) -> None:
        await peer.request()
        await peer.send(self.next_response() * 2)
        await peer.until_closed()


class TalksWhenIdle(Answers):
    """After its answer, when `talk` is set, it sends a response that nobody asked for."""

    def __init__(self, *responses: bytes) -> None:
        super().__init__(*responses)
        self.talk = asyncio.Event()

    async def serve(self, peer: Peer) -> None:
        await peer.request()
        await peer.send(self.next_response())
        await self.talk.wait()
        await peer.send(plain(b'"not yours"'))
        await peer.until_closed()


class SlowlyReadsRequest(Answers):
    """Reads the head, and the body only when `go_on` is set."""

    def __init__(self, *responses: bytes) -> None:
        super().__init__(*responses)
        self.go_on = asyncio.Event()
        self.heads = 0

    async def serve(self, peer: Peer) -> None:
        while True:
            head = await peer.head()
            self.heads += 1
            self.notify()
            await self.go_on.wait()
            self.requests.append(head + await peer.body(head))
            self.notify()
            await peer.send(self.next_response())


class AnswersEarly(Server):
    """Answers when it has seen the head, with 413 unless told otherwise, and never reads the body."""

    too_large = plain(b'{"error":{"message":"too large"}}', b"413 Payload Too Large")

    def __init__(self, response: bytes = too_large) -> None:
        super().__init__()
        self.response = response

    async def serve(self, peer: Peer) -> None:
        self.requests.append(await peer.head())
        self.notify()
        await peer.send(self.response)
        await peer.until_closed()


class NeverAccepts(Server):
    """Its backlog is full: a connection to it is not established, nor refused."""

    async def __aenter__(self) -> Self:
        self._listener = socket.socket()
        self._listener.bind((self.host, 0))
        self._listener.listen(0)
        self.port = self._listener.getsockname()[1]
        self._fillers: list[socket.socket] = []
        for _ in range(2):  # one more than Linux lets in with a backlog of 0
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex((self.host, self.port))
            self._fillers.append(filler)
        return self

    async def __aexit__(
        self, type_: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for sock in (*self._fillers, self._listener):
            sock.close()


class RefusesConnections(Server):
    """Nothing listens on its port."""

    async def __aenter__(self) -> Self:
        # bound and not listening: the port stays ours, and connecting to it is refused
        self._holder = socket.socket()
        self._holder.bind((self.host, 0))
        self.port = self._holder.getsockname()[1]
        return self

    async def __aexit__(
        self, type_: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._holder.close()
