"""The process: state directory, socket, uvicorn under uvloop, signals, the order of starting and stopping."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial

import uvicorn
import uvloop
from starlette.types import ASGIApp
from structlog.typing import FilteringBoundLogger

from backends import liveness

from . import operator_socket
from .app import Gateway
from .config import Config, ConfigError
from .config import Server as ServerSection
from .database import database_of
from .keys import KeyStore
from .logging import configure
from .protocol import Connection, Patience
from .state import StateDir
from .tracing import check_tracing
from .workers import sockets
from .workers.gateway import WorkersGateway
from .workers.lines import configure_shared

KEEP_ALIVE_S = 75.0
"""An idle client is let go after this; longer than the 60 s for which load balancers usually keep theirs."""


class CannotListen(Exception):
    """The address is taken, or not ours."""


@dataclass(frozen=True, slots=True)
class Started:
    """What there is to tell once the gateway listens. `narrowed_from` is the host that was asked for, without a key."""

    url: str
    gateway: Gateway | WorkersGateway
    narrowed_from: str | None


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int, count: int = 1) -> list[socket.socket]:
    """Listening sockets on one port. Raises `CannotListen`."""
    try:
        return [listen_alone(host, port)] if count == 1 else sockets.listen(host, port, count)
    except OSError as error:
        raise CannotListen(f"cannot listen on {host}:{port}: {error.strerror}") from None


def listen_alone(host: str, port: int) -> socket.socket:
    """Raises `OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    liveness.probe(listener, liveness.CLIENT)
    try:
        listener.bind((host, port))
        listener.listen(4096)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


class Server(uvicorn.Server):
    """uvicorn's server over our protocol. It is told to stop by us: its own signal handlers would end the process
    before we have cleaned up."""

    def __init__(self, app: ASGIApp, config: ServerSection) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                interface="asgi3",
                http=Connection,
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,  # nothing here asks who the client is; it would wrap every request
                date_header=False,
                timeout_graceful_shutdown=int(config.shutdown_grace_s),
            )
        )
        self._patience = Patience(self.server_state.connections, config.body_timeout_s, KEEP_ALIVE_S)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._patience.start()
        try:
            await super().serve(sockets)
        finally:
            self._patience.stop()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def end(self) -> None:
        """Stop when the last answer is whole; told twice, do not wait for that."""
        self.force_exit, self.should_exit = self.should_exit, True


def run(
    config: Config,
    state: StateDir,
    *,
    stop_replicas: bool,
    on_start: Callable[[Started], Coroutine[None, None, None]],
    default_key: str | None = None,
    reread: Callable[[], Config] | None = None,
) -> list[str]:
    """Serve until SIGTERM or SIGINT. Returns the ids of jobs that would not end, where they were to."""
    return asyncio.Runner(loop_factory=uvloop.new_event_loop).run(
        _serve(config, state, stop_replicas=stop_replicas, on_start=on_start, default_key=default_key, reread=reread)
    )


async def _serve(
    config: Config,
    state: StateDir,
    *,
    stop_replicas: bool,
    on_start: Callable[[Started], Coroutine[None, None, None]],
    default_key: str | None,
    reread: Callable[[], Config] | None,
) -> list[str]:
    state.lock()
    several = config.server.workers > 1
    serve: Callable[[], Coroutine[None, None, None]]
    log, lines = configure_shared(state.path) if several else configure()
    engine = database_of(config, state)
    keys = KeyStore(engine)
    if default_key is not None:
        keys.ensure("default", default_key)
    host, narrowed_from = config.server.host, None
    if not is_loopback(host) and not keys.ever():
        host, narrowed_from = "127.0.0.1", host
    listeners = listen(host, config.server.port, config.server.workers)
    port = listeners[0].getsockname()[1]
    operators = operator_socket.listen(state.operator_socket)
    gateway_url = config.server.advertise_url or advertised(config, host, port)
    gateway: Gateway | WorkersGateway
    if several:
        check_tracing(config.observability)  # before five workers have ended of it
        gateway = many = WorkersGateway(
            config,
            state,
            engine,
            gateway_url=gateway_url,
            loopback_only=is_loopback(host),
            listeners=listeners,
            operators=operators,
            log=log,
            lines=lines,
            reread=reread,
        )
        serve, end = many.serve, many.end
    else:
        gateway = Gateway(
            config,
            state,
            engine,
            gateway_url=gateway_url,
            loopback_only=is_loopback(host),
            log=log,
            lines=lines,
            reread=reread,
        )
        server = Server(gateway, config.server)
        serve, end = partial(server.serve, [*listeners, operators]), server.end
    reloading: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = asyncio.create_task(_reload(gateway, log), name="reload")
        reloading.add(task)
        task.add_done_callback(reloading.discard)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    loop.add_signal_handler(signal.SIGHUP, reload)
    await gateway.start()
    gc.collect()
    gc.freeze()  # what is here now stays: the collector need not walk through it while requests wait
    gc.enable()
    gc.set_threshold(50_000, 20, 20)  # requests make hardly any cycles; 4 % of the time went into looking for them
    shown = f"[{host}]" if ":" in host else host
    greeting = asyncio.create_task(on_start(Started(f"http://{shown}:{port}", gateway, narrowed_from)), name="greeting")
    try:
        await serve()
    finally:
        greeting.cancel()
        left = await gateway.stop(stop_replicas=stop_replicas)
        engine.dispose()
        state.unlock()
    return left


async def _reload(gateway: Gateway | WorkersGateway, log: FilteringBoundLogger) -> None:
    """On SIGHUP, when there is nobody to tell but the log."""
    try:
        await gateway.reload()
    except ConfigError as error:
        log.error("configuration_refused", source=error.source, mistakes=error.mistakes)


def advertised(config: Config, host: str, port: int) -> str:
    """Where agents report: loopback for jobs on this machine, otherwise the name or address that was bound."""
    if config.launcher.kind == "local" or is_loopback(host):
        return f"http://127.0.0.1:{port}"
    if ipaddress.ip_address(host).is_unspecified:
        return f"http://{socket.getfqdn()}:{port}"
    return f"http://{host}:{port}"
