"""Main's side of real worker processes, in the test's own loop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from backends.fixed import FixedEndpoint, FixedEndpoints
from backends.model_places import ModelPlaces
from proxy.config import Config, parse
from proxy.database import open_database
from proxy.limits.local import Limits
from proxy.metrics import Metrics, State
from proxy.metrics.families import REQUESTS
from proxy.reload import Changes
from proxy.state import StateDir
from proxy.workers import supervisor as module
from proxy.workers.desk import Deciders
from proxy.workers.messages import ModelNow, Models, Start
from proxy.workers.sockets import listen
from proxy.workers.supervisor import Supervisor
from tests.fakes.chat_engine import Answers
from tests.waiting import until

from .processes import BODY, CHAT, alive, kill


class Nobody:
    """Of a control nothing but limits that nobody has."""

    limits = Limits()

    async def report(self, replica_id: str, body: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError

    def tell_batches(self, work: Any, process: object = None) -> None:
        """They have none."""

    async def operate(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError

    async def reload(self) -> Changes:
        raise AssertionError


class Main:
    def __init__(self, directory: Path, engine: Answers, log: Any, workers: int = 2) -> None:
        self.state = StateDir(directory / "state")
        open_database(self.state.database).dispose()
        self.config = self.with_alias("a")
        endpoints = FixedEndpoints([FixedEndpoint("r1", engine.host, engine.port)])
        self.places = {"m": ModelPlaces("m", endpoints)}
        self.models: Models = {"m": ModelNow(1, "ready", None)}
        self.listeners = listen("127.0.0.1", 0, workers)
        self.url = f"http://127.0.0.1:{self.listeners[0].getsockname()[1]}"
        self.supervisor = Supervisor(
            self.listeners,
            None,
            start=lambda: Start(self.config, self.state.path, True, self.models),
            deciders=lambda workers: Deciders(Nobody(), self.places.get, workers.metrics),
            own_metrics=Metrics().state,
            models=lambda: self.models,
            grace_s=1.0,
            log=log,
        )

    @staticmethod
    def with_alias(alias: str) -> Config:
        return parse(
            f"""
            [server]
            shutdown_grace_s = 1.0
            [models.m]
            engine = "vllm"
            urls = ["http://127.0.0.1:1"]
            aliases = ["{alias}"]
            """
        )

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self.supervisor.workers]

    async def ask(self, count: int, model: str = "m") -> set[int]:
        """Each over a connection of its own."""
        statuses = set()
        for _ in range(count):
            async with httpx.AsyncClient(base_url=self.url, trust_env=False) as client:
                statuses.add((await client.post(CHAT, json={**BODY, "model": model})).status_code)
        return statuses

    async def get(self, path: str, count: int = 16) -> set[str]:
        texts = set()
        for _ in range(count):
            async with httpx.AsyncClient(base_url=self.url, trust_env=False) as client:
                texts.add((await client.get(path)).text)
        return texts


@asynccontextmanager
async def supervised(directory: Path) -> AsyncIterator[Main]:
    async with Answers() as engine:
        main = Main(directory, engine, structlog.get_logger())
        serving = asyncio.create_task(main.supervisor.serve(), name="workers")
        try:
            await main.supervisor.all_ready()
            yield main
        finally:
            main.supervisor.end()
            await serving


def requests(state: State) -> float:
    return sum(number for _, number in state[REQUESTS.name] if not isinstance(number, list))


async def test_a_worker_that_hangs_is_ended_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PING_EVERY_S", 0.05)
    monkeypatch.setattr(module, "PONG_S", 0.5)
    async with supervised(tmp_path) as main:
        hanging, other = main.pids
        kill(hanging, signal.SIGSTOP)
        await until(lambda: main.pids[0] not in (0, hanging))
        await main.supervisor.all_ready()
        assert not alive(hanging)
        assert main.pids[1] == other
        assert await main.ask(16) == {200}


async def test_metrics_are_those_of_all_processes_and_outlive_them(tmp_path: Path) -> None:
    async with supervised(tmp_path) as main:
        assert await main.ask(30) == {200}
        assert requests(await main.supervisor.metrics()) == 30
        for pid in main.pids:
            kill(pid)
        await until(lambda: not any(worker.ready.is_set() for worker in main.supervisor.workers))
        assert requests(await main.supervisor.metrics()) == 30
        await main.supervisor.all_ready()
        assert await main.ask(10) == {200}
        assert requests(await main.supervisor.metrics()) == 40


async def test_all_workers_go_by_a_new_configuration_before_it_is_said_so(tmp_path: Path) -> None:
    async with supervised(tmp_path) as main:
        main.config = main.with_alias("b")
        await main.supervisor.configure(main.config)
        assert await main.ask(16, "b") == {200}
        assert await main.ask(16, "a") == {404}


async def test_a_worker_that_cannot_take_a_new_configuration_is_replaced_by_one_that_starts_with_it(
    tmp_path: Path,
) -> None:
    async with supervised(tmp_path) as main:
        before = main.pids
        main.config = main.with_alias("b")
        given = main.config.model_copy(update={"models": None})  # no worker can do anything with it
        await main.supervisor.configure(given)
        await until(lambda: set(main.pids).isdisjoint({*before, 0}))
        await main.supervisor.all_ready()
        assert await main.ask(16, "b") == {200}


async def test_news_of_a_model_reach_every_worker(tmp_path: Path) -> None:
    async with supervised(tmp_path) as main:
        assert all('"state":"ready"' in shown for shown in await main.get("/v1/models"))
        main.models = {"m": ModelNow(0, "starting", 8192)}

        async def shown() -> set[str]:
            return await main.get("/v1/models")

        for _ in range(100):
            now = await shown()
            if all('"state":"starting"' in text and '"max_model_len":8192' in text for text in now):
                break
        else:
            raise AssertionError(now)


def words_of(pid: int, file: str) -> list[bytes]:
    return Path(f"/proc/{pid}/{file}").read_bytes().rstrip(b"\0").split(b"\0")


async def test_a_workers_command_line_names_nothing_but_files_and_its_environment_is_mains(tmp_path: Path) -> None:
    async with supervised(tmp_path) as main:
        for pid in main.pids:
            line = words_of(pid, "cmdline")
            rest = line[line.index(b"proxy.workers") + 1 :]
            assert all(word in (b"--link", b"--listen") or word.isdigit() for word in rest)
            inherited = {word.decode().partition("=")[0] for word in words_of(pid, "environ")}
            assert inherited <= {*os.environ, "LINES", "COLUMNS"}  # which C libraries set behind os.environ's back


async def test_a_worker_has_none_of_mains_files_but_those_it_is_given(tmp_path: Path) -> None:
    """A socket of another worker, or main's end of a link, would live on in it when they die."""
    async with supervised(tmp_path) as main:
        mine = {os.stat(f"/proc/self/fd/{listener.fileno()}").st_ino for listener in main.listeners}
        for number, pid in enumerate(main.pids):
            theirs = [os.stat(f"/proc/{pid}/fd/{file}").st_ino for file in os.listdir(f"/proc/{pid}/fd")]
            shared = [inode for inode in theirs if inode in mine]
            assert shared == [os.fstat(main.listeners[number].fileno()).st_ino]
