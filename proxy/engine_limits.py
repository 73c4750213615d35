"""What engines say of their own limits, where the configuration does not: each replica is asked once it is there.

How many requests one takes at once goes to the places of its model; how long its context is, to whoever asks here. What
cannot be asked now is asked again; whether it can answer requests is not decided here.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from backends.base import Endpoint
from backends.base import Launcher as EngineSource
from backends.engine_info import ASKABLE, ask
from backends.errors import TransportError

ASK_S = 2.0
"""Between two looks at which engines have come."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A model whose engines are asked."""

    engine: str
    source: EngineSource


class EngineLimits:
    """models   all whose limits the configuration leaves open; those whose engine says nothing are left out
    on_limit    (model, replica id, requests that it takes at once)
    """

    def __init__(self, models: Mapping[str, Asked], on_limit: Callable[[str, str, int], None]) -> None:
        self._models = {name: model for name, model in models.items() if model.engine in ASKABLE}
        self._on_limit = on_limit
        self._context: dict[str, int] = {}
        self._told: set[tuple[str, str, str, int]] = set()

    def context_length(self, model: str) -> int | None:
        """In tokens, prompt and answer together; None until an engine has said."""
        return self._context.get(model)

    async def run(self) -> None:
        """Look for new replicas, for ever."""
        if any(model.engine == "tgi" for model in self._models.values()):
            # a third of a second, in which requests go on
            await asyncio.to_thread(importlib.import_module, "huggingface_hub")
        while self._models:
            there: set[tuple[str, str, str, int]] = set()
            for name, model in self._models.items():
                for endpoint in model.source.endpoints(name):
                    which = (name, endpoint.replica_id, endpoint.host, endpoint.port)
                    there.add(which)
                    if which not in self._told and await self._ask(name, model.engine, endpoint):
                        self._told.add(which)
            self._told &= there
            await asyncio.sleep(ASK_S)

    async def _ask(self, name: str, engine: str, endpoint: Endpoint) -> bool:
        """Whether it has answered."""
        try:
            info = await ask(engine, endpoint)
        except TransportError:
            return False
        if info.takes is not None:
            self._on_limit(name, endpoint.replica_id, info.takes)
        if info.context_length is not None:
            self._context[name] = info.context_length
        return True
