from __future__ import annotations

import pytest

from slurm_launcher.states import ENDED, TRANSITIONS, IllegalTransition, Replica, Status, advance


def test_every_status_has_its_row() -> None:
    assert TRANSITIONS.keys() == set(Status)


def test_nothing_follows_an_end_and_every_end_can_be_reached_from_anywhere() -> None:
    for status, following in TRANSITIONS.items():
        assert following == frozenset() if status in ENDED else following >= ENDED


@pytest.mark.parametrize("end", sorted(ENDED))
def test_a_step_out_of_an_end_raises(end: Status) -> None:
    replica = Replica("r", "m", "h", created_at=0.0, status=end)
    with pytest.raises(IllegalTransition, match="r: "):
        advance(replica, Status.READY, 1.0)


def test_the_same_status_again_is_no_step() -> None:
    replica = Replica("r", "m", "h", created_at=0.0, status=Status.READY, ready_at=5.0)
    assert advance(replica, Status.READY, 9.0) is replica
