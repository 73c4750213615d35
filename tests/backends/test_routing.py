"""Choosing a replica: properties of least loaded, of rendezvous hashing, and of its bounds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.routing import CAPACITY, bound, least_loaded, ranking, seed_of, within_bounds


@dataclass(eq=False)
class Some:
    seed: int
    weight: float = 1.0
    in_flight: int = 0


def some(count: int, weight: float = 1.0) -> list[Some]:
    return [Some(seed_of(f"replica-{number}"), weight) for number in range(count)]


WEIGHTS = st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=1, max_size=8)


def weighted(weights: Sequence[float]) -> list[Some]:
    return [Some(seed_of(f"replica-{number}"), weight) for number, weight in enumerate(weights)]


@given(WEIGHTS, st.integers(1, 200))
def test_load_follows_weights(weights: list[float], requests: int) -> None:
    replicas = weighted(weights)
    for turn in range(requests):
        least_loaded(replicas, turn).in_flight += 1
    share = requests / sum(weights)
    for replica in replicas:
        assert abs(replica.in_flight - share * replica.weight) <= max(1.0, max(weights) / min(weights))


def test_equals_take_turns() -> None:
    replicas = some(3)
    chosen = [least_loaded(replicas, turn) for turn in range(9)]
    assert set(Counter(map(id, chosen)).values()) == {3}


@given(st.integers(1, 2**32 - 1), st.integers(2, 12))
def test_a_replica_that_goes_moves_nobody_else(affinity: int, count: int) -> None:
    replicas = some(count)
    ranked = ranking(affinity, replicas)
    for gone in replicas:
        left = [replica for replica in replicas if replica is not gone]
        assert ranking(affinity, left) == tuple(replica for replica in ranked if replica is not gone)


@given(st.integers(1, 2**32 - 1), WEIGHTS)
def test_the_same_prefix_has_the_same_ranking_whatever_the_order(affinity: int, weights: list[float]) -> None:
    replicas = weighted(weights)
    assert ranking(affinity, replicas) == ranking(affinity, replicas[::-1])


def test_a_replica_that_comes_takes_its_share_and_no_more() -> None:
    replicas, prefixes = some(4), range(1, 20_001)
    before = {prefix: ranking(prefix, replicas)[0] for prefix in prefixes}
    new = Some(seed_of("new"), 1.0)
    after = {prefix: ranking(prefix, [*replicas, new])[0] for prefix in prefixes}
    moved = [prefix for prefix in prefixes if before[prefix] is not after[prefix]]
    assert all(after[prefix] is new for prefix in moved)
    assert len(moved) / len(prefixes) == pytest.approx(1 / 5, abs=0.015)


def test_prefixes_are_spread_by_weight() -> None:
    replicas = weighted([1.0, 1.0, 2.0])
    first = Counter(id(ranking(prefix, replicas)[0]) for prefix in range(1, 20_001))
    shares = [first[id(replica)] / 20_000 for replica in replicas]
    assert shares == pytest.approx([0.25, 0.25, 0.5], abs=0.015)


@given(WEIGHTS, st.lists(st.integers(1, 5), min_size=1, max_size=120))
def test_no_replica_has_more_than_its_bound_however_popular_a_prefix_is(weights: list[float], asked: list[int]) -> None:
    replicas = weighted(weights)
    for affinity in asked:
        within_bounds(ranking(affinity, replicas)).in_flight += 1
        total = sum(replica.in_flight for replica in replicas)
        for replica in replicas:
            assert replica.in_flight <= math.ceil(CAPACITY * total * replica.weight / sum(weights))


@given(st.integers(0, 1000), WEIGHTS)
def test_the_bounds_have_room_for_all(in_flight: int, weights: list[float]) -> None:
    assert sum(bound(in_flight, weight, sum(weights)) for weight in weights) > in_flight


def test_a_prefix_stays_with_its_replica_while_there_is_other_load() -> None:
    replicas = some(3)
    first = ranking(7, replicas)[0]
    for replica in replicas:
        replica.in_flight = 4
    assert within_bounds(ranking(7, replicas)) is first
    first.in_flight = 9
    assert within_bounds(ranking(7, replicas)) is ranking(7, replicas)[1]
