"""The half that answers: a registry of backends, the routes over it, and what stands around them. An ASGI app."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from backends.base import Backend
from backends.compose import Options, backend_for
from backends.dialects import DIALECTS, PLAIN
from backends.fallback import with_fallbacks
from backends.places import Places
from backends.transport import Timeouts

from .accounting import Accounting
from .anthropic_errors import AnthropicErrors
from .auth import Authentication, KeyRing
from .batch import webhooks
from .batch.assembly import runner_of
from .batch.service import Batches
from .batch.store import BatchStore
from .batch.values import Batch
from .batch.webhook_rows import EventStore
from .bodies import BodyReader
from .config import Config, Model
from .content import KeepContent
from .control import Control
from .deliberations import Deliberations
from .dispatch import Dispatcher
from .files.service import Files
from .keys import KeyStore
from .logging import LineWriter, RequestsLog
from .metrics import Metrics, State
from .middleware import Edge
from .providers import foreign_backends, links_of
from .registry import Entry, Registry
from .routes import audio, chat, completions, embeddings, rerank, tokenize
from .routes.admin import admin_routes
from .routes.batches import batch_routes
from .routes.deliberations import ShowDeliberation
from .routes.description import describing
from .routes.files import file_routes
from .routes.health import Health, Ready, ShowMetrics
from .routes.inference import Check, Inference
from .routes.internal import Reports
from .routes.messages import CountTokens, CreateMessage
from .routes.models import ListModels, ShowModel
from .routes.operations import operation_routes
from .routes.responses import CancelResponse, CreateResponse, InputItems, StoredResponse
from .state import StateDir
from .stored_responses import StoredResponses
from .tracing import tracing_of
from .tribunals import Tribunals

FLUSH_S = 0.25
KEYS_EVERY_S = 0.5
SWEEP_EVERY_S = 3600.0


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


class Serving:
    """Answers requests.

    state_dir       where files are, unless the configuration says otherwise
    places          gives the places of a model that engines answer for
    numbers         gives the metrics of all processes; None where this is the only one
    loopback_only   nothing but this machine can reach it
    home            whose state directory this is, `boot`: of the gateway that holds it now (batch/values.Worker)
    """

    def __init__(
        self,
        config: Config,
        control: Control,
        database: Engine,
        *,
        state_dir: Path,
        places: Callable[[str], Places],
        metrics: Metrics,
        numbers: Callable[[], Awaitable[State]] | None = None,
        loopback_only: bool,
        log: FilteringBoundLogger,
        lines: LineWriter,
        home: str,
        boot: str,
    ) -> None:
        self._config = config
        self._control = control
        self._database = database
        self._places = places
        self._log = log
        self._lines = lines
        self._metrics = metrics
        self._numbers = numbers or self._own_numbers
        self._tracing = tracing_of(config.observability)
        self._accounting = Accounting(database)
        self._keys = KeyRing(KeyStore(database), loopback_only=loopback_only)
        # of its own: a revoked key must not wait for whatever else is done in threads
        self._keys_thread = ThreadPoolExecutor(1, thread_name_prefix="keys")
        self.backends: dict[str, Backend] = self._made(config, {})
        requests = RequestsLog(lines)
        self._deliberations = Deliberations(database)
        self._tribunals = Tribunals(
            self._deliberations, secret=StateDir(state_dir).secret(), metrics=metrics, requests=requests, log=log
        )
        self._registry = Registry(self._entries(config))
        self._responses = StoredResponses(database)
        self._files = Files(database, config.files, state_dir, log)
        told, secrets = webhooks.settings_of(config.batches)
        self._notifier = webhooks.Notifier(EventStore(database), told, secrets, log)
        bodies = BodyReader(config.server.max_body_mb * 1024 * 1024)
        dispatcher = self._tribunals.dispatcher = Dispatcher(self._registry, self._accounting, control.limits)
        create_response = CreateResponse(dispatcher, bodies, self._responses, self._serves)
        self.runner = runner_of(
            config,
            control,
            database,
            files=self._files,
            dispatcher=dispatcher,
            exchanges=create_response.exchange,
            principal_of=self._keys.of_key,
            home=home,
            boot=boot,
            metrics=metrics,
            requests=requests,
            events=self._events,
            log=log,
        )
        self._batches = Batches(
            BatchStore(database), self._files, told, secrets, done_at=self.runner.done_at, wake=self.runner.wake
        )
        self._app = self._stack(dispatcher, bodies, create_response, requests)
        self._tasks: list[asyncio.Task[None]] = []

    def _made(self, config: Config, kept: dict[str, Backend]) -> dict[str, Backend]:
        """The backend of each model, those that are `kept` as they are. Raises `ConfigError`."""
        foreign = foreign_backends({name: model for name, model in config.models.items() if name not in kept})
        return {
            name: kept.get(name) or foreign.get(name) or of_engines(name, model, self._places(name))
            for name, model in config.models.items()
        }

    def _entries(self, config: Config) -> Iterator[Entry]:
        now = int(time.time())
        served = with_fallbacks(self.backends, links_of(config.models))
        control = self._control
        for name, model in config.models.items():
            length, state = partial(control.context_length, name), partial(control.state_of, name)
            yield Entry(name, served[name], now, length, state, model.aliases)
        yield from self._tribunals.entries(config.tribunals, control, now)

    def _events(self, batch: Batch) -> list[dict[str, Any]]:
        """What is told of a batch that has ended."""
        return webhooks.events_of(batch, self._config.batches.webhook_urls, time.time())

    def _serves(self, model: str, path: str) -> bool:
        """Whether the model's engine has an endpoint by itself; a stand-in may lack it, so not with fallbacks."""
        known = self._config.models.get(self._registry.find(model).name)
        if known is None or not known.engine or known.fallbacks:  # None: a tribunal
            return False
        return path in known.native or path in DIALECTS.get(known.engine, PLAIN).paths

    def _stack(
        self, dispatcher: Dispatcher, bodies: BodyReader, create_response: CreateResponse, requests: RequestsLog
    ) -> ASGIApp:
        """Routes in the order in which they are tried, and what stands around them, innermost first."""
        registry, serves = self._registry, self._serves

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
            Route(CreateResponse.path, create_response, methods=["POST"]),
            Route(StoredResponse.path, StoredResponse(self._responses), methods=["GET", "DELETE"]),
            Route(CancelResponse.path, CancelResponse(self._responses), methods=["POST"]),
            Route(InputItems.path, InputItems(self._responses), methods=["GET"]),
            Route(CreateMessage.path, CreateMessage(dispatcher, bodies, serves), methods=["POST"]),
            Route(CountTokens.path, CountTokens(dispatcher, bodies, serves), methods=["POST"]),
            *file_routes(self._files, bodies),
            *batch_routes(self._batches, bodies),
            Route(ShowDeliberation.path, ShowDeliberation(self._deliberations), methods=["GET"]),
            Route(ListModels.path, ListModels(registry), methods=["GET"]),
            Route(ShowModel.path, ShowModel(registry), methods=["GET"]),
            Route(Health.path, Health(), methods=["GET"]),
            Route(
                Ready.path,
                Ready(self._control.endpoints, self._control.state_of, self._config.observability.privacy),
                methods=["GET"],
            ),
            Route(ShowMetrics.path, ShowMetrics(self._numbers), methods=["GET"]),
            Route(Reports.path, Reports(self._control, bodies), methods=["POST"]),
            *operation_routes(self._control, bodies),
            *admin_routes(self._database, bodies, self._log),
        ]
        routes += describing(routes)
        app: ASGIApp = Shortcut(Router(routes, redirect_slashes=False), routes)
        app = Authentication(app, self._keys)
        if not self._config.observability.privacy:
            app = KeepContent(app)
        return AnthropicErrors(Edge(app, self._log, requests, self._metrics, self._tracing))

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        scope["app"] = self  # Starlette's router then raises its 404 and 405, which Edge translates
        return self._app(scope, receive, send)

    async def _own_numbers(self) -> State:
        return self._metrics.state()

    # -- life ---------------------------------------------------------------------------------------------------------

    @property
    def needs_key(self) -> bool:
        return not self._keys.open

    async def start(self) -> None:
        if not self._config.observability.privacy:
            self._log.warning("privacy_off", message="Prompts and answers are written to the log and to traces.")
        self._keys.refresh()
        await self._files.start()
        await self._notifier.start()
        self.runner.start()
        self._tasks = [
            asyncio.create_task(self._flush(), name="log writer"),
            asyncio.create_task(self._watch_keys(), name="keys"),
            asyncio.create_task(self._accounting.keep_writing(self._log), name="usage writer"),
            asyncio.create_task(self._deliberations.keep_writing(self._log), name="deliberations writer"),
            asyncio.create_task(self._sweep(), name="sweeper"),
            asyncio.create_task(self._metrics.watch(), name="metrics"),
        ]

    async def quiet(self) -> None:
        """Ask nothing more of its own; `stop` does it, too."""
        await self.runner.stop()

    async def stop(self) -> None:
        """After the last answer."""
        await self.quiet()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._keys_thread.shutdown)
        for backend in self.backends.values():
            await backend.aclose()
        await self._notifier.stop()
        await self._batches.stop()
        await self._files.stop()
        await self._accounting.flush()
        await self._deliberations.flush()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        self._lines.flush()

    def check(self, config: Config) -> None:
        """Raises `ConfigError` for a configuration that could not be gone by."""
        foreign_backends(config.models)
        webhooks.settings_of(config.batches)

    async def configure(self, config: Config) -> None:
        """Go by another configuration. Requests under way keep the backends they have."""
        running = self._config.models
        kept = {name: b for name, b in self.backends.items() if running[name] == config.models.get(name)}
        before = self.backends
        self.backends = self._made(config, kept)
        self._config = config
        self._registry.replace(self._entries(config))
        told, secrets = webhooks.settings_of(config.batches)
        self._batches.configure(told, secrets)
        self.runner.configure(config.batches)
        self._notifier.configure(told, secrets)
        for name, backend in before.items():
            if name not in kept:
                await backend.aclose()

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            self._lines.flush()

    async def _watch_keys(self) -> None:
        """A key that was made, changed or revoked anywhere counts here within a second."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(KEYS_EVERY_S)
            try:
                await loop.run_in_executor(self._keys_thread, self._keys.refresh)
            except Exception:  # the database may be away for a while
                self._log.exception("keys_not_read")

    async def _sweep(self) -> None:
        """Forget what is older than it may get."""
        while True:
            try:
                await asyncio.to_thread(self._responses.sweep)
                await asyncio.to_thread(self._deliberations.sweep)
            except Exception:  # as above
                self._log.exception("sweep_failed")
            await asyncio.sleep(SWEEP_EVERY_S)


def of_engines(name: str, model: Model, places: Places) -> Backend:
    """The backend of a model that engines answer for."""
    return backend_for(
        name,
        places,
        model.engine,
        options=Options(
            drop_unsupported=model.drop_unsupported,
            matryoshka=model.matryoshka,
            own_vocabulary=model.own_vocabulary,
            max_inputs=model.max_inputs,
            native=frozenset(model.native),
        ),
        timeouts=Timeouts(
            model.timeouts.connect_s, model.timeouts.first_byte_s, model.timeouts.idle_s, model.timeouts.total_s
        ),
    )
