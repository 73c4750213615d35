"""Which of several replicas: the least loaded, or the one that knows the request's prefix. Pure.

Load is (requests in flight + 1) / weight: what a replica would have with one more request, in proportion to what it can
take. Equals take turns.

Affinity is rendezvous hashing with weights (Thaler and Ravishankar 1998; weights as in Schindelhauer and Schomaker
2005): each replica draws a number from its name and the prefix's hash, and they are ranked by it. A replica that comes
or goes moves its own share and no other. Loads are bounded (Mirrokni, Thorup, Zadimoghaddam 2017): a replica with more
than `CAPACITY` times its share of all requests is passed over for the next in rank, so that one popular prompt does not
go to one replica alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

CAPACITY = 1.25

_MASK = (1 << 64) - 1


class Ranked(Protocol):
    """What is looked at for a replica's rank."""

    @property
    def seed(self) -> int: ...
    @property
    def weight(self) -> float: ...


class Loaded(Ranked, Protocol):
    """... and for its load."""

    @property
    def in_flight(self) -> int: ...


R = TypeVar("R", bound=Ranked)
L = TypeVar("L", bound=Loaded)


def seed_of(replica_id: str) -> int:
    """64 bits of a replica's name, the same in every process."""
    return int.from_bytes(hashlib.blake2b(replica_id.encode(), digest_size=8).digest(), "big")


def least_loaded(replicas: Sequence[L], turn: int) -> L:
    """`turn` counts the choices: it decides between equals. There is at least one replica."""
    count = len(replicas)
    if count == 1:
        return replicas[0]
    best = replicas[turn % count]
    least = (best.in_flight + 1) / best.weight
    for step in range(1, count):
        replica = replicas[(turn + step) % count]
        load = (replica.in_flight + 1) / replica.weight
        if load < least:
            best, least = replica, load
    return best


def ranking(affinity: int, replicas: Sequence[R]) -> tuple[R, ...]:
    """The replicas in the order in which they are asked for this prefix."""
    return tuple(sorted(replicas, key=lambda replica: _score(affinity, replica), reverse=True))


def _score(affinity: int, replica: Ranked) -> float:
    draw = (_mixed(affinity ^ replica.seed) + 1) / (_MASK + 2)  # uniform in (0, 1)
    return -replica.weight / math.log(draw)


def _mixed(x: int) -> int:
    """splitmix64's finalizer: each bit of the input changes half of the output's."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def bound(in_flight: int, weight: float, total_weight: float) -> int:
    """The most that a replica may have once one request more than `in_flight` in all of them has its place."""
    return math.ceil(CAPACITY * (in_flight + 1) * weight / total_weight)


def within_bounds(ranked: Sequence[L]) -> L:
    """The first that stays within its bound. `ranked` has those that can be used, in rank, and at least one. The bound
    is of their load, so one of them is always within it."""
    total = 0
    weight = 0.0
    for replica in ranked:
        total += replica.in_flight
        weight += replica.weight
    share = CAPACITY * (total + 1) / weight
    for replica in ranked:
        if replica.in_flight < share * replica.weight:  # that is, one more is within `bound`
            return replica
    return least_loaded(ranked, 0)  # not reached but for what floating point does to a bound
