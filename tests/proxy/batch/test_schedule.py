"""Whose window is next, in which hours, and how many replicas it takes."""

from __future__ import annotations

import itertools
import random

from proxy.batch.schedule import Hours, Turns, Work, by_model, replicas_for, share_at

HOUR = 3600.0


def work(batch_id: str, owner: str = "a", *, hours: float = 24.0, tokens: int = 1000, **given: int) -> Work:
    return Work(
        batch_id, "m", owner, 0.0, hours * HOUR, given.get("lines", 10), tokens, given.get("window_tokens", 100)
    )


def test_the_batch_with_the_least_slack_goes_first_and_not_the_one_that_was_there_first() -> None:
    calm = work("calm", hours=24)
    soon = work("soon", hours=2)
    assert Turns().next([calm, soon], None, now=0.0) is soon


def test_slack_counts_what_is_left_to_do_and_not_only_the_deadline() -> None:
    small = work("small", hours=5, tokens=100)
    large = work("large", hours=6, tokens=10 * 5 * 3600)  # five hours of work at ten tokens a second
    assert Turns().next([small, large], 10.0, now=0.0) is large
    assert Turns().next([small, large], None, now=0.0) is small  # nothing is measured: the deadline decides


def test_two_projects_have_half_each_however_many_batches_one_of_them_has() -> None:
    turns = Turns()
    works = [*(work(f"a{number}", "a", hours=1) for number in range(9)), work("b", "b", hours=100)]
    had = {"a": 0, "b": 0}
    for _ in range(100):
        chosen = turns.next(works, None, now=0.0)
        assert chosen is not None
        turns.took(chosen, None, now=0.0)
        had[chosen.owner] += chosen.window_tokens
    assert had == {"a": 5000, "b": 5000}


def test_shares_are_counted_in_tokens_and_not_in_windows() -> None:
    turns = Turns()
    works = [work("a", "a", window_tokens=1000), work("b", "b", window_tokens=100)]
    windows = {"a": 0, "b": 0}
    for _ in range(110):
        chosen = turns.next(works, None, now=0.0)
        assert chosen is not None
        turns.took(chosen, None, now=0.0)
        windows[chosen.owner] += 1
    assert windows == {"a": 10, "b": 100}


def test_a_project_with_a_batch_that_is_nearly_late_gets_more_but_never_everything() -> None:
    turns = Turns()
    works = [work("late", "a", hours=10), work("calm", "b", hours=100)]
    had = {"a": 0, "b": 0}
    for _ in range(90):
        chosen = turns.next(works, None, now=9.5 * HOUR)
        assert chosen is not None
        turns.took(chosen, None, now=9.5 * HOUR)
        had[chosen.owner] += 1
    assert had == {"a": 60, "b": 30}


def test_a_newcomer_neither_catches_up_nor_waits_until_the_others_have_had_less() -> None:
    turns = Turns()
    old, new = work("old", "a"), work("new", "b")
    for _ in range(50):
        turns.took(old, None, now=0.0)
    order = []
    for _ in range(6):
        chosen = turns.next([old, new], None, now=0.0)
        assert chosen is not None
        turns.took(chosen, None, now=0.0)
        order.append(chosen.batch_id)
    assert sorted(order) == ["new"] * 3 + ["old"] * 3


def test_there_is_no_next_one_where_there_is_nothing() -> None:
    assert Turns().next([], None, now=0.0) is None


def test_batches_that_fit_are_in_time_in_a_simulated_day_whatever_order_they_come_in() -> None:
    """Work of one project at 100 tokens a second, never more than there is time for: earliest slack loses none."""
    for seed in range(20):
        chance = random.Random(seed)
        turns, now, rate = Turns(), 0.0, 100.0
        due: dict[str, float] = {}
        left: dict[str, int] = {}
        for number in range(8):
            tokens = chance.randrange(10, 100) * 1000
            due[f"b{number}"] = (sum(left.values()) + tokens) / rate * 1.05 + 100
            left[f"b{number}"] = tokens
        for _ in itertools.count():
            works = [Work(id, "m", "a", 0.0, due[id], tokens, tokens, 1000) for id, tokens in left.items() if tokens]
            chosen = turns.next(works, rate, now)
            if chosen is None:
                break
            now += 1000 / rate
            left[chosen.batch_id] -= 1000
            assert now <= chosen.deadline


NIGHT = Hours(frozenset(range(5)), 20 * 3600, 6 * 3600, 0.5)


def test_hours_that_end_the_next_morning_belong_to_the_day_on_which_they_began() -> None:
    friday, saturday, monday = 4, 5, 0
    assert share_at([NIGHT], friday, 23 * 3600, only_in_hours=True) == 0.5
    assert share_at([NIGHT], saturday, 5 * 3600, only_in_hours=True) == 0.5
    assert share_at([NIGHT], saturday, 23 * 3600, only_in_hours=True) == 0.0
    assert share_at([NIGHT], monday, 5 * 3600, only_in_hours=True) == 0.0


def test_outside_of_the_listed_hours_there_is_everything_or_nothing() -> None:
    assert share_at([NIGHT], 0, 12 * 3600, only_in_hours=False) == 1.0
    assert share_at([NIGHT], 0, 12 * 3600, only_in_hours=True) == 0.0
    assert share_at([], 0, 0, only_in_hours=False) == 1.0


def test_the_first_entry_that_covers_the_moment_counts() -> None:
    lunch = Hours(frozenset(range(7)), 12 * 3600, 13 * 3600, 0.9)
    day = Hours(frozenset(range(7)), 8 * 3600, 20 * 3600, 0.1)
    assert share_at([lunch, day], 2, 12 * 3600, only_in_hours=False) == 0.9
    assert share_at([lunch, day], 2, 13 * 3600, only_in_hours=False) == 0.1


def test_work_asks_for_one_replica_until_it_is_known_what_one_does() -> None:
    assert replicas_for([work("a", tokens=10**9)], None, now=0.0) == 1
    assert replicas_for([], 100.0, now=0.0) == 0
    assert replicas_for([work("a", lines=0, tokens=0)], 100.0, now=0.0) == 0


def test_as_many_replicas_are_asked_for_as_the_slack_takes() -> None:
    a_day = work("a", hours=24, tokens=100 * 24 * 3600)
    assert replicas_for([a_day], 100.0, now=0.0) == 2  # one would just do it, if all went well
    assert replicas_for([a_day], 1000.0, now=0.0) == 1
    assert replicas_for([a_day], 100.0, now=20 * HOUR) == 8
    assert replicas_for([a_day], 100.0, now=30 * HOUR) > 1000  # the configuration's maximum is the launcher's to know


def test_a_later_batch_counts_with_all_that_is_due_before_it() -> None:
    one = work("one", hours=10, tokens=100 * 8 * 3600)
    two = work("two", hours=10, tokens=100 * 8 * 3600)
    late = work("late", hours=1000, tokens=1)
    assert replicas_for([one], 100.0, now=0.0) == 1
    assert replicas_for([late, two, one], 100.0, now=0.0) == 2


def test_work_is_told_apart_by_model() -> None:
    one, other = work("a"), Work("a", "n", "a", 0.0, 1.0, 1, 1)
    assert by_model([one, other]) == {"m": [one], "n": [other]}
