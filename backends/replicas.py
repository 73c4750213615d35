"""The backend of launched engines: a seat at a replica, forward, try another one before the first byte, never after it.

    Call --dialect--> Places.take --Seat--> Origin's pool --> engine --> Reply | EngineStream
                          `-- or wait         `-- failed before the first byte: once more, elsewhere (retries.py)

The first attempt is plain code. Only after a failure tenacity drives what follows, and only where there is a deadline
or a total time-out a timer is set.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable

import orjson
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from .base import Call, EventStream, Reply
from .dialects.seam import PLAIN, Dialect, ReplyRepair, unsupported_endpoint
from .engine_errors import engine_error, is_strangers, no_engine, not_the_engine
from .errors import (
    ConnectFailed,
    Disconnected,
    EngineTimeout,
    GatewayError,
    MalformedResponse,
    NotTheEngine,
    Unavailable,
)
from .origins import Origin, Origins
from .places import Outcome, Places, Seat
from .retries import Retries, is_overload
from .retry_budget import RetryBudget
from .sse import EventFilter, usage_of
from .transport import Limits, Response, Timeouts

_ASK_FOR_USAGE = b',"stream_options":{"include_usage":true}}'

_BREATH_S = 0.05
"""After an engine had no room: up to this long, twice as long each time, so that not all come back together."""


class ReplicaBackend:
    """All replicas of one model.

    places             where its requests run
    dialect            of the engine: what the call and its answer need to be OpenAI's
    drop_unsupported   leave out what the engine cannot do, instead of refusing the request
    budget             of retries
    """

    def __init__(
        self,
        model: str,
        places: Places,
        *,
        dialect: Dialect = PLAIN,
        drop_unsupported: bool = False,
        timeouts: Timeouts | None = None,
        limits: Limits | None = None,
        budget: RetryBudget | None = None,
    ) -> None:
        self._model = model
        self._places = places
        self._dialect = dialect
        self._drop_unsupported = drop_unsupported
        self._budget = budget or RetryBudget()
        timeouts = timeouts or Timeouts()
        self._total_s = timeouts.total_s
        self._origins = Origins(timeouts, limits or Limits(), lambda: int(self._budget.tokens))

    async def run(self, call: Call) -> Reply | EventStream:
        """Answer on one of the replicas. Raises `InvalidRequest` for what their engine cannot do."""
        dialect = self._dialect
        if call.path not in dialect.paths:
            raise unsupported_endpoint(call.path)
        sent = call if dialect.prepare is None else dialect.prepare(call, self._drop_unsupported)
        self._budget.request()
        if self._total_s is None and call.deadline is None:
            return await self._answer(call, sent)
        return await self._answer_in_time(call, sent)

    def in_flight(self, replica_id: str) -> int:
        return self._places.in_flight(replica_id)

    async def aclose(self) -> None:
        await self._origins.aclose()

    # -- attempts -----------------------------------------------------------------------------------------------------

    async def _answer(self, call: Call, sent: Call) -> Reply | EngineStream:
        seat = self._places.take(call)
        if seat is None:
            seat = await self._wait(call)
        try:
            return await self._ask(seat, call, sent)
        except GatewayError as error:
            failure = error
        retries = Retries(self._budget)
        retries.failed_at(seat.endpoint.replica_id)
        if not retries.may_go_on(failure, time.monotonic()):
            raise failure
        return await self._try_again(retries, call, sent)

    async def _try_again(self, retries: Retries, call: Call, sent: Call) -> Reply | EngineStream:
        """After a first failure."""

        def may_go_on(error: BaseException) -> bool:
            return isinstance(error, GatewayError) and retries.may_go_on(error, time.monotonic())

        def breath(state: RetryCallState) -> float:
            overloaded = isinstance(retries.failure, GatewayError) and is_overload(retries.failure)
            return random.random() * _BREATH_S * 2**state.attempt_number if overloaded else 0.0  # noqa: S311

        async for attempt in AsyncRetrying(retry=retry_if_exception(may_go_on), wait=breath, reraise=True):
            with attempt:
                seat = await self._another_seat(retries, call)
                try:
                    return await self._ask(seat, call, sent)
                except GatewayError:
                    retries.failed_at(seat.endpoint.replica_id)
                    raise
        raise RuntimeError("tenacity ended without a result")  # it returns or raises

    async def _another_seat(self, retries: Retries, call: Call) -> Seat:
        """Raises the failure so far where there is no other place, and none to be had by waiting."""
        seat = self._places.take(call, retries.avoid)
        if seat is not None:
            return seat
        failure = retries.failure
        if failure is not None and is_overload(failure) and not self._origins.running:
            retries.over = True  # nothing of ours fills the engine, so nothing of ours will leave it
            raise failure
        try:
            return await self._wait(call, retries.avoid)
        except GatewayError as error:
            retries.over = True
            raise failure or error from None

    async def _wait(self, call: Call, avoid: frozenset[str] = frozenset()) -> Seat:
        began = time.perf_counter()
        try:
            return await self._places.wait(call, avoid)
        finally:
            if call.notes is not None:
                call.notes.waited(time.perf_counter() - began)

    async def _ask(self, seat: Seat, call: Call, sent: Call) -> Reply | EngineStream:
        """One attempt at `sent`, which is what the engine shall get for `call`.

        The seat is left when the answer is whole; a stream takes it over.
        """
        dialect = self._dialect
        origin = self._origins.at(seat.endpoint)
        origin.running += 1
        outcome = Outcome.ABANDONED
        tokens = 0
        handed_over = False
        try:
            body, shows_usage = outgoing(sent)
            headers = b"%s%scontent-type: %s\r\nx-request-id: %s\r\n" % (
                origin.headers,
                call.headers,
                sent.content_type,
                call.id.encode(),
            )
            try:
                response = await origin.pool.request(b"POST", sent.path.encode(), headers, body)
            except MalformedResponse as garbled:  # before its head: an engine may break off, but it speaks HTTP
                raise no_engine(garbled.detail) from None
            origin.heard += 1
            status = response.status
            content_type = response.content_type
            if call.stream and status == 200 and b"event-stream" in content_type:
                repair = None if dialect.repair_chunks is None else dialect.repair_chunks(call)
                events = EventFilter(forward_usage=shows_usage, repair=repair)
                stream = EngineStream(origin, seat, response, events)
                handed_over = True
                return stream
            if (status >= 300 or content_type[:5] == b"text/") and is_strangers(status, content_type):
                response.close()  # a stranger's body may have no end
                raise not_the_engine(status)
            answer = await response.read()
            if status >= 300:
                error = engine_error(status, answer, response.header(b"retry-after"))
                outcome = Outcome.OVERLOADED if is_overload(error) else outcome_of_status(status)
                raise error
            if dialect.repair_reply is not None and (mend := dialect.repair_reply(call)) is not None:
                answer = mended(answer, mend)
            usage = usage_of(answer)
            if usage is not None:
                tokens = usage.prompt_tokens + usage.completion_tokens
            outcome = Outcome.SERVED
            return Reply(status, content_type, answer, usage, origin.endpoint.replica_id)
        except GatewayError as error:
            if outcome is Outcome.ABANDONED:
                outcome = outcome_of(error)
            if isinstance(error, ConnectFailed):
                origin.pool.give_up(0)  # nor will the others get one that wait for a connection to it
            if call.notes is not None:
                call.notes.attempt_failed(origin.endpoint.replica_id, error.code or error.type)
            raise
        finally:
            if not handed_over:
                origin.running -= 1
                seat.leave(outcome, tokens)

    # -- time ---------------------------------------------------------------------------------------------------------

    async def _answer_in_time(self, call: Call, sent: Call) -> Reply | EngineStream:
        """Under the model's total time-out and the client's deadline, whichever comes first."""
        now = time.monotonic()
        total_at = math.inf if self._total_s is None else now + self._total_s
        deadline = math.inf if call.deadline is None else call.deadline
        until = min(total_at, deadline)
        phase = "total" if total_at <= deadline else "deadline"
        if until <= now:
            raise Unavailable("The client's deadline is over.", code="deadline_exceeded", retry_after_s=1.0)
        try:
            async with asyncio.timeout(until - now) as limit:
                answer = await self._answer(call, sent)
        except TimeoutError:
            if not limit.expired():
                raise
            raise too_long(phase) from None
        if isinstance(answer, EngineStream):
            answer.end_by(until - time.monotonic(), phase)
        return answer


def outcome_of(error: GatewayError) -> Outcome:
    """What a failure to get an answer says of the replica."""
    match error:
        case ConnectFailed():
            return Outcome.UNREACHABLE
        case NotTheEngine():
            return Outcome.STRANGER
        case EngineTimeout():
            return Outcome.TIMED_OUT
        case Disconnected():
            return Outcome.BROKE_OFF
    return Outcome.FAILED


def outcome_of_status(status: int) -> Outcome:
    """... and what an engine's own error does: 424 is TGI's for a generation that failed."""
    return Outcome.FAILED if status >= 500 or status == 424 else Outcome.SERVED


def too_long(phase: str) -> EngineTimeout:
    if phase == "deadline":
        return EngineTimeout("The client's deadline came before the answer was whole.", phase=phase)
    return EngineTimeout("The answer took longer than an answer of this model may.", phase=phase)


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

    __slots__ = ("_filter", "_late", "_origin", "_outcome", "_response", "_seat", "_timer")

    def __init__(self, origin: Origin, seat: Seat, response: Response, events: EventFilter) -> None:
        super().__init__(seat.endpoint.replica_id)
        self._origin = origin
        self._seat: Seat | None = seat
        self._response = response
        self._filter = events
        self._outcome: Outcome | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._late: EngineTimeout | None = None

    async def __anext__(self) -> bytes:
        events = self._filter
        try:
            while not events.over and (data := await self._response.next()):
                if out := events.feed(data):
                    return out
        except GatewayError as error:
            self._outcome = outcome_of(error)
            raise
        if events.over:
            self._response.finish()  # an engine may leave its body open; clients wait for the end of ours
        elif self._late is not None:
            raise self._late
        elif out := events.end():
            return out
        raise StopAsyncIteration

    def pass_to(self, sink: Callable[[bytes], bool]) -> None:
        passes = self._filter.passes
        self._response.pass_to(lambda data: passes(data) and sink(data))

    def pass_chunks_to(self, sink: Callable[[bytes], bool]) -> None:
        self._response.pass_chunks_to(self._filter.chunk_sink(sink))

    def end_by(self, seconds: float, phase: str) -> None:
        """After so long, whatever is missing is not waited for: an `EngineTimeout` of that phase."""
        self._timer = asyncio.get_running_loop().call_later(seconds, self._expire, phase)

    def _expire(self, phase: str) -> None:
        self._timer = None
        if not self._filter.over:
            self._late = too_long(phase)
            self._response.close()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._seat is not None:
            seat, self._seat = self._seat, None
            events = self._filter
            self.usage = usage = events.usage
            self.failure = events.failure
            self._response.close()
            self._origin.running -= 1
            outcome = self._outcome
            if outcome is None:
                if events.failure is not None:
                    outcome = outcome_of(events.failure)
                else:
                    outcome = Outcome.SERVED if events.done else Outcome.ABANDONED
            seat.leave(outcome, 0 if usage is None else usage.prompt_tokens + usage.completion_tokens)
