"""The replicas of one model, as far as requests are concerned: how many each has, how many it may have, whether it is
asked at all, and which one is next.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .admission import Limit, admitted
from .base import Endpoint, Launcher
from .breaker import Breaker, State
from .errors import NotTheEngine
from .health import Health
from .places import Outcome, Want
from .routing import least_loaded, ranking, seed_of, within_bounds
from .service_rate import ServiceRate

_RANKINGS = 4096
"""Prefixes whose ranking is remembered."""

_EXPECTED = 3.0
_LEAST_EXPECTED_S = 5.0
"""A request is taken to need three times the mean of the last ones: generation lengths spread widely."""

_REST_S = 0.25
_LONGEST_REST_S = 5.0
"""An engine that has no room is let alone for so long, twice as long each time."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the configuration says of a model's places.

    max_in_flight    requests that a replica gets at once, where its endpoint names no limit; None: what its engine
                     takes
    affinity         requests with the same long prefix go to the same replica while it has room
    queue_size       requests that may wait
    queue_wait_s     how long, while there are replicas
    replica_wait_s   how long, while there is none
    """

    max_in_flight: int | None = None
    affinity: bool = True
    queue_size: int = 256
    queue_wait_s: float = 60.0
    replica_wait_s: float = 300.0


class Replica:
    """One replica and what is known of it. `told`: what its engine has said that it takes at once."""

    __slots__ = (
        "breaker",
        "dies_at",
        "endpoint",
        "estranged",
        "in_flight",
        "is_calm",
        "lent",
        "limit",
        "replica_id",
        "rest_s",
        "rests_until",
        "seed",
        "told",
        "weight",
    )

    def __init__(self, endpoint: Endpoint, ceiling: int, told: int | None) -> None:
        self.endpoint = endpoint
        self.replica_id = endpoint.replica_id
        self.weight = endpoint.weight
        self.dies_at = math.inf
        """When its time is over, by the set's clock."""
        self.seed = seed_of(endpoint.replica_id)
        self.in_flight = 0
        self.lent = 0
        """Seats that others may give out and have not, as far as is known here (loans.py)."""
        self.is_calm = True
        """A request that was served changes nothing but the count."""
        self.limit = Limit(ceiling)
        self.breaker = Breaker()
        self.told = told
        self.rest_s = 0.0
        self.rests_until = 0.0
        """For ever while it is estranged."""
        self.estranged = False
        """Somebody else has answered at its address, and it has not been proven by its key since. It gets no request,
        not even where there is no other replica: prompts are not sent to strangers."""

    def has_room(self, now: float) -> bool:
        return self.in_flight + self.lent < self.limit.now and self.rests_until <= now

    def free_again_at(self, now: float) -> float | None:
        """When time alone gives it back to rotation, or lets it be asked; None where it does not."""
        if self.estranged:
            return self.breaker.until if self.breaker.state is State.OPEN and self.breaker.until > now else None
        at = max(self.rests_until, self.breaker.until if self.breaker.state is State.OPEN else 0.0)
        return at if at > now else None

    def heard(self, outcome: Outcome, begun: float, now: float) -> None:
        """A request that had its seat since `begun` has ended; it is no longer in flight."""
        if self.estranged:
            return  # whatever it says of itself: its key is to prove it
        if outcome is Outcome.SERVED:
            self.rest_s = 0.0
            if self.limit.now < self.limit.ceiling:
                self.limit.served(self.in_flight)
            if not self.breaker.calm:
                self.breaker.heard(outcome, now)
        elif outcome is Outcome.OVERLOADED:
            self.limit.refused(self.in_flight, begun, now)
            self.rest_s = min(_LONGEST_REST_S, max(_REST_S, 2 * self.rest_s))
            self.rests_until = now + self.rest_s
        else:
            self.breaker.heard(outcome, now)
            if outcome is Outcome.STRANGER:
                self.estrange()
        self.is_calm = self.breaker.calm and not self.rest_s and self.limit.now >= self.limit.ceiling

    def estrange(self) -> None:
        self.estranged = True
        self.rests_until = math.inf

    def proven(self) -> None:
        """By its key."""
        self.estranged = False
        self.rests_until = 0.0


class ReplicaSet:
    """launcher    where the replicas come from
    engine      their family, for what they take at once where nobody says (admission.py)
    health      asks a replica that is out of rotation whether it is well again
    on_change   called when a replica has come back to rotation, or there is one where there was none, or none any more
    """

    def __init__(
        self,
        model: str,
        launcher: Launcher,
        *,
        engine: str,
        rules: Rules,
        health: Health,
        on_change: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rules = rules
        self.launcher = launcher
        self.replicas: list[Replica] = []
        self.leaving: list[Replica] = []
        """No longer the launcher's, but with requests in flight, or seats that others may give out."""
        self.since = 0.0
        """When the first replica came, or the last one went."""
        self.rate = ServiceRate()
        self._model = model
        self._engine = engine
        self._health = health
        self._on_change = on_change
        self._clock = clock
        self._seen: object = None
        self._rankings: dict[int, tuple[Replica, ...]] = {}
        self._rotations: list[tuple[Replica, ...]] = []
        self._told: dict[str, int] = {}
        self._turn = 0
        self._soonest = math.inf
        self._probes: set[asyncio.Task[None]] = set()

    # -- which one ----------------------------------------------------------------------------------------------------

    def find(self, affinity: int, avoid: frozenset[str], now: float) -> Replica | None:
        """A replica with room, or None. Has those whose cool-down is over probed on the way."""
        replicas = self.replicas
        if len(replicas) == 1 and not avoid:
            replica = replicas[0]  # whatever its breaker says: there is no other
            if replica.estranged:
                self.ask_strangers(now)
            return replica if replica.has_room(now) else None
        if not avoid and (self._soonest == math.inf or self._soonest > now + self.expected_s()) and self._is_calm():
            return self._find_in_calm(affinity)
        usable = []
        shut = 0
        for replica in replicas:
            if replica.breaker.state is not State.CLOSED:
                shut += 1
                if replica.breaker.may_be_probed(now):
                    self._probe(replica)
            elif (
                replica.in_flight + replica.lent < replica.limit.now
                and replica.rests_until <= now
                and not (avoid and replica.replica_id in avoid)
            ):
                usable.append(replica)
        if shut and shut == len(replicas):
            return self._least_bad(avoid, now)
        if len(usable) > 1 and self._soonest < math.inf:
            outlives = now + self.expected_s()
            usable = [replica for replica in usable if replica.dies_at > outlives] or usable
        if len(usable) <= 1:
            return usable[0] if usable else None
        if affinity:
            ranked = self._ranking(affinity)
            if len(usable) < len(ranked):
                ranked = tuple(replica for replica in ranked if replica in usable)
            return within_bounds(ranked)
        self._turn += 1
        return least_loaded(usable, self._turn)

    def _find_in_calm(self, affinity: int) -> Replica | None:
        """The same where every replica is in rotation: a look at each, and no more."""
        if affinity:
            ranked = self._ranking(affinity)
            for replica in ranked:
                if replica.in_flight + replica.lent >= replica.limit.now:
                    ranked = tuple(other for other in ranked if other.in_flight + other.lent < other.limit.now)
                    return within_bounds(ranked) if ranked else None
            return within_bounds(ranked)
        self._turn += 1
        best: Replica | None = None
        least = math.inf
        for replica in self._rotations[self._turn % len(self._rotations)]:
            count = replica.in_flight
            if count + replica.lent < replica.limit.now:
                load = (count + 1) / replica.weight
                if load < least:
                    best, least = replica, load
        return best

    def expected_s(self) -> float:
        """How long a request may well take: what does not fit into a replica's last minutes goes elsewhere."""
        return max(_LEAST_EXPECTED_S, _EXPECTED * self.rate.mean_s)

    def _is_calm(self) -> bool:
        """There are replicas, none of which rests, and no breaker is open."""
        for replica in self.replicas:
            if not replica.is_calm:
                return False
        return bool(self.replicas)

    def find_for(self, want: Want, now: float) -> Replica | None:
        """The same for a request in line, which avoids what has failed it, unless there is nothing else."""
        if want.avoid and all(replica.replica_id in want.avoid for replica in self.replicas):
            well = [
                replica
                for replica in self.replicas
                if replica.has_room(now)
                and (replica.breaker.state is State.CLOSED or replica.breaker.may_be_probed(now))
            ]
            return least_loaded(well, self._turn) if well else None
        return self.find(want.affinity if self.rules.affinity else 0, want.avoid, now)

    def is_cold(self, avoid: frozenset[str]) -> bool:
        """No replica, or none but strangers and those that are out of rotation and have failed this request."""
        return all(
            r.breaker.state is not State.CLOSED
            and (r.replica_id in avoid or (r.estranged and r.breaker.state is State.OPEN))  # half-open: it may be ours
            for r in self.replicas
        )

    def are_strangers(self) -> bool:
        """There are replicas, and somebody else answers at each one's address."""
        return bool(self.replicas) and all(replica.estranged for replica in self.replicas)

    def has_room(self, now: float) -> bool:
        return any(replica.has_room(now) for replica in self.replicas)

    @property
    def in_flight(self) -> int:
        return sum(replica.in_flight for replica in self.replicas)

    @property
    def lent(self) -> int:
        return sum(replica.lent for replica in self.replicas)

    def _least_bad(self, avoid: frozenset[str], now: float) -> Replica | None:
        """Every breaker is open. A request is not refused for that: one of them may be well again."""
        left = [replica for replica in self.replicas if replica.has_room(now) and replica.replica_id not in avoid]
        return min(left, key=lambda replica: (replica.in_flight, replica.breaker.until), default=None)

    def _ranking(self, affinity: int) -> tuple[Replica, ...]:
        ranked = self._rankings.get(affinity)
        if ranked is None:
            if len(self._rankings) >= _RANKINGS:
                self._rankings.clear()
            ranked = self._rankings[affinity] = ranking(affinity, self.replicas)
        return ranked

    # -- which ones there are -----------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Look at the launcher's list. Costs next to nothing where it is the one that was seen last."""
        endpoints = self.launcher.endpoints(self._model)
        if endpoints is not self._seen:
            self._seen = endpoints
            self._take_up(endpoints)

    def _take_up(self, endpoints: Sequence[Endpoint]) -> None:
        """Keep what is known, let go of the rest."""
        # one that had left and comes back has what it had: the engine is the same
        known = {replica.replica_id: replica for replica in (*self.leaving, *self.replicas)}
        before = set(self.replicas)
        self.replicas = []
        for endpoint in endpoints:
            replica = known.get(endpoint.replica_id)
            if replica is None or where(replica.endpoint) != where(endpoint):
                # new, or elsewhere: Slurm has requeued its job; or another key is configured
                told = self._told.get(endpoint.replica_id) if replica is None else None
                replica = Replica(endpoint, self._ceiling(endpoint, told), told)
            else:
                replica.endpoint = endpoint
                replica.is_calm = False
                replica.weight = endpoint.weight
                replica.limit.set_ceiling(self._ceiling(endpoint, replica.told))
            self.replicas.append(replica)
        self._told = {replica.replica_id: replica.told for replica in self.replicas if replica.told is not None}
        had = bool(before)
        before = {*before, *self.leaving} - {*self.replicas}
        for replica in before:
            replica.is_calm = False
        self.leaving = [replica for replica in before if replica.in_flight or replica.lent]
        self._rankings = {}
        since_epoch = time.time() - self._clock()
        for replica in self.replicas:
            ends_at = replica.endpoint.ends_at
            replica.dies_at = math.inf if ends_at is None else ends_at - since_epoch
        self._soonest = min((replica.dies_at for replica in self.replicas), default=math.inf)
        count = len(self.replicas)
        self._rotations = [(*self.replicas[turn:], *self.replicas[:turn]) for turn in range(count)]
        if had is not bool(self.replicas):
            self.since = self._clock()
            self._on_change()

    def go_by(self, rules: Rules, launcher: Launcher, engine: str) -> None:
        """Other rules, perhaps another source. What is in flight stays so."""
        self.rules = rules
        self._engine = engine
        if launcher is not self.launcher:
            self.launcher = launcher
            self._seen = None
        for replica in self.replicas:
            replica.is_calm = False
            replica.limit.set_ceiling(self._ceiling(replica.endpoint, replica.told))

    def set_limit(self, replica_id: str, takes: int) -> None:
        self._told[replica_id] = takes
        for replica in self.replicas:
            if replica.replica_id == replica_id and replica.told != takes:
                replica.told = takes
                replica.is_calm = False  # until the next request is served
                replica.limit.set_ceiling(self._ceiling(replica.endpoint, takes))

    def _ceiling(self, endpoint: Endpoint, told: int | None) -> int:
        return endpoint.limit or self.rules.max_in_flight or admitted(self._engine, told)

    def left(self, replica: Replica, outcome: Outcome, begun: float) -> None:
        """A request on it has ended."""
        replica.in_flight -= 1
        now = self._clock()
        known = replica.estranged
        replica.heard(outcome, begun, now)
        if replica.estranged and not known and replica in self.replicas:
            self.launcher.identity(self._model, replica.replica_id, ours=False)
            if replica.breaker.state is State.OPEN:
                self._probe(replica)  # at once: it may have been this one request that somebody on the way refused
        if outcome is Outcome.SERVED or outcome is Outcome.ABANDONED:
            self.rate.served(now - begun)
        if self.leaving:
            if replica in self.leaving:
                replica.is_calm = False
            self.let_go()

    def let_go(self) -> None:
        """... of those that have left and have nothing any more."""
        self.leaving = [replica for replica in self.leaving if replica.in_flight or replica.lent]

    # -- those out of rotation ----------------------------------------------------------------------------------------

    def ask_strangers(self, now: float) -> None:
        """... those who wait, that no request is ever sent to, and so would not be asked either."""
        for replica in self.replicas:
            if replica.estranged and replica.breaker.may_be_probed(now):
                self._probe(replica)

    def _probe(self, replica: Replica) -> None:
        """Ask a replica whether it is well again, so that no request has to try."""
        replica.breaker.probe()
        task = asyncio.get_running_loop().create_task(self._ask_health(replica), name=f"probe of {self._model}")
        self._probes.add(task)
        task.add_done_callback(self._probes.discard)

    async def _ask_health(self, replica: Replica) -> None:
        alive = False
        try:
            alive = await self._health(replica.endpoint)
        except NotTheEngine:
            if not replica.estranged and replica in self.replicas:  # it had been out of rotation for another reason
                replica.estrange()
                self.launcher.identity(self._model, replica.replica_id, ours=False)
        finally:  # what could not be asked does not count as alive, and is asked again later
            replica.breaker.probed(self._clock(), alive=alive)
            replica.is_calm = False
            if alive and replica.estranged:
                replica.proven()
                if replica in self.replicas:
                    self.launcher.identity(self._model, replica.replica_id, ours=True)
        self._on_change()

    def close(self) -> None:
        """Nobody is probed any more."""
        for probe in self._probes:
            probe.cancel()


def where(endpoint: Endpoint) -> tuple[str, int, str]:
    """What makes an endpoint another engine."""
    return endpoint.host, endpoint.port, endpoint.api_key
