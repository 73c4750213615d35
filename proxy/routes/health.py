"""GET /health (this process answers), /ready (a model can answer), /metrics (Prometheus)."""

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
    """200 as soon as one model can answer: one broken model must not take the others out of a load balancer. One at
    zero counts, since its first request starts it: a load balancer that kept that away would keep it at zero.

    endpoints   gives the number of replicas that take requests, by model
    state_of    a model's state, as `/v1/models` shows it
    privacy     as it was configured
    """

    path = "/ready"

    def __init__(
        self, endpoints: Callable[[], Mapping[str, int]], state_of: Callable[[str], str], privacy: bool = True
    ) -> None:
        self._endpoints = endpoints
        self._state_of = state_of
        self._privacy = privacy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint, record.quiet = self.path, True
        models = self._endpoints()
        ready = not models or any(self._state_of(model) in ("ready", "idle") for model in models)
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
