"""The seam between who asks a model and who knows what may be used: two verbs in, one out."""

from __future__ import annotations

from typing import Protocol

from proxy.principals import Principal

Headers = tuple[tuple[bytes, bytes], ...]


class Pass(Protocol):
    """Leave to go on. `headers` are `x-ratelimit-*`, true when it was given; () without limits."""

    @property
    def headers(self) -> Headers: ...

    def leave(self, tokens: int | None) -> None:
        """The request is over; the second time does nothing. `tokens` it used, None where nobody can say: then what
        was taken stays taken."""


class Admission(Protocol):
    """Who decides."""

    def concerns(self, principal: Principal) -> bool:
        """Whether there is anything to ask for it. Asked for each request."""

    def enter(self, principal: Principal, model: str, tokens: int) -> Pass | None:
        """Let a request in that will take about so many tokens; None where it takes an `ask`. Raises as `ask` does."""

    async def ask(self, principal: Principal, model: str, tokens: int) -> Pass:
        """The same. Cancelling it takes nothing. Raises `RateLimited`, `QuotaExceeded`, with the headers on it."""
