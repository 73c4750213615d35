"""GET /v1/models and /v1/models/{id}: the names that a key may ask by. Ids may hold `/`."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from proxy.record import record_of
from proxy.registry import Registry
from proxy.replies import send_json


class ListModels:
    path = "/v1/models"

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint = self.path
        await send_json(send, {"object": "list", "data": list(self._registry.cards(record.principal))})


class ShowModel:
    path = "/v1/models/{id:path}"

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint = "/v1/models/{id}"
        name = scope["path_params"]["id"]
        await send_json(send, self._registry.find(name, record.principal).card(name))
