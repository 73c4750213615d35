"""GET /v1/tribunal/deliberations/{id}: what a tribunal did for a request, by the id in its answer's header."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from proxy.deliberations import Deliberations
from proxy.record import record_of
from proxy.replies import send_json


class ShowDeliberation:
    """To the key that asked."""

    path = "/v1/tribunal/deliberations/{id}"

    def __init__(self, deliberations: Deliberations) -> None:
        self._deliberations = deliberations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint = self.path
        await send_json(send, await self._deliberations.show(record.key_id, scope["path_params"]["id"]))
