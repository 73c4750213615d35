"""POST /admin/reload: the configuration is read again and gone by."""

from __future__ import annotations

from dataclasses import asdict

from starlette.types import Receive, Scope, Send

from backends.errors import InvalidRequest
from proxy.config import ConfigError
from proxy.control import Control
from proxy.record import record_of
from proxy.replies import send_json


class Reload:
    path = "/admin/reload"

    def __init__(self, control: Control) -> None:
        self._control = control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record_of(scope).endpoint = self.path
        try:
            done = await self._control.reload()
        except ConfigError as error:
            raise InvalidRequest(f"Nothing was changed. {error}", code="invalid_configuration") from None
        await send_json(send, {"object": "reload", "summary": done.sentence(), **asdict(done)})
