"""A circuit breaker: whether a replica that fails is asked at all. Pure; the caller says what time it is.

    closed     --failed often enough--------> open        nobody goes there until its cool-down is over
    open       --cool-down over, one probe--> half-open   one at a time
    half-open  --the probe was answered-----> closed      frail: the next failure opens it again
    half-open  --the probe failed-----------> open        for longer than before
    any        --a request was served-------> closed      and all is forgiven

How often is often enough depends on what went wrong. A refused connection, a time-out or somebody else's answer is
enough by itself; an engine that died on a request may have died of that request; an error of the engine's own may be
that request's fault.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import Enum

from .places import Outcome

COOL_DOWN_S = 5.0
LONGEST_S = 60.0
JITTER = 0.2
"""Cool-downs differ by up to this share, so that gateways do not probe in step."""

ENOUGH = {
    Outcome.UNREACHABLE: 1,
    Outcome.STRANGER: 1,
    Outcome.TIMED_OUT: 1,
    Outcome.BROKE_OFF: 3,
    Outcome.FAILED: 5,
}
"""Failures in a row after which an outcome opens the breaker. What is not here is no failure."""

_FRAIL = max(ENOUGH.values()) - 1


class State(Enum):
    CLOSED = "closed"
    """Goes on as usual."""
    OPEN = "open"
    """Ask others."""
    HALF_OPEN = "half_open"
    """Ask others: a probe is on its way."""


class Breaker:
    """Of one replica. Times are time.monotonic()'s seconds."""

    __slots__ = ("_failures", "_jitter", "_opened", "state", "until")

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self._jitter = jitter
        self._failures = 0
        self._opened = 0
        self.state = State.CLOSED
        self.until = 0.0
        """While it is open: when it may be probed."""

    @property
    def calm(self) -> bool:
        """There is nothing that a served request would have to forgive."""
        return self.state is State.CLOSED and not self._failures and not self._opened

    def may_be_probed(self, now: float) -> bool:
        return self.state is State.OPEN and now >= self.until

    def probe(self) -> None:
        """One is sent."""
        if self.state is not State.OPEN:
            raise ValueError(f"a breaker that is {self.state.value} is not probed")
        self.state = State.HALF_OPEN

    def probed(self, now: float, *, alive: bool) -> None:
        """How the probe has ended. It proves less than a request that was served."""
        if self.state is not State.HALF_OPEN:  # a request has been served meanwhile
            return
        if alive:
            self.state = State.CLOSED
            self._failures = _FRAIL
        else:
            self._open(now)

    def heard(self, outcome: Outcome, now: float) -> None:
        """How a request has ended."""
        if outcome is Outcome.SERVED:
            self.state = State.CLOSED
            self._failures = self._opened = 0
        elif outcome in ENOUGH and (self.state is State.CLOSED or self.may_be_probed(now)):
            # else it is of those that were on their way when it opened, and tells nothing new
            self._failures += 1
            if self._failures >= ENOUGH[outcome]:
                self._open(now)

    def _open(self, now: float) -> None:
        self.state = State.OPEN
        self._failures = 0
        cool_down_s = min(LONGEST_S, COOL_DOWN_S * 2.0**self._opened)
        self._opened = min(self._opened + 1, 16)
        self.until = now + cool_down_s * (1 + JITTER * (self._jitter() - 0.5) * 2)
