"""Engines that run already: a launcher that launches nothing (`urls = [...]` in the configuration)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class FixedEndpoint:
    replica_id: str
    host: str
    port: int
    api_key: str = field(default="", repr=False)
    weight: float = 1.0
    limit: int | None = None
    ends_at: float | None = None


class Log(Protocol):
    """As structlog's bound loggers: an event and its fields."""

    def info(self, event: str, **fields: Any) -> Any: ...
    def warning(self, event: str, **fields: Any) -> Any: ...


class FixedEndpoints:
    """The `Launcher` protocol over a fixed list of one model's engines, taken to be there. `log`: None says nothing."""

    def __init__(self, endpoints: Sequence[FixedEndpoint], log: Log | None = None) -> None:
        self._endpoints = tuple(endpoints)
        self._log = log

    def endpoints(self, model: str) -> tuple[FixedEndpoint, ...]:
        return self._endpoints

    def need(self, model: str) -> None:
        """They run, or they do not: that is not ours to change."""

    async def changed(self, model: str) -> None:
        await asyncio.Event().wait()  # never

    def identity(self, model: str, replica_id: str, *, ours: bool) -> None:
        if self._log is None:
            return
        if ours:
            self._log.info("engine_proven_again", model=model, replica=replica_id)
        else:
            self._log.warning("engine_is_a_stranger", model=model, replica=replica_id)

    def outlook(self, model: str) -> tuple[str, float | None]:
        return f"No engine of {model} can be reached.", 5.0
