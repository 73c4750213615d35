"""What only some requests have to tell: retries, waits, refusals, and what tracing needs. Most have none of it.

For the log line, the metrics and the spans, which are made when the request is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from backends.errors import EngineRefused, GatewayError, QueueFull, QuotaExceeded, RateLimited, Unavailable

if TYPE_CHECKING:
    from opentelemetry.trace import Span

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
class Trail:
    """client_id   the client's own id of the request
    asked       the public name of the model that was asked, where another one answered, or spans are made
    fallback    why another model answered
    refusal     why it got a 429 or 503: one of our words
    limit       the kind of limit that it was over
    headers     more header lines for the engine
    body        what was asked, parsed, where spans are made
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
