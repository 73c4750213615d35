"""A gateway of several processes, and an engine that counts what comes to it at once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from proxy.database import open_database
from proxy.keys import KeyStore
from proxy.state import StateDir
from proxy.terms import NewKey
from tests.fakes.chat_engine import STREAM_HEAD, Answers, Request, Write, chunk, delta, event
from tests.gateway_process import free_port
from tests.waiting import until

CHAT, MODELS = "/v1/chat/completions", "/v1/models"
BODY = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


class AnswersSlowlyAndCounts(Answers):
    """`most` is the largest number of requests that it has had at once."""

    def __init__(self, answer_s: float = 0.01) -> None:
        super().__init__()
        self.answer_s = answer_s
        self.now = self.most = 0

    async def answer(self, request: Request, write: Write) -> bool:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.answer_s)
            return await super().answer(request, write)
        finally:
            self.now -= 1


class StreamsUntilTold(Answers):
    """One word, then nothing until `go_on` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    async def answer(self, request: Request, write: Write) -> bool:
        await write(STREAM_HEAD + chunk(event(delta("m", "Slurm"))))
        await self.go_on.wait()
        await write(chunk(event(delta("m", " is up", "stop"))) + chunk(event(b"[DONE]")) + b"0\r\n\r\n")
        return True


class Many:
    """`async with Many(directory, config) as gateway: ...` serves when it begins, and is ended by SIGTERM."""

    def __init__(self, directory: Path, config: str, *, command: Sequence[str] = ()) -> None:
        self.directory = directory
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = directory / "gateway.log"
        self.state = StateDir(directory / "state")
        self._out = directory / "gateway.out"
        self._config = directory / "config.toml"
        self._config.write_text(config)
        self._command = command
        self.process: subprocess.Popen[bytes]

    def write_config(self, config: str) -> None:
        self._config.write_text(config)

    def begin(self) -> None:
        """Without waiting for the workers. It is the leader of a process group, as in a terminal."""
        program = [sys.executable, "-m", "tests.proxy.workers.program"]
        self._out.write_bytes(b"")
        with self._out.open("ab") as out, self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*program, str(self._config), str(self.state.path), str(self.port), *self._command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
            )

    async def serving(self) -> list[int]:
        """The ids of its workers, once they serve."""

        def ready() -> list[int]:
            assert self.process.poll() is None, self.log.read_text()
            said = self._out.read_text().split()
            return [int(pid) for pid in said[1:]] if said[:1] == ["ready"] else []

        self.pids = await until(ready)
        return self.pids

    async def __aenter__(self) -> Self:
        self.begin()
        try:
            await self.serving()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                await self.ended()
            finally:
                self.process.kill()
        self.process.wait()

    async def ended(self, timeout_s: float = 30.0) -> int:
        """Its exit status, once it has ended."""
        await until(lambda: self.process.poll() is not None, timeout_s)
        return self.process.wait()

    def key(self, **limits: int) -> dict[str, str]:
        """The header of a new key, to be made before the start: on loopback nobody needs one until there is one."""
        database = open_database(self.state.database)
        try:
            given = NewKey.model_validate({"name": "tests", "limits": limits} if limits else {"name": "tests"})
            return {"authorization": f"Bearer {KeyStore(database).make(given)[1]}"}
        finally:
            database.dispose()

    def revoke(self, name: str) -> None:
        database = open_database(self.state.database)
        try:
            assert KeyStore(database).revoke(name) == 1
        finally:
            database.dispose()

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def served_by(self) -> Counter[str]:
        """Requests of the log, by the process that answered: ids begin with what is its own."""
        return Counter(line["id"][:-10] for line in self.events("request"))


def client(gateway: Many, connections: int = 64, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.AsyncClient(base_url=gateway.url, limits=limits, timeout=60, headers=headers, trust_env=False)


def alive(pid: int) -> bool:
    """Neither ended nor a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    os.kill(pid, number)
