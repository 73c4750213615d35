"""/v1/responses and /v1/messages on a real socket, in front of any engine: the gateway without its launcher."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn
from openai import AsyncOpenAI
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from backends.dialects.seam import EVERYWHERE, Dialect
from backends.fixed import FixedEndpoint, FixedEndpoints
from backends.model_places import ModelPlaces
from backends.replicas import ReplicaBackend
from proxy.accounting import Accounting
from proxy.anthropic_errors import AnthropicErrors
from proxy.auth import Authentication, KeyRing
from proxy.bodies import BodyReader
from proxy.database import open_database
from proxy.dispatch import Dispatcher
from proxy.keys import KeyStore
from proxy.logging import RequestsLog, configure
from proxy.metrics import Metrics
from proxy.middleware import Edge
from proxy.protocol import Connection
from proxy.registry import Entry, Registry
from proxy.routes.messages import CountTokens, CreateMessage
from proxy.routes.responses import CancelResponse, CreateResponse, InputItems, StoredResponse
from proxy.server import listen
from proxy.stored_responses import StoredResponses
from tests.fakes.chat_engine import Engine

MODEL = "org/m"


@dataclass
class Served:
    """`key` and `other_key` are of two clients."""

    url: str
    key: str
    other_key: str
    stored: StoredResponses
    accounting: Accounting
    log: Path

    def openai(self, key: str | None = None) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0)

    def http(self, key: str | None = None) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {key or self.key}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=30)


class _Routes:
    """Starlette's router raises its 404 and 405 only where there is an app."""

    def __init__(self, routes: list[Route]) -> None:
        self._router = Router(routes, redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        await self._router(scope, receive, send)


@asynccontextmanager
async def serving(engine: Engine, directory: Path, *more_paths: str, max_body: int = 1 << 20) -> AsyncIterator[Served]:
    """In front of an engine that has chat, and `more_paths`, by itself."""
    paths = EVERYWHERE | set(more_paths)
    database = open_database(directory / "slurmgate.db")
    keys = KeyStore(database)
    key, other_key = keys.create("one"), keys.create("another")
    ring = KeyRing(keys, loopback_only=False)
    ring.refresh()
    endpoint = FixedEndpoint("e1", engine.host, engine.port)
    places = ModelPlaces(MODEL, FixedEndpoints([endpoint]))
    backend = ReplicaBackend(MODEL, places, dialect=Dialect("test", paths=paths))
    registry = Registry([Entry(MODEL, backend, 1)])
    accounting = Accounting(database)
    dispatcher, bodies, stored = Dispatcher(registry, accounting), BodyReader(max_body), StoredResponses(database)

    def serves(model: str, path: str) -> bool:
        registry.find(model)
        return path in paths

    routes = [
        Route(CreateResponse.path, CreateResponse(dispatcher, bodies, stored, serves), methods=["POST"]),
        Route(StoredResponse.path, StoredResponse(stored), methods=["GET", "DELETE"]),
        Route(CancelResponse.path, CancelResponse(stored), methods=["POST"]),
        Route(InputItems.path, InputItems(stored), methods=["GET"]),
        Route(CreateMessage.path, CreateMessage(dispatcher, bodies, serves), methods=["POST"]),
        Route(CountTokens.path, CountTokens(dispatcher, bodies, serves), methods=["POST"]),
    ]
    log_path = directory / "gateway.log"
    descriptor = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    log, lines = configure(descriptor)
    app = AnthropicErrors(Edge(Authentication(_Routes(routes), ring), log, RequestsLog(lines), Metrics(list)))
    [listener] = listen("127.0.0.1", 0)
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        interface="asgi3",
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve([listener]), name="server")
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield Served(url, key, other_key, stored, accounting, log_path)
    finally:
        server.should_exit = server.force_exit = True
        await task
        lines.flush()
        await backend.aclose()
        database.dispose()
        os.close(descriptor)
