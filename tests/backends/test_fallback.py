"""Who is asked next, and when nobody is: the chain over backends that behave as named."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import orjson
import pytest

from backends.base import Call, EventStream, Reply, Usage
from backends.errors import (
    ConnectFailed,
    Disconnected,
    EngineRefused,
    EngineTimeout,
    GatewayError,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from backends.fallback import REASONS, FallbackBackend, Link, Reason, flattened, reason_of, with_fallbacks
from backends.sse import DONE, error_event

CHUNK = b'data: {"choices":[]}\n\n'


def refused(status: int, code: str | None = None) -> EngineRefused:
    return EngineRefused("m", status=status, type="t", code=code)


UNAVAILABLE, BUSY, LONG = Unavailable("u"), refused(429), refused(400, "context_length_exceeded")


class Events(EventStream):
    def __init__(self, items: Sequence[bytes | GatewayError]) -> None:
        super().__init__("replica")
        self.items = list(items)
        self.closed = False

    async def __anext__(self) -> bytes:
        if not self.items:
            raise StopAsyncIteration
        item = self.items.pop(0)
        if isinstance(item, GatewayError):
            raise item
        if item.startswith(b'data: {"error"'):
            self.failure = Unavailable("in the stream")
        return item

    def close(self) -> None:
        self.closed = True
        self.usage = Usage(1, 2)


class Scripted:
    """A Backend that does the next of what it was told: raise, or answer."""

    def __init__(self, *script: GatewayError | EventStream | None) -> None:
        self.script = list(script)
        self.calls: list[Call] = []

    async def run(self, call: Call) -> Reply | EventStream:
        self.calls.append(call)
        step = self.script.pop(0) if self.script else None
        if isinstance(step, GatewayError):
            raise step
        return step or Reply(200, b"application/json", b"{}", Usage(1, 2), "replica")

    def in_flight(self, replica_id: str) -> int:
        return 0

    async def aclose(self) -> None:
        pass


class NeverBegins(Events):
    def __init__(self) -> None:
        super().__init__(())
        self.asked = asyncio.Event()

    async def __anext__(self) -> bytes:
        self.asked.set()
        await asyncio.Event().wait()
        raise AssertionError


def call_of(*, stream: bool = False) -> Call:
    body = {"model": "a", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    return Call("req_1", "/v1/chat/completions", "a", body, orjson.dumps(body), stream)


def chain(a: Scripted, *others: tuple[str, Scripted, tuple[Reason, ...]]) -> FallbackBackend:
    return FallbackBackend("a", a, [(Link(name, frozenset(on)), backend) for name, backend, on in others])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UNAVAILABLE, "unavailable"),
        (ConnectFailed("x"), "unavailable"),
        (EngineTimeout("x", phase="first byte"), "unavailable"),
        (Disconnected("x", received=False), "unavailable"),
        (refused(500), "unavailable"),
        (refused(502, "provider_authentication_failed"), "unavailable"),
        (BUSY, "overloaded"),
        (LONG, "context"),
        (InvalidRequest("x"), None),
        (NotFound("x"), None),
        (refused(400, "content_policy_violation"), None),
        (refused(413), None),
    ],
)
def test_what_is_a_reason(error: GatewayError, reason: Reason | None) -> None:
    assert reason_of(error) == reason


async def test_the_first_answer_is_signed_and_nobody_else_is_asked() -> None:
    a, b = Scripted(), Scripted()
    reply = await chain(a, ("b", b, REASONS)).run(call_of())
    assert (reply.model, reply.headers) == ("a", ((b"x-slurmgate-model", b"a"),))
    assert a.calls[0].raw == call_of().raw
    assert b.calls == []


@pytest.mark.parametrize(
    ("error", "reason"), [(UNAVAILABLE, b"unavailable"), (BUSY, b"overloaded"), (LONG, b"context")]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_another_model_answers_under_its_own_name(error: GatewayError, reason: bytes, stream: bool) -> None:
    b = Scripted(Events([CHUNK, DONE]) if stream else None)
    call = call_of(stream=stream)
    reply = await chain(Scripted(error), ("org/b", b, REASONS)).run(call)
    assert reply.headers == ((b"x-slurmgate-model", b"org/b"), (b"x-slurmgate-fallback", reason))
    assert (reply.model, reply.served_by) == ("org/b", "replica")
    (theirs,) = b.calls
    assert (theirs.model, theirs.body["model"], orjson.loads(theirs.raw)["model"]) == ("org/b", "org/b", "org/b")
    assert (theirs.id, theirs.stream, call.body["model"]) == (call.id, stream, "a")


@pytest.mark.parametrize("error", [InvalidRequest("x"), refused(400, "content_policy_violation"), NotFound("x")])
async def test_the_caller_s_mistake_is_theirs(error: GatewayError) -> None:
    b = Scripted()
    with pytest.raises(GatewayError) as caught:
        await chain(Scripted(error), ("b", b, REASONS)).run(call_of())
    assert caught.value is error
    assert b.calls == []


async def test_only_the_reasons_of_a_link_lead_to_it() -> None:
    b, c = Scripted(), Scripted()
    reply = await chain(Scripted(LONG), ("b", b, ("unavailable", "overloaded")), ("c", c, ("context",))).run(call_of())
    assert (reply.model, b.calls) == ("c", [])


async def test_the_latest_reason_chooses_the_next_link_and_the_first_one_is_told() -> None:
    b, c, d = Scripted(LONG), Scripted(), Scripted()
    links: list[tuple[str, Scripted, tuple[Reason, ...]]] = [
        ("b", b, REASONS),
        ("c", c, ("unavailable",)),
        ("d", d, ("context",)),
    ]
    reply = await chain(Scripted(UNAVAILABLE), *links).run(call_of())
    assert (reply.model, c.calls) == ("d", [])
    assert reply.headers[1] == (b"x-slurmgate-fallback", b"unavailable")


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [(UNAVAILABLE, BUSY, UNAVAILABLE), (LONG, BUSY, BUSY), (LONG, LONG, LONG), (BUSY, LONG, BUSY)],
)
async def test_where_nobody_answers_the_one_asked_is_told_of(
    first: GatewayError, second: GatewayError, told: GatewayError
) -> None:
    with pytest.raises(GatewayError) as caught:
        await chain(Scripted(first), ("b", Scripted(second), REASONS)).run(call_of())
    assert caught.value is told


async def test_a_mistake_that_the_second_one_finds_ends_the_search() -> None:
    wrong, c = InvalidRequest("x"), Scripted()
    with pytest.raises(InvalidRequest) as caught:
        await chain(Scripted(UNAVAILABLE), ("b", Scripted(wrong), REASONS), ("c", c, REASONS)).run(call_of())
    assert caught.value is wrong
    assert c.calls == []


@pytest.mark.parametrize("code", ["unsupported_parameter", "unsupported_endpoint"])
async def test_one_that_lacks_something_is_passed_over(code: str) -> None:
    lacking = InvalidRequest("x", code=code)
    assert (
        await chain(Scripted(BUSY), ("b", Scripted(lacking), REASONS), ("c", Scripted(), REASONS)).run(call_of())
    ).model == "c"
    with pytest.raises(GatewayError) as caught:
        await chain(Scripted(BUSY), ("b", Scripted(lacking), REASONS)).run(call_of())
    assert caught.value is BUSY


async def test_an_upload_names_its_model_where_nobody_can_change_it() -> None:
    call, b = call_of(), Scripted()
    call.content_type = b"multipart/form-data; boundary=x"
    with pytest.raises(Unavailable):
        await chain(Scripted(UNAVAILABLE), ("b", b, REASONS)).run(call)
    assert b.calls == []


# -- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [UNAVAILABLE, error_event(UNAVAILABLE)])
async def test_a_stream_that_fails_before_its_first_event_is_closed_and_passed_over(
    first: GatewayError | bytes,
) -> None:
    broken, good = Events([first]), Events([CHUNK, DONE])
    stream = await chain(Scripted(broken), ("b", Scripted(good), REASONS)).run(call_of(stream=True))
    assert isinstance(stream, EventStream)
    assert broken.closed
    assert [events async for events in stream] == [CHUNK, DONE]
    stream.close()
    assert good.closed
    assert (stream.model, stream.usage, stream.failure) == ("b", Usage(1, 2), None)


async def test_after_the_first_event_nobody_else_is_asked() -> None:
    b = Scripted()
    stream = await chain(Scripted(Events([CHUNK, UNAVAILABLE])), ("b", b, REASONS)).run(call_of(stream=True))
    assert isinstance(stream, EventStream)
    assert await anext(stream) == CHUNK
    with pytest.raises(Unavailable):
        await anext(stream)
    assert b.calls == []


async def test_a_mistake_inside_a_stream_s_first_event_is_an_error_before_the_stream() -> None:
    events = Events([error_event(InvalidRequest("x"))])
    stream = chain(Scripted(events), ("b", Scripted(), ()))
    with pytest.raises(GatewayError):
        await stream.run(call_of(stream=True))
    assert events.closed


async def test_an_empty_stream_is_one() -> None:
    stream = await chain(Scripted(Events([])), ("b", Scripted(), REASONS)).run(call_of(stream=True))
    assert isinstance(stream, EventStream)
    assert [events async for events in stream] == []


async def test_cancelling_while_the_first_event_is_waited_for_closes_the_stream() -> None:
    events = NeverBegins()
    asking = asyncio.create_task(chain(Scripted(events)).run(call_of(stream=True)), name="asking")
    await events.asked.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert events.closed


# -- chains ----------------------------------------------------------------------------------------------------------


def test_links_of_links_follow_each_model_once() -> None:
    context = frozenset[Reason]({"context"})
    links = {"a": [Link("b"), Link("c")], "b": [Link("d", context), Link("c")], "d": [Link("a")]}
    assert flattened("a", links) == [Link("b"), Link("d", context), Link("c")]
    assert flattened("c", links) == []


async def test_models_without_links_keep_their_backend() -> None:
    a, b = Scripted(BUSY), Scripted()
    served = with_fallbacks({"a": a, "b": b}, {"a": [Link("b")]})
    assert served["b"] is b
    assert (await served["a"].run(call_of())).model == "b"


async def test_a_name_that_is_no_header_value_is_quoted() -> None:
    reply = await FallbackBackend("modèle", Scripted(), []).run(call_of())
    assert reply.headers == ((b"x-slurmgate-model", b"mod%C3%A8le"),)
