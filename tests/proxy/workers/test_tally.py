"""Metrics of all processes never count backwards."""

from __future__ import annotations

from proxy.metrics import Metrics, State
from proxy.metrics.families import IN_FLIGHT, LAG, REQUESTS
from proxy.record import Record
from proxy.workers.tally import Tally


def numbers(requests: int, in_flight: int = 0) -> State:
    metrics = Metrics()
    for _ in range(requests):
        record = Record("POST", "/v1/chat/completions")
        record.model, record.endpoint, record.status = "m", "/v1/chat/completions", 200
        metrics.observe(record, 0.1)
        metrics.lag.observe(0.001)
    metrics.in_flight = in_flight
    return metrics.state()


def requests(state: State) -> float:
    return sum(number for _, number in state[REQUESTS.name] if not isinstance(number, list))


def test_the_numbers_of_all_processes_are_added_up() -> None:
    tally = Tally()
    tally.heard(1, numbers(3, in_flight=2))
    tally.heard(2, numbers(4, in_flight=1))
    total = tally.total(numbers(0))
    assert requests(total) == 7
    assert total[IN_FLIGHT.name] == [([], 3)]


def test_a_worker_is_counted_with_what_it_said_last() -> None:
    tally = Tally()
    tally.heard(1, numbers(3))
    tally.heard(1, numbers(5))
    assert requests(tally.total({})) == 5


def test_what_a_dead_worker_has_counted_stays_and_what_it_had_does_not() -> None:
    tally = Tally()
    tally.heard(1, numbers(3, in_flight=2))
    tally.heard(2, numbers(4, in_flight=1))
    tally.died(1)
    total = tally.total(numbers(0))
    assert requests(total) == 7
    assert total[IN_FLIGHT.name] == [([], 1)]
    tally.heard(1, numbers(1))
    tally.died(1)
    tally.died(1)
    total = tally.total(numbers(0))
    assert requests(total) == 8
    lag = total[LAG.name][0][1]
    assert isinstance(lag, list)
    assert sum(lag[:-1]) == 8
