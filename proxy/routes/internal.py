"""POST /internal/replicas/{id}: where agents report. Each shows its own token, which opens nothing else."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from backends.errors import InvalidRequest, NotAuthenticated
from proxy.bodies import BodyReader, parse_object
from proxy.record import record_of
from proxy.replies import send_json
from slurm_launcher.loop import Launcher
from slurm_launcher.reports import BadReport, parse_report

_BEARER = b"Bearer "


class Reports:
    path = "/internal/replicas/{id}"

    def __init__(self, launcher: Launcher, bodies: BodyReader) -> None:
        self._launcher = launcher
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint, record.quiet = self.path, True
        replica_id = scope["path_params"]["id"]
        authorization = dict(scope["headers"]).get(b"authorization", b"")
        token = authorization.removeprefix(_BEARER).decode("latin-1")
        if not self._launcher.is_agent(replica_id, token):
            raise NotAuthenticated("Not this replica's token.")
        try:
            report = parse_report(replica_id, parse_object(await self._bodies.read(receive)))
        except BadReport as error:
            raise InvalidRequest(str(error), code="bad_report") from None
        command, in_flight = self._launcher.report(report)
        await send_json(send, {"command": command, "in_flight": in_flight})
