"""The one composition root of a gateway in one process: what decides and what answers, joined."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable

from sqlalchemy import Engine
from starlette.types import Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from slurm_launcher.states import Replica

from .config import Config
from .local_control import LocalControl
from .logging import LineWriter
from .metrics import Metrics, load_of
from .reload import Changes, changes
from .serving import Serving
from .state import StateDir


class Gateway:
    """A whole gateway without its socket: an ASGI app with a start and a stop.

    gateway_url     where agents reach it
    loopback_only   nothing but this machine can reach it
    reread          gives the configuration as it is now, for `reload`; raises `ConfigError`
    """

    def __init__(
        self,
        config: Config,
        state: StateDir,
        database: Engine,
        *,
        gateway_url: str,
        loopback_only: bool,
        log: FilteringBoundLogger,
        lines: LineWriter,
        reread: Callable[[], Config] | None = None,
    ) -> None:
        self._log = log
        self._reread = reread
        self._reloading = asyncio.Lock()
        metrics = Metrics(
            lambda: [(replica.model, replica.word) for replica in self._replicas()],
            lambda: [load_of(places.snapshot()) for places in self.control.places.values()],
            self._replicas,
        )
        self.control = LocalControl(
            config,
            state,
            database,
            gateway_url=gateway_url,
            log=log,
            in_flight=self._in_flight,
            reload=self.reload,
            on_wait=metrics.observe_wait,
            first_tokens=metrics.first_tokens,
        )
        self.serving = Serving(
            config,
            self.control,
            database,
            state_dir=state.path,
            places=lambda name: self.control.places[name],
            metrics=metrics,
            loopback_only=loopback_only,
            log=log,
            lines=lines,
            home=state.identity,
            boot=secrets.token_hex(8),
        )

    @property
    def config(self) -> Config:
        return self.control.config

    @property
    def needs_key(self) -> bool:
        return self.serving.needs_key

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        return self.serving(scope, receive, send)

    async def start(self) -> None:
        await self.control.start()
        await self.serving.start()

    async def stop(self, *, stop_replicas: bool) -> list[str]:
        """After the last answer. Returns the ids of jobs that would not end."""
        await self.serving.quiet()
        left = await self.control.stop(stop_replicas=stop_replicas)
        await self.serving.stop()
        return left

    async def reload(self) -> Changes:
        """Go by the configuration as it is now. Raises `ConfigError`, and then nothing has changed."""
        async with self._reloading:
            new = await asyncio.to_thread(self._reread) if self._reread is not None else self.config
            self.control.check(new)
            self.serving.check(new)
            done = changes(self.config, new)
            self.control.configure(new)
            await self.serving.configure(new)
        self._log.info("configuration_reloaded", changes=done.sentence())
        return done

    def _replicas(self) -> list[Replica]:
        return self.control.launcher.replicas()

    def _in_flight(self, replica_id: str) -> int:
        return sum(backend.in_flight(replica_id) for backend in self.serving.backends.values())
