"""A batch while its gateway has no room on its disk, no turn at its database, and no engine: every line has one result,
none fails for it, and none is asked again whose result was committed. Kills are in test_batches_survive.py."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.test_batches_survive import CountingEngine, listening, over, submit
from tests.gateway_process import GatewayProcess, free_port
from tests.proxy.files.test_whole_gateway import small_disk
from tests.waiting import until, until_sync

CONFIG = '[launcher]\nkind = "local"\n[files]\nkeep_free_bytes = 0\n[models.m]\nengine = "vllm"\nurls = [{urls}]\n'
LINES = 6000
ANSWER_S = 0.02
DISK_LINES = 12_000
"""More, since SQLite goes on for some thousands of results in the room that its log has already."""
MEGABYTES = 64
LOCKED_S = 12.0
"""Longer than the gateway waits for its turn (`proxy.database.BUSY_TIMEOUT_S`)."""
REPLICAS = 3
KILLS = 8

pytestmark = pytest.mark.timeout(150)  # each takes 10 to 20 s on a machine that does nothing else


@asynccontextmanager
async def serving(directory: Path, *urls: str) -> AsyncIterator[tuple[GatewayProcess, httpx.AsyncClient]]:
    gateway = GatewayProcess(directory, CONFIG.format(urls=", ".join(f'"{url}"' for url in urls)))
    try:
        key = await asyncio.to_thread(gateway.key)
        await asyncio.to_thread(gateway.start)
        headers = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=60) as http:
            yield gateway, http
    finally:
        gateway.stop(signal.SIGKILL)


def committed(gateway: GatewayProcess, batch_id: str) -> set[int]:
    """Lines (from 0) that have a result in the database, whose gateway may be running."""
    connection = sqlite3.connect(f"file:{gateway.state_dir / 'slurmgate.db'}?mode=ro", uri=True)
    try:
        wanted = "SELECT line_no - 1 FROM batch_lines WHERE batch_id = ? AND state <> 0"
        return {row[0] for row in connection.execute(wanted, [batch_id])}
    finally:
        connection.close()


async def check_whole(http: httpx.AsyncClient, batch_id: str, lines: int = LINES) -> None:
    """It has ended, with one good answer for each line."""
    card = await over(http, batch_id)
    assert card["status"] == "completed", card
    assert card["request_counts"] == {"total": lines, "completed": lines, "failed": 0}
    assert card["usage"]["output_tokens"] == 64 * lines
    assert card["error_file_id"] is None
    content = await http.get(f"/v1/files/{card['output_file_id']}/content")
    outputs: list[dict[str, Any]] = [json.loads(text) for text in content.text.splitlines()]
    assert Counter(output["custom_id"] for output in outputs) == Counter(f"id-{number}" for number in range(lines))
    assert all(output["response"]["status_code"] == 200 for output in outputs)
    assert len({output["id"] for output in outputs}) == lines
    listed = (await http.get("/v1/files", params={"purpose": "batch_output"})).json()
    assert [file["id"] for file in listed["data"]] == [card["output_file_id"]], "nothing half made was left"


def in_trouble(gateway: GatewayProcess) -> int:
    """How often it began to wait for its disk or its database."""
    return len(gateway.events("batches_wait_for_storage"))


# -- disk ------------------------------------------------------------------------------------------------------------


def fill(directory: Path) -> Path:
    ballast = directory / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (65536, 4096, 512):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return ballast


async def test_a_disk_that_is_full_again_and_again_costs_no_line(tmp_path: Path) -> None:
    chance = random.Random(3)
    state = tmp_path / "state"
    with small_disk(state, MEGABYTES):
        state.chmod(0o700)
        async with listening() as (engine, url), serving(tmp_path, url) as (gateway, http):
            engine.answer_s = ANSWER_S
            batch_id = await submit(http, DISK_LINES)
            for time, killed in enumerate((False, False, True)):
                enough = DISK_LINES * (time + chance.random()) / 5
                await until(lambda enough=enough: engine.asked.total() >= enough, 60, 0.001)  # type: ignore[misc]
                ballast = fill(state)
                await until(lambda time=time: in_trouble(gateway) > time, 30, 0.05)  # type: ignore[misc]
                await until_resting(engine)
                if killed:
                    await asyncio.to_thread(gateway.stop, signal.SIGKILL)
                done = committed(gateway, batch_id)
                assert 0 < len(done) < DISK_LINES
                before = {number: engine.asked[number] for number in done}
                ballast.unlink()
                if killed:
                    await asyncio.to_thread(gateway.start)
                else:  # what was answered meanwhile was kept in memory
                    assert set(engine.asked.values()) == {1}
                after = await until(lambda done=done: committed(gateway, batch_id) - done, 30, 0.05)  # type: ignore[misc]
                assert after
                assert all(engine.asked[number] == count for number, count in before.items())
            await check_whole(http, batch_id, DISK_LINES)
    assert set(engine.asked) == set(range(DISK_LINES))


async def until_resting(engine: CountingEngine) -> None:
    """Nothing more is asked while results cannot be kept."""
    asked = -1
    while engine.asked.total() != asked:
        asked = engine.asked.total()
        await asyncio.sleep(10 * ANSWER_S)


# -- database --------------------------------------------------------------------------------------------------------


async def test_a_database_that_somebody_else_has_locked_is_waited_for(tmp_path: Path) -> None:
    async with listening() as (engine, url), serving(tmp_path, url) as (gateway, http):
        engine.answer_s = ANSWER_S
        batch_id = await submit(http, LINES)
        await until(lambda: engine.asked.total() >= LINES // 3, 60, 0.001)
        async with locked(gateway.state_dir / "slurmgate.db"):
            done = committed(gateway, batch_id)
            await asyncio.sleep(LOCKED_S)
            assert committed(gateway, batch_id) == done
            assert in_trouble(gateway) == 1
            assert set(engine.asked.values()) == {1}
        await check_whole(http, batch_id)
        assert len(done) > LINES // 10
        assert all(engine.asked[number] == 1 for number in done)
    assert set(engine.asked) == set(range(LINES))


HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=30)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


@asynccontextmanager
async def locked(database: Path) -> AsyncIterator[None]:
    """A process has begun to write, and does not end."""
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLD, str(database), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        await holder.stdout.readline()
        yield
    finally:
        holder.stdin.close()
        await holder.wait()


# -- engines ---------------------------------------------------------------------------------------------------------


class Replica:
    """A mock engine on a port of its own, killed and started again there."""

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.acceptance.logging_engine", str(self.port), str(self.log)]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def replicas(directory: Path) -> Iterator[list[Replica]]:
    found = [Replica(directory / f"asked-{number}") for number in range(REPLICAS)]
    try:
        for replica in found:
            replica.start()
        until_sync(lambda: all(replica.log.exists() for replica in found))
        yield found
    finally:
        for replica in found:
            replica.kill()


def asked(engines: list[Replica]) -> Counter[int]:
    return Counter(int(number) for replica in engines for number in replica.log.read_bytes().split())


async def test_replicas_that_are_killed_under_a_batch_cost_no_line_and_no_attempt(tmp_path: Path) -> None:
    chance = random.Random(5)
    with replicas(tmp_path) as engines:
        urls = [f"http://127.0.0.1:{replica.port}" for replica in engines]
        async with serving(tmp_path, *urls) as (gateway, http):
            batch_id = await submit(http, LINES)
            seen: list[tuple[set[int], Counter[int]]] = []
            for kill in range(KILLS):
                enough = LINES * (kill + chance.random()) / (KILLS + 1)
                await until(lambda enough=enough: asked(engines).total() >= enough, 60, 0.005)  # type: ignore[misc]
                victims = engines if kill == KILLS // 2 else [chance.choice(engines)]
                for victim in victims:
                    victim.kill()
                done = committed(gateway, batch_id)
                seen.append((done, asked(engines)))
                await asyncio.sleep(chance.uniform(0.05, 0.3))
                for victim in victims:
                    victim.start()
            await check_whole(http, batch_id)
        total = asked(engines)
        assert 0 < len(seen[0][0]) < len(seen[-1][0]) < LINES, "the kills came while lines ran"
        for done, before in seen:
            assert all(total[number] == before[number] for number in done)
        assert set(total) == set(range(LINES))
        assert total.total() > LINES, "lines were under way where an engine was killed"
