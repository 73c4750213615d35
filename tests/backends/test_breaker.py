"""The circuit breaker's transitions, by a clock of the test's own."""

from __future__ import annotations

import pytest

from backends.breaker import COOL_DOWN_S, LONGEST_S, Breaker, State
from backends.places import Outcome


def breaker() -> Breaker:
    return Breaker(jitter=lambda: 0.5)  # none


@pytest.mark.parametrize(
    ("outcome", "enough"),
    [
        (Outcome.UNREACHABLE, 1),
        (Outcome.STRANGER, 1),
        (Outcome.TIMED_OUT, 1),
        (Outcome.BROKE_OFF, 3),
        (Outcome.FAILED, 5),
    ],
)
def test_it_opens_after_enough_failures_in_a_row(outcome: Outcome, enough: int) -> None:
    one = breaker()
    for _ in range(enough - 1):
        one.heard(outcome, 0.0)
        assert one.state is State.CLOSED
    one.heard(outcome, 0.0)
    assert one.state is State.OPEN
    assert one.until == COOL_DOWN_S


@pytest.mark.parametrize("outcome", [Outcome.ABANDONED, Outcome.OVERLOADED])
def test_what_is_no_failure_does_not_count(outcome: Outcome) -> None:
    one = breaker()
    for _ in range(100):
        one.heard(outcome, 0.0)
    assert one.calm


def test_a_request_that_was_served_forgives_all() -> None:
    one = breaker()
    for _ in range(2):
        one.heard(Outcome.BROKE_OFF, 0.0)
    one.heard(Outcome.SERVED, 0.0)
    for _ in range(2):
        one.heard(Outcome.BROKE_OFF, 0.0)
    assert one.state is State.CLOSED


def test_it_is_probed_once_after_its_cool_down_and_an_answer_closes_it() -> None:
    one = breaker()
    one.heard(Outcome.UNREACHABLE, 0.0)
    assert not one.may_be_probed(COOL_DOWN_S - 0.1)
    assert one.may_be_probed(COOL_DOWN_S)
    one.probe()
    assert one.state is State.HALF_OPEN
    assert not one.may_be_probed(COOL_DOWN_S + 1)
    one.probed(COOL_DOWN_S + 1, alive=True)
    assert one.state.value == "closed"


def test_after_a_probe_it_is_frail_until_a_request_was_served() -> None:
    one = breaker()
    one.heard(Outcome.UNREACHABLE, 0.0)
    one.probe()
    one.probed(10.0, alive=True)
    one.heard(Outcome.BROKE_OFF, 10.0)
    assert one.state is State.OPEN
    assert one.until == 10.0 + 2 * COOL_DOWN_S


def test_each_probe_that_fails_makes_the_next_cool_down_longer_up_to_a_limit() -> None:
    one = breaker()
    one.heard(Outcome.UNREACHABLE, 0.0)
    waits = []
    for _ in range(8):
        now = one.until
        one.probe()
        one.probed(now, alive=False)
        waits.append(one.until - now)
    assert waits == [10.0, 20.0, 40.0, *[LONGEST_S] * 5]


def test_failures_of_requests_that_were_on_their_way_when_it_opened_tell_nothing_new() -> None:
    one = breaker()
    one.heard(Outcome.UNREACHABLE, 0.0)
    for _ in range(50):
        one.heard(Outcome.UNREACHABLE, 1.0)
    assert one.until == COOL_DOWN_S


def test_a_request_that_is_served_closes_it_whatever_its_probe_says_later() -> None:
    one = breaker()
    one.heard(Outcome.UNREACHABLE, 0.0)
    one.probe()
    one.heard(Outcome.SERVED, 6.0)
    one.probed(7.0, alive=False)
    assert one.calm


def test_only_an_open_one_is_probed() -> None:
    with pytest.raises(ValueError):
        breaker().probe()


def test_cool_downs_of_several_gateways_differ() -> None:
    untils = []
    for jitter in (0.0, 0.99):
        one = Breaker(jitter=lambda value=jitter: value)  # type: ignore[misc]
        one.heard(Outcome.UNREACHABLE, 0.0)
        untils.append(one.until)
    assert untils[0] < COOL_DOWN_S < untils[1]
