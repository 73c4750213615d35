"""How fast batches advance, and when they will be done."""

from __future__ import annotations

import pytest

from proxy.batch.rates import Rates, by_its_average
from proxy.batch.schedule import Work
from proxy.batch.wanted import asked_for
from proxy.control import BatchWork


def left(batch_id: str, lines: int, tokens: int) -> Work:
    return Work(batch_id, "m", "a", 0.0, 1e6, lines, tokens)


def test_a_steady_batch_is_done_when_its_speed_says() -> None:
    rates = Rates()
    for second in range(60):
        rates.look([left("b", 1000 - 10 * second, 100_000 - 1000 * second)], second)
    assert rates.done_at("b", 60.0) == pytest.approx(60 + (1000 - 590) / 10)
    assert rates.tokens_per_s("m") == pytest.approx(1000)


def test_nothing_is_said_before_anything_was_measured() -> None:
    rates = Rates()
    rates.look([left("b", 10, 10)], 0.0)
    assert rates.done_at("b", 0.0) is None
    assert rates.tokens_per_s("m") is None
    assert rates.done_at("another", 0.0) is None


def test_a_batch_that_is_paused_or_cancelled_is_not_taken_for_a_fast_one() -> None:
    rates = Rates()
    rates.look([left("b", 1000, 100_000)], 0.0)
    rates.look([], 1.0)
    assert rates.tokens_per_s("m") is None


def test_the_speed_of_a_replica_is_not_forgotten_while_batches_rest() -> None:
    rates = Rates()
    rates.look([left("b", 1000, 100_000)], 0.0)
    rates.look([left("b", 990, 99_000)], 1.0)
    for second in range(2, 4000):
        rates.look([left("b", 990, 99_000)], second)
    assert rates.tokens_per_s("m") == pytest.approx(1000)


def test_a_batch_goes_on_as_it_began_where_nothing_newer_is_known() -> None:
    assert by_its_average(25, 100, 1000.0, 1050.0) == pytest.approx(1200.0)
    assert by_its_average(0, 100, 1000.0, 1050.0) is None


def test_the_launcher_is_told_what_one_replica_does_and_nothing_where_the_hours_let_nothing_run() -> None:
    rates = Rates()
    for second in range(10):
        rates.look([left("b", 1000 - second, 2_000_000 - 100 * second)], second)
    works = {"m": [left("b", 990, 1_999_000)]}
    late = 1e6 - 20_000.0  # 16,000 s, less a reserve, at 50 tokens a second for each of the two replicas
    assert asked_for(works, {"m": 5}, rates, {"m": 2}, late) == {"m": BatchWork(3, 5)}
    assert asked_for(works, {"m": 5}, rates, {"m": 0}, late) == {"m": BatchWork(1, 5)}
    assert asked_for({}, {"m": 0}, rates, {"m": 2}, late) == {}
