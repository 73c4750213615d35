"""GET /health (this process answers), /ready (a model answers), /metrics (Prometheus)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.types import Receive, Scope, Send

from proxy.metrics import State, exposition
from proxy.record import record_of
from proxy.replies import send_bytes, send_json


class Health:
    path = "/health"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint, record.quiet = self.path, True
        await send_json(send, {"status": "ok"})


class Ready:
    """200 as soon as one model can answer: one broken model must not take the others out of a load balancer.

    `endpoints` gives the number of replicas that take requests, by model; `privacy` as it was configured.
    """

    path = "/ready"

    def __init__(self, endpoints: Callable[[], Mapping[str, int]], privacy: bool = True) -> None:
        self._endpoints = endpoints
        self._privacy = privacy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint, record.quiet = self.path, True
        models = self._endpoints()
        ready = any(models.values()) or not models
        body: dict[str, object] = {"status": "ready" if ready else "starting", "models": models}
        if not self._privacy:
            body["privacy"] = False  # who sends prompts may want to know
        await send_json(send, body, 200 if ready else 503)


class ShowMetrics:
    path = "/metrics"

    """`numbers` gives those of all processes together."""

    def __init__(self, numbers: Callable[[], Awaitable[State]]) -> None:
        self._numbers = numbers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint, record.quiet = self.path, True
        accept = dict(scope["headers"]).get(b"accept", b"").decode("latin-1")
        text, content_type = exposition(await self._numbers(), accept)
        await send_bytes(send, 200, content_type.encode(), text)
