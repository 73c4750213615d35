"""A gateway that is killed: what it had counted is in the database, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from proxy.database import open_database
from proxy.usage_report import Sum, report
from tests.fakes.chat_engine import USAGE, Answers
from tests.gateway_process import GatewayProcess
from tests.waiting import until, until_sync

CONFIG = '[database]\nurl_env = "THE_DATABASE"\n[models.m]\nengine = "vllm"\nurls = ["{url}"]\n'
QUESTION = {"model": "m", "messages": [{"role": "user", "content": "Hello!"}]}


class Gateway(GatewayProcess):
    """On a database of either kind."""

    def __init__(self, directory: Path, engine_url: str, database_url: str) -> None:
        self.database_url = database_url
        environment = {**os.environ, "THE_DATABASE": database_url}
        super().__init__(directory, CONFIG.format(url=engine_url), environment)

    def used(self) -> Sum | None:
        """Everything that the database has counted; None for nothing yet."""
        database = open_database(self.database_url)
        try:
            return next(iter(report(database, by=[])), None)
        finally:
            database.dispose()

    def requests(self) -> int:
        used = self.used()
        return used.requests if used is not None else 0

    async def ask(self, http: httpx.AsyncClient) -> None:
        answer = await http.post(self.url + "/v1/chat/completions", json=QUESTION)
        assert answer.status_code == 200, answer.text


@pytest.fixture
def gateways(tmp_path: Path, database_url: str) -> Iterator[list[Gateway]]:
    """Whatever a test has started is ended with it."""
    started: list[Gateway] = []
    yield started
    for gateway in started:
        gateway.stop(signal.SIGKILL)


async def started(gateways: list[Gateway], directory: Path, engine: Answers, url: str) -> tuple[Gateway, str]:
    gateway = Gateway(directory, f"http://{engine.host}:{engine.port}", url)
    gateways.append(gateway)
    key = await asyncio.to_thread(gateway.key)
    await asyncio.to_thread(gateway.start)
    return gateway, key


async def test_what_was_counted_outlives_a_kill(gateways: list[Gateway], tmp_path: Path, database_url: str) -> None:
    async with Answers() as engine:
        gateway, key = await started(gateways, tmp_path, engine, database_url)
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}) as http:
            for _ in range(20):
                await gateway.ask(http)
        await until(lambda: gateway.requests() == 20)
        await asyncio.to_thread(gateway.stop, signal.SIGKILL)
    used = gateway.used()
    assert used is not None
    assert (used.requests, used.failed) == (20, 0)
    assert used.prompt_tokens == 20 * USAGE["prompt_tokens"]
    assert used.completion_tokens == 20 * USAGE["completion_tokens"]

    shown = gateway.run("usage", "--by", "key,model", "--format", "csv").stdout
    (row,) = csv.DictReader(shown.splitlines())
    assert (row["key_name"], row["model"], row["requests"]) == ("tests", "m", "20")
    assert json.loads(gateway.run("usage", "--by", "model", "--format", "json").stdout)[0]["total_tokens"] == 200
    assert "200" in gateway.run("usage").stdout


async def test_a_kill_amid_traffic_leaves_a_sound_database_to_go_on_with(
    gateways: list[Gateway], tmp_path: Path, database_url: str
) -> None:
    sent = 0
    async with Answers() as engine:
        gateway, key = await started(gateways, tmp_path, engine, database_url)

        async def keep_asking() -> None:
            nonlocal sent
            async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}) as http:
                try:
                    while True:
                        sent += 1
                        await gateway.ask(http)
                except httpx.TransportError:
                    return

        asking = [asyncio.create_task(keep_asking(), name=f"user {i}") for i in range(4)]
        seen = await until(lambda: n if (n := gateway.requests()) > 100 else 0)
        await asyncio.to_thread(gateway.stop, signal.SIGKILL)
        await asyncio.gather(*asking)
        kept = gateway.requests()
        assert seen <= kept <= sent
        used = gateway.used()
        assert used is not None
        assert used.prompt_tokens == kept * USAGE["prompt_tokens"], "a row is written whole or not at all"
        if database_url.startswith("sqlite"):
            database = open_database(database_url)
            with database.connect() as connection:
                assert connection.execute(text("PRAGMA integrity_check")).scalars().all() == ["ok"]
            database.dispose()

        await asyncio.to_thread(gateway.start)
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}) as http:
            await gateway.ask(http)
        await until(lambda: gateway.requests() == kept + 1)


async def test_a_key_that_is_revoked_stops_working_while_the_gateway_runs(
    gateways: list[Gateway], tmp_path: Path, database_url: str
) -> None:
    async with Answers() as engine:
        gateway, key = await started(gateways, tmp_path, engine, database_url)

        def status() -> int:
            return httpx.get(gateway.url + "/v1/models", headers={"authorization": f"Bearer {key}"}).status_code

        assert await asyncio.to_thread(status) == 200
        await asyncio.to_thread(gateway.run, "keys", "disable", "tests")
        await asyncio.to_thread(until_sync, lambda: status() == 401)
        await asyncio.to_thread(gateway.run, "keys", "enable", "tests")
        await asyncio.to_thread(until_sync, lambda: status() == 200)
        await asyncio.to_thread(gateway.run, "keys", "revoke", "tests")
        await asyncio.to_thread(until_sync, lambda: status() == 401)
