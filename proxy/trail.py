"""What only some requests have to tell: retries, waits, refusals, and what tracing needs. Most have none of it.

For the log line, the metrics and the spans, which are made when the request is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from backends.base import Usage
from backends.errors import EngineRefused, GatewayError, QueueFull, QuotaExceeded, RateLimited, Unavailable

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from tribunal.backend import Deliberated

    from .limits.seam import Pass

CLIENT_ID_CHARS = 128
_ID_BYTES = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:+/=@")


_WAITED_TOO_LONG = ("queue_timeout", "deadline_exceeded")
_REFUSALS: tuple[tuple[type[GatewayError], str], ...] = (
    (QuotaExceeded, "quota"),
    (RateLimited, "rate_limit"),
    (QueueFull, "queue_full"),
    (EngineRefused, "engine_overloaded"),
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One that failed, `at_s` seconds after the request's arrival. `reason` is an error's code."""

    at_s: float
    replica_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """One in a queue, over `at_s` seconds after the request's arrival."""

    at_s: float
    seconds: float


@dataclass(slots=True)
class Children:
    """The calls that were made for one request: how many, those that run, and the tokens of those that have ended."""

    calls: int = 0
    running: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    _pass: Pass | None = None
    _waiter: asyncio.Future[None] | None = None

    async def end(self) -> None:
        """Return when none runs any more: those that were cancelled take a moment for it."""
        if self.running:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def leave(self, granted: Pass) -> None:
        """The request is over. Its pass is given back when the last child has ended: then it is known what all used."""
        self._pass = granted
        self._settle()

    def ended(self, usage: Usage | None) -> None:
        self.running -= 1
        if usage is not None:
            self.prompt_tokens += usage.prompt_tokens
            self.completion_tokens += usage.completion_tokens
        if not self.running and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._settle()

    def _settle(self) -> None:
        if self._pass is not None and not self.running:
            self._pass.leave(self.prompt_tokens + self.completion_tokens)


@dataclass(slots=True)
class Trail:
    """client_id   the client's own id of the request
    asked       the public name of the model that was asked, where another one answered, or spans are made
    fallback    why another model answered
    refusal     why it got a 429 or 503: one of our words
    limit       the kind of limit that it was over
    headers     more header lines for the engine
    body        what was asked, parsed, where spans are made
    children    the calls of other models that were made for it, None for a request of one model
    deliberated  what became of them
    request     the client's text, and `response` ours: only where privacy was switched off
    """

    failed: list[Attempt] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    client_id: str = ""
    asked: str = ""
    fallback: str = ""
    refusal: str = ""
    limit: str = ""
    headers: bytes = b""
    body: dict[str, Any] | None = field(default=None, repr=False)
    request: str = field(default="", repr=False)
    response: str = field(default="", repr=False)
    span: Span | None = None
    children: Children | None = None
    deliberated: Deliberated | None = field(default=None, repr=False)

    def failed_at(self, at_s: float, replica_id: str, reason: str) -> None:
        self.failed.append(Attempt(at_s, replica_id, reason))

    def waited_until(self, at_s: float, seconds: float) -> None:
        self.waits.append(Wait(at_s, seconds))

    def fields(self, *, served: bool) -> dict[str, object]:
        """For the request's log line: those that say something. `served`: an attempt went well, too."""
        fields: dict[str, object] = {}
        if self.client_id:
            fields["client_request_id"] = self.client_id
        if queue_ms := round(sum(wait.seconds for wait in self.waits) * 1000, 2):
            fields["queue_ms"] = queue_ms
        if (attempts := len(self.failed) + served) > 1:
            fields["attempts"] = attempts
            fields["failed_attempts"] = [{"replica": a.replica_id, "error": a.reason} for a in self.failed]
        if self.fallback:
            fields["asked_model"] = self.asked
            fields["fallback"] = self.fallback
        if self.refusal:
            fields["refusal"] = self.refusal
        if (children := self.children) is not None:
            fields["calls"] = children.calls
            fields["calls_prompt_tokens"] = children.prompt_tokens
            fields["calls_completion_tokens"] = children.completion_tokens
        if self.deliberated is not None:
            trace = self.deliberated.trace
            fields |= {"deliberation": self.deliberated.id, "outcome": trace.outcome, "verdict": trace.verdict}
            if trace.degraded:
                fields["degraded"] = trace.degraded
        if self.request:
            fields["request"] = self.request
        if self.response:
            fields["response"] = self.response
        return fields


def refusal_of(error: GatewayError) -> str:
    """Why a request got a 429 or 503, "" for other errors. A metric's label: few words, all ours."""
    if error.status not in (429, 503):
        return ""
    if isinstance(error, Unavailable):
        return error.code if error.code in _WAITED_TOO_LONG else "unavailable"
    return next((word for kind, word in _REFUSALS if isinstance(error, kind)), "other")


def limit_of(error: GatewayError) -> str:
    """The kind of limit that a request was over: requests, tokens, insufficient_quota; "" if it was over none."""
    return error.type if isinstance(error, RateLimited) else ""


def client_id_of(headers: Mapping[bytes, bytes]) -> str:
    """The client's own id of its request, `x-client-request-id` or else `x-request-id`; "" for none.

    What does not look like an id is not kept at all, so that nothing else gets into the log this way.
    """
    found = headers.get(b"x-client-request-id") or headers.get(b"x-request-id") or b""
    return found.decode("ascii") if len(found) <= CLIENT_ID_CHARS and _ID_BYTES.issuperset(found) else ""
