"""The one composition root: everything is made here, joined here, started and stopped here."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Engine
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from backends.base import Backend
from backends.base import Launcher as EngineSource
from backends.compose import Options, backend_for
from backends.dialects import DIALECTS, PLAIN
from backends.fallback import with_fallbacks
from backends.fixed import FixedEndpoint, FixedEndpoints
from backends.transport import Timeouts
from slurm_launcher.cluster import Cluster, JobComment, Submission
from slurm_launcher.commands import directives
from slurm_launcher.local import LocalCluster
from slurm_launcher.loop import Launcher, Pace
from slurm_launcher.script import render
from slurm_launcher.slurm import SlurmCluster
from slurm_launcher.spec import ModelSpec, Secrets, Site
from slurm_launcher.store import ReplicaStore

from .accounting import Accounting
from .anthropic_errors import AnthropicErrors
from .auth import Authentication, KeyRing
from .bodies import BodyReader
from .config import Config, ConfigError, Model
from .dispatch import Dispatcher
from .engine_limits import EngineLimits
from .keys import KeyStore
from .logging import LineWriter, RequestsLog
from .metrics import Metrics
from .middleware import Edge
from .providers import foreign_backends, links_of
from .registry import Entry, Registry
from .routes import audio, chat, completions, embeddings, rerank, tokenize
from .routes.description import describing
from .routes.health import Health, Ready, ShowMetrics
from .routes.inference import Check, Inference
from .routes.internal import Reports
from .routes.messages import CountTokens, CreateMessage
from .routes.models import ListModels, ShowModel
from .routes.responses import CancelResponse, CreateResponse, InputItems, StoredResponse
from .state import StateDir
from .stored_responses import StoredResponses
from .writer import forget_writer, writer_for

SIGNAL_LEAD_S = 120
"""Slurm warns the agent this long before the wall time (and may do so up to a minute early)."""

FLUSH_S = 0.25
HOUSEKEEPING_S = 1.0
SWEEP_S = 3600.0


def site_of(config: Config, state: StateDir, gateway_url: str) -> Site:
    section = config.launcher
    shared = section.shared_dir.expanduser() if section.shared_dir is not None else None
    return Site(
        service=section.service,
        gateway_url=gateway_url,
        rendezvous=str((shared or state.path) / state.url_file.name),
        log_directory=(shared or state.path) / state.logs.name,
        python=section.python,
        heartbeat_s=section.heartbeat_s,
        orphan_timeout_s=section.orphan_timeout_s,
    )


def cluster_of(config: Config, state: StateDir) -> Cluster:
    if config.launcher.kind == "local":
        return LocalCluster(state.jobs, config.launcher.service)
    return SlurmCluster(f"slurmgate-{config.launcher.service}")


class Builder:
    """Makes the submission of a new replica: the whole script, and the mark by which its job is found again."""

    def __init__(self, config: Config, site: Site, secrets: Secrets) -> None:
        self._local = config.launcher.kind == "local"
        self._site = site
        self._secrets = secrets

    def check(self, specs: Mapping[str, ModelSpec]) -> None:
        """Raises `ConfigError` for values that cannot stand in a batch script: now, not when a replica is needed."""
        mistakes = []
        for name, spec in specs.items():
            try:
                self.script(spec, "REPLICA", redact=True)
            except ValueError as error:
                mistakes.append(f'models."{name}": {error}')
        if mistakes:
            raise ConfigError("configuration", mistakes)

    def __call__(self, spec: ModelSpec, replica_id: str) -> Submission:
        mark = JobComment(self._site.service, spec.name, replica_id, spec.config_hash)
        log = self._site.log_directory / f"{replica_id}.log"
        return Submission(replica_id, self.script(spec, replica_id), mark, log)

    def script(self, spec: ModelSpec, replica_id: str, *, redact: bool = False) -> str:
        mark = JobComment(self._site.service, spec.name, replica_id, spec.config_hash)
        lines: list[str] = []
        if not self._local:
            lines = directives(
                spec.resources,
                job_name=self._site.job_name,
                comment=mark.dumps(),
                output=str(self._site.log_directory / f"{replica_id}.log"),
                signal_lead_s=SIGNAL_LEAD_S,
            )
        return render(
            spec,
            self._secrets.launch(replica_id),
            self._site,
            directives=lines,
            host="127.0.0.1" if self._local else None,
            redact=redact,
        )


class Shortcut:
    """POST to a path without parameters goes to its endpoint by one look into a table, the rest to Starlette."""

    def __init__(self, router: Router, routes: Sequence[Route]) -> None:
        self._router = router
        self._posts = {
            route.path: route.app for route in routes if route.methods == {"POST"} and not route.param_convertors
        }

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        app = self._posts.get(scope["path"]) if scope["method"] == "POST" else None
        return (app or self._router)(scope, receive, send)


class Gateway:
    """A whole gateway without its socket: an ASGI app with a start and a stop.

    gateway_url     where agents reach it
    loopback_only   nothing but this machine can reach it
    """

    def __init__(
        self,
        config: Config,
        state: StateDir,
        engine: Engine,
        *,
        gateway_url: str,
        loopback_only: bool,
        log: FilteringBoundLogger,
        lines: LineWriter,
    ) -> None:
        self.config = config
        self.log = log
        self._lines = lines
        self._accounting = Accounting(engine)
        self._keys = KeyRing(KeyStore(engine), loopback_only=loopback_only)
        self._metrics = Metrics(lambda: [(r.model, r.word) for r in self.launcher.replicas()])
        self._site = site_of(config, state, gateway_url)
        secrets = Secrets(state.secret())
        build = Builder(config, self._site, secrets)
        build.check(config.specs)
        self.launcher = Launcher(
            cluster_of(config, state),
            config.specs,
            site=self._site,
            secrets=secrets,
            store=ReplicaStore(engine),
            build=build,
            in_flight=self._in_flight,
            log=log,
            pace=Pace(config.launcher.poll_busy_s, config.launcher.poll_calm_s, min(2.0, config.launcher.poll_busy_s)),
        )
        self.sources: dict[str, EngineSource] = {}
        self.backends: dict[str, Backend] = foreign_backends(config.models)
        for name, model in config.models.items():
            if name not in self.backends:
                self.sources[name] = fixed(model) if model.urls else self.launcher
                self.backends[name] = of_engines(name, model, self.sources[name])
        untold = [name for name, m in config.models.items() if m.engine == "tgi" and m.context_length is None]
        self._limits = EngineLimits({name: self.sources[name] for name in untold})
        now = int(time.time())
        served = with_fallbacks(self.backends, links_of(config.models))
        registry = Registry(
            Entry(name, served[name], now, partial(self._context_length, name), partial(self.state_of, name))
            for name in config.models
        )
        self._responses = StoredResponses(engine)
        bodies = BodyReader(config.server.max_body_mb * 1024 * 1024)
        self._app = self._stack(registry, Dispatcher(registry, self._accounting), bodies)
        self._tasks: list[asyncio.Task[None]] = []

    def _stack(self, registry: Registry, dispatcher: Dispatcher, bodies: BodyReader) -> ASGIApp:
        """Routes in the order in which they are tried, and what stands around them, innermost first."""

        def serves(model: str, path: str) -> bool:
            """Whether the model's engine has an endpoint by itself; a stand-in may lack it, so not with fallbacks."""
            registry.find(model)
            known = self.config.models[model]
            if not known.engine or known.fallbacks:
                return False
            return path in known.native or path in DIALECTS.get(known.engine, PLAIN).paths

        def asks(path: str, check: Check, quiet: dict[str, Any] | None = None, at: str | None = None) -> Route:
            return Route(at or path, Inference(path, check, dispatcher, bodies, quiet), methods=["POST"])

        routes = [
            asks(chat.PATH, chat.check, chat.QUIET_CHOICE),
            asks(completions.PATH, completions.check, completions.QUIET_CHOICE),
            asks(embeddings.PATH, embeddings.check),
            asks(rerank.PATH, rerank.check),
            *(asks(rerank.PATH, rerank.check, at=also) for also in rerank.ALSO_AT),
            asks(tokenize.PATH, tokenize.check),
            Route(audio.PATH, audio.Transcriptions(dispatcher, bodies), methods=["POST"]),
            Route(CreateResponse.path, CreateResponse(dispatcher, bodies, self._responses, serves), methods=["POST"]),
            Route(StoredResponse.path, StoredResponse(self._responses), methods=["GET", "DELETE"]),
            Route(CancelResponse.path, CancelResponse(self._responses), methods=["POST"]),
            Route(InputItems.path, InputItems(self._responses), methods=["GET"]),
            Route(CreateMessage.path, CreateMessage(dispatcher, bodies, serves), methods=["POST"]),
            Route(CountTokens.path, CountTokens(dispatcher, bodies, serves), methods=["POST"]),
            Route(ListModels.path, ListModels(registry), methods=["GET"]),
            Route(ShowModel.path, ShowModel(registry), methods=["GET"]),
            Route(Health.path, Health(), methods=["GET"]),
            Route(Ready.path, Ready(self.endpoints), methods=["GET"]),
            Route(ShowMetrics.path, ShowMetrics(self._metrics), methods=["GET"]),
            Route(Reports.path, Reports(self.launcher, bodies), methods=["POST"]),
        ]
        routes += describing(routes)
        app: ASGIApp = Shortcut(Router(routes, redirect_slashes=False), routes)
        app = Authentication(app, self._keys)
        return AnthropicErrors(Edge(app, self.log, RequestsLog(self._lines), self._metrics))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # Starlette's router then raises its 404 and 405, which Edge translates
        try:
            await self._app(scope, receive, writer_for(scope, send))
        finally:
            forget_writer(scope)

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        self._site.log_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_url(Path(self._site.rendezvous), self._site.gateway_url)
        self._keys.refresh()
        await self.launcher.start()
        self._tasks = [
            asyncio.create_task(self._flush(), name="log writer"),
            asyncio.create_task(self._keep_house(), name="housekeeping"),
            asyncio.create_task(self._limits.run(), name="engine limits"),
        ]

    async def stop(self, *, stop_replicas: bool) -> list[str]:
        """After the last answer. Returns the ids of jobs that would not end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.launcher.stop()
        left = await self.launcher.stop_replicas() if stop_replicas else []
        for backend in self.backends.values():
            await backend.aclose()
        await self._write_usage()
        self._lines.flush()
        return left

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            self._lines.flush()

    async def _keep_house(self) -> None:
        sweep_at = 0.0
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            try:
                await asyncio.to_thread(self._keys.refresh)
                await self._write_usage()
                if time.monotonic() >= sweep_at:
                    sweep_at = time.monotonic() + SWEEP_S
                    await asyncio.to_thread(self._responses.sweep)
            except Exception:  # the database may be locked or full for a while; usage is kept for the next time
                self.log.exception("housekeeping_failed")

    async def _write_usage(self) -> None:
        rows = self._accounting.take()
        try:
            await asyncio.shield(asyncio.to_thread(self._accounting.write, rows))
        except Exception:
            self._accounting.put_back(rows)
            raise

    # -- what others ask ----------------------------------------------------------------------------------------------

    @property
    def needs_key(self) -> bool:
        return not self._keys.open

    def endpoints(self) -> Mapping[str, int]:
        """Replicas that take requests, by model. What runs elsewhere counts as one: nobody can tell before asking."""
        return {
            name: len(self.sources[name].endpoints(name)) if name in self.sources else 1 for name in self.config.models
        }

    def _context_length(self, model: str) -> int | None:
        return self.config.models[model].context_length or self._limits.context_length(model) or None

    def state_of(self, model: str) -> str:
        """A model's state in one word, for `/v1/models`."""
        source = self.sources.get(model)
        if source is None or source.endpoints(model):
            return "ready"
        _, retry_after_s = source.outlook(model)
        return "starting" if retry_after_s is None else "unavailable"

    def _in_flight(self, replica_id: str) -> int:
        return sum(backend.in_flight(replica_id) for backend in self.backends.values())


def of_engines(name: str, model: Model, source: EngineSource) -> Backend:
    """The backend of a model that engines answer for."""
    return backend_for(
        name,
        source,
        model.engine,
        options=Options(
            drop_unsupported=model.drop_unsupported,
            matryoshka=model.matryoshka,
            own_vocabulary=model.own_vocabulary,
            max_inputs=model.max_inputs,
            native=frozenset(model.native),
        ),
        wait_s=model.timeouts.replica_wait_s,
        timeouts=Timeouts(model.timeouts.connect_s, model.timeouts.first_byte_s, model.timeouts.idle_s),
    )


def fixed(model: Model) -> FixedEndpoints:
    """The engines of a model that names their URLs."""
    key = os.environ.get(model.api_key_env, "") if model.api_key_env else ""
    endpoints = []
    for engine in model.urls:
        parts = urlsplit(engine.url)
        host, port = parts.hostname or "", parts.port or 0
        limit = engine.max_in_flight or model.max_in_flight
        endpoints.append(FixedEndpoint(f"{host}:{port}", host, port, key, engine.weight, limit))
    return FixedEndpoints(endpoints)


def write_url(path: Path, url: str) -> None:
    """Tell agents where the gateway is; whole or not at all, since they may be reading."""
    new = path.with_suffix(".new")
    new.write_text(url + "\n")
    new.replace(path)
