"""POST /internal/replicas/{id}: where agents report. Each shows its own token, which opens nothing else."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from proxy.bodies import BodyReader, parse_object
from proxy.control import Control
from proxy.record import record_of
from proxy.replies import send_json

_BEARER = b"Bearer "


class Reports:
    path = "/internal/replicas/{id}"

    def __init__(self, control: Control, bodies: BodyReader) -> None:
        self._control = control
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint, record.quiet = self.path, True
        replica_id = scope["path_params"]["id"]
        authorization = dict(scope["headers"]).get(b"authorization", b"")
        token = authorization.removeprefix(_BEARER).decode("latin-1")
        self._control.check_agent(replica_id, token)
        body = parse_object(await self._bodies.read(receive))
        await send_json(send, await self._control.report(replica_id, body))
