from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from slurm_launcher.reports import BadReport, command_for, heard, parse_report
from slurm_launcher.states import Replica, Status, Target

MESSAGE: dict[str, Any] = {
    "version": 1,
    "replica": "r1",
    "model": "llama",
    "config": "abc",
    "cluster": "",
    "job": "42",
    "life": 0,
    "state": "ready",
    "host": "10.0.0.7",
    "node": "n7",
    "port": 40000,
    "time_left_s": 3600.0,
    "failure": None,
    "gpus": [],
}


def said(**fields: Any) -> Any:
    return parse_report("r1", {**MESSAGE, **fields})


def test_a_report_of_an_unknown_replica_adopts_it() -> None:
    replica = heard(None, said(), 5.0)
    assert (replica.id, replica.model, replica.config_hash, replica.job_id) == ("r1", "llama", "abc", "42")
    assert (replica.status, replica.host, replica.port, replica.ready_at) == (Status.READY, "10.0.0.7", 40000, 5.0)
    assert command_for(replica) == "run"


def test_a_failure_comes_with_its_reason_and_last_lines() -> None:
    failure = {"kind": "engine_exited", "message": "The engine exited with status 1.", "tail": ["a", "b"]}
    replica = heard(None, said(state="failed", failure=failure), 5.0)
    assert replica.failure is not None
    assert replica.failure.tail == ("a", "b")
    assert command_for(replica) == "stop"


def test_a_replica_told_to_drain_stays_draining_until_it_knows() -> None:
    draining = replace(heard(None, said(), 5.0), status=Status.DRAINING, target=Target.STOP)
    after = heard(draining, said(), 6.0)
    assert after.status is Status.DRAINING
    assert command_for(after) == "drain"


def test_a_replica_given_up_stays_given_up() -> None:
    lost = replace(heard(None, said(), 5.0), status=Status.LOST)
    assert heard(lost, said(), 6.0) is lost
    assert command_for(lost) == "stop"


def test_an_earlier_life_changes_nothing() -> None:
    second = heard(None, said(life=1), 5.0)
    assert heard(second, said(life=0, port=1), 6.0) is second


def test_a_new_life_of_a_draining_replica_starts_afresh() -> None:
    draining = replace(heard(None, said(), 5.0), status=Status.DRAINING)
    again = heard(draining, said(life=1, state="ready", port=2), 6.0)
    assert (again.status, again.port, again.life) == (Status.READY, 2, 1)


def test_a_silent_field_keeps_what_was_known() -> None:
    known = Replica("r1", "llama", "abc", created_at=0.0, job_id="7", node="n1", ends_at=9.0)
    after = heard(known, said(job="", node="", time_left_s=None), 1.0)
    assert (after.job_id, after.node, after.ends_at) == ("7", "n1", 9.0)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"state": "happy"}, "state"),
        ({"port": "80"}, "port"),
        ({"port": True}, "port"),
        ({"model": None}, "model"),
        ({"failure": "no"}, "failure"),
    ],
)
def test_a_bad_report_names_its_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(BadReport, match=field):
        said(**fields)


def test_a_report_is_an_object() -> None:
    with pytest.raises(BadReport):
        parse_report("r1", [])


def test_an_agent_that_was_ended_from_outside_leaves_it_to_the_scheduler_whether_its_job_comes_back() -> None:
    known = Replica("r1", "llama", "abc", created_at=0.0, job_id="7", node="n1", status=Status.READY, ends_at=900.0)
    after = heard(known, said(state="stopped"), 1.0)
    assert (after.status, after.node, after.port, after.ends_at) == (Status.PENDING, "", 0, None)
    told = heard(replace(known, target=Target.STOP), said(state="stopped"), 1.0)
    assert told.status is Status.STOPPED
