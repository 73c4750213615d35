"""The HTTP client against servers with faults, on asyncio's and on uvloop's event loop."""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.connection import Connection
from backends.errors import ConnectFailed, Disconnected, EngineTimeout, MalformedResponse
from backends.transport import Limits, Pool, Response, Timeouts
from tests.fakes.faulty_servers import (
    DONE,
    EVENT,
    LAST_CHUNK,
    STREAM_HEAD,
    Answers,
    AnswersAndCloses,
    AnswersEarly,
    AnswersTwice,
    AnswersWhenTold,
    ClosesAtOnce,
    ClosesBeforeResponse,
    ClosesIdleConnection,
    ClosesOnReuse,
    ClosesReusedMidHead,
    DiesMidBody,
    DiesMidStream,
    LingersAfterDone,
    NeverAccepts,
    NeverAnswers,
    RefusesConnections,
    ResetsBeforeResponse,
    SendsEndlessBody,
    SendsEndlessHeaders,
    SendsEndlessInterims,
    SendsEndlessTrailers,
    SendsGarbage,
    Server,
    SlowlyReadsRequest,
    StallsMidBody,
    StallsMidStream,
    TalksWhenIdle,
    chunk,
    plain,
)
from tests.waiting import until

HEADERS = b"content-type: application/json\r\n"
BODY = b'{"model":"m"}'
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on each event loop, in asyncio's debug mode. What a loop reports as unhandled is a failure."""

    def run(loop: str, **parameters: object) -> None:
        unhandled: list[dict[str, Any]] = []

        async def observed() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
            async with asyncio.timeout(30):
                await test(**parameters)

        gc.freeze()  # so that collecting looks at this test's objects only
        try:
            with asyncio.Runner(debug=True, loop_factory=LOOPS[loop]) as runner:
                runner.run(observed())
                gc.collect()  # a future whose exception nobody has seen says so when it is collected
        finally:
            gc.unfreeze()
        assert not unhandled

    signature = inspect.signature(test)
    loop = inspect.Parameter("loop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.__signature__ = signature.replace(parameters=[loop, *signature.parameters.values()])  # type: ignore[attr-defined]
    return pytest.mark.parametrize("loop", LOOPS)(run)


def pool_to(server: Server, timeouts: Timeouts | None = None, limits: Limits | None = None) -> Pool:
    return Pool(server.host, server.port, timeouts=timeouts, limits=limits)


async def ask(pool: Pool, body: bytes = BODY) -> Response:
    return await pool.request(b"POST", b"/v1/chat/completions", HEADERS, body)


async def pieces_of(response: Response) -> list[bytes]:
    pieces = []
    while piece := await response.next():
        pieces.append(piece)
    return pieces


async def all_gone(pool: Pool) -> None:
    """Until the sockets are closed, which the loop does a little after it was told to."""
    await until(lambda: pool.open_connections == 0)


# -- requests and responses -----------------------------------------------------------------------------------------


@on_both_loops
async def test_a_request_leaves_with_host_length_and_the_given_headers() -> None:
    async with Answers() as server:
        pool = pool_to(server)
        response = await ask(pool)
        assert (response.status, response.content_type, await response.read()) == (200, b"application/json", b"{}")
        assert server.requests == [
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\n"
            b"content-length: 13\r\n\r\n%s" % (server.port, BODY)
        ]
        await pool.aclose()


@on_both_loops
async def test_header_names_come_in_lower_case_and_in_order() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Inference-Time: 12\r\ncontent-length: 0\r\n\r\n"
    async with Answers(head) as server:
        pool = pool_to(server)
        response = await ask(pool)
        assert response.headers[:2] == [(b"content-type", b"text/plain"), (b"x-inference-time", b"12")]
        assert response.content_type == b"text/plain"
        assert response.header(b"x-none") == b""
        assert await response.read() == b""
        await pool.aclose()


@on_both_loops
async def test_the_connection_that_was_used_last_is_used_again() -> None:
    async with Answers() as server:
        pool = pool_to(server)
        both = await asyncio.gather(ask(pool), ask(pool))
        for response in both:
            await response.read()
        assert (pool.open_connections, pool.idle_connections) == (2, 2)
        first = pool._idle[0]
        for _ in range(3):
            await (await ask(pool)).read()
            assert pool._idle[0] is first
        assert server.connections_opened == 2
        await pool.aclose()
        assert (pool.open_connections, pool.idle_connections) == (0, 0)
        await server.wait_closed_by_peer(2)


@on_both_loops
async def test_small_writes_are_not_held_back_by_nagle() -> None:
    async with StallsMidStream() as server:
        pool = pool_to(server)
        response = await ask(pool)
        connection = response.connection
        assert connection is not None
        transport = connection._transport
        assert transport is not None
        assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        response.close()
        await pool.aclose()


@on_both_loops
async def test_read_does_not_suspend_when_the_body_came_with_the_head() -> None:
    async with Answers() as server:
        pool = pool_to(server)
        response = await ask(pool)
        reading = response.read()
        with pytest.raises(StopIteration) as stop:
            reading.send(None)
        assert stop.value.value == b"{}"
        assert pool.idle_connections == 1
        await pool.aclose()


@on_both_loops
async def test_a_connection_over_the_idle_limit_is_closed() -> None:
    async with AnswersWhenTold() as server:
        pool = pool_to(server, limits=Limits(idle_connections=1))
        asking = asyncio.gather(ask(pool), ask(pool))
        await server.wait_for_requests(2)
        server.go.set()
        await asking
        await server.wait_closed_by_peer(1)
        assert (pool.open_connections, pool.idle_connections) == (1, 1)
        await pool.aclose()


@on_both_loops
async def test_an_idle_connection_is_closed_when_it_is_too_old() -> None:
    async with Answers() as server:
        pool = pool_to(server, limits=Limits(keep_alive_s=0.01))
        await (await ask(pool)).read()
        await server.wait_closed_by_peer()
        await all_gone(pool)
        await (await ask(pool)).read()
        assert server.connections_opened == 2
        await pool.aclose()


@on_both_loops
async def test_a_connection_is_not_kept_after_its_pool_was_closed() -> None:
    async with AnswersWhenTold() as server:
        pool = pool_to(server)
        asking = asyncio.ensure_future(ask(pool))
        await server.wait_for_requests()
        await pool.aclose()
        server.go.set()
        assert await (await asking).read() == b"{}"
        assert pool.idle_connections == 0
        await server.wait_closed_by_peer()
        await all_gone(pool)


@on_both_loops
async def test_an_idle_connection_holds_nothing_of_its_last_request() -> None:
    body, answer = b'{"secret":"%s"}' % (b"s" * 300_000), plain(b'{"answer":"%s"}' % (b"a" * 300_000))
    async with Answers(answer) as server:
        pool = pool_to(server)
        response = await ask(pool, body)
        assert len(await response.read()) > 300_000
        assert pool.idle_connections == 1
        kept = pool._idle[0]
        assert kept._unsent is None
        assert kept._response is None
        assert kept._waiter is None
        assert kept.chunks == []
        assert kept._header_list == []
        await pool.aclose()


# -- connections that the server closes -----------------------------------------------------------------------------


@on_both_loops
async def test_a_connection_that_was_closed_while_idle_is_not_used() -> None:
    async with ClosesIdleConnection() as server:
        pool = pool_to(server)
        await (await ask(pool)).read()
        assert pool.idle_connections == 1
        server.close_now.set()
        await all_gone(pool)
        assert pool.idle_connections == 0
        await (await ask(pool)).read()
        assert len(server.requests) == 2
        await pool.aclose()


@pytest.mark.parametrize("reset", [False, True])
@on_both_loops
async def test_a_request_on_a_connection_closed_while_idle_is_sent_again_once(reset: bool) -> None:
    async with ClosesOnReuse(reset=reset) as server:
        pool = pool_to(server)
        await (await ask(pool)).read()
        assert await (await ask(pool)).read() == b"{}"
        assert (len(server.requests), server.connections_opened) == (3, 2)
        await pool.aclose()


@on_both_loops
async def test_a_request_is_not_sent_a_third_time() -> None:
    async with ClosesOnReuse(always=True) as server:
        pool = pool_to(server)
        await (await ask(pool)).read()
        with pytest.raises(Disconnected) as caught:
            await ask(pool)
        assert not caught.value.received
        assert (len(server.requests), server.connections_opened) == (3, 2)
        await pool.aclose()


@on_both_loops
async def test_a_request_is_not_sent_again_once_a_byte_of_the_answer_has_come() -> None:
    async with ClosesReusedMidHead() as server:
        pool = pool_to(server)
        await (await ask(pool)).read()
        with pytest.raises(Disconnected) as caught:
            await ask(pool)
        assert caught.value.received
        assert len(server.requests) == 2
        await pool.aclose()


@pytest.mark.parametrize("fault", [ClosesBeforeResponse, ResetsBeforeResponse, ClosesAtOnce])
@on_both_loops
async def test_a_request_on_a_new_connection_is_not_sent_again(fault: type[Server]) -> None:
    async with fault() as server:
        pool = pool_to(server)
        with pytest.raises(Disconnected) as caught:
            await ask(pool)
        assert not caught.value.received
        assert server.connections_opened == 1
        await all_gone(pool)
        await pool.aclose()


class LostAtOnce(Connection):
    """Lost before the loop has handed it out."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.abort()
        self.connection_lost(None)


@on_both_loops
async def test_a_connection_that_is_lost_before_it_is_used_is_not_counted() -> None:
    class PoolOfLost(Pool):
        def _new_connection(self) -> Connection:
            return LostAtOnce(self, asyncio.get_running_loop())

    async with NeverAnswers() as server:
        pool = PoolOfLost(server.host, server.port)
        with pytest.raises(Disconnected) as caught:
            await ask(pool)
        assert not caught.value.received
        assert pool.open_connections == 0
        assert pool._timer is None


@on_both_loops
async def test_a_body_with_a_length_that_is_cut_short_is_an_error() -> None:
    async with DiesMidBody() as server:
        pool = pool_to(server)
        with pytest.raises(Disconnected) as caught:
            await (await ask(pool)).read()
        assert caught.value.received
        await pool.aclose()


@on_both_loops
async def test_a_stream_without_its_last_chunk_is_given_out_and_then_is_an_error() -> None:
    async with DiesMidStream(events=2) as server:
        pool = pool_to(server)
        response = await ask(pool)
        got = b""
        with pytest.raises(Disconnected) as caught:
            while True:
                got += await response.next()
        assert got == EVENT * 2
        assert caught.value.received
        with pytest.raises(Disconnected):
            await response.next()
        response.close()
        await pool.aclose()


@on_both_loops
async def test_a_connection_is_closed_when_the_server_says_so() -> None:
    async with Answers(plain(b"{}").replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")) as server:
        pool = pool_to(server)
        assert await (await ask(pool)).read() == b"{}"
        assert pool.idle_connections == 0
        await server.wait_closed_by_peer()
        await pool.aclose()


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@on_both_loops
async def test_a_body_without_a_length_ends_with_its_connection(version: bytes) -> None:
    async with AnswersAndCloses(b"HTTP/%s 200 OK\r\ncontent-type: text/plain\r\n\r\n%s" % (version, EVENT)) as server:
        pool = pool_to(server)
        assert await (await ask(pool)).read() == EVENT
        assert b"".join(await pieces_of(await ask(pool))) == EVENT
        await pool.aclose()


# -- time -----------------------------------------------------------------------------------------------------------


@on_both_loops
async def test_connecting_has_a_limit() -> None:
    async with NeverAccepts() as server:
        pool = pool_to(server, Timeouts(connect_s=0.01))
        with pytest.raises(ConnectFailed):
            await ask(pool)
        assert pool.open_connections == 0


@on_both_loops
async def test_a_refused_connection_is_a_failure_to_connect() -> None:
    async with RefusesConnections() as server:
        pool = pool_to(server)
        with pytest.raises(ConnectFailed) as caught:
            await ask(pool)
        assert str(server.port) in caught.value.detail
        assert str(server.port) not in caught.value.message


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b"])
async def test_a_host_without_an_address_is_a_failure_to_connect(host: str) -> None:
    with pytest.raises(ConnectFailed):
        await ask(Pool(host, 80))


@on_both_loops
async def test_waiting_for_the_first_byte_has_a_limit() -> None:
    async with NeverAnswers() as server:
        pool = pool_to(server, Timeouts(first_byte_s=0.01))
        with pytest.raises(EngineTimeout) as caught:
            await ask(pool)
        assert caught.value.phase == "first byte"
        await server.wait_closed_by_peer()
        await all_gone(pool)


@pytest.mark.parametrize("fault", [StallsMidStream, StallsMidBody])
@on_both_loops
async def test_silence_within_a_body_has_a_limit(fault: type[Server]) -> None:
    async with fault() as server:
        pool = pool_to(server, Timeouts(idle_s=0.01))
        with pytest.raises(EngineTimeout) as caught:
            await (await ask(pool)).read()
        assert caught.value.phase == "idle"
        response = await ask(pool)
        assert await response.next()
        with pytest.raises(EngineTimeout):
            await response.next()
        await server.wait_closed_by_peer(2)
        await all_gone(pool)


@on_both_loops
async def test_a_slow_reader_is_not_taken_for_a_silent_engine() -> None:
    async with SendsEndlessBody() as server:
        pool = pool_to(server, Timeouts(idle_s=0.01))
        response = await ask(pool)
        await paused(response)
        connection = response.connection
        assert connection is not None
        for _ in range(20):
            pool._sweep(asyncio.get_running_loop())
        assert connection.quiet > connection.patience
        assert await response.next()
        assert connection.quiet == 0
        assert await response.next()
        response.close()
        await server.wait_closed_by_peer()


@on_both_loops
async def test_the_timer_stops_with_the_last_connection() -> None:
    async with Answers() as server:
        pool = pool_to(server)
        await (await ask(pool)).read()
        timer = pool._timer
        assert timer is not None
        await pool.aclose()
        assert timer.cancelled()
        assert pool._timer is None


def test_no_timeout_fires_early() -> None:
    """The sweeps that must have passed are worth more than the time-out, wherever between two sweeps it began."""
    pool = Pool("127.0.0.1", 1, timeouts=Timeouts(first_byte_s=600, idle_s=2.5), limits=Limits(keep_alive_s=4))
    assert pool.first_byte_sweeps * pool._interval_s >= 600
    assert pool.idle_sweeps * pool._interval_s >= 2.5
    assert pool.keep_alive_sweeps * pool._interval_s >= 4


# -- back-pressure --------------------------------------------------------------------------------------------------


async def paused(response: Response) -> None:
    """Until the connection has stopped reading."""
    connection = response.connection
    assert connection is not None
    await until(lambda: not connection._reading)


@on_both_loops
async def test_a_slow_reader_of_a_stream_does_not_fill_the_memory() -> None:
    async with SendsEndlessBody() as server:
        pool = pool_to(server, limits=Limits(buffer_bytes=100_000))
        response = await ask(pool)
        await paused(response)
        first = await response.next()
        assert 100_000 < len(first) < 100_000 + 300_000  # one read more than the mark: uvloop's are of 256 kB
        await paused(response)
        assert await response.next()
        response.close()
        await server.wait_closed_by_peer()
        await all_gone(pool)


@on_both_loops
async def test_reading_the_whole_body_goes_on_after_a_pause() -> None:
    body = b"b" * 2_000_000
    async with Answers(plain(body)) as server:
        pool = pool_to(server, limits=Limits(buffer_bytes=10_000))
        response = await ask(pool)
        await paused(response)
        assert await response.read() == body
        assert pool.idle_connections == 1
        await pool.aclose()


@on_both_loops
async def test_a_large_request_waits_for_a_slow_engine() -> None:
    body = bytes(range(256)) * 40_000
    async with SlowlyReadsRequest() as server:
        pool = pool_to(server)
        asking = asyncio.ensure_future(ask(pool, body))
        await server.until(lambda: server.heads == 1)
        (connection,) = pool._open
        await until(lambda: not connection._writing)
        assert connection._unsent is not None
        assert 0 < len(connection._unsent) < len(body)
        server.go_on.set()
        assert await (await asking).read() == b"{}"
        assert server.requests[0].endswith(b"\r\n\r\n" + body)
        assert pool.idle_connections == 1
        assert await (await ask(pool)).read() == b"{}"
        assert server.connections_opened == 1
        await pool.aclose()


@pytest.mark.parametrize("early", [AnswersEarly.too_large, plain(b"{}")])
@on_both_loops
async def test_an_early_answer_is_taken_and_its_connection_is_not_used_again(early: bytes) -> None:
    async with AnswersEarly(early) as server:
        pool = pool_to(server)
        response = await ask(pool, b"x" * 20_000_000)
        assert early.endswith(b"\r\n\r\n" + await response.read())
        assert pool.idle_connections == 0
        await server.wait_closed_by_peer()
        await all_gone(pool)


# -- limits and garbage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [SendsEndlessHeaders, SendsEndlessInterims, SendsGarbage])
@on_both_loops
async def test_a_head_without_end_or_sense_is_malformed(fault: type[Server]) -> None:
    async with fault() as server:
        pool = pool_to(server)
        with pytest.raises(MalformedResponse):
            await ask(pool)
        await server.wait_closed_by_peer()
        await all_gone(pool)


@on_both_loops
async def test_a_head_over_the_limit_that_came_in_one_read_is_malformed() -> None:
    head = b"HTTP/1.1 200 OK\r\nx-much: %s\r\ncontent-length: 0\r\n\r\n" % (b"m" * 2000)
    async with Answers(head) as server:
        pool = pool_to(server, limits=Limits(header_bytes=1000))
        with pytest.raises(MalformedResponse) as caught:
            await ask(pool)
        assert "the head is too large" in caught.value.detail
        await server.wait_closed_by_peer()


@on_both_loops
async def test_a_large_body_that_came_with_its_head_is_not_counted_as_head() -> None:
    body = b"b" * 50_000
    async with Answers(plain(body)) as server:
        pool = pool_to(server, limits=Limits(header_bytes=1000))
        assert await (await ask(pool)).read() == body
        await pool.aclose()


@on_both_loops
async def test_trailers_without_end_are_malformed() -> None:
    async with SendsEndlessTrailers() as server:
        pool = pool_to(server)
        response = await ask(pool)
        with pytest.raises(MalformedResponse):
            await pieces_of(response)
        await server.wait_closed_by_peer()


@on_both_loops
async def test_a_body_over_the_limit_is_not_read() -> None:
    async with SendsEndlessBody() as server:
        pool = pool_to(server, limits=Limits(body_bytes=1_000_000))
        response = await ask(pool)
        with pytest.raises(MalformedResponse):
            await response.read()
        await server.wait_closed_by_peer()
    async with Answers(plain(b"12345")) as small:
        pool = pool_to(small, limits=Limits(body_bytes=4))
        response = await ask(pool)
        with pytest.raises(MalformedResponse):
            await response.read()
        await pool.aclose()


@on_both_loops
async def test_garbage_within_a_body_is_malformed_after_what_was_right() -> None:
    async with SendsGarbage(after=STREAM_HEAD + chunk(EVENT)) as server:
        pool = pool_to(server)
        response = await ask(pool)
        assert await response.next() == EVENT
        with pytest.raises(MalformedResponse):
            await response.next()
        await server.wait_closed_by_peer()
        await pool.aclose()


@pytest.mark.parametrize("fault", [AnswersTwice, lambda: SendsGarbage(after=plain(b"{}"))])
@on_both_loops
async def test_what_follows_an_answer_is_never_the_next_answer(fault: Callable[[], Server]) -> None:
    async with fault() as server:
        pool = pool_to(server)
        assert await (await ask(pool)).read() == b"{}"
        await server.wait_closed_by_peer()
        assert pool.idle_connections == 0
        await pool.aclose()


@on_both_loops
async def test_bytes_on_an_idle_connection_are_never_the_next_answer() -> None:
    async with TalksWhenIdle() as server:
        pool = pool_to(server)
        assert await (await ask(pool)).read() == b"{}"
        assert pool.idle_connections == 1
        server.talk.set()
        await server.wait_closed_by_peer()
        assert pool.idle_connections == 0
        assert await (await ask(pool)).read() == b"{}"
        await pool.aclose()


# -- cancellation and closing ---------------------------------------------------------------------------------------


async def cancelled(task: asyncio.Future[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@on_both_loops
async def test_cancelling_while_connecting_leaves_nothing() -> None:
    async with NeverAccepts() as server:
        pool = pool_to(server)
        asking = asyncio.ensure_future(ask(pool))
        await asyncio.sleep(0)
        await cancelled(asking)
        assert pool.open_connections == 0


@on_both_loops
async def test_cancelling_at_any_step_of_a_request_leaves_nothing() -> None:
    """Cancelled after 0, 1, 2... turns of the loop, until a request gets through."""
    async with Answers() as server:
        turns = 0
        while True:
            pool = pool_to(server)
            asking = asyncio.ensure_future(ask(pool))
            for _ in range(turns):
                await asyncio.sleep(0)
            if asking.done():
                break
            await cancelled(asking)
            pool.close_idle()
            await all_gone(pool)
            turns += 1
        assert turns > 1
        await pool.aclose()
        await server.wait_all_closed()


@on_both_loops
async def test_cancelling_while_waiting_for_the_head_closes_the_connection() -> None:
    async with NeverAnswers() as server:
        pool = pool_to(server)
        asking = asyncio.ensure_future(ask(pool))
        await server.wait_for_requests()
        await cancelled(asking)
        await server.wait_closed_by_peer()
        await all_gone(pool)


@on_both_loops
async def test_cancelling_as_the_head_arrives_closes_the_connection_or_keeps_it_whole() -> None:
    """The head is there, the task has been told, and is cancelled before it runs."""
    for answer in (plain(b"{}"), STREAM_HEAD + chunk(EVENT)):
        async with AnswersWhenTold(answer) as server:
            pool = pool_to(server)
            asking = asyncio.ensure_future(ask(pool))
            await server.wait_for_requests()
            (connection,) = pool._open
            connection.data_received(answer)
            await cancelled(asking)
            pool.close_idle()
            await all_gone(pool)
            server.go.set()
            await server.wait_all_closed()


@pytest.mark.parametrize("whole", [False, True])
@on_both_loops
async def test_cancelling_while_reading_closes_the_connection(whole: bool) -> None:
    async with StallsMidStream() as server:
        pool = pool_to(server)
        response = await ask(pool)
        if not whole:
            assert await response.next() == EVENT
        reading = asyncio.ensure_future(response.read() if whole else response.next())
        await asyncio.sleep(0)
        await cancelled(reading)
        await server.wait_closed_by_peer()
        await all_gone(pool)


@on_both_loops
async def test_closing_an_unfinished_response_makes_the_engine_see_it() -> None:
    async with SendsEndlessBody() as server:
        pool = pool_to(server)
        response = await ask(pool)
        assert await response.next()
        response.close()
        response.close()
        await server.wait_closed_by_peer()
        await all_gone(pool)
        assert await response.next() == b""


@on_both_loops
async def test_closing_a_finished_response_leaves_its_connection_alone() -> None:
    async with Answers() as server:
        pool = pool_to(server)
        first = await ask(pool)
        asking = asyncio.ensure_future(ask(pool))  # takes the connection, while the first body is still unread
        await asyncio.sleep(0)
        first.close()
        assert await (await asking).read() == b"{}"
        assert server.connections_opened == 1
        await pool.aclose()


@on_both_loops
async def test_a_finished_response_gives_its_connection_back_when_its_last_chunk_comes() -> None:
    async with LingersAfterDone() as server:
        pool = pool_to(server)
        response = await ask(pool)
        assert await response.next() == EVENT + DONE
        response.finish()
        response.finish()
        assert pool.idle_connections == 0
        server.go.set()
        await until(lambda: pool.idle_connections == 1)
        assert await response.next() == b""
        response.finish()
        assert (await ask(pool)).status == 200
        assert server.connections_opened == 1
        await pool.aclose()


@on_both_loops
async def test_a_finished_response_whose_end_does_not_come_is_closed() -> None:
    async with LingersAfterDone() as server:
        pool = pool_to(server, limits=Limits(keep_alive_s=0.01))
        (await ask(pool)).finish()
        await all_gone(pool)
        server.go.set()
        await server.wait_all_closed()


@on_both_loops
async def test_a_finished_response_that_goes_on_is_closed() -> None:
    async with SendsEndlessBody() as server:
        pool = pool_to(server)
        response = await ask(pool)
        await paused(response)
        response.finish()
        await server.wait_closed_by_peer()
        await all_gone(pool)


# -- every way to cut a response ------------------------------------------------------------------------------------

RESPONSES = {
    "content-length": plain(b'{"a":1}'),
    "chunked": STREAM_HEAD + chunk(EVENT) + chunk(DONE) + LAST_CHUNK,
    "chunked, with extensions and trailers": STREAM_HEAD + b"2;x=y\r\nab\r\n0\r\nx-trailer: 1\r\nx-more: 2\r\n\r\n",
    "after 100": b"HTTP/1.1 100 Continue\r\n\r\n" + plain(b"{}"),
    "after 103 and 100": b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + plain(b"{}"),
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "304": b"HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n",
    "empty": plain(b""),
    "1.0, kept": b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\n{}",
    "close-delimited": b"HTTP/1.0 200 OK\r\n\r\n{}",
}
BODIES = {
    "content-length": b'{"a":1}',
    "chunked": EVENT + DONE,
    "chunked, with extensions and trailers": b"ab",
    "204": b"",
    "304": b"",
    "empty": b"",
}


class Wire(asyncio.Transport):
    """Where a connection writes to, without a network."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        self.aborted = True


def wired() -> tuple[Pool, Connection, Wire]:
    pool, wire = Pool("engine", 80), Wire()
    connection = pool._new_connection()
    connection.connection_made(wire)
    pool._open.add(connection)
    pool._idle.append(connection)
    return pool, connection, wire


async def sent(pool: Pool, body: bytes = BODY) -> asyncio.Future[Response]:
    asking = asyncio.ensure_future(ask(pool, body))
    await asyncio.sleep(0)
    return asking


async def receive(reads: Iterable[bytes], closes: bool) -> tuple[Response, bytes, bool]:
    """Send a request and let its answer come in these reads: status, body, and whether the connection was kept."""
    pool, connection, wire = wired()
    asking = await sent(pool)
    assert wire.written
    got: list[bytes] = []

    async def drain() -> Response:
        response = await asking
        got.extend(await pieces_of(response))
        return response

    draining = asyncio.ensure_future(drain())
    for read in reads:
        connection.data_received(read)
        await asyncio.sleep(0)
    if closes:
        connection.connection_lost(None)
    response = await draining
    kept = pool.idle_connections == 1
    assert kept != (wire.aborted or closes)
    if not closes:
        connection.connection_lost(None)
    return response, b"".join(got), kept


@pytest.mark.parametrize("name", RESPONSES)
async def test_a_response_may_be_cut_anywhere(name: str) -> None:
    data = RESPONSES[name]
    closes = name == "close-delimited"
    for cut in range(len(data)):
        reads = [read for read in (data[:cut], data[cut:]) if read]
        response, body, kept = await receive(reads, closes)
        assert body == BODIES.get(name, b"{}")
        assert response.status == (int(name) if name.isdigit() else 200)
        assert kept is not closes


@pytest.mark.parametrize("name", RESPONSES)
async def test_a_response_may_come_byte_by_byte(name: str) -> None:
    data = RESPONSES[name]
    _, body, _ = await receive([data[at : at + 1] for at in range(len(data))], name == "close-delimited")
    assert body == BODIES.get(name, b"{}")


@given(name=st.sampled_from(sorted(RESPONSES)), cuts=st.lists(st.integers(1, 200)))
@settings(max_examples=100, deadline=None)
def test_a_response_may_come_in_any_pieces(name: str, cuts: list[int]) -> None:
    data = RESPONSES[name]
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    reads = [data[start:end] for start, end in itertools.pairwise(places)]
    _, body, _ = asyncio.run(receive(reads, name == "close-delimited"))
    assert body == BODIES.get(name, b"{}")


@pytest.mark.parametrize("surplus", [b"H", b"\x16\x03", plain(b'"not yours"')])
async def test_surplus_in_the_read_of_an_answers_end_costs_the_connection(surplus: bytes) -> None:
    pool, connection, wire = wired()
    asking = await sent(pool)
    connection.data_received(plain(b"{}") + surplus)
    assert (pool.idle_connections, wire.aborted) == (0, True)
    assert await (await asking).read() == b"{}"


async def test_bytes_on_an_idle_connection_take_it_out_of_the_pool_at_once() -> None:
    pool, connection, wire = wired()
    connection.data_received(b"H")
    assert (pool.idle_connections, wire.aborted) == (0, True)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 9\r\n\r\n{}", None),
        (STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n") + chunk(EVENT), None),
        (b"HTTP/1.0 200 OK\r\n\r\n{}", ConnectionResetError("reset")),
    ],
)
async def test_the_end_of_a_connection_is_not_always_the_end_of_a_body(answer: bytes, error: Exception | None) -> None:
    pool, connection, _ = wired()
    asking = await sent(pool)
    connection.data_received(answer)
    connection.connection_lost(error)
    with pytest.raises(Disconnected) as caught:
        await (await asking).read()
    assert caught.value.received


async def test_trailers_are_not_the_next_answers_headers() -> None:
    pool, connection, _ = wired()
    for _ in range(2):
        asking = await sent(pool)
        connection.data_received(RESPONSES["chunked, with extensions and trailers"])
        assert [name for name, _ in (await asking).headers] == [b"content-type", b"transfer-encoding"]


async def test_an_engine_that_refuses_a_request_gets_no_more_of_it() -> None:
    pool, connection, wire = wired()
    connection.pause_writing()
    asking = await sent(pool, b"x" * 1_000_000)
    before = len(wire.written)
    connection.data_received(AnswersEarly.too_large[:-1])
    connection.resume_writing()
    assert len(wire.written) == before
    connection.data_received(AnswersEarly.too_large[-1:])
    assert (await asking).status == 413
    assert wire.aborted


async def test_a_slow_engine_is_not_taken_for_a_silent_one() -> None:
    pool, connection, wire = wired()
    asking = await sent(pool)
    connection.data_received(STREAM_HEAD)
    loop = asyncio.get_running_loop()
    for _ in range(3):
        for _ in range(pool.idle_sweeps):
            pool._sweep(loop)
        connection.data_received(chunk(EVENT))
        response = await asking
        assert await response.next() == EVENT
    assert response.error is None
    for _ in range(pool.idle_sweeps + 1):
        pool._sweep(loop)
    with pytest.raises(EngineTimeout):
        await response.next()
    assert wire.aborted
    connection.connection_lost(None)


async def test_what_arrived_in_one_read_leaves_as_one_piece() -> None:
    pool, connection, _ = wired()
    asking = await sent(pool)
    connection.data_received(STREAM_HEAD)
    connection.data_received(chunk(EVENT) + chunk(EVENT))
    response = await asking
    assert await response.next() == EVENT * 2
    connection.data_received(chunk(EVENT))
    only = connection.chunks[0]
    assert await response.next() is only  # one piece is handed over, not copied
    connection.data_received(LAST_CHUNK)
    assert await response.next() == b""
    connection.connection_lost(None)


async def test_an_ipv6_host_is_in_brackets() -> None:
    pool = Pool("::1", 8000)
    assert pool._host_header == b"host: [::1]:8000\r\n"


async def test_the_head_of_a_stream_is_told_of_with_its_first_events() -> None:
    pool, connection, _ = wired()
    asking = await sent(pool)
    connection.data_received(STREAM_HEAD)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not asking.done()
    connection.data_received(chunk(EVENT))
    assert await (await asking).next() == EVENT
    connection.connection_lost(None)


async def test_a_stream_that_ends_after_its_head_is_told_of_too() -> None:
    pool, connection, _ = wired()
    asking = await sent(pool)
    connection.data_received(STREAM_HEAD)
    connection.connection_lost(None)
    response = await asking
    assert response.status == 200
    with pytest.raises(Disconnected):
        await response.next()
