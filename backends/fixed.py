"""Engines that run already: a launcher that launches nothing (`urls = [...]` in the configuration)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FixedEndpoint:
    replica_id: str
    host: str
    port: int
    api_key: str = field(default="", repr=False)
    weight: float = 1.0
    limit: int | None = None
    ends_at: float | None = None


class FixedEndpoints:
    """The `Launcher` protocol over a fixed list of one model's engines, taken to be there."""

    def __init__(self, endpoints: Sequence[FixedEndpoint]) -> None:
        self._endpoints = tuple(endpoints)

    def endpoints(self, model: str) -> tuple[FixedEndpoint, ...]:
        return self._endpoints

    def need(self, model: str) -> None:
        """They run, or they do not: that is not ours to change."""

    async def changed(self, model: str) -> None:
        await asyncio.Event().wait()  # never

    def outlook(self, model: str) -> tuple[str, float | None]:
        return f"No engine of {model} can be reached.", 5.0
