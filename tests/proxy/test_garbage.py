"""What a request leaves is freed at once: circles would wait for the collector, which comes seldom, and then stops
everything. Meanwhile they are memory: 8 MB after 60,000 requests, once."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from backends.connection import Connection as EngineConnection
from backends.errors import GatewayError
from proxy.protocol import Connection
from tests.fakes.chat_engine import Answers, Engine, StopsMidStream
from tests.in_process import Served, serving
from tests.waiting import until

OURS = (
    "Record",
    "Call",
    "Reply",
    "Exchange",
    "EventReply",
    "EngineStream",
    "EventFilter",
    "Answer",
)
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def config(engine: Engine) -> str:
    return f'[models.m]\nengine = "vllm"\nurls = ["{engine.url}"]'


@contextmanager
def collecting() -> Iterator[Counter[str]]:
    """When the block has ended: what the collector found in circles, by its class. It does not run meanwhile."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        for thing in gc.garbage:
            # ours by their class: httpx, in the same process, has connections, too
            ours = isinstance(thing, Connection | EngineConnection | GatewayError)
            found["connection or error" if ours else type(thing).__name__] += 1
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def circles(found: Counter[str]) -> dict[str, int]:
    """Of kinds that are ours; one or two may have begun before the block."""
    return {name: found[name] for name in (*OURS, "connection or error") if found[name] > 2}


async def test_requests_leave_nothing_to_collect(tmp_path: Path) -> None:
    async with (
        Answers() as engine,
        serving(config(engine), tmp_path) as served,
        httpx.AsyncClient(headers=served.headers) as http,
    ):

        async def ask(number: int) -> None:
            for n in range(number):
                asked = {**BODY, "stream": n % 2 == 1}
                assert (await http.post(served.url + "/v1/chat/completions", json=asked)).status_code == 200

        await ask(10)
        with collecting() as found:
            await ask(50)
    assert circles(found) == {}


@pytest.mark.parametrize(
    ("key", "content", "status"),
    [
        (None, BODY, 200),
        (None, {**BODY, "stream": True}, 200),
        ("sk-wrong", BODY, 401),
        (None, {**BODY, "model": "nobody"}, 404),
        (None, {**BODY, "messages": "hi"}, 400),
        (None, "{", 400),
    ],
    ids=["plain", "streamed", "wrong key", "unknown model", "wrong field", "no JSON"],
)
async def test_nor_do_connections_and_errors(tmp_path: Path, key: str | None, content: object, status: int) -> None:
    body = content if isinstance(content, str) else json.dumps(content)

    async def ask(served: Served) -> None:
        headers = {"authorization": f"Bearer {key or served.key}"}
        async with httpx.AsyncClient(headers=headers) as http:
            assert (await http.post(served.url + "/v1/chat/completions", content=body)).status_code == status

    async with Answers() as engine:
        assert await _circles_of(ask, engine, tmp_path) == {}


async def test_nor_does_a_client_that_leaves(tmp_path: Path) -> None:
    async def leave(served: Served) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        body = json.dumps({**BODY, "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {served.key}\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        writer.close()
        await writer.wait_closed()

    async with StopsMidStream() as engine:
        assert await _circles_of(leave, engine, tmp_path) == {}


async def _circles_of(ask: Callable[[Served], Awaitable[None]], engine: Engine, directory: Path) -> dict[str, int]:
    """... of ten requests over as many connections. What has not ended yet is no garbage."""
    async with serving(config(engine), directory) as served:
        await ask(served)
        with collecting() as found:
            for _ in range(10):
                await ask(served)
            await until(lambda: served.log_text().count('"event":"request"') == 11)
    return circles(found)
