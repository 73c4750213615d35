"""A gateway that is killed again and again in the middle of a batch: every line has one result, and none is asked again
whose result was committed."""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench import mock_engine
from tests.gateway_process import GatewayProcess
from tests.waiting import until

CONFIG = '[launcher]\nkind = "local"\n[models.m]\nengine = "vllm"\nurls = ["{url}"]\n'
LINES = 20_000
KILLS = 20
WHILE_VALIDATED = 3
_NUMBER = re.compile(rb'"content":\s*"line (\d+)"')


class CountingEngine(mock_engine.Engine):
    """The fast mock engine. `asked` counts each line since `forget`, `ever` since the beginning."""

    def __init__(self) -> None:
        super().__init__(1, 0.0)
        self.asked: Counter[int] = Counter()
        self.ever: Counter[int] = Counter()

    def __call__(self) -> mock_engine.Connection:
        return _Connection(self, self)

    def forget(self) -> None:
        self.ever += self.asked
        self.asked = Counter()


class _Connection(mock_engine.Connection):
    def __init__(self, engine: mock_engine.Engine, counts: CountingEngine) -> None:
        super().__init__(engine)
        self._counts = counts

    def on_message_complete(self) -> None:
        if found := _NUMBER.search(self._body):
            self._counts.asked[int(found[1])] += 1
        super().on_message_complete()


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[CountingEngine, str]]:
    engine = CountingEngine()
    server = await asyncio.get_running_loop().create_server(engine, "127.0.0.1", 0)
    try:
        yield engine, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.fixture
def gateways() -> Iterator[list[GatewayProcess]]:
    """Whatever a test has started is ended with it."""
    started: list[GatewayProcess] = []
    yield started
    for gateway in started:
        gateway.stop(signal.SIGKILL)


def request(number: int) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": f"line {number}"}], "max_tokens": 8}
    return {"custom_id": f"id-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


async def submit(http: httpx.AsyncClient, count: int) -> str:
    data = "".join(json.dumps(request(number)) + "\n" for number in range(count)).encode()
    sent = await http.post("/v1/files", files={"file": ("in.jsonl", data)}, data={"purpose": "batch"})
    asked = {"input_file_id": sent.json()["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    made = await http.post("/v1/batches", json=asked)
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


def committed(gateway: GatewayProcess, batch_id: str) -> set[int]:
    """Lines (from 0) that have a result in the database of a gateway that is dead."""
    connection = sqlite3.connect(gateway.state_dir / "slurmgate.db")
    try:
        assert connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
        found = connection.execute("SELECT line_no - 1 FROM batch_lines WHERE batch_id = ? AND state <> 0", [batch_id])
        lines = {row[0] for row in found}
        row = connection.execute("SELECT completed + failed FROM batches WHERE id = ?", [batch_id]).fetchone()
        assert row == (len(lines),), "counts are those of the rows, whenever it is killed"
        return lines
    finally:
        connection.close()


@pytest.mark.timeout(300)  # some 45 s, but for machines that do other things besides
async def test_a_batch_outlives_twenty_kills_without_a_line_twice(
    gateways: list[GatewayProcess], tmp_path: Path
) -> None:
    chance = random.Random(7)
    async with listening() as (engine, url):
        gateway = GatewayProcess(tmp_path, CONFIG.format(url=url))
        gateways.append(gateway)
        key = await asyncio.to_thread(gateway.key)
        await asyncio.to_thread(gateway.start)
        async with httpx.AsyncClient(
            base_url=gateway.url, headers={"authorization": f"Bearer {key}"}, timeout=30
        ) as http:
            batch_id = await submit(http, LINES)
        may_run_again = 0
        done: set[int] = set()
        for kill in range(KILLS):
            # the first ones while the batch is validated, the others while lines run, or are about to
            if kill >= WHILE_VALIDATED:
                lines = chance.randrange(1 + LINES // KILLS)
                await until(lambda lines=lines: engine.asked.total() >= lines, 60, 0.001)  # type: ignore[misc]
            await asyncio.sleep(chance.uniform(0.0, 0.1))
            await asyncio.to_thread(gateway.stop, signal.SIGKILL)
            done = committed(gateway, batch_id)
            may_run_again += len(engine.asked.keys() - done)
            engine.forget()
            before = {number: engine.ever[number] for number in done}
            await asyncio.to_thread(gateway.start)
            again = [number for number, count in before.items() if engine.ever[number] + engine.asked[number] != count]
            assert not again
        survived = len(done)
        assert LINES // 4 < survived < LINES, "the kills came while lines ran"
        async with httpx.AsyncClient(
            base_url=gateway.url, headers={"authorization": f"Bearer {key}"}, timeout=30
        ) as http:
            card = await over(http, batch_id)
            assert card["status"] == "completed", card
            assert card["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
            assert card["usage"]["output_tokens"] == 64 * LINES
            content = await http.get(f"/v1/files/{card['output_file_id']}/content")
            listed = await http.get("/v1/files", params={"purpose": "batch_output"})
    outputs = [json.loads(text) for text in content.text.splitlines()]
    assert Counter(output["custom_id"] for output in outputs) == Counter(f"id-{number}" for number in range(LINES))
    assert all(output["response"]["status_code"] == 200 for output in outputs)
    assert len({output["id"] for output in outputs}) == LINES
    assert [file["id"] for file in listed.json()["data"]] == [card["output_file_id"]]
    engine.forget()
    assert set(engine.ever) == set(range(LINES))
    asked_again = sum(engine.ever.values()) - LINES
    assert asked_again <= may_run_again


async def over(http: httpx.AsyncClient, batch_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 90
    while True:
        card: dict[str, Any] = (await http.get(f"/v1/batches/{batch_id}")).json()
        if card["status"] in ("completed", "failed", "expired", "cancelled"):
            return card
        assert time.monotonic() < deadline, card
        await asyncio.sleep(0.1)
