"""The composition root of a gateway of several processes: what decides, here; what answers, in the workers.

It has what `proxy.app.Gateway` has, except that it answers nothing itself.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable, Sequence

from sqlalchemy import Engine
from structlog.typing import FilteringBoundLogger

from backends.model_places import ModelPlaces
from proxy.config import Config
from proxy.keys import KeyStore
from proxy.local_control import LocalControl
from proxy.logging import LineWriter
from proxy.metrics import Metrics, State, load_of
from proxy.metrics.families import FIRST_TOKEN
from proxy.metrics.state import counts_of
from proxy.providers import foreign_backends
from proxy.reload import Changes, changes
from proxy.state import StateDir
from slurm_launcher.states import Replica

from .desk import Deciders
from .messages import ModelNow, Models, Start
from .supervisor import COMMAND, Supervisor

FLUSH_S = 0.25
COLLECT_S = 15.0


class WorkersGateway:
    """A whole gateway but for opening its sockets.

    gateway_url     where agents reach it
    loopback_only   nothing but this machine can reach it
    listeners       one socket for each worker, all on one port (sockets.py)
    operators       the operators' socket
    reread          gives the configuration as it is now, for `reload`; raises `ConfigError`
    command         starts a worker
    """

    def __init__(
        self,
        config: Config,
        state: StateDir,
        database: Engine,
        *,
        gateway_url: str,
        loopback_only: bool,
        listeners: Sequence[socket.socket],
        operators: socket.socket | None,
        log: FilteringBoundLogger,
        lines: LineWriter,
        reread: Callable[[], Config] | None = None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        foreign_backends(config.models)  # a broken plugin stops the start here, not each worker
        self._state = state
        self._loopback_only = loopback_only
        self._boot = secrets.token_hex(8)
        self._keys = KeyStore(database)
        self._log = log
        self._lines = lines
        self._reread = reread
        self._reloading = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._numbers: State = {}
        metrics = Metrics(
            lambda: [(replica.model, replica.word) for replica in self._replicas()],
            lambda: [load_of(places.snapshot()) for places in self.control.places.values()],
            self._replicas,
        )
        self.control = control = LocalControl(
            config,
            state,
            database,
            gateway_url=gateway_url,
            log=log,
            in_flight=self._in_flight,
            reload=self.reload,
            on_wait=metrics.observe_wait,
            first_tokens=lambda model: counts_of(self._numbers, FIRST_TOKEN.name, model),
        )
        self.workers = Supervisor(
            listeners,
            operators,
            start=self._start,
            deciders=lambda workers: Deciders(control, self._places, workers.metrics, len(listeners)),
            own_metrics=metrics.state,
            models=self._models,
            grace_s=config.server.shutdown_grace_s,
            log=log,
            command=command,
        )

    @property
    def config(self) -> Config:
        return self.control.config

    @property
    def needs_key(self) -> bool:
        return not self._loopback_only or self._keys.ever()

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._flush(), name="log writer"),
            asyncio.create_task(self._collect(), name="numbers for scaling"),
        ]
        await self.control.start()

    async def serve(self) -> None:
        """Until `end`, and until the last answer is whole. Raises `WorkersKeepDying`."""
        await self.workers.serve()

    def end(self) -> None:
        """Accept nothing more, stop when the last answer is whole; told twice, do not wait for that."""
        self.workers.end()

    async def stop(self, *, stop_replicas: bool) -> list[str]:
        """After `serve`. Returns the ids of jobs that would not end."""
        left = await self.control.stop(stop_replicas=stop_replicas)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._lines.flush()
        return left

    async def reload(self) -> Changes:
        """Go by the configuration as it is now, here and in all workers. Raises `ConfigError`, and then nothing has
        changed."""
        async with self._reloading:
            new = await asyncio.to_thread(self._reread) if self._reread is not None else self.config
            self.control.check(new)
            foreign_backends(new.models)
            done = changes(self.config, new)
            self.control.configure(new)
            await self.workers.configure(new)
        self._log.info("configuration_reloaded", changes=done.sentence())
        return done

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            self._lines.flush()

    async def _collect(self) -> None:
        """The workers' numbers, where a time to first token decides how many replicas there are."""
        while True:
            await asyncio.sleep(COLLECT_S)
            if any(spec.scaling.ttft_goal_s is not None for spec in self.config.specs.values()):
                self._numbers = await self.workers.metrics()

    # -- what workers are told ----------------------------------------------------------------------------------------

    def _start(self) -> Start:
        return Start(self.config, self._state.path, self._loopback_only, self._models(), self._boot)

    def _places(self, model: str) -> ModelPlaces | None:
        return self.control.places.get(model)

    def _models(self) -> Models:
        control = self.control
        return {
            name: ModelNow(endpoints, control.state_of(name), control.context_length(name), control.seats(name))
            for name, endpoints in control.endpoints().items()
        }

    def _replicas(self) -> list[Replica]:
        return self.control.launcher.replicas()

    def _in_flight(self, replica_id: str) -> int:
        return sum(places.in_flight(replica_id) for places in self.control.places.values())
