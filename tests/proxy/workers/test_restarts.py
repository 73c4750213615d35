"""When a dead worker is replaced."""

from __future__ import annotations

from proxy.workers.restarts import AT_MOST, LIVED_S, Restarts


def test_a_worker_that_dies_after_a_long_life_is_replaced_at_once() -> None:
    restarts = Restarts()
    assert [restarts.died(LIVED_S + 1) for _ in range(100)] == [0.0] * 100


def test_one_that_dies_quickly_is_replaced_later_each_time_and_then_no_more() -> None:
    restarts = Restarts()
    rests = [restarts.died(0.2) for _ in range(AT_MOST)]
    assert rests[-1] is None
    waits = [rest for rest in rests if rest is not None]
    assert waits == sorted(waits)
    assert waits[0] > 0
    assert len(waits) == AT_MOST - 1


def test_a_long_life_forgives_earlier_deaths() -> None:
    restarts = Restarts()
    first = [restarts.died(0.2) for _ in range(AT_MOST - 1)]
    assert restarts.died(LIVED_S) == 0.0
    assert [restarts.died(0.2) for _ in range(AT_MOST - 1)] == first
