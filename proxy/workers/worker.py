"""A worker process: the half of the gateway that answers, on one listening socket, with main behind its link.

It lives as long as main wants it to: signals that are sent to a whole process group or service are main's to judge, and
are ignored here; when the link closes without a word, main is dead, and the worker ends, its streams within the grace.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import uvloop
from starlette.types import Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from backends.errors import GatewayError
from proxy.config import Config, ConfigError
from proxy.database import DatabaseUnusable
from proxy.logging import LineWriter
from proxy.metrics import Metrics
from proxy.server import Server
from proxy.state import StateDir
from slurm_launcher.spec import Secrets

from .lines import configure_shared
from .link import Handler, Link, LinkLost
from .messages import Json, Start, config_from, models_from, start_from
from .remote_control import RemoteControl
from .remote_places import AllPlaces

SLACK_S = 5.0
"""Beyond the grace, for the end of a worker whose main process is dead; then the kernel ends it."""


class Application(Protocol):
    """What answers requests: `proxy.serving.Serving`, or a smaller one."""

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def configure(self, config: Config) -> None: ...


@dataclass(frozen=True, slots=True)
class Services:
    """What an application in a worker is made of.

    places    of each model, as main gives them
    metrics   this process' own numbers; those of all are `await control.metrics()`
    """

    control: RemoteControl
    places: AllPlaces
    metrics: Metrics
    log: FilteringBoundLogger
    lines: LineWriter


Make = Callable[[Start, Services], Application]


def run(make: Make, arguments: Sequence[str] | None = None) -> int:
    """A worker's whole life. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m proxy.workers", description="Started by `slurmgate serve`.")
    parser.add_argument("--link", type=int, required=True, help="an open file: the link to main")
    parser.add_argument("--listen", type=int, required=True, nargs="+", help="open files: sockets that listen")
    given = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    listeners = [socket.socket(fileno=file) for file in given.listen]
    worker = _Worker(make, listeners)
    end = socket.socket(fileno=given.link)
    try:
        return asyncio.Runner(loop_factory=uvloop.new_event_loop).run(worker.run(end))
    except (ConfigError, DatabaseUnusable) as error:
        sys.stderr.write(f"slurmgate: {error}\n")
        return 1


class _Worker:
    def __init__(self, make: Make, listeners: list[socket.socket]) -> None:
        self._make = make
        self._listeners = listeners
        self._started: asyncio.Future[Start]
        self._link: Link
        self._places = AllPlaces()
        self._metrics = Metrics()
        self._server: Server | None = None
        self._control: RemoteControl | None = None
        self._application: Application | None = None
        self._ready = asyncio.Event()
        self._ends = 0
        self._configuring = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, end: socket.socket) -> int:
        self._started = asyncio.get_running_loop().create_future()
        asked: dict[str, Handler] = {
            "configure": self._configure,
            "metrics": lambda number: self._link.answer(number, self._metrics.state()),
            "ping": lambda number: self._link.answer(number, True),
        }
        told: dict[str, Handler] = {
            "start": lambda told: self._started.set_result(start_from(told)),
            "stop": self._stop,
            "models": self._show_models,
            "cancel": lambda number: None,  # what main asks is done at once, or to be done anyway
            **self._places.told(),
        }
        self._link = link = Link(asked, told, self._main_is_gone)
        self._places.open(link)
        await link.open(end)
        try:
            start = await self._started
        except LinkLost:
            return 1
        self._grace_s = start.config.server.shutdown_grace_s
        log, lines = configure_shared(start.state_dir)
        self._log = log
        secrets = Secrets(StateDir(start.state_dir).secret())
        control = self._control = RemoteControl(link, start.config, start.models, secrets.is_agent)
        application = self._application = self._make(start, Services(control, self._places, self._metrics, log, lines))
        server = self._server = Server(application, start.config.server)
        await application.start()
        self._ready.set()
        for _ in range(self._ends):  # told so before there was anything to end
            server.end()
        gc.collect()
        gc.freeze()  # as in a gateway of one process (server.py)
        gc.set_threshold(50_000, 20, 20)
        link.tell("ready")
        try:
            await server.serve(sockets=self._listeners)
        finally:
            await application.stop()
            link.close()
        return 0

    # -- what main says -----------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """Stop accepting, and when the last answer is whole; told twice, do not wait for that."""
        self._ends += 1
        if self._server is not None:
            self._server.end()

    def _show_models(self, told: Json) -> None:
        if self._control is not None:
            self._control.models = models_from(told)

    def _configure(self, number: int, told: str) -> None:
        task = asyncio.create_task(self._go_by(number, told), name="configure")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _go_by(self, number: int, told: str) -> None:
        async with self._configuring:
            await self._ready.wait()
            assert self._control is not None and self._application is not None  # noqa: S101, PT018  # since it is ready
            try:
                config = config_from(told)
                self._control.configure(config)
                await self._application.configure(config)
            except Exception:  # main has checked it; it puts another worker in the place of one that cannot
                self._log.exception("configuration_not_taken")
                self._link.fail(number, GatewayError("The configuration could not be gone by."))
            else:
                self._link.answer(number, True)

    def _main_is_gone(self) -> None:
        """Or we have closed the link ourselves, at the end."""
        if not self._started.done():
            self._started.set_exception(LinkLost())
        elif not self._ends:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, self._grace_s + SLACK_S)
            self._stop()
