"""A client that leaves frees the engine, whenever it leaves: seen from the engine's side of the connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from backends.base import Call
from backends.errors import GatewayError
from tests.fakes.chat_engine import Answers, Engine, NeverBegins, StopsMidStream
from tests.in_process import Served, serving
from tests.waiting import until

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def config(engine: Engine) -> str:
    return f'[models.m]\nengine = "vllm"\nurls = ["{engine.url}"]'


@asynccontextmanager
async def asking(served: Served, *, stream: bool) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client that has sent its request; leaving the block hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    body = json.dumps({**BODY, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {served.key}\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


async def idle(served: Served) -> None:
    """Until the gateway has nothing in flight."""
    replicas = [
        (backend, endpoint.replica_id)
        for name, backend in served.gateway.serving.backends.items()
        for endpoint in served.gateway.control.sources[name].endpoints(name)
    ]
    await until(lambda: not any(backend.in_flight(replica_id) for backend, replica_id in replicas))


@pytest.mark.parametrize("stream", [False, True])
async def test_before_the_first_byte(tmp_path: Path, stream: bool) -> None:
    async with NeverBegins() as engine, serving(config(engine), tmp_path) as served:
        async with asking(served, stream=stream):
            request = await engine.request()
            assert not request.over.is_set()
        await asyncio.wait_for(request.over.wait(), 10)
        await idle(served)
    assert '"error":"client_disconnected"' in served.log_text()


async def test_mid_stream(tmp_path: Path) -> None:
    async with StopsMidStream() as engine, serving(config(engine), tmp_path) as served:
        async with asking(served, stream=True) as (reader, _):
            await reader.readuntil(b"Slurm")
            request = await engine.request()
            assert not request.over.is_set()
        await asyncio.wait_for(request.over.wait(), 10)
        await idle(served)
    assert '"error":"client_disconnected"' in served.log_text()


async def test_while_waiting_for_an_engine(tmp_path: Path) -> None:
    """There is no engine yet, so none is to be freed: the request must stop waiting, and never be sent."""
    local = f'[launcher]\nkind = "local"\nservice = "t"\n[models.m]\nengine = "llamacpp"\nsource = "{tmp_path}/none"\n'
    never = 'command = ["/bin/sleep", "1000"]\n'
    async with serving(local + never, tmp_path) as served:
        async with asking(served, stream=False):
            await until(lambda: served.gateway.control.launcher.waiting("m"))
        await until(lambda: not served.gateway.control.launcher.waiting("m"))
    assert '"error":"client_disconnected"' in served.log_text()


async def test_a_slow_reader_holds_the_engine_back_and_its_leaving_frees_it(tmp_path: Path) -> None:
    async with EndlessStream() as engine, serving(config(engine), tmp_path) as served:
        async with asking(served, stream=True) as (reader, _):
            await reader.readuntil(b"data: ")
            request = await engine.request()
            async with asyncio.timeout(20):
                await engine.held_back.wait()  # its writes no longer go through: nobody buffers without end
        await asyncio.wait_for(request.over.wait(), 10)


class EndlessStream(Engine):
    """Writes as fast as it is read; `held_back` is set when it is not read for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.held_back = asyncio.Event()

    async def answer(self, request: object, write: object) -> bool:
        from tests.fakes.chat_engine import STREAM_HEAD, chunk, delta, event

        assert callable(write)
        await write(STREAM_HEAD)
        piece = chunk(event(delta("m", "x" * 10_000)))
        while True:
            try:
                await asyncio.wait_for(write(piece), 0.5)
            except TimeoutError:
                self.held_back.set()
                return True


async def test_a_finished_answer_leaves_the_connection_open_for_the_next(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine), tmp_path) as served:
        for stream in (False, True, False):
            async with asking(served, stream=stream) as (reader, _):
                await reader.readuntil(b"\r\n\r\n")
                await reader.readuntil(b"[DONE]" if stream else b"}}")
            await idle(served)
        assert engine.connections == 1


async def test_cancelling_a_call_frees_its_replica(tmp_path: Path) -> None:
    """What batches and tribunal will do: cancel the task that asks."""
    async with NeverBegins() as engine, serving(config(engine), tmp_path) as served:
        backend = served.gateway.serving.backends["m"]
        call = Call("req_1", "/v1/chat/completions", "m", BODY, json.dumps(BODY).encode())
        task = asyncio.create_task(backend.run(call), name="asking")
        request = await engine.request()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(request.over.wait(), 10)
        await idle(served)


def test_an_error_without_keys_has_them_all() -> None:
    assert GatewayError("x").body()["error"].keys() == {"message", "type", "param", "code"}
