"""Waiting for what cannot be awaited: another process, a file, a counter."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def until(condition: Callable[[], T], timeout_s: float = 30.0, every_s: float = 0.005) -> T:
    """The condition's first true value. Raises `TimeoutError`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s")
        await asyncio.sleep(every_s)
    return value


def until_sync(condition: Callable[[], T], timeout_s: float = 30.0, every_s: float = 0.02) -> T:
    """The same for tests without an event loop."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s")
        time.sleep(every_s)
    return value
