"""The half that decides, in this process: which engines there are, and what is asked of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Engine
from structlog.typing import FilteringBoundLogger

from backends.base import Launcher as EngineSource
from backends.errors import InvalidRequest, NotAuthenticated
from backends.fixed import FixedEndpoint, FixedEndpoints
from backends.model_places import ModelPlaces
from backends.model_queue import OnWait
from backends.replica_set import Rules
from slurm_launcher.autoscale import Allowance as ServiceAllowance
from slurm_launcher.loop import Launcher, Pace
from slurm_launcher.reports import BadReport, parse_report
from slurm_launcher.spec import Secrets
from slurm_launcher.store import ReplicaStore

from .config import Config, Model
from .control import BatchWork
from .demand import Batches, Demands
from .engine_limits import Asked, EngineLimits
from .launching import Builder, clusters_of, site_of
from .limits.local import Limits
from .operations import Operations
from .principals import Allowance
from .reload import Changes
from .state import StateDir
from .usage_report import spent


class LocalControl:
    """The `Control` protocol.

    in_flight   how many requests are on a replica now
    reload      reads the configuration again, and has this and whoever answers go by it
    first_tokens   how many times to first token of a model have fallen into each bucket, for its scaling
    sources     where each model's engines come from: the launcher, or fixed addresses
    places      where the requests of each of these models run
    """

    def __init__(
        self,
        config: Config,
        state: StateDir,
        database: Engine,
        *,
        gateway_url: str,
        log: FilteringBoundLogger,
        in_flight: Callable[[str], int],
        reload: Callable[[], Awaitable[Changes]],
        on_wait: OnWait | None = None,
        first_tokens: Callable[[str], list[int]] | None = None,
    ) -> None:
        self.config = config
        self._on_wait = on_wait
        self._reload = reload
        self._site = site_of(config, state, gateway_url)
        secrets = Secrets(state.secret())
        self._build = Builder(config, self._site, secrets)
        self._log = log
        self.check(config)
        self.batches = Batches()
        demands = Demands(
            lambda: self.places,
            batches=self.batches,
            engine_of=lambda model: self.config.models[model].engine,
            first_tokens=first_tokens or (lambda model: []),
        )
        self.launcher = Launcher(
            clusters_of(config, state),
            config.specs,
            site=self._site,
            secrets=secrets,
            store=ReplicaStore(database, state.identity),
            build=self._build,
            in_flight=in_flight,
            demand=demands.of,
            allowance=ServiceAllowance(config.launcher.max_pending_jobs, config.launcher.max_gpus),
            log=log,
            pace=Pace(config.launcher.poll_busy_s, config.launcher.poll_calm_s, min(2.0, config.launcher.poll_busy_s)),
        )
        self.limits = Limits(defaults_of(config), spent=partial(spent, database))
        self.sources: dict[str, EngineSource] = {}
        self.places: dict[str, ModelPlaces] = {}
        self._connect(config.models)
        self._engine_limits = self._limits_to_learn()
        self.operate = Operations(
            self.launcher,
            lambda: self.sources,
            state_of=self.state_of,
            in_flight=in_flight,
            waiting=lambda model: self.places[model].waiting(),
        )
        self._learning: asyncio.Task[None] | None = None

    def _connect(self, models: Mapping[str, Model]) -> None:
        """A source for each model that engines answer for."""
        sources: dict[str, EngineSource] = {}
        for name, model in models.items():
            if model.urls:
                sources[name] = fixed(model, self._log)
            elif model.source is not None:
                sources[name] = self.launcher
        self.sources = sources
        for name in self.places.keys() - sources.keys():
            self.places.pop(name).close()
        for name, source in sources.items():
            rules = rules_of(models[name])
            if name in self.places:
                self.places[name].configure(rules, source, models[name].engine)
            else:
                self.places[name] = ModelPlaces(
                    name, source, engine=models[name].engine, rules=rules, on_wait=self._on_wait
                )

    def _limits_to_learn(self) -> EngineLimits:
        models = self.config.models
        asked = {name: Asked(models[name].engine, source) for name, source in self.sources.items()}
        return EngineLimits(asked, lambda name, replica_id, takes: self.places[name].set_limit(replica_id, takes))

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        self._site.log_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_url(Path(self._site.rendezvous), self._site.gateway_url)
        await self.launcher.start()
        self._learn()

    async def stop(self, *, stop_replicas: bool) -> list[str]:
        """Returns the ids of jobs that would not end, where they were to."""
        if self._learning is not None:
            self._learning.cancel()
            await asyncio.gather(self._learning, return_exceptions=True)
        for places in self.places.values():
            places.close()
        await self.launcher.stop()
        return await self.launcher.stop_replicas() if stop_replicas else []

    def _learn(self) -> None:
        self._learning = asyncio.create_task(self._engine_limits.run(), name="engine limits")

    def check(self, config: Config) -> None:
        """Raises `ConfigError` for a configuration that could not be gone by."""
        self._build.check(config.specs)
        self._build.check_fit(config, self._log)

    def configure(self, config: Config) -> None:
        """Go by another configuration, which has been checked. Replicas that no longer fit are replaced one by one."""
        self.config = config
        self.launcher.configure(config.specs)
        self.limits.configure(defaults_of(config))
        self._connect(config.models)
        if self._learning is not None:
            self._learning.cancel()
        self._engine_limits = self._limits_to_learn()
        self._learn()

    # -- what is asked ------------------------------------------------------------------------------------------------

    def endpoints(self) -> Mapping[str, int]:
        return {
            name: len(self.sources[name].endpoints(name)) if name in self.sources else 1 for name in self.config.models
        }

    def state_of(self, model: str) -> str:
        source = self.sources.get(model)
        if source is None or source.endpoints(model):
            return "ready"
        _, retry_after_s = source.outlook(model)
        if retry_after_s is not None:
            return "unavailable"
        return "idle" if source is self.launcher and self.launcher.is_idle(model) else "starting"

    def context_length(self, model: str) -> int | None:
        configured = self.config.models.get(model)
        if configured is not None and configured.context_length is not None:
            return configured.context_length
        return self._engine_limits.context_length(model) or None

    def seats(self, model: str) -> int | None:
        places = self.places.get(model)
        if places is None:
            return None
        if not self.sources[model].endpoints(model):
            return 0
        return sum(places.limits().values()) or None  # nobody has asked them yet

    def tell_batches(self, work: Mapping[str, BatchWork], process: object = None) -> None:
        self.batches.tell(work, process)

    async def reload(self) -> Changes:
        return await self._reload()

    def check_agent(self, replica_id: str, token: str) -> None:
        if not self.launcher.is_agent(replica_id, token):
            raise NotAuthenticated("Not this replica's token.")

    async def report(self, replica_id: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            report = parse_report(replica_id, body)
        except BadReport as error:
            raise InvalidRequest(str(error), code="bad_report") from None
        command, in_flight = self.launcher.report(report)
        return {"command": command, "in_flight": in_flight}


def defaults_of(config: Config) -> Allowance:
    """The limits of keys that say nothing, nor their projects."""
    return Allowance(**config.limits.model_dump())


FALLBACK_WAIT_S = 5.0
"""How long a request waits for the first replica of a model that another one can stand in for, unless told."""


def rules_of(model: Model) -> Rules:
    """What the configuration says of a model's places."""
    replica_wait_s = model.timeouts.replica_wait_s
    if "replica_wait_s" not in model.timeouts.model_fields_set and any("unavailable" in f.on for f in model.fallbacks):
        replica_wait_s = min(replica_wait_s, FALLBACK_WAIT_S)
    return Rules(
        max_in_flight=model.max_in_flight,
        affinity=model.affinity,
        queue_size=model.queue.size,
        queue_wait_s=model.queue.wait_s,
        replica_wait_s=replica_wait_s,
    )


def fixed(model: Model, log: FilteringBoundLogger | None = None) -> FixedEndpoints:
    """The engines of a model that names their URLs."""
    key = os.environ.get(model.api_key_env, "") if model.api_key_env else ""
    endpoints = []
    for engine in model.urls:
        parts = urlsplit(engine.url)
        host, port = parts.hostname or "", parts.port or 0
        limit = engine.max_in_flight or model.max_in_flight
        endpoints.append(FixedEndpoint(f"{host}:{port}", host, port, key, engine.weight, limit))
    return FixedEndpoints(endpoints, log)


def write_url(path: Path, url: str) -> None:
    """Tell agents where the gateway is; whole or not at all, since they may be reading."""
    new = path.with_suffix(".new")
    new.write_text(url + "\n")
    new.replace(path)
