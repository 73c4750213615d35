"""How many requests a replica gets at once, and what its refusals change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.admission import Limit, admitted


@pytest.mark.parametrize("engine", ["tgi", "tei"])
@pytest.mark.parametrize("takes", [None, 2, 16, 128, 512])
def test_an_engine_that_refuses_is_never_filled(engine: str, takes: int | None) -> None:
    assert 1 <= admitted(engine, takes) < (takes or 128 if engine == "tgi" else takes or 512)


def test_an_engine_that_takes_one_gets_one() -> None:
    assert {admitted(engine, 1) for engine in ("tgi", "tei", "vllm", "llamacpp", "sglang", "custom")} == {1}


def test_slots_are_filled_and_a_scheduler_s_queue_a_little() -> None:
    assert admitted("llamacpp", 8) == 8
    assert 256 < admitted("vllm") <= 2 * 256


def test_a_refusal_lowers_the_limit_once_for_a_burst() -> None:
    limit = Limit(100)
    for in_flight in range(79, 69, -1):
        limit.refused(in_flight, begun=1.0, now=2.0)
    assert limit.now == 60
    limit.refused(59, begun=3.0, now=4.0)
    assert limit.now == 45


def test_it_rises_by_one_for_each_round_and_never_above_the_ceiling() -> None:
    limit = Limit(12)
    limit.refused(11, begun=1.0, now=2.0)
    assert limit.now == 9
    for _ in range(10):
        limit.served(in_flight=limit.now - 1)
    assert limit.now == 10
    for _ in range(1000):
        limit.served(in_flight=limit.now - 1)
    assert limit.now == 12


def test_it_does_not_rise_while_it_is_not_reached() -> None:
    limit = Limit(12)
    limit.refused(11, begun=1.0, now=2.0)
    for _ in range(1000):
        limit.served(in_flight=3)
    assert limit.now == 9


def test_a_ceiling_that_is_learned_later_counts_at_once() -> None:
    limit = Limit(120)
    limit.set_ceiling(8)
    assert (limit.now, limit.ceiling) == (8, 8)
    limit.set_ceiling(40)
    assert (limit.now, limit.ceiling) == (40, 40)
    limit.refused(39, begun=1.0, now=2.0)
    limit.set_ceiling(80)
    assert (limit.now, limit.ceiling) == (30, 80)


@given(st.integers(1, 500), st.lists(st.tuples(st.booleans(), st.integers(0, 500)), max_size=200))
def test_it_stays_between_one_and_the_ceiling(ceiling: int, events: list[tuple[bool, int]]) -> None:
    limit = Limit(ceiling)
    for now, (refused, in_flight) in enumerate(events):
        if refused:
            limit.refused(in_flight, begun=float(now), now=float(now))
        else:
            limit.served(in_flight)
        assert 1 <= limit.now <= ceiling
