"""HTTP/1.1 as uvicorn's server speaks it through httptools, made by us for what a public server needs beyond uvicorn's.

- What is not HTTP, or is ambiguous HTTP, gets an error in the OpenAI shape: as an answer like any other, with its id,
  its log line and its place behind the answers that are still owed (`Connection.refuse`).
- A request's head has a limit, and so has what is neither head nor body.
- A client that sends its request too slowly, head or body, is told so and let go (`Patience`).
- Who answers a request can be called when its client goes: ASGI tells of it only to who keeps asking `receive`, which
  costs a task for each request. `connection_of(scope).on_gone` costs an assignment.

llhttp, the parser below, is strict: doubled or contradicting lengths, folded lines, bare line ends and spaces before
colons never come as far as this file. `_look_closer` judges what it leaves open; plain requests never enter it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import unquote

import httptools
import orjson
import uvicorn
from starlette.types import Scope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from backends.errors import GatewayError, InvalidRequest

from .heads import KnownHead, learn
from .record import record_of
from .writer import Exchange

HEAD_LIMIT = 64 * 1024
"""Bytes of a request's target and header fields together."""

LESSONS = 4
"""So many heads of a connection are kept, one after the other, to know the next one by: the first is not, since many
connections have only one. Clients whose heads differ in more than the length, as by an id for each request, would only
cost time."""

PIPELINE_LIMIT = 64
"""Requests that a client may send ahead of its answers. Nobody does it but tools that measure or attack."""

LINGER_S = 2.0
"""A connection that was refused is read on, and what comes thrown away, for at most this long: to close over unread
bytes makes the kernel reset the connection, and the client may never see the answer (RFC 9112, section 9.6)."""

REFUSED = "slurmgate.refused"
"""The type of an ASGI scope that is to be answered with the error under `scope[REFUSED]`."""

_KEY = "slurmgate.connection"
_ASGI = {"version": "3.0", "spec_version": "2.3"}
_ONCE = (b"host", b"authorization", b"x-api-key", b"content-type", b"content-encoding")


class Refused(InvalidRequest):
    """The request cannot be taken as HTTP, or not safely."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message, code=code)
        self.status = status


class Connection(asyncio.Protocol):
    """One client's connection. The parameters are what uvicorn's server gives each protocol.

    on_gone        called once when the client is gone; set and unset by whoever answers the current request
    idle_since     when the last answer ended, if no request has begun since, in the loop's time
    sending_since  when the client began to send a request that is not whole yet, in the loop's time; None between
    scope          of the request whose head is being read, or was read last
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: object,
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        # once for each client that comes, and many come in one moment: nothing is made that is not needed at once
        self.app = config.loaded_app
        self.loop = _loop or asyncio.get_running_loop()
        self.connections = cast("set[Any]", server_state.connections)
        self.tasks = server_state.tasks
        self.parser: Any = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # to answer who sends on after 'close'
        self.pipeline: deque[Exchange] = deque()
        self.scope: dict[str, Any] = {}
        self.on_gone: Callable[[], None] | None = None
        self.sending_since: float | None = None
        self.idle_since: float | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._sent_much = False  # more in one read than a head may have: heads are measured from then on
        self._got_body = False
        self._waste = 0  # bytes read for this request since the last that brought some of its body
        self._known: KnownHead | None = None
        self._lessons = LESSONS
        self._answering: Exchange | None = None
        self.cycle: Exchange | None = None  # of the last request whose head was read

    # -- the connection -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.connections.add(self)
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only
        self.flow = FlowControl(self.transport)
        address: Any = transport.get_extra_info("sockname")
        self.server = (address, None) if isinstance(address, str) else (address[0], address[1])
        self.sending_since = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        for exchange in {self.cycle, self._answering}:
            if exchange is not None:
                exchange.disconnect()
        self.cycle = self._answering = None
        self.flow.resume_writing()  # who waits to write goes on, and sees that nobody reads
        # all these refer to us: break the circles, so that a connection is freed at once and not collected
        self.parser, self.scope, self.transport, self.flow = _DEAF, {}, _GONE, _GONE_FLOW
        if self._lingering is not None:
            self._lingering.cancel()
        on_gone, self.on_gone = self.on_gone, None
        if on_gone is not None:
            on_gone()

    def shutdown(self) -> None:
        """The server stops: close, after the answer that is under way."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    @property
    def task(self) -> asyncio.Task[None] | None:
        """In which the current request is answered."""
        return self._answering.task if self._answering is not None else None

    def pause_writing(self) -> None:
        self.flow.pause_writing()
        if self._answering is not None:
            self._answering.pause()

    def resume_writing(self) -> None:
        self.flow.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Parse, but for what need not be parsed. The request's task is made in between, by `on_headers_complete`."""
        between = self.sending_since is None
        if between and self._known is not None and self._known_again(self._known, data):
            return
        size = len(data)
        if size > HEAD_LIMIT:
            self._sent_much = True
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._after_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self.refuse(_as_refusal(error))
        if self.sending_since is not None:
            self._not_whole_yet(size)
        elif between and self._lessons and not self.pipeline and self.parser is not _DEAF:
            self._lessons -= 1
            self._known = learn(data, self.scope)

    def _known_again(self, known: KnownHead, data: bytes) -> bool:
        """A whole request whose head differs from an earlier one only in its length: it need not go through the parser.

        That saves a seventh of what a plain request costs. The parser has not begun another request, and stays so.
        """
        cycle = self.cycle
        if cycle is None or not cycle.response_complete:
            return False
        body = known.body_of(data)
        if body is None:
            return False
        self.idle_since = None
        scope = known.scope_for(len(body))
        self.scope = scope
        scope[_KEY] = self
        self.cycle = exchange = Exchange(self, scope, keep_alive=True)
        exchange.body = body
        exchange.more_body = False
        exchange.tell()
        self._start(exchange)
        return True

    def _after_upgrade(self, rest: bytes) -> None:
        """No protocol is changed to here. A server that does not know the other one answers as if it had not been asked
        (RFC 9110, section 7.8: curl offers HTTP/2 this way). Two are refused: who wants a WebSocket could do nothing
        with such an answer, and of a request with a body llhttp would take the body for the next request."""
        fields = dict(self.scope["headers"])
        if fields.get(b"upgrade", b"").lower() == b"websocket":
            self.refuse(Refused(400, "unsupported_upgrade", "WebSockets are not served here."))
        elif b"transfer-encoding" in fields or fields.get(b"content-length", b"0").strip(b"0"):
            self.refuse(Refused(400, "unsupported_upgrade", "Send a request with a body without the header 'upgrade'."))
        elif rest:
            self.data_received(rest)

    def _not_whole_yet(self, size: int) -> None:
        """Endless heads, trailers and chunk extensions: the parser keeps what is not body, or takes it for ever."""
        if self._got_body:
            self._got_body = False
            self._waste = 0
            return
        self._waste += size
        if self._waste > 2 * HEAD_LIMIT:
            self.refuse(_too_large() if self._in_head() else Refused(400, "invalid_http", "The body has no end."))

    def _in_head(self) -> bool:
        return "path" not in self.scope

    # -- what the parser tells ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.idle_since = None
        self.sending_since = self.loop.time()
        self._waste = 0
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.scope = {
            "type": "http",
            "asgi": _ASGI,
            "server": self.server,
            "client": None,  # nobody here asks: it is the next proxy's address as often as not
            "scheme": "http",
            "root_path": "",
            "headers": self.headers,
            _KEY: self,
        }

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Makes the exchange, and the task that answers it, which begins after this read."""
        parser, scope = self.parser, self.scope
        version = parser.get_http_version()
        scope["method"] = parser.get_method().decode("ascii")
        scope["http_version"] = version
        target = httptools.parse_url(self.url)
        path = target.path.decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = target.path
        scope["query_string"] = target.query or b""
        old = version == "1.0"
        exchange = Exchange(self, scope, keep_alive=not old and parser.should_keep_alive(), old=old)
        headers = self.headers
        fields = dict(headers)
        exchange.waiting_for_100_continue = fields.get(b"expect", b"").lower() == b"100-continue"
        before, self.cycle = self.cycle, exchange
        self._queue(before, exchange)
        self.idle_since = None  # an earlier answer may have ended since this request began
        if (
            len(fields) != len(headers)
            or b"host" not in fields
            or b"transfer-encoding" in fields
            or self._sent_much
            or self.pipeline
            or version != "1.1"
        ):
            self._look_closer(fields)
        self.headers = _NO_TRAILERS

    def _queue(self, before: Exchange | None, exchange: Exchange) -> None:
        """Start it, or let it wait for the answers before it."""
        if before is None or before.response_complete:
            self._start(exchange)
        else:
            self.flow.pause_reading()
            self.pipeline.append(exchange)

    def _start(self, exchange: Exchange) -> None:
        self._answering = exchange
        exchange.start(self.app)

    def _look_closer(self, fields: dict[bytes, bytes]) -> None:
        """Raises `Refused`. RFC 9112, sections 2.3, 3.2, 5 and 6.1."""
        version = self.scope["http_version"]
        if version not in ("1.1", "1.0"):
            raise Refused(505, "http_version_not_supported", "HTTP/1.1 is spoken here.")
        counts = Counter(name for name, _ in self.headers)
        for name in _ONCE:
            if counts[name] > 1:
                raise Refused(400, "invalid_http", f"The header '{name.decode()}' is there more than once.")
        if b"host" not in fields and version == "1.1":
            raise Refused(400, "invalid_http", "The header 'host' is missing.")
        coding = fields.get(b"transfer-encoding")
        if coding is not None and (coding.lower() != b"chunked" or version == "1.0"):
            raise Refused(400, "invalid_http", "The only transfer-encoding here is 'chunked', of HTTP/1.1.")
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > HEAD_LIMIT:
            raise _too_large()
        if len(self.pipeline) > PIPELINE_LIMIT:
            raise Refused(400, "too_many_pipelined", f"More than {PIPELINE_LIMIT} requests wait for answers.")

    def on_body(self, body: bytes) -> None:
        self._got_body = True
        exchange = self.cycle
        if exchange is None or exchange.response_complete:
            return
        exchange.body += body  # nearly always it comes in one piece, and is no copy then
        if len(exchange.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        exchange.tell()

    def on_message_complete(self) -> None:
        self.sending_since = None
        exchange = self.cycle
        if exchange is not None and not exchange.response_complete:
            exchange.more_body = False
            exchange.tell()

    def on_response_complete(self) -> None:
        """The next request's turn. Idle connections are closed by `Patience`: a timer for each request costs."""
        self._answering = None
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start(self.pipeline.popleft())
        else:
            self.idle_since = self.loop.time()

    # -- refusing -----------------------------------------------------------------------------------------------------

    def refuse(self, error: GatewayError) -> None:
        """Answer the request that is being read with an error, when it is its turn, and then close."""
        if self.parser is _DEAF or self.transport.is_closing():
            return
        self.parser = _DEAF
        self._known = None
        self.sending_since = None
        if self._in_head():
            self._refuse_head(error)
        elif (exchange := self.cycle) is None or exchange.response_started:
            self.hang_up()
        elif not _begun(self.scope):
            self._mark(self.scope, exchange, error)
        else:
            self._refuse_body(exchange, error)

    def too_slow(self) -> None:
        """The request has not come in time. A connection that has sent nothing at all is only closed."""
        if self.flow.read_paused:  # it is we who do not read, until an earlier answer is out
            self.sending_since = self.loop.time()
        elif not self.scope:
            self.transport.close()
        else:
            self.refuse(Refused(408, "request_timeout", "The request did not arrive in time."))

    def _refuse_head(self, error: GatewayError) -> None:
        """There is no request yet: make one, of which nothing is known."""
        scope: Any = {
            "type": "http",
            "http_version": "1.1",
            "method": "",
            "path": "",
            "headers": [],
            "client": None,
            "server": self.server,
            "scheme": "http",
        }
        before, self.cycle = self.cycle, Exchange(self, scope, keep_alive=False)
        self._mark(scope, self.cycle, error)
        self._queue(before, self.cycle)

    def _mark(self, scope: Any, exchange: Exchange, error: GatewayError) -> None:
        """Whoever answers this request shall answer with the error."""
        scope["type"] = REFUSED
        scope[REFUSED] = error
        exchange.keep_alive = False
        exchange.transport = _LastAnswer(self)

    def _refuse_body(self, exchange: Exchange, error: GatewayError) -> None:
        """Somebody waits for the rest of this request. To them it is as if the client had gone; Edge knows better."""
        self.scope[REFUSED] = error
        body = orjson.dumps(error.body())
        self.transport.write(
            b"%scontent-type: application/json\r\ncontent-length: %d\r\nx-request-id: %s\r\nconnection: close\r\n\r\n%s"
            % (STATUS_LINE[error.status], len(body), record_of(self.scope).id.encode(), body)
        )
        exchange.disconnect()
        if self.on_gone is not None:
            self.on_gone()
        self.hang_up()

    def hang_up(self) -> None:
        """Close for sending now, for receiving when the client has seen it."""
        if not self.transport.is_closing():
            with contextlib.suppress(OSError):  # it has gone already
                self.transport.write_eof()
            self.flow.resume_reading()
            self._lingering = self.loop.call_later(LINGER_S, self.transport.close)


def connection_of(scope: Scope) -> Connection:
    """The connection that a request came over."""
    connection: Connection = scope[_KEY]
    return connection


def _begun(scope: Any) -> bool:
    """Somebody has begun to answer."""
    try:
        record_of(scope)
    except KeyError:
        return False
    return True


def _too_large() -> Refused:
    return Refused(431, "headers_too_large", f"The request's target and headers are larger than {HEAD_LIMIT} bytes.")


def _as_refusal(error: httptools.HttpParserError) -> Refused:
    """The parser's error, or ours that came through it."""
    if isinstance(error.__context__, Refused):
        return error.__context__.with_traceback(None)
    if isinstance(error, httptools.HttpParserCallbackError | httptools.HttpParserInvalidURLError):
        return Refused(400, "invalid_http", "The request's target cannot be understood.")
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return Refused(400, "invalid_http", "This is not an HTTP request, or its method is unknown.")
    # the parser's words are constants, never the client's text
    return Refused(400, "invalid_http", f"Invalid HTTP request: {error}.")


class _LastAnswer:
    """The transport of a connection's last answer: closing it hangs up."""

    def __init__(self, connection: Connection) -> None:
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing
        self.close = connection.hang_up


class _Deaf:
    """The parser of a connection that was refused."""

    def feed_data(self, data: bytes) -> None:
        pass


class _Gone(asyncio.Transport):
    """The transport of a client that has gone. uvloop's refers to its protocol for as long as it lives."""

    def is_closing(self) -> bool:
        return True

    def close(self) -> None:
        pass

    abort = write_eof = pause_reading = resume_reading = close

    def write(self, data: object) -> None:
        pass


class _NoTrailers(list[tuple[bytes, bytes]]):
    """Where fields after a body go. uvicorn adds them to the request's headers, past whoever has checked those."""

    def append(self, field: tuple[bytes, bytes]) -> None:
        pass


_DEAF: Any = _Deaf()
_NO_TRAILERS = _NoTrailers()
_GONE = _Gone()
_GONE_FLOW = FlowControl(_GONE)


class Patience:
    """Lets go of clients that send too slowly or nothing more, all by one timer. To be started in the event loop.

    limit_s        for a request, from its first byte to its last
    keep_alive_s   between two requests
    """

    def __init__(self, connections: set[Any], limit_s: float, keep_alive_s: float) -> None:
        self._connections = connections
        self._limit_s = limit_s
        self._keep_alive_s = keep_alive_s
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in tuple(self._connections):
            if connection.sending_since is not None and now - connection.sending_since > self._limit_s:
                connection.too_slow()
            elif connection.idle_since is not None and now - connection.idle_since > self._keep_alive_s:
                connection.transport.close()
        self._handle = loop.call_later(min(1.0, self._limit_s / 4, self._keep_alive_s / 4), self.start)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
