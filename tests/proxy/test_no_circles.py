"""What requests leave behind is freed at once: no circle of references waits for the collector, which comes seldom."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from backends.connection import Connection as EngineConnection
from backends.errors import GatewayError
from backends.transport import Response
from proxy.protocol import Connection
from proxy.record import Record
from proxy.writer import Exchange
from tests.fakes.chat_engine import Answers, Engine, StopsMidStream
from tests.in_process import Served, serving
from tests.waiting import until

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
KINDS = (Connection, Exchange, Record, Response, EngineConnection, GatewayError)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def config(engine: Engine) -> str:
    return f'[models.m]\nengine = "vllm"\nurls = ["{engine.url}"]'


def left() -> Counter[str]:
    """Objects of a request that are there now, by their class."""
    return Counter(type(found).__name__ for found in gc.get_objects() if isinstance(found, KINDS))


async def ask(served: Served, **changes: object) -> int:
    """One request over a connection of its own. Returns its status."""
    key = changes.pop("key", served.key)
    async with httpx.AsyncClient(base_url=served.url, headers={"authorization": f"Bearer {key}"}) as client:
        content = changes.pop("content", None) or json.dumps({**BODY, **changes})
        return (await client.post("/v1/chat/completions", content=content)).status_code  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 200),
        ({"stream": True}, 200),
        ({"key": "sk-wrong"}, 401),
        ({"model": "nobody"}, 404),
        ({"content": "{"}, 400),
        ({"messages": "hi"}, 400),
    ],
    ids=["plain", "streamed", "wrong key", "unknown model", "broken body", "wrong field"],
)
async def test_a_request_leaves_nothing(tmp_path: Path, changes: dict[str, object], status: int) -> None:
    async with (
        Answers() as engine,
        serving(f'[models.m]\nengine = "vllm"\nurls = ["{engine.url}"]', tmp_path) as served,
    ):
        assert await ask(served, **changes) == status  # what the first one leaves may be for all
        await asyncio.sleep(0)
        before = left()
        for _ in range(3):
            assert await ask(served, **changes) == status
        await until(lambda: left() <= before, 5)


@pytest.mark.usefixtures("no_collector")
async def test_nor_does_a_client_that_leaves(tmp_path: Path) -> None:
    async with StopsMidStream() as engine, serving(config(engine), tmp_path) as served:
        before = left()
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            body = json.dumps({**BODY, "stream": True}).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {served.key}\r\n"
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            writer.close()
            await writer.wait_closed()
        await until(lambda: left() <= before, 5)
