"""The arithmetic of limits, over any order of requests."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.limits.buckets import Bucket, Budget
from proxy.limits.refusals import duration, ends_in_s

LIMITS = st.integers(1, 10_000)
GAPS = st.lists(st.tuples(st.floats(0, 90), st.integers(0, 3000)), max_size=60)


@given(LIMITS, GAPS)
def test_a_bucket_gives_no_more_in_any_window_than_it_holds_and_gets_in_it(
    limit: int, asked: list[tuple[float, int]]
) -> None:
    bucket = Bucket(limit, 0.0)
    now = 0.0
    given_out: list[tuple[float, int]] = []
    for gap, amount in asked:
        now += gap
        if bucket.has_room(amount, now):
            bucket.used += amount
            given_out.append((now, amount))
        assert 0 <= bucket.remaining <= limit
        assert bucket.used >= 0
    for index, (begin, _) in enumerate(given_out):
        total = 0
        for at, amount in given_out[index:]:
            total += amount
            assert total <= limit * (1 + (at - begin) / 60) + 1e-3


@given(LIMITS, st.lists(st.tuples(st.floats(0, 90), st.integers(0, 3000), st.booleans()), max_size=60))
def test_what_is_given_back_leaves_a_bucket_as_if_it_had_never_been_taken(
    limit: int, asked: list[tuple[float, int, bool]]
) -> None:
    """Whatever time lies between, and however full the bucket is by then."""
    bucket, untouched = Bucket(limit, 0.0), Bucket(limit, 0.0)
    now = 0.0
    out: list[int] = []
    for gap, amount, one_ends in asked:
        now += gap
        if bucket.has_room(amount, now):
            bucket.used += amount
            out.append(amount)
        if out and one_ends:
            bucket.settle(out.pop(), 0, now)
    for amount in out:
        bucket.settle(amount, 0, now)
    untouched.drain(now)
    assert bucket.used == pytest.approx(untouched.used, abs=1e-3)


@given(LIMITS, st.integers(0, 20_000), st.integers(0, 20_000), st.floats(0, 600))
def test_a_debt_is_waited_for_and_never_shown(limit: int, taken: int, used: int, later: float) -> None:
    bucket = Bucket(limit, 0.0)
    bucket.used += taken
    bucket.settle(taken, used, 0.0)
    assert bucket.used == used
    bucket.drain(later)
    assert bucket.remaining >= 0
    assert bucket.used == pytest.approx(max(0.0, used - limit / 60 * later), abs=1e-3)
    if math.isfinite(wait_s := bucket.wait_s(1)):
        assert bucket.has_room(1, later + wait_s + 1e-3)
    assert bucket.has_room(0, later)


@given(LIMITS, st.integers(1, 10_000))
def test_the_wait_is_neither_too_short_nor_too_long(limit: int, amount: int) -> None:
    bucket = Bucket(limit, 0.0)
    bucket.used = float(limit)
    wait_s = bucket.wait_s(amount)
    if amount > limit:
        assert wait_s == math.inf
        return
    assert not bucket.has_room(amount, wait_s * 0.99 - 1e-3)
    assert bucket.has_room(amount, wait_s + 1e-6)


def test_another_limit_keeps_what_is_used() -> None:
    bucket = Bucket(60, 0.0)
    bucket.used += 40
    bucket.change(30, 10.0)
    assert bucket.used == pytest.approx(30)
    assert bucket.remaining == 0
    bucket.change(600, 10.0)
    assert bucket.remaining == 570


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = Bucket(60, 100.0)
    bucket.used += 60
    assert not bucket.has_room(1, 50.0)
    assert not bucket.has_room(1, 100.5)
    assert bucket.has_room(1, 101.0)


@given(st.integers(1, 1000), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), max_size=40))
def test_requests_that_run_at_once_never_get_more_than_the_budget(limit: int, requests: list[tuple[int, int]]) -> None:
    """If none of them uses more than it asked for."""
    budget = Budget(limit, "key", "key_1", "2026-11-22")
    let_in = []
    for asked, used in requests:
        if asked and budget.has_room(asked):
            budget.reserved += asked
            let_in.append((asked, min(asked, used)))
    for asked, used in let_in:
        budget.reserved -= asked
        budget.used += used
    assert budget.used <= limit
    assert budget.reserved == 0


def test_a_new_day_begins_with_nothing_used_and_what_still_runs_kept() -> None:
    budget = Budget(100, "key", "key_1", "2026-11-22")
    budget.learn(90)
    budget.reserved = 10
    budget.turn_to("2026-11-22")
    assert not budget.has_room(1)
    budget.turn_to("2026-11-23")
    assert budget.has_room(90)
    assert not budget.has_room(91)


def test_what_was_used_before_is_learnt_once() -> None:
    budget = Budget(100, "project", "proj_1", "2026-11")
    budget.used += 5
    budget.learn(90)
    budget.learn(90)
    assert budget.used == 95
    assert budget.first_day == "2026-11-01"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, b"0s"),
        (-1, b"0s"),
        (0.0001, b"1ms"),
        (0.012, b"12ms"),
        (0.9995, b"1s"),
        (1, b"1s"),
        (7.66, b"7.66s"),
        (59.9999, b"1m0s"),
        (360, b"6m0s"),
        (90.5, b"1m30.5s"),
        (3600, b"1h0m0s"),
        (93784.25, b"26h3m4.25s"),
    ],
)
def test_durations_are_written_as_go_and_openai_write_them(seconds: float, text: bytes) -> None:
    assert duration(seconds) == text


@given(st.integers(0, 4_000_000_000))
def test_a_day_and_a_month_end_when_the_calendar_says(wall: int) -> None:
    before, after = time.gmtime(wall), time.gmtime(wall + ends_in_s(wall, daily=True))
    assert (after.tm_hour, after.tm_min, after.tm_sec) == (0, 0, 0)
    assert after.tm_yday != before.tm_yday
    first = time.gmtime(wall + ends_in_s(wall, daily=False))
    assert (first.tm_mday, first.tm_hour, first.tm_min, first.tm_sec) == (1, 0, 0, 0)
    assert first.tm_year * 12 + first.tm_mon == before.tm_year * 12 + before.tm_mon + 1
