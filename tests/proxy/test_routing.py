"""Where requests go, over real sockets: engines that hang, queues that fill, clocks that run out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIError, AsyncOpenAI

from backends.base import Call, Reply
from tests.fakes.chat_engine import (
    Answers,
    AnswersWith,
    DiesOnRequests,
    Engine,
    NeverBegins,
    Request,
    StopsMidStream,
    Write,
    whole,
)
from tests.fakes.dialect_engines import SpeaksTGI
from tests.in_process import Served, serving
from tests.waiting import until

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def config(*urls: str, more: str = "", timeouts: str = "", engine: str = "vllm") -> str:
    return (
        f'[models.m]\nengine = "{engine}"\nurls = {json.dumps(urls)}\n{more}\n'
        f"[models.m.timeouts]\nconnect_s = 0.4\n{timeouts}\n"
    )


@asynccontextmanager
async def asking(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=served.url, headers=served.headers, timeout=30, limits=limits) as http:
        yield http


class Says(Engine):
    """The same bytes to whoever asks for anything."""

    def __init__(self, said: bytes) -> None:
        super().__init__()
        self.said = said

    async def answer(self, request: Request, write: Write) -> bool:
        await write(self.said)
        return True


class Holds(Answers):
    """Answers each request when it is told to, and counts how many it has at once."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.at_once = 0
        self.most = 0

    async def answer(self, request: Request, write: Write) -> bool:
        if not request.raw:
            await write(whole(200, b"{}"))
            return True
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await self.go.wait()
            return await super().answer(request, write)
        finally:
            self.at_once -= 1


@contextlib.contextmanager
def full_backlog() -> Iterator[int]:
    """A port of loopback where new connections come to nothing: its listener accepts none, and its backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def waiting(served: Served) -> int:
    return served.gateway.control.places["m"].waiting()


def running(served: Served) -> int:
    return sum(load.in_flight for load in served.gateway.control.places["m"].snapshot().replicas)


async def constant_load(http: httpx.AsyncClient, users: int, requests: int) -> list[tuple[int, float]]:
    """Status and seconds of each request, the users asking one after another."""

    async def user() -> list[tuple[int, float]]:
        seen = []
        for _ in range(requests):
            begun = time.monotonic()
            answer = await http.post(CHAT, json=BODY)
            seen.append((answer.status_code, time.monotonic() - begun))
        return seen

    return [one for seen in await asyncio.gather(*(user() for _ in range(users))) for one in seen]


# -- engines that hang -----------------------------------------------------------------------------------------------


async def test_with_one_replica_of_three_that_takes_requests_and_never_answers_no_request_fails(tmp_path: Path) -> None:
    async with Answers() as one, Answers() as other, NeverBegins() as hung:
        async with serving(config(one.url, hung.url, other.url), tmp_path) as served, asking(served) as http:
            seen = await constant_load(http, users=9, requests=20)
            assert {status for status, _ in seen} == {200}
            # what it got before it was found out has gone elsewhere; nothing was sent there after that
            assert 1 <= len(hung.requests) <= 9
            assert len(one.requests) + len(other.requests) == 180
            assert running(served) == 0
    assert "/health" in [question.path for question in hung.questions]


@pytest.mark.parametrize(
    "stranger",
    [
        whole(401, b"{}"),
        b"HTTP/1.1 302 Found\r\nlocation: /login\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>",
        b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
    ],
    ids=["refuses our key", "redirects", "has a page", "is no web server"],
)
async def test_somebody_else_on_a_replicas_port_is_found_out_and_fails_no_request(
    tmp_path: Path, stranger: bytes
) -> None:
    async with Answers() as one, Says(stranger) as other:
        async with serving(config(one.url, other.url), tmp_path) as served, asking(served) as http:
            seen = await constant_load(http, users=3, requests=20)
            assert {status for status, _ in seen} == {200}
            assert len(other.requests) <= 3, "what was on its way when the first came back"
            states = [load.breaker.value for load in served.gateway.control.places["m"].snapshot().replicas]
            assert states == ["closed", "open"]


async def test_with_one_replica_of_three_that_cannot_be_connected_to_no_request_fails(tmp_path: Path) -> None:
    async with Answers() as one, Answers() as other:
        with full_backlog() as port:
            urls = (one.url, f"http://127.0.0.1:{port}", other.url)
            async with serving(config(*urls), tmp_path) as served, asking(served) as http:
                seen = await constant_load(http, users=9, requests=20)
                assert {status for status, _ in seen} == {200}
                assert len(one.requests) + len(other.requests) == 180
                states = [load.breaker.value for load in served.gateway.control.places["m"].snapshot().replicas]
                assert states == ["closed", "open", "closed"]


async def test_when_one_connection_times_out_the_others_to_that_engine_do_not_wait_for_their_own(
    tmp_path: Path,
) -> None:
    """All nine are at the engine that hangs, a tenth comes when most of their time is over."""
    async with Answers() as one:
        with full_backlog() as port:
            text = config(f"http://127.0.0.1:{port}", one.url, more="max_in_flight = 100")
            async with serving(text.replace("connect_s = 0.4", "connect_s = 3.0"), tmp_path) as served:
                backend = served.gateway.serving.backends["m"]

                async def ask() -> float:
                    call = Call("req_1", CHAT, "m", BODY, json.dumps(BODY).encode())
                    assert isinstance(await backend.run(call), Reply)
                    return time.monotonic()

                tasks = [asyncio.create_task(ask(), name="asks") for _ in range(9)]
                await asyncio.sleep(0.3)
                late = [asyncio.create_task(ask(), name="asks") for _ in range(4)]
                ends = await asyncio.gather(*tasks, *late)
                assert max(ends[9:]) - max(ends[:9]) < 0.2  # together, though they had begun later


async def test_the_only_replica_is_not_given_up_for_being_slow(tmp_path: Path) -> None:
    async with Holds() as engine, serving(config(engine.url), tmp_path) as served, asking(served) as http:
        task = asyncio.create_task(http.post(CHAT, json=BODY), name="asks")
        await engine.request()
        await asyncio.sleep(1.0)
        engine.go.set()
        assert (await task).status_code == 200
        assert len(engine.requests) == 1


async def test_a_replica_that_works_for_long_is_asked_after_its_health_and_left_alone(tmp_path: Path) -> None:
    async with Holds() as one, Holds() as other, serving(config(one.url, other.url), tmp_path) as served:
        async with asking(served) as http:
            tasks = [asyncio.create_task(http.post(CHAT, json=BODY), name="asks") for _ in range(4)]
            await until(lambda: one.questions and other.questions)
            one.go.set()
            other.go.set()
            assert {(await task).status_code for task in tasks} == {200}
            assert (len(one.requests), len(other.requests)) == (2, 2)


async def test_a_first_byte_that_does_not_come_is_tried_elsewhere_once(tmp_path: Path) -> None:
    async with NeverBegins() as one, NeverBegins() as other, NeverBegins() as third:
        text = config(one.url, other.url, third.url, timeouts="first_byte_s = 0.2")
        async with serving(text, tmp_path) as served, asking(served) as http:
            answer = await http.post(CHAT, json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "engine_timeout")
        assert answer.headers["x-should-retry"] == "false"
        assert sum(len(engine.requests) for engine in (one, other, third)) == 2


async def test_retries_end_with_their_budget(tmp_path: Path) -> None:
    async with DiesOnRequests() as one, DiesOnRequests() as other:
        async with serving(config(one.url, other.url), tmp_path) as served, asking(served) as http:
            backend: Any = served.gateway.serving.backends["m"]
            backend._replicas._budget.tokens = 3.0
            for _ in range(40):
                assert (await http.post(CHAT, json=BODY)).status_code == 502
        retried = len(one.requests) + len(other.requests) - 40
        assert 3 <= retried <= 3 + 0.2 * 40 + 2


# -- engines without room --------------------------------------------------------------------------------------------


async def test_an_engine_without_room_sends_the_request_to_another(tmp_path: Path) -> None:
    busy = AnswersWith(429, b'{"error":"Model is overloaded","error_type":"overloaded"}')
    async with busy, Answers() as there, serving(config(busy.url, there.url, engine="tgi"), tmp_path) as served:
        async with asking(served) as http:
            answers = [(await http.post(CHAT, json=BODY)).status_code for _ in range(6)]
        assert answers == [200] * 6
        assert len(there.requests) == 6


class TakesOne(Holds):
    """429 for the second request at a time."""

    async def answer(self, request: Request, write: Write) -> bool:
        if self.at_once:
            await write(whole(429, b'{"error":"Model is overloaded","error_type":"overloaded"}'))
            return True
        return await super().answer(request, write)


async def test_where_there_is_no_other_it_waits_until_ours_are_done(tmp_path: Path) -> None:
    async with TakesOne() as engine, serving(config(engine.url), tmp_path) as served, asking(served) as http:
        tasks = [asyncio.create_task(http.post(CHAT, json=BODY), name="asks") for _ in range(2)]
        await until(lambda: waiting(served))
        assert served.gateway.control.places["m"].limits() == {f"{engine.host}:{engine.port}": 1}
        engine.go.set()
        assert [(await task).status_code for task in tasks] == [200, 200]


async def test_no_more_than_its_limit_is_ever_sent_to_an_engine(tmp_path: Path) -> None:
    async with Holds() as engine, serving(config(engine.url, more="max_in_flight = 3"), tmp_path) as served:
        async with asking(served) as http:
            tasks = [asyncio.create_task(http.post(CHAT, json=BODY), name="asks") for _ in range(12)]
            await until(lambda: waiting(served) == 9 and engine.at_once == 3)
            engine.go.set()
            assert {(await task).status_code for task in tasks} == {200}
        assert engine.most == 3


async def test_a_tgi_says_how_many_it_takes_and_gets_fewer(tmp_path: Path) -> None:
    class Small(SpeaksTGI):
        def info(self) -> dict[str, Any]:
            return {**super().info(), "max_concurrent_requests": 16}

    async with Small() as engine, serving(config(engine.url, engine="tgi"), tmp_path) as served, asking(served) as http:
        assert (await http.post(CHAT, json=BODY)).status_code == 200
        await until(lambda: list(served.gateway.control.places["m"].limits().values()) == [15])


# -- the queue -------------------------------------------------------------------------------------------------------

ONE_AT_A_TIME = "max_in_flight = 1\n"


async def test_a_full_queue_is_a_429_at_once_with_an_honest_retry_after(tmp_path: Path) -> None:
    text = config("URL", more=ONE_AT_A_TIME + "queue = { size = 2 }")
    async with Holds() as engine, serving(text.replace("URL", engine.url), tmp_path) as served, asking(served) as http:
        tasks = [asyncio.create_task(http.post(CHAT, json=BODY), name="asks") for _ in range(3)]
        await until(lambda: waiting(served) == 2)
        refused = await http.post(CHAT, json=BODY)
        error = refused.json()["error"]
        assert (refused.status_code, error["type"], error["code"]) == (429, "requests", "rate_limit_exceeded")
        assert error["message"].startswith("m is busy: 2 requests wait already")
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        engine.go.set()
        assert {(await task).status_code for task in tasks} == {200}


async def test_a_wait_that_is_too_long_is_a_503(tmp_path: Path) -> None:
    text = config("URL", more=ONE_AT_A_TIME + "queue = { wait_s = 0.1 }")
    async with Holds() as engine, serving(text.replace("URL", engine.url), tmp_path) as served, asking(served) as http:
        first = asyncio.create_task(http.post(CHAT, json=BODY), name="asks")
        await engine.request()
        late = await http.post(CHAT, json=BODY)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "queue_timeout")
        assert 1 <= int(late.headers["retry-after"]) <= 120
        assert len(engine.requests) == 1
        engine.go.set()
        assert (await first).status_code == 200


async def test_a_client_that_leaves_leaves_the_queue_and_its_request_is_never_sent(tmp_path: Path) -> None:
    async with Holds() as engine, serving(config(engine.url, more=ONE_AT_A_TIME), tmp_path) as served:
        async with asking(served) as http:
            first = asyncio.create_task(http.post(CHAT, json=BODY), name="asks")
            await engine.request()
            gone = asyncio.create_task(http.post(CHAT, json=BODY), name="asks")
            await until(lambda: waiting(served))
            gone.cancel()
            await until(lambda: not waiting(served))
            engine.go.set()
            assert (await first).status_code == 200
            await until(lambda: not running(served))
        assert len(engine.requests) == 1


async def test_batch_waits_behind_everybody(tmp_path: Path) -> None:
    async with Holds() as engine, serving(config(engine.url, more=ONE_AT_A_TIME), tmp_path) as served:
        backend = served.gateway.serving.backends["m"]

        async def ask(name: str, priority: int) -> None:
            body = {**BODY, "user": name}
            await backend.run(Call("req_1", CHAT, "m", body, json.dumps(body).encode(), priority=priority))

        tasks = []
        for number, (name, priority) in enumerate([("first", 0), ("batch", 1), ("second", 0), ("third", 0)]):
            tasks.append(asyncio.create_task(ask(name, priority), name=name))
            await until(lambda number=number: running(served) + waiting(served) == number + 1)  # type: ignore[misc]
        engine.go.set()
        await asyncio.gather(*tasks)
        assert [request.body["user"] for request in engine.requests] == ["first", "second", "third", "batch"]


async def test_a_request_whose_client_gives_up_first_is_never_sent(tmp_path: Path) -> None:
    async with Holds() as engine, serving(config(engine.url, more=ONE_AT_A_TIME), tmp_path) as served:
        backend = served.gateway.serving.backends["m"]
        call = Call("req_1", CHAT, "m", BODY, json.dumps(BODY).encode())
        first = asyncio.create_task(backend.run(call), name="asks")
        await engine.request()
        for deadline_in_s in (-1.0, 0.3):
            late = Call("req_2", CHAT, "m", BODY, json.dumps(BODY).encode(), deadline=time.monotonic() + deadline_in_s)
            with pytest.raises(Exception, match="deadline") as caught:
                await backend.run(late)
            assert (caught.value.status, caught.value.code) == (503, "deadline_exceeded")  # type: ignore[attr-defined]
        engine.go.set()
        await first
        assert len(engine.requests) == 1


async def test_the_clients_read_time_out_ends_its_wait_with_an_answer(tmp_path: Path) -> None:
    async with Holds() as engine, serving(config(engine.url, more=ONE_AT_A_TIME), tmp_path) as served:
        async with asking(served) as http:
            first = asyncio.create_task(http.post(CHAT, json=BODY), name="asks")
            await engine.request()
            late = await http.post(CHAT, json=BODY, headers={"x-stainless-read-timeout": "0.4"})
            assert (late.status_code, late.json()["error"]["code"]) == (503, "deadline_exceeded")
            engine.go.set()
            assert (await first).status_code == 200
        assert len(engine.requests) == 1


# -- the total time-out ----------------------------------------------------------------------------------------------


async def test_an_answer_that_takes_too_long_is_a_504_and_frees_the_engine(tmp_path: Path) -> None:
    async with NeverBegins() as engine, serving(config(engine.url, timeouts="total_s = 0.2"), tmp_path) as served:
        async with asking(served) as http:
            answer = await http.post(CHAT, json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "engine_timeout")
        await asyncio.wait_for(engine.requests[0].over.wait(), 10)
        assert running(served) == 0


async def test_a_stream_that_takes_too_long_ends_in_an_error_event(tmp_path: Path) -> None:
    async with StopsMidStream() as engine, serving(config(engine.url, timeouts="total_s = 0.3"), tmp_path) as served:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0) as openai:
            with pytest.raises(APIError) as caught:
                async for _ in await openai.chat.completions.create(**BODY, stream=True):
                    pass
        assert caught.value.code == "engine_timeout"
        await asyncio.wait_for(engine.requests[0].over.wait(), 10)
        await until(lambda: not running(served))


async def test_a_stream_that_ends_in_time_is_not_touched(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine.url, timeouts="total_s = 30"), tmp_path) as served:
        async with asking(served) as http:
            answer = await http.post(CHAT, json={**BODY, "stream": True})
        assert answer.text.endswith("data: [DONE]\n\n")
        assert "error" not in answer.text


# -- affinity --------------------------------------------------------------------------------------------------------


async def test_requests_with_the_same_long_prefix_reach_the_same_engine(tmp_path: Path) -> None:
    async with Answers() as one, Answers() as two, Answers() as three:
        engines = (one, two, three)
        async with serving(config(*(e.url for e in engines)), tmp_path) as served, asking(served) as http:
            for question in range(3):
                for topic in range(40):
                    system = {"role": "system", "content": f"You know all of book {topic}. " * 40}
                    user = {"role": "user", "content": f"question {question}"}
                    await http.post(CHAT, json={**BODY, "messages": [system, user]})
        seen: dict[str, set[int]] = {}
        for number, engine in enumerate(engines):
            for request in engine.requests:
                seen.setdefault(request.body["messages"][0]["content"], set()).add(number)
        assert len(seen) == 40
        assert all(len(where) == 1 for where in seen.values())
        assert len({number for where in seen.values() for number in where}) == 3
