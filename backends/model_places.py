"""The places of one model, decided in this process: who gets a seat at which replica, and who waits.

    take --room?--> Seat --leave--> ReplicaSet: breaker, limit, service rate --> the next one in line
      `-- no -----> wait: ModelQueue, until there is room, or it took too long

The decisions are elsewhere, and pure: which replica (routing.py), whether it is asked at all (breaker.py), how many at
once (admission.py), who is next (waiting_line.py), how long it takes (service_rate.py). Everything runs on one event
loop, so nothing is locked.

What a request costs that finds room is a look at each replica and one `Seat`. Timers and tasks exist only while
somebody waits, or while a replica that was out of rotation is probed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .affinity import affinity_of
from .base import Call, Endpoint, Launcher
from .breaker import State
from .health import Health, is_ours
from .loans import Lending, Loan
from .model_queue import ModelQueue, OnWait
from .places import Outcome, Priority, Seat, Want
from .replica_set import Replica, ReplicaSet, Rules
from .wants import class_of, tokens_of, want_of

_NOBODY: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """One replica at a moment. `limit` is the one in force, `ceiling` what it is while the engine refuses nothing."""

    replica_id: str
    in_flight: int
    limit: int
    ceiling: int
    breaker: State


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One model at a moment.

    waiting      requests in the queue, by class
    replicas     those that take requests, and those that leave and still have some
    per_second   requests that end, at the present load; None where nothing has been measured
    full         requests refused so far because the queue was full
    late         ... because they had waited too long
    """

    model: str
    waiting: Mapping[Priority, int]
    replicas: tuple[ReplicaLoad, ...]
    per_second: float | None
    full: int
    late: int


class ReplicaSeat:
    """A `Seat`."""

    __slots__ = ("_begun", "_places", "_replica", "_request", "endpoint")

    def __init__(self, places: ModelPlaces, replica: Replica, request: Call | Want, begun: float) -> None:
        self.endpoint: Endpoint = replica.endpoint
        self._places = places
        self._replica: Replica | None = replica
        self._request = request
        self._begun = begun
        replica.in_flight += 1

    def leave(self, outcome: Outcome, tokens: int = 0) -> None:
        replica = self._replica
        if replica is None:
            return
        self._replica = None
        places = self._places
        if outcome is Outcome.SERVED and replica.is_calm and not places.line.count:
            replica.in_flight -= 1
            places.rate.served(places.clock() - self._begun)
        else:
            places.left(replica, self._request, outcome, self._begun, tokens)


class ModelPlaces:
    """The `Places` of one model.

    launcher   where its replicas come from
    engine     its family, for what it takes at once where nobody says (admission.py)
    on_wait    is told of each wait in the queue that has ended
    health     asks a replica that is out of rotation whether it is well again; None: by its key (health.py)
    clock      the event loop's seconds
    """

    def __init__(
        self,
        model: str,
        launcher: Launcher,
        *,
        engine: str = "",
        rules: Rules | None = None,
        on_wait: OnWait | None = None,
        health: Health | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.clock = clock
        self._set = ReplicaSet(
            model,
            launcher,
            engine=engine,
            rules=rules or Rules(),
            health=health or is_ours(engine),
            on_change=self._changed,
            clock=clock,
        )
        self._queue = ModelQueue(
            model, self._set, self._seated, on_shortage=self._shortage, on_wait=on_wait, clock=clock
        )
        self.line = self._queue.line
        self.rate = self._set.rate
        self._lending = Lending(model, self._set, self.line, left=self.left, freed=self._freed, clock=clock)

    # -- Places -------------------------------------------------------------------------------------------------------

    def take(self, call: Call, avoid: frozenset[str] = _NOBODY) -> Seat | None:
        known = self._set
        known.refresh()
        if self.line.count:
            return None
        replicas = known.replicas
        now = self.clock()
        replica: Replica | None
        if len(replicas) == 1 and not avoid:  # as `find` does, without the call
            replica = replicas[0]
            if replica.in_flight + replica.lent >= replica.limit.now or replica.rests_until > now:
                return None
        else:
            affinity = affinity_of(call) if len(replicas) > 1 and known.rules.affinity else 0
            replica = known.find(affinity, avoid, now)
            if replica is None:
                return None
        return ReplicaSeat(self, replica, call, now)

    async def wait(self, call: Call, avoid: frozenset[str] = _NOBODY) -> Seat:
        return await self._queue.seat(want_of(call, avoid, affinity=self._set.rules.affinity))

    def in_flight(self, replica_id: str) -> int:
        """Of one that leaves, with what is lent: not before it has been returned is it known what is in use."""
        known = self._set
        known.refresh()
        return sum(
            r.in_flight + (r.lent if r in known.leaving else 0)
            for r in (*known.replicas, *known.leaving)
            if r.replica_id == replica_id
        )

    def waiting(self) -> int:
        return len(self.line)

    # -- the same by value, for other processes -----------------------------------------------------------------------

    def take_want(self, want: Want) -> Seat | None:
        """A seat at once, or None where it takes a `wait_want`."""
        known = self._set
        known.refresh()
        if self.line.count:
            return None
        now = self.clock()
        replica = known.find(want.affinity if known.rules.affinity else 0, want.avoid, now)
        return None if replica is None else ReplicaSeat(self, replica, want, now)

    async def wait_want(self, want: Want) -> Seat:
        """A seat, after a wait in line. Raises as `Places.wait` does."""
        return await self._queue.seat(want)

    def lend(self, borrowers: int, call_in: Callable[[], None]) -> Loan | None:
        """Seats that one of so many borrowers may give out without asking, until `call_in` is called; None where it
        is better to ask."""
        return self._lending.lend(borrowers, call_in)

    # -- what others tell and ask -------------------------------------------------------------------------------------

    def set_limit(self, replica_id: str, takes: int) -> None:
        """An engine has said how many requests it takes at once. What the configuration says goes first."""
        self._set.set_limit(replica_id, takes)
        self._changed()

    def configure(self, rules: Rules, launcher: Launcher, engine: str) -> None:
        """Go by other rules, perhaps another source of replicas. What is in flight or in line stays so."""
        before = self._set.launcher
        self._set.go_by(rules, launcher, engine)
        if self._set.launcher is not before:
            self._queue.listen_anew()
            self._lending.close()
        self._set.refresh()
        self._changed()

    def snapshot(self) -> Snapshot:
        """For metrics."""
        known = self._set
        loads = tuple(
            ReplicaLoad(r.replica_id, r.in_flight, r.limit.now, r.limit.ceiling, r.breaker.state)
            for r in (*known.replicas, *known.leaving)
        )
        waiting = MappingProxyType({priority: self.line.length(priority) for priority in Priority})
        per_second = known.rate.per_second(known.in_flight)
        return Snapshot(self.model, waiting, loads, per_second, self._queue.full, self._queue.late)

    def limits(self) -> dict[str, int]:
        """Requests that each replica gets at once now, by its id."""
        return {replica.replica_id: replica.limit.now for replica in self._set.replicas}

    def close(self) -> None:
        """Those in line get a 503, and nobody is probed any more. Seats that are taken stay so until they are left."""
        self._queue.refuse_all(f"{self.model} is no longer served here.")
        self._lending.close()
        self._set.close()

    # -- called by seats, loans, replicas and the queue ---------------------------------------------------------------

    def left(self, replica: Replica, request: Call | Want, outcome: Outcome, begun: float, tokens: int) -> None:
        self._set.left(replica, outcome, begun)
        self._lending.look()
        if self.line:
            if tokens and isinstance(request, Want):
                self.line.charge(request.owner, request.priority, tokens - request.tokens)
            elif tokens and isinstance(request, Call):
                self.line.charge(request.key_id, class_of(request), tokens - tokens_of(request))
            self._queue.move_up()

    def _seated(self, replica: Replica, want: Want, now: float) -> Seat:
        return ReplicaSeat(self, replica, want, now)

    def _shortage(self) -> None:
        self._lending.call_in()

    def _freed(self) -> None:
        self._set.let_go()
        self._queue.move_up()

    def _changed(self) -> None:
        self._lending.look()
        self._queue.changed()
