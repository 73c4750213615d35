"""The configuration is read again while the gateway runs: what changes, what waits, and what is not disturbed."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from proxy.config import parse
from proxy.reload import changes
from tests.fakes.chat_engine import Answers, PausesMidStream, StopsMidStream
from tests.gateway_process import GatewayProcess
from tests.waiting import until

ONE = '[models.a]\nengine = "vllm"\nurls = ["http://127.0.0.1:1"]\n'


def test_models_are_added_removed_and_changed() -> None:
    new = '[models.a]\nengine = "vllm"\nurls = ["http://127.0.0.1:2"]\n[models.b]\nengine = "tgi"\nurls = ["http://h:3"]\n'
    found = changes(parse(ONE + '[models.c]\nengine = "vllm"\nurls = ["http://h:4"]\n'), parse(new))
    assert (found.added, found.removed, found.changed) == (("b",), ("c",), ("a",))
    assert found.sentence() == "added b; removed c; changed a"


def test_the_same_configuration_changes_nothing() -> None:
    assert not changes(parse(ONE), parse(ONE))
    assert changes(parse(ONE), parse(ONE)).sentence() == "nothing changed"


def test_limits_count_as_a_change_of_their_own() -> None:
    found = changes(parse(ONE), parse("[limits]\nrequests_per_minute = 5\n" + ONE))
    assert found.limits
    assert found.sentence() == "changed limits"


def test_what_is_read_at_the_start_only_is_named() -> None:
    found = changes(parse(ONE), parse('[server]\nport = 1\nmax_body_mb = 3\n[launcher]\nkind = "local"\n' + ONE))
    assert found.restart == ("server.port", "server.max_body_mb", "launcher.kind")
    assert "takes effect at the next start: server.port, server.max_body_mb, launcher.kind" in found.sentence()


# -- a gateway that runs ---------------------------------------------------------------------------------------------


def model(name: str, port: int, more: str = "") -> str:
    return f'[models.{name}]\nengine = "vllm"\nurls = ["http://127.0.0.1:{port}"]\n{more}\n'


@asynccontextmanager
async def running(directory: Path, config: str) -> AsyncIterator[tuple[GatewayProcess, httpx.AsyncClient]]:
    process = GatewayProcess(directory, config)
    try:
        await asyncio.to_thread(process.start)
        async with httpx.AsyncClient(base_url=process.url, timeout=20) as client:
            yield process, client
    finally:
        await asyncio.to_thread(process.stop)


async def models(client: httpx.AsyncClient) -> list[str]:
    return [card["id"] for card in (await client.get("/v1/models")).json()["data"]]


def question(name: str, *, stream: bool = False) -> dict[str, object]:
    return {"model": name, "stream": stream, "messages": [{"role": "user", "content": "What is Slurm?"}]}


async def test_a_new_model_is_served_after_slurmgate_reload(tmp_path: Path) -> None:
    async with Answers() as engine, running(tmp_path, model("a", engine.port)) as (process, client):
        (tmp_path / "config.toml").write_text(model("a", engine.port) + model("b", engine.port))
        done = await asyncio.to_thread(process.run, "reload")
        assert done.stdout == "added b\n"
        assert await models(client) == ["a", "b"]
        assert (await client.post("/v1/chat/completions", json=question("b"))).status_code == 200


async def test_sighup_reloads_as_well_and_a_removed_model_is_unknown(tmp_path: Path) -> None:
    config = model("a", 9) + model("b", 9)
    async with running(tmp_path, config) as (process, client):
        (tmp_path / "config.toml").write_text(model("b", 9))
        assert process.process is not None
        process.process.send_signal(signal.SIGHUP)
        await until(lambda: process.events("configuration_reloaded"))
        assert await models(client) == ["b"]
        answer = await client.post("/v1/chat/completions", json=question("a"))
        assert answer.json()["error"]["code"] == "model_not_found"


async def test_a_stream_under_way_is_not_disturbed_when_its_model_changes_and_goes(tmp_path: Path) -> None:
    async with (
        PausesMidStream() as slow,
        Answers() as quick,
        running(tmp_path, model("a", slow.port)) as (
            process,
            client,
        ),
    ):
        async with client.stream("POST", "/v1/chat/completions", json=question("a", stream=True)) as stream:
            lines = stream.aiter_lines()
            first = await anext(lines)
            (tmp_path / "config.toml").write_text(model("a", quick.port))
            await asyncio.to_thread(process.run, "reload")
            assert (await client.post("/v1/chat/completions", json=question("a"))).status_code == 200
            assert len(quick.requests) == 1
            assert not slow.requests[0].over.is_set()
            slow.go_on.set()
            rest = [line async for line in lines if line]
        assert json.loads(first.removeprefix("data: "))["choices"]
        assert rest[-1] == "data: [DONE]"


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ('[models.a]\nengine = "nonsense"\nurls = ["http://h:1"]\n', "models.a.engine"),
        ("[models", "is not TOML"),
        ('[models.a]\nhosted = "openai/x"\napi_key_env = "NO_SUCH_VARIABLE"\n', "models.a.api_key_env"),
    ],
)
async def test_a_bad_file_changes_nothing_and_says_why(tmp_path: Path, bad: str, told: str) -> None:
    async with running(tmp_path, model("a", 9)) as (process, client):
        (tmp_path / "config.toml").write_text(bad)
        done = await asyncio.to_thread(process.run, "reload", check=False)
        assert done.returncode == 1
        assert told in done.stderr
        assert process.process is not None
        process.process.send_signal(signal.SIGHUP)
        await until(lambda: process.events("configuration_refused"))
        assert told in json.dumps(process.events("configuration_refused")[0]["mistakes"])
        assert await models(client) == ["a"]


def test_without_a_gateway_reload_says_so(tmp_path: Path) -> None:
    done = GatewayProcess(tmp_path, model("a", 9)).run("reload", check=False)
    assert done.returncode == 1
    assert "no gateway runs on" in done.stderr


async def test_the_operators_socket_is_private_even_under_a_deep_path(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    async with running(deep, model("a", 9)) as (process, _):
        assert (process.state_dir / "control.sock").stat().st_mode & 0o777 == 0o600
        assert (await asyncio.to_thread(process.run, "reload")).stdout == "nothing changed\n"


# -- stopping --------------------------------------------------------------------------------------------------------


async def test_after_sigterm_streams_finish_nobody_new_is_let_in_and_the_status_is_zero(tmp_path: Path) -> None:
    async with PausesMidStream() as engine, running(tmp_path, model("a", engine.port)) as (process, client):
        async with client.stream("POST", "/v1/chat/completions", json=question("a", stream=True)) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            stopping = asyncio.create_task(asyncio.to_thread(process.stop), name="stopping")
            await until(lambda: refused(process.port))
            engine.go_on.set()
            assert [line async for line in lines if line][-1] == "data: [DONE]"
        assert await stopping == 0
        request = next(line for line in process.events("request") if line["endpoint"] == "/v1/chat/completions")
        assert (request["status"], request.get("error")) == (200, None)


async def test_streams_that_outlast_the_grace_are_ended_and_told_why(tmp_path: Path) -> None:
    config = "[server]\nshutdown_grace_s = 1\n"
    async with StopsMidStream() as engine, running(tmp_path, config + model("a", engine.port)) as (process, client):
        async with client.stream("POST", "/v1/chat/completions", json=question("a", stream=True)) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            assert await asyncio.to_thread(process.stop) == 0
            said = []
            with pytest.raises(httpx.RemoteProtocolError):  # the body has no end, so nobody takes it for whole
                async for line in lines:
                    said.append(line)  # noqa: PERF401  # kept, though it breaks off
        assert "The gateway is stopping." in next(line for line in said if '"error"' in line)
        assert process.events("request")[-1]["error"]


def refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
