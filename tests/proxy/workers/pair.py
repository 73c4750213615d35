"""Both ends of a link in one event loop."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from proxy.workers.link import Handler, Link, connect


@dataclass
class Pair:
    worker: Link
    main: Link
    lost: list[str] = field(default_factory=list)


@asynccontextmanager
async def linked(worker: Mapping[str, Handler], main: Mapping[str, Handler]) -> AsyncIterator[Pair]:
    one, other = socket.socketpair()
    lost: list[str] = []
    pair = Pair(
        await connect(one, worker, lambda: lost.append("worker")),
        await connect(other, main, lambda: lost.append("main")),
        lost,
    )
    try:
        yield pair
    finally:
        pair.worker.close()
        pair.main.close()
