"""Where a request runs: the seam between a model's backend and whoever knows the load of all its replicas.

Places   of one model: gives seats, at once or after a wait in the model's queue
Seat     a place at one replica, until `leave` says how it went
Outcome  how it went, as far as the replica is concerned: what the circuit breaker and the limits learn from
Want     what a request asks for, as values that can be sent to another process

`ModelPlaces` (model_places.py) decides in this process. With several worker processes one process decides for all, and
the others ask it (proxy/workers/): so limits, queue and fairness are those of the whole gateway.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Protocol

from .base import Call, Endpoint


class Priority(IntEnum):
    """Classes of requests: all that wait in a lower one go first."""

    INTERACTIVE = 0
    BATCH = 1


class Outcome(Enum):
    """How a request at a replica ended. Values are what stands in messages between processes."""

    SERVED = "served"
    """An answer came, the client's mistakes included."""
    UNREACHABLE = "unreachable"
    """No connection: refused, or not in time."""
    STRANGER = "stranger"
    """Somebody else answers at its address: our key is refused, or it is no engine."""
    TIMED_OUT = "timed_out"
    """No first byte, or silence in the middle."""
    BROKE_OFF = "broke_off"
    """The connection was closed before the answer was whole."""
    OVERLOADED = "overloaded"
    """The engine had no room: 429, or 503."""
    FAILED = "failed"
    """Another error of the engine: 5xx."""
    ABANDONED = "abandoned"
    """Nobody waits for it any more; says nothing about the replica."""


@dataclass(frozen=True, slots=True)
class Want:
    """What a request asks for.

    owner      whose it is: the key's id, "" without keys. Fairness is between owners
    priority   its class
    tokens     estimate of prompt and completion together: what fairness is counted in
    affinity   a hash of its long prefix, the same for requests that share it; 0 for none
    avoid      replicas that have failed this request
    deadline   in time.monotonic() seconds; None: as long as the queue lets it wait
    """

    owner: str = ""
    priority: Priority = Priority.INTERACTIVE
    tokens: int = 0
    affinity: int = 0
    avoid: frozenset[str] = frozenset()
    deadline: float | None = None


class Seat(Protocol):
    """A place at a replica."""

    @property
    def endpoint(self) -> Endpoint: ...

    def leave(self, outcome: Outcome, tokens: int = 0) -> None:
        """Give the place back, once. `tokens` are what the request really used, 0 if nobody knows."""


class Places(Protocol):
    """The places of one model."""

    def take(self, call: Call, avoid: frozenset[str] = frozenset()) -> Seat | None:
        """A seat at once; None where it takes a `wait`: no replica, no room, or somebody else decides."""

    async def wait(self, call: Call, avoid: frozenset[str] = frozenset()) -> Seat:
        """A seat, after a wait in the queue. Cancelling it gives up the place in the queue.

        Raises `QueueFull` (429), `Unavailable` (503: waited too long, or no hope), each with an honest retry-after.
        """

    def in_flight(self, replica_id: str) -> int:
        """Requests on a replica now."""

    def waiting(self) -> int:
        """Requests in the queue now."""
