"""Main and workers in one event loop: a desk for each, and a real link between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog

from backends.base import Call
from backends.errors import InvalidRequest, NotFound
from backends.fixed import FixedEndpoint, FixedEndpoints
from backends.model_places import ModelPlaces
from backends.replica_set import Rules
from proxy.config import ConfigError, parse
from proxy.limits.local import Limits
from proxy.metrics import State as Numbers
from proxy.reload import Changes
from proxy.workers.desk import Deciders, Desk, Principals
from proxy.workers.link import Link
from proxy.workers.remote_places import AllPlaces, RemotePlaces
from tests.waiting import until

from .pair import linked

CONFIG = parse('[models.m]\nengine = "vllm"\nurls = ["http://127.0.0.1:1"]')
ENGINE = FixedEndpoint("r1", "127.0.0.1", 8001, api_key="engine-key", weight=2.0, limit=2)


def call(**given: Any) -> Call:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    return Call("req_1", "/v1/chat/completions", "m", body, b"{}", **given)


@dataclass
class FakeControl:
    """What main has beside places."""

    limits: Limits = field(default_factory=Limits)
    reports: list[tuple[str, Any]] = field(default_factory=list)
    reload_goes: asyncio.Event = field(default_factory=asyncio.Event)
    reloads: int = 0
    mistakes: list[str] = field(default_factory=list)
    batches: dict[str, Any] = field(default_factory=dict)

    async def report(self, replica_id: str, body: dict[str, Any]) -> dict[str, Any]:
        if body.get("fault") == "ours":
            raise ZeroDivisionError
        if body.get("fault"):
            raise InvalidRequest("Not a report.", code="bad_report")
        self.reports.append((replica_id, body))
        return {"command": "run", "in_flight": 3}

    def tell_batches(self, work: Any, process: object = None) -> None:
        self.batches = work

    async def operate(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["model"] != "m":
            raise NotFound("No such model.", param="model", code="model_not_found")
        return {"verb": verb, **arguments}

    async def reload(self) -> Changes:
        await self.reload_goes.wait()
        self.reloads += 1
        if self.mistakes:
            raise ConfigError("config.toml", self.mistakes)
        return Changes(added=("n",), limits=True)


class Main:
    """The main process' half. `worker()` is one worker."""

    def __init__(self, *endpoints: FixedEndpoint, rules: Rules | None = None, limits: Limits | None = None) -> None:
        self.places: dict[str, ModelPlaces] = {
            "m": ModelPlaces("m", FixedEndpoints(endpoints or (ENGINE,)), rules=rules or Rules(queue_size=3))
        }
        self.control = FakeControl(limits or Limits())
        self.principals = Principals()

    def deciders(self) -> Deciders:
        async def metrics() -> Numbers:
            return {"slurmgate_requests_in_flight": [([], 5)]}

        return Deciders(self.control, self.places.get, metrics, workers=2)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Worker]:
        desk = Desk(self.deciders(), self.principals, structlog.get_logger())
        all_places = AllPlaces()
        async with linked(asked=desk.asked(), told=desk.told(), worker=all_places.told()) as pair:
            desk.open(pair.main)
            all_places.open(pair.worker)
            yield Worker(desk, pair.worker, all_places.of("m"), all_places)
            pair.worker.close()
            await until(lambda: not pair.main.is_open)
            desk.gone()


@dataclass
class Worker:
    desk: Desk
    link: Link
    places: RemotePlaces
    all: AllPlaces

    async def settled(self) -> None:
        """Until main has read everything that was said."""
        await self.link.ask("metrics")
