"""Places of one model without engines: a launcher and a health that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson

from backends.base import Call, Endpoint
from backends.errors import NotTheEngine
from backends.fixed import FixedEndpoint, FixedEndpoints
from backends.model_places import ModelPlaces
from backends.places import Seat, Want
from backends.replica_set import Rules
from tests.waiting import until


class Launches:
    """A launcher whose list and prospects the test sets."""

    def __init__(self, *endpoints: FixedEndpoint, hope: str | None = "m is starting: job 7 is pending.") -> None:
        self._endpoints = endpoints
        self.hope = hope
        self.needed = 0
        self.strangers: list[tuple[str, bool]] = []
        self._news = asyncio.Event()

    def set(self, *endpoints: FixedEndpoint, hope: str | None = "m is starting.") -> None:
        self._endpoints = endpoints
        self.hope = hope
        news, self._news = self._news, asyncio.Event()
        news.set()

    def endpoints(self, model: str) -> Sequence[Endpoint]:
        return self._endpoints

    def need(self, model: str) -> None:
        self.needed += 1

    async def changed(self, model: str) -> None:
        await self._news.wait()

    def identity(self, model: str, replica_id: str, *, ours: bool) -> None:
        self.strangers.append((replica_id, ours))

    def outlook(self, model: str) -> tuple[str, float | None]:
        return ("m cannot start: out of memory.", 30.0) if self.hope is None else (self.hope, None)


class Health:
    """Answers as it is told."""

    def __init__(self, alive: bool = True, *, ours: bool = True) -> None:
        self.alive = alive
        self.ours = ours
        self.asked: list[str] = []

    async def __call__(self, endpoint: Endpoint) -> bool:
        self.asked.append(endpoint.replica_id)
        if not self.ours:
            raise NotTheEngine("The engine refused the gateway's own key.")
        return self.alive


def replicas(count: int, limit: int | None = 2) -> list[FixedEndpoint]:
    return [FixedEndpoint(f"r{number}", "127.0.0.1", 9000 + number, limit=limit) for number in range(count)]


def places_of(*endpoints: FixedEndpoint, health: Health | None = None, **rules: Any) -> ModelPlaces:
    return ModelPlaces("m", FixedEndpoints(endpoints), rules=Rules(**rules), health=health or Health())


def call(owner: str = "", **more: Any) -> Call:
    body = {"messages": [{"role": "user", "content": more.pop("text", "hi")}]}
    return Call("req_1", "/v1/chat/completions", "m", body, orjson.dumps(body), key_id=owner, **more)


def taken(places: ModelPlaces, asked: Call | None = None, avoid: frozenset[str] = frozenset()) -> Seat:
    seat = places.take(asked or call(), avoid)
    assert seat is not None
    return seat


async def standing(places: ModelPlaces, *wants: Want) -> list[asyncio.Task[Seat]]:
    """In line, in this order."""
    tasks = []
    for want in wants:
        before = places.waiting()
        tasks.append(asyncio.create_task(places.wait_want(want), name="waiting"))
        await until(lambda before=before: places.waiting() == before + 1)  # type: ignore[misc]
    return tasks


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)
