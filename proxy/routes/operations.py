"""/admin about models and replicas: how things stand, how many there shall be, which to let go."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from backends.errors import InvalidRequest
from proxy.bodies import BodyReader, parse_object
from proxy.config import ConfigError
from proxy.control import Control
from proxy.replies import send_json

from .admin_shared import administrator

OVERVIEW = "/admin/overview"
SCALE = "/admin/models/{id:path}/scale"
RESTART = "/admin/models/{id:path}/restart"
DRAIN = "/admin/replicas/{id}/drain"
RELOAD = "/admin/reload"


class Operate:
    """One verb of `operations.Operations`: its arguments come from the path and, with `takes_body`, from the body."""

    def __init__(self, path: str, verb: str, control: Control, bodies: BodyReader, *, takes_body: bool = False) -> None:
        self._path = path.replace(":path", "")
        self._verb = verb
        self._control = control
        self._bodies = bodies
        self._takes_body = takes_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        administrator(scope, self._path)
        arguments: dict[str, Any] = parse_object(await self._bodies.read(receive)) if self._takes_body else {}
        await send_json(send, await self._control.operate(self._verb, {**arguments, **scope["path_params"]}))


class Reload:
    """The configuration is read again and gone by."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        administrator(scope, RELOAD)
        try:
            done = await self._control.reload()
        except ConfigError as error:
            raise InvalidRequest(f"Nothing was changed. {error}", code="invalid_configuration") from None
        await send_json(send, {"object": "reload", "summary": done.sentence(), **asdict(done)})


def operation_routes(control: Control, bodies: BodyReader) -> list[Route]:
    return [
        Route(OVERVIEW, Operate(OVERVIEW, "overview", control, bodies), methods=["GET"]),
        Route(SCALE, Operate(SCALE, "scale", control, bodies, takes_body=True), methods=["POST"]),
        Route(RESTART, Operate(RESTART, "restart", control, bodies), methods=["POST"]),
        Route(DRAIN, Operate(DRAIN, "drain", control, bodies), methods=["POST"]),
        Route(RELOAD, Reload(control), methods=["POST"]),
    ]
