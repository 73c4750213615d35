"""The seam: a Call goes in, a Reply comes out.

Backend    one verb (`run`) and a close
Call       one request on its way: what was asked, by whom, until when
Reply      one answer: status and bytes, or status and a stream of server-sent events
Launcher   what a backend needs of whoever starts engines
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(slots=True)
class Usage:
    """Tokens of one request, as the engine counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(slots=True)
class Call:
    """One request on its way to a model.

    id          the request id, `req_...`, sent to the engine as `x-request-id`
    path        the OpenAI path, such as `/v1/chat/completions`
    model       the public model name, as the client wrote it
    body        the parsed JSON object; not changed in place: a backend that needs another body makes one
    raw         the bytes `body` was parsed from, forwarded untouched when nothing has to change
    stream      the client asked for server-sent events
    key_id      whose request it is (accounting), "" without keys
    """

    id: str
    path: str
    model: str
    body: dict[str, Any]
    raw: bytes
    stream: bool = False
    key_id: str = ""


def _nothing() -> None:
    return None


@dataclass(slots=True)
class Reply:
    """One answer on its way to the client.

    body    the whole body, or an iterator of bytes: each item is one or more whole server-sent events.
            Iterating raises `GatewayError` when the engine fails midway.
    usage   None until known; for a stream, filled in when the usage chunk has passed
    served_by   the replica (or provider) that answered, for the log

    `close` must be called, always, and may be called twice: it gives the replica's slot back and, if the body has not
    ended, closes the engine's connection so that it stops generating.
    """

    status: int
    content_type: bytes
    body: bytes | AsyncIterator[bytes]
    usage: Usage | None = None
    served_by: str = ""
    on_close: Callable[[], None] = field(default=_nothing)

    def close(self) -> None:
        on_close, self.on_close = self.on_close, _nothing
        on_close()


class Backend(Protocol):
    """Something that answers for a model."""

    async def run(self, call: Call) -> Reply:
        """Answer, or raise `GatewayError`. Cancelling it, or closing its reply, frees everything under it."""

    async def aclose(self) -> None:
        """Close idle connections. Replies still open are the caller's to close."""


class Endpoint(Protocol):
    """A replica that takes requests, as a launcher knows it."""

    @property
    def replica_id(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def api_key(self) -> str:
        """The replica's own key, "" for none."""


class Launcher(Protocol):
    """What a backend needs of whoever starts engines."""

    def endpoints(self, model: str) -> Sequence[Endpoint]:
        """The replicas that take requests now. The same object until something changed, so that `is` tells."""

    def need(self, model: str) -> None:
        """Somebody wants this model: a hint for whoever decides how many replicas there are."""

    async def changed(self, model: str) -> None:
        """Return when the endpoints or the outlook of the model have changed. Cancelling it is safe."""

    def outlook(self, model: str) -> tuple[str, float | None]:
        """Why nothing is ready, in one sentence for the user, and in how many seconds another try makes sense.

        None seconds: it is starting, so waiting may help. A number: it failed, so do not wait.
        """
