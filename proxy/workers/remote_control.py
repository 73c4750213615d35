"""`proxy.control.Control` in a worker: a messenger to main, and what main has told last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from backends.errors import NotAuthenticated
from proxy.config import Config
from proxy.control import BatchWork
from proxy.local_control import defaults_of
from proxy.metrics import State
from proxy.reload import Changes

from .link import Link
from .messages import Models, reloaded_from, work_to
from .remote_limits import RemoteLimits


class RemoteControl:
    """models     what main says of the models; it says so again when anything about them has changed
    is_agent   (replica id, token): worked out from the secret in the state directory, so main need not be asked
    """

    def __init__(self, link: Link, config: Config, models: Models, is_agent: Callable[[str, str], bool]) -> None:
        self.limits = RemoteLimits(link, defaults_of(config))
        self.models = models
        self._link = link
        self._is_agent = is_agent

    def configure(self, config: Config) -> None:
        """Go by another configuration."""
        self.limits.configure(defaults_of(config))

    def endpoints(self) -> Mapping[str, int]:
        return {name: model.endpoints for name, model in self.models.items()}

    def state_of(self, model: str) -> str:
        known = self.models.get(model)
        return known.state if known is not None else "starting"

    def context_length(self, model: str) -> int | None:
        known = self.models.get(model)
        return known.context_length if known is not None else None

    def seats(self, model: str) -> int | None:
        known = self.models.get(model)
        return known.seats if known is not None else None

    def tell_batches(self, work: Mapping[str, BatchWork], process: object = None) -> None:
        self._link.tell("batches", work_to(work))

    def check_agent(self, replica_id: str, token: str) -> None:
        if not self._is_agent(replica_id, token):
            raise NotAuthenticated("Not this replica's token.")

    async def report(self, replica_id: str, body: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = await self._link.ask("report", replica_id, body)
        return answer

    async def reload(self) -> Changes:
        return reloaded_from(await self._link.ask("reload"))

    async def operate(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = await self._link.ask("operate", verb, arguments)
        return answer

    async def metrics(self) -> State:
        """Of all processes together."""
        state: State = await self._link.ask("metrics")
        return state
