"""What engines say of their own limits, where the configuration does not: asked once a replica is there.

Only TGI has a control side that tells (`/info`), by huggingface-hub. Other engines' context lengths are known from the
configuration or not at all.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping

from backends.base import Launcher as EngineSource
from backends.dialects.tgi_control import Control
from backends.errors import TransportError

ASK_S = 2.0
"""Between two looks at which engines have come."""


class EngineLimits:
    """sources: of the TGI models whose context length the configuration leaves open."""

    def __init__(self, sources: Mapping[str, EngineSource]) -> None:
        self._sources = sources
        self._context: dict[str, int] = {}

    def context_length(self, model: str) -> int | None:
        """In tokens, prompt and answer together; None until an engine has said."""
        return self._context.get(model)

    async def run(self) -> None:
        """Ask until every model is known."""
        if self._sources:
            # a third of a second, in which requests go on
            await asyncio.to_thread(importlib.import_module, "huggingface_hub")
        while unknown := [model for model in self._sources if model not in self._context]:
            for model in unknown:
                for endpoint in self._sources[model].endpoints(model)[:1]:
                    await self._ask(model, f"http://{endpoint.host}:{endpoint.port}", endpoint.api_key)
            await asyncio.sleep(ASK_S)

    async def _ask(self, model: str, url: str, key: str) -> None:
        try:
            info = await Control(url, key).info()
        except TransportError:
            return  # it is asked again; whether it can answer requests is not decided here
        self._context[model] = info.max_total_tokens or 0
