"""What is tried again, how often, and from which budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.errors import (
    ConnectFailed,
    Disconnected,
    EngineRefused,
    EngineTimeout,
    GatewayError,
    InvalidRequest,
    MalformedResponse,
    NotTheEngine,
    Unavailable,
)
from backends.retries import DO_NOT_RETRY, OVERLOADS, Retries
from backends.retry_budget import RetryBudget

BUSY = EngineRefused("busy", status=429, type="requests")
UNTOUCHED = Disconnected("closed", received=False)
SILENT = EngineTimeout("silent", phase="first byte")


def spent() -> RetryBudget:
    return RetryBudget(floor_per_s=0.0, most=0.5)


@pytest.mark.parametrize("error", [ConnectFailed("refused"), NotTheEngine("our key is refused")])
def test_replicas_that_took_nothing_cost_nothing_and_are_all_tried(error: GatewayError) -> None:
    retries = Retries(spent())
    for number in range(20):
        retries.failed_at(f"r{number}")
        assert retries.may_go_on(error, 0.0)
    assert len(retries.avoid) == 20


def test_the_only_replica_is_not_tried_for_ever() -> None:
    retries = Retries(RetryBudget())
    tries = 0
    while tries < 100:
        retries.failed_at("only")
        if not retries.may_go_on(ConnectFailed("refused"), 0.0):
            break
        tries += 1
    assert tries == 3


@pytest.mark.parametrize("error", [UNTOUCHED, SILENT])
def test_a_request_that_an_engine_took_is_sent_once_more(error: GatewayError) -> None:
    retries = Retries(RetryBudget())
    assert retries.may_go_on(error, 0.0)
    again = Disconnected("closed", received=False)
    assert not retries.may_go_on(again, 0.0)
    assert again.headers == DO_NOT_RETRY


def test_an_engine_without_room_is_asked_again_some_times() -> None:
    retries = Retries(RetryBudget())
    assert [retries.may_go_on(BUSY, 0.0) for _ in range(OVERLOADS + 1)] == [True] * OVERLOADS + [False]


@pytest.mark.parametrize(
    "error",
    [
        Disconnected("closed", received=True),
        EngineTimeout("silent", phase="idle"),
        EngineTimeout("late", phase="total"),
        MalformedResponse("what?"),
        InvalidRequest("no"),
        EngineRefused("broken", status=500, type="server_error"),
    ],
)
def test_what_may_have_had_an_effect_or_would_fail_again_is_not_tried_again(error: GatewayError) -> None:
    assert not Retries(RetryBudget()).may_go_on(error, 0.0)


@pytest.mark.parametrize("error", [UNTOUCHED, SILENT, BUSY, Unavailable("loading")])
def test_nothing_that_costs_an_engine_is_tried_without_budget(error: GatewayError) -> None:
    assert not Retries(spent()).may_go_on(error, 0.0)


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 10)), min_size=1, max_size=50))
def test_retries_are_a_share_of_the_requests_and_a_little(rounds: list[tuple[int, float]]) -> None:
    budget = RetryBudget(share=0.2, floor_per_s=0.5, most=10.0)
    now, requests, granted = 0.0, 0, 0
    for new, seconds in rounds:
        now += seconds
        for _ in range(new):
            budget.request()
            requests += 1
            granted += budget.retry(now)  # every request fails
    assert granted <= 10 + 0.2 * requests + 0.5 * now + 1e-6


def test_a_quiet_model_gets_its_budget_back_with_time() -> None:
    budget = RetryBudget(most=1.0)
    assert budget.retry(0.0)
    assert not budget.retry(1.0)
    assert budget.retry(2.1)
