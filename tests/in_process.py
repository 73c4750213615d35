"""A gateway inside the test's own event loop, on a real socket: everything but the process around it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from proxy.app import Gateway
from proxy.config import parse
from proxy.database import open_database
from proxy.keys import KeyStore
from proxy.logging import configure
from proxy.server import Server, listen
from proxy.state import StateDir


@dataclass
class Served:
    url: str
    port: int
    key: str
    gateway: Gateway
    log: Path

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    def log_text(self) -> str:
        return self.log.read_text()


@asynccontextmanager
async def serving(config_text: str, directory: Path) -> AsyncIterator[Served]:
    """The gateway of a configuration, with one key, until the block ends."""
    config = parse(config_text)
    state = StateDir(directory / "state")
    engine = open_database(state.database)
    key = KeyStore(engine).create("tests")
    log_path = directory / "gateway.log"
    descriptor = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    log, lines = configure(descriptor)
    [listener] = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    gateway = Gateway(config, state, engine, gateway_url=url, loopback_only=True, log=log, lines=lines)
    server = Server(gateway, config.server)
    await gateway.start()
    task = asyncio.create_task(server.serve([listener]), name="server")
    try:
        yield Served(url, port, key, gateway, log_path)
    finally:
        server.should_exit = server.force_exit = True
        await task
        await gateway.stop(stop_replicas=config.launcher.kind == "local")
        engine.dispose()
        os.close(descriptor)
