"""How many lines are asked at once, and how soon after each other."""

from __future__ import annotations

import pytest

from proxy.batch.pace import BESIDE_OTHERS_S, QUIET_S, START, Courtesy, Highest, Pace, ceiling_of


def test_it_doubles_each_round_until_somebody_has_to_wait_and_then_grows_by_one_a_round() -> None:
    pace = Pace(1000)
    for _ in range(START):
        pace.served(pace.limit)
    assert pace.limit == 2 * START
    pace.crowded(begun=1.0, in_flight=16, now=2.0)
    assert pace.limit == 11
    for _ in range(11):
        pace.served(pace.limit)
    assert 11 <= pace.limit <= 12


def test_what_began_before_the_limit_was_lowered_lowers_it_no_more() -> None:
    pace = Pace(100, start=100)
    for begun in (1.0, 1.1, 1.2):
        pace.crowded(begun, in_flight=100, now=2.0)
    assert pace.limit == 70
    pace.crowded(begun=2.5, in_flight=70, now=3.0)
    assert pace.limit == 49


def test_it_does_not_grow_while_the_limit_is_not_what_holds_lines_back() -> None:
    pace = Pace(100)
    for _ in range(100):
        pace.served(in_flight=2)
    assert pace.limit == START


def test_it_never_falls_below_one_line_nor_rises_above_the_ceiling() -> None:
    pace = Pace(10)
    for time in range(20):
        pace.crowded(time, in_flight=1, now=time + 0.5)
    assert pace.limit == 1
    for _ in range(1000):
        pace.served(pace.limit)
    assert pace.limit == 10


def test_a_ceiling_of_zero_stops_it_and_another_one_lets_it_go_on() -> None:
    pace = Pace(10)
    pace.set_ceiling(0)
    assert pace.limit == 0
    pace.set_ceiling(100, known=True)
    assert pace.limit == 100


def test_it_begins_with_some_lines_where_it_is_not_known_how_many_the_replicas_take() -> None:
    pace = Pace(0)
    pace.set_ceiling(256)
    assert pace.limit == START


def test_new_replicas_are_used_at_once_and_a_seat_more_is_not_taken_for_new_replicas() -> None:
    pace = Pace(0)
    pace.set_ceiling(100, known=True)
    pace.crowded(begun=1.0, in_flight=100, now=2.0)
    pace.set_ceiling(104, known=True)
    assert pace.limit == 70
    pace.set_ceiling(208, known=True)
    assert pace.limit == 208


def test_it_rests_until_it_was_told() -> None:
    pace = Pace(10)
    pace.rest(105.0)
    pace.rest(103.0)
    assert pace.rests_s(100.0) == 5.0
    assert pace.rests_s(106.0) == 0.0
    pace.go_on()
    assert pace.rests_s(100.0) == 0.0


def test_the_ceiling_is_the_hours_share_of_the_seats_less_some_while_others_ask() -> None:
    assert ceiling_of(1000, 1.0, 256, processes=1, beside_others=False) == 256
    assert ceiling_of(1000, 0.25, 256, processes=1, beside_others=False) == 64
    assert ceiling_of(1000, 1.0, 256, processes=1, beside_others=True) == 224
    assert ceiling_of(1000, 1.0, 256, processes=4, beside_others=False) == 64
    assert ceiling_of(100, 1.0, 256, processes=1, beside_others=False) == 100


def test_others_keep_the_seats_that_they_had_lately_and_some_more() -> None:
    assert ceiling_of(1000, 1.0, 32, processes=1, beside_others=True, others=12) == 18
    assert ceiling_of(1000, 1.0, 64, processes=2, beside_others=True, others=12) == 18
    assert ceiling_of(1000, 1.0, 32, processes=1, beside_others=True, others=1) == 28
    assert ceiling_of(1000, 1.0, 32, processes=1, beside_others=True, others=100) == 1


def test_the_highest_number_is_remembered_for_a_while() -> None:
    highest = Highest()
    highest.look(3, 0.0)
    highest.look(7, 1.0)
    highest.look(2, 2.0)
    assert highest.number == 7
    highest.look(1, QUIET_S + 0.5)
    assert highest.number == 7
    highest.look(1, 2 * QUIET_S + 1.0)
    assert highest.number == 1
    highest.look(0, 100.0)
    assert highest.number == 0


def test_the_ceiling_is_zero_only_where_the_hours_say_so() -> None:
    assert ceiling_of(1000, 0.0, 256, processes=1, beside_others=False) == 0
    assert ceiling_of(1000, 0.01, 4, processes=4, beside_others=True) == 1
    assert ceiling_of(1000, 0.01, 0, processes=1, beside_others=False) == START  # a replica must be waited for
    assert ceiling_of(1000, 0.5, None, processes=1, beside_others=False) == 500


def test_beside_others_lines_start_one_after_the_other_and_alone_at_once() -> None:
    courtesy = Courtesy()
    courtesy.look(0, 0.0)
    assert courtesy.wait_s(0.0) == courtesy.wait_s(0.0) == 0.0
    courtesy.look(1, 1.0)
    assert [courtesy.wait_s(1.0) for _ in range(3)] == pytest.approx([0.0, BESIDE_OTHERS_S, 2 * BESIDE_OTHERS_S])
    courtesy.look(1, 2.0)
    assert courtesy.beside_others(2.0)
    assert courtesy.wait_s(1.0 + QUIET_S) == 0.0
