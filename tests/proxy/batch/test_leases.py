"""Who is taken for dead."""

from __future__ import annotations

from proxy.batch.leases import LEASE_S, LOOK_S, Watch


def test_a_worker_whose_beats_stand_still_is_dead_in_time() -> None:
    watch = Watch()
    now = 0.0
    dead: list[str] = []
    while not dead:
        dead = watch.look({"still": 3, "beating": int(now)}, now)
        now += 1
    assert dead == ["still"]
    assert LEASE_S <= now <= LEASE_S + 2


def test_a_worker_that_beats_again_begins_anew() -> None:
    watch = Watch()
    for now in range(14):
        assert watch.look({"ann": 1}, now) == []
    assert watch.look({"ann": 2}, 14) == []
    assert watch.look({"ann": 2}, 28) == []


def test_who_was_away_itself_does_not_take_the_others_for_dead() -> None:
    """All of them may have waited for the same database."""
    watch = Watch()
    assert watch.look({"ann": 1}, 0) == []
    assert watch.look({"ann": 1}, 1000) == []
    assert watch.look({"ann": 1}, 1000 + LOOK_S) == []
    assert watch.look({"ann": 1}, 1000 + 2 * LOOK_S) == ["ann"]


def test_a_worker_that_is_gone_is_forgotten() -> None:
    watch = Watch()
    watch.look({"ann": 1}, 0)
    watch.look({}, 5)
    assert watch.look({"ann": 1}, 10) == []
    assert watch.look({"ann": 1}, 11) == []
