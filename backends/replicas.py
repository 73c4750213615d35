"""The backend of launched engines: choose a replica, forward, try another one before the first byte, never after it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import orjson

from .base import Call, Endpoint, EventStream, Launcher, Reply
from .dialects.seam import PLAIN, Dialect, ReplyRepair, unsupported_endpoint
from .engine_errors import engine_error
from .errors import ConnectFailed, Disconnected, MalformedResponse, TransportError, Unavailable
from .sse import EventFilter, usage_of
from .transport import Limits, Pool, Response, Timeouts

COOL_DOWN_S = 5.0
"""A replica that refused a connection is asked again after this long, or earlier when there is no other."""

RESENDS = 1
"""A request that an engine took and died on is tried once more elsewhere: not on every replica, it may be its cause."""

DO_NOT_RETRY = {b"x-should-retry": b"false"}
"""For the official SDK, which would send such a request twice more."""

_ASK_FOR_USAGE = b',"stream_options":{"include_usage":true}}'


@dataclass(slots=True, eq=False)
class Replica:
    """One engine as this backend sees it. `headers` are those that each of its requests has."""

    endpoint: Endpoint
    pool: Pool
    headers: bytes = field(repr=False)
    in_flight: int = 0
    cool_until: float = 0.0
    leaving: bool = False

    def release(self) -> None:
        self.in_flight -= 1
        if self.leaving and self.in_flight == 0:
            self.pool.close_idle()


class ReplicaBackend:
    """All replicas of one model.

    dialect            of the engine: what the call and its answer need to be OpenAI's
    drop_unsupported   leave out what the engine cannot do, instead of refusing the request
    wait_s             how long a request waits for a replica to become ready
    """

    def __init__(
        self,
        model: str,
        launcher: Launcher,
        *,
        dialect: Dialect = PLAIN,
        drop_unsupported: bool = False,
        wait_s: float = 300.0,
        timeouts: Timeouts | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._model = model
        self._launcher = launcher
        self._dialect = dialect
        self._drop_unsupported = drop_unsupported
        self._wait_s = wait_s
        self._timeouts = timeouts or Timeouts()
        self._limits = limits or Limits()
        self._seen: object = None
        self._replicas: list[Replica] = []
        self._leaving: list[Replica] = []
        self._turn = 0

    async def run(self, call: Call) -> Reply | EventStream:
        """Answer on the replica with the fewest requests in flight. Raises `InvalidRequest` for what it cannot do."""
        dialect = self._dialect
        if call.path not in dialect.paths:
            raise unsupported_endpoint(call.path)
        sent = call if dialect.prepare is None else dialect.prepare(call, self._drop_unsupported)
        refused: set[str] = set()
        resends = 0
        deadline: float | None = None
        failure: TransportError | None = None
        while True:
            replica = self._choose(refused)
            if replica is None:
                if deadline is None:
                    deadline = time.monotonic() + self._wait_s
                await self._wait(deadline, failure)
                refused.clear()
                continue
            try:
                return await self._ask(replica, call, sent)
            except ConnectFailed as error:
                failure = error
                replica.cool_until = time.monotonic() + COOL_DOWN_S
            except Disconnected as error:
                if resends >= RESENDS:
                    error.headers = DO_NOT_RETRY
                if error.received or resends >= RESENDS:
                    raise
                failure = error
                resends += 1
            refused.add(replica.endpoint.replica_id)

    async def _ask(self, replica: Replica, call: Call, sent: Call) -> Reply | EventStream:
        """One attempt at `sent`, which is what the engine shall get for `call`.

        The replica's slot is given back when the answer is whole; a stream takes it over.
        """
        replica.in_flight += 1
        handed_over = False
        dialect = self._dialect
        try:
            body, shows_usage = outgoing(sent)
            headers = b"%scontent-type: %s\r\nx-request-id: %s\r\n" % (
                replica.headers,
                sent.content_type,
                call.id.encode(),
            )
            response = await replica.pool.request(b"POST", sent.path.encode(), headers, body)
            if call.stream and response.status == 200 and b"event-stream" in response.content_type:
                repair = None if dialect.repair_chunks is None else dialect.repair_chunks(call)
                events = EventFilter(forward_usage=shows_usage, repair=repair)
                handed_over = True
                return EngineStream(replica, response, events)
            answer = await response.read()
            if response.status >= 300:
                raise engine_error(response.status, answer, response.header(b"retry-after"))
            if dialect.repair_reply is not None and (mend := dialect.repair_reply(call)) is not None:
                answer = mended(answer, mend)
            return Reply(response.status, response.content_type, answer, usage_of(answer), replica.endpoint.replica_id)
        finally:
            if not handed_over:
                replica.release()

    def in_flight(self, replica_id: str) -> int:
        return sum(r.in_flight for r in (*self._replicas, *self._leaving) if r.endpoint.replica_id == replica_id)

    async def aclose(self) -> None:
        for replica in (*self._replicas, *self._leaving):
            await replica.pool.aclose()

    # -- choosing -----------------------------------------------------------------------------------------------------

    def _choose(self, refused: set[str]) -> Replica | None:
        """The replica with the fewest in flight; equals take turns. None when every one is refused or there is none."""
        endpoints = self._launcher.endpoints(self._model)
        if endpoints is not self._seen:
            self._take_up(endpoints)
        replicas = self._replicas
        if len(replicas) == 1 and not refused:
            return replicas[0]
        candidates = [r for r in replicas if r.endpoint.replica_id not in refused]
        now = time.monotonic()
        warm = [r for r in candidates if r.cool_until <= now] or candidates
        if not warm:
            return None
        self._turn += 1
        turn = self._turn % len(warm)
        return min(warm[turn:] + warm[:turn], key=_in_flight)

    def _take_up(self, endpoints: object) -> None:
        """The launcher's list has changed: keep what is known, open what is new, let go of the rest."""
        self._seen = endpoints
        known = {replica.endpoint.replica_id: replica for replica in self._replicas}
        self._replicas = []
        for endpoint in self._launcher.endpoints(self._model):
            replica = known.pop(endpoint.replica_id, None)
            if replica is None or (replica.endpoint.host, replica.endpoint.port) != (endpoint.host, endpoint.port):
                if replica is not None:  # the same replica elsewhere: Slurm requeued its job
                    self._let_go(replica)
                replica = self._open(endpoint)
            self._replicas.append(replica)
        for replica in known.values():
            self._let_go(replica)
        self._leaving = [replica for replica in self._leaving if replica.in_flight]

    def _open(self, endpoint: Endpoint) -> Replica:
        headers = b"authorization: Bearer %s\r\n" % endpoint.api_key.encode() if endpoint.api_key else b""
        pool = Pool(endpoint.host, endpoint.port, timeouts=self._timeouts, limits=self._limits)
        return Replica(endpoint, pool, headers)

    def _let_go(self, replica: Replica) -> None:
        replica.leaving = True
        if replica.in_flight:
            self._leaving.append(replica)
        else:
            replica.pool.close_idle()

    async def _wait(self, deadline: float, failure: TransportError | None) -> None:
        """Until the launcher has news. Raises what the client shall see when there is no hope, or no time left."""
        self._launcher.need(self._model)
        why, retry_after_s = self._launcher.outlook(self._model)
        if retry_after_s is not None:
            raise failure or Unavailable(why, retry_after_s=retry_after_s)
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await self._launcher.changed(self._model)
        except TimeoutError:
            raise failure or Unavailable(why, retry_after_s=10.0) from None


def _in_flight(replica: Replica) -> int:
    return replica.in_flight


def outgoing(call: Call) -> tuple[bytes, bool]:
    """The bytes for the engine, and whether the client shall see the usage chunk.

    The gateway counts the tokens of every stream, so it asks for the usage chunk where the client did not. That is
    spliced into the client's own bytes: `raw` is a JSON object, so its last byte but white space is a brace.
    """
    if not call.stream or call.content_type != b"application/json":
        return call.raw, True
    options = call.body.get("stream_options")
    if options is None and "stream_options" not in call.body:
        return call.raw[: call.raw.rindex(b"}")] + _ASK_FOR_USAGE, False
    if isinstance(options, dict) and options.get("include_usage") is True:
        return call.raw, True
    return orjson.dumps({**call.body, "stream_options": {**(options or {}), "include_usage": True}}), False


def mended(answer: bytes, repair: ReplyRepair) -> bytes:
    """An engine's reply as OpenAI's. Raises `MalformedResponse` for one of a shape that the engine does not have."""
    try:
        return orjson.dumps(repair(orjson.loads(answer)))
    except (AttributeError, LookupError, TypeError, ValueError):  # JSONDecodeError is a ValueError
        raise MalformedResponse("The engine's answer has an unknown shape.") from None


class EngineStream(EventStream):
    """The events of one engine, filtered, while they arrive."""

    __slots__ = ("_filter", "_replica", "_response")

    def __init__(self, replica: Replica, response: Response, events: EventFilter) -> None:
        super().__init__(replica.endpoint.replica_id)
        self._replica: Replica | None = replica
        self._response = response
        self._filter = events

    async def __anext__(self) -> bytes:
        events = self._filter
        while not events.over and (data := await self._response.next()):
            if out := events.feed(data):
                return out
        if events.over:
            self._response.finish()  # an engine may leave its body open; clients wait for the end of ours
        elif out := events.end():
            return out
        raise StopAsyncIteration

    def pass_to(self, sink: Callable[[bytes], bool]) -> None:
        passes = self._filter.passes
        self._response.pass_to(lambda data: passes(data) and sink(data))

    def close(self) -> None:
        if self._replica is not None:
            replica, self._replica = self._replica, None
            self.usage = self._filter.usage
            self.failure = self._filter.failure
            self._response.close()
            replica.release()
