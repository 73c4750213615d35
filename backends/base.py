"""The seam: a Call goes in, a Reply comes out.

Backend    one verb (`run`) and a close
Call       one request on its way: what was asked, by whom, until when
Reply      one answer: status and bytes, or status and a stream of server-sent events
Launcher   what a backend needs of whoever starts engines
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import orjson

from .errors import GatewayError

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(slots=True)
class Usage:
    """Tokens of one request, as the engine counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Notes(Protocol):
    """Where backends tell what a request went through, for log, metrics and traces. What goes well is not told."""

    def attempt_failed(self, replica_id: str, reason: str) -> None:
        """An attempt at a replica has just failed. `reason` is the error's code."""

    def waited(self, seconds: float) -> None:
        """A wait in a queue has just ended, one way or the other."""


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
    content_type  of `raw`; for anything but JSON (an audio upload) `body` holds only the fields that are needed here
    priority    its class: 0 interactive, 1 batch (places.Priority)
    deadline    when nobody will wait for the answer any more, in time.monotonic() seconds; None if nobody said
    notes       where to tell what it went through; None: nobody wants to know
    headers     more header lines for the engine, each with its line end
    depth       0 for a client's own; 1 for one that a deliberation makes (tribunal/), which must not lead to another
    spread      the same is being asked elsewhere already: another replica is wanted, whatever prefixes it shares
    """

    id: str
    path: str
    model: str
    body: dict[str, Any]
    raw: bytes
    stream: bool = False
    key_id: str = ""
    content_type: bytes = b"application/json"
    priority: int = 0
    deadline: float | None = None
    notes: Notes | None = None
    headers: bytes = b""
    depth: int = 0
    spread: bool = False

    def with_body(self, body: dict[str, Any], path: str | None = None) -> Call:
        """The same call with another JSON body, and at another path of the engine if given."""
        return replace(self, body=body, raw=orjson.dumps(body), path=path or self.path)


@dataclass(slots=True)
class Reply:
    """A whole answer.

    served_by   the replica (or provider) that gave it, for the log
    model       the public name of the model that gave it, "" for the one that was asked
    headers     sent to the client beside those that every answer has
    """

    status: int
    content_type: bytes
    body: bytes
    usage: Usage | None = None
    served_by: str = ""
    model: str = ""
    headers: Headers = ()


class EventStream(ABC):
    """An answer that is still being made: iterate over it, then `close` it, whatever happened.

    Each item is one or more whole server-sent events. Iterating raises `GatewayError` when the engine fails midway.

    usage      None until the usage chunk has passed
    failure    set when the engine reported an error inside the stream (the event has been passed on)

    `served_by`, `model` and `headers` are as in `Reply`, and there before the first event.
    """

    __slots__ = ("failure", "headers", "model", "served_by", "usage")

    def __init__(self, served_by: str) -> None:
        self.served_by = served_by
        self.model = ""
        self.headers: Headers = ()
        self.usage: Usage | None = None
        self.failure: GatewayError | None = None

    def __aiter__(self) -> EventStream:
        return self

    @abstractmethod
    async def __anext__(self) -> bytes: ...

    def pass_to(self, sink: Callable[[bytes], bool]) -> None:  # noqa: B027  # a short cut that need not be there
        """From now on events may go to `sink` as they arrive, and not through the iteration, which goes on beside it.

        A sink returns False for what it cannot take; that comes through the iteration, in its place.
        """

    def pass_chunks_to(self, sink: Callable[[bytes], bool]) -> None:  # noqa: B027  # as above
        """... after `pass_to`: this sink takes an event inside one chunk of HTTP/1.1, as it was on the wire.
        Those that come so may go there, and to the other sink no more (framing.py)."""

    @abstractmethod
    def close(self) -> None:
        """Give the replica's slot back; if the stream has not ended, make the engine stop. May be called twice."""


class Backend(Protocol):
    """Something that answers for a model."""

    async def run(self, call: Call) -> Reply | EventStream:
        """Answer, or raise `GatewayError`. Cancelling it, or closing its stream, frees everything under it."""

    def in_flight(self, replica_id: str) -> int:
        """Requests that this backend has on a replica now."""

    async def aclose(self) -> None:
        """Close idle connections. Streams still open are the caller's to close."""


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

    @property
    def weight(self) -> float:
        """How much it can take compared with the model's other replicas: 2.0 gets twice the load of 1.0."""

    @property
    def limit(self) -> int | None:
        """Requests it takes at once, where somebody knows: the engine's own limit or the configured one."""

    @property
    def ends_at(self) -> float | None:
        """When it will be gone, in seconds since the epoch; None where nobody knows, or never."""


class Launcher(Protocol):
    """What a backend needs of whoever starts engines."""

    def endpoints(self, model: str) -> Sequence[Endpoint]:
        """The replicas that take requests now. The same object until something changed, so that `is` tells."""

    def need(self, model: str) -> None:
        """Somebody wants this model: a hint for whoever decides how many replicas there are."""

    async def changed(self, model: str) -> None:
        """Return when the endpoints or the outlook of the model have changed. Cancelling it is safe."""

    def identity(self, model: str, replica_id: str, *, ours: bool) -> None:
        """Somebody else answers at this replica's address, or (`ours`) its engine has been proven by its key again."""

    def outlook(self, model: str) -> tuple[str, float | None]:
        """Why nothing is ready, in one sentence for the user, and in how many seconds another try makes sense.

        None seconds: it is starting, so waiting may help. A number: it failed, so do not wait.
        """
