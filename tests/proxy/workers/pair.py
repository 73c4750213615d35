"""Both ends of a link in one event loop."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from proxy.workers.link import Handler, Link


@dataclass
class Pair:
    worker: Link
    main: Link
    lost: list[str] = field(default_factory=list)


Handlers = Mapping[str, Handler]
NOTHING: Handlers = {}


@asynccontextmanager
async def linked(
    *, asked: Handlers = NOTHING, told: Handlers = NOTHING, worker: Handlers = NOTHING, worker_asked: Handlers = NOTHING
) -> AsyncIterator[Pair]:
    """`asked` and `told` are main's, the others the worker's."""
    one, other = socket.socketpair()
    lost: list[str] = []
    pair = Pair(
        Link(worker_asked, worker, lambda: lost.append("worker")),
        Link(asked, told, lambda: lost.append("main")),
        lost,
    )
    await pair.worker.open(one)
    await pair.main.open(other)
    try:
        yield pair
    finally:
        pair.worker.close()
        pair.main.close()
