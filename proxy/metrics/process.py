"""The process itself: CPU, memory, descriptors, how late its event loop is, what it is built of."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from . import families as f
from .counting import Histogram
from .state import State

if TYPE_CHECKING:
    from prometheus_client import ProcessCollector

LAG_EVERY_S = 0.5

_SAMPLES = {family.shown: family.name for family in (f.CPU, f.RESIDENT, f.VIRTUAL, f.OPEN_FDS, f.MAX_FDS, f.STARTED)}


@cache
def _collector() -> ProcessCollector:
    from prometheus_client import ProcessCollector  # noqa: PLC0415  # as in metrics/__init__.py

    return ProcessCollector(registry=None)


@cache
def _build() -> list[str]:
    try:
        ours = version("slurmgate")
    except PackageNotFoundError:  # run from its sources
        ours = "unknown"
    return [ours, platform.python_version()]


def state_of_process() -> State:
    """Now. Where there is no /proc, only what runs is told."""
    state: State = {f.PROCESSES.name: [([], 1)], f.BUILD.name: [(_build(), 1)]}
    for metric in _collector().collect():
        for sample in metric.samples:
            if name := _SAMPLES.get(sample.name):
                state[name] = [([], sample.value)]
    return state


async def watch_loop(lag: Histogram, also: Callable[[], None]) -> None:
    """Until it is cancelled: how late the loop comes to a timer. What blocks the loop delays every stream as much.

    also   is called each time
    """
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_EVERY_S
        await asyncio.sleep(LAG_EVERY_S)
        lag.observe(max(0.0, loop.time() - due))
        also()
