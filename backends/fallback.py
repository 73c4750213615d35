"""Another model answers when the one that was asked cannot.

    asked --its failure is a reason?--> the next link whose `on` has that reason --> ... --> the error of the one asked

A link is tried only while the client has got nothing: a stream counts from its first event, so that one is waited for
here. The caller's own mistakes are no reason, whoever reports them: another model would find them, too. Only where a
link's model lacks something that the one asked may well have (a parameter, an endpoint), the next one is tried.

The answer says who gave it: `model` is in the reply itself (a backend answers with the name it is asked by) and in the
header `x-slurmgate-model`; `x-slurmgate-fallback` has the reason why the model that was asked did not answer.

Chains are flat. Where a link's model has links of its own, these follow it, each model once: see `flattened`.
Circles never get here: the configuration refuses them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import quote

from .base import Backend, Call, EventStream, Headers, Reply
from .errors import GatewayError

Reason = Literal["unavailable", "overloaded", "context"]
REASONS: tuple[Reason, ...] = ("unavailable", "overloaded", "context")

_CANNOT_STAND_IN = {"unsupported_parameter", "unsupported_endpoint", "endpoint_not_supported", "not_supported"}
_ERROR_EVENT = b'data: {"error":'


@dataclass(frozen=True, slots=True)
class Link:
    """One model to fall back to, and on which reasons."""

    model: str
    on: frozenset[Reason] = frozenset(REASONS)


def reason_of(error: GatewayError) -> Reason | None:
    """Why another model may be asked; None for what the caller has to mend.

    unavailable   503 and every other failure to answer: not reached, timed out, broken off, an engine's 500
    overloaded    429
    context       400 `context_length_exceeded`: a model with a longer context may take it
    """
    if error.code == "context_length_exceeded":
        return "context"
    if error.status == 429:
        return "overloaded"
    return "unavailable" if error.status >= 500 else None


def flattened(model: str, links: Mapping[str, Sequence[Link]]) -> list[Link]:
    """All links that follow a model, depth first, each model once."""
    found: dict[str, Link] = {}

    def walk(name: str) -> None:
        for link in links.get(name, ()):
            if link.model != model and link.model not in found:
                found[link.model] = link
                walk(link.model)

    walk(model)
    return list(found.values())


def with_fallbacks(backends: Mapping[str, Backend], links: Mapping[str, Sequence[Link]]) -> dict[str, Backend]:
    """The same backends, those that have links with their chain around them."""
    return {
        name: FallbackBackend(name, backend, [(link, backends[link.model]) for link in flattened(name, links)])
        if links.get(name)
        else backend
        for name, backend in backends.items()
    }


class FallbackBackend:
    """A model and those that stand in for it. The backends belong to whoever made them, who closes them."""

    def __init__(self, model: str, backend: Backend, chain: Sequence[tuple[Link, Backend]]) -> None:
        self._model = model
        self._backend = backend
        self._chain = tuple(chain)

    async def run(self, call: Call) -> Reply | EventStream:
        try:
            return _signed(await _begun(self._backend, call), self._model, None)
        except GatewayError as error:
            asked, reason = error, reason_of(error)
        if reason is None or not call.content_type.startswith(b"application/json"):
            raise asked  # in an upload the model's name is a part that nothing here rewrites
        failures = [asked]
        why = reason
        for link, backend in self._chain:
            if why not in link.on:
                continue
            theirs = replace(call.with_body({**call.body, "model": link.model}), model=link.model)
            try:
                return _signed(await _begun(backend, theirs), link.model, reason)
            except GatewayError as error:
                if error.code in _CANNOT_STAND_IN:
                    continue
                failures.append(error)
                theirs_why = reason_of(error)
                if theirs_why is None:
                    raise
                why = theirs_why
        raise _worth_telling(failures)

    def in_flight(self, replica_id: str) -> int:
        """None of its own: the backends in the chain count theirs."""
        return 0

    async def aclose(self) -> None:
        """Nothing of its own to close."""


def _worth_telling(failures: Sequence[GatewayError]) -> GatewayError:
    """What the client shall see when nobody could answer: why the model that was asked did not. But "too long" would
    say that there is no use in trying again, which is not so where another one was only busy."""
    return next((error for error in failures if reason_of(error) != "context"), failures[0])


async def _begun(backend: Backend, call: Call) -> Reply | EventStream:
    """An answer that has begun: of a stream, the first event is there. Raises `GatewayError` if that is an error."""
    answer = await backend.run(call)
    if isinstance(answer, Reply):
        return answer
    try:
        first = await anext(answer, b"")
    except BaseException:
        answer.close()
        raise
    if first.startswith(_ERROR_EVENT):
        answer.close()
        if answer.failure is not None:
            raise answer.failure
    return BegunStream(answer, first)


def _signed(answer: Reply | EventStream, model: str, reason: Reason | None) -> Reply | EventStream:
    headers: Headers = ((b"x-slurmgate-model", quote(model, safe="!#$&'()*+,/:;=?@[]~").encode()),)
    if reason is not None:
        headers += ((b"x-slurmgate-fallback", reason.encode()),)
    answer.model = model
    answer.headers += headers
    return answer


class BegunStream(EventStream):
    """A stream whose first event has been taken already."""

    __slots__ = ("_first", "_stream")

    def __init__(self, stream: EventStream, first: bytes) -> None:
        super().__init__(stream.served_by)
        self.headers = stream.headers
        self._stream = stream
        self._first = first

    async def __anext__(self) -> bytes:
        if first := self._first:
            self._first = b""
            return first
        return await anext(self._stream)

    def close(self) -> None:
        self._stream.close()
        self.usage = self._stream.usage
        self.failure = self._stream.failure
