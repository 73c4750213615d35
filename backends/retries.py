"""Whether a request that has failed may be tried once more. Pure; nothing of an answer has been passed on yet.

| what happened                                    | tried again                                     | from the budget |
|--------------------------------------------------|-------------------------------------------------|-----------------|
| no connection                                    | at every other replica: it has cost them nothing | no             |
| somebody else answers there                      | at every other one, and never there again       | no              |
| closed, or silent for too long, without one byte | once: the request itself may be the cause        | yes            |
| the engine has no room: 429, 503                 | `OVERLOADS` times, where there is room or will be | yes           |
| anything else                                    | never                                           |                 |
"""

from __future__ import annotations

from .errors import ConnectFailed, Disconnected, EngineRefused, EngineTimeout, GatewayError, NotTheEngine, Unavailable
from .retry_budget import RetryBudget

RESENDS = 1
"""A request that an engine took and died on is tried once more elsewhere: not on every replica, it may be its cause."""

OVERLOADS = 3
COMEBACKS = 3
"""A replica that could not be reached may be the only one, and be tried again after a wait, so many times."""

DO_NOT_RETRY = {b"x-should-retry": b"false"}
"""For the official SDK, which would send such a request twice more."""


def is_overload(error: GatewayError) -> bool:
    """Of errors that came from an engine."""
    return isinstance(error, EngineRefused | Unavailable) and error.status in (429, 503)


class Retries:
    """Of one request.

    avoid     the replicas that have failed it
    failure   the last failure, which the client shall see if nothing else helps
    over      there is nowhere to try it
    """

    __slots__ = ("_budget", "_comebacks", "_overloads", "_resends", "avoid", "failure", "over")

    def __init__(self, budget: RetryBudget) -> None:
        self._budget = budget
        self._resends = 0
        self._overloads = 0
        self._comebacks = 0
        self.avoid: frozenset[str] = frozenset()
        self.failure: GatewayError | None = None
        self.over = False

    def failed_at(self, replica_id: str) -> None:
        if replica_id in self.avoid:
            self._comebacks += 1
        self.avoid |= {replica_id}

    def may_go_on(self, error: GatewayError, now: float) -> bool:
        """Decides, and counts. `now` in seconds."""
        self.failure = error
        if self.over:
            return False
        match error:
            case ConnectFailed():
                return self._comebacks < COMEBACKS
            case NotTheEngine():
                return not self._comebacks
            case Disconnected() | EngineTimeout():
                return self._may_be_resent(error, now)
        if is_overload(error) and self._overloads < OVERLOADS and self._budget.retry(now):
            self._overloads += 1
            return True
        return False

    def _may_be_resent(self, error: Disconnected | EngineTimeout, now: float) -> bool:
        if self._resends >= RESENDS:
            error.headers = DO_NOT_RETRY
            return False
        untouched = not error.received if isinstance(error, Disconnected) else error.phase == "first byte"
        if untouched and self._budget.retry(now):
            self._resends += 1
            return True
        return False
